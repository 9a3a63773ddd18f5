//! Reads the fixtures under `parity/`; `README.md` beside this file says what they hold.
//!
//! Every function here panics with the path on failure: a test that cannot read its fixture has failed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

/// The path of a fixture named relative to `parity/`, such as `model/llava-tiny`.
pub fn fixture(path: impl AsRef<Path>) -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity").join(path);
    assert!(found.exists(), "no fixture {}", found.display());
    found
}

/// The tensors of a safetensors file, by name.
pub fn load_safetensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    let path = path.as_ref();
    let tensors = Tensor::read_safetensors(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tensors.into_iter().collect()
}

/// A JSON file.
pub fn load_json(path: impl AsRef<Path>) -> serde_json::Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Largest |a − b| over all elements, in f64; panics on different shapes, infinity where either holds a NaN.
pub fn max_abs_diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "shapes");
    let gap = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[]);
    if gap.is_nan() { f64::INFINITY } else { gap }
}
