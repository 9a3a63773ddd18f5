//! `mdpo report`.

use super::Done;
use crate::{Error, Result, report};
use clap::Args;
use mdpo_measure::report::Source;
use std::fs;
use std::io::Read;
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

/// Every page of mdpo has this near its beginning.
const MARK: &[u8] = br#"<meta name="generator" content="mdpo "#;

impl Report {
    /// A page may be made anew; anything else that is there, as an input of this one, stays.
    fn check_output(&self) -> Result<()> {
        let Ok(mut file) = fs::File::open(&self.output) else { return Ok(()) };
        let metadata = file.metadata().map_err(|error| Error::io("read", &self.output, &error))?;
        if metadata.is_dir() {
            let problem = Error::at(self.output.display(), "`--output` is a folder");
            return Err(problem.hint("name the file to write, as `report.html`"));
        }
        let mut start = Vec::new();
        if metadata.is_file() {
            let read = file.by_ref().take(4096).read_to_end(&mut start);
            read.map_err(|error| Error::io("read", &self.output, &error))?;
        }
        if start.is_empty() || start.windows(MARK.len()).any(|window| window == MARK) {
            return Ok(());
        }
        let problem = Error::at(self.output.display(), "`--output` is there already and is no report of mdpo");
        Err(problem.hint("choose another name, or remove that file"))
    }

    pub fn run(&self) -> Done {
        self.check_output()?;
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
