//! Which files a data set consists of.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What Hugging Face writes next to the rows without being rows.
const NOT_ROWS: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// How files of rows that are not for training start, in folders that hold a `train` file.
const HELD_OUT: [&str; 6] = ["test", "validation", "valid", "val", "dev", "eval"];

/// The files of `paths` in their order; a folder stands for its files of rows, sorted by name.
///
/// # Errors
/// Every path that is missing, of another kind, or a folder without rows.
pub(super) fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        match of_path(path) {
            Ok(found) => files.extend(found),
            Err(problem) => problems.push(problem),
        }
    }
    Error::all(problems)?;
    Ok(files)
}

fn of_path(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let problem = Error::io("read", path, &error);
        match path.to_str() {
            Some(name) if is_repository_name(name) && error.kind() == std::io::ErrorKind::NotFound => {
                let what = "no such file or folder";
                Error::at(path.display(), what).hint(format!(
                    "a data set of the Hugging Face hub must be downloaded first: hf download --repo-type dataset {name} --local-dir FOLDER"
                ))
            }
            _ => problem,
        }
    })?;
    if !metadata.is_dir() {
        return match kind(path) {
            Some(_) => Ok(vec![path.to_owned()]),
            None => Err(Error::at(path.display(), "expected a file ending in `.json`, `.jsonl` or `.parquet`")
                .hint("unpack or convert the file, or give it the ending of what it holds")),
        };
    }
    let mut files = of_folder(path)?;
    let data = path.join("data");
    if files.is_empty() && data.is_dir() {
        files = of_folder(&data)?;
    }
    if files.is_empty() {
        return Err(Error::at(
            path.display(),
            "no `.json`, `.jsonl` or `.parquet` file in this folder nor in its `data`",
        )
        .hint("a data set saved with `save_to_disk` is written anew with `to_parquet`"));
    }
    Ok(files)
}

fn of_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Error::io("list", folder, &error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = name(&path);
        if kind(&path).is_some() && path.is_file() && !name.starts_with('.') && !NOT_ROWS.contains(&name.as_str()) {
            files.push(path);
        }
    }
    files.sort_unstable();
    if files.iter().any(|path| is_split(path, "train")) {
        files.retain(|path| !HELD_OUT.iter().any(|split| is_split(path, split)));
    }
    Ok(files)
}

/// `train.jsonl`, `train-00000-of-00004.parquet` and `train_2.json` are files of the split `train`.
fn is_split(path: &Path, split: &str) -> bool {
    name(path).strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '.', '_']))
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_repository_name(name: &str) -> bool {
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(owner, set)| plain(owner) && plain(set)) && kind(Path::new(name)).is_none()
}

/// What a file of rows holds, by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `.json`.
    Json,
    /// `.jsonl`.
    JsonLines,
    /// `.parquet`.
    Parquet,
}

/// The kind of a file, none for other endings.
pub(super) fn kind(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()? {
        "json" => Some(Kind::Json),
        "jsonl" => Some(Kind::JsonLines),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}
