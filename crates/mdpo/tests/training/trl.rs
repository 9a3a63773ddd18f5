//! Twenty steps by TRL's own trainers (`parity/trajectory/generate.py`) and by mdpo: the same rows, images, adapter and keys, from the
//! files on the disk to the adapter at the end.

use serde_json::{Value, json};
use std::fs;

use crate::lab::{Lab, curve, largest_difference, number, parity};

/// How far two curves are from each other.
#[derive(Debug)]
struct Gap {
    max: f64,
    mean: f64,
}

impl Gap {
    fn of(a: &[f64], b: &[f64]) -> Gap {
        assert_eq!(a.len(), b.len());
        let gaps: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
        Gap { max: gaps.iter().copied().fold(0.0, f64::max), mean: gaps.iter().sum::<f64>() / gaps.len() as f64 }
    }
}

/// Largest differences that a run may show.
struct Limit {
    loss: f64,
    mean_loss: f64,
    norm: f64,
    metric: f64,
    adapter: f64,
}

fn rows(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(parity("trajectory").join(name)).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Trains with TRL's arguments and compares every step and the final adapter with TRL's.
fn follow(name: &str, file: &str, limit: &Limit) {
    let folder = parity("trajectory").join(name);
    let text = fs::read_to_string(folder.join("trajectory.json")).expect("trajectory.json");
    let about: Value = serde_json::from_str(&text).expect("JSON");
    let lab = Lab::new("llava-tiny", rows(file));
    let mut keys: Vec<String> = vec!["shuffle=false".to_owned(), "lora_r=null".to_owned()];
    keys.push(format!("adapter_name_or_path={}", json!(parity("trajectory/start"))));
    keys.extend(about["arguments"].as_object().expect("arguments").iter().map(|(key, value)| format!("{key}={value}")));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let outcome = lab.train("out", &keys);

    let steps = about["steps"].as_array().expect("steps");
    let expected = |metric: &str| steps.iter().map(|step| number(&step[metric])).collect::<Vec<f64>>();
    let gap = |metric: &str| Gap::of(&curve(&outcome, metric), &expected(metric));
    let (loss, norm, rate) = (gap("loss"), gap("grad_norm"), gap("learning_rate"));
    let ends = [lab.path("out/adapter_model.safetensors"), folder.join("final.safetensors")];
    let adapter = largest_difference(&ends[0], &ends[1]);
    println!("{name}: loss {loss:?}, gradient norm {norm:?}, adapter {adapter:.1e}");
    assert!(rate.max < 1e-12, "{rate:?}");
    assert!(loss.max <= limit.loss && loss.mean <= limit.mean_loss, "{name}: {loss:?}");
    assert!(norm.max <= limit.norm && adapter <= limit.adapter, "{name}: {norm:?}, {adapter:.1e}");
    for side in ["chosen", "rejected"] {
        for metric in ["rewards", "logps"].map(|what| format!("{what}/{side}")) {
            let gap = gap(&metric);
            println!("{name}: {metric} {gap:?}");
            assert!(gap.max <= limit.metric, "{metric}: {gap:?}");
        }
    }
}

/// Measured: loss max 2.4e-7, mean 8.7e-8; norm 1.1e-6; rewards and log-probs 8e-6; adapter 4.6e-7. TRL's own from f64: 5e-7, 3e-6, 4e-7.
#[test]
fn twenty_steps_of_dpo_are_those_of_trl() {
    let limit = Limit { loss: 2e-6, mean_loss: 5e-7, norm: 1e-5, metric: 5e-5, adapter: 2e-6 };
    follow("sigmoid", "rows.jsonl", &limit);
}

/// Measured: loss (from 25 down to 6) max 6.4e-6, mean 2.2e-6; norm 2.4e-5; adapter 2.2e-7. TRL's own from f64: 8e-6, 3e-5, 6e-7.
#[test]
fn twenty_steps_of_ipo_are_those_of_trl() {
    let limit = Limit { loss: 2e-5, mean_loss: 1e-5, norm: 1e-4, metric: 5e-5, adapter: 2e-6 };
    follow("ipo", "rows.jsonl", &limit);
}

/// MPO, a list of losses with weights. Measured: loss max 8.1e-7, mean 2.9e-7; norm 3.5e-6; adapter 1.3e-7. TRL's own from f64: 1e-6, 3e-6, 2e-7.
#[test]
fn twenty_steps_of_a_list_of_losses_are_those_of_trl() {
    let limit = Limit { loss: 5e-6, mean_loss: 2e-6, norm: 2e-5, metric: 5e-5, adapter: 2e-6 };
    follow("mpo", "rows.jsonl", &limit);
}

#[test]
fn twenty_steps_of_labelled_answers_are_those_of_trl() {
    let limit = Limit { loss: 2e-6, mean_loss: 5e-7, norm: 1e-5, metric: 5e-5, adapter: 2e-6 };
    follow("apo_zero_unpaired", "unpaired.jsonl", &limit);
}
