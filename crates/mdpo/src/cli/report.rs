//! `mdpo report`.

use super::Done;
use crate::{Error, report};
use clap::Args;
use mdpo_measure::report::Source;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `mdpo report` takes.
#[derive(Debug, Args)]
pub(super) struct Report {
    /// `output_dir` of a training run, or a folder of an evaluation; `NAME=PATH` gives it a name
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<String>,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Questions in the gallery, evenly spread over those that were answered
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=500))]
    examples: u32,
}

impl Report {
    pub fn run(&self) -> Done {
        let sources: Vec<Source> = self.runs.iter().map(|run| Source::parse(run)).collect();
        let page = report::page(&sources, self.examples as usize)?;
        fs::write(&self.output, &page.html).map_err(|error| Error::io("write", &self.output, &error))?;
        let size = page.html.len().div_ceil(1000);
        super::print(format!("{} · {size} kB, all in one file\n", self.output.display()))?;
        for note in &page.notes {
            super::print(format!("  {note}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
