//! One optimizer step: this rank's micro-batches, what all ranks make of them together, and the move of the weights.

use super::flops::{self, Flops};
use super::run::Trainer;
use super::stage::Stage;
use super::step::{Ahead, Seen, StepPlan, StepResult, Tower, follow, judge_ahead, look_ahead, ready, step};
use super::{Feed, Judged, Metrics, Micro, Ready, StepCut};
use crate::address::Address;
use crate::config::{Part, Tuning};
use crate::error::caught;
use crate::optim;
use crate::{Error, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A finished optimizer step, of all ranks.
pub(super) struct Done {
    pub pairs: usize,
    pub tokens: u64,
    /// Seconds in all, and those of them spent waiting for data, on this rank.
    pub seconds: f64,
    pub waited: f64,
    pub flops: Flops,
    pub norm: f64,
    pub learning_rate: f64,
}

impl<'a> Trainer<'a> {
    /// One optimizer step over as many micro-batches as the recipe says, on as many ranks as there are.
    pub fn optimizer_step(&mut self, feed: &mut Feed) -> Result<Done> {
        let began = Instant::now();
        self.clock.restart();
        self.features.begin_step();
        let index = self.state.step;
        let cut = self.steps().step(index);
        let totals = cut.totals;
        let mine = self.micro_batches(index, cut, feed);
        let Tally { loss, expected, comparable, tokens, metrics, flops, gradients } = self.tell(mine)?;
        let pairs = totals.pairs as f64;
        let (loss, expected) = (loss / pairs, expected.filter(|_| comparable).map(|expected| expected / pairs));
        self.ranks.alike(self.check_first_loss(index, loss, expected))?;
        self.ranks.sum_gradients(&self.model.trainables, &gradients)?;
        optim::unscale(&self.model.trainables, optim::loss_scale(self.model.kind()));
        let norm = optim::clip(&self.model.trainables, self.run.optim.max_grad_norm);
        if !norm.is_finite() {
            let error = Error::at(format!("step {}", index + 1), "the gradient norm is NaN or infinite")
                .hint("lower `learning_rate`, or use `bf16: true` instead of `fp16: true`");
            return self.ranks.alike(Err(error));
        }
        let learning_rate = optim::learning_rate(&self.run.optim, index, self.total);
        self.optimizer.step(&self.model.trainables, learning_rate);
        self.metrics.merge(&metrics);
        self.state.step += 1;
        self.state.tokens_seen += tokens;
        self.clock.lap(Stage::Optimizer);
        let (seconds, waited) = (began.elapsed().as_secs_f64(), feed.take_waited());
        Ok(Done { pairs: totals.pairs, tokens, seconds, waited, flops, norm, learning_rate })
    }

    /// Forward and backward of this rank's micro-batches of optimizer step `index`.
    fn micro_batches(&mut self, index: usize, cut: StepCut, feed: &mut Feed) -> Result<Tally> {
        if self.run.objective.needs_whole_step() && cut.micros.len() > 1 {
            return self.micro_batches_together(index, &cut, feed);
        }
        let mut tally = Tally::default();
        for (i, examples) in self.steps().own(&cut) {
            let (plan, ready) = self.next_ready(index, i, &cut, examples, feed, &mut tally)?;
            tally.add(caught(|| step(&self.model, &ready, plan, &mut self.clock))?);
        }
        Ok(tally)
    }

    /// The same for an objective that compares all pairs of the step: what the policy says of those of all ranks is known before any is run with a
    /// graph.
    fn micro_batches_together(&mut self, index: usize, cut: &StepCut, feed: &mut Feed) -> Result<Tally> {
        let mut tally = Tally::default();
        let mine = self.look_ahead(index, cut, feed, &mut tally);
        let (all, columns) = match mine {
            Ok(all) => {
                let columns: Vec<_> = all.iter().map(|(_, _, ahead)| ahead.columns.clone()).collect();
                (all, Ok(columns))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        let share = self.ranks.share();
        let mut theirs: Vec<_> = self.ranks.all(columns)?.into_iter().map(Vec::into_iter).collect();
        let mut own = all.iter();
        let seen = (0..cut.micros.len()).map(|i| match share.takes(i) {
            true => own.next().map(|(_, ready, ahead)| Seen::Here(ready, ahead)),
            false => theirs[i % share.ranks].next().map(Seen::Elsewhere),
        });
        let seen = seen.collect::<Option<Vec<_>>>().expect("every rank has looked ahead over its share");
        let Judged { loss, at_reference, metrics, pulls } = caught(|| judge_ahead(self.plan(index, 0, cut), seen))?;
        for ((plan, ready, _), pull) in all.iter().zip(&pulls) {
            tally.add(caught(|| Ok(follow(&self.model, ready, *plan, pull, &mut self.clock)))?);
        }
        if self.ranks.leads() {
            tally.add(StepResult { loss, at_reference, metrics });
        }
        Ok(tally)
    }

    /// Makes this rank's micro-batches of a step ready and runs the policy over them.
    fn look_ahead(
        &mut self,
        index: usize,
        cut: &StepCut,
        feed: &mut Feed,
        tally: &mut Tally,
    ) -> Result<Vec<Looked<'a>>> {
        let mut all = Vec::new();
        for (i, examples) in self.steps().own(cut) {
            let (plan, ready) = self.next_ready(index, i, cut, examples, feed, tally)?;
            all.push((plan, ready));
        }
        let ahead = |(plan, ready): (StepPlan<'a>, Ready)| -> Result<Looked<'a>> {
            let ahead = caught(|| Ok(look_ahead(&self.model, &ready, plan, &mut self.clock)))?;
            Ok((plan, ready, ahead))
        };
        all.into_iter().map(ahead).collect()
    }

    /// How micro-batch `i` of optimizer step `index` is computed.
    fn plan(&self, index: usize, i: usize, cut: &StepCut) -> StepPlan<'a> {
        StepPlan {
            objective: &self.run.objective,
            checkpointing: self.run.batch.checkpointing,
            tower: self.tower(),
            totals: cut.totals,
            dropout: self.dropout_seed(index, i),
        }
    }

    /// Takes micro-batch `i` from the feed and sees to its images and its reference.
    fn next_ready(
        &mut self,
        index: usize,
        i: usize,
        cut: &StepCut,
        examples: &[usize],
        feed: &mut Feed,
        tally: &mut Tally,
    ) -> Result<(StepPlan<'a>, Ready)> {
        let prepared = feed.next().expect("the feed has the micro-batches of every step that is left")?;
        debug_assert_eq!(prepared.examples, *examples);
        let plan = self.plan(index, i, cut);
        Ok((plan, self.ready(prepared.to_device(self.model.device), plan, tally)?))
    }

    fn ready(&mut self, micro: Micro, plan: StepPlan, tally: &mut Tally) -> Result<Ready> {
        let known = self.references.known(&micro);
        let packed = &micro.batch.packed;
        let missing = known.missing(packed);
        // On a GPU what a prompt gives depends on its neighbours, and no policy equals a value that others led to.
        tally.comparable &= self.model.device == tch::Device::Cpu || known.is_nothing(packed);
        tally.tokens += packed.ids.len() as u64;
        self.clock.lap(Stage::Data);
        let (model, features, clock) = (&self.model, &mut self.features, &mut self.clock);
        let ready = caught(|| ready(model, micro, plan, known, features, clock))?;
        self.references.learn(&ready.micro, &ready.known)?;
        let reference = missing.as_ref().map(|missing| &missing.packed);
        let packed = &ready.micro.batch.packed;
        tally.flops.add(&flops::of(&self.model, packed, ready.images, reference, self.inputs.needs));
        Ok(ready)
    }

    /// What all ranks have done together, and what they have learned of the reference; a problem of one is that of all.
    pub fn tell(&mut self, mine: Result<Tally>) -> Result<Tally> {
        let has_gradient = self.model.trainables.iter().map(|trainable| trainable.leaf.grad().defined());
        let mine =
            mine.map(|tally| (Tally { gradients: has_gradient.collect(), ..tally }, self.references.take_untold()));
        let mut sum = Tally::default();
        for (tally, learned) in self.ranks.all(mine)? {
            sum.merge(tally);
            self.references.hear(learned);
        }
        Ok(sum)
    }

    /// A policy that starts at its reference must show the loss of equal policies; otherwise something is wrong with one of them.
    fn check_first_loss(&self, index: usize, loss: f64, expected: Option<f64>) -> Result<()> {
        let Some(expected) = expected.filter(|_| index == 0 && self.starts_at_reference) else { return Ok(()) };
        if (loss - expected).abs() <= 1e-6 {
            return Ok(());
        }
        let what = format!("expected {expected:.6} before training (policy and reference agree), found {loss:.6}");
        Err(Error::at("first loss", what).hint("policy and reference were computed differently; please report this"))
    }

    pub fn tower(&self) -> Tower {
        match &self.run.tuning {
            Tuning::Full { parts } if parts.contains(&Part::VisionTower) => Tower::Trained,
            _ => Tower::Frozen,
        }
    }

    fn dropout_seed(&self, step: usize, micro: usize) -> Option<u64> {
        let Tuning::Lora(lora) = &self.run.tuning else { return None };
        let address = Address { seed: self.run.seed, epoch: step as u64, example: micro as u64 };
        (lora.dropout > 0.0).then(|| address.rng("lora dropout").next_u64())
    }
}

/// A micro-batch over which the policy was run without a graph.
type Looked<'a> = (StepPlan<'a>, Ready, Ahead);

/// What micro-batches of a step gave together.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tally {
    loss: f64,
    /// The loss if the policy were the reference, where the objective has one.
    expected: Option<f64>,
    /// Whether that can be compared with the loss.
    comparable: bool,
    tokens: u64,
    metrics: Metrics,
    flops: Flops,
    /// Which leaves have a gradient.
    gradients: Vec<bool>,
}

impl Default for Tally {
    fn default() -> Self {
        let (metrics, flops, gradients) = (Metrics::default(), Flops::default(), Vec::new());
        Tally { loss: 0.0, expected: Some(0.0), comparable: true, tokens: 0, metrics, flops, gradients }
    }
}

impl Tally {
    fn add(&mut self, done: StepResult) {
        self.loss += done.loss;
        self.expected = self.expected.zip(done.at_reference).map(|(sum, more)| sum + more);
        self.metrics.merge(&done.metrics);
    }

    /// Adds that of another rank.
    fn merge(&mut self, other: Tally) {
        let Tally { loss, expected, comparable, tokens, metrics, flops, gradients } = other;
        self.add(StepResult { loss, at_reference: expected, metrics });
        self.comparable &= comparable;
        self.tokens += tokens;
        self.flops.add(&flops);
        self.gradients.resize(gradients.len(), false);
        self.gradients.iter_mut().zip(gradients).for_each(|(any, one)| *any |= one);
    }
}
