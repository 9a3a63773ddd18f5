//! What a model is worth on held-out scenes: what it says of them, scored by the benchmark `objects`, and what it makes of held-out pairs.
//!
//! Every folder is written as `mdpo eval` writes it, so that `mdpo report` shows it.

use crate::captions;
use crate::scenes::Object;
use mdpo::config::Run;
use mdpo::data::Question;
use mdpo::eval::{self, Answerer, Decoding, Sampling};
use mdpo::train::{self, ReferenceRow, Talk};
use mdpo::{Error, Result};
use mdpo_measure::benchmark::{Answers, Benchmark, Loaded, Missing, Options, Scored, poll};
use mdpo_measure::interval::{Bootstrap, Formula, Measure, Tally};
use mdpo_measure::{Better, Figures};
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

    /// What the model is asked: to describe every picture.
    fn questions(&self) -> Vec<Question> {
        let all = self.benchmark.questions().iter().filter(|question| is_description(&question.id));
        all.map(|question| Question::new(&question.id, &question.text, [question.image.clone()])).collect()
    }

    /// Figures and rows of some descriptions.
    ///
    /// The checkpoint was taught to describe and nothing else, so POPE's polls are put to its descriptions: whether a dog is in the picture
    /// is answered "yes" where the description names a dog.
    fn score(&self, descriptions: &Answers) -> Result<Scored> {
        let about: Vec<(String, Object)> =
            Object::all().map(|object| (poll::question(object.name()), object)).collect();
        let mut answers = Vec::new();
        for question in self.benchmark.questions() {
            let image = question.id.split('/').next().unwrap_or_default();
            let Some(description) = descriptions.get(&description_of(image)) else { continue };
            let named = captions::named(description);
            let poll = about.iter().find(|(text, _)| *text == question.text);
            let says = |object| if named.contains(object) { "yes" } else { "no" };
            let answer = poll.map_or(description, |(_, object)| says(object));
            answers.push((question.id.clone(), answer.to_owned()));
        }
        let answers = Answers::of(descriptions.source(), answers);
        let mut scored = self.benchmark.score(&answers, Missing::Refuse, Bootstrap::default())?;
        // Rows are what the model itself said.
        scored.rows.retain(|row| is_description(&row.id));
        Ok(scored)
    }
}

/// What the benchmark calls the question for a description of an image.
fn description_of(image: &str) -> String {
    format!("{image}/describe")
}

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
    /// Describes held-out scenes, and writes answers, rows and figures into `out`, which is made if need be.
    ///
    /// # Errors
    /// The model cannot be read, a file cannot be written.
    pub fn describe(&self, held_out: &HeldOut, out: &Path) -> Result<Scored> {
        std::fs::create_dir_all(out).map_err(|error| Error::io("create", out, &error))?;
        let answerer = Answerer {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            kind: Some(tch::Kind::Float),
            device: tch::Device::Cpu,
            decoding: Decoding::Sampling(Sampling::Greedy),
            max_new_tokens: MAX_NEW_TOKENS,
            batch_size: BATCH,
        };
        let answers = out.join("answers.jsonl");
        eval::answer_file(&answerer, &held_out.questions(), &answers, Talk::Silent)?;
        let mut scored = held_out.score(&Answers::read(&answers)?)?;
        self.sign(&mut scored.figures);
        // In a report the same benchmark on other scenes is another one.
        scored.figures.benchmark = format!("{}: {}", scored.figures.benchmark, held_out.name);
        scored.write(out)?;
        Ok(scored)
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
    use crate::captions::Pairing;
    use crate::dataset::Scenes;

    #[test]
    fn descriptions_are_scored_and_polled() {
        let folder = tempfile::tempdir().unwrap();
        let scenes = Scenes { seed: 1, split: Split::Mixed, count: 12, pairing: Pairing::Balanced };
        scenes.write(&folder.path().join("mixed")).unwrap();
        let held_out = HeldOut::open(&folder.path().join("mixed"), "mixed").unwrap();
        let figure = |describe: &dyn Fn(&[Object]) -> Vec<Object>, name: &str| {
            let said = (0..12).map(|index| {
                let scene = crate::scenes::Scene::at(crate::address::Address { seed: 1, split: Split::Mixed, index });
                (description_of(&format!("{index:06}")), captions::caption(&describe(&scene.objects())))
            });
            let scored = held_out.score(&Answers::of("test", said)).unwrap();
            assert_eq!(scored.rows.len(), 12);
            scored.figures.figures.iter().find(|figure| figure.name == name).unwrap().value.unwrap()
        };
        let truth = |objects: &[Object]| objects.to_vec();
        assert_eq!((figure(&truth, "CHAIRs"), figure(&truth, "Cover")), (0.0, 100.0));
        assert_eq!(figure(&truth, "POPE/accuracy"), 100.0);
        // Who names everything invents in every picture and says yes to every poll.
        let everything = |_: &[Object]| Object::all().collect();
        assert_eq!((figure(&everything, "CHAIRs"), figure(&everything, "Cover")), (100.0, 100.0));
        assert_eq!(figure(&everything, "POPE/accuracy"), 50.0);
        let nothing = |_: &[Object]| Vec::new();
        assert_eq!((figure(&nothing, "CHAIRs"), figure(&nothing, "Cover")), (0.0, 0.0));
    }
}
