//! Where an image is: a path, a `file://` or `data:` URI, bytes, or Hugging Face's `{bytes, path}`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::ImageSource;
use super::row::{Fields, Row, Value, shown};
use crate::{Error, Result};

impl ImageSource {
    /// The encoded image: the file's bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            ImageSource::Path(path) => std::fs::read(path).map_err(|error| Error::io("read", path, &error)),
            ImageSource::Embedded(image) => image.start(usize::MAX),
        }
    }

    /// Its first `limit` bytes, or all where it has fewer.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn start(&self, limit: usize) -> Result<Vec<u8>> {
        match self {
            ImageSource::Path(path) => {
                let mut bytes = Vec::new();
                let read = File::open(path).and_then(|file| file.take(limit as u64).read_to_end(&mut bytes));
                read.map(|_| bytes).map_err(|error| Error::io("read", path, &error))
            }
            ImageSource::Embedded(image) => image.start(limit),
        }
    }

    /// Its name in messages: the path, or how many bytes it has.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            ImageSource::Path(path) => path.display().to_string(),
            ImageSource::Embedded(image) => format!("image of {} bytes", image.size()),
        }
    }
}

/// The images of the one of `keys` that the row has: a list of them or a single one.
pub(super) fn column(row: &mut Row, keys: &[&str]) -> Result<Vec<ImageSource>> {
    match row.fields.take_one(keys) {
        Err(second) => {
            Err(row.wrong(format!("`{second}` beside another key for images, expected one of {}", list(keys))))
        }
        Ok(None) => Ok(Vec::new()),
        Ok(Some((key, Value::List(items)))) => {
            items.into_iter().enumerate().map(|(i, item)| source(row, &format!("{key}[{i}]"), item)).collect()
        }
        Ok(Some((key, value))) => Ok(vec![source(row, key, value)?]),
    }
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

/// One image; `place` names it within the row.
pub(super) fn source(row: &Row, place: &str, value: Value) -> Result<ImageSource> {
    match value {
        Value::Text(text) => written(row, place, &text),
        Value::Bytes(bytes) => from_bytes(row, place, &bytes),
        Value::Object(fields) => {
            let mut fields = Fields::new(fields);
            let place = |key| format!("{place}.{key}");
            match (fields.take("bytes"), fields.take("path"), fields.take("url")) {
                (Some(Value::Bytes(bytes)), ..) => from_bytes(row, &place("bytes"), &bytes),
                // JSON has no bytes: they are written as base64.
                (Some(Value::Text(text)), ..) => from_base64(row, &place("bytes"), &text),
                (Some(other), ..) => {
                    Err(row.wrong(format!("`{}`: expected bytes, found {}", place("bytes"), other.kind())))
                }
                (None, Some(path), _) => written(row, &place("path"), &row.text(&place("path"), path)?),
                (None, None, Some(url)) => written(row, &place("url"), &row.text(&place("url"), url)?),
                (None, None, None) => Err(row.wrong(format!(
                    "`{}`: expected `bytes` or `path`, found {}",
                    place("").trim_end_matches('.'),
                    fields.keys()
                ))),
            }
        }
        other => {
            Err(row.wrong(format!("`{place}`: expected an image (path, bytes or object), found {}", other.kind())))
        }
    }
}

fn from_bytes(row: &Row, place: &str, bytes: &[u8]) -> Result<ImageSource> {
    if bytes.is_empty() {
        return Err(row.wrong(format!("`{place}`: the image has no bytes")));
    }
    let kept = row.spool.keep(bytes).map(ImageSource::Embedded);
    kept.ok_or_else(|| row.wrong(format!("`{place}`: the image cannot be kept")))
}

fn from_base64(row: &Row, place: &str, text: &str) -> Result<ImageSource> {
    match base64(text) {
        Some(bytes) => from_bytes(row, place, &bytes),
        None => Err(row.wrong(format!("`{place}`: not base64: `{}`", shown(text)))),
    }
}

/// An image that is written as text: a path or a URI.
fn written(row: &Row, place: &str, text: &str) -> Result<ImageSource> {
    if let Some(rest) = text.strip_prefix("data:") {
        return match rest.split_once(',') {
            Some((kind, data)) if kind.ends_with(";base64") => from_base64(row, place, data),
            _ => Err(row.wrong(format!("`{place}`: expected `data:image/…;base64,…`, found `{}`", shown(text)))),
        };
    }
    let path = match text.split_once("://") {
        None if text.is_empty() => return Err(row.wrong(format!("`{place}`: the image's path is empty"))),
        None => row.folder.join(text),
        Some(("file", rest)) => {
            let rest = rest.strip_prefix("localhost").unwrap_or(rest);
            match percent_decoded(rest).filter(|path| path.starts_with('/')) {
                Some(path) => PathBuf::from(path),
                None => return Err(row.wrong(format!("`{place}`: expected `file:///path`, found `{}`", shown(text)))),
            }
        }
        Some(_) => {
            return Err(row
                .wrong(format!("`{place}`: images are read from files, found the address `{}`", shown(text)))
                .hint("download the images first and write their paths"));
        }
    };
    existing(row, place, text, path)
}

fn existing(row: &Row, place: &str, text: &str, path: PathBuf) -> Result<ImageSource> {
    if path.is_file() {
        return Ok(ImageSource::Path(path));
    }
    let what = if path.is_dir() { "is a folder, expected an image file" } else { "no such image file" };
    let problem = row.wrong(format!("`{place}`: {what}: {}", shown(&path.display().to_string())));
    Err(match Path::new(text).is_relative() {
        true => problem.hint("relative paths start at `image_folder`, or without it at the folder of the data file"),
        false => problem,
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Bytes of standard or URL-safe base64 (RFC 4648), white space skipped, padding optional; none when it is not base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end().trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for byte in digits.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // Six left-over bits are a lone digit; set left-over bits are a text that was cut.
    (count < 6 && bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_rfc_4648() {
        let vectors =
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmFy", "foobar")];
        for (text, bytes) in vectors {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
            assert_eq!(base64(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()), "{text} without padding");
        }
        assert_eq!(base64("+/-_\r\n"), Some(vec![0xfb, 0xff, 0xbf]));
        for text in ["Z", "Zm9vY", "Zm9=vYg", "Zh==", "Z g*", "images/a.png"] {
            assert_eq!(base64(text), None, "{text}");
        }
    }

    #[test]
    fn file_uris_are_percent_decoded() {
        assert_eq!(percent_decoded("/a%20b/%C3%A9.png").as_deref(), Some("/a b/é.png"));
        for text in ["/a%2", "/a%zz", "/a%", "/%ff"] {
            assert_eq!(percent_decoded(text), None, "{text}");
        }
    }
}
