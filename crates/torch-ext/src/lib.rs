//! The unsafe edge of mdpo, as a safe API over tch: variable-length attention, fused operations of a CPU, tensors on
//! memory-mapped files, CUDA loaded at run time, work side by side on shares of the threads, and groups of processes that compute together.

mod composed;
mod cuda;
mod ext;
mod fused;
mod gradients;
mod group;
mod lanes;
mod map;

pub use composed::{AdamW, Gather, Moving, adamw, wide_linear};
pub use cuda::{CudaState, load_cuda};
pub use ext::{CudaPeak, cuda_peak, reset_cuda_peak, varlen_attention};
pub use fused::{
    AdaptedLinear, QuerySpan, QuerySpans, SoftmaxStatistics, adapted_linears, has_fused, label_log_probs, rms_norm,
    rotary, softmax_with_statistics, span_attention, swiglu,
};
pub use gradients::{add_gradient, gradients};
pub use group::{Group, Meeting, StoreHolder};
pub use lanes::{Shared, lanes, side_by_side};
pub use map::MappedFile;

use tch::{Device, Kind, TchError, Tensor};

/// The libtorch that this was built with, such as `2.11.0+cpu`; `unknown` where it does not say.
pub const LIBTORCH_VERSION: &str = env!("LIBTORCH_VERSION");

/// Bytes of one element of `kind`, for numbers of which every bit pattern is one; `None` for other kinds.
pub fn element_bytes(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Float | Kind::Int => Some(4),
        Kind::Half | Kind::BFloat16 => Some(2),
        Kind::Double | Kind::Int64 => Some(8),
        Kind::Uint8 | Kind::Int8 => Some(1),
        _ => None,
    }
}

/// The elements of `tensor` in row-major order and the machine's (little-endian) byte order, copied from any device and layout.
///
/// # Errors
/// Kinds without a size in [`element_bytes`], and whatever libtorch reports while copying.
pub fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>, TchError> {
    let kind = tensor.f_kind()?;
    let Some(element) = element_bytes(kind) else {
        return Err(TchError::Kind(format!("cannot write elements of kind {kind:?}")));
    };
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let count = tensor.numel();
    let mut bytes = vec![0; count * element];
    tensor.f_copy_data_u8(&mut bytes, count)?;
    Ok(bytes)
}
