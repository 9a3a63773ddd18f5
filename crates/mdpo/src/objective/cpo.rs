//! CPO (Xu et al., ICML 2024, arXiv 2401.08417, eq. 5): DPO with a uniform reference, and the likelihood of the chosen answer.
//!
//! L = −log σ(β [log π(y_w) − log π(y_l)]) + α · token-mean −log π(y_w). The likelihood is a mean over the tokens of the whole optimizer step, in
//! TRL over those of a micro-batch.

use super::{Pairs, Scope, StepTotals, Term, dpo, sft};
use crate::config::Cpo;

pub(super) fn terms(settings: &Cpo, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let logit = (&pairs.policy.chosen - pairs.policy.rejected()) * settings.beta;
    let values = dpo::smoothed(&logit, settings.label_smoothing);
    let mut terms = vec![Term { name: "preference", weight: 1.0, values, scope: Scope::EveryPair }];
    if settings.nll_weight != 0.0 {
        terms.push(sft::term(settings.nll_weight, pairs, step));
    }
    terms
}
