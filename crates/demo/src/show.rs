//! The whole example: draw scenes, train the small checkpoint on them with mDPO, measure before and after on scenes it never saw.

use crate::address::Split;
use crate::captions::Pairing;
use crate::checkpoint;
use crate::dataset::Scenes;
use mdpo::config::Run;
use mdpo::data::{ImageSource, Prompt};
use mdpo::eval::{Generation, Request, Sampling};
use mdpo::model::Model;
use mdpo::model::load::Plan;
use mdpo::train::{self, Inputs, ReferenceRow, Talk};
use mdpo::{Error, Result, weights};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The recipe that is run, as committed.
pub const RECIPE: &str = include_str!("../recipe.yaml");

/// Pairs that are trained on, and held-out ones.
const PAIRS: u64 = 600;
const HELD_OUT: u64 = 150;
/// Held-out scenes that are described in words, before and after.
const TOLD: usize = 3;

/// What held-out pairs show of a model, with and without the adapter.
#[derive(Debug, Clone, Copy)]
struct Measures {
    /// Share of pairs whose true caption is likelier than the false one.
    text: f64,
    /// Share of pairs whose true caption is likelier under the true picture than under the crop.
    image: f64,
    /// By how many nats it is, on average.
    gap: f64,
}

/// Runs the example in `folder`, where what an earlier one wrote is replaced.
pub fn run(folder: &Path) -> Result<()> {
    let began = Instant::now();
    let place = |name: &str| folder.join(name);
    for name in ["model", "pairs", "held_out", "mdpo"] {
        clear(&place(name))?;
    }
    eprintln!("drawing {PAIRS} scenes to train on and {HELD_OUT} held-out ones into {}", folder.display());
    checkpoint::write_trained(&place("model"))?;
    let scenes = |split, count| Scenes { seed: 0, split, count, pairing: Pairing::Balanced };
    scenes(Split::Pairs, PAIRS).write(&place("pairs"))?;
    scenes(Split::Mixed, HELD_OUT).write(&place("held_out"))?;

    let run = recipe(&place("model"), &place("pairs/pairs.jsonl"), &place("mdpo"))?;
    let outcome = train::train(&run, Talk::Aloud)?;
    if outcome.interrupted {
        return Ok(());
    }
    let held_out = recipe(&place("model"), &place("held_out/pairs.jsonl"), &place("mdpo"))?;
    let adapter = place("mdpo");
    let (before, after) = (measure(&held_out, None)?, measure(&held_out, Some(&adapter))?);

    println!("\nWhat mDPO taught it, on {HELD_OUT} held-out scenes");
    println!("{:<58}{:>8}{:>8}", "", "before", "after");
    let row = |name: &str, before: f64, after: f64| println!("{name:<58}{before:>8.3}{after:>8.3}");
    row("true caption likelier than the false one (share)", before.text, after.text);
    row("true caption likelier under the picture than a crop (share)", before.image, after.image);
    row("  by how many nats", before.gap, after.gap);
    println!();
    tell(&held_out, &adapter, &place("held_out"))?;
    println!("data     {}", place("pairs/pairs.jsonl").display());
    println!("model    {}", place("model").display());
    println!("adapter  {} (loads with peft)", adapter.display());
    println!("recipe   {} (mdpo train RECIPE key=value …)", adapter.join("mdpo_recipe.yaml").display());
    let seconds = began.elapsed().as_secs();
    println!("in {}:{:02} minutes", seconds / 60, seconds % 60);
    Ok(())
}

fn recipe(model: &Path, rows: &Path, output: &Path) -> Result<Run> {
    let set = |key: &str, path: &Path| format!("{key}={}", path.display());
    let overrides = [set("model_name_or_path", model), set("dataset_name", rows), set("output_dir", output)];
    Run::from_yaml(RECIPE, "crates/demo/recipe.yaml", &overrides)?.resolve()
}

fn clear(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("replace", folder, &error)),
        _ => Ok(()),
    }
}

fn measure(run: &Run, adapter: Option<&Path>) -> Result<Measures> {
    let mut rows: Vec<ReferenceRow> = Vec::new();
    train::reference(run, adapter, |row| {
        rows.push(row);
        Ok(())
    })?;
    let share = |counts: &dyn Fn(&ReferenceRow) -> bool| {
        rows.iter().filter(|row| counts(row)).count() as f64 / rows.len().max(1) as f64
    };
    let gap = |row: &ReferenceRow| Some(row.chosen? - row.corrupted?);
    Ok(Measures {
        text: share(&|row| row.chosen.zip(row.rejected).is_some_and(|(chosen, rejected)| chosen > rejected)),
        image: share(&|row| gap(row).is_some_and(|gap| gap > 0.0)),
        gap: rows.iter().filter_map(gap).sum::<f64>() / rows.len().max(1) as f64,
    })
}

/// Prints what the model says of a few held-out scenes, before and after.
fn tell(run: &Run, adapter: &Path, scenes: &Path) -> Result<()> {
    let inputs = Inputs::open(run, train::PictureCheck::Header)?;
    let device = train::device(run.model.device)?;
    let load = |adapter: Option<&Path>| -> Result<Model> {
        let adapter = adapter.map(weights::lora::read).transpose()?;
        Model::load(&run.model.path, train::kind(run.model.dtype), device, Plan::Frozen { adapter })
    };
    let (base, tuned) = (load(None)?, load(Some(adapter))?);
    for example in inputs.examples.iter().take(TOLD) {
        let Some(ImageSource::Path(picture)) = example.images.first() else { continue };
        let name = picture.strip_prefix(scenes).unwrap_or(picture);
        println!("{}", PathBuf::from("held_out").join(name).display());
        for (when, model) in [("before", &base), ("after", &tuned)] {
            println!("  {when:<7} {}", answer(&inputs, model, &example.prompt, picture)?);
        }
        println!("  true    {}", text(&example.answers[0].response));
    }
    println!();
    Ok(())
}

fn text(response: &mdpo::data::Response) -> String {
    match response {
        mdpo::data::Response::Text(text) => text.clone(),
        mdpo::data::Response::Messages(messages) => {
            let parts = messages.iter().flat_map(|message| &message.content);
            let said = parts.filter_map(|part| match part {
                mdpo::data::Part::Text(text) => Some(text.as_str()),
                mdpo::data::Part::Image => None,
            });
            said.collect()
        }
    }
}

fn answer(inputs: &Inputs, model: &Model, prompt: &Prompt, picture: &Path) -> Result<String> {
    let prompt = inputs.encoder.prompt_only(prompt, 1)?;
    let decoded = train::picture(&ImageSource::Path(picture.to_owned()))?;
    let images: Vec<_> = inputs.processor.iter().map(|processor| processor.process(&decoded)).collect();
    let stop = inputs.encoder.eos_ids();
    let request = Request { prompt: &prompt, images: &images, sampling: Sampling::Greedy, max_new_tokens: 40, stop };
    let ids = Generation::start(model, request)?.collect::<Result<Vec<u32>>>()?;
    Ok(inputs.encoder.tokenizer().decode(&ids)?.trim().to_owned())
}
