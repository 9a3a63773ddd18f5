//! 7: from log-probs to terms and their gradients; one file per paper.
//!
//! An objective says what it needs to be given ([`Needs`]) and how an answer's labels are weighted, and gives, per term, one value per
//! pair. The trainer adds them up and knows no objective by name. Everything here is f64 on the CPU: a few numbers per pair.

mod cpo;
mod dmpo;
mod dpo;
mod hpo;
mod kto;
mod mdpo;
mod odpo;
mod orpo;
mod sft;
mod simpo;

#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod tests;

use crate::config::{Dpo, Objective, ReferencePoint};
pub use crate::text::pack::{SpanKind, SpanOf};
use tch::{Kind, Tensor};

/// The log-probs of one model for each view of the pairs, f64 `[pairs]`, each label weighted by [`Objective::span_weights`]; 0
/// where a pair lacks the view.
#[derive(Debug)]
pub struct Views {
    /// The chosen answer under the true image.
    pub chosen: Tensor,
    /// The rejected answer under the true image.
    pub rejected: Option<Tensor>,
    /// The chosen answer under the rejected image.
    pub corrupted: Option<Tensor>,
    /// An answer of another example after this prompt, by which KTO estimates a divergence.
    pub mismatched: Option<Tensor>,
}

impl Views {
    /// The views that are there, with the names that metrics give them.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let optional = [("rejected", &self.rejected), ("corrupted", &self.corrupted), ("mismatched", &self.mismatched)];
        let optional = optional.into_iter().filter_map(|(name, view)| Some((name, view.as_ref()?)));
        std::iter::once(("chosen", &self.chosen)).chain(optional)
    }

    /// The same values without a graph.
    pub fn detached(&self) -> Views {
        let detach = |view: &Option<Tensor>| view.as_ref().map(Tensor::detach);
        Views {
            chosen: self.chosen.detach(),
            rejected: detach(&self.rejected),
            corrupted: detach(&self.corrupted),
            mismatched: detach(&self.mismatched),
        }
    }

    fn rejected(&self) -> &Tensor {
        self.rejected.as_ref().expect("an objective that needs the rejected answer was given it")
    }

    fn corrupted(&self) -> &Tensor {
        self.corrupted.as_ref().expect("an objective that needs the rejected image was given it")
    }

    fn mismatched(&self) -> &Tensor {
        self.mismatched.as_ref().expect("an objective that needs mismatched answers was given them")
    }
}

/// One number per pair for each of its answers, f64 `[pairs]`.
#[derive(Debug)]
pub struct Sides {
    /// Of the chosen answer.
    pub chosen: Tensor,
    /// Of the rejected answer.
    pub rejected: Tensor,
}

impl Sides {
    /// That of one of the two answers under the true image, by the name of its view.
    pub fn named(&self, view: &str) -> Option<&Tensor> {
        match view {
            "chosen" => Some(&self.chosen),
            "rejected" => Some(&self.rejected),
            _ => None,
        }
    }

    fn map(&self, of: impl Fn(&Tensor) -> Tensor) -> Sides {
        Sides { chosen: of(&self.chosen), rejected: of(&self.rejected) }
    }

    fn shallow_clone(&self) -> Sides {
        Sides { chosen: self.chosen.shallow_clone(), rejected: self.rejected.shallow_clone() }
    }
}

/// What an objective sees of some pairs.
#[derive(Debug)]
pub struct Pairs {
    /// Under the policy, with a graph where gradients are wanted.
    pub policy: Views,
    /// Under the reference, where the objective needs one.
    pub reference: Option<Views>,
    /// 1 for a pair that has a rejected image, 0 for one without images; its conditional terms are 0, and so are its log-probs.
    pub has_image: Tensor,
    /// 1 for an answer that is there, 0 where a row has one labelled answer only.
    pub has: Sides,
    /// How many labels of each answer count.
    pub tokens: Sides,
    /// The scores of each answer, where the objective needs them (ODPO).
    pub scores: Option<Sides>,
    /// The weighted sum of auxiliary rewards of each answer, where the objective needs it (HPO).
    pub rewards: Option<Sides>,
    /// V(x) of each pair's prompt, a leaf with gradient under training, where the objective needs it (HPO).
    pub values: Option<Tensor>,
}

impl Pairs {
    /// Everything as columns f64 `[pairs]`, which [`Pairs::from_columns`] reads back; which there are depends on the objective's needs alone.
    pub fn columns(&self) -> Vec<&Tensor> {
        let views =
            std::iter::once(&self.policy).chain(&self.reference).flat_map(|views| views.named().map(|(_, view)| view));
        let own = std::iter::once(&self.has_image);
        let sides = [Some(&self.has), Some(&self.tokens), self.scores.as_ref(), self.rewards.as_ref()];
        let sides = sides.into_iter().flatten().flat_map(|sides| [&sides.chosen, &sides.rejected]);
        views.chain(own).chain(sides).chain(&self.values).collect()
    }

    /// The pairs that have these columns, for an objective with these needs.
    pub fn from_columns(needs: Needs, columns: impl IntoIterator<Item = Tensor>) -> Pairs {
        let mut columns = columns.into_iter();
        let mut next = || columns.next().expect("as many columns as `Pairs::columns` gives");
        let mut views = || Views {
            chosen: next(),
            rejected: needs.rejected.then(&mut next),
            corrupted: needs.corrupted.then(&mut next),
            mismatched: needs.mismatched.then(&mut next),
        };
        let policy = views();
        let reference = needs.reference.then(views);
        let has_image = next();
        let mut sides = || Sides { chosen: next(), rejected: next() };
        let (has, tokens) = (sides(), sides());
        let (scores, rewards) = (needs.scores.then(&mut sides), needs.rewards.then(&mut sides));
        Pairs { policy, reference, has_image, has, tokens, scores, rewards, values: needs.value.then(next) }
    }

    /// All pairs of some parts of a step, one part after the other.
    pub fn joined(needs: Needs, parts: &[Pairs]) -> Pairs {
        let parts: Vec<Vec<&Tensor>> = parts.iter().map(Pairs::columns).collect();
        let count = parts.first().map_or(0, Vec::len);
        let column = |i: usize| Tensor::cat(&parts.iter().map(|part| part[i]).collect::<Vec<_>>(), 0);
        Pairs::from_columns(needs, (0..count).map(column))
    }

    /// 1 where a pair has the view of this name ([`Views::named`]), else 0.
    pub fn mask(&self, view: &str) -> Tensor {
        match view {
            "corrupted" => self.has_image.shallow_clone(),
            "rejected" => self.has.rejected.shallow_clone(),
            "mismatched" => self.has_image.ones_like(),
            _ => self.has.chosen.shallow_clone(),
        }
    }
}

/// Sums over the whole optimizer step, which make a term independent of how the step is cut into micro-batches.
#[derive(Debug, Clone, Copy)]
pub struct StepTotals {
    /// Pairs.
    pub pairs: usize,
    /// Labels of the chosen answers.
    pub chosen_tokens: usize,
    /// Sides that are there of all pairs.
    pub answers: usize,
}

impl StepTotals {
    /// What makes a mean over the step's pairs of sums over their answers a mean over its answers.
    fn pairs_per_answer(self) -> f64 {
        self.pairs as f64 / self.answers.max(1) as f64
    }
}

/// One summand of a loss.
#[derive(Debug)]
pub struct Term {
    /// Its name in logs (`loss/<name>`).
    pub name: &'static str,
    /// Its weight in the loss.
    pub weight: f64,
    /// One value per pair, unweighted; the term is their mean over the step.
    pub values: Tensor,
    /// Which pairs have it.
    pub scope: Scope,
}

/// Which pairs a term is about; its value is 0 for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    EveryPair,
    /// Those with images.
    PairsWithImages,
}

/// A figure of its own that an objective logs beside its terms: the mean is `sum / count` over the whole step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Its name in logs.
    pub name: &'static str,
    /// Sum over some pairs or answers.
    pub sum: f64,
    /// How many.
    pub count: f64,
}

/// What an objective needs to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The rejected answer.
    pub rejected: bool,
    /// The chosen answer under the rejected image.
    pub corrupted: bool,
    /// The reference's log-probs.
    pub reference: bool,
    /// Another example's answer after the prompt.
    pub mismatched: bool,
    /// The scores of both answers.
    pub scores: bool,
    /// Auxiliary rewards of the answers.
    pub rewards: bool,
    /// The value head's V(x).
    pub value: bool,
    /// Nothing more than one labelled answer: rows may lack a side.
    pub unpaired: bool,
    /// How the labels of an answer are cut.
    pub spans: Spans,
}

/// How the labels of an answer are cut into spans, each summed and weighted on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spans {
    /// Not at all.
    #[default]
    Whole,
    /// By the assistant's turns.
    Turns {
        /// Where each turn's EOS belongs.
        eos: EosSpan,
    },
    /// In two, behind as many labels as the shorter answer of the pair has.
    SharedLength,
}

/// Where the EOS of a turn belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EosSpan {
    /// To its turn.
    WithTurn,
    /// To a span of its own, [`SpanKind::Eos`].
    Apart,
}

impl Objective {
    /// What it needs to be given.
    pub fn needs(&self) -> Needs {
        match self {
            Objective::Dpo(settings) => dpo::needs(settings),
            Objective::Mdpo(settings) => mdpo::needs(settings),
            Objective::Simpo(_) | Objective::Orpo { .. } | Objective::Cpo(_) => simpo::needs(),
            Objective::Kto(settings) => kto::needs(settings),
            Objective::Odpo(_) => odpo::needs(),
            Objective::Dmpo(settings) => dmpo::needs(settings),
            Objective::Hpo(settings) => hpo::needs(settings),
            Objective::Sft => Needs::default(),
        }
    }

    /// Whether its value for one pair depends on the others of the optimizer step: then [`Self::terms`] wants all of them at once.
    pub fn needs_whole_step(&self) -> bool {
        match self {
            Objective::Dpo(settings) => dpo::needs_whole_step(settings),
            Objective::Kto(settings) => settings.point == ReferencePoint::Mismatched,
            Objective::Hpo(settings) => hpo::needs_whole_step(settings),
            _ => false,
        }
    }

    /// The weight of each span of an answer in its log-prob, the spans being those that [`Needs::spans`] asks for, in order;
    /// `other_labels` is how many labels the pair's other answer has.
    pub fn span_weights(&self, spans: &[SpanOf], other_labels: usize) -> Vec<f64> {
        match self {
            Objective::Dmpo(settings) => dmpo::span_weights(settings, spans),
            Objective::Dpo(Dpo { ld_alpha: Some(alpha), .. }) => dpo::span_weights(*alpha, spans, other_labels),
            _ => vec![1.0; spans.len()],
        }
    }

    /// Its terms for some pairs of a step.
    pub fn terms(&self, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
        match self {
            Objective::Dpo(settings) => dpo::terms(settings, pairs, step),
            Objective::Mdpo(settings) => mdpo::terms(settings, pairs),
            Objective::Simpo(settings) => simpo::terms(settings, pairs, step),
            Objective::Orpo { beta } => orpo::terms(*beta, pairs, step),
            Objective::Cpo(settings) => cpo::terms(settings, pairs, step),
            Objective::Kto(settings) => kto::terms(settings, pairs, step),
            Objective::Odpo(settings) => odpo::terms(settings, pairs),
            Objective::Dmpo(settings) => dmpo::terms(settings, pairs),
            Objective::Hpo(settings) => hpo::terms(settings, pairs, step),
            Objective::Sft => sft::terms(pairs, step),
        }
    }

    /// What it logs of some pairs beside its terms; of all pairs of a step where [`Self::needs_whole_step`].
    pub fn observations(&self, pairs: &Pairs) -> Vec<Observation> {
        match self {
            Objective::Kto(settings) => kto::observations(settings, pairs),
            Objective::Odpo(settings) => odpo::observations(settings, pairs),
            Objective::Hpo(settings) => hpo::observations(settings, pairs),
            _ => Vec::new(),
        }
    }

    /// The implicit reward of each view without a graph: β times the log-ratio; where there is no reference, β times the log-prob that stands in
    /// its place, and then of the two answers only. None for an objective that knows no reward.
    pub fn rewards(&self, pairs: &Pairs) -> Option<Views> {
        let beta = self.beta()?;
        let Some(reference) = &pairs.reference else {
            let [chosen, rejected] = match self {
                Objective::Simpo(_) | Objective::Orpo { .. } => simpo::mean_log_probs(pairs),
                _ => [pairs.policy.chosen.shallow_clone(), pairs.policy.rejected().shallow_clone()],
            };
            let reward = |log_prob: Tensor| log_prob.detach() * beta;
            let rejected = Some(reward(rejected));
            return Some(Views { chosen: reward(chosen), rejected, corrupted: None, mismatched: None });
        };
        let of = |policy: &Tensor, reference: &Tensor| (policy.detach() - reference.detach()) * beta;
        let both =
            |policy: &Option<Tensor>, reference: &Option<Tensor>| Some(of(policy.as_ref()?, reference.as_ref()?));
        Some(Views {
            chosen: of(&pairs.policy.chosen, &reference.chosen),
            rejected: both(&pairs.policy.rejected, &reference.rejected),
            corrupted: both(&pairs.policy.corrupted, &reference.corrupted),
            mismatched: both(&pairs.policy.mismatched, &reference.mismatched),
        })
    }

    /// The loss summed over some pairs if the policy were the reference, which the first step of a fresh adapter must show; none without a
    /// reference.
    pub fn loss_at_reference(&self, pairs: &Pairs, step: StepTotals) -> Option<f64> {
        let reference = pairs.reference.as_ref()?;
        let clone = |sides: &Option<Sides>| sides.as_ref().map(Sides::shallow_clone);
        let same = Pairs {
            policy: reference.detached(),
            reference: Some(reference.detached()),
            has_image: pairs.has_image.shallow_clone(),
            has: pairs.has.shallow_clone(),
            tokens: pairs.tokens.shallow_clone(),
            scores: clone(&pairs.scores),
            rewards: clone(&pairs.rewards),
            values: pairs.values.as_ref().map(Tensor::detach),
        };
        let sum = |term: Term| term.weight * term.values.sum(Kind::Double).double_value(&[]);
        Some(self.terms(&same, step).into_iter().map(sum).sum())
    }

    /// β, which turns log-ratios into rewards; none for an objective that knows no reward.
    pub fn beta(&self) -> Option<f64> {
        match self {
            Objective::Dpo(settings) => Some(settings.beta),
            Objective::Mdpo(settings) => Some(settings.beta),
            Objective::Simpo(settings) => Some(settings.beta),
            Objective::Orpo { beta } => Some(*beta),
            Objective::Cpo(settings) => Some(settings.beta),
            Objective::Kto(settings) => Some(settings.beta),
            Objective::Odpo(settings) => Some(settings.beta),
            Objective::Dmpo(settings) => Some(settings.beta),
            Objective::Hpo(settings) => Some(hpo::beta(settings)),
            Objective::Sft => None,
        }
    }
}

/// log π/π_ref of a view.
fn log_ratio(pairs: &Pairs, view: impl Fn(&Views) -> &Tensor) -> Tensor {
    let reference = pairs.reference.as_ref().expect("an objective that needs the reference was given it");
    view(&pairs.policy) - view(reference)
}

/// −log σ(x), which is softplus(−x); finite for any finite x.
fn negative_log_sigmoid(x: &Tensor) -> Tensor {
    x.log_sigmoid().neg()
}
