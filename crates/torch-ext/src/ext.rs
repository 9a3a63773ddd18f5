//! Operations of libtorch that tch does not bind (`ext.cpp`): variable-length attention, memory and precision of CUDA devices.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

// SAFETY: these are the signatures in ext.cpp. A `C_tensor` is an `at::Tensor`; every function catches C++ exceptions.
#[expect(unsafe_code, reason = "the C interface of ext.cpp")]
unsafe extern "C" {
    fn torch_ext_free(message: *mut c_char);
    fn torch_ext_varlen_attention(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        q_starts: *const C_tensor,
        k_starts: *const C_tensor,
        max_q: i64,
        max_k: i64,
        scale: f64,
    ) -> *mut c_char;
    fn torch_ext_exact_f32() -> *mut c_char;
    fn torch_ext_expandable_segments() -> *mut c_char;
    fn torch_ext_cuda_peak(device: c_int, allocated: *mut i64, reserved: *mut i64) -> *mut c_char;
    fn torch_ext_reset_cuda_peak(device: c_int) -> *mut c_char;
}

/// Attention of many sequences that stand one behind the other, each query seeing the keys of its own sequence but for as many at the
/// end as queries follow it (causal, aligned bottom-right); on CUDA only, differentiable.
///
/// `q` is `[queries, heads, head_dim]`, `k` and `v` `[keys, kv_heads, head_dim]`, the result like `q`. Sequence `i` has the queries
/// from `q_starts[i]` to `q_starts[i + 1]` and the keys from `k_starts[i]` to `k_starts[i + 1]`, at least as many keys as queries and
/// one query; both are i32 `[sequences + 1]` on the device. `max_q` and `max_k` are the most that one sequence has. Scores are scaled
/// by 1/√head_dim. bf16 and f16 take the flash kernel (head_dim up to 256), f32 the memory-efficient one.
///
/// # Errors
/// Other kinds, other shapes, another device than CUDA, and whatever libtorch reports, in one line.
pub fn varlen_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    q_starts: &Tensor,
    k_starts: &Tensor,
    max_q: usize,
    max_k: usize,
) -> Result<Tensor, TchError> {
    let (kind, (_, heads, width), (_, kv_heads, _)) = (q.f_kind()?, q.size3()?, k.size3()?);
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(TchError::Shape(format!("{heads} heads do not share {kv_heads} heads of keys evenly")));
    }
    let scale = 1.0 / (width as f64).sqrt();
    // The kernels read whole vectors of a head; zeros change no score and give zeros that are cut off again.
    let missing = (8 - width % 8) % 8;
    let padded = |x: &Tensor| if missing == 0 { Ok(x.shallow_clone()) } else { x.f_constant_pad_nd([0, missing]) };
    let (q, k, v) = (padded(q)?, padded(k)?, padded(v)?);
    let out = match kind {
        Kind::BFloat16 | Kind::Half => call(&q, &k, &v, [q_starts, k_starts], [max_q, max_k], scale)?,
        Kind::Float => {
            let whole = |x: &Tensor| match heads == kv_heads {
                true => x.f_unsqueeze(0),
                false => x.f_repeat_interleave_self_int(heads / kv_heads, 1, None)?.f_unsqueeze(0),
            };
            let (q, k, v) = (q.f_unsqueeze(0)?, whole(&k)?, whole(&v)?);
            call(&q, &k, &v, [q_starts, k_starts], [max_q, max_k], scale)?.f_squeeze_dim(0)?
        }
        other => {
            let what = format!("variable-length attention takes bf16, f16 and f32, found {other:?}");
            return Err(TchError::Kind(what));
        }
    };
    if missing == 0 { Ok(out) } else { out.f_narrow(2, 0, width) }
}

fn call(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: [&Tensor; 2],
    most: [usize; 2],
    scale: f64,
) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    let ([q_starts, k_starts], [max_q, max_k]) = (starts.map(Tensor::as_ptr), most.map(|most| most as i64));
    // SAFETY: all pointers are tensors that live through the call; `out` is a fresh tensor of ours when there is no message.
    #[expect(unsafe_code, reason = "a call into ext.cpp")]
    unsafe {
        let (q, k, v) = (q.as_ptr(), k.as_ptr(), v.as_ptr());
        done(torch_ext_varlen_attention(&raw mut out, q, k, v, q_starts, k_starts, max_q, max_k, scale))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// The most memory of a CUDA device that this process took since its start or [`reset_cuda_peak`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaPeak {
    /// Taken by tensors at once.
    pub allocated: u64,
    /// Held by libtorch's allocator, what it keeps for reuse included.
    pub reserved: u64,
}

/// The peak of device `index`.
///
/// # Errors
/// A device that is not there or was not used yet.
pub fn cuda_peak(index: usize) -> Result<CudaPeak, TchError> {
    let (mut allocated, mut reserved) = (0, 0);
    // SAFETY: both pointers are ours; a device that is not there is an error.
    #[expect(unsafe_code, reason = "a call into ext.cpp")]
    unsafe {
        done(torch_ext_cuda_peak(device(index)?, &raw mut allocated, &raw mut reserved))?;
    }
    Ok(CudaPeak { allocated: allocated.max(0) as u64, reserved: reserved.max(0) as u64 })
}

/// Counts the peak of device `index` anew, from what is taken now.
///
/// # Errors
/// As [`cuda_peak`].
pub fn reset_cuda_peak(index: usize) -> Result<(), TchError> {
    // SAFETY: a device that is not there is an error.
    #[expect(unsafe_code, reason = "a call into ext.cpp")]
    unsafe {
        done(torch_ext_reset_cuda_peak(device(index)?))
    }
}

/// Turns TF32 off, so that f32 products on a GPU are f32 products.
pub(crate) fn exact_f32() -> Result<(), TchError> {
    // SAFETY: sets two flags of libtorch's context.
    #[expect(unsafe_code, reason = "a call into ext.cpp")]
    unsafe {
        done(torch_ext_exact_f32())
    }
}

/// Has the allocator of CUDA devices let its blocks grow in place (`expandable_segments` of `PYTORCH_CUDA_ALLOC_CONF`): batches of every length
/// then leave fewer holes.
pub(crate) fn expandable_segments() -> Result<(), TchError> {
    // SAFETY: sets a flag of the allocator.
    #[expect(unsafe_code, reason = "a call into ext.cpp")]
    unsafe {
        done(torch_ext_expandable_segments())
    }
}

pub(crate) fn device(index: usize) -> Result<c_int, TchError> {
    // libtorch counts devices in eight bits.
    i8::try_from(index).map(c_int::from).map_err(|_| TchError::Torch(format!("there is no CUDA device {index}")))
}

/// The first line of a message, which is freed; no message is success.
///
/// # Safety
/// `message` is null or came from ext.cpp and is used nowhere else.
#[expect(unsafe_code, reason = "reads and frees a C string")]
pub(crate) unsafe fn done(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: by this function's condition.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; `text` is a copy.
    unsafe { torch_ext_free(message) };
    Err(TchError::Torch(text.lines().next().unwrap_or("unknown error").to_owned()))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn on_cpu(kind: Kind, width: i64) -> Result<Tensor, TchError> {
        let q = Tensor::ones([4, 4, width], (kind, Device::Cpu)).set_requires_grad(true);
        let k = Tensor::ones([6, 2, width], (kind, Device::Cpu));
        let (q_starts, k_starts) = (Tensor::from_slice(&[0i32, 4]), Tensor::from_slice(&[0i32, 6]));
        varlen_attention(&q, &k, &k, &q_starts, &k_starts, 4, 6)
    }

    #[test]
    fn a_cpu_is_told_in_one_line_that_it_has_no_such_kernel() {
        for (kind, width, kernel) in [
            (Kind::BFloat16, 8, "_flash_attention_forward"),
            (Kind::Half, 12, "_flash_attention_forward"),
            (Kind::Float, 12, "_efficient_attention_forward"),
        ] {
            let error = on_cpu(kind, width).unwrap_err().to_string();
            assert!(error.contains(&format!("Could not run 'aten::{kernel}'")) && error.contains("'CPU'"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = on_cpu(Kind::Double, 8).unwrap_err().to_string();
        assert!(error.contains("found Double"), "{error}");
        let (q, starts) = (Tensor::ones([4, 3, 8], (Kind::Half, Device::Cpu)), Tensor::from_slice(&[0i32, 4]));
        let error = varlen_attention(&q, &q.narrow(1, 0, 2), &q, &starts, &starts, 4, 4).unwrap_err().to_string();
        assert!(error.contains("3 heads do not share 2 heads"), "{error}");
    }

    #[test]
    fn memory_of_a_device_that_is_not_there_is_an_error() {
        for index in [100, 1000] {
            assert!(cuda_peak(index).is_err() && reset_cuda_peak(index).is_err());
        }
    }
}
