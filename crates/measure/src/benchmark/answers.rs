//! Answers to the questions of a benchmark, from a file or from a model.
//!
//! A file has one JSON object a line, or is one array of them (as AMBER's authors have it). The question's name is `id` or
//! `question_id`, the answer `answer`, `response` (AMBER) or `text` (LLaVA's and POPE's runs); everything else is ignored.

use super::Benchmark;
use crate::{Error, Result, files};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Answers by the names of their questions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    source: String,
    by_id: HashMap<String, (usize, String)>,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(alias = "question_id")]
    id: files::Id,
    #[serde(alias = "response", alias = "text")]
    answer: String,
}

impl Answers {
    /// Reads a file of answers.
    ///
    /// # Errors
    /// A file that is not there, rows that are no answers, two answers to one question.
    pub fn read(path: &Path) -> Result<Self> {
        let is_array = files::text(path)?.trim_start().starts_with('[');
        let rows: Vec<(usize, Line)> = match is_array {
            true => files::json::<Vec<Line>>(path)?.into_iter().enumerate().map(|(at, line)| (at + 1, line)).collect(),
            false => files::rows(path)?,
        };
        let place = |number: usize| match is_array {
            true => format!("{} entry {number}", path.display()),
            false => files::at(path, number),
        };
        let (mut by_id, mut problems) = (HashMap::<String, (usize, String)>::new(), Vec::new());
        for (number, line) in rows {
            match by_id.get(&line.id.0) {
                Some((before, _)) => {
                    let what = format!("`{}` has an answer already, in {}", line.id.0, place(*before));
                    problems.push(Error::at(place(number), what));
                }
                None => drop(by_id.insert(line.id.0, (number, line.answer))),
            }
        }
        files::tell(path, problems)?;
        Ok(Self { source: path.display().to_string(), by_id })
    }

    /// Answers that a model gave, as names of questions and texts; `source` says which model.
    pub fn of(source: impl Into<String>, answers: impl IntoIterator<Item = (String, String)>) -> Self {
        let by_id = answers.into_iter().enumerate().map(|(index, (id, answer))| (id, (index + 1, answer))).collect();
        Self { source: source.into(), by_id }
    }

    /// Who or what answered.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The answer to a question.
    pub fn get(&self, id: &str) -> Option<&str> {
        self.by_id.get(id).map(|(_, answer)| answer.as_str())
    }

    /// Sees to it that the questions exist.
    pub(super) fn check_known(&self, known: &HashSet<String>, benchmark: Benchmark) -> Result<()> {
        let unknown = self.by_id.iter().filter(|(id, _)| !known.contains(*id));
        let mut unknown: Vec<(usize, &String)> = unknown.map(|(id, (line, _))| (*line, id)).collect();
        unknown.sort();
        let Some((line, id)) = unknown.first() else {
            return Ok(());
        };
        let of = self.by_id.len();
        let what =
            format!("`{benchmark}` has no question `{id}`; {} of {of} answers are to unknown questions", unknown.len());
        let example = known.iter().min().map(|id| format!("; an id of it is `{id}`")).unwrap_or_default();
        let hint = format!(
            "`mdpo eval --benchmark {benchmark} --questions FILE` writes the questions with their ids{example}"
        );
        Err(Error::at(format!("{} row {line}", self.source), what).hint(hint))
    }
}
