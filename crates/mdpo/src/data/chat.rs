//! Messages in rows: who says what, and which image stands where.
//!
//! Follows TRL 1.16 (`data_utils.prepare_multimodal_messages`). A message is written as TRL does (`role`, `content`) or as ShareGPT does
//! (`from`, `value`, see `sharegpt`).

use super::row::{Fields, Row, Value, shown};
use super::shape::{MARK, count};
use super::{ImageSource, Message, Part, images, sharegpt};
use crate::Result;

/// A message and what its image parts carry themselves.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    pub(super) message: Message,
    /// One entry per image part; none where the image is the row's next one.
    pub(super) own: Vec<Option<ImageSource>>,
    /// Whether the content was written as one text, which leaves the place of images open.
    pub(super) plain: bool,
}

/// What a column says.
#[derive(Debug)]
pub(super) enum Said {
    /// Plain text.
    Text(String),
    /// Messages.
    Turns(Vec<Turn>),
}

impl Said {
    /// A question of the user.
    pub(super) fn question(text: String) -> Self {
        Said::Turns(vec![Turn::of("user", text)])
    }
}

/// A column of an answer with its name within the row.
pub(super) type NamedSaid = (String, Said);

/// An answer with its name within the row.
pub(super) type NamedTurns = (String, Vec<Turn>);

impl Turn {
    /// One text, said by `role`.
    pub(super) fn of(role: &str, text: String) -> Self {
        Turn {
            message: Message { role: role.to_owned(), content: vec![Part::Text(text)] },
            own: Vec::new(),
            plain: true,
        }
    }

    /// Whether the assistant speaks.
    pub(super) fn is_answer(&self) -> bool {
        self.message.role == "assistant"
    }

    /// How many `<image>` its text holds where those may be places of images.
    fn marks(&self) -> usize {
        let marks = |part: &Part| if let Part::Text(text) = part { text.matches(MARK).count() } else { 0 };
        if self.plain { self.message.content.iter().map(marks).sum() } else { 0 }
    }

    /// Turns each `<image>` of its text into an image part, as LLaMA-Factory and ms-swift read it; the line break that they write
    /// behind the mark is the template's to write.
    fn open_marks(&mut self) {
        if !self.plain {
            return;
        }
        let mut content = Vec::new();
        for part in std::mem::take(&mut self.message.content) {
            let Part::Text(text) = part else { continue };
            for (i, piece) in text.split(MARK).enumerate() {
                if i > 0 {
                    self.own.push(None);
                    content.push(Part::Image);
                }
                let piece = if i > 0 { piece.strip_prefix('\n').unwrap_or(piece) } else { piece };
                if !piece.is_empty() {
                    content.push(Part::Text(piece.to_owned()));
                }
            }
        }
        self.message.content = content;
    }
}

/// Gives each image part its image: the one it carries, or the row's next one, in the order of the prompt and then of each answer.
///
/// `<image>` in plain text of the prompt, or of what others say within an answer, is such a part; images that nothing marks go before the
/// first plain text of the user. `unread` is what the row says besides and the objective does not read; its images come last.
///
/// # Errors
/// An image in what the assistant answers; more or fewer places than images.
pub(super) fn place_images(
    row: &Row,
    prompt: &mut [Turn],
    answers: &mut [NamedTurns],
    mut unread: Vec<Turn>,
    images: Vec<ImageSource>,
) -> Result<Vec<ImageSource>> {
    for (name, turns) in answers.iter() {
        if turns.iter().any(|turn| turn.is_answer() && !turn.own.is_empty()) {
            return Err(row
                .wrong(format!("`{name}` has an image part in a message of `assistant`"))
                .hint("images belong in the prompt, or in what others say between the turns of an answer"));
        }
    }
    let mut places: Vec<&mut Turn> = prompt.iter_mut().collect();
    let first_answer = places.len();
    let others = answers.iter_mut().flat_map(|(_, turns)| turns).chain(&mut unread).filter(|turn| !turn.is_answer());
    places.extend(others);
    let whole = match places[first_answer..].iter().any(|turn| turn.marks() + turn.own.len() > 0) {
        true => "prompt and answers have",
        false => "`prompt` has",
    };
    let parts: usize = places.iter().map(|turn| turn.own.len()).sum();
    let marks: usize = places.iter().map(|turn| turn.marks()).sum();
    let images_found = count(images.len(), "image");
    if parts == 0 && marks > 0 && !images.is_empty() {
        if marks != images.len() {
            let what = format!("{whole} {}, the row has {images_found}", count(marks, "`<image>` mark"));
            return Err(row.wrong(what).hint("write `<image>` once for each image"));
        }
        places.iter_mut().for_each(|turn| turn.open_marks());
    } else if parts == 0
        && let Some(turn) = places[..first_answer].iter_mut().find(|turn| turn.plain && turn.message.role == "user")
    {
        turn.own = vec![None; images.len()];
        turn.message.content.splice(0..0, images.iter().map(|_| Part::Image));
    }
    let open = places.iter().flat_map(|turn| &turn.own).filter(|own| own.is_none()).count();
    if open != images.len() {
        let what = format!("{whole} {}, the row has {images_found}", count(open, "open image part"));
        return Err(row.wrong(what).hint("write the part {\"type\": \"image\"} once for each image"));
    }
    let mut images = images.into_iter();
    let read = prompt.iter_mut().chain(answers.iter_mut().flat_map(|(_, turns)| turns));
    Ok(read.flat_map(|turn| std::mem::take(&mut turn.own)).filter_map(|own| own.or_else(|| images.next())).collect())
}

/// What `value` says; `key` names it within the row.
pub(super) fn said(row: &Row, key: &str, value: Value) -> Result<Said> {
    match value {
        Value::List(items) => {
            let turns = items.into_iter().enumerate().map(|(i, item)| turn(row, &format!("{key}[{i}]"), item));
            Ok(Said::Turns(turns.collect::<Result<_>>()?))
        }
        // LLaMA-Factory's answers are one message.
        Value::Object(_) => Ok(Said::Turns(vec![turn(row, key, value)?])),
        Value::Text(_) | Value::Bytes(_) => Ok(Said::Text(row.text(key, value)?)),
        other => Err(row.wrong(format!("`{key}`: expected messages or text, found {}", other.kind()))),
    }
}

fn turn(row: &Row, place: &str, value: Value) -> Result<Turn> {
    let Value::Object(fields) = value else {
        let what = format!("`{place}`: expected a message with `role` and `content`, found {}", value.kind());
        return Err(row.wrong(what));
    };
    let mut fields = Fields::new(fields);
    if fields.has_content("tool_calls") {
        return Err(row.wrong(format!("`{place}.tool_calls` is not supported")));
    }
    if fields.has("from") && !fields.has("role") {
        return sharegpt::turn(row, place, fields);
    }
    let role = required(row, place, "role", &mut fields)?;
    let role = row.text(&format!("{place}.role"), role)?;
    if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
        let what =
            format!("`{place}.role`: expected `system`, `user`, `assistant` or `tool`, found `{}`", shown(&role));
        return Err(row.wrong(what));
    }
    let content = required(row, place, "content", &mut fields)?;
    let place = format!("{place}.content");
    match content {
        Value::List(parts) => {
            let mut turn = Turn { message: Message { role, content: Vec::new() }, own: Vec::new(), plain: false };
            for (i, value) in parts.into_iter().enumerate() {
                part(row, &format!("{place}[{i}]"), value, &mut turn)?;
            }
            Ok(turn)
        }
        Value::Text(_) | Value::Bytes(_) => Ok(Turn::of(&role, row.text(&place, content)?)),
        other => Err(row.wrong(format!("`{place}`: expected text or parts, found {}", other.kind()))),
    }
}

/// What `key` of the object at `place` holds.
pub(super) fn required(row: &Row, place: &str, key: &str, fields: &mut Fields) -> Result<Value> {
    fields.take(key).ok_or_else(|| row.wrong(format!("`{place}`: no `{key}`; keys found: {}", fields.keys())))
}

/// Adds one part to `turn`. Arrow gives every part the keys of all parts, so that a null must mean absent.
fn part(row: &Row, place: &str, value: Value, turn: &mut Turn) -> Result<()> {
    let Value::Object(fields) = value else {
        return Err(row.wrong(format!("`{place}`: expected a part with `type`, found {}", value.kind())));
    };
    let mut fields = Fields::new(fields);
    let kind = required(row, place, "type", &mut fields)?;
    let kind = row.text(&format!("{place}.type"), kind)?;
    match kind.as_str() {
        "text" => {
            let text = required(row, place, "text", &mut fields)?;
            turn.message.content.push(Part::Text(row.text(&format!("{place}.text"), text)?));
        }
        "image" => {
            let own = match fields.take("image") {
                Some(image) => Some(images::source(row, &format!("{place}.image"), image)?),
                None if ["bytes", "path", "url"].iter().any(|key| fields.has(key)) => {
                    Some(images::source(row, place, fields.into_value())?)
                }
                None => None,
            };
            turn.message.content.push(Part::Image);
            turn.own.push(own);
        }
        other => {
            let what = format!("`{place}.type`: expected `text` or `image`, found `{}`", shown(other));
            return Err(row.wrong(what));
        }
    }
    Ok(())
}
