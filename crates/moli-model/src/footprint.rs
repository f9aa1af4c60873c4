//! What a model will take of memory, computed before anything is allocated.
//!
//! Each sum here follows an allocation in [`decoder`](crate::decoder), [`cpu`](crate::cpu) or [`weights`](crate::weights),
//! and a test compares them with what is really allocated.

use moli_format::Gguf;
use moli_kernels::{Activations, Kernels, KvSlot, RopeAngles, Scratch, StateRun};

use crate::cpu::{CpuBackend, CpuBuffer};
use crate::decoder::altup::StreamScratch;
use crate::decoder::recurrent;
use crate::weights::{Both, DeltaNet, LatentAttention, Layer, LayerStreams, Linear, Mixture, Mlp, ShortConv};
use crate::{Config, MAX_OUTPUTS, RecurrentKind};

/// The table with a vector of each layer for each token.
const LAYER_INPUTS: &str = "per_layer_token_embd.weight";

/// The pool, the batch's lists and all else that has no row and no layer: a few kilobytes.
const REST: u64 = 8 << 10;

/// What a model is loaded for, as far as it decides about memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Threads of the CPU backend, the caller's own included.
    pub threads: usize,
    /// Most rows of one batch.
    pub max_rows: usize,
    /// Rows of one batch whose logits are wanted: one for each sequence that is being continued.
    pub outputs: usize,
    /// Tokens of the longest sequence.
    pub context: usize,
}

/// Bytes that a loaded model takes on the CPU, beside its KV pages and the states of its sequences. Sums saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// The model's files but for `embeddings`: mapped, or in memory as a whole.
    pub weights: u64,
    /// The table of embeddings, where it is not the output head too, and that of the vectors that layers have for tokens: of a
    /// mapped file, those parts become resident whose tokens occur.
    pub embeddings: u64,
    /// Norms and biases as f32, and the list of layers.
    pub vectors: u64,
    /// Activations of one batch, with the quantised inputs of its products and its rotary angles.
    pub activations: u64,
    /// What each thread works in: panels of weights, pages and partial results of attention.
    pub threads: u64,
    /// The rows of logits.
    pub logits: u64,
}

impl Footprint {
    /// Of this model, loaded for this.
    #[must_use]
    pub fn of(gguf: &Gguf, config: &Config, load: &Load) -> Self {
        let floats = |n: usize| (n as u64).saturating_mul(size_of::<f32>() as u64);
        let max_rows = load.max_rows.max(1);
        let [q, kv] = config.widest_heads();

        let vectors = gguf.tensors().filter(|tensor| {
            tensor.rows() == 1
                || tensor.name.ends_with(".bias")
                || ["cls.weight", "cls.output.weight"].contains(&tensor.name.as_str())
        });
        let values = vectors.fold(0u64, |sum, tensor| sum.saturating_add(floats(tensor.elements())));
        // Lists grow as their elements are found, and double when they are full.
        let list = |len: usize, element: usize| (len.next_power_of_two().max(4) * element) as u64;
        let layers = list(config.layers, size_of::<Layer<CpuBackend>>());
        let experts = config.experts.as_ref().map_or(0, |experts| {
            let boxed = match experts.beside {
                true => size_of::<Both<CpuBackend>>(),
                false => size_of::<Mixture<CpuBackend>>(),
            };
            let layer = list(experts.count, size_of::<Mlp<CpuBackend>>()) + boxed as u64;
            layer
                * gguf.tensors().filter(|tensor| tensor.name.ends_with(".ffn_gate_inp.weight")).count() as u64
        });
        let latent = config.latent.map_or(0, |latent| {
            // Older files have one of the matrices the other way round: it is turned into f32.
            let turned = gguf.tensor("blk.0.attn_kv_b.weight").map_or(0, |_| latent.kv_rank * latent.plain);
            let heads = 2 * list(config.heads, size_of::<Linear<CpuBackend>>());
            let layer =
                heads + floats(turned * config.heads) + size_of::<LatentAttention<CpuBackend>>() as u64;
            layer.saturating_mul(config.layers as u64)
        });
        let recurrent = config.recurrent.as_ref().map_or(0, |recurrent| {
            // Convolutions, the other way round, and rates and decays that share a matrix.
            let turned = |name: &str| name.ends_with("conv.weight") || name.ends_with("ssm_conv1d.weight");
            let copied = gguf.tensors().map(|tensor| match tensor.name.as_str() {
                name if turned(name) => floats(tensor.elements()),
                name if name.ends_with("ssm_ba.weight") => tensor.data.len() as u64,
                _ => 0,
            });
            let boxed = match recurrent.kind {
                RecurrentKind::ShortConv { .. } => size_of::<ShortConv<CpuBackend>>(),
                RecurrentKind::DeltaNet { .. } => size_of::<DeltaNet<CpuBackend>>(),
            };
            let states = list(recurrent.count(), 2 * size_of::<CpuBuffer>());
            let boxes = (boxed as u64).saturating_mul(recurrent.count() as u64);
            copied.fold(states.saturating_add(boxes), u64::saturating_add)
        });
        // Norms without gains, and those of values, multiply by ones, which no file has.
        let plain =
            if config.norm_gains { 0 } else { floats(config.hidden) * (2 * config.layers as u64 + 1) };
        let ones =
            config.kv_shapes().into_iter().filter(|_| config.value_norm).map(|shape| floats(shape.head_dim));
        let ones = ones.fold(plain, u64::saturating_add);
        let streams = config.altup.map_or(0, |altup| {
            // Norms that give factors have gains of zero, which no file has.
            let layer = size_of::<LayerStreams<CpuBackend>>() as u64 + floats(config.hidden);
            let buffers = 2 * list(altup.streams, size_of::<CpuBuffer>());
            let ways = 2 * list(altup.streams, size_of::<Linear<CpuBackend>>());
            layer.saturating_mul(config.layers as u64).saturating_add(buffers + ways)
        });
        let lists = [layers, experts, latent, recurrent, ones, streams]
            .iter()
            .fold(0, |sum: u64, &part| sum.saturating_add(part));

        let tied = gguf.tensor("output.weight").is_none();
        let table = |name: &str| gguf.tensor(name).map_or(0, |table| table.data.len() as u64);
        let embeddings = if tied { 0 } else { table("token_embd.weight") };
        let embeddings = embeddings.saturating_add(table(LAYER_INPUTS));

        let experts = config.experts.as_ref().map_or(0, |e| {
            let beside = if e.beside { config.hidden } else { 0 };
            e.count + 2 * config.hidden + beside + 4 + 4 * e.used
        });
        let latent = config.latent.map_or(0, |l| {
            let part = l.kv_rank.max(l.plain).max(l.value);
            let heads = config.q_width().max(config.attended_width(0)).max(q) + config.heads * l.rotated;
            2 * l.q_rank.unwrap_or(1) + heads + l.width() + 2 * part
        });
        let recurrent = config.recurrent.as_ref();
        let carried = recurrent.map_or(0, |carried| recurrent::row(&carried.kind, config.hidden));
        let gates = if config.gated_attention { 3 * q } else { 0 };
        let inputs = 2 * config.layers * config.layer_inputs;
        let widths = 3 * config.hidden + 2 * q + 2 * kv + 2 * config.widest_ffn();
        // With the list of rows, and two of weights.
        let streams = config.altup.map_or(0, |altup| StreamScratch::<CpuBackend>::columns(config, altup) + 3);
        let row = widths + experts + latent + carried + gates + inputs + streams;
        let outputs = MAX_OUTPUTS.min(max_rows);
        let widest = config.widest_input();
        let angles = RopeAngles::bytes(config.rope.dims, max_rows)
            .saturating_add(RopeAngles::bytes(config.rope_local.dims, max_rows));
        let activations = [
            floats(row).saturating_mul(max_rows as u64),
            floats(2 * config.hidden).saturating_mul(outputs as u64),
            Activations::bytes(max_rows, widest),
            angles,
            (size_of::<KvSlot>() as u64).saturating_mul(max_rows as u64),
            // The sequences of a batch, and a state of a layer on its way.
            recurrent.map_or(0, |_| (size_of::<StateRun>() as u64).saturating_mul(max_rows as u64)),
            recurrent.map_or(0, |carried| config.state_bytes() / carried.count().max(1) as u64),
            // Of an encoder the sequences' lengths and the tokens' kinds.
            floats(if config.causal { 0 } else { 2 * max_rows }),
        ];

        let attention = |heads: usize, head_dim: usize| {
            Kernels::attention_bytes(load.threads, (config.heads, heads), head_dim, load.context)
        };
        let attention = attention(config.kv_heads, config.head_dim)
            .max(attention(config.kv_local.heads, config.kv_local.head_dim));
        // The buffer grows by doubling.
        let rows = load.outputs.clamp(1, outputs).next_power_of_two() as u64;
        Self {
            weights: gguf.weight_bytes().saturating_sub(embeddings),
            embeddings,
            vectors: values.saturating_add(lists),
            activations: activations.iter().fold(0, |sum, &part| sum.saturating_add(part)),
            threads: Scratch::bytes(load.threads).saturating_add(attention).saturating_add(REST),
            logits: floats(config.vocab).saturating_mul(rows),
        }
    }

    /// Of this model on a GPU, loaded for this: all but what stays on the host.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn on_gpu(gguf: &Gguf, config: &Config, load: &Load) -> Self {
        let max_rows = load.max_rows.max(1);
        let (widest, outputs) = (config.widest_input(), MAX_OUTPUTS.min(max_rows));
        let host = Self::of(gguf, config, load);
        let reserved = moli_cuda::reserved_bytes(max_rows, widest);
        let widest = config.head_dim.max(config.kv_local.head_dim);
        let attention = moli_cuda::attention_bytes(max_rows, config.heads, widest, load.context);
        // A matrix of its own is an allocation, which is rounded up, and so is each expert's.
        let tensors =
            gguf.tensors().map(|tensor| tensor.dims.get(2).map_or(1, |&experts| experts.min(1 << 12)));
        let rounding = tensors.fold(0u64, |sum, parts| sum.saturating_add(parts.saturating_mul(2 * 512)));
        Self {
            weights: host.weights.saturating_add(host.embeddings).saturating_add(rounding),
            embeddings: 0,
            // The activations but for their quantised form, which is another here.
            activations: host.activations.saturating_sub(Activations::bytes(max_rows, widest)),
            threads: reserved.saturating_add(attention),
            logits: (config.vocab as u64).saturating_mul(4 * load.outputs.clamp(1, outputs) as u64),
            vectors: host.vectors,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let parts = [self.embeddings, self.vectors, self.activations, self.threads, self.logits];
        parts.iter().fold(self.weights, |sum, &part| sum.saturating_add(part))
    }
}
