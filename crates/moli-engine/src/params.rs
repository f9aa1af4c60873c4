//! What a caller can ask of an answer, and what it may not.

use std::time::Duration;

use crate::{AdapterScale, EngineError, Grammar};

/// How one answer is made.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateParams {
    /// Most tokens of the answer; `None`: as many as fit the context. With 0 the prompt is computed and nothing else.
    pub max_tokens: Option<usize>,
    /// How a token is chosen.
    pub sampling: SamplerParams,
    /// Texts that end the answer; they and what follows are not shown. None of them may be empty.
    pub stop: Vec<String>,
    /// `Some(k)`: each token comes with its log-probability and those of the `k` likeliest tokens, of the model's own
    /// distribution before anything in `sampling` touches it. `Some(0)`: the token's own only.
    pub logprobs: Option<usize>,
    /// Tokens that end an answer are never chosen.
    pub ignore_eos: bool,
    /// What the answer must be; it is complete where nothing may follow. `None`: anything.
    pub grammar: Option<Grammar>,
    /// Answers to the same prompt, which is computed once. Choice `i` has the seed of the first plus `i`. 1 to
    /// [`MAX_CHOICES`]; 1.
    pub choices: usize,
    /// Who is served first where not everybody can be: the higher. 0.
    pub priority: i32,
    /// The answer ends so long after it was asked for, finished or not. It may not be zero.
    pub deadline: Option<Duration>,
    /// `Some(keep)`: where the context is full, the first `keep` tokens and the later half of the others stay, are computed
    /// anew, and the answer goes on; the summary says how many tokens were dropped. `None`: the answer ends.
    pub context_shift: Option<usize>,
    /// Tokens are guessed by what came before and computed together. It never changes an answer; where it does not pay it
    /// pauses. On.
    pub speculation: bool,
    /// LoRA adapters that the answer is computed with, each once; their order is of no matter. `None`: those of the session, or those that
    /// the model was loaded with for whoever chooses nothing.
    pub adapters: Option<Vec<AdapterScale>>,
}

/// Most choices of one answer.
pub const MAX_CHOICES: usize = 128;

impl Default for GenerateParams {
    fn default() -> Self {
        Self {
            max_tokens: None,
            sampling: SamplerParams::default(),
            stop: Vec::new(),
            logprobs: None,
            ignore_eos: false,
            grammar: None,
            choices: 1,
            priority: 0,
            deadline: None,
            context_shift: None,
            speculation: true,
            adapters: None,
        }
    }
}

impl GenerateParams {
    /// Checks every value against what it may be, for a model with a vocabulary of `vocab` and a context of `context` tokens.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] or [`EngineError::TokenOutOfVocabulary`] for the first that is wrong.
    pub fn validate(&self, vocab: usize, context: usize) -> Result<(), EngineError> {
        self.sampling.validate(vocab)?;
        if let Some(k) = self.logprobs.filter(|k| *k > vocab) {
            let allowed = format!("at most the {vocab} of the vocabulary");
            return Err(EngineError::parameter("logprobs", k, allowed));
        }
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            return Err(EngineError::parameter(
                "choices",
                self.choices,
                format!("between 1 and {MAX_CHOICES}"),
            ));
        }
        if self.deadline.is_some_and(|deadline| deadline.is_zero()) {
            return Err(EngineError::parameter("deadline", "over already", "in the future"));
        }
        // A grammar ends by the tokens that are never chosen.
        if self.ignore_eos && self.grammar.is_some() {
            return Err(EngineError::parameter("ignore_eos", true, "false where there is a grammar"));
        }
        if let Some(keep) = self.context_shift.filter(|&keep| keep >= context.saturating_sub(1)) {
            let allowed = format!("less than the context of {context} tokens, by two");
            return Err(EngineError::parameter("context_shift", keep, allowed));
        }
        Ok(())
    }
}

/// How a token is chosen. The stages run in this order: logit bias, penalties, DRY, top-k, typical, top-p, min-p,
/// temperature. The defaults are those of llama.cpp's command line.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Logits are divided by this; 0: always the likeliest token (the lowest id of equals). At most 1000; 0.8.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens stay; 0: all. 40.
    pub top_k: usize,
    /// Only the fewest likeliest tokens whose probabilities reach this stay (arXiv:1904.09751); 1: all. 0.95.
    pub top_p: f32,
    /// Only tokens with at least this part of the likeliest one's probability stay; 0: all. 0.05.
    pub min_p: f32,
    /// Locally typical sampling (arXiv:2202.00666): only tokens whose information is nearest to the expected one stay,
    /// until their probabilities exceed this; 1: off. 1.
    pub typical_p: f32,
    /// Logits of tokens among the last ones are divided by this where positive, and multiplied where negative
    /// (arXiv:1909.05858); 1: off. Between 0.01 and 100; 1.
    pub repeat_penalty: f32,
    /// How many last tokens, the prompt's included, the three penalties look at; `usize::MAX`: all; 0: off. 64.
    pub repeat_last_n: usize,
    /// Subtracted from a logit for each time that its token is among the last ones. Between -100 and 100; 0.
    pub frequency_penalty: f32,
    /// Subtracted from a logit if its token is among the last ones. Between -100 and 100; 0.
    pub presence_penalty: f32,
    /// The penalty on repeating whole sequences.
    pub dry: DryParams,
    /// Added to the logits of these tokens: finite and at most 10^6 either way, or minus infinity to forbid a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Where chance begins; `None`: drawn from the operating system and told in the summary.
    pub seed: Option<u64>,
}

/// DRY, "don't repeat yourself": a token that would continue a repeated sequence of `n` tokens loses
/// `multiplier * base ^ (n - allowed_length)`.
#[derive(Debug, Clone, PartialEq)]
pub struct DryParams {
    /// 0: off. At most 1000; 0.
    pub multiplier: f32,
    /// Between 1 and 100; 1.75.
    pub base: f32,
    /// The longest repetition that costs nothing more than `multiplier`. 2.
    pub allowed_length: usize,
    /// How many last tokens, the prompt's included, are searched; `usize::MAX`: all; 0: off. `usize::MAX`.
    pub penalty_last_n: usize,
    /// Texts that no repetition extends across. Line break, colon, quotation mark, asterisk.
    pub sequence_breakers: Vec<String>,
}

/// Most sequence breakers, and most bytes of each.
const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_LENGTH: usize = 64;

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry: DryParams::default(),
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Default for DryParams {
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            penalty_last_n: usize::MAX,
            sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
        }
    }
}

impl SamplerParams {
    /// The likeliest token at every step.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every value against what it may be, token ids against a vocabulary of `vocab`.
    ///
    /// # Errors
    /// [`EngineError::InvalidParameter`] or [`EngineError::TokenOutOfVocabulary`] for the first that is wrong.
    pub fn validate(&self, vocab: usize) -> Result<(), EngineError> {
        within("temperature", self.temperature, 0.0, 1000.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("typical_p", self.typical_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.01, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        self.dry.validate()?;
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(EngineError::TokenOutOfVocabulary { id, vocab });
            }
            if bias != f32::NEG_INFINITY {
                within("logit_bias", bias, -1e6, 1e6)?;
            }
        }
        Ok(())
    }
}

impl DryParams {
    /// Whether it does anything.
    pub fn is_on(&self) -> bool {
        self.multiplier > 0.0 && self.penalty_last_n > 0
    }

    fn validate(&self) -> Result<(), EngineError> {
        within("dry.multiplier", self.multiplier, 0.0, 1000.0)?;
        within("dry.base", self.base, 1.0, 100.0)?;
        let count = self.sequence_breakers.len();
        if count > MAX_BREAKERS {
            let allowed = format!("at most {MAX_BREAKERS} texts");
            return Err(EngineError::parameter("dry.sequence_breakers", count, allowed));
        }
        for text in &self.sequence_breakers {
            if text.is_empty() || text.len() > MAX_BREAKER_LENGTH {
                let allowed = format!("texts of 1 to {MAX_BREAKER_LENGTH} bytes");
                let value = format!("a text of {} bytes", text.len());
                return Err(EngineError::parameter("dry.sequence_breakers", value, allowed));
            }
        }
        Ok(())
    }
}

/// Not a number is in no range.
fn within(name: &'static str, value: f32, low: f32, high: f32) -> Result<(), EngineError> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err(EngineError::parameter(name, value, format!("between {low} and {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        SamplerParams::default().validate(1).unwrap();
        SamplerParams::greedy().validate(1).unwrap();
    }

    #[test]
    fn each_parameter_is_checked_by_name() {
        type Change = fn(&mut SamplerParams);
        let wrong: [(&str, Change); 18] = [
            ("temperature", |p| p.temperature = f32::NAN),
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("top_p", |p| p.top_p = 1.1),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = -1.0),
            ("typical_p", |p| p.typical_p = 2.0),
            ("repeat_penalty", |p| p.repeat_penalty = 0.0),
            ("repeat_penalty", |p| p.repeat_penalty = f32::NAN),
            ("frequency_penalty", |p| p.frequency_penalty = f32::INFINITY),
            ("presence_penalty", |p| p.presence_penalty = f32::NAN),
            ("dry.multiplier", |p| p.dry.multiplier = -1.0),
            ("dry.base", |p| p.dry.base = 0.5),
            ("dry.base", |p| p.dry.base = f32::NAN),
            ("dry.sequence_breakers", |p| p.dry.sequence_breakers = vec![String::new()]),
            ("dry.sequence_breakers", |p| p.dry.sequence_breakers = vec!["x".into(); 65]),
            ("logit_bias", |p| p.logit_bias = vec![(0, f32::NAN)]),
            ("logit_bias", |p| p.logit_bias = vec![(0, f32::INFINITY)]),
        ];
        for (expected, change) in wrong {
            let mut params = SamplerParams::default();
            change(&mut params);
            let error = params.validate(8).unwrap_err();
            assert!(
                matches!(error, EngineError::InvalidParameter { name, .. } if name == expected),
                "{expected}: {error}"
            );
        }
        let params = SamplerParams { logit_bias: vec![(8, 0.0)], ..SamplerParams::default() };
        assert!(matches!(params.validate(8), Err(EngineError::TokenOutOfVocabulary { id: 8, vocab: 8 })));
        let params = SamplerParams { logit_bias: vec![(7, f32::NEG_INFINITY)], ..SamplerParams::default() };
        params.validate(8).unwrap();
    }
}
