//! Quantising a model when it is loaded.

use std::sync::Arc;

use moli_convert::{InMemory, Mixture, Watch};
use moli_format::{Gguf, ReadMode};
use moli_kernels::{Pool, default_threads};

use crate::{EngineError, EngineOptions, MemoryPlan};

/// The model with its weights in a mixture, in memory, and the options for what it is now. Nothing is quantised that would
/// not fit.
pub(crate) fn model(
    gguf: &Gguf,
    mixture: Mixture,
    options: &EngineOptions,
) -> Result<(Gguf, EngineOptions), EngineError> {
    // Mapped or read, it is memory of the process now.
    let options = EngineOptions { quantize: None, read_mode: ReadMode::Read, ..options.clone() };
    let quantised = InMemory::new(gguf, mixture)?;
    MemoryPlan::of(&quantised.outline()?, &options.plan())?;
    let pool = Pool::new(options.threads.unwrap_or_else(default_threads));
    let watch: Arc<Watch> = Arc::new(|_| true);
    Ok((quantised.make(&Arc::new(pool), &watch)?, options))
}

#[cfg(test)]
mod tests {
    use moli_format::TensorType;
    use moli_testkit::TinyModel;

    use super::*;
    use crate::{CancelToken, Engine, GenerateParams, MemoryBudget};

    fn options() -> EngineOptions {
        EngineOptions { threads: Some(2), context: Some(64), ..EngineOptions::default() }
    }

    fn opened() -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let (matrix, embedding) = (TensorType::F32, TensorType::F32);
        TinyModel { matrix, embedding, ..TinyModel::new("llama") }.write(&path).unwrap();
        Gguf::open(&path, ReadMode::Read).unwrap()
    }

    #[test]
    fn what_is_loaded_is_what_a_file_would_hold() {
        let gguf = opened();
        let (made, _) = model(&gguf, Mixture::Q8_0, &options()).unwrap();
        let head = gguf.tensor("token_embd.weight").unwrap();
        let mut expected = Vec::new();
        let mut values = vec![0.0; head.elements()];
        moli_kernels::dequantize(head.ttype, &head.data, &mut values).unwrap();
        moli_kernels::quantize(TensorType::Q8_0, &values, &mut expected).unwrap();
        assert_eq!(made.tensor("token_embd.weight").unwrap().data.as_slice(), expected);
        assert_eq!(made.metadata(), gguf.metadata());
    }

    #[test]
    fn an_engine_counts_and_computes_the_quantised_weights() {
        let gguf = opened();
        let quantised = EngineOptions { quantize: Some(Mixture::Q4KM), ..options() };
        let engine = Engine::from_gguf(&gguf, &quantised).unwrap();
        let weights = |engine: &Engine| {
            let rows = &engine.plan().unwrap().rows;
            rows.iter()
                .filter(|row| ["weights", "embeddings"].contains(&row.name))
                .map(|row| row.bytes)
                .sum::<u64>()
        };
        let (made, _) = model(&gguf, Mixture::Q4KM, &options()).unwrap();
        assert_eq!(weights(&engine), made.file_bytes());
        let params = GenerateParams { max_tokens: Some(4), ignore_eos: true, ..GenerateParams::default() };
        let mut session = engine.session();
        for chunk in session.generate(&[1, 2, 3], &params, &CancelToken::new()).unwrap() {
            chunk.unwrap();
        }
    }

    #[test]
    fn what_would_not_fit_is_refused_before_it_is_quantised() {
        let gguf = opened();
        let memory_budget = Some(MemoryBudget::Bytes(1 << 16));
        let options = EngineOptions { quantize: Some(Mixture::Q4KM), memory_budget, ..options() };
        let refused = Engine::from_gguf(&gguf, &options).unwrap_err();
        assert!(matches!(refused, EngineError::DoesNotFit(_)), "{refused}");
    }

    #[test]
    fn two_bits_without_importance_are_refused() {
        let refused = model(&opened(), Mixture::Q2KS, &options()).unwrap_err();
        assert!(matches!(refused, EngineError::Quantize(_)), "{refused}");
    }
}
