//! What can be wrong with an adapter, beyond what can be wrong with its files.

use std::path::PathBuf;

use crate::error::Shown;

/// A file or folder that is not an adapter, is one that can't be computed, or is one for another model.
///
/// Names and values that come from its files are printed escaped and shortened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A GGUF file that holds something else.
    #[error("`general.type` is {}, not \"adapter\": the file is no adapter", Shown(found))]
    NotAnAdapter {
        /// What the file says that it is; "model" where it says nothing.
        found: String,
    },
    /// A folder without weights in safetensors.
    #[error("{}: there is no adapter_model.safetensors beside adapter_config.json", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// An adapter of another kind than LoRA.
    #[error("`{field}` is {}, and only LoRA adapters are supported", Shown(value))]
    Kind {
        /// The field or key that names the kind.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A field asks for what is not computed.
    #[error("adapter: `{}` is {}, which is not supported", Shown(field), Shown(value))]
    Unsupported {
        /// The field or key.
        field: String,
        /// Its value.
        value: String,
    },
    /// A field of another type than is wanted, out of its range or absent.
    #[error("adapter: `{}` is {}, not {expected}", Shown(field), Shown(value))]
    WrongField {
        /// The field or key.
        field: String,
        /// What was wanted: "a positive integer".
        expected: &'static str,
        /// What there is; "absent" where there is none.
        value: String,
    },
    /// The adapter is for another architecture.
    #[error("the adapter is for the architecture {}, and the model is {}", Shown(adapter), Shown(base))]
    Architecture {
        /// That of the adapter.
        adapter: String,
        /// That of the base model.
        base: String,
    },
    /// There are no tensors in it.
    #[error("the adapter has no tensors")]
    Empty,
    /// A tensor that is neither half of a product.
    #[error("adapter tensor {}: its name means nothing for a LoRA adapter of this model", Shown(tensor))]
    UnknownTensor {
        /// Its name.
        tensor: String,
    },
    /// One half of a product without the other.
    #[error("adapter tensor {} is there without {}", Shown(tensor), Shown(missing))]
    Unpaired {
        /// The one that is there.
        tensor: String,
        /// The one that is not.
        missing: String,
    },
    /// A tensor of another rank than its partner, or than the adapter's configuration says.
    #[error("adapter tensor {} has the rank {actual}, and should have {expected}", Shown(tensor))]
    Rank {
        /// The tensor.
        tensor: String,
        /// The rank that its partner or the configuration has.
        expected: u64,
        /// Its own.
        actual: u64,
    },
    /// The model has no such tensor: the adapter is for another one.
    #[error("adapter tensor {} is for {}, which the model does not have", Shown(tensor), Shown(name))]
    NoTensor {
        /// The adapter's tensor.
        tensor: String,
        /// The model's.
        name: String,
    },
    /// The model has the tensor, and it is not one that adapters are computed for.
    #[error("adapter tensor {} is for {}, which can't be adapted", Shown(tensor), Shown(name))]
    NotAdaptable {
        /// The adapter's tensor.
        tensor: String,
        /// The model's.
        name: String,
    },
    /// The shape does not fit the model's matrix: the adapter is for another one.
    #[error(
        "adapter tensor {} has the shape {actual:?}, and should have {expected:?} for this model",
        Shown(tensor)
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that fits, contiguous dimension first.
        expected: Vec<u64>,
        /// Its own.
        actual: Vec<u64>,
    },
    /// A tensor that is not stored as floats.
    #[error("adapter tensor {} is of type {found}, and adapters are f32, f16 or bf16", Shown(tensor))]
    ElementType {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
    },
    /// A weight that is no finite number.
    #[error("adapter tensor {} holds {value} at element {index}", Shown(tensor))]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
}
