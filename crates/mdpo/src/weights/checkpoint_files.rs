//! A Hugging Face checkpoint: `model.safetensors`, or shards listed in `model.safetensors.index.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::{
    header::{Entry, SafetensorsFile, dtype, unsupported},
    names,
};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open checkpoint that hands out each tensor once, by canonical name (see [`super::names`]).
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: BTreeMap<String, Slot>,
}

/// Where a tensor lies, and whether it was handed out.
#[derive(Debug)]
struct Slot {
    file: usize,
    entry: Entry,
    used: bool,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder` and checks every header; no weight is read yet.
    ///
    /// # Errors
    /// No safetensors file, a damaged one, a missing shard, an index that does not fit its shards, two tensors of one canonical
    /// name, an element type other than F32, F16 and BF16.
    pub fn open(folder: &Path) -> Result<Self> {
        let files = open_files(folder)?;
        let mut tensors: BTreeMap<String, Slot> = BTreeMap::new();
        for (file, opened) in files.iter().enumerate() {
            for entry in opened.entries().iter().filter(|entry| !names::is_computed(&entry.name)) {
                if !matches!(entry.kind, Kind::Float | Kind::Half | Kind::BFloat16) {
                    return Err(unsupported(
                        opened.path(),
                        &entry.name,
                        dtype(entry.kind).map_or("?", |(_, name)| name),
                    ));
                }
                let slot = Slot { file, entry: entry.clone(), used: false };
                if let Some(first) = tensors.insert(names::canonical(&entry.name).into_owned(), slot) {
                    let twin = files[first.file].place(&first.entry.name);
                    return Err(Error::at(opened.place(&entry.name), format!("is the same weight as {twin}"))
                        .hint("the checkpoint mixes two layouts; write it again"));
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), files, tensors })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its files, in the order of their names.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All canonical names, sorted; buffers that models compute themselves (`inv_freq`, `position_ids`) are not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.get(name).map(|slot| slot.entry.shape.as_slice())
    }

    /// The precision in which a tensor is stored: `Float`, `Half` or `BFloat16`.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.tensors.get(name).map(|slot| slot.entry.kind)
    }

    /// Takes a tensor of this shape, on the CPU, in the file's precision, without a copy.
    ///
    /// # Errors
    /// No such tensor (the nearest names are given), another shape, or a tensor that was already taken.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let Some(slot) = self.tensors.get_mut(name) else {
            return Err(self.missing(name));
        };
        let file = &self.files[slot.file];
        let place = || file.place(&slot.entry.name);
        if slot.entry.shape != shape {
            let found = &slot.entry.shape;
            return Err(Error::at(place(), format!("expected the shape {shape:?}, found {found:?}"))
                .hint("config.json and the weights do not belong together"));
        }
        if slot.used {
            return Err(Error::at(place(), "is used by two parts of the model"));
        }
        let tensor = file.tensor(&slot.entry)?;
        slot.used = true;
        Ok(tensor)
    }

    /// Marks a tensor as knowingly left out (such as the head of a model whose head is its embeddings); nothing happens when it is absent.
    pub fn ignore(&mut self, name: &str) {
        if let Some(slot) = self.tensors.get_mut(name) {
            slot.used = true;
        }
    }

    /// Checks that every tensor was taken or ignored.
    ///
    /// # Errors
    /// The number of unused tensors and the names of the first ten.
    pub fn finish(self) -> Result<()> {
        let unused: Vec<&str> =
            self.tensors.values().filter(|slot| !slot.used).map(|slot| slot.entry.name.as_str()).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let more = if unused.len() > 10 { ", …" } else { "" };
        let first: Vec<String> = unused.iter().take(10).map(|name| format!("`{name}`")).collect();
        let what = format!(
            "expected every tensor to be used, found {} that no part of the model has a place for: {}{more}",
            unused.len(),
            first.join(", ")
        );
        Err(Error::at(self.folder.display(), what)
            .hint("the architecture in config.json is not the one of the weights"))
    }

    /// SHA-256 over the names and bytes of the safetensors files, in hexadecimal; reads every byte, some 2 s a gigabyte.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for path in self.files.iter().map(SafetensorsFile::path) {
            let failed = |error| Error::io("read", path, &error);
            let mut file = File::open(path).map_err(failed)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Lengths first, so that no two lists of files look alike.
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(file.metadata().map_err(failed)?.len().to_le_bytes());
            loop {
                let read = file.read(&mut buffer).map_err(failed)?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
            }
        }
        Ok(hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string takes everything");
            hex
        }))
    }

    fn missing(&self, name: &str) -> Error {
        let mut near: Vec<(f64, &str)> = self.names().map(|known| (strsim::jaro_winkler(name, known), known)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let near: Vec<String> = near.iter().take(3).map(|(_, known)| format!("`{known}`")).collect();
        let what = format!("expected among the {} tensors, found none of this name", self.tensors.len());
        let error = Error::at(format!("{}: tensor `{name}`", self.folder.display()), what);
        if near.is_empty() { error } else { error.hint(format!("the nearest names are {}", near.join(", "))) }
    }
}

/// Opens the files of a checkpoint in the order of their names and checks the index against them.
fn open_files(folder: &Path) -> Result<Vec<SafetensorsFile>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![SafetensorsFile::open(&single)?]);
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        return Err(no_weights(folder));
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read(&index).map_err(|error| Error::io("read", &index, &error))?;
    let Index { weight_map } = serde_json::from_slice(&text)
        .map_err(|error| Error::at(index.display(), format!("expected an object with `weight_map`, found {error}")))?;
    if weight_map.is_empty() {
        return Err(Error::at(index.display(), "expected at least one tensor in `weight_map`, found none"));
    }
    let shards: BTreeSet<&String> = weight_map.values().collect();
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for shard in shards {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            problems.push(Error::at(index.display(), format!("expected shards beside the index, found `{shard}`")));
            continue;
        }
        let path = folder.join(shard);
        if !path.exists() {
            problems.push(
                Error::at(path.display(), format!("is listed in {INDEX} and missing"))
                    .hint("download the missing shard"),
            );
            continue;
        }
        match SafetensorsFile::open(&path) {
            Ok(file) => {
                check_shard(&file, shard, &weight_map, &mut problems);
                files.push(file);
            }
            Err(error) => problems.push(error),
        }
    }
    Error::all(problems)?;
    Ok(files)
}

/// Compares what the index says about one shard with what is in it.
fn check_shard(file: &SafetensorsFile, shard: &str, weight_map: &BTreeMap<String, String>, problems: &mut Vec<Error>) {
    let found: BTreeSet<&str> = file.entries().iter().map(|entry| entry.name.as_str()).collect();
    for name in weight_map.iter().filter(|(_, file)| *file == shard).map(|(name, _)| name) {
        if !found.contains(name.as_str()) {
            problems.push(Error::at(file.place(name), format!("is listed in {INDEX} for this shard and not in it")));
        }
    }
    for name in found {
        match weight_map.get(name) {
            Some(listed) if listed == shard => {}
            Some(listed) => problems.push(Error::at(file.place(name), format!("is listed in {INDEX} for `{listed}`"))),
            None => problems.push(Error::at(file.place(name), format!("is not listed in {INDEX}"))),
        }
    }
}

/// Why a folder is no checkpoint.
fn no_weights(folder: &Path) -> Error {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return Error::io("read", folder, &error),
    };
    let pickle = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)));
    let what = format!("expected {SINGLE} or {INDEX}, found {}", pickle.as_deref().unwrap_or("neither"));
    let hint = match pickle {
        Some(_) => {
            "pickled weights are not read; convert them: `AutoModel….from_pretrained(folder).save_pretrained(new_folder)` in transformers"
        }
        None => "name the folder that holds config.json and the weights",
    };
    Error::at(folder.display(), what).hint(hint)
}

/// Checks that a weight holds neither NaN nor infinity.
///
/// # Errors
/// The name and how many elements are not finite.
pub fn check_finite(tensor: &Tensor, name: &str) -> Result<()> {
    if tensor.numel() == 0 {
        return Ok(());
    }
    // NaN wins in both, so two numbers tell about all, without a mask as large as the tensor.
    let (least, greatest) = tensor.f_aminmax(None, false)?;
    if f64::try_from(least)?.is_finite() && f64::try_from(greatest)?.is_finite() {
        return Ok(());
    }
    let bad = tensor.numel() as i64 - i64::try_from(tensor.f_isfinite()?.f_sum(Kind::Int64)?)?;
    Err(Error::at(
        format!("tensor `{name}`"),
        format!("expected finite numbers, found {bad} of {} NaN or infinite", tensor.numel()),
    )
    .hint("the checkpoint is damaged or its training diverged"))
}
