//! Answers to the questions of a benchmark, from a file or from a model.
//!
//! A file has one JSON object a line, or is one array of them (as AMBER's authors have it). The question's name is `id` or
//! `question_id`, the answer `answer`, `response` (AMBER) or `text` (LLaVA's and POPE's runs); everything else is ignored, but for
//! POPE, whose files may name questions otherwise (`pope`).

use super::Benchmark;
use crate::{Error, Result, files};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Answers by the names of their questions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    source: String,
    by_id: HashMap<String, Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    /// Its place among the others.
    order: usize,
    /// Where it was written.
    place: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(alias = "question_id")]
    id: Option<files::Id>,
    answer: Option<String>,
    response: Option<String>,
    text: Option<String>,
    question: Option<String>,
    prompt: Option<String>,
    image: Option<String>,
}

/// A row of a file of answers.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// Where it was written.
    pub place: String,
    /// What it calls its question, where it does.
    pub id: Option<String>,
    /// What was asked, where it says so.
    pub question: Option<String>,
    /// The image, where it says so.
    pub image: Option<String>,
    /// What was answered.
    pub answer: String,
}

/// The rows of a file of answers.
pub(super) fn rows(path: &Path) -> Result<Vec<Given>> {
    let is_array = files::text(path)?.trim_start().starts_with('[');
    let lines: Vec<(usize, serde_json::Value)> = match is_array {
        true => (1..).zip(files::json::<Vec<serde_json::Value>>(path)?).collect(),
        false => files::rows(path)?,
    };
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for (number, line) in lines {
        let place = match is_array {
            true => format!("{} entry {number}", path.display()),
            false => files::at(path, number),
        };
        match given(&place, line) {
            Ok(row) => rows.push(row),
            Err(problem) => problems.push(problem),
        }
    }
    files::tell(path, problems)?;
    Ok(rows)
}

fn given(place: &str, line: serde_json::Value) -> Result<Given> {
    let line: Line = serde_json::from_value(line).map_err(|error| Error::at(place, error))?;
    let (said, text) = (line.answer.or(line.response), line.text);
    // `text` is the question in POPE's own rows, where an answer stands beside it, and the answer in LLaVA's.
    let (answer, text) = match said {
        Some(answer) => (Some(answer), text),
        None => (text, None),
    };
    Ok(Given {
        place: place.to_owned(),
        id: line.id.map(|id| id.0),
        question: line.question.or(line.prompt).or(text),
        image: line.image,
        answer: answer.ok_or_else(|| Error::at(place, "missing field `answer`"))?,
    })
}

impl Answers {
    /// Reads a file of answers.
    ///
    /// # Errors
    /// A file that is not there, rows that are no answers, two answers to one question.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut named, mut problems) = (Vec::new(), Vec::new());
        for row in rows(path)? {
            match row.id.clone() {
                Some(id) => named.push((id, row)),
                None => problems.push(Error::at(row.place, "missing field `id`")),
            }
        }
        files::tell(path, problems)?;
        Self::named(path.display().to_string(), path, named)
    }

    /// Answers with the ids of their questions, from `path`.
    pub(super) fn named(source: String, path: &Path, rows: Vec<(String, Given)>) -> Result<Self> {
        let (mut by_id, mut problems) = (HashMap::<String, Answer>::new(), Vec::new());
        for (order, (id, Given { place, answer, .. })) in rows.into_iter().enumerate() {
            match by_id.get(&id) {
                Some(before) => {
                    problems.push(Error::at(place, format!("`{id}` has an answer already, in {}", before.place)));
                }
                None => drop(by_id.insert(id, Answer { order, place, text: answer })),
            }
        }
        files::tell(path, problems)?;
        Ok(Self { source, by_id })
    }

    /// Answers that a model gave, as names of questions and texts; `source` says which model.
    pub fn of(source: impl Into<String>, answers: impl IntoIterator<Item = (String, String)>) -> Self {
        let source = source.into();
        let place = |order: usize| format!("{source} row {}", order + 1);
        let answers = answers.into_iter().enumerate();
        let by_id = answers.map(|(order, (id, text))| (id, Answer { order, place: place(order), text })).collect();
        Self { source, by_id }
    }

    /// Who or what answered.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The answer to a question.
    pub fn get(&self, id: &str) -> Option<&str> {
        self.by_id.get(id).map(|answer| answer.text.as_str())
    }

    /// Names of questions and answers, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut all: Vec<_> =
            self.by_id.iter().map(|(id, answer)| (answer.order, id.as_str(), answer.text.as_str())).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id, answer)| (id, answer))
    }

    /// Sees to it that the questions exist.
    pub(super) fn check_known(&self, known: &HashSet<String>, benchmark: Benchmark) -> Result<()> {
        let unknown = self.by_id.iter().filter(|(id, _)| !known.contains(*id));
        let mut unknown: Vec<(usize, &String, &Answer)> =
            unknown.map(|(id, answer)| (answer.order, id, answer)).collect();
        unknown.sort_unstable_by_key(|(order, ..)| *order);
        let Some((_, id, answer)) = unknown.first() else {
            return Ok(());
        };
        let of = self.by_id.len();
        let what =
            format!("`{benchmark}` has no question `{id}`; {} of {of} answers are to unknown questions", unknown.len());
        let example = known.iter().min().map(|id| format!("; an id of it is `{id}`")).unwrap_or_default();
        let hint = format!(
            "`mdpo eval --benchmark {benchmark} --questions FILE` writes the questions with their ids{example}"
        );
        Err(Error::at(&answer.place, what).hint(hint))
    }
}
