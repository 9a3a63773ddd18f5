//! The loop over optimizer steps.

use super::flops::{self, Flops};
use super::progress::{Progress, Talk};
use super::stage::{Clock, Laps, Stage};
use super::step::{StepPlan, StepResult, Tower, complete, follow, look_ahead, ready, step};
use super::{
    FeatureCache, Feed, Inputs, Judged, Metrics, Micro, PictureCheck, Ready, ReferenceCache, StepCut, Steps,
    data_threads, device, kind, memory, output,
};
use crate::address::Address;
use crate::checkpoint::{self, State, Tensors};
use crate::config::{
    AdapterStart, Length, Lora, Part, Redraw, ReferenceLogps, ReferenceWhen, ReportTo, Resume, Run, Save, Tuning,
};
use crate::data::order::Order;
use crate::error::caught;
use crate::model::Model;
use crate::model::load::Plan;
use crate::model::value_head::ValueHead;
use crate::nn::Role;
use crate::optim::{self, AdamW, Moments};
use crate::weights::{self, AdapterConfig};
use crate::{Error, Result, config};
use mdpo_measure::tensorboard::{self, EventWriter};
use rand::Rng;
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Optimizer steps that are done, of all.
    pub steps: (usize, usize),
    /// Every log entry, as in `trainer_state.json`.
    pub log_history: Vec<Value>,
    /// Where the trained model is: `output_dir`, or the checkpoint that an interrupted run left.
    pub folder: PathBuf,
    /// Whether a signal stopped it.
    pub interrupted: bool,
}

/// Trains as `run` says. A signal (Ctrl-C, SIGTERM) saves a checkpoint and ends it.
pub fn train(run: &Run, talk: Talk) -> Result<Outcome> {
    output::prepare(run)?;
    let device = device(run.model.device)?;
    let inputs = Inputs::open(run, PictureCheck::Header)?;
    let mut trainer = Trainer::new(run, &inputs, device, ReferenceCache::of_run(run, device)?)?;
    trainer.resume()?;
    trainer.open_events()?;
    trainer.introduce(talk, device);
    let ended = trainer.precompute().and_then(|()| {
        std::thread::scope(|scope| {
            let mut feed = Feed::new(scope, trainer.steps(), trainer.state.step..trainer.total, data_threads())?;
            trainer.run(talk, &mut feed)
        })
    });
    // What the reference said is worth keeping however the run ended; how it ended is the error to tell.
    let kept = trainer.references.write();
    ended.and_then(|outcome| kept.map(|()| outcome))
}

/// Loads the model as training would, checks that results can be written, and counts the trained parameters.
pub fn try_load(run: &Run, inputs: &Inputs) -> Result<usize> {
    output::check(run)?;
    let device = device(run.model.device)?;
    let trainer = Trainer::new(run, inputs, device, ReferenceCache::of_run(run, device)?)?;
    Ok(trainer.model.trainables.iter().map(|trainable| trainable.leaf.numel()).sum())
}

pub(super) struct Trainer<'a> {
    run: &'a Run,
    inputs: &'a Inputs,
    model: Model,
    optimizer: AdamW,
    adapter: Option<AdapterConfig>,
    order: Order,
    /// Optimizer steps of the whole run.
    pub total: usize,
    /// Where the time goes.
    pub clock: Clock,
    state: State,
    metrics: Metrics,
    /// What the reference said so far.
    references: ReferenceCache,
    /// What the vision tower gave for images.
    features: FeatureCache,
    /// TensorBoard's file, where the recipe asks for one.
    events: Option<EventWriter>,
    /// Whether policy and reference agree before the first step, as they should.
    starts_at_reference: bool,
    stop: Arc<AtomicBool>,
}

/// A finished optimizer step.
pub(super) struct Done {
    pub pairs: usize,
    pub tokens: u64,
    /// Seconds in all, and those of them spent waiting for data.
    pub seconds: f64,
    pub waited: f64,
    pub flops: Flops,
    norm: f64,
    learning_rate: f64,
}

impl<'a> Trainer<'a> {
    pub fn new(run: &'a Run, inputs: &'a Inputs, device: tch::Device, references: ReferenceCache) -> Result<Self> {
        let (mut start_config, mut starts_at_reference) = (None, true);
        let plan = match &run.tuning {
            Tuning::Full { parts } => Plan::Full(parts),
            Tuning::Lora(settings) => {
                let start = match &settings.start {
                    AdapterStart::Fresh => None,
                    AdapterStart::From { path, reference } => {
                        let file = weights::lora::read(path)?;
                        start_config = Some(file.config.clone());
                        // Dropout acts on a continued adapter at once; a fresh one adds nothing yet.
                        starts_at_reference = *reference == config::Reference::Adapter && settings.dropout == 0.0;
                        Some((file, *reference))
                    }
                };
                Plan::Lora { settings, seed: run.seed, start }
            }
        };
        let mut model = Model::load(&run.model.path, kind(run.model.dtype), device, plan)?;
        if let Some(rate) = run.objective.value_learning_rate() {
            let mut head = ValueHead::new(model.shape.language.width, device);
            if let Tuning::Lora(Lora { start: AdapterStart::From { path, .. }, .. }) = &run.tuning {
                head.restore(path)?;
            }
            model.trainables.extend(head.trainables(rate / run.optim.learning_rate));
            model.value_head = Some(head);
        }
        let adapter = output::adapter_config(run, &model, start_config);
        let nonzero = |n: usize| NonZeroUsize::new(n).ok_or_else(|| Error::at("data", "no usable rows"));
        let (examples, per_step) =
            (nonzero(inputs.examples.len())?, nonzero(run.batch.per_device * run.batch.accumulation)?);
        let order = match run.data.shuffle {
            true => Order::shuffled(examples, per_step, run.seed),
            false => Order::as_written(examples, per_step),
        };
        let mut identity = run.identity();
        identity.insert("rows of the data set".to_owned(), json!(inputs.report.digest));
        identity.insert("checkpoint".to_owned(), json!(checkpoint_digest(&run.model.path)?));
        Ok(Trainer {
            optimizer: AdamW::new(run.optim.clone(), &model.trainables),
            total: order.steps(run.batch.length),
            clock: Clock::new(Laps::Unwaited, device),
            state: State { step: 0, identity, metrics: Value::Null, log_history: Vec::new(), tokens_seen: 0 },
            metrics: Metrics::default(),
            stop: stop_flag()?,
            references,
            events: None,
            features: FeatureCache::of_run(run, device)?,
            // What rows bring comes from another model or precision, and images that differ have other log-probs.
            starts_at_reference: starts_at_reference
                && run.data.reference_logps == ReferenceLogps::Computed
                && run.rejected_image.redraw != Redraw::EachForward,
            run,
            inputs,
            model,
            adapter,
            order,
        })
    }

    /// Continues from a checkpoint where the recipe asks for it.
    fn resume(&mut self) -> Result<()> {
        let folder = match &self.run.output.resume {
            Resume::No => return Ok(()),
            Resume::From(folder) => folder.clone(),
            Resume::Newest => match checkpoint::list(&self.run.output.dir)?.pop() {
                Some((_, folder)) => folder,
                None => return Ok(()),
            },
        };
        let (state, mut tensors) = checkpoint::load(&folder)?;
        let differing = config::differing(&state.identity, &self.state.identity);
        if !differing.is_empty() {
            let what = format!("the checkpoint belongs to another run: {} changed", differing.join(", "));
            let hint = "resume with the recipe it was started with, or train into another `output_dir`";
            return Err(Error::at(folder.display(), what).hint(hint));
        }
        let mut moments = Vec::new();
        for trainable in &self.model.trainables {
            let name = &trainable.name;
            let missing = || Error::at(folder.display(), format!("`{name}` is not in the checkpoint"));
            let weight = tensors.weights.remove(name).ok_or_else(missing)?;
            let Moments { first, second } = tensors.moments.remove(name).ok_or_else(missing)?;
            let mut leaf = trainable.leaf.shallow_clone();
            tch::no_grad(|| leaf.f_copy_(&weight))?;
            let place = leaf.device();
            moments.push(Moments { first: first.to_device(place), second: second.to_device(place) });
        }
        self.optimizer.restore(moments, tensors.optimizer_steps);
        let damaged = |error| Error::at(folder.display(), format!("cannot read the metrics: {error}"));
        self.metrics = serde_json::from_value(state.metrics.clone()).map_err(damaged)?;
        self.state = state;
        Ok(())
    }

    /// What the user should know before the first step.
    fn introduce(&self, talk: Talk, device: tch::Device) {
        if talk == Talk::Silent {
            return;
        }
        let report = &self.inputs.report;
        let (examples, trained) = (self.inputs.examples.len(), self.model.trainables.iter());
        let parameters: usize = trained.map(|trainable| trainable.leaf.numel()).sum();
        eprintln!("model    {} · {:?} on {device:?}", self.run.model.name, self.run.model.dtype);
        eprintln!(
            "data     {examples} of {} rows ({} with images) · longest example {} tokens",
            report.rows, report.with_images, report.longest.0
        );
        for problem in &report.skipped {
            eprintln!("  left out: {problem}");
        }
        for line in report.left_out.lines() {
            eprintln!("  left out: {line}");
        }
        if report.shortened > 0 {
            eprintln!("  {} rows: responses shortened to `max_length`", report.shortened);
        }
        if report.seams > 0 {
            eprintln!(
                "  {} rows: prompt and response were tokenized apart, since a token straddles the seam",
                report.seams
            );
        }
        if let Some((prompts, file)) = self.references.stored() {
            eprintln!("reference  {prompts} prompts known from {}", file.display());
        }
        let estimate = memory::estimate(self.run, self.inputs, parameters);
        eprintln!("trained  {parameters} parameters · about {} of memory", memory::bytes(estimate.total()));
        let from = if self.state.step > 0 { format!(", {} done", self.state.step) } else { String::new() };
        eprintln!("run      {} optimizer steps{from} · into {}", self.total, self.run.output.dir.display());
        if self.run.output.resume == Resume::Newest && self.state.step == 0 {
            eprintln!("  no checkpoint to resume from yet: the run starts at its first step");
        }
    }

    /// From now on laps are those of `laps`.
    pub fn measure(&mut self, laps: Laps) {
        self.clock = Clock::new(laps, self.model.device);
    }

    /// What every step consists of.
    pub fn steps(&self) -> Steps<'a> {
        Steps { inputs: self.inputs, order: self.order.clone(), batch: self.run.batch.clone() }
    }

    /// Asks the reference about everything that comes again in later epochs, where the recipe wants that done first; a signal ends it early.
    fn precompute(&mut self) -> Result<()> {
        if self.run.reference.when == ReferenceWhen::AsNeeded || !self.inputs.needs.reference {
            return Ok(());
        }
        let order = self.order.unshuffled();
        let range = 0..order.steps_per_epoch();
        let steps = Steps { order, ..self.steps() };
        std::thread::scope(|scope| {
            for prepared in Feed::new(scope, steps, range, data_threads())? {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                let micro = prepared?.to_device(self.model.device);
                let mut known = self.references.known_of_recurring(&micro);
                caught(|| {
                    complete(&self.model, &micro, Role::Reference, None, &mut known);
                    Ok(())
                })?;
                self.references.learn(&micro, &known)?;
            }
            Ok(())
        })
    }

    fn run(&mut self, talk: Talk, feed: &mut Feed) -> Result<Outcome> {
        let progress = Progress::new(talk, self.state.step, self.total);
        let (mut saved, mut window) = (self.state.step, Window::new());
        let ended = loop {
            if self.state.step >= self.total {
                break Ok(false);
            }
            if self.stop.load(Ordering::Relaxed) {
                break Ok(true);
            }
            match self.optimizer_step(feed) {
                Err(error) => break Err(error),
                Ok(done) => {
                    window.add(&done);
                    let due = self.state.step.is_multiple_of(self.run.output.logging_steps);
                    let due = due || self.state.step == 1 || self.state.step == self.total;
                    let entry = due.then(|| self.log(&done, &mut window));
                    progress.step(self.state.step, entry.as_ref());
                    if let Err(error) = entry.map_or(Ok(()), |entry| self.report(&entry)) {
                        break Err(error);
                    }
                }
            }
            if self.saves_now() {
                if let Err(error) = self.save() {
                    break Err(error);
                }
                saved = self.state.step;
            }
        };
        progress.finish();
        let unsaved = self.state.step > saved;
        match ended {
            Ok(true) => {
                let last = self.checkpoint_folder(saved);
                let folder = if unsaved || !last.is_dir() { self.save()? } else { last };
                progress.say(format!("stopped; continue with `resume_from_checkpoint=true` from {}", folder.display()));
                Ok(self.outcome(folder, true))
            }
            Ok(false) => {
                if unsaved && self.run.output.save != Save::Never {
                    self.save()?;
                }
                self.finish()?;
                Ok(self.outcome(self.run.output.dir.clone(), false))
            }
            // What was learned until here is kept; the error of the step is the one to tell.
            Err(error) => {
                if unsaved && let Ok(folder) = self.save() {
                    progress.say(format!("the steps before are kept in {}", folder.display()));
                }
                Err(error)
            }
        }
    }

    fn outcome(&self, folder: PathBuf, interrupted: bool) -> Outcome {
        let steps = (self.state.step, self.total);
        Outcome { steps, log_history: self.state.log_history.clone(), folder, interrupted }
    }

    /// One optimizer step over as many micro-batches as the recipe says.
    pub fn optimizer_step(&mut self, feed: &mut Feed) -> Result<Done> {
        let began = Instant::now();
        self.clock.restart();
        self.features.begin_step();
        let index = self.state.step;
        let cut = self.steps().step(index);
        let totals = cut.totals;
        let Tally { loss, expected, comparable, tokens, metrics, flops } = self.micro_batches(index, cut, feed)?;
        let pairs = totals.pairs as f64;
        let (loss, expected) = (loss / pairs, expected.filter(|_| comparable).map(|expected| expected / pairs));
        self.check_first_loss(index, loss, expected)?;
        optim::unscale(&self.model.trainables, optim::loss_scale(self.model.kind()));
        let norm = optim::clip(&self.model.trainables, self.run.optim.max_grad_norm);
        if !norm.is_finite() {
            return Err(Error::at(format!("step {}", index + 1), "the gradient norm is NaN or infinite")
                .hint("lower `learning_rate`, or use `bf16: true` instead of `fp16: true`"));
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

    /// Forward and backward of all micro-batches of optimizer step `index`.
    fn micro_batches(&mut self, index: usize, cut: StepCut, feed: &mut Feed) -> Result<Tally> {
        let StepCut { totals, micros, .. } = cut;
        let mut tally = Tally::default();
        let whole = self.run.objective.needs_whole_step() && micros.len() > 1;
        let mut all = Vec::new();
        for (i, examples) in micros.iter().enumerate() {
            let prepared = feed.next().expect("the feed has the micro-batches of every step that is left")?;
            debug_assert_eq!(prepared.examples, *examples);
            let plan = StepPlan {
                objective: &self.run.objective,
                checkpointing: self.run.batch.checkpointing,
                tower: self.tower(),
                totals,
                dropout: self.dropout_seed(index, i),
            };
            let ready = self.ready(prepared.to_device(self.model.device), plan, &mut tally)?;
            match whole {
                true => all.push((plan, ready)),
                false => tally.add(caught(|| step(&self.model, &ready, plan, &mut self.clock))?),
            }
        }
        if whole {
            let judged = caught(|| look_ahead(&self.model, &all, &mut self.clock))?;
            for ((plan, ready), pull) in all.iter().zip(&judged.pulls) {
                tally.add(caught(|| Ok(follow(&self.model, ready, *plan, pull, &mut self.clock)))?);
            }
            let Judged { loss, at_reference, metrics, .. } = judged;
            tally.add(StepResult { loss, at_reference, metrics });
        }
        Ok(tally)
    }

    /// Sees to the images and the reference of a micro-batch.
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

    /// A policy that starts at its reference must show the loss of equal policies; otherwise something is wrong with one of them.
    fn check_first_loss(&self, index: usize, loss: f64, expected: Option<f64>) -> Result<()> {
        let Some(expected) = expected.filter(|_| index == 0 && self.starts_at_reference) else { return Ok(()) };
        if (loss - expected).abs() <= 1e-6 {
            return Ok(());
        }
        let what = format!("expected {expected:.6} before training (policy and reference agree), found {loss:.6}");
        Err(Error::at("first loss", what).hint("policy and reference were computed differently; please report this"))
    }

    fn tower(&self) -> Tower {
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

    /// Closes the window since the last entry.
    fn log(&mut self, done: &Done, window: &mut Window) -> Map<String, Value> {
        let mut entry = Map::new();
        let metrics = std::mem::take(&mut self.metrics);
        entry.insert("loss".to_owned(), json!(metrics.mean("loss")));
        entry.insert("grad_norm".to_owned(), json!(done.norm));
        entry.insert("learning_rate".to_owned(), json!(done.learning_rate));
        entry.extend(
            metrics.means().filter(|(name, _)| *name != "loss").map(|(name, mean)| (name.to_owned(), json!(mean))),
        );
        entry.insert("num_tokens".to_owned(), json!(self.state.tokens_seen));
        entry.insert("epoch".to_owned(), json!(self.state.step as f64 / self.order.steps_per_epoch() as f64));
        entry.insert("step".to_owned(), json!(self.state.step));
        window.close(&mut entry);
        if let tch::Device::Cuda(index) = self.model.device
            && let Ok(peak) = torch_ext::cuda_peak(index)
        {
            entry.insert("peak_memory".to_owned(), json!(peak.allocated));
        }
        self.state.log_history.push(Value::Object(entry.clone()));
        entry
    }

    /// Begins TensorBoard's file, where the recipe asks for one; what an earlier part of the run wrote stays, up to where this one goes on.
    fn open_events(&mut self) -> Result<()> {
        let ReportTo::TensorBoard { folder } = &self.run.output.report_to else { return Ok(()) };
        let folder = folder.clone().unwrap_or_else(|| self.run.output.dir.join("runs"));
        self.events = Some(EventWriter::create(&folder, SystemTime::now(), self.state.step as u64)?);
        Ok(())
    }

    /// Hands a log entry to whom the recipe names.
    fn report(&mut self, entry: &Map<String, Value>) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let tags = entry.iter().filter(|(metric, _)| *metric != "step");
        let tags: Vec<(String, f64)> =
            tags.filter_map(|(metric, value)| Some((tensorboard::tag(metric), value.as_f64()?))).collect();
        let scalars = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        events.scalars(SystemTime::now(), self.state.step as u64, scalars)
    }

    fn saves_now(&self) -> bool {
        match self.run.output.save {
            Save::Never => false,
            Save::Steps(steps) => self.state.step.is_multiple_of(steps),
            Save::EachEpoch => self.state.step.is_multiple_of(self.order.steps_per_epoch()),
        }
    }

    fn checkpoint_folder(&self, step: usize) -> PathBuf {
        self.run.output.dir.join(format!("checkpoint-{step}"))
    }

    fn save(&mut self) -> Result<PathBuf> {
        let damaged = |error| Error::at("metrics", format!("cannot be written as JSON: {error}"));
        self.state.metrics = serde_json::to_value(&self.metrics).map_err(damaged)?;
        let (moments, optimizer_steps) = self.optimizer.state();
        let trainables = &self.model.trainables;
        let copy = |m: &Moments| Moments { first: m.first.shallow_clone(), second: m.second.shallow_clone() };
        let tensors = Tensors {
            weights: trainables.iter().map(|t| (t.name.clone(), t.leaf.detach())).collect(),
            moments: trainables.iter().zip(moments).map(|(t, m)| (t.name.clone(), copy(m))).collect(),
            optimizer_steps,
        };
        let trainer_state = self.trainer_state();
        let (run, adapter, model) = (self.run, self.adapter.as_ref(), &self.model);
        let folder = checkpoint::save(&run.output.dir, &self.state, &trainer_state, &tensors, |folder| {
            output::model(run, adapter, model, folder)
        })?;
        checkpoint::prune(&run.output.dir, run.output.save_total_limit, &folder)?;
        Ok(folder)
    }

    /// Writes the trained model into `output_dir` itself, as users of transformers and PEFT expect it.
    fn finish(&self) -> Result<()> {
        let dir = &self.run.output.dir;
        output::model(self.run, self.adapter.as_ref(), &self.model, dir)?;
        output::card(self.run, self.inputs, self.state.step, dir)?;
        checkpoint::write_json(&dir.join("trainer_state.json"), &self.trainer_state())
    }

    /// transformers' `TrainerState`.
    fn trainer_state(&self) -> Value {
        let epochs = match self.run.batch.length {
            Length::Epochs(epochs) => epochs.ceil() as usize,
            Length::Steps(_) => self.total.div_ceil(self.order.steps_per_epoch()),
        };
        json!({
            "best_global_step": null,
            "best_metric": null,
            "best_model_checkpoint": null,
            "epoch": self.state.step as f64 / self.order.steps_per_epoch() as f64,
            "eval_steps": null,
            "global_step": self.state.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": self.state.log_history,
            "logging_steps": self.run.output.logging_steps,
            "max_steps": self.total,
            "num_input_tokens_seen": self.state.tokens_seen,
            "num_train_epochs": epochs,
            "save_steps": match self.run.output.save { Save::Steps(steps) => json!(steps), _ => Value::Null },
            "stateful_callbacks": {},
            "total_flos": 0,
            "train_batch_size": self.run.batch.per_device,
            "trial_name": null,
            "trial_params": null,
        })
    }
}

/// What the micro-batches of a step gave together.
struct Tally {
    loss: f64,
    /// The loss if the policy were the reference, where the objective has one.
    expected: Option<f64>,
    /// Whether that can be compared with the loss.
    comparable: bool,
    tokens: u64,
    metrics: Metrics,
    flops: Flops,
}

impl Default for Tally {
    fn default() -> Self {
        let (metrics, flops) = (Metrics::default(), Flops::default());
        Tally { loss: 0.0, expected: Some(0.0), comparable: true, tokens: 0, metrics, flops }
    }
}

impl Tally {
    fn add(&mut self, done: StepResult) {
        self.loss += done.loss;
        self.expected = self.expected.zip(done.at_reference).map(|(sum, more)| sum + more);
        self.metrics.merge(&done.metrics);
    }
}

/// Examples, tokens, seconds and those of them spent waiting for data since the last log entry; they are not part of the state, since time is not.
struct Window {
    steps: usize,
    samples: usize,
    tokens: u64,
    seconds: f64,
    waited: f64,
}

impl Window {
    fn new() -> Self {
        Window { steps: 0, samples: 0, tokens: 0, seconds: 0.0, waited: 0.0 }
    }

    fn add(&mut self, done: &Done) {
        self.steps += 1;
        self.samples += done.pairs;
        self.tokens += done.tokens;
        self.seconds += done.seconds;
        self.waited += done.waited;
    }

    fn close(&mut self, entry: &mut Map<String, Value>) {
        entry.insert("step_time".to_owned(), json!(self.seconds / self.steps.max(1) as f64));
        entry.insert("data_wait".to_owned(), json!(self.waited / self.steps.max(1) as f64));
        entry.insert("samples_per_second".to_owned(), json!(self.samples as f64 / self.seconds));
        entry.insert("tokens_per_second".to_owned(), json!(self.tokens as f64 / self.seconds));
        *self = Window::new();
    }
}

/// A digest of what the checkpoint is: its configuration, and the lengths of its weight files.
fn checkpoint_digest(folder: &Path) -> Result<String> {
    let mut text = checkpoint::manifest::digest(&folder.join("config.json"))?.1;
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    for path in files {
        let length = std::fs::metadata(&path).map_err(|error| Error::io("read", &path, &error))?.len();
        text += &format!(" {length}");
    }
    Ok(text)
}

/// Raised by Ctrl-C and SIGTERM; a second one ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|error| Error::at("signals", format!("cannot listen for signal {signal}: {error}")))?;
    }
    Ok(flag)
}
