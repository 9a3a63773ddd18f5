//! `mdpo eval`.

use super::Done;
use super::generate::{DEVICES, DTYPES, device, dtype};
use crate::eval::{self, Answerer, Decoding, Sampling, Search};
use crate::train::Talk;
use crate::{Error, Result, config, data, train};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use mdpo_measure::benchmark::{Answers, Benchmark, Loaded, Missing, Options, Question, mmhal};
use mdpo_measure::figures::{Better, Figures};
use mdpo_measure::interval::Bootstrap;
use mdpo_measure::judge::{Judge, JudgeSettings, Price};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Kind;

/// What `mdpo eval` takes.
#[derive(Debug, Args)]
pub(super) struct Eval {
    /// The checkpoint that answers: a folder, or a repository in the local Hugging Face cache
    model: Option<String>,
    /// Apply this PEFT adapter
    #[arg(long, requires = "model", conflicts_with = "answers")]
    adapter: Option<PathBuf>,
    /// What is measured
    #[arg(long, value_name = "NAME", value_parser = measured())]
    benchmark: Measured,
    /// The folder with the benchmark's files; for `preferences` the data set, as in a recipe
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The folder with its images, where they are not in the data folder or its `images`
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// A table of synonyms in the format of CHAIR's authors (`chair`, `objects`)
    #[arg(long, value_name = "FILE")]
    synonyms: Option<PathBuf>,
    /// Score these answers: JSON lines with `id` and `answer`; for `pope` also its authors' form, or a folder with a file for each setting
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    answers: Option<PathBuf>,
    /// Leave questions without an answer out of the figures
    #[arg(long, requires = "answers")]
    allow_missing: bool,
    /// Write the questions as a file of prompts, for whoever answers them, and do nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "answers", "output"])]
    questions: Option<PathBuf>,
    /// Write `metrics.json` and `rows.jsonl` into this folder, and the answers of a checkpoint, which go on where they were cut off
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Ask only about so many of the images, drawn by `--seed`, but all questions about each; for `preferences` so many of the rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Seed of that draw, of the polls of `objects` and of the intervals
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// How often the questions are drawn anew for the intervals
    #[arg(long, default_value_t = 2_000)]
    resamples: usize,
    /// The most tokens of an answer [default: 512]
    #[arg(long, requires = "model")]
    max_new_tokens: Option<usize>,
    /// How many questions are answered at once
    #[arg(long, default_value_t = 16, requires = "model")]
    batch_size: usize,
    /// Search with so many beams; 1 takes the likeliest token each time [default: 1]
    #[arg(long, requires = "model")]
    num_beams: Option<usize>,
    /// Precision of weights and activations [default: the checkpoint's own]
    #[arg(long, requires = "model", value_parser = PossibleValuesParser::new(DTYPES.map(|(name, _)| name)).map(|name| dtype(&name)))]
    dtype: Option<Kind>,
    /// Where to compute
    #[arg(long, default_value = "auto", requires = "model", value_parser = PossibleValuesParser::new(DEVICES.map(|(name, _)| name)).map(|name| device(&name)))]
    device: config::Device,
    /// Set a key of a recipe for the data of `preferences`, as `image_folder=DIR` or `rejected_image=blank`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    judge: JudgeArguments,
}

/// Who grades answers.
#[derive(Debug, Args)]
struct JudgeArguments {
    /// The judge of `mmhal`: base of an OpenAI-compatible service, as `http://localhost:8000/v1`
    #[arg(long, value_name = "URL")]
    judge_url: Option<String>,
    /// The judge's name, as the service calls it
    #[arg(long, value_name = "NAME", requires = "judge_url")]
    judge_model: Option<String>,
    /// The environment variable that holds the key [default: OPENAI_API_KEY, if it is set]
    #[arg(long, value_name = "NAME", requires = "judge_url")]
    judge_key_env: Option<String>,
    /// How many requests are under way at once
    #[arg(long, value_name = "N", default_value = "4")]
    judge_concurrency: NonZeroUsize,
    /// Keep the judge's answers in this folder, so that none is paid for twice
    #[arg(long, value_name = "DIR", requires = "judge_url")]
    judge_cache: Option<PathBuf>,
    /// What the judge is told, as a minijinja template, in place of our own words
    #[arg(long, value_name = "FILE", requires = "judge_url")]
    judge_prompt: Option<PathBuf>,
    /// What a million tokens of prompts and of answers cost, as `2.5,10`, to have the cost told
    #[arg(long, value_name = "PROMPT,ANSWER", requires = "judge_url", value_parser = price)]
    judge_price: Option<Price>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measured {
    /// Answers to questions, by a rule.
    Rule(Benchmark),
    /// Answers to questions, by a judge.
    Mmhal,
    /// Which of two answers is likelier.
    Preferences,
}

impl Measured {
    fn name(self) -> &'static str {
        match self {
            Measured::Rule(benchmark) => benchmark.name(),
            Measured::Mmhal => mmhal::NAME,
            Measured::Preferences => train::preferences::NAME,
        }
    }
}

/// The names of the benchmarks, as clap shows and reads them.
fn measured() -> impl TypedValueParser<Value = Measured> {
    let names = Benchmark::ALL.map(Benchmark::name).into_iter().chain([mmhal::NAME, train::preferences::NAME]);
    PossibleValuesParser::new(names).try_map(|name| match name.as_str() {
        mmhal::NAME => Ok(Measured::Mmhal),
        train::preferences::NAME => Ok(Measured::Preferences),
        name => Benchmark::of_name(name).map(Measured::Rule).map_err(|error| error.to_string()),
    })
}

impl Eval {
    pub fn run(&self) -> Done {
        self.check_settings()?;
        self.check_output()?;
        match self.benchmark {
            Measured::Rule(benchmark) => self.by_rule(benchmark),
            Measured::Mmhal => self.by_judge(),
            Measured::Preferences => self.preferences(),
        }
    }

    /// Settings that would do nothing for this benchmark.
    fn check_settings(&self) -> Result<()> {
        let is = |measured: &[Measured]| measured.contains(&self.benchmark);
        let rule = !is(&[Measured::Mmhal, Measured::Preferences]);
        if self.batch_size == 0 {
            return Err(Error::at("`--batch-size`", "expected at least 1, found 0"));
        }
        if self.limit == Some(0) {
            return Err(Error::at("`--limit`", "expected at least 1, found 0"));
        }
        let by_table = is(&[Measured::Rule(Benchmark::Chair), Measured::Rule(Benchmark::Objects)]);
        let answers = !is(&[Measured::Preferences]);
        let given = [
            ("--set", !self.set.is_empty(), is(&[Measured::Preferences]), "`preferences`"),
            ("--judge-url", self.judge.judge_url.is_some(), is(&[Measured::Mmhal]), "`mmhal`"),
            ("--synonyms", self.synonyms.is_some(), by_table, "`chair` and `objects`"),
            ("--images", self.images.is_some(), rule, "benchmarks that a rule scores"),
            ("--allow-missing", self.allow_missing, rule, "benchmarks that a rule scores"),
            ("--questions", self.questions.is_some(), rule, "benchmarks that a rule scores"),
            ("--answers", self.answers.is_some(), answers, "benchmarks with questions"),
            ("--num-beams", self.num_beams.is_some(), answers, "benchmarks with questions"),
            ("--max-new-tokens", self.max_new_tokens.is_some(), answers, "benchmarks with questions"),
        ];
        if self.set.iter().any(|set| set.starts_with("loss_type")) {
            let problem = Error::at("`--set`", "`loss_type` changes nothing about which of two answers is likelier");
            return Err(problem.hint("leave it out"));
        }
        let idle = given.into_iter().filter(|(_, given, has_effect, _)| *given && !has_effect);
        Error::all(
            idle.map(|(name, _, _, whose)| {
                Error::at(format!("`{name}`"), format!("belongs to {whose}")).hint("leave it out")
            })
            .collect(),
        )
    }

    /// That nothing of another evaluation, or of a training run, would be written over.
    fn check_output(&self) -> Result<()> {
        let Some(folder) = &self.output else { return Ok(()) };
        let hint = "choose another folder, or remove that one";
        if folder.join("trainer_state.json").is_file() {
            return Err(Error::at(folder.display(), "`--output` is the folder of a training run").hint(hint));
        }
        let Ok(text) = std::fs::read_to_string(folder.join("metrics.json")) else { return Ok(()) };
        let Ok(before) = serde_json::from_str::<Figures>(&text) else { return Ok(()) };
        let adapter = self.adapter.as_ref().map(|adapter| adapter.display().to_string());
        let answers = self.answers.as_ref().map(|answers| answers.display().to_string());
        let who = self.model.clone().or(answers).unwrap_or_default();
        let same = before.benchmark == self.benchmark.name() && before.model == who && before.adapter == adapter;
        if same {
            return Ok(());
        }
        let by = before.adapter.map(|adapter| format!(" with `{adapter}`")).unwrap_or_default();
        let what = format!("`--output` holds an evaluation of `{}`{by} on `{}`", before.model, before.benchmark);
        Err(Error::at(folder.display(), what).hint(hint))
    }

    fn by_rule(&self, benchmark: Benchmark) -> Done {
        let options = Options {
            images: self.images.clone(),
            synonyms: self.synonyms.clone(),
            limit: self.limit,
            seed: self.seed,
        };
        let loaded = Loaded::open(benchmark, &self.data, &options)?;
        let asked = loaded.questions().len();
        if let Some(path) = &self.questions {
            write_questions(path, loaded.questions())?;
            super::print(format!("{asked} questions in {}\n", path.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let answers = self.answers(
            |path| loaded.read_answers(path),
            || loaded.check_images(),
            loaded.questions().iter().map(|question| (&question.id, &question.text, &question.image)),
        )?;
        let missing = if self.allow_missing { Missing::LeaveOut } else { Missing::Refuse };
        let mut scored = loaded.score(&answers, missing, self.bootstrap())?;
        self.sign(&mut scored.figures);
        if let Some(folder) = &self.output {
            scored.write(folder)?;
        }
        super::print(table(&scored.figures, &of_questions(&scored.figures, asked, NOT_ANSWERED)))?;
        Ok(ExitCode::SUCCESS)
    }

    fn by_judge(&self) -> Done {
        let (items, others) = mmhal::draw(mmhal::read(&self.data)?, self.limit, self.seed);
        let judge = self.judge.open()?;
        let prompt =
            self.judge.judge_prompt.as_deref().map_or_else(|| Ok(mmhal::Prompt::own()), mmhal::Prompt::read)?;
        let answers = self.answers(
            Answers::read,
            || mmhal::check_images(&items),
            items.iter().map(|item| (&item.id, &item.question, &item.image)),
        )?;
        // Answers to questions that were not drawn are no mistake.
        let others: HashSet<&str> = others.iter().map(|item| item.id.as_str()).collect();
        let asked = answers.iter().filter(|(id, _)| !others.contains(id));
        let answered = mmhal::match_answers(&items, asked, answers.source())?;
        let options = mmhal::Options { prompt, bootstrap: self.bootstrap(), ..mmhal::Options::default() };
        eprintln!(
            "{} answers go to the judge, {} at a time; one that it does not grade within two minutes is sent again",
            answered.len(),
            self.judge.judge_concurrency
        );
        let mut scored = mmhal::score(&answered, answers.source(), &judge, &options)?;
        self.sign(&mut scored.figures);
        if let Some(folder) = &self.output {
            scored.write(folder)?;
        }
        let over = of_questions(&scored.figures, items.len(), NOT_JUDGED);
        super::print(table(&scored.figures, &over))?;
        super::print(spent(&judge, &scored))?;
        let failed = |(id, error): (String, Error)| Error::at(format!("question `{id}`"), error);
        Error::first_ten("the judge", scored.failed.into_iter().map(failed).collect())?;
        Ok(ExitCode::SUCCESS)
    }

    fn preferences(&self) -> Done {
        let Some(model) = &self.model else {
            return Err(Error::at("mdpo eval", "no model whose log-probs could be asked for").hint("name a checkpoint"));
        };
        let output = self.output.as_deref().unwrap_or(Path::new("."));
        let quoted = |text: &dyn std::fmt::Display| serde_json::Value::from(text.to_string());
        let mut keys = vec![
            format!("model_name_or_path={}", quoted(model)),
            format!("dataset_name={}", quoted(&self.data.display())),
            format!("output_dir={}", quoted(&output.display())),
            format!("seed={}", self.seed),
            format!("per_device_train_batch_size={}", self.batch_size),
        ];
        keys.extend(
            DEVICES.iter().filter(|(_, device)| *device == self.device).map(|(name, _)| format!("device={name}")),
        );
        let kinds = DTYPES.iter().filter(|(_, kind)| Some(*kind) == self.dtype);
        keys.extend(kinds.map(|(name, _)| format!("dtype={name}")));
        keys.extend(self.set.iter().cloned());
        let read = |loss: &str| config::Run::from_yaml(&format!("loss_type: {loss}\n"), "mdpo eval", &keys)?.resolve();
        let mut run = read("mdpo")?;
        if !train::shows_images(&run)? {
            run = read("dpo")?;
        }
        let rows = self.limit.map_or(train::Rows::All, train::Rows::Drawn);
        let scored = train::preferences(&run, self.adapter.as_deref(), rows, self.bootstrap())?;
        if let Some(folder) = &self.output {
            scored.write(folder)?;
        }
        super::print(table(
            &scored.figures,
            &format!("{} pairs; shares in percent, margins in nats, 95 % interval over rows", scored.rows.len()),
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    fn bootstrap(&self) -> Bootstrap {
        Bootstrap { resamples: self.resamples, seed: self.seed }
    }

    /// Says in the figures who answered.
    fn sign(&self, figures: &mut Figures) {
        if let Some(model) = &self.model {
            figures.model.clone_from(model);
        }
        figures.adapter = self.adapter.as_ref().map(|adapter| adapter.display().to_string());
    }

    /// The answers of a file, which `read` reads, or those of the checkpoint, after `check` of the images that it will see.
    fn answers<'q>(
        &self,
        read: impl FnOnce(&Path) -> Result<Answers>,
        check: impl FnOnce() -> Result<()>,
        questions: impl Iterator<Item = (&'q String, &'q String, &'q PathBuf)>,
    ) -> Result<Answers> {
        let (model, folder) = match (&self.answers, &self.model, &self.output) {
            (Some(path), _, _) => return read(path),
            (None, Some(model), Some(folder)) => (model, folder),
            (None, Some(_), None) => {
                let problem = Error::at("`--output`", "expected a folder for the checkpoint's answers");
                return Err(problem.hint("add `--output DIR`; an evaluation that is cut off goes on from there"));
            }
            (None, None, _) => {
                let problem = Error::at("mdpo eval", "nobody answers the questions");
                return Err(problem.hint("name a checkpoint, or a file of answers with `--answers`"));
            }
        };
        let decoding = Decoding::new(Sampling::Greedy, self.num_beams.unwrap_or(1), Search::default())?;
        let device = train::device(self.device)?;
        check()?;
        let answerer = Answerer {
            model: config::find_model(model)?,
            adapter: self.adapter.clone(),
            kind: self.dtype,
            device,
            decoding,
            max_new_tokens: self.max_new_tokens.unwrap_or(512),
            batch_size: self.batch_size,
        };
        let questions: Vec<data::Question> =
            questions.map(|(id, text, image)| data::Question::new(id, text, [image.clone()])).collect();
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
        let file = folder.join("answers.jsonl");
        eval::answer_file(&answerer, &questions, &file, Talk::Aloud)?;
        Answers::read(&file)
    }
}

impl JudgeArguments {
    fn open(&self) -> Result<Judge> {
        let (Some(url), Some(model)) = (&self.judge_url, &self.judge_model) else {
            let problem = Error::at("mdpo eval", "`mmhal` needs a judge");
            return Err(problem.hint("give `--judge-url` and `--judge-model`; docs/judge.md says which services fit"));
        };
        Judge::open(JudgeSettings {
            key_env: self.judge_key_env.clone(),
            concurrency: self.judge_concurrency,
            cache: self.judge_cache.clone(),
            price: self.judge_price,
            ..JudgeSettings::new(url, model)
        })
    }
}

/// Two numbers of money.
fn price(text: &str) -> std::result::Result<Price, String> {
    let numbers: Vec<f64> = text.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    match numbers.as_slice() {
        [prompt, completion] => Ok(Price { prompt: *prompt, completion: *completion }),
        _ => Err("expected two numbers with a comma between them, as `2.5,10`".to_owned()),
    }
}

/// What the judge was asked and what it cost.
fn spent(judge: &Judge, scored: &mmhal::Scored) -> String {
    let spent = judge.spent();
    let mut text = format!(
        "judge: {} answers, {} of them kept from before, {} retries, {} failed; {} tokens of prompts, {} of answers",
        spent.answered + spent.cached,
        spent.cached,
        spent.retries,
        spent.failed,
        spent.prompt_tokens,
        spent.completion_tokens
    );
    if let Some(price) = judge.settings().price {
        text += &format!("; cost {:.4}", spent.cost(price));
    }
    if spent.unmetered > 0 {
        text += &format!("; {} answers came without a count of tokens", spent.unmetered);
    }
    if !scored.ungraded.is_empty() {
        let (count, ids) = (scored.ungraded.len(), scored.ungraded.iter().take(8).map(|(id, _)| id.as_str()));
        let ids = ids.collect::<Vec<_>>().join(", ");
        let more = if count > 8 { ", …" } else { "" };
        let cut = scored.ungraded.iter().filter(|(_, why)| *why == mmhal::Ungraded::Cut).count();
        text += &format!("\n{count} verdicts name no grade or several, and score 0 by the authors' rule: {ids}{more}");
        if cut > 0 {
            text += &format!(" ({cut} of them were cut off)");
        }
    }
    text + "\n"
}

/// Questions as a file of prompts: one JSON object a line with `id`, `prompt` and `image`. A file that is there and says something else stays.
fn write_questions(path: &Path, questions: &[Question]) -> Result<()> {
    let mut text = String::new();
    for question in questions {
        let image = std::path::absolute(&question.image).unwrap_or_else(|_| question.image.clone());
        text += &format!("{}\n", serde_json::json!({"id": question.id, "prompt": question.text, "image": image}));
    }
    if path.is_file() && std::fs::read(path).map_err(|error| Error::io("read", path, &error))? != text.as_bytes() {
        let problem = Error::at(path.display(), "`--questions` is there already and holds something else");
        return Err(problem.hint("choose another name, or remove that file"));
    }
    crate::weights::write_file(path, |out| out.write_all(text.as_bytes()))
}

/// Why questions are in no figure.
const NOT_ANSWERED: &str = "the others have no answer";
const NOT_JUDGED: &str = "of the others the judge gave no verdict";

/// What the figures are over; `others` says why some questions are in none.
fn of_questions(figures: &Figures, questions: usize, others: &str) -> String {
    match figures.answers {
        all if all == questions => format!("{all} questions; shares in percent, 95 % interval over questions"),
        some => format!("{some} of {questions} questions, {others}; shares in percent, 95 % interval over questions"),
    }
}

/// The figures with their intervals, as they are printed below what they are `over`; small ones with a digit more.
fn table(figures: &Figures, over: &str) -> String {
    let name = |figure: &mdpo_measure::Figure| figure.name.chars().count();
    let width = figures.figures.iter().map(name).max().unwrap_or(0);
    let adapter = figures.adapter.as_ref().map(|adapter| format!(" with {adapter}")).unwrap_or_default();
    let mut text = format!("{}: {}{adapter}\n{over}\n", figures.benchmark, figures.model);
    for figure in &figures.figures {
        let better = match figure.better {
            Better::Lower => "lower is better",
            Better::Higher => "higher is better",
            Better::Neither => "",
        };
        let digits = if figure.value.is_some_and(|value| value.abs() < 10.0) { 2 } else { 1 };
        let value = figure.value.map_or_else(|| "     –".to_owned(), |value| format!("{value:6.digits$}"));
        let interval = figure.low.zip(figure.high).map(|(low, high)| format!("{low:.digits$} to {high:.digits$}"));
        let interval = interval.unwrap_or_default();
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
        insta::assert_snapshot!(table(&figures, &of_questions(&figures, 100, NOT_ANSWERED)), @r"
        objects: llava with runs/mdpo
        90 of 100 questions, the others have no answer; shares in percent, 95 % interval over questions
        CHAIRi            9.96  7.96 to 12.21   lower is better
        POPE/accuracy    100.0  98.0 to 102.2   higher is better
        POPE/yes_share       –
        ");
        let judged = of_questions(&figures, 96, NOT_JUDGED);
        assert!(judged.starts_with("90 of 96 questions, of the others the judge gave no verdict; "), "{judged}");
    }
}
