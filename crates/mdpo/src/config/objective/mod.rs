//! What is minimised: the settings of every objective, with TRL's names wherever they exist; [`crate::objective`] has the formulas.

mod names;
mod read;
mod write;

#[cfg(test)]
pub(super) mod tests;

use names::Name;

/// What is minimised (`loss_type`, default `mdpo`).
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// `dpo` (TRL's name: `sigmoid`), another loss of DPO's family, or a list of them.
    Dpo(Dpo),
    /// `mdpo`.
    Mdpo(Mdpo),
    /// `simpo`.
    Simpo(Simpo),
    /// `orpo`.
    Orpo {
        /// Weight of the odds-ratio term (`beta`, the paper's λ).
        beta: f64,
    },
    /// `cpo`.
    Cpo(Cpo),
    /// `kto`, `apo_zero_unpaired`.
    Kto(Kto),
    /// `odpo`.
    Odpo(Odpo),
    /// `dmpo`.
    Dmpo(Dmpo),
    /// `hpo` (also `upo`).
    Hpo(Hpo),
    /// `sft`: token-mean negative log-likelihood of the chosen response.
    Sft,
}

/// Every `loss_type`.
#[cfg(test)]
pub(crate) fn loss_types() -> impl Iterator<Item = &'static str> {
    names::LOSS_TYPES.iter().map(|(name, _)| *name)
}

impl Objective {
    /// Whether it compares the policy with a reference.
    pub fn compares(&self) -> bool {
        match self {
            Objective::Dpo(dpo) => !dpo.reference_free,
            Objective::Simpo(_) | Objective::Orpo { .. } | Objective::Cpo(_) | Objective::Sft => false,
            Objective::Mdpo(_) | Objective::Kto(_) | Objective::Odpo(_) | Objective::Dmpo(_) | Objective::Hpo(_) => {
                true
            }
        }
    }

    /// Whether labels of one response weigh differently in its log-prob.
    pub fn weighs_labels(&self) -> bool {
        matches!(self, Objective::Dmpo(_) | Objective::Dpo(Dpo { ld_alpha: Some(_), .. }))
    }

    /// Whether a prompt is also followed by an answer of another row.
    pub fn follows_prompts_by_other_answers(&self) -> bool {
        match self {
            Objective::Kto(kto) | Objective::Hpo(Hpo { preference: HpoPreference::Kto(kto), .. }) => {
                kto.point == ReferencePoint::Mismatched
            }
            _ => false,
        }
    }

    /// The auxiliary rewards that its rows bring, with their weights.
    pub fn auxiliary_rewards(&self) -> &[Reward] {
        match self {
            Objective::Hpo(hpo) => &hpo.rewards,
            _ => &[],
        }
    }

    /// Peak learning rate of the value head, where it has one.
    pub fn value_learning_rate(&self) -> Option<f64> {
        match self {
            Objective::Hpo(hpo) => Some(hpo.value_learning_rate),
            _ => None,
        }
    }

    /// Its `loss_type`; of a list, what each is called, joined.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.names().into_iter().map(Name::canonical).collect();
        names.join(" + ")
    }
}

/// Losses on the log-ratios of a chosen and a rejected response, weighted and added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Dpo {
    /// Temperature (`beta`).
    pub beta: f64,
    /// The losses (`loss_type`) with their weights (`loss_weights`, default 1 each); each at most once.
    pub losses: Vec<Weighted>,
    /// What keeps the policy near the reference (`f_divergence_type`).
    pub divergence: Divergence,
    /// Weight of the labels beyond the shorter response of a pair (`ld_alpha`); all count alike when absent.
    pub ld_alpha: Option<f64>,
    /// Whether the reference counts as uniform (`reference_free`).
    pub reference_free: bool,
}

impl Dpo {
    /// One loss with nothing around it.
    pub fn of(loss: DpoLoss, beta: f64) -> Dpo {
        let losses = vec![Weighted { loss, weight: 1.0 }];
        Dpo { beta, losses, divergence: Divergence::ReverseKl, ld_alpha: None, reference_free: false }
    }
}

/// One of the losses of a list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The loss.
    pub loss: DpoLoss,
    /// Its weight.
    pub weight: f64,
}

/// A loss of DPO's family, with TRL's name for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DpoLoss {
    /// `sigmoid`, also `dpo`.
    Sigmoid,
    /// `cdpo`: conservative DPO, which TRL's `sigmoid` was with `label_smoothing` until 0.28.
    Cdpo {
        /// Probability that a label is wrong (`label_smoothing`), above 0.
        label_smoothing: f64,
    },
    /// `hinge`.
    Hinge,
    /// `ipo`, on log-ratios per token.
    Ipo,
    /// `exo_pair`.
    ExoPair {
        /// ε (`label_smoothing`), above 0.
        label_smoothing: f64,
    },
    /// `nca_pair`.
    NcaPair,
    /// `robust`.
    Robust {
        /// Probability that a label is flipped (`label_smoothing`), below ½.
        label_smoothing: f64,
    },
    /// `bco_pair`.
    BcoPair,
    /// `sppo_hard`.
    SppoHard,
    /// `aot`.
    Aot {
        /// `label_smoothing`.
        label_smoothing: f64,
    },
    /// `aot_unpaired`.
    AotUnpaired {
        /// `label_smoothing`.
        label_smoothing: f64,
    },
    /// `apo_zero`.
    ApoZero,
    /// `apo_down`.
    ApoDown,
    /// `discopop`.
    Discopop {
        /// τ (`discopop_tau`, default 0.05).
        tau: f64,
    },
    /// `sft`, beside others.
    Sft,
    /// `sigmoid_norm`, on log-ratios per token.
    SigmoidNorm,
}

impl DpoLoss {
    /// TRL's name.
    pub fn name(self) -> &'static str {
        match self {
            DpoLoss::Sigmoid => "sigmoid",
            other => Name::of(other).canonical(),
        }
    }
}

/// The f-divergence between policy and reference (`f_divergence_type`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// `reverse_kl`, DPO's own.
    ReverseKl,
    /// `forward_kl`.
    ForwardKl,
    /// `js_divergence`.
    JensenShannon,
    /// `alpha_divergence`.
    Alpha {
        /// α (`f_alpha_divergence_coef`, default 0.5).
        coefficient: f64,
    },
}

/// mDPO's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Mdpo {
    /// Temperature (`beta`, default 0.1).
    pub beta: f64,
    /// Weight of the DPO term (`preference_weight`, default 1).
    pub preference_weight: f64,
    /// Weight of the conditional term (`conditional_weight`, default 1).
    pub conditional_weight: f64,
    /// Weight of the anchor terms (`anchor_weight`, default 1).
    pub anchor_weight: f64,
    /// δ, in reward units, outside β (`anchor_delta`, default 0).
    pub delta: f64,
    /// Which rewards are anchored (`anchors`, default `[chosen]`; Table 4 adds `rejected` and `corrupted`).
    pub anchors: Vec<Anchor>,
}

/// A reward that an anchor term holds on its side of δ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The chosen answer under the true image stays above δ.
    Chosen,
    /// The rejected answer stays below δ.
    Rejected,
    /// The chosen answer under the rejected image stays below δ.
    Corrupted,
}

/// SimPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simpo {
    /// Temperature (`beta`; the paper's are 2 to 10).
    pub beta: f64,
    /// γ, the margin in units of the reward (`simpo_gamma`, default 0.5).
    pub gamma: f64,
    /// Probability that a label is wrong (`label_smoothing`).
    pub label_smoothing: f64,
    /// Weight of the chosen response's likelihood (`cpo_alpha`, here 0 unless written, which is SimPO alone).
    pub nll_weight: f64,
}

/// CPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpo {
    /// Temperature (`beta`).
    pub beta: f64,
    /// Probability that a label is wrong (`label_smoothing`).
    pub label_smoothing: f64,
    /// Weight of the chosen response's likelihood (`cpo_alpha`, default 1).
    pub nll_weight: f64,
}

/// KTO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kto {
    /// Temperature (`beta`).
    pub beta: f64,
    /// λ_D, weight of desirable responses (`desirable_weight`, default 1).
    pub desirable_weight: f64,
    /// λ_U, weight of undesirable responses (`undesirable_weight`, default 1).
    pub undesirable_weight: f64,
    /// The point that rewards are compared with.
    pub point: ReferencePoint,
}

/// The point that KTO compares rewards with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferencePoint {
    /// `kto`: z₀, the mean log-ratio of mismatched responses of the optimizer step, at least 0.
    Mismatched,
    /// `apo_zero_unpaired`: 0.
    Zero,
}

/// ODPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Odpo {
    /// Temperature (`beta`).
    pub beta: f64,
    /// α, which scales the offset (`odpo_alpha`, default 1).
    pub alpha: f64,
    /// The offset of two scores (`odpo_offset`, default `log`).
    pub offset: Offset,
}

/// What ODPO makes of the scores s_w and s_l of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// `log`: log(s_w − s_l).
    Log,
    /// `identity`: s_w − s_l.
    Identity,
    /// `ratio`: log(s_w / s_l).
    Ratio,
}

impl Offset {
    /// Whether a pair with these scores has an offset: the chosen score is above the rejected one, and a ratio needs both above 0.
    pub fn is_defined(self, chosen: f64, rejected: f64) -> bool {
        let gap = chosen - rejected;
        gap.is_finite() && gap > 0.0 && (self != Offset::Ratio || rejected > 0.0)
    }
}

/// DMPO's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dmpo {
    /// Temperature (`beta`).
    pub beta: f64,
    /// γ, the discount per turn, from 0 to 1 (`dmpo_gamma`, default 0.7).
    pub gamma: f64,
    /// What each turn's EOS weighs (`dmpo_eos`, default `discounted`).
    pub eos: TurnEos,
}

/// What the EOS of a turn weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEos {
    /// `discounted`: as much as its turn.
    Discounted,
    /// `undiscounted`: 1, as in the released code.
    Undiscounted,
}

/// HPO's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Hpo {
    /// The preference term (`hpo_preference`, default `kto`).
    pub preference: HpoPreference,
    /// Auxiliary rewards, by column of the rows or `flesch_kincaid`, with their weights (`rewards`).
    pub rewards: Vec<Reward>,
    /// γ, weight of the advantage-weighted likelihood (`hpo_gamma`, default 0.1).
    pub gamma: f64,
    /// λ, temperature of the advantages (`hpo_lambda`, default 1).
    pub lambda: f64,
    /// τ, the expectile that the value head learns (`hpo_tau`, default 0.7).
    pub tau: f64,
    /// c, weight of the value head's loss (`hpo_value_weight`, default 1).
    pub value_weight: f64,
    /// Largest weight of a response's likelihood (`hpo_weight_clip`, default 20).
    pub weight_clip: f64,
    /// Which log-prob of a response is weighted (`hpo_logps`, default `token_mean`).
    pub log_probs: Reduction,
    /// Peak learning rate of the value head (`hpo_value_learning_rate`, default 1e-3).
    pub value_learning_rate: f64,
}

/// The preference term of HPO.
#[derive(Debug, Clone, PartialEq)]
pub enum HpoPreference {
    /// `kto`, the paper's own, or `apo_zero_unpaired`.
    Kto(Kto),
    /// A loss of DPO's family.
    Dpo(Dpo),
}

/// An auxiliary reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Reward {
    /// Its column, or the name of one that needs none.
    pub name: String,
    /// Its weight in the sum.
    pub weight: f64,
}

/// How the log-probs of a response's labels become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// `sum`.
    Sum,
    /// `token_mean`.
    TokenMean,
}
