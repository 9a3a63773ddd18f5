//! Hidden states, log-probs and gradients against transformers and peft, on tiny random checkpoints (`parity/model/generate.py`).
//!
//! Each test prints the worst difference it found; the tolerance is a small multiple of what was measured when it was written.

#[path = "common/cases.rs"]
mod cases;

use cases::{
    ALL_PARTS, Fixture, MODELS, POLICY, difference, features, gradient, gradients, prepare, prompt, relative, response,
    text, two_log_probs,
};
use mdpo::config::{AdapterStart, Lora, Reference, Targets};
use mdpo::logprob::{Gradients, log_probs};
use mdpo::model::language::Keep;
use mdpo::model::load::Plan;
use mdpo::model::{DeviceBatch, Model, States};
use mdpo::nn::{Pass, Role};
use mdpo::text::pack::PackedBatch;
use std::path::Path;
use tch::{Device, Kind, Tensor};

fn open(name: &str) -> Fixture {
    Fixture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/model"), name)
}

fn model_of(fixture: &Fixture, plan: Plan) -> Model {
    fixture.load(Kind::Float, Device::Cpu, plan)
}

fn canonical(name: &str) -> String {
    let tables = [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ];
    let found = tables.iter().find_map(|(written, ours)| Some((ours, name.strip_prefix(written)?)));
    found
        .map_or(name.to_owned(), |(ours, rest)| format!("{ours}{}", rest.strip_prefix("vision_model.").unwrap_or(rest)))
}

#[test]
fn features_hidden_states_and_log_probs_equal_transformers() {
    let [mut tower, mut projected, mut hidden, mut log_prob] = [0f64; 4];
    for name in MODELS {
        let fixture = open(name);
        let model = model_of(&fixture, Plan::Frozen { adapter: None });
        for case in fixture.cases() {
            let (batch, pixels) = prepare(&model, &fixture, case);
            let features = tch::no_grad(|| features(&model, &pixels));
            if let (Some(features), Some(expected)) = (&features, fixture.expected(case, "vision_features")) {
                tower = tower.max(difference(features, expected));
                let found = tch::no_grad(|| model.project(features, POLICY)).expect("a projector");
                let expected = fixture.expected(case, "image_features").expect("projected features");
                projected = projected.max(difference(&found, &expected.flatten(0, 1)));
            }
            let run = model.forward(&batch, features.as_ref(), POLICY, Keep::Nothing);
            let expected = fixture.expected(case, "hidden_chosen").expect("hidden states");
            // transformers also ran the last token, from which nothing is predicted.
            let rows = expected.size()[0] - 1;
            let whole = DeviceBatch::with_states(batch.packed.clone(), Device::Cpu, States::All);
            let all = model.forward(&whole, features.as_ref(), POLICY, Keep::Nothing);
            hidden = hidden.max(difference(&all.hidden().narrow(0, 0, rows), &expected.narrow(0, 0, rows)));
            // The last layer computed for some rows only.
            let predictors = Tensor::from_slice(&batch.packed.predictors());
            hidden = hidden.max(difference(run.hidden(), &all.hidden().index_select(0, &predictors)));
            let head = model.language.head(POLICY);
            let sums = log_probs(run.hidden(), &head, &batch.packed, Gradients::Unwanted).sums();
            for (i, key) in ["logp_chosen", "logp_rejected"].into_iter().enumerate() {
                log_prob = log_prob.max((sums.double_value(&[i as i64]) - case[key].as_f64().expect("number")).abs());
            }
        }
    }
    println!("worst: tower {tower:e}, projected {projected:e}, hidden {hidden:e}, log-prob {log_prob:e}");
    assert!(tower < 2e-5 && projected < 2e-5 && hidden < 5e-5 && log_prob < 3e-4);
}

#[test]
fn gradients_of_every_part_equal_transformers_with_and_without_checkpointing() {
    let (mut worst, mut compared) = (0f64, 0);
    for name in MODELS {
        let fixture = open(name);
        for keep in [Keep::Graph, Keep::LayerInputs] {
            let model = model_of(&fixture, Plan::Full(&ALL_PARTS));
            for case in fixture.cases() {
                gradients(&model, &fixture, case, keep);
                for written in case["gradients"].as_array().expect("gradients").iter().map(text) {
                    let expected = fixture.expected(case, &format!("grad.{written}")).expect("a gradient");
                    let found = relative(&gradient(&model, &canonical(written)), expected);
                    assert!(found < 1e-3, "{name} {} {written} {keep:?}: {found}", case["name"]);
                    worst = worst.max(found);
                    compared += 1;
                }
            }
        }
    }
    println!("worst relative difference of {compared} gradients: {worst:e}");
    assert!(compared > 50 && worst < 2e-4);
}

#[test]
fn adapters_give_peft_s_log_probs_and_gradients() {
    let (mut worst, mut worst_gradient) = (0f64, 0f64);
    for name in ["llava-tiny", "llama-tiny"] {
        let fixture = open(name);
        for adapter in fixture.cases["adapters"].as_array().expect("adapters") {
            let path = text(&adapter["path"]);
            let file = mdpo::weights::lora::read(&fixture.folder.join(path)).unwrap_or_else(|error| panic!("{error}"));
            let (targets, start) = (Targets::AllLinear, AdapterStart::Fresh);
            let settings = Lora { r: 4, alpha: 8.0, dropout: 0.0, rslora: false, targets, start };
            let plan = Plan::Lora { settings: &settings, seed: 0, start: Some((file, Reference::Base)) };
            let model = model_of(&fixture, plan);
            for values in adapter["cases"].as_array().expect("cases") {
                let Some(case) = fixture.cases().find(|case| case["name"] == values["name"]) else { continue };
                for (role, key) in [(Role::Policy, "on"), (Role::Reference, "off")] {
                    let found = two_log_probs(&model, &fixture, case, Pass::of(role));
                    for (i, found) in found.into_iter().enumerate() {
                        worst = worst.max((found - values[key][i].as_f64().expect("number")).abs());
                    }
                }
                gradients(&model, &fixture, case, Keep::LayerInputs);
                let prefix = format!("{path}.{}.grad.base_model.model.", text(&case["name"]));
                for (key, expected) in &fixture.expected {
                    if let Some(name) = key.strip_prefix(&prefix) {
                        worst_gradient = worst_gradient.max(relative(&gradient(&model, name), expected));
                    }
                }
            }
        }
    }
    println!("worst log-prob {worst:e}, worst relative gradient {worst_gradient:e}");
    assert!(worst < 3e-4 && worst_gradient < 2e-4 && worst_gradient > 0.0);
}

#[test]
fn a_shared_prompt_equals_separate_sequences() {
    let fixture = open("llava-tiny");
    let model = model_of(&fixture, Plan::Frozen { adapter: None });
    for case in fixture.cases() {
        let shared = two_log_probs(&model, &fixture, case, POLICY);
        let (_, pixels) = prepare(&model, &fixture, case);
        let features = tch::no_grad(|| features(&model, &pixels));
        for (key, shared) in ["chosen_ids", "rejected_ids"].into_iter().zip(shared) {
            let mut alone = PackedBatch::default();
            alone.push(&prompt(&model, case), &[&response(&case[key])], |image| image);
            let alone = DeviceBatch::new(alone, Device::Cpu);
            let run = model.forward(&alone, features.as_ref(), POLICY, Keep::Nothing);
            let head = model.language.head(POLICY);
            let sum = log_probs(run.hidden(), &head, &alone.packed, Gradients::Unwanted).sums().double_value(&[0]);
            assert!((sum - shared).abs() < 1e-4, "{} {key}: {sum} ≠ {shared}", case["name"]);
        }
    }
}

/// `llama-tiny`, whose head is tied, with the head stored as well: the table plus `difference`.
fn with_stored_head(difference: f64) -> tempfile::TempDir {
    let fixture = open("llama-tiny");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(fixture.folder.join("config.json"), folder.path().join("config.json")).expect("copied");
    let mut tensors = Tensor::read_safetensors(fixture.folder.join("model.safetensors")).expect("the weights");
    let table = tensors.iter().find(|(name, _)| name == "model.embed_tokens.weight").expect("the table").1.copy();
    tensors.push(("lm_head.weight".to_owned(), table + difference));
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let metadata = std::collections::BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    mdpo::weights::write_safetensors(&folder.path().join("model.safetensors"), named, &metadata).expect("written");
    folder
}

#[test]
fn a_stored_tied_head_is_the_embedding_table_or_refused() {
    let load = |folder: &Path| Model::load(folder, Kind::Float, Device::Cpu, Plan::Frozen { adapter: None });
    load(with_stored_head(0.0).path()).expect("the same table twice");
    let error = load(with_stored_head(0.5).path()).expect_err("another head").to_string();
    assert!(error.contains("lm_head.weight") && error.contains("tie_word_embeddings"), "{error}");
}

/// PEFT's `all-linear` also adapts the tower's last layer, which LLaVA never runs: the factors are checked and change nothing.
#[test]
fn an_adapter_on_a_layer_that_is_never_run_loads() {
    use mdpo::weights::{AdapterConfig, LoraFile, LoraPair};
    let fixture = open("llava-tiny");
    let adapter = |outputs: i64| {
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let pair = LoraPair { a: ones([1, 24]), b: ones([outputs, 1]) };
        let path = "model.vision_tower.encoder.layers.2.mlp.fc1".to_owned();
        LoraFile { config: AdapterConfig { r: 1, ..AdapterConfig::default() }, tensors: [(path, pair)].into() }
    };
    let load = |adapter: LoraFile| {
        Model::load(&fixture.folder, Kind::Float, Device::Cpu, Plan::Frozen { adapter: Some(adapter) })
    };
    let adapted = load(adapter(40)).unwrap_or_else(|error| panic!("{error}"));
    let bare = model_of(&fixture, Plan::Frozen { adapter: None });
    let case = fixture.cases().find(|case| case["name"] == "one_image").expect("the case");
    assert_eq!(two_log_probs(&adapted, &fixture, case, POLICY), two_log_probs(&bare, &fixture, case, POLICY));
    assert!(load(adapter(41)).expect_err("a wrong shape").to_string().contains("layers.2.mlp.fc1"));
}
