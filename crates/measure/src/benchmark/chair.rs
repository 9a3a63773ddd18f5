//! CHAIR (Rohrbach et al., EMNLP 2018) and Object HalBench (RLHF-V, arXiv 2312.00849) on COCO's annotations as COCO publishes them:
//! `instances_*.json` and `captions_*.json`, any number of each, in the data folder or its `annotations`.
//!
//! An image has the classes that are annotated in it and those that its captions name. Figures of Object HalBench: `CHAIRs_refine` (what its
//! script prints as the response-level rate: over answers that name an object), `CHAIRs` over all answers, `CHAIRi` over the distinct words
//! of each answer, `recall` of classes. `CHAIRi_mentions` is CHAIR's own CHAIRi, in which every mention counts.
//!
//! Differences: Object HalBench lets GPT-3.5 list the objects of an answer and maps what it lists; here words are found in the answer itself, as
//! CHAIR's script does (every word, whatever its part of speech), by [`crate::nouns`] in place of `pattern`'s singulars. The table of
//! synonyms is our own ([`super::coco`]) unless theirs is given.

use super::coco::{ANIMALS, NO_OBJECTS, SYNONYMS};
use super::{Images, Opened, Options, Question, Row, Scorer, distinct, find, synonyms};
use crate::figures::Better;
use crate::interval::Measure;
use crate::nouns::{Case, Mention, Parts, Vocabulary};
use crate::{Error, Result, files};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// What is asked where there is no `questions.jsonl`.
const QUESTION: &str = "Please describe this image in detail.";
const HINT: &str = "COCO's annotations have `instances_val2014.json`, `captions_val2014.json` and the like";

#[derive(Debug, Deserialize)]
struct Instances {
    images: Vec<Image>,
    annotations: Vec<Instance>,
    categories: Vec<Category>,
}

#[derive(Debug, Deserialize)]
struct Image {
    id: u64,
    file_name: String,
}

#[derive(Debug, Deserialize)]
struct Instance {
    image_id: u64,
    category_id: u64,
}

#[derive(Debug, Deserialize)]
struct Category {
    id: u64,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Captions {
    annotations: Vec<Caption>,
}

#[derive(Debug, Deserialize)]
struct Caption {
    image_id: u64,
    caption: String,
}

/// A row of `questions.jsonl`, as Object HalBench has them.
#[derive(Debug, Deserialize)]
struct Asked {
    image_id: u64,
    question: String,
}

const ANSWERS: usize = 0;
const NAMING: usize = 1;
const INVENTING: usize = 2;
const MENTIONS: usize = 3;
const INVENTED_MENTIONS: usize = 4;
const WORDS: usize = 5;
const INVENTED_WORDS: usize = 6;
const TRUE: usize = 7;
const COVERED: usize = 8;

#[derive(Debug)]
struct Chair {
    vocabulary: Vocabulary,
    /// The classes of the image that each question is about.
    truths: Vec<HashSet<String>>,
}

pub(super) fn open(folder: &Path, options: &Options) -> Result<Opened> {
    let table = options.synonyms.clone().or_else(|| find(folder, &["synonyms.txt", "annotations/synonyms.txt"]));
    let vocabulary = match &table {
        Some(path) => vocabulary(synonyms(path)?.iter().map(|entry| entry.iter().map(String::as_str).collect())),
        None => vocabulary(SYNONYMS.lines().map(|line| line.split(", ").collect())),
    };
    let (instances, captions) = (annotation_files(folder, "instances_")?, annotation_files(folder, "captions_")?);

    let (mut images, mut objects) = (Vec::new(), HashMap::<u64, HashSet<String>>::new());
    for path in &instances {
        let Instances { images: listed, annotations, categories } = files::json(path)?;
        let classes = classes(path, &categories, &vocabulary)?;
        for Instance { image_id, category_id } in annotations {
            let class = classes.get(&category_id).ok_or_else(|| {
                Error::at(
                    path.display(),
                    format!("an annotation of image {image_id} has the unknown category {category_id}"),
                )
            })?;
            objects.entry(image_id).or_default().insert(class.clone());
        }
        images.extend(listed);
    }
    for path in &captions {
        for Caption { image_id, caption } in files::json::<Captions>(path)?.annotations {
            let named = mentions(&vocabulary, &caption).into_iter().map(|mention| mention.object);
            objects.entry(image_id).or_default().extend(named);
        }
    }

    let places = Images::new(folder, &["val2014", "train2014", "val2017", "train2017"], options)?;
    let (mut questions, mut truths) = (Vec::new(), Vec::new());
    for (image, text) in asked(folder, &images)? {
        truths.push(objects.get(&image.id).cloned().unwrap_or_default());
        questions.push(Question { id: image.id.to_string(), image: places.find(&image.file_name), text });
    }
    Ok(Opened { questions, scorer: Box::new(Chair { vocabulary, truths }) })
}

/// The annotation files of one kind, at least one.
fn annotation_files(folder: &Path, start: &str) -> Result<Vec<PathBuf>> {
    for folder in [folder.to_owned(), folder.join("annotations")] {
        let found = match folder.is_dir() {
            true => files::in_folder(&folder, |name| name.starts_with(start) && name.ends_with(".json"))?,
            false => Vec::new(),
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(Error::at(folder.display(), format!("expected a file `{start}….json`, found none")).hint(HINT))
}

/// The class of every category, as the table of synonyms has it.
fn classes(path: &Path, categories: &[Category], vocabulary: &Vocabulary) -> Result<HashMap<u64, String>> {
    let class = |category: &Category| match vocabulary.object(&category.name) {
        Some(class) => Ok((category.id, class.to_owned())),
        None => {
            let what = format!("the category `{}` is not in the table of synonyms", category.name);
            Err(Error::at(path.display(), what).hint("add a line for it to `synonyms.txt`"))
        }
    };
    categories.iter().map(class).collect()
}

/// The images that are asked about, with the question.
fn asked<'a>(folder: &Path, images: &'a [Image]) -> Result<Vec<(&'a Image, String)>> {
    let Some(path) = find(folder, &["questions.jsonl"]) else {
        return Ok(images.iter().map(|image| (image, QUESTION.to_owned())).collect());
    };
    let by_id: HashMap<u64, &Image> = images.iter().map(|image| (image.id, image)).collect();
    let (mut asked, mut problems) = (Vec::new(), Vec::new());
    for (number, Asked { image_id, question }) in files::rows(&path)? {
        match by_id.get(&image_id) {
            Some(image) => asked.push((*image, question)),
            None => {
                let what = format!("image {image_id} is in no `instances_….json`");
                problems.push(Error::at(files::at(&path, number), what));
            }
        }
    }
    files::tell(&path, problems)?;
    Ok(asked)
}

/// The words for COCO's classes, with the runs of words that CHAIR's authors treat as one.
fn vocabulary<'a>(table: impl IntoIterator<Item = Vec<&'a str>>) -> Vocabulary {
    let mut vocabulary = Vocabulary::new(Case::Ignored, Parts::Any);
    vocabulary.add_as("bow tie", "tie", "tie");
    vocabulary.add_as("toilet seat", "toilet", "toilet");
    NO_OBJECTS.iter().for_each(|words| vocabulary.ignore(words));
    for (animal, class) in ANIMALS {
        for age in ["baby", "adult"] {
            let words = format!("{age} {animal}");
            match class {
                Some(class) => vocabulary.add_as(&words, animal, class),
                None => vocabulary.ignore(&words),
            }
        }
    }
    vocabulary.add_as("passenger jet", "jet", "airplane");
    vocabulary.add_as("passenger train", "train", "train");
    for entry in table {
        entry.iter().for_each(|words| vocabulary.add(words, entry[0]));
    }
    vocabulary
}

/// The objects that a text names; beside a toilet a seat is no chair.
fn mentions(vocabulary: &Vocabulary, text: &str) -> Vec<Mention> {
    let mut mentions = vocabulary.mentions(text);
    if mentions.iter().any(|mention| mention.word == "toilet") {
        mentions.retain(|mention| mention.word != "seat");
    }
    mentions
}

impl Scorer for Chair {
    fn columns(&self) -> usize {
        COVERED + 1
    }

    fn measures(&self) -> Vec<Measure> {
        vec![
            Measure::share("CHAIRs", Better::Lower, INVENTING, ANSWERS),
            Measure::share("CHAIRs_refine", Better::Lower, INVENTING, NAMING),
            Measure::share("CHAIRi", Better::Lower, INVENTED_WORDS, WORDS),
            Measure::share("CHAIRi_mentions", Better::Lower, INVENTED_MENTIONS, MENTIONS),
            Measure::share("recall", Better::Higher, COVERED, TRUE),
        ]
    }

    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)> {
        let truth = &self.truths[question];
        let mentions = mentions(&self.vocabulary, &row.answer);
        let is_invented = |mention: &&Mention| !truth.contains(&mention.object);
        let words = distinct(mentions.iter().map(|mention| mention.word.as_str()));
        let invented = distinct(mentions.iter().filter(is_invented).map(|mention| mention.word.as_str()));
        let right = mentions.iter().filter(|mention| !is_invented(mention));
        let covered = distinct(right.map(|mention| mention.object.as_str()));
        let counts = vec![
            (ANSWERS, 1.0),
            (NAMING, f64::from(u8::from(!mentions.is_empty()))),
            (INVENTING, f64::from(u8::from(!invented.is_empty()))),
            (MENTIONS, mentions.len() as f64),
            (INVENTED_MENTIONS, mentions.iter().filter(is_invented).count() as f64),
            (WORDS, words.len() as f64),
            (INVENTED_WORDS, invented.len() as f64),
            (TRUE, truth.len() as f64),
            (COVERED, covered.len() as f64),
        ];
        row.mentioned = Some(words);
        row.hallucinated = Some(invented);
        row.covered = Some(covered);
        counts
    }
}
