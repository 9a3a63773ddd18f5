//! DPO: Direct Preference Optimization (Rafailov et al., arXiv 2305.18290, eq. 7).
//!
//! L = −log σ(β [(log π(y_w) − log π(y_l)) − (log π_ref(y_w) − log π_ref(y_l))]), log-probs summed over the response.

use super::{Pairs, Scope, Term, Views, log_ratio, negative_log_sigmoid};
use tch::Tensor;

pub(super) fn terms(beta: f64, pairs: &Pairs) -> Vec<Term> {
    vec![Term { name: "preference", weight: 1.0, values: preference(beta, pairs), scope: Scope::EveryPair }]
}

/// The DPO loss of each pair.
pub(super) fn preference(beta: f64, pairs: &Pairs) -> Tensor {
    let margin = log_ratio(pairs, |views| &views.chosen) - log_ratio(pairs, Views::rejected);
    negative_log_sigmoid(&(margin * beta))
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::{StepTotals, Views};
    use crate::config::Objective;
    use crate::objective::Pairs;

    const STEP: StepTotals = StepTotals { pairs: 2, chosen_tokens: 35 };
    const DPO: Objective = Objective::Dpo { beta: 0.1 };

    #[test]
    fn golden_values_and_gradients() {
        let terms = DPO.terms(&golden::pairs(), STEP);
        golden::assert_close(&terms[0].values, [0.5130152524, 0.89812326414]);
        golden::assert_gradients(&DPO, STEP);
    }

    #[test]
    fn equal_policies_cost_ln_2_and_swapping_answers_negates_the_margin() {
        let loss = golden::total(&DPO.terms(&golden::equal_pairs(), STEP));
        golden::assert_close(&loss, [std::f64::consts::LN_2; 2]);
        assert_eq!(DPO.loss_at_reference(&golden::pairs(), STEP), Some(2.0 * std::f64::consts::LN_2));
        let swap = |v: Views| Views {
            rejected: Some(v.chosen.shallow_clone()),
            chosen: v.rejected.expect("both answers"),
            corrupted: v.corrupted,
        };
        let Pairs { policy, reference, has_image } = golden::pairs();
        let swapped = Pairs { policy: swap(policy), reference: reference.map(swap), has_image };
        let values = &DPO.terms(&swapped, STEP)[0].values;
        golden::assert_close(values, [0.5130152524 + 0.4, 0.89812326414 - 0.375]);
    }

    #[test]
    fn saturated_margins_stay_finite() {
        let far = |by: f64| {
            let mut pairs = golden::pairs();
            pairs.policy.chosen = golden::vector([by / 0.1, -by / 0.1]).set_requires_grad(true);
            let loss = golden::total(&DPO.terms(&pairs, STEP)).sum(tch::Kind::Double);
            loss.backward();
            assert!(loss.double_value(&[]).is_finite());
            assert!(pairs.policy.chosen.grad().isfinite().all().int64_value(&[]) == 1);
        };
        far(80.0);
        far(-800.0);
    }
}
