//! Gradients that are handed over, so that whoever has several can add them in an order of its own (`lanes.cpp`).

use std::ffi::c_char;
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::ext::done;

// SAFETY: these are the signatures in lanes.cpp. A `C_tensor` is an `at::Tensor`; both functions catch C++ exceptions.
#[expect(unsafe_code, reason = "the C interface of lanes.cpp")]
unsafe extern "C" {
    fn torch_ext_gradients(
        out: *mut *mut C_tensor,
        of: *const C_tensor,
        gradient: *const C_tensor,
        count: i64,
        inputs: *const *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_add_gradient(leaf: *const C_tensor, gradient: *const C_tensor) -> *mut c_char;
}

/// The gradient of `of`, weighted by `gradient` of the same shape, with respect to each of `inputs`; nothing where `of` does not depend on
/// one. No leaf's own gradient changes, and the graph is gone afterwards.
///
/// # Errors
/// An `of` without a graph, and whatever libtorch reports.
pub fn gradients(of: &Tensor, gradient: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Option<Tensor>>, TchError> {
    let mut out = vec![null_mut(); inputs.len()];
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    let count = inputs.len() as i64;
    // SAFETY: all tensors live through the call, both lists have `count` entries, and without a message each of `out` is null or a fresh
    // tensor of ours.
    #[expect(unsafe_code, reason = "a call into lanes.cpp")]
    unsafe {
        done(torch_ext_gradients(out.as_mut_ptr(), of.as_ptr(), gradient.as_ptr(), count, inputs.as_ptr()))?;
        Ok(out.into_iter().map(|tensor| (!tensor.is_null()).then(|| Tensor::from_ptr(tensor))).collect())
    }
}

/// Adds to the gradient of a leaf, as a backward pass does.
///
/// # Errors
/// Shapes that differ.
pub fn add_gradient(leaf: &Tensor, gradient: &Tensor) -> Result<(), TchError> {
    // SAFETY: both tensors live through the call; the message is ours to free.
    #[expect(unsafe_code, reason = "a call into lanes.cpp")]
    unsafe {
        done(torch_ext_add_gradient(leaf.as_ptr(), gradient.as_ptr()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn gradients_are_those_of_a_backward_pass_and_leave_leaves_alone() {
        let leaf = |seed| {
            tch::manual_seed(seed);
            Tensor::randn([3, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true)
        };
        let (a, b, unused) = (leaf(1), leaf(2), leaf(3));
        let y = || (&a * &b).tanh() + &a;
        let weights = leaf(4).detach();
        let found = gradients(&y(), &weights, &[&a, &unused, &b]).unwrap();
        assert!(!a.grad().defined() && found[1].is_none());
        (y() * &weights).sum(Kind::Float).backward();
        for (found, leaf) in [(&found[0], &a), (&found[2], &b)] {
            assert_eq!(found.as_ref().unwrap(), &leaf.grad());
        }
        let twice = a.grad() * 2.0;
        add_gradient(&a, found[0].as_ref().unwrap()).unwrap();
        assert_eq!(a.grad(), twice);
        add_gradient(&unused, &weights).unwrap();
        assert_eq!(unused.grad(), weights);
        assert!(add_gradient(&unused, &Tensor::ones([5], (Kind::Float, Device::Cpu))).is_err());
        assert!(gradients(&weights, &weights, &[&a]).is_err(), "no graph");
    }
}
