//! Writes a tiny model with random weights in the form of a chat model that thinks and calls tools: what it says is noise, and
//! that it is told apart, counted and constrained can be tested on it.

use std::error::Error;
use std::path::Path;

use moli_testkit::TinyModel;

/// ChatML, with calls in the manner of Hermes and reasoning that can be turned off.
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>\n\
    <tool_call>{\"name\": …, \"arguments\": …}</tool_call><|im_end|>\n{% endif %}\
    {% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
    {% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\
    {% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}";

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let path = std::env::args_os().nth(1).ok_or("usage: thinker OUT.gguf")?;
    let mut file = TinyModel::new("llama").file()?;
    file.meta("tokenizer.chat_template", TEMPLATE);
    file.write(Path::new(&path))?;
    Ok(())
}
