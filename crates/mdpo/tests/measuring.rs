//! `mdpo eval` and `mdpo report` from the command line: samples, and files that are not overwritten.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path).canonicalize().expect("a fixture")
}

/// Exit code, output and messages of `mdpo` with some arguments, in `folder`.
fn mdpo(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    let output = command.args(arguments).current_dir(folder).output().expect("it ran");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("written");
    }
    folder
}

fn lines(rows: impl Iterator<Item = Value>) -> String {
    rows.map(|row| format!("{row}\n")).collect()
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Pairs of which every other one has a picture.
fn pairs(count: usize) -> TempDir {
    let row = |index: usize| {
        let mut row = json!({
            "prompt": [{"role": "user", "content": format!("What is in picture {index}?")}],
            "chosen": [{"role": "assistant", "content": "A red kite over the sea."}],
            "rejected": [{"role": "assistant", "content": "Nothing."}],
        });
        if index.is_multiple_of(2) {
            row["images"] = json!(["wide.png"]);
        }
        row
    };
    let folder = folder(&[("pairs.jsonl", lines((0..count).map(row)))]);
    fs::copy(fixture("model/images/wide.png"), folder.path().join("wide.png")).expect("an image");
    folder
}

#[test]
fn a_sample_of_pairs_says_of_them_what_all_of_them_say() {
    let folder = pairs(6);
    let model = fixture("model/llava-tiny").display().to_string();
    let eval = |more: &[&str]| {
        let common = ["eval", model.as_str(), "--benchmark", "preferences", "--data", "pairs.jsonl", "--device", "cpu"];
        mdpo(folder.path(), &[&common[..], &["--dtype", "float32", "--resamples", "10"], more].concat())
    };
    let (code, said, told) = eval(&["--output", "all"]);
    assert!(code == Some(0) && said.contains("\n6 pairs; "), "{said}{told}");
    let (code, said, told) = eval(&["--output", "some", "--limit", "3"]);
    assert!(code == Some(0) && said.contains("\n3 pairs; "), "{said}{told}");
    let [all, some] = ["all", "some"].map(|name| rows(&folder.path().join(name).join("rows.jsonl")));
    assert_eq!(some.len(), 3);
    for row in &some {
        let same = all.iter().find(|other| other["id"] == row["id"]).expect("a row of all");
        // The corrupted picture is the same one; batches are others.
        for figure in ["score", "image_margin"] {
            let difference = same[figure].as_f64().unwrap_or(0.0) - row[figure].as_f64().unwrap_or(0.0);
            assert!(difference.abs() < 1e-4 && same[figure].is_number() == row[figure].is_number(), "{same} {row}");
        }
    }
    let (code, _, told) = eval(&["--limit", "0"]);
    assert_eq!((code, told.as_str()), (Some(1), "error: `--limit`: expected at least 1, found 0\n"));
}

/// A service that gives everything the same grade.
fn judge() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let answer = move |mut stream: TcpStream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            if let Some(text) = line.to_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a request");
        let message = json!({"role": "assistant", "content": "Rating: 4"});
        let body = json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
        // A client that has gone is told by what it says itself.
        let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
    };
    std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
    address
}

#[test]
fn a_sample_of_mmhal_is_graded_by_its_own_answers() {
    let entry = |index: usize| {
        json!({
            "question_type": "other", "question_topic": "food", "image_id": format!("{index}"), "image_src": format!("{index}.png"),
            "image_content": ["Bread"], "question": format!("What is number {index}?"), "gt_answer": "Bread.",
        })
    };
    let entries: Vec<Value> = (0..9).map(entry).collect();
    let answers = lines((0..9).map(|id| json!({"id": id, "answer": format!("Answer {id}.")})));
    let folder = folder(&[("response_template.json", json!(entries).to_string()), ("answers.jsonl", answers)]);
    let judge = judge();
    let eval = |more: &[&str]| {
        let common = ["eval", "--benchmark", "mmhal", "--data", ".", "--answers", "answers.jsonl", "--resamples", "10"];
        let judge = ["--judge-url", &judge, "--judge-model", "m", "--judge-concurrency", "1"];
        mdpo(folder.path(), &[&common[..], &judge, more].concat())
    };
    let (code, said, told) = eval(&["--limit", "4", "--output", "out"]);
    assert!(code == Some(0) && said.contains("\n4 questions; "), "{said}{told}");
    let asked = rows(&folder.path().join("out/rows.jsonl"));
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|row| row["answer"] == format!("Answer {}.", row["id"].as_str().unwrap_or_default())));
    assert!(asked.iter().all(|row| row["score"] == 4.0 && row["verdict"] == "Rating: 4"), "{asked:?}");
}

#[test]
fn a_file_of_questions_is_not_written_over_another_file() {
    let objects = lines((0..2).map(|i| json!({"image": format!("{i}.png"), "objects": ["dog"]})));
    let folder = folder(&[("objects.jsonl", objects.clone())]);
    let questions = |file: &str, more: &[&str]| {
        let common = ["eval", "--benchmark", "objects", "--data", ".", "--questions", file];
        mdpo(folder.path(), &[&common[..], more].concat())
    };
    let (code, said, told) = questions("asked.jsonl", &[]);
    assert!(code == Some(0) && said.ends_with("questions in asked.jsonl\n"), "{said}{told}");
    // Again: the same questions.
    assert_eq!(questions("asked.jsonl", &[]).0, Some(0));
    let (code, _, told) = questions("asked.jsonl", &["--limit", "1"]);
    let expected = "error: asked.jsonl: `--questions` is there already and holds something else\n  hint: choose another name, or remove that file\n";
    assert_eq!((code, told.as_str()), (Some(1), expected));
    assert_eq!(questions("objects.jsonl", &[]).0, Some(1));
    assert_eq!(fs::read_to_string(folder.path().join("objects.jsonl")).expect("the file"), objects);
}

#[test]
fn a_report_takes_the_place_of_a_report_and_of_nothing_else() {
    let metrics =
        json!({"benchmark": "objects", "model": "m", "adapter": null, "answers": 1, "figures": []}).to_string();
    let folder = folder(&[("metrics.json", metrics.clone())]);
    let report = |file: &str| mdpo(folder.path(), &["report", ".", "--output", file]);
    for _ in 0..2 {
        let (code, said, told) = report("report.html");
        assert!(code == Some(0) && said.starts_with("report.html · "), "{said}{told}");
    }
    let (code, _, told) = report("metrics.json");
    let expected = "error: metrics.json: `--output` is there already and is no report of mdpo\n  hint: choose another name, or remove that file\n";
    assert_eq!((code, told.as_str()), (Some(1), expected));
    assert_eq!(fs::read_to_string(folder.path().join("metrics.json")).expect("the file"), metrics);
    assert!(report(".").2.contains("`--output` is a folder"));
}
