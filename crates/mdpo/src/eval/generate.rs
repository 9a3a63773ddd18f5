//! A model's answer to one prompt, token by token.
//!
//! The prompt runs once, each new token then runs alone over a cache of keys and values. Greedy choice gives the ids of transformers'
//! `generate`; sampling narrows the choice in its order (temperature, top-k, top-p), but draws from a stream of its own, addressed by
//! the seed, so that the same seed gives the same answer on every machine that gives the same logits.

use crate::address::Address;
use crate::image::Pixels;
use crate::model::language::Cache;
use crate::model::{DeviceBatch, Model, Shape};
use crate::nn::{Pass, Role};
use crate::text::Tokens;
use crate::text::pack::PackedBatch;
use crate::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// With the adapter, where the model has one.
const POLICY: Pass = Pass { role: Role::Policy, dropout: None };

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest one.
    Greedy,
    /// A random one, by its probability.
    Sample {
        /// Logits are divided by it; above 0.
        temperature: f64,
        /// Only the likeliest tokens that together have this probability remain; 1 keeps all.
        top_p: f64,
        /// Only so many of the likeliest tokens remain (more where some are equally likely); 0 keeps all.
        top_k: usize,
        /// Seed of the random numbers.
        seed: u64,
    },
}

impl Sampling {
    /// The choice that transformers' settings of these names mean: greedy at temperature 0.
    ///
    /// # Errors
    /// A temperature below 0, `top_p` outside (0, 1], or `top_p` or `top_k` set where the choice is greedy.
    pub fn new(temperature: f64, top_p: f64, top_k: usize, seed: u64) -> Result<Self> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::at("`temperature`", format!("expected a number of at least 0, found {temperature}")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::at("`top_p`", format!("expected a share above 0 and at most 1, found {top_p}")));
        }
        if temperature > 0.0 {
            return Ok(Sampling::Sample { temperature, top_p, top_k, seed });
        }
        match (top_p < 1.0, top_k > 0) {
            (false, false) => Ok(Sampling::Greedy),
            (nucleus, _) => {
                let name = if nucleus { "`top_p`" } else { "`top_k`" };
                Err(Error::at(name, "has no effect at temperature 0, where the likeliest token is taken")
                    .hint("set a temperature too, 1 for the model's own probabilities"))
            }
        }
    }
}

/// What to answer and how.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The prompt, generation prompt included.
    pub prompt: &'a Tokens,
    /// Its processed images, in the order of the prompt's slots.
    pub images: &'a [Pixels],
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens to give, at least one.
    pub max_new_tokens: usize,
    /// The ids that end an answer ([`crate::text::Encoder::eos_ids`]).
    pub stop: &'a [u32],
}

impl Request<'_> {
    /// Checks the request against a model's configuration, before any weight is read.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room under the model's length limit, other images than slots, no token asked for.
    pub fn check(&self, shape: &Shape) -> Result<()> {
        let (tokens, limit) = (self.prompt.ids.len(), shape.language.max_length);
        let place = "prompt";
        if tokens == 0 {
            return Err(Error::at(place, "the prompt is empty"));
        }
        if self.prompt.images.len() != self.images.len() {
            let what = format!("has {} image slots for {} images", self.prompt.images.len(), self.images.len());
            return Err(Error::at(place, what));
        }
        if shape.vision.is_none() && !self.images.is_empty() {
            return Err(Error::at(place, "the model takes no images").hint("choose a vision checkpoint"));
        }
        if tokens >= limit {
            let field = shape.language.limit_field;
            let what = format!(
                "{tokens} tokens, images included, leave no room for an answer: the model's limit is {limit} tokens (`{field}` in config.json)"
            );
            return Err(Error::at(place, what).hint("shorten the prompt, or give fewer images"));
        }
        match self.max_new_tokens {
            0 => Err(Error::at("`max_new_tokens`", "expected at least 1, found 0")),
            _ => Ok(()),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model said so: the last id is one of those that end an answer.
    Stop,
    /// `max_new_tokens` were given.
    MaxNewTokens,
    /// Prompt and answer are as long as the model's limit, in tokens.
    ModelLimit(usize),
}

/// An answer in the making: an iterator over its token ids, the one that ends it included.
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a Model,
    cache: Cache,
    /// What runs next: the prompt, later the last token.
    batch: DeviceBatch,
    /// Features of the prompt's images, until it has run.
    features: Option<Tensor>,
    sampling: Sampling,
    random: ChaCha8Rng,
    stop: Vec<u32>,
    /// Tokens so far, the prompt's included.
    length: usize,
    /// Tokens that may still come.
    left: usize,
    end: Option<End>,
}

impl<'a> Generation<'a> {
    /// Starts an answer; the images run here, the prompt with the first token.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn start(model: &'a Model, request: Request<'_>) -> Result<Self> {
        request.check(&model.shape)?;
        let mut prompt = PackedBatch::default();
        prompt.push(request.prompt, &[], |image| image);
        let seed = match request.sampling {
            Sampling::Greedy => 0,
            Sampling::Sample { seed, .. } => seed,
        };
        Ok(Generation {
            model,
            cache: Cache::default(),
            batch: DeviceBatch::new(prompt, model.device),
            features: tch::no_grad(|| model.features(&request.images.iter().collect::<Vec<_>>(), POLICY)),
            sampling: request.sampling,
            random: Address { seed, epoch: 0, example: 0 }.rng("sample"),
            stop: request.stop.to_vec(),
            length: request.prompt.ids.len(),
            left: request.max_new_tokens,
            end: None,
        })
    }

    /// Why the answer ended; nothing while it goes on, or after an error.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    fn step(&mut self) -> Result<u32> {
        let features = self.features.take();
        let hidden = self.model.extend(&self.batch, features.as_ref(), &mut self.cache, POLICY);
        let logits = tch::no_grad(|| {
            let last = hidden.narrow(0, hidden.size()[0] - 1, 1);
            last.matmul(&self.model.language.head(POLICY).tr()).squeeze_dim(0).to_kind(Kind::Float)
        });
        let id = self.choose(&logits)?;
        (self.length, self.left) = (self.length + 1, self.left - 1);
        let limit = self.model.shape.language.max_length;
        if self.stop.contains(&id) {
            self.end = Some(End::Stop);
        } else if self.left == 0 {
            self.end = Some(End::MaxNewTokens);
        } else if self.length >= limit {
            self.end = Some(End::ModelLimit(limit));
        }
        let (ids, positions) = (vec![i64::from(id)], vec![self.length as i64 - 1]);
        self.batch = DeviceBatch::new(PackedBatch { ids, positions, ..PackedBatch::default() }, self.model.device);
        Ok(id)
    }

    /// The next id from logits `[vocab]`.
    fn choose(&mut self, logits: &Tensor) -> Result<u32> {
        let best = logits.argmax(-1, false).int64_value(&[]);
        // NaN counts as the largest.
        if !logits.double_value(&[best]).is_finite() {
            let what = format!("the model's logits after {} tokens are not finite", self.length);
            return Err(Error::at("generation", what).hint("use bfloat16 or float32 instead of float16"));
        }
        let Sampling::Sample { temperature, top_p, top_k, .. } = self.sampling else { return Ok(best as u32) };
        let logits = Vec::<f32>::try_from(logits.to_device(Device::Cpu))?;
        Ok(pick(&logits, temperature, top_p, top_k, self.random.random()) as u32)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        if self.left == 0 || self.end.is_some() {
            return None;
        }
        let id = self.step();
        if id.is_err() {
            self.left = 0;
        }
        Some(id)
    }
}

/// The index that `drawn`, uniform in [0, 1), falls on when the logits that remain are laid side by side by probability.
fn pick(logits: &[f32], temperature: f64, top_p: f64, top_k: usize, drawn: f64) -> usize {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&logit: &f32| ((f64::from(logit) - f64::from(highest)) / temperature).exp();
    let mut kept: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
    if top_k > 0 && top_k < kept.len() {
        let mut weights: Vec<f64> = kept.iter().map(|&(_, weight)| weight).collect();
        let least = *weights.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1;
        kept.retain(|&(_, weight)| weight >= least);
    }
    if top_p < 1.0 {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1));
        let enough = top_p * kept.iter().map(|&(_, weight)| weight).sum::<f64>();
        let mut before = 0.0;
        let needed = kept.iter().take_while(|&&(_, weight)| {
            let needed = before < enough;
            before += weight;
            needed
        });
        let needed = needed.count();
        kept.truncate(needed.max(1));
    }
    let mut left = drawn * kept.iter().map(|&(_, weight)| weight).sum::<f64>();
    let hit = kept.iter().find(|&&(_, weight)| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a hair of the last share.
    hit.or(kept.iter().rev().find(|&&(_, weight)| weight > 0.0)).map_or(0, |&(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How often each index comes when `drawn` walks through [0, 1).
    fn shares(logits: &[f32], temperature: f64, top_p: f64, top_k: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let steps = 10_000;
        for i in 0..steps {
            let drawn = (f64::from(i) + 0.5) / f64::from(steps);
            counts[pick(logits, temperature, top_p, top_k, drawn)] += 1.0 / f64::from(steps);
        }
        counts
    }

    fn close(found: &[f64], expected: &[f64]) {
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found.len() == expected.len() && worst < 2e-4, "{found:?} ≠ {expected:?}");
    }

    #[test]
    fn tokens_come_by_their_probability_among_those_that_remain() {
        let logits = [0.1f32, 0.4, 0.2, 0.3].map(f32::ln);
        close(&shares(&logits, 1.0, 1.0, 0), &[0.1, 0.4, 0.2, 0.3]);
        close(&shares(&logits, 1.0, 1.0, 2), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // transformers' rule: a token stays while those before it have less than `top_p`.
        close(&shares(&logits, 1.0, 0.39, 0), &[0.0, 1.0, 0.0, 0.0]);
        close(&shares(&logits, 1.0, 0.41, 0), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        close(&shares(&logits, 1.0, 0.8, 0), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        // top-p measures what top-k left: 4/7 already covers 0.5.
        close(&shares(&logits, 1.0, 0.5, 2), &[0.0, 1.0, 0.0, 0.0]);
        // At temperature 1/2 probabilities are squared.
        close(&shares(&logits, 0.5, 1.0, 0), &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
        // Equally likely tokens stay together, as in transformers.
        close(&shares(&[0.0, 1.0, 0.0, f32::NEG_INFINITY], 1e9, 1.0, 2), &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]);
    }

    #[test]
    fn settings_that_mean_nothing_are_refused() {
        assert_eq!(Sampling::new(0.0, 1.0, 0, 3).unwrap(), Sampling::Greedy);
        let refused = |temperature, top_p, top_k| Sampling::new(temperature, top_p, top_k, 0).unwrap_err().to_string();
        assert!(refused(-1.0, 1.0, 0).starts_with("`temperature`: expected a number of at least 0, found -1"));
        assert!(refused(f64::NAN, 1.0, 0).starts_with("`temperature`"));
        assert!(refused(1.0, 0.0, 0).starts_with("`top_p`: expected a share above 0 and at most 1, found 0"));
        assert!(refused(0.0, 0.9, 0).starts_with("`top_p`: has no effect at temperature 0"));
        assert!(refused(0.0, 1.0, 5).starts_with("`top_k`: has no effect at temperature 0"));
    }

    proptest! {
        #[test]
        fn any_setting_gives_a_token_that_can_come(
            logits in prop::collection::vec(-80f32..80.0, 1..40), temperature in 1e-6f64..50.0, top_p in 1e-6f64..=1.0,
            top_k in 0usize..50, drawn in 0f64..1.0,
        ) {
            let picked = pick(&logits, temperature, top_p, top_k, drawn);
            let better = logits.iter().filter(|&&logit| logit > logits[picked]).count();
            prop_assert!(top_k == 0 || better < top_k);
            prop_assert!(top_k != 1 || better == 0);
        }
    }
}
