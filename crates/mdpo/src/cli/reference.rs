//! `mdpo reference`.

use super::Done;
use crate::{Error, config, train, weights};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `mdpo reference` takes.
#[derive(Debug, Args)]
pub(super) struct Reference {
    /// The recipe (YAML)
    recipe: PathBuf,
    /// Keys to set over the recipe's, as `key=value`
    overrides: Vec<String>,
    /// Apply this PEFT adapter; a run that continues it with `reference: adapter` takes what is kept under it
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Where to write, one JSON object per pair of a row: `row`, `chosen`, `chosen_tokens`, `rejected`, `rejected_tokens`, `corrupted`, with `dmpo` also `chosen_turns` and `rejected_turns`; what a row lacks is left out
    #[arg(long)]
    output: PathBuf,
}

impl Reference {
    pub fn run(&self) -> Done {
        let run = config::load(&self.recipe, &self.overrides)?;
        let mut rows = 0;
        weights::write_file_with(&self.output, |file| {
            train::reference(&run, self.adapter.as_deref(), |row| {
                rows += 1;
                let line = serde_json::to_string(&row).map_err(|error| Error::at("row", error))?;
                writeln!(file, "{line}").map_err(|error| Error::io("write", &self.output, &error))
            })
        })?;
        super::print(format!("{rows} rows, written to {}\n", self.output.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
