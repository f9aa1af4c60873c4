//! One arithmetic: the same bits whatever the threads, the chunking of the prompt or the instruction set.

use moli_engine::{Engine, EngineOptions};
use moli_kernels::Isa;

use crate::golden::Golden;
use crate::{Outcome, load};

/// Logits of the last positions of a text long enough for every chunk size, as bits.
fn bits(engine: &Engine, golden: &str) -> Result<Vec<u32>, String> {
    let golden = Golden::parse(golden)?;
    let text: String = golden.greedy.iter().map(|case| case.prompt.as_str()).collect::<Vec<_>>().join("\n");
    let ids = engine.encode(&text.repeat(1 + 2400 / text.len())).map_err(|error| error.to_string())?;
    let ids = ids.get(..530).ok_or_else(|| format!("only {} tokens", ids.len()))?;
    let positions = [0, 1, 31, 32, 511, 512, ids.len() - 1];
    let rows = engine.session().score(ids, &positions).map_err(|error| error.to_string())?;
    Ok(rows.iter().flatten().map(|logit| logit.to_bits()).collect())
}

fn compare(model: &str, golden: &str, variants: &[(String, EngineOptions)]) -> Outcome {
    let reference = bits(&load(model, &EngineOptions::default())?, golden)?;
    for (name, options) in variants {
        let found = bits(&load(model, options)?, golden)?;
        let differing = reference.iter().zip(&found).filter(|(a, b)| a != b).count();
        if differing > 0 || reference.len() != found.len() {
            return Err(format!("{name}: {differing} of {} logits differ", reference.len()));
        }
    }
    Ok(())
}

/// 1, 2 and 3 threads, and the prompt in chunks of 1, 7, 32 and 512.
pub(crate) fn threads_and_chunks(model: &str, golden: &str) -> Outcome {
    let threads = [1, 2, 3].map(|threads| {
        (format!("{threads} threads"), EngineOptions { threads: Some(threads), ..EngineOptions::default() })
    });
    let chunks = [1, 7, 32, 512].map(|chunk| {
        (format!("chunks of {chunk}"), EngineOptions { prefill_chunk: chunk, ..EngineOptions::default() })
    });
    compare(model, golden, &[threads.as_slice(), chunks.as_slice()].concat())
}

/// Every instruction set that this processor has, the scalar form included.
pub(crate) fn instruction_sets(model: &str, golden: &str) -> Outcome {
    let variants: Vec<_> = Isa::available()
        .into_iter()
        .map(|isa| (isa.name().to_owned(), EngineOptions { isa: Some(isa), ..EngineOptions::default() }))
        .collect();
    compare(model, golden, &variants)
}
