//! HPO: Hybrid Preference Optimization (Badrinath, Agarwal, Xu, arXiv 2405.17956), by its later name Unified Preference Optimization (UPO).
//!
//! L = L_preference + γ L_aux + c L_V over all responses y of a step, with R the weighted sum of auxiliary rewards, V(x) a scalar head on the
//! prompt's last hidden state and A = R − V:
//! - L_preference: KTO's, or one of DPO's family;
//! - L_aux = −mean min(exp(A/λ), clip) log π(y), the weight without gradient;
//! - L_V = mean |τ − 1(A < 0)| A², an expectile regression whose gradient reaches the head alone.
//!
//! No code was released, and λ, γ, τ, the clip and the reduction of log π are not stated where it could be read: they are settings here, and their
//! defaults are mdpo's own.

use super::{Needs, Observation, Pairs, Scope, Sides, StepTotals, Term, dpo, kto};
use crate::config::{Hpo, HpoPreference, Reduction, ReferencePoint};
use tch::{Kind, Tensor};

pub(super) fn needs(settings: &Hpo) -> Needs {
    let preference = match &settings.preference {
        HpoPreference::Kto(settings) => kto::needs(settings),
        HpoPreference::Dpo(settings) => dpo::needs(settings),
    };
    Needs { rewards: true, value: true, ..preference }
}

pub(super) fn needs_whole_step(settings: &Hpo) -> bool {
    match &settings.preference {
        HpoPreference::Kto(settings) => settings.point == ReferencePoint::Mismatched,
        HpoPreference::Dpo(settings) => dpo::needs_whole_step(settings),
    }
}

pub(super) fn beta(settings: &Hpo) -> f64 {
    match &settings.preference {
        HpoPreference::Kto(settings) => settings.beta,
        HpoPreference::Dpo(settings) => settings.beta,
    }
}

pub(super) fn terms(settings: &Hpo, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let mut terms = match &settings.preference {
        HpoPreference::Kto(settings) => kto::terms(settings, pairs, step),
        HpoPreference::Dpo(settings) => dpo::terms(settings, pairs, step),
    };
    let over_answers = |sides: Sides| {
        let sum = sides.chosen * &pairs.has.chosen + sides.rejected * &pairs.has.rejected;
        sum * step.pairs_per_answer()
    };
    let mut add = |name, weight, values| terms.push(Term { name, weight, values, scope: Scope::EveryPair });
    add("auxiliary", settings.gamma, over_answers(auxiliary(settings, pairs)));
    add("value", settings.value_weight, over_answers(expectile(settings, pairs)));
    terms
}

pub(super) fn observations(settings: &Hpo, pairs: &Pairs) -> Vec<Observation> {
    let mut seen = match &settings.preference {
        HpoPreference::Kto(settings) => kto::observations(settings, pairs),
        HpoPreference::Dpo(_) => Vec::new(),
    };
    let sum = |values: &Tensor| values.sum(Kind::Double).double_value(&[]);
    let count = sum(&pairs.has.chosen) + sum(&pairs.has.rejected);
    let of = |sides: &Sides| sum(&(&sides.chosen * &pairs.has.chosen)) + sum(&(&sides.rejected * &pairs.has.rejected));
    let clipped =
        exponents(settings, pairs).map(|exponent| exponent.gt(settings.weight_clip.ln()).to_kind(Kind::Double));
    let mut add = |name, sum, count| seen.push(Observation { name, sum, count });
    add("hpo/reward", of(rewards(pairs)), count);
    add("hpo/value", sum(&values(pairs).detach()), pairs.has_image.numel() as f64);
    add("hpo/advantage", of(&advantages(pairs).map(Tensor::detach)), count);
    add("hpo/weight", of(&weights(settings, pairs)), count);
    add("hpo/clipped", of(&clipped), count);
    seen
}

/// −w log π of each answer.
fn auxiliary(settings: &Hpo, pairs: &Pairs) -> Sides {
    let weights = weights(settings, pairs);
    let [chosen, rejected] = match settings.log_probs {
        Reduction::Sum => [pairs.policy.chosen.shallow_clone(), pairs.policy.rejected().shallow_clone()],
        Reduction::TokenMean => super::simpo::mean_log_probs(pairs),
    };
    Sides { chosen: -(weights.chosen * chosen), rejected: -(weights.rejected * rejected) }
}

/// |τ − 1(A < 0)| A² of each answer, with a graph to V.
fn expectile(settings: &Hpo, pairs: &Pairs) -> Sides {
    advantages(pairs).map(|advantage| {
        let below = advantage.lt(0.0).to_kind(Kind::Double);
        (settings.tau - below).abs() * advantage.square()
    })
}

/// min(exp(A/λ), clip) of each answer, without a graph.
fn weights(settings: &Hpo, pairs: &Pairs) -> Sides {
    exponents(settings, pairs).map(|exponent| exponent.clamp_max(settings.weight_clip.ln()).exp())
}

/// A/λ of each answer, without a graph.
fn exponents(settings: &Hpo, pairs: &Pairs) -> Sides {
    advantages(pairs).map(|advantage| advantage.detach() / settings.lambda)
}

/// R − V of each answer.
fn advantages(pairs: &Pairs) -> Sides {
    rewards(pairs).map(|reward| reward - values(pairs))
}

fn rewards(pairs: &Pairs) -> &Sides {
    pairs.rewards.as_ref().expect("an objective that needs auxiliary rewards was given them")
}

fn values(pairs: &Pairs) -> &Tensor {
    pairs.values.as_ref().expect("an objective that needs a value was given it")
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, STEP};
    use super::*;
    use crate::config::{Dpo, DpoLoss, Kto, Objective};

    fn hpo(log_probs: Reduction) -> Hpo {
        Hpo {
            preference: HpoPreference::Dpo(Dpo::of(DpoLoss::Sigmoid, 0.1)),
            rewards: Vec::new(),
            gamma: 0.1,
            lambda: 0.5,
            tau: 0.7,
            value_weight: 1.0,
            weight_clip: 20.0,
            log_probs,
            value_learning_rate: 1e-3,
        }
    }

    fn first(tensor: &Tensor) -> f64 {
        tensor.double_value(&[0])
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-10 * expected.abs().max(1.0), "{found} ≠ {expected}");
    }

    #[test]
    fn golden_weights_and_terms() {
        let pairs = golden::pairs();
        let weights = weights(&hpo(Reduction::Sum), &pairs);
        close(first(&weights.chosen), 3.32011692274);
        close(first(&weights.rejected), 0.367879441171);
        let sum = terms(&hpo(Reduction::Sum), &pairs, STEP);
        let names: Vec<_> = sum.iter().map(|term| (term.name, term.weight)).collect();
        assert_eq!(names, [("preference", 1.0), ("auxiliary", 0.1), ("value", 1.0)]);
        close(first(&sum[1].values), 75.9672039252);
        close(first(&sum[2].values), 0.1635);
        close(first(&sum[0].values) + 0.1 * first(&sum[1].values), 8.10973564492);
        // The golden value of the token mean is a sum over both answers.
        let mean = terms(&hpo(Reduction::TokenMean), &pairs, STEP);
        close(2.0 * first(&mean[1].values), 7.37599272782);
    }

    #[test]
    fn gradients_stop_where_they_must() {
        let pairs = golden::pairs();
        let found = terms(&hpo(Reduction::Sum), &pairs, STEP);
        let value = pairs.values.as_ref().expect("golden pairs have values");
        // The policy's terms do not reach V.
        for term in &found[..2] {
            term.values.sum(Kind::Double).backward();
            assert!(!value.grad().defined(), "{}", term.name);
        }
        let before = first(&pairs.policy.chosen.grad());
        // V's term does not reach the policy: a mean over two answers of −0.84 and 0.3.
        found[2].values.sum(Kind::Double).backward();
        close(first(&value.grad()), -0.42 + 0.15);
        assert_eq!(first(&pairs.policy.chosen.grad()), before);
    }

    #[test]
    fn a_value_without_anything_to_look_at_becomes_the_expectile() {
        let rewards = [0.0, 0.2, 0.5, 1.0];
        for (tau, expected) in [(0.5, 0.425), (0.7, 0.56875), (0.9, 0.808333333333)] {
            let settings = Hpo { tau, ..hpo(Reduction::Sum) };
            let value = Tensor::from_slice(&[0.3]).set_requires_grad(true);
            for _ in 0..400 {
                let sides = Sides { chosen: Tensor::from_slice(&rewards), rejected: Tensor::from_slice(&rewards) };
                let pairs = Pairs { rewards: Some(sides), values: Some(value.expand([4], false)), ..golden::pairs() };
                expectile(&settings, &pairs).chosen.mean(Kind::Double).backward();
                tch::no_grad(|| {
                    let mut moved = value.shallow_clone();
                    let _ = moved.g_sub_(&(value.grad() * 0.5));
                    let _ = value.grad().zero_();
                });
            }
            close(first(&value), expected);
        }
    }

    #[test]
    fn weights_are_clipped_and_counted() {
        let settings = Hpo { weight_clip: 2.0, ..hpo(Reduction::Sum) };
        let seen = observations(&settings, &golden::pairs());
        let mean = |name: &str| seen.iter().find(|one| one.name == name).map(|one| one.sum / one.count);
        assert_eq!(mean("hpo/clipped"), Some(0.5));
        close(mean("hpo/weight").expect("a weight"), (2.0 + 0.367879441171) / 2.0);
        close(mean("hpo/advantage").expect("an advantage"), 0.05);
        close(mean("hpo/value").expect("a value"), 0.3);
        close(mean("hpo/reward").expect("a reward"), 0.35);
    }

    #[test]
    fn the_preference_term_decides_what_else_is_needed() {
        let with = |preference| Objective::Hpo(Hpo { preference, ..hpo(Reduction::Sum) });
        let point = ReferencePoint::Mismatched;
        let kto = with(HpoPreference::Kto(Kto { beta: 0.2, desirable_weight: 1.0, undesirable_weight: 1.0, point }));
        let needs = kto.needs();
        assert!(needs.mismatched && needs.unpaired && needs.rewards && needs.value && kto.needs_whole_step());
        assert_eq!(kto.beta(), Some(0.2));
        let dpo = with(HpoPreference::Dpo(Dpo::of(DpoLoss::Ipo, 0.1)));
        let needs = dpo.needs();
        assert!(!needs.mismatched && !needs.unpaired && needs.rewards && needs.value && !dpo.needs_whole_step());
    }
}
