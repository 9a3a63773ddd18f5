//! Writing files that are whole or absent, and safetensors files whose bytes depend on nothing but the tensors.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::header::dtype;
use crate::{Error, Result};

/// Writes a file through a temporary one beside it that is synced and renamed, so that no reader ever sees half of it.
///
/// # Errors
/// What `content` reports; a folder that is not there or not writable, a full disk. The temporary file is then removed.
pub fn write_file(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    write_file_with(path, |out| content(out).map_err(|error| Error::io("write", path, &error)))
}

/// [`write_file`] for content that fails with errors of its own. A device or a pipe (`/dev/stdout`) is written to as it is.
///
/// # Errors
/// As [`write_file`].
pub fn write_file_with(path: &Path, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |error: io::Error| Error::io("write", path, &error);
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut out = BufWriter::new(File::options().write(true).open(path).map_err(failed)?);
        return content(&mut out).and_then(|()| out.flush().map_err(failed));
    }
    let temporary = beside(path)?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary).map_err(failed)?);
    let written = content(&mut file)
        .and_then(|()| file.flush().map_err(failed))
        .and_then(|()| file.get_ref().sync_all().map_err(failed))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(&parent(path))
}

/// The folder that holds `path`.
pub(super) fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// A name beside `path` that belongs to this process.
pub(super) fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::at(path.display(), "expected a path that ends in a name"))?;
    Ok(parent(path).join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("sync", folder, &error))
}

/// Writes tensors by name through a temporary file that is synced and renamed; the order of the tensors and the bytes are the
/// safetensors library's (wide element types first, then by name), whatever the order given.
///
/// # Errors
/// An element type that safetensors files of ours do not hold, two tensors of one name, and those of [`write_file`].
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors: Vec<(&str, &Tensor)> = tensors.into_iter().collect();
    tensors.sort_by_key(|(name, tensor)| (dtype(tensor.kind()).map(|(place, _)| place), *name));
    let lines: Vec<Line<'_>> =
        tensors.iter().map(|(name, tensor)| Line { name, kind: tensor.kind(), shape: tensor.size() }).collect();
    write_tensors(path, &lines, metadata, |at| Ok(torch_ext::tensor_bytes(tensors[at].1)?))
}

/// What the header says about one tensor.
pub(super) struct Line<'a> {
    pub name: &'a str,
    pub kind: Kind,
    pub shape: Vec<i64>,
}

/// Writes tensors in the order given, asking for the bytes of one after the other.
pub(super) fn write_tensors(
    path: &Path,
    lines: &[Line<'_>],
    metadata: &BTreeMap<String, String>,
    bytes: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let header = header(path, lines, metadata)?;
    write_file_with(path, |out| stream(path, &header, lines, out, bytes))
}

/// The length and the JSON header, padded with spaces so that the tensors start at a multiple of eight.
fn header(path: &Path, lines: &[Line<'_>], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut start = 0;
    for line in lines {
        let wrong = |what: String| Error::at(format!("{}: tensor `{}`", path.display(), line.name), what);
        let (_, dtype) =
            dtype(line.kind).ok_or_else(|| wrong(format!("elements of kind {:?} cannot be written", line.kind)))?;
        let end = start + size(line);
        let info = json!({"dtype": dtype, "shape": line.shape, "data_offsets": [start, end]});
        if header.insert(line.name.to_owned(), info).is_some() {
            return Err(wrong("is given twice".to_owned()));
        }
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([(json.len() as u64).to_le_bytes().as_slice(), &json].concat())
}

/// Bytes of one tensor.
fn size(line: &Line<'_>) -> i64 {
    line.shape.iter().product::<i64>() * torch_ext::element_bytes(line.kind).unwrap_or(0) as i64
}

fn stream(
    path: &Path,
    header: &[u8],
    lines: &[Line<'_>],
    out: &mut dyn Write,
    mut bytes: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let failed = |error: io::Error| Error::io("write", path, &error);
    out.write_all(header).map_err(failed)?;
    for (at, line) in lines.iter().enumerate() {
        let bytes = bytes(at)?;
        assert_eq!(bytes.len() as i64, size(line), "the bytes of a tensor have the size its header says");
        out.write_all(&bytes).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::SafetensorsFile;

    #[test]
    fn the_bytes_are_those_of_the_safetensors_library() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let (a, b, c) = (
            Tensor::from_slice(&[1f32, 2.0]),
            Tensor::from_slice(&[3f32]).to_kind(Kind::Half),
            Tensor::from_slice(&[7i64]),
        );
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(&path, [("b", &b), ("z\"", &a), ("a", &a), ("c", &c)], &metadata).unwrap();
        let bytes = fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let theirs = safetensors::serialize(read.tensors(), Some(metadata.into_iter().collect())).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&theirs));
        assert_eq!(read.tensor("z\"").unwrap().data(), torch_ext::tensor_bytes(&a).unwrap());
        let file = SafetensorsFile::open(&path).unwrap();
        let names: Vec<&str> = file.entries().iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["c", "a", "z\"", "b"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn failures_say_where_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let a = Tensor::from_slice(&[1f32]);
        let fail = |path: &Path, tensors: Vec<(&'static str, &Tensor)>| {
            write_safetensors(path, tensors, &BTreeMap::new()).unwrap_err().to_string()
        };
        let path = folder.path().join("x.safetensors");
        assert!(fail(&folder.path().join("none/x.safetensors"), vec![("a", &a)]).contains("cannot write"));
        assert!(fail(&path, vec![("a", &a), ("a", &a)]).contains("tensor `a`: is given twice"));
        let complex = a.to_kind(Kind::ComplexFloat);
        assert!(fail(&path, vec![("a", &complex)]).contains("tensor `a`: elements of kind ComplexFloat"));
        assert!(
            write_file(&path, |_| Err(io::ErrorKind::StorageFull.into()))
                .unwrap_err()
                .to_string()
                .contains("free some space")
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let line = [Line { name: "a", kind: Kind::Float, shape: vec![1] }];
        let mut full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = stream(Path::new("x"), b"header", &line, &mut full, |_| Ok(vec![0; 4])).unwrap_err();
        assert!(error.to_string().contains("hint: free some space"), "{error}");
    }
}
