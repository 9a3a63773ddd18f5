//! A folder of one's own as a benchmark: images, and in `objects.jsonl` the objects in each.
//!
//! Every image is described, and polled as POPE does ([`super::poll`]); from the descriptions come CHAIR (Rohrbach et al., EMNLP 2018), and
//! Cover and Hal (AMBER, arXiv 2311.07397). An object counts once an answer, however often and by whichever word it is named.

use super::poll::{self, Occurrences, Poll, Setting};
use super::{Images, Opened, Options, Question, Row, Scorer, distinct, find, synonyms};
use crate::figures::Better;
use crate::interval::Measure;
use crate::nouns::{Mention, Vocabulary};
use crate::{Error, Result, files, nearest};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// What is asked for where a row says nothing else.
pub const QUESTION: &str = "Describe this image.";

/// The keys of a row of `objects.jsonl`.
const KEYS: [&str; 5] = ["id", "image", "objects", "synonyms", "question"];

/// A row of `objects.jsonl`.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    /// The row's line where it has none, as in files of prompts.
    id: Option<files::Id>,
    image: String,
    objects: Vec<String>,
    #[serde(default)]
    synonyms: BTreeMap<String, Vec<String>>,
    question: Option<String>,
}

const DESCRIPTIONS: usize = 0;
const INVENTING: usize = 1;
const NAMING: usize = 2;
const NAMED: usize = 3;
const INVENTED: usize = 4;
const TRUE: usize = 5;
const COVERED: usize = 6;
const POLLS: usize = 7;

/// A question's answer that counts as right.
#[derive(Debug)]
enum Truth {
    /// The description may name the objects of this image.
    Description { image: usize },
    /// A poll's.
    Poll { setting: Setting, is_there: bool },
}

#[derive(Debug)]
struct Objects {
    vocabulary: Vocabulary,
    /// The objects of each image, each once.
    images: Vec<Vec<String>>,
    truths: Vec<Truth>,
}

pub(super) fn open(folder: &Path, options: &Options) -> Result<Opened> {
    let path = folder.join("objects.jsonl");
    let lines = lines(&path)?;
    check(&path, &lines)?;
    let table = options.synonyms.clone().or_else(|| find(folder, &["synonyms.txt"]));
    let table = table.map(|path| synonyms(&path)).transpose()?.unwrap_or_default();
    let vocabulary = vocabulary(&lines, &table);

    // A name that is a synonym of another is that other object.
    let object = |name: &String| vocabulary.object(name).unwrap_or(name).to_owned();
    let images: Vec<Vec<String>> = lines
        .iter()
        .map(|(_, line)| distinct(line.objects.iter().map(object).collect::<Vec<_>>().iter().map(String::as_str)))
        .collect();
    let index: HashMap<&str, usize> = vocabulary.objects().iter().map(String::as_str).zip(0..).collect();
    let indices =
        images.iter().map(|image| image.iter().filter_map(|name| index.get(name.as_str()).copied()).collect());
    let indices: Vec<Vec<usize>> = indices.collect();
    let occurrences = Occurrences::count(&indices, vocabulary.objects().len());

    let places = Images::new(folder, &[], options)?;
    let (mut questions, mut truths) = (Vec::new(), Vec::new());
    for (image, (number, line)) in lines.iter().enumerate() {
        let (id, picture) = (line.name(*number), places.find(&line.image));
        let text = line.question.clone().unwrap_or_else(|| QUESTION.to_owned());
        questions.push(Question { id: format!("{id}/describe"), image: picture.clone(), text });
        truths.push(Truth::Description { image });
        for setting in Setting::ALL {
            let polls = occurrences.polls(image, &indices[image], setting, options.seed);
            for (number, Poll { object, is_there }) in polls.into_iter().enumerate() {
                let id = format!("{id}/{setting}/{}", number + 1);
                let text = poll::question(&vocabulary.objects()[object]);
                questions.push(Question { id, image: picture.clone(), text });
                truths.push(Truth::Poll { setting, is_there });
            }
        }
    }
    Ok(Opened { questions, scorer: Box::new(Objects { vocabulary, images, truths }) })
}

/// The rows with their line numbers. A key that is none is refused: `object` in place of `objects`, or `synonym`, would silently change figures.
fn lines(path: &Path) -> Result<Vec<(usize, Line)>> {
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for (number, row) in files::rows::<Map<String, Value>>(path)? {
        let unknown = row.keys().find(|key| !KEYS.contains(&key.as_str()));
        let read = match unknown {
            Some(key) => {
                let known = KEYS.map(|key| format!("`{key}`")).join(", ");
                let hint = match nearest(key, KEYS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the keys of a row are {known}"),
                };
                Err(Error::at(files::at(path, number), format!("unknown key `{key}`")).hint(hint))
            }
            None => serde_json::from_value::<Line>(Value::Object(row))
                .map_err(|error| Error::at(files::at(path, number), error)),
        };
        match read {
            Ok(line) => lines.push((number, line)),
            Err(problem) => problems.push(problem),
        }
    }
    files::tell(path, problems)?;
    Ok(lines)
}

impl Line {
    /// What the row is called, which is line `number`.
    fn name(&self, number: usize) -> String {
        self.id.as_ref().map_or_else(|| number.to_string(), |id| id.0.clone())
    }
}

/// Two rows of one name, and names that are empty.
fn check(path: &Path, lines: &[(usize, Line)]) -> Result<()> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut problems = Vec::new();
    for (number, line) in lines {
        let name = line.name(*number);
        if let Some(before) = seen.insert(name.clone(), *number) {
            let what = format!("the id `{name}` is that of line {before} already");
            let hint = "every row needs an `id` of its own; a row without one is called by its line";
            problems.push(Error::at(files::at(path, *number), what).hint(hint));
        }
        if line.objects.iter().chain(line.synonyms.values().flatten()).any(|name| name.trim().is_empty()) {
            problems.push(Error::at(files::at(path, *number), "an object has an empty name"));
        }
    }
    files::tell(path, problems)
}

/// The vocabulary is every object of the file and of the table of synonyms, so an object that is nowhere can be invented too. Names come
/// first: a word that is an object's name is no synonym of another one.
fn vocabulary(lines: &[(usize, Line)], table: &[Vec<String>]) -> Vocabulary {
    let mut vocabulary = Vocabulary::of_names([]);
    let listed: HashSet<&str> = table.iter().flat_map(|entry| &entry[1..]).map(String::as_str).collect();
    table.iter().for_each(|entry| vocabulary.add(&entry[0], &entry[0]));
    for (_, line) in lines {
        line.objects.iter().filter(|name| !listed.contains(name.as_str())).for_each(|name| vocabulary.add(name, name));
    }
    let in_rows = lines.iter().flat_map(|(_, line)| &line.synonyms);
    let in_rows = in_rows.flat_map(|(object, words)| words.iter().map(move |word| (word, object)));
    let in_table = table.iter().flat_map(|entry| entry[1..].iter().map(move |word| (word, &entry[0])));
    in_table.chain(in_rows).for_each(|(word, object)| vocabulary.add(word, object));
    vocabulary
}

impl Scorer for Objects {
    fn columns(&self) -> usize {
        POLLS + poll::COLUMNS
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measures = vec![
            Measure::share("CHAIRs", Better::Lower, INVENTING, DESCRIPTIONS),
            Measure::share("CHAIRs_refine", Better::Lower, INVENTING, NAMING),
            Measure::share("CHAIRi", Better::Lower, INVENTED, NAMED),
            Measure::share("Cover", Better::Higher, COVERED, TRUE),
            Measure::share("Hal", Better::Lower, INVENTING, DESCRIPTIONS),
        ];
        let mut polls = poll::measures("POPE/", &Setting::ALL);
        polls.iter_mut().for_each(|measure| measure.formula = measure.formula.moved(POLLS));
        measures.append(&mut polls);
        measures
    }

    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)> {
        match &self.truths[question] {
            Truth::Poll { setting, is_there } => {
                let (is_correct, counts) = poll::judge(*setting, *is_there, &row.answer);
                row.correct = Some(is_correct);
                counts.into_iter().map(|(column, count)| (POLLS + column, count)).collect()
            }
            Truth::Description { image } => self.judge_description(&self.images[*image], row),
        }
    }
}

impl Objects {
    fn judge_description(&self, truth: &[String], row: &mut Row) -> Vec<(usize, f64)> {
        let mut seen = HashSet::new();
        let mut named = self.vocabulary.mentions(&row.answer);
        named.retain(|mention| seen.insert(mention.object.clone()));
        let invented: Vec<&Mention> = named.iter().filter(|mention| !truth.contains(&mention.object)).collect();
        let covered: Vec<String> = truth.iter().filter(|object| seen.contains(*object)).cloned().collect();
        let counts = vec![
            (DESCRIPTIONS, 1.0),
            (INVENTING, f64::from(u8::from(!invented.is_empty()))),
            (NAMING, f64::from(u8::from(!named.is_empty()))),
            (NAMED, named.len() as f64),
            (INVENTED, invented.len() as f64),
            (TRUE, truth.len() as f64),
            (COVERED, covered.len() as f64),
        ];
        row.hallucinated = Some(invented.iter().map(|mention| mention.word.clone()).collect());
        row.mentioned = Some(named.iter().map(|mention| mention.word.clone()).collect());
        row.covered = Some(covered);
        counts
    }
}
