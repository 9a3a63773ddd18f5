//! The names of all objectives, and which keys are whose.

use super::{DpoLoss, HpoPreference, Objective, ReferencePoint};

/// An objective or a loss of DPO's family, before its settings are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Mdpo,
    Dpo,
    Cdpo,
    Hinge,
    Ipo,
    ExoPair,
    NcaPair,
    Robust,
    BcoPair,
    SppoHard,
    Aot,
    AotUnpaired,
    ApoZero,
    ApoDown,
    Discopop,
    SigmoidNorm,
    Sft,
    Simpo,
    Orpo,
    Cpo,
    Kto,
    ApoZeroUnpaired,
    Odpo,
    Dmpo,
    Hpo,
}

/// Every `loss_type`; the first name of each is the one that is written.
pub(super) const LOSS_TYPES: &[(&str, Name)] = &[
    ("mdpo", Name::Mdpo),
    ("dpo", Name::Dpo),
    ("sigmoid", Name::Dpo),
    ("cdpo", Name::Cdpo),
    ("hinge", Name::Hinge),
    ("ipo", Name::Ipo),
    ("exo_pair", Name::ExoPair),
    ("nca_pair", Name::NcaPair),
    ("robust", Name::Robust),
    ("bco_pair", Name::BcoPair),
    ("sppo_hard", Name::SppoHard),
    ("aot", Name::Aot),
    ("aot_unpaired", Name::AotUnpaired),
    ("apo_zero", Name::ApoZero),
    ("apo_down", Name::ApoDown),
    ("discopop", Name::Discopop),
    ("sigmoid_norm", Name::SigmoidNorm),
    ("sft", Name::Sft),
    ("simpo", Name::Simpo),
    ("orpo", Name::Orpo),
    ("cpo", Name::Cpo),
    ("kto", Name::Kto),
    ("apo_zero_unpaired", Name::ApoZeroUnpaired),
    ("odpo", Name::Odpo),
    ("dmpo", Name::Dmpo),
    ("hpo", Name::Hpo),
    ("upo", Name::Hpo),
];

/// The losses that stand on the difference of two rewards, so that an f-divergence's unknown constant cancels (and `sft`, which has none).
const OF_A_DIFFERENCE: &[Name] = &[
    Name::Dpo,
    Name::Cdpo,
    Name::Hinge,
    Name::Ipo,
    Name::ExoPair,
    Name::Robust,
    Name::Discopop,
    Name::SigmoidNorm,
    Name::Sft,
];

const SMOOTHED: &[Name] =
    &[Name::Cdpo, Name::ExoPair, Name::Robust, Name::Aot, Name::AotUnpaired, Name::Simpo, Name::Cpo];

/// DPO's family but for `sft`, which alone is an objective of its own.
const FAMILY: &[Name] = &[
    Name::Dpo,
    Name::Cdpo,
    Name::Hinge,
    Name::Ipo,
    Name::ExoPair,
    Name::NcaPair,
    Name::Robust,
    Name::BcoPair,
    Name::SppoHard,
    Name::Aot,
    Name::AotUnpaired,
    Name::ApoZero,
    Name::ApoDown,
    Name::Discopop,
    Name::SigmoidNorm,
];

/// A key that not every objective has.
#[derive(Debug)]
pub(super) struct Owned {
    /// The key.
    pub key: &'static str,
    /// Those that have it.
    pub by: &'static [Name],
    /// Values that ask for nothing, and may stand beside any.
    pub unless: &'static [&'static str],
}

const fn owned(key: &'static str, by: &'static [Name], unless: &'static [&'static str]) -> Owned {
    Owned { key, by, unless }
}

/// The keys of a loss, which HPO's preference term has too.
pub(super) const KEYS_OF_LOSSES: &[Owned] = &[
    owned("label_smoothing", SMOOTHED, &["0"]),
    owned("discopop_tau", &[Name::Discopop], &[]),
    owned("desirable_weight", &[Name::Kto, Name::ApoZeroUnpaired], &[]),
    owned("undesirable_weight", &[Name::Kto, Name::ApoZeroUnpaired], &[]),
];

/// The keys of an objective as a whole.
pub(super) const KEYS_OF_OBJECTIVES: &[Owned] = &[
    owned("loss_weights", FAMILY, &[]),
    owned("f_divergence_type", FAMILY, &["reverse_kl"]),
    owned("ld_alpha", FAMILY, &[]),
    owned("reference_free", FAMILY, &["false"]),
    owned("preference_weight", &[Name::Mdpo], &[]),
    owned("conditional_weight", &[Name::Mdpo], &[]),
    owned("anchor_weight", &[Name::Mdpo], &[]),
    owned("anchor_delta", &[Name::Mdpo], &[]),
    owned("anchors", &[Name::Mdpo], &[]),
    owned("simpo_gamma", &[Name::Simpo], &[]),
    owned("cpo_alpha", &[Name::Cpo, Name::Simpo], &[]),
    owned("odpo_alpha", &[Name::Odpo], &[]),
    owned("odpo_offset", &[Name::Odpo], &[]),
    owned("dmpo_gamma", &[Name::Dmpo], &[]),
    owned("dmpo_eos", &[Name::Dmpo], &[]),
    owned("rewards", &[Name::Hpo], &[]),
    owned("hpo_preference", &[Name::Hpo], &[]),
    owned("hpo_gamma", &[Name::Hpo], &[]),
    owned("hpo_lambda", &[Name::Hpo], &[]),
    owned("hpo_weight_clip", &[Name::Hpo], &[]),
    owned("hpo_logps", &[Name::Hpo], &[]),
    owned("hpo_tau", &[Name::Hpo], &[]),
    owned("hpo_value_weight", &[Name::Hpo], &[]),
    owned("hpo_value_learning_rate", &[Name::Hpo], &[]),
];

impl Name {
    /// The name that is written.
    pub fn canonical(self) -> &'static str {
        LOSS_TYPES.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }

    /// Whether it is a loss of DPO's family, and may stand in a list.
    pub fn is_family(self) -> bool {
        self == Name::Sft || FAMILY.contains(&self)
    }

    /// Whether an f-divergence other than the reverse KL makes sense with it.
    pub fn is_of_a_difference(self) -> bool {
        OF_A_DIFFERENCE.contains(&self)
    }

    pub fn of(loss: DpoLoss) -> Name {
        match loss {
            DpoLoss::Sigmoid => Name::Dpo,
            DpoLoss::Cdpo { .. } => Name::Cdpo,
            DpoLoss::Hinge => Name::Hinge,
            DpoLoss::Ipo => Name::Ipo,
            DpoLoss::ExoPair { .. } => Name::ExoPair,
            DpoLoss::NcaPair => Name::NcaPair,
            DpoLoss::Robust { .. } => Name::Robust,
            DpoLoss::BcoPair => Name::BcoPair,
            DpoLoss::SppoHard => Name::SppoHard,
            DpoLoss::Aot { .. } => Name::Aot,
            DpoLoss::AotUnpaired { .. } => Name::AotUnpaired,
            DpoLoss::ApoZero => Name::ApoZero,
            DpoLoss::ApoDown => Name::ApoDown,
            DpoLoss::Discopop { .. } => Name::Discopop,
            DpoLoss::Sft => Name::Sft,
            DpoLoss::SigmoidNorm => Name::SigmoidNorm,
        }
    }
}

impl From<ReferencePoint> for Name {
    fn from(point: ReferencePoint) -> Name {
        match point {
            ReferencePoint::Mismatched => Name::Kto,
            ReferencePoint::Zero => Name::ApoZeroUnpaired,
        }
    }
}

impl Objective {
    /// Its name, or those of a list.
    pub(super) fn names(&self) -> Vec<Name> {
        vec![match self {
            Objective::Dpo(dpo) => return dpo.losses.iter().map(|weighted| Name::of(weighted.loss)).collect(),
            Objective::Mdpo(_) => Name::Mdpo,
            Objective::Simpo(_) => Name::Simpo,
            Objective::Orpo { .. } => Name::Orpo,
            Objective::Cpo(_) => Name::Cpo,
            Objective::Kto(kto) => kto.point.into(),
            Objective::Odpo(_) => Name::Odpo,
            Objective::Dmpo(_) => Name::Dmpo,
            Objective::Hpo(_) => Name::Hpo,
            Objective::Sft => Name::Sft,
        }]
    }
}

impl HpoPreference {
    /// Its name.
    pub(super) fn names(&self) -> Vec<Name> {
        match self {
            HpoPreference::Kto(kto) => vec![kto.point.into()],
            HpoPreference::Dpo(dpo) => dpo.losses.iter().map(|weighted| Name::of(weighted.loss)).collect(),
        }
    }
}
