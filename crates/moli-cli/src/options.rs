//! Options that several subcommands share: how the model is loaded and how tokens are chosen.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use moli_engine::{
    BackendKind, Device, DryParams, Engine, EngineError, EngineOptions, KvType, MAX_BATCH, MemoryBudget,
    Mixture, PlanOptions, ReadMode, Resolved, SamplerParams, Scheduling,
};
use moli_hub::Sampling;

use crate::affinity::{CpuList, cpu_list};
use crate::output::{escape, note};

/// The model of `moli run` when none is named.
pub(crate) const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// How a model is loaded and computed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and memory")]
pub(crate) struct ComputeArgs {
    /// Threads that compute [default: one for each core, the fast ones where they differ]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What computes: cpu; cuda:N, the NVIDIA GPU of this number; or auto, a GPU if one can be used
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
    /// Run on these processors only, such as 0-3,8 (Linux)
    #[arg(long, value_name = "LIST", value_parser = cpu_list, allow_negative_numbers = true)]
    pub(crate) cpu_affinity: Option<CpuList>,
    /// Tokens of a prompt that are computed together
    #[arg(long, value_name = "N", default_value = "512")]
    prefill_chunk: NonZeroUsize,
    /// Quantise the weights in memory to one of llama.cpp's mixtures, such as q4_k_m, when the model is loaded
    #[arg(long, value_name = "TYPE", value_parser = Mixture::named)]
    quantize: Option<Mixture>,
    /// Read the file into memory instead of mapping it: for file systems that can vanish
    #[arg(long)]
    read: bool,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// What the model may take of memory, and how it is divided.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and memory")]
pub(crate) struct MemoryArgs {
    /// Memory that the model may take, such as 900M, 2GiB or 80% of what there is; what does not fit is made smaller,
    /// and said, or refused [default: what the system allows]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    mem_budget: Option<MemoryBudget>,
    /// How keys and values are stored: f16; q8_0, which takes about half; f32 [default: f16, or q8_0 where memory is scarce]
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Memory for the beginnings of earlier prompts beyond the context's own, such as 200M; 0: none [default: none for
    /// one session]
    #[arg(long, value_name = "SIZE", value_parser = cache_bytes, allow_negative_numbers = true)]
    prefix_cache: Option<u64>,
}

impl MemoryArgs {
    /// What is planned for so many sessions that are answered at the same time, but for the context, the threads and how
    /// the file is read.
    pub(crate) fn plan_options(&self, sessions: usize) -> PlanOptions {
        PlanOptions {
            sessions,
            max_batch: sessions.min(MAX_BATCH),
            kv_type: self.kv_type,
            // A session finds its own beginning in its own pages.
            prefix_cache_bytes: self.prefix_cache.or((sessions == 1).then_some(0)),
            budget: self.mem_budget,
            ..PlanOptions::default()
        }
    }
}

impl ComputeArgs {
    /// What the engine is told for one session, but for the context.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        self.shared_options(1, 1, Scheduling::default().max_queue)
    }

    /// What the engine is told for full contexts of so many sessions, so many answers at a time and so many that wait.
    pub(crate) fn shared_options(&self, sessions: usize, parallel: usize, queue: usize) -> EngineOptions {
        let memory = self.memory.plan_options(parallel);
        EngineOptions {
            sessions,
            threads: self.threads.map(NonZeroUsize::get),
            prefill_chunk: self.prefill_chunk.get(),
            read_mode: if self.read { ReadMode::Read } else { ReadMode::Map },
            quantize: self.quantize,
            kv_type: memory.kv_type,
            prefix_cache_bytes: memory.prefix_cache_bytes,
            memory_budget: memory.budget,
            scheduling: Scheduling { max_batch: parallel, max_queue: queue, ..Scheduling::default() },
            ..EngineOptions::default()
        }
    }
}

impl ComputeArgs {
    /// See [`backend`].
    pub(crate) fn backend(&self) -> Result<BackendKind> {
        backend(self.device)
    }

    /// Loads a model as these options say. Where the device may be chosen and the GPU has too little memory, the processor computes,
    /// which is said.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub(crate) fn load(&self, path: &Path, options: &EngineOptions) -> Result<Engine, EngineError> {
        match Engine::load(path, options) {
            Err(EngineError::DoesNotFit(shortage))
                if self.device == Device::Auto && options.backend != BackendKind::Cpu =>
            {
                note!("computing on the CPU: {}", escape(&shortage.to_string()));
                Engine::load(path, &EngineOptions { backend: BackendKind::Cpu, ..options.clone() })
            }
            loaded => loaded,
        }
    }

    /// What was said of the memory in all.
    pub(crate) fn memory_budget(&self) -> Option<MemoryBudget> {
        self.memory.mem_budget
    }
}

/// What computes. Where no GPU does and one might have, the reason is said.
pub(crate) fn backend(device: Device) -> Result<BackendKind> {
    let Resolved { backend, reason } = device.resolve()?;
    if let Some(reason) = reason {
        note!("computing on the CPU: {}", escape(&reason));
    }
    Ok(backend)
}

/// How tokens are guessed ahead. None of it changes an answer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct SpeculationArgs {
    /// A smaller model with the same vocabulary that guesses tokens ahead: a file, a name, a repository or a URL
    #[arg(long, value_name = "MODEL")]
    pub(crate) draft: Option<String>,
    /// Guess no tokens ahead, neither by what came before nor by a draft model
    #[arg(long, conflicts_with = "draft")]
    pub(crate) no_speculation: bool,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Temperature: 0 always takes the likeliest token, higher is more varied [default: 0.8]
    #[arg(long, value_name = "T", value_parser = non_negative, allow_negative_numbers = true)]
    temp: Option<f32>,
    /// Choose among the K likeliest tokens; 0: among all [default: 40]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability; 1: among all [default: 0.95]
    #[arg(long, value_name = "P", value_parser = fraction, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Leave out tokens below this share of the likeliest one's probability; 0: none [default: 0.05]
    #[arg(long, value_name = "P", value_parser = fraction, allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Locally typical sampling: keep tokens whose surprise is near the expected; 1: all
    #[arg(long, value_name = "P", default_value = "1", value_parser = fraction, allow_negative_numbers = true)]
    typical: f32,
    /// The seed of the choice: the same seed gives the same answer [default: a new one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Add VALUE to a token's logit; -inf forbids the token (repeatable)
    #[arg(long, value_name = "ID=VALUE", value_parser = logit_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    #[command(flatten)]
    penalties: PenaltyArgs,
}

/// What discourages repetition.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Penalties")]
struct PenaltyArgs {
    /// Divide the logits of recent tokens by this; 1: off [default: 1]
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    repeat_penalty: Option<f32>,
    /// Recent tokens that the penalties look at; 0: none, -1: all
    #[arg(long, value_name = "N", default_value = "64", value_parser = last_n, allow_negative_numbers = true)]
    repeat_last_n: usize,
    /// Subtract this from a recent token's logit once for each time it occurs
    #[arg(long, value_name = "X", default_value = "0", value_parser = finite, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Subtract this once from the logit of each recent token
    #[arg(long, value_name = "X", default_value = "0", value_parser = finite, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// DRY: penalise tokens that would continue a repeated sequence; 0: off
    #[arg(long, value_name = "X", default_value = "0", value_parser = non_negative, allow_negative_numbers = true)]
    dry_multiplier: f32,
    /// DRY: how fast the penalty grows with the length of the repetition
    #[arg(long, value_name = "X", default_value = "1.75", value_parser = at_least_one, allow_negative_numbers = true)]
    dry_base: f32,
    /// DRY: repetitions up to this many tokens are free
    #[arg(long, value_name = "N", default_value = "2")]
    dry_allowed_length: usize,
    /// DRY: tokens that are searched for repetitions; 0: none, -1: all
    #[arg(long, value_name = "N", default_value = "-1", value_parser = last_n, allow_negative_numbers = true)]
    dry_penalty_last_n: usize,
    /// DRY: a repetition ends at this text (repeatable) [default: a newline, `:`, `"` and `*`]
    #[arg(long, value_name = "TEXT")]
    dry_sequence_breaker: Vec<String>,
}

impl SamplingArgs {
    /// What the sampler is told. The model's own settings belong together: they hold as long as none of them is chosen.
    pub(crate) fn sampler_params(&self, model: &Sampling) -> SamplerParams {
        let penalties = &self.penalties;
        let chosen = self.temp.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || penalties.repeat_penalty.is_some();
        let model = if chosen { Sampling::default() } else { *model };
        let engine = SamplerParams::default();
        let defaults = DryParams::default();
        let breakers = &penalties.dry_sequence_breaker;
        SamplerParams {
            temperature: self.temp.or(model.temperature).unwrap_or(engine.temperature),
            top_k: self.top_k.or(model.top_k).unwrap_or(engine.top_k),
            top_p: self.top_p.or(model.top_p).unwrap_or(engine.top_p),
            min_p: self.min_p.or(model.min_p).unwrap_or(engine.min_p),
            typical_p: self.typical,
            repeat_penalty: penalties
                .repeat_penalty
                .or(model.repeat_penalty)
                .unwrap_or(engine.repeat_penalty),
            repeat_last_n: penalties.repeat_last_n,
            frequency_penalty: penalties.frequency_penalty,
            presence_penalty: penalties.presence_penalty,
            dry: DryParams {
                multiplier: penalties.dry_multiplier,
                base: penalties.dry_base,
                allowed_length: penalties.dry_allowed_length,
                penalty_last_n: penalties.dry_penalty_last_n,
                sequence_breakers: if breakers.is_empty() {
                    defaults.sequence_breakers
                } else {
                    breakers.clone()
                },
            },
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

/// A seed for an answer that can be asked for again: short enough to be typed, and for JSON readers that have only
/// doubles.
pub(crate) fn new_seed() -> u64 {
    // The standard library's hasher is keyed with the operating system's random numbers.
    RandomState::new().hash_one(()) >> 32
}

/// A size as a budget is written, or none at all.
fn cache_bytes(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => match text.parse() {
            Ok(MemoryBudget::Bytes(bytes)) => Ok(bytes),
            Ok(MemoryBudget::Share(_)) => Err("a size such as 200M is needed".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Parses a number of tokens: at least 1, or -1 for no limit.
pub(crate) fn max_tokens(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(usize::MAX),
        Ok(n) if n >= 1 => usize::try_from(n).map_err(|e| e.to_string()),
        _ => Err("a whole number from 1, or -1 for no limit".to_owned()),
    }
}

fn last_n(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(usize::MAX),
        Ok(n) if n >= 0 => usize::try_from(n).map_err(|e| e.to_string()),
        _ => Err("a whole number from 0, or -1 for all".to_owned()),
    }
}

fn number(text: &str, allowed: &str, test: impl Fn(f32) -> bool) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && test(value) => Ok(value),
        _ => Err(format!("{allowed} is needed")),
    }
}

fn finite(text: &str) -> Result<f32, String> {
    number(text, "a finite number", |_| true)
}

fn non_negative(text: &str) -> Result<f32, String> {
    number(text, "a finite number from 0", |x| x >= 0.0)
}

fn positive(text: &str) -> Result<f32, String> {
    number(text, "a finite number above 0", |x| x > 0.0)
}

fn at_least_one(text: &str) -> Result<f32, String> {
    number(text, "a finite number from 1", |x| x >= 1.0)
}

fn fraction(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || "ID=VALUE is needed, such as 42=-5 or 42=-inf".to_owned();
    let (id, value) = text.split_once('=').ok_or_else(wrong)?;
    let id = id.trim().parse().map_err(|_| wrong())?;
    let value: f32 = value.trim().parse().map_err(|_| wrong())?;
    if value.is_nan() || value == f32::INFINITY { Err(wrong()) } else { Ok((id, value)) }
}

/// `5%` or `0.05`, below 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|percent| percent / 100.0),
        None => number(text),
    };
    let share = share.filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "a share such as 5% or 0.05 is needed, below 100%".to_owned())
}

/// Tokens of a piece whose second half is predicted.
pub(crate) fn piece(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 3 => Ok(n),
        _ => Err("a whole number from 3 is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    #[test]
    fn a_models_own_settings_hold_until_one_is_chosen() {
        let model = Sampling { temperature: Some(0.0), repeat_penalty: Some(1.1), ..Sampling::default() };
        let params = |arguments: &[&str]| {
            let command = SamplingArgs::augment_args(Command::new("moli").no_binary_name(true));
            let matches = command.try_get_matches_from(arguments).unwrap();
            let params = SamplingArgs::from_arg_matches(&matches).unwrap().sampler_params(&model);
            (params.temperature, params.repeat_penalty)
        };
        assert_eq!(params(&[]), (0.0, 1.1));
        assert_eq!(params(&["--seed", "7"]), (0.0, 1.1));
        assert_eq!(params(&["--temp", "0"]), (0.0, 1.0));
        assert_eq!(params(&["--repeat-penalty", "1.3"]), (0.8, 1.3));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for text in ["nan", "inf", "-inf", "-1", "", "x", "1e40"] {
            assert!(non_negative(text).is_err(), "{text}");
        }
        assert_eq!(non_negative("0.5"), Ok(0.5));
        for text in ["1.01", "-0.1", "nan"] {
            assert!(fraction(text).is_err(), "{text}");
        }
        assert!(positive("0").is_err());
    }

    #[test]
    fn sizes_of_caches() {
        assert_eq!([cache_bytes("0"), cache_bytes("2MiB")], [Ok(0), Ok(2 << 20)]);
        for text in ["-1", "10%", "", "abc", "1e9"] {
            assert!(cache_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn token_limits() {
        assert_eq!([max_tokens("1"), max_tokens("-1")], [Ok(1), Ok(usize::MAX)]);
        for text in ["0", "-2", "1.5", "99999999999999999999"] {
            assert!(max_tokens(text).is_err(), "{text}");
        }
    }

    #[test]
    fn logit_biases() {
        assert_eq!(logit_bias("42=-5"), Ok((42, -5.0)));
        assert_eq!(logit_bias("7 = -inf"), Ok((7, f32::NEG_INFINITY)));
        for text in ["42", "42=nan", "42=inf", "-1=2", "a=1", "=", "4294967296=1"] {
            assert!(logit_bias(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_written_either_way_and_bounded() {
        assert_eq!([share("5%"), share("0.05"), share("0")], [Ok(0.05), Ok(0.05), Ok(0.0)]);
        for text in ["", "%", "100%", "5", "-1%", "NaN", "inf%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
