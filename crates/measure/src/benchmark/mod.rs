//! Benchmarks: from the files of their authors to questions, and from answers to figures.
//!
//! [`Loaded::open`] reads a folder; [`Loaded::questions`] are what is to be answered, by a model of mdpo or by anyone; [`Loaded::score`]
//! turns [`Answers`] into [`Scored`]: figures with intervals, and one row for each question. A file of this folder is one benchmark,
//! with its source and how it differs from the script of its authors.

pub mod amber;
pub mod answers;
mod binary;
pub mod chair;
pub mod coco;
pub mod mmhal;
pub mod objects;
pub mod poll;
pub mod pope;

pub use answers::Answers;

use crate::figures::Figures;
use crate::interval::{Bootstrap, Measure, Tally, below};
use crate::{Error, Result, files};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Benchmark {
    /// Descriptions of AMBER's images.
    AmberGenerative,
    /// AMBER's yes-no questions.
    AmberDiscriminative,
    /// CHAIR and Object HalBench on COCO's annotations.
    Chair,
    /// Polls of COCO's objects.
    Pope,
    /// A folder of one's own with images and the objects in each.
    Objects,
}

impl Benchmark {
    /// All of them.
    pub const ALL: [Benchmark; 5] = [
        Benchmark::AmberGenerative,
        Benchmark::AmberDiscriminative,
        Benchmark::Chair,
        Benchmark::Pope,
        Benchmark::Objects,
    ];

    /// The name that `--benchmark` takes.
    pub fn name(self) -> &'static str {
        match self {
            Benchmark::AmberGenerative => "amber-generative",
            Benchmark::AmberDiscriminative => "amber-discriminative",
            Benchmark::Chair => "chair",
            Benchmark::Pope => "pope",
            Benchmark::Objects => "objects",
        }
    }

    /// The benchmark of this name.
    ///
    /// # Errors
    /// A name that no benchmark has.
    pub fn of_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|benchmark| benchmark.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(|benchmark| format!("`{}`", benchmark.name()));
            Error::at("benchmark", format!("`{name}` is none")).hint(format!("choose one of {}", names.join(", ")))
        })
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its name, which no other question of the benchmark has.
    pub id: String,
    /// The image; whether it is there is [`Loaded::check_images`]' concern.
    pub image: PathBuf,
    /// What is asked.
    pub text: String,
}

/// How a benchmark is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Where the images are, if not in the data folder or its `images`, `image` …
    pub images: Option<PathBuf>,
    /// A table of synonyms in the format of CHAIR's authors in place of `synonyms.txt` in the data folder, for `chair` and `objects`.
    pub synonyms: Option<PathBuf>,
    /// Ask only about so many of the images, drawn with `seed`, but all questions about each.
    pub limit: Option<usize>,
    /// Seed of that draw, and of the questions that `objects` makes.
    pub seed: u64,
}

/// What becomes of questions without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The answers are refused.
    Refuse,
    /// The figures are over the questions that were answered.
    LeaveOut,
}

/// One question with its answer and what was found in it: a line of `rows.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The question's name.
    pub id: String,
    /// The absolute path of the image, where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// What was asked.
    pub question: String,
    /// What was answered.
    pub answer: String,
    /// The objects that the answer names, as words of the vocabulary, each once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mentioned: Option<Vec<String>>,
    /// Those of them that are not in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hallucinated: Option<Vec<String>>,
    /// The objects of the image that the answer names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered: Option<Vec<String>>,
    /// Whether a yes-no question was answered correctly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// A judge's score, or of a held-out pair by how many nats the chosen answer is likelier than the rejected one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Of a held-out pair by how many nats the chosen answer is likelier under its picture than under the corrupted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_margin: Option<f64>,
}

/// What a set of answers comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The figures; who answered is for the caller to say.
    pub figures: Figures,
    /// One row for each answered question, in the order of the questions.
    pub rows: Vec<Row>,
}

impl Scored {
    /// Writes `rows.jsonl` and then `metrics.json` into `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// A folder that cannot be made or written to, a full disk.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write(folder, &self.rows, &self.figures)
    }
}

/// Writes an evaluation folder.
fn write<R: Serialize>(folder: &Path, rows: &[R], figures: &Figures) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
    let text = |error: serde_json::Error| Error::at(folder.display(), format!("cannot write figures: {error}"));
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row).map_err(text)?;
        lines.push(b'\n');
    }
    files::write(&folder.join("rows.jsonl"), &lines)?;
    let mut figures = serde_json::to_vec_pretty(figures).map_err(text)?;
    figures.push(b'\n');
    files::write(&folder.join("metrics.json"), &figures)
}

/// What a benchmark knows beyond its questions.
trait Scorer: fmt::Debug + Send + Sync {
    /// How many columns the counts have.
    fn columns(&self) -> usize;
    /// The figures.
    fn measures(&self) -> Vec<Measure>;
    /// Fills in what was found in the answer to a question, given by its index, and gives what it adds to the columns.
    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)>;
}

/// A benchmark as one of its files makes it.
#[derive(Debug)]
struct Opened {
    questions: Vec<Question>,
    scorer: Box<dyn Scorer>,
}

/// A benchmark that was read.
#[derive(Debug)]
pub struct Loaded {
    benchmark: Benchmark,
    /// Those that are asked.
    questions: Vec<Question>,
    /// Their index among all that the scorer knows.
    indices: Vec<usize>,
    /// The names of all questions, asked or not.
    known: HashSet<String>,
    scorer: Box<dyn Scorer>,
}

impl Loaded {
    /// Reads the files of a benchmark in `folder`.
    ///
    /// # Errors
    /// Files that are not there, not readable or not what their authors publish; two questions of one name.
    pub fn open(benchmark: Benchmark, folder: &Path, options: &Options) -> Result<Self> {
        if !folder.is_dir() {
            let problem = Error::at(folder.display(), "is no folder");
            return Err(problem.hint(format!("expected the folder with the files of `{benchmark}`")));
        }
        if options.limit == Some(0) {
            return Err(Error::at("limit", "expected at least 1 image, found 0"));
        }
        let opened = match benchmark {
            Benchmark::AmberGenerative => amber::open_generative(folder, options),
            Benchmark::AmberDiscriminative => amber::open_discriminative(folder, options),
            Benchmark::Chair => chair::open(folder, options),
            Benchmark::Pope => pope::open(folder, options),
            Benchmark::Objects => objects::open(folder, options),
        }?;
        let mut known = HashSet::new();
        for question in &opened.questions {
            if !known.insert(question.id.clone()) {
                return Err(Error::at(folder.display(), format!("two questions have the id `{}`", question.id)));
            }
        }
        let images = opened.questions.iter().map(|question| question.image.as_path());
        let asked = sample(images, options.limit, options.seed);
        let chosen = opened.questions.into_iter().enumerate().filter(|(index, _)| asked.contains(index));
        let (indices, questions) = chosen.unzip();
        Ok(Self { benchmark, questions, indices, known, scorer: opened.scorer })
    }

    /// Which benchmark this is.
    pub fn benchmark(&self) -> Benchmark {
        self.benchmark
    }

    /// What is asked.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Sees to it that every image that is asked about is there.
    ///
    /// # Errors
    /// Images that are not there: the first of them, and how many.
    pub fn check_images(&self) -> Result<()> {
        let mut seen = HashSet::new();
        let images = self.questions.iter().map(|question| &question.image).filter(|image| seen.insert(*image));
        let (mut missing, mut count) = (Vec::new(), 0);
        for image in images {
            count += 1;
            if !image.is_file() {
                missing.push(image);
            }
        }
        let Some(first) = missing.first() else {
            return Ok(());
        };
        let what = format!("not found; {} of {count} images are missing", missing.len());
        Err(Error::at(first.display(), what).hint("put the images into the data folder, or name their folder"))
    }

    /// Figures and rows of some answers.
    ///
    /// # Errors
    /// Answers to questions that the benchmark has not; questions without an answer, unless they are to be left out.
    pub fn score(&self, answers: &Answers, missing: Missing, bootstrap: Bootstrap) -> Result<Scored> {
        answers.check_known(&self.known, self.benchmark)?;
        let unanswered: Vec<&Question> = self.questions.iter().filter(|q| answers.get(&q.id).is_none()).collect();
        let all = self.questions.len();
        if let Some(first) = unanswered.first().filter(|_| missing == Missing::Refuse || unanswered.len() == all) {
            let what = format!("{} of {all} questions have no answer, the first is `{}`", unanswered.len(), first.id);
            let hint = "answer them, or say that figures over the rest are wanted (`--allow-missing`)";
            return Err(Error::at(answers.source(), what).hint(hint));
        }
        let (mut rows, mut tally) = (Vec::new(), Tally::new(self.scorer.columns()));
        for (question, index) in self.questions.iter().zip(&self.indices) {
            let Some(answer) = answers.get(&question.id) else {
                continue;
            };
            let mut row = Row {
                id: question.id.clone(),
                image: question.image.canonicalize().ok(),
                question: question.text.clone(),
                answer: answer.to_owned(),
                ..Row::default()
            };
            tally.push(self.scorer.judge(*index, &mut row));
            rows.push(row);
        }
        let figures = Figures {
            benchmark: self.benchmark.name().to_owned(),
            model: answers.source().to_owned(),
            adapter: None,
            answers: rows.len(),
            figures: bootstrap.figures(&tally, &self.scorer.measures()),
        };
        Ok(Scored { figures, rows })
    }
}

/// The indices of the questions that are asked, whose images these are.
fn sample<'a>(all: impl Iterator<Item = &'a Path> + Clone, limit: Option<usize>, seed: u64) -> HashSet<usize> {
    let mut images: Vec<&Path> = Vec::new();
    let mut seen = HashSet::new();
    images.extend(all.clone().filter(|image| seen.insert(*image)));
    if let Some(limit) = limit.filter(|limit| *limit < images.len()) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for at in 0..limit {
            let other = at + below(images.len() - at, &mut random);
            images.swap(at, other);
        }
        images.truncate(limit);
    }
    let images: HashSet<&Path> = images.into_iter().collect();
    all.enumerate().filter(|(_, image)| images.contains(image)).map(|(index, _)| index).collect()
}

/// Finds images by their names in the folders where authors and users put them.
#[derive(Debug)]
struct Images {
    folders: Vec<PathBuf>,
}

impl Images {
    /// Looks in the folder that was named, else in `folder`, in those of `below` and in the usual ones below it.
    fn new(folder: &Path, below: &[&str], options: &Options) -> Result<Self> {
        let Some(named) = &options.images else {
            let below = below.iter().chain(&["images", "image"]);
            let folders = std::iter::once(folder.to_owned()).chain(below.map(|name| folder.join(name)));
            return Ok(Self { folders: folders.collect() });
        };
        match named.is_dir() {
            true => Ok(Self { folders: vec![named.clone()] }),
            false => Err(Error::at(named.display(), "is no folder").hint("expected the folder of the images")),
        }
    }

    /// The image's path; in the first folder if it is in none.
    fn find(&self, name: &str) -> PathBuf {
        let mut candidates = self.folders.iter().map(|folder| folder.join(name));
        let first = candidates.next().unwrap_or_else(|| PathBuf::from(name));
        if first.is_file() { first } else { candidates.find(|path| path.is_file()).unwrap_or(first) }
    }
}

/// The first of some files below `folder` that is there.
fn find(folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// A file that must be there, under one of some names.
fn need(folder: &Path, names: &[&str], what: &str) -> Result<PathBuf> {
    find(folder, names).ok_or_else(|| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        Error::at(folder.display(), format!("expected {}, found none", names.join(" or "))).hint(what)
    })
}

/// Words, each once, in their order.
fn distinct<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut seen = HashSet::new();
    words.into_iter().filter(|word| seen.insert(*word)).map(str::to_owned).collect()
}

/// A table of synonyms in the format of CHAIR's authors: a line for each object, its name first, then other words, between commas.
fn synonyms(path: &Path) -> Result<Vec<Vec<String>>> {
    let text = files::text(path)?;
    let lines = text.lines().map(|line| line.split(',').map(str::trim).filter(|word| !word.is_empty()));
    let lines: Vec<Vec<String>> =
        lines.map(|words| words.map(str::to_owned).collect()).filter(|words: &Vec<String>| !words.is_empty()).collect();
    let mut objects: HashMap<&str, usize> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        if let Some(before) = objects.insert(&line[0], index) {
            let what = format!("`{}` is an object in entries {} and {}", line[0], before + 1, index + 1);
            return Err(Error::at(path.display(), what));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
