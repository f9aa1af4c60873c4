//! Which matrix is stored in which format.

use std::fmt;

use moli_format::TensorType;

use crate::SyntheticError;

/// A rule for the formats of a model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixture {
    /// All in one.
    Pure(TensorType),
    /// llama.cpp's Q4_K_M: Q4_K, with Q6_K for the output head and for half of the value and down projections.
    Q4KM,
}

/// What a rule goes by, beyond the matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Layers of the model.
    pub(crate) layers: u64,
    /// Experts of a layer, 0 where there are none.
    pub(crate) experts: u64,
    /// Whether the embeddings are the output head.
    pub(crate) tied: bool,
}

impl Mixture {
    /// By llama.cpp's name (`q4_k_m`), or that of a single format (`q8_0`), in any case.
    ///
    /// # Errors
    /// [`SyntheticError::UnknownMixture`] with the names that there are.
    pub fn named(name: &str) -> Result<Self, SyntheticError> {
        if name.eq_ignore_ascii_case("q4_k_m") {
            return Ok(Self::Q4KM);
        }
        let found =
            moli_kernels::QUANTIZABLE.into_iter().find(|ttype| ttype.name().eq_ignore_ascii_case(name));
        found
            .map(Self::Pure)
            .ok_or_else(|| SyntheticError::UnknownMixture { mixture: name.to_owned(), known: Self::names() })
    }

    /// The names that there are, with commas.
    pub(crate) fn names() -> String {
        let types = moli_kernels::QUANTIZABLE.map(|ttype| ttype.name().to_lowercase());
        format!("q4_k_m, {}", types.join(", "))
    }

    /// The format of a matrix with rows of `cols`; `layer` only counts for tensors of a block.
    pub(crate) fn of(self, name: &str, layer: u64, cols: u64, rule: Rule) -> TensorType {
        let wanted = match self {
            // The router is small, and whatever it gets wrong is wrong for the whole layer.
            _ if name.ends_with("ffn_gate_inp.weight") => TensorType::F32,
            Self::Pure(ttype) => ttype,
            Self::Q4KM => q4_k_m(name, layer, rule),
        };
        let fits = |ttype: TensorType| cols.is_multiple_of(ttype.block_len() as u64);
        if fits(wanted) {
            return wanted;
        }
        let smaller = match wanted {
            TensorType::Q4K => TensorType::Q5_0,
            TensorType::Q5K => TensorType::Q5_1,
            TensorType::Q6K => TensorType::Q8_0,
            _ => TensorType::Q4_0,
        };
        if fits(smaller) { smaller } else { TensorType::F16 }
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pure(ttype) => f.write_str(&ttype.name().to_lowercase()),
            Self::Q4KM => f.write_str("q4_k_m"),
        }
    }
}

fn q4_k_m(name: &str, layer: u64, rule: Rule) -> TensorType {
    let is = |stem: &str| name.strip_suffix(".weight").is_some_and(|name| name.ends_with(stem));
    // With eight experts, attention is so small a part of the model that more bits for it are cheap.
    let eight = rule.experts == 8;
    if name == if rule.tied { "token_embd.weight" } else { "output.weight" } {
        TensorType::Q6K
    } else if eight && (is("attn_k") || is("attn_v")) {
        TensorType::Q8_0
    } else if eight && is("attn_output") || is("attn_qkv") {
        TensorType::Q5K
    } else if (is("attn_v") || is("ffn_down") || is("ffn_down_exps")) && more_bits(layer, rule.layers) {
        TensorType::Q6K
    } else {
        TensorType::Q4K
    }
}

/// llama.cpp's choice of the layers that get more bits: the first and the last eighth and every third between.
fn more_bits(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rule = Rule { layers: 8, experts: 0, tied: false };

    fn formats(rule: Rule, name: &str) -> Vec<&'static str> {
        (0..rule.layers).map(|layer| Mixture::Q4KM.of(name, layer, 512, rule).name()).collect()
    }

    #[test]
    fn half_of_the_sensitive_matrices_get_more_bits() {
        let more = ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"];
        for name in ["blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight"] {
            assert_eq!(formats(PLAIN, name), more, "{name}");
        }
        for name in ["blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"] {
            assert_eq!(formats(PLAIN, name), ["Q4_K"; 8], "{name}");
        }
    }

    #[test]
    fn the_head_is_the_output_or_the_embeddings() {
        let of = |tied, name: &str| Mixture::Q4KM.of(name, 0, 512, Rule { tied, ..PLAIN }).name();
        assert_eq!([of(false, "output.weight"), of(false, "token_embd.weight")], ["Q6_K", "Q4_K"]);
        assert_eq!(of(true, "token_embd.weight"), "Q6_K");
    }

    #[test]
    fn eight_experts_leave_more_bits_to_attention() {
        let eight = Rule { experts: 8, ..PLAIN };
        assert_eq!(formats(eight, "blk.0.attn_v.weight"), ["Q8_0"; 8]);
        assert_eq!(formats(eight, "blk.0.attn_k.weight"), ["Q8_0"; 8]);
        assert_eq!(formats(eight, "blk.0.attn_output.weight"), ["Q5_K"; 8]);
        let many = Rule { experts: 128, ..PLAIN };
        assert_eq!(formats(many, "blk.0.attn_k.weight"), ["Q4_K"; 8]);
        for mixture in [Mixture::Q4KM, Mixture::Pure(TensorType::Q8_0)] {
            assert_eq!(mixture.of("blk.0.ffn_gate_inp.weight", 0, 512, many), TensorType::F32);
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_a_smaller_format() {
        let of = |name, cols| Mixture::Q4KM.of(name, 0, cols, PLAIN).name();
        assert_eq!([of("blk.0.attn_q.weight", 320), of("output.weight", 320)], ["Q5_0", "Q8_0"]);
        assert_eq!(of("output.weight", 100), "F16");
        assert_eq!(Mixture::Pure(TensorType::Q8_0).of("x", 0, 100, PLAIN), TensorType::F16);
    }

    #[test]
    fn names_are_read_back() {
        let names = Mixture::names();
        for name in names.split(", ") {
            assert_eq!(Mixture::named(name).unwrap().to_string(), name);
        }
        let error = Mixture::named("q9_0").unwrap_err();
        assert!(matches!(&error, SyntheticError::UnknownMixture { mixture, .. } if mixture == "q9_0"));
        assert!(error.to_string().contains("q4_k_m, f32"), "{error}");
    }
}
