//! POPE (Li et al., EMNLP 2023, arXiv 2305.10355), files as its authors publish them: `coco_pope_random.json`, `coco_pope_popular.json`,
//! `coco_pope_adversarial.json` (one JSON object a line), or those of another data set.
//!
//! Figures as in the authors' `evaluate.py`, with "yes" as the positive class; theirs are fractions of the answers of one file, here they are
//! percents, for each setting and for all together. They pair answers with questions by line, here it is by id; the files number their
//! questions each from 1, so an id is `random/1`. Files of answers without such ids are read where they fit (`answers`).

pub(super) mod answers;

use super::poll::{self, Setting};
use super::{Images, Opened, Options, Question, Row, Scorer};
use crate::interval::Measure;
use crate::{Error, Result, files};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Deserialize)]
struct Line {
    question_id: files::Id,
    image: String,
    text: String,
    label: Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Label {
    Yes,
    No,
}

#[derive(Debug)]
struct Pope {
    settings: Vec<Setting>,
    /// Of every question its setting and whether the object is there.
    truths: Vec<(Setting, bool)>,
}

pub(super) fn open(folder: &Path, options: &Options) -> Result<Opened> {
    let images = Images::new(folder, &["val2014", "test2014"], options)?;
    let (mut questions, mut truths, mut settings) = (Vec::new(), Vec::new(), Vec::new());
    for setting in Setting::ALL {
        let Some(path) = file(folder, setting)? else {
            continue;
        };
        settings.push(setting);
        for (_, line) in files::rows::<Line>(&path)? {
            let id = format!("{setting}/{}", line.question_id.0);
            questions.push(Question { id, image: images.find(&line.image), text: line.text });
            truths.push((setting, line.label == Label::Yes));
        }
    }
    if settings.is_empty() {
        let what =
            "expected `coco_pope_random.json`, `coco_pope_popular.json` or `coco_pope_adversarial.json`, found none";
        return Err(Error::at(folder.display(), what).hint("the files are in `output/coco` of POPE's repository"));
    }
    Ok(Opened { questions, scorer: Box::new(Pope { settings, truths }) })
}

/// The file of a setting. Two of them are of two data sets, whose figures are not to be mixed.
fn file(folder: &Path, setting: Setting) -> Result<Option<PathBuf>> {
    let endings = [format!("_{setting}.json"), format!("_{setting}.jsonl")];
    let is_wanted = |name: &str| name.contains("pope") && endings.iter().any(|ending| name.ends_with(ending));
    let mut found = files::in_folder(folder, is_wanted)?;
    if found.len() > 1 {
        let what =
            format!("two files of the setting `{setting}`: `{}` and `{}`", found[0].display(), found[1].display());
        return Err(Error::at(folder.display(), what).hint("keep those of one data set in a folder"));
    }
    Ok(found.pop())
}

impl Scorer for Pope {
    fn columns(&self) -> usize {
        poll::COLUMNS
    }

    fn measures(&self) -> Vec<Measure> {
        poll::measures("", &self.settings)
    }

    fn judge(&self, question: usize, row: &mut Row) -> Vec<(usize, f64)> {
        let (setting, is_there) = self.truths[question];
        let (is_correct, counts) = poll::judge(setting, is_there, &row.answer);
        row.correct = Some(is_correct);
        counts
    }
}
