//! What the policy answers at each evaluation: the recipe's fixed prompts, and the questions of benchmarks.
//!
//! Answers are greedy. They and their scores lie in `output_dir/evaluations/step-N`, which is written whole or not at all.

use super::graded::Graded;
use crate::checkpoint;
use crate::config::{self, Direction, Run};
use crate::data::{self, Asked, ImageSource, Part, Question};
use crate::eval::{Decoding, Sampling, Settings, Tools, answer_questions};
use crate::model::Model;
use crate::text::Tokens;
use crate::{Error, Result, weights};
use mdpo_measure::Better;
use mdpo_measure::benchmark::{self, Answers, Benchmark, Loaded, Missing, mmhal};
use mdpo_measure::figures::Figures;
use mdpo_measure::interval::Bootstrap;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Everything that is answered at each evaluation, read and checked before the weights are.
#[derive(Debug)]
pub(super) struct Answering {
    /// Where evaluations lie.
    folder: PathBuf,
    tools: Tools,
    settings: Settings,
    prompts: Option<Questions>,
    benchmarks: Vec<(Scoring, Questions)>,
    seed: u64,
}

/// How a benchmark's answers become figures.
#[derive(Debug)]
enum Scoring {
    /// By a rule.
    Rule(Loaded),
    /// By a language model.
    Judge(Box<Graded>),
}

/// What answers came to.
#[derive(Debug)]
enum Scored {
    Rule(benchmark::Scored),
    Judge(mmhal::Scored),
    /// Nothing, since the judge did not grade all of them.
    Ungraded,
}

/// What an evaluation gives.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Figures by their names in the log.
    pub figures: Map<String, Value>,
    /// Lines for the terminal: what a judge was asked, and what it did not grade.
    pub notes: Vec<String>,
}

/// Some questions with what the model reads of them.
#[derive(Debug)]
struct Questions {
    questions: Vec<Question>,
    tokens: Vec<Tokens>,
}

/// A figure that a benchmark gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Its name in the log.
    pub metric: String,
    /// Which direction is good, where one is.
    pub better: Option<Direction>,
    /// What it is measured on.
    pub data: String,
}

impl Answering {
    /// What a recipe wants answered; nothing where it wants nothing.
    ///
    /// # Errors
    /// A file or folder that cannot be read, questions that cannot be asked, images that are not there, a benchmark of another name.
    pub fn open(run: &Run, evaluation: &config::Evaluation) -> Result<Option<Self>> {
        if evaluation.prompts.is_none() && evaluation.benchmarks.is_empty() {
            return Ok(None);
        }
        let tools = Tools::open(&run.model.path)?;
        let max_new_tokens = evaluation.max_new_tokens;
        let read = |questions: Vec<Question>| -> Result<Questions> {
            let tokens = tools.asker().tokens(&questions, max_new_tokens)?;
            Ok(Questions { questions, tokens })
        };
        let prompts = evaluation.prompts.as_deref().map(|path| data::questions(path).and_then(read)).transpose()?;
        let benchmark = |sample: &config::BenchmarkSample| -> Result<(Scoring, Questions)> {
            if let Some(judge) = evaluation.judge.as_ref().filter(|_| sample.name == mmhal::NAME) {
                let graded = Graded::open(run, judge, sample)?;
                let asked = graded.items().iter();
                let questions =
                    read(asked.map(|item| Question::new(&item.id, &item.question, [item.image.clone()])).collect())?;
                return Ok((Scoring::Judge(Box::new(graded)), questions));
            }
            let benchmark = Benchmark::of_name(&sample.name).map_err(of_key)?;
            let options = benchmark::Options { limit: sample.limit, seed: run.seed, ..benchmark::Options::default() };
            let loaded = Loaded::open(benchmark, &sample.data, &options)?;
            loaded.check_images()?;
            let asked = loaded.questions().iter();
            let questions = read(asked.map(|q| Question::new(&q.id, &q.text, [q.image.clone()])).collect())?;
            Ok((Scoring::Rule(loaded), questions))
        };
        let benchmarks = evaluation.benchmarks.iter().map(benchmark).collect::<Result<Vec<_>>>()?;
        let settings = Settings {
            decoding: Decoding::Sampling(Sampling::Greedy),
            max_new_tokens,
            stop: tools.asker().encoder.eos_ids().to_vec(),
            batch_size: evaluation.per_device,
        };
        let folder = run.output.dir.join(EVALUATIONS);
        Ok(Some(Answering { folder, tools, settings, prompts, benchmarks, seed: run.seed }))
    }

    /// The figures that all benchmarks give, from the benchmarks themselves: they score made-up answers.
    ///
    /// # Errors
    /// What scoring gives.
    pub fn known(&self) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        for (scoring, Questions { questions, .. }) in &self.benchmarks {
            let mut digest = Sha256::new();
            questions.iter().for_each(|question| digest.update(format!("{}\n", question.id)));
            let digest: String = digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            let given: Vec<(String, Better)> = match scoring {
                Scoring::Rule(loaded) => {
                    let made_up = questions.iter().map(|question| (question.id.clone(), "no".to_owned()));
                    let bootstrap = Bootstrap { resamples: 1, seed: self.seed };
                    let scored = loaded.score(&Answers::of("made up", made_up), Missing::Refuse, bootstrap)?;
                    scored.figures.figures.into_iter().map(|figure| (figure.name, figure.better)).collect()
                }
                Scoring::Judge(graded) => graded.measures().map(|measure| (measure.name, measure.better)).collect(),
            };
            known.extend(given.into_iter().map(|(name, better)| Known {
                metric: metric(scoring.name(), &name),
                better: match better {
                    Better::Lower => Some(Direction::Lower),
                    Better::Higher => Some(Direction::Higher),
                    Better::Neither => None,
                },
                data: format!("questions {digest}"),
            }));
        }
        Ok(known)
    }

    /// Answers everything after `step` optimizer steps and writes the folder of that evaluation; gives nothing where a signal cut it short. A
    /// judge that fails leaves its figures out.
    ///
    /// # Errors
    /// An image that cannot be decoded, logits that are not finite, a folder that cannot be written.
    pub fn run(&self, model: &Model, step: usize, stop: &AtomicBool) -> Result<Option<Answered>> {
        let mut answered = Answered::default();
        let samples = match &self.prompts {
            None => None,
            Some(prompts) => match self.answers(model, prompts, stop)? {
                Some(answers) => Some(answers),
                None => return Ok(None),
            },
        };
        let mut scores = Vec::new();
        for (scoring, questions) in &self.benchmarks {
            let Some(answers) = self.answers(model, questions, stop)? else { return Ok(None) };
            let ids = questions.questions.iter().map(|question| question.id.clone());
            let pairs: Vec<(String, String)> = ids.zip(answers).collect();
            let source = format!("step {step}");
            let bootstrap = Bootstrap { seed: self.seed, ..Bootstrap::default() };
            let scored = match scoring {
                Scoring::Rule(loaded) => {
                    Scored::Rule(loaded.score(&Answers::of(source, pairs.clone()), Missing::Refuse, bootstrap)?)
                }
                Scoring::Judge(graded) => {
                    let (scored, note) = graded.score(&pairs, &source);
                    answered.notes.push(note);
                    scored.map_or(Scored::Ungraded, Scored::Judge)
                }
            };
            let figures = scored.figures().into_iter().flat_map(|figures| &figures.figures);
            let named = figures.map(|figure| (metric(scoring.name(), &figure.name), json!(figure.value)));
            answered.figures.extend(named);
            scores.push((scoring.name(), scored, pairs));
        }
        checkpoint::write_whole(&self.folder.join(format!("step-{step}")), |folder| {
            if let (Some(prompts), Some(answers)) = (&self.prompts, &samples) {
                let rows = prompts.questions.iter().zip(answers).map(|(question, answer)| sample(question, answer));
                write_rows(&folder.join("samples.jsonl"), rows)?;
            }
            for (name, scored, pairs) in &scores {
                let own = folder.join(name);
                scored.write(&own)?;
                let rows = pairs.iter().map(|(id, answer)| json!({ "id": id, "answer": answer }));
                write_rows(&own.join("answers.jsonl"), rows)?;
            }
            Ok(())
        })?;
        Ok(Some(answered))
    }

    /// The answers in the order of the questions; nothing where a signal cut them short.
    fn answers(&self, model: &Model, asked: &Questions, stop: &AtomicBool) -> Result<Option<Vec<String>>> {
        let asker = self.tools.asker();
        let pairs: Vec<(&Question, &Tokens)> = asked.questions.iter().zip(&asked.tokens).collect();
        let mut answers = vec![String::new(); pairs.len()];
        let done = answer_questions(model, asker, &pairs, &self.settings, |index, answer| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::at("signal", "stopped"));
            }
            answers[index] = asker.encoder.tokenizer().decode(answer.spoken())?.trim().to_owned();
            Ok(())
        });
        match stop.load(Ordering::Relaxed) {
            true => Ok(None),
            false => done.map(|()| Some(answers)),
        }
    }
}

impl Scoring {
    /// The benchmark's name.
    fn name(&self) -> &'static str {
        match self {
            Scoring::Rule(loaded) => loaded.benchmark().name(),
            Scoring::Judge(_) => mmhal::NAME,
        }
    }
}

impl Scored {
    fn figures(&self) -> Option<&Figures> {
        match self {
            Scored::Rule(scored) => Some(&scored.figures),
            Scored::Judge(scored) => Some(&scored.figures),
            Scored::Ungraded => None,
        }
    }

    /// Figures and rows into a folder, which is made in any case.
    fn write(&self, folder: &Path) -> Result<()> {
        match self {
            Scored::Rule(scored) => scored.write(folder),
            Scored::Judge(scored) => scored.write(folder),
            Scored::Ungraded => {
                std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))
            }
        }
    }
}

/// The folder of evaluations in `output_dir`.
pub(super) const EVALUATIONS: &str = "evaluations";

fn metric(benchmark: &str, figure: &str) -> String {
    format!("eval_{benchmark}_{}", figure.replace(' ', "_"))
}

fn of_key(error: Error) -> Error {
    match error {
        Error::One(problem) => {
            let hint = problem.hint.map(|hint| format!("{hint} or `{}`", mmhal::NAME));
            hint.iter().fold(Error::at("`eval_benchmarks`", &problem.what), Error::hint)
        }
        many => many,
    }
}

/// A line of `samples.jsonl`.
fn sample(question: &Question, answer: &str) -> Value {
    let text = match &question.asked {
        Asked::Words { text, .. } => text.clone(),
        Asked::Messages(messages) => {
            let parts = messages.iter().filter(|message| message.role == "user").flat_map(|message| &message.content);
            let texts = parts.filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image => None,
            });
            texts.collect::<Vec<_>>().join("\n")
        }
    };
    let mut row = json!({ "id": question.id, "question": text, "answer": answer });
    let path = question.images.iter().find_map(|image| match image {
        ImageSource::Path(path) => Some(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        ImageSource::Embedded(_) => None,
    });
    if let Some(path) = path {
        row["image"] = json!(path.to_string_lossy());
    }
    row
}

fn write_rows(path: &Path, rows: impl Iterator<Item = Value>) -> Result<()> {
    weights::write_file(path, |out| {
        for row in rows {
            writeln!(out, "{row}")?;
        }
        Ok(())
    })
}
