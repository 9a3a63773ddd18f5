//! 9: what a run leaves on the disk, so that it can go on as if it had never stopped.
//!
//! `checkpoint-N/` holds the model files that users load, and beside them `optimizer.safetensors` (trained weights and AdamW's
//! moments, f32), `mdpo_state.json`, `trainer_state.json` and `manifest.json` with the SHA-256 of every file. A folder is written
//! under a temporary name, synced and renamed, so that a checkpoint is either whole or not there.

pub mod card;
pub mod manifest;

use crate::optim::Moments;
use crate::weights::{SafetensorsFile, write_safetensors};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Everything a run needs to go on, but its tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps that are done.
    pub step: usize,
    /// What must be the same for the run to go on ([`crate::config::Run`]'s identity).
    pub identity: Map<String, Value>,
    /// Sums of metrics since the last log entry.
    pub metrics: Value,
    /// Log entries so far.
    pub log_history: Vec<Value>,
    /// Tokens seen so far.
    pub tokens_seen: u64,
    /// What evaluations said so far.
    #[serde(default)]
    pub evaluations: Evaluations,
}

/// What the evaluations of a run said so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluations {
    /// Optimizer steps that were done at the last one.
    pub last: Option<usize>,
    /// The best one, by the recipe's metric.
    pub best: Option<BestEvaluation>,
    /// How many in a row were no better than the best before them.
    pub waited: usize,
}

/// The best evaluation so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BestEvaluation {
    /// Optimizer steps that were done.
    pub step: usize,
    /// What the metric was.
    pub value: f64,
    /// Which metric of which data, so that no other is compared with it.
    pub measure: String,
}

/// What is trained and the optimizer's memory of it.
#[derive(Debug)]
pub struct Tensors {
    /// Trained weights by name.
    pub weights: BTreeMap<String, Tensor>,
    /// Their moments, by the same names.
    pub moments: BTreeMap<String, Moments>,
    /// Steps the optimizer has seen.
    pub optimizer_steps: u64,
}

const STATE: &str = "mdpo_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Writes `output/checkpoint-N` (N = `state.step`); `model` writes the files that users load into the folder it is given.
pub fn save(
    output: &Path,
    state: &State,
    trainer_state: &Value,
    tensors: &Tensors,
    model: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = output.join(format!("checkpoint-{}", state.step));
    write_whole(&folder, |temporary| {
        model(temporary)?;
        let named = tensors.weights.iter().map(|(name, tensor)| (format!("weight.{name}"), tensor));
        let first = tensors.moments.iter().map(|(name, m)| (format!("exp_avg.{name}"), &m.first));
        let second = tensors.moments.iter().map(|(name, m)| (format!("exp_avg_sq.{name}"), &m.second));
        let all: Vec<(String, &Tensor)> = named.chain(first).chain(second).collect();
        let metadata = BTreeMap::from([("steps".to_owned(), tensors.optimizer_steps.to_string())]);
        write_safetensors(&temporary.join(OPTIMIZER), all.iter().map(|(name, t)| (name.as_str(), *t)), &metadata)?;
        write_json(&temporary.join(STATE), state)?;
        write_json(&temporary.join("trainer_state.json"), trainer_state)?;
        manifest::write(temporary)
    })?;
    Ok(folder)
}

/// Fills a temporary folder beside `folder`, syncs it and renames it into place; what stood there before is replaced.
pub fn write_whole(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|error| Error::io("create the folder", parent, &error))?;
    let temporary = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(parent)
        .map_err(|error| Error::io("create a temporary folder in", parent, &error))?;
    fill(temporary.path())?;
    sync_folder(temporary.path())?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| Error::io("replace", folder, &error))?;
    }
    let finished = temporary.keep();
    fs::rename(&finished, folder).map_err(|error| Error::io("move the finished folder to", folder, &error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let everyone = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder, everyone).map_err(|error| Error::io("set the permissions of", folder, &error))?;
    }
    sync(parent)
}

/// Removes temporary folders and files that a killed run left in `output`.
pub fn sweep(output: &Path) -> Result<()> {
    for entry in fs::read_dir(output).map_err(|error| Error::io("read", output, &error))?.flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let removed = if name.starts_with(".unfinished-") {
            fs::remove_dir_all(&path)
        } else if is_unfinished_file(&name) {
            fs::remove_file(&path)
        } else {
            continue;
        };
        removed.map_err(|error| Error::io("remove", &path, &error))?;
    }
    Ok(())
}

/// `.name.process.tmp`, as [`crate::weights::write_file`] calls a file until it is whole.
fn is_unfinished_file(name: &str) -> bool {
    let process = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")?.rsplit('.').next());
    process.is_some_and(|process| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()))
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io("sync", path, &error))
}

fn sync_folder(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?.flatten() {
        let path = entry.path();
        if path.is_dir() { sync_folder(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

/// Writes pretty JSON with a final newline.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::at(path.display(), format!("cannot write as JSON: {error}")))?;
    text.push('\n');
    fs::write(path, text).map_err(|error| Error::io("write", path, &error))
}

/// The checkpoints of a run, oldest first.
pub fn list(output: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !output.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(output).map_err(|error| Error::io("read", output, &error))?;
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    let mut found: Vec<(usize, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
    found.sort();
    Ok(found)
}

/// Removes checkpoints, those of the fewest steps first, until `limit` are left; never those of `kept`: the one that was just written, and
/// the best one.
pub fn prune(output: &Path, limit: Option<usize>, kept: &[&Path]) -> Result<()> {
    let mut others = list(output)?;
    let all = others.len();
    others.retain(|(_, path)| !kept.contains(&path.as_path()));
    let surplus = limit.map_or(0, |limit| all.saturating_sub(limit));
    for (_, path) in &others[..surplus.min(others.len())] {
        fs::remove_dir_all(path).map_err(|error| Error::io("remove the old checkpoint", path, &error))?;
    }
    Ok(())
}

/// Reads a checkpoint after checking every file against its manifest.
pub fn load(folder: &Path) -> Result<(State, Tensors)> {
    manifest::check(folder)?;
    let path = folder.join(STATE);
    let text = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
    let state = serde_json::from_str(&text)
        .map_err(|error| Error::at(path.display(), format!("not a state this version writes: {error}")))?;
    let path = folder.join(OPTIMIZER);
    let file = SafetensorsFile::open(&path)?;
    let damaged = |what: &str| Error::at(path.display(), what.to_owned());
    let steps = file.metadata().get("steps").and_then(|steps| steps.parse().ok());
    let optimizer_steps = steps.ok_or_else(|| damaged("the number of optimizer steps is missing"))?;
    let (mut weights, mut firsts, mut seconds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for entry in file.entries() {
        // A copy, since the optimizer writes into it and the file may be pruned.
        let tensor = file.tensor(entry)?.copy();
        match entry.name.split_once('.') {
            Some(("weight", name)) => weights.insert(name.to_owned(), tensor),
            Some(("exp_avg", name)) => firsts.insert(name.to_owned(), tensor),
            Some(("exp_avg_sq", name)) => seconds.insert(name.to_owned(), tensor),
            _ => return Err(damaged(&format!("unexpected tensor `{}`", entry.name))),
        };
    }
    let mut moments = BTreeMap::new();
    for (name, first) in firsts {
        let second = seconds.remove(&name).ok_or_else(|| damaged(&format!("`exp_avg_sq.{name}` is missing")))?;
        moments.insert(name, Moments { first, second });
    }
    Ok((state, Tensors { weights, moments, optimizer_steps }))
}

/// Copies the tokenizer, processor and configuration files of a checkpoint folder, whichever are there.
pub fn copy_companions(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let source = from.join(name);
        if source.is_file() {
            let target = to.join(name);
            fs::copy(&source, &target).map_err(|error| Error::io("copy to", &target, &error))?;
        }
    }
    Ok(())
}

/// Tokenizer and processor files as transformers writes them.
pub const TOKENIZER_FILES: [&str; 13] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations() -> Evaluations {
        let best = BestEvaluation { step: 3, value: 0.1 + 0.2, measure: "eval_loss of some rows".to_owned() };
        Evaluations { last: Some(5), best: Some(best), waited: 2 }
    }

    fn state(step: usize) -> State {
        let identity = Map::from_iter([("seed".to_owned(), Value::from(1))]);
        State {
            step,
            identity,
            metrics: Value::from(0.1 + 0.2),
            log_history: vec![],
            tokens_seen: 9,
            evaluations: evaluations(),
        }
    }

    fn tensors() -> Tensors {
        let tensor = || Tensor::from_slice(&[0.1f32, -2.5e-8, 3.0]);
        let moments = Moments { first: tensor() * 2, second: tensor().square() };
        let weights = BTreeMap::from([("a.lora_A.weight".to_owned(), tensor())]);
        Tensors { weights, moments: BTreeMap::from([("a.lora_A.weight".to_owned(), moments)]), optimizer_steps: 7 }
    }

    fn save_at(output: &Path, step: usize) -> PathBuf {
        let model =
            |folder: &Path| fs::write(folder.join("model.txt"), "x").map_err(|e| Error::io("write", folder, &e));
        save(output, &state(step), &Value::Null, &tensors(), model).expect("saved")
    }

    #[test]
    fn what_was_saved_comes_back_bit_for_bit() {
        let output = tempfile::tempdir().expect("a folder");
        let folder = save_at(output.path(), 3);
        let (back, loaded) = load(&folder).expect("loaded");
        assert_eq!((back.step, back.metrics, loaded.optimizer_steps), (3, Value::from(0.1 + 0.2), 7));
        assert_eq!(back.evaluations, evaluations());
        let expected = tensors();
        assert!(loaded.weights["a.lora_A.weight"].equal(&expected.weights["a.lora_A.weight"]));
        let (found, expected) = (&loaded.moments["a.lora_A.weight"], &expected.moments["a.lora_A.weight"]);
        assert!(found.first.equal(&expected.first) && found.second.equal(&expected.second));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let output = tempfile::tempdir().expect("a folder");
        let folder = save_at(output.path(), 1);
        fs::write(folder.join("model.txt"), "y").expect("written");
        let message = load(&folder).expect_err("damage").to_string();
        assert!(message.contains("model.txt"), "{message}");
        fs::remove_file(folder.join("model.txt")).expect("removed");
        let message = load(&folder).expect_err("damage").to_string();
        assert!(message.contains("model.txt"), "{message}");
    }

    #[test]
    fn unfinished_folders_are_swept_and_old_checkpoints_pruned() {
        let output = tempfile::tempdir().expect("a folder");
        (1..=4).for_each(|step| drop(save_at(output.path(), step * 5)));
        fs::create_dir(output.path().join(".unfinished-abc")).expect("a folder");
        fs::write(output.path().join(".adapter_model.safetensors.4711.tmp"), "half").expect("a file");
        fs::write(output.path().join(".mine.tmp"), "whole").expect("a file");
        sweep(output.path()).expect("swept");
        let left = |limit: usize, kept: &[usize]| -> Vec<usize> {
            let kept: Vec<PathBuf> = kept.iter().map(|step| output.path().join(format!("checkpoint-{step}"))).collect();
            let kept: Vec<&Path> = kept.iter().map(PathBuf::as_path).collect();
            prune(output.path(), Some(limit), &kept).expect("pruned");
            list(output.path()).expect("listed").into_iter().map(|(step, _)| step).collect()
        };
        assert_eq!(left(3, &[20]), [10, 15, 20]);
        assert_eq!(left(2, &[20, 10]), [10, 20]);
        assert_eq!(left(1, &[20, 10]), [10, 20], "the newest and the best stay whatever the limit");
        // What the user put there stays.
        assert_eq!(fs::read_dir(output.path()).expect("read").count(), 3);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let output = tempfile::tempdir().expect("a folder");
        let model = |folder: &Path| Err(Error::at(folder.display(), "no space"));
        save(output.path(), &state(1), &Value::Null, &tensors(), model).expect_err("it fails");
        assert_eq!(fs::read_dir(output.path()).expect("read").count(), 0);
    }
}
