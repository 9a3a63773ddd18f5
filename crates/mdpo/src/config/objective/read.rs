//! From keys to an objective: which one, which keys are not its own, and its settings.

use serde_json::Value;

use super::names::{KEYS_OF_LOSSES, KEYS_OF_OBJECTIVES, LOSS_TYPES, Name, Owned};
use super::*;
use crate::config::recipe::{Recipe, plain};
use crate::config::validate::{distinct, each, flag, number, one_of};

impl Objective {
    /// That `key` is about a reference, and this objective has none.
    pub(in crate::config) fn no_reference(&self, key: &str) -> String {
        let asked = match self {
            Objective::Dpo(_) => "reference_free: true".to_owned(),
            other => format!("loss_type: {}", other.name()),
        };
        format!("`{key}` does not go with `{asked}`, which compares with no reference")
    }
}

/// Every value that an objective may have, each key read once whichever objective it is.
struct Settings {
    beta: f64,
    label_smoothing: f64,
    discopop_tau: f64,
    loss_weights: Option<Vec<f64>>,
    divergence: Divergence,
    ld_alpha: Option<f64>,
    reference_free: bool,
    mdpo: Mdpo,
    simpo_gamma: f64,
    nll_weight: Option<f64>,
    desirable_weight: f64,
    undesirable_weight: f64,
    odpo: Odpo,
    dmpo: Dmpo,
    hpo_preference: Name,
    hpo: Hpo,
}

impl Recipe {
    pub(in crate::config) fn objective(&mut self) -> Objective {
        let names = self.loss_types();
        let settings = self.settings();
        let preference = (names == [Name::Hpo]).then_some(settings.hpo_preference);
        self.keys_of_others(KEYS_OF_OBJECTIVES, &names);
        self.keys_of_others(KEYS_OF_LOSSES, &names.iter().copied().chain(preference).collect::<Vec<_>>());
        let Settings { beta, label_smoothing, nll_weight, .. } = settings;
        let objective = match names.as_slice() {
            [Name::Sft] => {
                let what = "`beta` does not go with `loss_type: sft`, which compares with no reference";
                self.forbid("beta", what, "leave it out");
                Objective::Sft
            }
            [Name::Mdpo] => Objective::Mdpo(self.mdpo(settings.mdpo)),
            [Name::Simpo] => {
                let (gamma, nll_weight) = (settings.simpo_gamma, nll_weight.unwrap_or(0.0));
                Objective::Simpo(Simpo { beta, gamma, label_smoothing, nll_weight })
            }
            [Name::Orpo] => Objective::Orpo { beta },
            [Name::Cpo] => Objective::Cpo(Cpo { beta, label_smoothing, nll_weight: nll_weight.unwrap_or(1.0) }),
            [name @ (Name::Kto | Name::ApoZeroUnpaired)] => Objective::Kto(self.kto(*name, &settings)),
            [Name::Odpo] => Objective::Odpo(settings.odpo),
            [Name::Dmpo] => Objective::Dmpo(settings.dmpo),
            [Name::Hpo] => Objective::Hpo(self.hpo(settings)),
            family => Objective::Dpo(self.dpo(family, settings)),
        };
        if !objective.compares() {
            self.forbid("reference", &objective.no_reference("reference"), "leave it out");
        }
        objective
    }

    /// One objective, or several losses of DPO's family.
    fn loss_types(&mut self) -> Vec<Name> {
        let names = self.value("loss_type", |value| each(value, one_of(LOSS_TYPES)));
        if names.len() == 1 {
            return names;
        }
        if let Some(alone) = names.iter().find(|name| !name.is_family()) {
            let what =
                format!("`loss_type`: only losses of DPO's family are added up, and `{}` is none", alone.canonical());
            self.complain("loss_type", what, "write it alone, or take it out of the list");
            return vec![*alone];
        }
        if let Some((_, twice)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
            let what = format!("`loss_type`: `{}` stands twice in the list", twice.canonical());
            self.complain("loss_type", what, "write it once, with the sum of both weights in `loss_weights`");
        }
        names
    }

    /// Complains of every key that none of `names` has.
    fn keys_of_others(&mut self, keys: &[Owned], names: &[Name]) {
        for Owned { key, by, unless } in keys {
            let Some(entry) = self.entry(key) else { continue };
            if names.iter().any(|name| by.contains(name)) || unless.contains(&plain(&entry.value).as_str()) {
                continue;
            }
            let owners: Vec<&str> = by.iter().map(|name| name.canonical()).collect();
            let listed = match owners.as_slice() {
                [one] => format!("`loss_type: {one}`"),
                [first, rest @ ..] if rest.len() < 8 => format!("`loss_type: {first}`, `{}`", rest.join("`, `")),
                _ => "the losses of DPO's family".to_owned(),
            };
            let hint = format!("leave it out, or write `loss_type: {}`", owners.first().unwrap_or(&"dpo"));
            self.complain(key, format!("`{key}` belongs to {listed}"), hint);
        }
    }

    fn settings(&mut self) -> Settings {
        let beta = self.value("beta", number(|beta| beta > 0.0));
        let above_zero = || number(|number: f64| number > 0.0);
        let from_zero = || number(|number: f64| number >= 0.0);
        let share = || number(|share: f64| (0.0..=1.0).contains(&share));
        let anchors = [("chosen", Anchor::Chosen), ("rejected", Anchor::Rejected), ("corrupted", Anchor::Corrupted)];
        let offsets = [("log", Offset::Log), ("identity", Offset::Identity), ("ratio", Offset::Ratio)];
        let eos = [("discounted", TurnEos::Discounted), ("undiscounted", TurnEos::Undiscounted)];
        Settings {
            beta,
            label_smoothing: self.value("label_smoothing", number(|share| (0.0..0.5).contains(&share))),
            discopop_tau: self.value("discopop_tau", above_zero()),
            loss_weights: self.optional("loss_weights", |value| each(value, from_zero())),
            divergence: self.divergence(),
            ld_alpha: self.optional("ld_alpha", share()),
            reference_free: self.value("reference_free", flag),
            mdpo: Mdpo {
                beta,
                preference_weight: self.value("preference_weight", from_zero()),
                conditional_weight: self.value("conditional_weight", from_zero()),
                anchor_weight: self.value("anchor_weight", from_zero()),
                delta: self.value("anchor_delta", number(|_| true)),
                anchors: self.value("anchors", |value| distinct(value, one_of(&anchors))),
            },
            simpo_gamma: self.value("simpo_gamma", from_zero()),
            nll_weight: self.optional("cpo_alpha", from_zero()),
            desirable_weight: self.value("desirable_weight", from_zero()),
            undesirable_weight: self.value("undesirable_weight", from_zero()),
            odpo: Odpo {
                beta,
                alpha: self.value("odpo_alpha", from_zero()),
                offset: self.value("odpo_offset", one_of(&offsets)),
            },
            dmpo: Dmpo { beta, gamma: self.value("dmpo_gamma", share()), eos: self.value("dmpo_eos", one_of(&eos)) },
            hpo_preference: self.value("hpo_preference", preference),
            hpo: Hpo {
                preference: HpoPreference::Dpo(Dpo::of(DpoLoss::Sigmoid, beta)),
                rewards: self.optional("rewards", rewards).unwrap_or_default(),
                gamma: self.value("hpo_gamma", from_zero()),
                lambda: self.value("hpo_lambda", above_zero()),
                weight_clip: self.value("hpo_weight_clip", above_zero()),
                log_probs: self
                    .value("hpo_logps", one_of(&[("sum", Reduction::Sum), ("token_mean", Reduction::TokenMean)])),
                tau: self.value("hpo_tau", number(|tau| 0.0 < tau && tau < 1.0)),
                value_weight: self.value("hpo_value_weight", above_zero()),
                value_learning_rate: self.value("hpo_value_learning_rate", above_zero()),
            },
        }
    }

    fn divergence(&mut self) -> Divergence {
        let coefficient = self.value("f_alpha_divergence_coef", number(|_| true));
        let divergence = self.value(
            "f_divergence_type",
            one_of(&[
                ("reverse_kl", Divergence::ReverseKl),
                ("forward_kl", Divergence::ForwardKl),
                ("js_divergence", Divergence::JensenShannon),
                ("alpha_divergence", Divergence::Alpha { coefficient }),
            ]),
        );
        if !matches!(divergence, Divergence::Alpha { .. }) {
            let what = "`f_alpha_divergence_coef` belongs to `f_divergence_type: alpha_divergence`";
            let hint = "leave it out, or write `f_divergence_type: alpha_divergence`";
            self.forbid("f_alpha_divergence_coef", what, hint);
        }
        divergence
    }

    fn mdpo(&mut self, mdpo: Mdpo) -> Mdpo {
        if mdpo.preference_weight + mdpo.conditional_weight + mdpo.anchor_weight == 0.0 {
            let hint = "give one of them a weight above 0";
            self.complain("preference_weight", "all three terms of mDPO have weight 0", hint);
        }
        mdpo
    }

    fn kto(&mut self, name: Name, settings: &Settings) -> Kto {
        let &Settings { beta, desirable_weight, undesirable_weight, .. } = settings;
        if desirable_weight + undesirable_weight == 0.0 {
            let what = "`desirable_weight` and `undesirable_weight` are both 0";
            self.complain("desirable_weight", what, "give one of them a weight above 0");
        }
        let point = if name == Name::ApoZeroUnpaired { ReferencePoint::Zero } else { ReferencePoint::Mismatched };
        Kto { beta, desirable_weight, undesirable_weight, point }
    }

    fn hpo(&mut self, settings: Settings) -> Hpo {
        if self.entry("rewards").is_none() {
            let what = "`loss_type: hpo` needs `rewards`, the auxiliary rewards of its second term";
            self.complain("loss_type", what, "for example `rewards: {flesch_kincaid: -1.0}`");
        }
        let preference = match self.dpo_loss(settings.hpo_preference, &settings) {
            Some(loss) => HpoPreference::Dpo(Dpo::of(loss, settings.beta)),
            None => HpoPreference::Kto(self.kto(settings.hpo_preference, &settings)),
        };
        Hpo { preference, ..settings.hpo }
    }

    fn dpo(&mut self, names: &[Name], settings: Settings) -> Dpo {
        let losses: Vec<DpoLoss> = names.iter().filter_map(|name| self.dpo_loss(*name, &settings)).collect();
        if names.contains(&Name::Sft) {
            let what = "`ld_alpha` does not go with `sft` in a list, whose likelihood counts every label alike";
            self.forbid("ld_alpha", what, "leave it out, or take `sft` out of the list");
        }
        let unfit = names.iter().find(|name| !name.is_of_a_difference());
        if let Some(name) = unfit.filter(|_| settings.divergence != Divergence::ReverseKl) {
            let what = format!(
                "`f_divergence_type` does not go with `loss_type: {}`: what is unknown of a reward cancels only in a difference of two",
                name.canonical()
            );
            self.complain("f_divergence_type", what, "leave it out, or write `f_divergence_type: reverse_kl`");
        }
        let weights = self.loss_weights(settings.loss_weights, losses.len());
        Dpo {
            beta: settings.beta,
            losses: losses.into_iter().zip(weights).map(|(loss, weight)| Weighted { loss, weight }).collect(),
            divergence: settings.divergence,
            ld_alpha: settings.ld_alpha,
            reference_free: settings.reference_free,
        }
    }

    /// A loss of DPO's family with its settings; none for other names.
    fn dpo_loss(&mut self, name: Name, settings: &Settings) -> Option<DpoLoss> {
        let label_smoothing = settings.label_smoothing;
        if matches!(name, Name::Cdpo | Name::ExoPair) && label_smoothing == 0.0 {
            let what = format!("`{}` needs a `label_smoothing` above 0", name.canonical());
            self.complain("loss_type", what, "add `label_smoothing: 0.1`, or write `dpo`");
        }
        Some(match name {
            Name::Dpo => DpoLoss::Sigmoid,
            Name::Cdpo => DpoLoss::Cdpo { label_smoothing },
            Name::Hinge => DpoLoss::Hinge,
            Name::Ipo => DpoLoss::Ipo,
            Name::ExoPair => DpoLoss::ExoPair { label_smoothing },
            Name::NcaPair => DpoLoss::NcaPair,
            Name::Robust => DpoLoss::Robust { label_smoothing },
            Name::BcoPair => DpoLoss::BcoPair,
            Name::SppoHard => DpoLoss::SppoHard,
            Name::Aot => DpoLoss::Aot { label_smoothing },
            Name::AotUnpaired => DpoLoss::AotUnpaired { label_smoothing },
            Name::ApoZero => DpoLoss::ApoZero,
            Name::ApoDown => DpoLoss::ApoDown,
            Name::Discopop => DpoLoss::Discopop { tau: settings.discopop_tau },
            Name::SigmoidNorm => DpoLoss::SigmoidNorm,
            Name::Sft => DpoLoss::Sft,
            _ => return None,
        })
    }

    /// As many weights as there are losses.
    fn loss_weights(&mut self, weights: Option<Vec<f64>>, losses: usize) -> Vec<f64> {
        let Some(weights) = weights else { return vec![1.0; losses] };
        if weights.len() != losses {
            let what =
                format!("`loss_weights`: expected {losses}, as many as `loss_type` has, found {}", weights.len());
            self.complain("loss_weights", what, "write one weight for each loss, in the same order");
        }
        if weights.iter().all(|weight| *weight == 0.0) {
            self.complain("loss_weights", "`loss_weights` are all 0", "give one of the losses a weight above 0");
        }
        weights.into_iter().chain(std::iter::repeat(1.0)).take(losses).collect()
    }
}

/// What may stand as HPO's preference term.
fn preference(value: &Value) -> Option<Name> {
    let fits = |name: &Name| match name {
        Name::Kto | Name::ApoZeroUnpaired => true,
        Name::Sft => false,
        name => name.is_family(),
    };
    one_of(LOSS_TYPES)(value).filter(fits)
}

/// Names with weights, at least one.
fn rewards(value: &Value) -> Option<Vec<Reward>> {
    let weight = number(|weight| weight != 0.0);
    let reward = |(name, value): (&String, &Value)| Some(Reward { name: name.clone(), weight: weight(value)? });
    let map = value.as_object().filter(|map| !map.is_empty())?;
    map.iter().map(reward).collect()
}
