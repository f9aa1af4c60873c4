//! The dimensions of a model, and the tensors that follow from them.

use std::path::Path;

use moli_format::{FormatError, HuggingFaceConfig, Metadata, Tensor};

use crate::SyntheticError;
use crate::tokenizer::{LEAST_VOCAB, LLAMA3, QWEN2, SMOLLM, Tokenizer};

/// Most layers, experts, heads and elements of a head; widest rows; largest vocabulary. All are far beyond any model.
const MAX_COUNT: u64 = 1 << 10;
const MAX_WIDTH: u64 = 1 << 20;

macro_rules! published {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../shapes/", $name, ".json")))),*]
    };
}

/// What of the published models' `config.json` decides about their shape.
const CONFIGS: [(&str, &str); 10] = published![
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-7b",
    "llama3.2-1b",
    "llama3.2-3b",
    "llama3-8b",
    "qwen3-4b",
    "qwen3-30b-a3b",
    "smollm2-135m"
];

/// The shapes that there are by name.
pub const SHAPES: [&str; CONFIGS.len()] = {
    let mut names = [""; CONFIGS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = CONFIGS[i].0;
        i += 1;
    }
    names
};

/// An architecture: where it differs from the plainest.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// `general.architecture`.
    architecture: &'static str,
    /// Whether queries, keys and values have biases.
    biases: bool,
    qk_norm: QkNorm,
    /// Whether attention and the feed-forward network read the residual stream through a norm.
    pre_norm: bool,
    /// Whether what they give goes through a norm.
    post_norm: bool,
    /// Whether queries, keys and values are one matrix, and gate and up another.
    fused: bool,
    tokenizer: Tokenizer,
}

/// What the norm of queries and keys goes over.
#[derive(Debug, Clone, Copy, PartialEq)]
enum QkNorm {
    None,
    Head,
    Row,
}

const PLAIN: Layout = Layout {
    architecture: "",
    biases: false,
    qk_norm: QkNorm::None,
    pre_norm: true,
    post_norm: false,
    fused: false,
    tokenizer: LLAMA3,
};

/// Those whose tensors are made.
const LAYOUTS: [Layout; 15] = [
    Layout { architecture: "llama", ..PLAIN },
    Layout { architecture: "qwen2", biases: true, tokenizer: QWEN2, ..PLAIN },
    Layout { architecture: "qwen3", qk_norm: QkNorm::Head, tokenizer: QWEN2, ..PLAIN },
    Layout { architecture: "qwen3moe", qk_norm: QkNorm::Head, tokenizer: QWEN2, ..PLAIN },
    Layout { architecture: "gemma", ..PLAIN },
    Layout { architecture: "gemma2", post_norm: true, ..PLAIN },
    Layout { architecture: "gemma3", post_norm: true, qk_norm: QkNorm::Head, ..PLAIN },
    Layout { architecture: "phi3", fused: true, ..PLAIN },
    Layout { architecture: "smollm3", ..PLAIN },
    Layout { architecture: "granite", ..PLAIN },
    Layout { architecture: "granitemoe", ..PLAIN },
    Layout { architecture: "olmo2", pre_norm: false, post_norm: true, qk_norm: QkNorm::Row, ..PLAIN },
    Layout { architecture: "internlm2", ..PLAIN },
    Layout { architecture: "minicpm", ..PLAIN },
    Layout { architecture: "exaone4", pre_norm: false, post_norm: true, qk_norm: QkNorm::Head, ..PLAIN },
];

/// A model's dimensions and what its file says beside them.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// As it was asked for.
    pub(crate) name: String,
    /// The keys of the architecture.
    pub(crate) metadata: Metadata,
    /// Factors on the rotary wavelengths, where the model has some.
    pub(crate) factors: Vec<Tensor>,
    /// Whether the embeddings are the output head too.
    pub(crate) tied: bool,
    pub(crate) tokenizer: Tokenizer,
    layout: &'static Layout,
    pub(crate) layers: u64,
    /// Width of the residual stream.
    hidden: u64,
    /// Width of the queries of all heads.
    q: u64,
    /// Width of the keys of all heads.
    kv: u64,
    head_dim: u64,
    /// Width inside the feed-forward network.
    ffn: u64,
    pub(crate) vocab: u64,
    /// Experts of a layer; 0: there are none.
    pub(crate) experts: u64,
    /// Width inside an expert.
    expert_ffn: u64,
    /// Each so manyth layer has experts.
    expert_step: u64,
}

/// A tensor that the model has.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// What is in a tensor.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Random weights; the contiguous dimension first.
    Matrix(Vec<u64>),
    /// So many floats around a mean.
    Vector { mean: f32, len: u64 },
}

impl Shape {
    /// A published shape by its name, or that of the `config.json` at a path.
    pub(crate) fn named(name: &str) -> Result<Self, SyntheticError> {
        if let Some((_, config)) = CONFIGS.iter().find(|(known, _)| *known == name) {
            let mut shape = Self::of(name, HuggingFaceConfig::parse(config)?)?;
            if name.starts_with("smollm") {
                shape.tokenizer = SMOLLM;
            }
            return Ok(shape);
        }
        let path = Path::new(name);
        if path.is_dir() {
            return Self::of(name, HuggingFaceConfig::open(&path.join("config.json"))?);
        }
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json")) {
            return Self::of(name, HuggingFaceConfig::open(path)?);
        }
        Err(SyntheticError::UnknownShape { shape: name.to_owned(), known: SHAPES.join(", ") })
    }

    pub(crate) fn of(name: &str, config: HuggingFaceConfig) -> Result<Self, SyntheticError> {
        let HuggingFaceConfig { metadata, tensors, tied } = config;
        let architecture = metadata.architecture()?;
        let known = || LAYOUTS.map(|layout| layout.architecture).join(", ");
        let layout = LAYOUTS.iter().find(|layout| layout.architecture == architecture).ok_or_else(|| {
            SyntheticError::UnknownArchitecture { architecture: architecture.to_owned(), known: known() }
        })?;
        let number = |suffix: &str, absent: Option<u64>, least: u64, most: u64| {
            let key = format!("{architecture}.{suffix}");
            let value = match (metadata.u64_opt(&key)?, absent) {
                (Some(value), _) | (None, Some(value)) => value,
                (None, None) => return Err(FormatError::MissingKey { key }.into()),
            };
            if (least..=most).contains(&value) {
                Ok(value)
            } else {
                Err(SyntheticError::OutOfRange { key, value, least, most })
            }
        };
        let heads = number("attention.head_count", None, 1, MAX_COUNT)?;
        let kv_heads = number("attention.head_count_kv", Some(heads), 1, MAX_COUNT)?;
        let head_dim = number("attention.key_length", None, 1, MAX_COUNT)?;
        let ffn = number("feed_forward_length", None, 1, MAX_WIDTH)?;
        Ok(Self {
            name: name.to_owned(),
            factors: tensors,
            // Where the fields contradict each other, the larger model.
            tied: tied.unwrap_or(false),
            tokenizer: layout.tokenizer,
            layout,
            layers: number("block_count", None, 1, MAX_COUNT)?,
            hidden: number("embedding_length", None, 1, MAX_WIDTH)?,
            q: heads * head_dim,
            kv: kv_heads * head_dim,
            head_dim,
            ffn,
            vocab: number("vocab_size", None, LEAST_VOCAB, MAX_WIDTH)?,
            experts: number("expert_count", Some(0), 0, MAX_COUNT)?,
            expert_ffn: number("expert_feed_forward_length", Some(ffn), 1, MAX_WIDTH)?,
            expert_step: number("interleave_moe_layer_step", Some(1), 1, MAX_COUNT)?,
            metadata,
        })
    }

    /// All tensors, in the order in which a converter writes them.
    pub(crate) fn tensors(&self) -> Vec<Planned> {
        let mut tensors = Tensors { all: Vec::new(), prefix: String::new() };
        tensors.matrix("token_embd", &[self.hidden, self.vocab]);
        for layer in 0..self.layers {
            tensors.prefix = format!("blk.{layer}.");
            self.attention(&mut tensors);
            self.feed_forward(layer, &mut tensors);
        }
        tensors.prefix.clear();
        tensors.gain("output_norm", self.hidden);
        if !self.tied {
            tensors.matrix("output", &[self.hidden, self.vocab]);
        }
        tensors.all
    }

    fn attention(&self, tensors: &mut Tensors) {
        let Self { layout, hidden, q, kv, head_dim, .. } = *self;
        if layout.pre_norm {
            tensors.gain("attn_norm", hidden);
        }
        if layout.fused {
            tensors.matrix("attn_qkv", &[hidden, q + 2 * kv]);
        } else {
            for (name, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                tensors.matrix(name, &[hidden, rows]);
                if layout.biases {
                    tensors.vector(format!("{name}.bias"), 0.0, rows);
                }
            }
        }
        let normed = match layout.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some([head_dim; 2]),
            QkNorm::Row => Some([q, kv]),
        };
        for (name, len) in ["attn_q_norm", "attn_k_norm"].into_iter().zip(normed.into_iter().flatten()) {
            tensors.gain(name, len);
        }
        tensors.matrix("attn_output", &[q, hidden]);
        if layout.post_norm {
            tensors.gain("post_attention_norm", hidden);
        }
    }

    fn feed_forward(&self, layer: u64, tensors: &mut Tensors) {
        let Self { layout, hidden, ffn, experts, expert_ffn, .. } = *self;
        if layout.pre_norm {
            tensors.gain("ffn_norm", hidden);
        }
        if experts > 0 && (layer + 1).is_multiple_of(self.expert_step) {
            tensors.matrix("ffn_gate_inp", &[hidden, experts]);
            tensors.matrix("ffn_gate_exps", &[hidden, expert_ffn, experts]);
            tensors.matrix("ffn_up_exps", &[hidden, expert_ffn, experts]);
            tensors.matrix("ffn_down_exps", &[expert_ffn, hidden, experts]);
        } else {
            if layout.fused {
                tensors.matrix("ffn_up", &[hidden, 2 * ffn]);
            } else {
                tensors.matrix("ffn_gate", &[hidden, ffn]);
                tensors.matrix("ffn_up", &[hidden, ffn]);
            }
            tensors.matrix("ffn_down", &[ffn, hidden]);
        }
        if layout.post_norm {
            tensors.gain("post_ffw_norm", hidden);
        }
    }
}

/// Tensors in the making, with the names of one layer before them.
struct Tensors {
    all: Vec<Planned>,
    prefix: String,
}

impl Tensors {
    fn add(&mut self, name: &str, kind: Kind) {
        self.all.push(Planned { name: format!("{}{name}", self.prefix), kind });
    }

    fn matrix(&mut self, stem: &str, dims: &[u64]) {
        self.add(&format!("{stem}.weight"), Kind::Matrix(dims.to_vec()));
    }

    fn vector(&mut self, name: String, mean: f32, len: u64) {
        self.add(&name, Kind::Vector { mean, len });
    }

    fn gain(&mut self, stem: &str, len: u64) {
        self.vector(format!("{stem}.weight"), 1.0, len);
    }
}
