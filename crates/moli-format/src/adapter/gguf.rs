//! Adapters in the form of llama.cpp's.

use super::{AdapterError, LowRank, Order, Raw, Target};
use crate::{FormatError, Gguf, Metadata, Value};

const ALPHA: &str = "adapter.lora.alpha";

/// The products of a file.
pub(super) fn products(file: &Gguf, target: &Target<'_>) -> Result<Vec<Raw>, FormatError> {
    let metadata = file.metadata();
    let found = metadata.str_opt("general.type")?.unwrap_or("model");
    if found != "adapter" {
        return Err(AdapterError::NotAnAdapter { found: found.to_owned() }.into());
    }
    let kind = metadata.str("adapter.type")?;
    if kind != "lora" {
        return Err(AdapterError::Kind { field: "adapter.type", value: kind.to_owned() }.into());
    }
    let architecture = metadata.architecture()?;
    if architecture != target.architecture {
        let (adapter, base) = (architecture.to_owned(), target.architecture.to_owned());
        return Err(AdapterError::Architecture { adapter, base }.into());
    }
    refuse_unknown(metadata)?;
    let alpha = metadata.f32(ALPHA)?;
    if !alpha.is_finite() {
        let value = alpha.to_string();
        return Err(
            AdapterError::WrongField { field: ALPHA.to_owned(), expected: "a finite number", value }.into()
        );
    }
    let mut products = Vec::new();
    for tensor in file.tensors() {
        let partner = |stem: &str, end: &str| {
            let missing = format!("{stem}.{end}");
            let found = file.tensor(&missing);
            found.ok_or(AdapterError::Unpaired { tensor: tensor.name.clone(), missing })
        };
        match tensor.name.rsplit_once('.') {
            Some((stem, "lora_a")) => {
                let (a, b) = (tensor.clone(), partner(stem, "lora_b")?.clone());
                // As it is read there: 0 is how a file says that there is no alpha.
                let rank = b.dims.first().copied().unwrap_or(1);
                let factor = if alpha == 0.0 { 1.0 } else { alpha / rank as f32 };
                let product = LowRank { name: stem.to_owned(), a, b, factor };
                products.push(Raw { product, order: Order::Pairs });
            }
            Some((stem, "lora_b")) => {
                partner(stem, "lora_a")?;
            }
            _ => return Err(AdapterError::UnknownTensor { tensor: tensor.name.clone() }.into()),
        }
    }
    Ok(products)
}

/// Refuses what changes how an adapter is computed and is not known here.
fn refuse_unknown(metadata: &Metadata) -> Result<(), AdapterError> {
    // The prompt that an adapter was trained with is no part of what it computes.
    let known = ["adapter.type", ALPHA, "adapter.lora.task_name", "adapter.lora.prompt_prefix"];
    match metadata.iter().find(|(key, _)| key.starts_with("adapter.") && !known.contains(key)) {
        Some((key, value)) => {
            let value = match value {
                Value::String(text) => text.clone(),
                other => format!("there, {}", other.type_name()),
            };
            Err(AdapterError::Unsupported { field: key.to_owned(), value })
        }
        None => Ok(()),
    }
}
