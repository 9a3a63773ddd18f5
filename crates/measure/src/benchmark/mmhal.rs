//! MMHal-Bench (Sun et al. 2023, arXiv 2309.14525): 96 questions about photographs of OpenImages, eight types by twelve topics, whose
//! answers a language model grades from 0 to 6 by what is written about the photograph.
//!
//! Read are the authors' `response_template.json` and the photographs beside it. The grade, its threshold and the figures are theirs;
//! the judge's prompt is not: it gives the same instruction in other words and without their worked examples, so that figures compare
//! with published ones only if their prompt is given as a template ([`Prompt::read`]). The type of a question is what the file says
//! (`question_type`), which for the authors' file is the position modulo eight that their script goes by.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

use crate::{
    Better, Error, Figures, Result, files,
    interval::{Bootstrap, Formula, Measure, Tally},
    judge::{End, Judge, Part, Reply, Request},
};

/// The name that `--benchmark` takes.
pub const NAME: &str = "mmhal";
const FILE: &str = "response_template.json";
/// Grades below are of answers that hallucinate.
const FAITHFUL: u8 = 3;
const BEST: u8 = 6;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its position in the file, from 0.
    pub id: String,
    /// `attribute`, `adversarial`, `comparison` … as the file has it.
    pub kind: String,
    /// What the photograph is about, as `animal`.
    pub topic: String,
    /// Where the photograph lies, or should.
    pub image: PathBuf,
    /// The things in the photograph, which the judge reads in its place.
    pub image_content: Vec<String>,
    /// What is asked.
    pub question: String,
    /// The answer of a person.
    pub gt_answer: String,
    /// The answer of a model, where the file holds one, as it does after the authors' script.
    pub model_answer: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    question_type: String,
    question_topic: String,
    image_id: String,
    image_src: String,
    image_content: Vec<String>,
    question: String,
    gt_answer: String,
    model_answer: Option<String>,
}

/// Reads the questions of `folder`.
///
/// A photograph is `images/NAME`, `NAME`, `images/ID.jpg` or `ID.jpg`, where NAME ends `image_src` and ID is `image_id`; one that is not
/// there has the first of these as its path, since answers made elsewhere are judged without it.
///
/// # Errors
/// A file that is not there or no list of questions; every entry that lacks something.
pub fn read(folder: &Path) -> Result<Vec<Item>> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Err(Error::at(folder.display(), format!("expected the file `{FILE}`, found none")).hint(
            "it is in `test_data.zip` of `Shengcao1006/MMHal-Bench` on the Hugging Face hub, with the photographs",
        ));
    }
    let entries: Vec<serde_json::Value> = files::json(&path)?;
    if entries.is_empty() {
        return Err(Error::at(path.display(), "has no questions"));
    }
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        match serde_json::from_value::<Entry>(entry) {
            Ok(entry) => items.push(item(folder, index, entry)),
            Err(error) => problems.push(Error::at(format!("{} entry {}", path.display(), index + 1), error)),
        }
    }
    files::tell(&path, problems)?;
    Ok(items)
}

fn item(folder: &Path, index: usize, entry: Entry) -> Item {
    let name = entry.image_src.rsplit('/').next().unwrap_or_default().to_owned();
    let by_id = format!("{}.jpg", entry.image_id);
    let first = folder.join("images").join(&name);
    let others = [folder.join(&name), folder.join("images").join(&by_id), folder.join(&by_id)];
    let image = if first.is_file() { first } else { others.into_iter().find(|path| path.is_file()).unwrap_or(first) };
    Item {
        id: index.to_string(),
        kind: entry.question_type,
        topic: entry.question_topic,
        image,
        image_content: entry.image_content,
        question: entry.question,
        gt_answer: entry.gt_answer,
        model_answer: entry.model_answer.filter(|answer| !answer.is_empty()),
    }
}

/// Parts the questions into those that are asked, of at most `limit` photographs drawn by `seed`, and the others.
pub fn draw(items: Vec<Item>, limit: Option<usize>, seed: u64) -> (Vec<Item>, Vec<Item>) {
    let images: Vec<&Path> = items.iter().map(|item| item.image.as_path()).collect();
    let asked = super::sample(&images, limit, seed);
    let (asked, others): (Vec<_>, Vec<_>) = items.into_iter().enumerate().partition(|(index, _)| asked.contains(index));
    let without_index = |items: Vec<(usize, Item)>| items.into_iter().map(|(_, item)| item).collect();
    (without_index(asked), without_index(others))
}

/// Sees to it that every photograph is there.
///
/// # Errors
/// The first that is not.
pub fn check_images(items: &[Item]) -> Result<()> {
    match items.iter().find(|item| !item.image.is_file()) {
        Some(item) => {
            Err(Error::at(item.image.display(), "no such image").hint("the authors' `test_data.zip` has them"))
        }
        None => Ok(()),
    }
}

/// A question and what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered<'a> {
    /// The question.
    pub item: &'a Item,
    /// The answer.
    pub answer: &'a str,
}

/// Gives every question its answer, by id.
///
/// # Errors
/// Answers to unknown questions, two answers to one, questions without any; `source` is where the answers come from.
pub fn match_answers<'a>(
    items: &'a [Item],
    answers: impl IntoIterator<Item = (&'a str, &'a str)>,
    source: &str,
) -> Result<Vec<Answered<'a>>> {
    let places: HashMap<&str, usize> =
        items.iter().enumerate().map(|(index, item)| (item.id.as_str(), index)).collect();
    let mut found: Vec<Option<&str>> = vec![None; items.len()];
    let mut problems = Vec::new();
    for (id, answer) in answers {
        match places.get(id) {
            None => problems.push(
                Error::at(source, format!("`{NAME}` has no question `{id}`"))
                    .hint("ids are positions in the file, from 0"),
            ),
            Some(&at) if found[at].is_some() => problems.push(Error::at(source, format!("`{id}` has two answers"))),
            Some(&at) => found[at] = Some(answer),
        }
    }
    let missing: Vec<&str> =
        items.iter().zip(&found).filter(|(_, answer)| answer.is_none()).map(|(item, _)| item.id.as_str()).collect();
    if let Some(first) = missing.first() {
        problems.push(Error::at(
            source,
            format!("{} of {} questions have no answer, the first is `{first}`", missing.len(), items.len()),
        ));
    }
    files::tell(Path::new(source), problems)?;
    Ok(items.iter().zip(found).filter_map(|(item, answer)| Some(Answered { item, answer: answer? })).collect())
}

/// What the judge is told: a minijinja template of `image_content` (joined by `, `), `question`, `gt_answer` and `answer`, and if it
/// likes `question_type` and `question_topic`.
#[derive(Debug)]
pub struct Prompt {
    environment: Environment<'static>,
    name: String,
}

const VARIABLES: [&str; 6] = ["image_content", "question", "gt_answer", "answer", "question_type", "question_topic"];

impl Prompt {
    /// The prompt of this program.
    pub fn own() -> Self {
        Self::parse("mmhal prompt", include_str!("mmhal/prompt.txt").to_owned())
            .expect("the prompt of this program is a template")
    }

    /// A template of one's own, as that of the authors with `{{ image_content }}` and so on in place of its four `{}`.
    ///
    /// # Errors
    /// A file that is not there or no template; a variable that there is not; a prompt without the answer.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), files::text(path)?)
    }

    fn parse(name: &str, text: String) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .add_template_owned(name.to_owned(), text)
            .map_err(|error| Error::at(name, template_problem(&error)))?;
        let prompt = Prompt { environment, name: name.to_owned() };
        let used = prompt.template()?.undeclared_variables(false);
        let hint = format!("a prompt has {}", VARIABLES.map(|name| format!("`{{{{ {name} }}}}`")).join(", "));
        if let Some(unknown) = used.iter().filter(|name| !VARIABLES.contains(&name.as_str())).min() {
            return Err(Error::at(name, format!("there is no variable `{unknown}`")).hint(hint));
        }
        if !used.contains("answer") {
            return Err(Error::at(name, "the judge would not see the answer: there is no `{{ answer }}`").hint(hint));
        }
        Ok(prompt)
    }

    fn template(&self) -> Result<minijinja::Template<'_, '_>> {
        self.environment.get_template(&self.name).map_err(|error| Error::at(&self.name, template_problem(&error)))
    }

    /// The prompt about one answer.
    ///
    /// # Errors
    /// A template that fails while it is filled in.
    pub fn fill(&self, answered: &Answered<'_>) -> Result<String> {
        let Answered { item, answer } = answered;
        let values = context! {
            image_content => item.image_content.join(", "),
            question => item.question,
            gt_answer => item.gt_answer,
            question_type => item.kind,
            question_topic => item.topic,
            answer,
        };
        self.template()?.render(values).map_err(|error| Error::at(&self.name, template_problem(&error)))
    }
}

fn template_problem(error: &minijinja::Error) -> String {
    match error.line() {
        Some(line) => format!("line {line}: {}", error.detail().unwrap_or("is no template")),
        None => error.to_string(),
    }
}

/// What the judge goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// The words about the photograph, as the authors have it.
    Words,
    /// The photograph itself too, before the words.
    Picture,
}

/// How answers are judged.
#[derive(Debug)]
pub struct Options {
    /// What the judge is told.
    pub prompt: Prompt,
    /// What the judge goes by.
    pub sight: Sight,
    /// How intervals are drawn.
    pub bootstrap: Bootstrap,
}

impl Default for Options {
    fn default() -> Self {
        Options { prompt: Prompt::own(), sight: Sight::Words, bootstrap: Bootstrap::default() }
    }
}

/// One line of `rows.jsonl`: what all benchmarks have, and what a judge said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The question with its answer; its score is the grade, 0 to 6, and 0 too where the judge named none or several.
    #[serde(flatten)]
    pub answered: super::Row,
    /// The type of the question.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the judge said.
    pub verdict: String,
}

/// What a set of answers comes to.
#[derive(Debug)]
pub struct Scored {
    /// The figures over all answers that were judged.
    pub figures: Figures,
    /// One row for each of these, in the order of the questions.
    pub rows: Vec<Row>,
    /// Answers whose verdict names no grade or several, by id and with why: by the authors' rule they score 0.
    pub ungraded: Vec<(String, Ungraded)>,
    /// Answers that the judge said nothing of, by id and with why. They are in no figure: a run with any is not complete.
    pub failed: Vec<(String, Error)>,
}

impl Scored {
    /// Writes `rows.jsonl` and then `metrics.json` into `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// A folder that cannot be made or written to, a full disk.
    pub fn write(&self, folder: &Path) -> Result<()> {
        super::write(folder, &self.rows, &self.figures)
    }
}

/// Why a verdict has no grade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ungraded {
    /// It was cut off: the judge needs more tokens.
    Cut,
    /// It names none, or several.
    Unclear,
}

/// Has all answers judged. `source` is who or what answered, for the figures.
///
/// # Errors
/// Those of [`Judge::ask`]; a prompt that cannot be filled in; not one answer that was judged.
pub fn score(answers: &[Answered<'_>], source: &str, judge: &Judge, options: &Options) -> Result<Scored> {
    let request = |answered: &Answered<'_>| {
        let picture = (options.sight == Sight::Picture).then(|| Part::Image(answered.item.image.clone()));
        Ok(Request::user(picture.into_iter().chain([Part::Text(options.prompt.fill(answered)?)])))
    };
    let requests = answers.iter().map(request).collect::<Result<Vec<_>>>()?;
    let (mut rows, mut graded, mut ungraded, mut failed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (Answered { item, answer }, reply) in answers.iter().zip(judge.ask(&requests)?) {
        let Reply { text, end, .. } = match reply {
            Ok(reply) => reply,
            Err(error) => {
                failed.push((item.id.clone(), error));
                continue;
            }
        };
        let grade = grade(&text);
        if grade.is_none() {
            let why = if end == End::Complete { Ungraded::Unclear } else { Ungraded::Cut };
            ungraded.push((item.id.clone(), why));
        }
        let grade = grade.unwrap_or(0);
        graded.push((item.kind.as_str(), grade));
        let answered = super::Row {
            id: item.id.clone(),
            image: item.image.canonicalize().ok(),
            question: item.question.clone(),
            answer: (*answer).to_owned(),
            score: Some(f64::from(grade)),
            ..super::Row::default()
        };
        rows.push(Row { answered, kind: item.kind.clone(), verdict: text });
    }
    if rows.is_empty() {
        return Err(match failed.pop() {
            Some((_, error)) => error,
            None => Error::at(source, "has no answers to judge"),
        });
    }
    Ok(Scored { figures: figures(&graded, source, options.bootstrap), rows, ungraded, failed })
}

/// The grade that a verdict names: the only one of 0 to 6 that stands behind `rating: `, in whichever case.
fn grade(verdict: &str) -> Option<u8> {
    let verdict = verdict.to_lowercase();
    let mut named = (0..=BEST).filter(|grade| verdict.contains(&format!("rating: {grade}")));
    named.next().filter(|_| named.next().is_none())
}

/// Figures of grades with the types of their questions: over all, then of each type in the order in which types first stand.
fn figures(graded: &[(&str, u8)], source: &str, bootstrap: Bootstrap) -> Figures {
    let kinds = super::distinct(graded.iter().map(|(kind, _)| *kind));
    let mut tally = Tally::new(WIDTH * (1 + kinds.len()));
    for (kind, grade) in graded {
        let of_kind = 1 + kinds.iter().position(|known| known == kind).expect("the type was found above");
        let informative = if *grade >= FAITHFUL { grade - FAITHFUL } else { *grade };
        let counts = [1.0, f64::from(*grade), if *grade < FAITHFUL { 1.0 } else { 0.0 }, f64::from(informative) / 3.0];
        tally.push(
            [0, of_kind]
                .into_iter()
                .flat_map(|group| counts.into_iter().enumerate().map(move |(at, count)| (WIDTH * group + at, count))),
        );
    }
    Figures {
        benchmark: NAME.to_owned(),
        model: source.to_owned(),
        adapter: None,
        answers: graded.len(),
        figures: bootstrap.figures(&tally, &of_kinds(&kinds)),
    }
}

/// The figures that answers to these questions come to.
pub fn measures(items: &[Item]) -> Vec<Measure> {
    of_kinds(&super::distinct(items.iter().map(|item| item.kind.as_str())))
}

/// Columns of everything, and as many of each type: how many, their grades, how many hallucinate, how informative they are.
const WIDTH: usize = 4;

fn of_kinds(kinds: &[String]) -> Vec<Measure> {
    let score = |group: usize| Formula::Mean { of: WIDTH * group + 1, count: WIDTH * group };
    let hallucination = |group: usize| Formula::Share { of: WIDTH * group + 2, among: WIDTH * group };
    let measure = |name: String, better: Better, formula: Formula| Measure { name, better, formula };
    let mut measures = vec![
        measure("score".to_owned(), Better::Higher, score(0)),
        measure("hallucination rate".to_owned(), Better::Lower, hallucination(0)),
        measure("informativeness".to_owned(), Better::Higher, Formula::Share { of: 3, among: 0 }),
    ];
    for (index, kind) in kinds.iter().enumerate() {
        measures.push(measure(format!("score {kind}"), Better::Higher, score(index + 1)));
    }
    for (index, kind) in kinds.iter().enumerate() {
        measures.push(measure(format!("hallucination rate {kind}"), Better::Lower, hallucination(index + 1)));
    }
    measures
}

#[cfg(test)]
mod tests;
