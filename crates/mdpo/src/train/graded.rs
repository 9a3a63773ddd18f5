//! MMHal-Bench while a run trains: the policy's answers go to a judge, and a judge that fails costs an evaluation its figures and never
//! the run its hours.
//!
//! What is wrong with the recipe or the environment is told before the weights are read. The judge's answers are kept on the disk, so that
//! a resumed run asks nothing twice.

use crate::config::{self, Run};
use crate::{Error, Result};
use mdpo_measure::benchmark::mmhal::{self, Item, Ungraded};
use mdpo_measure::interval::{Bootstrap, Measure};
use mdpo_measure::judge::{Judge, JudgeSettings, Spent};

/// The questions and who grades the answers.
#[derive(Debug)]
pub(super) struct Graded {
    items: Vec<Item>,
    settings: JudgeSettings,
    options: mmhal::Options,
}

impl Graded {
    /// The benchmark in a folder, or so many of its questions, drawn by the run's seed.
    ///
    /// # Errors
    /// A folder that is none of the benchmark, photographs that are not there; a judge that cannot be asked, for want of its address or key.
    pub fn open(run: &Run, judge: &config::Judge, sample: &config::BenchmarkSample) -> Result<Self> {
        let (items, _) = mmhal::draw(mmhal::read(&sample.data)?, sample.limit, run.seed);
        mmhal::check_images(&items)?;
        let settings = JudgeSettings {
            key_env: judge.key_env.clone(),
            concurrency: judge.concurrency,
            cache: Some(judge.cache.clone().unwrap_or_else(|| run.output.dir.join("judged"))),
            ..JudgeSettings::new(&judge.url, &judge.model)
        };
        settings.check().map_err(of_recipe)?;
        let prompt = judge.prompt.as_deref().map_or_else(|| Ok(mmhal::Prompt::own()), mmhal::Prompt::read)?;
        let bootstrap = Bootstrap { seed: run.seed, ..Bootstrap::default() };
        Ok(Self { items, settings, options: mmhal::Options { prompt, bootstrap, ..mmhal::Options::default() } })
    }

    /// What is asked.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The figures that it gives.
    pub fn measures(&self) -> impl Iterator<Item = Measure> {
        mmhal::measures(&self.items).into_iter()
    }

    /// Figures and rows of the answers, by id, where the judge graded every one of them; and a line about it for the terminal.
    ///
    /// Figures over some of the questions would be compared with those of other evaluations over all of them, so there are none.
    pub fn score(&self, answers: &[(String, String)], source: &str) -> (Option<mmhal::Scored>, String) {
        let lost = |why: String| {
            format!("warning: `{}` has no figures at {source}, its answers are kept but not judged: {why}", mmhal::NAME)
        };
        match self.ask(answers, source) {
            Err(error) => (None, lost(of_recipe(error).to_string())),
            Ok((scored, spent)) => match scored.failed.first() {
                None => {
                    let line = self.line(&scored, spent);
                    (Some(scored), line)
                }
                Some((id, error)) => {
                    let (failed, all) = (scored.failed.len(), answers.len());
                    let what = format!("{failed} of {all} answers got no grade, the first to question `{id}`: {error}");
                    (None, lost(what))
                }
            },
        }
    }

    fn ask(&self, answers: &[(String, String)], source: &str) -> Result<(mmhal::Scored, Spent)> {
        let answers = answers.iter().map(|(id, answer)| (id.as_str(), answer.as_str()));
        let answered = mmhal::match_answers(&self.items, answers, source)?;
        let judge = Judge::open(self.settings.clone())?;
        let scored = mmhal::score(&answered, source, &judge, &self.options)?;
        Ok((scored, judge.spent()))
    }

    /// What the judge was asked, and verdicts without a grade.
    fn line(&self, scored: &mmhal::Scored, spent: Spent) -> String {
        let mut line = format!(
            "judge · {} answers graded by {}, {} of them kept from before · {} tokens of prompts, {} of verdicts",
            scored.rows.len(),
            self.settings.model,
            spent.cached,
            spent.prompt_tokens,
            spent.completion_tokens
        );
        if !scored.ungraded.is_empty() {
            let cut = scored.ungraded.iter().filter(|(_, why)| *why == Ungraded::Cut).count();
            line += &format!(
                " · {} verdicts name no grade or several ({cut} were cut off) and score 0",
                scored.ungraded.len()
            );
        }
        line
    }
}

/// Options of the command line have other names in a recipe.
fn of_recipe(error: Error) -> Error {
    let named = |text: &str| {
        let names =
            [("--judge-url", "judge_url"), ("--judge-model", "judge_model"), ("--judge-key-env", "judge_key_env")];
        names.iter().fold(text.to_owned(), |text, (option, key)| text.replace(option, key))
    };
    match error {
        Error::One(mut problem) => {
            problem.what = named(&problem.what);
            problem.hint = problem.hint.as_deref().map(named);
            Error::One(problem)
        }
        Error::Many(all) => Error::Many(all.into_iter().map(of_recipe).collect()),
    }
}
