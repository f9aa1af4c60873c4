//! Which tensor is stored in which format: llama.cpp's mixtures, by its names.
//!
//! A mixture has a format for most of a model and better ones for what loses the most: the output head, the values of
//! attention, the way out of the feed-forward block, and the layers at both ends. The rules are those of llama.cpp, so that a
//! file under a name is what people know by it; `tests/fixtures/mixtures.json` holds what llama.cpp itself chose.

use std::fmt;

use moli_format::{FormatError, Metadata, TensorType, Value};

use crate::{ConvertError, Keep};

macro_rules! mixtures {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $base:ident;)*) => {
        /// A mixture of formats.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Mixture { $($(#[$doc])* $variant,)* }

        impl Mixture {
            /// All that there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// llama.cpp's name: `Q4_K_M`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its number as `general.file_type`.
            pub const fn file_type(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// The format of most of the model.
            pub const fn base(self) -> TensorType {
                match self { $(Self::$variant => TensorType::$base,)* }
            }
        }
    };
}

mixtures! {
    /// Single precision.
    F32 = 0, "F32", F32;
    /// Half precision.
    F16 = 1, "F16", F16;
    /// The upper half of single precision.
    BF16 = 32, "BF16", BF16;
    /// Q8_0 throughout.
    Q8_0 = 7, "Q8_0", Q8_0;
    /// Q6_K throughout.
    Q6K = 18, "Q6_K", Q6K;
    /// Q5_K, with Q6_K for the output head and for half of the values and ways down.
    Q5KM = 17, "Q5_K_M", Q5K;
    /// Q5_K, with Q6_K for the output head.
    Q5KS = 16, "Q5_K_S", Q5K;
    /// Q5_1, with Q6_K for the output head.
    Q5_1 = 9, "Q5_1", Q5_1;
    /// Q5_0, with Q6_K for the output head.
    Q5_0 = 8, "Q5_0", Q5_0;
    /// Q4_K, with Q6_K for the output head and for half of the values and ways down.
    Q4KM = 15, "Q4_K_M", Q4K;
    /// Q4_K, with Q5_K in the first layers and Q6_K for the output head.
    Q4KS = 14, "Q4_K_S", Q4K;
    /// Q4_1, with Q6_K for the output head.
    Q4_1 = 3, "Q4_1", Q4_1;
    /// Q4_0, with Q6_K for the output head.
    Q4_0 = 2, "Q4_0", Q4_0;
    /// IQ4_NL, with Q6_K for the output head and Q5_K in the first layers.
    IQ4NL = 25, "IQ4_NL", IQ4NL;
    /// IQ4_XS, with Q6_K for the output head and Q5_K in the first layers.
    IQ4XS = 30, "IQ4_XS", IQ4XS;
    /// Q3_K, with Q5_K for all that loses much.
    Q3KL = 13, "Q3_K_L", Q3K;
    /// Q3_K, with Q4_K and Q5_K for all that loses much.
    Q3KM = 12, "Q3_K_M", Q3K;
    /// Q3_K, with Q6_K for the output head.
    Q3KS = 11, "Q3_K_S", Q3K;
    /// Q2_K, with Q3_K and Q4_K for all that loses much.
    Q2K = 10, "Q2_K", Q2K;
    /// Q2_K, with Q4_K in the first layers: of use with an importance matrix only.
    Q2KS = 21, "Q2_K_S", Q2K;
}

/// What a mixture goes by beyond names and shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub layers: u64,
    /// Experts of a layer, 0 where there are none.
    pub experts: u64,
    /// Heads of queries in the first layer.
    pub heads: u64,
    /// Heads of keys and values in the first layer.
    pub kv_heads: u64,
}

impl ModelFacts {
    /// From a model's metadata.
    ///
    /// # Errors
    /// If the architecture or the number of layers is missing, or a value is of another kind.
    pub fn of(metadata: &Metadata) -> Result<Self, FormatError> {
        let architecture = metadata.architecture()?.to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        // Where layers differ there is a number for each.
        let first = |name: &str| match metadata.get(&key(name)) {
            Some(Value::Array(_)) => Ok(metadata.u64s_opt(&key(name))?.and_then(|all| all.first().copied())),
            _ => metadata.u64_opt(&key(name)),
        };
        let layers = metadata.u64(&key("block_count"))?;
        let experts = metadata.u64_opt(&key("expert_count"))?.unwrap_or(0);
        let heads = first("attention.head_count")?.unwrap_or(0);
        let kv_heads = first("attention.head_count_kv")?.unwrap_or(heads);
        Ok(Self { architecture, layers, experts, heads, kv_heads })
    }

    /// At least four heads of queries for each of keys and values, which are so small then that more bits for them are cheap.
    fn shares_values(&self) -> bool {
        self.heads.checked_div(self.kv_heads).is_some_and(|shared| shared >= 4)
    }

    /// What llama.cpp takes for a model of 70 billion parameters with shared values.
    fn is_70b(&self) -> bool {
        match self.architecture.as_str() {
            "llama" => self.layers == 80 && self.experts != 8 && self.heads != self.kv_heads,
            "qwen2" | "deci" | "olmo" => self.layers == 80,
            "jais2" => self.layers == 68,
            _ => false,
        }
    }
}

/// The format of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The format.
    pub ttype: TensorType,
    /// What it would have if its rows were whole blocks of that.
    pub wanted: TensorType,
}

impl Mixture {
    /// By llama.cpp's name, in any case; `Q3_K`, `Q4_K` and `Q5_K` are the `_M` of these.
    ///
    /// # Errors
    /// [`ConvertError::UnknownMixture`] with the names that there are.
    pub fn named(name: &str) -> Result<Self, ConvertError> {
        let long = |short: &str| name.eq_ignore_ascii_case(short).then(|| format!("{short}_M"));
        let long = ["Q3_K", "Q4_K", "Q5_K"].into_iter().find_map(long);
        let asked = long.as_deref().unwrap_or(name);
        let found = Self::ALL.iter().find(|mixture| mixture.name().eq_ignore_ascii_case(asked));
        found
            .copied()
            .ok_or_else(|| ConvertError::UnknownMixture { name: name.to_owned(), known: Self::names() })
    }

    /// The names that there are, with commas.
    pub fn names() -> String {
        Self::ALL.iter().map(|mixture| mixture.name()).collect::<Vec<_>>().join(", ")
    }

    /// The formats of a model's tensors, by name and dimensions; `None` for one that stays as it is. What `keep` names has the
    /// format that it says. An importance matrix changes some choices.
    pub fn choose(
        self,
        facts: &ModelFacts,
        imatrix: bool,
        keep: &[Keep],
        tensors: &[(&str, &[u64])],
    ) -> Vec<Option<Choice>> {
        let count = |is: fn(&str) -> bool| tensors.iter().filter(|(name, _)| is(name)).count() as u64;
        let mut rules = Rules {
            mixture: self,
            facts,
            imatrix,
            tied: count(|name| name == "output.weight") == 0,
            all_values: count(|name| Role::of(name) == Role::Value),
            values: 0,
            downs: 0,
        };
        // Some rules count tensors as they come in llama.cpp: by layer, then by name.
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&index| tensors.get(index).map(|(name, _)| (layer_of(name), *name)));
        let mut choices = vec![None; tensors.len()];
        for index in order {
            let Some(&(name, dims)) = tensors.get(index) else { continue };
            if !is_quantised(name, dims) {
                continue;
            }
            let cols = dims.first().copied().unwrap_or(1);
            let kept = keep.iter().find(|keep| keep.matches(name)).map(|keep| keep.ttype);
            let wanted = kept.unwrap_or_else(|| rules.format(name, cols));
            if let Some(choice) = choices.get_mut(index) {
                *choice = Some(Choice { ttype: fitting(wanted, cols), wanted });
            }
        }
        choices
    }

    /// Whether a tensor in this format would be of no use without an importance matrix.
    pub fn needs_imatrix(self, name: &str, ttype: TensorType) -> bool {
        let table = matches!(Role::of(name), Role::Output | Role::Embedding);
        self == Self::Q2KS && ttype == TensorType::Q2K && !table
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a tensor is for, as far as rules go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    Embedding,
    /// Values of attention, alone or in one with others.
    Value,
    Key,
    AttentionOutput,
    Down,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ if ["attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight"]
                .iter()
                .any(|n| name.contains(n)) =>
            {
                Self::Value
            }
            _ if name.contains("attn_k.weight") => Self::Key,
            _ if name.contains("attn_output.weight") => Self::AttentionOutput,
            _ if name.contains("ffn_down") => Self::Down,
            _ => Self::Other,
        }
    }
}

/// Matrices that are too small or too sensitive, by parts of their names.
const LEFT_ALONE: [&str; 35] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether a mixture has a say in a tensor's format: matrices are quantised, vectors and small tables are not.
fn is_quantised(name: &str, dims: &[u64]) -> bool {
    dims.iter().skip(1).any(|&dim| dim > 1)
        && name.ends_with("weight")
        && !matches!(name, "position_embd.weight" | "token_types.weight")
        && !LEFT_ALONE.iter().any(|part| name.contains(part))
}

/// The layer in `blk.7.attn_q.weight`; -1 outside of layers, which come first.
fn layer_of(name: &str) -> i64 {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    number.and_then(|(number, _)| number.parse().ok()).unwrap_or(-1)
}

/// The layers that get more bits: the first and the last eighth and every third between.
fn more_bits(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= layers.saturating_mul(7) / 8 || (layer - eighth) % 3 == 2
}

/// The format, or one with smaller blocks and no fewer bits if rows of `cols` are no whole blocks of it.
fn fitting(wanted: TensorType, cols: u64) -> TensorType {
    let fits = |ttype: TensorType| cols.is_multiple_of(ttype.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        TensorType::Q2K | TensorType::Q3K => TensorType::Q4_0,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        TensorType::IQ4XS => TensorType::IQ4NL,
        other => other,
    };
    if fits(smaller) { smaller } else { TensorType::F16 }
}

/// A mixture at work on a model.
struct Rules<'a> {
    mixture: Mixture,
    facts: &'a ModelFacts,
    imatrix: bool,
    /// Whether the embeddings are the output head.
    tied: bool,
    /// Tensors of values in the model, and those that had their turn.
    all_values: u64,
    values: u64,
    /// Ways down that had their turn.
    downs: u64,
}

impl Rules<'_> {
    fn format(&mut self, name: &str, cols: u64) -> TensorType {
        let base = self.mixture.base();
        if base.block_len() == 1 {
            return base;
        }
        match Role::of(name) {
            Role::Output => self.head(cols),
            Role::Embedding if self.tied => self.head(cols),
            Role::Value => self.value(),
            // With eight experts, attention is so small a part of the model that more bits for it are cheap.
            Role::Key if self.facts.experts == 8 => TensorType::Q8_0,
            Role::AttentionOutput => self.attention_output(),
            Role::Down => self.down(name),
            Role::Embedding | Role::Key | Role::Other => base,
        }
    }

    fn falcon(&self) -> bool {
        self.facts.architecture == "falcon"
    }

    fn head(&self, cols: u64) -> TensorType {
        let base = self.mixture.base();
        if self.falcon() || base == TensorType::Q8_0 || !cols.is_multiple_of(base.block_len() as u64) {
            TensorType::Q8_0
        } else {
            TensorType::Q6K
        }
    }

    fn value(&mut self) -> TensorType {
        use Mixture as M;
        let at = self.values;
        self.values += 1;
        if self.facts.experts == 8 {
            return TensorType::Q8_0;
        }
        let shared = self.facts.shares_values();
        let chosen = match self.mixture {
            M::Q2K if !shared => TensorType::Q3K,
            M::Q2K | M::Q2KS if shared => TensorType::Q4K,
            M::Q3KM if at >= 2 => TensorType::Q4K,
            M::Q3KM | M::Q3KL => TensorType::Q5K,
            M::IQ4NL | M::IQ4XS if shared => TensorType::Q5K,
            M::Q4KM | M::Q5KM if more_bits(at, self.all_values) => TensorType::Q6K,
            M::Q4KS if at < 4 => TensorType::Q5K,
            mixture => mixture.base(),
        };
        match chosen {
            TensorType::Q3K | TensorType::Q4K if self.facts.is_70b() => TensorType::Q5K,
            chosen => chosen,
        }
    }

    fn attention_output(&self) -> TensorType {
        use Mixture as M;
        match self.mixture {
            M::Q3KL if self.falcon() => TensorType::Q4K,
            mixture if self.falcon() => mixture.base(),
            M::Q2K | M::Q3KS | M::Q3KM | M::Q4KS | M::Q4KM | M::IQ4NL | M::IQ4XS
                if self.facts.experts == 8 =>
            {
                TensorType::Q5K
            }
            mixture if self.facts.experts == 8 => mixture.base(),
            M::Q2K => TensorType::Q3K,
            M::Q3KM => TensorType::Q4K,
            M::Q3KL => TensorType::Q5K,
            mixture => mixture.base(),
        }
    }

    fn down(&mut self, name: &str) -> TensorType {
        use Mixture as M;
        let layers = self.facts.layers;
        let turn = self.downs;
        self.downs += 1;
        // With experts a layer may have several.
        let layer = if self.facts.experts > 1 { u64::try_from(layer_of(name)).unwrap_or(turn) } else { turn };
        let (first, more) = (layer < layers / 8, more_bits(layer, layers));
        match self.mixture {
            M::Q2K => TensorType::Q3K,
            M::Q2KS if first => TensorType::Q4K,
            M::Q3KM if layer < layers / 16 => TensorType::Q5K,
            M::Q3KM if self.falcon() && !more => TensorType::Q3K,
            M::Q3KM => TensorType::Q4K,
            M::Q3KL if self.falcon() => TensorType::Q4K,
            M::Q3KL => TensorType::Q5K,
            M::Q4KM if self.falcon() && more && layer >= layers / 16 => TensorType::Q5K,
            M::Q4KM | M::Q5KM if more => TensorType::Q6K,
            M::Q4KS if first && !self.falcon() => TensorType::Q5K,
            M::IQ4NL | M::IQ4XS if first && !self.imatrix => TensorType::Q5K,
            // Importance can lead the first ones astray in formats without a minimum.
            M::Q4_0 if first && self.imatrix => TensorType::Q4_1,
            M::Q5_0 if first && self.imatrix => TensorType::Q5_1,
            mixture => mixture.base(),
        }
    }
}

#[cfg(test)]
mod tests;
