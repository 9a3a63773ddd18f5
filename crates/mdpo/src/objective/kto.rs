//! KTO: Kahneman–Tversky Optimization (Ethayarajh et al., ICML 2024, arXiv 2402.01306, eq. 8), for responses that are labelled one by one.
//!
//! With r = β log π/π_ref: λ_D (1 − σ(r_w − z₀)) for a desirable response, λ_U (1 − σ(z₀ − r_l)) for an undesirable one, averaged over all responses
//! of the optimizer step. z₀ = β max(0, mean log π/π_ref of mismatched responses), without gradient. Responses need not come in pairs. As in TRL but
//! for z₀, which is estimated over the whole step and from one mismatched response per row. With z₀ = 0 it is TRL's `apo_zero_unpaired`
//! (D'Oosterlinck et al., arXiv 2408.06266).

use super::{Needs, Observation, Pairs, Scope, StepTotals, Term, Views, log_ratio};
use crate::config::{Kto, ReferencePoint};
use tch::{Kind, Tensor};

pub(super) fn needs(settings: &Kto) -> Needs {
    Needs {
        rejected: true,
        reference: true,
        mismatched: settings.point == ReferencePoint::Mismatched,
        unpaired: true,
        ..Needs::default()
    }
}

pub(super) fn terms(settings: &Kto, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let z0 = reference_point(settings, pairs);
    let chosen = log_ratio(pairs, |views| &views.chosen) * settings.beta;
    let rejected = log_ratio(pairs, Views::rejected) * settings.beta;
    let per_pair = step.pairs_per_answer();
    let term = |name, weight, values: Tensor, has: &Tensor| {
        let values = values * has * per_pair;
        Term { name, weight, values, scope: Scope::EveryPair }
    };
    vec![
        term("desirable", settings.desirable_weight, (z0 - chosen).sigmoid(), &pairs.has.chosen),
        term("undesirable", settings.undesirable_weight, (rejected - z0).sigmoid(), &pairs.has.rejected),
    ]
}

pub(super) fn observations(settings: &Kto, pairs: &Pairs) -> Vec<Observation> {
    match settings.point {
        ReferencePoint::Mismatched => {
            vec![Observation { name: "kto/z0", sum: reference_point(settings, pairs), count: 1.0 }]
        }
        ReferencePoint::Zero => Vec::new(),
    }
}

/// z₀, in units of the reward.
fn reference_point(settings: &Kto, pairs: &Pairs) -> f64 {
    match settings.point {
        ReferencePoint::Mismatched => {
            let ratio = log_ratio(pairs, Views::mismatched).mean(Kind::Double).double_value(&[]);
            settings.beta * ratio.max(0.0)
        }
        ReferencePoint::Zero => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;
    use crate::config::Objective;

    fn kto() -> Kto {
        Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0, point: ReferencePoint::Mismatched }
    }

    #[test]
    fn golden_values_of_each_response() {
        let terms = terms(&kto(), &golden::pairs(), golden::STEP);
        golden::assert_close(&(&terms[0].values * 2.0), [0.462570154656, 0.574442516812]);
        golden::assert_close(&(&terms[1].values * 2.0), [0.437823499114, 0.518741215879]);
        let mean = golden::total(&terms).mean(Kind::Double).double_value(&[]);
        assert!((mean - 0.498394346615).abs() < 1e-10, "{mean}");
    }

    #[test]
    fn a_missing_side_adds_nothing_and_the_mean_is_over_responses() {
        let mut pairs = golden::pairs();
        pairs.has.chosen = golden::vector([1.0, 0.0]);
        pairs.has.rejected = golden::vector([0.0, 1.0]);
        let step = StepTotals { answers: 2, ..golden::STEP };
        golden::assert_close(&golden::total(&terms(&kto(), &pairs, step)), [0.462570154656, 0.518741215879]);
        assert!(Objective::Kto(kto()).needs().unpaired);
    }

    #[test]
    fn the_reference_point_is_of_the_whole_step_never_below_0_and_without_gradient() {
        let pairs = golden::pairs();
        assert_eq!(observations(&kto(), &pairs), [Observation { name: "kto/z0", sum: 0.05, count: 1.0 }]);
        golden::total(&terms(&kto(), &pairs, golden::STEP)).sum(Kind::Double).backward();
        assert!(!pairs.policy.mismatched().grad().defined());
        let below = golden::vector([-90.0, -95.0]);
        let below = Pairs { policy: Views { mismatched: Some(below), ..golden::pairs().policy }, ..golden::pairs() };
        assert_eq!(reference_point(&kto(), &below), 0.0);
        let zero = Objective::Kto(Kto { point: ReferencePoint::Zero, ..kto() });
        assert!(Objective::Kto(kto()).needs_whole_step() && !zero.needs_whole_step());
        assert!(!zero.needs().mismatched && zero.observations(&golden::pairs()).is_empty());
    }
}
