//! Weights that GPTQ (arXiv:2210.17323) or AWQ (arXiv:2306.00978) have packed into integers of 32 bits.
//!
//! Both have a code of a few bits for each weight, and for each group of inputs and each output a scale `s` and a zero point `z`;
//! the weight is `s * (code - z)`. That is what formats of GGUF with a scale for each 32 weights hold too: one whose zero point is
//! always in the middle is Q4_0 or Q8_0 to the bit, and one of 4 bits with any other fits the 5 bits of Q5_0. So nothing is rounded
//! where each 32 inputs are of one group. Where a matrix mixes them (GPTQ's `desc_act`), or has 8 bits with other zero points, its
//! weights are made F16, which rounds the product as those libraries do; and F32 if a scale is no F16.

use std::sync::Mutex;
use std::thread;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::data::{self, Source, Stored};
use super::fields::Fields;
use super::shards::{Placed, Shards};
use super::{HuggingFaceError, Model};
use crate::safetensors::Dtype;
use crate::{Bytes, FormatError, TensorType};

const FIELD: &str = "quantization_config";
/// Weights in a block of the formats that are made.
const BLOCK: usize = 32;
/// Outputs whose blocks are made together: their codes lie beside each other.
const TILE: usize = 128;
/// In which 4 bits of an integer AWQ has the code of each of eight outputs.
const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How the weights of a model are packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Packing {
    method: Method,
    /// Of a code: 4, or 8 of GPTQ.
    bits: u32,
    /// Inputs that share scales and zero points; `None`: all.
    group: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    /// Integers of several inputs; zero points are stored less one, but for the second version of the format.
    Gptq { less_one: bool },
    /// Integers of eight outputs.
    Awq,
}

/// How many matrices became what.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    counts: [usize; FORMS.len()],
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// Bytes of the codes that they were.
    pub(super) packed_bytes: u64,
}

/// What a matrix may become, and what that does to its weights.
const FORMS: [(TensorType, &str); 5] = [
    (TensorType::Q4_0, "exact"),
    (TensorType::Q5_0, "exact"),
    (TensorType::Q8_0, "exact"),
    (TensorType::F16, "rounded, as groups are mixed or 8 bits have zero points"),
    (TensorType::F32, "exact, as scales are no halves"),
];

impl Packing {
    /// What `quantization_config` says; `None` where there is none, or one of another method.
    pub(super) fn of(model: &Model<'_>) -> Result<Option<Self>, HuggingFaceError> {
        for fields in [&model.fields, &model.root] {
            let Some(config) = fields.object(FIELD)? else { continue };
            return match config.text("quant_method")? {
                Some("gptq") => Self::gptq(&config).map(Some),
                Some("awq") => Self::awq(&config).map(Some),
                _ => Ok(None),
            };
        }
        Ok(None)
    }

    fn gptq(config: &Fields<'_>) -> Result<Self, HuggingFaceError> {
        let bits = config.need_count("bits")?;
        if ![4, 8].contains(&bits) {
            return Err(config.unsupported("bits"));
        }
        let less_one = match config.text("checkpoint_format")? {
            None | Some("gptq") => true,
            Some("gptq_v2") => false,
            Some(_) => return Err(config.unsupported("checkpoint_format")),
        };
        if config.flag("is_marlin_format")? == Some(true) {
            return Err(config.unsupported("is_marlin_format"));
        }
        if config.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
            return Err(config.unsupported("pack_dtype"));
        }
        // Modules with bits and groups of their own.
        if config.object("dynamic")?.is_some_and(|modules| modules.len() > 0) {
            return Err(config.unsupported("dynamic"));
        }
        Ok(Self { method: Method::Gptq { less_one }, bits, group: group(config, "group_size")? })
    }

    fn awq(config: &Fields<'_>) -> Result<Self, HuggingFaceError> {
        let either = |new: &'static str, old| if config.get(new).is_some() { new } else { old };
        let bits = either("bits", "w_bit");
        if config.need_count(bits)? != 4 {
            return Err(config.unsupported(bits));
        }
        if config.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(config.unsupported("version"));
        }
        if config.flag("zero_point")? == Some(false) {
            return Err(config.unsupported("zero_point"));
        }
        if config.text("backend")?.is_some_and(|backend| backend != "autoawq") {
            return Err(config.unsupported("backend"));
        }
        let group = group(config, either("group_size", "q_group_size"))?;
        Ok(Self { method: Method::Awq, bits: 4, group })
    }

    /// The method, for a person.
    pub(super) fn describe(&self, unpacked: &Unpacked) -> String {
        let name = if self.method == Method::Awq { "AWQ" } else { "GPTQ" };
        let group = self.group.map_or("all inputs".to_owned(), |group| format!("{group} inputs"));
        let made = FORMS.iter().zip(unpacked.counts).filter(|(_, count)| *count > 0);
        let made = made.map(|((ttype, what), count)| format!("{count} as {} ({what})", ttype.name()));
        let made: Vec<String> = made.collect();
        format!("{name}, {} bits, a scale for {group}; matrices: {}", self.bits, made.join(", "))
    }

    /// Puts a matrix in the place of the tensors that it was packed into, wherever there are some.
    pub(super) fn unpack(&self, shards: &mut Shards) -> Result<Unpacked, FormatError> {
        const CODES: &str = ".qweight";
        let names = shards.tensors.keys().filter_map(|name| name.strip_suffix(CODES));
        let names: Vec<String> = names.map(str::to_owned).collect();
        let missing = |tensor: String| HuggingFaceError::MissingTensor { tensor };
        if names.is_empty() {
            return Err(missing(CODES.trim_start_matches('.').to_owned()).into());
        }
        let mut unpacked = Unpacked::default();
        for name in names {
            let mut take = |part: &str| {
                let name = format!("{name}{part}");
                shards.tensors.remove(&name).ok_or(name)
            };
            let codes = take(CODES).map_err(missing)?;
            let (zeros, scales) = (take(".qzeros").map_err(missing)?, take(".scales").map_err(missing)?);
            let order = take(".g_idx").ok().filter(|_| self.method != Method::Awq);
            let order = order.as_ref().map(|placed| &placed.tensor);
            let name = format!("{name}.weight");
            let matrix = Matrix::new(self, &codes.tensor, &zeros.tensor, &scales.tensor, order)?
                .source(name.clone())?;
            // What was packed is not read again.
            codes.tensor.data.release();
            let form = FORMS.iter().position(|(ttype, _)| matrix.stored == Stored::Made(*ttype));
            if let Some(count) = form.and_then(|form| unpacked.counts.get_mut(form)) {
                *count += 1;
            }
            unpacked.bytes = unpacked.bytes.saturating_add(matrix.data.len() as u64);
            unpacked.packed_bytes = unpacked.packed_bytes.saturating_add(codes.tensor.data.len() as u64);
            let placed = Placed { tensor: matrix, shard: codes.shard };
            if shards.tensors.insert(name.clone(), placed).is_some() {
                return Err(HuggingFaceError::PackedTwice { tensor: name }.into());
            }
        }
        Ok(unpacked)
    }
}

/// Inputs of a group; `None` where that is -1, all.
fn group(config: &Fields<'_>, field: &str) -> Result<Option<usize>, HuggingFaceError> {
    match config.need_number(field)? {
        -1.0 => Ok(None),
        size if size >= 1.0 && size <= f64::from(1 << 24) && size.fract() == 0.0 => Ok(Some(size as usize)),
        _ => Err(config.wrong(field, "-1 or a positive integer")),
    }
}

/// A packed matrix whose parts have been checked against each other.
struct Matrix<'a> {
    packing: &'a Packing,
    /// `[inputs / per, outputs]` of GPTQ, `[inputs, outputs / per]` of AWQ.
    codes: &'a [u8],
    inputs: usize,
    outputs: usize,
    groups: usize,
    /// `[outputs, groups]`
    zeros: Vec<u16>,
    /// `[outputs, groups]`
    scales: Vec<f32>,
    /// The group of each input.
    group_of: Vec<usize>,
}

impl<'a> Matrix<'a> {
    fn new(
        packing: &'a Packing,
        codes: &'a Source,
        zeros: &Source,
        scales: &Source,
        order: Option<&Source>,
    ) -> Result<Self, FormatError> {
        let per = (32 / packing.bits) as usize;
        let words = |tensor: &Source| match tensor.stored {
            Stored::As(Dtype::I32) => Ok(()),
            Stored::As(dtype) => {
                let (tensor, dtype) = (tensor.name.clone(), format!("{dtype:?}"));
                Err(HuggingFaceError::PackedType { tensor, dtype })
            }
            Stored::Made(_) => Err(tensor.element_type()),
        };
        words(codes)?;
        words(zeros)?;
        let &[rows, cols] = codes.shape.as_slice() else {
            let (tensor, actual) = (codes.name.clone(), codes.shape.clone());
            return Err(HuggingFaceError::Shape { tensor, expected: vec![0, 0], actual }.into());
        };
        let (inputs, outputs) = match packing.method {
            Method::Gptq { .. } => (rows.saturating_mul(per), cols),
            Method::Awq => (rows, cols.saturating_mul(per)),
        };
        let groups = packing.group.map_or(1, |group| inputs.div_ceil(group));
        data::expect(zeros, &[groups, outputs.div_ceil(per)])?;
        data::expect(scales, &[groups, outputs])?;
        let group_of = match order {
            None => {
                let group = packing.group.unwrap_or(usize::MAX);
                (0..inputs).map(|input| input / group).collect()
            }
            Some(order) => {
                words(order)?;
                data::expect(order, &[inputs])?;
                integers(&order.data)
                    .enumerate()
                    .map(|(input, group)| match usize::try_from(group) {
                        Ok(group) if group < groups => Ok(group),
                        _ => {
                            let tensor = order.name.clone();
                            Err(HuggingFaceError::PackedGroup { tensor, input, group: group.into(), groups })
                        }
                    })
                    .collect::<Result<_, _>>()?
            }
        };
        let scales: Vec<f32> = data::floats(scales.float_type()?, &scales.data).collect();
        let turned = |output: usize| (0..groups).map(move |group| group * outputs + output);
        let scales = (0..outputs).flat_map(turned).map(|at| scales.get(at).copied().unwrap_or_default());
        Ok(Self {
            packing,
            codes: &codes.data,
            inputs,
            outputs,
            groups,
            zeros: packing.zeros(&zeros.data, groups, outputs),
            scales: scales.collect(),
            group_of,
        })
    }

    /// The matrix as `[outputs, inputs]`, of the smallest type that holds it.
    fn source(&self, name: String) -> Result<Source, FormatError> {
        let form = self.form();
        let row = self.inputs / form.block_len() * form.block_bytes();
        let bytes = row.checked_mul(self.outputs).ok_or(FormatError::OutOfMemory { bytes: u64::MAX })?;
        let mut data = data::reserve(bytes)?;
        data.resize(bytes, 0);
        // The rows of a tile are one stretch: each thread takes the next one.
        let tiles = Mutex::new(data.chunks_mut((TILE * row).max(1)).enumerate());
        let work = || {
            while let Some((tile, to)) = tiles.lock().ok().and_then(|mut tiles| tiles.next()) {
                self.tile(form, tile * TILE, row, to);
            }
        };
        thread::scope(|scope| {
            for _ in 1..thread::available_parallelism().map_or(1, usize::from) {
                // Without another thread this one does it all.
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let shape = vec![self.outputs, self.inputs];
        Ok(Source { name, stored: Stored::Made(form), shape, data: Bytes::from_vec(data) })
    }

    /// The rows of the outputs from `first` on, each of `row` bytes.
    fn tile(&self, form: TensorType, first: usize, row: usize, to: &mut [u8]) {
        let mut codes = [[0; BLOCK]; TILE];
        let step = BLOCK / form.block_len() * form.block_bytes();
        let codes = codes.get_mut(..to.len() / row.max(1)).unwrap_or_default();
        for (block, groups) in self.group_of.chunks(BLOCK).enumerate() {
            self.codes(block * BLOCK, groups.len(), first, codes);
            for ((output, codes), row) in (first..).zip(codes.iter()).zip(to.chunks_mut(row.max(1))) {
                let end = ((block + 1) * step).min(row.len());
                if let Some(to) = row.get_mut(block * step..end) {
                    self.write(form, output, groups, codes, to);
                }
            }
        }
    }

    /// The smallest type that holds these weights.
    fn form(&self) -> TensorType {
        let one_group = |inputs: &[usize]| inputs.windows(2).all(|pair| pair.first() == pair.last());
        let blocks = self.inputs.is_multiple_of(BLOCK) && self.group_of.chunks(BLOCK).all(one_group);
        let middle = 1 << (self.packing.bits - 1);
        let largest = self.scales.iter().fold(0.0_f32, |largest, scale| largest.max(scale.abs()));
        if !self.scales.iter().all(|&scale| f16::from_f32(scale).to_f32() == scale)
            || f16::from_f32(largest * (1 << self.packing.bits) as f32).is_infinite()
        {
            return TensorType::F32;
        }
        match (self.packing.bits, self.zeros.iter().all(|&zero| zero == middle)) {
            (4, true) if blocks => TensorType::Q4_0,
            (4, false) if blocks => TensorType::Q5_0,
            (8, true) if blocks => TensorType::Q8_0,
            _ => TensorType::F16,
        }
    }

    /// The codes of `count` inputs from `input` on, of as many outputs from `output` on as there is room for.
    fn codes(&self, input: usize, count: usize, output: usize, to: &mut [[u8; BLOCK]]) {
        let (bits, per) = (self.packing.bits, (32 / self.packing.bits) as usize);
        let mask = (1_u32 << bits) - 1;
        let row = |start: usize| integers(self.codes.get(start * 4..).unwrap_or_default());
        match self.packing.method {
            Method::Gptq { .. } => {
                for at in (0..count).step_by(per) {
                    let words = row((input + at) / per * self.outputs + output);
                    for (codes, word) in to.iter_mut().zip(words) {
                        let mut word = word as u32;
                        for code in codes.get_mut(at..at + per).unwrap_or_default() {
                            *code = (word & mask) as u8;
                            word >>= bits;
                        }
                    }
                }
            }
            Method::Awq => {
                for at in 0..count {
                    let words = row((input + at) * (self.outputs / per) + output / per);
                    for (outputs, word) in to.chunks_mut(per).zip(words) {
                        let word = word as u32;
                        for (codes, place) in outputs.iter_mut().zip(AWQ_PLACES) {
                            if let Some(code) = codes.get_mut(at) {
                                *code = (word >> (4 * place)) as u8 & 15;
                            }
                        }
                    }
                }
            }
        }
    }

    /// The weights of these codes of one output, which are of these groups.
    fn write(&self, form: TensorType, output: usize, groups: &[usize], codes: &[u8; BLOCK], to: &mut [u8]) {
        let own = output * self.groups..(output + 1) * self.groups;
        let scales = self.scales.get(own.clone()).unwrap_or_default();
        let zeros = self.zeros.get(own).unwrap_or_default();
        let of = |group: usize| {
            (scales.get(group).copied().unwrap_or_default(), zeros.get(group).copied().unwrap_or_default())
        };
        let (scale, zero) = of(groups.first().copied().unwrap_or_default());
        let scale = f16::from_f32(scale).to_le_bytes();
        let pairs = |codes: &[u8; BLOCK]| {
            let mut pairs = [0; BLOCK / 2];
            let (low, high) = codes.split_at(BLOCK / 2);
            let both = low.iter().zip(high).map(|(low, high)| (low & 15) | high << 4);
            pairs.iter_mut().zip(both).for_each(|(pair, both)| *pair = both);
            pairs
        };
        match form {
            TensorType::Q4_0 => fill(to, &[&scale, &pairs(codes)]),
            TensorType::Q5_0 => {
                let codes = codes.map(|code| (u16::from(code) + 16).saturating_sub(zero) as u8);
                let fifth = codes.iter().rev().fold(0_u32, |bits, code| bits << 1 | u32::from(code >> 4));
                fill(to, &[&scale, &fifth.to_le_bytes(), &pairs(&codes)]);
            }
            TensorType::Q8_0 => fill(to, &[&scale, &codes.map(|code| code ^ 0x80)]),
            _ => {
                let mut weights = [0.0; BLOCK];
                for ((weight, &code), &group) in weights.iter_mut().zip(codes).zip(groups) {
                    let (scale, zero) = of(group);
                    *weight = scale * f32::from(i16::from(code) - zero as i16);
                }
                if form == TensorType::F32 {
                    let to = to.as_chunks_mut().0;
                    to.iter_mut().zip(weights).for_each(|(to, weight)| *to = weight.to_le_bytes());
                    return;
                }
                let mut halves = [f16::ZERO; BLOCK];
                halves.convert_from_f32_slice(&weights);
                let to = to.as_chunks_mut().0;
                to.iter_mut().zip(halves).for_each(|(to, weight)| *to = weight.to_le_bytes());
            }
        }
    }
}

impl Packing {
    /// Zero points, `[outputs, groups]`.
    fn zeros(&self, data: &[u8], groups: usize, outputs: usize) -> Vec<u16> {
        let per = 32 / self.bits as usize;
        let words: Vec<u32> = integers(data).map(|word| word as u32).collect();
        let row = outputs.div_ceil(per);
        let zero = |output: usize, group: usize| {
            let word = words.get(group * row + output / per).copied().unwrap_or_default();
            let place = output % per;
            let (place, more) = match self.method {
                Method::Gptq { less_one } => (place as u32, u16::from(less_one)),
                Method::Awq => (AWQ_PLACES.get(place).copied().unwrap_or_default(), 0),
            };
            (word >> (self.bits * place) & ((1 << self.bits) - 1)) as u16 + more
        };
        (0..outputs)
            .flat_map(|output| (0..groups).map(move |group| (output, group)))
            .map(|(o, g)| zero(o, g))
            .collect()
    }
}

/// Bytes one after the other, where there is room.
fn fill(mut to: &mut [u8], parts: &[&[u8]]) {
    for part in parts {
        let Some((here, rest)) = to.split_at_mut_checked(part.len()) else { return };
        here.copy_from_slice(part);
        to = rest;
    }
}

fn integers(data: &[u8]) -> impl Iterator<Item = i32> + '_ {
    data.as_chunks::<4>().0.iter().map(|&bytes| i32::from_le_bytes(bytes))
}
