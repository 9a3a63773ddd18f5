//! What is kept of the vision tower is what it would give, to the bit, and never that of another tower.

use mdpo::model::Model;
use mdpo::model::load::Plan;
use mdpo::nn::{Pass, Role};
use mdpo::train::{FeatureCache, Inputs, Micro, PictureCheck, Prepared, Talk, train};
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

use crate::lab::{Lab, row};

const KEYS: [&str; 3] = ["max_steps=4", "save_strategy=no", "per_device_train_batch_size=2"];

/// Eight rows that show three pictures.
fn lab() -> Lab {
    Lab::new("llava-tiny", (0..8).map(|i| row(i, Some(["wide.png", "odd.png", "tall.png"][i % 3]))))
}

/// Every file below the folder of features.
fn files(folder: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        below(folder).filter(|path| path.is_dir()).flat_map(|path| below(&path).collect::<Vec<_>>()).collect();
    files.sort();
    files
}

#[test]
fn a_run_that_starts_with_kept_features_is_the_run_without() {
    let lab = lab();
    let kept = lab.path("kept");
    let cache = format!("vision_feature_cache={}", kept.display());
    let with = [&KEYS[..], &[cache.as_str()]].concat();
    let adapter = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).expect("an adapter");
    let without = adapter(&lab.train("without", &KEYS).folder);
    assert!(adapter(&lab.train("filling", &with).folder) == without);
    let found = files(&kept);
    assert_eq!(found.len(), 3, "the three pictures of the data, and no crop");
    let times =
        || found.iter().map(|path| fs::metadata(path).and_then(|m| m.modified()).expect("a time")).collect::<Vec<_>>();
    let before = times();
    assert!(adapter(&lab.train("again", &with).folder) == without);
    assert_eq!((files(&kept), times()), (found.clone(), before), "nothing was computed again");

    // Of another precision nothing is taken.
    lab.train("bf16", &[&with[..], &["bf16=true"]].concat());
    assert_eq!(files(&kept).len(), 6);

    // A damaged file is named.
    let mut bytes = fs::read(&found[0]).expect("a file");
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    fs::write(&found[0], bytes).expect("written");
    let error = train(&lab.run("damaged", &with), Talk::Silent).expect_err("damaged features");
    let told = error.to_string();
    let name = found[0].file_name().expect("a name").to_string_lossy().into_owned();
    assert!(told.contains(&name) && told.contains("delete the file"), "{told}");
}

#[test]
fn a_distinct_image_meets_the_tower_once_a_step() {
    let lab = lab();
    let run = lab.run("out", &["loss_type=dpo"]);
    let inputs = Inputs::open(&run, PictureCheck::Header).unwrap_or_else(|error| panic!("{error}"));
    let model = Model::load(&run.model.path, Kind::Float, Device::Cpu, Plan::Frozen { adapter: None })
        .unwrap_or_else(|error| panic!("{error}"));
    let micro = |rows: &[usize]| -> Micro { Prepared::read(&inputs, rows, 0).expect("rows").to_device(Device::Cpu) };
    let mut cache = FeatureCache::of_steps();
    let mut computed = |micro: &Micro| {
        let (features, computed) = cache.features(&model, micro, Pass::of(Role::Reference)).expect("features");
        let alone = model.features(&micro.images.iter().collect::<Vec<_>>(), Pass::of(Role::Reference));
        assert_eq!(features, alone);
        computed
    };
    assert_eq!(computed(&micro(&[0, 1])), 2);
    assert_eq!(computed(&micro(&[2, 3])), 1, "row 3 shows what row 0 shows");
    assert_eq!(computed(&micro(&[4, 5])), 0);
    cache.begin_step();
    let micro = micro(&[4, 5]);
    assert_eq!(cache.features(&model, &micro, Pass::of(Role::Reference)).expect("features").1, 2);
}
