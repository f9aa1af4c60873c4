use moli_testkit::TinyModel;

use super::*;
use crate::units;

/// A model whose keys and values weigh more than all else.
fn model() -> TinyModel {
    TinyModel { layers: 8, kv_heads: 4, context: 1 << 15, ..TinyModel::new("llama") }
}

fn open(model: &TinyModel) -> Gguf {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    Gguf::open(&path, ReadMode::Read).unwrap()
}

fn options() -> PlanOptions {
    PlanOptions { threads: Some(2), max_batch: 1, ..PlanOptions::default() }
}

/// A plan where a budget is all that limits.
fn plan(gguf: &Gguf, options: &PlanOptions, budget: Option<u64>) -> Result<MemoryPlan, EngineError> {
    let options = PlanOptions { budget: budget.map(MemoryBudget::Bytes), ..options.clone() };
    MemoryPlan::within(gguf, &options, &SystemMemory::default())
}

fn shortage(gguf: &Gguf, options: &PlanOptions, budget: u64) -> Shortage {
    match plan(gguf, options, Some(budget)) {
        Err(EngineError::DoesNotFit(shortage)) => *shortage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_lowered_where_there_is_no_lack() {
    let gguf = open(&model());
    let plan = plan(&gguf, &options(), None).unwrap();
    assert_eq!((plan.context, plan.sessions, plan.kv_type), (DEFAULT_CONTEXT, 1, KvType::F16));
    assert_eq!((&plan.limit, plan.changes.as_slice()), (&None, &[][..]));
    // A context, and the same again for earlier prompts.
    assert_eq!(plan.kv_pages, 2 * pages_of(DEFAULT_CONTEXT));
    let bytes = |name| plan.rows.iter().find(|row| row.name == name).map(|row| row.bytes);
    // 8 layers, keys and values, 4 heads of 64 halves.
    let page = 8 * 2 * 4 * 64 * 2 * PAGE_TOKENS as u64;
    assert_eq!(bytes("keys and values"), Some(page * pages_of(DEFAULT_CONTEXT) as u64));
    assert_eq!(bytes("prefix cache"), Some(plan.prefix_cache_bytes));
    assert_eq!(bytes("weights"), Some(gguf.file_bytes()));
    assert_eq!(plan.rows.iter().map(|row| row.bytes).sum::<u64>(), plan.total_bytes);
    assert!(plan.to_string().contains("no limit is known"), "{plan}");

    let small = open(&TinyModel { context: 100, ..model() });
    assert_eq!(super::tests::plan(&small, &options(), None).unwrap().context, 100);
}

/// A folder whose weights are packed: what they become is counted, and the file's own bytes of them are not.
#[test]
fn unpacked_weights_are_counted() {
    let fixture =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/packed/gptq_order");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = r#"{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let gguf = Gguf::open(folder.path(), ReadMode::Map).unwrap();
    let plan = plan(&gguf, &options(), None).unwrap();
    let bytes = |name| plan.rows.iter().find(|row| row.name == name).map_or(0, |row| row.bytes);
    // The matrices of one layer, each weight a half: queries, keys, values, the way back, and the network.
    let weights = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96;
    assert_eq!((gguf.unpacked_bytes(), bytes("unpacked weights")), (weights * 2, weights * 2));
    let all = bytes("weights") + bytes("embeddings") + bytes("unpacked weights");
    assert_eq!(
        (all, gguf.file_bytes() - weights / 2 + weights * 2),
        (gguf.weight_bytes(), gguf.weight_bytes())
    );
    assert!(plan.to_string().contains("the folder has them packed"), "{plan}");
}

#[test]
fn all_is_counted_for_each_session() {
    let gguf = open(&model());
    let of = |sessions| plan(&gguf, &PlanOptions { sessions, ..options() }, None).unwrap();
    let (one, four) = (of(1), of(4));
    assert_eq!(four.kv_pages, 5 * pages_of(DEFAULT_CONTEXT));
    assert!(four.total_bytes > one.total_bytes + 3 * (one.total_bytes - one.prefix_cache_bytes) / 2);
}

/// At every budget: what is planned fits, each thing is lowered only after the ones before it, and every change is said.
#[test]
fn things_are_lowered_in_the_declared_order() {
    let gguf = open(&model());
    let options = options();
    let whole = plan(&gguf, &options, None).unwrap();
    let least = shortage(&gguf, &options, 1).least;
    let mut seen = [false; 4];
    let steps = 300;
    for step in 0..=steps {
        // The last is enough for a prefix cache of a tenth of it.
        let budget = least + (whole.total_bytes - least) * step / steps;
        let plan = plan(&gguf, &options, Some(budget)).unwrap();
        let limit = Limit { bytes: budget, source: LimitSource::Budget };
        assert!(plan.total_bytes <= budget, "{budget}: {plan}");
        assert_eq!(plan.limit, Some(limit));
        assert!((LEAST_CONTEXT..=DEFAULT_CONTEXT).contains(&plan.context));
        let lower = plan.kv_type == KvType::Q8_0;
        let shorter = plan.context < DEFAULT_CONTEXT;
        if shorter {
            assert!(lower && plan.prefix_cache_bytes == 0, "{plan}");
            // Another page of context would not fit.
            let longer = PlanOptions {
                kv_type: Some(KvType::Q8_0),
                prefix_cache_bytes: Some(0),
                context: Some(plan.context + PAGE_TOKENS),
                ..options.clone()
            };
            assert!(super::tests::plan(&gguf, &longer, Some(budget)).is_err(), "{budget}: {plan}");
        }
        let cache_is_smaller = plan.changes.iter().any(|change| matches!(change, Change::PrefixCache { .. }));
        let said: Vec<bool> =
            plan.changes.iter().map(|change| matches!(change, Change::KvType { .. })).collect();
        assert_eq!(said.contains(&true), lower);
        let context = plan.changes.iter().any(|change| matches!(change, Change::Context { .. }));
        assert_eq!(context, shorter);
        if lower {
            // In half precision it does not fit even without a cache.
            let fixed = PlanOptions {
                kv_type: Some(KvType::F16),
                prefix_cache_bytes: Some(0),
                context: Some(DEFAULT_CONTEXT),
                ..options.clone()
            };
            let fixed = super::tests::plan(&gguf, &fixed, Some(budget));
            assert!(matches!(fixed, Err(EngineError::DoesNotFit(_))), "{budget}: {plan}");
        }
        assert!(plan.changes.iter().all(|change| plan.to_string().contains(&change.to_string())));
        seen[usize::from(cache_is_smaller) + usize::from(lower) + usize::from(shorter)] = true;
    }
    // None, the cache, and the types too, and the context as well.
    assert_eq!(seen, [true; 4]);
}

#[test]
fn what_is_given_is_refused_instead_of_lowered() {
    let gguf = open(&model());
    let given = PlanOptions {
        context: Some(2048),
        kv_type: Some(KvType::F16),
        prefix_cache_bytes: Some(10 << 20),
        ..options()
    };
    let whole = plan(&gguf, &given, None).unwrap();
    assert_eq!((whole.context, whole.kv_type), (2048, KvType::F16));
    let page = KvType::F16.page_bytes(8, 4, 64).unwrap();
    assert_eq!(whole.prefix_cache_bytes, (10 << 20) / page * page);
    assert_eq!(plan(&gguf, &given, Some(whole.total_bytes)).unwrap().changes, []);
    let refused = shortage(&gguf, &given, whole.total_bytes - 1);
    assert_eq!((refused.needed, refused.limit.bytes), (whole.total_bytes, whole.total_bytes - 1));

    // One thing alone may be lowered.
    for (free, expected) in [
        (PlanOptions { prefix_cache_bytes: None, ..given.clone() }, (2048, KvType::F16)),
        (PlanOptions { kv_type: None, ..given.clone() }, (2048, KvType::Q8_0)),
    ] {
        let plan = plan(&gguf, &free, Some(whole.total_bytes - (1 << 20))).unwrap();
        assert_eq!((plan.context, plan.kv_type), expected, "{plan}");
    }
    let plan =
        plan(&gguf, &PlanOptions { context: None, ..given }, Some(whole.total_bytes - (1 << 20))).unwrap();
    assert!(
        plan.context < 2048 && plan.kv_type == KvType::F16 && plan.prefix_cache_bytes > 9 << 20,
        "{plan}"
    );
}

#[test]
fn a_refusal_says_what_would_fit() {
    let gguf = open(&model());
    let given = PlanOptions { sessions: 8, context: Some(1 << 15), kv_type: Some(KvType::F16), ..options() };
    let budget = plan(&gguf, &options(), None).unwrap().total_bytes;
    let refused = shortage(&gguf, &given, budget);
    let Settings { context, sessions, kv_type, .. } = refused.fits.unwrap();
    assert!(context > LEAST_CONTEXT && context < 1 << 15);
    let advised = PlanOptions { context: Some(context), sessions, kv_type: Some(kv_type), ..given.clone() };
    let advised = PlanOptions { prefix_cache_bytes: Some(0), ..advised };
    assert!(plan(&gguf, &advised, Some(budget)).is_ok());
    let longer = PlanOptions { context: Some(context + PAGE_TOKENS), ..advised };
    assert!(plan(&gguf, &longer, Some(budget)).is_err());
    let text = EngineError::DoesNotFit(Box::new(refused)).to_string();
    assert!(text.contains(&format!("{sessions} sessions of {context} tokens")), "{text}");
}

#[test]
fn a_budget_below_the_weights_names_both() {
    let gguf = open(&model());
    let weights = gguf.file_bytes();
    let refused = shortage(&gguf, &options(), weights / 2);
    assert_eq!((refused.weights, refused.limit.bytes, refused.fits), (weights, weights / 2, None));
    assert!(plan(&gguf, &options(), Some(refused.least)).is_ok());
    assert!(plan(&gguf, &options(), Some(refused.least - 1)).is_err());
    let text = refused.to_string();
    for part in [weights, weights / 2, refused.needed, refused.least].map(units::megabytes) {
        assert!(text.contains(&part), "{part}: {text}");
    }
}

#[test]
fn a_share_is_of_what_there_is() {
    let gguf = open(&model());
    let options = PlanOptions { budget: Some(MemoryBudget::Share(0.5)), ..options() };
    let limits = SystemMemory { machine: Some(1 << 34), ..SystemMemory::default() };
    let half =
        |limits: &SystemMemory| MemoryPlan::within(&gguf, &options, limits).unwrap().limit.unwrap().bytes;
    assert_eq!(half(&limits), 1 << 33);
    let path = "/sys/fs/cgroup/memory.max".into();
    let cgroup = Limit { bytes: 1 << 32, source: LimitSource::Cgroup { path } };
    assert_eq!(half(&SystemMemory { cgroup: Some(cgroup.clone()), ..limits }), 1 << 31);

    let unknown = MemoryPlan::within(&gguf, &options, &SystemMemory::default());
    assert!(matches!(unknown, Err(EngineError::InvalidParameter { name: "budget", .. })), "{unknown:?}");

    // A cgroup that leaves less than the budget is what is told.
    let tight = Limit { bytes: 1 << 20, ..cgroup };
    let refused =
        MemoryPlan::within(&gguf, &options, &SystemMemory { cgroup: Some(tight), ..SystemMemory::default() });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("the memory budget of 0.5 MB"), "{text}");
    let refused = MemoryPlan::within(
        &gguf,
        &PlanOptions { budget: None, ..options },
        &SystemMemory {
            cgroup: Some(Limit {
                bytes: 5 << 20,
                source: LimitSource::Cgroup { path: "/x/memory.max".into() },
            }),
            ..limits
        },
    );
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("the cgroup's limit of 5.2 MB (/x/memory.max)"), "{text}");
}

#[test]
fn options_out_of_range() {
    let gguf = open(&model());
    let cases = [
        ("context", PlanOptions { context: Some(0), ..options() }),
        ("context", PlanOptions { context: Some((1 << 15) + 1), ..options() }),
        ("context", PlanOptions { context: Some(usize::MAX), ..options() }),
        ("sessions", PlanOptions { sessions: 0, ..options() }),
        ("sessions", PlanOptions { sessions: 1_000_000, ..options() }),
        ("threads", PlanOptions { threads: Some(0), ..options() }),
        ("threads", PlanOptions { threads: Some(usize::MAX), ..options() }),
        ("prefill_chunk", PlanOptions { prefill_chunk: 0, ..options() }),
        ("prefill_chunk", PlanOptions { prefill_chunk: usize::MAX, ..options() }),
        ("max_batch", PlanOptions { max_batch: 0, ..options() }),
        ("max_batch", PlanOptions { max_batch: 1000, ..options() }),
    ];
    for (expected, options) in cases {
        let error = plan(&gguf, &options, None).unwrap_err();
        let named = matches!(&error, EngineError::InvalidParameter { name, .. } if *name == expected);
        assert!(named, "{expected}: {error}");
    }
}

#[test]
fn sizes_that_can_not_be_counted_do_not_fit() {
    let gguf = open(&TinyModel { context: 1 << 26, ..model() });
    let options = PlanOptions { context: Some(1 << 26), sessions: MAX_SESSIONS, ..options() };
    // 8 KiB a token, 2^26 tokens, 2^12 sessions.
    let refused = shortage(&gguf, &options, 1 << 40);
    assert!(refused.needed > 1 << 50, "{refused:?}");
    let cache = PlanOptions { prefix_cache_bytes: Some(u64::MAX), ..options.clone() };
    assert_eq!(shortage(&gguf, &cache, u64::MAX).limit.bytes, u64::MAX);
    let error = plan(&gguf, &cache, None).unwrap_err();
    assert!(matches!(error, EngineError::Model(ModelError::TooLarge { .. })), "{error}");
}

#[test]
fn the_greatest_that_fits() {
    for most in 0..20 {
        for high in most..20 {
            assert_eq!(greatest(0, high, |n| n <= most), Some(most));
        }
    }
    assert_eq!(greatest(5, 9, |n| n < 5), None);
    assert_eq!(greatest(5, 5, |_| true), Some(5));
    assert_eq!(greatest(0, u64::MAX, |n| n <= u64::MAX / 3), Some(u64::MAX / 3));
}
