//! The page that people share: training runs and evaluations in one HTML file that needs no network.
//!
//! [`Report::read`] gathers what the folders hold, [`Report::render`] writes the page. In between the caller may add what only it
//! knows: facts of a recipe, and how a recipe would corrupt the pictures of the gallery. Every text is escaped by the template
//! engine, the page's policy (CSP) allows its own script and style by their SHA-256 and nothing else, and its size is bounded: curves
//! are thinned (`curve`), pictures scaled (`picture`), examples counted.

mod curve;
mod evaluation;
mod gallery;
mod page;
mod picture;
mod run;
mod table;

pub use page::{Additions, Page, Rejected};
pub use picture::{BUDGET as PICTURE_BUDGET, EDGE as PICTURE_EDGE};

use crate::{Error, Result};
use evaluation::Evaluation;
use gallery::Card;
use run::TrainingRun;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A folder to report on, and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What the page calls it; by default the folder's own name.
    pub name: Option<String>,
    /// A training run's `output_dir`, or an evaluation folder.
    pub path: PathBuf,
}

impl Source {
    /// Reads `PATH` or `NAME=PATH`; a path that exists is never split.
    pub fn parse(written: &str) -> Self {
        match written.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() && !Path::new(written).exists() => {
                Source { name: Some(name.to_owned()), path: PathBuf::from(path) }
            }
            _ => Source { name: None, path: PathBuf::from(written) },
        }
    }

    /// The name that was given, or the last two parts of the path where the last says only where in a run it is.
    fn title(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        whole.file_name().map_or_else(|| whole.display().to_string(), |name| name.to_string_lossy().into_owned())
    }
}

/// What a page is made of.
#[derive(Debug)]
pub struct Report {
    runs: Vec<TrainingRun>,
    evaluations: Vec<Evaluation>,
    cards: Vec<Card>,
    /// Questions that the gallery was chosen from.
    questions: usize,
    /// Names in the order in which they got their colour, dash and marker.
    names: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// Reads every folder and chooses `examples` questions for the gallery, evenly spread over each benchmark's rows.
    ///
    /// # Errors
    /// All at once: folders that are neither a run nor an evaluation, files that are not what they should be (with the line), names
    /// that stand for two things.
    pub fn read(sources: &[Source], examples: usize) -> Result<Self> {
        let (mut runs, mut evaluations, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        let mut notes = Vec::new();
        for source in sources {
            let read = match Kind::of(&source.path) {
                Ok(Kind::Run) => TrainingRun::read(&source.path, &source.title()).map(|run| {
                    notes.extend(run.notes.iter().cloned());
                    evaluations.extend(evaluation::of_run(&source.path, &run.name)?);
                    runs.push(run);
                    Ok(())
                }),
                Ok(Kind::Evaluation) => Evaluation::read(&source.path, &source.title()).map(|evaluation| {
                    evaluations.push(evaluation);
                    Ok(())
                }),
                Err(problem) => Err(problem),
            };
            problems.extend(read.and_then(|inner: Result<()>| inner).err());
        }
        problems.extend(twice(&runs, &evaluations));
        Error::all(problems)?;
        let mut names: Vec<String> = Vec::new();
        for name in runs.iter().map(|run| &run.name).chain(evaluations.iter().map(|evaluation| &evaluation.owner)) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let (cards, questions) = gallery::choose(&evaluations, examples);
        Ok(Report { runs, evaluations, cards, questions, names, notes })
    }

    /// The folders of the training runs.
    pub fn run_folders(&self) -> impl Iterator<Item = &Path> {
        self.runs.iter().map(|run| run.path.as_path())
    }

    /// The distinct pictures of the gallery, in its order.
    pub fn pictures(&self) -> Vec<&Path> {
        let mut seen = BTreeSet::new();
        self.cards.iter().filter_map(|card| card.image.as_deref()).filter(|path| seen.insert(*path)).collect()
    }

    /// Which colour, dash and marker a name has.
    fn style(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or(0)
    }
}

/// What a folder is.
enum Kind {
    Run,
    Evaluation,
}

impl Kind {
    fn of(path: &Path) -> Result<Kind> {
        if !path.is_dir() {
            let found = if path.exists() { "a file" } else { "nothing" };
            return Err(Error::at(path.display(), format!("expected a folder, found {found}"))
                .hint("name the `output_dir` of a training run or a folder that `mdpo eval --output` wrote"));
        }
        if run::state_file(path)?.is_some() {
            return Ok(Kind::Run);
        }
        if path.join(evaluation::METRICS).is_file() {
            return Ok(Kind::Evaluation);
        }
        let what = format!(
            "neither a training run nor an evaluation: it has no `{}`, no `checkpoint-N` and no `{}`",
            run::STATE,
            evaluation::METRICS
        );
        Err(Error::at(path.display(), what)
            .hint("a run shows from its first checkpoint on; an evaluation is what `mdpo eval --output` wrote"))
    }
}

/// Names that stand for two runs, or for two evaluations by one benchmark.
fn twice(runs: &[TrainingRun], evaluations: &[Evaluation]) -> Vec<Error> {
    let mut seen = BTreeSet::new();
    let runs = runs.iter().map(|run| (run.name.clone(), "training run".to_owned(), &run.path));
    let evaluations = evaluations.iter().map(|e| (e.name.clone(), e.benchmark().to_owned(), &e.path));
    runs.chain(evaluations)
        .filter(|(name, what, _)| !seen.insert((name.clone(), what.clone())))
        .map(|(name, what, path)| {
            Error::at(path.display(), format!("the name `{name}` is already taken ({what})"))
                .hint("give it another one: `mdpo report NAME=PATH`")
        })
        .collect()
}

#[cfg(test)]
mod tests;
