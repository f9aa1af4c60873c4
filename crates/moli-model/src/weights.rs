//! The tensors of a model, each checked against the shape that the configuration implies.
//!
//! Names are those of the GGUF convention (`blk.N.attn_q.weight` …). A tensor in the file that nothing here takes is an
//! error: leaving it out would change the model in silence.

mod altup;
mod latent;
mod recurrent;

use std::collections::HashSet;
use std::ops::Range;

use moli_format::{Adapter, Gguf, Tensor, TensorType};

use crate::adapter::LowRank;
use crate::classifier::{Dense, MAX_LABELS};
use crate::{Backend, Classifier, Config, Experts, ModelError, Parallel, QkNorm, RecurrentKind};

pub use altup::{LayerStreams, Streams};
pub use latent::LatentAttention;
pub use recurrent::{DeltaNet, ShortConv};

/// A matrix `[outputs, inputs]` and, where the model has one, a bias of `[outputs]`.
pub struct Linear<B: Backend + ?Sized> {
    /// The matrix.
    pub weight: B::Matrix,
    /// The bias, divided by `scale`.
    pub bias: Option<B::Vector>,
    /// Factor on what both give: NVFP4 has one for the whole matrix beside those of its blocks.
    pub scale: Option<f32>,
    /// What each adapter adds, by its number; empty where the model has none.
    pub adapters: Vec<Option<Box<LowRank<B>>>>,
}

/// A norm of rows.
pub enum Norm<V> {
    /// RMS norm (arXiv:1910.07467).
    Rms {
        /// What the normed row is multiplied by.
        gain: V,
    },
    /// LayerNorm (arXiv:1607.06450).
    Layer {
        /// What the normed row is multiplied by.
        gain: V,
        /// What is added then.
        bias: Option<V>,
    },
}

/// One transformer block.
pub struct Layer<B: Backend> {
    /// Before attention.
    pub attn_norm: Option<Norm<B::Vector>>,
    /// What each token learns of those before it.
    pub mixer: Mixer<B>,
    /// A score of each head for a key without a value, `[heads]`.
    pub sinks: Option<B::Vector>,
    /// Back to the residual stream, `[hidden, width of what was learnt]`.
    pub o: Linear<B>,
    /// Whether the feed-forward network reads the residual stream as attention found it.
    pub parallel: bool,
    /// After attention.
    pub post_attn_norm: Option<Norm<B::Vector>>,
    /// Before the feed-forward network; `None` in a parallel layer: it reads what attention read.
    pub ffn_norm: Option<Norm<B::Vector>>,
    /// The feed-forward network.
    pub ffn: FeedForward<B>,
    /// After the feed-forward network.
    pub post_ffn_norm: Option<Norm<B::Vector>>,
    /// What it has for streams beside each other.
    pub streams: Option<Box<LayerStreams<B>>>,
    /// What it makes of its own vector of a token.
    pub input: Option<LayerInput<B>>,
    /// Factor on the residual stream behind it.
    pub scale: Option<f32>,
}

/// What a layer makes of its own vector of a token: `norm(up · (activation(gate · x) * vector))`.
pub struct LayerInput<B: Backend> {
    /// Gates, `[layer_inputs, hidden]`.
    pub gate: Linear<B>,
    /// Back to the residual stream, `[hidden, layer_inputs]`.
    pub up: Linear<B>,
    /// Behind it.
    pub norm: Norm<B::Vector>,
}

/// The vectors that layers have for tokens: a row of the table and what the embedding gives, `(row + norm(projection · x)) / √2`.
pub struct LayerInputs<B: Backend> {
    /// Of all layers, one behind the other, `[tokens, layers * layer_inputs]`.
    pub table: B::Matrix,
    /// Tokens in the table; others have the first one's row.
    pub tokens: usize,
    /// Of the embedding, `[layers * layer_inputs, hidden]`.
    pub projection: Linear<B>,
    /// Gain of the norm of what that gives each layer, `[layer_inputs]`.
    pub gain: B::Vector,
}

/// Attention, by where queries, keys and values come from; or what carries a state instead.
pub enum Mixer<B: Backend> {
    /// A matrix for each.
    Heads {
        /// Queries, `[heads * head_dim, hidden]`; twice as many rows where each has a gate, which is behind it.
        q: Linear<B>,
        /// Gain of the norm of queries: of each head, or of all together.
        q_norm: Option<B::Vector>,
        /// Keys and values; `None`: those of a layer before it.
        kv: Option<KeyValue<B>>,
    },
    /// A latent vector for keys and values; see [`Latent`](crate::Latent).
    Latent(Box<LatentAttention<B>>),
    /// A short convolution between two gates.
    ShortConv(Box<ShortConv<B>>),
    /// A gated delta rule.
    DeltaNet(Box<DeltaNet<B>>),
}

/// Where keys and values come from.
pub struct KeyValue<B: Backend> {
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k: Linear<B>,
    /// Values, `[kv_heads * head_dim, hidden]`; `None`: what the keys are made of.
    pub v: Option<Linear<B>>,
    /// Gain of the norm of keys: of each head, or of all together.
    pub k_norm: Option<B::Vector>,
    /// Gain of the norm of the values of each head.
    pub v_norm: Option<B::Vector>,
}

/// What each token goes through by itself.
pub enum FeedForward<B: Backend> {
    /// One network.
    Dense(Mlp<B>),
    /// A few of many.
    Experts(Box<Mixture<B>>),
    /// One network, and beside it a few of many.
    Both(Box<Both<B>>),
}

/// A network, and experts beside it: `norm(dense) + norm(mixture)`.
pub struct Both<B: Backend> {
    /// The network.
    pub dense: Mlp<B>,
    /// Behind it.
    pub dense_norm: Norm<B::Vector>,
    /// The experts.
    pub mixture: Mixture<B>,
    /// Before the router.
    pub router_norm: Norm<B::Vector>,
    /// Before the experts.
    pub mixture_norm: Norm<B::Vector>,
    /// Behind them.
    pub mixed_norm: Norm<B::Vector>,
}

/// `down · (activation(gate · x) * (up · x))`, or without a gate `down · activation(up · x)`.
pub struct Mlp<B: Backend> {
    /// The gate, `[ffn, hidden]`.
    pub gate: Option<Linear<B>>,
    /// What is gated, `[ffn, hidden]`.
    pub up: Linear<B>,
    /// Back to the residual stream, `[hidden, ffn]`.
    pub down: Linear<B>,
    /// How many standard deviations above the mean of all a gate has to be to count.
    pub cutoff: Option<f32>,
}

/// Experts and what chooses among them.
pub struct Mixture<B: Backend> {
    /// A logit for each expert, `[experts, hidden]`.
    pub router: Linear<B>,
    /// What is added to the experts' scores for the choice alone, `[experts]`.
    pub choice_bias: Option<Vec<f32>>,
    /// The experts.
    pub experts: Vec<Mlp<B>>,
    /// The one that every token goes through.
    pub shared: Option<Mlp<B>>,
    /// A weight for the shared one, `[1, hidden]`, through a sigmoid.
    pub shared_gate: Option<Linear<B>>,
}

/// All tensors of a model.
pub struct Weights<B: Backend> {
    /// Embeddings, `[vocab, hidden]`.
    pub token_embd: B::Matrix,
    /// What is added at each position, `[positions, hidden]`.
    pub position_embd: Option<B::Matrix>,
    /// What is added for each kind of token, `[kinds, hidden]`.
    pub token_types: Option<B::Matrix>,
    /// The norm of the embeddings.
    pub embedding_norm: Option<Norm<B::Vector>>,
    /// The vectors that each layer has for a token.
    pub layer_inputs: Option<LayerInputs<B>>,
    /// The ways to streams beside each other, and back.
    pub streams: Option<Streams<B>>,
    /// The blocks, in order.
    pub layers: Vec<Layer<B>>,
    /// The last norm.
    pub output_norm: Option<Norm<B::Vector>>,
    /// Logits, `[vocab, hidden]`; the embeddings again in models that tie them, and in encoders, which have no logits.
    pub output: Linear<B>,
    /// Factors on the rotary wavelengths, `[rope.dims / 2]` (Llama 3.1; LongRoPE, arXiv:2402.13753).
    pub rope_factors: Option<Vec<f32>>,
    /// The head of a model that sorts texts.
    pub classifier: Option<Classifier>,
}

impl<B: Backend> Weights<B> {
    /// Takes the tensors from a file and from the adapters for it; `context`: tokens of the longest sequence, by which LongRoPE
    /// chooses its factors.
    ///
    /// # Errors
    /// Names the tensor that is missing, of another shape or type, not finite, or of no use to the decoder.
    pub fn load(
        gguf: &Gguf,
        adapters: &[Adapter],
        config: &Config,
        context: usize,
        backend: &B,
    ) -> Result<Self, ModelError> {
        let (used, adapted) = (HashSet::new(), HashSet::new());
        let mut loader = Loader { gguf, adapters, config, backend, used, adapted };
        let (hidden, vocab) = (config.hidden, config.vocab);

        // Grown as the tensors are found: a file that claims a thousand layers reserves nothing for them.
        let mut layers = Vec::new();
        for i in 0..config.layers {
            layers.push(loader.layer(i)?);
        }
        let token_embd = loader.matrix("token_embd.weight", vocab, hidden)?;
        let position_embd = loader.positions()?;
        let layer_inputs = loader.layer_inputs()?;
        let streams = config.altup.map(|altup| loader.streams(altup)).transpose()?;
        let token_types = match config.token_types {
            0 => None,
            kinds => Some(loader.matrix("token_types.weight", kinds, hidden)?),
        };
        let mut norm = |wanted: bool, stem| wanted.then(|| loader.norm(stem, hidden)).transpose();
        let embedding_norm = norm(config.embedding_norm, "token_embd_norm")?;
        // LFM2 files have the last norm by the name of the first.
        let misnamed = !config.embedding_norm && gguf.tensor("token_embd_norm.weight").is_some();
        let last = if misnamed { "token_embd_norm" } else { "output_norm" };
        let output_norm = norm(config.final_norm, last)?;
        let output = if gguf.tensor("output.weight").is_some() {
            loader.linear("output", vocab, hidden, Bias::Optional)?
        } else {
            let adapters = loader.adapted("output", 0..vocab)?;
            let name = "output.bias";
            let bias = loader.has(name).then(|| loader.vector(name, vocab)).transpose()?;
            Linear { weight: token_embd.clone(), bias, scale: None, adapters }
        };
        let rope_factors = loader.rope_factors(context)?;
        let classifier = loader.classifier()?;
        loader.all_used()?;
        Ok(Self {
            token_embd,
            position_embd,
            token_types,
            embedding_norm,
            layer_inputs,
            streams,
            layers,
            output_norm,
            output,
            rope_factors,
            classifier,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Bias {
    Required,
    Optional,
}

struct Loader<'a, B: Backend> {
    gguf: &'a Gguf,
    adapters: &'a [Adapter],
    config: &'a Config,
    backend: &'a B,
    used: HashSet<String>,
    /// The matrices that adapters' products were looked up for.
    adapted: HashSet<String>,
}

impl<'a, B: Backend> Loader<'a, B> {
    fn layer(&mut self, i: usize) -> Result<Layer<B>, ModelError> {
        let config = self.config;
        let hidden = config.hidden;
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        // What gpt-oss calls the norm after attention is the one before the feed-forward network.
        let before_ffn = if self.has(&name("ffn_norm.weight")) { "ffn_norm" } else { "post_attention_norm" };
        let (parallel, shared) = match config.parallel {
            Parallel::No => (false, false),
            Parallel::Unnormed => {
                let shared = !self.has(&name(&format!("{before_ffn}.weight")));
                (shared, shared)
            }
            Parallel::Own => (true, false),
            Parallel::Second => (true, !self.has(&name("attn_norm_2.weight"))),
        };
        let (before_attn, before_ffn) = match config.parallel {
            Parallel::Second if !shared => ("attn_norm_2", "attn_norm"),
            _ => ("attn_norm", before_ffn),
        };
        let norm = |loader: &mut Self, wanted: bool, stem: &str| {
            wanted.then(|| loader.norm(&name(stem), hidden)).transpose()
        };
        let [behind_attn, behind_ffn] = match config.sum_norm {
            true => ["attn_output_norm", "layer_output_norm"],
            false => ["post_attention_norm", "post_ffw_norm"],
        };
        let behind = config.post_norm || config.sum_norm;
        let recurrent = config.recurrent.as_ref().filter(|recurrent| recurrent.has(i));
        let (out, width) = match recurrent.map(|recurrent| recurrent.kind) {
            None => ("attn_output", config.attended_width(i)),
            Some(kind @ RecurrentKind::ShortConv { .. }) => ("shortconv.out_proj", kind.width(hidden)),
            Some(kind @ RecurrentKind::DeltaNet { .. }) => ("ssm_out", kind.width(hidden)),
        };
        Ok(Layer {
            attn_norm: norm(self, config.pre_norm && (i > 0 || !config.embedding_norm), before_attn)?,
            mixer: match (recurrent, &config.latent) {
                (Some(recurrent), _) => self.recurrent(i, recurrent)?,
                (None, Some(latent)) => Mixer::Latent(Box::new(self.latent(i, latent)?)),
                (None, None) => self.heads(i)?,
            },
            sinks: config.sinks.then(|| self.vector(&name("attn_sinks.weight"), config.heads)).transpose()?,
            o: self.linear(&name(out), hidden, width, Bias::Optional)?,
            post_attn_norm: norm(self, behind, behind_attn)?,
            parallel,
            ffn_norm: norm(self, config.pre_norm && !shared, before_ffn)?,
            ffn: match &config.experts {
                Some(experts) if self.has(&name("ffn_gate_inp.weight")) && experts.beside => {
                    FeedForward::Both(Box::new(self.both(i, experts)?))
                }
                Some(experts) if self.has(&name("ffn_gate_inp.weight")) => {
                    FeedForward::Experts(Box::new(self.mixture(i, experts)?))
                }
                _ => FeedForward::Dense(self.dense_ffn(i)?),
            },
            post_ffn_norm: norm(self, behind, behind_ffn)?,
            streams: match config.altup {
                Some(altup) => Some(Box::new(self.layer_streams(i, altup)?)),
                None => None,
            },
            input: match config.layer_inputs {
                0 => None,
                width => Some(LayerInput {
                    gate: self.linear(&name("inp_gate"), width, hidden, Bias::Optional)?,
                    up: self.linear(&name("proj"), hidden, width, Bias::Optional)?,
                    norm: self.norm(&name("post_norm"), hidden)?,
                }),
            },
            scale: match name("layer_output_scale.weight") {
                name if self.has(&name) => self.floats(&name, 1)?.first().copied(),
                _ => None,
            },
        })
    }

    /// The vectors that each layer has for a token.
    fn layer_inputs(&mut self) -> Result<Option<LayerInputs<B>>, ModelError> {
        let Config { layer_inputs: width, layers, hidden, vocab, .. } = *self.config;
        if width == 0 {
            return Ok(None);
        }
        let name = "per_layer_token_embd.weight";
        // Gemma 3n's has no rows for tokens of pictures and sounds.
        let tokens = match self.gguf.tensor(name).map(Tensor::rows) {
            Some(rows) if self.config.altup.is_some() => rows.min(vocab),
            _ => vocab,
        };
        Ok(Some(LayerInputs {
            table: self.matrix(name, tokens, layers * width)?,
            tokens,
            projection: self.linear("per_layer_model_proj", layers * width, hidden, Bias::Optional)?,
            gain: self.vector("per_layer_proj_norm.weight", width)?,
        }))
    }

    /// The learned positions, of which there may be more than the model was trained for.
    fn positions(&mut self) -> Result<Option<B::Matrix>, ModelError> {
        let name = "position_embd.weight";
        if !self.config.learned_positions {
            return Ok(None);
        }
        let rows = self.gguf.tensor(name).map_or(0, Tensor::rows);
        self.matrix(name, rows.max(self.config.context_train), self.config.hidden).map(Some)
    }

    fn heads(&mut self, i: usize) -> Result<Mixer<B>, ModelError> {
        let config = self.config;
        let (shape, keeps_kv) = (config.kv_of(i), config.keeps_kv(i));
        let (q, kv) = (config.heads * shape.head_dim, shape.width());
        // With its gate, each.
        let queries = if config.gated_attention { 2 * q } else { q };
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        if !keeps_kv {
            // Files have them although nothing reads them.
            self.used.extend(["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"].map(name));
        }
        let only_keys = config.keys_as_values && !self.has(&name("attn_v.weight"));
        let bias = if config.qkv_bias { Bias::Required } else { Bias::Optional };
        // Three tensors, or the rows of one after the other in one tensor.
        let fused = name("attn_qkv");
        let mut part = |stem: &str, rows: Range<usize>| {
            if self.has(&format!("{fused}.weight")) {
                self.rows_of(&fused, rows, queries + 2 * kv, config.hidden, bias)
            } else {
                self.linear(&name(stem), rows.len(), config.hidden, bias)
            }
        };
        let (keys, values) = (queries..queries + kv, queries + kv..queries + 2 * kv);
        let q_linear = part("attn_q", 0..queries)?;
        let kv_linear = match (keeps_kv, only_keys) {
            (false, _) => None,
            (true, true) => Some((part("attn_k", keys)?, None)),
            (true, false) => Some((part("attn_k", keys)?, Some(part("attn_v", values)?))),
        };
        let mut norm = |stem: &str, row: usize| {
            let len = match config.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::HeadOrNone if !self.has(&name(stem)) => return Ok(None),
                QkNorm::Head | QkNorm::HeadOrNone => shape.head_dim,
                QkNorm::Row => row,
            };
            self.vector(&name(stem), len).map(Some)
        };
        let q_norm = norm("attn_q_norm.weight", q)?;
        let Some((k, v)) = kv_linear else { return Ok(Mixer::Heads { q: q_linear, q_norm, kv: None }) };
        let k_norm = norm("attn_k_norm.weight", kv)?;
        let ones = config.value_norm.then(|| self.backend.vector(vec![1.0; shape.head_dim]));
        let kv = Some(KeyValue { k, v, k_norm, v_norm: ones.transpose()? });
        Ok(Mixer::Heads { q: q_linear, q_norm, kv })
    }

    /// The feed-forward network of a layer, or that beside its experts.
    fn dense_ffn(&mut self, i: usize) -> Result<Mlp<B>, ModelError> {
        let network = self.mlp(&format!("blk.{i}.ffn"), "", self.config.ffn.get(i).copied().unwrap_or(0))?;
        Ok(Mlp { cutoff: self.config.cutoffs.get(i).copied().flatten(), ..network })
    }

    /// A network, and experts beside it.
    fn both(&mut self, i: usize, experts: &Experts) -> Result<Both<B>, ModelError> {
        let hidden = self.config.hidden;
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        // The router's own gain, on what is divided by the root of the width.
        let mut gain = self.floats(&name("ffn_gate_inp.scale"), hidden)?;
        gain.iter_mut().for_each(|gain| *gain /= (hidden as f32).sqrt());
        Ok(Both {
            dense: self.dense_ffn(i)?,
            dense_norm: self.norm(&name("post_ffw_norm_1"), hidden)?,
            mixture: self.mixture(i, experts)?,
            router_norm: Norm::Rms { gain: self.backend.vector(gain)? },
            mixture_norm: self.norm(&name("pre_ffw_norm_2"), hidden)?,
            mixed_norm: self.norm(&name("post_ffw_norm_2"), hidden)?,
        })
    }

    /// The network `{stem}_gate{suffix}`, `{stem}_up{suffix}`, `{stem}_down{suffix}`.
    fn mlp(&mut self, stem: &str, suffix: &str, ffn: usize) -> Result<Mlp<B>, ModelError> {
        let hidden = self.config.hidden;
        let (gate, up) = (format!("{stem}_gate{suffix}"), format!("{stem}_up{suffix}"));
        // The gate in a tensor of its own, or as the first half of the other.
        let fused = self.config.gated && !self.has(&format!("{gate}.weight"));
        Ok(Mlp {
            gate: if fused {
                Some(self.rows_of(&up, 0..ffn, 2 * ffn, hidden, Bias::Optional)?)
            } else if self.config.gated {
                Some(self.linear(&gate, ffn, hidden, Bias::Optional)?)
            } else {
                None
            },
            up: if fused {
                self.rows_of(&up, ffn..2 * ffn, 2 * ffn, hidden, Bias::Optional)?
            } else {
                self.linear(&up, ffn, hidden, Bias::Optional)?
            },
            down: self.linear(&format!("{stem}_down{suffix}"), hidden, ffn, Bias::Optional)?,
            cutoff: None,
        })
    }

    fn mixture(&mut self, i: usize, experts: &Experts) -> Result<Mixture<B>, ModelError> {
        let hidden = self.config.hidden;
        let name = |suffix: &str| format!("blk.{i}.{suffix}");
        let choice_bias = name("exp_probs_b.bias");
        let shared_gate = name("ffn_gate_inp_shexp");
        let mut all = Vec::new();
        let fused = name("ffn_gate_up_exps");
        let is_fused = self.has(&format!("{fused}.weight"));
        for expert in 0..experts.count {
            // One tensor for all experts, or, in files of 2023, one for each.
            let mut linear = |stem: &str, rows: usize, cols: usize| {
                let all = name(&format!("{stem}_exps"));
                if self.has(&format!("{all}.weight")) {
                    self.slice(&all, expert, rows, [cols, rows, experts.count])
                } else {
                    self.linear(&name(&format!("{stem}.{expert}")), rows, cols, Bias::Optional)
                }
            };
            let down = linear("ffn_down", hidden, experts.ffn)?;
            let (gate, up) = if is_fused {
                // Of each expert the gate, then what it gates.
                let dims = [hidden, 2 * experts.ffn, experts.count];
                let mut half = |i| self.slice(&fused, 2 * expert + i, experts.ffn, dims);
                (half(0)?, half(1)?)
            } else {
                let mut linear = |stem| linear(stem, experts.ffn, hidden);
                (linear("ffn_gate")?, linear("ffn_up")?)
            };
            all.push(Mlp { gate: Some(gate), up, down, cutoff: None });
        }
        let router = name("ffn_gate_inp");
        Ok(Mixture {
            router: match experts.beside {
                // What is called its scale is a gain of its input.
                true => Linear {
                    weight: self.matrix(&format!("{router}.weight"), experts.count, hidden)?,
                    bias: None,
                    scale: None,
                    adapters: self.adapted(&router, 0..experts.count)?,
                },
                false => self.linear(&router, experts.count, hidden, Bias::Optional)?,
            },
            choice_bias: match self.has(&choice_bias) {
                true => Some(self.floats(&choice_bias, experts.count)?),
                false => None,
            },
            experts: all,
            shared: match experts.shared_ffn {
                0 => None,
                ffn => Some(self.mlp(&name("ffn"), "_shexp", ffn)?),
            },
            shared_gate: match self.has(&format!("{shared_gate}.weight")) {
                true => Some(self.linear(&shared_gate, 1, hidden, Bias::Optional)?),
                false => None,
            },
        })
    }

    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The tensor of that name, if its shape is the expected one (contiguous dimension first).
    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<&'a Tensor, ModelError> {
        let tensor =
            self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        // Writers may leave trailing dimensions of 1 in place.
        let significant = |dims: &[u64]| dims.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
        if tensor.dims.get(..significant(&tensor.dims)) != expected.get(..significant(&expected)) {
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

    fn norm(&mut self, stem: &str, len: usize) -> Result<Norm<B::Vector>, ModelError> {
        let gain = match self.config.norm_gains {
            true => self.vector(&format!("{stem}.weight"), len)?,
            false => self.backend.vector(vec![1.0; len])?,
        };
        if !self.config.layer_norm {
            return Ok(Norm::Rms { gain });
        }
        let bias = format!("{stem}.bias");
        let bias = self.has(&bias).then(|| self.vector(&bias, len)).transpose()?;
        Ok(Norm::Layer { gain, bias })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, ModelError> {
        let values = self.floats(name, len)?;
        self.backend.vector(values)
    }

    /// A vector on the host: a float type, every element finite.
    fn floats(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.tensor(name, &[len])?;
        self.all_floats(name)
    }

    /// The elements of a tensor that has been looked at, in their order.
    fn all_floats(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor =
            self.gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        if !matches!(tensor.ttype, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(ModelError::TensorType { name: name.to_owned(), found: tensor.ttype.name() });
        }
        finite(tensor)
    }

    /// The head that sorts texts, which a quantised file may have quantised too.
    fn classifier(&mut self) -> Result<Option<Classifier>, ModelError> {
        let (name, bias) = ("cls.output.weight", "cls.output.bias");
        let Some(labels) = self.gguf.tensor(name).map(Tensor::rows) else { return Ok(None) };
        if labels > MAX_LABELS {
            return Err(ModelError::OutOfRange {
                key: name.to_owned(),
                value: format!("{labels} rows"),
                allowed: format!("at most {MAX_LABELS}"),
            });
        }
        let hidden = self.config.hidden;
        let weight = finite(self.tensor(name, &[hidden, labels])?)?;
        let bias = self.has(bias).then(|| self.floats(bias, labels)).transpose()?;
        let dense = if self.has("cls.weight") { Some(self.dense(hidden)?) } else { None };
        Classifier::new(self.gguf.metadata(), labels, dense, weight, bias).map(Some)
    }

    /// The layer before a classifier.
    fn dense(&mut self, hidden: usize) -> Result<Dense, ModelError> {
        let mut vector = |name| self.has(name).then(|| self.floats(name, hidden)).transpose();
        let (bias, gain, norm_bias) =
            (vector("cls.bias")?, vector("cls.norm.weight")?, vector("cls.norm.bias")?);
        let weight = finite(self.tensor("cls.weight", &[hidden, hidden])?)?;
        Ok(Dense { weight, bias, norm: gain.map(|gain| (gain, norm_bias, self.config.norm_eps)) })
    }

    fn linear(&mut self, stem: &str, rows: usize, cols: usize, bias: Bias) -> Result<Linear<B>, ModelError> {
        let weight = self.matrix(&format!("{stem}.weight"), rows, cols)?;
        let name = format!("{stem}.bias");
        let present = bias == Bias::Required || self.gguf.tensor(&name).is_some();
        let scale = self.scale(stem, 0, 1)?;
        let bias = present.then(|| self.floats(&name, rows)).transpose()?;
        let bias = bias.map(|bias| self.backend.vector(divided(bias, scale))).transpose()?;
        Ok(Linear { weight, bias, scale, adapters: self.adapted(stem, 0..rows)? })
    }

    /// Some of the `all` rows of a matrix, and of its bias.
    fn rows_of(
        &mut self,
        stem: &str,
        range: Range<usize>,
        all: usize,
        cols: usize,
        bias: Bias,
    ) -> Result<Linear<B>, ModelError> {
        let tensor = self.tensor(&format!("{stem}.weight"), &[cols, all])?;
        let weight = self.backend.matrix(&rows(tensor, range.clone())?)?;
        let name = format!("{stem}.bias");
        let scale = self.scale(stem, 0, 1)?;
        let bias = match bias == Bias::Required || self.has(&name) {
            true => {
                let values = part(self.floats(&name, all)?, range.clone());
                Some(self.backend.vector(divided(values, scale))?)
            }
            false => None,
        };
        Ok(Linear { weight, bias, scale, adapters: self.adapted(stem, range)? })
    }

    /// The `index`-th `rows` rows of all matrices of a tensor `[cols, rows of each, matrices]`, and of its biases.
    fn slice(
        &mut self,
        stem: &str,
        index: usize,
        rows: usize,
        dims: [usize; 3],
    ) -> Result<Linear<B>, ModelError> {
        let range = index * rows..(index + 1) * rows;
        let tensor = self.tensor(&format!("{stem}.weight"), &dims)?;
        let weight = self.backend.matrix(&self::rows(tensor, range.clone())?)?;
        // Gates and what they gate in one tensor have one for both.
        let scale = match (stem.ends_with("_exps"), stem.ends_with("gate_up_exps")) {
            (true, true) => self.scale(stem, index / 2, dims[2])?,
            (true, false) => self.scale(stem, index, dims[2])?,
            (false, _) => None,
        };
        let name = format!("{stem}.bias");
        let bias = match self.has(&name) {
            true => {
                self.tensor(&name, &dims[1..])?;
                let values = part(self.all_floats(&name)?, range);
                Some(self.backend.vector(divided(values, scale))?)
            }
            false => None,
        };
        let one = format!("{}.{index}", stem.strip_suffix("_exps").unwrap_or(stem));
        Ok(Linear { weight, bias, scale, adapters: self.adapted(&one, 0..rows)? })
    }

    /// The factor on what the matrix `{stem}.weight` gives, of several matrices in it the `index`-th's.
    fn scale(&mut self, stem: &str, index: usize, matrices: usize) -> Result<Option<f32>, ModelError> {
        // What activations would be quantised with, which they are not.
        let unused = format!("{stem}.input_scale");
        if self.has(&unused) {
            self.used.insert(unused);
        }
        let name = format!("{stem}.scale");
        if !self.has(&name) {
            return Ok(None);
        }
        match self.floats(&name, matrices)?.get(index) {
            Some(&scale) if scale != 0.0 => Ok(Some(scale).filter(|&scale| scale != 1.0)),
            scale => Err(ModelError::OutOfRange {
                key: name,
                value: scale.copied().unwrap_or_default().to_string(),
                allowed: "anything but 0".to_owned(),
            }),
        }
    }

    /// What each adapter adds to these rows of the matrix `{stem}.weight`.
    fn adapted(
        &mut self,
        stem: &str,
        range: Range<usize>,
    ) -> Result<Vec<Option<Box<LowRank<B>>>>, ModelError> {
        let name = format!("{stem}.weight");
        let load = |adapter: &Adapter| {
            let product = adapter.product(&name);
            product
                .map(|product| LowRank::load(product, range.clone(), self.backend).map(Box::new))
                .transpose()
        };
        let adapted = self.adapters.iter().map(load).collect();
        if !self.adapters.is_empty() {
            self.adapted.insert(name);
        }
        adapted
    }

    /// What each rotary wavelength is multiplied by: one list (Llama 3.1), or one for short and one for long sequences.
    fn rope_factors(&mut self, context: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let long = self.config.rope.original_context.is_some_and(|original| context > original);
        let mut found = None;
        for (name, wanted) in [
            ("rope_freqs.weight", true),
            ("rope_factors_long.weight", long),
            ("rope_factors_short.weight", !long),
        ] {
            if self.has(name) {
                let factors = self.positive(name)?;
                found = if wanted { Some(factors) } else { found };
            }
        }
        Ok(found)
    }

    fn positive(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let factors = self.floats(name, self.config.rope.dims / 2)?;
        match factors.iter().position(|&factor| factor <= 0.0) {
            Some(index) => Err(ModelError::OutOfRange {
                key: format!("{name}[{index}]"),
                value: factors[index].to_string(),
                allowed: "above 0".to_owned(),
            }),
            None => Ok(factors),
        }
    }

    /// Whether a tensor is of a layer that guesses tokens further ahead.
    fn is_ahead(&self, name: &str) -> bool {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_some_and(|layer| {
            layer >= self.config.layers && layer - self.config.layers < self.config.ahead
        })
    }

    fn all_used(&self) -> Result<(), ModelError> {
        let unused = self.gguf.tensors().find(|tensor| {
            // Inverse frequencies that converters of 2023 stored; they say nothing that the metadata doesn't.
            let known = tensor.name.contains(".attn_rot_embd") || self.is_ahead(&tensor.name);
            !self.used.contains(&tensor.name) && !known
        });
        if let Some(tensor) = unused {
            return Err(ModelError::UnusedTensor {
                name: tensor.name.clone(),
                architecture: self.config.architecture.clone(),
            });
        }
        let mut products = self.adapters.iter().flat_map(Adapter::products);
        match products.find(|product| !self.adapted.contains(&product.name)) {
            Some(product) => {
                Err(ModelError::UnusedAdapter { tensor: product.a.name.clone(), name: product.name.clone() })
            }
            None => Ok(()),
        }
    }
}

/// Rows of a matrix as a tensor of their own, in the same place.
pub(crate) fn rows(tensor: &Tensor, range: Range<usize>) -> Result<Tensor, ModelError> {
    let row = tensor.data.len() / tensor.rows().max(1);
    let data = tensor.data.slice(range.start * row..range.end * row);
    let data =
        data.ok_or_else(|| ModelError::MissingTensor { name: format!("{}[{range:?}]", tensor.name) })?;
    let dims = vec![tensor.cols() as u64, range.len() as u64];
    Ok(Tensor { name: tensor.name.clone(), ttype: tensor.ttype, dims, data })
}

/// A tensor's elements in single precision, none of which may be infinite or no number.
pub(crate) fn finite(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    let mut values = vec![0.0; tensor.elements()];
    moli_kernels::dequantize(tensor.ttype, &tensor.data, &mut values)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            Err(ModelError::WeightNotFinite { name: tensor.name.clone(), index, value: values[index] })
        }
        None => Ok(values),
    }
}

/// A bias such that the factor on it leaves it as it was.
fn divided(mut bias: Vec<f32>, scale: Option<f32>) -> Vec<f32> {
    if let Some(scale) = scale {
        bias.iter_mut().for_each(|value| *value /= scale);
    }
    bias
}

/// A part of a vector.
fn part(mut values: Vec<f32>, range: Range<usize>) -> Vec<f32> {
    values.truncate(range.end);
    values.split_off(range.start.min(values.len()))
}
