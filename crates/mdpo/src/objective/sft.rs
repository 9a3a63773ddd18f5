//! Supervised fine-tuning: token-mean negative log-likelihood of the chosen answer over the whole optimizer step (TRL's `sft`).

use super::{Pairs, Scope, StepTotals, Term};
use tch::Tensor;

pub(super) fn terms(pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    vec![term(1.0, pairs, step)]
}

/// The likelihood as a term beside others.
pub(super) fn term(weight: f64, pairs: &Pairs, step: StepTotals) -> Term {
    Term { name: "nll", weight, values: negative_log_likelihood(pairs, step), scope: Scope::EveryPair }
}

/// A mean over the step's pairs of these values is the sum of negative log-probs over the sum of labels.
pub(super) fn negative_log_likelihood(pairs: &Pairs, step: StepTotals) -> Tensor {
    pairs.policy.chosen.neg() * (step.pairs as f64 / step.chosen_tokens.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use crate::config::Objective;

    #[test]
    fn the_mean_over_pairs_is_the_mean_over_tokens() {
        let values = &Objective::Sft.terms(&golden::pairs(), golden::STEP)[0].values;
        assert!((values.mean(tch::Kind::Double).double_value(&[]) - 2.1).abs() < 1e-12);
    }
}
