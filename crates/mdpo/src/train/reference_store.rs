//! Log-probs of references on disk (`reference_cache`): one file for each reference, with all prompts that any run asked it about.
//!
//! A file belongs to one [`Identity`], which is in its name and in the file; a reference that differs in anything has another file, so a value of another
//! checkpoint, precision or machine is never taken. What a value says about is its [`PromptKey`]. A file is read and written as a whole, under another name first, and
//! knows its own digest.

use super::reference_cache::PromptKey;
use crate::checkpoint::manifest;
use crate::weights::{self, Checkpoint, SafetensorsFile};
use crate::{Error, Result, config};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tch::{Device, Tensor};

/// Raised with every change to how log-probs are computed that may change a bit of them.
const METHOD: u32 = 3;

/// All that a reference's log-probs depend on besides the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    mdpo: &'static str,
    method: u32,
    libtorch: &'static str,
    /// SHA-256 of `config.json` and of every weight file, by name.
    checkpoint: BTreeMap<String, String>,
    /// Likewise of the adapter.
    adapter: BTreeMap<String, String>,
    dtype: String,
    /// The processor with its threads, since they decide in which order sums are taken; of a GPU only that it is one.
    device: String,
}

impl Identity {
    /// Of the checkpoint with an adapter, computed on `device`; digests are remembered in `folder`.
    pub fn of(folder: &Path, model: &config::Model, adapter: Option<&Path>, device: Device) -> Result<Self> {
        let mut files = vec![model.path.join("config.json")];
        files.extend(Checkpoint::open(&model.path)?.files().iter().map(|file| file.path().to_owned()));
        let adapter =
            adapter.map(|path| ["adapter_config.json", "adapter_model.safetensors"].map(|name| path.join(name)));
        let mut digests = Digests::open(folder)?;
        let identity = Identity {
            mdpo: env!("CARGO_PKG_VERSION"),
            method: METHOD,
            libtorch: torch_ext::LIBTORCH_VERSION,
            checkpoint: digests.of(&files)?,
            adapter: adapter.map_or(Ok(BTreeMap::new()), |files| digests.of(&files))?,
            dtype: format!("{:?}", model.dtype),
            device: match device {
                Device::Cpu => format!("{}, {} threads", processor(), tch::get_num_threads()),
                _ => "cuda".to_owned(),
            },
        };
        digests.write()?;
        Ok(identity)
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts and maps of texts are JSON")
    }
}

/// The processor's name, where the system tells it.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// The file of one reference.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    identity: String,
}

impl Store {
    /// The file of this reference in `folder`, which is made where it is missing.
    pub fn new(folder: &Path, identity: Identity) -> Result<Self> {
        let identity = identity.text();
        let name = hex(&Sha256::digest(&identity)[..8]);
        Ok(Store { path: folder.join(format!("reference-{name}.safetensors")), identity })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds; nothing where there is none.
    ///
    /// # Errors
    /// A damaged file.
    pub fn read(&self) -> Result<HashMap<PromptKey, Vec<f64>>> {
        if !self.path.exists() {
            return Ok(HashMap::new());
        }
        let damaged = |what: &str| {
            Error::at(self.path.display(), format!("the kept log-probs of the reference are damaged: {what}"))
                .hint("delete the file; its values are then computed again")
        };
        let file = SafetensorsFile::open(&self.path).map_err(|error| match error {
            Error::One(problem) => damaged(&problem.what),
            other => damaged(&other.to_string()),
        })?;
        let tensor = |name: &str| {
            let entry = file.entries().iter().find(|entry| entry.name == name);
            let tensor = entry.map(|entry| file.tensor(entry)).transpose()?;
            tensor.ok_or_else(|| damaged(&format!("no tensor `{name}`")))
        };
        let (keys, lengths, sums) = (tensor("keys")?, tensor("lengths")?, tensor("sums")?);
        let metadata = |name: &str| file.metadata().get(name).map(String::as_str);
        if metadata("reference") != Some(self.identity.as_str()) {
            return Err(damaged("they are those of another reference"));
        }
        if metadata("sha256") != Some(contents(&keys, &lengths, &sums)?.as_str()) {
            return Err(damaged("their digest is another"));
        }
        // Whoever wrote the digest wrote these, but a program should not fall over them either.
        let wrong = |_| damaged("a tensor is of another kind");
        let flat: Vec<u8> = keys.flatten(0, -1).try_into().map_err(wrong)?;
        let lengths: Vec<i64> = lengths.try_into().map_err(wrong)?;
        let sums: Vec<f64> = sums.try_into().map_err(wrong)?;
        let (keys, rest) = flat.as_chunks::<32>();
        let whole: i64 = lengths.iter().fold(0, |sum, length| sum.saturating_add(*length));
        if !rest.is_empty()
            || keys.len() != lengths.len()
            || whole != sums.len() as i64
            || lengths.iter().any(|&n| n < 0)
        {
            return Err(damaged("its tensors do not fit each other"));
        }
        let mut sums = sums.into_iter();
        let entries = keys.iter().zip(lengths);
        Ok(entries.map(|(key, length)| (PromptKey(*key), sums.by_ref().take(length as usize).collect())).collect())
    }

    /// Writes all of `known`, to which what another run has written meanwhile is added.
    ///
    /// # Errors
    /// The file was damaged meanwhile or cannot be written.
    pub fn write(&self, known: &mut HashMap<PromptKey, Vec<f64>>) -> Result<()> {
        for (key, sums) in self.read()? {
            known.entry(key).or_insert(sums);
        }
        let mut entries: Vec<(&PromptKey, &Vec<f64>)> = known.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| **key);
        let flat: Vec<u8> = entries.iter().flat_map(|(key, _)| key.0).collect();
        let lengths: Vec<i64> = entries.iter().map(|(_, sums)| sums.len() as i64).collect();
        let sums: Vec<f64> = entries.iter().flat_map(|(_, sums)| sums.iter().copied()).collect();
        let keys = Tensor::from_slice(&flat).view([-1, 32]);
        let (lengths, sums) = (Tensor::from_slice(&lengths), Tensor::from_slice(&sums));
        let metadata = BTreeMap::from([
            ("reference".to_owned(), self.identity.clone()),
            ("sha256".to_owned(), contents(&keys, &lengths, &sums)?),
        ]);
        let tensors = [("keys", &keys), ("lengths", &lengths), ("sums", &sums)];
        weights::write_safetensors(&self.path, tensors, &metadata)
    }
}

/// SHA-256 over the bytes of the three tensors.
fn contents(keys: &Tensor, lengths: &Tensor, sums: &Tensor) -> Result<String> {
    let mut hash = Sha256::new();
    for tensor in [keys, lengths, sums] {
        let bytes = torch_ext::tensor_bytes(tensor)?;
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digests of large files, remembered as long as the system says that the files are the same.
#[derive(Debug)]
struct Digests {
    path: PathBuf,
    known: BTreeMap<PathBuf, Remembered>,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Remembered {
    /// Disk, inode, length, and when content and inode last changed: nothing writes to a file and keeps the last.
    stamp: String,
    sha256: String,
}

/// A change that comes soon after another may have the same time.
const TOO_NEW: Duration = Duration::from_secs(2);

impl Digests {
    fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))?;
        let path = folder.join("digests.json");
        let known = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::at(path.display(), format!("the remembered digests are damaged: {error}"))
                    .hint("delete the file; they are then computed again")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        Ok(Digests { path, known, changed: false })
    }

    /// SHA-256 of each file, by its name.
    fn of(&mut self, files: &[PathBuf]) -> Result<BTreeMap<String, String>> {
        let digests: Vec<Remembered> = files.par_iter().map(|file| self.digest(file)).collect::<Result<_>>()?;
        let mut named = BTreeMap::new();
        for (file, digest) in files.iter().zip(digests) {
            named.insert(file.file_name().unwrap_or_default().to_string_lossy().into_owned(), digest.sha256.clone());
            let place = fs::canonicalize(file).map_err(|error| Error::io("read", file, &error))?;
            if !digest.stamp.is_empty() && self.known.get(&place) != Some(&digest) {
                self.known.insert(place, digest);
                self.changed = true;
            }
        }
        Ok(named)
    }

    fn digest(&self, file: &Path) -> Result<Remembered> {
        let failed = |error: std::io::Error| Error::io("read", file, &error);
        let before = stamp(file).map_err(failed)?;
        let place = fs::canonicalize(file).map_err(failed)?;
        match self.known.get(&place) {
            Some(known) if known.stamp == before && !before.is_empty() => Ok(known.clone()),
            _ => {
                let (_, sha256) = manifest::digest(file)?;
                let unchanged = stamp(file).map_err(failed)? == before;
                Ok(Remembered { stamp: if unchanged { before } else { String::new() }, sha256 })
            }
        }
    }

    fn write(&self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&self.known).map_err(|error| Error::at(self.path.display(), error))?;
        weights::write_file(&self.path, |out| writeln!(out, "{text}"))
    }
}

/// What tells a file from what it was before; empty where its last change is too new to tell.
fn stamp(file: &Path) -> std::io::Result<String> {
    let found = fs::metadata(file)?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(found.ctime().max(0) as u64);
    if SystemTime::now().duration_since(changed).is_ok_and(|age| age > TOO_NEW) {
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        return Ok(format!("{} {} {} {times:?}", found.dev(), found.ino(), found.len()));
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            mdpo: "1",
            method: METHOD,
            libtorch: "2",
            checkpoint: BTreeMap::from([("model.safetensors".to_owned(), "ab".to_owned())]),
            adapter: BTreeMap::new(),
            dtype: "F32".to_owned(),
            device: "a, 1 threads".to_owned(),
        }
    }

    fn known() -> HashMap<PromptKey, Vec<f64>> {
        HashMap::from([
            (PromptKey([3; 32]), vec![-1.0 / 3.0, f64::MIN_POSITIVE]),
            (PromptKey([1; 32]), vec![-1e300]),
            (PromptKey([2; 32]), vec![-0.0, -41.25]),
        ])
    }

    #[test]
    fn what_was_written_comes_back_to_the_bit_and_is_added_to() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), identity()).unwrap();
        assert!(store.read().unwrap().is_empty());
        store.write(&mut known()).unwrap();
        let bits = |map: HashMap<PromptKey, Vec<f64>>| -> BTreeMap<PromptKey, Vec<u64>> {
            map.into_iter().map(|(key, sums)| (key, sums.into_iter().map(f64::to_bits).collect())).collect()
        };
        assert_eq!(bits(store.read().unwrap()), bits(known()));
        let mut more = HashMap::from([(PromptKey([9; 32]), vec![-2.0])]);
        store.write(&mut more).unwrap();
        assert_eq!((more.len(), store.read().unwrap().len()), (4, 4));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_reference_that_differs_in_anything_has_another_file() {
        let base = identity();
        let others = [
            Identity { mdpo: "2", ..base.clone() },
            Identity { method: METHOD + 1, ..base.clone() },
            Identity { libtorch: "3", ..base.clone() },
            Identity { checkpoint: BTreeMap::new(), ..base.clone() },
            Identity { adapter: base.checkpoint.clone(), ..base.clone() },
            Identity { dtype: "Bf16".to_owned(), ..base.clone() },
            Identity { device: "a, 2 threads".to_owned(), ..base.clone() },
        ];
        let path = |identity: &Identity| Store::new(Path::new(""), identity.clone()).unwrap().path;
        assert!(others.iter().all(|other| path(other) != path(&base)));
    }

    #[test]
    fn a_damaged_file_is_named_wherever_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path(), identity()).unwrap();
        store.write(&mut known()).unwrap();
        let whole = fs::read(&store.path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&store.path, &bytes).unwrap();
            // Spaces that pad the header may be other blanks; a value is never another.
            match store.read() {
                Ok(read) => assert_eq!(read, known(), "byte {at}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.starts_with(&store.path.display().to_string()), "byte {at}: {text}");
                    assert!(text.contains("damaged") && text.contains("hint: delete the file"), "byte {at}: {text}");
                }
            }
        }
        for len in [0, 7, 100, whole.len() - 1] {
            fs::write(&store.path, &whole[..len]).unwrap();
            assert!(store.read().unwrap_err().to_string().contains("damaged"), "{len} bytes");
        }
    }

    #[test]
    fn a_digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("weights");
        fs::write(&file, "one").unwrap();
        let mut digests = Digests::open(folder.path()).unwrap();
        let first = digests.of(std::slice::from_ref(&file)).unwrap();
        assert!(digests.known.is_empty(), "a file that was just written may change within the same tick");
        let remembered = Remembered { stamp: "old".to_owned(), sha256: "wrong".to_owned() };
        digests.known.insert(fs::canonicalize(&file).unwrap(), remembered);
        assert_eq!(digests.of(std::slice::from_ref(&file)).unwrap(), first);
        fs::write(&digests.path, "{").unwrap();
        let text = Digests::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("digests.json: the remembered digests are damaged") && text.contains("delete the file"));
    }
}
