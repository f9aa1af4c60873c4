//! Chat templates: messages to a prompt, in the model's own words.
//!
//! A template is a program from a file, so it runs within bounds:
//! - its source has at most [`ChatTemplate::MAX_SOURCE`] bytes, and its nesting is limited while it is compiled;
//! - rendering has a budget that each step, each byte that an operator, filter, method or the output makes and each
//!   item that is visited is paid from, before anything large is allocated. It grows with the conversation: memory is at
//!   most about 32 MiB and some 64 times the size of messages, tools and variables;
//! - macros and recursive loops have a depth.

use crate::catalogue::{self, TemplateOrigin};
use crate::concat;
use crate::guard::Guard;
use crate::python::{self, Bounded, Raised};
use crate::tools::{self, Tool, ToolFormat};
use crate::variables::{self, Conversation};
use crate::{Message, ReasoningTags, TextError, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};
use moli_format::Metadata;
use serde_json::Map;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a rendering is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderOptions {
    /// Ends the prompt with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// What `strftime_now` takes for now, in seconds since 1970 (UTC); the clock's time if `None`.
    pub now: Option<i64>,
    /// The tools that the model may call, as `tools`. A template that knows nothing of tools gets them in words: see
    /// [`ChatTemplate::uses_tools`].
    pub tools: Vec<Tool>,
    /// Further variables of the template, such as `enable_thinking`. What they say is a client's text too.
    pub extra: Map<String, serde_json::Value>,
}

impl Default for RenderOptions {
    /// For an answer, now.
    fn default() -> Self {
        Self { add_generation_prompt: true, now: None, tools: Vec::new(), extra: Map::new() }
    }
}

/// A prompt, and where its control tokens may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    text: String,
    barriers: Vec<usize>,
}

impl RenderedPrompt {
    /// `barriers`: as [`barriers`](Self::barriers) gives them.
    pub(crate) fn new(text: String, barriers: Vec<usize>) -> Self {
        Self { text, barriers }
    }

    /// The text, exactly as the template gave it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte positions that no control token may reach across, in ascending order.
    pub(crate) fn barriers(&self) -> &[usize] {
        &self.barriers
    }
}

/// A compiled chat template; a cheap handle, shared between threads.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    uses_tools: bool,
    origin: Arc<TemplateOrigin>,
}

const NAME: &str = "chat";
/// Fuel of a rendering before what the conversation adds; one is a step or 64 bytes.
const BASE_FUEL: u64 = 500_000;
/// More fuel for each message, call and tool, and for each byte of one.
const FUEL_PER_ITEM: u64 = 2_000;
const FUEL_PER_BYTE: u64 = 1;
/// Bytes of stack for rendering itself.
const MIN_STACK: usize = 16 << 20;
/// Bytes of stack for each unit of fuel. A level of nesting costs several units and frees with less than 1000 bytes; what
/// is not used is address space only.
const STACK_PER_FUEL: usize = 200;
/// No stack is larger; long messages add fuel that is for their bytes, not for nesting.
const MAX_STACK: usize = 1 << 30;
/// Levels of nested calls. One of a macro counts for several.
const MAX_DEPTH: usize = 200;

impl ChatTemplate {
    /// The most bytes of a template's source.
    pub const MAX_SOURCE: usize = 256 << 10;

    /// Compiles a template.
    ///
    /// # Errors
    /// [`TextError::TemplateTooLong`] and [`TextError::TemplateSyntax`].
    pub fn new(source: &str) -> Result<Self, TextError> {
        if source.len() > Self::MAX_SOURCE {
            return Err(TextError::TemplateTooLong { limit: Self::MAX_SOURCE, actual: source.len() });
        }
        crate::nesting::check(source)?;
        let syntax = |error: Error| TextError::TemplateSyntax { message: describe(&error) };
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(syntax)?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_fuel(Some(BASE_FUEL));
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", |state: &mut State, value: &Value, args: Kwargs| {
            python::tojson(state, value, args)
        });
        environment.add_filter("join", python::join);
        environment.add_filter("string", python::string);
        environment.add_filter(concat::FILTER, python::text);
        python::bound_filters(&mut environment);
        python::kind_tests(&mut environment);
        environment.remove_global("debug");
        // Text that a `set` block or a macro captures isn't limited by the output's own limit.
        environment.set_formatter(|out, state, value| {
            let text = python::text(state, value)?;
            minijinja::escape_formatter(out, state, &text)
        });
        environment.add_function("raise_exception", |state: &mut State, message: &Value| {
            python::raise_exception(state, message)
        });
        // Python's engine has one kind of line end.
        let lines = source.replace("\r\n", "\n").replace('\r', "\n");
        let bounded = concat::bound(&without_generation_tags(&lines));
        environment.add_template_owned(NAME, bounded).map_err(syntax)?;
        let variables = environment.get_template(NAME).map_err(syntax)?.undeclared_variables(false);
        let uses_tools = variables.contains("tools") || sets_tools_from_tools(source);
        let origin = Arc::new(TemplateOrigin::Given);
        Ok(Self { environment: Arc::new(environment), source: source.into(), uses_tools, origin })
    }

    /// The template to use for a model: its own, or its family's where a chat model has none or one that can't make any
    /// prompt. [`origin`](Self::origin) tells which and why. `None` for a model without a template that is no chat model
    /// by its name, or of no family that is known here.
    ///
    /// # Errors
    /// What is wrong with the file's own where the family isn't known either.
    pub fn for_model(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        catalogue::choose(metadata, tokenizer)
    }

    pub(crate) fn with_origin(self, origin: TemplateOrigin) -> Self {
        Self { origin: Arc::new(origin), ..self }
    }

    /// Where the template comes from, and why.
    pub fn origin(&self) -> &TemplateOrigin {
        &self.origin
    }

    /// The template of a GGUF, if it has one.
    ///
    /// # Errors
    /// As [`new`](Self::new), or a key of another type than text.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, TextError> {
        metadata.str_opt("tokenizer.chat_template")?.map(Self::new).transpose()
    }

    /// ChatML, for models without a template of their own.
    ///
    /// # Errors
    /// None in practice: the template is a constant.
    pub fn chatml() -> Result<Self, TextError> {
        Self::new(catalogue::CHATML)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template knows tools. For one that doesn't, they are described in the system message, with the calls in
    /// [`ToolFormat::Hermes`]; calls and tools' answers in the conversation are then written into the messages' text.
    pub fn uses_tools(&self) -> bool {
        self.uses_tools
    }

    /// How the model writes calls, as far as the template tells; `None` where it does so in a way that isn't known here,
    /// so that a caller either names a format or declines to offer tools.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        if self.uses_tools { ToolFormat::detect(&self.source) } else { Some(ToolFormat::Hermes) }
    }

    /// How the model marks its reasoning, where the template tells of any.
    pub fn reasoning_tags(&self) -> Option<ReasoningTags> {
        ReasoningTags::detect(&self.source)
    }

    /// Renders messages. What they, the tools and the variables contain can't become a control token of `tokenizer`: see
    /// [`RenderedPrompt`].
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] with the template's own words, [`TextError::TemplateBudget`],
    /// [`TextError::TemplateRecursion`] and [`TextError::TemplateFailed`]; [`TextError::TemplateVariable`],
    /// [`TextError::ArgumentsTooDeep`] and those of [`Tool::validate`].
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<RenderedPrompt, TextError> {
        variables::check(&self.environment, messages, options)?;
        let calls = messages.iter().any(|message| !message.tool_calls.is_empty());
        let rewritten = if !self.uses_tools && (calls || !options.tools.is_empty()) {
            Some(tools::describe(messages, &options.tools)?)
        } else if calls && !self.source.contains("tool_calls") {
            Some(tools::write_calls(messages, self.tool_format().unwrap_or(ToolFormat::Json))?)
        } else {
            None
        };
        let conversation = Conversation {
            messages: rewritten.as_deref().unwrap_or(messages),
            tools: if self.uses_tools { &options.tools } else { &[] },
            extra: &options.extra,
            thinking: !self.source.contains("reasoning_content"),
        };
        let (items, bytes) = conversation.size();
        let fuel = BASE_FUEL + FUEL_PER_ITEM * items as u64 + FUEL_PER_BYTE * bytes as u64;
        // A list in a list in a list … is freed by recursion: on a stack that is deep enough for what the fuel can nest.
        let deepest = usize::try_from(fuel).unwrap_or(usize::MAX).saturating_mul(STACK_PER_FUEL);
        let stack = MIN_STACK.saturating_add(deepest).min(MAX_STACK);
        let failed = |what: &str| TextError::TemplateFailed { message: what.to_owned() };
        std::thread::scope(|scope| {
            let render = || self.render_with(tokenizer, &conversation, options, fuel);
            let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(stack);
            let thread = thread.spawn_scoped(scope, render).map_err(|error| failed(&error.to_string()))?;
            thread.join().map_err(|_| failed("the template engine panicked"))?
        })
    }

    fn render_with(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation<'_>,
        options: &RenderOptions,
        fuel: u64,
    ) -> Result<RenderedPrompt, TextError> {
        let mut texts = vec![&*self.source];
        conversation.texts(|text| texts.push(text));
        let guard = Guard::new(tokenizer.special(), texts.into_iter()).ok_or_else(|| {
            TextError::TemplateFailed { message: "the messages use all private-use characters".to_owned() }
        })?;

        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        let now = options.now.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
        });
        environment.add_function("strftime_now", move |format: &str| python::strftime(now, format));
        let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.vocab().get(id)).unwrap_or("").to_owned();
        let mut context = conversation.variables(&guard);
        context.extend([
            ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
            ("bos_token".to_owned(), text_of(tokenizer.bos()).into()),
            ("eos_token".to_owned(), text_of(tokenizer.eos()).into()),
        ]);
        let context = Value::from_pairs(context);
        let template = environment.get_template(NAME).map_err(failure)?;
        let mut out = Bounded {
            bytes: Vec::new(),
            limit: usize::try_from(fuel.saturating_mul(64)).unwrap_or(usize::MAX),
        };
        template.render_captured_to(context, &mut out).map_err(failure)?;
        let rendered = String::from_utf8(out.bytes)
            .map_err(|error| TextError::TemplateFailed { message: error.to_string() })?;
        let (text, barriers) = guard.clean(&rendered);
        Ok(RenderedPrompt::new(text, barriers))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// An error of rendering as one of ours.
fn failure(error: Error) -> TextError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TextError::TemplateRefused { message: message.clone() };
        }
        if let Some(error) = cause.downcast_ref::<Error>() {
            if matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure) {
                return TextError::TemplateBudget;
            }
            if error.detail().is_some_and(|detail| detail.contains("recursion limit")) {
                return TextError::TemplateRecursion;
            }
        }
        source = cause.source();
    }
    TextError::TemplateFailed { message: describe(&error) }
}

/// The message and the line, without the source that a debugging display would show.
fn describe(error: &Error) -> String {
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// Whether `tools` is set to something made of itself, which hides from the engine that it is used.
fn sets_tools_from_tools(source: &str) -> bool {
    source.match_indices("set tools").any(|(at, word)| {
        let rest = source.get(at + word.len()..).unwrap_or("").trim_start();
        rest.strip_prefix('=').is_some_and(|value| value.trim_start().starts_with("tools"))
    })
}

/// `{% generation %}` marks the assistant's words for training; for a prompt it is a block that does nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let inner = tag.get(2..).unwrap_or("");
        let sign = inner.chars().next().filter(|c| matches!(c, '-' | '+')).map_or(0, char::len_utf8);
        let name = inner.get(sign..).unwrap_or("").trim_start();
        let skipped = tag.len() - name.len();
        let replaced =
            [("endgeneration", "endif"), ("generation", "if true")].into_iter().find(|(word, _)| {
                name.strip_prefix(word).is_some_and(|after| {
                    let after = after.trim_start();
                    after.strip_prefix(['-', '+']).unwrap_or(after).starts_with("%}")
                })
            });
        if let Some((word, with)) = replaced {
            out.push_str(tag.get(..skipped).unwrap_or(""));
            out.push_str(with);
            rest = tag.get(skipped + word.len()..).unwrap_or("");
        } else {
            out.push_str("{%");
            rest = inner;
        }
    }
    out.push_str(rest);
    out
}
