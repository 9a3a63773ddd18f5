//! mDPO: conditional preference optimization for multimodal LLMs (Wang et al., EMNLP 2024, arXiv 2406.11839, §3).
//!
//! With r(m, y) = β log π(y | m, q) / π_ref(y | m, q), true image m_w, rejected image m_l:
//! - preference: −log σ(r(m_w, y_w) − r(m_w, y_l)), which is DPO;
//! - conditional: −log σ(r(m_w, y_w) − r(m_l, y_w)), the same answer under the two images;
//! - anchor: −log σ(r(m_w, y_w) − δ); Table 4 adds −log σ(δ − r(m_w, y_l)) and −log σ(δ − r(m_l, y_w)).
//!
//! δ is in reward units, outside β. Unlike the released code, policy and reference see the same rejected image.

use super::{Needs, Pairs, Scope, Term, Views, dpo, log_ratio, negative_log_sigmoid};
use crate::config::{Anchor, Mdpo};

pub(super) fn needs(settings: &Mdpo) -> Needs {
    let anchored = |anchor| settings.anchor_weight != 0.0 && settings.anchors.contains(&anchor);
    Needs {
        rejected: settings.preference_weight != 0.0 || anchored(Anchor::Rejected),
        corrupted: settings.conditional_weight != 0.0 || anchored(Anchor::Corrupted),
        reference: true,
        ..Needs::default()
    }
}

pub(super) fn terms(settings: &Mdpo, pairs: &Pairs) -> Vec<Term> {
    let &Mdpo { beta, preference_weight, conditional_weight, anchor_weight, delta, .. } = settings;
    let mut terms = Vec::new();
    if preference_weight != 0.0 {
        let values = dpo::preference(beta, pairs);
        terms.push(Term { name: "preference", weight: preference_weight, values, scope: Scope::EveryPair });
    }
    if conditional_weight != 0.0 {
        let margin = log_ratio(pairs, |views| &views.chosen) - log_ratio(pairs, Views::corrupted);
        let values = negative_log_sigmoid(&(margin * beta)) * &pairs.has_image;
        terms.push(Term { name: "conditional", weight: conditional_weight, values, scope: Scope::PairsWithImages });
    }
    for anchor in &settings.anchors {
        if anchor_weight == 0.0 {
            break;
        }
        let (name, logit) = match anchor {
            Anchor::Chosen => ("anchor", log_ratio(pairs, |views| &views.chosen) * beta - delta),
            Anchor::Rejected => ("anchor_rejected", delta - log_ratio(pairs, Views::rejected) * beta),
            Anchor::Corrupted => ("anchor_corrupted", delta - log_ratio(pairs, Views::corrupted) * beta),
        };
        let values = negative_log_sigmoid(&logit);
        let (values, scope) = match anchor {
            Anchor::Corrupted => (values * &pairs.has_image, Scope::PairsWithImages),
            Anchor::Chosen | Anchor::Rejected => (values, Scope::EveryPair),
        };
        terms.push(Term { name, weight: anchor_weight, values, scope });
    }
    terms
}

#[cfg(test)]
mod tests {
    use super::super::golden::{self, STEP};
    use super::*;
    use crate::config::Objective;

    fn paper() -> Mdpo {
        Mdpo {
            beta: 0.1,
            preference_weight: 1.0,
            conditional_weight: 1.0,
            anchor_weight: 1.0,
            delta: 0.0,
            anchors: vec![Anchor::Chosen],
        }
    }

    fn total(settings: Mdpo) -> tch::Tensor {
        golden::total(&Objective::Mdpo(settings).terms(&golden::pairs(), STEP))
    }

    #[test]
    fn golden_terms_and_totals() {
        let terms = Objective::Mdpo(paper()).terms(&golden::pairs(), STEP);
        golden::assert_close(&terms[0].values, [0.5130152524, 0.89812326414]);
        golden::assert_close(&terms[1].values, [0.554355244469, 0.680725303526]);
        golden::assert_close(&terms[2].values, [0.598138869382, 0.825939419879]);
        golden::assert_close(&golden::total(&terms), [1.66550936625, 2.40478798754]);
    }

    #[test]
    fn golden_gradients() {
        let pairs = golden::pairs();
        golden::total(&Objective::Mdpo(paper()).terms(&pairs, STEP)).sum(tch::Kind::Double).backward();
        let gradient = |view: &tch::Tensor| view.grad();
        golden::assert_close(&gradient(&pairs.policy.chosen), [-0.127703582576, -0.164859342634]);
        golden::assert_close(&gradient(pairs.policy.rejected()), [0.0401312339888, 0.0592666599954]);
        golden::assert_close(&gradient(pairs.policy.corrupted()), [0.0425557483188, 0.04937503255]);
        let all = vec![Anchor::Chosen, Anchor::Rejected, Anchor::Corrupted];
        let weighted = Mdpo { anchors: all, delta: 0.3, conditional_weight: 0.4, anchor_weight: 1.7, ..paper() };
        golden::assert_gradients(&Objective::Mdpo(weighted), |_| golden::pairs());
    }

    #[test]
    fn golden_deltas_ablations_and_extra_anchors() {
        golden::assert_close(&total(Mdpo { delta: 0.5, ..paper() }), [1.92172574134, 2.71571957378]);
        golden::assert_close(&total(Mdpo { delta: -0.5, ..paper() }), [1.47055654575, 2.15478798754]);
        golden::assert_close(&total(Mdpo { conditional_weight: 0.0, ..paper() }), [1.11115412178, 1.72406268402]);
        golden::assert_close(&total(Mdpo { anchor_weight: 0.0, ..paper() }), [1.06737049687, 1.57884856767]);
        let two = vec![Anchor::Chosen, Anchor::Rejected];
        golden::assert_close(&total(Mdpo { anchors: two, ..paper() }), [2.26364823563, 3.16238702286]);
        let all = vec![Anchor::Chosen, Anchor::Rejected, Anchor::Corrupted];
        golden::assert_close(&total(Mdpo { anchors: all, ..paper() }), [2.90804489571, 3.72745769055]);
    }

    #[test]
    fn equal_policies_cost_three_times_ln_2() {
        let loss = golden::total(&Objective::Mdpo(paper()).terms(&golden::equal_pairs(), STEP));
        golden::assert_close(&loss, [3.0 * std::f64::consts::LN_2; 2]);
    }

    #[test]
    fn a_pair_without_images_has_no_conditional_term() {
        let mut pairs = golden::pairs();
        pairs.has_image = golden::vector([1.0, 0.0]);
        let loss = golden::total(&Objective::Mdpo(paper()).terms(&pairs, STEP));
        golden::assert_close(&loss, [1.66550936625, 2.40478798754 - 0.680725303526]);
        let expected = Objective::Mdpo(paper()).loss_at_reference(&pairs, STEP).expect("mDPO has a reference");
        assert!((expected - 5.0 * std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn a_crop_that_differs_between_policy_and_reference_shows_in_the_first_loss() {
        let mut pairs = golden::pairs();
        let reference = pairs.reference.as_mut().expect("golden pairs have a reference");
        reference.chosen = pairs.policy.chosen.detach();
        reference.rejected = pairs.policy.rejected.as_ref().map(tch::Tensor::detach);
        reference.corrupted = Some(golden::vector([-57.5, -43.5]));
        let loss = golden::total(&Objective::Mdpo(paper()).terms(&pairs, STEP));
        golden::assert_close(&loss, [1.91967651654, 1.91967651654]);
    }

    #[test]
    fn settings_decide_which_views_are_needed() {
        let needs = |settings: Mdpo| Objective::Mdpo(settings).needs();
        let all = Needs { rejected: true, corrupted: true, reference: true, ..Needs::default() };
        assert_eq!(needs(paper()), all);
        assert!(!needs(Mdpo { conditional_weight: 0.0, ..paper() }).corrupted);
        assert!(!needs(Mdpo { preference_weight: 0.0, ..paper() }).rejected);
        let anchored = Mdpo { conditional_weight: 0.0, anchors: vec![Anchor::Corrupted], ..paper() };
        assert!(needs(anchored).corrupted);
    }
}
