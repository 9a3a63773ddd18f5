//! Supervised fine-tuning: token-mean negative log-likelihood of the chosen answer over the whole optimizer step (TRL's `sft`).

use super::{Pairs, Scope, StepTotals, Term};

pub(super) fn terms(pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    // A mean over the step's pairs of these values is the sum of negative log-probs over the sum of labels.
    let per_pair = step.pairs as f64 / step.chosen_tokens.max(1) as f64;
    let values = pairs.policy.chosen.neg() * per_pair;
    vec![Term { name: "nll", weight: 1.0, values, scope: Scope::EveryPair }]
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;
    use crate::config::Objective;

    #[test]
    fn the_mean_over_pairs_is_the_mean_over_tokens() {
        let step = StepTotals { pairs: 2, chosen_tokens: 35 };
        let values = &Objective::Sft.terms(&golden::pairs(), step)[0].values;
        assert!((values.mean(tch::Kind::Double).double_value(&[]) - 2.1).abs() < 1e-12);
        golden::assert_gradients(&Objective::Sft, step);
        assert_eq!(Objective::Sft.loss_at_reference(&Pairs { reference: None, ..golden::pairs() }, step), None);
    }
}
