//! What a model is asked without an answer beside it: files of prompts (`mdpo generate --prompts`).
//!
//! A row is `{"id", "prompt", "image" or "images", "system"}`, of which only `prompt` must be there: what the user says, or messages as in rows for
//! training. The rules for images are those of such rows; there is nothing like it in TRL.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chat::{Said, place_images, said};
use super::row::{Fields, Row, Value, shown};
use super::spool::Spool;
use super::{ImageSource, Message, RowId, files, images, json};
use crate::{Error, Result};

const KEYS: [&str; 5] = ["id", "prompt", "image", "images", "system"];

/// Something a model is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// What it is called, like no other of its file.
    pub id: String,
    /// Where it was written, for messages.
    pub place: String,
    /// What is asked.
    pub asked: Asked,
    /// Its images, in the order of their places.
    pub images: Vec<ImageSource>,
}

/// What is said to the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// What the user says, and the system before it; `<image>` marks an image, images that nothing marks come first.
    Words {
        /// The user's words.
        text: String,
        /// The system's words.
        system: Option<String>,
    },
    /// Messages for the checkpoint's chat template.
    Messages(Vec<Message>),
}

impl Question {
    /// A question of the user about some image files.
    pub fn new(id: impl Into<String>, text: impl Into<String>, images: impl IntoIterator<Item = PathBuf>) -> Self {
        let id = id.into();
        Question {
            place: format!("question `{}`", shown(&id)),
            id,
            asked: Asked::Words { text: text.into(), system: None },
            images: images.into_iter().map(ImageSource::Path).collect(),
        }
    }
}

/// The questions of a JSONL file (or of a JSON array); relative image paths start at its folder, and a row without `id` is called by its number.
///
/// # Errors
/// A file that is missing, damaged or empty; all rows that cannot be used: unknown keys, no prompt, images that are not there or not marked, an
/// `id` that another row has.
pub fn questions(path: &Path) -> Result<Vec<Question>> {
    let rows = match files::kind(path) {
        Some(files::Kind::JsonLines) => json::lines(path)?,
        Some(files::Kind::Json) => json::array(path)?,
        Some(files::Kind::Parquet) | None => {
            return Err(Error::at(path.display(), "expected prompts in a file ending in `.jsonl` or `.json`"));
        }
    };
    let (file, spool) = (Arc::<Path>::from(path), Spool::default());
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut found, mut problems) = (Vec::<Question>::new(), Vec::new());
    let mut places: HashMap<String, usize> = HashMap::new();
    for row in rows {
        let (number, value) = row?;
        let id = RowId { file: file.clone(), row: number };
        let read = value.and_then(|value| question(id.clone(), folder, value, &spool));
        spool.failure()?;
        match read {
            Err(problem) => problems.push(problem),
            Ok(question) => match places.insert(question.id.clone(), number) {
                None => found.push(question),
                Some(first) => {
                    let first = RowId { file: file.clone(), row: first };
                    let what = format!("`id`: `{}` is also that of {first}", shown(&question.id));
                    problems.push(Error::at(id, what).hint("every prompt needs an `id` of its own, or none"));
                }
            },
        }
    }
    Error::first_ten(path.display(), problems)?;
    match found.is_empty() {
        true => Err(Error::at(path.display(), "the file has no prompts")),
        false => Ok(found),
    }
}

fn question(id: RowId, folder: &Path, value: Value, spool: &Spool) -> Result<Question> {
    let Value::Object(fields) = value else {
        return Err(Error::at(id, format!("expected an object, found {}", value.kind())));
    };
    if let Some((key, _)) = fields.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
        let known = KEYS.map(|key| format!("`{key}`")).join(", ");
        return Err(
            Error::at(id, format!("unknown key `{}`", shown(key))).hint(format!("the keys of a prompt are {known}"))
        );
    }
    let mut row = Row { id, folder, fields: Fields::new(fields), spool };
    let name = match row.fields.take("id") {
        None => row.id.row.to_string(),
        Some(Value::Number(number)) if number.fract() == 0.0 && number.abs() < 9e15 => format!("{number:.0}"),
        Some(Value::Text(text)) if !text.is_empty() => text,
        Some(_) => return Err(row.wrong("`id`: expected text or a whole number")),
    };
    let system = row.fields.take("system").map(|system| row.text("system", system)).transpose()?;
    let images = images::column(&mut row, &["image", "images"])?;
    let Some(prompt) = row.fields.take("prompt") else {
        return Err(row.wrong(format!("no `prompt`; keys found: {}", row.fields.keys())));
    };
    let (asked, images) = match said(&row, "prompt", prompt)? {
        Said::Text(text) if text.trim().is_empty() && images.is_empty() => return Err(row.wrong("`prompt` is empty")),
        Said::Text(text) => (Asked::Words { text, system }, images),
        Said::Turns(_) if system.is_some() => {
            let hint = "write the system message as the first message";
            return Err(row.wrong("`system` beside a prompt of messages").hint(hint));
        }
        Said::Turns(mut turns) => {
            let images = place_images(&row, &mut turns, &mut [], Vec::new(), images)?;
            match turns.last() {
                None => return Err(row.wrong("`prompt` is empty")),
                Some(last) if last.is_answer() => {
                    return Err(
                        row.wrong("`prompt` ends with a message of `assistant`, which leaves nothing to answer")
                    );
                }
                Some(_) => {}
            }
            (Asked::Messages(turns.into_iter().map(|turn| turn.message).collect()), images)
        }
    };
    Ok(Question { id: name, place: row.id.to_string(), asked, images })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Part;

    fn read(text: &str) -> Result<Vec<Question>> {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["a.png", "b.png"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let file = folder.path().join("prompts.jsonl");
        std::fs::write(&file, text).expect("written");
        questions(&file)
    }

    #[test]
    fn a_prompt_is_words_or_messages_with_its_images() {
        let rows = r#"{"prompt": "Hi"}
{"id": 7, "prompt": "Which?", "images": ["a.png", "b.png"], "system": "Be brief."}

{"id": "x", "prompt": [{"role": "user", "content": "Look: <image>there"}], "image": "b.png"}"#;
        let found = read(rows).expect("questions");
        let ids: Vec<&str> = found.iter().map(|question| question.id.as_str()).collect();
        assert_eq!(ids, ["1", "7", "x"]);
        let words =
            |text: &str, system: Option<&str>| Asked::Words { text: text.into(), system: system.map(Into::into) };
        assert_eq!(found[0].asked, words("Hi", None));
        assert_eq!((&found[1].asked, found[1].images.len()), (&words("Which?", Some("Be brief.")), 2));
        let Asked::Messages(messages) = &found[2].asked else { panic!("{:?}", found[2]) };
        let parts = [Part::Text("Look: ".into()), Part::Image, Part::Text("there".into())];
        assert_eq!((&messages[0].content[..], found[2].images.len()), (&parts[..], 1));
        assert!(found[2].place.ends_with("prompts.jsonl line 4"), "{}", found[2].place);
    }

    #[test]
    fn every_row_that_cannot_be_asked_is_named() {
        let rows = r#"{"prompt": "Hi", "question": "Hi"}
{"prompt": "Hi", "image": "c.png"}
{"id": "2", "prompt": "Hi"}
{"id": 2, "prompt": "Hi"}
{"image": "a.png"}
{"prompt": " "}
{"prompt": [{"role": "assistant", "content": "Hi"}]}
{"prompt": [{"role": "user", "content": "Hi"}], "system": "Be brief."}
{"id": 1.5, "prompt": "Hi"}
not JSON"#;
        let told = read(rows).unwrap_err().to_string();
        for part in [
            "line 1: unknown key `question`",
            "line 2: `image`: no such image file",
            "line 4: `id`: `2` is also that of",
            "line 5: no `prompt`; keys found: `image`",
            "line 6: `prompt` is empty",
            "line 7: `prompt` ends with a message of `assistant`",
            "line 8: `system` beside a prompt of messages",
            "line 9: `id`: expected text or a whole number",
            "line 10: not JSON",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
        assert!(told.starts_with("9 problems"), "{told}");
        let many = "{\"prompt\": 1}\n".repeat(300);
        let told = read(&many).unwrap_err().to_string();
        assert!(told.contains("prompts.jsonl: 300 problems\n") && told.contains("… and 290 more"), "{told}");
        assert!(told.lines().count() <= 14, "{told}");
        assert!(read("\n").unwrap_err().to_string().contains("the file has no prompts"));
    }
}
