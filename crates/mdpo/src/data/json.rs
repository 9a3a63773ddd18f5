//! Rows of JSON files: an array of objects (`.json`), or one object a line (`.jsonl`).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::row::Value;
use super::{NumberedRow, RowId, Rows};
use crate::{Error, Result};

/// The rows of a `.json` file: the objects of its array, or the objects it holds one after the other, as Hugging Face's `to_json` writes them.
///
/// # Errors
/// The file cannot be read, or is not JSON, or holds something other than objects.
pub(super) fn array(path: &Path) -> Result<Rows> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    let text = without_bom(path, &bytes)?;
    let not_json = |error: serde_json::Error| {
        let what = format!("not JSON: {} (line {}, column {})", reason(&error), error.line(), error.column());
        let problem = Error::at(path.display(), what);
        if error.is_eof() { problem.hint("the file seems cut off; copy or download it again") } else { problem }
    };
    let rows: Vec<serde_json::Value> = match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(Error::at(path.display(), "the file is empty, expected an array of rows")),
        Some(b'{') => serde_json::Deserializer::from_slice(text).into_iter().collect::<std::result::Result<_, _>>(),
        Some(b'[') => serde_json::from_slice(text),
        Some(_) => match serde_json::from_slice::<serde_json::Value>(text) {
            Ok(_) => return Err(Error::at(path.display(), "expected an array of rows")),
            Err(error) => Err(error),
        },
    }
    .map_err(not_json)?;
    Ok(Box::new(rows.into_iter().enumerate().map(|(i, row)| Ok((i + 1, Ok(row.into()))))))
}

/// The rows of a `.jsonl` file, by line; a line that is not JSON is that row's problem.
///
/// # Errors
/// The file cannot be read.
pub(super) fn lines(path: &Path) -> Result<Rows> {
    let file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    let path = path.to_owned();
    let lines = BufReader::new(file).split(b'\n').enumerate();
    let row = move |(i, line): (usize, std::io::Result<Vec<u8>>)| -> Result<Option<NumberedRow>> {
        let line = line.map_err(|error| Error::io("read", &path, &error))?;
        let text = if i == 0 { without_bom(&path, &line)? } else { &line };
        Ok((!text.trim_ascii().is_empty()).then(|| (i + 1, parse_line(&path, i + 1, text))))
    };
    Ok(Box::new(lines.map(row).filter_map(Result::transpose)))
}

fn parse_line(path: &Path, row: usize, line: &[u8]) -> Result<Value> {
    serde_json::from_slice::<serde_json::Value>(line).map(Value::from).map_err(|error| {
        let id = RowId { file: path.into(), row };
        let problem = Error::at(id, format!("not JSON: {} (column {})", reason(&error), error.column()));
        // Python's `json` writes them unless it is told not to.
        let word = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
        if line.trim_ascii() == b"[" {
            problem.hint("a JSONL file holds one object a line; name a file with an array of rows `.json`")
        } else if ["N", "NaN", "I", "Infinity"].iter().any(|sign| word.starts_with(sign.as_bytes())) {
            problem.hint("JSON has no `NaN` and no `Infinity`; leave such a number, or the row, out")
        } else {
            problem
        }
    })
}

/// The text after a UTF-8 byte-order mark; UTF-16 is refused by its own mark, since its bytes would only say "not JSON".
fn without_bom<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::at(path.display(), "expected UTF-8, found UTF-16").hint("save the file as UTF-8"));
    }
    Ok(bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes))
}

/// serde_json's message without the position, which is given apart.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}
