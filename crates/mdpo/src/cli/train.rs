//! `mdpo train`.

use super::Done;
use crate::{config, train};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// What `mdpo train` takes.
#[derive(Debug, Args)]
pub(super) struct Train {
    /// The recipe (YAML)
    recipe: PathBuf,
    /// Keys to set over the recipe's, as `key=value`
    overrides: Vec<String>,
}

/// The exit code of a run that a signal stopped, as a shell gives it for SIGINT.
const INTERRUPTED: u8 = 130;

impl Train {
    pub fn run(&self) -> Done {
        let ranks = train::Ranks::from_environment()?;
        let began = Instant::now();
        let run = ranks.agree(config::load(&self.recipe, &self.overrides));
        let outcome = match run.and_then(|run| train::train_on(&ranks, &run, train::Talk::Aloud)) {
            Err(_) if ranks.another_tells() => return Ok(ExitCode::FAILURE),
            outcome => outcome?,
        };
        if outcome.interrupted {
            return Ok(ExitCode::from(INTERRUPTED));
        }
        if !ranks.leads() {
            return Ok(ExitCode::SUCCESS);
        }
        let time = train::clock(began.elapsed().as_secs_f64());
        super::print(format!("{} steps in {time}, written to {}\n", outcome.steps.0, outcome.folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
