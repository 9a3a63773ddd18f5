//! ORPO (Hong et al., EMNLP 2024, arXiv 2403.07691, eqs. 6 and 7): likelihood of the chosen answer, and its odds against the rejected one's.
//!
//! L = token-mean −log π(y_w) − λ log σ(log odds(y_w) − log odds(y_l)), odds(y) = p / (1 − p), log p = log π(y) / |y|; λ is `beta`. The likelihood
//! is the response's; TRL's is that of prompt and response.

use super::{Pairs, Scope, StepTotals, Term, negative_log_sigmoid, sft, simpo};
use std::f64::consts::LN_2;
use tch::Tensor;

/// A mean log-prob is not known more finely than f32, and odds of a certain answer have no end.
const CERTAIN: f64 = -1e-7;

pub(super) fn terms(beta: f64, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let [chosen, rejected] = simpo::mean_log_probs(pairs);
    let values = negative_log_sigmoid(&(log_odds(&chosen) - log_odds(&rejected)));
    vec![sft::term(1.0, pairs, step), Term { name: "odds_ratio", weight: beta, values, scope: Scope::EveryPair }]
}

/// log p − log(1 − p) from log p.
fn log_odds(log_prob: &Tensor) -> Tensor {
    let log_prob = log_prob.clamp_max(CERTAIN);
    let small = log_prob.exp().neg().log1p();
    let large = log_prob.expm1().neg().log();
    let complement = small.where_self(&log_prob.lt(-LN_2), &large);
    log_prob - complement
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn odds_are_exact_on_both_sides_of_one_half_and_end_at_certainty() {
        let odds = |p: f64| (p / (1.0 - p)).ln();
        for p in [1e-9_f64, 0.3, 0.5, 0.7, 0.999] {
            golden::assert_close(&log_odds(&golden::vector([p.ln(), p.ln()])), [odds(p), odds(p)]);
        }
        assert!(log_odds(&golden::vector([0.0, -1e5])).isfinite().all().int64_value(&[]) == 1);
    }
}
