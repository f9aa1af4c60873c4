//! Sessions with adapters of their own, with a tiny model on the CPU.

// Clippy takes helpers of tests for code outside tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use moli_engine::{
    AdapterFile, AdapterScale, CancelToken, EmbedOptions, Engine, EngineError, EngineOptions, GenerateParams,
    Pooling, SamplerParams, Session, SnapshotError,
};
use moli_format::{GgufWriter, TensorType};
use moli_testkit::TinyModel;
use tempfile::TempDir;

/// A folder with a model and adapters for it.
struct Place {
    folder: TempDir,
    model: TinyModel,
}

impl Place {
    fn new() -> Self {
        let model =
            TinyModel { hidden: 64, heads: 2, kv_heads: 1, head_dim: 32, ffn: 64, ..TinyModel::new("llama") };
        let place = Self { folder: tempfile::tempdir().unwrap(), model };
        place.model.write(&place.path("model.gguf")).unwrap();
        place.adapter("law", "llama", 3, 64);
        place.adapter("tax", "llama", 8, 64);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an adapter of keys and of the way back, whose elements its rank tells from others.
    fn adapter(&self, name: &str, architecture: &str, rank: u64, hidden: u64) {
        let mut writer = GgufWriter::new();
        writer.meta("general.type", "adapter").meta("general.architecture", architecture);
        writer.meta("adapter.type", "lora").meta("adapter.lora.alpha", 2.0 * rank as f32);
        for (stem, rows) in [("blk.0.attn_k", 32), ("blk.1.ffn_down", hidden)] {
            for (end, dims) in [("lora_a", [64, rank]), ("lora_b", [rank, rows])] {
                let values = (0..dims[0] * dims[1]).map(|i| ((i * (rank + 3)) % 17) as f32 / 16.0 - 0.5);
                let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
                writer.tensor(format!("{stem}.weight.{end}"), TensorType::F32, dims, data);
            }
        }
        writer.write_file(&self.path(name)).unwrap();
    }

    fn options(&self, adapters: &[(&str, f32)]) -> EngineOptions {
        let file = |&(name, scale): &(&str, f32)| AdapterFile {
            name: name.to_owned(),
            path: self.path(name),
            scale,
        };
        EngineOptions {
            threads: Some(1),
            context: Some(512),
            sessions: 4,
            adapters: adapters.iter().map(file).collect(),
            ..EngineOptions::default()
        }
    }

    fn engine(&self, adapters: &[(&str, f32)]) -> Engine {
        Engine::load(&self.path("model.gguf"), &self.options(adapters)).unwrap()
    }

    fn refusal(&self, options: &EngineOptions) -> EngineError {
        Engine::load(&self.path("model.gguf"), options).unwrap_err()
    }
}

const BOTH: &[(&str, f32)] = &[("law", 0.0), ("tax", 0.0)];

fn chosen(adapters: &[(&str, f32)]) -> Vec<AdapterScale> {
    adapters.iter().map(|&(name, scale)| AdapterScale { name: name.to_owned(), scale }).collect()
}

fn with(adapters: &[(&str, f32)]) -> GenerateParams {
    GenerateParams {
        max_tokens: Some(12),
        sampling: SamplerParams::greedy(),
        ignore_eos: true,
        logprobs: Some(0),
        adapters: Some(chosen(adapters)),
        ..GenerateParams::default()
    }
}

/// Two pages and more.
fn text() -> Vec<u32> {
    (0..75).map(|i| i * 31 % 250).collect()
}

/// Tokens with the bits of their log-probabilities, and how many of the prompt's were cached.
type Told = (Vec<(u32, u32)>, usize);

fn take(answer: moli_engine::Answer) -> Told {
    let mut answer = answer;
    let tokens = answer.by_ref().filter_map(|chunk| chunk.unwrap().token);
    let tokens = tokens.map(|token| (token.id, token.logprob.unwrap().to_bits())).collect();
    (tokens, answer.summary().usage.cached_tokens)
}

fn ask(engine: &Engine, params: &GenerateParams) -> Told {
    take(engine.submit(&text(), params, &CancelToken::new()).unwrap())
}

/// The choices that the tests compare.
const CHOICES: &[&[(&str, f32)]] =
    &[&[], &[("law", 1.0)], &[("law", 0.5)], &[("tax", 1.0)], &[("law", 1.0), ("tax", 0.25)]];

#[test]
fn answers_with_other_adapters_share_a_batch_and_nothing_else() {
    let place = Place::new();
    // Each alone, in an engine of its own.
    let alone: Vec<_> = CHOICES.iter().map(|choice| ask(&place.engine(BOTH), &with(choice)).0).collect();
    for (index, one) in alone.iter().enumerate() {
        assert!(!alone[..index].contains(one), "{:?} changes nothing", CHOICES[index]);
    }
    // The model without adapters is the one whose sessions choose none.
    assert_eq!(ask(&place.engine(&[]), &with(&[])).0, alone[0]);
    // All at once, twice: the second time from the cache.
    let engine = place.engine(BOTH);
    for round in 0..2 {
        let submit =
            |choice: &&[(&str, f32)]| engine.submit(&text(), &with(choice), &CancelToken::new()).unwrap();
        let answers: Vec<_> = CHOICES.iter().map(submit).collect();
        for ((answer, alone), choice) in answers.into_iter().zip(&alone).zip(CHOICES) {
            let (tokens, cached) = take(answer);
            assert_eq!(tokens, *alone, "{choice:?}");
            // What others computed is of no use, what it computed itself is.
            assert_eq!(cached, if round == 0 { 0 } else { text().len() - 1 }, "{choice:?}");
        }
    }
    // The order of the adapters and one scaled by 0 are of no matter.
    for same in [&[("tax", 0.25), ("law", 1.0)][..], &[("tax", 0.25), ("law", 1.0)]] {
        assert_eq!(ask(&engine, &with(same)), (alone[4].clone(), text().len() - 1));
    }
    assert_eq!(ask(&engine, &with(&[("law", 0.0), ("tax", 1.0)])), (alone[3].clone(), text().len() - 1));
}

#[test]
fn what_nobody_chooses_is_what_the_model_was_loaded_with() {
    let place = Place::new();
    let engine = place.engine(&[("law", 0.5), ("tax", 0.0)]);
    assert_eq!(engine.adapters(), ["law", "tax"]);
    let wanted = ask(&place.engine(BOTH), &with(&[("law", 0.5)])).0;
    assert_eq!(ask(&engine, &GenerateParams { adapters: None, ..with(&[]) }).0, wanted);
    assert_eq!(engine.session().adapters(), chosen(&[("law", 0.5)]));
    // Embeddings too, which have no choice.
    let embed = |engine: &Engine| {
        let options = EmbedOptions { pooling: Some(Pooling::Mean), ..EmbedOptions::default() };
        engine.submit_embedding(&text(), &options, &CancelToken::new()).unwrap().wait().unwrap().values
    };
    assert_ne!(embed(&engine), embed(&place.engine(BOTH)));
    assert_eq!(embed(&place.engine(BOTH)), embed(&place.engine(&[])));
}

#[test]
fn a_session_keeps_its_adapters() {
    let place = Place::new();
    let engine = place.engine(BOTH);
    let unchosen = GenerateParams { adapters: None, ..with(&[]) };
    let told = |session: &mut Session, params: &GenerateParams| -> Vec<(u32, u32)> {
        let generation = session.generate(&text(), params, &CancelToken::new()).unwrap();
        generation
            .filter_map(|chunk| chunk.unwrap().token)
            .map(|token| (token.id, token.logprob.unwrap().to_bits()))
            .collect()
    };
    let wanted = ask(&engine, &with(&[("tax", 1.0)])).0;
    let mut session = engine.session();
    session.choose_adapters(&chosen(&[("tax", 1.0)])).unwrap();
    assert_eq!(told(&mut session, &unchosen), wanted);
    let scores = session.score(&text(), &[74]).unwrap();
    let mut plain = engine.session();
    assert_ne!(plain.score(&text(), &[74]).unwrap(), scores);
    // What an answer names becomes the session's.
    assert_eq!(told(&mut plain, &with(&[("tax", 1.0)])), wanted);
    assert_eq!(plain.score(&text(), &[74]).unwrap(), scores);
    assert!(matches!(
        session.choose_adapters(&chosen(&[("sea", 1.0)])),
        Err(EngineError::UnknownAdapter { name, known }) if name == "sea" && known == "law, tax"
    ));
    assert_eq!(session.adapters(), chosen(&[("tax", 1.0)]));
}

#[test]
fn a_saved_session_is_restored_with_its_adapters_only() {
    let place = Place::new();
    let path = place.path("saved");
    let choice = chosen(&[("law", 1.0), ("tax", 0.5)]);
    let wanted = {
        let engine = place.engine(BOTH);
        let mut session = engine.session();
        session.choose_adapters(&choice).unwrap();
        session
            .generate(&text(), &GenerateParams { adapters: None, ..with(&[]) }, &CancelToken::new())
            .unwrap()
            .count();
        session.save(&path).unwrap();
        ask(&engine, &with(&[("law", 1.0), ("tax", 0.5)])).0
    };
    let engine = place.engine(BOTH);
    let refusal =
        |engine: &Engine, adapters: &[(&str, f32)]| match engine.restore_adapted(&path, &chosen(adapters)) {
            Err(EngineError::Snapshot { error: SnapshotError::Adapter { found, expected }, .. }) => {
                (found, expected)
            }
            other => panic!("{other:?}"),
        };
    let (found, none) = refusal(&engine, &[]);
    assert!(found != 0 && none == 0);
    assert!(matches!(engine.restore(&path), Err(EngineError::Snapshot { .. })));
    for other in [&[("law", 1.0)][..], &[("law", 1.0), ("tax", 0.25)], &[("law", 0.5), ("tax", 1.0)]] {
        assert_eq!(refusal(&engine, other).0, found);
    }
    // Added up in another order, the last bit may differ.
    refusal(&place.engine(&[("tax", 0.0), ("law", 0.0)]), &[("law", 1.0), ("tax", 0.5)]);
    assert_eq!(engine.counters().pages_cached, 0);
    let session = engine.restore_adapted(&path, &choice).unwrap();
    assert_eq!(session.adapters(), choice);
    let (tokens, cached) = ask(&engine, &with(&[("law", 1.0), ("tax", 0.5)]));
    assert_eq!((tokens, cached), (wanted, 64));
    // Nobody else gets anything of it.
    assert_eq!(ask(&engine, &with(&[])).1, 0);
}

#[test]
fn adapters_that_cannot_be_loaded_or_chosen() {
    let place = Place::new();
    place.adapter("qwen", "qwen2", 2, 64);
    place.adapter("wide", "llama", 2, 65);
    std::fs::write(place.path("noise"), [7; 100]).unwrap();
    for name in ["qwen", "wide", "noise", "missing", "model.gguf"] {
        let error = place.refusal(&place.options(&[("law", 0.0), (name, 0.0)]));
        assert!(matches!(&error, EngineError::Adapter { path, .. } if *path == place.path(name)), "{error}");
    }
    let error = place.refusal(&place.options(&[("law", 0.0), ("law", 1.0)]));
    assert!(matches!(&error, EngineError::DuplicateAdapter { name } if name == "law"), "{error}");
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        let error = place.refusal(&place.options(&[("law", scale)]));
        assert!(matches!(error, EngineError::InvalidParameter { name: "adapters", .. }), "{error}");
    }
    let engine = place.engine(BOTH);
    let refusal = |adapters: &[(&str, f32)]| {
        engine.submit(&text(), &with(adapters), &CancelToken::new()).map(|_| ()).unwrap_err()
    };
    assert!(matches!(refusal(&[("sea", 1.0)]), EngineError::UnknownAdapter { .. }));
    for scale in [-0.5, f32::NAN, f32::INFINITY] {
        assert!(matches!(refusal(&[("law", scale)]), EngineError::InvalidParameter { name: "adapters", .. }));
    }
    assert!(matches!(
        refusal(&[("law", 1.0), ("law", 1.0)]),
        EngineError::InvalidParameter { name: "adapters", .. }
    ));
    let known = place.engine(&[]).submit(&text(), &with(&[("law", 1.0)]), &CancelToken::new()).map(|_| ());
    assert!(matches!(known, Err(EngineError::UnknownAdapter { known, .. }) if known.is_empty()));
}

#[test]
fn adapters_are_part_of_the_plan() {
    let place = Place::new();
    let of = |adapters: &[(&str, f32)]| {
        let engine = place.engine(adapters);
        let row = engine.plan().unwrap().rows.iter().find(|row| row.name == "adapters").map(|row| row.bytes);
        row.unwrap_or(0)
    };
    assert_eq!(of(&[]), 0);
    // The matrices: 64 columns and 32 or 64 rows of rank 3 and 8, in single precision.
    let matrices = |rank: u64| 4 * rank * (64 + 32 + 64 + 64);
    assert!(of(&[("law", 0.0)]) > matrices(3));
    assert!(of(BOTH) >= of(&[("law", 0.0)]) + matrices(8));
}
