//! The configuration of encoders, and the names of what is around their layers.

use serde_json::{Map, Value as Json, json};

use super::config::Config;
use super::{Source, decimal};
use crate::huggingface::HuggingFaceError;
use crate::huggingface::family::Special;
use crate::{Bytes, FormatError, Tensor};

/// The beginning of each model type's classes, and what stands before the tensors of one that sorts texts.
const CLASSES: &[(&str, &str, &str)] = &[
    ("bert", "Bert", "bert."),
    ("roberta", "Roberta", "roberta."),
    ("xlm-roberta", "XLMRoberta", "roberta."),
    ("nomic_bert", "NomicBert", "nomic_bert."),
    ("modernbert", "ModernBert", "model."),
];
pub(super) const POSITIONS: &str = "position_embd.weight";
const PADDING: &str = "tokenizer.ggml.padding_token_id";

/// What tells a model that sorts texts.
pub(super) fn sorts(source: &Source<'_>) -> bool {
    source.model.tensor("cls.output.weight").is_some()
}

fn class(source: &Source<'_>) -> (&'static str, &'static str) {
    let found = CLASSES.iter().find(|(model_type, ..)| *model_type == source.model_type);
    found.map_or(("", ""), |&(_, class, prefix)| (class, prefix))
}

/// The type of an encoder of the architecture `bert`, which several have.
pub(super) fn model_type(model: &crate::Gguf) -> Result<&'static str, FormatError> {
    Ok(match model.metadata().str_opt("tokenizer.ggml.model")? {
        Some("t5") => "xlm-roberta",
        Some("gpt2") => "roberta",
        _ => "bert",
    })
}

/// The id of padding, behind which the positions of RoBERTa begin.
fn padding(source: &Source<'_>) -> Result<Option<usize>, FormatError> {
    let told = source.model.metadata().u32_opt(PADDING)?.map(|id| id as usize);
    let rows = source.model.tensor("token_embd.weight").map_or(0, Tensor::rows);
    match told {
        Some(id) if id >= rows => {
            let (key, value) = (PADDING.to_owned(), id.to_string());
            Err(HuggingFaceError::NoField { key, value }.into())
        }
        None if source.is(Special::Roberta) => Ok(Some(1)),
        told => Ok(told),
    }
}

/// Rows of the table of positions that no token has, which the convention leaves out.
pub(super) fn unused_positions(source: &Source<'_>) -> Result<usize, FormatError> {
    Ok(if source.is(Special::Roberta) { padding(source)?.map_or(0, |id| id + 1) } else { 0 })
}

/// So many rows of zeros, as a table of positions has others.
pub(super) fn zeros(table: &Tensor, rows: usize) -> Tensor {
    let bytes = table.data.len().checked_div(table.rows()).unwrap_or(0);
    let mut dims = table.dims.clone();
    dims.iter_mut().skip(1).for_each(|dim| *dim = rows as u64);
    Tensor { dims, data: Bytes::from_vec(vec![0; rows * bytes]), ..table.clone() }
}

/// The name that a tensor outside of all layers has in a folder; `None`: none.
pub(super) fn name(source: &Source<'_>, tensor: &str) -> Option<String> {
    let encoder = source.family.encoder?;
    let (stem, end) = tensor.rsplit_once('.')?;
    let find = |table: &[(&'static str, &'static str)]| {
        table.iter().find(|(_, new)| *new == stem).map(|(old, _)| *old)
    };
    let prefix = prefix(source);
    if let Some(old) = find(encoder.stems) {
        return Some(format!("{prefix}{old}.{end}"));
    }
    let old = find(encoder.classifier)?;
    // The pooler of BERT is the model's own, and so before the classifier.
    let prefix = if old.starts_with("pooler.") { prefix } else { "" };
    Some(format!("{prefix}{old}.{end}"))
}

/// What stands before the names of the encoder's own tensors.
pub(super) fn prefix(source: &Source<'_>) -> &'static str {
    if sorts(source) { class(source).1 } else { "" }
}

pub(super) fn write(source: &Source<'_>) -> Result<Map<String, Json>, FormatError> {
    let (keys, mut config) = (source.keys(), Config(Map::new()));
    let sorts = sorts(source);
    let kind = if sorts { "ForSequenceClassification" } else { "Model" };
    config.put("architectures", vec![format!("{}{kind}", class(source).0)]);
    config.put("model_type", source.model_type);
    config.put("hidden_size", keys.need("embedding_length")?);
    config.put("intermediate_size", keys.need("feed_forward_length")?);
    config.put("num_hidden_layers", source.layers);
    config.put("num_attention_heads", source.heads);
    let missing = |tensor: &str| HuggingFaceError::MissingTensor { tensor: tensor.to_owned() };
    let rows = |name: &str| source.model.tensor(name).map(Tensor::rows);
    config.put("vocab_size", rows("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?);
    let positions = match rows(POSITIONS) {
        Some(rows) => rows + unused_positions(source)?,
        None => keys.need("context_length")?,
    };
    config.put("max_position_embeddings", positions);
    match padding(source)? {
        Some(id) => config.put("pad_token_id", id),
        // A class that wants a number has one by itself.
        None if source.is(Special::NomicBert) => {}
        None => config.put("pad_token_id", Json::Null),
    }
    let epsilon = keys.float("attention.layer_norm_epsilon")?;
    let epsilon =
        epsilon.ok_or_else(|| FormatError::MissingKey { key: keys.key("attention.layer_norm_epsilon") })?;
    let activation = source.family.activations.first().copied().unwrap_or_default();
    let has = |name: &str| source.model.tensor(name).is_some();
    if source.is(Special::ModernBert) {
        config.put("norm_eps", decimal(epsilon));
        config.put("hidden_activation", activation);
        config.put("norm_bias", has("token_embd_norm.bias"));
        config.put("attention_bias", has("blk.0.attn_qkv.bias"));
        config.put("mlp_bias", has("blk.0.ffn_up.bias"));
        config.put("classifier_bias", has("cls.bias"));
        config.put("classifier_activation", "gelu");
        let mean = source.model.metadata().bool_opt("moli.classifier.mean")? == Some(true);
        config.put("classifier_pooling", if mean { "mean" } else { "cls" });
        windows(source, &mut config)?;
    } else {
        config.put("layer_norm_eps", decimal(epsilon));
        config.put("hidden_act", activation);
        let kinds = source.model.metadata().u32_opt("tokenizer.ggml.token_type_count")?;
        let kinds = rows("token_types.weight").or(kinds.map(|kinds| kinds as usize));
        config.put("type_vocab_size", kinds.unwrap_or(1));
        if source.is(Special::NomicBert) {
            config.put("head_dim", source.head_dim);
            config.put("rope_theta", decimal(keys.float("rope.freq_base")?.unwrap_or(1e3)));
        } else {
            config.put("position_embedding_type", "absolute");
        }
    }
    if sorts {
        let named = source.model.metadata().strings_opt(&keys.key("classifier.output_labels"))?;
        let count = rows("cls.output.weight").unwrap_or(0);
        let name = |id: usize| {
            let told = named.and_then(|names| names.iter().nth(id)).filter(|name| !name.is_empty());
            told.map_or_else(|| format!("LABEL_{id}"), str::to_owned)
        };
        let labels: Vec<String> = (0..count).map(name).collect();
        let of = |(id, name): (usize, &String)| (id.to_string(), Json::from(name.as_str()));
        config.put("id2label", labels.iter().enumerate().map(of).collect::<Map<String, Json>>());
        let of = |(id, name): (usize, &String)| (name.clone(), Json::from(id));
        config.put("label2id", labels.iter().enumerate().map(of).collect::<Map<String, Json>>());
    }
    Ok(config.0)
}

/// ModernBERT: layers of both kinds and their rotary bases.
fn windows(source: &Source<'_>, config: &mut Config) -> Result<(), FormatError> {
    let keys = source.keys();
    let suffix = "attention.sliding_window_pattern";
    let slides: Vec<bool> = match source.model.metadata().get(&keys.key(suffix)) {
        Some(crate::Value::Array(_)) => keys.flags(suffix, source.layers)?.unwrap_or_default(),
        // Each how manyth layer, from the first on, has no window.
        _ => {
            let period = keys.count(suffix)?.unwrap_or(3).max(1);
            config.put("global_attn_every_n_layers", period);
            (0..source.layers).map(|layer| !layer.is_multiple_of(period)).collect()
        }
    };
    let kind = |&slides: &bool| if slides { "sliding_attention" } else { "full_attention" };
    config.put("layer_types", slides.iter().map(kind).collect::<Vec<_>>());
    config.put("local_attention", keys.need("attention.sliding_window")?);
    let base = |suffix: &str, usual: f32| keys.float(suffix).map(|base| decimal(base.unwrap_or(usual)));
    let (global, local) = (base("rope.freq_base", 1.6e5)?, base("rope.freq_base_swa", 1e4)?);
    let parameters = |theta: f64| json!({ "rope_type": "default", "rope_theta": theta });
    config.put(
        "rope_parameters",
        json!({ "full_attention": parameters(global), "sliding_attention": parameters(local) }),
    );
    // As the first libraries have them.
    config.put("global_rope_theta", global);
    config.put("local_rope_theta", local);
    Ok(())
}
