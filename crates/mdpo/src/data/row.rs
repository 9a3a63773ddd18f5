//! A row before its shape is known: keys and values, whatever kind of file it stood in.

use std::path::Path;
use std::sync::Arc;

use super::RowId;
use super::spool::Spool;
use crate::{Error, Result};

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Absent: JSON's and Arrow's null.
    Null,
    /// Something no shape uses, by what it is called.
    Other(&'static str),
    /// True or false.
    Bool(bool),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
    /// Bytes; only Parquet has them.
    Bytes(Arc<[u8]>),
    /// A list.
    List(Vec<Value>),
    /// An object (JSON) or a struct (Parquet), in the order of the file.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// What it is called in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Other(kind) => kind,
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Object(_) => "an object",
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(items) => Value::List(items.into_iter().map(Value::from).collect()),
            serde_json::Value::Object(fields) => {
                Value::Object(fields.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

/// The keys of an object and their values.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    pub(super) fn new(fields: Vec<(String, Value)>) -> Self {
        Fields(fields)
    }

    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// The value of `key`, which is gone afterwards; a null is no value.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        let (_, value) = self.0.iter_mut().find(|(name, _)| name == key)?;
        let value = std::mem::replace(value, Value::Null);
        (value != Value::Null).then_some(value)
    }

    /// The value of the first of `keys` that has one, with that key; `Err` holds the second one when two have.
    pub(super) fn take_one<'k>(&mut self, keys: &[&'k str]) -> std::result::Result<Option<(&'k str, Value)>, &'k str> {
        let mut found = None;
        for key in keys {
            match (self.take(key), &found) {
                (Some(value), None) => found = Some((*key, value)),
                (Some(_), Some(_)) => return Err(key),
                (None, _) => {}
            }
        }
        Ok(found)
    }

    /// Whether there is a column `key`, with a value or without.
    pub(super) fn names(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    /// Whether `key` has a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, value)| name == key && *value != Value::Null)
    }

    /// Whether `key` has a value other than an empty list, object or text.
    pub(super) fn has_content(&self, key: &str) -> bool {
        self.0.iter().any(|(name, value)| {
            let empty = match value {
                Value::Null => true,
                Value::List(items) => items.is_empty(),
                Value::Object(fields) => fields.iter().all(|(_, value)| *value == Value::Null),
                Value::Text(text) => text.is_empty(),
                Value::Other(_) | Value::Bool(_) | Value::Number(_) | Value::Bytes(_) => false,
            };
            name == key && !empty
        })
    }

    /// All keys, in backticks.
    pub(super) fn keys(&self) -> String {
        match self.0.is_empty() {
            true => "none".to_owned(),
            false => self.0.iter().map(|(key, _)| format!("`{}`", shown(key))).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The largest score, reward or log-prob that makes sense: squares and differences of such numbers stay finite in f32.
const LARGEST: f64 = 1e15;

/// A row and where it is.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Where it was written.
    pub(super) id: RowId,
    /// What its relative image paths are relative to.
    pub(super) folder: &'a Path,
    /// Its columns.
    pub(super) fields: Fields,
    /// Where the images go that it carries.
    pub(super) spool: &'a Spool,
}

impl Row<'_> {
    /// A problem of this row.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::at(&self.id, what)
    }

    /// `value` as a finite number; `place` names it within the row.
    pub(super) fn number(&self, place: &str, value: &Value) -> Result<f64> {
        match value {
            Value::Number(number) if number.abs() <= LARGEST => Ok(*number),
            Value::Number(number) if !number.is_finite() => {
                Err(self.wrong(format!("`{place}`: expected a finite number, found {number}")))
            }
            Value::Number(number) => {
                Err(self.wrong(format!("`{place}`: expected a number of at most ±{LARGEST:e}, found {number:e}")))
            }
            other => Err(self.wrong(format!("`{place}`: expected a number, found {}", other.kind()))),
        }
    }

    /// `value` as text; `place` names it within the row.
    pub(super) fn text(&self, place: &str, value: Value) -> Result<String> {
        match value {
            Value::Text(text) => Ok(text),
            // A Parquet writer that marks no column as text still writes UTF-8.
            Value::Bytes(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err(self.wrong(format!("`{place}`: expected text, found bytes that are not UTF-8"))),
            },
            other => Err(self.wrong(format!("`{place}`: expected text, found {}", other.kind()))),
        }
    }
}

/// The start of a text that may be long, for messages.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
