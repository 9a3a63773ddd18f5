//! The gate of a gated MLP (Shazeer 2020, arXiv 2002.05202).

use super::precision;
use tch::Tensor;

/// `silu(gate) · up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    match precision::has_parts(gate) {
        true => precision::done(torch_ext::swiglu(gate, up)),
        false => gate.silu() * up,
    }
}
