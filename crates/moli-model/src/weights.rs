//! The tensors of a model, each checked against the shape that the configuration implies.
//!
//! Names are those of the GGUF convention (`blk.N.attn_q.weight` …). A tensor in the file that nothing here takes is an
//! error: leaving it out would change the model in silence.

use std::collections::HashSet;

use moli_format::{Gguf, Tensor, TensorType};

use crate::{Backend, Config, ModelError};

/// A matrix `[outputs, inputs]` and, where the model has one, a bias of `[outputs]`.
pub struct Linear<B: Backend + ?Sized> {
    /// The matrix.
    pub weight: B::Matrix,
    /// The bias.
    pub bias: Option<B::Vector>,
}

/// One transformer block.
pub struct Layer<B: Backend> {
    /// Gain of the norm before attention.
    pub attn_norm: B::Vector,
    /// Queries, `[heads * head_dim, hidden]`.
    pub q: Linear<B>,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k: Linear<B>,
    /// Values, `[kv_heads * head_dim, hidden]`.
    pub v: Linear<B>,
    /// Gain of the norm of each query head, `[head_dim]`.
    pub q_norm: Option<B::Vector>,
    /// Gain of the norm of each key head, `[head_dim]`.
    pub k_norm: Option<B::Vector>,
    /// Output of attention, `[hidden, heads * head_dim]`.
    pub o: Linear<B>,
    /// Gain of the norm after attention.
    pub post_attn_norm: Option<B::Vector>,
    /// Gain of the norm before the feed-forward network.
    pub ffn_norm: B::Vector,
    /// The gate, `[ffn, hidden]`.
    pub gate: Linear<B>,
    /// What is gated, `[ffn, hidden]`.
    pub up: Linear<B>,
    /// Back to the residual stream, `[hidden, ffn]`.
    pub down: Linear<B>,
    /// Gain of the norm after the feed-forward network.
    pub post_ffn_norm: Option<B::Vector>,
}

/// All tensors of a model.
pub struct Weights<B: Backend> {
    /// Embeddings, `[vocab, hidden]`.
    pub token_embd: B::Matrix,
    /// The blocks, in order.
    pub layers: Vec<Layer<B>>,
    /// Gain of the last norm.
    pub output_norm: B::Vector,
    /// Logits, `[vocab, hidden]`; the embeddings again in models that tie them.
    pub output: Linear<B>,
    /// Divisors of the rotary frequencies, `[rope.dims / 2]` (Llama 3.1's long context).
    pub rope_factors: Option<Vec<f32>>,
}

impl<B: Backend> Weights<B> {
    /// Takes the tensors from a file.
    ///
    /// # Errors
    /// Names the tensor that is missing, of another shape or type, not finite, or of no use to the decoder.
    pub fn load(gguf: &Gguf, config: &Config, backend: &B) -> Result<Self, ModelError> {
        let mut loader = Loader { gguf, backend, used: HashSet::new() };
        let (hidden, ffn, vocab) = (config.hidden, config.ffn, config.vocab);
        let (q_rows, kv_rows) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);

        // Grown as the tensors are found: a file that claims a thousand layers reserves nothing for them.
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let name = |suffix: &str| format!("blk.{i}.{suffix}");
            let norm = |loader: &mut Loader<'_, B>, wanted: bool, suffix: &str, len: usize| {
                wanted.then(|| loader.vector(&name(suffix), len)).transpose()
            };
            let qkv_bias = if config.qkv_bias { Bias::Required } else { Bias::Optional };
            layers.push(Layer {
                attn_norm: loader.vector(&name("attn_norm.weight"), hidden)?,
                q: loader.linear(&name("attn_q"), q_rows, hidden, qkv_bias)?,
                k: loader.linear(&name("attn_k"), kv_rows, hidden, qkv_bias)?,
                v: loader.linear(&name("attn_v"), kv_rows, hidden, qkv_bias)?,
                q_norm: norm(&mut loader, config.qk_norm, "attn_q_norm.weight", config.head_dim)?,
                k_norm: norm(&mut loader, config.qk_norm, "attn_k_norm.weight", config.head_dim)?,
                o: loader.linear(&name("attn_output"), hidden, q_rows, Bias::Optional)?,
                post_attn_norm: norm(&mut loader, config.post_norm, "post_attention_norm.weight", hidden)?,
                ffn_norm: loader.vector(&name("ffn_norm.weight"), hidden)?,
                gate: loader.linear(&name("ffn_gate"), ffn, hidden, Bias::Optional)?,
                up: loader.linear(&name("ffn_up"), ffn, hidden, Bias::Optional)?,
                down: loader.linear(&name("ffn_down"), hidden, ffn, Bias::Optional)?,
                post_ffn_norm: norm(&mut loader, config.post_norm, "post_ffw_norm.weight", hidden)?,
            });
        }

        let token_embd = loader.matrix("token_embd.weight", vocab, hidden)?;
        let output_norm = loader.vector("output_norm.weight", hidden)?;
        let output = if gguf.tensor("output.weight").is_some() {
            loader.linear("output", vocab, hidden, Bias::Optional)?
        } else {
            Linear { weight: token_embd.clone(), bias: None }
        };
        let rope_factors = loader.rope_factors(config)?;
        loader.all_used(config)?;
        Ok(Self { token_embd, layers, output_norm, output, rope_factors })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Bias {
    Required,
    Optional,
}

struct Loader<'a, B: Backend> {
    gguf: &'a Gguf,
    backend: &'a B,
    used: HashSet<String>,
}

impl<B: Backend> Loader<'_, B> {
    /// The tensor of that name, if its shape is the expected one (contiguous dimension first).
    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<&Tensor, ModelError> {
        let tensor =
            self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        // Writers may leave trailing dimensions of 1 in place.
        let significant =
            tensor.dims.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1).max(expected.len());
        if tensor.dims.get(..significant) != Some(expected.as_slice()) {
            return Err(ModelError::TensorShape {
                name: name.to_owned(),
                expected,
                actual: tensor.dims.clone(),
            });
        }
        self.used.insert(name.to_owned());
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix, ModelError> {
        let backend = self.backend;
        backend.matrix(self.tensor(name, &[cols, rows])?)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, ModelError> {
        let values = self.floats(name, len)?;
        self.backend.vector(values)
    }

    /// A vector on the host: a float type, every element finite.
    fn floats(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, &[len])?;
        if !matches!(tensor.ttype, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(ModelError::TensorType { name: name.to_owned(), found: tensor.ttype.name() });
        }
        let mut values = vec![0.0; len];
        moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => {
                Err(ModelError::WeightNotFinite { name: name.to_owned(), index, value: values[index] })
            }
            None => Ok(values),
        }
    }

    fn linear(&mut self, stem: &str, rows: usize, cols: usize, bias: Bias) -> Result<Linear<B>, ModelError> {
        let weight = self.matrix(&format!("{stem}.weight"), rows, cols)?;
        let name = format!("{stem}.bias");
        let present = bias == Bias::Required || self.gguf.tensor(&name).is_some();
        Ok(Linear { weight, bias: present.then(|| self.vector(&name, rows)).transpose()? })
    }

    /// `rope_freqs.weight`: what Llama 3.1's rotary scaling divides each frequency by.
    fn rope_factors(&mut self, config: &Config) -> Result<Option<Vec<f32>>, ModelError> {
        let name = "rope_freqs.weight";
        if self.gguf.tensor(name).is_none() {
            return Ok(None);
        }
        let factors = self.floats(name, config.rope.dims / 2)?;
        match factors.iter().position(|&factor| factor <= 0.0) {
            Some(index) => Err(ModelError::OutOfRange {
                key: format!("{name}[{index}]"),
                value: factors[index].to_string(),
                allowed: "above 0".to_owned(),
            }),
            None => Ok(Some(factors)),
        }
    }

    fn all_used(&self, config: &Config) -> Result<(), ModelError> {
        let unused = self.gguf.tensors().find(|tensor| {
            // Inverse frequencies that converters of 2023 stored; they say nothing that the metadata doesn't.
            !self.used.contains(&tensor.name) && !tensor.name.contains(".attn_rot_embd")
        });
        match unused {
            Some(tensor) => Err(ModelError::UnusedTensor {
                name: tensor.name.clone(),
                architecture: config.architecture.clone(),
            }),
            None => Ok(()),
        }
    }
}
