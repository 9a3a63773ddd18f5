//! One safetensors file: its header, checked to the last byte, and its tensors, mapped.
//!
//! The format is eight bytes of header length, a JSON header, then the tensors without gaps
//! (<https://huggingface.co/docs/safetensors>). A file from the internet is not to be trusted, so nothing is assumed. The `safetensors`
//! crate keeps the last of two tensors of one name and does not name the tensor whose size is wrong; otherwise the two accept the
//! same files, which a property test holds.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use tch::{Kind, Tensor};
use torch_ext::MappedFile;

use crate::{Error, Result};

/// The longest header that the safetensors library accepts, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: usize = 8;

/// The element types in the order in which the safetensors library lays them out.
const DTYPES: [(Kind, &str); 8] = [
    (Kind::Int64, "I64"),
    (Kind::Double, "F64"),
    (Kind::Float, "F32"),
    (Kind::Int, "I32"),
    (Kind::BFloat16, "BF16"),
    (Kind::Half, "F16"),
    (Kind::Int8, "I8"),
    (Kind::Uint8, "U8"),
];

/// Place of a kind in the safetensors library's layout order and its name in the header; `None` for kinds we neither read nor write.
pub(super) fn dtype(kind: Kind) -> Option<(usize, &'static str)> {
    DTYPES.iter().position(|(known, _)| *known == kind).map(|at| (at, DTYPES[at].1))
}

/// One line of the header.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name in the file.
    pub name: String,
    /// Element type.
    pub kind: Kind,
    /// Sizes.
    pub shape: Vec<i64>,
    /// First byte, counted from the start of the file.
    start: usize,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: MappedFile,
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, or whose header contradicts itself; the tensor is named where there is one.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MappedFile::open(path).map_err(|error| Error::io("read", path, &error))?;
        let (entries, metadata) = check(path, map.len(), |offset, len| map.copy(offset, len))?;
        Ok(Self { path: path.to_owned(), map, entries, metadata })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Its free-form metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor of one of its own entries, on the CPU, without a copy.
    ///
    /// # Errors
    /// An entry of another file, where it does not fit into this one.
    pub fn tensor(&self, entry: &Entry) -> Result<Tensor> {
        self.map
            .tensor(entry.start, &entry.shape, entry.kind)
            .map_err(|error| Error::at(self.place(&entry.name), error))
    }

    /// How messages name one of its tensors.
    pub fn place(&self, name: &str) -> String {
        place(&self.path, name)
    }
}

fn place(path: &Path, name: &str) -> String {
    format!("{}: tensor `{name}`", path.display())
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The JSON header with every key it holds, also one that stands twice.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Info)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Header, M::Error> {
                let mut header = Header::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        from.deserialize_map(Keys)
    }
}

type Checked = (Vec<Entry>, BTreeMap<String, String>);

/// Reads and checks the header of a file of `len` bytes through `copy(offset, len)`.
fn check(path: &Path, len: usize, copy: impl Fn(usize, usize) -> Option<Vec<u8>>) -> Result<Checked> {
    let broken = |what: String| {
        Error::at(path.display(), what).hint("the file is damaged or incomplete; download or write it again")
    };
    let start =
        copy(0, LENGTH_BYTES).and_then(|bytes| <[u8; LENGTH_BYTES]>::try_from(bytes).ok()).ok_or_else(|| {
            broken(format!("expected a safetensors file of at least {LENGTH_BYTES} bytes, found {len} bytes"))
        })?;
    if &start == b"version " {
        return Err(Error::at(path.display(), "expected weights, found a git-lfs pointer")
            .hint("run `git lfs pull` in that folder"));
    }
    let header_len = u64::from_le_bytes(start);
    if header_len > LONGEST_HEADER {
        return Err(broken(format!(
            "expected a safetensors header of at most {LONGEST_HEADER} bytes, found a length of {header_len}"
        )));
    }
    // At most 100,000,000, so it fits.
    let header_len = header_len as usize;
    let data = LENGTH_BYTES + header_len;
    let bytes = copy(LENGTH_BYTES, header_len)
        .ok_or_else(|| broken(format!("expected a header of {header_len} bytes, found a file of {len} bytes")))?;
    let header: Header = serde_json::from_slice(&bytes)
        .map_err(|error| broken(format!("expected a safetensors header, found invalid JSON: {error}")))?;

    let whole = header.tensors.iter().map(|(_, info)| info.data_offsets.1).max().unwrap_or(0);
    let found = (len - data) as u64;
    if whole != found {
        let problem = if whole > found { "the file is cut short" } else { "bytes at the end belong to no tensor" };
        return Err(broken(format!("expected {whole} bytes of tensors, found {found}: {problem}")));
    }
    let mut names = HashSet::new();
    if let Some((name, _)) = header.tensors.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(Error::at(place(path, name), "stands twice in the header").hint("write the file again"));
    }
    let mut tensors = header.tensors;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut entries: Vec<Entry> = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, info) in tensors {
        let (first, last) = info.data_offsets;
        let wrong = |what: String| Error::at(place(path, &name), what);
        let Some(&(kind, _)) = DTYPES.iter().find(|(_, dtype)| *dtype == info.dtype) else {
            return Err(unsupported(path, &name, &info.dtype));
        };
        if first != end {
            let neighbour =
                entries.last().map_or("the start of the data".to_owned(), |entry| format!("tensor `{}`", entry.name));
            let what = if first < end { "overlaps" } else { "leaves a gap after" };
            return Err(wrong(format!("expected its bytes to start at {end}, found {first}: it {what} {neighbour}")));
        }
        end = last;
        let element = torch_ext::element_bytes(kind).expect("every kind of the table has a size") as u64;
        let needed = info.shape.iter().try_fold(element, |bytes, &size| bytes.checked_mul(size));
        let shape: Option<Vec<i64>> = info.shape.iter().map(|&size| i64::try_from(size).ok()).collect();
        match (shape, needed) {
            (Some(shape), Some(needed)) if Some(needed) == last.checked_sub(first) => {
                // Inside the file, whose length fits, as `last <= whole <= len`.
                entries.push(Entry { name, kind, shape, start: data + first as usize });
            }
            (_, needed) => {
                let needed = needed.map_or("more than any file holds".to_owned(), |bytes| format!("{bytes} bytes"));
                let what =
                    format!("expected {needed} for {} {:?}, found bytes {first} to {last}", info.dtype, info.shape);
                return Err(wrong(what));
            }
        }
    }
    Ok((entries, header.metadata))
}

/// A tensor of an element type that is not weights.
pub(super) fn unsupported(path: &Path, name: &str, dtype: &str) -> Error {
    Error::at(place(path, name), format!("expected F32, F16 or BF16, found {dtype}"))
        .hint("quantized checkpoints cannot be trained; use the original one")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Checked> {
        check(Path::new("model.safetensors"), bytes.len(), |offset, len| {
            bytes.get(offset..offset.checked_add(len)?).map(<[u8]>::to_vec)
        })
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#;

    #[test]
    fn a_good_header_is_read() {
        let (entries, metadata) = read(&file(GOOD, 14)).unwrap();
        assert_eq!(metadata["format"], "pt");
        assert_eq!(entries[0], Entry { name: "a".into(), kind: Kind::Float, shape: vec![2, 1], start: 8 + GOOD.len() });
        assert_eq!(entries[1].start, entries[0].start + 8);
        assert!(read(&file("{}", 0)).unwrap().0.is_empty());
    }

    #[test]
    fn every_fault_is_named() {
        let one = |info: &str, data| read(&file(&format!("{{\"a\":{info}}}"), data)).unwrap_err().to_string();
        let text = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        let whole = file(GOOD, 14);
        for (found, expected) in [
            (text(&whole[..5]), "at least 8 bytes, found 5 bytes"),
            (text(&whole[..20]), "expected a header of 142 bytes, found a file of 20 bytes"),
            (text(&whole[..whole.len() - 1]), "expected 14 bytes of tensors, found 13: the file is cut short"),
            (text(&file(GOOD, 15)), "expected 14 bytes of tensors, found 15: bytes at the end belong to no tensor"),
            (text(&[0xff; 40]), "at most 100000000 bytes"),
            (text(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
            (text(&file("[1]", 0)), "invalid JSON"),
            (text(&file(&GOOD.replace("\"b\"", "\"a\""), 14)), "tensor `a`: stands twice"),
            (
                text(&file(&GOOD.replace("[8,14]", "[6,14]"), 14)),
                "tensor `b`: expected its bytes to start at 8, found 6: it overlaps tensor `a`",
            ),
            (text(&file(&GOOD.replace("[8,14]", "[10,16]"), 16)), "it leaves a gap after tensor `a`"),
            (
                one(r#"{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}"#, 4),
                "tensor `a`: expected F32, F16 or BF16, found F8_E4M3",
            ),
            (
                one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,4]}"#, 4),
                "tensor `a`: expected 16 bytes for F32 [4], found bytes 0 to 4",
            ),
            (
                one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#, 4),
                "more than any file holds",
            ),
            (one(r#"{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}"#, 0), "expected 0 bytes"),
        ] {
            assert!(found.contains(expected), "expected {expected}\nfound {found}");
            assert!(found.starts_with("model.safetensors"), "{found}");
        }
    }

    proptest! {
        /// Whatever is damaged: no panic, and what we accept the safetensors crate accepts with the same tensors.
        #[test]
        fn damage_never_panics(flips in prop::collection::vec((0usize..200, any::<u8>()), 0..4), cut in 0usize..200) {
            let mut bytes = file(GOOD, 14);
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(150)));
            if let Ok((entries, metadata)) = read(&bytes) {
                let (_, theirs) = safetensors::SafeTensors::read_metadata(&bytes).expect("the crate accepts it too");
                prop_assert_eq!(theirs.metadata().clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(), metadata);
                prop_assert_eq!(theirs.tensors().len(), entries.len());
                for entry in entries {
                    let info = theirs.info(&entry.name).expect("the same names");
                    prop_assert_eq!(info.shape.iter().map(|&size| size as i64).collect::<Vec<_>>(), entry.shape);
                }
            }
        }

        /// Random bytes as a header never panic.
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..64), length in 0u64..80) {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(noise);
            let _ = read(&bytes);
        }
    }
}
