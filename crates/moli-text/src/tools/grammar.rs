//! Grammars that make calls well-formed, in the Lark dialect of the `llguidance` crate.

use super::{Tool, ToolChoice, ToolFormat};
use crate::{ReasoningTags, TextError, Tokenizer};
use serde_json::{Value, json};
use std::fmt::{self, Write};

/// What a grammar allows besides the tools.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Whether a tool has to be called.
    pub choice: ToolChoice,
    /// Several calls in one answer; a named tool is called once in any case.
    pub parallel: bool,
    /// Reasoning may come first.
    pub reasoning: Option<ReasoningTags>,
    /// It has begun in the prompt, so it comes first: see [`ReasoningTags::opened_by`].
    pub in_reasoning: bool,
}

impl ToolFormat {
    /// A grammar for a whole answer, in which each call is one of an offered tool, written in this format, with arguments
    /// that follow the tool's schema. Of a strict tool's schema nothing is left out: what the grammar's compiler doesn't
    /// know is its error. Of others it is ignored.
    ///
    /// `None` where nothing is to be constrained: no call is wanted, or calls are up to the model, as many as it likes, and
    /// no tool is strict. Where they are up to the model and one is strict, or one call is the most, other text comes as it
    /// likes, but nothing that the parser would take for a call is outside the grammar.
    ///
    /// Marks that are control tokens of `tokenizer` stand in the grammar by their ids.
    ///
    /// # Errors
    /// [`TextError::NoTools`], [`TextError::UnknownTool`] and those of [`Tool::validate`].
    pub fn call_grammar(
        self,
        tools: &[Tool],
        options: &CallOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Option<String>, TextError> {
        Tool::validate(tools)?;
        let named = |name: &String| tools.iter().find(|tool| tool.name == *name);
        let (tools, free) = match &options.choice {
            ToolChoice::None => return Ok(None),
            ToolChoice::Auto if tools.is_empty() => return Ok(None),
            ToolChoice::Auto if options.parallel && !tools.iter().any(|tool| tool.strict) => return Ok(None),
            ToolChoice::Auto => (tools, true),
            ToolChoice::Required if tools.is_empty() => return Err(TextError::NoTools),
            ToolChoice::Required => (tools, false),
            ToolChoice::Named(name) => match named(name) {
                Some(tool) => (std::slice::from_ref(tool), false),
                None => {
                    return Err(TextError::UnknownTool { name: super::shown(name), tools: tools.len() });
                }
            },
        };
        let parallel = options.parallel && !matches!(options.choice, ToolChoice::Named(_));
        let writer = Writer { format: self, options, parallel, tokenizer, out: String::new() };
        writer.write(tools, free).map(Some).map_err(|_| TextError::NoTools)
    }
}

struct Writer<'a> {
    format: ToolFormat,
    options: &'a CallOptions,
    parallel: bool,
    tokenizer: &'a Tokenizer,
    out: String,
}

impl Writer<'_> {
    fn write(mut self, tools: &[Tool], free: bool) -> Result<String, fmt::Error> {
        let reasoning = match &self.options.reasoning {
            None => "",
            Some(_) if self.options.in_reasoning => "reasoning ",
            Some(_) => "reasoning? ",
        };
        let answer = if free { self.free_answer()? } else { self.calls() };
        writeln!(self.out, "start: {reasoning}{answer}")?;
        self.reasoning()?;
        self.call(free)?;
        self.tools(tools)?;
        Ok(self.out)
    }

    /// A mark in a rule.
    fn mark(&self, text: &str) -> String {
        self.control(text).unwrap_or_else(|| quoted(text))
    }

    fn control(&self, text: &str) -> Option<String> {
        let id = self.tokenizer.token_id(text).filter(|&id| self.tokenizer.is_control(id))?;
        Some(format!("<[{id}]>"))
    }

    /// Nothing but calls.
    fn calls(&self) -> String {
        let list = |one: &str, separator: &str| {
            if self.parallel { format!("{one} ({} {one})*", quoted(separator)) } else { one.to_owned() }
        };
        match self.format {
            ToolFormat::Hermes | ToolFormat::ToolCode => list("call", "\n"),
            ToolFormat::MistralNamed if self.parallel => "call+".to_owned(),
            ToolFormat::MistralNamed | ToolFormat::Mistral => "call".to_owned(),
            ToolFormat::Llama3 => {
                let tag = self.control(PYTHON_TAG).map(|tag| format!("{tag}? ")).unwrap_or_default();
                tag + &list("tool", "; ")
            }
            ToolFormat::Json if self.parallel => format!("(tool | \"[\" {} \"]\")", list("tool", ", ")),
            ToolFormat::Json => "tool".to_owned(),
        }
    }

    /// Calls amid text, which contains nothing that begins a call.
    fn free_answer(&mut self) -> Result<String, fmt::Error> {
        // What the text between calls is not.
        let mut excluded = String::new();
        for (index, opener) in self.format.openers().iter().enumerate() {
            if self.control(opener.text).is_some() {
                continue;
            }
            writeln!(self.out, "OPENER_{index}: ANY {} ANY", quoted(opener.text))?;
            write!(excluded, " & ~OPENER_{index}")?;
        }
        if self.format.is_bare() {
            writeln!(self.out, "BARE: /[ \\t\\r\\n]*[{{\\[](?s:.*)/")?;
            excluded.push_str(" & ~BARE");
        }
        let tags = self.options.reasoning.as_ref().filter(|_| !self.options.in_reasoning);
        if let Some(open) = tags.map(ReasoningTags::open).filter(|open| self.control(open).is_none()) {
            writeln!(self.out, "THOUGHT: /\\s*/ {} ANY", quoted(open))?;
            excluded.push_str(" & ~THOUGHT");
        }
        writeln!(self.out, "ANY: /(?s:.*)/\nBEFORE: ANY{excluded}\nSAID: /(?s:.+)/{excluded}")?;
        let opener = self.format.openers().first().map_or("", |opener| opener.text);
        let many = if self.parallel { "*" } else { "?" };
        Ok(match self.format {
            ToolFormat::Llama3 | ToolFormat::Json => format!("(SAID | {})?", self.calls()),
            _ if self.control(opener).is_some() => format!("SAID? (call SAID?){many}"),
            _ => {
                writeln!(self.out, "before[lazy]: BEFORE {}", quoted(opener))?;
                format!("call{many} SAID?")
            }
        })
    }

    /// The rule of a call with its marks; text may come before it.
    fn call(&mut self, free: bool) -> fmt::Result {
        let openers = self.format.openers();
        let Some(opener) =
            openers.first().filter(|_| !matches!(self.format, ToolFormat::Llama3 | ToolFormat::Json))
        else {
            return Ok(());
        };
        let open = if free && self.control(opener.text).is_none() {
            "before".to_owned()
        } else {
            self.mark(opener.text)
        };
        let body = match self.format {
            ToolFormat::Mistral if self.parallel => "\"[\" tool (\", \" tool)* \"]\"".to_owned(),
            ToolFormat::Mistral => "\"[\" tool \"]\"".to_owned(),
            ToolFormat::MistralNamed => "tool".to_owned(),
            _ => {
                let close = opener.close.map(|close| self.mark(close)).unwrap_or_default();
                format!("\"\\n\" tool \"\\n\" {close}")
            }
        };
        writeln!(self.out, "call: {open} {body}")
    }

    /// The rules of the tools and their arguments.
    fn tools(&mut self, tools: &[Tool]) -> fmt::Result {
        let names: Vec<String> = (0..tools.len()).map(|index| format!("tool_{index}")).collect();
        writeln!(self.out, "tool: {}", names.join(" | "))?;
        for (index, tool) in tools.iter().enumerate() {
            let name = &tool.name;
            if self.format == ToolFormat::MistralNamed {
                let arguments = self.mark("[ARGS]");
                writeln!(self.out, "tool_{index}: {} {arguments} arguments_{index}", quoted(name))?;
            } else {
                let before = format!("{{\"name\": \"{name}\", \"{}\": ", self.format.arguments_key());
                writeln!(self.out, "tool_{index}: {} arguments_{index} \"}}\"", quoted(&before))?;
            }
            writeln!(self.out, "arguments_{index}: %json {}", schema(tool))?;
        }
        Ok(())
    }

    fn reasoning(&mut self) -> fmt::Result {
        let Some(tags) = &self.options.reasoning else { return Ok(()) };
        let opened = self.options.in_reasoning;
        let (mut before, mut thought, mut after) = (String::new(), String::new(), String::new());
        match self.control(tags.open()) {
            _ if opened => {}
            Some(control) => before = control + " ",
            None => thought = quoted(tags.open()) + " ",
        }
        thought.push_str("/(?s:.*)/");
        let lazy = match self.control(tags.close()) {
            Some(control) => {
                after = control + " ";
                ""
            }
            None => {
                thought = thought + " " + &quoted(tags.close());
                "[lazy]"
            }
        };
        writeln!(self.out, "reasoning: {before}thought {after}/\\n{{1,2}}/?")?;
        writeln!(self.out, "thought{lazy}: {thought}")
    }
}

const PYTHON_TAG: &str = "<|python_tag|>";

/// A text as a literal.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Between the parts of JSON that a grammar asks for: nothing, one space, or a line break and an indentation. Without a
/// bound, a model that begins with white space may never come to an end of it.
pub const JSON_WHITESPACE: &str = r" |\r?\n[ \t]{0,40}";

/// A tool's schema with the compiler's options, which are not the client's to set.
fn schema(tool: &Tool) -> Value {
    let mut schema = tool.schema();
    schema.entry("type").or_insert_with(|| Value::from("object"));
    schema.insert(
        "x-guidance".to_owned(),
        json!({"lenient": !tool.strict, "whitespace_pattern": JSON_WHITESPACE}),
    );
    Value::Object(schema)
}
