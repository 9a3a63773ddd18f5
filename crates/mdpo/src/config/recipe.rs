//! What was written: the keys of a recipe and of the command line, with the place of each, before any value is judged.
//!
//! Nothing stops at the first problem: what cannot be used is noted and left out, so that a user sees every problem at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned};

use super::keys::{self, KEYS, Key, NO_EFFECT, REFUSED};
use super::nearest;
use crate::{Error, Result};

/// Where a key was written, in the order in which problems are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// A line of the recipe, from 1.
    Line(u64),
    /// `key=value` on the command line.
    CommandLine,
    /// Nowhere: a key that is missing.
    Missing,
}

/// One key as it was written.
#[derive(Debug)]
pub(super) struct Entry {
    /// What it means.
    pub key: &'static Key,
    /// The name that was used, the key's own or an alias.
    pub written: String,
    /// Its value; null stands for a key that is not written.
    pub value: Value,
    /// Where.
    pub source: Source,
}

/// Everything that was written, and every problem found so far.
#[derive(Debug)]
pub(super) struct Recipe {
    file: String,
    entries: Vec<Entry>,
    problems: Vec<(Source, Error)>,
}

impl Recipe {
    /// Reads the YAML of `file` and lays `overrides` (`key=value`, the value being YAML) over it.
    ///
    /// Fails only where the text is no mapping at all; other problems are kept for [`Recipe::finish`].
    pub fn read(text: &str, file: &str, overrides: &[String]) -> Result<Recipe> {
        let mut recipe = Recipe { file: file.to_owned(), entries: Vec::new(), problems: Vec::new() };
        let document: Document = from_yaml(text).map_err(|error| {
            let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
            let place = line.map_or(file.to_owned(), |line| recipe.place(Source::Line(line)));
            Error::at(place, format!("not a recipe: {}", message(&error)))
                .hint("a recipe is YAML with one `key: value` a line; see docs/recipes.md")
        })?;
        for (written, value, line) in document.0 {
            recipe.admit(written, value, Source::Line(line));
        }
        for text in overrides {
            match text.split_once('=') {
                Some((written, value)) if !written.is_empty() => match from_yaml::<Value>(value) {
                    Ok(value) => recipe.admit(written.to_owned(), value, Source::CommandLine),
                    Err(error) => {
                        let what = format!("the value of `{written}` is not YAML: {}", message(&error));
                        recipe.problem(Source::CommandLine, what, "put the value in quotes");
                    }
                },
                _ => {
                    let what = format!("expected `key=value`, found `{text}`");
                    recipe.problem(Source::CommandLine, what, "for example `learning_rate=1e-5`");
                }
            }
        }
        Ok(recipe)
    }

    /// The entry of a key that was written, under whichever name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key.name == name && !entry.value.is_null())
    }

    /// `recipe.yaml line 3` for a written key, the recipe for one that is not.
    pub fn place_of(&self, name: &str) -> String {
        self.place(self.entry(name).map_or(Source::Missing, |entry| entry.source))
    }

    /// Notes a problem of the key `name`, placed where it was written.
    pub fn complain(&mut self, name: &str, what: impl fmt::Display, hint: impl fmt::Display) {
        let source = self.entry(name).map_or(Source::Missing, |entry| entry.source);
        self.problem(source, what, hint);
    }

    /// `Ok` when there was no problem, else all of them in the order of the recipe.
    pub fn finish(&mut self) -> Result<()> {
        self.problems.sort_by_key(|(source, _)| *source);
        Error::all(self.problems.drain(..).map(|(_, error)| error).collect())
    }

    fn place(&self, source: Source) -> String {
        match source {
            Source::Line(line) => format!("{} line {line}", self.file),
            Source::CommandLine => "command line".to_owned(),
            Source::Missing => self.file.clone(),
        }
    }

    fn problem(&mut self, source: Source, what: impl fmt::Display, hint: impl fmt::Display) {
        self.problems.push((source, Error::at(self.place(source), what).hint(hint)));
    }

    fn admit(&mut self, written: String, value: Value, source: Source) {
        let Some(key) = keys::find(&written) else { return self.turn_away(&written, &value, source) };
        if source == Source::CommandLine {
            self.entries.retain(|entry| entry.key.name != key.name || entry.source == source);
        }
        match self.entries.iter().find(|entry| entry.key.name == key.name) {
            Some(first) => {
                let names = match first.written == written {
                    true => format!("`{written}` is written twice"),
                    false => format!("`{written}` and `{}` are two names of one key", first.written),
                };
                let what = format!("{names}, first {}", self.place(first.source).replace(&self.file, "in"));
                self.problem(source, what, "leave one of the two");
            }
            None => self.entries.push(Entry { key, written, value, source }),
        }
    }

    /// A key that no run obeys: harmless, refused for a reason, or unknown.
    fn turn_away(&mut self, written: &str, value: &Value, source: Source) {
        if NO_EFFECT.contains(&written) {
            return;
        }
        if let Some(refused) = REFUSED.iter().find(|refused| refused.name == written) {
            if !value.is_null() && !refused.unless.contains(&plain(value).as_str()) {
                let instead = refused.unless.first().map_or("leave it out".to_owned(), |value| match *value {
                    "" => "leave it out".to_owned(),
                    value => format!("leave it out, or write `{written}: {value}`"),
                });
                let what = format!("`{written}: {}` is not supported: {}", plain(value), refused.why);
                self.problem(source, what, instead);
            }
            return;
        }
        let known = KEYS.iter().flat_map(|key| std::iter::once(key.name).chain(key.aliases.iter().copied()));
        let hint = match nearest(written, known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "docs/recipes.md lists every key".to_owned(),
        };
        self.problem(source, format!("`{written}` is not a known key"), hint);
    }
}

/// A value as a user would write it on one line, cut when it is long.
pub(super) fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(number.to_string(), |number| number.to_string())
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn from_yaml<T: serde::de::DeserializeOwned>(text: &str) -> std::result::Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        // Repeated keys are told with the other problems; infinities become text, which no number accepts.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// The first line of the parser's message without its place, which is told in mdpo's own way.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or("unreadable");
    line.split(" at line ").next().unwrap_or(line).to_owned()
}

/// The pairs of the outermost mapping with the line of each key; an empty file has none.
struct Document(Vec<(String, Value, u64)>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of keys to values")
            }

            fn visit_unit<E>(self) -> std::result::Result<Document, E> {
                Ok(Document(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Document, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<Spanned<String>, Value>()? {
                    pairs.push((key.value, value, key.referenced.line()));
                }
                Ok(Document(pairs))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}
