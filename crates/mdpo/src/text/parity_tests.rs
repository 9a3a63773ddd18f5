//! Rendered chats, token ids and the split into prompt and response against transformers and TRL (`parity/text/generate.py`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::encode::{EncodedRow, Encoder, ImageToken};
use super::template::{ChatEnd, ChatTemplate};
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::config::Overlong;
use crate::data::{Answer, Example, ImageSource, Message, Pair, Part, Prompt, Response, RowId};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/text").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_str(&fixture(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    let part = |part: &Value| match part["type"].as_str() {
        Some("image") => Part::Image,
        _ => Part::Text(part["text"].as_str().unwrap().to_owned()),
    };
    let message = |m: &Value| Message {
        role: m["role"].as_str().unwrap().to_owned(),
        content: match &m["content"] {
            Value::String(text) => vec![Part::Text(text.clone())],
            parts => parts.as_array().unwrap().iter().map(part).collect(),
        },
    };
    value.as_array().unwrap().iter().map(message).collect()
}

fn folder(case: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    for (name, content) in case["files"].as_object().unwrap() {
        write(name, content.to_string());
    }
    write("tokenizer.json", fixture(&format!("{}.json", case["tokenizer"].as_str().unwrap())));
    let template =
        json("templates.json").as_array().unwrap().iter().find(|t| t["name"] == case["template"]).unwrap().clone();
    write("chat_template.jinja", template["source"].as_str().unwrap().to_owned());
    folder
}

fn encoder(case: &Value, folder: &Path) -> Encoder {
    let image = case["image_token"]
        .as_u64()
        .map(|id| ImageToken { id: id as u32, features: case["features"].as_u64().unwrap() as usize });
    Encoder::load(folder, image, case["vocab_size"].as_u64().unwrap() as usize).unwrap()
}

fn case(name: &str) -> Value {
    json("folders.json").as_array().unwrap().iter().find(|case| case["name"] == name).unwrap().clone()
}

/// An encoder from the folder of a fixture.
pub(super) fn encoder_of(name: &str) -> Encoder {
    let case = case(name);
    let folder = folder(&case);
    encoder(&case, folder.path())
}

/// An example with `images` images, in line 7 of `pairs.jsonl`.
fn answer(name: &'static str, response: Response) -> Answer {
    Answer { name: name.into(), response, score: None, rewards: Vec::new() }
}

pub(super) fn example(images: usize, prompt: Prompt, chosen: Response, rejected: Response) -> Example {
    Example {
        row: RowId { file: Arc::from(Path::new("pairs.jsonl")), row: 7 },
        prompt,
        answers: vec![answer("chosen", chosen), answer("rejected", rejected)],
        pairs: vec![Pair { chosen: Some(0), rejected: Some(1) }],
        images: vec![ImageSource::Path(PathBuf::from("a.png")); images],
        rejected_images: Vec::new(),
        reference: None,
    }
}

#[test]
fn templates_render_as_in_transformers() {
    for template in json("templates.json").as_array().unwrap() {
        let name = template["name"].as_str().unwrap();
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let image = (template["content"] == "list").then_some("<image>");
        let ours =
            ChatTemplate::new(template["source"].as_str().unwrap(), "chat_template.jinja", &specials, image).unwrap();
        for chat in template["chats"].as_array().unwrap() {
            let end = if chat["generation_prompt"] == true { ChatEnd::GenerationPrompt } else { ChatEnd::LastMessage };
            let rendered = ours.render(&messages(&chat["messages"]), end);
            match chat["error"].as_str() {
                Some(error) => {
                    let ours = rendered.unwrap_err().to_string();
                    assert!(
                        ours.starts_with("chat_template.jinja: the chat template cannot render these messages: "),
                        "{ours}"
                    );
                    assert!(ours.contains(error), "{name}: {ours}");
                }
                None => assert_eq!(rendered.unwrap(), chat["rendered"].as_str().unwrap(), "{name}"),
            }
        }
    }
}

#[test]
fn token_ids_equal_transformers() {
    for case in json("folders.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = folder(case);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(serde_json::to_value(tokenizer.special_tokens()).unwrap(), case["special_tokens"], "{name}");
        assert_eq!(tokenizer.vocab_size() as u64, case["vocab_size"].as_u64().unwrap(), "{name}");
        for text in case["texts"].as_array().unwrap() {
            let what = format!("{name}: {}", text["text"]);
            let source = text["text"].as_str().unwrap();
            let bare = tokenizer.encode(source, SpecialTokens::Omit).unwrap();
            assert_eq!(bare, ids(&text["ids"]), "{what}");
            assert_eq!(
                tokenizer.encode(source, SpecialTokens::Add).unwrap(),
                ids(&text["with_special_tokens"]),
                "{what}"
            );
            let decoded = text["decoded"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&bare).unwrap(), decoded, "{what}");
            let mut stream = tokenizer.decode_stream();
            let mut streamed = String::new();
            for &id in &bare {
                let piece = stream.push(id).unwrap();
                assert!(!piece.contains('\u{fffd}'), "{what}");
                streamed += &piece;
            }
            assert_eq!(streamed + &stream.finish().unwrap(), decoded, "{what}");
        }
    }
}

#[test]
fn rows_split_as_in_trl_and_end_with_an_eos() {
    for case in json("folders.json").as_array().unwrap() {
        let folder = folder(case);
        let encoder = encoder(case, folder.path());
        for (i, row) in case["rows"].as_array().unwrap().iter().enumerate() {
            let what = format!("{} row {i}", case["name"]);
            let images = row["images"].as_u64().unwrap() as usize;
            let prompt = Prompt::Messages(messages(&row["prompt"]));
            let [chosen, rejected] = ["chosen", "rejected"].map(|name| Response::Messages(messages(&row[name])));
            let out =
                encoder.encode(&example(images, prompt.clone(), chosen, rejected), None, Overlong::Refuse).unwrap();
            let EncodedRow { encoded, shortened, seam } = out;
            assert!(!shortened, "{what}");
            assert_eq!(seam, row["prompt_ids"] != row["generation_ids"], "{what}");
            assert_eq!(encoded.prompt.ids, ids(&row["prompt_ids"]), "{what}");
            assert_eq!(encoder.prompt_only(&prompt, images).unwrap().ids, ids(&row["generation_ids"]), "{what}");
            assert_eq!(encoded.prompt.images.len(), images, "{what}");
            assert!(encoded.prompt.counted.iter().all(|counted| !counted), "{what}");
            assert_eq!(encoded.answers.len(), 2, "{what}");
            for (answer, name) in encoded.answers.iter().zip(["chosen_ids", "rejected_ids"]) {
                let mut expected = ids(&row[name]);
                if !expected.iter().any(|id| encoder.eos_ids().contains(id)) {
                    expected.push(encoder.eos_ids()[0]);
                }
                assert_eq!(answer.ids, expected, "{what} {name}");
                assert!(answer.counted.iter().all(|&counted| counted), "{what} {name}");
                assert!(answer.turns.iter().eq([&(0..answer.ids.len())]), "{what} {name}");
            }
        }
    }
}
