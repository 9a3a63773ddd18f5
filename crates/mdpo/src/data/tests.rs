//! Rows in files of every kind, and what is said about those that cannot be used.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::*;

const SEED: u64 = 7;
pub(super) const SFT: Need = Need::of(Sides::Chosen);
pub(super) const PAIR: Need = Need::of(Sides::Both);
pub(super) const KTO: Need = Need::of(Sides::Either);
pub(super) const ODPO: Need =
    Need { sides: Sides::Both, rejected_images: false, scores: Scores::Higher, rewards: Vec::new() };
const GIVEN: Need = Need { sides: Sides::Both, rejected_images: true, scores: Scores::Unread, rewards: Vec::new() };

/// A folder with the images that the rows below name.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("images")).unwrap();
    for name in ["cat.png", "dog.png", "images/cat.jpg", "images/with space.jpg"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    folder
}

pub(super) fn settings(path: PathBuf) -> config::Data {
    config::Data {
        paths: vec![path],
        image_folder: None,
        max_length: None,
        overlong: config::Overlong::Refuse,
        max_skipped_rows: 0,
        shuffle: true,
        pairs_from_scores: config::PairsFromScores::BestVsWorst,
        odpo_ties: config::ScoreTies::Refuse,
        train_images: config::TrainImages::Keep,
        reference_logps: ReferenceLogps::Computed,
    }
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/data").join(name)
}

pub(super) fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The examples of a file in which every row is usable.
pub(super) fn examples(path: PathBuf, need: &Need) -> Vec<Example> {
    let dataset = load(&settings(path), need, SEED).unwrap();
    assert!(dataset.problems.is_empty(), "{:?}", dataset.problems);
    dataset.examples
}

/// The example of a row without a file.
pub(super) fn read_one(row: Json, settings: &config::Data, need: &Need) -> Result<Option<Example>> {
    let id = RowId { file: Path::new("any.jsonl").into(), row: 3 };
    let reading = Reading { settings, need, seed: SEED, spool: Spool::default() };
    let address = Address { seed: SEED, epoch: 0, example: 0 };
    example(id, Path::new(""), row.into(), &reading, address, &mut LeftOut::default())
}

fn failure(path: PathBuf) -> String {
    load(&settings(path), &PAIR, SEED).unwrap_err().to_string()
}

/// The single example of `row`, its problem as text otherwise. The place is left out.
pub(super) fn parse(folder: &TempDir, row: &Json, need: &Need) -> std::result::Result<Example, String> {
    parse_with(folder, row, need, |_| {})
}

/// The same under settings that `change` changes.
pub(super) fn parse_with(
    folder: &TempDir,
    row: &Json,
    need: &Need,
    change: impl Fn(&mut config::Data),
) -> std::result::Result<Example, String> {
    let path = write(folder, "row.jsonl", row.to_string());
    let place = format!("{} line 1: ", path.display());
    let mut settings = settings(path);
    change(&mut settings);
    let mut dataset = load(&settings, need, SEED).unwrap();
    match dataset.problems.pop() {
        Some(problem) => Err(problem.to_string().strip_prefix(&place).expect("starts with file and line").to_owned()),
        None => Ok(dataset.examples.remove(0)),
    }
}

fn refusal(row: Json) -> String {
    parse(&folder(), &row, &PAIR).unwrap_err()
}

pub(super) fn said(text: &str) -> Part {
    Part::Text(text.to_owned())
}

pub(super) fn message(role: &str, content: Vec<Part>) -> Message {
    Message { role: role.to_owned(), content }
}

pub(super) fn answer(text: &str) -> Response {
    Response::Messages(vec![message("assistant", vec![said(text)])])
}

pub(super) fn plain(text: &str) -> Response {
    Response::Text(text.to_owned())
}

/// The second answer, which the first is preferred to.
fn other(example: &Example) -> Option<Response> {
    let pair = Pair { chosen: Some(0), rejected: (example.answers.len() > 1).then_some(1) };
    assert_eq!(example.pairs, [pair]);
    example.answers.get(1).map(|answer| answer.response.clone())
}

/// An example without where its row is and without images.
fn contents(example: &Example) -> (Prompt, Response, Option<Response>) {
    (example.prompt.clone(), example.answers[0].response.clone(), other(example))
}

fn three_rows() -> [Json; 3] {
    [
        json!({"id": 1, "images": ["cat.png"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
            "rejected": [{"role": "assistant", "content": "A dog."}]}),
        json!({"img_path": "images/cat.jpg", "prompt": "USER: <image>\nWhat? ASSISTANT:", "chosen": "A cat.", "rejected": "A dog."}),
        json!({"prompt": [{"role": "user", "content": "Hello"}], "chosen": "Hi.", "rejected": "Bye.", "images": []}),
    ]
}

fn check_three_rows(folder: &TempDir, path: PathBuf, numbers: [usize; 3]) {
    let found = examples(path.clone(), &PAIR);
    assert_eq!(found.len(), 3);
    let question = vec![message("user", vec![Part::Image, said("What is this?")])];
    assert_eq!(contents(&found[0]), (Prompt::Messages(question), answer("A cat."), Some(answer("A dog."))));
    let templated = Prompt::Text("USER: <image>\nWhat? ASSISTANT:".to_owned());
    assert_eq!(contents(&found[1]), (templated, plain("A cat."), Some(plain("A dog."))));
    let greeting = Prompt::Messages(vec![message("user", vec![said("Hello")])]);
    assert_eq!(contents(&found[2]), (greeting, answer("Hi."), Some(answer("Bye."))));
    let images: Vec<_> = found.iter().map(|example| example.images.clone()).collect();
    let path_of = |name: &str| vec![ImageSource::Path(folder.path().join(name))];
    assert_eq!(images, [path_of("cat.png"), path_of("images/cat.jpg"), vec![]]);
    assert!(found.iter().all(|example| example.rejected_images.is_empty()));
    assert_eq!(found.iter().map(|example| example.row.row).collect::<Vec<_>>(), numbers);
    assert!(found.iter().all(|example| *example.row.file == *path));
}

#[test]
fn json_array() {
    let folder = folder();
    let path = write(&folder, "rows.json", serde_json::to_string_pretty(&three_rows()).unwrap());
    check_three_rows(&folder, path, [1, 2, 3]);
}

#[test]
fn json_lines_with_a_byte_order_mark_blank_lines_and_carriage_returns() {
    let folder = folder();
    let text = format!("\u{feff}{}\r\n\r\n  \n{}\n{}", three_rows()[0], three_rows()[1], three_rows()[2]);
    check_three_rows(&folder, write(&folder, "rows.jsonl", &text), [1, 4, 5]);
    // `to_json` of Hugging Face writes the same under either ending.
    check_three_rows(&folder, write(&folder, "rows.json", &text), [1, 2, 3]);
}

/// The rows of `hf.parquet`, which `parity/data/generate.py` wrote with Hugging Face `datasets`.
fn check_hugging_face(found: &[Example]) {
    let questions = [
        vec![message("user", vec![Part::Image, said("What is this?")])],
        vec![
            message("system", vec![said("Be brief.")]),
            message("user", vec![Part::Image, said("and"), Part::Image, said("differ how?")]),
        ],
        vec![message("user", vec![said("Hello")])],
    ];
    let answers = [("A cat.", "A dog."), ("In colour — a little.", "Not at all."), ("Hi.", "Bye.")];
    assert_eq!(found.len(), 3);
    for ((example, question), (chosen, rejected)) in found.iter().zip(questions).zip(answers) {
        assert_eq!(contents(example), (Prompt::Messages(question), answer(chosen), Some(answer(rejected))));
    }
}

/// An image that a row carries; equal to any other of the same bytes.
fn embedded(bytes: &[u8]) -> ImageSource {
    ImageSource::Embedded(Spool::default().keep(bytes).expect("a temporary file"))
}

/// The red value of the first pixel of an image that the generator drew.
fn red(image: &ImageSource) -> u8 {
    let bytes = image.read().unwrap();
    ::image::load_from_memory(&bytes).unwrap().to_rgb8().get_pixel(0, 0)[0]
}

fn reds(examples: &[Example]) -> Vec<Vec<u8>> {
    examples.iter().map(|example| example.images.iter().map(red).collect()).collect()
}

#[test]
fn parquet_of_hugging_face_with_an_image_feature() {
    let found = examples(sample("hf.parquet"), &PAIR);
    check_hugging_face(&found);
    assert_eq!(reds(&found), [vec![1], vec![2, 3], vec![]]);
    assert_eq!(found[2].row.to_string(), format!("{} row 3", sample("hf.parquet").display()));
}

#[test]
fn parquet_with_single_images_and_two_row_groups() {
    let found = examples(sample("single.parquet"), &PAIR);
    assert_eq!(reds(&found), [vec![4], vec![5], vec![]]);
    let prompt = Prompt::Text("USER: <image>\nWho? ASSISTANT:".to_owned());
    assert_eq!(contents(&found[1]), (prompt, plain("Ann."), Some(plain("Bob."))));
    assert_eq!(found[2].prompt, Prompt::Text("USER: Hello ASSISTANT:".to_owned()));
}

#[test]
fn parquet_of_pyarrow_with_bare_bytes_and_rejected_images() {
    let found = examples(sample("plain.parquet"), &GIVEN);
    assert_eq!(reds(&found), [vec![6], vec![7, 8], vec![]]);
    let rejected: Vec<Vec<u8>> =
        found.iter().map(|example| example.rejected_images.iter().map(red).collect()).collect();
    assert_eq!(rejected, [vec![9], vec![10, 11], vec![]]);
    assert_eq!(other(&found[1]), Some(plain("The right one.")));
}

#[test]
fn json_lines_of_hugging_face_hold_null_keys_in_every_part() {
    // The images were left out of this file: the first row is then short of one.
    let dataset = load(&settings(sample("hf.jsonl")), &PAIR, SEED).unwrap();
    assert_eq!((dataset.examples.len(), dataset.problems.len()), (1, 2));
    assert_eq!(dataset.examples[0].prompt, Prompt::Messages(vec![message("user", vec![said("Hello")])]));
    assert!(dataset.problems[1].to_string().contains("line 2: `prompt` has 2 open image parts, the row has 0 images"));
}

#[test]
fn damaged_parquet_is_refused_without_a_panic() {
    let folder = folder();
    let whole = fs::read(sample("hf.parquet")).unwrap();
    for length in [0, 3, 8, whole.len() / 2, whole.len() - 1] {
        let message = failure(write(&folder, "cut.parquet", &whole[..length]));
        assert!(message.contains("cut.parquet: not a whole Parquet file: "), "{message}");
        assert!(message.ends_with("\n  hint: copy or download it again"), "{message}");
    }
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // Some damage cannot be seen; none may end the program.
        let _ = load(&settings(write(&folder, "damaged.parquet", bytes)), &PAIR, SEED);
    }
}

#[test]
fn parquet_without_any_known_column_is_one_error() {
    let folder = folder();
    let schema = "message rows { required int32 a; required binary question (UTF8); }";
    let schema = Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
    let path = folder.path().join("other.parquet");
    let file = fs::File::create(&path).unwrap();
    ::parquet::file::writer::SerializedFileWriter::new(file, schema, Arc::default()).unwrap().close().unwrap();
    let message = failure(path);
    assert!(
        message.contains(
            "other.parquet: no column of a known shape; columns found: `a`, `question`\n  hint: accepted rows"
        )
    );
}

#[test]
fn folders_stand_for_their_files_sorted_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let row = |chosen: &str| json!({"prompt": "Hello", "chosen": chosen, "rejected": "no"}).to_string();
    let set = |inside: &str, files: &[&str]| {
        let path = folder.path().join(inside);
        fs::create_dir_all(&path).unwrap();
        files.iter().for_each(|name| fs::write(path.join(name), row(name)).unwrap());
        path
    };
    let chosen = |path: PathBuf| -> Vec<String> {
        let name = |example: &Example| example.row.file.file_name().unwrap().to_string_lossy().into_owned();
        examples(path, &PAIR).iter().map(name).collect()
    };
    assert_eq!(
        chosen(set("plain", &["b.jsonl", "a.json", "notes.txt", ".hidden.json", "state.json"])),
        ["a.json", "b.jsonl"]
    );
    set("hub/data", &["train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test-00000-of-00001.jsonl"]);
    let hub = set("hub", &["dataset_infos.json", "README.md"]);
    assert_eq!(chosen(hub), ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]);
    assert_eq!(chosen(set("held out", &["test.jsonl"])), ["test.jsonl"]);
    let message = failure(set("empty", &["data.arrow"]));
    assert!(message.contains("empty: no `.json`, `.jsonl` or `.parquet` file in this folder"), "{message}");
}

#[test]
fn files_that_cannot_be_read_are_all_named() {
    let folder = folder();
    let mut settings = settings(folder.path().join("missing.jsonl"));
    settings.paths.push(folder.path().join("cat.png"));
    settings.paths.push("owner/some-set".into());
    let message = load(&settings, &PAIR, SEED).unwrap_err().to_string();
    assert!(message.contains("missing.jsonl: cannot read: No such file or directory"), "{message}");
    assert!(message.contains("cat.png: expected a file ending in `.json`, `.jsonl` or `.parquet`"), "{message}");
    assert!(
        message.contains("owner/some-set: no such file or folder\n  hint: a data set of the Hugging Face hub must"),
        "{message}"
    );
}

#[test]
fn files_that_are_not_json_are_refused_with_the_position() {
    let folder = folder();
    let said = |name: &str, text: &[u8]| {
        let message = failure(write(&folder, name, text));
        message.split_once(&format!("{name}: ")).expect("names the file").1.to_owned()
    };
    assert_eq!(
        said("a.json", b"[{\"a\": 1},\n {\"b\""),
        "not JSON: EOF while parsing an object (line 2, column 5)\n  hint: the file seems cut off; copy or download it again"
    );
    assert_eq!(said("a.json", b"nonsense"), "not JSON: expected ident (line 1, column 2)");
    assert_eq!(said("a.json", b"17"), "expected an array of rows");
    assert_eq!(said("a.json", b" \n"), "the file is empty, expected an array of rows");
    assert_eq!(said("a.json", b"[]"), "the data set has no rows");
    assert_eq!(said("a.jsonl", b"\n"), "the data set has no rows");
    assert_eq!(said("a.jsonl", b"\xff\xfe{\0}\0"), "expected UTF-8, found UTF-16\n  hint: save the file as UTF-8");
}

#[test]
fn lines_that_are_no_rows_are_problems_of_their_line() {
    let folder = folder();
    let good = &three_rows()[0];
    let text = format!("{good}\n{{\"prompt\": \n[1]\n{good}\n\"\u{fffd}");
    let mut bytes = text.into_bytes();
    bytes.extend([0xff, b'"']);
    let dataset = load(&settings(write(&folder, "rows.jsonl", bytes)), &PAIR, SEED).unwrap();
    assert_eq!(dataset.examples.len(), 2);
    let problems: Vec<String> = dataset.problems.iter().map(ToString::to_string).collect();
    assert!(
        problems[0].ends_with("rows.jsonl line 2: not JSON: EOF while parsing a value (column 11)"),
        "{problems:?}"
    );
    assert!(problems[1].ends_with("rows.jsonl line 3: expected an object, found a list"), "{problems:?}");
    assert!(
        problems[2].ends_with("rows.jsonl line 5: not JSON: invalid unicode code point (column 5)"),
        "{problems:?}"
    );
    let message =
        load(&settings(write(&folder, "array.jsonl", "[\n{}\n]")), &PAIR, SEED).unwrap().problems.remove(0).to_string();
    assert!(message.contains("name a file with an array of rows `.json`"), "{message}");
}

#[test]
fn images_are_found_in_every_notation() {
    let folder = folder();
    let at = |name: &str| ImageSource::Path(folder.path().join(name));
    let bytes = |text: &str| embedded(text.as_bytes());
    let absolute = folder.path().join("dog.png");
    let cases = [
        (json!("cat.png"), at("cat.png")),
        (json!(absolute), at("dog.png")),
        (json!(format!("file://{}/images/with%20space.jpg", folder.path().display())), at("images/with space.jpg")),
        (json!(format!("file://localhost{}", absolute.display())), at("dog.png")),
        (json!("data:image/png;base64,Zm9vYmFy"), bytes("foobar")),
        (json!({"bytes": "Zm9v", "path": "not looked at"}), bytes("foo")),
        (json!({"bytes": null, "path": "cat.png"}), at("cat.png")),
        (json!({"url": "data:;base64,Zg"}), bytes("f")),
    ];
    for (image, expected) in cases {
        for (key, value) in [
            ("image", image.clone()),
            ("images", json!([image])),
            ("image", json!([image])),
            ("img_path", image.clone()),
        ] {
            let row = json!({key: value, "prompt": "<image> ?", "chosen": "a", "rejected": "b"});
            let example = parse(&folder, &row, &PAIR).unwrap();
            assert_eq!(example.images, std::slice::from_ref(&expected), "{row}");
        }
    }
    assert_eq!(at("cat.png").read().unwrap(), b"cat.png");
    assert_eq!(bytes("foo").describe(), "image of 3 bytes");
    assert_eq!(at("cat.png").describe(), folder.path().join("cat.png").display().to_string());
    assert!(at("gone.png").read().unwrap_err().to_string().contains("gone.png: cannot read: No such file"));
}

#[test]
fn relative_paths_start_at_the_image_folder() {
    let folder = folder();
    let row = json!({"img_path": "cat.jpg", "prompt": "<image> ?", "chosen": "a", "rejected": "b"});
    let path = write(&folder, "rows.jsonl", row.to_string());
    let mut settings = settings(path);
    assert_eq!(load(&settings, &PAIR, SEED).unwrap().problems.len(), 1);
    settings.image_folder = Some(folder.path().join("images"));
    let examples = load(&settings, &PAIR, SEED).unwrap().examples;
    assert_eq!(examples[0].images, [ImageSource::Path(folder.path().join("images/cat.jpg"))]);
}

#[test]
fn parts_take_the_image_they_carry_or_the_next_of_the_row() {
    let folder = folder();
    let image = |fields: Json| {
        let mut part = json!({"type": "image", "text": null, "index": null});
        part.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        part
    };
    let row = json!({"images": ["cat.png", "dog.png"], "chosen": "a", "rejected": "b",
        "prompt": [{"role": "user", "content": [
            image(json!({"image": null})), image(json!({"image": "images/cat.jpg"})), image(json!({})),
            image(json!({"path": "cat.png", "bytes": null})), image(json!({"image": {"bytes": "Zg==", "path": null}})),
            {"type": "text", "text": "?", "image": null, "index": null}]}]});
    let example = parse(&folder, &row, &PAIR).unwrap();
    let at = |name: &str| ImageSource::Path(folder.path().join(name));
    let expected = [at("cat.png"), at("images/cat.jpg"), at("dog.png"), at("cat.png"), embedded(b"f")];
    assert_eq!(example.images, expected);
    let content = [vec![Part::Image; 5], vec![said("?")]].concat();
    assert_eq!(example.prompt, Prompt::Messages(vec![message("user", content)]));
}

#[test]
fn images_without_parts_go_before_the_first_plain_user_text_as_in_trl() {
    let row = json!({"images": ["cat.png", "dog.png"], "chosen": "a", "rejected": "b", "prompt": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "Of what?"}, {"role": "user", "content": "These."}]});
    let example = parse(&folder(), &row, &PAIR).unwrap();
    let expected = [
        message("system", vec![said("Be brief.")]),
        message("user", vec![Part::Image, Part::Image, said("Which?")]),
        message("assistant", vec![said("Of what?")]),
        message("user", vec![said("These.")]),
    ];
    assert_eq!(example.prompt, Prompt::Messages(expected.to_vec()));
    assert_eq!(example.images.len(), 2);
}

fn dialog(turns: &[&str]) -> Json {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    turns.iter().enumerate().map(|(i, text)| json!({"role": role(i), "content": text})).collect()
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, text)| message(role, vec![said(text)])).collect()
}

#[test]
fn a_prompt_hidden_in_both_dialogs_is_found_as_in_trl() {
    let split = |row: Json| contents(&parse(&folder(), &row, &PAIR).unwrap());
    let (user, assistant) = ("user", "assistant");
    let shared = messages(&[(user, "q"), (assistant, "a"), (user, "r")]);
    let expected = (Prompt::Messages(shared), answer("yes"), Some(answer("no")));
    let pair = json!({"chosen": dialog(&["q", "a", "r", "yes"]), "rejected": dialog(&["q", "a", "r", "no"])});
    assert_eq!(split(pair.clone()), expected);
    // A `prompt` of plain text beside dialogs repeats what they say.
    let mut repeated = pair;
    repeated["prompt"] = json!("r");
    assert_eq!(split(repeated), expected);
    // trl.extract_prompt on a dialog that continues the other: each side keeps its last turn.
    let row = json!({"chosen": dialog(&["q", "a"]), "rejected": dialog(&["q", "a", "r", "b"])});
    let longer = messages(&[(assistant, "a"), (user, "r"), (assistant, "b")]);
    assert_eq!(split(row), (Prompt::Messages(messages(&[(user, "q")])), answer("a"), Some(Response::Messages(longer))));
}

#[test]
fn a_hidden_prompt_takes_the_images() {
    let turn = json!({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]});
    let row = |text: &str| json!([turn, {"role": "assistant", "content": text}]);
    let row = json!({"image": "cat.png", "chosen": row("yes"), "rejected": row("no")});
    let example = parse(&folder(), &row, &PAIR).unwrap();
    assert_eq!(example.prompt, Prompt::Messages(vec![message("user", vec![Part::Image, said("q")])]));
    assert_eq!(example.images.len(), 1);
}

#[test]
fn rows_without_a_rejected_side_serve_sft_only() {
    let folder = folder();
    let chosen = |row: &Json| {
        let example = parse(&folder, row, &SFT).unwrap();
        assert!(parse(&folder, row, &PAIR).is_err());
        assert_eq!((other(&example), &example.rejected_images[..]), (None, &[][..]));
        let (prompt, chosen, _) = contents(&example);
        (prompt, chosen)
    };
    let question = Prompt::Messages(messages(&[("user", "q")]));
    assert_eq!(chosen(&json!({"prompt": "q", "completion": "a"})), (Prompt::Text("q".to_owned()), plain("a")));
    assert_eq!(
        chosen(&json!({"prompt": "q", "chosen": "a", "rejected": ""})),
        (Prompt::Text("q".to_owned()), plain("a"))
    );
    assert_eq!(
        chosen(&json!({"prompt": dialog(&["q"]), "completion": [{"role": "assistant", "content": "a"}]})),
        (question.clone(), answer("a"))
    );
    assert_eq!(
        chosen(&json!({"img_path": "cat.png", "prompt": "<image>", "chosen": "a"})),
        (Prompt::Text("<image>".to_owned()), plain("a"))
    );
    let rest = Response::Messages(messages(&[("assistant", "a"), ("user", "r"), ("assistant", "b")]));
    assert_eq!(chosen(&json!({"messages": dialog(&["q", "a", "r", "b"])})), (question, rest));
}

#[test]
fn own_rejected_images_are_kept_and_counted() {
    let folder = folder();
    let row = |rejected: Json| json!({"images": ["cat.png"], "rejected_images": rejected, "prompt": "<image>", "chosen": "a", "rejected": "b"});
    let example = parse(&folder, &row(json!(["dog.png"])), &PAIR).unwrap();
    assert_eq!(example.rejected_images, [ImageSource::Path(folder.path().join("dog.png"))]);
    let single =
        json!({"image": "cat.png", "rejected_image": "dog.png", "prompt": "<image>", "chosen": "a", "rejected": "b"});
    assert_eq!(parse(&folder, &single, &GIVEN).unwrap().rejected_images.len(), 1);
    assert_eq!(
        refusal(row(json!(["dog.png", "cat.png"]))),
        "`rejected_images` has 2 images, `images` has 1 image\n  hint: give one rejected image for each image"
    );
    let message = parse(&folder, &row(json!(null)), &GIVEN).unwrap_err();
    assert!(
        message.starts_with("no `rejected_images`\n  hint: `rejected_image: given` takes them from the rows"),
        "{message}"
    );
    assert!(parse(&folder, &json!({"prompt": "q", "chosen": "a", "rejected": "b"}), &GIVEN).is_ok());
}

#[test]
fn unusable_rows_say_what_is_wrong() {
    let with = |fields: Json| {
        let mut row = json!({"images": ["cat.png"], "prompt": "<image> q", "chosen": "a", "rejected": "b"});
        row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        row
    };
    let chat = |fields: Json| {
        let mut row = with(json!({"prompt": [{"role": "user", "content": "q"}]}));
        row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        row
    };
    let user = |content: Json| json!({"prompt": [{"role": "user", "content": content}]});
    let cases = [
        (
            json!({"question": "q", "id": 1}),
            "a row of no known shape; keys found: `question`, `id`\n  hint: accepted rows have",
        ),
        (json!({}), "a row of no known shape; keys found: none"),
        (
            with(json!({"chosen": null})),
            "no `chosen`; keys found: `images`, `prompt`, `chosen`, `rejected`\n  hint: accepted",
        ),
        (json!({"prompt": "q", "chosen": "a"}), "no `rejected`; keys found: `prompt`, `chosen`"),
        (
            json!({"img_path": "cat.png", "chosen": "a", "rejected": "b"}),
            "no `prompt` before the plain text of `chosen`; keys found: `img_path`, `chosen`, `rejected`",
        ),
        (
            json!({"question": "q", "chosen": "a", "rejected": "b"}),
            "no `prompt` before the plain text of `chosen`; keys found: `question`",
        ),
        (with(json!({"chosen": 3})), "`chosen`: expected messages or text, found a number"),
        (with(json!({"prompt": {"role": "user"}})), "`prompt`: no `content`; keys found: `role`"),
        (
            json!({"img_path": "cat.png", "prompt": [], "chosen": "a", "rejected": "b"}),
            "`prompt` has 0 open image parts, the row has 1 image",
        ),
        (with(json!({"rejected": "a"})), "`chosen` and `rejected` are equal"),
        (chat(json!({"rejected": [{"role": "assistant", "content": "a"}]})), "`chosen` and `rejected` are equal"),
        (with(json!({"chosen": " \n"})), "`chosen` is empty"),
        (chat(json!({"rejected": []})), "`rejected` is empty"),
        (with(json!({"rejected": []})), "`rejected` is empty"),
        (chat(json!({"rejected": [{"role": "assistant", "content": []}]})), "`rejected` is empty"),
        (with(json!({"prompt": " ", "images": []})), "`prompt` is empty"),
        (with(json!({"prompt": [], "images": []})), "`prompt` is empty"),
        (
            chat(json!({"prompt": [{"role": "human", "content": "q"}]})),
            "`prompt[0].role`: expected `system`, `user`, `assistant` or `tool`, found `human`",
        ),
        (
            chat(json!({"prompt": [{"from": "someone", "value": "q"}]})),
            "`prompt[0].from`: expected `human`, `gpt`, `system` or `observation`, found `someone`",
        ),
        (chat(json!({"prompt": [{"role": "user"}]})), "`prompt[0]`: no `content`; keys found: `role`"),
        (chat(json!({"prompt": ["q"]})), "`prompt[0]`: expected a message with `role` and `content`, found text"),
        (chat(user(json!(1))), "`prompt[0].content`: expected text or parts, found a number"),
        (chat(user(json!([1]))), "`prompt[0].content[0]`: expected a part with `type`, found a number"),
        (chat(user(json!([{"text": "q"}]))), "`prompt[0].content[0]`: no `type`; keys found: `text`"),
        (
            chat(user(json!([{"type": "text", "text": null}]))),
            "`prompt[0].content[0]`: no `text`; keys found: `type`, `text`",
        ),
        (
            chat(user(json!([{"type": "video"}]))),
            "`prompt[0].content[0].type`: expected `text` or `image`, found `video`",
        ),
        (
            chat(json!({"chosen": [{"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}]})),
            "`chosen[0].tool_calls` is not supported",
        ),
        (with(json!({"tools": [{"name": "f"}]})), "`tools` is not supported\n  hint: leave the column out"),
        (
            chat(json!({"chosen": [{"role": "user", "content": "a"}]})),
            "`chosen` starts with a message of `user`, expected `assistant`",
        ),
        (
            chat(
                json!({"chosen": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]}),
            ),
            "`chosen` has an image part in a message of `assistant`\n  hint: images belong in the prompt",
        ),
        (
            with(json!({"chosen": [{"role": "assistant", "content": "a"}]})),
            "`rejected` is text where another column holds messages",
        ),
        (
            with(
                json!({"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}),
            ),
            "`prompt` is text but the answers are messages",
        ),
        (
            json!({"chosen": dialog(&["q", "a"]), "rejected": dialog(&["r", "b"])}),
            "no `prompt`, and the dialogs share no first turn that could be it",
        ),
        (
            with(json!({"prompt": "<image><image> q"})),
            "`prompt` has 2 `<image>` marks, the row has 1 image\n  hint: write `<image>` once",
        ),
        (with(json!({"prompt": "q"})), "`prompt` has 0 `<image>` marks, the row has 1 image"),
        (
            chat(user(json!([{"type": "image"}, {"type": "image"}]))),
            "`prompt` has 2 open image parts, the row has 1 image",
        ),
        (chat(user(json!([{"type": "text", "text": "q"}]))), "`prompt` has 0 open image parts, the row has 1 image"),
        (
            chat(user(json!("<image><image> q"))),
            "`prompt` has 2 `<image>` marks, the row has 1 image\n  hint: write `<image>` once",
        ),
        (
            chat(user(json!([{"type": "image"}, {"type": "text", "text": "<image> q"}]))),
            "`prompt` writes `<image>` inside a message, which would be one image too many",
        ),
        (with(json!({"chosen": "see <image>"})), "`chosen` holds the mark `<image>`, responses have no images"),
        (with(json!({"image": "cat.png"})), "`image` beside another key for images, expected one of `images`, `image`"),
        (with(json!({"images": [null]})), "`images[0]`: expected an image (path, bytes or object), found null"),
        (with(json!({"images": 1})), "`images`: expected an image (path, bytes or object), found a number"),
        (with(json!({"images": [""]})), "`images[0]`: the image's path is empty"),
        (with(json!({"images": [{"file": "x"}]})), "`images[0]`: expected `bytes` or `path`, found `file`"),
        (with(json!({"images": [{"bytes": 1}]})), "`images[0].bytes`: expected bytes, found a number"),
        (with(json!({"images": [{"bytes": "?"}]})), "`images[0].bytes`: not base64: `?`"),
        (
            with(json!({"images": ["data:image/png,abc"]})),
            "`images[0]`: expected `data:image/…;base64,…`, found `data:image/png,abc`",
        ),
        (with(json!({"images": ["data:image/png;base64,"]})), "`images[0]`: the image has no bytes"),
        (
            with(json!({"images": ["https://a.b/c.png"]})),
            "`images[0]`: images are read from files, found the address `https://a.b/c.png`\n  hint: download the images first",
        ),
        (with(json!({"images": ["file:cat.png"]})), "`images[0]`: no such image file: "),
        (with(json!({"images": ["file://cat.png"]})), "`images[0]`: expected `file:///path`, found `file://cat.png`"),
        (with(json!({"images": ["images"]})), "`images[0]`: is a folder, expected an image file: "),
    ];
    for (row, expected) in cases {
        let message = refusal(row.clone());
        assert!(message.starts_with(expected), "{row}\n{message}");
    }
    let message = refusal(with(json!({"images": ["gone.png"]})));
    assert!(
        message.contains("/gone.png\n  hint: relative paths start at `image_folder`, or without it at the folder"),
        "{message}"
    );
}

#[test]
fn a_mark_in_a_plain_message_is_the_place_of_an_image() {
    let row = json!({"images": ["cat.png", "dog.png"], "prompt": dialog(&["<image>\nA <image> B"]), "chosen": "a", "rejected": "b"});
    let example = parse(&folder(), &row, &PAIR).expect("a usable row");
    let text = |text: &str| Part::Text(text.to_owned());
    let content = vec![Part::Image, text("A "), Part::Image, text(" B")];
    assert_eq!(example.prompt, Prompt::Messages(vec![Message { role: "user".to_owned(), content }]));
    assert_eq!(example.images.len(), 2);
}

#[test]
fn text_about_the_mark_is_text_where_no_image_is() {
    let row = json!({"prompt": dialog(&["What does <image> mean in SVG?"]), "chosen": "<image> is", "rejected": "no"});
    assert!(parse(&folder(), &row, &PAIR).is_ok());
}

#[test]
fn skipping_is_decided_by_number() {
    let problems =
        |number: usize| (1..=number).map(|i| Error::at(format!("f line {i}"), "bad").hint("mend")).collect::<Vec<_>>();
    assert_eq!(decide(problems(0), 0, 10).unwrap().len(), 0);
    assert_eq!(decide(problems(2), 2, 10).unwrap().len(), 2);
    let message = decide(problems(2), 1, 10).unwrap_err().to_string();
    let expected = "data set: 2 of 10 rows cannot be used\n  f line 1: bad\n  f line 2: bad\n  hint: mend\n  \
        hint: mend them, or leave them out with `max_skipped_rows: 2`";
    assert_eq!(message, expected);
    let message = decide(problems(60), 0, 100).unwrap_err().to_string();
    assert!(message.contains("\n  f line 50: bad\n  … and 10 more\n") && !message.contains("line 51"), "{message}");
    let message = decide(problems(3), 3, 3).unwrap_err().to_string();
    assert!(
        message.starts_with("data set: 3 of 3 rows cannot be used") && !message.contains("max_skipped_rows"),
        "{message}"
    );
}

/// Any JSON, with the words of the shapes frequent enough to come deep into the parser.
fn any_json() -> impl Strategy<Value = Json> {
    const WORDS: [&str; 11] =
        ["user", "assistant", "text", "image", "<image>", "cat.png", "", "a", "data:;base64,Zg==", "file://%", "é://"];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        proptest::sample::select(&WORDS[..]).prop_map(Json::from),
        ".{0,8}".prop_map(Json::from),
    ];
    const KEYS: [&str; 30] = [
        "from",
        "value",
        "conversations",
        "responses",
        "scores",
        "completions",
        "response",
        "annotations",
        "Rating",
        "label",
        "score_chosen",
        "aux_chosen",
        "role",
        "content",
        "type",
        "text",
        "image",
        "images",
        "img_path",
        "rejected_images",
        "prompt",
        "chosen",
        "rejected",
        "messages",
        "completion",
        "bytes",
        "path",
        "url",
        "tool_calls",
        "x",
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            proptest::collection::vec((proptest::sample::select(&KEYS[..]), inner.clone()), 0..5)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            (proptest::sample::select(&WORDS[..4]), inner)
                .prop_map(|(role, content)| json!([{"role": role, "content": content, "type": role, "text": content}])),
        ]
    })
}

proptest! {
    #[test]
    fn no_row_panics(prompt in any_json(), chosen in any_json(), rejected in any_json(), images in any_json(), row in any_json()) {
        let pair = json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "images": images});
        let dialogs = json!({"chosen": prompt, "rejected": chosen, "rejected_images": images});
        for row in [row, pair, dialogs] {
            let hpo = Need { rewards: vec!["x".to_owned(), FLESCH_KINCAID.to_owned()], ..KTO };
            for need in [&SFT, &PAIR, &GIVEN, &KTO, &ODPO, &hpo] {
                for logps in [ReferenceLogps::Computed, ReferenceLogps::Columns] {
                    let settings = config::Data { reference_logps: logps, ..settings(PathBuf::new()) };
                    let read = read_one(row.clone(), &settings, need);
                    let _ = read.map_err(|problem| problem.to_string());
                }
            }
        }
    }

    #[test]
    fn no_file_panics(bytes: Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["any.json", "any.jsonl", "any.parquet"] {
            let _ = load(&settings(write(&folder, name, &bytes)), &PAIR, SEED);
        }
    }
}

#[test]
fn files_that_two_data_sets_share_are_found_and_splits_of_a_folder_share_none() {
    let folder = folder();
    ["train.jsonl", "test.jsonl"].iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
    let shared = |one: &str, other: &str| {
        let path = |name: &str| vec![folder.path().join(name)];
        let found = shared_files(&path(one), &path(other)).unwrap();
        found.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    assert!(shared("test.jsonl", "").is_empty(), "a folder with splits is trained on by `train` alone");
    assert_eq!(shared("", ""), ["train.jsonl"]);
    assert_eq!(shared("images/../train.jsonl", ""), ["train.jsonl"]);
}
