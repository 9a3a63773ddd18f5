//! A training run as its log tells it: `trainer_state.json` (transformers' `TrainerState`) of `output_dir` or of its newest checkpoint.

use super::curve::{self, Curve};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The log of a run.
pub(super) const STATE: &str = "trainer_state.json";

/// What a run logged.
#[derive(Debug)]
pub(super) struct TrainingRun {
    pub name: String,
    pub path: PathBuf,
    /// Optimizer steps that are done, and those that were planned.
    pub steps: (u64, Option<u64>),
    /// By metric, in the order in which they first appear.
    pub metrics: Vec<(String, Curve)>,
    pub notes: Vec<String>,
}

/// The log of a run: its own once it is finished, else that of its newest checkpoint.
pub(super) fn state_file(folder: &Path) -> Result<Option<PathBuf>> {
    let own = folder.join(STATE);
    if own.is_file() {
        return Ok(Some(own));
    }
    let entries = fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?;
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let checkpoints = entries.flatten().filter_map(|entry| Some((step(&entry.path())?, entry.path().join(STATE))));
    Ok(checkpoints.filter(|(_, file)| file.is_file()).max().map(|(_, file)| file))
}

impl TrainingRun {
    /// Reads the log of the run in `folder`.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let file = state_file(folder)?.unwrap_or_else(|| folder.join(STATE));
        let text = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
        let state: Value = serde_json::from_str(&text)
            .map_err(|error| Error::at(file.display(), format!("expected the log of a run in JSON: {error}")))?;
        let Some(entries) = state.get("log_history").and_then(Value::as_array) else {
            return Err(Error::at(file.display(), "expected a list `log_history`, found none"));
        };
        let (mut points, mut order) = (BTreeMap::<&str, Vec<(f64, f64)>>::new(), Vec::new());
        let mut missing = BTreeMap::<&str, usize>::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some((fields, step)) = entry.as_object().zip(entry.get("step").and_then(Value::as_f64)) else {
                let place = format!("{} entry {} of `log_history`", file.display(), index + 1);
                return Err(Error::at(place, "expected an object with a number `step`"));
            };
            for (metric, value) in fields.iter().filter(|(metric, _)| !matches!(metric.as_str(), "step" | "epoch")) {
                if !points.contains_key(metric.as_str()) && (value.is_number() || value.is_null()) {
                    order.push(metric.as_str());
                    points.insert(metric, Vec::new());
                }
                match (value.as_f64(), points.get_mut(metric.as_str())) {
                    (Some(value), Some(known)) if value.is_finite() => known.push((step, value)),
                    (None, Some(_)) if value.is_null() => *missing.entry(metric).or_default() += 1,
                    _ => {}
                }
            }
        }
        let mut notes: Vec<String> = missing
            .iter()
            .map(|(metric, count)| format!("{name}: values of `{metric}` that are not numbers, left out: {count}"))
            .collect();
        if file.parent() != Some(folder) {
            notes.push(format!("{name}: not finished; shown as far as `{}`", short(&file, folder)));
        }
        let longest = points.values().map(Vec::len).max().unwrap_or(0);
        if longest > curve::MOST_POINTS {
            let most = curve::MOST_POINTS;
            notes.push(format!(
                "{name}: {longest} log entries thinned to {most}, each the mean of its neighbours within their range"
            ));
        }
        let steps = (
            state.get("global_step").and_then(Value::as_u64).unwrap_or(0),
            state.get("max_steps").and_then(Value::as_u64).filter(|steps| *steps > 0),
        );
        let metrics = order
            .into_iter()
            .filter_map(|metric| Some((metric.to_owned(), Curve::thinned(points.get(metric)?))))
            .filter(|(_, curve)| !curve.steps.is_empty())
            .collect();
        Ok(TrainingRun { name: name.to_owned(), path: folder.to_owned(), steps, metrics, notes })
    }

    pub fn curve(&self, metric: &str) -> Option<&Curve> {
        self.metrics.iter().find(|(name, _)| name == metric).map(|(_, curve)| curve)
    }
}

fn short(file: &Path, folder: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).display().to_string()
}
