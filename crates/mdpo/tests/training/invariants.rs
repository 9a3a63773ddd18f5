//! What must hold of any run: how a step is cut does not matter, the first loss is known, only what is trained moves.

use mdpo::config::{Part, Run};
use mdpo::model::Model;
use mdpo::model::load::Plan;
use mdpo::train::{Inputs, Metrics, PictureCheck, ReferenceRow, kind, reference};
use mdpo::weights;
use std::f64::consts::LN_2;
use std::fs;
use std::path::Path;
use tch::{Device, Kind};

use crate::lab::{DROPOUT, Lab, curve, largest_difference, number, parity, row, tensors};

const ADAPTER: &str = "adapter_model.safetensors";
const MODEL: &str = "model.safetensors";

fn log_probs(run: &Run, adapter: Option<&Path>) -> Vec<ReferenceRow> {
    let mut rows = Vec::new();
    let take = |row| {
        rows.push(row);
        Ok(())
    };
    reference(run, adapter, take).unwrap_or_else(|error| panic!("{error}"));
    rows
}

fn log_sigmoid_loss(x: f64) -> f64 {
    (1.0 + (-x).exp()).ln()
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{found} ≠ {expected}");
}

fn largest_gap(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn chosen(row: &ReferenceRow) -> f64 {
    row.chosen.expect("a chosen answer")
}

/// A micro-batch without images gives the eyes nothing to learn from, and is no reason to stop.
#[test]
fn eyes_alone_train_on_rows_with_and_without_images() {
    let lab = Lab::new("llava-tiny", [row(0, Some("wide.png")), row(1, None), row(2, Some("odd.png")), row(3, None)]);
    for part in ["projector", "vision_tower"] {
        let curves: Vec<Vec<f64>> = ["none", "layers"]
            .into_iter()
            .map(|kept| {
                let keys = [
                    "use_peft=false".to_owned(),
                    "lora_r=null".to_owned(),
                    format!("trained_parts=[{part}]"),
                    format!("gradient_checkpointing={kept}"),
                    "per_device_train_batch_size=1".to_owned(),
                ];
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                curve(&lab.train(&format!("{part}-{kept}"), &keys), "loss")
            })
            .collect();
        assert!(largest_gap(&curves[0], &curves[1]) < 1e-5, "{part}: {curves:?}");
    }
}

/// The gradient norm shows what the loss does not: gradients that a 16-bit format rounds to zero.
#[test]
fn sixteen_bits_train_along_the_curve_of_f32() {
    let lab = Lab::with_images();
    let exact = lab.train("f32", &[]);
    for (name, key) in [("bf16", "bf16=true"), ("fp16", "fp16=true")] {
        let rounded = lab.train(name, &[key]);
        let loss = largest_gap(&curve(&exact, "loss"), &curve(&rounded, "loss"));
        let pairs = curve(&exact, "grad_norm").into_iter().zip(curve(&rounded, "grad_norm"));
        let norm = pairs.map(|(exact, rounded)| (rounded / exact - 1.0).abs()).fold(0.0, f64::max);
        println!("{name}: loss {loss:.1e}, gradient norm {:.1} %", norm * 100.0);
        assert!(loss < 0.1 && norm < 0.1, "{name}: loss {loss:.1e}, norm {norm:.1e}");
    }
}

/// Worst differences measured: loss 3e-7, adapter 5e-7.
#[test]
fn a_step_may_be_cut_into_micro_batches_in_any_way() {
    let lab = Lab::with_images();
    let cut = |size: usize, times: usize, budget: usize| {
        let name = format!("{size}x{times}-{budget}");
        let mut keys =
            vec![format!("per_device_train_batch_size={size}"), format!("gradient_accumulation_steps={times}")];
        keys.extend((budget > 0).then(|| format!("max_tokens_per_batch={budget}")));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        (lab.train(&name, &keys), lab.path(&name).join(ADAPTER))
    };
    let (whole, adapter) = cut(8, 1, 0);
    // A budget of 400 tokens lets two rows meet, one of 100 none.
    for (size, times, budget) in [(4, 2, 0), (2, 4, 0), (1, 8, 0), (4, 2, 400), (2, 4, 100), (8, 1, 100_000)] {
        let (cut, cut_adapter) = cut(size, times, budget);
        let losses = largest_gap(&curve(&whole, "loss"), &curve(&cut, "loss"));
        let adapters = largest_difference(&adapter, &cut_adapter);
        // AdamW does not see the scale of a gradient; its norm does.
        let norms = largest_gap(&curve(&whole, "grad_norm"), &curve(&cut, "grad_norm"));
        assert!(norms <= 1e-4, "{size}×{times}: norm {norms:.1e}");
        println!(
            "8×1 and {size}×{times}, budget {budget}: loss {losses:.1e}, adapter {adapters:.1e}, norm {norms:.1e}"
        );
        assert!(losses <= 1e-5 && adapters <= 1e-5, "{size}×{times}: loss {losses:.1e}, adapter {adapters:.1e}");
    }
}

#[test]
fn rows_without_images_do_not_care_how_a_step_is_cut_either() {
    let rows = || (0..8).map(|i| row(i, (i % 3 != 0).then_some("wide.png")));
    let lab = Lab::new("llava-tiny", rows());
    let whole = lab.train("whole", &["per_device_train_batch_size=8"]);
    let single = lab.train("single", &["per_device_train_batch_size=1", "gradient_accumulation_steps=8"]);
    // Three of eight rows have no images, and with them no conditional term.
    assert_near(curve(&whole, "loss")[0], LN_2 * (5.0 * 3.0 + 3.0 * 2.0) / 8.0, 1e-12);
    for name in ["loss", "loss/conditional", "rewards/image_margins", "logps/corrupted"] {
        assert!(largest_gap(&curve(&whole, name), &curve(&single, name)) <= 1e-4, "{name}");
    }
    assert!(largest_difference(&lab.path("whole").join(ADAPTER), &lab.path("single").join(ADAPTER)) <= 1e-5);
}

/// Difference measured: 0.
#[test]
fn computing_layers_again_changes_nothing() {
    let lab = Lab::with_images();
    for (name, more) in
        [("lora", &[][..]), ("full", &["use_peft=false", "lora_r=null", "trained_parts=[projector, language_model]"])]
    {
        let [kept, again] = ["none", "layers"].map(|keep| {
            let checkpointing = format!("gradient_checkpointing={keep}");
            lab.train(&format!("{name}-{keep}"), &[&[checkpointing.as_str()], more].concat())
        });
        let file = if name == "lora" { ADAPTER } else { MODEL };
        let gap = largest_difference(&kept.folder.join(file), &again.folder.join(file));
        println!("{name}: {gap:.1e}");
        assert!(gap <= 1e-6, "{name}: {gap:.1e}");
        assert!(largest_gap(&curve(&kept, "loss"), &curve(&again, "loss")) <= 1e-6);
    }
}

#[test]
fn a_head_that_is_tied_to_the_embeddings_is_trained_as_one_tensor() {
    let lab = Lab::new("llama-tiny", (0..6).map(|i| row(i, None)));
    let keys = ["loss_type=dpo", "use_peft=false", "lora_r=null", "trained_parts=[language_model]"];
    let kept = lab.train("kept", &[&keys[..], &["gradient_checkpointing=none"]].concat());
    let again = lab.train("again", &[&keys[..], &["gradient_checkpointing=layers", "save_steps=1"]].concat());
    assert!(largest_difference(&kept.folder.join(MODEL), &again.folder.join(MODEL)) <= 1e-6);
    let (before, after) = (tensors(&parity("model/llama-tiny").join(MODEL)), tensors(&kept.folder.join(MODEL)));
    assert!(before.keys().eq(after.keys()) && !before.contains_key("lm_head.weight"));
    assert!(before.iter().all(|(name, tensor)| !tensor.equal(&after[name])), "everything moves");
    // Every row of the table moves, since every token is an answer that the head weighs.
    let moved = (&before["model.embed_tokens.weight"] - &after["model.embed_tokens.weight"]).abs().amax([1], false);
    assert!(moved.min().double_value(&[]) > 0.0);
    let from = format!("resume_from_checkpoint={}", again.folder.join("checkpoint-2").display());
    let resumed = lab.train("resumed", &[&keys[..], &[from.as_str()]].concat());
    assert_eq!(largest_difference(&again.folder.join(MODEL), &resumed.folder.join(MODEL)), 0.0);
    let rows = log_probs(
        &lab.run("unused", &["loss_type=dpo", &format!("model_name_or_path={}", kept.folder.display())]),
        None,
    );
    assert_eq!(rows.len(), 6);
}

#[test]
fn the_first_loss_is_that_of_equal_policies() {
    let _alone = DROPOUT.lock();
    let lab = Lab::with_images();
    for dtype in ["float32", "bfloat16", "float16"] {
        for (loss, expected) in [("mdpo", 3.0 * LN_2), ("dpo", LN_2)] {
            for dropout in ["0", "0.1"] {
                let keys = [format!("dtype={dtype}"), format!("loss_type={loss}"), format!("lora_dropout={dropout}")];
                let name = format!("{dtype}-{loss}-{dropout}");
                let outcome =
                    lab.train(&name, &[&keys[0], &keys[1], &keys[2], "max_steps=1", "lr_scheduler_type=constant"]);
                assert_near(curve(&outcome, "loss")[0], expected, 1e-12);
                assert_eq!(curve(&outcome, "rewards/chosen")[0], 0.0);
            }
        }
    }
}

#[test]
fn the_crop_changes_with_the_epoch_unless_it_is_drawn_once() {
    let lab = Lab::with_images();
    let crops = |redraw: &str, epoch: usize| {
        let run = lab.run("unused", &[&format!("rejected_image_redraw={redraw}")]);
        let inputs = Inputs::open(&run, PictureCheck::Header).expect("inputs");
        (0..8).map(|i| inputs.pictures(i, epoch).expect("pictures").rejected[0].kept).collect::<Vec<_>>()
    };
    assert_eq!(crops("once", 0), crops("once", 5));
    assert_eq!(crops("once", 0), crops("epoch", 0));
    let (first, second) = (crops("epoch", 0), crops("epoch", 1));
    assert!(first.iter().all(Option::is_some));
    assert!(first.iter().zip(&second).all(|(a, b)| a != b), "{first:?} {second:?}");
    assert_eq!(crops("epoch", 1), second);
}

/// mDPO's "DPO (no image)", in its three readings.
#[test]
fn the_images_of_rows_are_shown_as_the_recipe_says() {
    let lab = Lab::with_images();
    let open = |how: &str| {
        let run = lab.run("unused", &["loss_type=dpo", &format!("train_images={how}")]);
        Inputs::open(&run, PictureCheck::Header).expect("inputs")
    };
    let kept = open("keep");
    let first = |inputs: &Inputs| inputs.pictures(0, 0).expect("pictures").true_images[0].clone();
    let picture = first(&kept);
    let mean = kept.processor.as_ref().expect("a processor").mean_colour();
    for (how, colour) in [("black", [0; 3]), ("mean_colour", mean)] {
        let shown = first(&open(how));
        assert_eq!(shown.dimensions(), picture.dimensions());
        assert!(shown != picture && shown.pixels().all(|pixel| pixel.0 == colour), "{how}");
    }
    let dropped = open("drop");
    assert!(dropped.pictures(0, 0).expect("pictures").true_images.is_empty());
    let prompt = |inputs: &Inputs| inputs.encode(&inputs.examples[0]).expect("encoded").encoded.prompt;
    let (with, without) = (prompt(&kept), prompt(&dropped));
    assert_eq!((with.images.len(), without.images.len()), (1, 0));
    assert!(without.ids.len() < with.ids.len() - with.images[0].len + 1);
    assert_eq!(dropped.report.with_images, 0);
}

#[test]
fn a_run_over_two_epochs_depends_on_when_the_crop_is_drawn() {
    let lab = Lab::with_images();
    let [once, each] = ["once", "epoch"].map(|redraw| {
        let key = format!("rejected_image_redraw={redraw}");
        lab.train(redraw, &[&key, "per_device_train_batch_size=8", "max_steps=2"])
    });
    let (once, each) = (curve(&once, "logps/corrupted"), curve(&each, "logps/corrupted"));
    assert_eq!(once[0], each[0]);
    assert!((once[1] - each[1]).abs() > 1e-3, "{once:?} {each:?}");
}

/// Worst difference measured: 4e-6 nats.
#[test]
fn reference_rows_are_what_training_starts_from() {
    let rows = (0..8).map(|i| row(i, (i % 4 != 3).then_some("tall.png")));
    let lab = Lab::new("llava-tiny", rows);
    let outcome = lab.train("out", &["per_device_train_batch_size=8", "max_steps=1"]);
    let rows = log_probs(&lab.run("out", &["per_device_train_batch_size=3"]), None);
    assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let corrupted: Vec<f64> = rows.iter().filter_map(|row| row.corrupted).collect();
    assert_eq!(corrupted.len(), 6);
    for (name, expected) in [
        ("logps/chosen", mean(rows.iter().filter_map(|row| row.chosen).collect())),
        ("logps/rejected", mean(rows.iter().filter_map(|row| row.rejected).collect())),
        ("logps/corrupted", mean(corrupted)),
        ("lengths/chosen", mean(rows.iter().filter_map(|row| row.chosen_tokens).map(|n| n as f64).collect())),
    ] {
        assert_near(curve(&outcome, name)[0], expected, 2e-5);
    }
}

#[test]
fn a_continued_adapter_is_compared_with_itself_or_with_the_bare_model() {
    let lab = Lab::with_images();
    let adapter = parity("model/llava-tiny/adapter");
    let start = format!("adapter_name_or_path={}", adapter.display());
    let keys = ["lora_r=null", start.as_str(), "per_device_train_batch_size=8", "max_steps=1"];
    let itself = lab.train("itself", &[&keys[..], &["reference=adapter"]].concat());
    assert_near(curve(&itself, "loss")[0], 3.0 * LN_2, 1e-12);

    let bare = lab.train("bare", &[&keys[..], &["reference=base"]].concat());
    let run = lab.run("bare", &[]);
    let (policy, base) = (log_probs(&run, Some(&adapter)), log_probs(&run, None));
    let losses = policy.iter().zip(&base).map(|(policy, base)| {
        let reward = |pick: fn(&ReferenceRow) -> f64| 0.1 * (pick(policy) - pick(base));
        let chosen = reward(chosen);
        let rejected = reward(|row| row.rejected.expect("a rejected answer"));
        let corrupted = reward(|row| row.corrupted.expect("an image"));
        log_sigmoid_loss(chosen - rejected) + log_sigmoid_loss(chosen - corrupted) + log_sigmoid_loss(chosen)
    });
    let expected = losses.sum::<f64>() / 8.0;
    assert!((expected - 3.0 * LN_2).abs() > 1e-2, "the adapter does something");
    assert_near(curve(&bare, "loss")[0], expected, 1e-5);
}

/// Dropout makes the policy differ from an adapter that it starts from; that is no mistake.
#[test]
fn a_continued_adapter_may_be_trained_with_dropout() {
    let _alone = DROPOUT.lock();
    let lab = Lab::with_images();
    let start = format!("adapter_name_or_path={}", parity("model/llava-tiny/adapter").display());
    let outcome = lab.train("out", &["lora_r=null", &start, "lora_dropout=0.1", "max_steps=2"]);
    assert!((curve(&outcome, "loss")[0] - 3.0 * LN_2).abs() > 1e-6);
}

#[test]
fn sft_starts_at_the_mean_of_all_chosen_tokens_and_falls() {
    let lab = Lab::with_images();
    let outcome = lab.train(
        "out",
        &["loss_type=sft", "per_device_train_batch_size=4", "gradient_accumulation_steps=2", "max_steps=12"],
    );
    let rows = log_probs(&lab.run("out", &["loss_type=sft"]), None);
    let (sum, tokens) =
        rows.iter().fold((0.0, 0), |(sum, n), row| (sum - chosen(row), n + row.chosen_tokens.expect("labels")));
    let losses = curve(&outcome, "loss");
    assert_near(losses[0], sum / tokens as f64, 1e-5);
    assert!(losses[11] < losses[0] - 0.05, "{losses:?}");
}

#[test]
fn a_trained_tower_and_projector_move_and_the_language_model_stays() {
    let lab = Lab::with_images();
    let outcome = lab.train(
        "out",
        &["use_peft=false", "lora_r=null", "trained_parts=[vision_tower, projector]", "learning_rate=1e-3"],
    );
    assert_near(curve(&outcome, "loss")[0], 3.0 * LN_2, 1e-12);
    let (before, after) = (tensors(&parity("model/llava-tiny").join(MODEL)), tensors(&lab.path("out").join(MODEL)));
    assert!(before.keys().eq(after.keys()));
    for (name, before) in &before {
        let same = before.equal(&after[name]);
        // Features are those of layer −2: the last layer and the post-norm are never run. Softmax cancels a key's bias, up to rounding.
        let read = !name.contains("layers.2.") && !name.contains("post_layernorm");
        if name.starts_with("language_model.") {
            assert!(same, "`{name}` moved");
        } else if !name.contains("k_proj.bias") {
            assert_eq!(same, !read, "`{name}`");
        }
    }
}

#[test]
fn a_fully_trained_checkpoint_loads_again_and_answers_differently() {
    let lab = Lab::with_images();
    lab.train("out", &["use_peft=false", "lora_r=null", "trained_parts=[projector, language_model]"]);
    let out = lab.path("out");
    let model = Model::load(&out, Kind::Float, Device::Cpu, Plan::Full(&[Part::Projector]));
    assert!(!model.unwrap_or_else(|error| panic!("{error}")).trainables.is_empty());
    let before = log_probs(&lab.run("unused", &[]), None);
    let after = log_probs(&lab.run("unused", &[&format!("model_name_or_path={}", out.display())]), None);
    assert!(before.iter().zip(&after).all(|(a, b)| (chosen(a) - chosen(b)).abs() > 1e-3));
    let (before, after) = (tensors(&parity("model/llava-tiny").join(MODEL)), tensors(&out.join(MODEL)));
    let moved = |name: &&String| !before[*name].equal(&after[*name]);
    assert!(before.keys().filter(moved).all(|name| !name.starts_with("vision_tower")));
}

/// Worst difference measured: 2e-5 nats.
#[test]
fn the_merged_checkpoint_answers_as_the_adapter_does() {
    let lab = Lab::with_images();
    lab.train("out", &[]);
    let (out, merged) = (lab.path("out"), lab.path("merged"));
    weights::merge(&parity("model/llava-tiny"), &out, &merged).unwrap_or_else(|error| panic!("{error}"));
    let adapter = log_probs(&lab.run("unused", &[]), Some(&out));
    let merged = log_probs(&lab.run("unused", &[&format!("model_name_or_path={}", merged.display())]), None);
    let bare = log_probs(&lab.run("unused", &[]), None);
    let mut worst = 0.0f64;
    for ((adapter, merged), bare) in adapter.iter().zip(&merged).zip(&bare) {
        assert!((chosen(adapter) - chosen(bare)).abs() > 1e-3, "the adapter does something");
        worst = worst.max((chosen(adapter) - chosen(merged)).abs());
        worst = worst.max((adapter.corrupted.expect("an image") - merged.corrupted.expect("an image")).abs());
    }
    println!("merged and adapter: {worst:.1e} nats");
    assert!(worst <= 1e-4, "{worst:.1e}");
}

#[test]
fn lora_touches_the_language_model_alone() {
    let lab = Lab::with_images();
    lab.train("out", &[]);
    let adapter = tensors(&lab.path("out").join(ADAPTER));
    assert_eq!(adapter.len(), 2 * 2 * 7);
    for (name, tensor) in &adapter {
        assert!(name.starts_with("base_model.model.model.language_model.layers."), "{name}");
        assert!(name.contains("lora_A") || tensor.abs().max().double_value(&[]) > 0.0, "`{name}` did not move");
    }
    let one = lab.train("some", &["lora_target_modules=[q_proj, down_proj]"]);
    assert_eq!(tensors(&one.folder.join(ADAPTER)).len(), 2 * 2 * 2);
}

#[test]
fn the_trainer_state_has_the_names_of_transformers_and_trl() {
    let lab = Lab::with_images();
    lab.train("out", &["max_steps=5", "logging_steps=2", "save_steps=2"]);
    for folder in [lab.path("out"), lab.path("out/checkpoint-4")] {
        let text = fs::read_to_string(folder.join("trainer_state.json")).expect("the state");
        let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for name in [
            "best_metric",
            "epoch",
            "global_step",
            "is_world_process_zero",
            "log_history",
            "logging_steps",
            "max_steps",
            "num_train_epochs",
            "save_steps",
            "total_flos",
            "train_batch_size",
        ] {
            assert!(state.get(name).is_some(), "`{name}`");
        }
        let history = state["log_history"].as_array().expect("a list");
        for entry in history {
            for name in [
                "loss",
                "grad_norm",
                "learning_rate",
                "rewards/chosen",
                "rewards/rejected",
                "rewards/margins",
                "rewards/accuracies",
                "logps/chosen",
                "logps/rejected",
                "logits/chosen",
                "logits/rejected",
                "entropy",
                "mean_token_accuracy",
                "num_tokens",
                "epoch",
                "step",
                "rewards/image_margins",
                "loss/conditional",
            ] {
                assert!(number(&entry[name]).is_finite(), "`{name}` in {entry}");
            }
        }
        let steps: Vec<f64> = history.iter().map(|entry| number(&entry["step"])).collect();
        assert_eq!(steps, if folder.ends_with("out") { vec![1.0, 2.0, 4.0, 5.0] } else { vec![1.0, 2.0, 4.0] });
    }
}

#[test]
fn means_are_over_everything_and_never_of_means() {
    let mut all = Metrics::default();
    all.add("loss", 6.0, 3.0);
    let mut more = Metrics::default();
    more.add("loss", 10.0, 1.0);
    all.merge(&more);
    assert_eq!(all.mean("loss"), Some(4.0));
    assert_eq!(kind(mdpo::config::Dtype::Bf16), Kind::BFloat16);
}
