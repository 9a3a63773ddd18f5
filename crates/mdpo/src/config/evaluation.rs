//! How a run is evaluated while it trains: the types, and their keys read and written.
//!
//! Names and meanings are those of transformers' `Trainer` and its `EarlyStoppingCallback`; `val_size` is LLaMA-Factory's.

use super::judge::{self, Judge};
use super::keys;
use super::recipe::{Recipe, plain};
use super::validate::{each, flag, number, one_of, text, whole};
use super::{Output, Save};
use mdpo_measure::benchmark::mmhal;
use serde_json::{Value, json};
use std::path::PathBuf;

/// How a run is evaluated while it trains.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// At which steps (`eval_strategy`, `eval_steps`); after the last step it always is.
    pub when: EvaluateWhen,
    /// Whether it is before the first step too (`eval_on_start`, default false).
    pub on_start: bool,
    /// The rows that are held out of training.
    pub held_out: HeldOut,
    /// How many of them are looked at, the first ones (`max_eval_samples`); all when absent.
    pub max_samples: Option<usize>,
    /// Examples in one forward pass (`per_device_eval_batch_size`, default 8), where there is no `max_tokens_per_batch`.
    pub per_device: usize,
    /// By what the best model is told, where that is asked for.
    pub best: Option<Best>,
    /// Benchmarks that the policy answers (`eval_benchmarks`).
    pub benchmarks: Vec<BenchmarkSample>,
    /// Who grades the answers to those that no rule scores.
    pub judge: Option<Judge>,
    /// A file of prompts that are answered at each evaluation (`eval_prompts`).
    pub prompts: Option<PathBuf>,
    /// The most tokens of an answer (`eval_max_new_tokens`, default 256).
    pub max_new_tokens: usize,
}

/// At which steps a run is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluateWhen {
    /// `steps`: after every so many (`eval_steps`, by default `logging_steps`).
    Steps(usize),
    /// `epoch`.
    EachEpoch,
}

/// Which rows are held out of training.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldOut {
    /// None.
    Nothing,
    /// Those of other files (`eval_dataset_name`).
    Files(Vec<PathBuf>),
    /// A share of the data set's rows, drawn by the seed (`val_size` below 1).
    Share(f64),
    /// So many of the data set's rows, drawn by the seed (`val_size` from 1).
    Rows(usize),
}

/// By what the best model is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// The metric as it is logged, with `eval_` in front (`metric_for_best_model`, default `eval_loss`).
    pub metric: String,
    /// Which direction is good (`greater_is_better`); what the metric's name says when absent.
    pub better: Option<Direction>,
    /// Which weights the run ends with.
    pub ends_with: EndsWith,
    /// When it ends before its last step.
    pub early_stopping: Option<EarlyStopping>,
}

/// Which direction of a metric is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `greater_is_better: false`.
    Lower,
    /// `greater_is_better: true`.
    Higher,
}

/// Which weights `output_dir` holds at the end (`load_best_model_at_end`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndsWith {
    /// `false`, the default: those of the last step.
    Last,
    /// `true`: those of the best evaluation.
    Best,
}

/// When a run ends before its last step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStopping {
    /// After so many evaluations in a row that were no better than the best before them (`early_stopping_patience`).
    pub patience: usize,
    /// By how much at least an evaluation must be better to count as such (`early_stopping_threshold`, default 0: by anything).
    pub threshold: f64,
}

/// A benchmark, or the first of its questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchmarkSample {
    /// Its name, as `mdpo eval --benchmark` takes it.
    pub name: String,
    /// Its folder.
    pub data: PathBuf,
    /// How many questions; all when absent.
    pub limit: Option<usize>,
}

/// Keys that ask for an evaluation, or for something that only an evaluation gives.
const NEED_EVALUATION: [&str; 9] = [
    "eval_dataset_name",
    "max_eval_samples",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_benchmarks",
    "eval_prompts",
    "eval_max_new_tokens",
];

impl Recipe {
    /// How the run is evaluated, where it is.
    pub(super) fn evaluation(&mut self, output: &Output) -> Option<Evaluation> {
        #[derive(Clone, Copy, PartialEq)]
        enum Strategy {
            No,
            Steps,
            Epoch,
        }
        let strategy = self.value(
            "eval_strategy",
            one_of(&[
                ("no", Strategy::No),
                ("false", Strategy::No),
                ("steps", Strategy::Steps),
                ("epoch", Strategy::Epoch),
            ]),
        );
        let every = self.optional("eval_steps", whole(1)).unwrap_or(output.logging_steps);
        let benchmarks = self.benchmarks();
        let needs_judge = benchmarks.iter().any(|benchmark| benchmark.name == mmhal::NAME);
        let judge = self.judge();
        let evaluation = Evaluation {
            when: match strategy {
                Strategy::Epoch => EvaluateWhen::EachEpoch,
                Strategy::Steps | Strategy::No => EvaluateWhen::Steps(every),
            },
            on_start: self.value("eval_on_start", flag),
            held_out: self.held_out(),
            max_samples: self.optional("max_eval_samples", whole(1)),
            per_device: self.value("per_device_eval_batch_size", whole(1)),
            best: self.best(),
            benchmarks,
            judge: needs_judge.then_some(judge),
            prompts: self.optional("eval_prompts", text).map(PathBuf::from),
            max_new_tokens: self.value("eval_max_new_tokens", whole(1)),
        };
        if strategy == Strategy::No {
            self.forbid_without_evaluation(&evaluation);
            return None;
        }
        if strategy == Strategy::Epoch {
            let what = "`eval_steps` has no meaning unless `eval_strategy` is `steps`";
            self.forbid("eval_steps", what, "leave it out, or write `eval_strategy: steps`");
        }
        self.check_judge(evaluation.judge.as_ref());
        self.check_what_is_evaluated(&evaluation);
        if evaluation.best.as_ref().is_some_and(|best| best.ends_with == EndsWith::Best) {
            self.check_checkpoints(evaluation.when, output.save);
        }
        Some(evaluation)
    }

    fn forbid_without_evaluation(&mut self, evaluation: &Evaluation) {
        let asked = [
            ("eval_on_start", evaluation.on_start),
            ("val_size", evaluation.held_out != HeldOut::Nothing && self.entry("eval_dataset_name").is_none()),
            ("load_best_model_at_end", evaluation.best.as_ref().is_some_and(|best| best.ends_with == EndsWith::Best)),
        ];
        let asked = asked.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key);
        for key in asked.chain(NEED_EVALUATION).chain(judge::KEYS) {
            let what = format!("`{key}` has no meaning without an evaluation");
            self.forbid(key, &what, "leave it out, or write `eval_strategy: steps` or `epoch`");
        }
    }

    fn held_out(&mut self) -> HeldOut {
        let files = self.optional("eval_dataset_name", |value| each(value, text));
        let share = self.value("val_size", |value| match number(|share| share > 0.0 && share < 1.0)(value) {
            Some(share) => Some(HeldOut::Share(share)),
            None => whole(0)(value).map(|rows| if rows == 0 { HeldOut::Nothing } else { HeldOut::Rows(rows) }),
        });
        match files {
            Some(files) => {
                if share != HeldOut::Nothing {
                    let what = "`eval_dataset_name` and `val_size` both say which rows are held out";
                    self.complain("val_size", what, super::validate::LEAVE_ONE);
                }
                HeldOut::Files(files.into_iter().map(PathBuf::from).collect())
            }
            None => share,
        }
    }

    fn best(&mut self) -> Option<Best> {
        let metric = self.optional("metric_for_best_model", text).map(|name| match name.strip_prefix("eval_") {
            Some(_) => name,
            None => format!("eval_{name}"),
        });
        let better = self.optional("greater_is_better", |value| {
            flag(value).map(|greater| if greater { Direction::Higher } else { Direction::Lower })
        });
        let ends_with = if self.value("load_best_model_at_end", flag) { EndsWith::Best } else { EndsWith::Last };
        let patience = self.optional("early_stopping_patience", whole(1));
        let threshold = self.value("early_stopping_threshold", number(|threshold| threshold >= 0.0));
        if patience.is_none() {
            let what = "`early_stopping_threshold` has no meaning without `early_stopping_patience`";
            self.forbid("early_stopping_threshold", what, "leave it out, or add `early_stopping_patience: 3`");
        }
        if metric.is_none() && patience.is_none() && ends_with == EndsWith::Last {
            let what = "`greater_is_better` has no meaning where no best model is looked for";
            self.forbid("greater_is_better", what, "leave it out, or add `metric_for_best_model`");
            return None;
        }
        Some(Best {
            metric: metric.unwrap_or_else(|| "eval_loss".to_owned()),
            better,
            ends_with,
            early_stopping: patience.map(|patience| EarlyStopping { patience, threshold }),
        })
    }

    /// Every entry that is none is told by its number.
    fn benchmarks(&mut self) -> Vec<BenchmarkSample> {
        let Some(value) = self.entry("eval_benchmarks").map(|entry| entry.value.clone()) else { return Vec::new() };
        let entries = value.as_array().map_or(std::slice::from_ref(&value), Vec::as_slice);
        if entries.is_empty() {
            let what = "`eval_benchmarks` is an empty list";
            self.complain("eval_benchmarks", what, "leave it out, or name a benchmark");
        }
        let mut found: Vec<BenchmarkSample> = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            // Figures are told apart by the benchmark's name.
            let read = benchmark(entry).and_then(|sample| match found.iter().any(|other| other.name == sample.name) {
                true => Err((format!("`{}` is there already", sample.name), "leave one of the two out".to_owned())),
                false => Ok(sample),
            });
            match read {
                Ok(sample) => found.push(sample),
                Err((what, hint)) => {
                    self.complain("eval_benchmarks", format!("`eval_benchmarks` entry {number}: {what}"), hint);
                }
            }
        }
        found
    }

    fn check_what_is_evaluated(&mut self, evaluation: &Evaluation) {
        // An entry that is none is told already.
        let answers = evaluation.prompts.is_some() || self.entry("eval_benchmarks").is_some();
        if evaluation.held_out == HeldOut::Nothing {
            let what = "`max_eval_samples` counts rows that are held out, but none are";
            self.forbid("max_eval_samples", what, "add `eval_dataset_name` or `val_size`, or leave it out");
            if !answers && self.entry("eval_dataset_name").is_none() {
                let hint =
                    "add `eval_dataset_name: FILE`, or `val_size: 0.05`, which holds out a share of `dataset_name`";
                self.complain("eval_strategy", "`eval_strategy` has nothing to evaluate", hint);
            }
        }
        if !answers {
            let what = "`eval_max_new_tokens` has no meaning where nothing is answered";
            self.forbid("eval_max_new_tokens", what, "leave it out, or add `eval_prompts` or `eval_benchmarks`");
        }
    }

    /// What transformers demands, so that there is a checkpoint of what was evaluated.
    fn check_checkpoints(&mut self, when: EvaluateWhen, save: Save) {
        let (what, hint) = match (when, save) {
            (EvaluateWhen::Steps(every), Save::Steps(saved)) if !saved.is_multiple_of(every) => (
                format!(
                    "`load_best_model_at_end` needs `save_steps` to be a multiple of `eval_steps`, found {saved} and {every}"
                ),
                format!("write `save_steps: {}`", every * saved.div_ceil(every)),
            ),
            (EvaluateWhen::Steps(_), Save::Steps(_)) | (EvaluateWhen::EachEpoch, Save::EachEpoch) => return,
            (EvaluateWhen::Steps(_), _) => (
                "`load_best_model_at_end` needs checkpoints where the run is evaluated, but `eval_strategy` is `steps` and `save_strategy` is not"
                    .to_owned(),
                "write `save_strategy: steps`".to_owned(),
            ),
            (EvaluateWhen::EachEpoch, _) => (
                "`load_best_model_at_end` needs checkpoints where the run is evaluated, but `eval_strategy` is `epoch` and `save_strategy` is not"
                    .to_owned(),
                "write `save_strategy: epoch`".to_owned(),
            ),
        };
        self.complain("load_best_model_at_end", what, hint);
    }
}

/// `{name: …, data: …, limit: …}` and nothing else; or what is wrong with it, and how to mend that.
fn benchmark(value: &Value) -> Result<BenchmarkSample, (String, String)> {
    const KEYS: [&str; 3] = ["name", "data", "limit"];
    let Some(map) = value.as_object() else {
        let name = value.as_str().unwrap_or("NAME");
        let what = format!("expected a mapping with `name` and `data`, found `{}`", plain(value));
        return Err((what, format!("write `{{name: {name}, data: FOLDER}}`")));
    };
    if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let hint = match super::nearest(key, KEYS) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "its keys are `name`, `data` and, for a sample of its images, `limit`".to_owned(),
        };
        return Err((format!("`{key}` is no key of a benchmark"), hint));
    }
    let needed = |key: &str, hint: &str| {
        let found = map.get(key).map(|value| text(value).ok_or_else(|| format!("found `{}`", plain(value))));
        let read = found.unwrap_or_else(|| Err("found none".to_owned()));
        read.map_err(|found| (format!("expected a text as `{key}`, {found}"), hint.to_owned()))
    };
    let name = needed("name", "name a benchmark, as `mdpo eval --benchmark` does")?;
    let data = needed("data", "name the folder with the benchmark's files: `data: FOLDER`")?;
    let limit = map.get("limit").filter(|limit| !limit.is_null());
    let limit = limit.map(|limit| {
        let what = || format!("expected a whole number from 1 as `limit`, found `{}`", plain(limit));
        whole(1)(limit).ok_or_else(|| (what(), "leave it out to ask about all images".to_owned()))
    });
    Ok(BenchmarkSample { name, data: PathBuf::from(data), limit: limit.transpose()? })
}

impl Evaluation {
    /// Its keys with their values, in the order of the table.
    pub(super) fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let path = |path: &PathBuf| json!(path.to_string_lossy());
        let mut keys = match self.when {
            EvaluateWhen::Steps(every) => vec![("eval_strategy", json!("steps")), ("eval_steps", json!(every))],
            EvaluateWhen::EachEpoch => vec![("eval_strategy", json!("epoch"))],
        };
        keys.push(("eval_on_start", json!(self.on_start)));
        match &self.held_out {
            HeldOut::Nothing => {}
            HeldOut::Files(files) => keys.push(("eval_dataset_name", files.iter().map(path).collect())),
            HeldOut::Share(share) => keys.push(("val_size", json!(share))),
            HeldOut::Rows(rows) => keys.push(("val_size", json!(rows))),
        }
        keys.push(("max_eval_samples", json!(self.max_samples)));
        keys.push(("per_device_eval_batch_size", json!(self.per_device)));
        if let Some(best) = &self.best {
            keys.push(("metric_for_best_model", json!(best.metric)));
            keys.push(("greater_is_better", json!(best.better.map(|better| better == Direction::Higher))));
            keys.push(("load_best_model_at_end", json!(best.ends_with == EndsWith::Best)));
            if let Some(EarlyStopping { patience, threshold }) = best.early_stopping {
                keys.push(("early_stopping_patience", json!(patience)));
                keys.push(("early_stopping_threshold", json!(threshold)));
            }
        }
        let sample = |sample: &BenchmarkSample| {
            let mut map = json!({ "name": sample.name, "data": path(&sample.data) });
            if let Some(limit) = sample.limit {
                map["limit"] = json!(limit);
            }
            map
        };
        if !self.benchmarks.is_empty() {
            keys.push(("eval_benchmarks", self.benchmarks.iter().map(sample).collect()));
        }
        keys.extend(self.judge.iter().flat_map(Judge::to_keys));
        keys.push(("eval_prompts", self.prompts.as_ref().map_or(Value::Null, path)));
        if self.prompts.is_some() || !self.benchmarks.is_empty() {
            keys.push(("eval_max_new_tokens", json!(self.max_new_tokens)));
        }
        debug_assert!(keys.iter().all(|(name, _)| keys::find(name).is_some()));
        keys
    }
}
