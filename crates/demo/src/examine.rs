//! What a model is worth on held-out scenes: what it says of them, scored by the benchmark `objects`, and what it makes of held-out pairs.
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
use std::path::{Path, PathBuf};

/// No caption is longer.
const MAX_NEW_TOKENS: usize = 40;
/// How many questions are answered side by side.
const BATCH: usize = 32;

/// Which questions of a folder are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// What is in the picture.
    Descriptions,
    /// That, and the polls of POPE.
    Everything,
}

/// Held-out scenes in a folder.
#[derive(Debug)]
pub struct HeldOut {
    /// The folder's own name.
    pub name: &'static str,
    benchmark: Loaded,
    asked: Asked,
}

impl HeldOut {
    /// Reads the scenes that stand in `folder`.
    ///
    /// # Errors
    /// As [`Loaded::open`].
    pub fn open(folder: &Path, name: &'static str, asked: Asked) -> Result<Self> {
        Ok(Self { name, benchmark: Loaded::open(Benchmark::Objects, folder, &Options::default())?, asked })
    }

    fn questions(&self) -> Vec<Question> {
        let wanted = |id: &str| self.asked == Asked::Everything || id.ends_with("/describe");
        let all = self.benchmark.questions().iter().filter(|question| wanted(&question.id));
        all.map(|question| Question::new(&question.id, &question.text, [question.image.clone()])).collect()
    }
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
    /// Answers the questions about held-out scenes, and writes answers, rows and figures into `out`, which is made if need be.
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
        let missing = match held_out.asked {
            Asked::Descriptions => Missing::LeaveOut,
            Asked::Everything => Missing::Refuse,
        };
        let mut scored = held_out.benchmark.score(&Answers::read(&answers)?, missing, Bootstrap::default())?;
        self.sign(&mut scored.figures);
        // What nobody was asked about is no figure.
        scored.figures.figures.retain(|figure| figure.value.is_some());
        scored.write(out)?;
        Ok(scored)
    }

    /// What it makes of the held-out pairs of `run`: figures of which are written into `out`.
    ///
    /// `chosen reward` is β · (log-prob of the true caption under this model − under the checkpoint), in nats times β; an accuracy is the share of
    /// pairs whose true caption is likelier than the false one (text), or likelier under its picture than under the rejected one (image), and
    /// the image gap by how many nats it is. `of_checkpoint` are the checkpoint's own log-probs, in the same order.
    ///
    /// # Errors
    /// The model or the rows cannot be read, a file cannot be written.
    pub fn prefer(&self, run: &Run, beta: f64, of_checkpoint: &[LogProbs], out: &Path) -> Result<Figures> {
        let own = self.log_probs(run)?;
        let mut tally = Tally::new(COLUMNS);
        for (index, own) in own.iter().enumerate() {
            let checkpoint = of_checkpoint.get(index).unwrap_or(own);
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
