//! An evaluation folder: `metrics.json` and `rows.jsonl`, as `mdpo eval` writes them, and those that a training run made on its way.

use crate::{Error, Figures, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The figures of an evaluation.
pub(super) const METRICS: &str = "metrics.json";
const ROWS: &str = "rows.jsonl";
const SAMPLES: &str = "samples.jsonl";
/// What the gallery calls the prompts that a run answers at each of its evaluations.
const FIXED_PROMPTS: &str = "fixed prompts";

/// What one model answered to the questions of one benchmark.
#[derive(Debug)]
pub(super) struct Evaluation {
    /// What the page calls the model.
    pub name: String,
    /// The run or folder it belongs to: all of one owner share a colour.
    pub owner: String,
    /// The optimizer step after which a run made it; none for one that stands by itself.
    pub step: Option<u64>,
    pub path: PathBuf,
    /// None for a run's fixed prompts, which nobody scores.
    pub figures: Option<Figures>,
    pub rows: Vec<Row>,
}

/// One question with its answer and what was found in it.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    #[serde(deserialize_with = "id")]
    pub id: String,
    pub image: Option<PathBuf>,
    pub question: String,
    pub answer: String,
    /// Objects that the answer names and the picture does not show.
    #[serde(default)]
    pub hallucinated: Vec<String>,
    pub correct: Option<bool>,
    pub score: Option<f64>,
}

/// A text, or a number as its decimal text.
fn id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(serde::de::Error::custom(format!("expected a text or number as `id`, found {other}"))),
    }
}

impl Evaluation {
    /// Reads `metrics.json`, and `rows.jsonl` where there is one.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let file = folder.join(METRICS);
        let text = fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
        let figures: Figures = serde_json::from_str(&text).map_err(|error| {
            Error::at(file.display(), format!("expected the figures of a benchmark in JSON: {error}"))
        })?;
        let rows = folder.join(ROWS);
        let rows = if rows.is_file() { read_rows(&rows)? } else { Vec::new() };
        let (name, owner) = (name.to_owned(), name.to_owned());
        Ok(Evaluation { name, owner, path: folder.to_owned(), figures: Some(figures), rows, step: None })
    }

    pub fn benchmark(&self) -> &str {
        self.figures.as_ref().map_or(FIXED_PROMPTS, |figures| &figures.benchmark)
    }

    /// Whether both are over the same questions, as far as their rows tell: the same ids and texts, or the same pictures and texts where
    /// ids are places in files.
    pub fn is_over_the_same(&self, other: &Evaluation) -> bool {
        let answers = |evaluation: &Evaluation| evaluation.figures.as_ref().map(|figures| figures.answers);
        if answers(self) != answers(other) {
            return false;
        }
        let are_unknown = self.rows.is_empty() || other.rows.is_empty();
        are_unknown || by_id(&self.rows) == by_id(&other.rows) || {
            let pictures = by_picture(&self.rows);
            pictures.is_some() && pictures == by_picture(&other.rows)
        }
    }

    /// Whether the bare model answered, so that others are compared with it: the earlier it stands here the more surely.
    pub fn rank_as_base(&self) -> u8 {
        let is_bare = self.figures.as_ref().is_some_and(|figures| figures.adapter.is_none());
        match (self.name.to_lowercase().as_str(), self.step) {
            ("base" | "baseline", _) => 0,
            (_, None) if is_bare => 1,
            (_, Some(0)) => 2,
            _ => 3,
        }
    }
}

fn by_id(rows: &[Row]) -> BTreeSet<(&str, &str)> {
    rows.iter().map(|row| (row.id.as_str(), row.question.as_str())).collect()
}

/// Where every row has a picture.
fn by_picture(rows: &[Row]) -> Option<Vec<(&Path, &str)>> {
    let mut all: Vec<(&Path, &str)> =
        rows.iter().map(|row| Some((row.image.as_deref()?, row.question.as_str()))).collect::<Option<_>>()?;
    all.sort_unstable();
    Some(all)
}

/// What a run evaluated on its way: of each benchmark, and of its fixed prompts, the first and the last time.
pub(super) fn of_run(run: &Path, name: &str) -> Result<Vec<Evaluation>> {
    let mut found = BTreeMap::<String, Vec<(u64, PathBuf)>>::new();
    for step in folders(&run.join("evaluations"))? {
        let Some(number) = file_name(&step).strip_prefix("step-").and_then(|step| step.parse::<u64>().ok()) else {
            continue;
        };
        if step.join(SAMPLES).is_file() {
            found.entry(FIXED_PROMPTS.to_owned()).or_default().push((number, step.clone()));
        }
        for benchmark in folders(&step)?.into_iter().filter(|folder| folder.join(METRICS).is_file()) {
            found.entry(file_name(&benchmark)).or_default().push((number, benchmark));
        }
    }
    let mut evaluations = Vec::new();
    for (benchmark, mut times) in found {
        times.sort();
        let last = times.len() - 1;
        for (step, folder) in times.into_iter().enumerate().filter(|(i, _)| *i == 0 || *i == last).map(|(_, time)| time)
        {
            let called = format!("{name} · step {step}");
            let mut evaluation = match benchmark == FIXED_PROMPTS {
                true => {
                    let rows = read_rows(&folder.join(SAMPLES))?;
                    Evaluation { name: called, owner: String::new(), path: folder, figures: None, rows, step: None }
                }
                false => Evaluation::read(&folder, &called)?,
            };
            evaluation.owner = name.to_owned();
            evaluation.step = Some(step);
            evaluations.push(evaluation);
        }
    }
    Ok(evaluations)
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(parent).map_err(|error| Error::io("read", parent, &error))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read_rows(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).map_err(|error| Error::io("read", file, &error))?;
    let (mut rows, mut lines) = (Vec::new(), BTreeMap::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("{} line {}", file.display(), index + 1);
        let row: Row = serde_json::from_str(line).map_err(|error| {
            Error::at(place(), format!("expected an answered question in JSON: {error}"))
                .hint("an interrupted write ends in half a line; evaluate again, or remove that line")
        })?;
        if let Some(first) = lines.insert(row.id.clone(), index + 1) {
            return Err(Error::at(place(), format!("the id `{}` already stands in line {first}", row.id)));
        }
        rows.push(row);
    }
    Ok(rows)
}
