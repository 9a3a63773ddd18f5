//! The verb `mdpo inspect` on a tiny checkpoint of `parity/model`: every stage of a row with an image, and of one without.

use mdpo::data::ImageSource;
use mdpo::train;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path).canonicalize().expect("a fixture")
}

/// A folder with three rows, their images and a recipe.
fn run_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("the test can set itself up");
    for name in ["exact.png", "tall.png"] {
        std::fs::copy(fixture("model/images").join(name), folder.path().join(name))
            .expect("the test can set itself up");
    }
    let rows = [
        r#"{"images": ["exact.png"], "prompt": [{"role": "user", "content": "Is it square?"}], "chosen": [{"role": "assistant", "content": "yes"}], "rejected": [{"role": "assistant", "content": "no"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "What colour is the sky?"}], "chosen": [{"role": "assistant", "content": "blue, mostly"}], "rejected": [{"role": "assistant", "content": "the sky is made of green glass"}]}"#,
        r#"{"images": ["exact.png", "tall.png", "exact.png"], "prompt": [{"role": "user", "content": "Compare them."}], "chosen": [{"role": "assistant", "content": "one is tall"}], "rejected": [{"role": "assistant", "content": "all alike"}]}"#,
    ];
    std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).expect("the test can set itself up");
    let model = fixture("model/llava-tiny");
    let recipe =
        format!("model_name_or_path: {}\ndataset_name: rows.jsonl\noutput_dir: out\ndevice: cpu\n", model.display());
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("the test can set itself up");
    folder
}

/// What `mdpo inspect recipe.yaml` prints in `folder`, or its error.
fn inspect(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    let output =
        command.args(["inspect", "recipe.yaml"]).args(arguments).current_dir(folder).output().expect("it runs");
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").replace(&fixture("").display().to_string(), "parity");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// What does not depend on rounding, and the numbers below it: sums of all views, then the chosen answer's log-probs by token.
fn halves(text: &str) -> (&str, Vec<f64>, Vec<f64>) {
    let (stages, numbers) = text.split_once("\nlog-probs under ").expect("log-probs");
    let (sums, tokens) = numbers.split_once("\n\n").expect("two tables");
    let column = |text: &str, from_right: usize| {
        let cell =
            |line: &str| line.split_whitespace().nth_back(from_right).expect("a cell").parse().expect("a number");
        text.trim_end().lines().skip(2).map(cell).collect()
    };
    let width = tokens.lines().nth(2).expect("a token").split_whitespace().count();
    (stages, column(sums, 2), column(tokens, width - 1))
}

/// `mdpo reference`'s values of a row: chosen, rejected, chosen under the rejected image.
fn reference(folder: &Path, row: usize, arguments: &[&str]) -> Vec<f64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdpo"));
    command.args(["reference", "recipe.yaml", "--output", "rows-out.jsonl"]).args(arguments).current_dir(folder);
    assert!(command.output().expect("it runs").status.success());
    let text = std::fs::read_to_string(folder.join("rows-out.jsonl")).expect("the test can set itself up");
    let row: serde_json::Value =
        serde_json::from_str(text.lines().nth(row).expect("the row")).expect("the test can set itself up");
    ["chosen", "rejected", "corrupted"].iter().filter_map(|key| row[key].as_f64()).collect()
}

fn assert_near(found: &[f64], expected: &[f64]) {
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(found.len() == expected.len() && worst < 1e-3, "{found:?} ≠ {expected:?}");
}

#[test]
fn a_row_with_an_image_is_shown_at_every_stage() {
    let folder = run_folder();
    let shown = inspect(folder.path(), &["--example", "0"]).expect("the test can set itself up");
    let (stages, sums, tokens) = halves(&shown);
    insta::assert_snapshot!(stages, @r#"
    example 0 of 3, epoch 0
    rows.jsonl line 1

    row
      prompt, user: <image> Is it square?
      chosen, assistant: yes
      rejected, assistant: no

    images, written to inspect-0
      image-0.png    28×28      exact.png
      rejected-0.png 28×28      rejected image 0: 11×11 pixels from (10, 11), counted from the upper left, enlarged
      sent-0.png     28×28      batch image 0, as the tower sees it
      sent-1.png     28×28      batch image 1, as the tower sees it

    text, as the tokenizer gets it
      prompt
        │USER: <image>
        │Is it square? ASSISTANT:
      chosen
        │ yes 
      rejected
        │ no 

    tokens as id:text, · before those that do not count
      prompt: 45 tokens, 0 counted
        ·1:<s>  ·56:U  ·54:S  ·40:E  ·53:R  ·29::  ·224:Ġ  ·3:<image>×16  ·202:Ċ  ·44:I  ·86:s
        ·262:Ġi  ·87:t  ·263:Ġs  ·84:q  ·88:u  ·68:a  ·268:re  ·34:?  ·224:Ġ  ·36:A  ·54:S  ·54:S
        ·44:I  ·54:S  ·55:T  ·36:A  ·49:N  ·55:T  ·29::
      chosen: 5 tokens, 5 counted
        224:Ġ  92:y  283:es  224:Ġ  2:</s>
      rejected: 5 tokens, 5 counted
        224:Ġ  81:n  82:o  224:Ġ  2:</s>

    packed batch: 102 tokens, 2 images
      segment                           start    len  after      positions
      prompt                                0     45  nothing    0–44
      chosen                               45      4  0–44       45–48
      rejected                             49      4  0–44       45–48
      prompt under the rejected image      53     45  nothing    0–44
      chosen under the rejected image      98      4  53–97      45–48
      image slot                        start    len
      batch image 0                         7     16
      batch image 1                        60     16
      response                         labels  predicted from
      chosen                                5  44–48
      rejected                              5  44, 49–52
      chosen under the rejected image       5  97–101
    "#);
    assert!(shown.contains("log-probs under parity/model/llava-tiny, weights in float32, in nats\n"), "{shown}");
    assert_near(&sums, &reference(folder.path(), 0, &[]));
    assert_near(&[tokens.iter().sum()], &sums[..1]);

    let read = |name: &str| {
        train::picture(&ImageSource::Path(folder.path().join("inspect-0").join(name)))
            .expect("the test can set itself up")
    };
    let own = train::picture(&ImageSource::Path(folder.path().join("exact.png"))).expect("the test can set itself up");
    // 28×28 pixels are what the tower takes, so nothing is lost on the way.
    assert!(read("image-0.png") == own && read("sent-0.png") == own);
    assert!(read("rejected-0.png") == read("sent-1.png") && read("rejected-0.png") != own);
}

#[test]
fn a_row_without_images_writes_none() {
    let folder = run_folder();
    let shown = inspect(folder.path(), &["--example", "1", "loss_type=dpo"]).expect("the test can set itself up");
    assert!(!folder.path().join("inspect-1").exists() && !folder.path().join("out").exists());
    let (stages, sums, tokens) = halves(&shown);
    assert!(stages.contains("packed batch: 58 tokens, 0 images\n") && !stages.contains("image slot"), "{stages}");
    assert_eq!((sums.len(), tokens.len()), (2, 12));
    assert_near(&sums, &reference(folder.path(), 1, &["loss_type=dpo"]));
    assert_near(&[tokens.iter().sum()], &sums[..1]);
}

#[test]
fn an_image_that_comes_twice_is_in_the_batch_once_and_the_epoch_moves_the_crop() {
    let folder = run_folder();
    let show = |epoch: &str| {
        inspect(folder.path(), &["--example", "2", "--epoch", epoch, "--out", "shown"])
            .expect("the test can set itself up")
    };
    let (first, again, second) = (show("0"), show("0"), show("1"));
    assert_eq!(first, again);
    assert_ne!(first, second);
    assert!(first.contains("images, written to shown\n") && folder.path().join("shown/sent-4.png").exists());
    let slots = |text: &str| {
        text.lines()
            .filter(|line| line.contains("batch image") && !line.contains("png"))
            .map(|line| line.split_whitespace().nth(2).expect("an index").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(slots(&first), ["0", "1", "0", "2", "3", "4"]);
    let crops = |text: &str| {
        text.lines().filter(|line| line.contains("rejected image ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_ne!(crops(&first), crops(&second));
}

#[test]
fn an_example_that_is_not_there_is_refused() {
    let folder = run_folder();
    let refused = inspect(folder.path(), &["--example", "3"]).unwrap_err();
    assert_eq!(
        refused,
        "error: `--example`: 3 is not there: the data has 3 usable rows\n  hint: the first is 0, the last 2\n"
    );
}
