//! One arithmetic: on tiny models of every architecture and format, a row's logits are the same bits however the prompt was
//! cut, whatever else is in the batch, and on any number of threads and instruction set.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;

use moli_format::{Gguf, ReadMode, TensorType};
use moli_kernels::{Isa, QUANTIZABLE};
use moli_model::{BackendKind, Batch, KvType, LoadOptions, Runtime, StateSlots, load, pages_of};
use moli_testkit::TinyModel;

/// Longer than two pages and than the tiny Gemma's window.
const TOKENS: usize = 70;
/// The sequences of one batch.
const SEQUENCES: usize = 16;

fn runtime(model: &TinyModel, threads: usize, isa: Isa, kv_type: KvType) -> Box<dyn Runtime> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path).unwrap();
    let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
    let options = LoadOptions { threads, isa: Some(isa), context: 2048, max_rows: 128, kv_type };
    let mut runtime = load(&gguf, BackendKind::Cpu, &options).unwrap();
    runtime.reserve_states(SEQUENCES).unwrap();
    runtime
}

fn ids(seed: u32) -> Vec<u32> {
    (0..TOKENS as u32).map(|i| (i * 89 + seed * 31 + i * i * 7) % 256).collect()
}

fn architectures_and_kv_types() -> impl Iterator<Item = (&'static str, KvType)> {
    TinyModel::ARCHITECTURES
        .into_iter()
        .flat_map(|architecture| KvType::ALL.map(|kv_type| (architecture, kv_type)))
}

/// Bits of the last row's logits, the prompt read in chunks.
fn last_logits(runtime: &mut dyn Runtime, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let pages: Vec<u32> = (0..pages_of(tokens.len()) as u32).rev().collect();
    let mut bits = Vec::new();
    for (i, tokens) in tokens.chunks(chunk).enumerate() {
        let first = i * chunk;
        let positions: Vec<u32> = (first..first + tokens.len()).map(|position| position as u32).collect();
        let batch = Batch {
            tokens,
            positions: &positions,
            sequences: &vec![0; tokens.len()],
            types: &[],
            tables: &[&pages],
            adapters: &[],
            recurrent: &[],
            outputs: &[tokens.len() as u32 - 1],
            states: &[],
        };
        bits = runtime.forward(&batch).unwrap().logits.iter().map(|logit| logit.to_bits()).collect();
    }
    bits
}

#[test]
fn chunks_threads_and_instruction_sets() {
    // What a format does depends on no architecture: each has some of them, and each of them has some architectures.
    const EVERY: usize = 7;
    for (number, (architecture, kv_type)) in architectures_and_kv_types().enumerate() {
        for format in QUANTIZABLE.into_iter().skip(number % EVERY).step_by(EVERY) {
            let what = format!("{architecture} {format:?} {kv_type}");
            let model = TinyModel { matrix: format, ..TinyModel::new(architecture) };
            let runtime = |threads, isa| runtime(&model, threads, isa, kv_type);
            let tokens = ids(1);
            let best = Isa::detect();
            let expected = last_logits(runtime(1, best).as_mut(), &tokens, TOKENS);
            assert!(expected.iter().any(|bits| f32::from_bits(*bits) != 0.0));
            for chunk in [1, 7, 32] {
                let found = last_logits(runtime(2, best).as_mut(), &tokens, chunk);
                assert_eq!(found, expected, "{what} in chunks of {chunk}");
            }
            for threads in [3, 4] {
                let found = last_logits(runtime(threads, best).as_mut(), &tokens, TOKENS);
                assert_eq!(found, expected, "{what} on {threads} threads");
            }
            for isa in Isa::available() {
                let found = last_logits(runtime(2, isa).as_mut(), &tokens, 16);
                assert_eq!(found, expected, "{what} with {}", isa.name());
            }
        }
    }
}

#[test]
fn sequences_in_one_batch_do_not_see_each_other() {
    for (architecture, kv_type) in architectures_and_kv_types() {
        let model = TinyModel::new(architecture);
        let mut runtime = runtime(&model, 2, Isa::detect(), kv_type);
        let prompts: Vec<Vec<u32>> = (0..SEQUENCES as u32).map(ids).collect();
        let alone: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| last_logits(runtime.as_mut(), prompt, TOKENS)).collect();

        // Token by token, one row per sequence.
        let each = pages_of(TOKENS) as u32;
        let tables: [Vec<u32>; SEQUENCES] = std::array::from_fn(|sequence| {
            (0..each).map(|page| page * SEQUENCES as u32 + sequence as u32).collect()
        });
        let mut together = Vec::new();
        let rows = std::array::from_fn::<u32, SEQUENCES, _>(|row| row as u32);
        for position in 0..TOKENS {
            let tokens: Vec<u32> = prompts.iter().map(|prompt| prompt[position]).collect();
            let batch = Batch {
                tokens: &tokens,
                positions: &[position as u32; SEQUENCES],
                sequences: &rows,
                types: &[],
                tables: &tables.each_ref().map(Vec::as_slice),
                adapters: &[],
                recurrent: &[],
                outputs: &rows,
                states: &[],
            };
            together = runtime.forward(&batch).unwrap().logits.iter().map(|logit| logit.to_bits()).collect();
        }
        assert_eq!(together, alone.concat(), "{architecture} {kv_type}");
    }
}

#[test]
fn pages_that_were_copied_or_written_back_give_the_same_bits() {
    let attention = |architecture: &&str| !TinyModel::RECURRENT.contains(architecture);
    for (architecture, kv_type) in architectures_and_kv_types().filter(|(name, _)| attention(name)) {
        let model = TinyModel::new(architecture);
        let mut runtime = runtime(&model, 2, Isa::detect(), kv_type);
        let tokens = ids(3);
        let expected = last_logits(runtime.as_mut(), &tokens, TOKENS);
        // The last token again, on other pages; those in between have held something else.
        let original: Vec<u32> = (0..pages_of(TOKENS) as u32).rev().collect();
        let copies: Vec<u32> = original.iter().map(|page| page + 10).collect();
        let restored: Vec<u32> = original.iter().map(|page| page + 20).collect();
        for ((&from, &to), &back) in original.iter().zip(&copies).zip(&restored) {
            runtime.copy_page(from, to).unwrap();
            let mut bytes = Vec::new();
            runtime.read_page(from, &mut bytes).unwrap();
            assert_eq!(bytes.len(), runtime.page_bytes());
            let config = runtime.config();
            assert_eq!(bytes.len() as u64, config.page_bytes(kv_type));
            assert!(bytes.iter().any(|&byte| byte != 0));
            runtime.write_page(back, &bytes).unwrap();
        }
        last_logits(runtime.as_mut(), &ids(4), TOKENS);
        for pages in [copies, restored] {
            let last = TOKENS - 1;
            let batch = Batch {
                tokens: &tokens[last..],
                positions: &[last as u32],
                sequences: &[0],
                types: &[],
                tables: &[&pages],
                adapters: &[],
                recurrent: &[],
                outputs: &[0],
                states: &[],
            };
            let found: Vec<u32> =
                runtime.forward(&batch).unwrap().logits.iter().map(|logit| logit.to_bits()).collect();
            assert_eq!(found, expected, "{architecture} {kv_type}");
        }
    }
}

/// Layers that carry a state go on from one that was kept beside, or written back, as if nothing had happened in between.
#[test]
fn states_that_were_kept_or_written_back_give_the_same_bits() {
    for architecture in TinyModel::RECURRENT {
        let model = TinyModel::new(architecture);
        let mut runtime = runtime(&model, 2, Isa::detect(), KvType::F16);
        let (tokens, pages) = (ids(6), [9, 2, 5]);
        // Of rows that share their pages, which get the same keys and values again.
        let compute = |runtime: &mut dyn Runtime, range: Range<usize>, slots: &[StateSlots]| {
            let count = slots.len();
            let rows = |sequence: usize| range.clone().map(move |position| (sequence, position));
            let all: Vec<(usize, usize)> = (0..count).flat_map(rows).collect();
            let batch = Batch {
                tokens: &all.iter().map(|&(_, position)| tokens[position]).collect::<Vec<_>>(),
                positions: &all.iter().map(|&(_, position)| position as u32).collect::<Vec<_>>(),
                sequences: &all.iter().map(|&(sequence, _)| sequence as u32).collect::<Vec<_>>(),
                types: &[],
                tables: &vec![&pages[..]; count],
                adapters: &[],
                recurrent: slots,
                outputs: &[all.len() as u32 - 1],
                states: &[],
            };
            let logits = runtime.forward(&batch).map(|computed| computed.logits.to_vec());
            logits.map(|logits| logits.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
        };
        let slots = |from: Option<u32>, to: u32| [StateSlots { from, to }];
        let expected = compute(runtime.as_mut(), 0..70, &slots(None, 0)).unwrap();
        compute(runtime.as_mut(), 0..41, &slots(None, 1)).unwrap();
        // One state read by two, and written to others.
        let both = [slots(Some(1), 2)[0], slots(Some(1), 3)[0]];
        assert_eq!(compute(runtime.as_mut(), 41..70, &both).unwrap(), expected, "{architecture}");
        let mut bytes = Vec::new();
        runtime.read_state(1, &mut bytes).unwrap();
        assert_eq!(
            (bytes.len(), bytes.len() as u64),
            (runtime.state_bytes(), runtime.config().state_bytes())
        );
        assert!(bytes.iter().any(|&byte| byte != 0));
        compute(runtime.as_mut(), 0..5, &slots(None, 1)).unwrap();
        runtime.write_state(7, 41, &bytes).unwrap();
        assert_eq!(
            compute(runtime.as_mut(), 41..70, &slots(Some(7), 7)).unwrap(),
            expected,
            "{architecture}"
        );
    }
}

/// Bits of all rows' hidden states, the text read in chunks of two sequences that are both it.
fn states(runtime: &mut dyn Runtime, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let pages: Vec<u32> = (0..2 * pages_of(tokens.len()) as u32).collect();
    let tables = pages.split_at(pages_of(tokens.len()));
    let mut bits = Vec::new();
    for (i, tokens) in tokens.chunks(chunk).enumerate() {
        let rows = tokens.len() as u32;
        let positions: Vec<u32> = (0..rows).map(|row| (i * chunk) as u32 + row).collect();
        let batch = Batch {
            tokens: &[tokens, tokens].concat(),
            positions: &[positions.as_slice(), positions.as_slice()].concat(),
            sequences: &[vec![1; tokens.len()], vec![0; tokens.len()]].concat(),
            types: &[],
            tables: &[tables.0, tables.1],
            // Logits of others beside them.
            adapters: &[],
            recurrent: &[],
            outputs: &[0],
            states: &(rows..2 * rows).collect::<Vec<_>>(),
        };
        let computed = runtime.forward(&batch).unwrap();
        assert_eq!(computed.logits.len(), 259);
        bits.extend(computed.states.iter().map(|element| element.to_bits()));
    }
    bits
}

#[test]
fn hidden_states_are_the_same_bits_too() {
    for architecture in TinyModel::ARCHITECTURES {
        let model = TinyModel::new(architecture);
        let tokens = &ids(1)[..64];
        let of =
            |threads, isa, chunk| states(runtime(&model, threads, isa, KvType::F16).as_mut(), tokens, chunk);
        let expected = of(1, Isa::detect(), 64);
        assert_eq!(expected.len(), 64 * model.hidden);
        for chunk in [1, 7, 32] {
            assert_eq!(of(2, Isa::detect(), chunk), expected, "{architecture} in chunks of {chunk}");
        }
        for isa in Isa::available() {
            assert_eq!(of(3, isa, 16), expected, "{architecture} with {}", isa.name());
        }
    }
}

/// Root mean square of the logits' difference, relative to that of the logits. A step of q8_0 is its block's greatest element
/// / 127, some 2 to 2.5 deviations: the rounding, 0.29 steps in the mean, is half a per cent of an element. Keys and values
/// have it in each of two layers; what follows carries it on, and it stays below this.
const Q8_0_BOUND: f64 = 0.03;

#[test]
fn q8_0_keys_and_values_are_near_f16() {
    for architecture in TinyModel::ARCHITECTURES {
        // Whole blocks, and a last one that is shorter.
        for head_dim in [64, 80] {
            // Floats, since activations of 8 bits would be rounded otherwise where the keys and values are.
            let model = TinyModel { head_dim, matrix: TensorType::F32, ..TinyModel::new(architecture) };
            let [f16, q8_0, _] = KvType::ALL.map(|kv_type| {
                let bits = last_logits(&mut *runtime(&model, 1, Isa::detect(), kv_type), &ids(5), 16);
                bits.into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect::<Vec<f64>>()
            });
            let difference: f64 = f16.iter().zip(&q8_0).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f64 = f16.iter().map(|x| x.powi(2)).sum();
            let relative = (difference / size).sqrt();
            assert!(relative > 0.0 && relative < Q8_0_BOUND, "{architecture} {head_dim}: {relative}");
        }
    }
}

#[test]
fn a_window_forgets_and_global_attention_does_not() {
    // Every layer has a window of 24: after two layers a row sees at most 47 positions back.
    let reach = 2 * (24 - 1);
    for (architecture, forgets) in [("gemma3", true), ("qwen3", false)] {
        let model = TinyModel { layers: 2, ..TinyModel::new(architecture) };
        let mut file = model.file().unwrap();
        if forgets {
            file.meta("gemma3.attention.sliding_window_pattern", 1000u32);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        file.write(&path).unwrap();
        let gguf = Gguf::open(&path, ReadMode::Read).unwrap();
        let options =
            LoadOptions { threads: 1, isa: None, context: 512, max_rows: 128, kv_type: KvType::F16 };
        let mut runtime = load(&gguf, BackendKind::Cpu, &options).unwrap();
        let mut tokens = ids(1);
        let before = last_logits(runtime.as_mut(), &tokens, TOKENS);
        tokens[TOKENS - 2 - reach] ^= 1;
        let same = last_logits(runtime.as_mut(), &tokens, TOKENS) == before;
        assert_eq!(same, forgets, "{architecture}: a token beyond the window");
        tokens[TOKENS - 1 - reach] ^= 1;
        assert_ne!(last_logits(runtime.as_mut(), &tokens, TOKENS), before, "{architecture}: one inside it");
    }
}
