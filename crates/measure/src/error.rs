//! The one error of the libraries: where it happened, what was expected and found, and apart from it how to mend it.

use std::fmt;

/// Shorthand used throughout the crates.
pub type Result<T> = std::result::Result<T, Error>;

/// A problem a user can act on, or several found together.
///
/// The text is lower case without a full stop, names stand in backticks, and the place (file, row, key or tensor) comes first.
#[derive(Debug)]
pub enum Error {
    /// One problem.
    One(Box<Problem>),
    /// Several problems found in one pass (every bad key of a recipe, every bad row of a data set).
    Many(Vec<Error>),
}

/// The three parts of one problem.
#[derive(Debug)]
pub struct Problem {
    /// File, row, key or tensor.
    pub place: String,
    /// What was expected and what was found.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Error {
    /// A problem at `place` (a path, `file.jsonl line 3`, a key or a tensor's name).
    pub fn at(place: impl fmt::Display, what: impl fmt::Display) -> Self {
        Error::One(Box::new(Problem { place: place.to_string(), what: what.to_string(), hint: None }))
    }

    /// Adds how to mend it; the hint of several problems goes to each one that has none.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.add_hint(&hint.to_string());
        self
    }

    fn add_hint(&mut self, hint: &str) {
        match self {
            Error::One(problem) => {
                problem.hint.get_or_insert_with(|| hint.to_owned());
            }
            Error::Many(errors) => errors.iter_mut().for_each(|error| error.add_hint(hint)),
        }
    }

    /// `Ok` when nothing was found, the problem itself when there is one, else all of them.
    pub fn all(mut problems: Vec<Error>) -> Result<()> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Error::Many(problems)),
        }
    }

    /// An operating-system error while doing `action` (`read`, `create` …) on `path`.
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let problem = Error::at(path.display(), format!("cannot {action}: {error}"));
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                problem.hint("check the path; relative paths start at the working directory")
            }
            std::io::ErrorKind::PermissionDenied => problem.hint("check who owns the path and its permissions"),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                problem.hint("free some space on that disk, or choose another folder")
            }
            std::io::ErrorKind::FileTooLarge => problem.hint("the system limits the size of files (`ulimit -f`)"),
            std::io::ErrorKind::ReadOnlyFilesystem => problem.hint("choose a folder on a disk that can be written to"),
            std::io::ErrorKind::NotADirectory => problem.hint("a part of the path is a file; choose another folder"),
            _ => problem,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::One(problem) => {
                write!(f, "{}: {}", problem.place, problem.what)?;
                match &problem.hint {
                    Some(hint) => write!(f, "\n  hint: {hint}"),
                    None => Ok(()),
                }
            }
            Error::Many(errors) => {
                write!(f, "{} problems", errors.len())?;
                errors.iter().try_for_each(|error| write!(f, "\n{error}"))
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(feature = "libtorch")]
impl From<tch::TchError> for Error {
    /// Keeps the first line of libtorch's message: the rest is a C++ backtrace.
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        Error::at("libtorch", text.lines().next().unwrap_or("unknown error"))
    }
}
