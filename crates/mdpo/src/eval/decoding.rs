//! How an answer's tokens are chosen: greedily, at random, or by a search over beams.
//!
//! Greedy choice and search give the ids of transformers' `generate`; sampling narrows the choice in its order (temperature, top-k, top-p), but
//! draws from a stream of its own, addressed by seed and question, so that an answer does not depend on what else is in the batch.

use crate::{Error, Result};

/// How an answer is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decoding {
    /// Token by token.
    Sampling(Sampling),
    /// By a search.
    Beams(Beams),
}

/// Beam search as transformers' `generate` does it without sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beams {
    /// How many answers are continued side by side (`num_beams`), at least 2.
    pub count: usize,
    /// An ended answer's summed log-prob is divided by its length in tokens to this power: above 0 favours long answers, below 0 short ones.
    pub length_penalty: f64,
    /// When the search may end.
    pub early_stopping: EarlyStopping,
}

/// When a search with as many ended answers as beams is over (`early_stopping`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// At once (`true`).
    Yes,
    /// When the best beam, were it to end now, would not beat the worst of them (`false`).
    Heuristic,
    /// When no beam can beat the worst of them any more, at whatever length (`never`).
    Never,
}

impl Decoding {
    /// What transformers' settings of these names mean.
    ///
    /// # Errors
    /// A setting of the search without beams or the other way round, no beam, a length penalty that is not finite.
    pub fn new(sampling: Sampling, beams: usize, search: Search) -> Result<Self> {
        if beams == 0 {
            return Err(Error::at("`num_beams`", "expected at least 1, found 0"));
        }
        if beams == 1 {
            let named = [
                ("`length_penalty`", search.length_penalty.is_some()),
                ("`early_stopping`", search.early_stopping.is_some()),
            ];
            return match named.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => {
                    Err(Error::at(name, "has no effect without beams").hint("set `num_beams` above 1 too"))
                }
                None => Ok(Decoding::Sampling(sampling)),
            };
        }
        if sampling != Sampling::Greedy {
            return Err(Error::at("`num_beams`", "beams are not sampled").hint("set `temperature` 0, or `num_beams` 1"));
        }
        let length_penalty = search.length_penalty.unwrap_or(1.0);
        if !length_penalty.is_finite() {
            return Err(Error::at("`length_penalty`", format!("expected a finite number, found {length_penalty}")));
        }
        let early_stopping = search.early_stopping.unwrap_or(EarlyStopping::Heuristic);
        Ok(Decoding::Beams(Beams { count: beams, length_penalty, early_stopping }))
    }
}

/// Settings of a search that may be left out; transformers' defaults are 1 and `false`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Search {
    /// [`Beams::length_penalty`].
    pub length_penalty: Option<f64>,
    /// [`Beams::early_stopping`].
    pub early_stopping: Option<EarlyStopping>,
}

/// How a next token is chosen.
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

/// The index that `drawn`, uniform in [0, 1), falls on when the logits that remain are laid side by side by probability.
pub(super) fn pick(logits: &[f32], temperature: f64, top_p: f64, top_k: usize, drawn: f64) -> usize {
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

    #[test]
    fn settings_of_a_search_need_beams() {
        let (none, greedy) = (Search::default(), Sampling::Greedy);
        let beams =
            |count, length_penalty, early_stopping| Decoding::Beams(Beams { count, length_penalty, early_stopping });
        assert_eq!(Decoding::new(greedy, 1, none).unwrap(), Decoding::Sampling(greedy));
        assert_eq!(Decoding::new(greedy, 3, none).unwrap(), beams(3, 1.0, EarlyStopping::Heuristic));
        let search = Search { length_penalty: Some(-0.5), early_stopping: Some(EarlyStopping::Never) };
        assert_eq!(Decoding::new(greedy, 2, search).unwrap(), beams(2, -0.5, EarlyStopping::Never));
        let refused = |sampling, beams, search| Decoding::new(sampling, beams, search).unwrap_err().to_string();
        assert!(refused(greedy, 0, none).starts_with("`num_beams`: expected at least 1"));
        assert!(refused(greedy, 1, search).starts_with("`length_penalty`: has no effect without beams"));
        let stopping = Search { length_penalty: None, ..search };
        assert!(refused(greedy, 1, stopping).starts_with("`early_stopping`: has no effect without beams"));
        let infinite = Search { length_penalty: Some(f64::INFINITY), ..none };
        assert!(refused(greedy, 2, infinite).starts_with("`length_penalty`: expected a finite number, found inf"));
        let warm = Sampling::new(1.0, 1.0, 0, 0).unwrap();
        assert!(refused(warm, 2, none).starts_with("`num_beams`: beams are not sampled"));
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
