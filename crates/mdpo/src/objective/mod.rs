//! 7: from log-probs to terms and their gradients; one file per paper.
//!
//! An objective says which views of a pair it needs and gives, per term, one value per pair. The trainer adds them up and knows no
//! objective by name. Everything here is f64 on the CPU: a few numbers per pair.

mod dpo;
mod mdpo;
mod sft;

use crate::config;
use tch::{Kind, Tensor};

/// The log-probs of one model for each view of the pairs, f64 `[pairs]`.
#[derive(Debug)]
pub struct Views {
    /// The chosen answer under the true image.
    pub chosen: Tensor,
    /// The rejected answer under the true image.
    pub rejected: Option<Tensor>,
    /// The chosen answer under the rejected image; 0 where a pair has none.
    pub corrupted: Option<Tensor>,
}

impl Views {
    /// The views that are there, with the names that metrics give them.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let optional = [("rejected", self.rejected.as_ref()), ("corrupted", self.corrupted.as_ref())];
        std::iter::once(("chosen", &self.chosen)).chain(optional.into_iter().filter_map(|(n, v)| Some((n, v?))))
    }

    /// The same values without a graph.
    pub fn detached(&self) -> Views {
        let detach = |view: &Option<Tensor>| view.as_ref().map(Tensor::detach);
        Views { chosen: self.chosen.detach(), rejected: detach(&self.rejected), corrupted: detach(&self.corrupted) }
    }

    fn rejected(&self) -> &Tensor {
        self.rejected.as_ref().expect("an objective that needs the rejected answer was given it")
    }

    fn corrupted(&self) -> &Tensor {
        self.corrupted.as_ref().expect("an objective that needs the rejected image was given it")
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
}

/// Sums over the whole optimizer step, which make a term independent of how the step is cut into micro-batches.
#[derive(Debug, Clone, Copy)]
pub struct StepTotals {
    /// Pairs.
    pub pairs: usize,
    /// Labels of the chosen answers.
    pub chosen_tokens: usize,
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

/// What an objective needs to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The rejected answer.
    pub rejected: bool,
    /// The chosen answer under the rejected image.
    pub corrupted: bool,
    /// The reference's log-probs.
    pub reference: bool,
}

impl config::Objective {
    /// What it needs to be given.
    pub fn needs(&self) -> Needs {
        match self {
            config::Objective::Dpo { .. } => Needs { rejected: true, corrupted: false, reference: true },
            config::Objective::Mdpo(settings) => mdpo::needs(settings),
            config::Objective::Sft => Needs::default(),
        }
    }

    /// Its terms for some pairs of a step.
    pub fn terms(&self, pairs: &Pairs, step: StepTotals) -> Vec<Term> {
        match self {
            config::Objective::Dpo { beta } => dpo::terms(*beta, pairs),
            config::Objective::Mdpo(settings) => mdpo::terms(settings, pairs),
            config::Objective::Sft => sft::terms(pairs, step),
        }
    }

    /// The loss summed over some pairs if the policy were the reference, which the first step of a fresh adapter must show.
    pub fn loss_at_reference(&self, pairs: &Pairs, step: StepTotals) -> Option<f64> {
        let reference = pairs.reference.as_ref()?;
        let same = Pairs {
            policy: reference.detached(),
            reference: Some(reference.detached()),
            has_image: pairs.has_image.shallow_clone(),
        };
        let sum = |term: Term| term.weight * term.values.sum(Kind::Double).double_value(&[]);
        Some(self.terms(&same, step).into_iter().map(sum).sum())
    }

    /// β, which turns log-ratios into rewards; none for objectives without a reference.
    pub fn beta(&self) -> Option<f64> {
        match self {
            config::Objective::Dpo { beta } => Some(*beta),
            config::Objective::Mdpo(settings) => Some(settings.beta),
            config::Objective::Sft => None,
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

#[cfg(test)]
pub(crate) mod golden {
    //! The shared batch of two pairs whose values were worked out by hand in plain floats, β = 0.1.

    use super::*;

    pub(crate) fn vector(values: [f64; 2]) -> Tensor {
        Tensor::from_slice(&values)
    }

    /// The two pairs with a policy that equals the reference.
    pub(crate) fn equal_pairs() -> Pairs {
        let Pairs { reference, has_image, .. } = pairs();
        let reference = reference.expect("golden pairs have a reference");
        Pairs { policy: reference.detached(), reference: Some(reference), has_image }
    }

    /// The two pairs; the policy's log-probs are leaves.
    pub(crate) fn pairs() -> Pairs {
        let leaf = |values| vector(values).set_requires_grad(true);
        let policy = Views {
            chosen: leaf([-40.0, -33.5]),
            rejected: Some(leaf([-52.0, -30.25])),
            corrupted: Some(leaf([-61.0, -47.0])),
        };
        let reference = Views {
            chosen: vector([-42.0, -31.0]),
            rejected: Some(vector([-50.0, -31.5])),
            corrupted: Some(vector([-60.0, -44.25])),
        };
        Pairs { policy, reference: Some(reference), has_image: vector([1.0, 1.0]) }
    }

    pub(crate) fn assert_close(found: &Tensor, expected: [f64; 2]) {
        for (i, expected) in expected.into_iter().enumerate() {
            let found = found.double_value(&[i as i64]);
            assert!((found - expected).abs() < 1e-10 * expected.abs().max(1.0), "pair {i}: {found} ≠ {expected}");
        }
    }

    /// The weighted sum of the terms, per pair.
    pub(crate) fn total(terms: &[Term]) -> Tensor {
        terms.iter().map(|term| &term.values * term.weight).reduce(|a, b| a + b).expect("at least one term")
    }

    /// Compares the gradient of every view with central differences.
    pub(crate) fn assert_gradients(objective: &config::Objective, step: StepTotals) {
        let loss = |pairs: &Pairs| total(&objective.terms(pairs, step)).sum(Kind::Double);
        let analytic = pairs();
        loss(&analytic).backward();
        for (name, view) in analytic.policy.named() {
            let gradient = view.grad();
            for pair in 0..2 {
                let shifted = |by: f64| {
                    let moved = pairs();
                    let (_, view) = moved.policy.named().find(|(n, _)| *n == name).expect("the same views");
                    tch::no_grad(|| {
                        let mut entry = view.get(pair);
                        let _ = entry.g_add_scalar_(by);
                    });
                    tch::no_grad(|| loss(&moved).double_value(&[]))
                };
                let numeric = (shifted(1e-4) - shifted(-1e-4)) / 2e-4;
                let found = if gradient.defined() { gradient.double_value(&[pair]) } else { 0.0 };
                assert!((found - numeric).abs() < 1e-7, "{name}, pair {pair}: {found} ≠ {numeric}");
            }
        }
    }
}
