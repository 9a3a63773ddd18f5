//! What a model is worth on held-out scenes: what it says of them and what it answers to POPE's questions about them, both scored by the
//! benchmark `objects`, and what it makes of held-out pairs.
//!
//! Every folder is written as `mdpo eval` writes it, so that `mdpo report` shows it.

use mdpo::config::Run;
use mdpo::data::Question;
use mdpo::eval::{self, Answerer, Decoding, Sampling};
use mdpo::train::{self, ReferenceRow, Talk};
use mdpo::{Error, Result};
use mdpo_measure::benchmark::{Answers, Benchmark, Loaded, Missing, Options, Scored};
use mdpo_measure::interval::{Bootstrap, Formula, Measure, Tally};
use mdpo_measure::{Better, Figures};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// No caption is longer.
const MAX_NEW_TOKENS: usize = 40;
/// How many questions are answered side by side.
const BATCH: usize = 32;

/// Held-out scenes in a folder.
#[derive(Debug)]
pub struct HeldOut {
    /// The folder's own name.
    pub name: &'static str,
    benchmark: Loaded,
}

impl HeldOut {
    /// Reads the scenes that stand in `folder`.
    ///
    /// # Errors
    /// As [`Loaded::open`].
    pub fn open(folder: &Path, name: &'static str) -> Result<Self> {
        Ok(Self { name, benchmark: Loaded::open(Benchmark::Objects, folder, &Options::default())? })
    }

    /// What the model is asked. POPE asks about what is there once for each of its settings; who answers greedily is asked once.
    fn questions(&self, asked: Asked) -> Vec<Question> {
        let mut seen = HashSet::new();
        let all = self.benchmark.questions().iter();
        let all = all.filter(|question| asked == Asked::Everything || is_description(&question.id));
        let all = all.filter(|question| seen.insert((&question.image, &question.text)));
        all.map(|question| Question::new(&question.id, &question.text, [question.image.clone()])).collect()
    }

    /// Figures and rows of some answers: of the descriptions and of the polls.
    fn score(&self, answers: &Answers) -> Result<(Scored, Scored)> {
        let mut said = HashMap::new();
        for question in self.benchmark.questions() {
            if let Some(answer) = answers.get(&question.id) {
                said.insert((&question.image, &question.text), answer);
            }
        }
        let all = self.benchmark.questions().iter();
        let all = all.filter_map(|question| {
            Some((question.id.clone(), (*said.get(&(&question.image, &question.text))?).to_owned()))
        });
        let answers = Answers::of(answers.source(), all);
        let mut descriptions = self.benchmark.score(&answers, Missing::LeaveOut, Bootstrap::default())?;
        let mut polls = descriptions.clone();
        descriptions.rows.retain(|row| is_description(&row.id));
        polls.rows.retain(|row| !is_description(&row.id));
        descriptions.figures.figures.retain(|figure| !figure.name.starts_with(POLLS));
        polls.figures.figures.retain(|figure| figure.name.starts_with(POLLS));
        for (scored, benchmark) in [(&mut descriptions, "objects"), (&mut polls, "POPE")] {
            scored.figures.answers = scored.rows.len();
            // In a report the same benchmark on other scenes is another one.
            scored.figures.benchmark = format!("{benchmark}: {}", self.name);
        }
        Ok((descriptions, polls))
    }
}

/// What a model is asked about held-out scenes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To describe each.
    Descriptions,
    /// That, and POPE's questions about each.
    Everything,
}

/// What the benchmark puts before the figures of its polls.
const POLLS: &str = "POPE/";

fn is_description(id: &str) -> bool {
    id.ends_with("/describe")
}

/// A model that is examined: the checkpoint, with an adapter or without.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The checkpoint's folder.
    pub model: PathBuf,
    /// The adapter's folder.
    pub adapter: Option<PathBuf>,
}

impl Candidate {
    /// Answers what is asked about held-out scenes; gives figures of descriptions and polls together, and the rows of the descriptions.
    ///
    /// Written are answers, rows and figures: those of the descriptions into the folder of the set in `out`, those of the polls into
    /// `pope-SET` beside it.
    ///
    /// # Errors
    /// The model cannot be read, a file cannot be written.
    pub fn answer(&self, held_out: &HeldOut, asked: Asked, out: &Path) -> Result<Scored> {
        let folder = out.join(held_out.name);
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
        let answerer = Answerer {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            kind: Some(tch::Kind::Float),
            device: tch::Device::Cpu,
            decoding: Decoding::Sampling(Sampling::Greedy),
            max_new_tokens: MAX_NEW_TOKENS,
            batch_size: BATCH,
        };
        let answers = folder.join("answers.jsonl");
        eval::answer_file(&answerer, &held_out.questions(asked), &answers, Talk::Silent)?;
        let (mut descriptions, mut polls) = held_out.score(&Answers::read(&answers)?)?;
        self.sign(&mut descriptions.figures);
        descriptions.write(&folder)?;
        if asked == Asked::Everything {
            self.sign(&mut polls.figures);
            polls.write(&out.join(format!("pope-{}", held_out.name)))?;
            descriptions.figures.figures.append(&mut polls.figures.figures);
        }
        Ok(descriptions)
    }

    /// What it makes of held-out pairs, whose log-probs under this model are `own`: figures, which are also written into `out`.
    ///
    /// `chosen reward` is β · (log-prob of the true caption under this model − under the checkpoint), in nats times β; an accuracy is the share of
    /// pairs whose true caption is likelier than the false one (text), or likelier under its picture than under the rejected one (image), and
    /// the image gap by how many nats it is. `of_checkpoint` are the checkpoint's own log-probs, in the same order.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prefer(&self, own: &[LogProbs], of_checkpoint: &[LogProbs], beta: f64, out: &Path) -> Result<Figures> {
        let mut tally = Tally::new(COLUMNS);
        for (own, checkpoint) in own.iter().zip(of_checkpoint) {
            let is = |so: bool| f64::from(u8::from(so));
            tally.push([
                (PAIRS, 1.0),
                (IMAGE_RIGHT, is(own.chosen > own.corrupted)),
                (IMAGE_GAP, own.chosen - own.corrupted),
                (TEXT_RIGHT, is(own.chosen > own.rejected)),
                (REWARD, beta * (own.chosen - checkpoint.chosen)),
            ]);
        }
        let share = |name: &str, of| Measure {
            name: name.to_owned(),
            better: Better::Higher,
            formula: Formula::Share { of, among: PAIRS },
        };
        let mean = |name: &str, of| Measure {
            name: name.to_owned(),
            better: Better::Higher,
            formula: Formula::Mean { of, count: PAIRS },
        };
        let measures = [
            share("image-pair accuracy", IMAGE_RIGHT),
            mean("image gap", IMAGE_GAP),
            share("text-pair accuracy", TEXT_RIGHT),
            mean("chosen reward", REWARD),
        ];
        let mut figures = Figures {
            benchmark: "pairs".to_owned(),
            model: String::new(),
            adapter: None,
            answers: own.len(),
            figures: Bootstrap::default().figures(&tally, &measures),
        };
        self.sign(&mut figures);
        Scored { figures: figures.clone(), rows: Vec::new() }.write(out)?;
        Ok(figures)
    }

    /// Log-probs of the captions of every row.
    ///
    /// # Errors
    /// The model or the rows cannot be read.
    pub fn log_probs(&self, run: &Run) -> Result<Vec<LogProbs>> {
        let mut rows = Vec::new();
        train::reference(run, self.adapter.as_deref(), |row| {
            rows.push(LogProbs::of(&row)?);
            Ok(())
        })?;
        Ok(rows)
    }

    fn sign(&self, figures: &mut Figures) {
        figures.model = self.model.display().to_string();
        figures.adapter = self.adapter.as_ref().map(|adapter| adapter.display().to_string());
    }
}

const PAIRS: usize = 0;
const IMAGE_RIGHT: usize = 1;
const IMAGE_GAP: usize = 2;
const TEXT_RIGHT: usize = 3;
const REWARD: usize = 4;
const COLUMNS: usize = 5;

/// Log-probs of a pair's captions in nats, summed over their tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogProbs {
    chosen: f64,
    rejected: f64,
    /// The chosen caption under the rejected picture.
    corrupted: f64,
}

impl LogProbs {
    fn of(row: &ReferenceRow) -> Result<Self> {
        match (row.chosen, row.rejected, row.corrupted) {
            (Some(chosen), Some(rejected), Some(corrupted)) => Ok(Self { chosen, rejected, corrupted }),
            _ => Err(Error::at(format!("row {}", row.row), "expected a pair with a picture")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Split;
    use crate::captions::{self, Pairing};
    use crate::dataset::Scenes;
    use crate::scenes::Object;

    fn held_out(folder: &Path, count: u64) -> HeldOut {
        Scenes { seed: 1, split: Split::Mixed, count, pairing: Pairing::Balanced }
            .write(&folder.join("mixed"))
            .unwrap();
        HeldOut::open(&folder.join("mixed"), "mixed").unwrap()
    }

    #[test]
    fn what_is_asked_is_asked_once_and_counts_in_every_setting() {
        let folder = tempfile::tempdir().unwrap();
        let held_out = held_out(folder.path(), 12);
        assert_eq!(held_out.questions(Asked::Descriptions).len(), 12);
        let questions = held_out.questions(Asked::Everything);
        let text = |question: &Question| format!("{question:?}").split_once("asked").unwrap().1.to_owned();
        assert_eq!(questions.iter().map(text).collect::<HashSet<_>>().len(), questions.len());
        let all = held_out.benchmark.questions().len();
        assert!(questions.len() < all);
        let yes = questions.iter().map(|question| (question.id.clone(), "yes".to_owned()));
        let (descriptions, polls) = held_out.score(&Answers::of("test", yes)).unwrap();
        assert_eq!((descriptions.rows.len(), polls.rows.len()), (12, all - 12));
        let figure = |name: &str| polls.figures.figures.iter().find(|figure| figure.name == name).unwrap().value;
        for setting in ["", "random/", "popular/", "adversarial/"] {
            assert_eq!(figure(&format!("POPE/{setting}accuracy")), Some(50.0));
            assert_eq!(figure(&format!("POPE/{setting}yes_share")), Some(100.0));
        }
    }

    #[test]
    fn descriptions_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let held_out = held_out(folder.path(), 12);
        let figure = |describe: &dyn Fn(&[Object]) -> Vec<Object>, name: &str| {
            let said = (0..12).map(|index| {
                let scene = crate::scenes::Scene::at(crate::address::Address { seed: 1, split: Split::Mixed, index });
                (format!("{index:06}/describe"), captions::caption(&describe(&scene.objects())))
            });
            let (scored, _) = held_out.score(&Answers::of("test", said)).unwrap();
            assert_eq!(scored.rows.len(), 12);
            scored.figures.figures.iter().find(|figure| figure.name == name).unwrap().value.unwrap()
        };
        let truth = |objects: &[Object]| objects.to_vec();
        assert_eq!((figure(&truth, "CHAIRs"), figure(&truth, "Cover")), (0.0, 100.0));
        // Who names everything invents in every picture.
        let everything = |_: &[Object]| Object::all().collect();
        assert_eq!((figure(&everything, "CHAIRs"), figure(&everything, "Cover")), (100.0, 100.0));
        let nothing = |_: &[Object]| Vec::new();
        assert_eq!((figure(&nothing, "CHAIRs"), figure(&nothing, "Cover")), (0.0, 0.0));
    }
}
