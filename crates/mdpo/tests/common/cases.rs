//! The tiny random checkpoints of `parity/model` and what transformers computed with them, for tests and for `make gpu-check`.

use mdpo::config::Part;
use mdpo::image::Pixels;
use mdpo::logprob::{Gradients, log_probs};
use mdpo::model::language::Keep;
use mdpo::model::load::Plan;
use mdpo::model::{DeviceBatch, Model};
use mdpo::nn::{Pass, Role};
use mdpo::text::pack::PackedBatch;
use mdpo::text::{ImageSlot, Tokens};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

pub const ALL_PARTS: [Part; 3] = [Part::LanguageModel, Part::Projector, Part::VisionTower];
pub const MODELS: [&str; 5] = ["llava-tiny", "llava-tiny-full", "llama-tiny", "mistral-tiny", "qwen2-tiny"];
pub const POLICY: Pass = Pass { role: Role::Policy, dropout: None };

/// A checkpoint, its cases, and the tensors they should give.
pub struct Fixture {
    pub folder: PathBuf,
    pub cases: Value,
    pub expected: HashMap<String, Tensor>,
}

impl Fixture {
    /// The checkpoint `name` among those of the folder `models`.
    pub fn open(models: &Path, name: &str) -> Self {
        let folder = models.join(name);
        let cases = std::fs::read_to_string(folder.join("cases.json")).expect("cases.json");
        let expected = Tensor::read_safetensors(folder.join("expected.safetensors")).expect("expected.safetensors");
        Fixture { cases: serde_json::from_str(&cases).expect("JSON"), expected: expected.into_iter().collect(), folder }
    }

    /// The cases whose pixels (if they have images) the fixture holds.
    pub fn cases(&self) -> impl Iterator<Item = &Value> {
        let complete = |case: &&Value| images(case) == 0 || self.expected(case, "pixel_values").is_some();
        self.cases["cases"].as_array().expect("cases").iter().filter(complete)
    }

    pub fn load(&self, kind: Kind, device: Device, plan: Plan) -> Model {
        Model::load(&self.folder, kind, device, plan).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn expected(&self, case: &Value, what: &str) -> Option<&Tensor> {
        self.expected.get(&format!("{}.{what}", text(&case["name"])))
    }
}

/// A JSON text.
pub fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn images(case: &Value) -> usize {
    case["images"].as_array().map_or(0, Vec::len)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect()
}

/// The prompt of a case with its image slots.
pub fn prompt(model: &Model, case: &Value) -> Tokens {
    let ids = ids(&case["prompt_ids"]);
    let images = model.shape.vision.as_ref().map_or(Vec::new(), |vision| {
        let len = vision.tokens_per_image();
        let places: Vec<usize> = (0..ids.len()).filter(|&i| ids[i] == vision.image_token).collect();
        places.chunks(len).enumerate().map(|(image, run)| ImageSlot { start: run[0], len, image }).collect()
    });
    Tokens { counted: vec![false; ids.len()], ids, images, ..Tokens::default() }
}

/// A response, all of whose tokens count.
pub fn response(value: &Value) -> Tokens {
    let ids = ids(value);
    Tokens { counted: vec![true; ids.len()], turns: std::iter::once(0..ids.len()).collect(), ids, images: Vec::new() }
}

/// The case as a packed batch of one prompt with two responses, and its pixels as transformers made them.
pub fn prepare(model: &Model, fixture: &Fixture, case: &Value) -> (DeviceBatch, Vec<Pixels>) {
    let mut packed = PackedBatch::default();
    let responses = [&response(&case["chosen_ids"]), &response(&case["rejected_ids"])];
    packed.push(&prompt(model, case), &responses, |image| image);
    let pixels = fixture.expected(case, "pixel_values").map_or(Vec::new(), |values| {
        let side = values.size()[2] as usize;
        let flat = |image: &Tensor| Vec::<f32>::try_from(image.flatten(0, -1)).expect("floats");
        values.unbind(0).iter().map(|image| Pixels { height: side, width: side, values: flat(image) }).collect()
    });
    (DeviceBatch::new(packed, model.device), pixels)
}

/// The tower's features.
pub fn features(model: &Model, pixels: &[Pixels]) -> Option<Tensor> {
    model.features(&pixels.iter().collect::<Vec<_>>(), POLICY)
}

/// Largest |a − b| of two tensors, wherever they are.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let wide = |x: &Tensor| x.to_device(Device::Cpu).to_kind(Kind::Double);
    (wide(a) - wide(b)).abs().max().double_value(&[])
}

/// Largest difference as a share of the largest expected value.
pub fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    difference(found, expected) / expected.abs().max().double_value(&[]).max(1e-3)
}

/// Log-probs of the case's two responses, without gradients.
pub fn two_log_probs(model: &Model, fixture: &Fixture, case: &Value, pass: Pass) -> [f64; 2] {
    let (batch, pixels) = prepare(model, fixture, case);
    let features = tch::no_grad(|| features(model, &pixels));
    let run = model.forward(&batch, features.as_ref(), pass, Keep::Nothing);
    let sums = log_probs(run.hidden(), &model.language.head(pass), &batch.packed, Gradients::Unwanted).sums();
    [sums.double_value(&[0]), sums.double_value(&[1])]
}

/// Leaves hold the gradient of `logp_chosen - 0.5 logp_rejected` afterwards.
pub fn gradients(model: &Model, fixture: &Fixture, case: &Value, keep: Keep) {
    for trainable in &model.trainables {
        trainable.leaf.shallow_clone().zero_grad();
    }
    let (batch, pixels) = prepare(model, fixture, case);
    let features = features(model, &pixels);
    let run = model.forward(&batch, features.as_ref(), POLICY, keep);
    let head = model.language.head(POLICY);
    let log_probs = log_probs(run.hidden(), &head.detach(), &batch.packed, Gradients::Wanted);
    let weights = Tensor::from_slice(&[1.0f64, -0.5]);
    let hidden = run.hidden().shallow_clone();
    if model.language.head_is_trained() {
        log_probs.push_into_head(&weights, &hidden, &head, &batch.packed);
    }
    model.backward(&batch, run, &log_probs.pull_back(&weights, &hidden));
}

/// The gradient of the weight `name`.
pub fn gradient(model: &Model, name: &str) -> Tensor {
    let found = model.trainables.iter().find(|trainable| trainable.name == name);
    found.unwrap_or_else(|| panic!("`{name}` is not trained")).leaf.grad()
}
