//! Answers on disk: one file for each request, under the digest of all that determines its answer.
//!
//! A file is written beside its place, synced and renamed, so that it is whole or absent, also when the process is killed. It carries a
//! digest of itself: damage is found, and the answer asked for again.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reply::Reply;
use crate::{Error, Result};

/// Changes when requests of the same bytes are to be asked anew.
const VERSION: &str = "mdpo judge 1";

/// The digest of a request: address, and body with model, messages and parameters. The key is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(address: &str, body: &[u8]) -> Self {
        let mut digest = Sha256::new();
        for part in [VERSION.as_bytes(), address.as_bytes(), body] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Key(digest.finalize().into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

pub(super) enum Found {
    Reply(Reply),
    Nothing,
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    digest: String,
    reply: Reply,
}

pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the folder, made where it is missing, and writes to it once: what cannot be kept is not to be paid for.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
        let cache = Cache { folder: folder.to_owned() };
        cache.temporary().map_err(|error| Error::io("write to", folder, &error))?;
        Ok(cache)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// # Errors
    /// A file that is there and cannot be read: asking again would pay twice.
    pub(super) fn get(&self, key: Key) -> Result<Found> {
        let path = self.path(key);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        Ok(match serde_json::from_slice::<Entry>(&text) {
            Ok(entry) if entry.digest == digest(key, &entry.reply) => Found::Reply(entry.reply),
            _ => Found::Damaged,
        })
    }

    pub(super) fn put(&self, key: Key, reply: &Reply) -> Result<()> {
        let path = self.path(key);
        let failed = |error: io::Error| Error::io("write", &path, &error);
        let entry = Entry { digest: digest(key, reply), reply: reply.clone() };
        let mut file = self.temporary().map_err(failed)?;
        serde_json::to_writer_pretty(&mut file, &entry).map_err(|error| failed(error.into()))?;
        file.write_all(b"\n").and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn path(&self, key: Key) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Readable by whom the umask lets read, since colleagues share what was paid for.
    fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        let permissions = fs::Permissions::from_mode(0o666);
        tempfile::Builder::new().prefix(".unfinished-").permissions(permissions).tempfile_in(&self.folder)
    }
}

/// Binds a reply to its request, so that a file under another's name is found too.
fn digest(key: Key, reply: &Reply) -> String {
    Key::of(&key.to_string(), &serde_json::to_vec(reply).expect("text and numbers are JSON")).to_string()
}
