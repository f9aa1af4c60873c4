//! A loaded model behind one object-safe trait, whatever computes it.

use moli_format::{Adapter, Gguf};
use moli_kernels::Isa;

use crate::cpu::CpuBackend;
use crate::decoder::Decoder;
use crate::{ActivationSquares, Adapted, Classifier, Config, KvType, ModelError};

/// Most rows of logits that one forward pass returns: 64 rows of a vocabulary of 262,144 are 64 MiB.
pub const MAX_OUTPUTS: usize = 64;

/// The rows of one forward pass. All slices but `types`, `tables`, `adapters`, `recurrent`, `outputs` and
/// `states` have one element per row.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of each token in its sequence.
    pub positions: &'a [u32],
    /// Index into `tables` of each token's sequence.
    pub sequences: &'a [u32],
    /// The kind of each token, of a model that has [several](Config::token_types); empty: all are of the first.
    pub types: &'a [u32],
    /// KV pages of the sequences, in order of position: those of the batch's positions, and all before them that attention
    /// looks at.
    pub tables: &'a [&'a [u32]],
    /// The adapters of the sequences, a list for each of the `tables`; empty: nobody has one. Their order is of no matter.
    pub adapters: &'a [&'a [Adapted]],
    /// The recurrent states of the sequences, one for each of the `tables`, of a model that has [some](Runtime::state_bytes); empty:
    /// sequence `i` has its state in slot `i`. The rows of such a sequence are consecutive, in the batch and in their positions,
    /// and begin where its state ends.
    pub recurrent: &'a [StateSlots],
    /// Rows whose logits are wanted, at most [`MAX_OUTPUTS`]; none of an encoder.
    pub outputs: &'a [u32],
    /// Rows whose hidden state after the last norm is wanted: what an embedding is made of. At most as many as there are rows.
    pub states: &'a [u32],
}

/// Where the recurrent state of a sequence is, of a model whose layers carry one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateSlots {
    /// The slot with the state before the first of its rows in a batch; `None`: that row is the first of the sequence.
    pub from: Option<u32>,
    /// The slot for the state after the last of its rows: the same, or one that no other sequence of the batch uses. A batch that
    /// fails leaves nothing of use in it, and all others as they were.
    pub to: u32,
}

/// What a forward pass gives, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Computed<'a> {
    /// Of the batch's `outputs`: `[outputs, vocab]`.
    pub logits: &'a [f32],
    /// Of the batch's `states`: `[states, hidden]`.
    pub states: &'a [f32],
}

/// A loaded model: weights, KV pages and scratch.
///
/// Keys and values of positions below a row's own must have been computed before, in this batch or an earlier one. The texts of
/// an encoder ([`Config::causal`] is false) are whole in one batch, each from its first token on.
pub trait Runtime: Send {
    /// The model's hyperparameters.
    fn config(&self) -> &Config;

    /// What computes, in words: `cpu, avx2, 2 threads`.
    fn description(&self) -> String;

    /// Most rows of one [`Batch`].
    fn max_rows(&self) -> usize;

    /// KV pages of [`PAGE_TOKENS`](crate::PAGE_TOKENS) tokens, preallocated. Which of them belong to whom is the caller's
    /// matter: see [`PagePool`](crate::PagePool).
    fn pages(&self) -> usize;

    /// Bytes of a page's keys and values, in all layers.
    fn page_bytes(&self) -> usize;

    /// What is in a page's bytes and in which order, by name: `cpu f16 v1`. Where it and the model are the same, pages can be
    /// [read](Self::read_page) here and [written](Self::write_page) there.
    fn page_layout(&self) -> String;

    /// Copies a page's keys and values to another page.
    ///
    /// # Errors
    /// [`ModelError::Page`] for a page that does not exist.
    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), ModelError>;

    /// Appends a page's keys and values to `out`, [`page_bytes`](Self::page_bytes) of them: for the same model and
    /// [`page_layout`](Self::page_layout) to write them back.
    ///
    /// # Errors
    /// [`ModelError::Page`] for a page that does not exist.
    fn read_page(&mut self, page: u32, out: &mut Vec<u8>) -> Result<(), ModelError>;

    /// Puts keys and values that [`read_page`](Self::read_page) gave into a page.
    ///
    /// # Errors
    /// [`ModelError::Page`] for a page that does not exist, [`ModelError::PageBytes`] for another number of bytes.
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), ModelError>;

    /// Bytes of the state that recurrent layers carry of a sequence; 0: the model has none.
    fn state_bytes(&self) -> usize {
        0
    }

    /// Slots for such states. There is one when a model is loaded.
    fn states(&self) -> usize {
        0
    }

    /// Makes room for so many states, and forgets those that there are.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`].
    fn reserve_states(&mut self, states: usize) -> Result<(), ModelError> {
        let _ = states;
        Ok(())
    }

    /// Appends a state to `out`, [`state_bytes`](Self::state_bytes) of them: for the same model to write them back.
    ///
    /// # Errors
    /// [`ModelError::State`] for a slot that does not exist.
    fn read_state(&mut self, state: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let _ = out;
        Err(ModelError::State { state, states: self.states() })
    }

    /// Puts a state that [`read_state`](Self::read_state) gave, after so many tokens, into a slot.
    ///
    /// # Errors
    /// [`ModelError::State`] for a slot that does not exist, [`ModelError::StateBytes`] for another number of bytes.
    fn write_state(&mut self, state: u32, tokens: u32, bytes: &[u8]) -> Result<(), ModelError> {
        let _ = (tokens, bytes);
        Err(ModelError::State { state, states: self.states() })
    }

    /// The head that sorts texts, where the model has one.
    fn classifier(&self) -> Option<&Classifier> {
        None
    }

    /// Computes the batch.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the batch contradicts itself or the model, [`ModelError::NotFinite`] when a logit is not
    /// a number, [`ModelError::StateNotFinite`] when an element of a hidden state is not, and whatever the backend reports.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Computed<'_>, ModelError>;
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// Moli's own kernels.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number. Needs the `cuda` feature.
    Cuda(usize),
    /// candle on its CPU device: slow, and the oracle of the parity tests. Needs the `candle` feature.
    Candle,
}

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Threads of the CPU backend, the caller's own included.
    pub threads: usize,
    /// Instruction set of the CPU backend; `None`: the best that this processor has.
    pub isa: Option<Isa>,
    /// Tokens to preallocate KV pages for.
    pub context: usize,
    /// Most rows of one batch: the largest chunk of a prompt.
    pub max_rows: usize,
    /// How keys and values are kept. The candle backend has f16 only.
    pub kv_type: KvType,
}

/// Loads a model.
///
/// # Errors
/// Whatever is wrong with the file, each error naming the key or the tensor.
pub fn load(
    gguf: &Gguf,
    backend: BackendKind,
    options: &LoadOptions,
) -> Result<Box<dyn Runtime>, ModelError> {
    load_adapted(gguf, &[], backend, options)
}

/// Loads a model with adapters that were opened for it. A sequence goes through those that its batch names, by their
/// places in this list.
///
/// # Errors
/// As [`load`]; [`ModelError::UnusedAdapter`] for what can't be adapted.
pub fn load_adapted(
    gguf: &Gguf,
    adapters: &[Adapter],
    backend: BackendKind,
    options: &LoadOptions,
) -> Result<Box<dyn Runtime>, ModelError> {
    match backend {
        BackendKind::Cpu => {
            let isa = options.isa.unwrap_or_else(Isa::detect);
            Ok(Box::new(Decoder::load(gguf, adapters, CpuBackend::new(isa, options.threads)?, options)?))
        }
        #[cfg(feature = "cuda")]
        BackendKind::Cuda(index) => {
            let backend = crate::cuda::CudaBackend::new(index)?;
            Ok(Box::new(Decoder::load(gguf, adapters, backend, options)?))
        }
        #[cfg(not(feature = "cuda"))]
        BackendKind::Cuda(_) => Err(ModelError::BackendNotBuilt { backend: "cuda", feature: "cuda" }),
        #[cfg(feature = "candle")]
        BackendKind::Candle => {
            let backend = crate::candle::CandleBackend::new(candle_core::Device::Cpu);
            Ok(Box::new(Decoder::load(gguf, adapters, backend, options)?))
        }
        #[cfg(not(feature = "candle"))]
        BackendKind::Candle => Err(ModelError::BackendNotBuilt { backend: "candle", feature: "candle" }),
    }
}

/// Loads a model on the CPU and has what its weights are multiplied with added up.
///
/// # Errors
/// As for [`load`].
pub fn load_observed(
    gguf: &Gguf,
    options: &LoadOptions,
    squares: &ActivationSquares,
) -> Result<Box<dyn Runtime>, ModelError> {
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let backend = CpuBackend::new(isa, options.threads)?.observed(squares);
    Ok(Box::new(Decoder::load(gguf, &[], backend, options)?))
}
