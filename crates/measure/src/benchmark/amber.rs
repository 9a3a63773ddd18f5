//! AMBER (Wang et al., arXiv 2311.07397), files as its authors publish them: `annotations.json`, `relation.json`, `safe_words.txt`, and
//! `query_generative.json`, `query_discriminative.json` (or its parts) beside them or in `query`.
//!
//! Figures as in the authors' `inference.py`, whose rules are kept where they are surprising: words count as they are written (`Dogs` at the
//! start of a sentence is no `dog`), every mention counts, a safe word counts only as mentioned, a word that belongs to several objects
//! covers the first one that it is related to, a list may have an object twice, and "no" is the positive class. What differs:
//!
//! - nouns are found by [`crate::nouns`], not by NLTK's tagger and WordNet;
//! - they call two words the same when their vectors in spaCy's `en_core_web_lg` have a cosine above 0.8. All words that can meet are in
//!   `relation.json`, so this is a list of pairs: `similar_words.txt` in the data folder, two words a line. Without it only what
//!   `relation.json` says is the same;
//! - their denominators start at 0.001, and F1 is of rounded numbers with 0.0001 (existence 0.001) in its denominator; here nothing is added;
//! - a yes-no answer must be `Yes` or `No` for them; here its first word decides, in any case.

use super::binary::{self, Outcome};
use super::{Images, Opened, Options, Question, Row, Scorer, distinct, find, need};
use crate::figures::Better;
use crate::interval::Measure;
use crate::nouns::{Case, Parts, Vocabulary};
use crate::{Error, Result, files};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

const HINT: &str = "the files are in `data` of AMBER's repository";

#[derive(Debug, Deserialize)]
struct Query {
    id: files::Id,
    image: String,
    query: String,
}

#[derive(Debug, Deserialize)]
struct Annotation {
    id: files::Id,
    r#type: String,
    truth: Truth,
    #[serde(default)]
    hallu: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Truth {
    Objects(Vec<String>),
    Answer(YesNo),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum YesNo {
    Yes,
    No,
}

/// Questions and the annotation of each.
fn read(folder: &Path, queries: &[PathBuf], options: &Options) -> Result<Vec<(Question, Annotation)>> {
    let path = need(folder, &["annotations.json", "data/annotations.json"], HINT)?;
    let annotations: Vec<Annotation> = files::json(&path)?;
    let mut by_id: HashMap<String, Annotation> = HashMap::new();
    for annotation in annotations {
        if let Some(before) = by_id.insert(annotation.id.0.clone(), annotation) {
            return Err(Error::at(path.display(), format!("two annotations have the id {}", before.id.0)));
        }
    }
    let images = Images::new(folder, &["AMBER"], options)?;
    let (mut read, mut problems) = (Vec::new(), Vec::new());
    for file in queries {
        for query in files::json::<Vec<Query>>(file)? {
            let Some(annotation) = by_id.remove(&query.id.0) else {
                let what = format!("question {} has no annotation of its own in `{}`", query.id.0, path.display());
                problems.push(Error::at(file.display(), what));
                continue;
            };
            let question = Question { id: query.id.0, image: images.find(&query.image), text: query.query };
            read.push((question, annotation));
        }
    }
    files::tell(&path, problems)?;
    Ok(read)
}

const ANSWERS: usize = 0;
const INVENTING: usize = 1;
const NOUNS: usize = 2;
const FLAGGED: usize = 3;
const TRUE: usize = 4;
const COVERED: usize = 5;
const TEMPTING: usize = 6;
const TEMPTED: usize = 7;

/// An image's lists: what is there and what one would think is there.
#[derive(Debug)]
struct Lists {
    truth: Related,
    hallu: Related,
}

/// A list of objects, and the words that stand for them in the order in which the authors look for them.
#[derive(Debug)]
struct Related {
    objects: Vec<String>,
    /// First the relatives of every object, then the objects: a word and whose it is.
    words: Vec<(String, usize)>,
}

impl Related {
    fn new(objects: Vec<String>, relation: &BTreeMap<String, Vec<String>>) -> Self {
        let relatives = |(index, object): (usize, &String)| {
            let words = relation.get(object).into_iter().flatten();
            words.map(move |word| (word.clone(), index)).collect::<Vec<_>>()
        };
        let mut words: Vec<(String, usize)> = objects.iter().enumerate().flat_map(relatives).collect();
        words.extend(objects.iter().cloned().zip(0..));
        Self { objects, words }
    }

    /// The object that the first word for which `is_same` holds stands for.
    fn first(&self, is_same: impl Fn(&str) -> bool) -> Option<usize> {
        self.words.iter().find(|(word, _)| is_same(word)).map(|(_, object)| *object)
    }

    fn names(&self, which: &HashSet<usize>) -> Vec<String> {
        self.objects
            .iter()
            .enumerate()
            .filter(|(index, _)| which.contains(index))
            .map(|(_, name)| name.clone())
            .collect()
    }
}

#[derive(Debug)]
struct Generative {
    vocabulary: Vocabulary,
    safe: HashSet<String>,
    similar: HashSet<(String, String)>,
    images: Vec<Lists>,
}

pub(super) fn open_generative(folder: &Path, options: &Options) -> Result<Opened> {
    let queries = need(folder, &names("query_generative.json").each_ref().map(String::as_str), HINT)?;
    let read = read(folder, std::slice::from_ref(&queries), options)?;
    let relation = need(folder, &["relation.json", "data/relation.json"], HINT)?;
    let relation: BTreeMap<String, Vec<String>> = files::json(&relation)?;
    let safe = files::text(&need(folder, &["safe_words.txt", "data/safe_words.txt"], HINT)?)?;
    let similar = find(folder, &["similar_words.txt", "data/similar_words.txt"]);
    let similar = similar.map(|path| similar_words(&path)).transpose()?.unwrap_or_default();

    let mut vocabulary = Vocabulary::new(Case::Kept, Parts::Nouns);
    relation.iter().flat_map(|(word, words)| std::iter::once(word).chain(words)).for_each(|w| vocabulary.add(w, w));
    let (mut questions, mut images) = (Vec::new(), Vec::new());
    for (question, annotation) in read {
        let Truth::Objects(truth) = annotation.truth else {
            let what = format!("question {} is annotated with an answer, not with objects", question.id);
            return Err(Error::at(queries.display(), what).hint(HINT));
        };
        questions.push(question);
        let hallu = Related::new(annotation.hallu, &relation);
        images.push(Lists { truth: Related::new(truth, &relation), hallu });
    }
    let safe = safe.lines().map(|line| line.trim().to_owned()).collect();
    Ok(Opened { questions, scorer: Box::new(Generative { vocabulary, safe, similar, images }) })
}

/// Where a file of questions may be.
fn names(name: &str) -> [String; 4] {
    ["", "query/", "data/query/", "data/"].map(|folder| format!("{folder}{name}"))
}

/// Pairs of words, in both orders.
fn similar_words(path: &Path) -> Result<HashSet<(String, String)>> {
    let mut pairs = HashSet::new();
    for (index, line) in files::text(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [one, other] = words[..] else {
            let what = format!("expected two words, found {}", words.len());
            return Err(Error::at(files::at(path, index + 1), what));
        };
        pairs.insert((one.to_owned(), other.to_owned()));
        pairs.insert((other.to_owned(), one.to_owned()));
    }
    Ok(pairs)
}

impl Scorer for Generative {
    fn columns(&self) -> usize {
        TEMPTED + 1
    }

    fn measures(&self) -> Vec<Measure> {
        vec![
            Measure::share("CHAIR", Better::Lower, FLAGGED, NOUNS),
            Measure::share("Cover", Better::Higher, COVERED, TRUE),
            Measure::share("Hal", Better::Lower, INVENTING, ANSWERS),
            Measure::share("Cog", Better::Lower, TEMPTED, TEMPTING),
        ]
    }

    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)> {
        let Lists { truth, hallu } = &self.images[question];
        let nouns: Vec<String> =
            self.vocabulary.mentions(&row.answer).into_iter().map(|mention| mention.word).collect();
        let (mut covered, mut tempted, mut flagged) = (HashSet::new(), HashSet::new(), Vec::new());
        for noun in nouns.iter().filter(|noun| !self.safe.contains(*noun)) {
            let is_noun = |word: &str| word == noun;
            let is_similar = |word: &str| word == noun || self.similar.contains(&(noun.clone(), word.to_owned()));
            if let Some(object) = truth.first(is_noun) {
                covered.insert(object);
                continue;
            }
            tempted.extend(hallu.first(is_noun));
            tempted.extend(hallu.first(is_similar));
            match truth.first(is_similar) {
                Some(object) => drop(covered.insert(object)),
                None => flagged.push(noun.as_str()),
            }
        }
        row.mentioned = Some(distinct(nouns.iter().map(String::as_str)));
        row.hallucinated = Some(distinct(flagged.iter().copied()));
        row.covered = Some(truth.names(&covered));
        vec![
            (ANSWERS, 1.0),
            (INVENTING, f64::from(u8::from(!flagged.is_empty()))),
            (NOUNS, nouns.len() as f64),
            (FLAGGED, flagged.len() as f64),
            (TRUE, truth.objects.len() as f64),
            (COVERED, covered.len() as f64),
            (TEMPTING, hallu.objects.len() as f64),
            (TEMPTED, tempted.len() as f64),
        ]
    }
}

/// What a yes-no question is about, with the names that annotations have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Existence,
    State,
    Number,
    Action,
    Relation,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Existence, Kind::State, Kind::Number, Kind::Action, Kind::Relation];

    /// By the annotation's type; the authors take every type that they do not name for a relation.
    fn of_type(name: &str) -> Self {
        match name {
            "discriminative-hallucination" => Kind::Existence,
            "discriminative-attribute-state" => Kind::State,
            "discriminative-attribute-number" => Kind::Number,
            "discriminative-attribute-action" => Kind::Action,
            _ => Kind::Relation,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Existence => "existence",
            Kind::State => "state",
            Kind::Number => "number",
            Kind::Action => "action",
            Kind::Relation => "relation",
        }
    }

    /// Groups of columns that a question of this kind adds to; 0 is all, 1 the attributes.
    fn groups(self) -> Vec<usize> {
        let own = 2 + self as usize;
        match self {
            Kind::Existence | Kind::Relation => vec![0, own],
            Kind::State | Kind::Number | Kind::Action => vec![0, 1, own],
        }
    }
}

#[derive(Debug)]
struct Discriminative {
    truths: Vec<(Kind, YesNo)>,
}

pub(super) fn open_discriminative(folder: &Path, options: &Options) -> Result<Opened> {
    let file = |name: &str| find(folder, &names(name).each_ref().map(String::as_str));
    let queries: Vec<PathBuf> = match file("query_discriminative.json") {
        Some(all) => vec![all],
        None => {
            let parts = ["existence", "attribute", "relation"];
            parts.iter().filter_map(|part| file(&format!("query_discriminative-{part}.json"))).collect()
        }
    };
    let Some(first) = queries.first() else {
        let what = "expected `query_discriminative.json` or one of its parts (`query_discriminative-existence.json` …), found none";
        return Err(Error::at(folder.display(), what).hint(HINT));
    };
    let (mut questions, mut truths) = (Vec::new(), Vec::new());
    for (question, annotation) in read(folder, &queries, options)? {
        let Truth::Answer(truth) = annotation.truth else {
            let what = format!("question {} is annotated with objects, not with an answer", question.id);
            return Err(Error::at(first.display(), what).hint(HINT));
        };
        questions.push(question);
        truths.push((Kind::of_type(&annotation.r#type), truth));
    }
    Ok(Opened { questions, scorer: Box::new(Discriminative { truths }) })
}

/// What the first word of an answer says, if it is yes or no.
fn yes_no(answer: &str) -> Option<YesNo> {
    let word = answer.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty())?;
    match word.to_lowercase().as_str() {
        "yes" => Some(YesNo::Yes),
        "no" => Some(YesNo::No),
        _ => None,
    }
}

impl Scorer for Discriminative {
    fn columns(&self) -> usize {
        (2 + Kind::ALL.len()) * binary::COLUMNS
    }

    fn measures(&self) -> Vec<Measure> {
        let is_there = |kind: Kind| self.truths.iter().any(|(other, _)| *other == kind);
        let mut measures = binary::measures("", 0);
        for kind in Kind::ALL.into_iter().filter(|kind| is_there(*kind)) {
            let groups = kind.groups();
            if groups.contains(&1) && !measures.iter().any(|measure| measure.name.starts_with("attribute/")) {
                measures.append(&mut binary::measures("attribute/", 1));
            }
            measures.append(&mut binary::measures(&format!("{}/", kind.name()), 2 + kind as usize));
        }
        measures
    }

    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)> {
        let (kind, truth) = self.truths[question];
        let said = yes_no(&row.answer);
        let is_correct = said == Some(truth);
        row.correct = Some(is_correct);
        let outcome = Outcome { is_correct, says_class: said == Some(YesNo::No), is_class: truth == YesNo::No };
        kind.groups().into_iter().flat_map(|group| outcome.counts(group)).collect()
    }
}
