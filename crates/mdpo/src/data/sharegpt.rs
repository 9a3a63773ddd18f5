//! ShareGPT's way to write a message, `from` and `value`: the trajectories of DMPO (Shi et al. 2024, `construct_preference_nocut.py`) and the
//! ranking rows of LLaMA-Factory.

use super::chat::{Turn, required};
use super::row::{Fields, Row, shown};
use crate::Result;

/// The roles, by what `from` may say.
const SPEAKERS: [(&str, &str); 8] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("system", "system"),
    // What an environment or a tool answers.
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool", "tool"),
];

/// The message at `place`.
pub(super) fn turn(row: &Row, place: &str, mut fields: Fields) -> Result<Turn> {
    let from = required(row, place, "from", &mut fields)?;
    let from = row.text(&format!("{place}.from"), from)?;
    let value = required(row, place, "value", &mut fields)?;
    let value = row.text(&format!("{place}.value"), value)?;
    match SPEAKERS.iter().find(|(name, _)| *name == from) {
        Some((_, role)) => Ok(Turn::of(role, value)),
        None if from == "function_call" => Err(row
            .wrong(format!("`{place}.from`: `function_call` is not supported"))
            .hint("write the call as the model would write it, in a message from `gpt`")),
        None => {
            let what =
                format!("`{place}.from`: expected `human`, `gpt`, `system` or `observation`, found `{}`", shown(&from));
            Err(row.wrong(what))
        }
    }
}
