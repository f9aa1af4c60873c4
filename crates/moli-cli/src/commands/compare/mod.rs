//! `moli compare`.

mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use moli_bench::plot;
use moli_bench::report::Test;
use moli_bench::run::Direct;
use moli_bench::statistics::median;
use moli_engine::{CancelToken, Divergence, resident_bytes};
use moli_format::{Gguf, ReadMode};
use moli_model::{BackendKind, KvType, LoadOptions};
use moli_text::EncodeOptions;

use crate::cli::Exit;
use crate::lora::LoraArgs;
use crate::options::{ComputeArgs, piece, share};
use crate::output::{Answers, count, escape, note};
use crate::progress::Bar;
use crate::{interrupt, load, text_input};
use report::{Comparison, Side, mean};

/// The tests of speed, and how often each is run on each model, in turns.
const PROMPT: Test = Test::Prefill { tokens: 512, depth: 0 };
const ANSWER: Test = Test::Decode { tokens: 64, depth: 0, batch: 1 };
const ROUNDS: usize = 5;

/// Say how far a smaller model is from the one that it was made of: predictions, size, speed and memory
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 compared, 1 an error, 2 wrong usage, 3 further apart than --max-kl or --max-ppl-rise allow."
)]
pub(crate) struct Compare {
    /// The model that the other one is measured by: a file, a folder or a name of the catalogue
    #[arg(value_name = "A")]
    a: String,
    /// The smaller one
    #[arg(value_name = "B")]
    b: String,
    /// The text
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The text is cut into pieces of N tokens; the second half of each is predicted
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = piece)]
    context: usize,
    /// Exit with status 3 if the mean KL divergence is above so many nats
    #[arg(long, value_name = "NATS", value_parser = nats, allow_negative_numbers = true)]
    max_kl: Option<f64>,
    /// Exit with status 3 if perplexity rises by more than P, such as 2%
    #[arg(long, value_name = "P", value_parser = share, allow_negative_numbers = true)]
    max_ppl_rise: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Draw the divergence of the text's tokens: FILE.svg, .png or .html
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Compare {
    pub(crate) fn run(self) -> Result<Exit> {
        if let Some(path) = &self.plot {
            plot::check(path)?;
        }
        let text = text_input::from_file(&self.file)?;
        let Some(found) = self.predictions(&text)? else { return Ok(Exit::Interrupted) };
        let [a, b] = self.measure(&found)?;
        let mut comparison = Comparison::of(a, b, &found);
        let limits = [
            (self.max_kl, comparison.kl_divergence.mean),
            (self.max_ppl_rise, comparison.perplexity_rise.value),
        ];
        let given = limits.iter().any(|(limit, _)| limit.is_some());
        let kept = limits.iter().all(|(limit, value)| limit.is_none_or(|limit| *value <= limit));
        comparison.within = given.then_some(kept);
        if let Some(path) = &self.plot {
            let nats: Vec<f64> = found.predictions.iter().map(|p| p.divergence).collect();
            plot::write_divergence(&format!("{} from {}", name(&self.b), name(&self.a)), &nats, path)?;
        }
        Answers::new().report(self.json, &comparison, Comparison::table)?;
        Ok(if kept { Exit::Done } else { Exit::Worse })
    }

    /// The predictions of both; `None` if Ctrl-C ended it before there was one.
    fn predictions(&self, text: &str) -> Result<Option<Divergence>> {
        let engine =
            |model: &str| load::engine(model, None, Some(self.context), &self.compute, &LoraArgs::default());
        let [a, b] = [engine(&self.a)?, engine(&self.b)?];
        // Control tokens that the text happens to spell out are text here.
        let options = EncodeOptions { add_special: true, parse_special: false };
        let ids = a.tokenizer().encode(text, options)?;
        let bar = Bar::pieces("comparing", ids.len() / self.context);
        let found = interrupt::cancellable(|cancel| {
            moli_engine::divergence(&a, &b, &ids, self.context, |done, _| {
                bar.at(done);
                !cancel.is_cancelled()
            })
        });
        drop(bar);
        let found = found?;
        if found.predictions.is_empty() {
            return Ok(None);
        }
        let whole = ids.len() / self.context * self.context.saturating_sub(1 + self.context / 2);
        let done = found.predictions.len();
        if done < whole {
            note!("interrupted: {} of {} tokens were compared", count(done as u64), count(whole as u64));
        }
        Ok(Some(found))
    }

    /// Sizes, memory and speeds, with nothing but the models themselves in between.
    fn measure(&self, found: &Divergence) -> Result<[Side; 2]> {
        let options = LoadOptions {
            threads: self.compute.engine_options().threads.unwrap_or_else(moli_kernels::default_threads),
            isa: None,
            context: 512 + 64,
            max_rows: 512,
            kv_type: KvType::F16,
        };
        let never = CancelToken::new();
        let mut models = Vec::new();
        for (of, model) in [&self.a, &self.b].into_iter().enumerate() {
            let before = resident_bytes();
            let path = load::resolve(model)?;
            let gguf = Gguf::open(&path, ReadMode::Map)?;
            let mut direct = Direct::new(moli_model::load(&gguf, BackendKind::Cpu, &options)?);
            // All weights are read once, so that they are in memory, and no round has to wait for the disk.
            direct.repetition(&PROMPT, &never)?;
            direct.repetition(&ANSWER, &never)?;
            let losses = found.predictions.iter().map(|p| p.loss[of]);
            let side = Side {
                model: name(model),
                file_bytes: gguf.file_bytes(),
                resident_bytes: resident_bytes()
                    .zip(before)
                    .map(|(after, before)| after.bytes.saturating_sub(before.bytes)),
                perplexity: mean(losses).exp(),
                prompt_speed: 0.0,
                answer_speed: 0.0,
            };
            models.push((side, direct, [Vec::new(), Vec::new()]));
        }
        for _ in 0..ROUNDS {
            for (_, direct, seconds) in &mut models {
                for (test, seconds) in [PROMPT, ANSWER].iter().zip(seconds) {
                    seconds.extend(direct.repetition(test, &never)?);
                }
            }
        }
        let sides = models.into_iter().map(|(side, _, [prompt, answer])| Side {
            prompt_speed: 512.0 / median(&prompt),
            answer_speed: 64.0 / median(&answer),
            ..side
        });
        sides.collect::<Vec<_>>().try_into().map_err(|_| anyhow::anyhow!("two models were loaded"))
    }
}

/// The last part of a path, or a name as it is.
fn name(model: &str) -> String {
    let trimmed = model.trim_end_matches(['/', '\\']);
    escape(trimmed.rsplit(['/', '\\']).next().unwrap_or(trimmed)).into_owned()
}

fn nats(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(nats) if (0.0..f64::INFINITY).contains(&nats) => Ok(nats),
        _ => Err("a number of nats from 0 is needed, such as 0.05".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_its_last_part() {
        assert_eq!(["a/b.gguf", "b.gguf", "a/b/", "smollm2"].map(name), ["b.gguf", "b.gguf", "b", "smollm2"]);
    }

    #[test]
    fn bounds_are_numbers() {
        assert_eq!([nats("0"), nats("0.05")], [Ok(0.0), Ok(0.05)]);
        for text in ["", "-1", "nan", "inf", "5%"] {
            assert!(nats(text).is_err(), "{text}");
        }
    }
}
