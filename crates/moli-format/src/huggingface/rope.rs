//! Rotary embeddings: `rope_theta` and `rope_scaling` of older configurations, `rope_parameters` of newer ones.

use std::f64::consts::TAU;

use super::family::Special;
use super::fields::Fields;
use super::{Entries, HuggingFaceError, Model, gemma4};
use crate::{Bytes, Tensor, TensorType};

const ORIGINAL: &str = "original_max_position_embeddings";

/// Writes base, dimensions and scaling; factors per frequency become tensors.
pub(super) fn write(
    model: &Model<'_>,
    entries: &mut Entries,
    tensors: &mut Vec<Tensor>,
) -> Result<(), HuggingFaceError> {
    if gemma4::is(model) {
        return by_kind(model, entries, tensors);
    }
    let fields = &model.fields;
    let kinds = match fields.object("rope_parameters")? {
        Some(parameters) => Kinds::new(fields, parameters)?,
        None => Kinds { global: fields.object("rope_scaling")?, local: None },
    };
    if model.family.special == Special::Apertus && kinds.global.is_none() {
        // Its code takes numbers of its own then, of the published models.
        return Err(fields.missing("rope_scaling"));
    }
    let mut base = base(fields, kinds.global.as_ref())?.ok_or_else(|| fields.missing("rope_theta"))?;
    if let Some(scaling) = kinds.global.as_ref().filter(|_| model.family.architecture == "hunyuan-dense")
        && let Some(alpha) = scaling.number("alpha")?.filter(|&alpha| alpha > 0.0)
    {
        // What its code makes of the base whatever the length of the text, and calls dynamic.
        let dims = f64::from(model.head_dim);
        base *= alpha.powf(dims / (dims - 2.0));
    }
    entries.float("rope.freq_base", base);
    if ["gemma3", "gemma3n", "modern-bert"].contains(&model.family.architecture) {
        let local = match &kinds.local {
            Some(local) => {
                if !matches!(kind(local)?, "default") {
                    return Err(local.unsupported("rope_type"));
                }
                local.number("rope_theta")?
            }
            None => match fields.number("rope_local_base_freq")? {
                Some(local) => Some(local),
                None => fields.number("local_rope_theta")?,
            },
        };
        entries.float("rope.freq_base_swa", local.unwrap_or(1e4));
    } else if let Some(local) = &kinds.local
        && (base != local.need_number("rope_theta")? || kind(local)? != "default")
    {
        return Err(fields.unsupported("rope_parameters"));
    }
    let dims = dimensions(model, kinds.global.as_ref())?;
    // An odd one is rounded up, but for the wavelengths.
    entries.put("rope.dimension_count", dims.next_multiple_of(2));
    sections(model, kinds.global.as_ref(), dims, entries)?;
    match kinds.global {
        Some(scaling) => scale(model, &scaling, base, dims, entries, tensors),
        None if model.family.special == Special::GptOss => {
            // What its code takes where the configuration has none.
            entries.put("rope.scaling.type", "yarn");
            entries.float("rope.scaling.factor", 32.0);
            entries.put("rope.scaling.original_context_length", 4096u32);
            Ok(())
        }
        None => {
            divisors(dims, base, |_| 1.0, tensors);
            Ok(())
        }
    }
}

/// A factor on the wavelengths that leaves nothing of a turn.
pub(super) const NO_TURN: f32 = 1e30;

/// Gemma 4: layers with global attention have heads of their own, of which only the first pairs may be turned. Their wavelengths
/// are those of all pairs, so the others get endless ones.
fn by_kind(
    model: &Model<'_>,
    entries: &mut Entries,
    tensors: &mut Vec<Tensor>,
) -> Result<(), HuggingFaceError> {
    const FIELD: &str = "rope_parameters";
    let fields = &model.fields;
    let layers = gemma4::Layers::of(model)?;
    let (global_width, local_width) = (layers.global.width, layers.local.width);
    let positive = |parameters: &Fields<'_>, field: &str| match parameters.need_number(field)? {
        number if number > 0.0 => Ok(number),
        _ => Err(parameters.wrong(field, "a number above 0")),
    };
    let (mut base, mut local_base, mut share, mut stretch) = (1e6, 1e4, 0.25, 1.0);
    if let Some(parameters) = fields.object(FIELD)? {
        let global = parameters.object("full_attention")?.ok_or_else(|| fields.unsupported(FIELD))?;
        base = positive(&global, "rope_theta")?;
        let told = global.number("partial_rotary_factor")?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&told) {
            return Err(global.wrong("partial_rotary_factor", "a number from 0 to 1"));
        }
        share = told;
        match kind(&global)? {
            // It turns all of a head.
            "default" => share = 1.0,
            "proportional" if global.get("factor").is_none() => {}
            "proportional" | "linear" => stretch = factor(&global, "factor")?,
            _ => return Err(global.unsupported("rope_type")),
        }
        if kind(&global)? == "linear" && share != 1.0 {
            return Err(global.unsupported("partial_rotary_factor"));
        }
        match parameters.object("sliding_attention")? {
            Some(local) if kind(&local)? == "default" => local_base = positive(&local, "rope_theta")?,
            Some(local) => return Err(local.unsupported("rope_type")),
            None if layers.slides.contains(&true) => return Err(fields.unsupported(FIELD)),
            None => {}
        }
    }
    if global_width % 2 + local_width % 2 > 0 {
        return Err(fields.wrong("head_dim", "even"));
    }
    entries.float("rope.freq_base", base);
    entries.float("rope.freq_base_swa", local_base);
    entries.put("rope.dimension_count", global_width);
    entries.put("rope.dimension_count_swa", local_width);
    if stretch != 1.0 {
        entries.put("rope.scaling.type", "linear");
        entries.float("rope.scaling.factor", stretch);
    }
    let turned = (share * f64::from(global_width) / 2.0).floor();
    let pairs = (0..global_width / 2).map(|pair| if f64::from(pair) < turned { 1.0 } else { NO_TURN });
    tensors.push(vector("rope_freqs.weight", pairs.collect::<Vec<f32>>().into_iter()));
    Ok(())
}

/// The parts of a position in a picture, which are the same number in a text.
const SECTIONS: &str = "mrope_section";

fn has_sections(model: &Model<'_>) -> bool {
    model.family.special == Special::DeltaNet || model.family.sees()
}

/// How many pairs turn by which of the parts; four of them in the convention.
fn sections(
    model: &Model<'_>,
    parameters: Option<&Fields<'_>>,
    dims: u32,
    entries: &mut Entries,
) -> Result<(), HuggingFaceError> {
    if !has_sections(model) {
        return Ok(());
    }
    let told = parameters.map(|parameters| parameters.numbers(SECTIONS)).transpose()?.flatten();
    let mut sections: Vec<u32> = match told {
        Some(pairs) => pairs.iter().map(|&pairs| pairs as u32).collect(),
        None => vec![dims / 2],
    };
    sections.resize(4, 0);
    entries.put("rope.dimension_sections", sections);
    Ok(())
}

/// What each wavelength is multiplied by, where that is not 1 for all: `stretch` of it, and what makes the wavelengths of an odd
/// number of elements of those of the next number.
fn divisors(dims: u32, base: f64, stretch: impl Fn(f64) -> f64, tensors: &mut Vec<Tensor>) {
    let divisor = |pair: u32| {
        let wavelength = |dims: u32| TAU * base.powf(f64::from(2 * pair) / f64::from(dims));
        let (wanted, even) = (wavelength(dims), wavelength(dims.next_multiple_of(2)));
        (stretch(wanted) * (wanted / even)) as f32
    };
    let divisors: Vec<f32> = (0..dims.div_ceil(2)).map(divisor).collect();
    if divisors.iter().any(|&divisor| divisor != 1.0) {
        tensors.push(vector("rope_freqs.weight", divisors.into_iter()));
    }
}

/// The parameters of layers with global attention and with a sliding window.
struct Kinds<'a> {
    global: Option<Fields<'a>>,
    local: Option<Fields<'a>>,
}

impl<'a> Kinds<'a> {
    fn new(fields: &Fields<'a>, parameters: Fields<'a>) -> Result<Self, HuggingFaceError> {
        let (global, local) = (parameters.get("full_attention"), parameters.get("sliding_attention"));
        if global.is_none() && local.is_none() {
            return Ok(Self { global: Some(parameters), local: None });
        }
        match (parameters.object("full_attention")?, parameters.object("sliding_attention")?) {
            (Some(global), local) => Ok(Self { global: Some(global), local }),
            (None, _) => Err(fields.unsupported("rope_parameters")),
        }
    }
}

/// The base: in the parameters, or beside them.
fn base(fields: &Fields<'_>, parameters: Option<&Fields<'_>>) -> Result<Option<f64>, HuggingFaceError> {
    let inner = parameters.map(|parameters| parameters.number("rope_theta")).transpose()?.flatten();
    let base = match inner {
        Some(base) => Some(base),
        None => match fields.number("global_rope_theta")? {
            Some(base) => Some(base),
            None => fields.number("rope_theta")?,
        },
    };
    match base {
        Some(base) if base <= 0.0 => Err(fields.wrong("rope_theta", "a number above 0")),
        base => Ok(base),
    }
}

/// How many elements of a head are turned.
fn dimensions(model: &Model<'_>, parameters: Option<&Fields<'_>>) -> Result<u32, HuggingFaceError> {
    const FIELD: &str = "partial_rotary_factor";
    let inner = parameters.map(|parameters| parameters.number(FIELD)).transpose()?.flatten();
    let factor = match inner {
        Some(factor) => factor,
        None => match (model.family.special, model.fields.number(FIELD)?) {
            (Special::MiniMaxM2, None) => {
                let told = model.fields.number("rotary_dim")?;
                told.map_or(1.0, |dims| dims / f64::from(model.head_dim))
            }
            (_, factor) => factor.unwrap_or(1.0),
        },
    };
    if !(0.0..=1.0).contains(&factor) {
        return Err(model.fields.wrong(FIELD, "a number from 0 to 1"));
    }
    if factor != 1.0 && model.family.special == Special::Falcon {
        // Which its code reads for some kinds of scaling only.
        return Err(model.fields.unsupported(FIELD));
    }
    let dims = (f64::from(model.head_dim) * factor) as u32;
    if !dims.is_multiple_of(2) && ["stablelm", "phi2"].contains(&model.family.architecture) {
        // Others' code rounds it up; that of these makes no sense of it.
        return Err(model.fields.wrong(FIELD, "a number that makes an even part of a head"));
    }
    if model.family.special == Special::DeepSeek {
        return model.fields.need_size("qk_rope_head_dim");
    }
    Ok(dims)
}

/// The kind of scaling: `default` where none is named.
fn kind<'a>(parameters: &Fields<'a>) -> Result<&'a str, HuggingFaceError> {
    Ok(match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    })
}

fn scale(
    model: &Model<'_>,
    scaling: &Fields<'_>,
    base: f64,
    dims: u32,
    entries: &mut Entries,
    tensors: &mut Vec<Tensor>,
) -> Result<(), HuggingFaceError> {
    if scaling.get(SECTIONS).is_some() && !has_sections(model) {
        return Err(scaling.unsupported(SECTIONS));
    }
    let kind = match kind(scaling)? {
        // As its first configurations had it.
        "su" | "yarn" if ["phi3", "phimoe"].contains(&model.family.architecture) => "longrope",
        "mrope" if model.family.sees() => "default",
        kind => kind,
    };
    if !dims.is_multiple_of(2) && ["longrope", "su", "yarn"].contains(&kind) {
        return Err(model.fields.unsupported("partial_rotary_factor"));
    }
    if model.family.special == Special::PhiMoe && !["default", "longrope"].contains(&kind) {
        return Err(scaling.unsupported("type"));
    }
    match kind {
        // The dynamic kind begins to differ beyond the context that the model was trained for, which is the most that
        // there is here.
        "default" | "dynamic" => {
            divisors(dims, base, |_| 1.0, tensors);
            Ok(())
        }
        "linear" => {
            entries.put("rope.scaling.type", "linear");
            entries.float("rope.scaling.factor", factor(scaling, "factor")?);
            divisors(dims, base, |_| 1.0, tensors);
            Ok(())
        }
        "llama3" => {
            let context = f64::from(original_context(model, scaling)?);
            let (low, high) = (factor(scaling, "low_freq_factor")?, factor(scaling, "high_freq_factor")?);
            let divisor = factor(scaling, "factor")?;
            if low >= high {
                return Err(scaling.wrong("low_freq_factor", "below high_freq_factor"));
            }
            let numbers = [divisor, low, high, context];
            divisors(dims, base, |wavelength| llama3_divisor(wavelength, numbers), tensors);
            // The convention has no keys for them, and they are needed for the way back.
            entries.plain("moli.rope.llama3", numbers.map(|number| number as f32));
            Ok(())
        }
        "longrope" | "su" => long(model, scaling, dims, entries, tensors),
        "yarn" => yarn(model, scaling, entries),
        _ => Err(scaling.unsupported(if scaling.get("rope_type").is_some() { "rope_type" } else { "type" })),
    }
}

/// The context before it was stretched, by default the one after.
fn original_context(model: &Model<'_>, scaling: &Fields<'_>) -> Result<u32, HuggingFaceError> {
    match scaling.count(ORIGINAL)? {
        Some(original) => Ok(original),
        None => model.fields.need_count("max_position_embeddings"),
    }
}

/// What the wavelength of a pair is multiplied by, given factor, low and high factor and context: short wavelengths stay as they
/// are, those beyond the first context are stretched, between is a ramp.
pub(super) fn llama3_divisor(wavelength: f64, [divisor, low, high, context]: [f64; 4]) -> f64 {
    let turns = context / wavelength;
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    ((1.0 - kept) / divisor + kept).recip()
}

/// LongRoPE's factor on the turned elements, where none is named.
pub(super) fn longrope_factor(stretch: f64, original: f64) -> f64 {
    if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 }
}

/// Two lists of divisors, for short and long contexts, and a factor on the turned elements (arXiv:2402.13753).
fn long(
    model: &Model<'_>,
    scaling: &Fields<'_>,
    dims: u32,
    entries: &mut Entries,
    tensors: &mut Vec<Tensor>,
) -> Result<(), HuggingFaceError> {
    let context = f64::from(model.fields.need_count("max_position_embeddings")?);
    let original = match model.fields.count(ORIGINAL)? {
        Some(original) => original,
        None => original_context(model, scaling)?,
    };
    if original < 2 {
        return Err(scaling.wrong(ORIGINAL, "above 1"));
    }
    let stretch = scaling.number("factor")?.unwrap_or(context / f64::from(original));
    let attention = match scaling.number("attention_factor")? {
        _ if model.family.special == Special::PhiMoe => {
            let (long, short) = (factor(scaling, "long_mscale")?, factor(scaling, "short_mscale")?);
            if long != short {
                return Err(scaling.unsupported("long_mscale"));
            }
            long
        }
        Some(attention) => attention,
        None => longrope_factor(stretch, f64::from(original)),
    };
    entries.put("rope.scaling.type", "longrope");
    entries.put("rope.scaling.original_context_length", original);
    entries.float("rope.scaling.attn_factor", attention);
    for (field, name) in
        [("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")]
    {
        let factors = scaling.numbers(field)?.ok_or_else(|| scaling.missing(field))?;
        if factors.len() != dims as usize / 2 {
            return Err(scaling.wrong(field, "one number for each rotary pair"));
        }
        tensors.push(vector(name, factors.into_iter().map(|factor| factor as f32)));
    }
    Ok(())
}

/// YaRN (arXiv:2309.00071).
fn yarn(model: &Model<'_>, scaling: &Fields<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let original = original_context(model, scaling)?;
    let stretch = match scaling.get("factor") {
        Some(_) => factor(scaling, "factor")?,
        None => f64::from(model.fields.need_count("max_position_embeddings")?) / f64::from(original),
    };
    entries.put("rope.scaling.type", "yarn");
    entries.float("rope.scaling.factor", stretch);
    entries.put("rope.scaling.original_context_length", original);
    for (field, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(beta) = scaling.number(field)?.filter(|&beta| beta != 0.0) {
            entries.float(&format!("rope.scaling.{key}"), beta);
        }
    }
    // Whether the ramp ends at whole pairs is a matter of the architecture in the convention.
    let (whole, usual) = (scaling.flag("truncate")?.unwrap_or(true), model.family.special != Special::GptOss);
    if whole != usual {
        entries.plain("moli.rope.yarn_whole", whole);
    }
    // What the turned elements are multiplied by follows from the factor where no field says it.
    let usual = mscale(stretch, 1.0);
    let all = scaling.number("mscale_all_dim")?.filter(|&all| all != 0.0);
    let attention = match (scaling.number("attention_factor")?, scaling.number("mscale")?, all) {
        (Some(attention), _, _) => attention,
        (None, Some(one), Some(all)) if one != 0.0 => mscale(stretch, one) / mscale(stretch, all),
        _ => usual,
    };
    if model.family.special == Special::DeepSeek {
        // The convention has the factor itself here, and another one on the scores, which the decoder computes of this.
        if let Some(all) = all {
            entries.float("rope.scaling.yarn_log_multiplier", 0.1 * all);
        }
        if attention != 1.0 {
            entries.float("rope.scaling.attn_factor", attention);
        }
    } else if attention != usual {
        entries.float("rope.scaling.attn_factor", attention / usual);
    }
    Ok(())
}

/// YaRN's factor on the turned elements.
pub(super) fn mscale(stretch: f64, weight: f64) -> f64 {
    if stretch <= 1.0 { 1.0 } else { 0.1 * weight * stretch.ln() + 1.0 }
}

/// A number above 0 that must be there.
fn factor(scaling: &Fields<'_>, field: &str) -> Result<f64, HuggingFaceError> {
    let factor = scaling.need_number(field)?;
    if factor > 0.0 { Ok(factor) } else { Err(scaling.wrong(field, "a number above 0")) }
}

fn vector(name: &str, values: impl ExactSizeIterator<Item = f32>) -> Tensor {
    Tensor {
        name: name.to_owned(),
        ttype: TensorType::F32,
        dims: vec![values.len() as u64],
        data: Bytes::from_vec(values.flat_map(f32::to_le_bytes).collect()),
    }
}
