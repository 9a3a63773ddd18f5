//! `manifest.json`: the length and SHA-256 of every file of a checkpoint.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

const NAME: &str = "manifest.json";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// Writes the manifest of all files that are in `folder`.
pub fn write(folder: &Path) -> Result<()> {
    super::write_json(&folder.join(NAME), &entries(folder)?)
}

/// Checks every file of `folder` against its manifest.
pub fn check(folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    let damaged = |file: &Path, what: String| {
        let hint = "the checkpoint is damaged; remove its folder to resume from the one before";
        Error::at(file.display(), what).hint(hint)
    };
    let text = fs::read_to_string(&path).map_err(|error| damaged(&path, format!("cannot read: {error}")))?;
    let expected: BTreeMap<String, Entry> =
        serde_json::from_str(&text).map_err(|error| damaged(&path, format!("not a manifest: {error}")))?;
    let found = entries(folder)?;
    for (name, expected) in &expected {
        let problem = match found.get(name) {
            None => "missing, but `manifest.json` lists it".to_owned(),
            Some(found) if found.bytes != expected.bytes => {
                format!("expected {} bytes, found {}", expected.bytes, found.bytes)
            }
            Some(found) if found != expected => {
                format!("expected SHA-256 {}, found {}", expected.sha256, found.sha256)
            }
            Some(_) => continue,
        };
        return Err(damaged(&folder.join(name), problem));
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    for file in fs::read_dir(folder).map_err(|error| Error::io("read", folder, &error))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name != NAME && file.path().is_file() {
            let (bytes, sha256) = digest(&file.path())?;
            entries.insert(name, Entry { bytes, sha256 });
        }
    }
    Ok(entries)
}

/// Length and SHA-256 in hexadecimal of a file.
pub fn digest(path: &Path) -> Result<(u64, String)> {
    let mut file = fs::File::open(path).map_err(|error| Error::io("read", path, &error))?;
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(|error| Error::io("read", path, &error))? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
    Ok((length, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
