//! What is to be measured, and whether that makes sense.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::path::PathBuf;
use std::time::Duration;

use moli_convert::Mixture;
use moli_model::{BackendKind, KvType, MAX_OUTPUTS, PAGE_TOKENS, pages_of};
use moli_synthetic::Synthetic;

use super::RunError;
use crate::report::{Case, Test, Through};

/// Most threads.
const MAX_THREADS: usize = 1024;
/// Most repetitions.
const MAX_REPETITIONS: usize = 10_000;
/// Most tokens of a prompt, of an answer, or before them: as many as any model's context.
const MAX_TOKENS: usize = 1 << 26;
/// Most cases.
const MAX_CASES: usize = 4096;

/// Lists whose product is measured, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The models.
    pub models: Vec<Source>,
    /// Tokens of prompts; 0: none is read.
    pub prompt: Vec<usize>,
    /// Tokens to generate; 0: none are generated.
    pub generate: Vec<usize>,
    /// Tokens before both, whose reading isn't timed.
    pub depths: Vec<usize>,
    /// Sequences that are generated at once; of whole answers, clients.
    pub batches: Vec<usize>,
    /// Threads.
    pub threads: Vec<usize>,
    /// How keys and values are kept.
    pub kv_types: Vec<KvType>,
    /// Tokens that there are pages for; empty: as many as each case needs.
    pub contexts: Vec<usize>,
    /// Times that each case is measured.
    pub repetitions: usize,
    /// Ways by which whole answers are measured too.
    pub end_to_end: Vec<Through>,
    /// One case is repeated for so long instead.
    pub sustain: Option<Duration>,
    /// Whether the machine's own limits are measured between the rounds.
    pub limits: bool,
    /// What computes.
    pub backend: BackendKind,
}

/// Where a model comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file or a folder.
    File {
        /// As it was named.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// Whether its weights are random.
        synthetic: bool,
    },
    /// A file or a folder whose weights are quantised in memory.
    Quantised {
        /// As it was named.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// Their formats.
        mixture: Mixture,
    },
    /// A file or a folder with LoRA adapters loaded beside it.
    Adapted {
        /// As it was named.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// Where the adapters are, and what they are scaled by.
        adapters: Vec<(PathBuf, f32)>,
        /// Whether sequences go through them.
        used: bool,
    },
    /// Made in memory.
    Memory(Box<Synthetic>),
}

impl Source {
    /// As it was named.
    pub fn name(&self) -> String {
        match self {
            Self::File { name, .. } => name.clone(),
            Self::Quantised { name, mixture, .. } => format!("{name} as {mixture}"),
            Self::Adapted { name, .. } => format!("{name}{}", self.with_adapters()),
            Self::Memory(model) => model.name(),
        }
    }

    /// ` with law, tax` where sequences go through these adapters, ` beside law, tax` where they don't.
    pub(super) fn with_adapters(&self) -> String {
        let Self::Adapted { adapters, used, .. } = self else { return String::new() };
        let name =
            |(path, _): &(PathBuf, f32)| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = adapters.iter().map(name).collect();
        format!(" {} {}", if *used { "with" } else { "beside" }, names.join(", "))
    }

    /// Whether its weights are random.
    pub fn is_synthetic(&self) -> bool {
        matches!(self, Self::Memory(_) | Self::File { synthetic: true, .. })
    }
}

impl Options {
    /// Of these models with llama-bench's defaults: a prompt of 512 tokens, 128 that are generated, five times.
    pub fn new(models: Vec<Source>) -> Self {
        Self {
            models,
            prompt: vec![512],
            generate: vec![128],
            depths: vec![0],
            batches: vec![1],
            threads: vec![moli_kernels::default_threads()],
            kv_types: vec![KvType::F16],
            contexts: Vec::new(),
            repetitions: 5,
            end_to_end: Vec::new(),
            sustain: None,
            limits: true,
            backend: BackendKind::Cpu,
        }
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`RunError::Empty`], [`RunError::Duplicate`], [`RunError::Range`], [`RunError::Nothing`], [`RunError::NoAnswers`],
    /// [`RunError::TooManyCases`], [`RunError::Sustained`].
    pub fn validate(&self) -> Result<(), RunError> {
        let names: Vec<String> = self.models.iter().map(Source::name).collect();
        list("models", &names)?;
        numbers("tokens of a prompt", &self.prompt, 0, MAX_TOKENS)?;
        numbers("tokens to generate", &self.generate, 0, MAX_TOKENS)?;
        numbers("depths", &self.depths, 0, MAX_TOKENS)?;
        numbers("batches", &self.batches, 1, MAX_OUTPUTS)?;
        numbers("threads", &self.threads, 1, MAX_THREADS)?;
        list("KV types", &self.kv_types)?;
        if !self.contexts.is_empty() {
            numbers("contexts", &self.contexts, 1, MAX_TOKENS)?;
        }
        range("the number of repetitions", self.repetitions, 1, MAX_REPETITIONS)?;
        if self.prompt.iter().chain(&self.generate).all(|&tokens| tokens == 0) {
            return Err(RunError::Nothing);
        }
        if !self.end_to_end.is_empty() && (self.prompt.contains(&0) || self.generate.contains(&0)) {
            return Err(RunError::NoAnswers);
        }
        let whole = [&self.prompt, &self.generate, &self.batches, &self.depths].map(Vec::len);
        let lists = [self.models.len(), self.threads.len(), self.kv_types.len(), self.contexts.len().max(1)];
        // More than there are, but it can be counted without listing them.
        let most = whole.into_iter().chain(lists).try_fold(2usize, usize::checked_mul).unwrap_or(usize::MAX);
        let cases = if most > 64 * MAX_CASES { most } else { self.models.len() * self.cases("").len() };
        if cases > MAX_CASES {
            return Err(RunError::TooManyCases { cases, limit: MAX_CASES });
        }
        if self.sustain.is_some() && cases != 1 {
            return Err(RunError::Sustained { cases });
        }
        Ok(())
    }

    /// The cases of a model, in the order of the lists.
    pub(super) fn cases(&self, model: &str) -> Vec<Case> {
        let mut cases = Vec::new();
        let contexts: Vec<Option<usize>> = match self.contexts.as_slice() {
            [] => vec![None],
            given => given.iter().copied().map(Some).collect(),
        };
        for &threads in &self.threads {
            for kv_type in &self.kv_types {
                for &context in &contexts {
                    cases.extend(self.tests().into_iter().map(|work| Case {
                        model: model.to_owned(),
                        context: context.unwrap_or(need(&work)),
                        work,
                        threads,
                        kv_type: kv_type.to_string(),
                    }));
                }
            }
        }
        cases
    }

    fn tests(&self) -> Vec<Test> {
        let some = |list: &[usize]| list.iter().copied().filter(|&tokens| tokens > 0).collect::<Vec<_>>();
        let (prompt, generate) = (some(&self.prompt), some(&self.generate));
        let mut tests = Vec::new();
        for &depth in &self.depths {
            tests.extend(prompt.iter().map(|&tokens| Test::Prefill { tokens, depth }));
            for &tokens in &generate {
                tests.extend(self.batches.iter().map(|&batch| Test::Decode { tokens, depth, batch }));
            }
        }
        for &through in &self.end_to_end {
            for &prompt in &prompt {
                for &tokens in &generate {
                    let clients = self.batches.iter();
                    tests.extend(clients.map(|&clients| Test::EndToEnd { through, prompt, tokens, clients }));
                }
            }
        }
        tests
    }
}

/// Sequences of a test, and the tokens of each.
pub(super) fn sequences(work: &Test) -> (usize, usize) {
    match *work {
        Test::Prefill { tokens, depth } => (1, tokens + depth),
        Test::Decode { tokens, depth, batch } => (batch, tokens + depth),
        Test::EndToEnd { prompt, tokens, clients, .. } => (clients, prompt + tokens),
    }
}

/// Tokens that a test needs pages for.
pub(super) fn need(work: &Test) -> usize {
    let (sequences, tokens) = sequences(work);
    sequences.saturating_mul(pages_of(tokens)).saturating_mul(PAGE_TOKENS)
}

/// Tokens that a repetition computes and its time is divided by.
pub(super) fn tokens(work: &Test) -> usize {
    match *work {
        Test::Prefill { tokens, .. } => tokens,
        Test::Decode { tokens, batch, .. } => tokens * batch,
        Test::EndToEnd { tokens, clients, .. } => tokens * clients,
    }
}

/// Checks that a list says something, and nothing twice.
fn list<T: Eq + Hash + Display>(name: &'static str, values: &[T]) -> Result<(), RunError> {
    if values.is_empty() {
        return Err(RunError::Empty { name });
    }
    let mut seen = HashSet::new();
    match values.iter().find(|value| !seen.insert(*value)) {
        Some(twice) => Err(RunError::Duplicate { name, value: twice.to_string() }),
        None => Ok(()),
    }
}

fn numbers(name: &'static str, values: &[usize], low: usize, high: usize) -> Result<(), RunError> {
    list(name, values)?;
    values.iter().try_for_each(|&value| range(name, value, low, high))
}

fn range(name: &'static str, value: usize, low: usize, high: usize) -> Result<(), RunError> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(RunError::Range { name, value, low, high }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::new(vec![Source::File { name: "a".into(), path: "a".into(), synthetic: false }])
    }

    #[test]
    fn the_product_of_the_lists_is_measured() {
        let options = Options {
            prompt: vec![0, 512],
            generate: vec![128],
            depths: vec![0, 4096],
            batches: vec![1, 8],
            threads: vec![1, 2],
            kv_types: vec![KvType::F16, KvType::Q8_0],
            ..options()
        };
        options.validate().unwrap();
        let cases = options.cases("a");
        assert_eq!(cases.len(), 2 * 2 * (2 + 4));
        let labels: Vec<String> = cases.iter().take(6).map(|case| case.work.to_string()).collect();
        assert_eq!(
            labels,
            ["pp512", "tg128", "b8 tg128", "pp512 @ d4096", "tg128 @ d4096", "b8 tg128 @ d4096"]
        );
        let contexts: Vec<usize> = cases.iter().take(6).map(|case| case.context).collect();
        assert_eq!(contexts, [512, 128, 1024, 4608, 4224, 8 * 4224]);
        assert_eq!(cases.iter().collect::<HashSet<_>>().len(), cases.len());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let told = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };
        let models = |options: &mut Options| options.models.clear();
        assert_eq!(told(models), "the list of models is empty");
        let twice = |options: &mut Options| options.models.push(options.models[0].clone());
        assert_eq!(told(twice), "a is twice among the models");
        assert_eq!(told(|o| o.threads = vec![2, 1, 2]), "2 is twice among the threads");
        assert_eq!(told(|o| o.kv_types = vec![]), "the list of KV types is empty");
        assert_eq!(told(|o| o.threads = vec![0]), "threads is 0, and must be between 1 and 1024");
        assert_eq!(told(|o| o.threads = vec![1025]), "threads is 1025, and must be between 1 and 1024");
        assert_eq!(told(|o| o.batches = vec![65]), "batches is 65, and must be between 1 and 64");
        assert_eq!(
            told(|o| o.repetitions = 0),
            "the number of repetitions is 0, and must be between 1 and 10000"
        );
        assert!(told(|o| (o.prompt, o.generate) = (vec![0], vec![0])).contains("nothing to measure"));
        assert!(
            told(|o| (o.prompt, o.end_to_end) = (vec![0], vec![Through::Engine])).contains("whole answers")
        );
        assert!(told(|o| o.depths = vec![usize::MAX]).contains("depths is 18446744073709551615"));
        let many = |options: &mut Options| {
            options.depths = (0..100).collect();
            options.generate = (1..100).collect();
        };
        assert_eq!(told(many), "10000 cases are asked for, and at most 4096 are measured in a run");
        assert!(told(|o| o.sustain = Some(Duration::from_secs(1))).contains("one case, and 2 are asked for"));
    }
}
