//! A run that goes on from a checkpoint is the run that never stopped, bit for bit.

use serde_json::Value;
use std::fs;
use std::path::Path;

use crate::lab::{DROPOUT, Lab, row};

const FULL: [&str; 3] = ["use_peft=false", "lora_r=null", "trained_parts=[projector, language_model]"];

/// The log without what depends on the clock.
pub fn history(log: &[Value]) -> Vec<Value> {
    let timeless = |entry: &Value| {
        let mut entry = entry.as_object().expect("an entry").clone();
        entry.retain(|name, _| {
            let times = ["step_time", "data_wait", "samples_per_second", "tokens_per_second"];
            !times.contains(&name.strip_prefix("eval_").unwrap_or(name)) && name != "eval_runtime"
        });
        Value::Object(entry)
    };
    log.iter().map(timeless).collect()
}

#[track_caller]
pub fn assert_same_file(a: &Path, b: &Path) {
    assert!(fs::read(a).expect("a file") == fs::read(b).expect("a file"), "{} ≠ {}", a.display(), b.display());
}

/// Trains straight, then again from each checkpoint into a folder of its own.
fn from_every_checkpoint(lab: &Lab, keys: &[&str], file: &str) {
    let keys = [&["max_steps=6", "save_steps=1", "per_device_train_batch_size=3"], keys].concat();
    let straight = lab.train("straight", &keys);
    for step in 1..=6 {
        let from = format!("resume_from_checkpoint={}", lab.path(&format!("straight/checkpoint-{step}")).display());
        let name = format!("from-{step}");
        let resumed = lab.train(&name, &[&keys[..], &[from.as_str()]].concat());
        assert_same_file(&straight.folder.join(file), &resumed.folder.join(file));
        if step < 6 {
            for file in ["optimizer.safetensors", file] {
                let name = format!("checkpoint-6/{file}");
                assert_same_file(&straight.folder.join(&name), &resumed.folder.join(&name));
            }
        }
        assert_eq!(history(&straight.log_history), history(&resumed.log_history), "from step {step}");
    }
}

#[test]
fn lora_goes_on_bit_for_bit() {
    from_every_checkpoint(&Lab::with_images(), &[], "adapter_model.safetensors");
}

#[test]
fn lora_with_dropout_goes_on_bit_for_bit_from_the_middle_of_a_logging_window() {
    let _alone = DROPOUT.lock();
    from_every_checkpoint(&Lab::with_images(), &["lora_dropout=0.1", "logging_steps=4"], "adapter_model.safetensors");
}

/// Dropout is drawn for each micro-batch, so it sees how a step is cut.
#[test]
fn a_budget_of_tokens_goes_on_bit_for_bit_with_dropout() {
    let _alone = DROPOUT.lock();
    let keys = ["lora_dropout=0.1", "max_tokens_per_batch=400"];
    from_every_checkpoint(&Lab::with_images(), &keys, "adapter_model.safetensors");
    let lab = Lab::with_images();
    lab.train("out", &[&keys[..], &["save_steps=2"]].concat());
    let message = lab.refused("out", &["lora_dropout=0.1", "resume_from_checkpoint=true"]);
    assert!(message.contains("`max_tokens_per_batch` (was 400, is not set)"), "{message}");
}

#[test]
fn full_fine_tuning_goes_on_bit_for_bit() {
    let more = ["gradient_accumulation_steps=2", "logging_steps=5", "lr_scheduler_type=cosine", "warmup_steps=2"];
    from_every_checkpoint(&Lab::with_images(), &[&FULL[..], &more].concat(), "model.safetensors");
}

#[test]
fn bf16_goes_on_bit_for_bit() {
    from_every_checkpoint(&Lab::with_images(), &["bf16=true", "weight_decay=0.1"], "adapter_model.safetensors");
}

#[test]
fn the_newest_checkpoint_is_found_and_an_empty_folder_starts_from_the_beginning() {
    let lab = Lab::with_images();
    let keys = ["max_steps=4", "save_steps=1", "resume_from_checkpoint=true"];
    let straight = lab.train("out", &keys);
    let expected = fs::read(straight.folder.join("adapter_model.safetensors")).expect("the adapter");
    for step in [4, 3] {
        fs::remove_dir_all(lab.path(&format!("out/checkpoint-{step}"))).expect("removed");
    }
    fs::remove_file(lab.path("out/adapter_model.safetensors")).expect("removed");
    let resumed = lab.train("out", &keys);
    assert_eq!(history(&straight.log_history), history(&resumed.log_history));
    assert!(fs::read(lab.path("out/adapter_model.safetensors")).expect("the adapter") == expected);
}

#[test]
fn another_recipe_is_refused_with_the_keys_that_differ() {
    let lab = Lab::with_images();
    lab.train("out", &["save_steps=2"]);
    let resume = "resume_from_checkpoint=true";
    let message = lab.refused("out", &[resume, "learning_rate=1e-3", "seed=7"]);
    for part in ["checkpoint-4", "`learning_rate`", "`seed`", "hint:"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("`save_steps`") && !message.contains("`lora_r`"), "{message}");
    // Where, how often and with what memory is free.
    lab.train("out", &[resume, "save_steps=3", "logging_steps=2", "gradient_checkpointing=none"]);
    lab.write_rows((0..8).map(|i| row(i, Some("wide.png"))));
    let message = lab.refused("out", &[resume]);
    assert!(message.contains("`rows of the data set`"), "{message}");
}

#[test]
fn a_run_is_never_started_over_checkpoints() {
    let lab = Lab::with_images();
    lab.train("out", &["save_steps=2"]);
    let message = lab.refused("out", &[]);
    assert!(message.contains("already holds checkpoints") && message.contains("resume_from_checkpoint"), "{message}");
}

#[test]
fn a_damaged_checkpoint_is_refused_with_its_file() {
    let lab = Lab::with_images();
    let resume = ["save_steps=2", "resume_from_checkpoint=true"];
    lab.train("out", &resume);
    let file = lab.path("out/checkpoint-4/optimizer.safetensors");
    let whole = fs::read(&file).expect("the file");
    let damage: [(&str, &dyn Fn()); 4] = [
        ("expected SHA-256", &|| {
            let mut bytes = whole.clone();
            bytes[whole.len() / 2] ^= 1;
            fs::write(&file, bytes).expect("written");
        }),
        ("bytes", &|| fs::write(&file, &whole[..whole.len() / 2]).expect("written")),
        ("missing", &|| fs::remove_file(&file).expect("removed")),
        ("manifest.json", &|| fs::remove_file(lab.path("out/checkpoint-4/manifest.json")).expect("removed")),
    ];
    for (expected, damage) in damage {
        damage();
        let message = lab.refused("out", &resume);
        for part in ["checkpoint-4", expected, "remove its folder to resume from the one before"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(message.lines().count(), 2, "{message}");
    }
    fs::remove_dir_all(lab.path("out/checkpoint-4")).expect("removed");
    lab.train("out", &resume);
    assert!(lab.path("out/checkpoint-4").exists());
}

#[test]
fn checkpoints_are_written_when_asked_and_only_so_many_are_kept() {
    let lab = Lab::with_images();
    lab.train("out", &["max_steps=5", "save_steps=1", "save_total_limit=2"]);
    let kept = |out: &str| {
        let there = |step: &i32| lab.path(&format!("{out}/checkpoint-{step}")).exists();
        (1..=9).filter(there).collect::<Vec<_>>()
    };
    assert_eq!(kept("out"), [4, 5]);
    lab.train("epochs", &["max_steps=-1", "num_train_epochs=2", "save_strategy=epoch"]);
    assert_eq!(kept("epochs"), [4, 8]);
    lab.train("none", &["save_strategy=no"]);
    assert_eq!(kept("none"), [0; 0]);
}
