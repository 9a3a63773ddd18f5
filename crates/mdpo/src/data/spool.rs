//! Images that rows carry in themselves, moved out of memory while the rows are read: one temporary file without a name, from which
//! they are read when their turn comes. Equal images lie there once.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// An encoded image that a row carried, in a temporary file. Two are equal when their bytes are (by SHA-256).
#[derive(Debug, Clone)]
pub struct Embedded {
    file: Arc<File>,
    start: u64,
    len: usize,
    digest: [u8; 32],
}

impl Embedded {
    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.len
    }

    /// Its first `limit` bytes, or all where it has fewer.
    ///
    /// # Errors
    /// The temporary file cannot be read.
    pub fn start(&self, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.len.min(limit)];
        let read = self.file.read_exact_at(&mut bytes, self.start);
        read.map_err(|error| Error::at("temporary file of the rows' images", format!("cannot read: {error}")))?;
        Ok(bytes)
    }
}

impl PartialEq for Embedded {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Embedded {}

impl Hash for Embedded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// What takes the images in.
#[derive(Debug, Default)]
pub(super) struct Spool(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: Option<(PathBuf, Arc<File>)>,
    end: u64,
    known: HashMap<[u8; 32], Embedded>,
    /// Why an image could not be kept: the fault of no row.
    failure: Option<Error>,
}

impl Spool {
    /// Moves an image into the file; nothing when that failed, which [`Spool::failure`] then tells.
    pub(super) fn keep(&self, bytes: &[u8]) -> Option<Embedded> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = state.keep(bytes);
        kept.map_err(|error| state.failure = Some(error)).ok()
    }

    /// Why an image could not be kept, once.
    pub(super) fn failure(&self) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.failure.take().map_or(Ok(()), Err)
    }
}

impl State {
    fn keep(&mut self, bytes: &[u8]) -> Result<Embedded> {
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        if let Some(known) = self.known.get(&digest) {
            return Ok(known.clone());
        }
        if self.file.is_none() {
            self.file = Some(create()?);
        }
        let (folder, file) = self.file.as_ref().expect("it was made above");
        file.write_all_at(bytes, self.end).map_err(|error| failed(folder, &error))?;
        let kept = Embedded { file: file.clone(), start: self.end, len: bytes.len(), digest };
        self.end += bytes.len() as u64;
        self.known.insert(digest, kept.clone());
        Ok(kept)
    }
}

fn create() -> Result<(PathBuf, Arc<File>)> {
    // `/tmp` is memory on many systems; `/var/tmp` is where large temporary files belong, unless the user says otherwise.
    let chosen = std::env::var_os("TMPDIR").is_some_and(|folder| !folder.is_empty());
    let large = Path::new("/var/tmp");
    if !chosen && let Ok(file) = tempfile::tempfile_in(large) {
        return Ok((large.to_owned(), Arc::new(file)));
    }
    let folder = std::env::temp_dir();
    let file = tempfile::tempfile_in(&folder).map_err(|error| failed(&folder, &error))?;
    Ok((folder, Arc::new(file)))
}

fn failed(folder: &Path, error: &std::io::Error) -> Error {
    Error::at(folder.display(), format!("cannot keep the images that rows carry in a temporary file here: {error}"))
        .hint("set `TMPDIR` to a folder on a disk with room for them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_back_and_equal_bytes_lie_there_once() {
        let spool = Spool::default();
        let images: [&[u8]; 3] = [b"first", b"the second", b"first"];
        let [first, second, again] = images.map(|bytes| spool.keep(bytes).unwrap());
        assert_eq!(first.start(usize::MAX).unwrap(), b"first");
        assert_eq!(second.start(usize::MAX).unwrap(), b"the second");
        assert_eq!((second.start(3).unwrap().as_slice(), second.size()), (&b"the"[..], 10));
        assert!(first == again && first != second && first.start == again.start);
        assert_eq!(first.file.metadata().unwrap().len(), 15);
        assert!(spool.failure().is_ok());
        // Images of another data set are equal too when their bytes are.
        assert_eq!(Spool::default().keep(b"first").unwrap(), first);
    }
}
