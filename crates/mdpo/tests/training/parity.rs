//! Short runs that PyTorch and peft made (`parity/training/generate.py`), step by ready, step, and the adapters they ended with.

use mdpo::config::{AdapterStart, Lora, Reference, Run, Targets};
use mdpo::image::Pixels;
use mdpo::model::load::Plan;
use mdpo::model::{DeviceBatch, Model};
use mdpo::nn::Role;
use mdpo::objective::StepTotals;
use mdpo::optim::{self, AdamW};
use mdpo::text::pack::PackedBatch;
use mdpo::text::{ImageSlot, Tokens};
use mdpo::train::{
    Clock, FeatureCache, ImageKey, KnownReference, Laps, Micro, Origin, Places, StepPlan, StepResult, Tower, evaluate,
    ready, step,
};
use mdpo::weights;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

use crate::lab::{number, parity};

/// The largest differences of a trajectory.
#[derive(Debug, Default)]
struct Worst {
    loss: f64,
    norm: f64,
    rate: f64,
    reward: f64,
    adapter: f64,
}

struct Fixture {
    folder: PathBuf,
    about: Value,
    pixels: HashMap<String, Tensor>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let folder = parity("training").join(name);
        let text = std::fs::read_to_string(folder.join("trajectory.json")).expect("trajectory.json");
        let pixels = folder.join("pixels.safetensors");
        let pixels = if pixels.exists() { Tensor::read_safetensors(pixels).expect("pixels") } else { Vec::new() };
        Fixture { folder, about: serde_json::from_str(&text).expect("JSON"), pixels: pixels.into_iter().collect() }
    }

    /// The fixture's own recipe keys, read by mdpo's own reader.
    fn run(&self) -> Run {
        let keys = self.about["run"].as_object().expect("keys").iter();
        let lines: String = keys.map(|(key, value)| format!("{key}: {value}\n")).collect();
        let rest = "model_name_or_path: .\ndataset_name: none.jsonl\noutput_dir: none\n";
        Run::from_yaml(&format!("{rest}{lines}"), "trajectory.json", &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    fn pixels(&self, name: &str, row: usize) -> Pixels {
        let image = self.pixels[name].get(row as i64);
        let side = image.size()[1] as usize;
        Pixels { height: side, width: side, values: Vec::try_from(image.flatten(0, -1)).expect("floats") }
    }

    /// Some rows as the trainer packs them: a prompt with both answers, and with images the chosen answer under the other image.
    fn micro(&self, model: &Model, rows: &[usize]) -> Micro {
        let (mut packed, mut images, mut pairs) = (PackedBatch::default(), Vec::new(), Vec::new());
        for &row in rows {
            let pair = &self.about["pairs"][row];
            let prompt = prompt(model, &pair["prompt_ids"]);
            let (chosen, rejected) = (response(&pair["chosen_ids"]), response(&pair["rejected_ids"]));
            let first = packed.responses.len();
            let place = images.len();
            packed.push(&prompt, &[&chosen, &rejected], |_| place);
            if !prompt.images.is_empty() {
                packed.push(&prompt, &[&chosen], |_| place + 1);
                images.extend(["images", "rejected_images"].map(|name| self.pixels(name, row)));
            }
            let corrupted = (!prompt.images.is_empty()).then_some(first + 2);
            pairs.push(Places { chosen: Some(first), rejected: Some(first + 1), corrupted, ..Places::default() });
        }
        let (image_keys, origins) = (images.iter().map(ImageKey::of).collect(), vec![Origin::Rejected; images.len()]);
        let batch = DeviceBatch::new(packed, Device::Cpu);
        Micro { batch, images, image_keys, origins, pairs, prompts: Vec::new() }
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn prompt(model: &Model, value: &Value) -> Tokens {
    let ids = ids(value);
    let slots = model.shape.vision.as_ref().map_or(Vec::new(), |vision| {
        let start = ids.iter().position(|&id| id == vision.image_token).expect("an image token");
        vec![ImageSlot { start, len: vision.tokens_per_image(), image: 0 }]
    });
    Tokens { counted: vec![false; ids.len()], ids, images: slots, ..Tokens::default() }
}

fn response(value: &Value) -> Tokens {
    let ids = ids(value);
    Tokens { counted: vec![true; ids.len()], turns: std::iter::once(0..ids.len()).collect(), ids, images: Vec::new() }
}

/// Trains as the fixture did and compares every number of every step.
fn follow(name: &str) -> Worst {
    let fixture = Fixture::open(name);
    let run = fixture.run();
    let start = weights::lora::read(&fixture.folder.join("start")).expect("the adapter");
    let settings = Lora {
        r: start.config.r,
        alpha: start.config.alpha,
        dropout: 0.0,
        rslora: false,
        targets: Targets::AllLinear,
        start: AdapterStart::Fresh,
    };
    let plan = Plan::Lora { settings: &settings, seed: 0, start: Some((start, Reference::Base)) };
    let base = parity("model").join(fixture.about["base"].as_str().expect("a name"));
    let model = Model::load(&base, Kind::Float, Device::Cpu, plan).unwrap_or_else(|error| panic!("{error}"));
    let mut adamw = AdamW::new(run.optim.clone(), &model.trainables);
    let steps = fixture.about["steps"].as_array().expect("steps");
    let beta = run.objective.beta().expect("a preference objective");
    let mut worst = Worst::default();
    for (index, expected) in steps.iter().enumerate() {
        let rows: Vec<usize> = ids(&expected["rows"]).into_iter().map(|row| row as usize).collect();
        let chosen_tokens = rows.iter().map(|&row| ids(&fixture.about["pairs"][row]["chosen_ids"]).len()).sum();
        let totals = StepTotals { pairs: rows.len(), chosen_tokens, answers: 2 * rows.len() };
        let mut loss = 0.0;
        let mut seen = 0;
        for rows in rows.chunks(run.batch.per_device) {
            let micro = fixture.micro(&model, rows);
            let [policy, reference] = [Role::Policy, Role::Reference].map(|role| evaluate(&model, &micro, role).sums);
            for (i, places) in micro.pairs.iter().enumerate() {
                let views = [("chosen", places.chosen), ("rejected", places.rejected), ("corrupted", places.corrupted)];
                for (view, place) in views {
                    let Some(place) = place.map(|place| place as i64) else { continue };
                    let reward = beta * (policy.double_value(&[place]) - reference.double_value(&[place]));
                    let expected = number(&expected[format!("rewards_{view}")][seen + i]);
                    worst.reward = worst.reward.max((reward - expected).abs());
                }
            }
            seen += rows.len();
            let (objective, checkpointing) = (&run.objective, run.batch.checkpointing);
            let plan = StepPlan { objective, checkpointing, tower: Tower::Frozen, totals, dropout: None };
            let known = KnownReference::nothing(&micro.batch.packed);
            let clock = &mut Clock::new(Laps::Unwaited, Device::Cpu);
            let done = ready(&model, micro, plan, known, &mut FeatureCache::of_steps(), clock)
                .and_then(|ready| step(&model, &ready, plan, clock));
            let StepResult { loss: sum, metrics, .. } = done.unwrap_or_else(|error| panic!("{error}"));
            assert!((metrics.mean("loss").expect("a loss") - sum / rows.len() as f64).abs() < 1e-12);
            loss += sum / totals.pairs as f64;
        }
        let rate = optim::learning_rate(&run.optim, index, steps.len());
        let norm = optim::clip(&model.trainables, run.optim.max_grad_norm);
        adamw.step(&model.trainables, rate);
        worst.loss = worst.loss.max((loss - number(&expected["loss"])).abs());
        worst.norm = worst.norm.max((norm - number(&expected["grad_norm"])).abs());
        worst.rate = worst.rate.max((rate - number(&expected["learning_rate"])).abs());
    }
    let end = Tensor::read_safetensors(fixture.folder.join("final.safetensors")).expect("the final adapter");
    assert_eq!(end.len(), model.trainables.len());
    for (name, expected) in end {
        let own = name.strip_prefix("base_model.model.").expect("peft's prefix");
        let found = model.trainables.iter().find(|t| t.name == own).unwrap_or_else(|| panic!("no `{own}`"));
        let gap = (&found.leaf.detach() - expected).abs().max().double_value(&[]);
        worst.adapter = worst.adapter.max(gap);
    }
    println!("{name}: {worst:?}");
    worst
}

fn assert_within(worst: &Worst, limit: &Worst) {
    let pairs = [
        (worst.loss, limit.loss),
        (worst.norm, limit.norm),
        (worst.rate, limit.rate),
        (worst.reward, limit.reward),
        (worst.adapter, limit.adapter),
    ];
    assert!(pairs.iter().all(|(found, limit)| found <= limit), "{worst:?} is not within {limit:?}");
}

/// Worst differences measured: loss 3e-7, norm 2e-6, reward 2e-6, adapter 4e-7; peft's own from f64: loss 2e-7, norm 3e-6, adapter 2e-7.
#[test]
fn ten_steps_of_dpo_are_those_of_peft() {
    assert_within(&follow("dpo"), &Worst { loss: 2e-6, norm: 2e-5, rate: 1e-18, reward: 2e-5, adapter: 2e-6 });
}

/// Worst differences measured: loss 7e-7, norm 1e-6, reward 9e-7, adapter 8e-8; peft's own from f64: loss 6e-7, norm 8e-7, adapter 1e-7.
#[test]
fn six_steps_of_mdpo_are_those_of_peft() {
    assert_within(&follow("mdpo"), &Worst { loss: 2e-6, norm: 2e-5, rate: 1e-18, reward: 2e-5, adapter: 2e-6 });
}
