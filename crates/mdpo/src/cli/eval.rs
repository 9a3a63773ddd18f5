//! `mdpo eval`.

use super::Done;
use crate::{Error, Result};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use mdpo_measure::benchmark::{Answers, Benchmark, Loaded, Missing, Options, Question};
use mdpo_measure::figures::{Better, Figures};
use mdpo_measure::interval::Bootstrap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What `mdpo eval` takes.
#[derive(Debug, Args)]
pub(super) struct Eval {
    /// The checkpoint that answers: a folder, or a repository in the local Hugging Face cache
    model: Option<String>,
    /// Apply this PEFT adapter
    #[arg(long, requires = "model")]
    adapter: Option<PathBuf>,
    /// What is measured
    #[arg(long, value_name = "NAME", value_parser = benchmark())]
    benchmark: Benchmark,
    /// The folder with the benchmark's files
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The folder with its images, where they are not in the data folder or its `images`
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// A table of synonyms in the format of CHAIR's authors (`chair`, `objects`)
    #[arg(long, value_name = "FILE")]
    synonyms: Option<PathBuf>,
    /// Score these answers: JSON lines with `id` and `answer`
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    answers: Option<PathBuf>,
    /// Leave questions without an answer out of the figures
    #[arg(long, requires = "answers")]
    allow_missing: bool,
    /// Write the questions as a file of prompts, for whoever answers them, and do nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "answers", "output"])]
    questions: Option<PathBuf>,
    /// Write `metrics.json` and `rows.jsonl` into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Ask only about so many of the images, drawn by `--seed`, but all questions about each
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of that draw, of the polls of `objects` and of the intervals
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How often the questions are drawn anew for the intervals
    #[arg(long, default_value_t = 2_000)]
    resamples: usize,
}

/// The names of the benchmarks, as clap shows and reads them.
fn benchmark() -> impl TypedValueParser<Value = Benchmark> {
    PossibleValuesParser::new(Benchmark::ALL.map(Benchmark::name))
        .try_map(|name| Benchmark::of_name(&name).map_err(|error| error.to_string()))
}

impl Eval {
    pub fn run(&self) -> Done {
        let options = Options {
            images: self.images.clone(),
            synonyms: self.synonyms.clone(),
            limit: self.limit,
            seed: self.seed,
        };
        let loaded = Loaded::open(self.benchmark, &self.data, &options)?;
        if let Some(path) = &self.questions {
            write_questions(path, loaded.questions())?;
            super::print(format!("{} questions in {}\n", loaded.questions().len(), path.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let answers = match (&self.answers, &self.model) {
            (Some(path), _) => Answers::read(path)?,
            (None, Some(model)) => {
                loaded.check_images()?;
                self.answer(model, loaded.questions())?
            }
            (None, None) => {
                let problem = Error::at("mdpo eval", "nobody answers the questions");
                return Err(problem.hint("name a checkpoint, or a file of answers with `--answers`"));
            }
        };
        let missing = if self.allow_missing { Missing::LeaveOut } else { Missing::Refuse };
        let bootstrap = Bootstrap { resamples: self.resamples, seed: self.seed };
        let mut scored = loaded.score(&answers, missing, bootstrap)?;
        scored.figures.adapter = self.adapter.as_ref().map(|adapter| adapter.display().to_string());
        if let Some(folder) = &self.output {
            scored.write(folder)?;
        }
        super::print(table(&scored.figures, loaded.questions().len()))?;
        Ok(ExitCode::SUCCESS)
    }

    /// The answers of a checkpoint, with the adapter where there is one.
    fn answer(&self, model: &str, questions: &[Question]) -> Result<Answers> {
        let what = format!("a checkpoint cannot answer the {} questions here yet", questions.len());
        let problem = Error::at(format!("`{model}`"), what);
        Err(problem
            .hint("write them with `--questions FILE`, answer them, and score the answers with `--answers FILE`"))
    }
}

/// Questions as a file of prompts: one JSON object a line with `id`, `prompt` and `image`.
fn write_questions(path: &Path, questions: &[Question]) -> Result<()> {
    crate::weights::write_file(path, |out| {
        for question in questions {
            let image = std::path::absolute(&question.image).unwrap_or_else(|_| question.image.clone());
            let row = serde_json::json!({"id": question.id, "prompt": question.text, "image": image});
            writeln!(out, "{row}")?;
        }
        Ok(())
    })
}

/// The figures with their intervals, as they are printed.
fn table(figures: &Figures, questions: usize) -> String {
    let name = |figure: &mdpo_measure::Figure| figure.name.chars().count();
    let width = figures.figures.iter().map(name).max().unwrap_or(0);
    let adapter = figures.adapter.as_ref().map(|adapter| format!(" with {adapter}")).unwrap_or_default();
    let mut text = format!("{}: {}{adapter}\n", figures.benchmark, figures.model);
    text += &match figures.answers {
        all if all == questions => format!("{all} questions; percent, 95 % interval over questions\n"),
        some => format!(
            "{some} of {questions} questions, the others have no answer; percent, 95 % interval over questions\n"
        ),
    };
    for figure in &figures.figures {
        let better = match figure.better {
            Better::Lower => "lower is better",
            Better::Higher => "higher is better",
            Better::Neither => "",
        };
        let value = figure.value.map_or_else(|| "     –".to_owned(), |value| format!("{value:6.1}"));
        let interval =
            figure.low.zip(figure.high).map(|(low, high)| format!("{low:.1} to {high:.1}")).unwrap_or_default();
        let line = format!("{:width$}  {value}  {interval:<14}  {better}", figure.name);
        text += line.trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdpo_measure::Figure;

    #[test]
    fn the_table_has_every_figure_with_its_interval() {
        let figure = |name: &str, value, better| Figure {
            name: name.to_owned(),
            value,
            low: value.map(|value| value - 2.0),
            high: value.map(|value| value + 2.25),
            better,
        };
        let figures = Figures {
            benchmark: "objects".to_owned(),
            model: "llava".to_owned(),
            adapter: Some("runs/mdpo".to_owned()),
            answers: 90,
            figures: vec![
                figure("CHAIRi", Some(9.96), Better::Lower),
                figure("POPE/accuracy", Some(100.0), Better::Higher),
                figure("POPE/yes_share", None, Better::Neither),
            ],
        };
        insta::assert_snapshot!(table(&figures, 100), @r"
        objects: llava with runs/mdpo
        90 of 100 questions, the others have no answer; percent, 95 % interval over questions
        CHAIRi            10.0  8.0 to 12.2     lower is better
        POPE/accuracy    100.0  98.0 to 102.2   higher is better
        POPE/yes_share       –
        ");
    }
}
