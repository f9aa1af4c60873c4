//! Tools for a template that knows nothing of them: in words, as [`ToolFormat::Hermes`].

use super::{Tool, ToolFormat};
use crate::{Message, TextError, python};
use serde_json::json;

/// The messages with the tools described in the system message, calls in the text of those who made them, and tools'
/// answers as the user's messages.
pub(crate) fn describe(messages: &[Message], tools: &[Tool]) -> Result<Vec<Message>, TextError> {
    let mut out: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    // The last message is of tools' answers: templates want the roles to alternate, so what follows joins it.
    let mut answers = false;
    for message in write_calls(messages, ToolFormat::Hermes)? {
        let answer = message.role == "tool";
        let content = if answer {
            format!("<tool_response>\n{}\n</tool_response>", message.content)
        } else {
            message.content
        };
        let role = if answer { "user".to_owned() } else { message.role };
        match out.last_mut().filter(|last| answers && role == last.role) {
            Some(last) => {
                last.content.push('\n');
                last.content.push_str(&content);
            }
            None => out.push(Message { role, content, tool_call_id: None, name: None, ..message }),
        }
        answers = answer || answers && out.last().is_some_and(|last| last.role == "user");
    }
    if tools.is_empty() {
        return Ok(out);
    }
    let instructions = instructions(tools)?;
    match out.first_mut().filter(|first| first.role == "system") {
        Some(system) => {
            system.content.push_str("\n\n");
            system.content.push_str(&instructions);
        }
        None => out.insert(0, Message::new("system", instructions)),
    }
    Ok(out)
}

fn instructions(tools: &[Tool]) -> Result<String, TextError> {
    let mut out =
        "You can call functions. These are their definitions, each a line of JSON:\n<tools>\n".to_owned();
    for tool in tools {
        out.push_str(&text(&tool.definition())?);
        out.push('\n');
    }
    out.push_str(
        "</tools>\n\
         To call a function, write its name and its arguments as JSON between tags, like this, for each call:\n\
         <tool_call>\n\
         {\"name\": \"NAME\", \"arguments\": {\"ARGUMENT\": \"VALUE\"}}\n\
         </tool_call>\n\
         You then get what the function gives between <tool_response> and </tool_response>.",
    );
    Ok(out)
}

/// The messages with their calls at the end of the text, for a template that doesn't look at `tool_calls`.
pub(crate) fn write_calls(messages: &[Message], format: ToolFormat) -> Result<Vec<Message>, TextError> {
    let mut out = messages.to_vec();
    for message in &mut out {
        for call in std::mem::take(&mut message.tool_calls) {
            let json = text(&json!({"name": call.name, format.arguments_key(): call.arguments}))?;
            if !message.content.is_empty() {
                message.content.push('\n');
            }
            message.content.push_str(&match format {
                ToolFormat::Hermes => format!("<tool_call>\n{json}\n</tool_call>"),
                _ => json,
            });
        }
    }
    Ok(out)
}

fn text(value: &serde_json::Value) -> Result<String, TextError> {
    python::json(value).map_err(|error| TextError::TemplateFailed { message: error.to_string() })
}
