use std::collections::BTreeMap;

use moli_format::{Bytes, Gguf, GgufWriter};
use serde_json::{Map, Value as Json};

use super::*;

/// What llama.cpp chose, written down by `scripts/mixture-fixtures.py`.
const FIXTURES: &str = include_str!("../../tests/fixtures/mixtures.json");

fn facts_of(metadata: &Map<String, Json>) -> ModelFacts {
    let mut file = GgufWriter::new();
    for (key, value) in metadata {
        match value {
            Json::String(text) => file.meta(key, text.as_str()),
            value if value.is_u64() => file.meta(key, value.as_u64().unwrap() as u32),
            value => file.meta(key, value.as_f64().unwrap() as f32),
        };
    }
    let mut bytes = Vec::new();
    file.write(&mut bytes).unwrap();
    ModelFacts::of(Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap().metadata()).unwrap()
}

/// The tensors of a model of the fixtures.
fn tensors_of(model: &Json) -> Vec<(String, Vec<u64>)> {
    let listed =
        |key: &str| -> Vec<(String, Vec<u64>)> { serde_json::from_value(model[key].clone()).unwrap() };
    let mut all = listed("outside");
    for layer in 0..model["layers"].as_u64().unwrap() {
        all.extend(listed("layer").into_iter().map(|(stem, dims)| (format!("blk.{layer}.{stem}"), dims)));
    }
    all
}

#[test]
fn every_mixture_is_the_one_of_llama_cpp() {
    let fixtures: Json = serde_json::from_str(FIXTURES).unwrap();
    let legend: BTreeMap<char, String> = serde_json::from_value(fixtures["legend"].clone()).unwrap();
    let mut compared = 0;
    for model in fixtures["models"].as_array().unwrap() {
        let facts = facts_of(model["metadata"].as_object().unwrap());
        let tensors = tensors_of(model);
        let outlines: Vec<(&str, &[u64])> =
            tensors.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())).collect();
        for &mixture in Mixture::ALL {
            for imatrix in [false, true] {
                let changed = imatrix.then(|| model["imatrix"].get(mixture.name())).flatten();
                let theirs = changed.unwrap_or(&model["types"][mixture.name()]);
                let what = format!("{} {mixture} imatrix {imatrix}", model["name"]);
                let choices = mixture.choose(&facts, imatrix, &[], &outlines);
                let ours = choices.iter().map(|choice| choice.map_or("F32", |choice| choice.ttype.name()));
                let Some(theirs) = theirs.as_str() else {
                    // They refuse what needs an importance matrix.
                    let needed = outlines.iter().zip(ours).any(|((name, _), ttype)| {
                        mixture.needs_imatrix(
                            name,
                            TensorType::ALL.iter().copied().find(|t| t.name() == ttype).unwrap(),
                        )
                    });
                    assert!(needed && !imatrix, "{what}");
                    continue;
                };
                for (((name, dims), ours), theirs) in outlines.iter().zip(ours).zip(theirs.chars()) {
                    assert_eq!(ours, legend[&theirs], "{what}: {name} {dims:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 50_000, "{compared}");
}

#[test]
fn the_order_of_tensors_is_of_no_matter() {
    let facts = ModelFacts { architecture: "llama".into(), layers: 12, experts: 0, heads: 8, kv_heads: 8 };
    let names: Vec<String> = (0..12).map(|layer| format!("blk.{layer}.attn_v.weight")).collect();
    let dims = [256, 8];
    let outlines: Vec<(&str, &[u64])> = names.iter().map(|name| (name.as_str(), &dims[..])).collect();
    let backwards: Vec<(&str, &[u64])> = outlines.iter().rev().copied().collect();
    let mut choices = Mixture::Q4KM.choose(&facts, false, &[], &backwards);
    choices.reverse();
    assert_eq!(choices, Mixture::Q4KM.choose(&facts, false, &[], &outlines));
    let types: Vec<&str> = choices.iter().map(|choice| choice.unwrap().ttype.name()).collect();
    assert_eq!(types[..5], ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K"]);
}

#[test]
fn what_is_kept_has_the_format_that_is_asked_for() {
    let facts = ModelFacts { architecture: "llama".into(), layers: 2, experts: 0, heads: 8, kv_heads: 8 };
    let keep = ["attn_v=q8_0", "blk.1=f16", "norm=q8_0", "ffn_up=q6_k"].map(|keep| keep.parse().unwrap());
    let names =
        ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.1.ffn_up.weight", "blk.1.attn_norm.weight"];
    let outlines: Vec<(&str, &[u64])> = names.iter().map(|name| (*name, &[256, 8][..])).collect();
    let choices = Mixture::Q4KM.choose(&facts, false, &keep, &outlines);
    let types = choices.iter().map(|choice| choice.map(|choice| choice.ttype.name()));
    assert!(types.eq([Some("Q8_0"), Some("Q8_0"), Some("F16"), None]));
    // Rows that are no whole blocks get something smaller here as well.
    let odd = Mixture::F16.choose(&facts, false, &keep, &[("blk.0.ffn_up.weight", &[96, 8])]);
    assert_eq!(odd, [Some(Choice { ttype: TensorType::Q8_0, wanted: TensorType::Q6K })]);
}

#[test]
fn layers_of_their_own_have_the_first_one_s_heads() {
    let mut file = GgufWriter::new();
    file.meta("general.architecture", "llama").meta("llama.block_count", 2u32);
    file.meta("llama.attention.head_count", [8u32, 4]).meta("llama.attention.head_count_kv", [2u32, 4]);
    let mut bytes = Vec::new();
    file.write(&mut bytes).unwrap();
    let facts = ModelFacts::of(Gguf::from_bytes(&Bytes::from_vec(bytes)).unwrap().metadata()).unwrap();
    assert_eq!((facts.heads, facts.kv_heads), (8, 2));
}

#[test]
fn names_are_read_back() {
    for &mixture in Mixture::ALL {
        assert_eq!(Mixture::named(&mixture.name().to_lowercase()).unwrap(), mixture);
    }
    assert_eq!(Mixture::named("q3_k").unwrap(), Mixture::Q3KM);
    assert_eq!(Mixture::named("Q4_K").unwrap(), Mixture::Q4KM);
    assert_eq!(Mixture::named("Q5_k").unwrap(), Mixture::Q5KM);
    let error = Mixture::named("q9_0").unwrap_err();
    assert!(matches!(&error, ConvertError::UnknownMixture { name, .. } if name == "q9_0"));
    assert!(error.to_string().contains("Q4_K_M, Q4_K_S"), "{error}");
}
