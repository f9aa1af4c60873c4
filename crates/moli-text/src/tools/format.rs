//! The ways in which models write calls.

use serde::{Deserialize, Serialize};

/// How a model writes a call of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, one element for each call: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": …}`, behind `<|python_tag|>` or alone, calls separated by `;`: Llama 3.
    Llama3,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}, …]`: Mistral's older tokenizers.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}` for each call, or with `[CALL_ID]id` before `[ARGS]`: Mistral's newer ones.
    MistralNamed,
    /// The same JSON as in [`Json`](Self::Json) within a fence of `` ```tool_code ``: Gemma.
    ToolCode,
    /// `{"name": …, "arguments": …}` or a list of these, and nothing else; a fence of `` ```json `` may stand around it.
    Json,
}

/// What stands before a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opener {
    pub(super) text: &'static str,
    /// What stands behind.
    pub(super) close: Option<&'static str>,
}

/// Marks of formats that aren't known here.
const FOREIGN: &[&str] = &[
    "<function=",
    "<arg_key>",
    "<function_calls>",
    "<tool_calls>",
    "<minimax:tool_call>",
    "<TOOLCALL>",
    "<|tool_call>",
    "<|tool_call|>",
    "<|tool_call_start|>",
    "<|tool_calls_section_begin|>",
    "<|channel|>commentary",
    "<|START_ACTION|>",
    "<｜tool▁call",
    "\"tool_name\"",
    "functools[",
];

const FENCES: [Opener; 3] = [
    Opener { text: "```tool_code", close: Some("```") },
    Opener { text: "```tool_call", close: Some("```") },
    Opener { text: "```json", close: Some("```") },
];

impl ToolFormat {
    /// The format that a template's source tells of, the plain [`Json`](Self::Json) where it tells of none. `None` where
    /// it tells of one that isn't among these: such calls would be taken for content.
    pub fn detect(source: &str) -> Option<Self> {
        let says = |text: &str| source.contains(text);
        if FOREIGN.iter().any(|mark| says(mark)) {
            return None;
        }
        Some(if says("[TOOL_CALLS]") {
            if says("[ARGS]") { Self::MistralNamed } else { Self::Mistral }
        } else if says("<tool_call>") {
            Self::Hermes
        } else if says("<|python_tag|>") || (says("<|eot_id|>") && says("\"parameters\"")) {
            Self::Llama3
        } else if says("```tool_code") || says("```tool_call") {
            Self::ToolCode
        } else {
            Self::Json
        })
    }

    /// The texts by which a parser finds calls. Where the vocabulary has one as a control token, the stream of text has to
    /// show it: see [`TextStream::show`](crate::TextStream::show).
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral | Self::MistralNamed => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Self::ToolCode | Self::Json => &[],
        }
    }

    pub(super) fn openers(self) -> &'static [Opener] {
        match self {
            Self::Hermes => &[Opener { text: "<tool_call>", close: Some("</tool_call>") }],
            Self::Llama3 => &[Opener { text: "<|python_tag|>", close: None }],
            Self::Mistral | Self::MistralNamed => &[Opener { text: "[TOOL_CALLS]", close: None }],
            Self::ToolCode | Self::Json => &FENCES,
        }
    }

    /// What ends a message and is no part of it.
    pub(super) fn ends(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["<|eom_id|>", "<|eot_id|>"],
            _ => &[],
        }
    }

    /// Whether a call may have no mark before it.
    pub(super) fn is_bare(self) -> bool {
        matches!(self, Self::Llama3 | Self::ToolCode | Self::Json)
    }

    /// Whether a name may follow the mark instead of JSON.
    pub(super) fn names_first(self) -> bool {
        matches!(self, Self::Mistral | Self::MistralNamed)
    }

    /// The key of the arguments.
    pub(super) fn arguments_key(self) -> &'static str {
        match self {
            Self::Llama3 => "parameters",
            _ => "arguments",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ToolFormat::{self, *};

    #[test]
    fn templates_tell_their_format() {
        for (source, format) in [
            ("return a json object within <tool_call></tool_call> XML tags", Hermes),
            ("{{- '<|python_tag|>' }}", Llama3),
            ("'Respond in the format {\"name\": f, \"parameters\": {}}' <|eot_id|>", Llama3),
            ("[TOOL_CALLS][", Mistral),
            ("[TOOL_CALLS]{{ name }}[ARGS]", MistralNamed),
            ("Call functions in ```tool_code", ToolCode),
            ("{{ tools | tojson }}", Json),
        ] {
            assert_eq!(ToolFormat::detect(source), Some(format), "{source}");
        }
        for source in ["<tool_call>\n<function=name>", "<tool_call>{name}<arg_key>", "<｜tool▁calls▁begin｜>"]
        {
            assert_eq!(ToolFormat::detect(source), None, "{source}");
        }
    }
}
