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

    /// As [`Error::all`], but of more than ten problems only the first ten, and how many there are: what is wrong with hundreds of rows is
    /// mostly wrong with all of them alike, and the first message should stay in sight. `place` is the file that has them.
    pub fn first_ten(place: impl fmt::Display, problems: Vec<Error>) -> Result<()> {
        const TOLD: usize = 10;
        if problems.len() <= TOLD {
            return Self::all(problems);
        }
        let (lines, hints) = Self::listing(&problems, TOLD);
        let refusal = Self::at(place, format!("{} problems{lines}", problems.len()));
        Err(if hints.is_empty() { refusal } else { refusal.hint(hints.join("\n  hint: ")) })
    }

    /// A line for each of the first `listed` problems and one that counts the rest; and the hints of those that are listed, each once.
    pub fn listing(problems: &[Error], listed: usize) -> (String, Vec<&str>) {
        let (mut lines, mut hints) = (String::new(), Vec::new());
        for problem in problems.iter().take(listed) {
            match problem {
                Error::One(problem) => {
                    lines += &format!("\n  {}: {}", problem.place, problem.what);
                    hints.extend(problem.hint.as_deref().filter(|hint| !hints.contains(hint)));
                }
                Error::Many(_) => lines += &format!("\n  {}", problem.to_string().replace('\n', "\n  ")),
            }
        }
        if problems.len() > listed {
            lines += &format!("\n  … and {} more", problems.len() - listed);
        }
        (lines, hints)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_problems_the_first_ten_are_told_and_the_rest_counted() {
        let problem = |row: usize| Error::at(format!("line {row}"), "no `prompt`").hint("write one");
        let told = |count: usize| Error::first_ten("f.jsonl", (1..=count).map(problem).collect());
        assert!(told(0).is_ok());
        assert_eq!(told(10).unwrap_err().to_string().lines().count(), 21);
        let text = told(300).unwrap_err().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 13, "{text}");
        assert_eq!((lines[0], lines[1]), ("f.jsonl: 300 problems", "  line 1: no `prompt`"));
        assert_eq!((lines[10], lines[11]), ("  line 10: no `prompt`", "  … and 290 more"));
        assert_eq!(lines[12], "  hint: write one");
    }
}
