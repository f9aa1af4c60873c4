//! Gemma 3n and 4: layers without keys of their own, heads that differ between layers with global and with local attention (4), and
//! streams beside each other (3n).

use super::family::Special;
use super::fields::Fields;
use super::parameters::{experts, positive};
use super::{Entries, HuggingFaceError, Model};

/// The fields whose heads some layers have instead of the others'.
const OVERRIDES: &str = "per_layer_config";

/// The heads of keys and values of a layer, and the elements of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Heads {
    pub(super) count: u32,
    pub(super) width: u32,
}

/// What sets the layers apart.
pub(super) struct Layers {
    /// Per layer whether its attention slides.
    pub(super) slides: Vec<bool>,
    /// The heads of the layers with global and with local attention.
    pub(super) global: Heads,
    pub(super) local: Heads,
    /// The first layer without keys and values of its own.
    pub(super) first_shared: usize,
    /// Whether the keys of layers with global attention are their values too.
    keys_as_values: bool,
}

impl Layers {
    pub(super) fn of(model: &Model<'_>) -> Result<Self, HuggingFaceError> {
        let fields = &model.fields;
        let slides = super::parameters::slides(model)?.unwrap_or_default();
        let keys_as_values = fields.flag("attention_k_eq_v")?.unwrap_or(false);
        let heads = heads(model, &slides, keys_as_values)?;
        let kind = |local: bool| {
            let mut of_kind = heads.iter().zip(&slides).filter(|&(_, &slides)| slides == local);
            let first = of_kind.next().map(|(heads, _)| *heads);
            match of_kind.all(|(heads, _)| Some(*heads) == first) {
                true => Ok(first),
                false => Err(fields.unsupported(OVERRIDES)),
            }
        };
        let (global, local) = (kind(false)?, kind(true)?);
        let usual = Heads { count: model.kv_heads, width: model.head_dim };
        let shared = fields.count("num_kv_shared_layers")?.unwrap_or(0) as usize;
        let first_shared = slides.len().saturating_sub(shared);
        let (own, others) = slides.split_at(first_shared);
        if others.iter().any(|slides| !own.contains(slides)) {
            return Err(fields.unsupported("num_kv_shared_layers"));
        }
        let global_heads = global.or(local).unwrap_or(usual);
        let local = local.unwrap_or(global_heads);
        Ok(Self { global: global_heads, local, slides, first_shared, keys_as_values })
    }

    /// Whether a layer has a matrix for its values.
    pub(super) fn has_values(&self, layer: usize) -> bool {
        layer < self.first_shared && !(self.keys_as_values && self.slides.get(layer) == Some(&false))
    }

    /// Whether nothing reads this part of a layer, which published folders have all the same.
    pub(super) fn is_unread(&self, layer: usize, stem: &str) -> bool {
        let keys = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm"];
        layer >= self.first_shared && keys.contains(&stem)
    }
}

/// The heads of each layer.
fn heads(model: &Model<'_>, slides: &[bool], keys_as_values: bool) -> Result<Vec<Heads>, HuggingFaceError> {
    let fields = &model.fields;
    let usual = Heads { count: model.kv_heads, width: model.head_dim };
    let mut heads = vec![usual; slides.len()];
    if !is(model) {
        return Ok(heads);
    }
    if fields.names().any(|name| name == OVERRIDES) {
        let overrides = fields.object(OVERRIDES)?;
        for name in overrides.iter().flat_map(Fields::names) {
            let own = overrides.as_ref().map(|all| all.object(name)).transpose()?.flatten();
            let heads = name.parse().ok().and_then(|layer: usize| heads.get_mut(layer));
            let (Some(own), Some(heads)) = (own, heads) else { return Err(fields.unsupported(OVERRIDES)) };
            if let Some(other) = own.names().find(|name| !["head_dim", "num_key_value_heads"].contains(name))
            {
                return Err(own.unsupported(other));
            }
            heads.width = own.size("head_dim")?.unwrap_or(heads.width);
            heads.count = own.size("num_key_value_heads")?.unwrap_or(heads.count);
        }
        return Ok(heads);
    }
    let global = Heads {
        width: fields.need_size("global_head_dim")?,
        count: match fields.size("num_global_key_value_heads")? {
            Some(count) if keys_as_values => count,
            _ => usual.count,
        },
    };
    for (heads, _) in heads.iter_mut().zip(slides).filter(|(_, slides)| !**slides) {
        *heads = global;
    }
    Ok(heads)
}

/// Writes the heads: of the layers with global attention under the names that other architectures have for all.
pub(super) fn write_heads(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let Layers { slides, global, local, .. } = Layers::of(model)?;
    if global.count == local.count {
        entries.put("attention.head_count_kv", global.count);
    } else {
        let counts = slides.iter().map(|&slides| if slides { local.count } else { global.count });
        entries.put("attention.head_count_kv", counts.collect::<Vec<u32>>());
    }
    for (keys, values, heads) in [
        ("attention.key_length", "attention.value_length", global),
        ("attention.key_length_swa", "attention.value_length_swa", local),
    ] {
        entries.put(keys, heads.width);
        entries.put(values, heads.width);
    }
    Ok(())
}

/// Writes the width inside the feed-forward networks: twice as much, maybe, in the layers without keys of their own.
pub(super) fn write_width(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let fields = &model.fields;
    let (key, width) = ("feed_forward_length", fields.need_count("intermediate_size")?);
    let Layers { slides, first_shared, .. } = Layers::of(model)?;
    if fields.flag("use_double_wide_mlp")? != Some(true) || first_shared == slides.len() {
        entries.put(key, width);
        return Ok(());
    }
    let double = width.saturating_mul(2);
    let widths = (0..slides.len()).map(|layer| if layer < first_shared { width } else { double });
    entries.put(key, widths.collect::<Vec<u32>>());
    Ok(())
}

/// Writes all else that only Gemma 4 has.
pub(super) fn write(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    const ATTENTION: &str = "use_bidirectional_attention";
    let fields = &model.fields;
    // What pictures do is nothing to a text.
    if fields.get(ATTENTION).is_some() && fields.text(ATTENTION)? != Some("vision") {
        return Err(fields.unsupported(ATTENTION));
    }
    write_shared(model, entries)?;
    let own = fields.count("hidden_size_per_layer_input")?.unwrap_or(0);
    if own > 0 && fields.count("vocab_size_per_layer_input")? != fields.count("vocab_size")? {
        return Err(fields.unsupported("vocab_size_per_layer_input"));
    }
    entries.put("embedding_length_per_layer_input", own);
    if let Some(cap) = positive(fields, "final_logit_softcapping")? {
        entries.float("final_logit_softcapping", cap);
    }
    if fields.flag("enable_moe_block")? == Some(true) {
        fields.need_count("moe_intermediate_size")?;
        experts(model, "num_experts", "top_k_experts", entries)?;
    }
    Ok(())
}

/// Writes how many layers have no keys and values of their own.
fn write_shared(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    let layers = Layers::of(model)?;
    let shared = layers.slides.len() - layers.first_shared;
    entries.put("attention.shared_kv_layers", u32::try_from(shared).unwrap_or(u32::MAX));
    Ok(())
}

/// Writes the widths of Gemma 3n's networks: one for each layer, or one for all.
pub(super) fn write_widths(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    const FIELD: &str = "intermediate_size";
    let fields = &model.fields;
    if !fields.get(FIELD).is_some_and(serde_json::Value::is_array) {
        entries.put("feed_forward_length", fields.need_count(FIELD)?);
        return Ok(());
    }
    let widths = fields.numbers(FIELD)?.unwrap_or_default();
    let is_width = |&width: &f64| width.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&width);
    if widths.len() != model.layers as usize || !widths.iter().all(is_width) {
        return Err(fields.wrong(FIELD, "a width, or one for each layer"));
    }
    let all: Vec<u32> = widths.iter().map(|&width| width as u32).collect();
    match all.first() {
        Some(&first) if all.iter().all(|&width| width == first) => entries.put("feed_forward_length", first),
        _ => entries.put("feed_forward_length", all),
    }
    Ok(())
}

/// Writes what only Gemma 3n has.
pub(super) fn write_streams(model: &Model<'_>, entries: &mut Entries) -> Result<(), HuggingFaceError> {
    const SPARSE: &str = "activation_sparsity_pattern";
    let fields = &model.fields;
    if fields.flag("altup_correct_scale")? == Some(false) {
        return Err(fields.unsupported("altup_correct_scale"));
    }
    let streams = fields.need_size("altup_num_inputs")?;
    let active = fields.count("altup_active_idx")?.unwrap_or(0);
    if streams < 2 || active >= streams {
        return Err(fields.wrong("altup_active_idx", "below altup_num_inputs, which is above 1"));
    }
    entries.put("altup.num_inputs", streams);
    entries.put("altup.active_idx", active);
    write_shared(model, entries)?;
    entries.put("embedding_length_per_layer_input", fields.need_size("hidden_size_per_layer_input")?);
    if let Some(cap) = positive(fields, "final_logit_softcapping")? {
        entries.float("final_logit_softcapping", cap);
    }
    let layers = model.layers as usize;
    let shares = match fields.numbers(SPARSE)? {
        Some(shares) => shares,
        // What its class takes: ten layers, if there are more.
        None => (0..layers).map(|layer| if layers > 10 && layer < 10 { 0.95 } else { 0.0 }).collect(),
    };
    if shares.len() != layers || shares.iter().any(|share| !(0.0..1.0).contains(share)) {
        return Err(fields.wrong(SPARSE, "a share from 0 to 1 for each layer"));
    }
    // The class rounds to single precision first.
    let cutoffs = shares.iter().map(|&share| quantile(f64::from(share as f32)) as f32).collect::<Vec<f32>>();
    entries.put("activation_sparsity_scale", cutoffs);
    Ok(())
}

/// How many standard deviations above the mean this share of normally distributed numbers is; -inf for none.
pub(super) fn quantile(share: f64) -> f64 {
    if share <= 0.0 {
        return f64::NEG_INFINITY;
    }
    // The share below a number grows with it: halving finds the number.
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The share of normally distributed numbers that are below this many standard deviations above their mean.
fn below(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let size = x.abs();
    if size < 5.0 {
        // 1/2 + density * (x + x^3 / 3 + x^5 / (3 * 5) + ...)
        let (mut term, mut sum) = (size, size);
        for odd in (3..300).step_by(2) {
            term *= size * size / f64::from(odd);
            sum += term;
        }
        return if x < 0.0 { 0.5 - density * sum } else { 0.5 + density * sum };
    }
    // density / (x + 1 / (x + 2 / (x + 3 / ...)))
    let fraction = (1..60).rev().fold(size, |rest, n| size + f64::from(n) / rest);
    if x < 0.0 { density / fraction } else { 1.0 - density / fraction }
}

/// The ways to streams beside each other and back, by their new names and old stems.
pub(super) const WAYS: [(&str, &str); 2] =
    [("altup_proj.weight", "altup_projections"), ("altup_unembd_proj.weight", "altup_unembed_projections")];

/// Streams but the first, where there are some.
pub(super) fn other_streams(model: &Model<'_>) -> Result<Option<usize>, HuggingFaceError> {
    if model.family.special != Special::Gemma3n {
        return Ok(None);
    }
    Ok(Some(model.fields.need_size("altup_num_inputs")?.saturating_sub(1) as usize))
}

/// Whether a tensor is one of [`WAYS`].
pub(super) fn is_way(model: &Model<'_>, name: &str) -> Result<bool, HuggingFaceError> {
    let Some(others) = other_streams(model)? else { return Ok(false) };
    let number =
        WAYS.iter().find_map(|(_, old)| name.strip_prefix(old)?.strip_prefix('.')?.strip_suffix(".weight"));
    Ok(number.and_then(|number| number.parse().ok()).is_some_and(|number: usize| number < others))
}

/// Whether layers of such a model are of several kinds.
pub(super) fn has_layers(model: &Model<'_>) -> bool {
    matches!(model.family.special, Special::Gemma3n | Special::Gemma4)
}

/// Whether this is Gemma 4.
pub(super) fn is(model: &Model<'_>) -> bool {
    model.family.special == Special::Gemma4
}
