//! Chat formats of the common families, for files whose own template is missing or broken.
//!
//! A family is known by its control tokens, which are its format; families that write their roles as ordinary text are
//! known by their names. A file without a template is taken for a chat model only where its name says so: a base model
//! has its family's control tokens too.

use crate::vocab::TokenKind;
use crate::{ChatTemplate, Message, RenderOptions, TextError, Tokenizer};
use moli_format::Metadata;
use std::fmt;

/// Where a chat template comes from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateOrigin {
    /// It was given as it is: the file's own, or a caller's.
    Given,
    /// The file has none; this is its family's.
    Missing {
        /// The family, such as `chatml`.
        family: &'static str,
    },
    /// The file's own can't be used; this is its family's.
    Broken {
        /// The family, such as `chatml`.
        family: &'static str,
        /// What is wrong with the file's own.
        reason: String,
    },
}

impl fmt::Display for TemplateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("the model's own"),
            Self::Missing { family } => write!(f, "{family}, since the file has none"),
            Self::Broken { family, reason } => {
                write!(f, "{family}, since the file's own can't be used: {reason}")
            }
        }
    }
}

struct Family {
    name: &'static str,
    /// All of these are control or user-defined tokens of the vocabulary.
    tokens: &'static [&'static str],
    /// All of these are words of the model's name.
    words: &'static [&'static str],
    template: &'static str,
}

/// Begins a template that puts the system message before the user's first, in `system`.
macro_rules! system_first {
    ($rest:literal) => {
        concat!(
            "{% set system = '' %}{% if messages and messages[0].role == 'system' %}",
            "{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}{% endif %}",
            $rest
        )
    };
}

/// ChatML in Jinja.
pub(crate) const CHATML: &str = concat!(
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
);

/// The first that fits is taken: those that say more come first.
const FAMILIES: &[Family] = &[
    Family {
        name: "llama4",
        tokens: &["<|header_start|>", "<|header_end|>", "<|eot|>"],
        words: &[],
        template: "{{ bos_token }}{% for message in messages %}<|header_start|>{{ message.role }}<|header_end|>\n\n{{ message.content | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}",
    },
    Family {
        name: "llama3",
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        words: &[],
        template: "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    },
    Family {
        name: "granite",
        tokens: &["<|start_of_role|>", "<|end_of_role|>"],
        words: &[],
        template: "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
    },
    Family {
        name: "command-r",
        tokens: &["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"],
        words: &[],
        template: "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>{% if message.role == 'system' %}<|SYSTEM_TOKEN|>{% elif message.role == 'assistant' %}<|CHATBOT_TOKEN|>{% else %}<|USER_TOKEN|>{% endif %}{{ message.content }}<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
    },
    Family {
        name: "gemma",
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        words: &[],
        template: system_first!(
            "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n{% if loop.first and system %}{{ system }}\n\n{% endif %}{{ message.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
        ),
    },
    Family {
        name: "deepseek",
        tokens: &["<｜User｜>", "<｜Assistant｜>"],
        words: &[],
        template: "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}{% elif message.role == 'system' %}{{ message.content }}{% else %}<｜User｜>{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
    },
    Family {
        name: "glm4",
        tokens: &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
        words: &[],
        template: "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    },
    Family {
        name: "phi4",
        tokens: &["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
        words: &[],
        template: "{% for message in messages %}<|im_start|>{{ message.role }}<|im_sep|>{{ message.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
    },
    Family { name: "chatml", tokens: &["<|im_start|>", "<|im_end|>"], words: &[], template: CHATML },
    Family {
        name: "phi3",
        tokens: &["<|user|>", "<|assistant|>", "<|end|>"],
        words: &[],
        template: "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    },
    Family {
        name: "mistral-v7",
        tokens: &["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
        words: &[],
        template: "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% elif message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content }}[/SYSTEM_PROMPT]{% else %}[INST]{{ message.content }}[/INST]{% endif %}{% endfor %}",
    },
    Family {
        name: "mistral-v3",
        tokens: &["[INST]", "[/INST]"],
        words: &[],
        template: system_first!(
            "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content }}{{ eos_token }}{% else %}[INST]{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ message.content }}[/INST]{% endif %}{% endfor %}"
        ),
    },
    Family { name: "zephyr", tokens: &[], words: &["zephyr"], template: ZEPHYR },
    Family { name: "zephyr", tokens: &[], words: &["tinyllama", "chat"], template: ZEPHYR },
    Family {
        name: "vicuna",
        tokens: &[],
        words: &["vicuna"],
        template: "{% for message in messages %}{% if message.role == 'assistant' %}ASSISTANT: {{ message.content }}{{ eos_token }}\n{% elif message.role == 'system' %}{{ message.content }}\n\n{% else %}USER: {{ message.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    },
    Family {
        name: "alpaca",
        tokens: &[],
        words: &["alpaca"],
        template: "{% for message in messages %}{% if message.role == 'assistant' %}### Response:\n{{ message.content }}{{ eos_token }}\n\n{% elif message.role == 'system' %}{{ message.content }}\n\n{% else %}### Instruction:\n{{ message.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
    },
    Family { name: "mistral", tokens: &[], words: &["mistral", "instruct"], template: MISTRAL },
    Family { name: "mistral", tokens: &[], words: &["mixtral", "instruct"], template: MISTRAL },
    Family { name: "llama2", tokens: &[], words: &["llama", "2", "chat"], template: LLAMA2 },
    Family { name: "llama2", tokens: &[], words: &["llama2", "chat"], template: LLAMA2 },
    Family { name: "llama2", tokens: &[], words: &["llama", "v2", "chat"], template: LLAMA2 },
];

const ZEPHYR: &str = "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}";
const MISTRAL: &str = system_first!(
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %} {{ message.content | trim }}{{ eos_token }}{% else %}[INST] {% if loop.first and system %}{{ system }}\n\n{% endif %}{{ message.content | trim }} [/INST]{% endif %}{% endfor %}"
);
const LLAMA2: &str = system_first!(
    "{% for message in messages %}{% if message.role == 'assistant' %} {{ message.content | trim }} {{ eos_token }}{% else %}{{ bos_token }}[INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}{{ message.content | trim }} [/INST]{% endif %}{% endfor %}"
);

/// Words that tell a chat model's name from a base model's.
const CHAT_WORDS: &[&str] = &[
    "instruct",
    "instruction",
    "chat",
    "it",
    "assistant",
    "zephyr",
    "vicuna",
    "alpaca",
    "hermes",
    "dolphin",
    "openchat",
    "orca",
    "tulu",
    "dpo",
    "sft",
];

/// The template to use for a model: see [`ChatTemplate::for_model`].
pub(crate) fn choose(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, TextError> {
    let own = ChatTemplate::from_gguf(metadata)
        .and_then(|own| own.map(|own| renders(&own, tokenizer).map(|()| own)).transpose());
    let words = words(metadata)?;
    let reason = match own {
        Ok(Some(own)) => return Ok(Some(own)),
        Ok(None) if !CHAT_WORDS.iter().any(|word| words.iter().any(|own| own == word)) => return Ok(None),
        Ok(None) => None,
        Err(error) => Some(error),
    };
    let fits = |family: &&Family| {
        family.tokens.iter().all(|token| is_special(tokenizer, token))
            && family.words.iter().all(|word| words.iter().any(|own| own == word))
    };
    match (FAMILIES.iter().find(fits), reason) {
        (Some(&Family { name: family, template, .. }), reason) => {
            let origin = match reason {
                Some(error) => TemplateOrigin::Broken { family, reason: error.to_string() },
                None => TemplateOrigin::Missing { family },
            };
            ChatTemplate::new(template).map(|template| Some(template.with_origin(origin)))
        }
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Whether a template can make a prompt at all. One that refuses a message does what it is for.
fn renders(template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<(), TextError> {
    match template.render(tokenizer, &[Message::new("user", "Hi")], &RenderOptions::default()) {
        Ok(_) | Err(TextError::TemplateRefused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_special(tokenizer: &Tokenizer, token: &str) -> bool {
    let kind = tokenizer.token_id(token).and_then(|id| tokenizer.vocab().kind(id));
    matches!(kind, Some(TokenKind::Control | TokenKind::UserDefined))
}

/// The words of the model's names, in small letters.
fn words(metadata: &Metadata) -> Result<Vec<String>, TextError> {
    let mut words = Vec::new();
    for key in ["general.name", "general.basename", "general.finetune"] {
        let name = metadata.str_opt(key)?.unwrap_or("").to_lowercase();
        words.extend(name.split(|c: char| !c.is_alphanumeric()).map(str::to_owned));
    }
    Ok(words)
}
