//! Tensors that lie in a memory-mapped file and are read from the disk when they are first used.

use std::{fs::File, io, path::Path};

use tch::{Device, Kind, TchError, Tensor};

use crate::element_bytes;

/// A file mapped privately: a tensor changed in place changes its own copy of the page, never the file.
///
/// The map is never undone, because libtorch keeps plain pointers into it: a process opens a checkpoint once and needs it to the end,
/// and pages that are no longer used go back to the kernel by themselves. A file that is cut short by another process while it is
/// mapped ends this process with SIGBUS, as with every reader of mapped files.
#[derive(Debug, Clone, Copy)]
pub struct MappedFile {
    start: *mut u8,
    len: usize,
}

// SAFETY: the map lives as long as the process and `MappedFile` itself only does arithmetic on its address.
#[expect(unsafe_code, reason = "a raw address is not Send by itself")]
unsafe impl Send for MappedFile {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw address is not Sync by itself")]
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps the whole file for the rest of the process's life.
    ///
    /// # Errors
    /// What the operating system says about opening or mapping; an empty file cannot be mapped and is an error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
        }
        // SAFETY: private (copy-on-write), so the bytes change only through tensors made here; they are read by libtorch alone,
        // never through a Rust reference. That no other process cuts the file short is the documented condition of every map.
        #[expect(unsafe_code, reason = "mapping a file")]
        let map = unsafe { memmap2::MmapOptions::new().no_reserve_swap().map_copy(&file)? };
        let map = Box::leak(Box::new(map));
        Ok(Self { start: map.as_mut_ptr(), len: map.len() })
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty file is refused.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of `len` bytes from `offset` on, `None` when they lie outside the file.
    pub fn copy(&self, offset: usize, len: usize) -> Option<Vec<u8>> {
        offset.checked_add(len).filter(|&end| end <= self.len)?;
        let mut bytes = vec![0; len];
        // SAFETY: the range was checked; the vector is fresh memory of `len` bytes.
        #[expect(unsafe_code, reason = "reading the map without a Rust reference into it")]
        unsafe {
            self.start.add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), len);
        }
        Some(bytes)
    }

    /// A CPU tensor of `shape` and `kind` that lies at byte `offset` of the file, without a copy.
    ///
    /// Elements that do not start at a multiple of their size (a file without padding) are copied instead.
    ///
    /// # Errors
    /// A negative size, a number of bytes beyond the address space, a range outside the file, or a kind without a size.
    pub fn tensor(&self, offset: usize, shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
        let element =
            element_bytes(kind).ok_or_else(|| TchError::Kind(format!("cannot map elements of kind {kind:?}")))?;
        let bytes = shape
            .iter()
            .try_fold(element, |bytes, &size| bytes.checked_mul(usize::try_from(size).ok()?))
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or_else(|| TchError::Shape(format!("no tensor has the shape {shape:?}")))?;
        let end = offset.checked_add(bytes).filter(|&end| end <= self.len);
        if end.is_none() {
            return Err(TchError::Shape(format!(
                "{bytes} bytes at offset {offset} lie outside the file of {} bytes",
                self.len
            )));
        }
        if bytes == 0 {
            return Tensor::f_zeros(shape, (kind, Device::Cpu));
        }
        // SAFETY: `offset + bytes <= len` was checked, and the map is never undone.
        #[expect(unsafe_code, reason = "the address of a tensor in the map")]
        let start = unsafe { self.start.add(offset) };
        if start.addr() % element != 0 {
            let byte_count = [i64::try_from(bytes).unwrap_or(i64::MAX)];
            // SAFETY: bytes need no alignment; the rest as below. The copy is aligned.
            #[expect(unsafe_code, reason = "a tensor on foreign memory")]
            let raw = unsafe { Tensor::f_from_blob(start, &byte_count, &[], Kind::Uint8, Device::Cpu)? };
            return raw.f_alias_copy()?.f_view_dtype(kind)?.f_view(shape);
        }
        // SAFETY: the range is inside the map, aligned, readable and writable, and outlives every tensor; every bit pattern is a
        // valid element of the kinds in `element_bytes`.
        #[expect(unsafe_code, reason = "a tensor on foreign memory")]
        unsafe {
            Tensor::f_from_blob(start, shape, &[], kind, Device::Cpu)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, MappedFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let map = MappedFile::open(file.path()).unwrap();
        (file, map)
    }

    #[test]
    fn a_tensor_lies_in_the_file_and_outlives_the_handle() {
        let numbers: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (file, map) = file(&numbers);
        let mut tensor = map.tensor(4, &[3], Kind::Float).unwrap();
        drop(file);
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [2.0, 3.0, 4.0]);
        let _ = tensor.f_fill_(7.0).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(map.tensor(8, &[2], Kind::Float).unwrap()).unwrap(),
            [7.0, 7.0],
            "no copy was made"
        );
    }

    #[test]
    fn changing_a_tensor_leaves_the_file_alone() {
        let (file, map) = file(&[0; 16]);
        let _ = map.tensor(0, &[2, 2], Kind::Float).unwrap().f_fill_(7.0).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), [0; 16]);
    }

    #[test]
    fn unaligned_elements_are_copied_and_right() {
        let mut bytes = vec![0xff];
        bytes.extend([5f32, 6.0].iter().flat_map(|x| x.to_le_bytes()));
        let (_file, map) = file(&bytes);
        let mut tensor = map.tensor(1, &[2, 1], Kind::Float).unwrap();
        assert_eq!(Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap(), [5.0, 6.0]);
        let _ = tensor.f_fill_(0.0).unwrap();
        assert_eq!(map.copy(1, 4).unwrap(), 5f32.to_le_bytes());
    }

    #[test]
    fn ranges_outside_the_file_are_errors() {
        let (_file, map) = file(&[0; 16]);
        for (offset, shape) in [
            (0, vec![5]),
            (16, vec![1]),
            (usize::MAX, vec![1]),
            (0, vec![-1]),
            (0, vec![i64::MAX, 4]),
            (0, vec![i64::MAX]),
        ] {
            assert!(map.tensor(offset, &shape, Kind::Float).is_err(), "{offset} {shape:?}");
        }
        assert_eq!(map.tensor(16, &[0, 3], Kind::Float).unwrap().size(), [0, 3]);
        assert!(map.copy(10, 7).is_none() && map.copy(usize::MAX, 1).is_none());
    }

    #[test]
    fn bytes_come_back_row_major() {
        let tensor = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]).tr();
        let expected: Vec<u8> = [1i64, 3, 2, 4].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(crate::tensor_bytes(&tensor).unwrap(), expected);
        assert_eq!(crate::tensor_bytes(&Tensor::from_slice(&[1f32]).to_kind(Kind::BFloat16)).unwrap(), [0x80, 0x3f]);
        assert!(crate::tensor_bytes(&Tensor::from_slice(&[1f32]).to_kind(Kind::ComplexFloat)).is_err());
    }

    #[test]
    fn asking_for_cuda_never_fails() {
        assert_eq!(crate::load_cuda(), crate::load_cuda());
    }
}
