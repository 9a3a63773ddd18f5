//! DMPO: Direct Multi-turn Preference Optimization (Shi et al., EMNLP 2024, arXiv 2406.14868, eqs. 14 and 15).
//!
//! L = −log σ(Σ_t β φ(t, T_w) h(a_t^w) − Σ_t β φ(t, T_l) h(a_t^l)), h = log π/π_ref summed over the tokens of the assistant's turn t of T, and
//! φ(t, T) = γ^t (1 − γ^{T−t}) / (1 − γ^T), (T − t)/T for γ = 1. The printed eq. 16 lacks γ^t; the released code and the corollary for γ → 0 have it.
//! A turn's EOS belongs to its turn; in the released code it is left at weight 1, which `dmpo_eos: undiscounted` does.

use super::{EosSpan, Needs, Pairs, Scope, SpanKind, SpanOf, Spans, Term, dpo};
use crate::config::{Dmpo, TurnEos};

pub(super) fn needs(settings: &Dmpo) -> Needs {
    let eos = match settings.eos {
        TurnEos::Discounted => EosSpan::WithTurn,
        TurnEos::Undiscounted => EosSpan::Apart,
    };
    Needs { rejected: true, reference: true, spans: Spans::Turns { eos }, ..Needs::default() }
}

pub(super) fn span_weights(settings: &Dmpo, spans: &[SpanOf]) -> Vec<f64> {
    let turns = spans.iter().filter(|span| matches!(span.kind, SpanKind::Turn(_))).count();
    let weight = |span: &SpanOf| match span.kind {
        SpanKind::Turn(turn) => discount(settings.gamma, turn, turns),
        SpanKind::Eos | SpanKind::Whole => 1.0,
    };
    spans.iter().map(weight).collect()
}

/// The turns are weighted before they are summed, so what is left is DPO.
pub(super) fn terms(settings: &Dmpo, pairs: &Pairs) -> Vec<Term> {
    let values = dpo::preference(settings.beta, pairs);
    vec![Term { name: "preference", weight: 1.0, values, scope: Scope::EveryPair }]
}

/// φ(t, T); exact for γ near 1.
fn discount(gamma: f64, turn: usize, turns: usize) -> f64 {
    let remaining = (turns - turn) as f64;
    if gamma == 1.0 {
        return remaining / turns as f64;
    }
    // 1 − γⁿ without cancellation.
    let complement = |n: f64| -(n * gamma.ln()).exp_m1();
    gamma.powi(turn as i32) * complement(remaining) / complement(turns as f64)
}

#[cfg(test)]
mod tests {
    use super::super::{Sides, Views, golden};
    use super::*;
    use crate::config::Objective;
    use tch::{Kind, Tensor};

    const CHOSEN: [f64; 3] = [1.2, -0.4, 0.8];
    const REJECTED: [f64; 2] = [0.5, -1.1];

    fn dmpo(gamma: f64, eos: TurnEos) -> Dmpo {
        Dmpo { beta: 0.1, gamma, eos }
    }

    /// The weighted sum of an answer whose turns, and the EOS behind each, have these log-ratios.
    fn summed(settings: &Dmpo, turns: &[f64], eos: f64) -> f64 {
        let turn = |index| SpanOf { labels: 4, kind: SpanKind::Turn(index) };
        let (spans, ratios): (Vec<_>, Vec<_>) = match settings.eos {
            TurnEos::Discounted => turns.iter().enumerate().map(|(index, ratio)| (turn(index), *ratio)).unzip(),
            TurnEos::Undiscounted => {
                let end = SpanOf { labels: 1, kind: SpanKind::Eos };
                turns.iter().enumerate().flat_map(|(index, ratio)| [(turn(index), *ratio), (end, eos)]).unzip()
            }
        };
        let weights = Objective::Dmpo(*settings).span_weights(&spans, 0);
        weights.iter().zip(ratios).map(|(weight, ratio)| weight * ratio).sum()
    }

    /// The loss of one pair whose answers have these weighted log-ratios, and its gradient with respect to both.
    fn loss(settings: &Dmpo, chosen: f64, rejected: f64) -> [f64; 3] {
        let leaf = |value: f64| Tensor::from_slice(&[value]).set_requires_grad(true);
        let one = || Sides { chosen: Tensor::from_slice(&[1.0]), rejected: Tensor::from_slice(&[1.0]) };
        let views = |chosen, rejected| Views { chosen, rejected: Some(rejected), corrupted: None, mismatched: None };
        let pairs = Pairs {
            policy: views(leaf(chosen), leaf(rejected)),
            reference: Some(views(Tensor::from_slice(&[0.0]), Tensor::from_slice(&[0.0]))),
            has_image: Tensor::from_slice(&[1.0]),
            has: one(),
            tokens: one(),
            ..golden::pairs()
        };
        let loss = golden::total(&terms(settings, &pairs)).sum(Kind::Double);
        loss.backward();
        let gradient = |view: &Tensor| view.grad().double_value(&[0]);
        [loss.double_value(&[]), gradient(&pairs.policy.chosen), gradient(pairs.policy.rejected())]
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-11, "{found} ≠ {expected}");
    }

    #[test]
    fn golden_sums_and_losses() {
        for (gamma, chosen, rejected, expected) in [
            (0.7, 1.16164383562, 0.0470588235294, 0.638970001501),
            (1.0, 1.2, -0.05, 0.632599035317),
            (0.9, 1.18671586716, -0.0210526315789, 0.634581029393),
            (0.1, 1.16756756757, 0.4, 0.65550507143),
            (1e-9, 1.1999999996, 0.4999999989, 0.658759555515),
            (0.0, 1.2, 0.5, 0.6587595555487),
        ] {
            let settings = dmpo(gamma, TurnEos::Discounted);
            let sums = [summed(&settings, &CHOSEN, 0.0), summed(&settings, &REJECTED, 0.0)];
            close(sums[0], chosen);
            close(sums[1], rejected);
            close(loss(&settings, sums[0], sums[1])[0], expected);
        }
    }

    #[test]
    fn golden_gradients_of_each_turn() {
        let settings = dmpo(0.7, TurnEos::Discounted);
        let [_, chosen, rejected] = loss(&settings, summed(&settings, &CHOSEN, 0.0), summed(&settings, &REJECTED, 0.0));
        for (turn, expected) in [-0.0472164185754, -0.0256564100935, -0.0105644041561].into_iter().enumerate() {
            close(chosen * discount(0.7, turn, 3), expected);
        }
        for (turn, expected) in [0.0472164185754, 0.0194420547075].into_iter().enumerate() {
            close(rejected * discount(0.7, turn, 2), expected);
        }
    }

    #[test]
    fn the_eos_of_the_released_code_weighs_1() {
        let settings = dmpo(0.7, TurnEos::Undiscounted);
        let sums = [summed(&settings, &CHOSEN, 0.05), summed(&settings, &REJECTED, 0.02)];
        close(loss(&settings, sums[0], sums[1])[0], 0.633791270427);
        let eos = |eos| Objective::Dmpo(dmpo(0.7, eos)).needs().spans;
        assert_eq!(eos(TurnEos::Undiscounted), Spans::Turns { eos: EosSpan::Apart });
        assert_eq!(eos(TurnEos::Discounted), Spans::Turns { eos: EosSpan::WithTurn });
    }

    #[test]
    fn discounts_begin_at_1_fall_and_have_their_limits() {
        for (turns, expected) in [(1, 1.0), (2, 1.41176470588), (3, 1.76712328767), (10, 3.04264691242)] {
            close((0..turns).map(|turn| discount(0.7, turn, turns)).sum(), expected);
        }
        for gamma in [0.0, 0.1, 0.7, 0.99, 1.0 - 1e-9, 1.0] {
            assert_eq!(discount(gamma, 0, 7), 1.0, "{gamma}");
            let falling = (1..7).all(|turn| discount(gamma, turn, 7) <= discount(gamma, turn - 1, 7));
            assert!(falling && discount(gamma, 0, 1) == 1.0, "{gamma}");
        }
        for turn in 0..7 {
            let limit = (7 - turn) as f64 / 7.0;
            assert_eq!(discount(1.0, turn, 7), limit);
            assert!((discount(1.0 - 1e-9, turn, 7) - limit).abs() < 1e-8 * 7.0);
        }
    }

    #[test]
    fn one_turn_is_dpo() {
        let one = [SpanOf { labels: 9, kind: SpanKind::Turn(0) }];
        assert_eq!(Objective::Dmpo(dmpo(0.3, TurnEos::Discounted)).span_weights(&one, 5), [1.0]);
    }
}
