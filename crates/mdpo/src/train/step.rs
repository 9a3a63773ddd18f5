//! One micro-batch forward and backward: the same few calls for every objective.
//!
//! [`ready`] sees to images and reference, [`forward`] runs the policy, [`judge`] turns its log-probs into loss and gradients, [`backward`]
//! pushes those into the weights. An objective that compares all pairs of a step with each other has every micro-batch run forward once more,
//! without a graph, before the first is run with one ([`look_ahead`], [`judge_ahead`]).

use super::judge::{Found, Judged, Part, Pull, judge, judge_together, observe_turns};
use super::stage::{Clock, Stage};
use super::{FeatureCache, KnownReference, Metrics, Micro, Missing, columns};
use crate::config::{GradientCheckpointing, Objective};
use crate::logprob::{Gradients, LogProbs, log_probs};
use crate::model::language::Keep;
use crate::model::{DeviceBatch, Model, ModelRun};
use crate::nn::{Pass, Role};
use crate::objective::StepTotals;
use crate::{Result, optim};
use tch::{Device, Kind, Tensor};

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

/// Summed log-probs of a micro-batch, f64 `[spans]`.
#[derive(Debug)]
pub struct Evaluated {
    /// In nats, in the order of the packed responses' spans.
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

/// A micro-batch before the policy runs.
#[derive(Debug)]
pub struct Ready {
    /// The micro-batch.
    pub micro: Micro,
    /// What the reference says.
    pub known: KnownReference,
    /// What the tower gives for its images.
    features: Option<Tensor>,
    /// How many images met the tower.
    pub images: usize,
}

/// Runs tower and reference for what is not known yet: features are taken from, and added to, `images`.
///
/// # Errors
/// Kept features that cannot be read.
pub fn ready(
    model: &Model,
    micro: Micro,
    plan: StepPlan,
    mut known: KnownReference,
    images: &mut FeatureCache,
    clock: &mut Clock,
) -> Result<Ready> {
    let policy = Pass { role: Role::Policy, dropout: plan.dropout };
    let (features, towered) = match plan.tower {
        Tower::Frozen => images.features(model, &micro, Pass::of(Role::Reference))?,
        Tower::Trained => (model.features(&micro.images.iter().collect::<Vec<_>>(), policy), micro.images.len()),
    };
    clock.lap(Stage::Vision);
    if plan.objective.needs().reference {
        let shared = features.as_ref().filter(|_| plan.tower == Tower::Frozen);
        complete(model, &micro, Role::Reference, shared, &mut known);
    }
    clock.lap(Stage::Reference);
    Ok(Ready { micro, known, features, images: towered })
}

/// A finished forward pass of the policy.
struct Forward {
    run: ModelRun,
    found: LogProbs,
    head: Tensor,
    /// The value head's estimate for each pair's prompt, with a graph to the head alone.
    values: Option<Tensor>,
}

fn forward(model: &Model, ready: &Ready, plan: StepPlan, gradients: Gradients) -> Forward {
    let pass = Pass { role: Role::Policy, dropout: plan.dropout };
    let keep = match (gradients, plan.checkpointing) {
        (Gradients::Unwanted | Gradients::OnlyStatistics, _) => Keep::Nothing,
        (Gradients::Wanted, GradientCheckpointing::None) => Keep::Graph,
        (Gradients::Wanted, GradientCheckpointing::Layers) => Keep::LayerInputs,
    };
    let run = model.forward(&ready.micro.batch, ready.features.as_ref(), pass, keep);
    let head = model.language.head(pass);
    let found = log_probs(run.hidden(), &head.detach(), &ready.micro.batch.packed, gradients);
    let values = model.value_head.as_ref().map(|value| value.forward(&prompt_states(run.hidden(), &ready.micro)));
    Forward { run, found, head, values }
}

impl Forward {
    fn found<'a>(&self, ready: &'a Ready, plan: StepPlan) -> Found<'a> {
        Found {
            micro: &ready.micro,
            policy: self.found.sums(),
            reference: plan.objective.needs().reference.then(|| ready.known.sums()),
            values: self.values.as_ref().map(|values| values.detach().to_device(Device::Cpu).to_kind(Kind::Double)),
        }
    }

    /// What is logged of a micro-batch by itself, whoever judges it.
    fn observe(&self, metrics: &mut Metrics, ready: &Ready, plan: StepPlan) {
        observe_turns(metrics, plan.objective, &self.found(ready, plan));
        observe_tokens(metrics, &self.found, &ready.micro);
    }
}

/// The state from which the first label of each pair's answer is predicted, `[pairs, width]`: the prompt's last.
fn prompt_states(hidden: &Tensor, micro: &Micro) -> Tensor {
    let predictors = micro.batch.packed.predictors();
    let row = |pair: &super::Places| {
        let answer = pair.chosen.or(pair.rejected).expect("a pair has an answer");
        let flat = micro.batch.packed.responses[answer].from[0];
        predictors.binary_search(&flat).expect("every label has its predictor") as i64
    };
    let rows: Vec<i64> = micro.pairs.iter().map(row).collect();
    hidden.index_select(0, &Tensor::from_slice(&rows).to_device(hidden.device()))
}

fn backward(model: &Model, ready: &Ready, forward: Forward, pull: &Pull) {
    let Forward { run, found, head, values } = forward;
    let (micro, hidden) = (&ready.micro, run.hidden().shallow_clone());
    let gradient = &pull.spans * optim::loss_scale(model.kind());
    if model.language.head_is_trained() {
        found.push_into_head(&gradient, &hidden, &head, &micro.batch.packed);
    }
    if let (Some(values), Some(pull)) = (values, &pull.values) {
        let pull = pull * optim::loss_scale(model.kind());
        (&values * pull.to_device(values.device()).to_kind(values.kind())).sum(Kind::Float).backward();
    }
    model.backward(&micro.batch, run, &found.pull_back(&gradient, &hidden));
}

/// What a micro-batch gave.
#[derive(Debug)]
pub struct StepResult {
    /// The loss, summed over its pairs; 0 where [`judge_ahead`] told it already.
    pub loss: f64,
    /// The sum that it would have if the policy were the reference.
    pub at_reference: Option<f64>,
    /// Everything that is logged.
    pub metrics: Metrics,
}

/// Forward and backward of one micro-batch on its own; gradients, times [`optim::loss_scale`], are added to the leaves.
///
/// # Errors
/// A loss that is not finite.
pub fn step(model: &Model, ready: &Ready, plan: StepPlan, clock: &mut Clock) -> Result<StepResult> {
    let run = forward(model, ready, plan, Gradients::Wanted);
    clock.lap(Stage::Forward);
    let Judged { loss, at_reference, mut metrics, pulls } = judge(plan.objective, plan.totals, run.found(ready, plan))?;
    run.observe(&mut metrics, ready, plan);
    backward(model, ready, run, &pulls[0]);
    clock.lap(Stage::Backward);
    Ok(StepResult { loss, at_reference, metrics })
}

/// What the policy says of a micro-batch before any of its step is run with a graph.
#[derive(Debug)]
pub struct Ahead {
    policy: Tensor,
    values: Option<Tensor>,
    /// What the objective sees of its pairs ([`columns`]), for other ranks.
    pub columns: Vec<Vec<f64>>,
}

/// Runs the policy over a micro-batch without gradients, for an objective that compares all pairs of a step with each other.
pub fn look_ahead(model: &Model, ready: &Ready, plan: StepPlan, clock: &mut Clock) -> Ahead {
    let found = forward(model, ready, plan, Gradients::Unwanted).found(ready, plan);
    let columns = columns(plan.objective, &found);
    clock.lap(Stage::Forward);
    Ahead { policy: found.policy, values: found.values, columns }
}

/// A micro-batch of a step that was looked ahead over, in the step's order.
#[derive(Debug)]
pub enum Seen<'a> {
    /// One that is run here.
    Here(&'a Ready, &'a Ahead),
    /// One that another rank runs, by the columns of its pairs.
    Elsewhere(Vec<Vec<f64>>),
}

/// The loss of a whole step, and its gradient for each micro-batch that is run here.
///
/// # Errors
/// A loss that is not finite.
pub fn judge_ahead(plan: StepPlan, seen: Vec<Seen>) -> Result<Judged> {
    let part = |seen| match seen {
        Seen::Elsewhere(columns) => Part::Elsewhere(columns),
        Seen::Here(ready, ahead) => Part::Here(Found {
            micro: &ready.micro,
            policy: ahead.policy.shallow_clone(),
            reference: plan.objective.needs().reference.then(|| ready.known.sums()),
            values: ahead.values.as_ref().map(Tensor::shallow_clone),
        }),
    };
    judge_together(plan.objective, plan.totals, &seen.into_iter().map(part).collect::<Vec<_>>())
}

/// What a micro-batch says without gradients, for [`judge`].
#[derive(Debug)]
pub struct Looked {
    policy: Tensor,
    reference: Option<Tensor>,
    values: Option<Tensor>,
    /// What is logged of its tokens.
    pub tokens: Metrics,
}

impl Looked {
    /// What is judged of it.
    pub fn found<'a>(&self, micro: &'a Micro) -> Found<'a> {
        let copy = |tensor: &Tensor| tensor.shallow_clone();
        let (reference, values) = (self.reference.as_ref().map(copy), self.values.as_ref().map(copy));
        Found { micro, policy: copy(&self.policy), reference, values }
    }
}

/// Runs the policy over a micro-batch without gradients.
pub fn look(model: &Model, ready: &Ready, plan: StepPlan) -> Looked {
    tch::no_grad(|| {
        let run = forward(model, ready, plan, Gradients::OnlyStatistics);
        let mut tokens = Metrics::default();
        observe_tokens(&mut tokens, &run.found, &ready.micro);
        let Found { policy, reference, values, .. } = run.found(ready, plan);
        Looked { policy, reference, values, tokens }
    })
}

/// Forward and backward of a micro-batch whose gradient is known from [`judge_ahead`]; its loss was told there.
pub fn follow(model: &Model, ready: &Ready, plan: StepPlan, pull: &Pull, clock: &mut Clock) -> StepResult {
    let run = forward(model, ready, plan, Gradients::Wanted);
    clock.lap(Stage::Forward);
    let mut metrics = Metrics::default();
    run.observe(&mut metrics, ready, plan);
    backward(model, ready, run, pull);
    clock.lap(Stage::Backward);
    StepResult { loss: 0.0, at_reference: Some(0.0), metrics }
}

/// Entropy, token accuracy, mean logits and lengths of chosen and rejected.
fn observe_tokens(metrics: &mut Metrics, found: &LogProbs, micro: &Micro) {
    let Some(statistics) = &found.statistics else { return };
    let lengths: Vec<i64> = found.lengths.iter().map(|&n| n as i64).collect();
    let split = |tensor: &Tensor| tensor.to_device(Device::Cpu).split_with_sizes(lengths.as_slice(), 0);
    let (entropy, top1, logits) = (split(&statistics.entropy), split(&statistics.top1), split(&statistics.mean_logit));
    for (name, place) in micro.answers() {
        metrics.add_all("entropy", &entropy[place]);
        metrics.add_all("mean_token_accuracy", &top1[place]);
        metrics.add_all(format!("logits/{name}"), &logits[place]);
        metrics.add(format!("lengths/{name}"), micro.labels(place) as f64, 1.0);
    }
}

/// The names of what is logged of a micro-batch's tokens.
pub fn token_metrics(micro: &Micro) -> impl Iterator<Item = String> {
    let of_sides = micro.answers().flat_map(|(name, _)| [format!("logits/{name}"), format!("lengths/{name}")]);
    ["entropy", "mean_token_accuracy"].map(str::to_owned).into_iter().chain(of_sides)
}
