//! TRL's shape: a prompt and its answers as messages or plain text, or whole dialogs that share their beginning.
//!
//! Follows TRL 1.16 (`data_utils.extract_prompt`), but: a prompt hidden in `chosen` and `rejected` is found in messages only, never letter by
//! letter in plain text; a plain answer to a prompt of messages is the assistant's.

use super::chat::{NamedSaid, NamedTurns, Said, Turn, place_images};
use super::row::Row;
use super::shape::missing;
use super::{ImageSource, Prompt, Response};
use crate::Result;

/// What a row says, column by column.
#[derive(Debug)]
pub(super) struct Columns {
    /// `prompt`.
    pub(super) prompt: Option<Said>,
    /// The answers with their names, the preferred one first where there is such a one.
    pub(super) answers: Vec<NamedSaid>,
    /// A rejected answer that the objective does not read.
    pub(super) unread: Option<Said>,
    /// The row's images.
    pub(super) images: Vec<ImageSource>,
}

/// What they mean: the prompt, the images in the order of their places, and the responses.
pub(super) fn read(row: &Row, columns: Columns) -> Result<(Prompt, Vec<ImageSource>, Vec<Response>)> {
    let Columns { prompt, answers, unread, images } = columns;
    let mut unread = match unread {
        Some(Said::Turns(turns)) => turns,
        _ => Vec::new(),
    };
    let (mut prompt, mut answers) = match prompt {
        Some(Said::Turns(prompt)) => (prompt, answers.into_iter().map(turns).collect()),
        Some(Said::Text(text)) if answers.iter().all(|(_, answer)| matches!(answer, Said::Text(_))) => {
            return Ok((Prompt::Text(text), images, answers.into_iter().filter_map(text_response).collect()));
        }
        prompt => {
            let dialogs = dialogs(row, prompt.as_ref(), answers)?;
            let repeated = dialogs.first().map_or(0, |(_, turns)| common(turns, &unread));
            unread.drain(..repeated);
            split(row, prompt.as_ref(), dialogs)?
        }
    };
    let images = place_images(row, &mut prompt, &mut answers, unread, images)?;
    let prompt = Prompt::Messages(prompt.into_iter().map(|turn| turn.message).collect());
    let responses = answers.into_iter().map(|answer| response(row, answer)).collect::<Result<_>>()?;
    Ok((prompt, images, responses))
}

fn turns((name, answer): NamedSaid) -> NamedTurns {
    match answer {
        Said::Text(text) => (name, vec![Turn::of("assistant", text)]),
        Said::Turns(turns) => (name, turns),
    }
}

fn text_response((_, answer): NamedSaid) -> Option<Response> {
    match answer {
        Said::Text(text) => Some(Response::Text(text)),
        Said::Turns(_) => None,
    }
}

fn dialogs(row: &Row, prompt: Option<&Said>, answers: Vec<NamedSaid>) -> Result<Vec<NamedTurns>> {
    let dialog = |(name, answer): NamedSaid| match answer {
        Said::Turns(turns) => Ok((name, turns)),
        Said::Text(_) if prompt.is_none() => {
            Err(missing(row, &format!("no `prompt` before the plain text of `{name}`")))
        }
        Said::Text(_) => Err(row
            .wrong(format!("`{name}` is text where another column holds messages"))
            .hint("write `prompt`, `chosen` and `rejected` all as messages or all as text")),
    };
    answers.into_iter().map(dialog).collect()
}

/// Prompt and answers of whole dialogs: several are split after the turns that all share, a single one before its first answer.
fn split(row: &Row, prompt: Option<&Said>, mut dialogs: Vec<NamedTurns>) -> Result<(Vec<Turn>, Vec<NamedTurns>)> {
    let shared = match &dialogs[..] {
        [] => 0,
        [(_, turns)] => turns.iter().position(Turn::is_answer).unwrap_or(turns.len()),
        [(_, first), others @ ..] => {
            // As in TRL each side keeps at least its last turn, even when one dialog continues the other.
            let shared = others.iter().map(|(_, turns)| common(first, turns).min(turns.len().saturating_sub(1))).min();
            shared.unwrap_or(0).min(first.len().saturating_sub(1))
        }
    };
    if shared == 0 {
        return Err(match prompt {
            Some(_) => {
                row.wrong("`prompt` is text but the answers are messages").hint("write `prompt` as messages too")
            }
            None => missing(row, "no `prompt`, and the dialogs share no first turn that could be it"),
        });
    }
    let mut prompt = Vec::new();
    for (_, turns) in &mut dialogs {
        prompt = turns.drain(..shared).collect();
    }
    Ok((prompt, dialogs))
}

/// How many turns two dialogs share at their start.
fn common(one: &[Turn], other: &[Turn]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn response(row: &Row, (name, turns): NamedTurns) -> Result<Response> {
    let of = |turn: &Turn| format!("a message of `{}`, expected `assistant`", turn.message.role);
    match (turns.first(), turns.last()) {
        (Some(first), _) if !first.is_answer() => Err(row.wrong(format!("`{name}` starts with {}", of(first)))),
        // What follows the last answer of a dialog for `sft` is not learned and does no harm.
        (_, Some(last)) if !last.is_answer() && !["messages", "conversations"].contains(&name.as_str()) => {
            Err(row.wrong(format!("`{name}` ends with {}", of(last))))
        }
        (None, _) => Err(row.wrong(format!("`{name}` is empty"))),
        _ => Ok(Response::Messages(turns.into_iter().map(|turn| turn.message).collect())),
    }
}
