//! What is kept of the reference is what would be computed, to the bit, and never that of another reference.

use mdpo::config::Run;
use mdpo::train::{Inputs, PictureCheck, Prepared, ReferenceCache, Talk, reference, train, try_load};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tch::Device;

use crate::lab::{Lab, curve, parity, row};

const ADAPTER: &str = "adapter_model.safetensors";

/// Three epochs of eight rows.
const EPOCHS: [&str; 2] = ["max_steps=12", "save_steps=4"];

fn some_without_images() -> Lab {
    Lab::new("llava-tiny", (0..8).map(|i| row(i, (i % 3 != 0).then_some(["wide.png", "odd.png", "tall.png"][i % 3]))))
}

#[track_caller]
fn assert_same_file(a: &Path, b: &Path) {
    assert!(fs::read(a).expect("a file") == fs::read(b).expect("a file"), "{} ≠ {}", a.display(), b.display());
}

fn fill(run: &Run, adapter: Option<&Path>) {
    reference(run, adapter, |_| Ok(())).unwrap_or_else(|error| panic!("{error}"));
}

/// How many of the prompts that an epoch has are not known.
#[track_caller]
fn missing(run: &Run, epoch: usize) -> usize {
    let inputs = Inputs::open(run, PictureCheck::Header).unwrap_or_else(|error| panic!("{error}"));
    let references = ReferenceCache::of_run(run, Device::Cpu).unwrap_or_else(|error| panic!("{error}"));
    let all: Vec<usize> = (0..inputs.examples.len()).collect();
    let micro = Prepared::read(&inputs, &all, epoch).expect("rows").to_device(Device::Cpu);
    let packed = &micro.batch.packed;
    references.known(&micro).missing(packed).map_or(0, |missing| missing.packed.prompts.len())
}

/// The only file of its kind in the folder.
fn store(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    let [file] = files.as_slice() else { panic!("one file, found {files:?}") };
    file.clone()
}

/// A straight run takes what earlier epochs left; one that goes on from the start of an epoch knows nothing and computes it.
#[test]
fn later_epochs_take_what_they_would_compute() {
    let full = ["use_peft=false", "lora_r=null", "trained_parts=[projector, vision_tower, language_model]"];
    let cases: [(&[&str], &str); 6] = [
        (&[], ADAPTER),
        (&["rejected_image_redraw=once"], ADAPTER),
        (&["rejected_image=blank", "rejected_image_scale=null"], ADAPTER),
        (&["loss_type=dpo"], ADAPTER),
        (&["bf16=true", "max_tokens_per_batch=300"], ADAPTER),
        (&full, "model.safetensors"),
    ];
    for (keys, file) in cases {
        let lab = some_without_images();
        let keys = [&EPOCHS, keys].concat();
        let straight = lab.train("straight", &keys);
        for step in [4, 8] {
            let from = format!("resume_from_checkpoint={}", lab.path(&format!("straight/checkpoint-{step}")).display());
            let name = format!("from-{step}");
            let resumed = lab.train(&name, &[&keys[..], &[from.as_str()]].concat());
            assert_same_file(&straight.folder.join(file), &resumed.folder.join(file));
        }
    }
}

#[test]
fn a_run_that_starts_with_kept_log_probs_is_the_run_without() {
    let adapter = parity("model/llava-tiny/adapter");
    let start = format!("adapter_name_or_path={}", adapter.display());
    let continued = ["lora_r=null", start.as_str()];
    let cases: [(&[&str], Option<&Path>); 4] = [
        (&[], None),
        (&["loss_type=dpo", "bf16=true"], None),
        (&continued, Some(&adapter)),
        (&["lora_r=null", &start, "reference=base"], None),
    ];
    for (keys, adapter) in cases {
        let lab = some_without_images();
        let keys = [&["max_steps=8"], keys].concat();
        let without = lab.train("without", &keys);
        let cache = format!("reference_cache={}", lab.path("kept").display());
        let with: Vec<&str> = [&keys[..], &[cache.as_str()]].concat();

        // What `mdpo reference` computes row by row, in another order, is what training would.
        fill(&lab.run("filled", &with), adapter);
        let run = lab.run("filled", &with);
        assert_eq!(missing(&run, 0), 0);
        let filled = lab.train("filled", &with);
        assert_same_file(&without.folder.join(ADAPTER), &filled.folder.join(ADAPTER));
        assert_eq!(curve(&without, "loss"), curve(&filled, "loss"));

        // The run has added the rejected images of its second epoch, and a run after it needs no reference at all.
        assert_eq!((missing(&run, 0), missing(&run, 1)), (0, 0));
        let bytes = fs::read(store(&lab.path("kept"))).expect("the store");
        let again = lab.train("again", &with);
        assert_same_file(&without.folder.join(ADAPTER), &again.folder.join(ADAPTER));
        assert!(fs::read(store(&lab.path("kept"))).expect("the store") == bytes, "nothing new, nothing written");
    }
}

#[test]
fn a_reference_computed_before_training_gives_the_same_run() {
    let lab = some_without_images();
    let without = lab.train("without", &EPOCHS);
    let cache = format!("reference_cache={}", lab.path("kept").display());
    let before = [&EPOCHS[..], &["precompute_ref_log_probs=true"]].concat();
    assert_same_file(&without.folder.join(ADAPTER), &lab.train("before", &before).folder.join(ADAPTER));
    lab.train("one step", &["max_steps=1", "precompute_ref_log_probs=true", &cache]);
    // Of the first epoch only the rejected images of the six examples of the other steps with theirs; the true ones are all there.
    let run = lab.run("later", &[&cache]);
    assert!((3..=5).contains(&missing(&run, 0)), "{}", missing(&run, 0));
    assert_eq!(missing(&run, 7), 5);
}

fn copy_model(lab: &Lab, name: &str) -> PathBuf {
    let (from, to) = (parity("model/llava-tiny"), lab.path(name));
    fs::create_dir(&to).expect("a folder");
    for entry in fs::read_dir(from).expect("a checkpoint").flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    to
}

/// Whatever a value depends on may change under the same paths; then it is computed again.
#[test]
fn what_has_changed_is_computed_again() {
    let lab = Lab::new("llava-tiny", (0..4).map(|i| row(i, Some("picture.png"))));
    let picture = |name: &str| {
        fs::copy(parity("model/images").join(name), lab.path("picture.png")).expect("a picture");
    };
    picture("wide.png");
    let model = copy_model(&lab, "checkpoint");
    let keys = [
        format!("model_name_or_path={}", model.display()),
        format!("image_folder={}", lab.path(".").display()),
        format!("reference_cache={}", lab.path("kept").display()),
    ];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let with = |more: &[&str]| lab.run("out", &[&keys[..], more].concat());
    fill(&with(&[]), None);
    let unknown = |more: &[&str]| missing(&with(more), 0);
    assert_eq!(unknown(&[]), 0);

    // Four prompts under the true image, four under the rejected one.
    assert_eq!(unknown(&["rejected_image_scale=[0.01,0.3]"]), 4);
    assert_eq!((unknown(&["seed=7"]), missing(&with(&[]), 1)), (4, 4));
    assert_eq!(unknown(&["rejected_image=blank"]), 4);
    assert_eq!(unknown(&["bf16=true"]), 8);
    let adapter = format!("adapter_name_or_path={}", parity("model/llava-tiny/adapter").display());
    assert_eq!(unknown(&["lora_r=null", &adapter]), 8);
    assert_eq!(unknown(&["lora_r=null", &adapter, "reference=base"]), 0);
    assert_eq!(unknown(&["loss_type=dpo"]), 0);
    assert!(unknown(&["max_length=62", "truncation_mode=keep_start"]) > 0);

    picture("odd.png");
    assert_eq!(unknown(&[]), 8);
    picture("wide.png");
    assert_eq!(unknown(&[]), 0);
    let change = |name: &str, from: &str, to: &str| {
        let file = model.join(name);
        let old = fs::read_to_string(&file).expect("a file");
        assert!(old.contains(from), "{name} has `{from}`");
        fs::write(&file, old.replacen(from, to, 1)).expect("written");
        assert_eq!(unknown(&[]), 8, "{name}");
        fs::write(&file, old).expect("written");
        assert_eq!(unknown(&[]), 0, "{name}");
    };
    change("chat_template.jinja", "", "Hello. ");
    change("processor_config.json", "0.48145466", "0.5");
    change("config.json", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-04");

    // One bit of one weight.
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    *bytes.last_mut().expect("a byte") ^= 1;
    fs::write(&weights, bytes).expect("weights");
    assert_eq!(unknown(&[]), 8);
    let with = [&keys[..], &["max_steps=3"]].concat();
    let without: Vec<&str> = with.iter().copied().filter(|key| !key.starts_with("reference_cache")).collect();
    let (kept, live) = (lab.train("kept run", &with), lab.train("live run", &without));
    assert_same_file(&kept.folder.join(ADAPTER), &live.folder.join(ADAPTER));
}

#[test]
fn a_damaged_file_of_kept_log_probs_is_named() {
    let lab = Lab::with_images();
    let cache = format!("reference_cache={}", lab.path("kept").display());
    let run = lab.run("out", &[&cache]);
    fill(&run, None);
    let file = store(&lab.path("kept"));
    let whole = fs::read(&file).expect("the store");
    fs::write(&file, &whole[..whole.len() - 8]).expect("the store");
    let refused = lab.refused("out", &[&cache]);
    assert!(refused.starts_with(&file.display().to_string()), "{refused}");
    assert!(refused.contains("damaged") && refused.contains("hint: delete the file"), "{refused}");
    let inputs = Inputs::open(&run, PictureCheck::Header).expect("inputs");
    assert_eq!(try_load(&run, &inputs).expect_err("a refusal").to_string(), refused, "`mdpo check` says so too");
    fs::remove_file(&file).expect("removed");
    train(&run, Talk::Silent).unwrap_or_else(|error| panic!("{error}"));
}

/// What rows bring is taken for the true images, and a first loss that shows another reference is no mistake.
#[test]
fn columns_of_rows_are_the_reference_when_asked_for() {
    let sums = |i: usize| (-(20.0 + i as f64), -(31.0 + i as f64));
    let rows = |bring: &dyn Fn(usize) -> Value| -> Vec<Value> {
        let mut rows: Vec<Value> = (0..4).map(|i| row(i, Some("wide.png"))).collect();
        for (i, row) in rows.iter_mut().enumerate() {
            row.as_object_mut().expect("an object").extend(bring(i).as_object().expect("an object").clone());
        }
        rows
    };
    let six = |i: usize| json!({"logps": json!([sums(i).0, -1.0, [], sums(i).1, -1.0, []]).to_string()});
    let pair = |i: usize| json!({"reference_chosen_logp": sums(i).0, "reference_rejected_logp": sums(i).1});
    let lab = Lab::new("llava-tiny", rows(&six));
    let keys = ["reference_logps=columns", "max_steps=2", "per_device_train_batch_size=4"];
    let first = lab.train("six", &keys);
    for (view, expected) in [("chosen", 21.5), ("rejected", 32.5)] {
        let of = |name: &str| curve(&first, &format!("{name}/{view}"))[0];
        assert!((of("rewards") - 0.1 * (of("logps") + expected)).abs() < 1e-9, "{view}");
    }
    // The rejected image is nobody's column: at the first step it gives what the policy gives.
    let (chosen, corrupted) = (curve(&first, "rewards/chosen")[0], curve(&first, "rewards/image_margins")[0]);
    assert!((chosen - corrupted).abs() < 1e-9 && chosen.abs() > 1e-3);
    lab.write_rows(rows(&pair));
    assert_same_file(&lab.train("pair", &keys).folder.join(ADAPTER), &first.folder.join(ADAPTER));
    // They are never kept for runs that compute their own.
    let cache = format!("reference_cache={}", lab.path("kept").display());
    lab.train("kept", &[&keys[..], &[cache.as_str()]].concat());
    assert_eq!(missing(&lab.run("out", &[&cache]), 0), 4);

    lab.write_rows(rows(&|i| if i == 2 { json!({"logps": [1]}) } else { six(i) }));
    let refused = lab.refused("refused", &keys);
    assert!(refused.contains("rows.jsonl line 3: `logps`: expected six values"), "{refused}");
}
