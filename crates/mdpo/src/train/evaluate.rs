//! Evaluation while a run trains: the objective's loss and metrics on rows that are held out, what the policy answers (`answering`), the best
//! evaluation so far, and early stopping.
//!
//! Names and meanings are those of transformers' `Trainer` and `EarlyStoppingCallback`. Different from there: all held-out rows are one
//! step, so that a metric is one sum over one count whatever the batch size, and an objective that compares pairs with each other sees all
//! of them; a rejected image is the same in every evaluation; and nothing random or trained is touched, so that a run with evaluations ends
//! where the one without does, bit for bit.

use super::answering::{Answering, Known};
use super::feed::{Feed, data_threads};
use super::judge::{Found, Part, judge, judge_together};
use super::micro::{Micro, Prepared, Share, StepCut, Steps};
use super::stage::{Clock, Laps};
use super::step::{Looked, StepPlan, Tower, look, ready};
use super::{FeatureCache, Inputs, Metrics, ReferenceCache};
use crate::checkpoint::{BestEvaluation, Evaluations};
use crate::config::{self, Direction, EarlyStopping, EndsWith, EvaluateWhen, GradientCheckpointing, Objective, Run};
use crate::data::order::Order;
use crate::error::caught;
use crate::model::Model;
use crate::objective::StepTotals;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// What a run is evaluated on, read and checked before the weights are.
#[derive(Debug)]
pub struct Evaluator {
    settings: config::Evaluation,
    objective: Objective,
    /// How held-out rows are cut into forward passes.
    batch: config::Batch,
    held_out: Option<Inputs>,
    answering: Option<Answering>,
    /// The figures that its benchmarks give.
    figures: Vec<Known>,
    best: Option<Measure>,
}

/// By what the best model is told.
#[derive(Debug)]
struct Measure {
    metric: String,
    better: Direction,
    /// The metric and the data it is of.
    name: String,
    early_stopping: Option<EarlyStopping>,
    ends_with: EndsWith,
}

/// A run's policy at one of its steps, and what it shares with its evaluations.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub model: &'a Model,
    pub references: &'a mut ReferenceCache,
    pub features: &'a mut FeatureCache,
    pub tower: Tower,
    /// Raised by a signal.
    pub stop: &'a AtomicBool,
}

/// Where a run is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Optimizer steps that are done.
    pub step: usize,
    /// All of the run.
    pub total: usize,
    /// Those of an epoch.
    pub per_epoch: usize,
}

/// What an evaluation came to.
#[derive(Debug)]
pub(super) struct Findings {
    /// The entry of the log.
    pub entry: Map<String, Value>,
    /// Lines for the terminal.
    pub notes: Vec<String>,
}

impl Evaluator {
    /// The evaluations that a recipe asks for, of the rows it holds out.
    ///
    /// # Errors
    /// Prompts and benchmarks that cannot be asked, a metric by which the best model cannot be told.
    pub fn new(run: &Run, held_out: Option<Inputs>) -> Result<Option<Self>> {
        let Some(settings) = run.evaluation.clone() else { return Ok(None) };
        let batch = config::Batch { per_device: settings.per_device, accumulation: 1, ..run.batch.clone() };
        let (objective, best) = (run.objective.clone(), None);
        let answering = Answering::open(run, &settings)?;
        let figures = answering.as_ref().map(Answering::known).transpose()?.unwrap_or_default();
        let mut evaluator = Evaluator { settings, objective, batch, held_out, answering, figures, best };
        evaluator.best = evaluator.measure()?;
        Ok(Some(evaluator))
    }

    /// The rows that are held out.
    pub fn held_out(&self) -> Option<&Inputs> {
        self.held_out.as_ref()
    }

    /// Whether the run ends with the weights of its best evaluation.
    pub(super) fn ends_with_best(&self) -> bool {
        self.best.as_ref().is_some_and(|best| best.ends_with == EndsWith::Best)
    }

    /// Optimizer steps between evaluations, where they are counted in steps.
    pub(super) fn eval_steps(&self) -> Option<usize> {
        match self.settings.when {
            EvaluateWhen::Steps(steps) => Some(steps),
            EvaluateWhen::EachEpoch => None,
        }
    }

    /// Whether the run is evaluated here.
    pub(super) fn is_due(&self, Moment { step, total, per_epoch }: Moment) -> bool {
        match (step, self.settings.when) {
            (0, _) => self.settings.on_start,
            (_, _) if step == total => true,
            (_, EvaluateWhen::Steps(steps)) => step.is_multiple_of(steps),
            (_, EvaluateWhen::EachEpoch) => step.is_multiple_of(per_epoch),
        }
    }

    /// Whether so many evaluations in a row were no better that the run ends.
    pub(super) fn is_enough(&self, evaluations: &Evaluations) -> bool {
        let stopping = self.best.as_ref().and_then(|best| best.early_stopping);
        stopping.is_some_and(|stopping| evaluations.waited >= stopping.patience)
    }

    /// Evaluates; gives what it found, or nothing when a signal cut it short.
    ///
    /// # Errors
    /// A loss that is not finite, an image that cannot be decoded.
    pub(super) fn evaluate(&self, subject: &mut Subject, moment: Moment) -> Result<Option<Findings>> {
        let began = Instant::now();
        let (mut entry, mut notes) = (Map::new(), Vec::new());
        let mut pairs = 0;
        if let Some(inputs) = &self.held_out {
            let Some(metrics) = self.held_out_metrics(inputs, subject).map_err(super::held_out::told)? else {
                return Ok(None);
            };
            pairs = inputs.sizes.iter().map(|size| size.pairs).sum();
            entry.insert("eval_loss".to_owned(), json!(metrics.mean("loss")));
            let others = metrics.means().filter(|(name, _)| *name != "loss");
            entry.extend(others.map(|(name, mean)| (format!("eval_{name}"), json!(mean))));
        }
        let judged = began.elapsed().as_secs_f64();
        if let Some(answering) = &self.answering {
            let Some(answered) = answering.run(subject.model, moment.step, subject.stop)? else { return Ok(None) };
            entry.extend(answered.figures);
            notes = answered.notes;
        }
        entry.insert("eval_runtime".to_owned(), json!(began.elapsed().as_secs_f64()));
        if pairs > 0 {
            entry.insert("eval_samples_per_second".to_owned(), json!(pairs as f64 / judged));
        }
        entry.insert("epoch".to_owned(), json!(moment.step as f64 / moment.per_epoch as f64));
        entry.insert("step".to_owned(), json!(moment.step));
        Ok(Some(Findings { entry, notes }))
    }

    /// Loss and metrics over all held-out rows as one step without gradients and dropout.
    fn held_out_metrics(&self, inputs: &Inputs, subject: &mut Subject) -> Result<Option<Metrics>> {
        let steps = self.steps(inputs)?;
        let StepCut { totals, .. } = steps.step(0);
        let plan = self.plan(subject.tower, totals);
        let whole = self.objective.needs_whole_step();
        std::thread::scope(|scope| {
            let mut metrics = Metrics::default();
            let mut all: Vec<(Micro, Looked)> = Vec::new();
            for prepared in Feed::new(scope, steps, 0..1, data_threads())? {
                if subject.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let (mut micro, looked) = self.look(prepared?, plan, subject)?;
                metrics.merge(&looked.tokens);
                if whole {
                    // Judged are numbers alone.
                    micro.images.clear();
                    all.push((micro, looked));
                } else {
                    metrics.merge(&judge(&self.objective, totals, looked.found(&micro))?.metrics);
                }
            }
            if whole {
                let parts: Vec<Part> = all.iter().map(|(micro, looked)| Part::Here(looked.found(micro))).collect();
                metrics.merge(&judge_together(&self.objective, totals, &parts)?.metrics);
            }
            Ok(Some(metrics))
        })
    }

    /// Tower, reference and policy over a micro-batch.
    fn look(&self, prepared: Prepared, plan: StepPlan, subject: &mut Subject) -> Result<(Micro, Looked)> {
        let Subject { model, references, features, .. } = subject;
        let micro = prepared.to_device(model.device);
        // A row's features are needed once.
        features.begin_step();
        let known = references.known(&micro);
        let mut clock = Clock::new(Laps::Unwaited, model.device);
        let ready = caught(|| tch::no_grad(|| ready(model, micro, plan, known, features, &mut clock)))?;
        references.learn(&ready.micro, &ready.known)?;
        let looked = caught(|| Ok(look(model, &ready, plan)))?;
        Ok((ready.micro, looked))
    }

    fn plan(&self, tower: Tower, totals: StepTotals) -> StepPlan<'_> {
        let checkpointing = GradientCheckpointing::None;
        StepPlan { objective: &self.objective, checkpointing, tower, totals, dropout: None }
    }

    /// One step of all held-out rows.
    fn steps<'a>(&self, inputs: &'a Inputs) -> Result<Steps<'a>> {
        let rows = NonZeroUsize::new(inputs.examples.len());
        let rows = rows.ok_or_else(|| Error::at("data", "no usable rows"))?;
        Ok(Steps { inputs, order: Order::as_written(rows, rows), batch: self.batch.clone(), share: Share::ALL })
    }

    fn measure(&self) -> Result<Option<Measure>> {
        let Some(config::Best { metric, better, ends_with, early_stopping }) = self.settings.best.clone() else {
            return Ok(None);
        };
        let mut known = self.known_metrics()?;
        known.extend(self.figures.iter().map(|figure| figure.metric.clone()));
        if !known.contains(&metric) {
            let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            let what = format!("`{metric}` is none of what an evaluation of this run gives: {}", names.join(", "));
            let hint = match config::nearest(&metric, known.iter().map(String::as_str)) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "names are those of the log, with or without `eval_` in front".to_owned(),
            };
            return Err(Error::at("`metric_for_best_model`", what).hint(hint));
        }
        let (its_own, data) = match self.figures.iter().find(|figure| figure.metric == metric) {
            Some(figure) => (figure.better, figure.data.clone()),
            None => {
                let rows = self.held_out.as_ref().map_or("", |inputs| inputs.report.digest.as_str());
                (Some(direction(&metric)), format!("rows {rows}"))
            }
        };
        let better = better.or(its_own).ok_or_else(|| {
            let what = format!("neither direction of `{metric}` is good by itself");
            Error::at("`greater_is_better`", what)
                .hint("write `greater_is_better: true` or `false`, or choose another metric")
        })?;
        let name = format!("{metric}, {better:?}, of {data}");
        Ok(Some(Measure { metric, better, name, early_stopping, ends_with }))
    }

    /// The names of all metrics, from the objective itself: it is asked about a few rows of every kind, with made-up log-probs.
    fn known_metrics(&self) -> Result<BTreeSet<String>> {
        let mut known = BTreeSet::new();
        let Some(inputs) = &self.held_out else { return Ok(known) };
        let kinds: [&dyn Fn(&crate::data::Example) -> bool; 4] = [
            &|example| !example.images.is_empty(),
            &|example| example.images.is_empty(),
            &|example| example.pairs.iter().any(|pair| pair.chosen.is_some()),
            &|example| example.pairs.iter().any(|pair| pair.rejected.is_some()),
        ];
        let mut rows: Vec<usize> = kinds.iter().filter_map(|kind| inputs.examples.iter().position(kind)).collect();
        rows.push(inputs.report.longest.1);
        rows.sort_unstable();
        rows.dedup();
        let micro = Prepared::read(inputs, &rows, 0)?.to_device(Device::Cpu);
        let sum = |of: fn(&super::Size) -> usize| rows.iter().map(|&row| of(&inputs.sizes[row])).sum();
        let totals = StepTotals {
            pairs: sum(|size| size.pairs),
            chosen_tokens: sum(|size| size.chosen_labels),
            answers: sum(|size| size.answers),
        };
        let made_up = || Tensor::full([micro.batch.packed.span_count() as i64], -1.0, (Kind::Double, Device::Cpu));
        let values = self
            .objective
            .value_learning_rate()
            .map(|_| Tensor::zeros([totals.pairs as i64], (Kind::Double, Device::Cpu)));
        let reference = inputs.needs.reference.then(made_up);
        let found = Found { micro: &micro, policy: made_up(), reference, values };
        let judged = judge(&self.objective, totals, found)?;
        known.extend(judged.metrics.means().map(|(name, _)| format!("eval_{name}")));
        known.extend(super::step::token_metrics(&micro).map(|name| format!("eval_{name}")));
        Ok(known)
    }

    /// Takes an evaluation into account. One whose figure is no number (a share of answers that named nothing) is no better than any; where
    /// the figure is not there, since a judge did not answer, nothing is known, and nobody's patience is tried.
    pub(super) fn take(&self, entry: &Map<String, Value>, step: usize, evaluations: &mut Evaluations) {
        evaluations.last = Some(step);
        // As in transformers, what the run starts from is not one of its models.
        let Some(measure) = self.best.as_ref().filter(|_| step > 0) else { return };
        match entry.get(&measure.metric).map(Value::as_f64) {
            Some(Some(value)) => measure.take(value, step, evaluations),
            Some(None) => evaluations.waited += 1,
            None => {}
        }
    }

    /// Refuses what earlier evaluations said by another metric or of other rows.
    ///
    /// # Errors
    /// They did.
    pub(super) fn check_resumed(&self, evaluations: &Evaluations) -> Result<()> {
        let (Some(measure), Some(best)) = (&self.best, &evaluations.best) else { return Ok(()) };
        if best.measure == measure.name {
            return Ok(());
        }
        let what = format!("the best evaluation so far was told by `{}`, now it is `{}`", best.measure, measure.name);
        Err(Error::at("`metric_for_best_model`", what)
            .hint("resume with the metric and the held-out rows of before, or train into another `output_dir`"))
    }

    /// A line for the terminal.
    pub(super) fn line(&self, entry: &Map<String, Value>, step: usize, evaluations: &Evaluations) -> String {
        let shown = [
            ("eval_loss", "loss", 4),
            ("eval_rewards/margins", "margin", 3),
            ("eval_rewards/accuracies", "accuracy", 3),
            ("eval_rewards/image_margins", "image margin", 3),
            ("eval_rewards/image_accuracies", "image accuracy", 3),
            ("eval_rewards/chosen", "chosen", 3),
        ];
        let number = |key: &str| entry.get(key).and_then(Value::as_f64);
        let shown =
            shown.into_iter().filter_map(|(key, label, digits)| Some(format!("{label} {:.digits$}", number(key)?)));
        let figures = self.figures.iter().filter(|figure| figure.better.is_some()).take(6);
        let figures = figures.filter_map(|figure| {
            Some(format!("{} {:.1}", figure.metric.trim_start_matches("eval_"), number(&figure.metric)?))
        });
        let mut parts: Vec<String> = shown.chain(figures).collect();
        if let (Some(measure), Some(best)) = (&self.best, &evaluations.best) {
            parts.push(match best.step == step {
                true => format!("best {} so far", measure.metric),
                false => format!("best {} {:.4} at step {}", measure.metric, best.value, best.step),
            });
        }
        parts.push(format!("{:.1} s", number("eval_runtime").unwrap_or(0.0)));
        format!("evaluation after step {step} · {}", parts.join(" · "))
    }
}

impl Measure {
    /// transformers' rule: the best is what is better at all; patience ends with what is better by more than the threshold.
    fn take(&self, value: f64, step: usize, evaluations: &mut Evaluations) {
        let best = evaluations.best.as_ref().map(|best| best.value);
        let by = best.map_or(f64::INFINITY, |best| match self.better {
            Direction::Higher => value - best,
            Direction::Lower => best - value,
        });
        let threshold = self.early_stopping.map_or(0.0, |stopping| stopping.threshold);
        evaluations.waited = if by > threshold { 0 } else { evaluations.waited + 1 };
        if by > 0.0 {
            evaluations.best = Some(BestEvaluation { step, value, measure: self.name.clone() });
        }
    }
}

/// Which direction of a metric is good: less of a loss and of its terms, as in transformers more of anything else.
fn direction(metric: &str) -> Direction {
    match metric.ends_with("loss") || metric.starts_with("eval_loss/") {
        true => Direction::Lower,
        false => Direction::Higher,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(better: Direction, threshold: f64) -> Measure {
        let early_stopping = Some(EarlyStopping { patience: 2, threshold });
        Measure { metric: "eval_loss".into(), better, name: "m".into(), early_stopping, ends_with: EndsWith::Best }
    }

    /// The step of the best and the evaluations waited, after each value.
    fn walk(measure: &Measure, values: &[f64]) -> Vec<(usize, usize)> {
        let mut evaluations = Evaluations::default();
        let one = |(step, value): (usize, &f64)| {
            measure.take(*value, step, &mut evaluations);
            (evaluations.best.as_ref().map_or(usize::MAX, |best| best.step), evaluations.waited)
        };
        values.iter().enumerate().map(one).collect()
    }

    #[test]
    fn the_best_and_the_patience_are_those_of_transformers() {
        let lower = measure(Direction::Lower, 0.0);
        assert_eq!(walk(&lower, &[3.0, 2.0, 2.0, 2.5, 1.0]), [(0, 0), (1, 0), (1, 1), (1, 2), (4, 0)]);
        let higher = measure(Direction::Higher, 0.0);
        assert_eq!(walk(&higher, &[3.0, 2.0, 3.5]), [(0, 0), (0, 1), (2, 0)]);
        // A little better is the best, but does not end the waiting.
        let by_half = measure(Direction::Lower, 0.5);
        assert_eq!(walk(&by_half, &[3.0, 2.75, 2.5, 1.0]), [(0, 0), (1, 1), (2, 2), (3, 0)]);
    }

    #[test]
    fn less_of_a_loss_is_better_and_more_of_anything_else() {
        let lower = ["eval_loss", "eval_loss/conditional", "eval_value_loss"];
        assert!(lower.iter().all(|metric| direction(metric) == Direction::Lower));
        assert_eq!(direction("eval_rewards/margins"), Direction::Higher);
    }
}
