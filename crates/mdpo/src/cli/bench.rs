//! `mdpo bench`.

use super::Done;
use crate::train::{self, BenchReport, memory};
use crate::{Error, config};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `mdpo bench` takes.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// The recipe (YAML); nothing is written into its `output_dir`
    recipe: PathBuf,
    /// Keys to set over the recipe's, as `key=value`
    overrides: Vec<String>,
    /// Optimizer steps to measure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// Optimizer steps before them that are not counted
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(&self) -> Done {
        let run = config::load(&self.recipe, &self.overrides)?;
        let report = train::bench(&run, self.warmup as usize, self.steps as usize)?;
        let text = match self.json {
            true => serde_json::to_string(&report).map_err(|error| Error::at("report", error))? + "\n",
            false => table(&report),
        };
        super::print(text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(report: &BenchReport) -> String {
    let [median, least, most] = report.step_time;
    let mean: f64 = report.stages.iter().map(|(_, seconds)| seconds).sum();
    let giga = |operations: f64| operations / 1e9;
    let mut text = format!(
        "{} · {} · {} threads · {} steps of {:.0} pairs, {:.0} tokens\n\
         step       {median:.3} s median ({least:.3} to {most:.3})\n",
        report.device, report.dtype, report.threads, report.steps, report.pairs, report.tokens
    );
    for (name, seconds) in &report.stages {
        let flops = report.flops.iter().find(|(stage, _)| stage == name).map(|(_, count)| *count);
        let rate = flops.filter(|_| *seconds > 0.0).map_or(String::new(), |count| {
            format!("  {:8.1} GFLOP  {:7.1} GFLOP/s", giga(count), giga(count / seconds))
        });
        text += &format!("  {name:<10} {seconds:8.3} s  {:5.1} %{rate}\n", 100.0 * seconds / mean);
    }
    text += &format!(
        "waited     {:.3} s a step for data\n\
         tokens     {:.0} a second\n\
         pairs      {:.3} a second\n\
         matmuls    {:.1} GFLOP/s, {:.1} % of the {:.1} GFLOP/s that a large product reaches\n",
        report.data_wait,
        report.tokens / mean,
        report.pairs / mean,
        giga(report.flops_per_second),
        100.0 * report.flops_per_second / report.matmul_peak,
        giga(report.matmul_peak),
    );
    if let Some(bytes) = report.peak_rss {
        text += &format!("memory     {} resident at most\n", memory::bytes(bytes));
    }
    if let Some(bytes) = report.peak_gpu {
        text += &format!("GPU        {} in tensors at most\n", memory::bytes(bytes));
    }
    text
}
