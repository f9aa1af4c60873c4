//! Adapters as `peft` saves them.
//!
//! A module's name is that of the model's own folder behind `base_model.model.`, so it is found by the same tables; which of an
//! architecture's families it is does not matter, since they agree where they have the same names.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::data::Source;
use super::family::{self, Part};
use super::{assemble, data, fields};
use crate::adapter::{AdapterError, LowRank, Order, Raw, Target};
use crate::safetensors::Safetensors;
use crate::{FormatError, ReadMode};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Bytes of a configuration, at most. Real ones have about a thousand.
const MAX_CONFIG: u64 = 1 << 20;
const POSITIVE: &str = "an integer from 1 to 65536";

/// Fields that say nothing about how an adapter is computed, or are read below. Any other must be as good as absent.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// The folder that a path means: itself, or where its configuration or weights are.
pub(crate) fn folder_of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return path.join(CONFIG).is_file().then(|| path.to_path_buf());
    }
    let name = path.file_name()?.to_str()?;
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent?,
    };
    ([CONFIG, WEIGHTS].contains(&name) && folder.join(CONFIG).is_file()).then(|| folder.to_path_buf())
}

/// The products of a folder.
pub(crate) fn open(folder: &Path, target: &Target<'_>, mode: ReadMode) -> Result<Vec<Raw>, FormatError> {
    let root: Option<Map<String, Json>> = fields::json(&folder.join(CONFIG), MAX_CONFIG, mode)?;
    let missing = || FormatError::NotFound { path: folder.join(CONFIG) };
    let config = Config::of(&root.ok_or_else(missing)?, transposes(target.architecture))?;
    let weights = match Safetensors::open(&folder.join(WEIGHTS), mode) {
        Err(FormatError::NotFound { .. }) => {
            return Err(AdapterError::NoWeights { folder: folder.to_path_buf() }.into());
        }
        other => other?,
    };
    let mut products = Vec::new();
    for tensor in weights.tensors() {
        let partner = |other: &str| match weights.tensor(other) {
            Some(tensor) => Ok(tensor),
            None => Err(AdapterError::Unpaired { tensor: tensor.name.clone(), missing: other.to_owned() }),
        };
        match half(&tensor.name) {
            Some((module, Half::A)) => {
                let b = partner(&tensor.name.replace(".lora_A.", ".lora_B."))?;
                add(module, &tensor.clone().into(), &b.clone().into(), &config, target, &mut products)?;
            }
            Some((_, Half::B)) => {
                partner(&tensor.name.replace(".lora_B.", ".lora_A."))?;
            }
            None => return Err(AdapterError::UnknownTensor { tensor: tensor.name.clone() }.into()),
        }
    }
    Ok(products)
}

/// Whether the architecture's folders have matrices with their inputs as rows, which an adapter's are not.
fn transposes(architecture: &str) -> bool {
    family::parts_of(architecture).any(|(_, part)| matches!(part, Part::Transposed(_)))
}

enum Half {
    A,
    B,
}

/// The module that a tensor is half of the product of.
fn half(name: &str) -> Option<(&str, Half)> {
    let name = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    // The name of an adapter may stand behind, as in a training checkpoint.
    let of = |half: &str| {
        let (module, behind) = name.rsplit_once(half)?;
        (behind.is_empty() || behind.starts_with('.')).then_some(module)
    };
    let a = of(".lora_A").map(|module| (module, Half::A));
    a.or_else(|| of(".lora_B").map(|module| (module, Half::B)))
}

/// Adds the products of a module by the names of the convention.
fn add(
    module: &str,
    a: &Source,
    b: &Source,
    config: &Config,
    target: &Target<'_>,
    products: &mut Vec<Raw>,
) -> Result<(), FormatError> {
    let rank = config.rank(module);
    for (tensor, dim) in [(a, 0), (b, 1)] {
        let actual = tensor.shape.get(dim).copied().unwrap_or(1) as u64;
        if actual != u64::from(rank) {
            let tensor = tensor.name.clone();
            return Err(AdapterError::Rank { tensor, expected: rank.into(), actual }.into());
        }
    }
    let factor = config.factor(module, rank);
    let mut push = |name: String, b: &Source| {
        let a = data::renamed(a.name.clone(), a)?;
        let b = data::renamed(b.name.clone(), b)?;
        products.push(Raw { product: LowRank { name, a, b, factor }, order: Order::Halves });
        Ok::<_, FormatError>(())
    };
    let unknown = || AdapterError::UnknownTensor { tensor: a.name.clone() };
    let name = assemble::without_prefix(module);
    let families = || family::of_architecture(target.architecture);
    if families().any(|family| family.names.new_stem(name) == Some("output")) {
        return push("output.weight".to_owned(), b);
    }
    let (layer, stem) = families()
        .find_map(|family| name.strip_prefix(family.layers())?.split_once('.'))
        .ok_or_else(unknown)?;
    let layer: u32 = layer.parse().map_err(|_| unknown())?;
    let (part, expert) = family::parts_of(target.architecture)
        .find_map(|(pattern, part)| Some((part, assemble::matches(pattern, stem)?)))
        .ok_or_else(unknown)?;
    let block = |stem: &str| format!("blk.{layer}.{stem}.weight");
    match (part, expert) {
        (Part::As(stem), Some(expert)) => push(block(&format!("{stem}.{expert}")), b),
        (Part::As(stem) | Part::Transposed(stem), None) => push(block(stem), b),
        (Part::Qkv, _) => split(b, 1, &block, target, &mut push),
        (Part::GroupedQkv, _) => split(b, target.kv_heads, &block, target, &mut push),
        (Part::SharedGateUp, _) => {
            let (gate, up) = data::halves(b)?;
            push(block("ffn_gate_shexp"), &gate)?;
            push(block("ffn_up_shexp"), &up)
        }
        (Part::FusedQkv, _) => push(block("attn_qkv"), &fused(b, target)?),
        _ => Err(unknown().into()),
    }
}

/// Queries, then keys, then values, where each key head has its own one after the other.
fn fused(b: &Source, target: &Target<'_>) -> Result<Source, FormatError> {
    let groups = target.kv_heads.max(1);
    let each = (target.heads / groups).saturating_add(2);
    let head = b.shape.first().copied().unwrap_or(0) / groups.saturating_mul(each).max(1);
    let mut parts = Vec::new();
    for (first, heads) in [(0, each - 2), (each - 2, 1), (each - 1, 1)] {
        for group in 0..groups {
            parts.push(data::rows(b, (group * each + first) * head, heads * head)?);
        }
    }
    data::join(&b.name, &parts)
}

/// Queries, keys and values out of the rows of one matrix, in so many groups of all three.
fn split(
    b: &Source,
    groups: usize,
    block: &dyn Fn(&str) -> String,
    target: &Target<'_>,
    push: &mut dyn FnMut(String, &Source) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut rows = Vec::new();
    for stem in ["attn_q", "attn_k", "attn_v"] {
        let name = block(stem);
        let Some((count, _)) = target.shape(&name) else {
            return Err(AdapterError::NoTensor { tensor: b.name.clone(), name }.into());
        };
        rows.push((name, usize::try_from(count).unwrap_or(usize::MAX) / groups.max(1)));
    }
    let group = rows.iter().fold(0usize, |sum, (_, rows)| sum.saturating_add(*rows));
    let mut first = 0;
    for (name, rows) in rows {
        let parts = (0..groups).map(|index| data::rows(b, index * group + first, rows));
        push(name, &data::join(&b.name, &parts.collect::<Result<Vec<_>, _>>()?)?)?;
        first += rows;
    }
    Ok(())
}

/// What `adapter_config.json` says.
struct Config {
    rank: u32,
    alpha: f64,
    /// Divided by the root of the rank instead of the rank (arXiv:2312.03732).
    by_root: bool,
    ranks: Vec<(String, u32)>,
    alphas: Vec<(String, f64)>,
}

impl Config {
    /// `transposes`: whether an adapter says so of matrices that have their inputs as rows.
    fn of(root: &Map<String, Json>, transposes: bool) -> Result<Self, AdapterError> {
        let get = |field: &str| root.get(field).filter(|value| !value.is_null());
        let shown = |field: &str| root.get(field).map_or_else(|| "absent".to_owned(), Json::to_string);
        let unsupported =
            |field: &str| AdapterError::Unsupported { field: field.to_owned(), value: shown(field) };
        if get("peft_type").and_then(Json::as_str) != Some("LORA") {
            return Err(AdapterError::Kind { field: "peft_type", value: shown("peft_type") });
        }
        if get("bias").is_some_and(|bias| bias != "none") {
            return Err(unsupported("bias"));
        }
        // Ways to begin training that change the base model as well.
        let harmless =
            [Json::Bool(true), Json::Bool(false), "gaussian".into(), "orthogonal".into(), "eva".into()];
        if get("init_lora_weights").is_some_and(|init| !harmless.contains(init)) {
            return Err(unsupported("init_lora_weights"));
        }
        if let Some((field, _)) = root.iter().find(|(field, value)| {
            let known = KNOWN.contains(&field.as_str()) || transposes && *field == "fan_in_fan_out";
            !known && !is_off(value)
        }) {
            return Err(unsupported(field));
        }
        let wrong = |field: &str, expected| AdapterError::WrongField {
            field: field.to_owned(),
            expected,
            value: shown(field),
        };
        let rank = get("r").and_then(rank_of).ok_or_else(|| wrong("r", POSITIVE))?;
        let number = "a finite number";
        let alpha = get("lora_alpha").and_then(Json::as_f64).ok_or_else(|| wrong("lora_alpha", number))?;
        let by_root = match get("use_rslora") {
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| wrong("use_rslora", "true or false"))?,
        };
        Ok(Self {
            rank,
            alpha,
            by_root,
            ranks: patterns(root, "rank_pattern", POSITIVE, rank_of)?,
            alphas: patterns(root, "alpha_pattern", number, Json::as_f64)?,
        })
    }

    fn rank(&self, module: &str) -> u32 {
        first_match(&self.ranks, module).unwrap_or(self.rank)
    }

    fn factor(&self, module: &str, rank: u32) -> f32 {
        let alpha = first_match(&self.alphas, module).unwrap_or(self.alpha);
        let rank = f64::from(rank);
        (alpha / if self.by_root { rank.sqrt() } else { rank }) as f32
    }
}

/// A field as good as absent.
fn is_off(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn rank_of(value: &Json) -> Option<u32> {
    value.as_u64().filter(|rank| (1..=1 << 16).contains(rank)).map(|rank| rank as u32)
}

/// The values of modules by the ends of their names. Patterns that are more than names are refused.
fn patterns<T>(
    root: &Map<String, Json>,
    field: &str,
    expected: &'static str,
    read: impl Fn(&Json) -> Option<T>,
) -> Result<Vec<(String, T)>, AdapterError> {
    let wrong = |value: &Json, expected| AdapterError::WrongField {
        field: field.to_owned(),
        expected,
        value: value.to_string(),
    };
    let map = match root.get(field) {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Object(map)) => map,
        Some(value) => return Err(wrong(value, "an object")),
    };
    let mut patterns = Vec::new();
    for (pattern, value) in map {
        if pattern
            .trim_start_matches('^')
            .contains(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)))
        {
            return Err(AdapterError::Unsupported { field: field.to_owned(), value: pattern.clone() });
        }
        patterns.push((pattern.clone(), read(value).ok_or_else(|| wrong(value, expected))?));
    }
    Ok(patterns)
}

/// The value of the first pattern that is the module's name, or the end of it from a dot on.
fn first_match<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let matches = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, value)| *value)
}
