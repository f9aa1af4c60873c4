//! `moli bench`.

mod compare;
mod lists;
mod outputs;
mod progress;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use moli_bench::format::{self, Format};
use moli_bench::report::Through;
use moli_bench::run::{Options, Source, run};
use moli_engine::{Device, KvType, Mixture};
use moli_synthetic::Synthetic;

use crate::affinity::{self, CpuList, cpu_list};
use crate::cli::Exit;
use crate::failure::UsageError;
use crate::lora::scaled;
use crate::options::{DEFAULT_MODEL, backend};
use crate::output::{Answers, escape, note};
use crate::{interrupt, load};
use lists::Numbers;
use outputs::Outputs;
use progress::Progress;

/// Measure models on this machine, beside the machine's own limits; or compare two measurements
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Lists are separated by commas, or the option is repeated; 1-8, 1-8+2 and 1-8*2 are ranges. The product of \
                  all lists is measured, in turns."
)]
pub(crate) struct Bench {
    #[command(subcommand)]
    command: Option<Subcommands>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Compare(compare::Compare),
}

/// What is measured, and where the numbers go.
#[derive(Debug, Args)]
struct Measure {
    /// Model files, names of the catalogue, repositories or URLs [default: smollm2-135m-instruct, where no --synthetic
    /// is given]
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// A further MODEL, as llama-bench has it
    #[arg(short = 'm', long = "model", value_name = "MODEL", hide = true)]
    further: Vec<String>,
    #[command(flatten)]
    synthetic: SyntheticArgs,
    #[command(flatten)]
    tests: TestArgs,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Models without a file")]
struct SyntheticArgs {
    /// A model with random weights in the shape of a published one or of a config.json, such as qwen2.5-7b:q4_k_m
    /// (repeatable)
    #[arg(long, value_name = "SHAPE:MIXTURE")]
    synthetic: Vec<String>,
    /// Write the synthetic model to this file, and measure the file
    #[arg(long, value_name = "FILE", requires = "synthetic")]
    save_model: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Tests")]
struct TestArgs {
    /// Tokens of a prompt to read; 0: none [default: 512, with --sustain 0]
    #[arg(short = 'p', long, value_name = "LIST", allow_negative_numbers = true)]
    n_prompt: Vec<Numbers>,
    /// Tokens to generate; 0: none
    #[arg(short = 'n', long, value_name = "LIST", default_value = "128", allow_negative_numbers = true)]
    n_gen: Vec<Numbers>,
    /// Tokens that stand before both, whose reading isn't timed
    #[arg(short = 'd', long, value_name = "LIST", default_value = "0", allow_negative_numbers = true)]
    n_depth: Vec<Numbers>,
    /// Sequences that are generated at once; of whole answers, clients
    #[arg(short, long, value_name = "LIST", default_value = "1", allow_negative_numbers = true)]
    batch: Vec<Numbers>,
    /// Measure whole answers too, through the engine and through the HTTP server: time to the first token, time between
    /// tokens
    #[arg(long)]
    e2e: bool,
    /// Repeat one test for so long, such as 10m, and record speed, frequency and temperature
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    sustain: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How")]
struct HowArgs {
    /// Threads that compute [default: one for each core, the fast ones where they differ]
    #[arg(short, long, value_name = "LIST", allow_negative_numbers = true)]
    threads: Vec<Numbers>,
    /// What computes: cpu; cuda:N, the NVIDIA GPU of this number; or auto, a GPU if one can be used
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
    /// Quantise the weights of all MODELs in memory to one of llama.cpp's mixtures, such as q4_k_m
    #[arg(long, value_name = "TYPE", value_parser = Mixture::named)]
    quantize: Option<Mixture>,
    /// Measure all MODELs three times in turns: alone, with these LoRA adapters loaded and not used, and with them, each scaled
    /// by SCALE, 1 unless given (repeatable)
    #[arg(long, value_name = "FILE[=SCALE]", value_parser = scaled, conflicts_with = "quantize")]
    lora: Vec<(String, f32)>,
    /// How keys and values are stored: f16, q8_0, f32
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "f16")]
    kv_type: Vec<KvType>,
    /// Tokens that there are pages for, all sequences together [default: as many as each test needs]
    #[arg(short, long, value_name = "LIST", allow_negative_numbers = true)]
    context: Vec<Numbers>,
    /// Times that everything is measured, after once unmeasured
    #[arg(short, long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    repetitions: usize,
    /// Run on these processors only, such as 0-3,8 (Linux)
    #[arg(long, value_name = "LIST", value_parser = cpu_list, allow_negative_numbers = true)]
    cpu_affinity: Option<CpuList>,
    /// Do not measure the machine's own limits
    #[arg(long)]
    no_limits: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// table, json, jsonl, csv, md, or llama-bench-jsonl, which has the fields of llama-bench [default: by the name
    /// of -o, else table]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Write to this file; the table is printed as well
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Draw what was measured into an .svg, .png or .html (repeatable)
    #[arg(long, value_name = "FILE")]
    plot: Vec<PathBuf>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<Exit> {
        match self.command {
            Some(Subcommands::Compare(compare)) => compare.run(),
            None => self.measure.run(),
        }
    }
}

impl Measure {
    fn run(self) -> Result<Exit> {
        // Before the threads are counted and started.
        if let Some(cpus) = &self.how.cpu_affinity {
            affinity::restrict(cpus)?;
        }
        // An hour's numbers need a place to go, and mistakes are told before a model is pulled.
        let outputs = Outputs::open(self.output.output.as_deref(), self.output.format, &self.output.plot)?;
        let mut options = self.options()?;
        Options { models: vec![placeholder()], ..options.clone() }.validate()?;
        options.models = self.sources()?;
        options.validate()?;
        let mut progress = Progress::new();
        let (report, cancelled) = interrupt::cancellable(|cancel| {
            (run(&options, cancel, &mut |event| progress.update(&event)), cancel.is_cancelled())
        });
        drop(progress);
        let report = report?;
        // The numbers are shown even where a file can't be written any more.
        let written = outputs.write(&report);
        let format = self.output.format.filter(|_| self.output.output.is_none()).unwrap_or(Format::Table);
        // A table has them below.
        if !matches!(format, Format::Table | Format::Md) {
            report.notes.iter().for_each(|text| note!("{}", escape(text)));
        }
        let mut text = Vec::new();
        format::write(&report, format, &mut text).context("cannot write the report")?;
        Answers::new().text(&String::from_utf8_lossy(&text))?;
        written?;
        Ok(if cancelled { Exit::Interrupted } else { Exit::Done })
    }

    /// All but the models.
    fn options(&self) -> Result<Options> {
        let (tests, how) = (&self.tests, &self.how);
        let lists = |list: &[Numbers]| {
            list.iter().flat_map(|numbers| numbers.0.iter().copied()).collect::<Vec<usize>>()
        };
        let defaults = Options::new(Vec::new());
        let or = |given: Vec<usize>, default: Vec<usize>| if given.is_empty() { default } else { given };
        let prompt = if tests.sustain.is_some() { vec![0] } else { defaults.prompt.clone() };
        Ok(Options {
            prompt: or(lists(&tests.n_prompt), prompt),
            generate: lists(&tests.n_gen),
            depths: lists(&tests.n_depth),
            batches: lists(&tests.batch),
            threads: or(lists(&how.threads), defaults.threads.clone()),
            kv_types: how.kv_type.clone(),
            contexts: lists(&how.context),
            repetitions: how.repetitions,
            end_to_end: if tests.e2e { vec![Through::Engine, Through::Server] } else { Vec::new() },
            sustain: tests.sustain,
            limits: !how.no_limits,
            backend: backend(how.device)?,
            ..defaults
        })
    }

    /// What has to be added for comparing two programs that measure this.
    ///
    /// # Errors
    /// What asks for something else than a report on standard output.
    fn compared(&self) -> Result<Vec<&'static str>> {
        let output = &self.output;
        if output.format.is_some() || output.output.is_some() || !output.plot.is_empty() {
            return Err(UsageError(
                "behind --: programs that are compared take no --format, --output and --plot".into(),
            )
            .into());
        }
        if self.tests.sustain.is_some() || self.synthetic.save_model.is_some() {
            return Err(UsageError(
                "behind --: programs that are compared take no --sustain and --save-model".into(),
            )
            .into());
        }
        let limits = if self.how.no_limits { None } else { Some("--no-limits") };
        Ok(["--format", "json"].into_iter().chain(limits).collect())
    }

    fn sources(&self) -> Result<Vec<Source>> {
        let synthetic = &self.synthetic.synthetic;
        let mut named: Vec<&str> = self.models.iter().chain(&self.further).map(String::as_str).collect();
        if named.is_empty() && synthetic.is_empty() {
            named.push(DEFAULT_MODEL);
        }
        let file = |name: &str| {
            let (name, path) = (name.to_owned(), load::resolve(name)?);
            Ok(match self.how.quantize {
                Some(mixture) => Source::Quantised { name, path, mixture },
                None => Source::File { name, path, synthetic: false },
            })
        };
        let mut sources = named.into_iter().map(file).collect::<Result<Vec<_>>>()?;
        if !self.how.lora.is_empty() {
            sources = sources.into_iter().flat_map(|source| self.adapted(source)).collect();
        }
        // All names before the first is made.
        let made = synthetic.iter().map(|name| Synthetic::parse(name)).collect::<Result<Vec<_>, _>>()?;
        match (&self.synthetic.save_model, made.as_slice()) {
            (None, _) => sources.extend(made.into_iter().map(|model| Source::Memory(Box::new(model)))),
            (Some(path), [model]) => {
                note!("writing {} to {}", escape(&model.name()), escape(&path.display().to_string()));
                outputs::beside(path, |partial| Ok(model.write(partial)?))?;
                sources.push(Source::File { name: model.name(), path: path.clone(), synthetic: true });
            }
            (Some(_), _) => {
                return Err(UsageError("--save-model needs exactly one --synthetic".into()).into());
            }
        }
        Ok(sources)
    }

    /// A model alone, with adapters beside it, and with them.
    fn adapted(&self, source: Source) -> Vec<Source> {
        let Source::File { name, path, .. } = &source else { return vec![source] };
        let adapters: Vec<_> = self.how.lora.iter().map(|(path, scale)| (path.into(), *scale)).collect();
        let with = |used| Source::Adapted {
            name: name.clone(),
            path: path.clone(),
            adapters: adapters.clone(),
            used,
        };
        let (beside, used) = (with(false), with(true));
        vec![source, beside, used]
    }
}

/// Stands for models that are not looked for yet.
fn placeholder() -> Source {
    Source::File { name: String::new(), path: PathBuf::new(), synthetic: false }
}

/// `90s`, `10m`, `1h 30m`; a day at most.
fn duration(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match duration {
        Duration::ZERO => Err("it is no time at all".to_owned()),
        duration if duration > MOST => Err("it is more than 24h".to_owned()),
        duration => Ok(duration),
    }
}
