//! Tensors by the names of folders.

use super::{FolderTensor, Rows, Source, encoder};
use crate::huggingface::HuggingFaceError;
use crate::huggingface::family::{Harmony, Part, Special};
use crate::huggingface::gemma4::WAYS;
use crate::{Bytes, FormatError, Tensor, TensorType};

/// All of a model's tensors.
pub(super) fn all(source: &Source<'_>) -> Result<Vec<FolderTensor>, FormatError> {
    let rotates = source.rotates()?;
    let mut folder = Folder { source, rotates, tensors: Vec::new() };
    for tensor in source.model.tensors() {
        folder.add(tensor)?;
    }
    folder.lists()?;
    Ok(folder.tensors)
}

pub(super) struct Folder<'a> {
    pub(super) source: &'a Source<'a>,
    /// Per layer whether it rotates, where not all do.
    rotates: Option<Vec<bool>>,
    pub(super) tensors: Vec<FolderTensor>,
}

/// A tensor of a layer: `blk.{layer}.{stem}[.{expert}][.{end}]`.
pub(super) struct Place<'a> {
    pub(super) layer: usize,
    pub(super) stem: &'a str,
    expert: Option<usize>,
    pub(super) end: &'a str,
}

impl<'a> Place<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (stem, end) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let numbered = stem.rsplit_once('.').and_then(|(stem, number)| Some((stem, number.parse().ok()?)));
        let (stem, expert) = numbered.map_or((stem, None), |(stem, expert)| (stem, Some(expert)));
        Some(Self { layer: layer.parse().ok()?, stem, expert, end })
    }
}

impl Folder<'_> {
    fn add(&mut self, tensor: &Tensor) -> Result<(), FormatError> {
        let no_name = || HuggingFaceError::NoName { tensor: tensor.name.clone() };
        if super::rope::is_factors(&tensor.name) {
            return Ok(());
        }
        if let Some(place) = Place::of(&tensor.name) {
            return if self.part(&place, tensor)? { Ok(()) } else { Err(no_name().into()) };
        }
        if self.source.family.encoder.is_some() {
            let name = encoder::name(self.source, &tensor.name).ok_or_else(no_name)?;
            let mut new = plain(name, tensor);
            let unused = encoder::unused_positions(self.source)?;
            if tensor.name == encoder::POSITIONS && unused > 0 {
                let zeros = encoder::zeros(tensor, unused);
                new.rows.insert(0, stretch(&zeros, zeros.cols()));
                new.shape.iter_mut().take(1).for_each(|rows| *rows += unused);
            }
            self.tensors.push(new);
            return Ok(());
        }
        let way = WAYS.iter().find(|(new, _)| *new == tensor.name && self.source.is(Special::Gemma3n));
        if let Some((_, old)) = way {
            let &[cols, rows, count] = tensor.dims.as_slice() else { return Err(shape(tensor, &[0, 0, 0])) };
            for index in 0..count as usize {
                let count = rows as usize;
                let rows = Rows { first: index * count, count, ..stretch(tensor, cols as usize) };
                let name = format!("model.{old}.{index}.weight");
                self.tensors.push(made(name, vec![count, cols as usize], vec![rows]));
            }
            return Ok(());
        }
        let (stem, end) = tensor.name.rsplit_once('.').ok_or_else(no_name)?;
        let old = self.source.family.names.old_stem(stem).ok_or_else(no_name)?;
        let minus_one = tensor.name == "output_norm.weight" && self.source.family.norms_from_one();
        self.tensors.push(FolderTensor { minus_one, ..plain(format!("{old}.{end}"), tensor) });
        Ok(())
    }

    /// Adds the numbers of each layer that the convention has as lists.
    fn lists(&mut self) -> Result<(), FormatError> {
        for (pattern, part) in self.source.family.parts {
            let Part::Listed(key) = part else { continue };
            let Some(numbers) = self.source.model.metadata().f32s_opt(key)? else { continue };
            if numbers.len() != self.source.layers {
                let (key, value) = ((*key).to_owned(), format!("{} numbers", numbers.len()));
                return Err(HuggingFaceError::NoField { key, value }.into());
            }
            for (layer, number) in numbers.iter().enumerate() {
                let names = self.source.family.names;
                let tensor = Tensor {
                    name: format!("{}{}{layer}.{pattern}", names.prefix, names.layers),
                    ttype: TensorType::F32,
                    dims: vec![1],
                    data: Bytes::from_vec(number.to_le_bytes().to_vec()),
                };
                // Two of them are learned, and vectors of one element.
                let shape = if key.contains("alpha") { vec![1] } else { Vec::new() };
                self.tensors.push(made(tensor.name.clone(), shape, vec![stretch(&tensor, 1)]));
            }
        }
        Ok(())
    }

    /// Adds what a part of a layer becomes, or becomes a part of; `false` if the family has no such part.
    fn part(&mut self, place: &Place<'_>, tensor: &Tensor) -> Result<bool, FormatError> {
        if self.source.is(Special::DeltaNet) && self.delta(place, tensor)? {
            return Ok(true);
        }
        if place.end.is_empty() {
            return Ok(false);
        }
        let parts = self.source.family.parts;
        // Falcon's norm is the feed-forward network's own where attention has a second one.
        let second = format!("blk.{}.attn_norm_2.weight", place.layer);
        let shared = self.source.is(Special::Falcon) && self.source.model.tensor(&second).is_none();
        // Of two names the later one is that of the files that people have.
        let find = |wanted: &dyn Fn(&str, &Part) -> bool| {
            let mut parts = parts.iter().rev().filter(|(pattern, _)| !(shared && *pattern == "ln_mlp"));
            parts.find(|(pattern, part)| wanted(pattern, part)).copied()
        };
        let each = |pattern: &str| pattern.contains('*');
        let is_scale =
            |part: &Part| matches!(part, Part::Scale(new) if *new == place.stem) && place.end == "scale";
        let as_it_is = find(&|pattern, part| match part {
            Part::As(new) | Part::PlusOne(new) | Part::Taps(new) | Part::Transposed(new) => {
                *new == place.stem
                    && each(pattern) == place.expert.is_some()
                    && !parts.iter().any(|(_, part)| is_scale(part))
            }
            Part::Bias(new) => *new == place.stem && place.end == "bias",
            Part::Scale(_) => is_scale(part),
            Part::Down => place.stem == "ffn_down_exps" && place.end != "scale",
            Part::GateUp => place.stem == "ffn_gate_up_exps",
            _ => false,
        });
        let of_experts = place.stem.strip_suffix("_exps").and_then(|stem| {
            find(&|pattern, part| each(pattern) && matches!(part, Part::As(new) if *new == stem))
        });
        if let Some((pattern, _)) = of_experts {
            self.experts(pattern, place, tensor)?;
            return Ok(true);
        }
        if let Some((pattern, part)) = as_it_is {
            let pattern = match place.expert {
                Some(expert) => pattern.replace('*', &expert.to_string()),
                None => pattern.to_owned(),
            };
            let mut new = plain(self.name(place, &pattern), tensor);
            new.minus_one = matches!(part, Part::PlusOne(_)) && place.end == "weight";
            if matches!(part, Part::Transposed(_)) && place.end == "weight" {
                new.shape.reverse();
                new.transposed = true;
            }
            // An input of its own for each channel.
            if matches!(part, Part::Taps(_)) && new.shape.len() == 2 {
                new.shape.insert(1, 1);
            }
            // One for all groups of experts, of which there is one.
            if matches!(part, Part::Bias(_)) && self.source.is(Special::Ernie) {
                new.shape.insert(0, 1);
            }
            if matches!(place.stem, "attn_q" | "attn_k") {
                new.rows = self.in_halves(place.layer, stretch(tensor, tensor.cols_of_rows()));
            }
            self.tensors.push(new);
            return Ok(true);
        }
        let both = find(&|_, part| matches!(part, Part::SharedGateUp));
        if let (true, Some((pattern, _))) = (place.stem.ends_with("_shexp"), both) {
            return self.shared_gate_up(pattern, place, tensor);
        }
        let joined =
            find(&|_, part| matches!(part, Part::Qkv | Part::GroupedQkv | Part::FusedQkv | Part::GateUp));
        match (place.stem, joined) {
            ("attn_q", Some((pattern, Part::Qkv | Part::GroupedQkv))) => {
                let groups = if matches!(joined, Some((_, Part::Qkv))) { 1 } else { self.source.kv_heads };
                let (k, v) = (self.beside(place, "attn_k")?, self.beside(place, "attn_v")?);
                let all = [tensor, k, v].map(|tensor| stretch(tensor, tensor.cols_of_rows()));
                self.qkv(pattern, place, all, groups)
            }
            ("attn_qkv", Some((pattern, Part::FusedQkv))) => {
                let Source { heads, kv_heads, head_dim, .. } = *self.source;
                let all = stretch(tensor, tensor.cols_of_rows());
                let (queries, keys) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
                if keys.checked_mul(2).and_then(|both| both.checked_add(queries)) != Some(all.count) {
                    return Err(shape(tensor, &[queries.saturating_add(keys.saturating_mul(2)), all.cols]));
                }
                let part = |first, count| Rows { first, count, ..all.clone() };
                let all = [part(0, queries), part(queries, keys), part(queries + keys, keys)];
                self.qkv(pattern, place, all, kv_heads)
            }
            ("attn_k" | "attn_v", Some((_, Part::Qkv | Part::GroupedQkv))) => Ok(true),
            ("ffn_gate_exps", Some((pattern, Part::GateUp))) => self.gate_up(pattern, place, tensor),
            ("ffn_up_exps", Some((_, Part::GateUp))) => Ok(true),
            _ if self.source.is(Special::GptOss) => self.harmony(place, tensor),
            _ => Ok(false),
        }
    }

    /// A tensor for each expert.
    fn experts(&mut self, pattern: &str, place: &Place<'_>, tensor: &Tensor) -> Result<(), FormatError> {
        let &[cols, rows, count] = tensor.dims.as_slice() else {
            return Err(shape(tensor, &[0, 0, 0]));
        };
        for expert in 0..count as usize {
            let rows = Rows {
                first: expert * rows as usize,
                count: rows as usize,
                ..stretch(tensor, cols as usize)
            };
            let shape = vec![rows.count, cols as usize];
            let name = self.name(place, &pattern.replace('*', &expert.to_string()));
            self.tensors.push(made(name, shape, vec![rows]));
        }
        Ok(())
    }

    /// The other tensor of a part that is made of several.
    pub(super) fn beside(&self, place: &Place<'_>, stem: &str) -> Result<&Tensor, FormatError> {
        let name = format!("blk.{}.{stem}.{}", place.layer, place.end);
        let tensor = self.source.model.tensor(&name);
        Ok(tensor.ok_or(HuggingFaceError::MissingTensor { tensor: name })?)
    }

    /// Queries, keys and values in one tensor, in so many groups of all three.
    fn qkv(
        &mut self,
        pattern: &str,
        place: &Place<'_>,
        [q, k, v]: [Rows; 3],
        groups: usize,
    ) -> Result<bool, FormatError> {
        let source = self.source;
        let total = q.count + k.count + v.count;
        let mut rows = Vec::new();
        for group in 0..groups {
            for (all, heads, turned) in
                [(&q, source.heads, true), (&k, source.kv_heads, true), (&v, source.kv_heads, false)]
            {
                let count = heads / groups.max(1) * source.head_dim;
                if count * groups != all.count {
                    return Err(shape(&all.tensor, &[heads * source.head_dim]));
                }
                let some = Rows { first: all.first + group * count, count, ..all.clone() };
                rows.extend(if turned { self.in_halves(place.layer, some) } else { vec![some] });
            }
        }
        let shape = if q.cols == 1 { vec![total] } else { vec![total, q.cols] };
        self.tensors.push(made(self.name(place, pattern), shape, rows));
        Ok(true)
    }

    /// Of each expert the rows of the gate, then those of what it gates.
    fn gate_up(&mut self, pattern: &str, place: &Place<'_>, gate: &Tensor) -> Result<bool, FormatError> {
        let up = self.beside(place, "ffn_up_exps")?;
        let &[cols, rows, count] = gate.dims.as_slice() else {
            return Err(shape(gate, &[0, 0, 0]));
        };
        if up.dims != gate.dims {
            return Err(shape(up, &[count as usize, rows as usize, cols as usize]));
        }
        let (cols, rows, count) = (cols as usize, rows as usize, count as usize);
        let of = |tensor, expert| Rows { first: expert * rows, count: rows, ..stretch(tensor, cols) };
        let all = (0..count).flat_map(|expert| [of(gate, expert), of(up, expert)]).collect();
        self.tensors.push(made(self.name(place, pattern), vec![count, 2 * rows, cols], all));
        Ok(true)
    }

    /// The rows of the gate, then those of what it gates, of an expert that every token goes through.
    fn shared_gate_up(
        &mut self,
        pattern: &str,
        place: &Place<'_>,
        tensor: &Tensor,
    ) -> Result<bool, FormatError> {
        let rows = |tensor| stretch(tensor, tensor.cols_of_rows());
        let all = match (place.stem, self.beside(place, "ffn_gate_shexp")) {
            ("ffn_gate_shexp", Ok(gate)) => {
                let up = self.beside(place, "ffn_up_shexp")?;
                if up.dims != gate.dims {
                    return Err(shape(up, &[gate.rows(), gate.cols()]));
                }
                vec![rows(gate), rows(up)]
            }
            ("ffn_up_shexp", Ok(_)) => return Ok(true),
            // Both are in one tensor already, as older versions of this crate wrote them.
            ("ffn_up_shexp", Err(_)) => vec![rows(tensor)],
            _ => return Ok(false),
        };
        let count = all.iter().map(|rows| rows.count).sum();
        self.tensors.push(made(self.name(place, pattern), vec![count, tensor.cols()], all));
        Ok(true)
    }

    /// The experts of gpt-oss: gates and what they gate in turns, and inputs as rows.
    fn harmony(&mut self, place: &Place<'_>, tensor: &Tensor) -> Result<bool, FormatError> {
        let part = match (place.stem, place.end) {
            ("ffn_up_exps", _) => return Ok(true),
            ("ffn_gate_exps", "weight") => Harmony::GateUp,
            ("ffn_gate_exps", "bias") => Harmony::GateUpBias,
            ("ffn_down_exps", "weight") => Harmony::Down,
            ("ffn_down_exps", "bias") => Harmony::DownBias,
            _ => return Ok(false),
        };
        let same = |other: &Part| matches!(other, Part::Harmony(other) if *other == part);
        let Some((pattern, _)) = self.source.family.parts.iter().find(|(_, other)| same(other)) else {
            return Ok(false);
        };
        let name = format!("model.layers.{}.{pattern}", place.layer);
        let dims: Vec<usize> = tensor.dims.iter().map(|&dim| dim as usize).collect();
        let new = match (part, dims.as_slice()) {
            (Harmony::DownBias, _) => plain(name, tensor),
            (Harmony::Down, &[inputs, outputs, count]) => FolderTensor {
                transposed: true,
                ..made(name, vec![count, inputs, outputs], vec![stretch(tensor, inputs)])
            },
            (Harmony::GateUp, &[inputs, rows, count]) => {
                let up = self.same_as(place, tensor)?;
                let both = vec![stretch(tensor, inputs), stretch(up, inputs)];
                let made = made(name, vec![count, inputs, 2 * rows], both);
                FolderTensor { in_turns: true, transposed: true, ..made }
            }
            (Harmony::GateUpBias, &[rows, count]) => {
                let up = self.same_as(place, tensor)?;
                let both = vec![stretch(tensor, 1), stretch(up, 1)];
                FolderTensor { in_turns: true, ..made(name, vec![count, 2 * rows], both) }
            }
            _ => return Err(shape(tensor, &[0, 0, 0])),
        };
        self.tensors.push(new);
        Ok(true)
    }

    /// What the gate of some experts gates, of the same shape.
    fn same_as(&self, place: &Place<'_>, gate: &Tensor) -> Result<&Tensor, FormatError> {
        let up = self.beside(place, "ffn_up_exps")?;
        let expected: Vec<usize> = gate.dims.iter().rev().map(|&dim| dim as usize).collect();
        if up.dims == gate.dims { Ok(up) } else { Err(shape(up, &expected)) }
    }

    /// The name of a part of a layer. Some have nothing behind them.
    fn name(&self, place: &Place<'_>, pattern: &str) -> String {
        let bare = pattern.ends_with(".sinks")
            || pattern.ends_with("_correction_bias")
            || pattern.ends_with(".expert_bias")
            || matches!(pattern, "mlp.experts.gate_up_proj" | "mlp.experts.down_proj")
            || matches!(pattern, "experts.gate_up_proj" | "experts.down_proj" | "layer_scalar")
            || matches!(pattern, "router.scale" | "router.per_expert_scale" | "altup.correct_output_scale");
        let end = if bare { String::new() } else { format!(".{}", place.end) };
        let layers = match self.source.family.encoder {
            Some(encoder) => format!("{}{}", encoder::prefix(self.source), encoder.layers),
            None => format!("{}{}", self.source.family.names.prefix, self.source.family.names.layers),
        };
        format!("{layers}{}.{pattern}{end}", place.layer)
    }

    /// The rows of whole heads, the pairs that are neighbours as halves.
    fn in_halves(&self, layer: usize, rows: Rows) -> Vec<Rows> {
        let Source { head_dim, rotated, reorders, .. } = *self.source;
        let rotates = self.rotates.as_ref().is_none_or(|layers| layers.get(layer) != Some(&false));
        if !(reorders && rotates && rows.count.is_multiple_of(head_dim)) {
            return vec![rows];
        }
        let head = |head: usize| {
            let first = rows.first + head * head_dim;
            let turned = |first, count| Rows { first, step: 2, count, ..rows.clone() };
            let rest = Rows { first: first + rotated, count: head_dim - rotated, ..rows.clone() };
            [turned(first, rotated / 2), turned(first + 1, rotated / 2), rest]
        };
        (0..rows.count / head_dim).flat_map(head).filter(|rows| rows.count > 0).collect()
    }
}

impl Tensor {
    /// Elements of a row where a vector is one of rows of one element.
    fn cols_of_rows(&self) -> usize {
        if self.dims.len() == 1 { 1 } else { self.cols() }
    }
}

/// A tensor that only gets a name.
fn plain(name: String, tensor: &Tensor) -> FolderTensor {
    let shape = tensor.dims.iter().rev().map(|&dim| dim as usize).collect();
    made(name, shape, vec![stretch(tensor, tensor.cols())])
}

pub(super) fn made(name: String, shape: Vec<usize>, rows: Vec<Rows>) -> FolderTensor {
    let columns = Vec::new();
    FolderTensor { name, shape, rows, in_turns: false, minus_one: false, columns, transposed: false }
}

/// All rows of a tensor.
pub(super) fn stretch(tensor: &Tensor, cols: usize) -> Rows {
    let count = tensor.elements().checked_div(cols).unwrap_or(0);
    Rows { tensor: tensor.clone(), cols, first: 0, step: 1, count }
}

pub(super) fn shape(tensor: &Tensor, expected: &[usize]) -> FormatError {
    let actual = tensor.dims.iter().rev().map(|&dim| dim as usize).collect();
    HuggingFaceError::Shape { tensor: tensor.name.clone(), expected: expected.to_vec(), actual }.into()
}
