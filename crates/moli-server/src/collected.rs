//! An answer as a whole.

use moli_engine::{AnswerEvent, Summary, TokenOutput};

use crate::answering::Answering;
use crate::error::ApiError;

/// A choice of an answer that has come to its end.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
    /// The tokens, where their log-probabilities were asked for.
    pub(crate) tokens: Vec<TokenOutput>,
    pub(crate) summary: Summary,
}

/// A tool that is called.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: String,
}

impl Answering {
    /// Waits for the end of all choices. An error of one is that of all: nobody gets half an answer for a whole one.
    pub(crate) async fn collect(&mut self) -> Result<Vec<Collected>, ApiError> {
        let begun = |summary: &Summary| Collected {
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            tokens: Vec::new(),
            summary: summary.clone(),
        };
        let mut choices: Vec<Collected> = self.summaries().map(begun).collect();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            let Some(choice) = choices.get_mut(chunk.choice) else { continue };
            chunk.events.into_iter().for_each(|event| choice.add(event));
            choice.tokens.extend(chunk.token.filter(|token| token.logprob.is_some()));
        }
        for (choice, summary) in choices.iter_mut().zip(self.summaries()) {
            choice.summary = summary.clone();
        }
        Ok(choices)
    }
}

impl Collected {
    fn add(&mut self, event: AnswerEvent) {
        match event {
            AnswerEvent::Content(text) => self.content.push_str(&text),
            AnswerEvent::Reasoning(text) => self.reasoning.push_str(&text),
            AnswerEvent::ToolCallStart { id, name, .. } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            AnswerEvent::ToolCallArguments { json_fragment, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&json_fragment);
                }
            }
            AnswerEvent::ToolCallEnd { .. } => {}
        }
    }
}
