//! DPO (Rafailov et al., arXiv 2305.18290, eq. 7) and its family, with the names and meanings of TRL 1.16.
//!
//! With h = log π/π_ref of a response, s = f′(h) (s = h for the reverse KL, DPO's own) and x = β (s_w − s_l), DPO is −log σ(x); the others are
//! named at their functions. They differ from TRL's in three ways: `aot`, `aot_unpaired` and `sft` are taken over the whole optimizer step and
//! not over a micro-batch, exponents are held below 80 everywhere (TRL: in the α-divergence only), and `cdpo` is TRL's former `sigmoid` with
//! label smoothing, which 1.16 ignores there.

use super::{Needs, Pairs, Scope, SpanOf, Spans, StepTotals, Term, Views, log_ratio, negative_log_sigmoid, sft};
use crate::config::{Divergence, Dpo, DpoLoss};
use std::f64::consts::LN_2;
use tch::Tensor;

/// The largest exponent: e⁸⁰ is finite in every precision but f16.
const LARGEST_EXPONENT: f64 = 80.0;

pub(super) fn needs(settings: &Dpo) -> Needs {
    let spans = if settings.ld_alpha.is_some() { Spans::SharedLength } else { Spans::Whole };
    Needs { rejected: true, reference: !settings.reference_free, spans, ..Needs::default() }
}

pub(super) fn needs_whole_step(settings: &Dpo) -> bool {
    let sorts = |loss| matches!(loss, DpoLoss::Aot { .. } | DpoLoss::AotUnpaired { .. });
    settings.losses.iter().any(|weighted| sorts(weighted.loss))
}

/// LD-DPO (arXiv 2409.06411): 1 up to the length of the other answer, `ld_alpha` beyond.
pub(super) fn span_weights(ld_alpha: f64, spans: &[SpanOf], other_labels: usize) -> Vec<f64> {
    let starts = spans.iter().scan(0, |end, span| {
        let start = *end;
        *end += span.labels;
        Some(start)
    });
    starts.map(|start| if start < other_labels { 1.0 } else { ld_alpha }).collect()
}

pub(super) fn terms(settings: &Dpo, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
    let ratios = Ratios::of(settings, pairs);
    let alone = settings.losses.len() == 1;
    let term = |loss: DpoLoss, weight| Term {
        name: if alone { "preference" } else { loss.name() },
        weight,
        values: values(loss, &ratios, pairs, step),
        scope: Scope::EveryPair,
    };
    settings.losses.iter().map(|weighted| term(weighted.loss, weighted.weight)).collect()
}

/// The plain DPO loss of each pair.
pub(super) fn preference(beta: f64, pairs: &Pairs) -> Tensor {
    let margin = log_ratio(pairs, |views| &views.chosen) - log_ratio(pairs, Views::rejected);
    negative_log_sigmoid(&(margin * beta))
}

/// −log σ(x) with labels that are wrong with probability ε.
pub(super) fn smoothed(x: &Tensor, epsilon: f64) -> Tensor {
    negative_log_sigmoid(x) * (1.0 - epsilon) + negative_log_sigmoid(&-x) * epsilon
}

/// What the losses look at, one value per pair.
struct Ratios {
    beta: f64,
    /// Log-ratios.
    chosen: Tensor,
    rejected: Tensor,
    /// The same through f′.
    chosen_score: Tensor,
    rejected_score: Tensor,
}

impl Ratios {
    fn of(settings: &Dpo, pairs: &Pairs) -> Ratios {
        let ratio = |view: fn(&Views) -> &Tensor| match settings.reference_free {
            true => view(&pairs.policy).shallow_clone(),
            false => log_ratio(pairs, view),
        };
        let (chosen, rejected) = (ratio(|views| &views.chosen), ratio(Views::rejected));
        let chosen_score = score(settings.divergence, &chosen);
        let rejected_score = score(settings.divergence, &rejected);
        Ratios { beta: settings.beta, chosen, rejected, chosen_score, rejected_score }
    }

    /// x, the difference of both rewards.
    fn margin(&self) -> Tensor {
        (&self.chosen_score - &self.rejected_score) * self.beta
    }

    /// The difference of both scores per token.
    fn margin_per_token(&self, pairs: &Pairs) -> Tensor {
        &self.chosen_score / pairs.tokens.chosen.clamp_min(1.0)
            - &self.rejected_score / pairs.tokens.rejected.clamp_min(1.0)
    }

    fn chosen_reward(&self) -> Tensor {
        &self.chosen * self.beta
    }

    fn rejected_reward(&self) -> Tensor {
        &self.rejected * self.beta
    }
}

/// f′(π/π_ref) of f-DPO (Wang et al., arXiv 2309.16240, table 2), from log π/π_ref.
fn score(divergence: Divergence, ratio: &Tensor) -> Tensor {
    match divergence {
        Divergence::ReverseKl => ratio.shallow_clone(),
        Divergence::ForwardKl => 1.0 - exp(&-ratio),
        Divergence::JensenShannon => ratio.log_sigmoid() + LN_2,
        Divergence::Alpha { coefficient } if (coefficient - 1.0).abs() < 1e-6 => ratio.shallow_clone(),
        Divergence::Alpha { coefficient } => (exp(&(ratio * (coefficient - 1.0))) - 1.0) / (coefficient - 1.0),
    }
}

fn exp(x: &Tensor) -> Tensor {
    x.clamp_max(LARGEST_EXPONENT).exp()
}

fn values(loss: DpoLoss, ratios: &Ratios, pairs: &Pairs, step: StepTotals) -> Tensor {
    match loss {
        DpoLoss::Sigmoid => negative_log_sigmoid(&ratios.margin()),
        DpoLoss::Cdpo { label_smoothing } => smoothed(&ratios.margin(), label_smoothing),
        DpoLoss::Hinge => (-ratios.margin() + 1.0).relu(),
        DpoLoss::Ipo => (ratios.margin_per_token(pairs) - 0.5 / ratios.beta).square(),
        DpoLoss::ExoPair { label_smoothing } => exo(&ratios.margin(), label_smoothing),
        DpoLoss::NcaPair => nca(ratios),
        DpoLoss::Robust { label_smoothing } => robust(&ratios.margin(), label_smoothing),
        DpoLoss::BcoPair => {
            negative_log_sigmoid(&ratios.chosen_reward()) + negative_log_sigmoid(&-ratios.rejected_reward())
        }
        DpoLoss::SppoHard => {
            (&ratios.chosen - 0.5 / ratios.beta).square() + (&ratios.rejected + 0.5 / ratios.beta).square()
        }
        DpoLoss::Aot { label_smoothing } => aot(ratios, pairs, label_smoothing),
        DpoLoss::AotUnpaired { label_smoothing } => {
            smoothed(&((sorted(&ratios.chosen) - sorted(&ratios.rejected)) * ratios.beta), label_smoothing)
        }
        DpoLoss::ApoZero => 1.0 - ratios.chosen_reward().sigmoid() + ratios.rejected_reward().sigmoid(),
        DpoLoss::ApoDown => {
            ratios.chosen_reward().sigmoid() + 1.0 - (ratios.chosen_reward() - ratios.rejected_reward()).sigmoid()
        }
        DpoLoss::Discopop { tau } => discopop(&ratios.margin(), tau),
        DpoLoss::Sft => sft::negative_log_likelihood(pairs, step),
        DpoLoss::SigmoidNorm => negative_log_sigmoid(&(ratios.margin_per_token(pairs) * ratios.beta)),
    }
}

/// EXO (Ji et al., arXiv 2402.00856, eq. 16): KL of (σ(x), σ(−x)) from (1 − ε, ε).
fn exo(x: &Tensor, epsilon: f64) -> Tensor {
    x.sigmoid() * (x.log_sigmoid() - (-epsilon).ln_1p()) + (-x).sigmoid() * ((-x).log_sigmoid() - epsilon.ln())
}

/// NCA (Chen et al., arXiv 2402.05369) of two responses, of which only the chosen one has a reward.
fn nca(ratios: &Ratios) -> Tensor {
    let (chosen, rejected) = (ratios.chosen_reward(), ratios.rejected_reward());
    negative_log_sigmoid(&chosen) + (negative_log_sigmoid(&-chosen) + negative_log_sigmoid(&-rejected)) * 0.5
}

/// Robust DPO (Chowdhury et al., arXiv 2403.00409): without bias where labels are flipped with probability ε.
fn robust(x: &Tensor, epsilon: f64) -> Tensor {
    (negative_log_sigmoid(x) * (1.0 - epsilon) - negative_log_sigmoid(&-x) * epsilon) / (1.0 - 2.0 * epsilon)
}

/// AOT (Melnyk et al., arXiv 2406.05882): quantiles of the policy's margins against those of the reference's, over the whole step.
/// The values stand in the order of the quantiles.
fn aot(ratios: &Ratios, pairs: &Pairs, epsilon: f64) -> Tensor {
    let policy = &pairs.policy.chosen - pairs.policy.rejected();
    let reference = &policy - (&ratios.chosen - &ratios.rejected);
    smoothed(&((sorted(&policy) - sorted(&reference.detach())) * ratios.beta), epsilon)
}

fn sorted(values: &Tensor) -> Tensor {
    values.sort(0, false).0
}

/// DiscoPOP (Lu et al., arXiv 2406.08414, eq. 5): logistic and exponential loss, blended by m = σ(x/τ). m e^{−x} is one exponential, so that a
/// large e^{−x} meets no m of 0.
fn discopop(x: &Tensor, tau: f64) -> Tensor {
    let scaled = x / tau;
    negative_log_sigmoid(x) * (-&scaled).sigmoid() + exp(&(scaled.log_sigmoid() - x))
}

#[cfg(test)]
mod tests {
    use super::super::{SpanKind, golden};
    use super::*;
    use crate::config::{Objective, Weighted};
    use tch::Kind;

    fn span(labels: usize) -> SpanOf {
        SpanOf { labels, kind: SpanKind::Whole }
    }

    #[test]
    fn labels_beyond_the_shorter_answer_weigh_less() {
        let settings = Dpo { ld_alpha: Some(0.3), ..Dpo::of(DpoLoss::Sigmoid, 0.1) };
        let weights = |spans: &[SpanOf], other| Objective::Dpo(settings.clone()).span_weights(spans, other);
        assert_eq!(weights(&[span(12), span(3)], 12), [1.0, 0.3]);
        assert_eq!(weights(&[span(12)], 15), [1.0]);
        assert_eq!(Objective::Dpo(Dpo { ld_alpha: None, ..settings }).span_weights(&[span(12)], 3), [1.0]);
    }

    #[test]
    fn a_coefficient_near_1_is_the_reverse_kl() {
        let ratio = golden::vector([3.0, -2.0]);
        let alpha = |coefficient| score(Divergence::Alpha { coefficient }, &ratio);
        golden::assert_close(&alpha(1.0 + 1e-7), [3.0, -2.0]);
        let near = (alpha(1.0 + 2e-6) - &ratio).abs().max().double_value(&[]);
        assert!(near < 1e-4, "{near}");
    }

    #[test]
    fn a_list_has_a_term_for_each_loss_and_one_loss_is_the_preference() {
        let weighted = |loss, weight| Weighted { loss, weight };
        let losses =
            vec![weighted(DpoLoss::Sigmoid, 0.8), weighted(DpoLoss::BcoPair, 0.2), weighted(DpoLoss::Sft, 1.0)];
        let mpo = Dpo { losses, ..Dpo::of(DpoLoss::Sigmoid, 0.1) };
        let of = |settings: &Dpo| terms(settings, &golden::pairs(), golden::STEP);
        let named: Vec<_> = of(&mpo).into_iter().map(|term| (term.name, term.weight)).collect();
        assert_eq!(named, [("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0)]);
        let mean = golden::total(&of(&mpo)).mean(Kind::Double).double_value(&[]);
        assert!((mean - 2.94243702601).abs() < 1e-10, "{mean}");
        assert_eq!(of(&Dpo::of(DpoLoss::Ipo, 0.1))[0].name, "preference");
    }

    #[test]
    fn quantiles_are_of_the_whole_step() {
        let aot = Dpo::of(DpoLoss::Aot { label_smoothing: 0.0 }, 0.1);
        assert!(Objective::Dpo(aot.clone()).needs_whole_step());
        assert!(!Objective::Dpo(Dpo::of(DpoLoss::Sigmoid, 0.1)).needs_whole_step());
        // The margins are 12 and −3.25 under the policy, 8 and 0.5 under the reference: their order is the same only here.
        golden::assert_close(&terms(&aot, &golden::pairs(), golden::STEP)[0].values, [0.89812326414, 0.5130152524]);
    }
}
