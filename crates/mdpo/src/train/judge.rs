//! From the log-probs of micro-batches to the loss, its gradients and what is logged of them: what stands between the model's forward and
//! backward pass. The same few calls for every objective.

use super::{Metrics, Micro, Places};
use crate::config::Objective;
use crate::objective::{Needs, Pairs, Scope, Sides, Spans, StepTotals, Views};
use crate::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// What the models said of a micro-batch, on the CPU in f64.
#[derive(Debug)]
pub struct Found<'a> {
    /// The micro-batch.
    pub micro: &'a Micro,
    /// The policy's log-prob of each span in nats, `[spans]`.
    pub policy: Tensor,
    /// The reference's, where the objective needs one.
    pub reference: Option<Tensor>,
    /// The value head's estimate for the prompt of each pair, where the objective needs one, `[pairs]`.
    pub values: Option<Tensor>,
}

/// What the objective says.
#[derive(Debug)]
pub struct Judged {
    /// The loss, summed over all pairs.
    pub loss: f64,
    /// The sum that it would have if the policy were the reference.
    pub at_reference: Option<f64>,
    /// Everything that is logged of it.
    pub metrics: Metrics,
    /// For each micro-batch, the gradient of the step's loss.
    pub pulls: Vec<Pull>,
}

/// Gradient of the step's loss with respect to what a micro-batch's forward pass gave.
#[derive(Debug)]
pub struct Pull {
    /// The log-prob of each span, `[spans]`.
    pub spans: Tensor,
    /// The value of each pair, `[pairs]`.
    pub values: Option<Tensor>,
}

/// A micro-batch of a step whose pairs are judged together.
#[derive(Debug)]
pub enum Part<'a> {
    /// One that was run here.
    Here(Found<'a>),
    /// One that another rank has run, by the columns of its pairs ([`columns`]).
    Elsewhere(Vec<Vec<f64>>),
}

/// What an objective sees of a micro-batch's pairs, as plain numbers for other ranks.
pub fn columns(objective: &Objective, found: &Found) -> Vec<Vec<f64>> {
    let pairs = pairs(objective, found, &found.policy, found.values.as_ref());
    let plain = |column: &&Tensor| Vec::<f64>::try_from(column.detach()).expect("a column is one row of numbers");
    pairs.columns().iter().map(plain).collect()
}

/// Judges one micro-batch by itself.
///
/// # Errors
/// A loss that is not finite.
pub fn judge(objective: &Objective, totals: StepTotals, found: Found) -> Result<Judged> {
    judge_together(objective, totals, &[Part::Here(found)])
}

/// Judges all micro-batches of a step together, for an objective that compares pairs with each other: in their order, so that the value
/// depends neither on how the step is cut nor on who ran which part. There is a pull for each part that was run here.
///
/// # Errors
/// A loss that is not finite.
pub fn judge_together(objective: &Objective, totals: StepTotals, parts: &[Part]) -> Result<Judged> {
    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    let (mut leaves, mut seen) = (Vec::new(), Vec::new());
    for part in parts {
        seen.push(match part {
            Part::Elsewhere(columns) => {
                Pairs::from_columns(objective.needs(), columns.iter().map(|column| Tensor::from_slice(column)))
            }
            Part::Here(found) => {
                let (sums, values) = (leaf(&found.policy), found.values.as_ref().map(leaf));
                let pairs = pairs(objective, found, &sums, values.as_ref());
                leaves.push((sums, values));
                pairs
            }
        });
    }
    let pairs = Pairs::joined(objective.needs(), &seen);
    let terms = objective.terms(&pairs, totals);
    let total = terms.iter().map(|term| &term.values * term.weight).reduce(|a, b| a + b);
    let total = total.expect("a valid objective has at least one term");
    let loss = total.sum(Kind::Double);
    let loss_sum = loss.double_value(&[]);
    if !loss_sum.is_finite() {
        return Err(not_finite(&pairs));
    }
    if !leaves.is_empty() {
        (&loss / totals.pairs as f64).backward();
    }
    let gradient = |leaf: &Tensor| match leaf.grad() {
        gradient if gradient.defined() => gradient,
        _ => leaf.zeros_like(),
    };
    let pull = |(sums, values): &(Tensor, Option<Tensor>)| Pull {
        spans: gradient(sums),
        values: values.as_ref().map(gradient),
    };

    let mut metrics = Metrics::default();
    metrics.add_all("loss", &total.detach());
    for term in &terms {
        let (name, values) = (format!("loss/{}", term.name), term.values.detach());
        match term.scope {
            Scope::EveryPair => metrics.add_all(name, &values),
            Scope::PairsWithImages => metrics.add_where(name, &values, &pairs.has_image),
        }
    }
    for seen in objective.observations(&pairs) {
        metrics.add(seen.name, seen.sum, seen.count);
    }
    observe(&mut metrics, objective, &pairs);
    Ok(Judged {
        loss: loss_sum,
        at_reference: objective.loss_at_reference(&pairs, totals),
        metrics,
        pulls: leaves.iter().map(pull).collect(),
    })
}

/// The pairs of a micro-batch, with the policy's sums and the value head's estimates as leaves where gradients are wanted.
fn pairs(objective: &Objective, found: &Found, sums: &Tensor, values: Option<&Tensor>) -> Pairs {
    let (needs, micro) = (objective.needs(), found.micro);
    let per_pair = |of: &dyn Fn(&Places) -> f64| Tensor::from_slice(&micro.pairs.iter().map(of).collect::<Vec<f64>>());
    let sides = |of: &dyn Fn(&Places, Side) -> f64| Sides {
        chosen: per_pair(&|pair| of(pair, Side::Chosen)),
        rejected: per_pair(&|pair| of(pair, Side::Rejected)),
    };
    let flag = |there: bool| f64::from(u8::from(there));
    let number = |numbers: Option<[f64; 2]>, side: Side| numbers.map_or(0.0, |numbers| numbers[side as usize]);
    Pairs {
        policy: views(objective, micro, sums, needs, Seen::Policy),
        reference: needs.reference.then(|| {
            let sums = found.reference.as_ref().expect("an objective that needs the reference was given it");
            views(objective, micro, sums, needs, Seen::Reference)
        }),
        has_image: per_pair(&|pair| flag(pair.corrupted.is_some())),
        has: sides(&|pair, side| flag(side.place(pair).is_some())),
        tokens: sides(&|pair, side| side.place(pair).map_or(0.0, |place| micro.labels(place) as f64)),
        scores: needs.scores.then(|| sides(&|pair, side| number(pair.scores, side))),
        rewards: needs.rewards.then(|| sides(&|pair, side| number(pair.rewards, side))),
        values: values.map(Tensor::shallow_clone),
    }
}

/// An answer of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Chosen = 0,
    Rejected = 1,
}

impl Side {
    fn place(self, pair: &Places) -> Option<usize> {
        match self {
            Side::Chosen => pair.chosen,
            Side::Rejected => pair.rejected,
        }
    }
}

/// Whose log-probs are looked at: with independent rejected images each model has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Policy,
    Reference,
}

/// Finds the answer that is looked at of a pair, and the pair's other one.
type View<'a> = &'a dyn Fn(&Places) -> Option<(usize, Option<usize>)>;

/// The views of a micro-batch's pairs: spans in the objective's weights, summed; 0 where a pair has no such view.
fn views(objective: &Objective, micro: &Micro, sums: &Tensor, needs: Needs, seen: Seen) -> Views {
    let ranges = micro.batch.packed.span_ranges();
    let (rows, columns) = (micro.pairs.len(), micro.batch.packed.span_count());
    let view = |place: View<'_>| {
        let mut weights = vec![0.0; rows * columns];
        for (row, pair) in micro.pairs.iter().enumerate() {
            let Some((own, other)) = place(pair) else { continue };
            let spans = &micro.batch.packed.responses[own].spans;
            let found = objective.span_weights(spans, other.map_or(usize::MAX, |other| micro.labels(other)));
            let start = row * columns + ranges[own].start;
            weights[start..start + found.len()].copy_from_slice(&found);
        }
        Tensor::from_slice(&weights).view([rows as i64, columns as i64]).mv(sums)
    };
    let corrupted = |pair: &Places| match seen {
        Seen::Reference if pair.corrupted_of_reference.is_some() => pair.corrupted_of_reference,
        _ => pair.corrupted,
    };
    Views {
        chosen: view(&|pair| Some((pair.chosen?, pair.rejected))),
        rejected: needs.rejected.then(|| view(&|pair| Some((pair.rejected?, pair.chosen)))),
        corrupted: needs.corrupted.then(|| view(&|pair| Some((corrupted(pair)?, pair.rejected)))),
        mismatched: needs.mismatched.then(|| view(&|pair| Some((pair.mismatched?, None)))),
    }
}

/// Rewards, margins and accuracies of every view with TRL's names; `corrupted`, image margins and `kl` are mdpo's.
fn observe(metrics: &mut Metrics, objective: &Objective, pairs: &Pairs) {
    let reference: BTreeMap<_, _> = pairs.reference.iter().flat_map(Views::named).collect();
    for (name, values) in pairs.policy.named() {
        let (values, mask) = (values.detach(), pairs.mask(name));
        metrics.add_where(format!("logps/{name}"), &values, &mask);
        if let (Some(reference), Some(tokens)) = (reference.get(name), pairs.tokens.named(name)) {
            metrics.add_where("kl", &divergence(&(values - *reference), tokens), &mask);
        }
    }
    let Some(rewards) = objective.rewards(pairs) else { return };
    for (name, values) in rewards.named() {
        metrics.add_where(format!("rewards/{name}"), values, &pairs.mask(name));
    }
    for (other, prefix) in [("rejected", ""), ("corrupted", "image_")] {
        let Some((_, values)) = rewards.named().find(|(name, _)| *name == other) else { continue };
        let (margin, mask) = (&rewards.chosen - values, &pairs.has.chosen * pairs.mask(other));
        metrics.add_where(format!("rewards/{prefix}margins"), &margin, &mask);
        metrics.add_where(format!("rewards/{prefix}accuracies"), &margin.gt(0.0).to_kind(Kind::Double), &mask);
    }
}

/// The mean reward of every turn, undiscounted, where the objective looks at turns.
pub fn observe_turns(metrics: &mut Metrics, objective: &Objective, found: &Found) {
    let (Some(beta), Spans::Turns { .. }) = (objective.beta(), objective.needs().spans) else { return };
    let Found { micro, policy, reference: Some(reference), .. } = found else { return };
    let ratio = (policy.detach() - reference) * beta;
    for pair in &micro.pairs {
        for (name, place) in [("chosen", pair.chosen), ("rejected", pair.rejected)] {
            let turns = place.map_or(Vec::new(), |place| micro.turns(&ratio, place));
            for (turn, reward) in turns.into_iter().enumerate() {
                metrics.add(format!("rewards/{name}/turn_{turn}"), reward, 1.0);
            }
        }
    }
}

/// An estimate of KL(π ‖ π_ref) over an answer of n labels in nats: n (e^x − 1 − x) with x the mean of log π_ref − log π of its labels
/// (Schulman's k3 on the mean log-ratio; never negative, 0 where both agree).
fn divergence(log_ratio: &Tensor, tokens: &Tensor) -> Tensor {
    let x = (log_ratio / tokens.clamp_min(1.0)).neg();
    (x.expm1() - x) * tokens
}

fn not_finite(pairs: &Pairs) -> Error {
    let finite = |views: &Views| views.named().all(|(_, sums)| sums.isfinite().all().int64_value(&[]) == 1);
    let (policy, reference) = (finite(&pairs.policy), pairs.reference.as_ref().is_none_or(finite));
    let whose = match (policy, reference) {
        (false, _) => "the policy's log-probs are not finite",
        (true, false) => "the reference's log-probs are not finite",
        (true, true) => "the log-probs are finite, their difference overflows",
    };
    Error::at("loss", format!("expected a finite number, found NaN or infinity: {whose}"))
        .hint("lower `learning_rate`, keep `max_grad_norm` at 1, or use `bf16: true` instead of `fp16: true`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_equal_labels_and_never_negative() {
        let found = divergence(&Tensor::from_slice(&[0.0, 4.0, -4.0]), &Tensor::from_slice(&[3.0, 2.0, 2.0]));
        // Two labels whose log-ratios are both 2: 2 (e^−2 − 1 + 2) and, the other way round, 2 (e^2 − 1 − 2).
        let expected = [0.0, 2.0 * ((-2.0f64).exp() + 1.0), 2.0 * (2.0f64.exp() - 3.0)];
        for (i, expected) in expected.into_iter().enumerate() {
            assert!((found.double_value(&[i as i64]) - expected).abs() < 1e-12);
        }
    }
}
