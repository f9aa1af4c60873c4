//! The head of a model that sorts texts: a score for each label, from one hidden state.

use moli_format::{Gguf, Metadata};

use crate::weights::{finite, rows};
use crate::{Config, ModelError};

/// Labels of a model, at most: beyond what any published reranker has.
pub(crate) const MAX_LABELS: usize = 1 << 10;

/// A small matrix with named rows, on the host, and in encoders a layer before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    labels: Vec<String>,
    count: usize,
    dense: Option<Dense>,
    /// `[labels, hidden]`, row-major.
    weight: Vec<f32>,
    /// `[labels]`
    bias: Option<Vec<f32>>,
}

/// What a hidden state goes through before it is scored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dense {
    /// `[hidden, hidden]`, row-major.
    pub(crate) weight: Vec<f32>,
    /// `[hidden]`
    pub(crate) bias: Option<Vec<f32>>,
    /// Gain and bias of a LayerNorm and what is added to its variance, with GELU before it. `None`: the hyperbolic tangent alone.
    pub(crate) norm: Option<(Vec<f32>, Option<Vec<f32>>, f32)>,
}

impl Dense {
    fn apply(&self, state: &[f32]) -> Vec<f32> {
        let made = product(&self.weight, self.bias.as_deref(), state);
        let Some((gain, bias, eps)) = &self.norm else {
            return made.map(moli_kernels::tanh).collect();
        };
        let x: Vec<f64> = made.map(|x| f64::from(moli_kernels::gelu_erf(x))).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
        let deviation = (variance + f64::from(*eps)).sqrt();
        let bias = bias.iter().flatten().copied().chain(std::iter::repeat(0.0));
        let normed = x.iter().zip(gain).zip(bias);
        normed
            .map(|((x, &gain), bias)| ((x - mean) / deviation * f64::from(gain) + f64::from(bias)) as f32)
            .collect()
    }
}

/// `weight · state + bias`: the same bits everywhere.
fn product<'a>(
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    state: &'a [f32],
) -> impl Iterator<Item = f32> + 'a {
    let dot =
        move |row: &[f32]| row.iter().zip(state).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    let bias = bias.into_iter().flatten().copied().chain(std::iter::repeat(0.0));
    weight
        .chunks_exact(state.len().max(1))
        .zip(bias)
        .map(move |(row, bias)| (dot(row) + f64::from(bias)) as f32)
}

impl Classifier {
    /// `weight`: `[labels, hidden]`; `bias`: `[labels]`. The labels' names are the file's.
    pub(crate) fn new(
        metadata: &Metadata,
        count: usize,
        dense: Option<Dense>,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> Result<Self, ModelError> {
        let key = format!("{}.classifier.output_labels", metadata.architecture()?);
        let labels: Vec<String> = match metadata.strings_opt(&key)? {
            Some(labels) => labels.iter().map(str::to_owned).collect(),
            None => Vec::new(),
        };
        if !labels.is_empty() && labels.len() != count {
            return Err(ModelError::OutOfRange {
                key,
                value: format!("{} long", labels.len()),
                allowed: format!("as long as cls.output.weight has rows, {count}"),
            });
        }
        Ok(Self { labels, count, dense, weight, bias })
    }

    /// The rows of the output head that belong to these tokens: a label for each.
    ///
    /// # Errors
    /// [`ModelError::OutOfRange`] for a token that the model has not, [`ModelError::MissingTensor`] and what is wrong with the
    /// rows.
    pub fn of_tokens(
        gguf: &Gguf,
        config: &Config,
        tokens: &[u32],
        labels: &[&str],
    ) -> Result<Self, ModelError> {
        // Where there is no head, the embeddings are it.
        let tied = "token_embd.weight";
        let head = gguf.tensor("output.weight").or_else(|| gguf.tensor(tied));
        let head = head.ok_or_else(|| ModelError::MissingTensor { name: tied.to_owned() })?;
        let bias = gguf.tensor("output.bias").map(finite).transpose()?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= head.rows().min(config.vocab)) {
            return Err(ModelError::OutOfRange {
                key: format!("a row of {}", head.name),
                value: token.to_string(),
                allowed: format!("below {}", head.rows()),
            });
        }
        let mut weight = Vec::with_capacity(tokens.len() * config.hidden);
        for &token in tokens {
            weight.extend(finite(&rows(head, token as usize..token as usize + 1)?)?);
        }
        let bias =
            bias.map(|bias| tokens.iter().filter_map(|&token| bias.get(token as usize).copied()).collect());
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        Ok(Self { labels, count: tokens.len(), dense: None, weight, bias })
    }

    /// The labels' names, in the order of the scores; empty where the file names none.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// How many labels there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A score for each label, of a hidden state `[hidden]`: the same bits everywhere.
    #[must_use]
    pub fn scores(&self, state: &[f32]) -> Vec<f32> {
        let made = self.dense.as_ref().map(|dense| dense.apply(state));
        product(&self.weight, self.bias.as_deref(), made.as_deref().unwrap_or(state)).collect()
    }
}
