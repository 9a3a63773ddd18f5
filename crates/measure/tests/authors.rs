//! Figures against what the authors' own scripts say of the same answers (`parity/evaluation`).

use mdpo_measure::benchmark::{Benchmark, Loaded, Missing, Options};
use mdpo_measure::interval::Bootstrap;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/evaluation")
}

/// A figure of ours, the authors' group and name for it, and what theirs is multiplied with to be a percent.
type Pair = (&'static str, &'static str, &'static str, f64);

fn compare(benchmark: Benchmark, folder: &str, answers: &str, tolerance: f64, pairs: &[Pair]) {
    let expected = std::fs::read_to_string(fixtures().join("expected.json")).expect("expected values");
    let expected: serde_json::Value = serde_json::from_str(&expected).expect("JSON");
    let loaded = Loaded::open(benchmark, &fixtures().join(folder), &Options::default());
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let answers = loaded.read_answers(&fixtures().join(folder).join(answers)).unwrap_or_else(|error| panic!("{error}"));
    let bootstrap = Bootstrap { resamples: 1, seed: 1 };
    let scored = loaded.score(&answers, Missing::Refuse, bootstrap);
    let figures = scored.unwrap_or_else(|error| panic!("{error}")).figures.figures;
    for (ours, group, theirs, scale) in pairs {
        let figure = figures.iter().find(|figure| figure.name == *ours).expect("a figure");
        let theirs = expected[group][theirs].as_f64().expect("a number") * scale;
        let ours = figure.value.expect("a value");
        assert!((ours - theirs).abs() <= tolerance, "{benchmark} {}: {ours}, the authors have {theirs}", figure.name);
    }
}

/// Their figures have one decimal, and 0.001 in every denominator: 0.1 at most here.
#[test]
fn amber_is_that_of_its_authors() {
    let group = "amber-generative";
    let names = ["CHAIR", "Cover", "Hal", "Cog"].map(|name| (name, group, name, 1.0));
    compare(Benchmark::AmberGenerative, "amber", "described.json", 0.1, &names);
    let pairs = [
        ("existence/accuracy", "Accuracy"),
        ("existence/precision", "Precision"),
        ("existence/recall", "Recall"),
        ("existence/F1", "F1"),
    ];
    compare(
        Benchmark::AmberDiscriminative,
        "amber",
        "answered.json",
        0.11,
        &pairs.map(|(a, b)| (a, "existence", b, 1.0)),
    );
}

#[test]
fn pope_is_that_of_its_authors() {
    let pairs = [
        ("random/accuracy", "Accuracy"),
        ("random/precision", "Precision"),
        ("random/recall", "Recall"),
        ("random/F1", "F1 score"),
        ("random/yes_share", "Yes ratio"),
    ];
    compare(Benchmark::Pope, "pope", "answers.jsonl", 1e-9, &pairs.map(|(a, b)| (a, "pope", b, 100.0)));
}

/// RLAIF-V's script as it runs without GPT, where every mention counts.
#[test]
fn chair_is_that_of_object_halbench() {
    let pairs = [
        ("CHAIRs", "CHAIRs"),
        ("CHAIRs_refine", "CHAIRs_refine"),
        ("CHAIRi_mentions", "CHAIRi"),
        ("recall", "obj_rec"),
    ];
    compare(Benchmark::Chair, "coco", "answers.jsonl", 1e-9, &pairs.map(|(a, b)| (a, "chair", b, 1.0)));
}
