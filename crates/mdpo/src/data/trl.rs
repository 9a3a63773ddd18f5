//! TRL's shape: `images` or `image`, and `prompt`, `chosen`, `rejected` as messages or plain text.
//!
//! Follows TRL 1.16 (`data_utils.prepare_multimodal_messages`, `extract_prompt`), but: a prompt hidden in `chosen` and `rejected`
//! is found in messages only, never letter by letter in plain text; a plain answer to a prompt of messages is the assistant's.

use super::row::{Fields, Row, Value, shown};
use super::shape::{MARK, count, missing, required};
use super::{Example, ImageSource, Message, Need, Part, Prompt, Response, images};
use crate::Result;

/// A message and what its image parts carry themselves.
#[derive(Debug, Clone, PartialEq)]
struct Turn {
    message: Message,
    /// One entry per image part; none where the image is the row's next one.
    own: Vec<Option<ImageSource>>,
    /// Whether the content was written as one text, which leaves the place of images open.
    plain: bool,
}

/// What a column says.
#[derive(Debug)]
enum Said {
    Text(String),
    Turns(Vec<Turn>),
}

/// The example of a row with `prompt`, `chosen` and `rejected`, or for [`Need::Chosen`] also with `completion` or `messages`.
pub(super) fn example(row: &mut Row, need: Need) -> Result<Example> {
    let images = images::column(row, &["images", "image"])?;
    let prompt = match row.fields.take("prompt") {
        Some(value) => Some(said(row, "prompt", value)?),
        None => None,
    };
    let answers = answers(row, need)?;
    let (prompt, images, mut responses) = match prompt {
        Some(Said::Turns(turns)) => {
            let (prompt, images) = place_images(row, turns, images)?;
            let responses = answers.into_iter().map(|(key, answer)| messages_response(row, key, answer));
            (prompt, images, responses.collect::<Result<Vec<_>>>()?)
        }
        Some(Said::Text(text)) if answers.iter().all(|(_, answer)| matches!(answer, Said::Text(_))) => {
            (Prompt::Text(text), images, answers.into_iter().filter_map(|(_, answer)| text_response(answer)).collect())
        }
        prompt => split_dialogs(row, prompt.as_ref(), answers, images)?,
    };
    // `answers` gave the chosen one, and after it the rejected one where it is needed.
    let rejected = if responses.len() > 1 { responses.pop() } else { None };
    let chosen = responses.pop().ok_or_else(|| missing(row, "no `chosen`"))?;
    Ok(Example { row: row.id.clone(), prompt, chosen, rejected, images, rejected_images: Vec::new(), reference: None })
}

/// The columns with the answers, chosen first.
fn answers(row: &mut Row, need: Need) -> Result<Vec<(&'static str, Said)>> {
    let keys: &[&'static str] = match need {
        Need::Pair | Need::PairWithRejectedImages => &["chosen", "rejected"],
        Need::Chosen => {
            let found = ["chosen", "completion", "messages"].iter().position(|key| row.fields.has(key));
            [&["chosen"], &["completion"], &["messages"]][found.unwrap_or(0)]
        }
    };
    let mut answers = Vec::with_capacity(keys.len());
    for key in keys {
        let value = required(row, key)?;
        answers.push((*key, said(row, key, value)?));
    }
    Ok(answers)
}

/// Prompt and responses of whole dialogs: a pair is split after the turns both share, a single one before its first answer.
fn split_dialogs(
    row: &Row,
    prompt: Option<&Said>,
    answers: Vec<(&'static str, Said)>,
    images: Vec<ImageSource>,
) -> Result<(Prompt, Vec<ImageSource>, Vec<Response>)> {
    let mut dialogs = Vec::with_capacity(answers.len());
    for (key, answer) in answers {
        match answer {
            Said::Turns(turns) => dialogs.push((key, turns)),
            Said::Text(_) if prompt.is_none() => {
                return Err(missing(row, &format!("no `prompt` before the plain text of `{key}`")));
            }
            Said::Text(_) => {
                return Err(row
                    .wrong(format!("`{key}` is text where another column holds messages"))
                    .hint("write `prompt`, `chosen` and `rejected` all as messages or all as text"));
            }
        }
    }
    let first_answer = |turns: &[Turn]| turns.iter().position(|turn| turn.message.role == "assistant");
    let shared = match &dialogs[..] {
        [(_, turns)] => first_answer(turns).unwrap_or(turns.len()),
        [(_, chosen), (_, rejected), ..] => {
            // As in TRL each side keeps at least its last turn, even when one dialog continues the other.
            let longest = chosen.len().min(rejected.len()).saturating_sub(1);
            chosen.iter().zip(rejected).take(longest).take_while(|(chosen, rejected)| chosen == rejected).count()
        }
        [] => 0,
    };
    if shared == 0 {
        return Err(match prompt {
            Some(_) => {
                row.wrong("`prompt` is text but the answers are messages").hint("write `prompt` as messages too")
            }
            None => missing(row, "no `prompt`, and the dialogs share no first turn that could be it"),
        });
    }
    let turns = dialogs.first().map(|(_, turns)| turns[..shared].to_vec()).unwrap_or_default();
    let (prompt, images) = place_images(row, turns, images)?;
    let rest =
        dialogs.into_iter().map(|(key, mut turns)| messages_response(row, key, Said::Turns(turns.split_off(shared))));
    Ok((prompt, images, rest.collect::<Result<Vec<_>>>()?))
}

impl Turn {
    /// How many `<image>` its text holds.
    fn marks(&self) -> usize {
        self.message
            .content
            .iter()
            .map(|part| if let Part::Text(text) = part { text.matches(MARK).count() } else { 0 })
            .sum()
    }

    /// Turns each `<image>` of its text into an image part, as LLaMA-Factory and ms-swift read it; the line break that they write
    /// behind the mark is the template's to write.
    fn open_marks(&mut self) {
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

/// Gives each image part of the prompt its image: the one it carries, or the row's next one.
fn place_images(row: &Row, mut turns: Vec<Turn>, images: Vec<ImageSource>) -> Result<(Prompt, Vec<ImageSource>)> {
    let parts: usize = turns.iter().map(|turn| turn.own.len()).sum();
    let marks: usize = turns.iter().filter(|turn| turn.plain).map(Turn::marks).sum();
    if parts == 0 && marks > 0 && !images.is_empty() {
        if marks != images.len() {
            let what = format!(
                "`prompt` has {}, the row has {}",
                count(marks, "`<image>` mark"),
                count(images.len(), "image")
            );
            return Err(row.wrong(what).hint("write `<image>` once for each image"));
        }
        turns.iter_mut().filter(|turn| turn.plain).for_each(Turn::open_marks);
    } else if parts == 0
        && let Some(turn) = turns.iter_mut().find(|turn| turn.plain && turn.message.role == "user")
    {
        turn.own = vec![None; images.len()];
        turn.message.content.splice(0..0, images.iter().map(|_| Part::Image));
    }
    let open = turns.iter().flat_map(|turn| &turn.own).filter(|own| own.is_none()).count();
    if open != images.len() {
        let what =
            format!("`prompt` has {}, the row has {}", count(open, "open image part"), count(images.len(), "image"));
        return Err(row.wrong(what).hint("write the part {\"type\": \"image\"} once for each image"));
    }
    let mut images = images.into_iter();
    let mut placed = Vec::with_capacity(parts.max(open));
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        placed.extend(turn.own.into_iter().filter_map(|own| own.or_else(|| images.next())));
        messages.push(turn.message);
    }
    Ok((Prompt::Messages(messages), placed))
}

fn text_response(answer: Said) -> Option<Response> {
    match answer {
        Said::Text(text) => Some(Response::Text(text)),
        Said::Turns(_) => None,
    }
}

fn messages_response(row: &Row, key: &str, answer: Said) -> Result<Response> {
    let turns = match answer {
        Said::Text(text) => {
            let message = Message { role: "assistant".to_owned(), content: vec![Part::Text(text)] };
            return Ok(Response::Messages(vec![message]));
        }
        Said::Turns(turns) => turns,
    };
    if turns.iter().any(|turn| !turn.own.is_empty()) {
        return Err(row.wrong(format!("`{key}` has an image part, images belong in the prompt")));
    }
    match turns.first() {
        None => Err(row.wrong(format!("`{key}` is empty"))),
        Some(turn) if turn.message.role != "assistant" => {
            Err(row.wrong(format!("`{key}` starts with a message of `{}`, expected `assistant`", turn.message.role)))
        }
        Some(_) => Ok(Response::Messages(turns.into_iter().map(|turn| turn.message).collect())),
    }
}

fn said(row: &Row, key: &str, value: Value) -> Result<Said> {
    match value {
        Value::List(items) => {
            let turns = items.into_iter().enumerate().map(|(i, item)| turn(row, &format!("{key}[{i}]"), item));
            Ok(Said::Turns(turns.collect::<Result<_>>()?))
        }
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
    let lacks = |key: &str, fields: &Fields| row.wrong(format!("`{place}`: no `{key}`; keys found: {}", fields.keys()));
    let role = fields.take("role").ok_or_else(|| lacks("role", &fields))?;
    let role = row.text(&format!("{place}.role"), role)?;
    if !["system", "user", "assistant", "tool"].contains(&role.as_str()) {
        let what =
            format!("`{place}.role`: expected `system`, `user`, `assistant` or `tool`, found `{}`", shown(&role));
        return Err(row.wrong(what));
    }
    if fields.has_content("tool_calls") {
        return Err(row.wrong(format!("`{place}.tool_calls` is not supported")));
    }
    let content = fields.take("content").ok_or_else(|| lacks("content", &fields))?;
    let place = format!("{place}.content");
    let mut turn = Turn { message: Message { role, content: Vec::new() }, own: Vec::new(), plain: false };
    match content {
        Value::List(parts) => {
            for (i, value) in parts.into_iter().enumerate() {
                part(row, &format!("{place}[{i}]"), value, &mut turn)?;
            }
        }
        Value::Text(_) | Value::Bytes(_) => {
            turn.message.content.push(Part::Text(row.text(&place, content)?));
            turn.plain = true;
        }
        other => return Err(row.wrong(format!("`{place}`: expected text or parts, found {}", other.kind()))),
    }
    Ok(turn)
}

/// Adds one part to `turn`. Arrow gives every part the keys of all parts, so that a null must mean absent.
fn part(row: &Row, place: &str, value: Value, turn: &mut Turn) -> Result<()> {
    let Value::Object(fields) = value else {
        return Err(row.wrong(format!("`{place}`: expected a part with `type`, found {}", value.kind())));
    };
    let mut fields = Fields::new(fields);
    let kind = match fields.take("type") {
        Some(kind) => row.text(&format!("{place}.type"), kind)?,
        None => return Err(row.wrong(format!("`{place}`: no `type`; keys found: {}", fields.keys()))),
    };
    match kind.as_str() {
        "text" => {
            let Some(text) = fields.take("text") else {
                return Err(row.wrong(format!("`{place}`: no `text`; keys found: {}", fields.keys())));
            };
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
