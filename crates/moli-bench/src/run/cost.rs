//! What a token costs: bytes that are read and numbers that are multiplied, from a file's tensors and the model's
//! configuration.

use moli_format::{Gguf, TensorType};
use moli_model::{Config, KvShape, KvType, PAGE_TOKENS};

use super::direct::CHUNK;
use crate::report::{Binds, Bound, Limits, Peak, Test};

/// The weights of a model by who reads them.
#[derive(Debug, Clone)]
pub(super) struct Cost {
    /// Read by every token.
    body: Part,
    /// Of all experts, of which a token reads some.
    experts: Part,
    /// Read for the last token of a prompt, and for each that is generated.
    head: Part,
    /// Experts that a token goes through, and all of them.
    routing: Option<(usize, usize)>,
    /// Of each layer with attention the keys that a token sees at most, `None`: all; and their heads.
    attention: Vec<(Option<usize>, KvShape)>,
    /// Bytes of a sequence's recurrent state.
    state: f64,
    /// Parameters.
    pub(super) parameters: u64,
    /// Bytes of all tensors.
    pub(super) weight_bytes: u64,
    /// The format of most of the weights.
    pub(super) format: TensorType,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    bytes: f64,
    macs: f64,
}

/// What a repetition reads and multiplies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// Bytes of weights, keys and values.
    pub(super) bytes: f64,
    /// Multiply-adds with weights.
    pub(super) macs: f64,
}

impl Cost {
    pub(super) fn of(gguf: &Gguf, config: &Config) -> Self {
        let mut cost = Self {
            body: Part::default(),
            experts: Part::default(),
            head: Part::default(),
            routing: config.experts.as_ref().map(|experts| (experts.used, experts.count)),
            attention: (0..config.layers)
                .filter(|&layer| config.attends(layer))
                .map(|layer| (config.window_of(layer), config.kv_of(layer)))
                .collect(),
            state: config.state_bytes() as f64,
            parameters: 0,
            weight_bytes: 0,
            format: TensorType::F32,
        };
        let tied = gguf.tensor("output.weight").is_none();
        let mut formats: Vec<(TensorType, u64)> = Vec::new();
        for tensor in gguf.tensors() {
            let (bytes, elements) = (tensor.data.len() as u64, tensor.elements() as u64);
            cost.parameters += elements;
            cost.weight_bytes += bytes;
            match formats.iter_mut().find(|(format, _)| *format == tensor.ttype) {
                Some((_, sum)) => *sum += bytes,
                None => formats.push((tensor.ttype, bytes)),
            }
            let table = tensor.name == "token_embd.weight";
            let inputs = tensor.name == "per_layer_token_embd.weight";
            let part = match tensor.name.as_str() {
                "output.weight" => &mut cost.head,
                _ if table && tied => &mut cost.head,
                // A row of it.
                _ if table || inputs => continue,
                name if name.contains("_exps.") => &mut cost.experts,
                _ => &mut cost.body,
            };
            part.bytes += bytes as f64;
            // Norms and biases are added or multiplied once, not with a matrix.
            if tensor.rows() > 1 && !tensor.name.ends_with(".bias") {
                part.macs += elements as f64;
            }
        }
        if let Some(&(format, _)) = formats.iter().max_by_key(|(_, bytes)| *bytes) {
            cost.format = format;
        }
        cost
    }

    /// Bytes of weights that a generated token reads.
    pub(super) fn bytes_per_token(&self) -> u64 {
        (self.body.bytes + self.head.bytes + self.experts.bytes * self.experts_of(1)) as u64
    }

    /// Multiply-adds with weights of a generated token.
    pub(super) fn macs_per_token(&self) -> u64 {
        (self.body.macs + self.head.macs + self.experts.macs * self.experts_of(1)) as u64
    }

    /// The part of the experts that so many tokens go through, if the router chose evenly.
    fn experts_of(&self, tokens: usize) -> f64 {
        self.routing.map_or(0.0, |(used, count)| {
            let missed = 1.0 - used as f64 / count.max(1) as f64;
            1.0 - missed.powi(i32::try_from(tokens).unwrap_or(i32::MAX))
        })
    }

    /// What a repetition of prefill or decode costs; `None` for whole answers, of which it depends on who meets whom.
    pub(super) fn work(&self, test: &Test, kv_type: KvType) -> Option<Work> {
        match *test {
            Test::Prefill { tokens, depth } => {
                let mut bytes = self.head.bytes;
                for start in (0..tokens).step_by(CHUNK) {
                    let chunk = CHUNK.min(tokens - start);
                    bytes += self.body.bytes + self.experts.bytes * self.experts_of(chunk);
                    bytes += self.kv_bytes(depth + start, chunk, kv_type) + self.state;
                }
                let each = self.body.macs + self.experts.macs * self.experts_of(1);
                Some(Work { bytes, macs: each * tokens as f64 + self.head.macs })
            }
            Test::Decode { tokens, depth, batch } => {
                let step = self.body.bytes + self.head.bytes + self.experts.bytes * self.experts_of(batch);
                let kv: f64 = (0..tokens).map(|position| self.kv_bytes(depth + position, 1, kv_type)).sum();
                let bytes = step * tokens as f64 + (kv + self.state * tokens as f64) * batch as f64;
                Some(Work { bytes, macs: self.macs_per_token() as f64 * (tokens * batch) as f64 })
            }
            Test::EndToEnd { .. } => None,
        }
    }

    /// Bytes of keys and values that rows at these positions of a sequence read together.
    fn kv_bytes(&self, first: usize, rows: usize, kv_type: KvType) -> f64 {
        let read = |&(window, shape): &(Option<usize>, KvShape)| {
            let page = kv_type.page_bytes(1, shape.heads, shape.head_dim).unwrap_or(0) as f64;
            let most = window.map_or(usize::MAX, |window| window.saturating_add(rows - 1));
            (first + rows).min(most) as f64 * page
        };
        self.attention.iter().map(read).sum::<f64>() / PAGE_TOKENS as f64
    }

    /// How near a time came to what the machine can do.
    pub(super) fn bound(&self, test: &Test, kv_type: KvType, seconds: f64, limits: &Limits) -> Option<Bound> {
        let work = self.work(test, kv_type)?;
        let plain = matches!(self.format, TensorType::F32 | TensorType::F16 | TensorType::BF16);
        let (compute, peak) = match limits.int8_macs_per_second.filter(|_| !plain) {
            Some(peak) => (Peak::Int8, peak),
            None => (Peak::F32, limits.f32_macs_per_second),
        };
        let of_memory = work.bytes / seconds / limits.read_bytes_per_second;
        let of_compute = work.macs / seconds / peak;
        let binds = if of_memory >= of_compute { Binds::Memory } else { Binds::Compute };
        Some(Bound { of_memory, of_compute, compute, binds })
    }
}
