//! How the next token is chosen: the chain of stages and the state that it keeps from token to token.
//!
//! The order is that of llama.cpp's default: logit bias, penalties, DRY, top-k, typical, top-p, min-p, temperature. The
//! stages are functions of a list of candidates in [`stages`]; DRY is in [`dry`].

mod dry;
pub(crate) mod stages;

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::SysRng;
use rand::{Rng, SeedableRng, TryRng};
use rand_chacha::ChaCha12Rng;

pub(crate) use dry::Breakers;
use dry::Dry;
use stages::Candidate;

use crate::{EngineError, SamplerParams};

/// The largest top-k for which tokens are looked at one by one: more of them take as long as a mask.
const LOOKED_AT: usize = 64;

/// Chooses the tokens of one answer. Nothing is allocated per token once the buffers have grown.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplerParams,
    seed: u64,
    random: ChaCha12Rng,
    /// Prompt and answer, as far as a penalty looks at it.
    history: Vec<u32>,
    /// How often each token is among the last `repeat_last_n`.
    counts: HashMap<u32, u32>,
    dry: Option<Dry>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// `params` must be valid; `breakers` are wanted where DRY is on.
    pub(crate) fn new(
        params: SamplerParams,
        breakers: Option<Arc<Breakers>>,
        prompt: &[u32],
    ) -> Result<Self, EngineError> {
        let seed = match params.seed {
            Some(seed) => seed,
            // 32 bits: as many as a reader of JSON that knows only doubles keeps, and a person can type.
            None => {
                let drawn = SysRng.try_next_u32();
                u64::from(drawn.map_err(|error| EngineError::NoEntropy { reason: error.to_string() })?)
            }
        };
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(seed.to_le_bytes()) {
            *to = from;
        }
        let dry = params.dry.is_on().then(|| Dry::new(params.dry.clone(), breakers.unwrap_or_default()));
        let mut sampler = Self {
            seed,
            random: ChaCha12Rng::from_seed(key),
            history: Vec::with_capacity(prompt.len() + 256),
            counts: HashMap::new(),
            dry,
            candidates: Vec::new(),
            params,
        };
        for &id in prompt {
            sampler.accept(id);
        }
        Ok(sampler)
    }

    /// What the choices can be replayed with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether [`change`](Self::change) does anything.
    pub(crate) fn changes(&self) -> bool {
        !self.params.logit_bias.is_empty() || self.penalises() || self.dry.is_some()
    }

    /// Changes `logits`, `[vocab]`, by bias and penalties.
    pub(crate) fn change(&mut self, logits: &mut [f32]) {
        let params = &self.params;
        stages::logit_bias(logits, &params.logit_bias);
        if self.penalises() {
            let counts = self.counts.iter().map(|(&id, &count)| (id, count));
            stages::penalties(
                logits,
                counts,
                params.repeat_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            );
        }
        if let Some(dry) = &mut self.dry {
            dry.apply(&self.history, logits);
        }
    }

    /// Chooses a token by `logits`, `[vocab]`, which must be finite or minus infinity. The same history, seed and logits
    /// give the same token.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        let params = &self.params;
        if params.temperature <= 0.0 {
            return stages::greedy(logits).ok_or(EngineError::NothingToSample);
        }
        stages::top_k(logits, params.top_k, &mut self.candidates);
        self.choose_candidate()
    }

    /// What [`choose`](Self::choose) chooses where tokens that are not allowed are at minus infinity, found by looking at the
    /// likeliest ones only. `None`, and nothing is drawn, where too few of these are allowed to tell, or where too many would
    /// have to be looked at.
    pub(crate) fn choose_allowed(
        &mut self,
        logits: &[f32],
        mut is_allowed: impl FnMut(u32) -> Result<bool, EngineError>,
    ) -> Result<Option<u32>, EngineError> {
        let is_greedy = self.params.temperature <= 0.0;
        let wanted = if is_greedy { 1 } else { self.params.top_k };
        if wanted == 0 || wanted > LOOKED_AT || wanted >= logits.len() {
            return Ok(None);
        }
        stages::likeliest(logits, 2 * wanted.max(4), &mut self.candidates);
        let mut allowed = 0;
        let count = self.candidates.len();
        for index in 0..count {
            if allowed + (count - index) < wanted {
                break;
            }
            let candidate = self.candidates[index];
            if is_allowed(candidate.id)? {
                self.candidates[allowed] = candidate;
                allowed += 1;
                if allowed == wanted {
                    self.candidates.truncate(wanted);
                    let first = self.candidates.first().map(|candidate| candidate.id);
                    return if is_greedy { Ok(first) } else { self.choose_candidate().map(Some) };
                }
            }
        }
        Ok(None)
    }

    /// Chooses by what is left of the chain: `self.candidates` are those of top-k.
    fn choose_candidate(&mut self) -> Result<u32, EngineError> {
        let (params, candidates) = (&self.params, &mut self.candidates);
        stages::typical(candidates, params.typical_p);
        stages::top_p(candidates, params.top_p);
        stages::min_p(candidates, params.min_p);
        // One draw for each token, whatever the candidates are: 53 bits, as many as a double below 1 has.
        let chance = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        stages::choose(candidates, params.temperature, chance).ok_or(EngineError::NothingToSample)
    }

    /// Takes note of a token of the prompt or the answer.
    pub(crate) fn accept(&mut self, id: u32) {
        if self.dry.is_none() && !self.penalises() {
            return;
        }
        self.history.push(id);
        if !self.penalises() {
            return;
        }
        *self.counts.entry(id).or_insert(0) += 1;
        let leaving = self.history.len().checked_sub(self.params.repeat_last_n.saturating_add(1));
        if let Some(&old) = leaving.and_then(|index| self.history.get(index))
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    fn penalises(&self) -> bool {
        let p = &self.params;
        p.repeat_last_n > 0
            && (p.repeat_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sampler {
        fn sample(&mut self, logits: &mut [f32]) -> Result<u32, EngineError> {
            self.change(logits);
            self.choose(logits)
        }
    }

    fn sampler(params: SamplerParams, prompt: &[u32]) -> Sampler {
        Sampler::new(params, None, prompt).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_gives_others() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let draw = |seed| {
            let mut sampler = sampler(SamplerParams { seed: Some(seed), ..SamplerParams::default() }, &[]);
            (0..64).map(|_| sampler.sample(&mut logits.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    /// These bits must never change: they are what a seed means.
    #[test]
    fn a_seed_means_the_same_in_every_version() {
        let mut sampler = sampler(SamplerParams { seed: Some(42), ..SamplerParams::default() }, &[]);
        let logits: Vec<f32> = (0..50).map(|i| ((i * 37 % 50) as f32) * 0.1).collect();
        let ids: Vec<u32> = (0..12).map(|_| sampler.sample(&mut logits.clone()).unwrap()).collect();
        // From an independent implementation: ChaCha with 12 rounds, key 42, and numpy for the stages.
        assert_eq!(ids, [35, 4, 43, 43, 27, 4, 31, 27, 20, 4, 32, 31]);
    }

    #[test]
    fn without_a_seed_one_is_drawn_and_replays() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32).cos()).collect();
        let run = |seed| {
            let mut sampler = sampler(SamplerParams { seed, top_k: 0, ..SamplerParams::default() }, &[]);
            let ids: Vec<u32> = (0..16).map(|_| sampler.sample(&mut logits.clone()).unwrap()).collect();
            (sampler.seed(), ids)
        };
        let (seed, ids) = run(None);
        assert_eq!(run(Some(seed)), (seed, ids));
    }

    #[test]
    fn looking_chooses_what_a_mask_would() {
        let mut random = ChaCha12Rng::seed_from_u64(3);
        let (mut found, mut too_few) = (0, 0);
        for round in 0..4000_u64 {
            let vocab = 2 + (round % 40) as usize;
            // Few different values, both zeros among them.
            let value = |bits: u32| [0.0, -0.0, 1.0, -1.0, 0.5, 2.0][bits as usize % 6];
            let logits: Vec<f32> = (0..vocab).map(|_| value(random.next_u32())).collect();
            let allowed: Vec<bool> = (0..vocab).map(|_| random.next_u32() % 8 > 0).collect();
            let masked = logits.iter().zip(&allowed).map(|(&x, ok)| if *ok { x } else { f32::NEG_INFINITY });
            let masked: Vec<f32> = masked.collect();
            let temperature = if round % 3 == 0 { 0.0 } else { 1.0 };
            let top_k = (round % 7) as usize * 3;
            let params = SamplerParams { seed: Some(round), top_k, temperature, ..SamplerParams::default() };
            let (mut looking, mut masking) = (sampler(params.clone(), &[]), sampler(params, &[]));
            for _ in 0..2 {
                let chosen = looking.choose_allowed(&logits, |id| Ok(allowed[id as usize])).unwrap();
                match chosen {
                    Some(id) => {
                        found += 1;
                        assert_eq!(masking.choose(&masked).unwrap(), id, "{round}");
                    }
                    None => too_few += 1,
                }
            }
        }
        assert!(found > 1000 && too_few > 1000, "{found} {too_few}");
    }

    #[test]
    fn penalties_look_at_the_last_tokens_only() {
        let params = SamplerParams { presence_penalty: 10.0, repeat_last_n: 2, ..SamplerParams::greedy() };
        let mut sampler = sampler(params, &[0, 1]);
        let mut next = || {
            let id = sampler.sample(&mut [4.0, 3.0, 2.0]).unwrap();
            sampler.accept(id);
            id
        };
        assert_eq!([next(), next(), next(), next()], [2, 0, 1, 2]);
    }

    #[test]
    fn frequency_counts_each_time() {
        let params = SamplerParams { frequency_penalty: 1.0, ..SamplerParams::greedy() };
        let mut sampler = sampler(params, &[]);
        let mut next = || {
            let id = sampler.sample(&mut [2.5, 1.0]).unwrap();
            sampler.accept(id);
            id
        };
        assert_eq!([next(), next(), next(), next(), next()], [0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_bias_forbids_and_forces() {
        let mut params = SamplerParams { seed: Some(1), ..SamplerParams::default() };
        params.logit_bias = vec![(0, f32::NEG_INFINITY), (2, 1e6)];
        let mut chooser = sampler(params.clone(), &[]);
        for _ in 0..50 {
            assert_eq!(chooser.sample(&mut [9.0, 1.0, 1.0]).unwrap(), 2);
        }
        params.logit_bias = vec![(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)];
        for temperature in [0.0, 1.0] {
            let mut chooser = sampler(SamplerParams { temperature, ..params.clone() }, &[]);
            assert!(matches!(chooser.sample(&mut [1.0, 2.0]), Err(EngineError::NothingToSample)));
        }
    }
}
