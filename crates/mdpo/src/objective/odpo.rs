//! ODPO: DPO with an Offset (Amini et al., ACL Findings 2024, arXiv 2402.10571).
//!
//! L = −log σ(β (h_w − h_l) − α f(s_w, s_l)), h = log π/π_ref, s the score of a response; f = log(s_w − s_l), s_w − s_l or log(s_w / s_l). A pair whose chosen
//! score is not above its rejected one never comes here: the released code drops it without notice or computes NaN. A logarithm is negative
//! where the gap is below 1, so the scale of the scores matters; the share of such pairs is logged.

use super::{Needs, Observation, Pairs, Scope, Sides, Term, Views, log_ratio, negative_log_sigmoid};
use crate::config::{Odpo, Offset};
use tch::{Kind, Tensor};

pub(super) fn needs() -> Needs {
    Needs { rejected: true, reference: true, scores: true, ..Needs::default() }
}

pub(super) fn terms(settings: &Odpo, pairs: &Pairs) -> Vec<Term> {
    let margin = log_ratio(pairs, |views| &views.chosen) - log_ratio(pairs, Views::rejected);
    let values = negative_log_sigmoid(&(margin * settings.beta - offsets(settings, pairs)));
    vec![Term { name: "preference", weight: 1.0, values, scope: Scope::EveryPair }]
}

pub(super) fn observations(settings: &Odpo, pairs: &Pairs) -> Vec<Observation> {
    let offsets = offsets(settings, pairs);
    let count = offsets.numel() as f64;
    let sum = |values: &Tensor| values.sum(Kind::Double).double_value(&[]);
    vec![
        Observation { name: "odpo/offsets", sum: sum(&offsets), count },
        Observation { name: "odpo/negative_offsets", sum: sum(&offsets.lt(0.0)), count },
    ]
}

/// α f(s_w, s_l) of each pair, in units of the reward.
fn offsets(settings: &Odpo, pairs: &Pairs) -> Tensor {
    let Sides { chosen, rejected } = pairs.scores.as_ref().expect("an objective that needs scores was given them");
    let offset = match settings.offset {
        Offset::Log => (chosen - rejected).log(),
        Offset::Identity => chosen - rejected,
        Offset::Ratio => (chosen / rejected).log(),
    };
    offset * settings.alpha
}

#[cfg(test)]
mod tests {
    use super::super::{Sides, golden};
    use super::*;

    /// The loss of both golden pairs, each with these scores.
    fn loss(offset: Offset, [chosen, rejected]: [f64; 2], alpha: f64, beta: f64) -> Tensor {
        let scores = Sides { chosen: golden::vector([chosen; 2]), rejected: golden::vector([rejected; 2]) };
        let pairs = Pairs { scores: Some(scores), ..golden::pairs() };
        golden::total(&terms(&Odpo { beta, alpha, offset }, &pairs))
    }

    #[test]
    fn golden_values() {
        for (offset, scores, alpha, beta, expected) in [
            (Offset::Log, [1.99, 0.05], 0.5, 0.7, [0.0813021754482, 3.00704538463]),
            (Offset::Log, [1.99, 0.05], 1.0, 0.7, [0.111515901683, 3.32434779547]),
            (Offset::Log, [6.0, 4.0], 1.0, 0.5, [0.239544766222, 2.6420270756]),
            (Offset::Ratio, [6.0, 4.0], 1.0, 0.5, [0.18482086829, 2.37780653677]),
            (Offset::Log, [1.55, 1.50], 0.5, 0.7, [0.0135059263583, 1.40776144265]),
            (Offset::Log, [6.0, 4.0], 1.0, 0.1, [0.850424435584, 1.36353298249]),
            (Offset::Log, [1.5, 0.5], 3.0, 0.1, [0.5130152524, 0.89812326414]),
            (Offset::Identity, [6.0, 4.0], 0.0, 0.1, [0.5130152524, 0.89812326414]),
        ] {
            golden::assert_close(&loss(offset, scores, alpha, beta), expected);
        }
    }

    #[test]
    fn only_a_gap_above_0_has_an_offset() {
        for offset in [Offset::Log, Offset::Identity, Offset::Ratio] {
            assert!(offset.is_defined(2.0, 1.0));
            assert!(!offset.is_defined(1.0, 1.0) && !offset.is_defined(1.0, 2.0) && !offset.is_defined(f64::NAN, 0.0));
        }
        assert!(
            Offset::Log.is_defined(1.0, -1.0)
                && !Offset::Ratio.is_defined(1.0, -1.0)
                && !Offset::Ratio.is_defined(1.0, 0.0)
        );
    }

    #[test]
    fn the_share_of_negative_offsets_is_observed() {
        let scores = Sides { chosen: golden::vector([2.0, 1.5]), rejected: golden::vector([0.0, 1.0]) };
        let pairs = Pairs { scores: Some(scores), ..golden::pairs() };
        let seen = observations(&Odpo { beta: 0.1, alpha: 1.0, offset: Offset::Log }, &pairs);
        assert_eq!((seen[1].name, seen[1].sum, seen[1].count), ("odpo/negative_offsets", 1.0, 2.0));
        assert!(seen[0].sum.abs() < 1e-12, "log 2 + log ½");
    }
}
