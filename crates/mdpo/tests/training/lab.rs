//! A temporary folder with rows, and runs over them on the tiny checkpoints of `parity/model`.

use mdpo::config::Run;
use mdpo::train::{Outcome, Talk, train};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tch::Tensor;

/// libtorch's random generator, which dropout draws from, is one per process: tests with dropout run one after the other.
pub static DROPOUT: Mutex<()> = Mutex::new(());

/// A folder below `parity/`.
pub fn parity(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path).canonicalize().expect("a fixture")
}

/// A JSON number.
#[track_caller]
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

/// Rows on the disk and folders for results.
pub struct Lab {
    dir: tempfile::TempDir,
    model: &'static str,
}

const IMAGES: [&str; 5] = ["wide.png", "tall.png", "exact.png", "odd.png", "rgba.png"];

/// A row in TRL's shape; every third answer is long, so that micro-batches differ in size.
pub fn row(index: usize, image: Option<&str>) -> Value {
    let words = ["sun", "a red roof", "seven boats on the lake", "nothing at all", "fog"];
    let answer = |i: usize| words[i % words.len()].repeat(1 + i % 3);
    let mut row = json!({
        "prompt": [{"role": "user", "content": format!("Picture {index}: what do you see?")}],
        "chosen": [{"role": "assistant", "content": answer(index)}],
        "rejected": [{"role": "assistant", "content": answer(index + 2)}],
    });
    if let Some(image) = image {
        row["images"] = json!([image]);
    }
    row
}

impl Lab {
    /// Eight rows with images for `llava-tiny`.
    pub fn with_images() -> Self {
        let rows = (0..8).map(|i| row(i, Some(IMAGES[i % IMAGES.len()])));
        Lab::new("llava-tiny", rows)
    }

    /// These rows for the checkpoint `model`.
    pub fn new(model: &'static str, rows: impl IntoIterator<Item = Value>) -> Self {
        // One thread each: the tests themselves run side by side.
        tch::set_num_threads(1);
        let lab = Lab { dir: tempfile::tempdir().expect("a folder"), model };
        lab.write_rows(rows);
        lab
    }

    /// Replaces the rows.
    pub fn write_rows(&self, rows: impl IntoIterator<Item = Value>) {
        let text: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path("rows.jsonl"), text).expect("rows");
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The recipe of a short run into the folder `out`.
    pub fn recipe(&self, out: &str) -> String {
        let lines = [
            ("model_name_or_path", json!(parity("model").join(self.model))),
            ("dataset_name", json!(self.path("rows.jsonl"))),
            ("image_folder", json!(parity("model/images"))),
            ("output_dir", json!(self.path(out))),
            ("device", json!("cpu")),
            ("learning_rate", json!(2e-3)),
            ("lora_r", json!(4)),
            ("per_device_train_batch_size", json!(2)),
            ("max_steps", json!(4)),
            ("logging_steps", json!(1)),
        ];
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    /// The run that the recipe and `overrides` (`key=value`) ask for.
    #[track_caller]
    pub fn run(&self, out: &str, overrides: &[&str]) -> Run {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let run = Run::from_yaml(&self.recipe(out), "recipe.yaml", &overrides).and_then(Run::resolve);
        run.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Trains into the folder `out`.
    #[track_caller]
    pub fn train(&self, out: &str, overrides: &[&str]) -> Outcome {
        train(&self.run(out, overrides), Talk::Silent).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The message with which training is refused.
    #[track_caller]
    pub fn refused(&self, out: &str, overrides: &[&str]) -> String {
        train(&self.run(out, overrides), Talk::Silent).expect_err("a refusal").to_string()
    }
}

/// One figure of every log entry.
#[track_caller]
pub fn curve(outcome: &Outcome, name: &str) -> Vec<f64> {
    outcome.log_history.iter().map(|entry| number(&entry[name])).collect()
}

/// Tensors of a safetensors file by name.
#[track_caller]
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_iter().collect()
}

/// Largest |a − b| over two files with the same tensors.
#[track_caller]
pub fn largest_difference(a: &Path, b: &Path) -> f64 {
    let (a, b) = (tensors(a), tensors(b));
    assert!(a.keys().eq(b.keys()), "the same names");
    a.iter().map(|(name, a)| (a - &b[name]).abs().max().double_value(&[])).fold(0.0, f64::max)
}
