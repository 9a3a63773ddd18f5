//! 2: from files to examples.
//!
//! One file per dataset format; each turns its rows into [`Example`]s and refuses what it cannot use, naming file and row.
//! `files` says which files there are, `json` and `parquet` give their rows one after the other, `shape` finds whose a row is (`trl`, `mdpo`) and checks the
//! example, `spool` takes the images that rows carry.

mod files;
mod images;
mod json;
mod mdpo;
pub mod order;
mod parquet;
mod reference;
mod row;
mod shape;
mod spool;
mod trl;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::row::{Fields, Row, Value};
pub use self::spool::Embedded;
use self::spool::Spool;
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

/// One preference: a prompt with its images, and its responses.
#[derive(Debug, Clone)]
pub struct Example {
    /// Where it was written.
    pub row: RowId,
    /// What the model is asked.
    pub prompt: Prompt,
    /// The preferred response.
    pub chosen: Response,
    /// The other one; absent only where the objective needs none (`sft`).
    pub rejected: Option<Response>,
    /// The images, in the order of the prompt's image parts.
    pub images: Vec<ImageSource>,
    /// The row's own rejected images (`rejected_images`), empty when it has none.
    pub rejected_images: Vec<ImageSource>,
    /// What a reference says of the responses under the true images, where the row brings it and `reference_logps: columns` asks for it.
    pub reference: Option<ReferenceSums>,
}

/// Log-probs of a row's responses under some reference, each summed over the response, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSums {
    /// Of the preferred response.
    pub chosen: f64,
    /// Of the other one.
    pub rejected: f64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The prompt and the preferred response (`sft`); nothing of the rejected side is read.
    Chosen,
    /// Both responses; the row's own rejected images are kept where it has some.
    Pair,
    /// Both responses, and rejected images in every row with images (`rejected_image: given`).
    PairWithRejectedImages,
}

/// The examples of a data set, and what is wrong with its other rows.
#[derive(Debug)]
pub struct Dataset {
    /// The usable rows, in the order of the files.
    pub examples: Vec<Example>,
    /// One problem for each row that cannot be used, in the order of the files; [`decide`] says what becomes of them.
    pub problems: Vec<Error>,
}

/// A row's number in its file, and the row.
type NumberedRow = (usize, Result<Value>);

/// The rows of a file, read as they are asked for; an error is one of the whole file.
type Rows = Box<dyn Iterator<Item = Result<NumberedRow>>>;

/// Reads every row of the data set.
///
/// # Errors
/// Every file that is missing or damaged; a data set without rows. A row that cannot be used is no error yet, see [`Dataset::problems`].
pub fn load(settings: &config::Data, need: Need) -> Result<Dataset> {
    let mut dataset = Dataset { examples: Vec::new(), problems: Vec::new() };
    let (spool, mut unreadable) = (Spool::default(), Vec::new());
    for path in files::list(&settings.paths)? {
        let folder = settings.image_folder.as_deref().or_else(|| path.parent()).unwrap_or(Path::new(""));
        if let Err(problem) = dataset.read(&path, folder, need, settings.reference_logps, &spool) {
            unreadable.push(problem);
        }
    }
    Error::all(unreadable)?;
    if dataset.examples.is_empty() && dataset.problems.is_empty() {
        let paths: Vec<String> = settings.paths.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::at(paths.join(", "), "the data set has no rows"));
    }
    Ok(dataset)
}

impl Dataset {
    /// Adds the rows of a file; images that they carry go to `spool`.
    fn read(&mut self, path: &Path, folder: &Path, need: Need, logps: ReferenceLogps, spool: &Spool) -> Result<()> {
        let rows = match files::kind(path) {
            Some(files::Kind::JsonLines) => json::lines(path)?,
            Some(files::Kind::Parquet) => parquet::rows(path)?,
            Some(files::Kind::Json) | None => json::array(path)?,
        };
        let file: Arc<Path> = Arc::from(path);
        for row in rows {
            let (number, value) = row?;
            let id = RowId { file: file.clone(), row: number };
            let example = value.and_then(|value| example(id, folder, value, need, logps, spool));
            spool.failure()?;
            match example {
                Ok(example) => self.examples.push(example),
                Err(problem) => self.problems.push(problem),
            }
        }
        Ok(())
    }
}

fn example(
    id: RowId,
    folder: &Path,
    value: Value,
    need: Need,
    logps: ReferenceLogps,
    spool: &Spool,
) -> Result<Example> {
    let mut row = match value {
        Value::Object(fields) => Row { id, folder, fields: Fields::new(fields), spool },
        other => return Err(Error::at(id, format!("expected an object, found {}", other.kind()))),
    };
    let reference = match logps {
        ReferenceLogps::Computed => None,
        ReferenceLogps::Columns => Some(reference::columns(&mut row)?),
    };
    Ok(Example { reference, ..shape::example(row, need)? })
}

/// The problems of a data set of `rows` rows where they may be left out: at most `allowed` of them (`max_skipped_rows`), and never all rows.
///
/// # Errors
/// More than that; the message lists the rows, up to 50 of them.
pub fn decide(problems: Vec<Error>, allowed: usize, rows: usize) -> Result<Vec<Error>> {
    const LISTED: usize = 50;
    if problems.len() <= allowed && (problems.len() < rows || problems.is_empty()) {
        return Ok(problems);
    }
    let mut what = format!("{} of {} cannot be used", problems.len(), shape::count(rows, "row"));
    let mut hints: Vec<&str> = Vec::new();
    for problem in problems.iter().take(LISTED) {
        match problem {
            Error::One(problem) => {
                what += &format!("\n  {}: {}", problem.place, problem.what);
                if let Some(hint) = problem.hint.as_deref().filter(|hint| !hints.contains(hint)) {
                    hints.push(hint);
                }
            }
            Error::Many(_) => what += &format!("\n  {}", problem.to_string().replace('\n', "\n  ")),
        }
    }
    if problems.len() > LISTED {
        what += &format!("\n  … and {} more", problems.len() - LISTED);
    }
    let leave_out = format!("mend them, or leave them out with `max_skipped_rows: {}`", problems.len());
    if problems.len() < rows {
        hints.push(&leave_out);
    }
    let refusal = Error::at("data set", what);
    Err(if hints.is_empty() { refusal } else { refusal.hint(hints.join("\n  hint: ")) })
}

#[cfg(test)]
mod tests;
