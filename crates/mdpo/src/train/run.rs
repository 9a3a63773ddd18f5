//! The loop over optimizer steps.

use super::evaluate::{Findings, Moment, Subject};
use super::optimizer_step::{Done, Tally};
use super::progress::Progress;
use super::stage::{Clock, Laps};
use super::step::complete;
use super::{
    Evaluator, FeatureCache, Feed, Inputs, Metrics, PictureCheck, Ranks, ReferenceCache, Steps, data_threads, device,
    kind, memory, output,
};
use crate::checkpoint::{self, Evaluations, State, Tensors};
use crate::config::{
    AdapterStart, Length, Lora, Redraw, ReferenceLogps, ReferenceWhen, ReportTo, Resume, Run, Save, Tuning,
};
use crate::data::order::Order;
use crate::error::caught;
use crate::model::Model;
use crate::model::load::Plan;
use crate::model::value_head::ValueHead;
use crate::nn::Role;
use crate::optim::{AdamW, Moments};
use crate::talk::Talk;
use crate::weights::{self, AdapterConfig};
use crate::{Error, Result, config};
use mdpo_measure::tensorboard::{self, EventWriter};
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// How many examples an optimizer step takes, in a run's identity.
const EXAMPLES_PER_STEP: &str = "examples per optimizer step";

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

/// Trains as `run` says, in this process alone. A signal (Ctrl-C, SIGTERM) saves a checkpoint and ends it.
pub fn train(run: &Run, talk: Talk) -> Result<Outcome> {
    train_on(&Ranks::one(), run, talk)
}

/// Trains as `run` says, as one of several ranks. Whatever ends one of them, a signal or a problem, ends all; the first one writes and talks.
pub fn train_on(ranks: &Ranks, run: &Run, talk: Talk) -> Result<Outcome> {
    let talk = if ranks.leads() { talk } else { Talk::Silent };
    ranks.check_run(run)?;
    ranks.first_one(|| output::prepare(run))?;
    let device = ranks.device(run.model.device)?;
    let opened = Inputs::open_with_held_out(run, PictureCheck::Header);
    let opened = opened.and_then(|(inputs, held_out)| Ok((inputs, Evaluator::new(run, held_out)?)));
    let (inputs, evaluator) = ranks.agree(opened)?;
    let references = ranks.first_one_then_others(|| ReferenceCache::of_run(run, device))?;
    let begun = Trainer::new(ranks, run, &inputs, device, references.among(ranks));
    let begun = begun.and_then(|mut trainer| {
        trainer.evaluator = evaluator.as_ref();
        trainer.resume().map(|()| trainer)
    });
    let mut trainer = ranks.agree(begun)?;
    trainer.check_equal()?;
    ranks.first_one(|| trainer.open_events())?;
    trainer.introduce(talk, device);
    let ended = trainer.precompute().and_then(|()| {
        std::thread::scope(|scope| {
            let mut feed = Feed::new(scope, trainer.steps(), trainer.state.step..trainer.total, data_threads())?;
            trainer.run(talk, &mut feed)
        })
    });
    // What the reference said is worth keeping however the run ended; how it ended is the error to tell.
    let kept = trainer.references.write();
    ended.and_then(|outcome| ranks.agree(kept).map(|()| outcome))
}

/// Loads the model as training would, checks that results can be written, and counts the trained parameters.
pub fn try_load(run: &Run, inputs: &Inputs) -> Result<usize> {
    output::check(run)?;
    let device = device(run.model.device)?;
    let ranks = Ranks::one();
    let trainer = Trainer::new(&ranks, run, inputs, device, ReferenceCache::of_run(run, device)?)?;
    Ok(trainer.model.trainables.iter().map(|trainable| trainable.leaf.numel()).sum())
}

/// What became of an evaluation that was due, or that none was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evaluated {
    /// There is nothing left of it.
    Whole,
    /// A signal ended it: the run stops, also where all its steps are done.
    CutShort,
}

pub(super) struct Trainer<'a> {
    pub ranks: &'a Ranks,
    pub run: &'a Run,
    pub inputs: &'a Inputs,
    pub model: Model,
    pub optimizer: AdamW,
    adapter: Option<AdapterConfig>,
    order: Order,
    /// Optimizer steps of the whole run.
    pub total: usize,
    /// Where the time goes.
    pub clock: Clock,
    pub state: State,
    pub metrics: Metrics,
    /// What it is evaluated on, where it is.
    evaluator: Option<&'a Evaluator>,
    /// What the reference said so far.
    pub references: ReferenceCache,
    /// What the vision tower gave for images.
    pub features: FeatureCache,
    /// TensorBoard's file, where the recipe asks for one; the first rank's alone.
    events: Option<EventWriter>,
    /// Whether policy and reference agree before the first step, as they should.
    pub starts_at_reference: bool,
    stop: Arc<AtomicBool>,
}

impl<'a> Trainer<'a> {
    pub fn new(
        ranks: &'a Ranks,
        run: &'a Run,
        inputs: &'a Inputs,
        device: tch::Device,
        references: ReferenceCache,
    ) -> Result<Self> {
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
        let per_step = run.batch.per_device * run.batch.accumulation * ranks.count();
        let (examples, per_step) = (nonzero(inputs.examples.len())?, nonzero(per_step)?);
        let order = match run.data.shuffle {
            true => Order::shuffled(examples, per_step, run.seed),
            false => Order::as_written(examples, per_step),
        };
        let mut identity = run.identity();
        // A step is what its examples are, however many ranks and passes share it; only dropout is drawn for each pass.
        identity.remove("gradient_accumulation_steps");
        if !matches!(&run.tuning, Tuning::Lora(lora) if lora.dropout > 0.0) {
            identity.remove("per_device_train_batch_size");
        }
        identity.insert(EXAMPLES_PER_STEP.to_owned(), json!(per_step));
        identity.insert("rows of the data set".to_owned(), json!(inputs.report.digest));
        identity.insert("checkpoint".to_owned(), json!(checkpoint_digest(&run.model.path)?));
        Ok(Trainer {
            ranks,
            optimizer: AdamW::new(run.optim.clone(), &model.trainables),
            total: order.steps(run.batch.length),
            clock: Clock::new(Laps::Unwaited, device),
            state: State {
                step: 0,
                identity,
                metrics: Value::Null,
                log_history: Vec::new(),
                tokens_seen: 0,
                evaluations: Evaluations::default(),
            },
            evaluator: None,
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
            let mut hint = "resume with the recipe it was started with, or train into another `output_dir`".to_owned();
            if state.identity.get(EXAMPLES_PER_STEP) != self.state.identity.get(EXAMPLES_PER_STEP) {
                let count = self.ranks.count();
                hint += &format!(
                    "; a step takes `per_device_train_batch_size` × `gradient_accumulation_steps` × ranks (here {count}) examples"
                );
            }
            return Err(Error::at(folder.display(), what).hint(hint));
        }
        self.put(&folder, &tensors)?;
        let mut moments = Vec::new();
        for trainable in &self.model.trainables {
            let missing = || Error::at(folder.display(), format!("`{}` is not in the checkpoint", trainable.name));
            let Moments { first, second } = tensors.moments.remove(&trainable.name).ok_or_else(missing)?;
            let place = trainable.leaf.device();
            moments.push(Moments { first: first.to_device(place), second: second.to_device(place) });
        }
        self.optimizer.restore(moments, tensors.optimizer_steps);
        let damaged = |error| Error::at(folder.display(), format!("cannot read the metrics: {error}"));
        self.metrics = serde_json::from_value(state.metrics.clone()).map_err(damaged)?;
        self.state = state;
        if let Some(evaluator) = self.evaluator {
            evaluator.check_resumed(&self.state.evaluations)?;
        }
        // Not found at the end would be too late.
        self.best_to_end_with().map(drop)
    }

    /// Gives what is trained the values of a checkpoint.
    fn put(&self, folder: &Path, tensors: &Tensors) -> Result<()> {
        for trainable in &self.model.trainables {
            let name = &trainable.name;
            let missing = || Error::at(folder.display(), format!("`{name}` is not in the checkpoint"));
            let weight = tensors.weights.get(name).ok_or_else(missing)?;
            let mut leaf = trainable.leaf.shallow_clone();
            tch::no_grad(|| leaf.f_copy_(weight))?;
        }
        Ok(())
    }

    /// All ranks have the same run before them, and stand at the same place of it.
    fn check_equal(&self) -> Result<()> {
        let mine = self.state.identity.iter().map(|(name, value)| (name.clone(), value.to_string()));
        let held_out = self.evaluator.and_then(Evaluator::held_out).map(|held_out| &held_out.report.digest);
        let held_out = held_out.map(|digest| ("rows that are held out".to_owned(), digest.clone()));
        let steps = ("steps done".to_owned(), self.state.step.to_string());
        self.ranks.check_equal(mine.chain(held_out).chain([steps]))?;
        self.ranks.check_weights(&self.model.trainables)
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
        if self.ranks.count() > 1 {
            let per_step = self.state.identity.get(EXAMPLES_PER_STEP).map_or(String::new(), Value::to_string);
            eprintln!("ranks    {} · {per_step} examples a step", self.ranks.count());
        }
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
        if let Some(held_out) = self.evaluator.and_then(Evaluator::held_out) {
            let report = &held_out.report;
            eprintln!(
                "held out {} of {} rows ({} with images)",
                held_out.examples.len(),
                report.rows,
                report.with_images
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
        let share = self.ranks.share();
        Steps { inputs: self.inputs, order: self.order.clone(), batch: self.run.batch.clone(), share }
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
            let mut feed = Feed::new(scope, steps.clone(), range.clone(), data_threads())?;
            for step in range {
                let stop = self.stop.load(Ordering::Relaxed);
                let mine = (0..steps.own(&steps.step(step)).count()).try_for_each(|_| self.precompute_next(&mut feed));
                self.tell(mine.map(|()| Tally::default()))?;
                if self.ranks.any(stop)? {
                    break;
                }
            }
            Ok(())
        })
    }

    fn precompute_next(&mut self, feed: &mut Feed) -> Result<()> {
        let prepared = feed.next().expect("the feed has the micro-batches of every step");
        let micro = prepared?.to_device(self.model.device);
        let mut known = self.references.known_of_recurring(&micro);
        caught(|| {
            complete(&self.model, &micro, Role::Reference, None, &mut known);
            Ok(())
        })?;
        self.references.learn(&micro, &known)
    }

    fn run(&mut self, talk: Talk, feed: &mut Feed) -> Result<Outcome> {
        let progress = Progress::new(talk, self.state.step, self.total);
        let (mut saved, mut window) = (self.state.step, Window::new());
        let ended = loop {
            // Also before the first step, and after the last.
            match self.evaluate(&progress) {
                Ok(Evaluated::Whole) => {}
                Ok(Evaluated::CutShort) => break Ok(true),
                Err(error) => break Err(error),
            }
            if self.state.step > saved && self.saves_now() {
                if let Err(error) = self.save() {
                    break Err(error);
                }
                saved = self.state.step;
            }
            if self.state.step >= self.total || self.stops_early(&progress) {
                break Ok(false);
            }
            match self.ranks.any(self.stop.load(Ordering::Relaxed)) {
                Ok(false) => {}
                stopped => break stopped,
            }
            match self.optimizer_step(feed) {
                Err(error) => break Err(error),
                Ok(done) => {
                    window.add(&done);
                    let due = self.state.step.is_multiple_of(self.run.output.logging_steps);
                    let due = due || self.state.step == 1 || self.state.step == self.total;
                    let entry = due.then(|| self.log(&done, &mut window));
                    progress.step(self.state.step, entry.as_ref());
                    if let (Some(entry), ReportTo::TensorBoard { .. }) = (entry, &self.run.output.report_to) {
                        let told = self.report(&entry);
                        if let Err(error) = self.ranks.agree(told) {
                            break Err(error);
                        }
                    }
                }
            }
        };
        progress.finish();
        let unsaved = self.state.step > saved;
        match ended {
            Ok(true) => {
                let last = self.checkpoint_folder(saved);
                let folder = if self.ranks.any(unsaved || !last.is_dir())? { self.save()? } else { last };
                progress.say(format!("stopped; continue with `resume_from_checkpoint=true` from {}", folder.display()));
                Ok(self.outcome(folder, true))
            }
            Ok(false) => {
                if unsaved && self.run.output.save != Save::Never {
                    self.save()?;
                }
                self.ranks.check_weights(&self.model.trainables)?;
                self.ranks.first_one(|| self.finish(&progress))?;
                Ok(self.outcome(self.run.output.dir.clone(), false))
            }
            // What was learned until here is kept; the error of the step is the one to tell.
            Err(error) => {
                if unsaved
                    && self.ranks.leads()
                    && let Ok(folder) = self.write_checkpoint()
                {
                    progress.say(format!("the steps before are kept in {}", folder.display()));
                }
                Err(error)
            }
        }
    }

    /// Evaluates where the recipe asks for it: the first rank does, and tells the others what they need to go on alike. A signal cuts it
    /// short, and a resumed run makes up for it.
    fn evaluate(&mut self, progress: &Progress) -> Result<Evaluated> {
        let moment = Moment { step: self.state.step, total: self.total, per_epoch: self.order.steps_per_epoch() };
        let due = self.evaluator.filter(|it| it.is_due(moment) && self.state.evaluations.last != Some(moment.step));
        let Some(evaluator) = due else { return Ok(Evaluated::Whole) };
        let (ranks, stop) = (self.ranks, self.stop.clone());
        let mine = ranks.first_one_at_length(&stop, || self.evaluate_here(evaluator, moment, progress));
        let all = ranks.all(mine.map(|()| self.state.evaluations.clone()))?;
        self.state.evaluations = all.into_iter().next().expect("there is a first rank");
        Ok(match self.state.evaluations.last == Some(moment.step) {
            true => Evaluated::Whole,
            false => Evaluated::CutShort,
        })
    }

    fn evaluate_here(&mut self, evaluator: &Evaluator, moment: Moment, progress: &Progress) -> Result<()> {
        let tower = self.tower();
        let (model, references, features) = (&self.model, &mut self.references, &mut self.features);
        let mut subject = Subject { model, references, features, tower, stop: &self.stop };
        let Some(Findings { entry, notes }) = evaluator.evaluate(&mut subject, moment)? else { return Ok(()) };
        notes.into_iter().for_each(|note| progress.say(note));
        evaluator.take(&entry, moment.step, &mut self.state.evaluations);
        progress.say(evaluator.line(&entry, moment.step, &self.state.evaluations));
        self.report(&entry)?;
        self.state.log_history.push(Value::Object(entry));
        Ok(())
    }

    fn stops_early(&self, progress: &Progress) -> bool {
        let enough = self.evaluator.is_some_and(|evaluator| evaluator.is_enough(&self.state.evaluations));
        if enough {
            let waited = self.state.evaluations.waited;
            progress.say(format!("stopped early after step {}: {waited} evaluations were no better", self.state.step));
        }
        enough
    }

    /// The step and the folder of the best evaluation's checkpoint, where the run ends with it and not with its last step.
    fn best_to_end_with(&self) -> Result<Option<(usize, PathBuf)>> {
        let ends_with_best = self.evaluator.is_some_and(Evaluator::ends_with_best);
        let Some(best) = self.state.evaluations.best.as_ref().filter(|_| ends_with_best) else { return Ok(None) };
        let folder = self.best_checkpoint().ok_or_else(|| {
            let what = format!("the best checkpoint, of step {}, is not there any more", best.step);
            Error::at(self.checkpoint_folder(best.step).display(), what)
                .hint("put it back, or end with the last step: `load_best_model_at_end: false`")
        })?;
        Ok(Some((best.step, folder)))
    }

    /// The checkpoint of the best evaluation, in `output_dir` or beside the one that the run was resumed from, where there is one.
    fn best_checkpoint(&self) -> Option<PathBuf> {
        let name = format!("checkpoint-{}", self.state.evaluations.best.as_ref()?.step);
        let resumed = match &self.run.output.resume {
            Resume::From(folder) => folder.parent(),
            Resume::No | Resume::Newest => None,
        };
        let places = std::iter::once(self.run.output.dir.as_path()).chain(resumed);
        places.map(|place| place.join(&name)).find(|folder| folder.is_dir())
    }

    fn outcome(&self, folder: PathBuf, interrupted: bool) -> Outcome {
        let steps = (self.state.step, self.total);
        Outcome { steps, log_history: self.state.log_history.clone(), folder, interrupted }
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
        // An evaluation's epoch is that of its step, which training logs.
        let evaluation = entry.contains_key("eval_runtime");
        let tags = entry.iter().filter(|(metric, _)| *metric != "step" && !(evaluation && *metric == "epoch"));
        let tags: Vec<(String, f64)> =
            tags.filter_map(|(metric, value)| Some((tensorboard::tag(metric), value.as_f64()?))).collect();
        let scalars = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        events.scalars(SystemTime::now(), self.state.step as u64, scalars)
    }

    fn saves_now(&self) -> bool {
        let best = self.state.evaluations.best.as_ref().is_some_and(|best| best.step == self.state.step);
        if best && self.evaluator.is_some_and(Evaluator::ends_with_best) {
            return true;
        }
        match self.run.output.save {
            Save::Never => false,
            Save::Steps(steps) => self.state.step.is_multiple_of(steps),
            Save::EachEpoch => self.state.step.is_multiple_of(self.order.steps_per_epoch()),
        }
    }

    fn checkpoint_folder(&self, step: usize) -> PathBuf {
        self.run.output.dir.join(format!("checkpoint-{step}"))
    }

    /// Saves a checkpoint on the first rank, once all ranks have the same weights.
    fn save(&mut self) -> Result<PathBuf> {
        self.ranks.check_weights(&self.model.trainables)?;
        let folder = self.checkpoint_folder(self.state.step);
        let saved = if self.ranks.leads() { self.write_checkpoint() } else { Ok(folder) };
        self.ranks.agree(saved)
    }

    fn write_checkpoint(&mut self) -> Result<PathBuf> {
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
        let best = self.state.evaluations.best.as_ref();
        let best = match best.is_some_and(|best| best.step == self.state.step) {
            true => Some(self.checkpoint_folder(self.state.step)),
            false => self.best_checkpoint(),
        };
        let trainer_state = self.trainer_state(best.as_deref());
        let (run, adapter, model) = (self.run, self.adapter.as_ref(), &self.model);
        let folder = checkpoint::save(&run.output.dir, &self.state, &trainer_state, &tensors, |folder| {
            output::model(run, adapter, model, folder)
        })?;
        let kept: Vec<&Path> = std::iter::once(folder.as_path()).chain(best.as_deref()).collect();
        checkpoint::prune(&run.output.dir, run.output.save_total_limit, &kept)?;
        Ok(folder)
    }

    /// Writes the trained model into `output_dir` itself, as users of transformers and PEFT expect it.
    fn finish(&self, progress: &Progress) -> Result<()> {
        let (dir, mut steps) = (&self.run.output.dir, self.state.step);
        if let Some((step, folder)) = self.best_to_end_with()?
            && step != self.state.step
        {
            self.put(&folder, &checkpoint::load(&folder)?.1)?;
            progress.say(format!("the model of step {step}, the best, is what is written"));
            steps = step;
        }
        output::model(self.run, self.adapter.as_ref(), &self.model, dir)?;
        output::card(self.run, self.inputs, steps, dir)?;
        checkpoint::write_json(&dir.join("trainer_state.json"), &self.trainer_state(self.best_checkpoint().as_deref()))
    }

    /// transformers' `TrainerState`; `best` is the folder of the best evaluation's checkpoint.
    fn trainer_state(&self, best: Option<&Path>) -> Value {
        let epochs = match self.run.batch.length {
            Length::Epochs(epochs) => epochs.ceil() as usize,
            Length::Steps(_) => self.total.div_ceil(self.order.steps_per_epoch()),
        };
        json!({
            "best_global_step": self.state.evaluations.best.as_ref().map(|best| best.step),
            "best_metric": self.state.evaluations.best.as_ref().map(|best| best.value),
            "best_model_checkpoint": best.map(|folder| folder.to_string_lossy()),
            "epoch": self.state.step as f64 / self.order.steps_per_epoch() as f64,
            "eval_steps": self.evaluator.and_then(Evaluator::eval_steps),
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
