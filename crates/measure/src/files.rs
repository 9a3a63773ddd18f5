//! Reading what users and authors wrote, with file and row in every complaint; writing files that are whole or absent.

use crate::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A name that files write as text or as a number, read as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "Name")]
pub struct Id(pub String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(serde_json::Number),
}

impl From<Name> for Id {
    fn from(name: Name) -> Self {
        Id(match name {
            Name::Text(text) => text,
            Name::Number(number) => number.to_string(),
        })
    }
}

/// The text of a file.
pub fn text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::at(path.display(), format!("is not UTF-8 (byte {at})")).hint("save it as UTF-8 text")
    })
}

/// A file that is one JSON value.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&text(path)?).map_err(|error| {
        Error::at(path.display(), error).hint("is it the file as it was published, and was the download complete?")
    })
}

/// The rows of a JSON Lines file with their line numbers, the first of which is 1; blank lines are no rows. Every bad row is told.
pub fn rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>> {
    let text = text(path)?;
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(row) => rows.push((index + 1, row)),
            Err(error) => problems.push(Error::at(at(path, index + 1), without_line(&error))),
        }
    }
    tell(path, problems)?;
    if rows.is_empty() {
        return Err(Error::at(path.display(), "has no rows"));
    }
    Ok(rows)
}

/// The place of a row.
pub fn at(path: &Path, line: usize) -> String {
    format!("{} line {line}", path.display())
}

/// Fails with the first of a file's problems and their number.
pub fn tell(path: &Path, problems: Vec<Error>) -> Result<()> {
    Error::first_ten(path.display(), problems)
}

/// A message of serde_json without its ending: a JSON Lines row is always on line 1 of itself.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

/// The files in `folder` for which `is_wanted` holds, by name.
pub fn in_folder(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.file_name().and_then(|name| name.to_str()).is_some_and(&is_wanted))
        .collect();
    found.sort();
    Ok(found)
}

/// Writes a file through a temporary one beside it that is synced and renamed, so that no reader ever sees half of it.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("write", path, &error);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    // A temporary file is its owner's alone; what is kept may be read as any other file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
