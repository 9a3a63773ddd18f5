//! `mdpo generate --prompts`: files of answers, continued where a run was cut off, refused where they would mix two.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/model").join(path)
}

/// Runs `mdpo generate` with the tiny checkpoint on the CPU in f32.
fn generate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    command.arg("generate").arg(fixture("llava-tiny")).args(["--device", "cpu", "--dtype", "float32"]);
    command.args(["--max-new-tokens", "6"]).args(arguments).output().expect("the binary starts")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// A folder with prompts and the place for their answers.
struct Case {
    folder: TempDir,
}

const PROMPTS: &str = r#"{"id": "sky", "prompt": "What colour is the sky?"}
{"id": 7, "prompt": "Describe the picture.", "image": "wide.png"}
{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]}], "images": ["tall.png"]}
{"id": "brief", "prompt": "How many?", "image": "wide.png", "system": "Be brief."}
"#;

impl Case {
    fn new() -> Self {
        let case = Case { folder: tempfile::tempdir().expect("a folder") };
        for name in ["wide.png", "tall.png"] {
            fs::copy(fixture("images").join(name), case.path(name)).expect("copied");
        }
        case.write("prompts.jsonl", PROMPTS);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn answers(&self) -> String {
        fs::read_to_string(self.path("answers.jsonl")).expect("answers")
    }

    fn run(&self, more: &[&str]) -> Output {
        let [prompts, answers] = ["prompts.jsonl", "answers.jsonl"].map(|name| self.path(name).display().to_string());
        generate(&[&["--prompts", &prompts, "--output", &answers], more].concat())
    }

    fn refused(&self, more: &[&str]) -> String {
        let output = self.run(more);
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(!output.status.success() && output.stdout.is_empty() && told.matches("error:").count() == 1, "{told}");
        told
    }
}

#[test]
fn answers_of_a_file_are_those_of_its_prompts_alone_in_their_order() {
    let case = Case::new();
    let told = said(&case.run(&["--batch-size", "2"]));
    assert!(told.starts_with("4 answers, written to "), "{told}");
    let lines: Vec<Value> = case.answers().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().expect("text")).collect();
    assert_eq!(ids, ["sky", "7", "3", "brief"]);
    let (wide, tall) = (case.path("wide.png").display().to_string(), case.path("tall.png").display().to_string());
    let alone: [&[&str]; 4] = [
        &["What colour is the sky?"],
        &["Describe the picture.", "--image", &wide],
        &["And this?", "--image", &tall],
        &["How many?", "--image", &wide, "--system", "Be brief."],
    ];
    for (line, alone) in lines.iter().zip(alone) {
        assert_eq!(line["answer"].as_str().expect("text"), said(&generate(alone)).trim(), "{alone:?}");
        assert_eq!((&line["tokens"], &line["end"]), (&Value::from(6), &Value::from("max_new_tokens")));
    }
    let with_adapter = ["--adapter", &fixture("llava-tiny/adapter").display().to_string(), "--num-beams", "3"];
    let other = Case::new();
    said(&other.run(&with_adapter));
    let first: Value = serde_json::from_str(other.answers().lines().next().expect("a line")).expect("JSON");
    assert_ne!(first["answer"], lines[0]["answer"]);
    let searched = said(&generate(&[&["What colour is the sky?"][..], &with_adapter].concat()));
    assert_eq!(first["answer"].as_str().expect("text"), searched.trim());
}

#[test]
fn a_run_that_was_cut_off_goes_on_where_it_stopped() {
    let case = Case::new();
    let sampled = ["--temperature", "1", "--seed", "5"];
    said(&case.run(&sampled));
    let whole = case.answers();
    let lines: Vec<&str> = whole.lines().collect();
    // Two answers in the order in which they ended, one of them told apart by a mark, and half of a third.
    let marked = lines[2].replacen("\"answer\":\"", "\"answer\":\"kept ", 1);
    case.write("answers.jsonl", &format!("{marked}\n{}\n{}", lines[0], &lines[1][..lines[1].len() / 2]));
    let told = said(&case.run(&[&sampled[..], &["--batch-size", "1"]].concat()));
    assert!(told.contains("4 answers, written to ") && told.contains("2 of them were there before"), "{told}");
    assert_eq!(case.answers(), whole.replace(lines[2], &marked));
    // Nothing is left to do; a prompt more is.
    assert!(said(&case.run(&sampled)).contains("4 of them were there before"));
    case.write(
        "prompts.jsonl",
        &format!("{{\"id\": \"new\", \"prompt\": \"Why?\"}}\n{PROMPTS}")
            .replace("{\"prompt\": [", "{\"id\": 3, \"prompt\": ["),
    );
    said(&case.run(&sampled));
    assert_eq!(
        case.answers().lines().skip(1).collect::<Vec<_>>(),
        whole.replace(lines[2], &marked).lines().collect::<Vec<_>>()
    );
}

#[test]
fn a_file_that_was_made_otherwise_is_refused_and_left_alone() {
    let case = Case::new();
    said(&case.run(&[]));
    let whole = case.answers();
    let has = |told: String, part: &str| assert!(told.contains(part), "{told}\n{part}");
    has(case.refused(&["--num-beams", "2"]), "its answers were made with `num_beams` `1`, this run has `2`");
    has(case.refused(&["--temperature", "1"]), "its answers were made with `do_sample` `false`, this run has `true`");
    has(
        case.refused(&["--adapter", &fixture("llava-tiny/adapter").display().to_string()]),
        "its answers are of another adapter",
    );
    case.write("prompts.jsonl", &PROMPTS.replace("the sky", "the sea"));
    has(case.refused(&[]), "answers.jsonl line 1: answers another prompt or other images than `sky` has now");
    case.write("prompts.jsonl", &PROMPTS.replace("brief", "short"));
    has(case.refused(&[]), "answers.jsonl line 4: answers `brief`, which is not among the prompts");
    assert_eq!(case.answers(), whole);

    case.write("prompts.jsonl", PROMPTS);
    case.write("answers.jsonl", &whole.replacen('{', "", 1));
    has(case.refused(&[]), "answers.jsonl line 1: not an answer of `mdpo generate`");
    fs::remove_file(case.path("answers.made_by.json")).expect("removed");
    has(case.refused(&[]), "the file is there already, and no ");
}

#[test]
fn what_cannot_be_asked_is_told_by_file_and_line_before_anything_is_written() {
    let case = Case::new();
    let has = |rows: &str, part: &str| {
        case.write("prompts.jsonl", rows);
        let told = case.refused(&[]);
        assert!(told.contains(part), "{told}\n{part}");
        assert!(!case.path("answers.jsonl").exists());
    };
    has("{\"prompt\": \"Hi\", \"imgae\": \"wide.png\"}", "prompts.jsonl line 1: unknown key `imgae`");
    has(
        "{\"prompt\": \"Hi\"}\n{\"prompt\": \"Hi\", \"image\": \"none.png\"}",
        "prompts.jsonl line 2: `image`: no such image file",
    );
    has("{\"prompt\": \"Hi\", \"image\": \"prompts.jsonl\"}", "prompts.jsonl line 1: ");
    has("{\"prompt\": \"<image> Hi\"}", "prompts.jsonl line 1: prompt: 1 image mark(s) in the text, but 0 image(s)");
    has(&format!("{{\"prompt\": \"{}\"}}", "sky ".repeat(600)), "the model's limit is 512 tokens");
    has("{\"id\": 1, \"prompt\": \"Hi\"}\n{\"id\": 1, \"prompt\": \"Hi\"}", "line 2: `id`: `1` is also that of");
    case.write("prompts.jsonl", PROMPTS);
    let prompts = case.path("prompts.jsonl").display().to_string();
    let nowhere = case.path("none/answers.jsonl").display().to_string();
    let told = generate(&["--prompts", &prompts, "--output", &nowhere]).stderr;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("none/answers.jsonl: cannot write: "), "{told}");
}
