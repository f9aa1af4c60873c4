//! `moli run`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use moli_engine::units::megabytes;
use moli_engine::{Engine, GenerateParams, Grammar, Session, TokenOutput, resident_bytes};
use moli_text::{ChatTemplate, TemplateOrigin};
use serde::Serialize;

use crate::cli::Exit;
use crate::failure::UsageError;
use crate::lora::LoraArgs;
use crate::options::{ComputeArgs, DEFAULT_MODEL, SamplingArgs, SpeculationArgs, max_tokens, new_seed};
use crate::output::{Answers, escape, note};
use crate::reply::{Reply, engine_stats, finish_reason, milliseconds, reply, stats};
use crate::{load, repl, saved, text_input};

/// Answer a prompt, or talk with a model
#[derive(Debug, Args)]
#[command(
    after_help = "A catalogue model's own sampling settings hold as long as none of --temp, --top-k, --top-p, --min-p \
                        and --repeat-penalty is given."
)]
pub(crate) struct Run {
    /// A model file, a name of the catalogue, a repository or a URL
    #[arg(value_name = "MODEL", default_value = DEFAULT_MODEL)]
    model: String,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Context in tokens, prompt and answer together; 0: all that the model was trained for
    /// [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N", help_heading = "Model and memory")]
    context: Option<usize>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
struct PromptArgs {
    /// What to ask; without it and without -f: standard input, or a conversation on a terminal. With it, standard input
    /// is not read
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Take the prompt from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Tell the model how to behave
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Go on with the conversation in this file, if there is one, and save it there at the end. FILE.kv beside it keeps
    /// what the model has computed, so that it need not be computed again
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Answer")]
struct AnswerArgs {
    /// Most tokens of the answer; -1: until the model ends it or the context is full
    #[arg(short = 'n', long, value_name = "N", default_value = "-1", value_parser = max_tokens, allow_negative_numbers = true)]
    max_tokens: usize,
    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    grammar: GrammarArgs,
    /// Print one JSON object when the answer is complete
    #[arg(long)]
    json: bool,
    /// In the JSON: for each token the K likeliest tokens and their log-probabilities
    #[arg(long, value_name = "K", requires = "json")]
    logprobs: Option<usize>,
    /// Write tokens, times and speeds to standard error
    #[arg(long)]
    stats: bool,
}

/// What the answer must be.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct GrammarArgs {
    /// The answer is JSON that this schema allows; {} allows any, @FILE reads it from a file
    #[arg(long, value_name = "SCHEMA", conflicts_with = "ignore_eos")]
    json_schema: Option<String>,
    /// The answer is what this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", conflicts_with = "ignore_eos", allow_hyphen_values = true)]
    regex: Option<String>,
    /// The answer follows the grammar in this file: GBNF, or Lark if the name ends in .lark
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_eos")]
    grammar: Option<PathBuf>,
}

impl GrammarArgs {
    fn read(&self) -> Result<Option<Grammar>> {
        if let Some(schema) = &self.json_schema {
            let file = schema.strip_prefix('@').map(|file| text_input::from_file(file.as_ref()));
            return Ok(Some(Grammar::JsonSchema(file.unwrap_or_else(|| Ok(schema.clone()))?)));
        }
        if let Some(file) = &self.grammar {
            let text = text_input::from_file(file)?;
            let is_lark = file.extension().is_some_and(|extension| extension == "lark");
            return Ok(Some(if is_lark { Grammar::Lark(text) } else { Grammar::Gbnf(text) }));
        }
        Ok(self.regex.clone().map(Grammar::Regex))
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    text: &'a str,
    finish_reason: &'a str,
    tokens: Vec<Token<'a>>,
    usage: Usage,
    timings: Timings,
    seed: u64,
}

#[derive(Serialize)]
struct Token<'a> {
    id: u32,
    text: &'a str,
    logprob: f32,
    top: Vec<(u32, f32)>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
}

#[derive(Serialize)]
struct Timings {
    load_ms: f64,
    ttft_ms: f64,
    prompt_per_second: f64,
    decode_per_second: f64,
}

impl Run {
    pub(crate) fn run(self) -> Result<Exit> {
        let Some(prompt) = self.prompt.read()? else {
            if self.answer.json {
                return Err(
                    UsageError("--json needs a prompt: -p TEXT, -f FILE or standard input".into()).into()
                );
            }
            let (engine, raw) = self.load()?;
            let talk = repl::Options {
                params: self.params()?,
                system: self.prompt.system,
                session: self.prompt.session,
                raw,
                stats: self.answer.stats,
            };
            return repl::run(&engine, talk);
        };
        if prompt.is_empty() {
            return Err(UsageError("the prompt is empty".into()).into());
        }
        let (engine, raw) = self.load()?;
        let file = self.prompt.session.as_deref();
        let (mut conversation, mut session) = saved::load_or_begin(&engine, file)?;
        let ids = if raw {
            engine.encode(&prompt)?
        } else {
            if let Some(system) = &self.prompt.system {
                conversation.set_system(system);
            }
            conversation.push_user(&prompt);
            engine.encode_chat(conversation.messages())?
        };
        let reply = self.answer_once(&mut session, &ids)?;
        if let Some(file) = file {
            if !raw {
                conversation.push_answer(&reply.text);
            }
            saved::save(&conversation, &session, file)?;
        }
        Ok(if reply.was_cancelled() { Exit::Interrupted } else { Exit::Done })
    }

    /// The engine, and whether prompts go to it without a template.
    fn load(&self) -> Result<(Engine, bool)> {
        let draft = self.speculation.draft.as_deref();
        let engine = load::engine(&self.model, draft, self.context, &self.compute, &self.lora)?;
        let template = if self.prompt.raw { None } else { engine.chat_template()? };
        let raw = template.is_none();
        if let Some(origin) =
            template.map(ChatTemplate::origin).filter(|&origin| *origin != TemplateOrigin::Given)
        {
            note!("chat template: {}", escape(&origin.to_string()));
        }
        if raw && !self.prompt.raw {
            if self.prompt.system.is_some() {
                bail!("--system needs a chat template, and this model has none");
            }
            note!("this model has no chat template: the prompt is continued as it stands (as with --raw)");
        }
        Ok((engine, raw))
    }

    fn params(&self) -> Result<GenerateParams> {
        Ok(GenerateParams {
            max_tokens: Some(self.answer.max_tokens).filter(|&n| n != usize::MAX),
            sampling: self.sampling.sampler_params(&load::sampling(&self.model)?),
            stop: self.answer.stop.clone(),
            logprobs: self.answer.logprobs,
            ignore_eos: self.answer.ignore_eos,
            grammar: self.answer.grammar.read()?,
            speculation: !self.speculation.no_speculation,
            ..GenerateParams::default()
        })
    }

    fn answer_once(&self, session: &mut Session, ids: &[u32]) -> Result<Reply> {
        let seed = self.sampling.seed.unwrap_or_else(new_seed);
        let mut params = self.params()?;
        params.sampling.seed = Some(seed);
        if self.answer.json {
            // The JSON has every token's own log-probability.
            params.logprobs = params.logprobs.or(Some(0));
        }
        let mut answers = Answers::new();
        let reply =
            reply(
                session,
                ids,
                &params,
                |text| {
                    if self.answer.json { Ok(()) } else { answers.stream(text) }
                },
            )?;
        let engine = session.engine();
        if self.answer.json {
            answers.json(&self.json(engine, seed, &reply))?;
        } else {
            answers.end_answer()?;
        }
        if self.answer.stats {
            note!("load: {:.0} ms, {}", milliseconds(engine.load_time()), engine.description());
            note!("{}", stats(&reply.summary));
            let peak = resident_bytes().map(|resident| format!(", {} at the peak", megabytes(resident.peak)));
            let planned = engine.plan().map_or(0, |plan| plan.total_bytes);
            note!("memory: {} planned{}", megabytes(planned), peak.unwrap_or_default());
            note!("{}", engine_stats(&engine.counters()));
            note!("seed: {seed}");
        }
        Ok(reply)
    }

    fn json<'a>(&'a self, engine: &Engine, seed: u64, reply: &'a Reply) -> Answer<'a> {
        let (usage, timings) = (&reply.summary.usage, &reply.summary.timings);
        Answer {
            model: &self.model,
            text: &reply.text,
            finish_reason: finish_reason(reply.summary.finish_reason),
            tokens: reply.tokens.iter().map(token).collect(),
            usage: Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
            },
            timings: Timings {
                load_ms: milliseconds(engine.load_time()),
                ttft_ms: milliseconds(timings.ttft),
                prompt_per_second: finite(timings.prompt_per_second),
                decode_per_second: finite(timings.decode_per_second),
            },
            seed,
        }
    }
}

impl PromptArgs {
    /// The prompt, or `None` for a conversation. A prompt of a file or a pipe loses the newline at its end.
    fn read(&self) -> Result<Option<String>> {
        Ok(match (&self.prompt, &self.file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(file)) => Some(text_input::without_final_newline(text_input::from_file(file)?)),
            (None, None) if io::stdin().is_terminal() => None,
            (None, None) => Some(text_input::without_final_newline(text_input::from_stdin()?)),
        })
    }
}

fn token(output: &TokenOutput) -> Token<'_> {
    Token {
        id: output.id,
        text: &output.text,
        logprob: finite_logprob(output.logprob.unwrap_or(f32::NEG_INFINITY)),
        top: output.top.iter().map(|&(id, logprob)| (id, finite_logprob(logprob))).collect(),
    }
}

/// JSON has no infinity: -9999 stands for a token that was forbidden, as in OpenAI's interface.
fn finite_logprob(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// JSON has no infinity: a speed of nothing at all is 0.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}
