//! Answers to POPE's questions as its authors and others have them: without the ids of mdpo, since each of the authors' files numbers its
//! questions from 1 and their `evaluate.py` pairs answers (`{"question", "answer"}`) with questions by line.
//!
//! Nothing is guessed. A file belongs to a setting if its rows are, line by line, that setting's questions, which unlike in the authors'
//! script is checked; or if its name has that setting's name (or there is no other one) and its ids are those of the questions. A file
//! whose rows have question and image answers every setting whose questions are all among them, in any order. The rest is refused.

use super::super::answers::{self, Answers, Given};
use super::super::poll::Setting;
use super::super::{Question, files};
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The questions of a setting in the order of its file.
struct Asked<'a> {
    setting: Setting,
    questions: Vec<&'a Question>,
}

/// An answer with the id of its question.
type Named = (String, Given);

/// Reads a file of answers, or all files of a folder.
pub(in super::super) fn read(path: &Path, questions: &[Question]) -> Result<Answers> {
    let asked: Vec<Asked> = Setting::ALL
        .into_iter()
        .map(|setting| Asked { setting, questions: questions.iter().filter(|q| is_of(q, setting)).collect() })
        .filter(|asked| !asked.questions.is_empty())
        .collect();
    let mut named = Vec::new();
    for file in answer_files(path)? {
        named.extend(of_file(&file, answers::rows(&file)?, &asked)?);
    }
    Answers::named(path.display().to_string(), path, named)
}

fn is_of(question: &Question, setting: Setting) -> bool {
    question.id.split('/').next() == Some(setting.name())
}

fn answer_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let found = files::in_folder(path, |name| name.ends_with(".json") || name.ends_with(".jsonl"))?;
    match found.is_empty() {
        true => Err(Error::at(path.display(), "expected files of answers that end in `.json` or `.jsonl`, found none")),
        false => Ok(found),
    }
}

fn of_file(file: &Path, rows: Vec<Given>, asked: &[Asked]) -> Result<Vec<Named>> {
    let known: HashSet<&str> = asked.iter().flat_map(|asked| &asked.questions).map(|q| q.id.as_str()).collect();
    let ids = || rows.iter().map(|row| row.id.as_deref());
    if ids().all(|id| id.is_some()) && ids().flatten().any(|id| known.contains(id) || id.contains('/')) {
        return Ok(rows.into_iter().filter_map(|row| Some((row.id.clone()?, row))).collect());
    }
    let by_name = by_name(file, asked);
    let same: Vec<&Asked> = asked.iter().filter(|asked| is_line_by_line(&rows, asked)).collect();
    let same = match same.as_slice() {
        [] => None,
        [one] => Some(*one),
        // Settings that ask the same are told apart by the file's name, if by anything.
        several => by_name.filter(|named| several.iter().any(|asked| asked.setting == named.setting)),
    };
    if let Some(asked) = same {
        return Ok(asked.questions.iter().map(|question| question.id.clone()).zip(rows).collect());
    }
    if ids().all(|id| id.is_some())
        && let Some(asked) = by_name.or(if let [only] = asked { Some(only) } else { None })
    {
        return by_number(rows, asked);
    }
    if rows.iter().all(|row| row.question.is_some() && row.image.is_some()) {
        return by_image(file, &rows, asked);
    }
    Err(refusal(file, &rows, asked))
}

/// Whether the rows ask what a setting asks, in its order.
fn is_line_by_line(rows: &[Given], asked: &Asked) -> bool {
    let fits = |row: &Given, question: &Question| {
        row.question.as_ref().is_some_and(|text| is_text(text, question))
            && row.image.as_ref().is_none_or(|image| name(Path::new(image)) == name(&question.image))
    };
    rows.len() == asked.questions.len() && rows.iter().zip(&asked.questions).all(|(row, question)| fits(row, question))
}

/// Whether a text is the question, maybe with an instruction on a line of its own behind it, as LLaVA asks.
fn is_text(text: &str, question: &Question) -> bool {
    first_line(text) == first_line(&question.text)
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default().trim_end()
}

fn name(image: &Path) -> Option<&std::ffi::OsStr> {
    image.file_name()
}

/// The setting that stands in the file's name.
fn by_name<'q, 'a>(file: &Path, asked: &'a [Asked<'q>]) -> Option<&'a Asked<'q>> {
    let stem = file.file_stem()?.to_string_lossy().to_lowercase();
    let mut named = Setting::ALL.into_iter().filter(|setting| stem.contains(setting.name()));
    let setting = named.next().filter(|_| named.next().is_none())?;
    asked.iter().find(|asked| asked.setting == setting)
}

/// Rows with the numbers that the setting's file gives its questions.
fn by_number(rows: Vec<Given>, asked: &Asked) -> Result<Vec<Named>> {
    let questions: HashMap<&str, &Question> = asked.questions.iter().map(|q| (q.id.as_str(), *q)).collect();
    let (mut named, mut problems) = (Vec::new(), Vec::new());
    for row in rows {
        let number = row.id.as_deref().unwrap_or_default();
        let id = format!("{}/{number}", asked.setting);
        match (questions.get(id.as_str()), &row.question) {
            (None, _) => {
                problems.push(Error::at(&row.place, format!("`{}` has no question `{number}`", asked.setting)));
            }
            (Some(question), Some(text)) if !is_text(text, question) => {
                let (found, expected) = (first_line(text), first_line(&question.text));
                let what = format!("question `{number}` of `{}` is `{expected}`, found `{found}`", asked.setting);
                problems.push(Error::at(&row.place, what));
            }
            _ => named.push((id, row)),
        }
    }
    Error::first_ten(format!("answers to `{}`", asked.setting), problems)?;
    Ok(named)
}

/// Rows with question and image: settings whose questions are all among them are answered. What two settings ask alike has one answer.
fn by_image(file: &Path, rows: &[Given], asked: &[Asked]) -> Result<Vec<Named>> {
    let key =
        |image: &Path, text: &str| (image.file_name().map(std::ffi::OsStr::to_owned), first_line(text).to_owned());
    let questions = asked.iter().flat_map(|asked| &asked.questions);
    let known: HashSet<_> = questions.map(|question| key(&question.image, &question.text)).collect();
    let (mut answers, mut problems) = (HashMap::new(), Vec::new());
    for row in rows {
        let (Some(image), Some(text)) = (&row.image, &row.question) else { continue };
        if !known.contains(&key(Path::new(image), text)) {
            let what = format!("no setting asks `{}` about `{image}`", first_line(text));
            problems.push(Error::at(&row.place, what));
        }
        let before: &mut &Given = answers.entry(key(Path::new(image), text)).or_insert(row);
        if before.answer != row.answer {
            let what = format!("another answer to `{}` about `{image}` than in {}", first_line(text), before.place);
            problems.push(Error::at(&row.place, what).hint("give a file for each setting"));
        }
    }
    files::tell(file, problems)?;
    let of = |asked: &Asked| -> Option<Vec<Named>> {
        let answer = |question: &&Question| {
            let row = answers.get(&key(&question.image, &question.text))?;
            Some((question.id.clone(), (*row).clone()))
        };
        asked.questions.iter().map(answer).collect()
    };
    let named: Vec<Named> = asked.iter().filter_map(of).flatten().collect();
    if named.is_empty() { Err(refusal(file, rows, asked)) } else { Ok(named) }
}

/// What does not fit, and how to make it fit.
fn refusal(file: &Path, rows: &[Given], asked: &[Asked]) -> Error {
    let counts: Vec<String> = asked.iter().map(|a| format!("`{}` has {}", a.setting, a.questions.len())).collect();
    let has = |what: fn(&Given) -> bool| rows.iter().all(what);
    let found = match (has(|row| row.id.is_some()), has(|row| row.question.is_some())) {
        (true, _) => "ids that are not those of mdpo, as `random/1`, and no setting in the file's name",
        (false, true) => "questions that are not, line by line, those of one setting",
        (false, false) => "rows with neither `id` nor `question`",
    };
    let what = format!("{} answers fit no setting of POPE ({}): found {found}", rows.len(), counts.join(", "));
    let hint = "give a file for each setting, all in one folder (`--answers FOLDER`): either named after it (`answers_random.jsonl`) with the \
        numbers of the authors' file as `question_id`, or with `question` in the order of the authors' file; or ids as `random/1`, which \
        `--questions FILE` writes";
    Error::at(file.display(), what).hint(hint)
}
