//! Recipes good and bad, read back and compared with the documentation.

use std::fs;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::evaluation_tests::evaluation;
use super::keys::{KEYS, NO_EFFECT, REFUSED};
use super::objective::tests::{objective, positive, share};
use super::*;

const LEAST: &str = "model_name_or_path: org/model\ndataset_name: rows.jsonl\noutput_dir: out\n";

/// The run of the least recipe with more lines and overrides.
fn read(lines: &str, overrides: &[&str]) -> Result<Run> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Run::from_yaml(&format!("{LEAST}{lines}"), "recipe.yaml", &overrides)
}

#[track_caller]
pub(super) fn good(lines: &str, overrides: &[&str]) -> Run {
    read(lines, overrides).unwrap_or_else(|error| panic!("{error}"))
}

/// The message of a bad recipe.
#[track_caller]
pub(super) fn bad(lines: &str, overrides: &[&str]) -> String {
    read(lines, overrides).expect_err("the recipe is bad").to_string()
}

/// The mDPO settings of a run.
fn mdpo(run: Run) -> Mdpo {
    match run.objective {
        Objective::Mdpo(mdpo) => mdpo,
        other => panic!("expected mdpo, found {other:?}"),
    }
}

fn lora(run: Run) -> Lora {
    match run.tuning {
        Tuning::Lora(lora) => lora,
        other => panic!("expected LoRA, found {other:?}"),
    }
}

#[test]
fn the_least_recipe_has_the_documented_defaults() {
    assert_snapshot!(good("", &[]).to_yaml(), @r#"
    # what this run was asked to do, defaults included
    model_name_or_path: org/model
    dtype: float32
    device: auto
    dataset_name:
    - rows.jsonl
    truncation_mode: refuse
    max_skipped_rows: 0
    shuffle: true
    pairs_from_scores: best_vs_worst
    train_images: keep
    reference_logps: computed
    precompute_ref_log_probs: false
    loss_type: mdpo
    beta: 0.1
    preference_weight: 1.0
    conditional_weight: 1.0
    anchor_weight: 1.0
    anchor_delta: 0.0
    anchors:
    - chosen
    rejected_image: crop
    rejected_image_scale:
    - 0.01
    - 0.2
    rejected_image_ratio:
    - 0.75
    - 1.3333333333333333
    rejected_image_redraw: epoch
    use_peft: true
    lora_r: 16
    lora_alpha: 32.0
    lora_dropout: 0.0
    use_rslora: false
    lora_target_modules: all-linear
    learning_rate: 1.0e-6
    weight_decay: 0.0
    adam_beta1: 0.9
    adam_beta2: 0.999
    adam_epsilon: 1.0e-8
    max_grad_norm: 1.0
    lr_scheduler_type: linear
    warmup_steps: 0
    per_device_train_batch_size: 8
    gradient_accumulation_steps: 1
    num_train_epochs: 3.0
    gradient_checkpointing: layers
    eval_strategy: "no"
    output_dir: out
    logging_steps: 10
    report_to: none
    save_strategy: steps
    save_steps: 500
    resume_from_checkpoint: false
    seed: 42
    "#);
}

#[test]
fn every_problem_is_told_at_once_in_the_order_of_the_recipe() {
    let text = "\
model_name_or_path: llava-hf/llava-1.5-7b-hf
dataset_name: []
learning_rat: 1e-5
beta: -1
lora_dropout: 1
bf16: true
fp16: yes
loss_type: ippo
rejected_image: crpo
rejected_image_scale: [0.2, 0.1]
per_device_train_batch_size: 0
num_train_epochs: .inf
warmup_steps: 10
warmup_ratio: 0.1
load_in_4bit: true
seed: many
seed: 7
zzz: 1
";
    let overrides = ["lora_rank=0".to_owned(), "--beta".to_owned(), "gradient_acumulation_steps=2".to_owned()];
    let error = Run::from_yaml(text, "recipes/bad.yaml", &overrides).expect_err("the recipe is bad");
    assert_snapshot!(error, @r"
    19 problems
    recipes/bad.yaml line 2: `dataset_name`: expected a file or folder, or a list of them, found `[]`
      hint: docs/recipes.md describes every key
    recipes/bad.yaml line 3: `learning_rat` is not a known key
      hint: did you mean `learning_rate`?
    recipes/bad.yaml line 4: `beta`: expected a number above 0, found `-1`
      hint: leave it out for the default: `0.1`
    recipes/bad.yaml line 5: `lora_dropout`: expected a number from 0 to below 1, found `1`
      hint: leave it out for the default: `0.0`
    recipes/bad.yaml line 7: `bf16` and `fp16` are both true, but a run has one precision
      hint: leave one of the two out (`key=null` on the command line takes a key of the recipe back)
    recipes/bad.yaml line 8: `loss_type`: expected `mdpo`, `dpo` (also `sigmoid`), `cdpo`, `hinge`, `ipo`, `exo_pair`, `nca_pair`, `robust`, `bco_pair`, `sppo_hard`, `aot`, `aot_unpaired`, `apo_zero`, `apo_down`, `discopop`, `sigmoid_norm`, `sft`, `simpo`, `orpo`, `cpo`, `kto`, `apo_zero_unpaired`, `odpo`, `dmpo` or `hpo` (also `upo`), or a list of losses of DPO's family, found `ippo`
      hint: did you mean `ipo`?
    recipes/bad.yaml line 9: `rejected_image`: expected `crop`, `random_image`, `moco`, `blank`, `noise` or `given`, found `crpo`
      hint: did you mean `crop`?
    recipes/bad.yaml line 10: `rejected_image_scale`: expected two numbers `[a, b]` with 0 < a ≤ b ≤ 1, found `[0.2,0.1]`
      hint: leave it out for the default: `[0.01, 0.2]`
    recipes/bad.yaml line 11: `per_device_train_batch_size`: expected a whole number from 1, found `0`
      hint: leave it out for the default: `8`
    recipes/bad.yaml line 12: `num_train_epochs`: expected a number above 0, found `.inf`
      hint: leave it out for the default: `3.0`
    recipes/bad.yaml line 14: `warmup_steps` and `warmup_ratio` both set the warm-up
      hint: leave one of the two out (`key=null` on the command line takes a key of the recipe back)
    recipes/bad.yaml line 15: `load_in_4bit: true` is not supported: mdpo does not quantise weights; use `bf16: true` and LoRA
      hint: leave it out, or write `load_in_4bit: false`
    recipes/bad.yaml line 16: `seed`: expected a whole number from 0, found `many`
      hint: leave it out for the default: `42`
    recipes/bad.yaml line 17: `seed` is written twice, first in line 16
      hint: leave one of the two
    recipes/bad.yaml line 18: `zzz` is not a known key
      hint: docs/recipes.md lists every key
    command line: expected `key=value`, found `--beta`
      hint: for example `learning_rate=1e-5`
    command line: `gradient_acumulation_steps` is not a known key
      hint: did you mean `gradient_accumulation_steps`?
    command line: `lora_rank`: expected a whole number from 1, found `0`
      hint: leave it out for the default: `16`
    recipes/bad.yaml: `output_dir` is missing: expected a folder
      hint: add a line `output_dir: …`
    ");
}

#[test]
fn text_that_is_no_mapping_is_refused_with_its_line() {
    for (text, expected) in [
        ("- a\n- b\n", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("beta: 0.1\n  bad: [1\n", "line 2"),
        ("a: 1\n---\nb: 2\n", "document"),
    ] {
        let error = Run::from_yaml(text, "recipe.yaml", &[]).expect_err(text).to_string();
        assert!(
            error.starts_with("recipe.yaml") && error.contains("not a recipe") && error.contains(expected),
            "{error}"
        );
    }
    let empty = Run::from_yaml("# nothing\n", "recipe.yaml", &[]).expect_err("empty").to_string();
    for key in ["model_name_or_path", "dataset_name", "output_dir"] {
        assert!(empty.contains(&format!("`{key}` is missing")), "{empty}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (lines, expected) in [
        ("bf16: true\nfp16: true", "both true"),
        ("bf16: true\ndtype: float16", "`dtype` contradicts `bf16: true`"),
        ("warmup_steps: 3\nwarmup_ratio: 0.1", "both set the warm-up"),
        ("warmup_steps: 0.1\nwarmup_ratio: 0.1", "both set the warm-up"),
        ("lr_scheduler_type: constant\nwarmup_steps: 3", "`warmup_steps` has no meaning"),
        ("lr_scheduler_type: cosine_with_min_lr", "does not say where it ends"),
        ("lr_scheduler_kwargs: {min_lr_rate: 0.1}", "`min_lr_rate` has no meaning"),
        ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 2}", "expected `{min_lr_rate:"),
        ("use_peft: false\ntrained_parts: [projector]\nlora_r: 8", "`lora_r` contradicts `use_peft: false`"),
        ("use_peft: false\ntrained_parts: [projector]\nlora_dropout: 0.1", "`lora_dropout` contradicts"),
        ("use_peft: false\ntrained_parts: projector\nadapter_name_or_path: a", "`adapter_name_or_path` contradicts"),
        ("use_peft: false", "trains nothing"),
        ("use_peft: true\ntrained_parts: [projector]", "LoRA is on"),
        ("trained_parts: [projector]", "write `use_peft: false`"),
        ("reference: base", "`reference` is a choice only"),
        ("adapter_name_or_path: a\nlora_r: 8", "`lora_r` contradicts `adapter_name_or_path`"),
        ("loss_type: dpo\nanchors: [chosen]", "`anchors` belongs to `loss_type: mdpo`"),
        ("loss_type: dpo\nrejected_image: crop", "`rejected_image` belongs to `loss_type: mdpo`"),
        ("loss_type: sft\nbeta: 0.1", "`beta` does not go with `loss_type: sft`"),
        ("loss_type: sft\nreference: base", "`reference` does not go with `loss_type: sft`"),
        ("use_peft: false\ntrained_parts: [vision_tower]\nvision_feature_cache: kept", "but `trained_parts` trains it"),
        ("loss_type: sft\nreference_cache: kept", "`reference_cache` does not go with `loss_type: sft`"),
        ("loss_type: sft\nreference_logps: columns", "`reference_logps` does not go with `loss_type: sft`"),
        ("loss_type: sft\nprecompute_ref_log_probs: true", "does not go with `loss_type: sft`"),
        ("rejected_image: noise\nrejected_image_scale: [0.1, 0.2]", "belongs to `rejected_image: crop`"),
        ("preference_weight: 0\nconditional_weight: 0\nanchor_weight: 0", "all three terms"),
        ("score_threshold: 4", "`score_threshold` belongs to `pairs_from_scores: threshold`"),
        ("train_images: black", "takes the images away that `loss_type: mdpo` compares"),
        ("save_strategy: epoch\nsave_steps: 5", "`save_steps` has no meaning"),
        ("val_size: 0.1", "`val_size` has no meaning without an evaluation"),
        ("eval_dataset_name: a", "`eval_dataset_name` has no meaning without an evaluation"),
        ("eval_on_start: true", "`eval_on_start` has no meaning without an evaluation"),
        ("load_best_model_at_end: true", "`load_best_model_at_end` has no meaning without an evaluation"),
        ("metric_for_best_model: loss", "`metric_for_best_model` has no meaning without an evaluation"),
        ("eval_strategy: steps", "`eval_strategy` has nothing to evaluate"),
        ("eval_strategy: steps\nval_size: 0", "`eval_strategy` has nothing to evaluate"),
        ("eval_strategy: steps\nval_size: 9\neval_dataset_name: a", "both say which rows are held out"),
        ("eval_strategy: epoch\nval_size: 9\neval_steps: 5", "`eval_steps` has no meaning unless"),
        ("eval_strategy: steps\neval_prompts: a\nmax_eval_samples: 5", "counts rows that are held out, but none are"),
        ("eval_strategy: steps\nval_size: 9\neval_max_new_tokens: 5", "where nothing is answered"),
        ("eval_strategy: steps\nval_size: 9\ngreater_is_better: true", "where no best model is looked for"),
        ("eval_strategy: steps\nval_size: 9\nearly_stopping_threshold: 1", "without `early_stopping_patience`"),
        (
            "eval_strategy: steps\nval_size: 9\neval_steps: 7\nload_best_model_at_end: true",
            "needs `save_steps` to be a multiple of `eval_steps`, found 500 and 7",
        ),
        (
            "eval_strategy: epoch\nval_size: 9\nload_best_model_at_end: true",
            "`eval_strategy` is `epoch` and `save_strategy` is not",
        ),
        (
            "eval_strategy: steps\nval_size: 9\nsave_strategy: no\nload_best_model_at_end: true",
            "`eval_strategy` is `steps` and `save_strategy` is not",
        ),
        ("lora_r: 8\nlora_rank: 8", "`lora_rank` and `lora_r` are two names of one key, first in line 4"),
    ] {
        let message = bad(lines, &[]);
        assert!(message.contains(expected), "{lines}\n{message}");
        assert!(message.starts_with("recipe.yaml line "), "one problem, with its line: {lines}\n{message}");
        assert!(message.contains("hint: "), "{message}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for line in [
        "beta: 0",
        "beta: .nan",
        "beta: [1]",
        "learning_rate: 0",
        "learning_rate: fast",
        "lora_dropout: 1.0",
        "lora_r: 0",
        "lora_r: 1.5",
        "lora_alpha: -1",
        "adam_beta1: 1",
        "adam_epsilon: 0",
        "max_grad_norm: -1",
        "weight_decay: -0.1",
        "warmup_ratio: 1.1",
        "warmup_steps: -1",
        "warmup_steps: 2.5",
        "max_steps: 0",
        "max_steps: -2",
        "num_train_epochs: 0",
        "seed: -1",
        "max_length: 0",
        "logging_steps: 0",
        "save_steps: 0",
        "report_to: wandb",
        "report_to: [tensorboard, wandb]",
        "logging_dir: 7",
        "save_strategy: best",
        "save_total_limit: 0",
        "anchors: []",
        "anchors: [chosen, chosen]",
        "conditional_weight: -1",
        "rejected_image_scale: [0, 0.2]",
        "rejected_image_scale: [0.1, 1.2]",
        "rejected_image_scale: 0.2",
        "rejected_image_ratio: [2, 1]",
        "truncation_mode: keep_end",
        "device: cuda:1",
        "dtype: auto",
        "gradient_accumulation_steps: 0",
        "max_tokens_per_batch: 0",
        "lora_target_modules: '.*proj'",
        "lora_target_modules: [q_proj, q_proj]",
        "lora_target_modules: [all-linear, q_proj]",
        "max_skipped_rows: -1",
        "shuffle: perhaps",
        "pairs_from_scores: median",
        "odpo_ties: keep\nloss_type: odpo",
        "train_images: white",
        "reference_logps: mine",
        "reference_cache: [a, b]",
        "vision_feature_cache: 7",
        "resume_from_checkpoint: 3",
        "gradient_checkpointing: some",
        "loss_type: []",
        "lr_scheduler_type: cosine_with_restarts",
        "image_folder: ''",
        "eval_strategy: sometimes",
        "eval_steps: 0",
        "val_size: -1",
        "val_size: 1.5",
        "per_device_eval_batch_size: 0",
        "early_stopping_patience: 0\neval_strategy: steps\nval_size: 9",
        "early_stopping_threshold: -1\nearly_stopping_patience: 2\neval_strategy: steps\nval_size: 9",
    ] {
        let message = bad(line, &[]);
        let key = line.split(':').next().expect("a key");
        let value = || line.split_once(": ").expect("a value").1;
        assert!(message.starts_with(&format!("recipe.yaml line 4: `{key}`: expected ")), "{line}\n{message}");
        assert!(message.contains(", found `"), "{} {message}", value());
    }
}

#[test]
fn every_key_of_the_table_is_read() {
    for key in KEYS {
        for name in key.aliases.iter().chain([&key.name]) {
            let least = LEAST.lines().filter(|line| !line.starts_with(key.name)).collect::<Vec<_>>().join("\n");
            let error =
                Run::from_yaml(&format!("{least}\n{name}: [{{nonsense: 1}}]"), "recipe.yaml", &[]).expect_err(name);
            // Entries of benchmarks are told one by one.
            let expected = match key.name {
                "eval_benchmarks" => "`eval_benchmarks` entry 1: `nonsense` is no key".to_owned(),
                _ => format!("`{name}`: expected {}", key.expects),
            };
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}

#[test]
fn keys_of_other_trainers_are_harmless_or_refused_with_a_reason() {
    for name in NO_EFFECT {
        good(&format!("{name}: 7"), &[]);
    }
    for refused in REFUSED {
        for value in refused.unless.iter().filter(|value| !value.is_empty()) {
            good(&format!("{}: {value}", refused.name), &[]);
        }
        good(&format!("{}: null", refused.name), &[]);
        let message = bad(&format!("{}: something", refused.name), &[]);
        let expected = format!("recipe.yaml line 4: `{}: something` is not supported: {}", refused.name, refused.why);
        assert!(message.starts_with(&expected), "{message}");
    }
    good("label_smoothing: 0.0", &[]);
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = KEYS.iter().flat_map(|key| key.aliases.iter().copied().chain([key.name])).collect();
    names.extend(NO_EFFECT.iter().copied().chain(REFUSED.iter().map(|refused| refused.name)));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn numbers_are_numbers_however_yaml_sees_them() {
    for text in ["1e-5", "'1e-5'", "1.0e-5", "0.00001", "\"1E-5\""] {
        assert_eq!(good(&format!("learning_rate: {text}"), &[]).optim.learning_rate, 1e-5, "{text}");
        assert_eq!(good("", &[&format!("learning_rate={text}")]).optim.learning_rate, 1e-5, "{text}");
    }
    assert_eq!(good("seed: 18446744073709551615", &[]).seed, u64::MAX);
    assert_eq!(good("max_steps: 1e3", &[]).batch.length, Length::Steps(1000));
    assert_eq!(good("max_steps: '20'\nmax_length: 64.0", &[]).data.max_length, Some(64));
}

#[test]
fn defaults_and_text_are_taken_as_written() {
    let crop = Corruption::Crop { scale: [0.01, 0.2], ratio: [3.0 / 4.0, 4.0 / 3.0] };
    assert_eq!(good("", &[]).rejected_image.corruption, crop);
    assert!(bad("image_folder: 2024", &[]).contains("hint: put it in quotes: `\"2024\"`"));
    let message = bad("lr_scheduler_type: cosin_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", &[]);
    assert!(message.contains("did you mean `cosine_with_min_lr`?") && !message.contains("no meaning"), "{message}");
}

#[test]
fn trl_spellings_mean_what_they_mean_there() {
    assert_eq!(
        good("loss_type: sigmoid\npref_beta: 0.2", &[]).objective,
        Objective::Dpo(Dpo::of(DpoLoss::Sigmoid, 0.2))
    );
    assert_eq!(good("loss_type: [sigmoid]", &[]).objective, Objective::Dpo(Dpo::of(DpoLoss::Sigmoid, 0.1)));
    assert_eq!(good("gradient_checkpointing: false", &[]).batch.checkpointing, GradientCheckpointing::None);
    assert_eq!(good("gradient_checkpointing: true", &[]).batch.checkpointing, GradientCheckpointing::Layers);
    assert_eq!(good("save_strategy: no", &[]).output.save, Save::Never);
    assert_eq!(good("save_strategy: \"no\"", &[]).output.save, Save::Never);
    assert_eq!(good("max_steps: -1\nnum_train_epochs: 0.5", &[]).batch.length, Length::Epochs(0.5));
    assert_eq!(good("max_steps: 7\nnum_train_epochs: 2", &[]).batch.length, Length::Steps(7));
    assert_eq!(good("warmup_steps: 0.1", &[]).optim.warmup, Warmup::Ratio(0.1));
    assert_eq!(good("warmup_steps: 0\nwarmup_ratio: 0.1", &[]).optim.warmup, Warmup::Ratio(0.1));
    assert_eq!(good("warmup_ratio: 0", &[]).optim.warmup, Warmup::Steps(0));
    assert_eq!(good("torch_dtype: bfloat16", &[]).model.dtype, Dtype::Bf16);
    assert_eq!(good("fp16: true", &[]).model.dtype, Dtype::F16);
    let names = Targets::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
    assert_eq!(lora(good("lora_target: q_proj,v_proj", &[])).targets, names);
    assert_eq!(lora(good("lora_target_modules:\n- q_proj\n- v_proj", &[])).targets, names);
    assert_eq!(lora(good("lora_target_modules: [all-linear]", &[])).targets, Targets::AllLinear);
    assert_eq!(good("resume_from_checkpoint: true", &[]).output.resume, Resume::Newest);
    assert_eq!(
        good("resume_from_checkpoint: out/checkpoint-3", &[]).output.resume,
        Resume::From("out/checkpoint-3".into())
    );
    let schedule =
        good("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", &[]).optim.schedule;
    assert_eq!(schedule, Schedule::CosineWithMinLr { min_lr_rate: 0.1 });
}

#[test]
fn overrides_replace_keys_of_the_recipe_under_any_of_their_names() {
    let run = good(
        "lora_r: 8\nbeta: 0.3\nwarmup_ratio: 0.1",
        &["lora_rank=4", "beta=null", "warmup_ratio=", "output_dir=x=y"],
    );
    assert_eq!((run.output.dir.clone(), run.optim.warmup), (PathBuf::from("x=y"), Warmup::Steps(0)));
    assert_eq!(mdpo(run.clone()).beta, 0.1);
    assert_eq!(lora(run).r, 4);
    let names = lora(good("", &["lora_target_modules=[q_proj,v_proj]"])).targets;
    assert_eq!(names, Targets::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()]));
    assert!(bad("", &["beta=1", "beta=2"]).starts_with("command line: `beta` is written twice"));
    assert!(bad("", &["beta=["]).starts_with("command line: the value of `beta` is not YAML"));
}

#[test]
fn what_must_not_change_on_resume_is_named_with_both_values() {
    let old = good("bf16: true", &[]);
    let moved = good(
        "bf16: true\nlogging_steps: 1\nsave_steps: 3\ndevice: cpu\nresume_from_checkpoint: true\nsave_total_limit: 2",
        &["output_dir=elsewhere", "gradient_checkpointing=none"],
    );
    assert_eq!(differing(&old.identity(), &moved.identity()), Vec::<String>::new());
    let other = good("bf16: true\nbeta: 0.2\nmax_steps: 5\nseed: 1", &[]).identity();
    assert_snapshot!(differing(&old.identity(), &other).join("\n"), @r"
    `beta` (was 0.1, is 0.2)
    `num_train_epochs` (was 3, is not set)
    `max_steps` (was not set, is 5)
    `seed` (was 42, is 1)
    ");
    let mut later = other.clone();
    later.insert("a_key_of_tomorrow".to_owned(), 1.into());
    assert_eq!(differing(&later, &other), ["`a_key_of_tomorrow` (was 1, is not set)"]);
}

#[test]
fn checkpoints_are_found_as_folders_and_in_the_cache() {
    let disk = tempfile::tempdir().expect("a temporary folder");
    let (cache, root) = (disk.path().join("hub"), disk.path());
    let kept = cache.join("models--org--model");
    for (file, content) in [
        ("refs/main", "abc123\n"),
        ("refs/v1", "def456"),
        ("snapshots/abc123/config.json", "{}"),
        ("snapshots/def456/config.json", "{}"),
        ("snapshots/abc123/adapter_config.json", "{}"),
    ] {
        fs::create_dir_all(kept.join(file).parent().expect("a parent")).expect("a folder");
        fs::write(kept.join(file), content).expect("a file");
    }
    fs::write(root.join("rows.jsonl"), "").expect("a file");
    let rows = format!("dataset_name={}", root.join("rows.jsonl").display());
    let find = |overrides: &[&str]| good("", overrides).resolve_in(&cache, |key| key.to_owned());
    let path = |overrides: &[&str]| find(overrides).unwrap_or_else(|error| panic!("{error}")).model.path;
    assert_eq!(path(&[&rows]), kept.join("snapshots/abc123"));
    assert_eq!(path(&[&rows, "revision=v1"]), kept.join("snapshots/def456"));
    assert_eq!(path(&[&rows, "model_revision=def456"]), kept.join("snapshots/def456"));
    let folder = kept.join("snapshots/def456");
    assert_eq!(path(&[&rows, &format!("model_name_or_path={}", folder.display())]), folder);
    let found = find(&[&rows, "adapter_name_or_path=org/model"]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(found.identity()["model_revision"], "abc123");
    assert_eq!(
        lora(found).start,
        AdapterStart::From { path: kept.join("snapshots/abc123"), reference: Reference::Adapter }
    );

    let missing = find(&[
        "model_name_or_path=org/other",
        "model_revision=v2",
        "adapter_name_or_path=./no/such",
        "dataset_name=[openbmb/RLAIF-V-Dataset, a/b/c.jsonl]",
        "image_folder=/no/pictures",
        "eval_strategy=steps",
        "eval_dataset_name=/no/held-out.jsonl",
        "eval_prompts=/no/prompts.jsonl",
        "eval_benchmarks=[{name: amber, data: /no/amber}]",
        "resume_from_checkpoint=/no/checkpoint-1",
        &format!("output_dir={}", root.join("rows.jsonl").display()),
    ]);
    let message = missing.expect_err("nothing is there").to_string().replace(&root.display().to_string(), "ROOT");
    assert_snapshot!(message, @r"
    10 problems
    model_name_or_path: no folder `org/other` at `v2`, and no such repository with a `config.json` in the cache `ROOT/hub`
      hint: run `hf download org/other --revision v2`, or give a folder
    adapter_name_or_path: expected a folder or a repository id `org/name`, found no folder `./no/such`
      hint: check the path; relative paths start at the working directory
    dataset_name: `openbmb/RLAIF-V-Dataset` does not exist
      hint: mdpo reads local files: `hf download --repo-type dataset openbmb/RLAIF-V-Dataset --local-dir DIR`, then name DIR
    dataset_name: `a/b/c.jsonl` does not exist
      hint: check the path; relative paths start at the working directory
    eval_dataset_name: `/no/held-out.jsonl` does not exist
      hint: check the path; relative paths start at the working directory
    image_folder: `/no/pictures` is not a folder
      hint: check the path; relative paths start at the working directory
    resume_from_checkpoint: `/no/checkpoint-1` is not a folder
      hint: check the path; relative paths start at the working directory
    eval_prompts: `/no/prompts.jsonl` is not a file
      hint: check the path; relative paths start at the working directory
    eval_benchmarks: `/no/amber` is not a folder
      hint: check the path; relative paths start at the working directory
    output_dir: `ROOT/rows.jsonl` is a file, expected a folder or nothing
      hint: choose another folder
    ");
    let no_config =
        find(&[&rows, &format!("model_name_or_path={}", root.display())]).expect_err("no config.json").to_string();
    assert!(no_config.contains("holds no `config.json`"), "{no_config}");
}

#[test]
fn load_names_the_file_and_line_of_what_is_not_there() {
    let disk = tempfile::tempdir().expect("a temporary folder");
    let file = disk.path().join("recipe.yaml");
    fs::write(&file, "output_dir: out\nmodel_name_or_path: /no/such\n").expect("a file");
    let error = load(&file, &["dataset_name=/no/rows".to_owned()]).expect_err("nothing is there").to_string();
    assert!(error.contains(&format!("{} line 2: `model_name_or_path`: expected a folder", file.display())), "{error}");
    assert!(error.contains("command line: `dataset_name`: `/no/rows` does not exist"), "{error}");
    let error = load(&disk.path().join("none.yaml"), &[]).expect_err("no recipe").to_string();
    assert!(error.contains("none.yaml: cannot read"), "{error}");
}

#[test]
fn every_recipe_of_the_repository_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("recipes/") {
        let file = entry.expect("a file").path();
        let text = fs::read_to_string(&file).expect("a recipe");
        let run = Run::from_yaml(&text, &file.display().to_string(), &[]).unwrap_or_else(|error| panic!("{error}"));
        for word in ["# paper ", "# command ", "# hardware ", "# expected "] {
            assert!(text.contains(word), "{} has no line `{word}`", file.display());
        }
        assert_eq!(run.output.dir.file_name(), file.file_stem(), "output_dir has the recipe's name");
        count += 1;
    }
    assert!(count >= 4, "found {count} recipes");
}

#[test]
fn the_documentation_lists_exactly_the_keys() {
    let text = include_str!("../../../../docs/recipes.md");
    let section = |title: &str| {
        let start = text.find(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section `{title}`"));
        let body = &text[start + title.len() + 5..];
        body[..body.find("\n## ").unwrap_or(body.len())].to_owned()
    };
    let rows = |title: &str, cells: usize| -> Vec<String> {
        let rows = section(title);
        let rows = rows.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.split('|').map(str::trim).skip(1).take(cells).collect::<Vec<_>>().join(" | ")).collect()
    };
    let ticked = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let keys = KEYS.iter().map(|key| {
        let default = key.default.trim_start_matches('(').trim_end_matches(')');
        let default = if default.len() < key.default.len() { default.to_owned() } else { format!("`{default}`") };
        format!("`{}` | {} | {} | {default}", key.name, ticked(key.aliases), key.expects)
    });
    assert_eq!(rows("Keys", 4), keys.collect::<Vec<_>>());
    let refused = REFUSED
        .iter()
        .map(|key| format!("`{}` | {} | {}", key.name, ticked(key.unless).replace("``", "empty"), key.why));
    assert_eq!(rows("Keys of other trainers that stop the run", 3), refused.collect::<Vec<_>>());
    let listed = section("Keys of other trainers that change nothing");
    let listed: Vec<&str> = listed
        .lines()
        .skip_while(|line| !line.starts_with('`'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(listed, NO_EFFECT);
}

/// Names as people give them, and those that YAML would take for something else.
pub(super) fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,8}(/[a-z0-9._-]{1,8}){0,2}",
        "[ -~é]{1,12}",
        Just("no".to_owned()),
        Just("1e5".to_owned()),
        Just("007".to_owned())
    ]
    .prop_filter("blank text is no name", |text| !text.trim().is_empty())
}

fn corruption() -> impl Strategy<Value = Corruption> {
    prop_oneof![
        (0.01..0.5, 0.5..1.0, 0.1..1.0, 1.0..4.0)
            .prop_map(|(a, b, c, d)| Corruption::Crop { scale: [a, b], ratio: [c, d] }),
        prop::sample::select(vec![
            Corruption::RandomImage,
            Corruption::Moco,
            Corruption::Blank,
            Corruption::Noise,
            Corruption::Given
        ]),
    ]
}

fn tuning() -> impl Strategy<Value = Tuning> {
    let parts = prop::sample::subsequence(vec![Part::LanguageModel, Part::Projector, Part::VisionTower], 1..=3);
    let names = prop::collection::hash_set("[a-z]{1,6}_proj", 1..4)
        .prop_map(|names| Targets::Names(names.into_iter().collect()));
    let targets = prop_oneof![Just(Targets::AllLinear), names];
    let start = (name(), any::<bool>());
    prop_oneof![
        parts.prop_map(|parts| Tuning::Full { parts }),
        (1..200_usize, positive(), share(), any::<bool>(), targets).prop_map(|(r, alpha, dropout, rslora, targets)| {
            Tuning::Lora(Lora { r, alpha, dropout, rslora, targets, start: AdapterStart::Fresh })
        }),
        (start, share()).prop_map(|((path, base), dropout)| {
            let reference = if base { Reference::Base } else { Reference::Adapter };
            let start = AdapterStart::From { path: path.into(), reference };
            Tuning::Lora(Lora { r: 16, alpha: 32.0, dropout, rslora: false, targets: Targets::AllLinear, start })
        }),
    ]
}

fn optim() -> impl Strategy<Value = Optim> {
    let schedules = vec![Schedule::Linear, Schedule::Cosine, Schedule::Polynomial, Schedule::Constant];
    let schedule = prop_oneof![
        prop::sample::select(schedules),
        share().prop_map(|min_lr_rate| Schedule::CosineWithMinLr { min_lr_rate })
    ];
    let warmup = prop_oneof![(0..1000_usize).prop_map(Warmup::Steps), (1e-6..=1.0).prop_map(Warmup::Ratio)];
    (positive(), share(), share(), share(), positive(), share(), schedule, warmup).prop_map(
        |(learning_rate, weight_decay, beta1, beta2, epsilon, max_grad_norm, schedule, warmup)| Optim {
            learning_rate,
            weight_decay,
            beta1,
            beta2,
            epsilon,
            max_grad_norm,
            schedule,
            warmup,
        },
    )
}

fn model_and_data() -> impl Strategy<Value = (Model, Data)> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::Bf16, Dtype::F16]);
    let device = prop::sample::select(vec![Device::Auto, Device::Cpu, Device::Cuda]);
    let model = (name(), prop::option::of(name()), dtype, device).prop_map(|(name, revision, dtype, device)| Model {
        path: PathBuf::from(&name),
        name,
        revision,
        dtype,
        device,
    });
    let overlong = prop::sample::select(vec![Overlong::Refuse, Overlong::ShortenResponse, Overlong::KeepTurns]);
    let rule = prop_oneof![
        Just(PairsFromScores::BestVsWorst),
        Just(PairsFromScores::All),
        (-9.0..9.0).prop_map(PairsFromScores::Threshold)
    ];
    let scores = (rule, prop::sample::select(vec![ScoreTies::Refuse, ScoreTies::Skip]));
    let paths = prop::collection::vec(name().prop_map(PathBuf::from), 1..4);
    let folder = prop::option::of(name().prop_map(PathBuf::from));
    let data = (paths, folder, prop::option::of(1..9000_usize), overlong, 0..10_usize, any::<bool>(), scores).prop_map(
        |(paths, image_folder, max_length, overlong, max_skipped_rows, shuffle, (pairs_from_scores, odpo_ties))| Data {
            paths,
            image_folder,
            max_length,
            overlong,
            max_skipped_rows,
            shuffle,
            pairs_from_scores,
            odpo_ties,
            train_images: TrainImages::Keep,
            reference_logps: ReferenceLogps::Computed,
        },
    );
    (model, data)
}

fn batch_and_output() -> impl Strategy<Value = (Batch, Output)> {
    use GradientCheckpointing::{Layers, None};
    let length = prop_oneof![positive().prop_map(Length::Epochs), (1..9000_usize).prop_map(Length::Steps)];
    let max_tokens = prop::option::of(1..99_999_usize);
    let batch = (1..99_usize, 1..99_usize, max_tokens, length, prop::sample::select(vec![None, Layers])).prop_map(
        |(per_device, accumulation, max_tokens, length, checkpointing)| Batch {
            per_device,
            accumulation,
            max_tokens,
            length,
            checkpointing,
        },
    );
    let save = prop_oneof![Just(Save::Never), Just(Save::EachEpoch), (1..999_usize).prop_map(Save::Steps)];
    let resume = prop_oneof![
        Just(Resume::No),
        Just(Resume::Newest),
        "[a-z]{2,9}/checkpoint-[1-9]".prop_map(|path| Resume::From(path.into()))
    ];
    let report_to = prop_oneof![
        Just(ReportTo::Nobody),
        prop::option::of(name()).prop_map(|folder| ReportTo::TensorBoard { folder: folder.map(PathBuf::from) })
    ];
    let output = (name(), 1..99_usize, report_to, save, prop::option::of(1..9_usize), resume).prop_map(
        |(dir, logging_steps, report_to, save, save_total_limit, resume)| Output {
            dir: dir.into(),
            logging_steps,
            report_to,
            save,
            save_total_limit,
            resume,
        },
    );
    (batch, output)
}

proptest! {
    #[test]
    fn a_written_run_reads_back_equal(
        (model, mut data) in model_and_data(), objective in objective(), corruption in corruption(), redraw in prop::sample::select(vec![Redraw::EachEpoch, Redraw::Once, Redraw::EachForward]),
        mut tuning in tuning(), optim in optim(), seed in any::<u64>(),
        ((batch, output), evaluation) in batch_and_output().prop_flat_map(|(batch, output)| { let evaluation = evaluation(output.save); (Just((batch, output)), evaluation) }),
        (cache, precompute, columns) in (prop::option::of(name()), any::<bool>(), any::<bool>()),
        features in prop::option::of(name()),
        images in prop::sample::select(vec![TrainImages::Keep, TrainImages::Drop, TrainImages::Black, TrainImages::MeanColour]),
    ) {
        let mut rejected_image = RejectedImage { corruption, redraw };
        // What has no meaning for an objective keeps its default.
        if !matches!(objective, Objective::Mdpo(_)) {
            data.train_images = images;
            rejected_image = good("", &[]).rejected_image;
        }
        if !matches!(objective, Objective::Odpo(_)) {
            data.odpo_ties = ScoreTies::Refuse;
        }
        if matches!(objective, Objective::Dmpo(_)) && data.overlong == Overlong::ShortenResponse {
            data.overlong = Overlong::KeepTurns;
        }
        if let (false, Tuning::Lora(Lora { start: AdapterStart::From { reference, .. }, .. })) = (objective.compares(), &mut tuning) {
            *reference = Reference::Adapter;
        }
        let mut reference = KeptReference {
            cache: cache.map(PathBuf::from),
            when: if precompute { ReferenceWhen::BeforeTraining } else { ReferenceWhen::AsNeeded },
        };
        if !objective.compares() {
            reference = good("", &[]).reference;
        } else if columns && !objective.weighs_labels() && !objective.follows_prompts_by_other_answers() {
            data.reference_logps = ReferenceLogps::Columns;
        }
        let trained = matches!(&tuning, Tuning::Full { parts } if parts.contains(&Part::VisionTower));
        let vision_feature_cache = features.filter(|_| !trained).map(PathBuf::from);
        let run = Run { model, data, reference, vision_feature_cache, rejected_image, objective, tuning, optim, batch, evaluation, output, seed };
        let text = run.to_yaml();
        let back = Run::from_yaml(&text, "mdpo_recipe.yaml", &[]).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&back, &run, "{}", text);
        // A checkpoint keeps the identity as JSON text.
        let kept = serde_json::to_string(&back.identity()).expect("JSON");
        let kept = serde_json::from_str(&kept).expect("JSON");
        prop_assert_eq!(differing(&kept, &run.identity()), Vec::<String>::new());
    }
}
