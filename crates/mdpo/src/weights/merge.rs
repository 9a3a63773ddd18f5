//! Merging an adapter into its checkpoint: `W + scale · B · A` in f32, rounded to the checkpoint's own precision.

use std::{collections::BTreeMap, fs, path::Path};

use tch::{Kind, Tensor};

use super::{
    Checkpoint, LoraFile, SafetensorsFile, check_finite, lora, names,
    write::{Line, beside, parent, sync_folder, write_tensors},
};
use crate::{Error, Result};

/// Writes the checkpoint into the folder `out` with the tensors of `replaced` (by canonical name) in place of its own, rounded to
/// the checkpoint's precision; everything else as [`merge`] does.
///
/// # Errors
/// What reading the checkpoint reports, a full disk.
pub fn rewrite(checkpoint: &Path, out: &Path, replaced: &BTreeMap<&str, &Tensor>) -> Result<()> {
    let base = Checkpoint::open(checkpoint)?;
    write_all(&base, out, |file, at| {
        let entry = &file.entries()[at];
        match replaced.get(&*names::canonical(&entry.name)) {
            Some(tensor) => Ok(tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_to_kind(entry.kind)?),
            None => file.tensor(entry),
        }
    })
}

/// Writes the checkpoint with the adapter merged in to `out`: the same files, tensor names, sharding and metadata, one shard after the
/// other, and a copy of the configuration, tokenizer and processor files.
///
/// # Errors
/// What reading either reports, an adapter for modules that the checkpoint does not have, an `out` that is not empty, a full disk.
/// `out` is whole or not there.
pub fn merge(checkpoint: &Path, adapter: &Path, out: &Path) -> Result<()> {
    if !is_free(out)? {
        return Err(Error::at(out.display(), "expected a folder that is empty or not there yet")
            .hint("name another output folder"));
    }
    let base = Checkpoint::open(checkpoint)?;
    let adapter = lora::read(adapter)?;
    check_modules(&base, &adapter)?;
    fs::create_dir_all(parent(out)).map_err(|error| Error::io("create", &parent(out), &error))?;
    let temporary = beside(out)?;
    fs::create_dir(&temporary).map_err(|error| Error::io("create", &temporary, &error))?;
    let written = write_all(&base, &temporary, |file, at| merged(file, at, &adapter)).and_then(|()| {
        sync_folder(&temporary)?;
        fs::rename(&temporary, out).map_err(|error| Error::io("create", out, &error))?;
        sync_folder(&parent(out))
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn is_free(out: &Path) -> Result<bool> {
    match fs::read_dir(out) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("read", out, &error)),
    }
}

fn check_modules(base: &Checkpoint, adapter: &LoraFile) -> Result<()> {
    let mut problems = Vec::new();
    for (module, pair) in &adapter.tensors {
        let expected = [pair.b.size()[0], pair.a.size()[1]];
        let problem = match base.shape(&format!("{module}.weight")) {
            Some(shape) if shape == expected => continue,
            Some(shape) => format!("expected a weight of shape {shape:?}, found an adapter for {expected:?}"),
            None => format!("is in the adapter and not in the checkpoint {}", base.folder().display()),
        };
        problems.push(Error::at(format!("module `{module}`"), problem).hint("the adapter belongs to another model"));
    }
    Error::all(problems)
}

/// Writes every shard, each tensor as `tensor` gives it, and copies the files that are not weights.
fn write_all(base: &Checkpoint, out: &Path, tensor: impl Fn(&SafetensorsFile, usize) -> Result<Tensor>) -> Result<()> {
    for file in base.files() {
        let name = file.path().file_name().unwrap_or_default();
        let lines: Vec<Line<'_>> = file
            .entries()
            .iter()
            .map(|entry| Line { name: &entry.name, kind: entry.kind, shape: entry.shape.clone() })
            .collect();
        write_tensors(&out.join(name), &lines, file.metadata(), |at| Ok(torch_ext::tensor_bytes(&tensor(file, at)?)?))?;
    }
    let failed = |error| Error::io("read", base.folder(), &error);
    for entry in fs::read_dir(base.folder()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && !is_weights(&name) {
            let copy = out.join(&name);
            fs::copy(&path, &copy)
                .and_then(|_| fs::File::open(&copy)?.sync_all())
                .map_err(|error| Error::io("copy", &path, &error))?;
        }
    }
    Ok(())
}

/// Files that would be stale, or a second copy of the weights, beside the merged ones.
fn is_weights(name: &str) -> bool {
    let ends = [".safetensors", ".bin", ".bin.index.json", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"];
    ends.iter().any(|end| name.ends_with(end)) || name.starts_with("adapter_")
}

/// One tensor of the merged checkpoint.
fn merged(file: &SafetensorsFile, at: usize, adapter: &LoraFile) -> Result<Tensor> {
    let entry = &file.entries()[at];
    let weight = file.tensor(entry)?;
    let canonical = names::canonical(&entry.name);
    let pair = canonical.strip_suffix(".weight").and_then(|module| Some((module, adapter.tensors.get(module)?)));
    let Some((module, pair)) = pair else {
        return Ok(weight);
    };
    let change = pair.b.f_matmul(&pair.a)?.f_mul_scalar(adapter.config.scale(module))?;
    let sum = weight.f_to_kind(Kind::Float)?.f_add(&change)?.f_to_kind(entry.kind)?;
    check_finite(&sum, &file.place(&entry.name))?;
    Ok(sum)
}
