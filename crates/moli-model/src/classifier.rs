//! The head of a model that sorts texts: a score for each label, from the last token's hidden state.

use moli_format::{Gguf, Metadata};

use crate::weights::{finite, rows};
use crate::{Config, ModelError};

/// Labels of a model, at most: beyond what any published reranker has.
pub(crate) const MAX_LABELS: usize = 1 << 10;

/// A small matrix with named rows, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    labels: Vec<String>,
    /// `[labels, hidden]`, row-major.
    weight: Vec<f32>,
    /// `[labels]`
    bias: Option<Vec<f32>>,
}

impl Classifier {
    /// `weight`: `[labels, hidden]`; `bias`: `[labels]`. The labels' names are the file's.
    pub(crate) fn new(
        metadata: &Metadata,
        count: usize,
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
        Ok(Self { labels, weight, bias })
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
        Ok(Self { labels: labels.iter().map(|&label| label.to_owned()).collect(), weight, bias })
    }

    /// The labels' names, in the order of the scores; empty where the file names none.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// A score for each label, of a hidden state `[hidden]`: the same bits everywhere.
    #[must_use]
    pub fn scores(&self, state: &[f32]) -> Vec<f32> {
        let dot =
            |row: &[f32]| row.iter().zip(state).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
        let bias = self.bias.iter().flatten().copied().chain(std::iter::repeat(0.0));
        let rows = self.weight.chunks_exact(state.len().max(1));
        rows.zip(bias).map(|(row, bias)| (dot(row) + f64::from(bias)) as f32).collect()
    }
}
