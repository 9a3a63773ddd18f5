//! Every objective through whole runs: what it needs of rows and of a step reaches it, however the step is cut and wherever a run stops.

use mdpo::train::Outcome;
use serde_json::{Value, json};
use std::f64::consts::LN_2;

use crate::lab::{Lab, curve, largest_difference, row};

const ADAPTER: &str = "adapter_model.safetensors";

/// Eight rows that hold whatever some objective asks for.
fn rows() -> impl Iterator<Item = Value> {
    (0..8).map(|i| {
        let mut row = row(i, (i % 3 != 0).then_some("wide.png"));
        row["score_chosen"] = json!(3.0 + (i % 3) as f64);
        row["score_rejected"] = json!(1.5);
        row["aux_chosen"] = json!({"kind": 0.5 - (i % 2) as f64});
        row["aux_rejected"] = json!({"kind": 0.25});
        row
    })
}

fn train(lab: &Lab, out: &str, keys: &[&str]) -> Outcome {
    lab.train(out, &[&["max_steps=3"], keys].concat())
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{found} ≠ {expected}");
}

/// What each `loss_type` costs when policy and reference agree; none where there is no reference or the figure hangs on the data.
const AT_REFERENCE: [(&[&str], Option<f64>); 21] = [
    (&["loss_type=dpo"], Some(LN_2)),
    (&["loss_type=cdpo", "label_smoothing=0.1"], Some(LN_2)),
    (&["loss_type=hinge"], Some(1.0)),
    (&["loss_type=ipo"], Some(25.0)),
    (&["loss_type=exo_pair", "label_smoothing=0.1"], None),
    (&["loss_type=nca_pair"], Some(2.0 * LN_2)),
    (&["loss_type=robust", "label_smoothing=0.1"], Some(LN_2)),
    (&["loss_type=bco_pair"], Some(2.0 * LN_2)),
    (&["loss_type=sppo_hard"], Some(50.0)),
    (&["loss_type=aot"], Some(LN_2)),
    (&["loss_type=aot_unpaired"], Some(LN_2)),
    (&["loss_type=apo_zero"], Some(1.0)),
    (&["loss_type=[dpo, bco_pair, sft]", "loss_weights=[0.8, 0.2, 1.0]"], None),
    (&["loss_type=dpo", "ld_alpha=0.5"], Some(LN_2)),
    (&["loss_type=kto"], Some(0.5)),
    (&["loss_type=simpo"], None),
    (&["loss_type=orpo"], None),
    (&["loss_type=cpo"], None),
    (&["loss_type=odpo", "odpo_alpha=0.0"], Some(LN_2)),
    (&["loss_type=dmpo"], Some(LN_2)),
    (&["loss_type=hpo", "rewards={kind: 1.0}"], None),
];

#[test]
fn every_objective_trains_and_starts_where_equal_policies_stand() {
    let lab = Lab::new("llava-tiny", rows());
    for (i, (keys, expected)) in AT_REFERENCE.iter().enumerate() {
        let outcome = train(&lab, &format!("out-{i}"), keys);
        let losses = curve(&outcome, "loss");
        assert!(losses.iter().all(|loss| loss.is_finite()), "{keys:?}: {losses:?}");
        if let Some(expected) = expected {
            assert!((losses[0] - expected).abs() < 1e-9, "{keys:?}: {} ≠ {expected}", losses[0]);
        }
        assert!(curve(&outcome, "grad_norm").iter().all(|norm| *norm > 0.0), "{keys:?} moves nothing");
    }
}

/// Worst differences measured: loss 4e-7, adapter 3e-6 (AdamW's first steps are the signs of gradients).
#[test]
fn an_objective_of_the_whole_step_does_not_care_how_the_step_is_cut() {
    let lab = Lab::new("llava-tiny", rows());
    let hpo: &[&str] = &["loss_type=hpo", "rewards={kind: 1.0}"];
    for (name, keys) in [("kto", &["loss_type=kto"][..]), ("aot", &["loss_type=aot"]), ("hpo", hpo)] {
        let cut = |size: &str, times: &str| {
            let out = format!("{name}-{size}");
            let cut = [
                format!("per_device_train_batch_size={size}"),
                format!("gradient_accumulation_steps={times}"),
                "adam_epsilon=1e-4".to_owned(),
            ];
            let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
            (train(&lab, &out, &[keys, &cut].concat()), lab.path(&out).join(ADAPTER))
        };
        let (whole, adapter) = cut("8", "1");
        for (size, times) in [("4", "2"), ("1", "8")] {
            let (cut, cut_adapter) = cut(size, times);
            for metric in ["loss", "rewards/chosen", "kl", "grad_norm"] {
                let pairs = curve(&whole, metric).into_iter().zip(curve(&cut, metric));
                let gap = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                println!("{name}, 8×1 and {size}×{times}: {metric} {gap:.1e}");
                assert!(gap <= 2e-5, "{name}, {size}×{times}: {metric} {gap:.1e}");
            }
            let adapters = largest_difference(&adapter, &cut_adapter);
            assert!(adapters <= 1e-5, "{name}, {size}×{times}: adapter {adapters:.1e}");
        }
    }
}

/// The same pairs as rows of their own and as several rejected answers to one prompt.
#[test]
fn several_rejected_answers_to_a_prompt_are_pairs_that_share_it() {
    let answers = ["two dogs", "nothing at all, or nearly", "fog"];
    let pair = |rejected: Value| json!({"prompt": "USER: What? ASSISTANT:", "chosen": "a roof", "rejected": rejected});
    let lab = Lab::new("llava-tiny", []);
    // A row behind them, so that pairs and rows are numbered otherwise.
    let other = || json!({"prompt": "USER: And? ASSISTANT:", "chosen": "a red roof", "rejected": "seven boats"});
    lab.write_rows(answers.iter().map(|answer| pair(json!(answer))).chain([other()]));
    let keys = ["loss_type=dpo", "per_device_train_batch_size=4", "shuffle=false"];
    let apart = train(&lab, "apart", &keys);
    lab.write_rows([pair(json!(answers)), other()]);
    let together = train(&lab, "together", &keys);
    for metric in ["loss", "rewards/chosen", "rewards/margins", "grad_norm"] {
        for (a, b) in curve(&apart, metric).into_iter().zip(curve(&together, metric)) {
            assert_near(a, b, 1e-5);
        }
    }
    assert!(curve(&together, "tokens_per_second").iter().all(|rate| *rate > 0.0));
    assert!(largest_difference(&lab.path("apart").join(ADAPTER), &lab.path("together").join(ADAPTER)) < 1e-4);
}

#[test]
fn rows_with_one_labelled_answer_train_with_kto() {
    let rows = (0..6).map(|i| {
        let said = if i % 2 == 0 { "a red roof" } else { "seven boats" };
        json!({"prompt": format!("USER: {i}? ASSISTANT:"), "completion": said, "label": i % 2 == 0})
    });
    let lab = Lab::new("llava-tiny", rows);
    let outcome = lab.train("out", &["loss_type=kto", "per_device_train_batch_size=6", "max_steps=30"]);
    assert_near(curve(&outcome, "loss")[0], 0.5, 1e-9);
    let last = |metric: &str| *curve(&outcome, metric).last().expect("an entry");
    assert!(last("rewards/chosen") > 0.05 && last("rewards/rejected") < -0.05, "{:?}", outcome.log_history.last());
    assert!(outcome.log_history.iter().all(|entry| entry.get("rewards/margins").is_none()), "no row is a pair");
}

#[test]
fn turns_are_weighted_and_told_apart() {
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let rows = (0..4).map(|i| {
        json!({
            "prompt": [turn("human", &format!("Task {i}"))],
            "chosen": [turn("gpt", "look"), turn("human", "a box"), turn("gpt", "open it")],
            "rejected": [turn("gpt", "wait"), turn("human", "nothing"), turn("gpt", "leave"), turn("human", "ok"), turn("gpt", "end")],
        })
    });
    let lab = Lab::new("llava-tiny", rows);
    let keys = ["loss_type=dmpo", "per_device_train_batch_size=4", "max_steps=8"];
    let outcome = lab.train("out", &[&keys[..], &["dmpo_gamma=0.5"]].concat());
    assert_near(curve(&outcome, "loss")[0], LN_2, 1e-9);
    // φ(0, 2), φ(1, 2) at γ = 0.5.
    let discounts = [1.0, 0.5 * 0.5 / 0.75];
    let chosen = curve(&outcome, "rewards/chosen");
    let turns = [0, 1].map(|turn| curve(&outcome, &format!("rewards/chosen/turn_{turn}")));
    for (step, reward) in chosen.iter().enumerate() {
        assert_near(*reward, (0..2).map(|turn| discounts[turn] * turns[turn][step]).sum(), 1e-9);
    }
    assert!(curve(&outcome, "rewards/rejected/turn_2").last().is_some_and(|reward| *reward != 0.0));
    // The first turn alone: what comes later has no weight and, seen by nothing that has, no influence.
    let first = lab.train("first", &[&keys[..], &["dmpo_gamma=0.0"]].concat());
    let (reward, turn) = (curve(&first, "rewards/chosen"), curve(&first, "rewards/chosen/turn_0"));
    assert!(reward.iter().zip(&turn).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn a_value_head_is_saved_and_goes_on_bit_for_bit() {
    let lab = Lab::new("llava-tiny", rows());
    let keys = ["loss_type=hpo", "rewards={kind: 1.0}", "save_steps=2", "max_steps=4", "hpo_value_learning_rate=0.05"];
    lab.train("straight", &keys);
    lab.train("stopped", &keys);
    // What the run wrote after its second step is gone, as if it had been killed there.
    std::fs::remove_dir_all(lab.path("stopped/checkpoint-4")).expect("a checkpoint");
    lab.train("stopped", &[&keys[..], &["resume_from_checkpoint=true"]].concat());
    for file in [ADAPTER, "value_head.safetensors"] {
        let [a, b] = ["straight", "stopped"].map(|out| lab.path(out).join(file));
        assert_eq!(largest_difference(&a, &b), 0.0, "{file}");
    }
    let head = crate::lab::tensors(&lab.path("straight/value_head.safetensors"));
    assert!(head["v_head.summary.weight"].abs().max().double_value(&[]) > 0.0, "the head has moved");
    let adapter = crate::lab::tensors(&lab.path("straight").join(ADAPTER));
    assert!(adapter.keys().all(|name| name.contains("lora_")), "the head is no part of the adapter");
}

#[test]
fn independent_rejected_images_are_seen_in_the_first_loss() {
    let lab = Lab::with_images();
    let keys = ["per_device_train_batch_size=8", "rejected_image_redraw=forward"];
    let outcome = train(&lab, "out", &keys);
    let losses = curve(&outcome, "loss");
    assert!((losses[0] - 3.0 * LN_2).abs() > 1e-6, "policy and reference see different crops: {}", losses[0]);
    assert_near(curve(&outcome, "loss/preference")[0], LN_2, 1e-9);
    let again = train(&lab, "again", &keys);
    assert_eq!(losses, curve(&again, "loss"), "both crops are addressed");
}
