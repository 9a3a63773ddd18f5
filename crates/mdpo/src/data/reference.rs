//! Log-probs of a reference that rows bring themselves (`reference_logps: columns`).
//!
//! RLHF-V and RLAIF-V write `logps`: the sum, the mean and every token's log-prob of the chosen response, then those of the rejected one, as
//! JSON text or as a list, in RLAIF-V's own files below a key `logps` once more. MM-RLHF writes `reference_chosen_logp` and
//! `reference_rejected_logp`, TRL `ref_chosen_logps` and `ref_rejected_logps`. Only sums are taken.

use super::ReferenceSums;
use super::row::{Fields, Row, Value, shown};
use crate::{Error, Result};

/// The pairs of columns that hold a sum each.
const PAIRS: [[&str; 2]; 2] =
    [["reference_chosen_logp", "reference_rejected_logp"], ["ref_chosen_logps", "ref_rejected_logps"]];

const HINT: &str = "rows have `logps` (RLHF-V, RLAIF-V), `reference_chosen_logp` and `reference_rejected_logp` (MM-RLHF), or \
     `ref_chosen_logps` and `ref_rejected_logps` (TRL); `reference_logps: computed` computes them";

/// What the row says of both responses.
///
/// # Errors
/// The row says nothing, or more than one thing, or something other than log-probs.
pub(super) fn columns(row: &mut Row) -> Result<ReferenceSums> {
    sums(row).map_err(|error| error.hint(HINT))
}

fn sums(row: &mut Row) -> Result<ReferenceSums> {
    // RLHF-V writes empty text where there is nothing yet.
    let logps = row.fields.has_content("logps").then(|| row.fields.take("logps")).flatten();
    let mut found = Vec::new();
    if let Some(value) = logps {
        found.push(muffin(row, value)?);
    }
    for [chosen, rejected] in PAIRS {
        match (row.fields.take(chosen), row.fields.take(rejected)) {
            (None, None) => {}
            (Some(first), Some(second)) => {
                found.push(ReferenceSums { chosen: sum(row, chosen, &first)?, rejected: sum(row, rejected, &second)? })
            }
            (first, _) => {
                let (there, missing) = if first.is_some() { (chosen, rejected) } else { (rejected, chosen) };
                return Err(row.wrong(format!("`{there}` without `{missing}`")));
            }
        }
    }
    match found.as_slice() {
        [sums] => Ok(*sums),
        [] => Err(row.wrong(format!("no log-probs of a reference; keys found: {}", row.fields.keys()))),
        _ => Err(row.wrong("more than one column with log-probs of a reference")),
    }
}

/// The six values of RLHF-V and RLAIF-V.
fn muffin(row: &Row, value: Value) -> Result<ReferenceSums> {
    let value = match value {
        Value::Text(_) | Value::Bytes(_) => {
            let text = row.text("logps", value)?;
            let json = serde_json::from_str::<serde_json::Value>(&text);
            json.map_err(|_| row.wrong(format!("`logps`: expected JSON, found `{}`", shown(&text))))?.into()
        }
        value => value,
    };
    let value = match value {
        Value::Object(fields) => Fields::new(fields).take("logps").unwrap_or(Value::Null),
        value => value,
    };
    match value {
        Value::List(values) if values.len() == 6 => {
            Ok(ReferenceSums { chosen: sum(row, "logps[0]", &values[0])?, rejected: sum(row, "logps[3]", &values[3])? })
        }
        Value::List(values) => Err(wrong_list(row, &format!("{} values", values.len()))),
        value => Err(wrong_list(row, value.kind())),
    }
}

fn wrong_list(row: &Row, found: &str) -> Error {
    row.wrong(format!(
        "`logps`: expected six values (sum, mean and tokens of the chosen, then of the rejected response), found {found}"
    ))
}

fn sum(row: &Row, place: &str, value: &Value) -> Result<f64> {
    match value {
        Value::Number(number) if number.is_finite() && *number <= 0.0 => Ok(*number),
        Value::Number(number) => {
            Err(row.wrong(format!("`{place}`: expected the logarithm of a probability, found {number}")))
        }
        value => Err(row.wrong(format!("`{place}`: expected a number, found {}", value.kind()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{read_one, settings};
    use super::super::{Need, Sides};
    use super::*;
    use crate::config::{self, ReferenceLogps};
    use serde_json::json;
    use std::path::PathBuf;

    fn read(more: serde_json::Value, from: ReferenceLogps) -> Result<Option<ReferenceSums>> {
        let mut row = json!({"prompt": "Hi", "chosen": "yes", "rejected": "no"});
        let fields = more.as_object().expect("an object").clone();
        row.as_object_mut().expect("an object").extend(fields);
        let settings = config::Data { reference_logps: from, ..settings(PathBuf::new()) };
        Ok(read_one(row, &settings, &Need::of(Sides::Both))?.and_then(|example| example.reference))
    }

    #[test]
    fn every_shape_of_reference_columns_gives_both_sums() {
        let sums = Some(ReferenceSums { chosen: -41.25, rejected: -7.5 });
        let six = json!([-41.25, -4.1, [-1.0, -40.25], -7.5, -2.5, [-7.5]]);
        for row in [
            json!({"logps": six.to_string()}),
            json!({"logps": six}),
            json!({"logps": json!({"logps": six}).to_string()}),
            json!({"reference_chosen_logp": -41.25, "reference_rejected_logp": -7.5}),
            json!({"ref_chosen_logps": -41.25, "ref_rejected_logps": -7.5, "logps": ""}),
        ] {
            assert_eq!(read(row.clone(), ReferenceLogps::Columns).unwrap(), sums, "{row}");
            assert_eq!(read(row, ReferenceLogps::Computed).unwrap(), None);
        }
    }

    #[test]
    fn rows_without_usable_reference_columns_are_named() {
        for (row, expected) in [
            (json!({}), "no log-probs of a reference; keys found: `prompt`"),
            (json!({"logps": ""}), "no log-probs of a reference"),
            (json!({"logps": "[1, 2"}), "`logps`: expected JSON, found `[1, 2`"),
            (json!({"logps": [-1.0, -2.0]}), "found 2 values"),
            (json!({"logps": {"other": 1}}), "found null"),
            (json!({"logps": [-1.0, -1.0, [], "x", -1.0, []]}), "`logps[3]`: expected a number, found text"),
            (
                json!({"logps": [1.0, -1.0, [], -1.0, -1.0, []]}),
                "`logps[0]`: expected the logarithm of a probability, found 1",
            ),
            (json!({"ref_chosen_logps": -1.0}), "`ref_chosen_logps` without `ref_rejected_logps`"),
            (json!({"reference_rejected_logp": -1.0}), "`reference_rejected_logp` without `reference_chosen_logp`"),
            (
                json!({"ref_chosen_logps": true, "ref_rejected_logps": -1.0}),
                "`ref_chosen_logps`: expected a number, found a boolean",
            ),
            (
                json!({"ref_chosen_logps": -1, "ref_rejected_logps": -1, "reference_chosen_logp": -1, "reference_rejected_logp": -1}),
                "more than one column",
            ),
        ] {
            let message = read(row.clone(), ReferenceLogps::Columns).unwrap_err().to_string();
            assert!(message.starts_with("any.jsonl line 3: ") && message.contains(expected), "{row}: {message}");
            assert!(message.contains("hint: rows have `logps`"), "{message}");
            assert!(read(row, ReferenceLogps::Computed).is_ok());
        }
    }
}
