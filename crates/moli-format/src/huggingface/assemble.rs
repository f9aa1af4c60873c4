//! The tensors of a folder by the names of the convention.

use super::data::{self, Source};
use super::family::{Encoder, Part, Special};
use super::shards::Shards;
use super::{Entries, HuggingFaceError, Model, delta, gemma4, harmony};
use crate::{FormatError, Tensor};

/// What may stand before the names of the language model, the longest first.
const PREFIXES: &[&str] = &[
    "model.language_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "ernie.",
    "gpt_neox.",
    "transformer.",
    "bert.",
    "roberta.",
    "nomic_bert.",
];
/// The parts of a model that also sees or hears, none of which its language model needs.
const SENSES: &[&str] = &[
    "vision_tower.",
    "vision_model.",
    "vision_encoder.",
    "visual.",
    "multi_modal_projector.",
    "mm_projector.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "patch_merger.",
];

/// All tensors of the language model, renamed. Those that are unknown are an error, since leaving one out would change the
/// model.
pub(super) fn tensors(model: &Model<'_>, shards: &Shards) -> Result<Vec<Tensor>, FormatError> {
    let names = model.family.names;
    let saved = |wanted: &str| {
        let named = |name: &str| {
            let (stem, end) = ending(without_prefix(name));
            end == "weight" && names.new_stem(stem) == Some(wanted)
        };
        shards.tensors.iter().find(|(name, _)| named(name)).map(|(_, placed)| &placed.tensor)
    };
    let (head, embeddings) = (saved("output"), saved("token_embd"));
    let tied = match (model.tied, head, embeddings) {
        // Whoever tied them did not save the same weights twice.
        (None, head, _) => head.is_none(),
        // Two that differ are not tied, whatever the configuration says.
        (Some(true), Some(head), Some(embeddings)) if model.family.encoder.is_none() => {
            head.shape == embeddings.shape
                && head.stored == embeddings.stored
                && head.data.as_slice() == embeddings.data.as_slice()
        }
        (Some(tied), ..) => tied,
    };
    let layers = gemma4::has_layers(model).then(|| gemma4::Layers::of(model)).transpose()?;
    let mut assembly = Assembly { model, shards, tied, layers, tensors: Vec::new() };
    for placed in shards.tensors.values() {
        assembly.add(&placed.tensor)?;
    }
    // Without this, a decoder would take the embeddings.
    if !tied && !assembly.tensors.iter().any(|tensor| tensor.name == "output.weight") {
        let head = names.old_stem("output").unwrap_or_default();
        return Err(HuggingFaceError::MissingTensor { tensor: format!("{head}.weight") }.into());
    }
    assembly.check_values()?;
    assembly.add_streams()?;
    // Packed weights may come with biases of zeros.
    if model.root.get("quantization_config").is_none() {
        biases(model, shards)?;
    }
    Ok(assembly.tensors)
}

/// The numbers that each layer has one of, as lists.
pub(super) fn lists(model: &Model<'_>, shards: &Shards, entries: &mut Entries) -> Result<(), FormatError> {
    let listed = model.family.parts.iter().filter_map(|(name, part)| match part {
        Part::Listed(key) => Some((*name, *key)),
        _ => None,
    });
    for (part, key) in listed {
        let mut list = Vec::new();
        for layer in 0..model.layers {
            let name = format!("{}{layer}.{part}", model.family.layers());
            let named = |found: &String| without_prefix(found) == name;
            let placed = shards.tensors.iter().find(|(found, _)| named(found)).map(|(_, placed)| placed);
            let tensor = match placed {
                Some(placed) => &placed.tensor,
                // Where no layer has one, as with another activation, a decoder that wants them says so.
                None if layer == 0 => break,
                None => return Err(HuggingFaceError::MissingTensor { tensor: name }.into()),
            };
            let mut numbers = data::floats(tensor.float_type()?, &tensor.data);
            match (numbers.next(), numbers.next()) {
                (Some(number), None) => list.push(number),
                _ => data::expect(tensor, &[1])?,
            }
        }
        if !list.is_empty() {
            entries.plain(key, list);
        }
    }
    Ok(())
}

/// Fields that tell whether there are biases, the architectures whose code reads them, and the matrices that are meant.
const BIASES: &[(&str, &[&str], &[&str])] = &[
    (
        "attention_bias",
        &[
            "llama",
            "qwen3",
            "qwen3moe",
            "qwen3next",
            "qwen35",
            "qwen35moe",
            "gemma",
            "gemma2",
            "gemma3",
            "gemma4",
            "gemma3n",
            "smollm3",
            "glm4",
            "glm4moe",
            "granite",
            "granitemoe",
            "olmo2",
            "olmoe",
            "deepseek2",
            "gpt-oss",
            "qwen3vl",
            "qwen3vlmoe",
            "command-r",
            "cohere2",
            "seed_oss",
            "hunyuan-dense",
            "arcee",
            "nemotron",
            "gptneox",
            "olmo",
            "phimoe",
            "apertus",
        ],
        &["q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa", "query_key_value", "dense"],
    ),
    (
        "mlp_bias",
        &["llama", "smollm3", "granite", "deepseek2", "seed_oss", "arcee", "nemotron"],
        &["gate_proj", "up_proj", "down_proj"],
    ),
    ("use_qkv_bias", &["stablelm"], &["q_proj", "k_proj", "v_proj"]),
    ("qkv_bias", &["qwen2moe"], &["q_proj", "k_proj", "v_proj"]),
    ("bias", &["falcon"], &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    (
        "use_bias",
        &["starcoder2", "ernie4_5", "ernie4_5-moe"],
        &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_fc", "c_proj"],
    ),
];

/// Whether biases are there as the configuration has it, where it says so. The library computes with what the configuration says,
/// which is another model then.
fn biases(model: &Model<'_>, shards: &Shards) -> Result<(), FormatError> {
    for &(field, architectures, matrices) in BIASES {
        if !architectures.contains(&model.family.architecture) {
            continue;
        }
        // Falcon's tells that there are none where it is absent.
        let absent = (field == "bias").then_some(false);
        let Some(value) = model.fields.flag(field)?.or(absent) else { continue };
        let of_matrix = |name: &&String, end: &str| {
            let stem = name.strip_suffix(end).and_then(|stem| stem.rsplit('.').next());
            let layers = model.family.layers();
            stem.is_some_and(|stem| matrices.contains(&stem)) && without_prefix(name).starts_with(layers)
        };
        let find = |end: &str| shards.tensors.keys().find(|name| of_matrix(name, end));
        let tensor = match (value, find(".bias")) {
            (true, None) => find(".weight").map(|name| name.replace(".weight", ".bias")),
            (false, there) => there.cloned(),
            (true, Some(_)) => None,
        };
        if let Some(tensor) = tensor {
            return Err(HuggingFaceError::Biases { field, value, tensor }.into());
        }
    }
    Ok(())
}

struct Assembly<'a> {
    model: &'a Model<'a>,
    shards: &'a Shards,
    /// Whether the logits are computed with the embeddings.
    tied: bool,
    /// What sets the layers of Gemma 3n and 4 apart.
    layers: Option<gemma4::Layers>,
    tensors: Vec<Tensor>,
}

impl Assembly<'_> {
    fn add(&mut self, tensor: &Source) -> Result<(), FormatError> {
        let name = without_prefix(&tensor.name);
        if (self.model.wrapped || self.model.family.sees())
            && SENSES.iter().any(|sense| name.starts_with(sense))
        {
            return Ok(());
        }
        // What every library computes for itself, and layers that guess tokens further ahead.
        if [".inv_freq", ".cos_cached", ".sin_cached"].iter().any(|end| name.ends_with(end))
            || self.model.family.special == Special::Ernie && name.starts_with("mtp_")
            || self.model.family.special == Special::DeltaNet && name.starts_with("mtp.")
        {
            return Ok(());
        }
        // A tensor of nothing could have any number of rows.
        data::dims(&tensor.name, &tensor.shape)?;
        let layers = self.model.family.layers();
        if let Some((layer, part)) = name.strip_prefix(layers).and_then(|rest| rest.split_once('.')) {
            let layer: u32 = layer.parse().map_err(|_| self.unknown(tensor))?;
            if layer < self.model.layers {
                return self.part(layer, part, tensor);
            }
            let ahead = matches!(self.model.family.special, Special::DeepSeek | Special::Glm4Moe);
            return if ahead { Ok(()) } else { Err(self.unknown(tensor).into()) };
        }
        if let Some(encoder) = self.model.family.encoder {
            return self.around(encoder, name, tensor);
        }
        if gemma4::is_way(self.model, name)? {
            // All of them together, later.
            return Ok(());
        }
        let (stem, end) = ending(name);
        let new = self.model.family.names.new_stem(stem).ok_or_else(|| self.unknown(tensor))?;
        let name = format!("{new}.{end}");
        match (new, end) {
            ("output_norm", "weight") if self.model.family.norms_from_one() => {
                self.tensors.push(data::plus_one(name, tensor)?);
            }
            ("output", "weight") if self.tied => {}
            ("output", "weight") if self.model.unit_output => {
                self.tensors.push(data::unit_rows(name, tensor)?);
            }
            _ => self.keep(name, tensor)?,
        }
        Ok(())
    }

    /// A tensor of an encoder that is in no layer.
    fn around(&mut self, encoder: &Encoder, name: &str, tensor: &Source) -> Result<(), FormatError> {
        let (stem, end) = ending(name);
        let Some(new) = encoder.stem(stem, self.model.sorts) else {
            let ignored = encoder.ignored.iter().any(|beginning| name.starts_with(beginning));
            return if ignored { Ok(()) } else { Err(self.unknown(tensor).into()) };
        };
        let unused = self.model.unused_positions as usize;
        if new == "position_embd" && unused > 0 {
            let rows = tensor.shape.first().map_or(0, |rows| rows.saturating_sub(unused));
            return self.keep(format!("{new}.{end}"), &data::rows(tensor, unused, rows)?);
        }
        self.keep(format!("{new}.{end}"), tensor)
    }

    /// Whether those layers have matrices for their values that the configuration gives some: a decoder goes by the tensors.
    fn check_values(&self) -> Result<(), FormatError> {
        let Some(layers) = &self.layers else { return Ok(()) };
        for layer in 0..layers.slides.len() {
            let name = format!("blk.{layer}.attn_v.weight");
            let (there, wanted) =
                (self.tensors.iter().any(|tensor| tensor.name == name), layers.has_values(layer));
            if there && !wanted {
                return Err(self.model.fields.unsupported("attention_k_eq_v").into());
            }
            if wanted && !there {
                let tensor = format!("layers.{layer}.self_attn.v_proj.weight");
                return Err(HuggingFaceError::MissingTensor { tensor }.into());
            }
        }
        Ok(())
    }

    /// The ways to streams beside each other and back, each in one tensor.
    fn add_streams(&mut self) -> Result<(), FormatError> {
        let Some(others) = gemma4::other_streams(self.model)? else { return Ok(()) };
        for (name, old) in gemma4::WAYS {
            let parts = (0..others).map(|i| {
                let name = format!("{old}.{i}.weight");
                let mut all = self.shards.tensors.values().map(|placed| &placed.tensor);
                let part = all.find(|tensor| without_prefix(&tensor.name) == name);
                part.cloned().ok_or(HuggingFaceError::MissingTensor { tensor: name })
            });
            let mut all = data::join(name, &parts.collect::<Result<Vec<_>, _>>()?)?;
            if let Some(rows) = all.shape.first_mut() {
                *rows /= others;
            }
            all.shape.insert(0, others);
            self.keep(name.to_owned(), &all)?;
        }
        Ok(())
    }

    /// The error for a tensor whose name means nothing here.
    fn unknown(&self, tensor: &Source) -> HuggingFaceError {
        let model_type = self.model.family.model_types.join(" or ");
        HuggingFaceError::UnknownTensor { tensor: tensor.name.clone(), model_type }
    }

    /// The same data under another name.
    fn keep(&mut self, name: String, tensor: &Source) -> Result<(), FormatError> {
        self.tensors.push(data::renamed(name, tensor)?);
        Ok(())
    }

    /// A tensor of a layer.
    fn part(&mut self, layer: u32, name: &str, tensor: &Source) -> Result<(), FormatError> {
        let parts = self.model.family.parts;
        let find =
            |stem: &str| parts.iter().find_map(|(pattern, part)| Some((*part, matches(pattern, stem)?)));
        let (stem, end) = ending(name);
        let (part, expert) = find(stem).ok_or_else(|| self.unknown(tensor))?;
        if self.layers.as_ref().is_some_and(|layers| layers.is_unread(layer as usize, stem)) {
            return Ok(());
        }
        let behind = expert.map(|expert| format!(".{expert}")).unwrap_or_default();
        let new = |stem: &str| format!("blk.{layer}.{stem}{behind}.{end}");
        match part {
            Part::As(stem) => self.keep(new(stem), tensor),
            Part::Bias(stem) => {
                let flat = Source { shape: vec![tensor.shape.iter().product()], ..tensor.clone() };
                self.keep(format!("blk.{layer}.{stem}.bias"), &flat)
            }
            Part::PlusOne(stem) if end == "bias" => self.keep(new(stem), tensor),
            Part::PlusOne(stem) => {
                self.tensors.push(data::plus_one(new(stem), tensor)?);
                Ok(())
            }
            Part::Taps(stem) => self.keep(new(stem), &delta::taps(tensor)?),
            Part::Scale(stem) => self.keep(format!("blk.{layer}.{stem}.scale"), tensor),
            Part::Delta(part) => {
                let heads = delta::Heads::of(self.model)?;
                self.tensors.extend(delta::tensors(part, &format!("blk.{layer}"), tensor, &heads)?);
                Ok(())
            }
            Part::GateUp => match data::experts(tensor)? {
                Some(experts) => {
                    for (expert, tensor) in experts.iter().enumerate() {
                        let (gate, up) = data::halves(tensor)?;
                        self.keep(format!("blk.{layer}.ffn_gate.{expert}.{end}"), &gate)?;
                        self.keep(format!("blk.{layer}.ffn_up.{expert}.{end}"), &up)?;
                    }
                    Ok(())
                }
                None => Err(self.unknown(tensor).into()),
            },
            Part::SharedGateUp => {
                let (gate, up) = data::halves(tensor)?;
                self.keep(new("ffn_gate_shexp"), &gate)?;
                self.keep(new("ffn_up_shexp"), &up)
            }
            Part::Down => self.keep(new("ffn_down_exps"), tensor),
            Part::Qkv => self.qkv(tensor, &new, 1),
            Part::GroupedQkv => self.qkv(tensor, &new, self.model.kv_heads as usize),
            Part::FusedQkv => {
                let parts = self.split(tensor, self.model.kv_heads as usize)?;
                match self.model.kv_heads {
                    // They are in that order already.
                    1 => self.keep(new("attn_qkv"), tensor),
                    _ => self.keep(new("attn_qkv"), &data::join(&tensor.name, &parts.concat())?),
                }
            }
            Part::Transposed(stem) if end == "weight" => self.keep(new(stem), &data::transposed(tensor)?),
            Part::Transposed(stem) => self.keep(new(stem), tensor),
            // Lists are made of them elsewhere.
            Part::Ignored | Part::Listed(_) => Ok(()),
            Part::Harmony(part) => {
                let scales = |end: &str| {
                    let name = tensor.name.strip_suffix("_blocks").unwrap_or(&tensor.name);
                    let name = format!("{name}{end}");
                    let scales = self.shards.tensors.get(&name).map(|placed| &placed.tensor);
                    scales.ok_or(HuggingFaceError::MissingTensor { tensor: name })
                };
                let made = harmony::tensors(part, &format!("blk.{layer}"), tensor, || scales("_scales"))?;
                self.tensors.extend(made);
                Ok(())
            }
        }
    }

    /// Queries, keys and values out of one matrix or bias, in so many groups of all three.
    fn qkv(
        &mut self,
        tensor: &Source,
        new: &dyn Fn(&str) -> String,
        groups: usize,
    ) -> Result<(), FormatError> {
        for (stem, parts) in ["attn_q", "attn_k", "attn_v"].into_iter().zip(self.split(tensor, groups)?) {
            match parts.as_slice() {
                [one] => self.keep(new(stem), one)?,
                parts => self.keep(new(stem), &data::join(&tensor.name, parts)?)?,
            }
        }
        Ok(())
    }

    /// The rows of queries, keys and values, those of each group.
    fn split(&self, tensor: &Source, groups: usize) -> Result<[Vec<Source>; 3], FormatError> {
        let model = self.model;
        let (head, heads, kv_heads) =
            (model.head_dim as usize, model.heads as usize, model.kv_heads as usize);
        if groups == 0 || heads % groups != 0 || kv_heads % groups != 0 {
            return Err(model.fields.wrong("num_key_value_heads", "a divisor of num_attention_heads").into());
        }
        let (queries, keys) =
            ((heads / groups).saturating_mul(head), (kv_heads / groups).saturating_mul(head));
        let group = queries.saturating_add(keys.saturating_mul(2));
        let mut expected = tensor.shape.clone();
        expected.iter_mut().take(1).for_each(|rows| *rows = groups.saturating_mul(group));
        data::expect(tensor, &expected)?;
        let of = |first: usize, rows: usize| {
            (0..groups).map(|index| data::rows(tensor, index * group + first, rows)).collect::<Result<_, _>>()
        };
        Ok([of(0, queries)?, of(queries, keys)?, of(queries + keys, keys)?])
    }
}

/// A name without what may stand before those of the language model.
pub(super) fn without_prefix(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// A name's stem and whether it is of a weight or a bias, which the norms of the first libraries named otherwise. Some names
/// have nothing behind them.
pub(super) fn ending(name: &str) -> (&str, &'static str) {
    match name.rsplit_once('.') {
        Some((stem, "weight" | "gamma")) => (stem, "weight"),
        Some((stem, "bias" | "beta")) => (stem, "bias"),
        _ => (name, "weight"),
    }
}

/// Whether a part's name is of this pattern, and the number in the place of its `*`.
pub(super) fn matches(pattern: &str, name: &str) -> Option<Option<u32>> {
    let Some((before, behind)) = pattern.split_once('*') else {
        return (pattern == name).then_some(None);
    };
    let number = name.strip_prefix(before)?.strip_suffix(behind)?;
    number.parse().ok().map(Some)
}
