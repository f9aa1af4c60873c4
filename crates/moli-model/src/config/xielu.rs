//! An activation with numbers of its own in each layer.

use moli_format::{Metadata, Value};

use crate::ModelError;

/// xIELU (arXiv:2411.13010): `positive x² + linear x` above 0, `negative (e^min(x, limit) - 1 - x) + linear x` elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    /// What bends it above 0.
    pub positive: f32,
    /// What bends it elsewhere.
    pub negative: f32,
    /// Its slope at 0.
    pub linear: f32,
    /// Where its exponential ends, just below 0.
    pub limit: f32,
}

impl Xielu {
    /// The numbers of each layer. Files have those that were learned, of which two are logarithms of a kind.
    pub(super) fn read(metadata: &Metadata, layers: usize) -> Result<Vec<Self>, ModelError> {
        let numbers = |key: &str| -> Result<Vec<f32>, ModelError> {
            let numbers = match metadata.get(key) {
                Some(Value::Array(_)) => metadata.f32s(key)?.into_owned(),
                _ => vec![metadata.f32(key)?; layers],
            };
            let out_of_range = |value: String, allowed: String| ModelError::OutOfRange {
                key: key.to_owned(),
                value,
                allowed,
            };
            if numbers.len() != layers {
                let allowed = format!("as long as block_count, {layers}");
                return Err(out_of_range(format!("{} long", numbers.len()), allowed));
            }
            match numbers.iter().find(|number| !number.is_finite()) {
                Some(number) => Err(out_of_range(number.to_string(), "finite".to_owned())),
                None => Ok(numbers),
            }
        };
        let [positive, negative] = [numbers("xielu.alpha_p")?, numbers("xielu.alpha_n")?];
        let [linear, limit] = [numbers("xielu.beta")?, numbers("xielu.eps")?];
        if let Some(limit) = limit.iter().find(|&&limit| limit > 0.0) {
            let (key, value) = ("xielu.eps".to_owned(), limit.to_string());
            return Err(ModelError::OutOfRange { key, value, allowed: "not above 0".to_owned() });
        }
        let alphas = positive.iter().zip(&negative);
        let rest = linear.iter().zip(&limit);
        Ok(alphas
            .zip(rest)
            .map(|((&positive, &negative), (&linear, &limit))| Self {
                positive: softplus(positive),
                negative: linear + softplus(negative),
                linear,
                limit,
            })
            .collect())
    }

    /// What a backend takes.
    pub(crate) fn numbers(&self) -> [f32; 4] {
        [self.positive, self.negative, self.linear, self.limit]
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    let x = f64::from(x);
    (x.max(0.0) + (-x.abs()).exp().ln_1p()) as f32
}
