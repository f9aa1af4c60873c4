//! An answer as it comes: what is said, what is thought, which tools are called.
//!
//! The parser goes character by character, so what it gives does not depend on how the text was cut, and each character
//! costs the same. It holds back:
//! - what may be the beginning of a mark;
//! - white space, which belongs to the formatting where a mark stands beside it;
//! - a call, until it is whole. So there is no half of a call, and what turns out not to be one is content, as it was
//!   written. A call of more than [`AnswerParser::MAX_CALL`] bytes or that nests too deep is content too.

use super::call::{Call, arguments, calls, is_id};
use super::scanner::{Scanner, Step};
use super::{ToolFormat, is_name};
use crate::ReasoningTags;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// What is said. Parts that follow each other are one text.
    Content(String),
    /// What is thought, likewise.
    Reasoning(String),
    /// A call begins.
    ToolCallStart {
        /// Its place among the answer's calls.
        index: usize,
        /// What the tool's answer has to refer to: the model's own id, or one of nine letters and digits.
        id: String,
        /// The tool. A call with a mark may name one that isn't offered.
        name: String,
    },
    /// The next part of its arguments, at present all of them.
    ToolCallArguments {
        /// The call's place.
        index: usize,
        /// A part of a JSON object, as the model wrote it.
        json_fragment: String,
    },
    /// The call is whole.
    ToolCallEnd {
        /// Its place.
        index: usize,
    },
}

/// What an [`AnswerParser`] looks for.
#[derive(Clone, Debug, Default)]
pub struct ParserOptions {
    /// How calls are written; `None` where no tools are offered, so that nothing is a call.
    pub format: Option<ToolFormat>,
    /// The tools that are offered. A call without a mark before it has to name one of them.
    pub names: Vec<String>,
    /// How reasoning is marked; `None` for a model without any.
    pub reasoning: Option<ReasoningTags>,
    /// Whether the answer begins inside the reasoning: see [`ReasoningTags::opened_by`].
    pub in_reasoning: bool,
    /// What ids are made from for calls that have none: another for each answer of a conversation.
    pub id_seed: u64,
}

/// Splits the text of an answer, piece by piece.
///
/// Reasoning is what stands between the tags at the beginning of an answer or behind a mark; a tag amid other text is
/// text. Calls inside reasoning are reasoning.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    options: ParserOptions,
    in_reasoning: bool,
    state: State,
    calls: usize,
    /// There was content.
    spoke: bool,
    /// There was reasoning.
    thought: bool,
    /// Characters that are still to be read, the next one last.
    queue: Vec<char>,
    out: Vec<AnswerEvent>,
}

#[derive(Clone, Debug)]
enum State {
    Text(Text),
    Body(Body),
}

/// Between calls.
#[derive(Clone, Debug, Default)]
struct Text {
    /// White space that may stand beside a mark.
    space: String,
    /// What may be the beginning of a mark.
    pending: String,
    /// Since the beginning, or since a mark, there was nothing but white space.
    fresh: bool,
    /// There was a mark, and nothing but white space since.
    after: bool,
    /// What ends the call before.
    close: Option<&'static str>,
}

/// A call that isn't whole yet.
#[derive(Clone, Debug)]
struct Body {
    /// All of it as it was written, from the white space before it on.
    raw: String,
    /// How much of `raw` is that white space.
    lead: usize,
    /// It has no mark before it.
    bare: bool,
    /// The mark before it was the last thing but white space.
    after: bool,
    close: Option<&'static str>,
    part: Part,
    /// Of a call whose name comes first.
    name: Option<String>,
    id: Option<String>,
}

/// Where in a call the text is. Positions are bytes of `raw`.
#[derive(Clone, Debug)]
enum Part {
    /// Before JSON or a name.
    Open,
    /// In a name from here on.
    Name(usize),
    /// In `[ARGS]` or `[CALL_ID]` from here on.
    Tag(usize),
    /// In an id from here on.
    Id(usize),
    /// Before the arguments.
    Arguments,
    Json(usize, Scanner),
}

/// What a mark does.
enum Mark {
    Reasoning,
    ReasoningEnd,
    Call {
        opener: &'static str,
        close: Option<&'static str>,
    },
    /// It ends something and is left out.
    Close,
}

/// What a text that may be a mark is.
enum Found {
    Mark(Mark),
    /// The beginning of one.
    Beginning,
    Nothing,
}

/// The longest run of white space that counts as formatting, in bytes.
const MAX_SPACE: usize = 256;
/// The first key of a call comes within so many bytes.
const MAX_BEFORE_KEY: usize = 64;

impl AnswerParser {
    /// The most bytes of a call.
    pub const MAX_CALL: usize = 1 << 20;
    /// The most calls of an answer; further ones are content.
    pub const MAX_CALLS: usize = 128;

    /// A parser at the beginning of an answer.
    pub fn new(options: ParserOptions) -> Self {
        let in_reasoning = options.in_reasoning && options.reasoning.is_some();
        let text = Text { fresh: true, after: in_reasoning, ..Text::default() };
        Self {
            options,
            in_reasoning,
            state: State::Text(text),
            calls: 0,
            spoke: false,
            thought: false,
            queue: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Whether the answer is inside the reasoning by now.
    pub fn in_reasoning(&self) -> bool {
        self.in_reasoning
    }

    /// The whole calls so far.
    pub fn tool_calls(&self) -> usize {
        self.calls
    }

    /// Takes the next piece: what is sure by then.
    pub fn push(&mut self, piece: &str) -> Vec<AnswerEvent> {
        for c in piece.chars() {
            self.queue.push(c);
            self.drain();
        }
        std::mem::take(&mut self.out)
    }

    /// Ends the answer: what was held back. A call that isn't whole is content.
    pub fn finish(mut self) -> Vec<AnswerEvent> {
        loop {
            match &mut self.state {
                State::Body(_) => self.fail(),
                State::Text(text) => {
                    let closing = text.close.is_some_and(|close| close.starts_with(&text.pending));
                    if text.pending.is_empty() || closing {
                        break;
                    }
                    // It isn't the beginning of a mark after all, but the characters behind the first may be a whole one.
                    let first = text.pending.remove(0);
                    self.text(first);
                    self.settle();
                    self.drain();
                }
            }
        }
        if let State::Text(text) = &mut self.state
            && text.after
            && text.space.trim_start().is_empty()
        {
            text.space.clear();
        }
        self.flush_space();
        self.out
    }

    fn drain(&mut self) {
        while let Some(c) = self.queue.pop() {
            match &mut self.state {
                State::Text(text) => {
                    text.pending.push(c);
                    self.settle();
                }
                State::Body(_) => {
                    if !self.body(c) {
                        self.fail();
                        self.queue.push(c);
                    }
                }
            }
        }
    }

    /// Takes from what is pending as much as is sure.
    fn settle(&mut self) {
        while let State::Text(text) = &mut self.state {
            match self.options.find(text, self.in_reasoning) {
                _ if text.pending.is_empty() => return,
                Found::Mark(mark) => return self.mark(mark),
                Found::Beginning => return,
                Found::Nothing => {}
            }
            let first = text.pending.remove(0);
            if !self.in_reasoning && self.options.opens_bare(text, first) {
                self.queue.extend(text.pending.chars().rev());
                self.queue.push(first);
                let (close, bare) = (text.close, text.close.is_none());
                return self.open("", close, bare);
            }
            self.text(first);
        }
    }

    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::Call { opener, close } => return self.open(opener, close, false),
            Mark::Reasoning => self.in_reasoning = true,
            Mark::ReasoningEnd => self.in_reasoning = false,
            Mark::Close => {}
        }
        self.state = State::Text(Text { fresh: true, after: true, ..Text::default() });
    }

    /// Goes on within a call that has this mark before it, or none.
    fn open(&mut self, opener: &str, close: Option<&'static str>, bare: bool) {
        let State::Text(text) = &mut self.state else { return };
        let (lead, after) = (text.space.len(), text.after);
        let mut raw = std::mem::take(&mut text.space);
        raw.push_str(opener);
        self.state =
            State::Body(Body { raw, lead, bare, after, close, part: Part::Open, name: None, id: None });
    }

    /// Takes a character that is no part of a mark.
    fn text(&mut self, c: char) {
        let State::Text(text) = &mut self.state else { return };
        let separator = text.after && self.calls > 0 && matches!(c, ';' | ',') && self.options.is_bare();
        if c.is_whitespace() || separator {
            text.space.push(c);
            if text.space.len() >= MAX_SPACE {
                self.flush_space();
            }
            return;
        }
        self.flush_space();
        if let State::Text(text) = &mut self.state {
            (text.fresh, text.after, text.close) = (false, false, None);
        }
        self.say(c.encode_utf8(&mut [0; 4]));
    }

    /// White space turns out to be text.
    fn flush_space(&mut self) {
        let State::Text(text) = &mut self.state else { return };
        let after = text.after;
        let space = std::mem::take(&mut text.space);
        self.say_after(after, &space);
    }

    /// Says a text that may stand behind a mark: then white space before it is left out, unless it parts the text from an
    /// earlier one.
    fn say_after(&mut self, mark: bool, text: &str) {
        let parts = if self.in_reasoning { self.thought } else { self.spoke };
        self.say(if mark && !parts { text.trim_start() } else { text });
    }

    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        *(if self.in_reasoning { &mut self.thought } else { &mut self.spoke }) = true;
        match (self.out.last_mut(), self.in_reasoning) {
            (Some(AnswerEvent::Content(last)), false) | (Some(AnswerEvent::Reasoning(last)), true) => {
                last.push_str(text);
            }
            (_, false) => self.out.push(AnswerEvent::Content(text.to_owned())),
            (_, true) => self.out.push(AnswerEvent::Reasoning(text.to_owned())),
        }
    }

    /// What was read of a call is content.
    fn fail(&mut self) {
        let State::Body(body) = &mut self.state else { return };
        let (raw, after) = (std::mem::take(&mut body.raw), body.after);
        self.state = State::Text(Text::default());
        self.say_after(after, &raw);
    }

    /// Takes a character of a call; `false` where it can't be one.
    fn body(&mut self, c: char) -> bool {
        let State::Body(body) = &mut self.state else { return false };
        if body.raw.len() - body.lead >= Self::MAX_CALL {
            return false;
        }
        let named = self.options.format.is_some_and(ToolFormat::names_first);
        match body.take(c, named) {
            Step::Invalid => return false,
            Step::More => return true,
            Step::Done => {}
        }
        let bare = body.bare;
        let offered = |call: &Call| !bare || self.options.names.contains(&call.name);
        let calls = body.calls().filter(|calls| {
            calls.iter().all(offered) && self.calls.saturating_add(calls.len()) <= Self::MAX_CALLS
        });
        match calls {
            None => self.fail(),
            Some(calls) => {
                let close = body.close;
                self.state = State::Text(Text { fresh: true, after: true, close, ..Text::default() });
                calls.into_iter().for_each(|call| self.call(call));
            }
        }
        true
    }

    fn call(&mut self, call: Call) {
        let index = self.calls;
        self.calls += 1;
        let id = call.id.unwrap_or_else(|| made_id(self.options.id_seed, index));
        self.out.push(AnswerEvent::ToolCallStart { index, id, name: call.name });
        self.out.push(AnswerEvent::ToolCallArguments { index, json_fragment: call.arguments });
        self.out.push(AnswerEvent::ToolCallEnd { index });
    }
}

impl ParserOptions {
    fn is_bare(&self) -> bool {
        self.format.is_some_and(ToolFormat::is_bare)
    }

    /// Whether a character begins a call without a mark of its own.
    fn opens_bare(&self, text: &Text, c: char) -> bool {
        text.fresh && matches!(c, '{' | '[') && (self.is_bare() || text.close.is_some())
    }

    /// What the pending text is.
    fn find(&self, text: &Text, in_reasoning: bool) -> Found {
        let mut found = Found::Nothing;
        let mut look = |mark: &str, does: Mark| {
            if mark == text.pending {
                found = Found::Mark(does);
            } else if mark.starts_with(&text.pending) && matches!(found, Found::Nothing) {
                found = Found::Beginning;
            }
        };
        if let Some(tags) = &self.reasoning {
            if in_reasoning {
                look(tags.close(), Mark::ReasoningEnd);
            }
            if text.fresh {
                // The prompt may have opened it already.
                look(tags.open(), if in_reasoning { Mark::Close } else { Mark::Reasoning });
            }
        }
        if let Some(format) = self.format.filter(|_| !in_reasoning) {
            for opener in format.openers() {
                look(opener.text, Mark::Call { opener: opener.text, close: opener.close });
            }
            for end in format.ends() {
                look(end, Mark::Close);
            }
            if let Some(close) = text.close {
                look(close, Mark::Close);
            }
        }
        found
    }
}

impl Body {
    /// Reads a character; `Done` is the last of the JSON.
    fn take(&mut self, c: char, named: bool) -> Step {
        let at = self.raw.len();
        match &mut self.part {
            Part::Json(..) => {}
            Part::Open | Part::Arguments if c.is_ascii_whitespace() => {}
            Part::Open if matches!(c, '{' | '[') => self.part = Part::Json(at, Scanner::new()),
            Part::Arguments if c == '{' => self.part = Part::Json(at, Scanner::new()),
            Part::Open if named && c.is_ascii_graphic() => self.part = Part::Name(at),
            Part::Name(start) if matches!(c, '[' | '{') => {
                self.name = self.raw.get(*start..).filter(|name| is_name(name)).map(str::to_owned);
                if self.name.is_none() {
                    return Step::Invalid;
                }
                self.part = if c == '[' { Part::Tag(at) } else { Part::Json(at, Scanner::new()) };
            }
            Part::Id(start) if c == '[' => {
                self.id = self.raw.get(*start..).filter(|id| is_id(id)).map(str::to_owned);
                if self.id.is_none() {
                    return Step::Invalid;
                }
                self.part = Part::Tag(at);
            }
            Part::Name(_) | Part::Id(_) if c.is_ascii_graphic() => {}
            Part::Tag(start) => {
                let begun = self.raw.get(*start..).unwrap_or("");
                let goes_on = |tag: &str| tag.strip_prefix(begun).is_some_and(|rest| rest.starts_with(c));
                if !(goes_on(ARGS) || self.id.is_none() && goes_on(CALL_ID)) {
                    return Step::Invalid;
                }
                if c == ']' {
                    self.part =
                        if begun.len() + 1 == ARGS.len() { Part::Arguments } else { Part::Id(at + 1) };
                }
            }
            _ => return Step::Invalid,
        }
        let step = match &mut self.part {
            Part::Json(_, scanner) => scanner.push(c),
            _ => Step::More,
        };
        if step != Step::Invalid {
            self.raw.push(c);
        }
        if self.bare && !may_be_call(self.raw.get(self.lead..).unwrap_or("")) {
            self.raw.truncate(at);
            return Step::Invalid;
        }
        step
    }

    /// The calls that the finished text is.
    fn calls(&mut self) -> Option<Vec<Call>> {
        let Part::Json(start, _) = self.part else { return None };
        let json = self.raw.get(start..)?;
        match self.name.take() {
            Some(name) => Some(vec![Call { id: self.id.take(), name, arguments: arguments(json)? }]),
            None => calls(json, self.bare),
        }
    }
}

const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

/// Whether JSON that begins like this may be a call: else it isn't held back to its end.
fn may_be_call(json: &str) -> bool {
    let inner = json.trim_start_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '{' | '['));
    let Some(key) = inner.strip_prefix('"') else { return inner.is_empty() && json.len() <= MAX_BEFORE_KEY };
    ["name", "arguments", "parameters", "type", "id"].iter().any(|known| match key.strip_prefix(known) {
        Some(rest) => rest.is_empty() || rest.starts_with('"'),
        None => known.starts_with(key),
    })
}

/// Nine letters and digits, as Mistral's templates want them.
fn made_id(seed: u64, index: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // SplitMix64's finaliser: neighbouring inputs give unrelated outputs.
    let mut bits = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    let mut id = String::with_capacity(9);
    for _ in 0..9 {
        id.extend(DIGITS.get((bits % 62) as usize).map(|&digit| char::from(digit)));
        bits /= 62;
    }
    id
}
