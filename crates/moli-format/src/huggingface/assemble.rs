//! The tensors of a folder by the names of the convention.

use std::collections::BTreeMap;

use super::data;
use super::family::{Part, Special};
use super::shards::Shards;
use super::{HuggingFaceError, Model};
use crate::safetensors::SafeTensor;
use crate::{FormatError, Tensor};

/// What may stand before the names of the language model, the longest first.
const PREFIXES: &[&str] = &[
    "model.language_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
    "ernie.",
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
    let mut assembly = Assembly { model, tensors: Vec::new(), stacks: BTreeMap::new() };
    for placed in shards.tensors.values() {
        assembly.add(&placed.tensor)?;
    }
    assembly.finish()
}

struct Assembly<'a> {
    model: &'a Model<'a>,
    tensors: Vec<Tensor>,
    /// Experts by number for each tensor that they become.
    stacks: BTreeMap<String, BTreeMap<u32, SafeTensor>>,
}

impl Assembly<'_> {
    fn add(&mut self, tensor: &SafeTensor) -> Result<(), FormatError> {
        let name =
            PREFIXES.iter().find_map(|prefix| tensor.name.strip_prefix(prefix)).unwrap_or(&tensor.name);
        if self.model.wrapped && SENSES.iter().any(|sense| name.starts_with(sense)) {
            return Ok(());
        }
        // What every library computes for itself.
        if [".inv_freq", ".cos_cached", ".sin_cached"].iter().any(|end| name.ends_with(end)) {
            return Ok(());
        }
        let unknown = || HuggingFaceError::UnknownTensor {
            tensor: tensor.name.clone(),
            model_type: self.model.family.model_types.join(" or "),
        };
        if let Some((layer, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            let layer: u32 = layer.parse().map_err(|_| unknown())?;
            if layer >= self.model.layers {
                // Layers that guess tokens further ahead.
                let ahead = self.model.family.special == Special::DeepSeek;
                return if ahead { Ok(()) } else { Err(unknown().into()) };
            }
            return self.part(layer, part, tensor, unknown);
        }
        let new = match name {
            "embed_tokens.weight" | "tok_embeddings.weight" => "token_embd.weight",
            "norm.weight" if self.norms_from_one() => {
                self.tensors.push(data::plus_one("output_norm.weight".to_owned(), tensor)?);
                return Ok(());
            }
            "norm.weight" => "output_norm.weight",
            "norm.bias" => "output_norm.bias",
            "lm_head.weight" | "output.weight" if self.model.tied => return Ok(()),
            "lm_head.weight" | "output.weight" => "output.weight",
            "lm_head.bias" => "output.bias",
            _ => return Err(unknown().into()),
        };
        self.tensors.push(data::renamed(new.to_owned(), tensor)?);
        Ok(())
    }

    fn norms_from_one(&self) -> bool {
        self.model.family.parts.iter().any(|(_, part)| matches!(part, Part::PlusOne(_)))
    }

    /// A tensor of a layer.
    fn part(
        &mut self,
        layer: u32,
        name: &str,
        tensor: &SafeTensor,
        unknown: impl Fn() -> HuggingFaceError,
    ) -> Result<(), FormatError> {
        let (stem, end) = match name.rsplit_once('.') {
            Some((stem, "weight")) => (stem, "weight"),
            Some((stem, "bias")) => (stem, "bias"),
            _ => (name, "weight"),
        };
        let found = self.model.family.parts.iter().find_map(|(pattern, part)| {
            let expert = matches(pattern, stem)?;
            Some((*part, expert))
        });
        let (part, expert) = found.ok_or_else(&unknown)?;
        let new = |stem: &str| format!("blk.{layer}.{stem}.{end}");
        match part {
            Part::As(stem) => self.tensors.push(data::renamed(new(stem), tensor)?),
            Part::PlusOne(stem) => self.tensors.push(data::plus_one(new(stem), tensor)?),
            Part::Stack(stem) => {
                let expert = expert.ok_or_else(unknown)?;
                self.stacks.entry(new(stem)).or_default().insert(expert, tensor.clone());
            }
            Part::GateUp(gate, up) => {
                let (gate_rows, up_rows) = halves(tensor)?;
                self.tensors.push(data::renamed(new(gate), &gate_rows)?);
                self.tensors.push(data::renamed(new(up), &up_rows)?);
            }
            Part::Ignore => {}
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Tensor>, FormatError> {
        for (name, experts) in std::mem::take(&mut self.stacks) {
            // Numbers from 0 without a gap.
            if let Some((gap, _)) = (0_u32..).zip(experts.keys()).find(|(wanted, there)| wanted != *there) {
                let tensor = format!("{name} (expert {gap})");
                return Err(HuggingFaceError::MissingTensor { tensor }.into());
            }
            let experts: Vec<SafeTensor> = experts.into_values().collect();
            let stacked = data::stack(&name, &experts)?;
            self.tensors.push(data::renamed(name, &stacked)?);
        }
        // Without this, a decoder would take the embeddings.
        if !self.model.tied && !self.tensors.iter().any(|tensor| tensor.name == "output.weight") {
            return Err(HuggingFaceError::MissingTensor { tensor: "lm_head.weight".to_owned() }.into());
        }
        Ok(self.tensors)
    }
}

/// The first and the second half of the rows, for each expert if there are some.
fn halves(tensor: &SafeTensor) -> Result<(SafeTensor, SafeTensor), FormatError> {
    let split = |tensor: &SafeTensor| {
        let half = tensor.shape.first().copied().unwrap_or(0) / 2;
        Ok::<_, HuggingFaceError>((data::rows(tensor, 0, half)?, data::rows(tensor, half, half)?))
    };
    let axis = usize::from(tensor.shape.len() > 2);
    if !tensor.shape.get(axis).is_some_and(|rows| rows.is_multiple_of(2)) {
        let mut expected = tensor.shape.clone();
        expected.iter_mut().skip(axis).take(1).for_each(|rows| *rows += 1);
        let actual = tensor.shape.clone();
        return Err(HuggingFaceError::Shape { tensor: tensor.name.clone(), expected, actual }.into());
    }
    if axis == 0 {
        return Ok(split(tensor)?);
    }
    let experts = tensor.shape.first().copied().unwrap_or(0);
    let pairs: Vec<_> =
        (0..experts).map(|expert| split(&data::row(tensor, expert)?)).collect::<Result<_, _>>()?;
    let (first, second): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    Ok((data::stack(&tensor.name, &first)?, data::stack(&tensor.name, &second)?))
}

/// Whether a part's name is of this pattern, and the number in the place of its `*`.
fn matches(pattern: &str, name: &str) -> Option<Option<u32>> {
    let Some((before, behind)) = pattern.split_once('*') else {
        return (pattern == name).then_some(None);
    };
    let number = name.strip_prefix(before)?.strip_suffix(behind)?;
    number.parse().ok().map(Some)
}
