//! 2: from files to examples.
//!
//! One file per dataset format; each turns its rows into [`Example`]s and refuses what it cannot use, naming file and row.
//! `files` says which files there are, `json` and `parquet` give their rows one after the other, `shape` makes an example of a row and checks it,
//! `spool` takes the images that rows carry. Of a row, `answers` reads what is preferred to what (`scored`: of judged responses), `chat` the messages
//! (`sharegpt`: in that notation), `trl` what is prompt and what is answer. `questions` reads prompts without answers.

mod answers;
mod chat;
mod files;
mod images;
mod json;
pub mod order;
mod parquet;
mod questions;
mod readability;
mod reference;
mod row;
mod scored;
mod shape;
mod sharegpt;
mod spool;
mod trl;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::questions::{Asked, Question, questions};
pub use self::readability::{FLESCH_KINCAID, flesch_kincaid};
use self::row::{Fields, Row, Value};
pub use self::spool::Embedded;
use self::spool::Spool;
use crate::address::Address;
use crate::config::{self, ReferenceLogps};
use crate::{Error, Result};

/// Where a row was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowId {
    /// The file.
    pub file: Arc<Path>,
    /// Line of a JSONL file, or ordinal of the row in a JSON array or Parquet file; the first is 1.
    pub row: usize,
}

impl std::fmt::Display for RowId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = if self.file.extension().is_some_and(|e| e == "jsonl") { "line" } else { "row" };
        write!(f, "{} {unit} {}", self.file.display(), self.row)
    }
}

/// One row: a prompt with its images, the answers to it, and which of them is preferred to which.
#[derive(Debug, Clone)]
pub struct Example {
    /// Where it was written.
    pub row: RowId,
    /// What the model is asked.
    pub prompt: Prompt,
    /// What the row answers, each answer once, however many pairs it is in; at least one.
    pub answers: Vec<Answer>,
    /// Which answer is preferred to which; at least one pair.
    pub pairs: Vec<Pair>,
    /// The images, in the order of the image parts of the prompt and then of each answer.
    pub images: Vec<ImageSource>,
    /// The row's own rejected images (`rejected_images`), empty when it has none.
    pub rejected_images: Vec<ImageSource>,
    /// What a reference says of the responses under the true images, where the row brings it and `reference_logps: columns` asks for it.
    pub reference: Option<ReferenceSums>,
}

/// One response to a prompt, and what the row says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What the row calls it: `chosen`, `rejected`, `rejected[1]`.
    pub name: Cow<'static, str>,
    /// What is answered.
    pub response: Response,
    /// How good the row says it is, where the row says so.
    pub score: Option<f64>,
    /// One number for each reward that the recipe names, in its order; empty where none is asked for.
    pub rewards: Vec<f64>,
}

/// A preference, as indices into [`Example::answers`]; at least one side is there. One labelled response is a pair with one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The preferred answer.
    pub chosen: Option<usize>,
    /// The other one.
    pub rejected: Option<usize>,
}

/// Log-probs of a row's responses under some reference, each summed over the response, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSums {
    /// Of the preferred response.
    pub chosen: f64,
    /// Of the other one.
    pub rejected: f64,
}

impl Pair {
    /// The answers that are there.
    pub fn sides(&self) -> impl Iterator<Item = usize> {
        self.chosen.into_iter().chain(self.rejected)
    }
}

impl Example {
    /// The answers that some pair prefers, each once.
    pub fn chosen_answers(&self) -> Vec<usize> {
        let mut chosen: Vec<usize> = self.pairs.iter().filter_map(|pair| pair.chosen).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// What the model is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Messages for the checkpoint's chat template.
    Messages(Vec<Message>),
    /// Text that is already templated; `<image>` marks an image.
    Text(String),
}

/// What the model answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Messages for the chat template (usually one, of the assistant).
    Messages(Vec<Message>),
    /// Plain text after a plain prompt.
    Text(String),
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said, in order.
    pub content: Vec<Part>,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// The next image of the row.
    Image,
}

/// Where an encoded image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// A file.
    Path(PathBuf),
    /// The encoded bytes that the row carried (Parquet, base64), out of memory.
    Embedded(Embedded),
}

/// What an objective needs of each row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Which answers.
    pub sides: Sides,
    /// Whether every row with images brings rejected ones (`rejected_image: given`); else they are kept where a row has some.
    pub rejected_images: bool,
    /// What every answer's score must be.
    pub scores: Scores,
    /// The rewards that every answer has, by name; [`FLESCH_KINCAID`] is computed from its text.
    pub rewards: Vec<String>,
}

/// Which answers an objective needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// The preferred one (`sft`); nothing of the rejected side is read.
    Chosen,
    /// Pairs of a chosen and a rejected one.
    Both,
    /// Pairs, or single answers that are labelled good or bad (`kto`).
    Either,
}

/// What the scores of a pair must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Anything: they are not compared, and columns of them are not read.
    Unread,
    /// There, that of the chosen answer above that of the other.
    Higher,
    /// So, and above 0, since their ratio is taken.
    Positive,
}

impl Need {
    /// These answers and nothing else.
    pub const fn of(sides: Sides) -> Self {
        Need { sides, rejected_images: false, scores: Scores::Unread, rewards: Vec::new() }
    }

    /// Whether a column of this name may be read.
    fn reads(&self, column: &str) -> bool {
        let reward = ["", "_chosen", "_rejected"]
            .iter()
            .any(|end| column.strip_suffix(end).is_some_and(|name| self.rewards.iter().any(|reward| reward == name)));
        reward || shape::COLUMNS.contains(&column)
    }
}

/// The examples of a data set, and what became of its other rows.
#[derive(Debug)]
pub struct Dataset {
    /// The usable rows, in the order of the files.
    pub examples: Vec<Example>,
    /// One problem for each row that cannot be used, in the order of the files; [`decide`] says what becomes of them.
    pub problems: Vec<Error>,
    /// Rows that are whole and yet give nothing to compare.
    pub left_out: LeftOut,
}

/// What is whole and yet gives nothing to compare: it is left out and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Rows without a pair: no response is better than another by the rule of `pairs_from_scores`, or all their pairs were left out.
    pub rows: usize,
    /// Pairs whose chosen answer has not the higher score (`odpo_ties: skip`).
    pub pairs: usize,
}

impl LeftOut {
    /// One line for each thing that was left out.
    pub fn lines(&self) -> Vec<String> {
        let counted = [
            (self.rows, "row", "left out: none of its answers is better than another"),
            (self.pairs, "pair", "whose chosen answer has not the higher score"),
        ];
        let told = counted.into_iter().filter(|(number, ..)| *number > 0);
        told.map(|(number, thing, why)| format!("{} {why}", shape::count(number, thing))).collect()
    }
}

/// What holds for every row that is read.
#[derive(Debug)]
struct Reading<'a> {
    settings: &'a config::Data,
    need: &'a Need,
    seed: u64,
    /// Where the images go that rows carry.
    spool: Spool,
}

/// A row's number in its file, and the row.
type NumberedRow = (usize, Result<Value>);

/// The rows of a file, read as they are asked for; an error is one of the whole file.
type Rows = Box<dyn Iterator<Item = Result<NumberedRow>>>;

/// Reads every row of the data set; `seed` draws the pairs of scored responses.
///
/// # Errors
/// Every file that is missing or damaged; a data set without rows, or without any pair. A row that cannot be used is no error yet, see
/// [`Dataset::problems`].
pub fn load(settings: &config::Data, need: &Need, seed: u64) -> Result<Dataset> {
    let mut dataset = Dataset { examples: Vec::new(), problems: Vec::new(), left_out: LeftOut::default() };
    let reading = Reading { settings, need, seed, spool: Spool::default() };
    let mut unreadable = Vec::new();
    for path in files::list(&settings.paths)? {
        let folder = settings.image_folder.as_deref().or_else(|| path.parent()).unwrap_or(Path::new(""));
        if let Err(problem) = dataset.read(&path, folder, &reading) {
            unreadable.push(problem);
        }
    }
    Error::all(unreadable)?;
    if dataset.examples.is_empty() && dataset.problems.is_empty() {
        let paths: Vec<String> = settings.paths.iter().map(|path| path.display().to_string()).collect();
        let what = match dataset.left_out.rows {
            0 => "the data set has no rows".to_owned(),
            rows => format!("{} and no pair: no answer is better than another", shape::count(rows, "row")),
        };
        return Err(Error::at(paths.join(", "), what));
    }
    Ok(dataset)
}

impl Dataset {
    /// How many rows were read.
    pub fn rows(&self) -> usize {
        self.examples.len() + self.problems.len() + self.left_out.rows
    }

    /// Adds the rows of a file.
    fn read(&mut self, path: &Path, folder: &Path, reading: &Reading) -> Result<()> {
        let rows = match files::kind(path) {
            Some(files::Kind::JsonLines) => json::lines(path)?,
            Some(files::Kind::Parquet) => parquet::rows(path, |column| reading.need.reads(column))?,
            Some(files::Kind::Json) | None => json::array(path)?,
        };
        let file: Arc<Path> = Arc::from(path);
        for row in rows {
            let (number, value) = row?;
            let id = RowId { file: file.clone(), row: number };
            let address = Address { seed: reading.seed, epoch: 0, example: self.rows() as u64 };
            let example = value.and_then(|value| example(id, folder, value, reading, address, &mut self.left_out));
            reading.spool.failure()?;
            match example {
                Ok(example) => self.examples.extend(example),
                Err(problem) => self.problems.push(problem),
            }
        }
        Ok(())
    }
}

/// The example of the row `id`; none where it gives no pair.
fn example(
    id: RowId,
    folder: &Path,
    value: Value,
    reading: &Reading,
    address: Address,
    left_out: &mut LeftOut,
) -> Result<Option<Example>> {
    let mut row = match value {
        Value::Object(fields) => Row { id, folder, fields: Fields::new(fields), spool: &reading.spool },
        other => return Err(Error::at(id, format!("expected an object, found {}", other.kind()))),
    };
    let reference = match reading.settings.reference_logps {
        ReferenceLogps::Computed => None,
        ReferenceLogps::Columns => Some(reference::columns(&mut row)?),
    };
    let pair = [Pair { chosen: Some(0), rejected: Some(1) }];
    match (shape::example(row, reading, address, left_out)?, reference) {
        (Some(example), Some(_)) if example.pairs != pair => {
            let what = "log-probs of a reference beside other than one chosen and one rejected answer";
            Err(Error::at(example.row, what).hint("`reference_logps: computed` computes them"))
        }
        (example, reference) => Ok(example.map(|example| Example { reference, ..example })),
    }
}

/// The files that two data sets share, as resolved paths.
///
/// # Errors
/// Files that are missing, as [`load`] tells them.
pub fn shared_files(one: &[PathBuf], other: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let resolved = |paths: &[PathBuf]| -> Result<Vec<PathBuf>> {
        let files = files::list(paths)?.into_iter();
        Ok(files.map(|path| path.canonicalize().unwrap_or(path)).collect())
    };
    let (mut one, other) = (resolved(one)?, resolved(other)?);
    one.retain(|path| other.contains(path));
    Ok(one)
}

/// The problems of a data set of `rows` rows that give something to compare, where they may be left out: at most `allowed` of them (`max_skipped_rows`), and never all rows.
///
/// # Errors
/// More than that; the message lists the rows, up to 50 of them.
pub fn decide(problems: Vec<Error>, allowed: usize, rows: usize) -> Result<Vec<Error>> {
    const LISTED: usize = 50;
    if problems.len() <= allowed && (problems.len() < rows || problems.is_empty()) {
        return Ok(problems);
    }
    let (lines, mut hints) = Error::listing(&problems, LISTED);
    let what = format!("{} of {} cannot be used{lines}", problems.len(), shape::count(rows, "row"));
    let leave_out = format!("mend them, or leave them out with `max_skipped_rows: {}`", problems.len());
    if problems.len() < rows {
        hints.push(&leave_out);
    }
    let refusal = Error::at("data set", what);
    Err(if hints.is_empty() { refusal } else { refusal.hint(hints.join("\n  hint: ")) })
}

#[cfg(test)]
mod preference_tests;
#[cfg(test)]
mod tests;
