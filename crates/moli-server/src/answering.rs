//! From a request to what the engine answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_core::Stream;
use moli_engine::{
    Answer, AnswerEvent, CancelToken, Chat, ChatChunk, ChatParams, EngineError, GenerateParams, Message,
    Summary,
};
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::doors::visit::{self, Visit};
use crate::error::ApiError;
use crate::models::Lease;

/// What is to be answered.
#[derive(Debug)]
pub(crate) enum Question {
    /// A conversation.
    Chat(Vec<Message>, Box<ChatParams>),
    /// Texts that are to be continued, each by itself.
    Continue(Vec<Prompt>, Box<GenerateParams>),
}

/// A text that is to be continued.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// Answers as they come, as a stream of what each step adds. Dropping it ends them within one step.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) lease: Lease,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Tells it from all others of this server.
    number: u64,
    sources: Vec<Source>,
    /// Choices of each source.
    choices: usize,
    /// The source that is looked at first: each has its turn.
    next: usize,
    /// The request, to tell the log what it took.
    visit: Option<Arc<Visit>>,
}

#[derive(Debug)]
enum Source {
    Chat(Chat),
    Continue(Answer),
}

impl Source {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ChatChunk, EngineError>>> {
        match self {
            Self::Chat(chat) => chat.poll_next(context),
            Self::Continue(answer) => answer.poll_next(context).map_ok(|chunk| {
                let events =
                    if chunk.text.is_empty() { vec![] } else { vec![AnswerEvent::Content(chunk.text)] };
                ChatChunk { choice: chunk.choice, events, token: chunk.token }
            }),
        }
    }

    fn summaries(&self) -> &[Summary] {
        match self {
            Self::Chat(chat) => chat.summaries(),
            Self::Continue(answer) => answer.summaries(),
        }
    }
}

impl App {
    /// Has a question answered. Reading it, which may take long (a template, a long text, a grammar), is done on a thread
    /// for such work, by a few at a time.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        lease: Lease,
        question: Question,
    ) -> Result<Answering, ApiError> {
        let permit = self.preparing(&lease).await?;
        let (engine, cancel) = (lease.engine.clone(), self.stop.clone());
        let asked = spawn_blocking(move || {
            let _permit = permit;
            ask(&engine, question, &cancel)
        });
        let asked = asked.await.map_err(|_| ApiError::internal("the request could not be read"))?;
        if matches!(asked, Err(EngineError::Poisoned)) {
            lease.give_up();
        }
        let (sources, choices) = asked?;
        let (created, number, visit) = (unix_time(), self.number(), visit::current());
        Ok(Answering { lease, created, number, sources, choices, next: 0, visit })
    }
}

fn ask(
    engine: &moli_engine::Engine,
    question: Question,
    cancel: &CancelToken,
) -> Result<(Vec<Source>, usize), EngineError> {
    match question {
        Question::Chat(messages, params) => {
            let chat = engine.chat(&messages, &params, cancel)?;
            Ok((vec![Source::Chat(chat)], params.generate.choices))
        }
        Question::Continue(prompts, params) => {
            let sources = prompts.into_iter().map(|prompt| {
                let ids = match prompt {
                    Prompt::Text(text) => engine.encode(&text)?,
                    Prompt::Ids(ids) => ids,
                };
                Ok(Source::Continue(engine.submit(&ids, &params, cancel)?))
            });
            Ok((sources.collect::<Result<_, EngineError>>()?, params.choices))
        }
    }
}

impl Answering {
    /// Of all choices, in their order; whole when the stream has ended.
    pub(crate) fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.sources.iter().flat_map(Source::summaries)
    }

    /// Choices of each prompt.
    pub(crate) fn choices_of_a_prompt(&self) -> usize {
        self.choices.max(1)
    }

    /// A name for it, behind a prefix of its API.
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:08x}{:016x}", self.created, self.number)
    }

    /// The name that the model has here.
    pub(crate) fn model(&self) -> &str {
        &self.lease.spec().name
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let Some(visit) = &self.visit else { return };
        let mut told = visit.told();
        for (place, summary) in self.summaries().enumerate() {
            // The choices of a prompt have it in common.
            let own = place % self.choices_of_a_prompt() == 0;
            told.prompt_tokens += if own { summary.usage.prompt_tokens } else { 0 };
            told.completion_tokens += summary.usage.completion_tokens;
        }
    }
}

impl Stream for Answering {
    type Item = Result<ChatChunk, ApiError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let (count, mut over) = (this.sources.len(), 0);
        for turn in 0..count {
            let place = (this.next + turn) % count;
            let Some(source) = this.sources.get_mut(place) else { break };
            match source.poll_next(context) {
                Poll::Pending => {}
                Poll::Ready(None) => over += 1,
                Poll::Ready(Some(Ok(mut chunk))) => {
                    chunk.choice += place * this.choices;
                    this.next = place + 1;
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Poll::Ready(Some(Err(error))) => {
                    if matches!(error, EngineError::Poisoned) {
                        this.lease.give_up();
                    }
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
        if over == count { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
