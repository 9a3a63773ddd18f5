//! One micro-batch forward and backward: the same few calls for every objective.

use super::stage::{Clock, Stage};
use super::{FeatureCache, KnownReference, Metrics, Micro, Missing};
use crate::config::{GradientCheckpointing, Objective};
use crate::logprob::{Gradients, LogProbs, log_probs};
use crate::model::language::Keep;
use crate::model::{DeviceBatch, Model, ModelRun};
use crate::nn::{Pass, Role};
use crate::objective::{Needs, Pairs, Scope, StepTotals, Views};
use crate::{Error, Result, optim};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// How a step is computed.
#[derive(Debug, Clone, Copy)]
pub struct StepPlan<'a> {
    /// What is minimised.
    pub objective: &'a Objective,
    /// What is kept of the forward pass.
    pub checkpointing: GradientCheckpointing,
    /// Whether the vision tower is trained, so that its features need a graph and the reference its own.
    pub tower: Tower,
    /// Sums over the whole optimizer step.
    pub totals: StepTotals,
    /// Seed of this micro-batch's dropout.
    pub dropout: Option<u64>,
}

/// Whether the vision tower moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tower {
    /// It does not: one forward serves policy and reference.
    Frozen,
    /// It does.
    Trained,
}

/// Summed log-probs of a micro-batch, f64 `[responses]`.
#[derive(Debug)]
pub struct Evaluated {
    /// In nats, in the order of the packed responses.
    pub sums: Tensor,
}

/// The log-probs of a micro-batch without gradients.
pub fn evaluate(model: &Model, micro: &Micro, role: Role) -> Evaluated {
    let pass = Pass::of(role);
    let features = tch::no_grad(|| model.features(&micro.images.iter().collect::<Vec<_>>(), pass));
    Evaluated { sums: sums(model, &micro.batch, features.as_ref(), pass) }
}

fn sums(model: &Model, batch: &DeviceBatch, features: Option<&Tensor>, pass: Pass) -> Tensor {
    let run = model.forward(batch, features, pass, Keep::Nothing);
    let head = tch::no_grad(|| model.language.head(pass));
    log_probs(run.hidden(), &head, &batch.packed, Gradients::Unwanted).sums()
}

/// Computes what is missing of `known`, without gradients, in the role of the reference; `features` are those of all images of the micro-batch,
/// where they are the reference's too.
pub fn complete(model: &Model, micro: &Micro, role: Role, features: Option<&Tensor>, known: &mut KnownReference) {
    let Some(Missing { packed, images }) = known.missing(&micro.batch.packed) else { return };
    let pass = Pass::of(role);
    let features = match features {
        Some(features) => {
            let rows: Vec<i64> = images.iter().map(|&image| image as i64).collect();
            (!rows.is_empty())
                .then(|| features.index_select(0, &Tensor::from_slice(&rows).to_device(features.device())))
        }
        None => {
            let images: Vec<_> = images.iter().map(|&image| &micro.images[image]).collect();
            tch::no_grad(|| model.features(&images, pass))
        }
    };
    let batch = DeviceBatch::new(packed, model.device);
    known.fill(&micro.batch.packed, &sums(model, &batch, features.as_ref(), pass));
}

/// What a micro-batch gave.
#[derive(Debug)]
pub struct StepResult {
    /// The loss, summed over its pairs.
    pub loss: f64,
    /// The sum that it would have if the policy were the reference.
    pub at_reference: Option<f64>,
    /// Everything that is logged.
    pub metrics: Metrics,
    /// How many images met the tower.
    pub images: usize,
}

/// Forward and backward of one micro-batch; gradients, times [`optim::loss_scale`], are added to the leaves. What is not `known` of the reference is computed.
/// What the tower gives for images is taken from, and added to, `images`.
pub fn step(
    model: &Model,
    micro: &Micro,
    plan: StepPlan,
    known: &mut KnownReference,
    images: &mut FeatureCache,
    clock: &mut Clock,
) -> Result<StepResult> {
    let policy = Pass { role: Role::Policy, dropout: plan.dropout };
    let frozen = Pass::of(Role::Reference);
    let (features, towered) = match plan.tower {
        Tower::Frozen => images.features(model, micro, frozen)?,
        Tower::Trained => (model.features(&micro.images.iter().collect::<Vec<_>>(), policy), micro.images.len()),
    };
    clock.lap(Stage::Vision);
    let needs = plan.objective.needs();
    let reference = needs.reference.then(|| {
        let shared = features.as_ref().filter(|_| plan.tower == Tower::Frozen);
        complete(model, micro, Role::Reference, shared, known);
        known.sums()
    });
    clock.lap(Stage::Reference);
    let keep = match plan.checkpointing {
        GradientCheckpointing::None => Keep::Graph,
        GradientCheckpointing::Layers => Keep::LayerInputs,
    };
    let run = model.forward(&micro.batch, features.as_ref(), policy, keep);
    let head = model.language.head(policy);
    let found = log_probs(run.hidden(), &head.detach(), &micro.batch.packed, Gradients::Wanted);
    clock.lap(Stage::Forward);
    let sums = found.sums().set_requires_grad(true);
    let pairs = Pairs {
        policy: views(&sums, micro, needs),
        reference: reference.as_ref().map(|sums| views(sums, micro, needs)),
        has_image: micro.has_image(),
    };
    let terms = plan.objective.terms(&pairs, plan.totals);
    let total = terms.iter().map(|term| &term.values * term.weight).reduce(|a, b| a + b);
    let total = total.expect("a valid objective has at least one term");
    let loss = total.sum(Kind::Double);
    let loss_sum = loss.double_value(&[]);
    if !loss_sum.is_finite() {
        return Err(not_finite(&sums, reference.as_ref()));
    }
    (&loss / plan.totals.pairs as f64).backward();
    backward(model, micro, run, &found, &(sums.grad() * optim::loss_scale(model.kind())), &head);

    let expected = plan.objective.loss_at_reference(&pairs, plan.totals);
    let mut metrics = Metrics::default();
    metrics.add_all("loss", &total.detach());
    for term in &terms {
        let values = term.values.detach();
        match term.scope {
            Scope::EveryPair => metrics.add_all(format!("loss/{}", term.name), &values),
            Scope::PairsWithImages => metrics.add_where(format!("loss/{}", term.name), &values, &pairs.has_image),
        }
    }
    observe(&mut metrics, &pairs, plan.objective.beta());
    observe_tokens(&mut metrics, &found, micro);
    clock.lap(Stage::Backward);
    Ok(StepResult { loss: loss_sum, at_reference: expected, metrics, images: towered })
}

fn backward(model: &Model, micro: &Micro, run: ModelRun, found: &LogProbs, gradient: &Tensor, head: &Tensor) {
    let hidden = run.hidden().shallow_clone();
    if model.language.head_is_trained() {
        found.push_into_head(gradient, &hidden, head, &micro.batch.packed);
    }
    model.backward(&micro.batch, run, &found.pull_back(gradient, &hidden));
}

/// The views of all pairs; a pair without images has 0 under the rejected image.
fn views(sums: &Tensor, micro: &Micro, needs: Needs) -> Views {
    let select = |place: &dyn Fn(&super::Places) -> Option<usize>| {
        let rows: Vec<i64> = micro.pairs.iter().map(|pair| place(pair).map_or(-1, |row| row as i64)).collect();
        if rows.iter().all(|&row| row < 0) {
            return None;
        }
        let rows = Tensor::from_slice(&rows);
        let there = rows.ge(0).to_kind(Kind::Double);
        Some(sums.index_select(0, &rows.clamp_min(0)) * there)
    };
    Views {
        chosen: select(&|pair| Some(pair.chosen)).expect("every pair has a chosen answer"),
        rejected: select(&|pair| pair.rejected),
        corrupted: select(&|pair| pair.corrupted).or_else(|| {
            // Rows without images only: the objective still finds the view it asked for.
            let zeros = || Tensor::zeros([micro.pairs.len() as i64], (Kind::Double, tch::Device::Cpu));
            needs.corrupted.then(zeros)
        }),
    }
}

/// Rewards, margins and accuracies of every view, with TRL's names; `corrupted` is mDPO's.
fn observe(metrics: &mut Metrics, pairs: &Pairs, beta: Option<f64>) {
    let mut rewards = BTreeMap::new();
    let reference: BTreeMap<_, _> = pairs.reference.iter().flat_map(Views::named).collect();
    let conditional = pairs.has_image.sum(Kind::Double).double_value(&[]) > 0.0;
    for (name, values) in pairs.policy.named().filter(|(name, _)| *name != "corrupted" || conditional) {
        let values = values.detach();
        let mut add = |metric: String, values: &Tensor| match name {
            "corrupted" => metrics.add_where(metric, values, &pairs.has_image),
            _ => metrics.add_all(metric, values),
        };
        add(format!("logps/{name}"), &values);
        if let (Some(beta), Some(reference)) = (beta, reference.get(name)) {
            let reward = (values - *reference) * beta;
            add(format!("rewards/{name}"), &reward);
            rewards.insert(name, reward);
        }
    }
    let positive = |margin: &Tensor| margin.gt(0.0).to_kind(Kind::Double);
    if let (Some(chosen), Some(rejected)) = (rewards.get("chosen"), rewards.get("rejected")) {
        let margin = chosen - rejected;
        metrics.add_all("rewards/margins", &margin);
        metrics.add_all("rewards/accuracies", &positive(&margin));
    }
    if let (Some(chosen), Some(corrupted)) = (rewards.get("chosen"), rewards.get("corrupted")) {
        let margin = chosen - corrupted;
        metrics.add_where("rewards/image_margins", &margin, &pairs.has_image);
        metrics.add_where("rewards/image_accuracies", &positive(&margin), &pairs.has_image);
    }
}

/// Entropy, token accuracy, mean logits and lengths of chosen and rejected.
fn observe_tokens(metrics: &mut Metrics, found: &LogProbs, micro: &Micro) {
    let Some(statistics) = &found.statistics else { return };
    let lengths: Vec<i64> = found.lengths.iter().map(|&n| n as i64).collect();
    let split = |tensor: &Tensor| tensor.to_device(tch::Device::Cpu).split_with_sizes(lengths.as_slice(), 0);
    let (entropy, top1, logits) = (split(&statistics.entropy), split(&statistics.top1), split(&statistics.mean_logit));
    for pair in &micro.pairs {
        for (name, place) in [("chosen", Some(pair.chosen)), ("rejected", pair.rejected)] {
            let Some(place) = place else { continue };
            metrics.add_all("entropy", &entropy[place]);
            metrics.add_all("mean_token_accuracy", &top1[place]);
            metrics.add_all(format!("logits/{name}"), &logits[place]);
            metrics.add(format!("lengths/{name}"), micro.labels(place) as f64, 1.0);
        }
    }
}

fn not_finite(policy: &Tensor, reference: Option<&Tensor>) -> Error {
    let finite = |sums: &Tensor| sums.isfinite().all().int64_value(&[]) == 1;
    let whose = match (finite(policy), reference.map(finite)) {
        (false, _) => "the policy's log-probs are not finite",
        (true, Some(false)) => "the reference's log-probs are not finite",
        _ => "the log-probs are finite, their difference overflows",
    };
    Error::at("loss", format!("expected a finite number, found NaN or infinity: {whose}"))
        .hint("lower `learning_rate`, keep `max_grad_norm` at 1, or use `bf16: true` instead of `fp16: true`")
}
