//! Folders are quantised as the GGUF files that they would be.
//!
//! The folders are those of `tests/fixtures/architectures`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use moli_convert::{Mixture, Options, Output, Quantization, QuantizeOptions, Watch, to_gguf};
use moli_format::{Gguf, ReadMode, TensorType};
use moli_kernels::Pool;

#[test]
fn a_folder_is_quantised_as_its_gguf_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let (pool, watch): (_, Arc<Watch>) = (Arc::new(Pool::new(1)), Arc::new(|_| true));
    // Heads in another order, and experts one by one.
    for name in ["llama", "mixtral", "qwen2"] {
        let temporary = tempfile::tempdir().unwrap();
        let path = |name: &str| temporary.path().join(name);
        let folder = Gguf::open(&root.join(name), ReadMode::Map).unwrap();
        let whole = Output::new(&path("whole.gguf"), &[], false).unwrap();
        to_gguf(&folder, &whole, &Options::default(), Arc::clone(&watch)).unwrap();
        let whole = Gguf::open(whole.path(), ReadMode::Map).unwrap();
        let options = QuantizeOptions { mixture: Mixture::Q4_0, keep: Vec::new(), imatrix: None };
        let quantised = |model: &Gguf, name: &str| {
            let output = Output::new(&path(name), &[], false).unwrap();
            Quantization::new(model, &options).unwrap().write(&output, &pool, &watch).unwrap();
            Gguf::open(output.path(), ReadMode::Map).unwrap()
        };
        let (once, twice) = (quantised(&folder, "once.gguf"), quantised(&whole, "twice.gguf"));
        assert!(once.tensors().eq(twice.tensors()), "{name}");
        // Their rows of 40 are no whole blocks of anything else.
        let wanted = once.tensors().filter(|tensor| tensor.ttype == TensorType::F16);
        assert!(wanted.count() > 10, "{name}");
        assert_eq!(once.metadata().u32("general.file_type").unwrap(), 2);
        let keys = |model: &Gguf| model.metadata().iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&once).len(), keys(&twice).len(), "{name}");
    }
}
