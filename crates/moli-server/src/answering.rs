//! From a request to what the engine answers.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_core::Stream;
use moli_engine::{
    AdapterScale, Answer, AnswerEvent, CancelToken, Chat, ChatChunk, ChatParams, Engine, EngineError,
    GenerateParams, Message, Summary,
};
use tokio::task::spawn_blocking;

use crate::app::{App, Gate};
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

impl Question {
    /// Has an adapter that the model's name chooses used.
    fn adapt(&mut self, adapter: Option<&str>) -> Result<(), ApiError> {
        let Some(adapter) = adapter else { return Ok(()) };
        let generate = match self {
            Self::Chat(_, params) => &mut params.generate,
            Self::Continue(_, params) => params,
        };
        if generate.adapters.is_some() {
            let message = format!("lora is for the model by itself, and its name chooses {adapter:?}");
            return Err(ApiError::invalid("lora", message));
        }
        generate.adapters = Some(vec![AdapterScale { name: adapter.to_owned(), scale: 1.0 }]);
        Ok(())
    }

    /// How many answers it asks for.
    fn answers(&self) -> usize {
        match self {
            Self::Chat(_, params) => params.generate.choices,
            Self::Continue(prompts, params) => prompts.len().saturating_mul(params.choices),
        }
    }
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
    /// Does what may take long with a model (a template, a long text, a grammar), on a thread for such work, for a few
    /// requests at a time.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        lease: &Lease,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, ApiError> {
        behind(&self.preparing, lease, work).await
    }

    /// Waits for what a model computes and does not stream, on a thread for that.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        lease: &Lease,
        work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, ApiError> {
        behind(&self.computing, lease, work).await
    }

    /// Has a question answered.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        lease: Lease,
        mut question: Question,
    ) -> Result<Answering, ApiError> {
        question.adapt(lease.adapter())?;
        // More than the engine's queue has room for would be refused whenever anybody else is served.
        let (asked, most) = (question.answers(), lease.engine.max_queue().max(1));
        if asked > most {
            let message = format!("choices makes {asked} answers altogether, and may make {most}");
            return Err(ApiError::invalid("choices", message));
        }
        // Whom the engine's queue would refuse is refused before that costs anything.
        if !lease.engine.has_room() {
            return Err(ApiError::overloaded("queue_full", "too many requests wait already"));
        }
        let cancel = self.stop.clone();
        let (sources, choices) = self.prepare(&lease, move |engine| ask(engine, question, &cancel)).await?;
        let (created, number, visit) = (unix_time(), self.number(), visit::current());
        Ok(Answering { lease, created, number, sources, choices, next: 0, visit })
    }
}

/// Does something with a model on a thread of its own, behind a gate.
async fn behind<T: Send + 'static>(
    gate: &Gate,
    lease: &Lease,
    work: impl FnOnce(&Engine) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = gate.enter().await?;
    // Not unloaded before it is done, even if whoever asked has left.
    let own = lease.clone();
    let done = spawn_blocking(move || {
        let _permit = permit;
        work(&own.engine)
    });
    let done = done.await.map_err(|_| ApiError::internal("the request met a mistake in the server"))?;
    if matches!(done, Err(EngineError::Poisoned)) {
        lease.give_up();
    }
    Ok(done?)
}

fn ask(
    engine: &Engine,
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

    /// What the next step adds.
    pub(crate) async fn next(&mut self) -> Option<Result<ChatChunk, ApiError>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Choices of each prompt.
    pub(crate) fn choices_of_a_prompt(&self) -> usize {
        self.choices.max(1)
    }

    /// A name for it, behind a prefix of its API.
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:08x}{:016x}", self.created, self.number)
    }

    /// The name by which the model was asked for.
    pub(crate) fn model(&self) -> &str {
        self.lease.name()
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
