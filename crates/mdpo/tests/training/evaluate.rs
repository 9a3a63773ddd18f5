//! Evaluation while a run trains: what it says, that it disturbs nothing, and what the best one leads to.

use mdpo::config::Run;
use mdpo::train::{Evaluator, Inputs, Outcome, PictureCheck, Talk, train};
use serde_json::Value;
use std::fs;
use std::path::Path;

use crate::lab::{DROPOUT, Lab, number, parity, row};
use crate::resume::{assert_same_file, history};

const ADAPTER: &str = "adapter_model.safetensors";
const RATES: [&str; 3] = ["eval_strategy=steps", "eval_steps=2", "lr_scheduler_type=constant"];

/// Eight rows to train on, and five others that are held out, one of them without an image.
fn lab() -> Lab {
    let lab = Lab::with_images();
    let image = |i: usize| (i % 5 != 3).then_some(["odd.png", "wide.png", "tall.png"][i % 3]);
    let rows: String = (20..25).map(|i| format!("{}\n", row(i, image(i)))).collect();
    fs::write(lab.path("held-out.jsonl"), rows).expect("rows");
    lab
}

/// The keys of evaluations on the held-out file, and more.
fn keys<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[file], &RATES[..], more].concat()
}

fn file(lab: &Lab) -> String {
    format!("eval_dataset_name={}", lab.path("held-out.jsonl").display())
}

fn evaluations(log: &[Value]) -> Vec<&Value> {
    log.iter().filter(|entry| entry.get("eval_runtime").is_some()).collect()
}

/// One figure of every evaluation.
#[track_caller]
fn figures(outcome: &Outcome, name: &str) -> Vec<f64> {
    evaluations(&outcome.log_history).iter().map(|entry| number(&entry[name])).collect()
}

fn state(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("trainer_state.json")).expect("a state");
    serde_json::from_str(&text).expect("JSON")
}

/// Before the first step the policy is its reference, and every metric is the one that training on those rows logs for its first step.
#[test]
fn an_evaluation_says_what_training_says_of_the_same_rows() {
    let ln2 = std::f64::consts::LN_2;
    // One row of five has no image, so it has one term less that costs ln 2.
    let mdpo = ln2 + ln2 * 4.0 / 5.0 + ln2;
    let lab = lab();
    let file = file(&lab);
    let held_out = lab.path("held-out.jsonl");
    let rows = format!("dataset_name={}", held_out.display());
    let cases: [(&str, Option<f64>); 5] =
        [("mdpo", Some(mdpo)), ("dpo", Some(ln2)), ("simpo", None), ("aot", None), ("kto", None)];
    for (loss, expected) in cases {
        let loss_type = format!("loss_type={loss}");
        let all = ["max_steps=1", "per_device_train_batch_size=5", "shuffle=false", "rejected_image_redraw=once"];
        let all = &all[..if loss == "mdpo" { 4 } else { 3 }];
        let trained = lab.train(&format!("{loss}-trained"), &[&[rows.as_str(), &loss_type], all].concat());
        let keys = keys(&file, &["eval_on_start=true", "max_steps=1", "per_device_eval_batch_size=2", &loss_type]);
        let evaluated = lab.train(&format!("{loss}-evaluated"), &keys);
        let found = evaluations(&evaluated.log_history);
        assert_eq!(found.len(), 2, "before the first step and after the last");
        assert_eq!((number(&found[0]["step"]), number(&found[1]["step"])), (0.0, 1.0));
        let (mut compared, trained) = (0, trained.log_history[0].as_object().expect("an entry"));
        for (name, value) in trained {
            let Some(evaluated) = found[0].get(format!("eval_{name}")) else { continue };
            if !name.ends_with("per_second") {
                let (evaluated, trained) = (number(evaluated), number(value));
                assert!(
                    (evaluated - trained).abs() <= 2e-6 * trained.abs().max(1.0),
                    "{loss} {name}: {evaluated} ≠ {trained}"
                );
                compared += 1;
            }
        }
        assert!(compared >= 8, "{loss}: {compared} metrics");
        if let Some(expected) = expected {
            assert!((number(&found[0]["eval_loss"]) - expected).abs() < 1e-6, "{loss}: {}", found[0]["eval_loss"]);
        }
        if loss == "mdpo" {
            for name in ["eval_rewards/accuracies", "eval_rewards/image_accuracies", "eval_rewards/image_margins"] {
                assert!(found[1][name].is_number(), "{name} in {}", found[1]);
            }
            assert!(number(&found[1]["eval_rewards/image_margins"]) != 0.0);
        }
    }
}

/// The reference of held-out rows and their rejected images are the same in every evaluation: a policy that does not move says the same.
#[test]
fn every_evaluation_sees_the_same() {
    let lab = lab();
    let file = file(&lab);
    // A rate so small that f32 weights of this size do not move.
    let outcome = lab.train("out", &keys(&file, &["eval_on_start=true", "learning_rate=1e-30", "max_steps=6"]));
    let losses = figures(&outcome, "eval_loss");
    assert_eq!(losses.len(), 4);
    assert!(losses.iter().all(|loss| loss.to_bits() == losses[0].to_bits()), "{losses:?}");
    let chosen = figures(&outcome, "eval_logps/corrupted");
    assert!(chosen.iter().all(|sum| sum.to_bits() == chosen[0].to_bits()), "{chosen:?}");
    // How rows meet in a pass does not matter either.
    let cut = lab.train("cut", &keys(&file, &["per_device_eval_batch_size=1", "learning_rate=1e-30", "max_steps=2"]));
    assert!((figures(&cut, "eval_loss")[0] - losses[0]).abs() < 1e-12);
}

#[test]
fn a_run_with_evaluations_ends_where_the_one_without_does() {
    let _alone = DROPOUT.lock();
    let lab = lab();
    let file = file(&lab);
    let full: [&str; 3] = ["use_peft=false", "lora_r=null", "trained_parts=[projector, language_model, vision_tower]"];
    let cases: [(&[&str], &str); 3] =
        [(&["lora_dropout=0.1"], ADAPTER), (&["loss_type=kto", "bf16=true"], ADAPTER), (&full, "model.safetensors")];
    for (i, (case, name)) in cases.into_iter().enumerate() {
        let case = [case, &["max_steps=5", "lr_scheduler_type=constant"]].concat();
        let (without, with) = (format!("without-{i}"), format!("with-{i}"));
        let without = lab.train(&without, &case);
        let with = lab.train(
            &with,
            &[&case[..], &[file.as_str(), "eval_strategy=steps", "eval_steps=1", "eval_on_start=true"]].concat(),
        );
        assert_eq!(evaluations(&with.log_history).len(), 6);
        assert_same_file(&without.folder.join(name), &with.folder.join(name));
        let trained: Vec<Value> =
            with.log_history.iter().filter(|entry| entry.get("loss").is_some()).cloned().collect();
        assert_eq!(history(&without.log_history), history(&trained));
    }
}

/// The rate is so high that the policy is best early: its checkpoint stays and is what `output_dir` holds, byte for byte.
#[test]
fn the_best_is_kept_and_is_what_the_run_ends_with() {
    let lab = lab();
    let file = file(&lab);
    let best =
        ["load_best_model_at_end=true", "save_steps=2", "max_steps=6", "save_total_limit=1", "learning_rate=2e-2"];
    let outcome = lab.train("out", &keys(&file, &best));
    let losses = figures(&outcome, "eval_loss");
    let at = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).expect("evaluations");
    assert!(losses.len() == 3 && at < 2, "the test needs a best that is not the last: {losses:?}");
    let (step, out) = (2 * (at + 1), lab.path("out"));
    let checkpoint = out.join(format!("checkpoint-{step}"));
    assert_same_file(&checkpoint.join(ADAPTER), &out.join(ADAPTER));
    assert!(
        fs::read(out.join(ADAPTER)).expect("a file")
            != fs::read(out.join("checkpoint-6").join(ADAPTER)).expect("a file")
    );
    let kept = (1..=6).filter(|step| out.join(format!("checkpoint-{step}")).exists());
    assert_eq!(kept.collect::<Vec<_>>(), [step, 6], "the best and the newest, over the limit");
    for folder in [out.clone(), out.join("checkpoint-6")] {
        let state = state(&folder);
        assert_eq!((number(&state["best_metric"]), &state["best_global_step"]), (losses[at], &Value::from(step)));
        assert_eq!(state["best_model_checkpoint"], *checkpoint.to_string_lossy());
        assert_eq!((&state["eval_steps"], &state["global_step"]), (&Value::from(2), &Value::from(6)));
    }
    let card = fs::read_to_string(out.join("README.md")).expect("a card");
    assert!(card.contains(&format!("for {step} optimizer steps")), "{card}");

    // Without it the run ends with its last step, and the best is told all the same.
    let last = lab.train(
        "last",
        &keys(&file, &["metric_for_best_model=loss", "save_steps=2", "max_steps=6", "learning_rate=2e-2"]),
    );
    assert_same_file(&last.folder.join(ADAPTER), &out.join("checkpoint-6").join(ADAPTER));
    assert_eq!(state(&last.folder)["best_global_step"], Value::from(step));
}

#[test]
fn a_new_best_is_saved_where_the_recipe_saves_nothing() {
    let lab = lab();
    let file = file(&lab);
    lab.train(
        "out",
        &keys(
            &file,
            &[
                "load_best_model_at_end=true",
                "save_steps=6",
                "max_steps=6",
                "learning_rate=2e-2",
                "early_stopping_patience=9",
            ],
        ),
    );
    let step = &state(&lab.path("out"))["best_global_step"];
    assert!(step != 6, "the test needs a best before the end");
    assert_same_file(&lab.path(&format!("out/checkpoint-{step}/{ADAPTER}")), &lab.path(&format!("out/{ADAPTER}")));
}

#[test]
fn early_stopping_stops_after_as_many_evaluations_as_it_may_wait() {
    let lab = lab();
    let file = file(&lab);
    // Both answers get more reward the longer this is trained: by less of it the first evaluation after a step stays the best.
    let metric = ["metric_for_best_model=eval_rewards/rejected", "greater_is_better=false"];
    let steps = ["early_stopping_patience=2", "max_steps=20", "save_steps=2", "eval_on_start=true"];
    let wait = keys(&file, &[&metric[..], &steps].concat());
    let outcome = lab.train("out", &wait);
    let rejected = figures(&outcome, "eval_rewards/rejected");
    assert_eq!((outcome.steps, rejected.len()), ((6, 20), 4), "{rejected:?}");
    assert!(rejected.is_sorted_by(|a, b| a < b), "{rejected:?}");
    assert_eq!(state(&lab.path("out"))["best_global_step"], 2, "what it starts from is not one of its models");
    assert!(!outcome.interrupted && lab.path("out/README.md").exists());
    // It has ended: going on from there is ending again, unless it may wait longer.
    let resumed = [&wait[..], &["resume_from_checkpoint=true"]].concat();
    assert_eq!(lab.train("out", &resumed).steps, (6, 20));
    let mut longer = resumed.clone();
    longer.retain(|key| !key.contains("patience"));
    longer.push("early_stopping_patience=3");
    assert_eq!(lab.train("out", &longer).steps, (8, 20));
}

#[test]
fn a_resumed_run_evaluates_as_the_straight_one() {
    let lab = lab();
    let file = file(&lab);
    let keys = keys(
        &file,
        &[
            "load_best_model_at_end=true",
            "save_steps=2",
            "max_steps=8",
            "learning_rate=2e-2",
            "early_stopping_patience=3",
            "eval_on_start=true",
        ],
    );
    let straight = lab.train("straight", &keys);
    for step in [2, 4, 6] {
        let from = format!("resume_from_checkpoint={}", lab.path(&format!("straight/checkpoint-{step}")).display());
        let name = format!("from-{step}");
        let resumed = lab.train(&name, &[&keys[..], &[from.as_str()]].concat());
        assert_eq!(history(&straight.log_history), history(&resumed.log_history), "from step {step}");
        assert_same_file(&straight.folder.join(ADAPTER), &resumed.folder.join(ADAPTER));
        let (straight, resumed) = (state(&straight.folder), state(&resumed.folder));
        for name in ["best_metric", "best_global_step"] {
            assert_eq!(straight[name], resumed[name], "from step {step}");
        }
    }
    let from = format!("resume_from_checkpoint={}", lab.path("straight/checkpoint-4").display());
    let message = lab.refused("other", &[&keys[..], &[from.as_str(), "max_eval_samples=3"]].concat());
    assert!(message.contains("`metric_for_best_model`") && message.contains("the best evaluation so far"), "{message}");
}

#[test]
fn a_share_is_held_out_and_never_trained_on() {
    let lab = Lab::with_images();
    let open = |keys: &[&str]| {
        let run = lab.run("out", &[&["eval_strategy=steps"], keys].concat());
        let (training, held_out) =
            Inputs::open_with_held_out(&run, PictureCheck::Header).unwrap_or_else(|error| panic!("{error}"));
        let rows = |inputs: &Inputs| inputs.examples.iter().map(|example| example.row.row).collect::<Vec<_>>();
        (
            rows(&training),
            rows(&held_out.expect("rows are held out")),
            rows(&Inputs::open(&run, PictureCheck::Header).expect("rows")),
        )
    };
    for (key, count) in [("val_size=0.25", 2), ("val_size=3", 3), ("val_size=0.01", 1)] {
        let (training, held_out, alone) = open(&[key]);
        assert_eq!((held_out.len(), &training), (count, &alone), "{key}");
        let mut all = [training, held_out].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=8).collect::<Vec<_>>(), "{key}");
    }
    assert_ne!(open(&["val_size=2"]).1, open(&["val_size=2", "seed=7"]).1);
    assert_eq!(open(&["val_size=3", "max_eval_samples=2"]).1, open(&["val_size=3"]).1[..2]);
    let message = lab.refused("out", &["eval_strategy=steps", "val_size=8"]);
    assert!(message.contains("`val_size`: holds out 8 of 8 rows"), "{message}");
    let outcome = lab.train("out", &["eval_strategy=epoch", "val_size=2", "max_steps=-1", "num_train_epochs=2"]);
    assert_eq!(figures(&outcome, "step"), [3.0, 6.0]);
    let message = lab.refused(
        "out",
        &["eval_strategy=epoch", "val_size=3", "resume_from_checkpoint=true", "max_steps=-1", "num_train_epochs=2"],
    );
    assert!(message.contains("`val_size` (was 2, is 3)"), "{message}");
}

/// All of it before the weights are read: the checkpoint has none.
#[test]
fn what_cannot_be_evaluated_is_refused_before_the_weights_are_read() {
    let lab = lab();
    let bare = lab.path("bare");
    fs::create_dir(&bare).expect("a folder");
    for entry in fs::read_dir(parity("model/llava-tiny")).expect("a checkpoint") {
        let path = entry.expect("a file").path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::copy(&path, bare.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    let model = format!("model_name_or_path={}", bare.display());
    let file = file(&lab);
    let refused = |more: &[&str]| lab.refused("out", &[&keys(&file, &[&model])[..], more].concat());
    let message = refused(&["metric_for_best_model=accuracy"]);
    for part in [
        "`eval_accuracy` is none of what an evaluation of this run gives",
        "`eval_loss`",
        "`eval_rewards/image_accuracies`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(refused(&["metric_for_best_model=rewards/accuracy"]).contains("did you mean `eval_rewards/accuracies`?"));
    // The same file under another name of its folder.
    let rows = format!("dataset_name={}", lab.path("./held-out.jsonl").display());
    let message = refused(&[&rows]);
    assert!(
        message.contains("`eval_dataset_name`: ") && message.contains("held-out.jsonl` is trained on too"),
        "{message}"
    );
    fs::write(lab.path("held-out.jsonl"), format!("{}\n{{}}\n[]\n", row(3, Some("wide.png")))).expect("rows");
    let message = refused(&[]);
    for part in ["held-out rows: ", "held-out.jsonl line 2", "held-out.jsonl line 3", "2 of 3 rows"] {
        assert!(message.contains(part), "{message}");
    }
}

/// The names that a metric may have are those of the log, for every objective.
#[test]
fn known_metrics_are_those_that_are_logged() {
    let lab = lab();
    let file = file(&lab);
    for loss in ["mdpo", "dpo", "sft", "orpo", "cpo", "kto", "aot", "apo_zero_unpaired", "dmpo"] {
        let loss_type = format!("loss_type={loss}");
        let outcome = lab.train(loss, &keys(&file, &[loss_type.as_str(), "max_steps=1"]));
        let logged = evaluations(&outcome.log_history)[0].as_object().expect("an entry");
        let others = ["eval_runtime", "eval_samples_per_second"];
        let logged = logged.keys().filter(|name| name.starts_with("eval_") && !others.contains(&name.as_str()));
        let run: Run = lab.run("unused", &keys(&file, &[loss_type.as_str(), "metric_for_best_model=nonsense"]));
        let (_, held_out) = Inputs::open_with_held_out(&run, PictureCheck::Header).expect("rows");
        let message = Evaluator::new(&run, held_out).expect_err("a refusal").to_string();
        let known: Vec<&str> = message.split('`').skip(1).step_by(2).filter(|name| name.starts_with("eval_")).collect();
        for name in logged {
            assert!(known.contains(&name.as_str()), "{loss}: `{name}` is not in {message}");
        }
    }
}

/// A signal during an evaluation leaves it out of the checkpoint; here by hand: a run without evaluations that goes on with them makes up for it.
#[test]
fn what_was_not_evaluated_is_when_the_run_goes_on() {
    let lab = lab();
    let file = file(&lab);
    lab.train("out", &["max_steps=4", "save_steps=2", "lr_scheduler_type=constant"]);
    fs::remove_dir_all(lab.path("out/checkpoint-4")).expect("removed");
    let run = lab.run("out", &keys(&file, &["max_steps=4", "save_steps=2", "resume_from_checkpoint=true"]));
    let outcome = train(&run, Talk::Silent).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(figures(&outcome, "step"), [2.0, 4.0]);
}

/// A folder of one's own as a benchmark, and a file of prompts: both are answered by the policy of that step, greedily.
#[test]
fn prompts_and_benchmarks_are_answered_and_kept() {
    let lab = lab();
    let images = parity("model/images");
    let prompts = [
        serde_json::json!({"id": "a", "prompt": "What do you see?", "image": images.join("wide.png")}),
        serde_json::json!({"prompt": "And without a picture?"}),
    ];
    fs::write(lab.path("prompts.jsonl"), prompts.map(|row| format!("{row}\n")).concat()).expect("prompts");
    let data = lab.path("objects");
    fs::create_dir(&data).expect("a folder");
    let rows: String = ["wide.png", "tall.png", "odd.png"]
        .iter()
        .zip(["boat", "roof", "sun"])
        .map(|(image, object)| format!("{}\n", serde_json::json!({"id": image, "image": image, "objects": [object]})))
        .collect();
    fs::write(data.join("objects.jsonl"), rows).expect("rows");
    for image in ["wide.png", "tall.png", "odd.png"] {
        fs::copy(images.join(image), data.join(image)).expect("copied");
    }
    let prompts = format!("eval_prompts={}", lab.path("prompts.jsonl").display());
    let benchmarks = format!("eval_benchmarks=[{{name: objects, data: {}, limit: 2}}]", data.display());
    let answers = ["eval_max_new_tokens=3", "eval_on_start=true", "max_steps=2", &prompts, &benchmarks];
    let outcome = lab.train("out", &[&RATES[..], &answers].concat());
    for (entry, step) in evaluations(&outcome.log_history).into_iter().zip([0, 2]) {
        let folder = lab.path(&format!("out/evaluations/step-{step}"));
        let lines = |path: &str| -> Vec<Value> {
            let text = fs::read_to_string(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
        };
        let samples = lines("samples.jsonl");
        assert_eq!((&samples[0]["id"], &samples[1]["id"]), (&Value::from("a"), &Value::from("2")));
        assert_eq!(samples[0]["question"], "What do you see?");
        assert_eq!(samples[0]["image"], *images.join("wide.png").to_string_lossy());
        assert!(samples[1].get("image").is_none() && samples.iter().all(|line| line["answer"].is_string()));
        let (rows, answers) = (lines("objects/rows.jsonl"), lines("objects/answers.jsonl"));
        assert_eq!(rows.len(), answers.len());
        assert!(!rows.is_empty() && rows.iter().zip(&answers).all(|(row, answer)| row["answer"] == answer["answer"]));
        let metrics = fs::read_to_string(folder.join("objects/metrics.json")).expect("figures");
        let metrics: Value = serde_json::from_str(&metrics).expect("JSON");
        for figure in metrics["figures"].as_array().expect("figures") {
            let name = format!("eval_objects_{}", figure["name"].as_str().expect("a name"));
            assert_eq!(entry[&name], figure["value"], "{name}");
        }
    }
    // The direction of a figure is the benchmark's own.
    let keys = [&RATES[..], &answers, &["metric_for_best_model=objects_nonsense"]].concat();
    let message = lab.refused("other", &keys);
    assert!(message.contains("`eval_objects_"), "{message}");
    let broken = format!("eval_benchmarks=[{{name: objets, data: {}}}]", data.display());
    let message = lab.refused("other", &[&RATES[..], &[broken.as_str()]].concat());
    let expected = "`eval_benchmarks`: `objets` is no benchmark\n  hint: did you mean `objects`?";
    assert!(message.starts_with(expected), "{message}");
}
