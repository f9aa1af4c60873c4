//! Chats: messages and tools in, what is said, thought and called out.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::task::{Context, Poll};

use moli_text::{
    AnswerEvent, AnswerParser, CallOptions, ChatTemplate, Message, ParserOptions, RenderOptions,
    RenderedPrompt, Tool, ToolChoice,
};
use serde_json::{Map, Value};

use crate::answer::{Answer, Chunk, Summary, TokenOutput};
use crate::choice::Format;
use crate::{CancelToken, Engine, EngineError, GenerateParams, Grammar};

/// How a chat is answered.
#[derive(Debug, Clone, Default)]
pub struct ChatParams {
    /// Tools that the model may call.
    pub tools: Vec<Tool>,
    /// Whether it has to. A call that is asked for, and any of a strict tool, is held to its schema by a grammar.
    pub tool_choice: ToolChoice,
    /// One call at most, which takes a grammar: calls follow their schemas then.
    pub single_tool_call: bool,
    /// Most tokens of reasoning: after them its closing tag is put into the answer. `None`: no limit of its own.
    pub reasoning_budget: Option<usize>,
    /// Further variables of the chat template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// Everything else. A grammar of its own and one for calls exclude each other.
    pub generate: GenerateParams,
}

impl ChatParams {
    /// Whether the model is told of tools.
    fn offers_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != ToolChoice::None
    }
}

/// What one step of a chat's answer adds.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatChunk {
    /// Which of the answer's choices.
    pub choice: usize,
    /// What it is, in order. Often empty: a mark may be incomplete, and a call is told when it is known to be one.
    pub events: Vec<AnswerEvent>,
    /// The token of this step; `None` at an end.
    pub token: Option<TokenOutput>,
}

impl Engine {
    /// Answers the last of these messages, in the model's own format.
    ///
    /// # Errors
    /// As [`render_chat`](Self::render_chat) and [`submit`](Self::submit); for what is wrong with the tools
    /// [`TextError`](moli_text::TextError), [`EngineError::UnknownToolFormat`] where the model's way of calling is not known.
    pub fn chat(
        &self,
        messages: &[Message],
        params: &ChatParams,
        cancel: &CancelToken,
    ) -> Result<Chat, EngineError> {
        let template = self.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let prompt = self.render(template, messages, params)?;
        let call_format = template.tool_format().filter(|_| params.offers_tools());
        let tags = template.reasoning_tags();
        let in_reasoning = tags.as_ref().is_some_and(|tags| tags.opened_by(prompt.text()));
        let ids = self.tokenizer().encode_prompt(&prompt)?;

        let mut generate = params.generate.clone();
        let calls = CallOptions {
            choice: params.tool_choice.clone(),
            parallel: !params.single_tool_call,
            reasoning: tags.clone(),
            in_reasoning,
        };
        let grammar = match template.tool_format() {
            Some(format) => format.call_grammar(&params.tools, &calls, self.tokenizer())?,
            None => None,
        };
        if let Some(grammar) = grammar {
            if generate.grammar.is_some() {
                let value = format!("{:?} with tools", params.tool_choice);
                return Err(EngineError::parameter(
                    "grammar",
                    value,
                    "left out where calls have one of theirs",
                ));
            }
            generate.grammar = Some(Grammar::Lark(grammar));
        }
        let marks = call_format.map_or(&[][..], |format| format.markers());
        let shown = marks.iter().copied().chain(tags.iter().flat_map(|tags| [tags.open(), tags.close()]));
        let format = Format {
            shown: shown.map(str::to_owned).collect(),
            reasoning: tags
                .clone()
                .zip(params.reasoning_budget)
                .map(|(tags, most)| (tags, in_reasoning, most)),
        };
        let answer = self.submit_chat(&ids, &generate, &format, cancel)?;
        let parser = |summary: &Summary| {
            AnswerParser::new(ParserOptions {
                format: call_format,
                names: params.tools.iter().map(|tool| tool.name.clone()).collect(),
                reasoning: tags.clone(),
                in_reasoning,
                id_seed: summary.seed ^ ids.len() as u64,
            })
        };
        let parsers = answer.summaries().iter().map(|summary| Some(parser(summary))).collect();
        Ok(Chat { answer, parsers, ends: VecDeque::new(), over: false })
    }

    /// The ids of the prompt that [`chat`](Self::chat) answers.
    ///
    /// # Errors
    /// As `chat`, for what is wrong with the messages, the tools and the variables.
    pub fn chat_prompt(&self, messages: &[Message], params: &ChatParams) -> Result<Vec<u32>, EngineError> {
        let template = self.chat_template()?.ok_or(EngineError::NoChatTemplate)?;
        let prompt = self.render(template, messages, params)?;
        Ok(self.tokenizer().encode_prompt(&prompt)?)
    }

    fn render(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        params: &ChatParams,
    ) -> Result<RenderedPrompt, EngineError> {
        Tool::validate(&params.tools)?;
        let offered = params.offers_tools();
        if offered && template.tool_format().is_none() {
            return Err(EngineError::UnknownToolFormat);
        }
        let tools = if offered { params.tools.clone() } else { Vec::new() };
        let options = RenderOptions { tools, extra: params.variables.clone(), ..RenderOptions::default() };
        Ok(template.render(self.tokenizer(), messages, &options)?)
    }
}

/// A chat's answer as it comes: an iterator of chunks, the last of which, for each choice, ends what was open.
#[derive(Debug)]
pub struct Chat {
    answer: Answer,
    parsers: Vec<Option<AnswerParser>>,
    ends: VecDeque<ChatChunk>,
    over: bool,
}

impl Chat {
    /// See [`Answer::summaries`].
    pub fn summaries(&self) -> &[Summary] {
        self.answer.summaries()
    }

    /// See [`Answer::summary`].
    pub fn summary(&self) -> Summary {
        self.answer.summary()
    }

    /// Ends it within one step.
    pub fn cancel(&self) {
        self.answer.cancel();
    }
}

impl Chat {
    /// The next chunk, for whoever can't wait on a thread of its own: see [`Answer::poll_next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ChatChunk, EngineError>>> {
        self.answer.poll_next(context).map(|item| self.read(item))
    }

    /// What a step of the answer says; at its end, what the parsers held back.
    fn read(&mut self, item: Option<Result<Chunk, EngineError>>) -> Option<Result<ChatChunk, EngineError>> {
        if let Some(chunk) = item {
            return Some(chunk.map(|chunk| {
                let parser = self.parsers.get_mut(chunk.choice).and_then(Option::as_mut);
                let events = parser.map(|parser| parser.push(&chunk.text)).unwrap_or_default();
                ChatChunk { choice: chunk.choice, events, token: chunk.token }
            }));
        }
        if !self.over {
            self.over = true;
            for (choice, parser) in self.parsers.iter_mut().enumerate() {
                let events = parser.take().map(AnswerParser::finish).unwrap_or_default();
                if !events.is_empty() {
                    self.ends.push_back(ChatChunk { choice, events, token: None });
                }
            }
        }
        self.ends.pop_front().map(Ok)
    }
}

impl Iterator for Chat {
    type Item = Result<ChatChunk, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.answer.next();
        self.read(item)
    }
}

impl FusedIterator for Chat {}
