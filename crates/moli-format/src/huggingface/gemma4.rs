//! Gemma 4: heads that differ between layers with global and with local attention, and layers without keys of their own.

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
        // The last layer has global attention.
        let global = kind(false)?.ok_or_else(|| fields.unsupported("layer_types"))?;
        let shared = fields.count("num_kv_shared_layers")?.unwrap_or(0) as usize;
        let first_shared = slides.len().saturating_sub(shared);
        let (own, others) = slides.split_at(first_shared);
        if others.iter().any(|slides| !own.contains(slides)) {
            return Err(fields.unsupported("num_kv_shared_layers"));
        }
        Ok(Self { global, local: kind(true)?.unwrap_or(global), slides, first_shared, keys_as_values })
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
    let layers = Layers::of(model)?;
    let shared = layers.slides.len() - layers.first_shared;
    entries.put("attention.shared_kv_layers", u32::try_from(shared).unwrap_or(u32::MAX));
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

/// Whether this is such a model.
pub(super) fn is(model: &Model<'_>) -> bool {
    model.family.special == Special::Gemma4
}
