//! `mdpo check`.

use super::Done;
use crate::config;
use crate::train::{self, Evaluator, Inputs, PictureCheck, memory};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `mdpo check` takes.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The recipe (YAML)
    recipe: PathBuf,
    /// Keys to set over the recipe's, as `key=value`
    overrides: Vec<String>,
}

impl Check {
    pub fn run(&self) -> Done {
        let run = config::load(&self.recipe, &self.overrides)?;
        let (inputs, held_out) = Inputs::open_with_held_out(&run, PictureCheck::Decode)?;
        let evaluator = Evaluator::new(&run, held_out)?;
        let trained = train::try_load(&run, &inputs)?;
        let report = &inputs.report;
        let (longest, index) = report.longest;
        let mut text = format!(
            "{}: nothing to refuse\n\
             rows       {} usable of {}, {} with images\n\
             tokens     {} in all as packed, longest example {longest} ({})\n\
             shortened  {}\n\
             seams      {}\n\
             trained    {trained} parameters\n",
            self.recipe.display(),
            inputs.examples.len(),
            report.rows,
            report.with_images,
            report.tokens,
            inputs.examples[index].row,
            report.shortened,
            report.seams,
        );
        for problem in &report.skipped {
            text += &format!("left out   {problem}\n");
        }
        for line in report.left_out.lines() {
            text += &format!("left out   {line}\n");
        }
        if let Some(held_out) = evaluator.as_ref().and_then(Evaluator::held_out) {
            let (usable, report) = (held_out.examples.len(), &held_out.report);
            text += &format!("held out   {usable} usable of {}, {} with images\n", report.rows, report.with_images);
        }
        let estimate = memory::estimate(&run, &inputs, trained);
        let part = |name: &str, bytes: u64| format!("  {name:<12} {}\n", memory::bytes(bytes));
        text += &format!("memory     about {}\n", memory::bytes(estimate.total()));
        text += &part("weights", estimate.weights);
        text += &part("training", estimate.training);
        text += &part("activations", estimate.activations);
        text += &part("logits", estimate.logits);
        text += &part("process", estimate.process);
        super::print(text)?;
        Ok(ExitCode::SUCCESS)
    }
}
