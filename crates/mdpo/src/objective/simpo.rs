//! SimPO (Meng et al., NeurIPS 2024, arXiv 2405.14734, eq. 6): no reference, rewards are mean log-probs.
//!
//! L = −log σ(β/|y_w| log π(y_w) − β/|y_l| log π(y_l) − γ), with labels smoothed as in TRL's CPOTrainer, and with `cpo_alpha` times the
//! likelihood of the chosen answer (CPO-SimPO). TRL adds that likelihood unless told not to.

use super::{Needs, Pairs, Scope, StepTotals, Term, dpo, sft};
use crate::config::Simpo;
use tch::Tensor;

pub(super) fn needs() -> Needs {
    Needs { rejected: true, ..Needs::default() }
}

pub(super) fn terms(settings: &Simpo, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let [chosen, rejected] = mean_log_probs(pairs);
    let logit = (chosen - rejected) * settings.beta - settings.gamma;
    let values = dpo::smoothed(&logit, settings.label_smoothing);
    let mut terms = vec![Term { name: "preference", weight: 1.0, values, scope: Scope::EveryPair }];
    if settings.nll_weight != 0.0 {
        terms.push(sft::term(settings.nll_weight, pairs, step));
    }
    terms
}

/// log π per label of both answers.
pub(super) fn mean_log_probs(pairs: &Pairs) -> [Tensor; 2] {
    [
        &pairs.policy.chosen / pairs.tokens.chosen.clamp_min(1.0),
        pairs.policy.rejected() / pairs.tokens.rejected.clamp_min(1.0),
    ]
}
