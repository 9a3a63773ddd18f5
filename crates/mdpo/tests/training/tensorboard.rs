//! A run's event files; `parity/tensorboard/read.py` reads such files with TensorBoard itself.

use crate::lab::Lab;
use std::fs;
use std::path::{Path, PathBuf};

/// The data of every record of a file: a length of eight bytes, its check of four, the data, its check.
fn records(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).expect("an event file");
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        found.push(behind[4..4 + length].to_vec());
        rest = &behind[4 + length + 4..];
    }
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn holds(record: &[u8], part: &[u8]) -> bool {
    record.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_resumed_run_goes_on_in_another_event_file() {
    let lab = Lab::with_images();
    let keys = ["report_to=tensorboard", "save_steps=2", "max_steps=4"];
    let outcome = lab.train("out", &keys);
    let from = format!("resume_from_checkpoint={}", lab.path("out/checkpoint-2").display());
    lab.train("out", &[&keys[..], &[from.as_str()]].concat());
    let all: Vec<Vec<Vec<u8>>> = files(&lab.path("out/runs")).iter().map(|file| records(file)).collect();
    // Version, restart, one record a step.
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [6, 4]);
    for (file, first) in all.iter().zip([1, 3]) {
        assert!(holds(&file[0], b"brain.Event:2"));
        assert!(file[1].ends_with(&[0x10, first, 0x3a, 2, 8, 1]), "steps from {first} on are void: {:?}", file[1]);
    }
    for metric in outcome.log_history[0].as_object().expect("an entry").keys().filter(|metric| *metric != "step") {
        let tag = format!("train/{metric}");
        assert!(all[0][2..].iter().all(|record| holds(record, tag.as_bytes())), "{tag}");
    }
    let elsewhere = format!("logging_dir={}", lab.path("events").display());
    lab.train("other", &["report_to=tensorboard", "max_steps=1", &elsewhere]);
    assert_eq!((files(&lab.path("events")).len(), lab.path("other/runs").exists()), (1, false));
    lab.train("quiet", &["max_steps=1"]);
    assert!(!lab.path("quiet/runs").exists());
}
