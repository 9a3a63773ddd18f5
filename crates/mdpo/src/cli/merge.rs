//! `mdpo merge`.

use super::Done;
use crate::{config, weights};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `mdpo merge` takes.
#[derive(Debug, Args)]
pub(super) struct Merge {
    /// The checkpoint: a folder, or a repository in the local Hugging Face cache
    model: String,
    /// The PEFT adapter
    #[arg(long)]
    adapter: PathBuf,
    /// Where to write the merged checkpoint; absent or empty
    #[arg(long)]
    out: PathBuf,
}

impl Merge {
    pub fn run(&self) -> Done {
        weights::merge(&config::find_model(&self.model)?, &self.adapter, &self.out)?;
        super::print(format!("merged into {}\n", self.out.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
