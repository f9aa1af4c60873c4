//! What can go wrong between a model file and its logits.

use moli_format::FormatError;
use moli_kernels::KernelError;

use crate::KvType;

/// An error of loading or computing a model. Each variant names the thing and both values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file's metadata has no such key, a value of another type, or the file itself is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The architecture is not one that the decoder describes.
    #[error("architecture `{found}` is not supported; supported: {supported}")]
    UnsupportedArchitecture {
        /// `general.architecture` of the file.
        found: String,
        /// The names that are supported, separated by commas.
        supported: String,
    },
    /// The architecture is known, but the file asks for a feature of it that is not computed.
    #[error("`{key}` = {value} is not supported")]
    UnsupportedFeature {
        /// The metadata key.
        key: String,
        /// Its value in the file.
        value: String,
    },
    /// A hyperparameter that no model can have.
    #[error("`{key}` is {value}, but must be {allowed}")]
    OutOfRange {
        /// The metadata key.
        key: String,
        /// Its value in the file.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A tensor that the configuration implies is not in the file.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// The tensor's name.
        name: String,
    },
    /// A tensor in the file that the decoder would leave out of the computation.
    #[error("tensor `{name}` is in the file, but the `{architecture}` decoder has no use for it")]
    UnusedTensor {
        /// The tensor's name.
        name: String,
        /// The file's architecture.
        architecture: String,
    },
    /// An adapter is for a tensor that nothing is multiplied with.
    #[error("adapter tensor `{tensor}` is for `{name}`, which can't be adapted")]
    UnusedAdapter {
        /// The adapter's tensor.
        tensor: String,
        /// The model's.
        name: String,
    },
    /// An adapter's scale that is negative or no finite number.
    #[error("the scale of adapter {adapter} is {scale}, but must be finite and at least 0")]
    AdapterScale {
        /// The adapter's number.
        adapter: u32,
        /// Its scale.
        scale: f32,
    },
    /// A tensor's shape differs from what the configuration implies.
    #[error("tensor `{name}` has the shape {actual:?}, but the configuration implies {expected:?}")]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// Implied shape, contiguous dimension first.
        expected: Vec<u64>,
        /// Shape in the file, contiguous dimension first.
        actual: Vec<u64>,
    },
    /// A tensor's type is not one that can be computed with.
    #[error("tensor `{name}` is of type {found}, which is not supported")]
    TensorType {
        /// The tensor's name.
        name: String,
        /// The type's name.
        found: &'static str,
    },
    /// The activation is one of a gated network, and the network has no gate.
    #[error("the activation needs a gate, and the feed-forward network has none")]
    NoGate,
    /// A weight that has to be finite is not.
    #[error("tensor `{name}` holds {value} at element {index}")]
    WeightNotFinite {
        /// The tensor's name.
        name: String,
        /// The first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The logits are not numbers: the weights or their scales are damaged.
    #[error("the logit of token {token} is {value}: the model's weights are damaged")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// A hidden state is not numbers: the weights or their scales are damaged.
    #[error("element {element} of a hidden state is {value}: the model's weights are damaged")]
    StateNotFinite {
        /// The first such element.
        element: usize,
        /// Its value.
        value: f32,
    },
    /// More keys and values than the preallocated pages hold.
    #[error("the KV cache has {free} free pages of {page_tokens} tokens, but {needed} are needed")]
    OutOfPages {
        /// Pages asked for.
        needed: usize,
        /// Pages left.
        free: usize,
        /// Tokens in a page.
        page_tokens: usize,
    },
    /// A page that the KV cache does not have.
    #[error("there is no KV page {page}: the cache has {pages}")]
    Page {
        /// The page.
        page: u32,
        /// Pages in all.
        pages: usize,
    },
    /// Keys and values that do not fill a page.
    #[error("a KV page has {expected} bytes, not {actual}")]
    PageBytes {
        /// Bytes of a page.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A slot for recurrent states that there is not.
    #[error("there is no state {state}: there are {states}")]
    State {
        /// The slot.
        state: u32,
        /// Slots in all.
        states: usize,
    },
    /// Numbers that are no recurrent state of this model.
    #[error("a recurrent state has {expected} bytes, not {actual}")]
    StateBytes {
        /// Bytes of a state.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// An operation of an architecture that a backend does not compute.
    #[error("the backend `{backend}` does not compute {operation}")]
    UnsupportedOperation {
        /// What computes, in words.
        backend: String,
        /// What it would have to.
        operation: &'static str,
    },
    /// A name that is none of a type of keys and values.
    #[error("there is no KV type `{name}`: it is f16, q8_0 or f32")]
    UnknownKvType {
        /// The name.
        name: String,
    },
    /// A name that is none of a device.
    #[error("there is no device `{name}`: it is cpu, auto or cuda:N, where cuda:0 is the first GPU")]
    UnknownDevice {
        /// The name.
        name: String,
    },
    /// A type of keys and values that the backend does not compute with.
    #[error("the {backend} backend has no keys and values of the type {kv_type}, only {supported}")]
    UnsupportedKvType {
        /// The backend's name.
        backend: &'static str,
        /// The type that was asked for.
        kv_type: KvType,
        /// The type that it has.
        supported: KvType,
    },
    /// The batch contradicts itself or the model.
    #[error("bad batch: {what} is {actual}, but must be {allowed}")]
    Batch {
        /// The field.
        what: &'static str,
        /// Its value.
        actual: usize,
        /// What it may be.
        allowed: String,
    },
    /// A buffer's size overflows or cannot be had.
    #[error("{what} would need {bytes} bytes")]
    TooLarge {
        /// What was to be allocated.
        what: &'static str,
        /// The size; `u128::MAX` where even that overflows.
        bytes: u128,
    },
    /// The backend is not part of this build.
    #[error("the {backend} backend is not part of this build: rebuild with the `{feature}` feature")]
    BackendNotBuilt {
        /// The backend's name.
        backend: &'static str,
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// The GPU can't be used, or an operation on it failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] moli_cuda::CudaError),
    /// The accelerator library reported an error.
    #[error("{operation}: {message}")]
    Accelerator {
        /// What was being done.
        operation: &'static str,
        /// The library's own words.
        message: String,
    },
}
