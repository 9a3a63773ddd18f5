//! An objective as keys again.

use serde_json::{Map, Value, json};

use super::names::Name;
use super::*;

impl Objective {
    /// Its keys, in the order of the table; one that it does not have is left out or null.
    pub(in crate::config) fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let names: Vec<&str> = self.names().into_iter().map(Name::canonical).collect();
        let name = match names.as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        let mut keys = vec![("loss_type", name)];
        match self {
            Objective::Dpo(dpo) => keys.extend(dpo.to_keys()),
            Objective::Mdpo(mdpo) => keys.extend(mdpo.to_keys()),
            Objective::Simpo(simpo) => keys.extend([
                ("beta", json!(simpo.beta)),
                ("label_smoothing", json!(simpo.label_smoothing)),
                ("simpo_gamma", json!(simpo.gamma)),
                ("cpo_alpha", json!(simpo.nll_weight)),
            ]),
            Objective::Orpo { beta } => keys.push(("beta", json!(beta))),
            Objective::Cpo(cpo) => keys.extend([
                ("beta", json!(cpo.beta)),
                ("label_smoothing", json!(cpo.label_smoothing)),
                ("cpo_alpha", json!(cpo.nll_weight)),
            ]),
            Objective::Kto(kto) => keys.extend(kto.to_keys()),
            Objective::Odpo(odpo) => keys.extend([
                ("beta", json!(odpo.beta)),
                ("odpo_alpha", json!(odpo.alpha)),
                (
                    "odpo_offset",
                    json!(match odpo.offset {
                        Offset::Log => "log",
                        Offset::Identity => "identity",
                        Offset::Ratio => "ratio",
                    }),
                ),
            ]),
            Objective::Dmpo(dmpo) => keys.extend([
                ("beta", json!(dmpo.beta)),
                ("dmpo_gamma", json!(dmpo.gamma)),
                (
                    "dmpo_eos",
                    json!(match dmpo.eos {
                        TurnEos::Discounted => "discounted",
                        TurnEos::Undiscounted => "undiscounted",
                    }),
                ),
            ]),
            Objective::Hpo(hpo) => keys.extend(hpo.to_keys()),
            Objective::Sft => {}
        }
        keys
    }
}

impl Dpo {
    fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let weights: Vec<f64> = self.losses.iter().map(|weighted| weighted.weight).collect();
        let (divergence, coefficient) = match self.divergence {
            Divergence::ReverseKl => ("reverse_kl", None),
            Divergence::ForwardKl => ("forward_kl", None),
            Divergence::JensenShannon => ("js_divergence", None),
            Divergence::Alpha { coefficient } => ("alpha_divergence", Some(coefficient)),
        };
        let mut keys = vec![("loss_weights", json!(weights)), ("beta", json!(self.beta))];
        keys.extend(self.losses.iter().flat_map(|weighted| weighted.loss.to_keys()));
        keys.extend([
            ("f_divergence_type", json!(divergence)),
            ("f_alpha_divergence_coef", json!(coefficient)),
            ("ld_alpha", json!(self.ld_alpha)),
            ("reference_free", json!(self.reference_free)),
        ]);
        keys
    }
}

impl DpoLoss {
    /// The settings of this loss; losses of a list share one `label_smoothing`.
    fn to_keys(self) -> Option<(&'static str, Value)> {
        match self {
            DpoLoss::Cdpo { label_smoothing }
            | DpoLoss::ExoPair { label_smoothing }
            | DpoLoss::Robust { label_smoothing }
            | DpoLoss::Aot { label_smoothing }
            | DpoLoss::AotUnpaired { label_smoothing } => Some(("label_smoothing", json!(label_smoothing))),
            DpoLoss::Discopop { tau } => Some(("discopop_tau", json!(tau))),
            DpoLoss::Sigmoid
            | DpoLoss::Hinge
            | DpoLoss::Ipo
            | DpoLoss::NcaPair
            | DpoLoss::BcoPair
            | DpoLoss::SppoHard
            | DpoLoss::ApoZero
            | DpoLoss::ApoDown
            | DpoLoss::Sft
            | DpoLoss::SigmoidNorm => None,
        }
    }
}

impl Mdpo {
    fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let name = |anchor: &Anchor| match anchor {
            Anchor::Chosen => "chosen",
            Anchor::Rejected => "rejected",
            Anchor::Corrupted => "corrupted",
        };
        vec![
            ("beta", json!(self.beta)),
            ("preference_weight", json!(self.preference_weight)),
            ("conditional_weight", json!(self.conditional_weight)),
            ("anchor_weight", json!(self.anchor_weight)),
            ("anchor_delta", json!(self.delta)),
            ("anchors", self.anchors.iter().map(name).collect()),
        ]
    }
}

impl Kto {
    fn to_keys(self) -> [(&'static str, Value); 3] {
        [
            ("beta", json!(self.beta)),
            ("desirable_weight", json!(self.desirable_weight)),
            ("undesirable_weight", json!(self.undesirable_weight)),
        ]
    }
}

impl Hpo {
    fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let preference = self.preference.names().into_iter().map(Name::canonical).next();
        let mut keys = Vec::new();
        match &self.preference {
            HpoPreference::Kto(kto) => keys.extend(kto.to_keys()),
            HpoPreference::Dpo(dpo) => {
                keys.push(("beta", json!(dpo.beta)));
                keys.extend(dpo.losses.iter().flat_map(|weighted| weighted.loss.to_keys()));
            }
        }
        let rewards = self.rewards.iter().map(|reward| (reward.name.clone(), json!(reward.weight)));
        keys.extend([
            ("rewards", Value::Object(rewards.collect::<Map<_, _>>())),
            ("hpo_preference", json!(preference)),
            ("hpo_gamma", json!(self.gamma)),
            ("hpo_lambda", json!(self.lambda)),
            ("hpo_weight_clip", json!(self.weight_clip)),
            (
                "hpo_logps",
                json!(match self.log_probs {
                    Reduction::Sum => "sum",
                    Reduction::TokenMean => "token_mean",
                }),
            ),
            ("hpo_tau", json!(self.tau)),
            ("hpo_value_weight", json!(self.value_weight)),
            ("hpo_value_learning_rate", json!(self.value_learning_rate)),
        ]);
        keys
    }
}
