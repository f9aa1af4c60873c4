//! What can be wrong with a Hugging Face folder, beyond what can be wrong with its files.

use std::path::PathBuf;

use crate::error::Shown;

/// A folder that is not a model, or not one that can be read right.
///
/// Names and values that come from its files are printed escaped and shortened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HuggingFaceError {
    /// The folder has no `config.json`.
    #[error("{}: a folder is a model if there is a config.json in it, and there is none", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// A JSON file that is longer than any of its kind.
    #[error("{}: {bytes} bytes, and at most {limit} are read", path.display())]
    JsonTooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The most bytes.
        limit: u64,
    },
    /// A file that is not the JSON it should be, or nests too deep.
    #[error("{}: not valid JSON: {reason}", path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// What is wrong and where, in the parser's words.
        reason: String,
    },
    /// A text file that is not UTF-8.
    #[error("{}: not valid UTF-8", path.display())]
    InvalidText {
        /// The file.
        path: PathBuf,
    },
    /// An architecture that no `model_type` is known for.
    #[error(
        "{} has no form as a Hugging Face folder here: this build knows {supported}",
        Shown(architecture)
    )]
    NoModelType {
        /// What the file says.
        architecture: String,
        /// Those that are known, with commas.
        supported: String,
    },
    /// A tensor that has no name in the folders of this model's type.
    #[error("{} has no name in a Hugging Face folder of this kind of model", Shown(tensor))]
    NoName {
        /// Its name in GGUF.
        tensor: String,
    },
    /// A value that no field of `config.json` can say.
    #[error("{} is {}, which no field of config.json says", Shown(key), Shown(value))]
    NoField {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// `model_type` names an architecture that is not known.
    #[error("model_type {} is not supported: this build knows {supported}", Shown(model_type))]
    UnknownModelType {
        /// What the file says.
        model_type: String,
        /// Those that are known, with commas.
        supported: String,
    },
    /// A field that was required is absent.
    #[error("config.json: {} is missing", Shown(field))]
    MissingField {
        /// The field, with those around it: `rope_scaling.factor`.
        field: String,
    },
    /// A field of another type than its reader wants, or out of its range.
    #[error("config.json: {} is {}, not {expected}", Shown(field), Shown(value))]
    WrongField {
        /// The field, with those around it.
        field: String,
        /// What was wanted: "a positive integer".
        expected: &'static str,
        /// What the file has, as JSON.
        value: String,
    },
    /// A field asks for what is not computed.
    #[error("config.json: {} is {}, which is not supported", Shown(field), Shown(value))]
    Unsupported {
        /// The field, with those around it.
        field: String,
        /// What the file has, as JSON.
        value: String,
    },
    /// A folder of sentence-transformers asks for a step that is not computed.
    #[error("{file}: {} is {}, which is not supported", Shown(field), Shown(value))]
    UnsupportedEmbedding {
        /// The file, in the model's folder.
        file: &'static str,
        /// The field.
        field: String,
        /// What the file has, as JSON.
        value: String,
    },
    /// The weights are quantised in a way that is not read.
    #[error(
        "the weights are quantised by {}, which is not supported: use the original or a GGUF",
        Shown(method)
    )]
    Quantized {
        /// `quantization_config.quant_method`.
        method: String,
    },
    /// There are no weights as safetensors.
    #[error("{}: no model.safetensors and no model.safetensors.index.json", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of weights that the index names is not there.
    #[error("{}: the index names this file, and it is missing", path.display())]
    MissingShard {
        /// Where it should be.
        path: PathBuf,
    },
    /// The index names a file that is not in the folder.
    #[error("the index names {}, which is not the name of a file in the folder", Shown(name))]
    OutsideFolder {
        /// What the index says.
        name: String,
    },
    /// A tensor that the index lists is not in its file.
    #[error("tensor {} should be in {}, and is not", Shown(tensor), Shown(shard))]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The file's name in the index.
        shard: String,
    },
    /// A tensor that is in two files.
    #[error("tensor {} is in {} and in {}", Shown(tensor), first.display(), second.display())]
    InTwoShards {
        /// The tensor.
        tensor: String,
        /// The first file.
        first: PathBuf,
        /// The second file.
        second: PathBuf,
    },
    /// Biases that the configuration says there are, or are not.
    #[error("config.json: {field} is {value}, and tensor {} is {}", Shown(tensor), if *value { "missing" } else { "there" })]
    Biases {
        /// The field.
        field: &'static str,
        /// What it says.
        value: bool,
        /// A bias that is missing, or there.
        tensor: String,
    },
    /// A tensor that the model must have is absent.
    #[error("tensor {} is missing", Shown(tensor))]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor whose name means nothing in this architecture.
    #[error("tensor {} is not known in a model of type {}", Shown(tensor), Shown(model_type))]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The model's type.
        model_type: String,
    },
    /// A tensor whose elements are of a type that is not read.
    #[error("tensor {} is of type {dtype}: weights must be BF16, F16 or F32", Shown(tensor))]
    ElementType {
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        dtype: String,
    },
    /// Packed weights whose integers are of another type than theirs.
    #[error("tensor {} is of type {dtype}: packed weights are I32", Shown(tensor))]
    PackedType {
        /// The tensor.
        tensor: String,
        /// Its type in the file.
        dtype: String,
    },
    /// Packed weights that say of an input that it is in a group that there isn't.
    #[error("tensor {}: input {input} is in group {group}, and there are {groups}", Shown(tensor))]
    PackedGroup {
        /// The tensor.
        tensor: String,
        /// The input.
        input: usize,
        /// Its group.
        group: i64,
        /// How many groups there are, by the size that the configuration gives them.
        groups: usize,
    },
    /// A matrix that is there packed, and also as it is.
    #[error("tensor {} is there twice: packed, and as it is", Shown(tensor))]
    PackedTwice {
        /// The tensor.
        tensor: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor {}: the shape is {actual:?} and should be {expected:?}", Shown(tensor))]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that the configuration implies, the contiguous dimension last.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
}
