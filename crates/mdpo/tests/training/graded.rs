//! MMHal-Bench while a run trains, with a judge on loopback: what it costs, and that a judge that fails costs nothing else.

use mdpo::train::{Outcome, Talk, train};
use serde_json::{Value, json};
use std::fs;

use crate::lab::{Lab, parity};
use crate::server::{Act, Asked, Server};

const RATES: [&str; 5] =
    ["eval_strategy=steps", "eval_steps=2", "lr_scheduler_type=constant", "save_steps=2", "eval_max_new_tokens=3"];

/// Three questions of two types.
fn lab() -> Lab {
    let lab = Lab::with_images();
    let folder = lab.path("mmhal");
    fs::create_dir_all(folder.join("images")).expect("a folder");
    let entry = |(index, name): (usize, &str)| {
        fs::copy(parity("model/images").join(name), folder.join("images").join(name)).expect("copied");
        json!({
            "question_type": (["attribute", "counting"][index % 2]), "question_topic": "food", "image_id": index.to_string(),
            "image_src": format!("https://photos.example/{name}"), "image_content": ["Bread"],
            "question": format!("What is number {index}?"), "gt_answer": "Bread.",
        })
    };
    let entries: Vec<Value> = ["wide.png", "tall.png", "odd.png"].into_iter().enumerate().map(entry).collect();
    fs::write(folder.join("response_template.json"), json!(entries).to_string()).expect("questions");
    lab
}

fn keys<'a>(benchmarks: &'a str, url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&RATES[..], &[benchmarks, url, "judge_model=judge"], more].concat()
}

fn benchmarks(lab: &Lab, more: &str) -> String {
    format!("eval_benchmarks=[{{name: mmhal, data: {}{more}}}]", lab.path("mmhal").display())
}

/// Of every evaluation one figure, if it is there.
fn figures(outcome: &Outcome, name: &str) -> Vec<Option<f64>> {
    let evaluations = outcome.log_history.iter().filter(|entry| entry.get("eval_runtime").is_some());
    evaluations.map(|entry| entry.get(name).and_then(Value::as_f64)).collect()
}

/// Grades by the number in the question.
fn grades(asked: &Asked) -> Option<Act> {
    let number = asked.text().split("What is number ").nth(1)?.split('?').next()?.parse::<usize>().ok()?;
    Some(Act::Completion(["Rating: 6", "Rating: 2", "Rating: 3"][number], "stop"))
}

#[test]
fn a_judge_grades_each_evaluation_and_is_asked_nothing_twice() {
    let (lab, server) = (lab(), Server::scripted(grades));
    let (benchmarks, url) = (benchmarks(&lab, ""), format!("judge_url={}", server.url()));
    let keys =
        keys(&benchmarks, &url, &["max_steps=4", "metric_for_best_model=mmhal_score", "early_stopping_patience=9"]);
    let outcome = lab.train("out", &keys);
    let score = Some(11.0 / 3.0);
    assert_eq!(figures(&outcome, "eval_mmhal_score"), [score, score]);
    assert_eq!(figures(&outcome, "eval_mmhal_hallucination_rate_attribute"), [Some(0.0), Some(0.0)]);
    let lines = |path: &str| fs::read_to_string(lab.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    for step in [2, 4] {
        let folder = format!("out/evaluations/step-{step}/mmhal");
        assert_eq!(lines(&format!("{folder}/answers.jsonl")).lines().count(), 3);
        assert!(lines(&format!("{folder}/rows.jsonl")).contains("Rating: 6"));
        let metrics: Value = serde_json::from_str(&lines(&format!("{folder}/metrics.json"))).expect("JSON");
        assert_eq!(metrics["figures"][0]["value"].as_f64(), score);
    }
    // The last steps again: the policy says what it said, and its judge was paid for that.
    let asked = server.asked().len();
    fs::remove_dir_all(lab.path("out/checkpoint-4")).expect("removed");
    let resumed = [&keys[..], &["resume_from_checkpoint=true"]].concat();
    let again = train(&lab.run("out", &resumed), Talk::Silent).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(figures(&again, "eval_mmhal_score"), [score, score]);
    assert_eq!(server.asked().len(), asked);
    // A sample asks less.
    let few = self::benchmarks(&lab, ", limit: 1");
    lab.train("few", &[&RATES[..], &[few.as_str(), url.as_str(), "judge_model=judge", "max_steps=1"]].concat());
    assert_eq!(server.asked().len(), asked + 1);
}

#[test]
fn a_judge_that_fails_costs_an_evaluation_its_figures_and_nothing_else() {
    let lab = lab();
    let refusal = || Act::Say("401 Unauthorized", "", "{\"error\": {\"message\": \"no credit\"}}".to_owned());
    let plain = lab.train("plain", &["lr_scheduler_type=constant", "max_steps=4", "save_steps=2"]);
    // The first evaluation is refused, the second one is graded.
    let server = Server::start([refusal()].into_iter().chain((0..3).map(|_| Act::Completion("Rating: 4", "stop"))));
    let (benchmarks, url) = (benchmarks(&lab, ""), format!("judge_url={}", server.url()));
    let more = ["max_steps=4", "judge_concurrency=1", "metric_for_best_model=mmhal_score", "early_stopping_patience=1"];
    let outcome = lab.train("out", &keys(&benchmarks, &url, &more));
    assert_eq!(figures(&outcome, "eval_mmhal_score"), [None, Some(4.0)]);
    assert!(lab.path("out/evaluations/step-2/mmhal/answers.jsonl").is_file());
    assert!(!lab.path("out/evaluations/step-2/mmhal/metrics.json").exists());
    // One evaluation without a figure is no evaluation that was no better.
    assert_eq!(outcome.steps, plain.steps);
    let adapter = |name: &str| fs::read(lab.path(&format!("{name}/adapter_model.safetensors"))).expect("an adapter");
    assert_eq!(adapter("out"), adapter("plain"));
    // A judge that nobody reaches.
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("judge_url=http://{}/v1", listener.local_addr().expect("an address"))
    };
    let outcome = lab.train("alone", &keys(&benchmarks, &nobody, &["max_steps=1"]));
    assert_eq!(figures(&outcome, "eval_mmhal_score"), [None]);
}

#[test]
fn a_judge_that_cannot_be_asked_is_refused_before_the_weights_are_read() {
    let lab = lab();
    let benchmarks = benchmarks(&lab, "");
    let refused = |url: &str, more: &[&str]| lab.refused("out", &keys(&benchmarks, url, more));
    let message = refused("judge_url=http://127.0.0.1:1/v1", &["judge_key_env=MDPO_TEST_NO_SUCH_KEY"]);
    assert!(message.starts_with("`MDPO_TEST_NO_SUCH_KEY`: expected the judge's key"), "{message}");
    assert!(message.contains("`judge_key_env`") && !message.contains("--judge"), "{message}");
    let message = refused("judge_url=localhost", &[]);
    assert!(message.contains("expected an address"), "{message}");
    let message = refused("judge_url=http://user:word@127.0.0.1/v1", &[]);
    assert!(message.contains("without user and password") && !message.contains("word@"), "{message}");
    assert!(!lab.path("out/judged").exists());
}
