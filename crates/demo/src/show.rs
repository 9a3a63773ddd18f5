//! The whole example: draw scenes, train the small checkpoint on them with DPO, DPO without images and mDPO, and measure all of them on
//! scenes that they never saw: with the prior broken, mixed and intact, and in artwork that they were not trained on.
//!
//! The folder holds `model`, `pairs` (what is trained on), a folder for each held-out set, and for every run its `output_dir` with
//! `evaluations/step-N/SET` and `pope-SET`; `base/evaluations/step-0` is the checkpoint. `results.json` has every figure of the table, `report.html` shows them.

use crate::address::Split;
use crate::captions::Pairing;
use crate::checkpoint;
use crate::dataset::Scenes;
use crate::examine::{Asked, Candidate, HeldOut, LogProbs};
use crate::experiment::{Experiment, Method, beta};
use crate::table::{self, Line};
use mdpo::config::Run;
use mdpo::train::{self, Talk};
use mdpo::{Error, Result};
use mdpo_measure::Figures;
use mdpo_measure::benchmark::Scored;
use mdpo_measure::report::Source;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The held-out sets, the first of which gives the curve over training; and what each is called.
const SETS: [(Split, &str); 4] = [
    (Split::Broken, "no partner with its anchor"),
    (Split::Mixed, "partner half of the time"),
    (Split::Intact, "partner always"),
    (Split::Unseen, "other artwork, half"),
];
/// Held-out pairs, whose scenes are the first of the mixed set.
const PAIRS: &str = "mixed/pairs.jsonl";
/// Held-out scenes that are described in words.
const TOLD: usize = 3;
/// Held-out scenes in the gallery of the report.
const EXAMPLES: usize = 32;

/// Runs the example in `folder`, where what an earlier one wrote is replaced, and prints what came out.
///
/// # Errors
/// The folder cannot be written; the experiment has no valid recipe.
pub fn run(folder: &Path, experiment: &Experiment) -> Result<()> {
    let began = Instant::now();
    let recipes = prepare(folder, experiment)?;
    let bench = Bench::open(folder)?;

    let mut lines = Vec::new();
    let mut told: Vec<(String, Scored)> = Vec::new();
    let mut keep = |title: String, mut examined: Examined| {
        told.push((title.clone(), examined.scenes.swap_remove(0)));
        lines.push(Line { title, ..examined.line });
    };
    keep("base".to_owned(), bench.base()?);
    for (method, run) in recipes {
        let title = experiment.title(method);
        eprintln!("\n{title}");
        let outcome = train::train(&run, Talk::Aloud)?;
        if outcome.interrupted {
            return Ok(());
        }
        keep(title, bench.run(method, outcome.steps.0)?);
    }
    // The checkpoint is where every curve starts.
    let start = (0, lines[0].scenes[0].clone());
    lines.iter_mut().skip(1).for_each(|line| line.curve.insert(0, start.clone()));

    let headings = SETS.map(|(_, heading)| heading.to_owned());
    let pairs = format!("{} held-out pairs", lines[0].pairs.answers);
    println!("\n{} held-out scenes of each kind, percent with 95 % bootstrap intervals\n", experiment.scenes);
    print!("{}", table::table(&headings, &pairs, &lines));
    println!("as training goes, on the scenes with no partner\n{}", table::curves(&lines));
    tell(&told);
    let results = folder.join("results.json");
    write(&results, format!("{:#}\n", table::data(&SETS.map(|(split, _)| split.name()), &lines)).as_bytes())?;
    let report = folder.join("report.html");
    write(&report, page(folder, experiment)?.as_bytes())?;

    println!("pairs    {}", folder.join("pairs/pairs.jsonl").display());
    println!("model    {}", folder.join("model").display());
    for method in &experiment.methods {
        println!("adapter  {} (loads with peft; its recipe is in it)", folder.join(method.folder()).display());
    }
    println!("figures  {}", results.display());
    println!("report   {}", report.display());
    let seconds = began.elapsed().as_secs();
    println!("in {}:{:02} minutes", seconds / 60, seconds % 60);
    Ok(())
}

/// Writes the checkpoint and all scenes, and reads what is to be trained.
fn prepare(folder: &Path, experiment: &Experiment) -> Result<Vec<(Method, Run)>> {
    for name in ["model", "pairs", "base"] {
        clear(&folder.join(name))?;
    }
    SETS.iter().try_for_each(|(split, _)| clear(&folder.join(split.name())))?;
    Method::ALL.iter().try_for_each(|method| clear(&folder.join(method.folder())))?;
    checkpoint::write_trained(&folder.join("model"))?;
    eprintln!("drawing {} scenes to train on and {} held-out ones of each kind", experiment.pairs, experiment.scenes);
    let Experiment { seed, pairs, pairing, scenes, .. } = *experiment;
    Scenes { seed, split: Split::Pairs, count: pairs, pairing }.write(&folder.join("pairs"))?;
    for (split, _) in SETS {
        // Held-out scenes are those of seed 0 and balanced pairs, whatever is trained on.
        let held_out = Scenes { seed: 0, split, count: scenes, pairing: Pairing::Balanced };
        held_out.write(&folder.join(split.name()))?;
    }
    // A recipe that is not valid is told before anything takes long.
    experiment.methods.iter().map(|&method| Ok((method, experiment.recipe(method, folder)?))).collect()
}

fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("replace", folder, &error)),
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|error| Error::io("write", path, &error))
}

/// The page about all of it, as `mdpo report` writes it: curves, figures, and what each model said of some pictures.
fn page(folder: &Path, experiment: &Experiment) -> Result<String> {
    let base = folder.join("base/evaluations/step-0");
    let names = SETS.map(|(split, _)| split.name());
    let sets = names.iter().map(|name| (*name).to_owned()).chain(names.iter().map(|name| format!("pope-{name}")));
    let sets = sets.chain(["pairs".to_owned()]);
    let mut sources: Vec<Source> =
        sets.map(|set| Source { name: Some("base".to_owned()), path: base.join(set) }).collect();
    sources.extend(experiment.methods.iter().map(|&method| {
        let name = Some(experiment.title(method));
        Source { name, path: folder.join(method.folder()) }
    }));
    Ok(mdpo::report::page(&sources, EXAMPLES)?.html)
}

/// What every model is measured on.
struct Bench {
    folder: PathBuf,
    sets: Vec<HeldOut>,
    pairs: Run,
    of_checkpoint: Vec<LogProbs>,
}

/// A model's figures, and of each set its rows.
struct Examined {
    line: Line,
    scenes: Vec<Scored>,
}

impl Bench {
    fn open(folder: &Path) -> Result<Self> {
        let open = |(split, _): (Split, &'static str)| HeldOut::open(&folder.join(split.name()), split.name());
        let pairs = Experiment::measuring(&folder.join(PAIRS), folder)?;
        let mut bench = Self {
            folder: folder.to_owned(),
            sets: SETS.into_iter().map(open).collect::<Result<_>>()?,
            pairs,
            of_checkpoint: Vec::new(),
        };
        eprintln!("measuring the checkpoint");
        bench.of_checkpoint = bench.candidate(None).log_probs(&bench.pairs)?;
        Ok(bench)
    }

    fn candidate(&self, adapter: Option<PathBuf>) -> Candidate {
        Candidate { model: self.folder.join("model"), adapter }
    }

    fn base(&self) -> Result<Examined> {
        self.examine(&self.candidate(None), &self.folder.join("base/evaluations/step-0"))
    }

    /// The trained model on everything, its checkpoints on the first set.
    fn run(&self, method: Method, steps: usize) -> Result<Examined> {
        let run = self.folder.join(method.folder());
        let at = |step: usize| run.join("evaluations").join(format!("step-{step}"));
        let mut curve = Vec::new();
        for step in saved(&run)?.into_iter().filter(|step| *step < steps) {
            let candidate = self.candidate(Some(run.join(format!("checkpoint-{step}"))));
            curve.push((step, candidate.answer(&self.sets[0], Asked::Descriptions, &at(step))?.figures));
        }
        let mut examined = self.examine(&self.candidate(Some(run.clone())), &at(steps))?;
        curve.push((steps, examined.line.scenes[0].clone()));
        examined.line.curve = curve;
        Ok(examined)
    }

    fn examine(&self, candidate: &Candidate, evaluation: &Path) -> Result<Examined> {
        let answer = |set| candidate.answer(set, Asked::Everything, evaluation);
        let scenes: Vec<Scored> = self.sets.iter().map(answer).collect::<Result<_>>()?;
        let own = match &candidate.adapter {
            None => self.of_checkpoint.clone(),
            Some(_) => candidate.log_probs(&self.pairs)?,
        };
        let pairs = candidate.prefer(&own, &self.of_checkpoint, beta(&self.pairs)?, &evaluation.join("pairs"))?;
        let figures: Vec<Figures> = scenes.iter().map(|scored| scored.figures.clone()).collect();
        let line = Line { title: String::new(), scenes: figures, pairs, curve: Vec::new() };
        Ok(Examined { line, scenes })
    }
}

/// The steps at which a run saved itself.
fn saved(run: &Path) -> Result<Vec<usize>> {
    let entries = std::fs::read_dir(run).map_err(|error| Error::io("read", run, &error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut steps: Vec<usize> = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Prints what each model says of the first scenes of which the checkpoint invents something.
fn tell(told: &[(String, Scored)]) {
    let Some((_, base)) = told.first() else { return };
    let invents = |&place: &usize| base.rows[place].hallucinated.iter().any(|words| !words.is_empty());
    for place in (0..base.rows.len()).filter(invents).take(TOLD) {
        if let Some(image) = &base.rows[place].image {
            println!("{}", image.display());
        }
        for (title, scored) in told {
            let row = &scored.rows[place];
            let invented = row.hallucinated.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
            let note = if invented.is_empty() { String::new() } else { format!("   invented: {invented}") };
            println!("  {title:<20}{}{note}", row.answer);
        }
    }
    println!();
}
