//! Operations for every device and kind that libtorch has otherwise, made of its own (`composed.cpp`): a gather whose gradient is summed in a
//! fixed order, a layer that is multiplied in f32, and one step of AdamW over many tensors. The layers' operations of that file are reached
//! through those of `fused.rs`.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::ext::done;
use crate::lanes::Shared;

// SAFETY: these are the signatures in composed.cpp. A `C_tensor` is an `at::Tensor`; all functions catch C++ exceptions.
#[expect(unsafe_code, reason = "the C interface of composed.cpp")]
unsafe extern "C" {
    fn torch_ext_gather_rows(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        rows: *const C_tensor,
        count: i64,
        rounds: *const *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_wide_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_adamw(
        count: i64,
        leaves: *const *const C_tensor,
        gradients: *const *const C_tensor,
        firsts: *const *const C_tensor,
        seconds: *const *const C_tensor,
        steps: *const C_tensor,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
}

/// Rows of a tensor in any order, some of them more than once.
#[derive(Debug)]
pub struct Gather {
    rows: Shared,
    /// Rows that are gathered, none twice in a round, and their places in the result: first for the first time, then for the second …
    rounds: Vec<Shared>,
    /// The tensor must have more rows than this.
    last: Option<usize>,
}

impl Gather {
    /// The rows `rows`, on `device`.
    pub fn new(rows: &[usize], device: Device) -> Self {
        let last = rows.iter().copied().max();
        let mut seen = vec![0usize; last.map_or(0, |last| last + 1)];
        let mut rounds: Vec<[Vec<i64>; 2]> = Vec::new();
        for (place, &row) in rows.iter().enumerate() {
            if seen[row] == rounds.len() {
                rounds.push([Vec::new(), Vec::new()]);
            }
            let [to, from] = &mut rounds[seen[row]];
            to.push(row as i64);
            from.push(place as i64);
            seen[row] += 1;
        }
        let index = |values: &[i64]| Tensor::from_slice(values).to_device(device).into();
        let all: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Gather { rows: index(&all), rounds: rounds.iter().flatten().map(|values| index(values)).collect(), last }
    }

    /// The rows of `x` `[rows, …]`; the gradient of a row that is gathered more than once is summed in the order in which it is gathered.
    ///
    /// # Errors
    /// Fewer rows than are asked for, and another device.
    pub fn of(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let found = x.size().first().map_or(0, |&rows| usize::try_from(rows).unwrap_or(0));
        if self.last.is_some_and(|last| found <= last) {
            return Err(TchError::Shape(format!("no row {:?} in {:?}", self.last, x.size())));
        }
        let rounds: Vec<*const C_tensor> = self.rounds.iter().map(|round| round.as_ptr()).collect();
        let mut out = null_mut();
        // SAFETY: all tensors live through the call, the list is as long as it says, and without a message `out` is a fresh tensor of ours.
        #[expect(unsafe_code, reason = "a call into composed.cpp")]
        unsafe {
            let (x, rows) = (x.as_ptr(), self.rows.as_ptr());
            done(torch_ext_gather_rows(&raw mut out, x, rows, rounds.len() as i64, rounds.as_ptr()))?;
            Ok(Tensor::from_ptr(out))
        }
    }
}

/// `x Wᵀ + b` of `x` `[…, in]`, weight `[out, in]` and bias `[out]`: multiplied in f32, rounded to the kind of `x`. For processors that cannot
/// multiply bf16 or f16. What the backward pass needs is kept in its own kind: `x` where the weight is trained, and the weight.
///
/// # Errors
/// Shapes that do not fit.
pub fn wide_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    // SAFETY: all tensors live through the call, a null bias is none, and without a message `out` is a fresh tensor of ours.
    #[expect(unsafe_code, reason = "a call into composed.cpp")]
    unsafe {
        let bias = bias.map_or(null(), |bias| bias.as_ptr());
        done(torch_ext_wide_linear(&raw mut out, x.as_ptr(), weight.as_ptr(), bias))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// A tensor that an optimizer moves, with its state; all f32 and of one shape.
#[derive(Debug)]
pub struct Moving {
    /// What moves.
    pub leaf: Tensor,
    /// Its gradient.
    pub gradient: Tensor,
    /// The running mean of the gradient.
    pub first: Tensor,
    /// That of its square.
    pub second: Tensor,
}

/// How AdamW (Loshchilov & Hutter, arXiv 1711.05101) moves.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// The rate of this step.
    pub learning_rate: f64,
    /// Of the running mean of gradients.
    pub beta1: f64,
    /// Of the running mean of their squares.
    pub beta2: f64,
    /// Share of the weights, times the rate, that is taken off first.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

/// Step `step` (from 1) of AdamW for all `tensors`, in place, by libtorch's kernel for many tensors.
///
/// # Errors
/// Tensors of different shapes, kinds or devices.
pub fn adamw(tensors: &[Moving], step: u64, with: AdamW) -> Result<(), TchError> {
    let Some(device) = tensors.first().map(|moving| moving.leaf.device()) else { return Ok(()) };
    let steps = Tensor::full([0i64; 0], step as f64, (Kind::Float, device));
    let each = |of: fn(&Moving) -> &Tensor| tensors.iter().map(|t| of(t).as_ptr()).collect::<Vec<_>>();
    let (leaves, gradients) = (each(|t| &t.leaf), each(|t| &t.gradient));
    let (firsts, seconds) = (each(|t| &t.first), each(|t| &t.second));
    let AdamW { learning_rate, beta1, beta2, weight_decay, epsilon } = with;
    // SAFETY: all tensors live through the call, and every list has as many as it says.
    #[expect(unsafe_code, reason = "a call into composed.cpp")]
    unsafe {
        let (leaves, gradients) = (leaves.as_ptr(), gradients.as_ptr());
        let (firsts, seconds, steps) = (firsts.as_ptr(), seconds.as_ptr(), steps.as_ptr());
        let count = tensors.len() as i64;
        done(torch_ext_adamw(
            count,
            leaves,
            gradients,
            firsts,
            seconds,
            steps,
            learning_rate,
            beta1,
            beta2,
            weight_decay,
            epsilon,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::{AdaptedLinear, adapted_linears, rms_norm, rotary, swiglu};

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Value and gradients of `ours` beside those of `plain` in f64, the worst differences as shares of the largest number; `ours` runs in
    /// `kind` and gets leaves in f64.
    fn worst(inputs: &[Tensor], ours: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) -> f64 {
        let leaves = || inputs.iter().map(|x| x.copy().set_requires_grad(true)).collect::<Vec<_>>();
        let (one, other) = (leaves(), leaves());
        let (found, expected) = (ours(&one).to_kind(Kind::Double), plain(&other));
        let weights = Tensor::randn(expected.size(), F64);
        let pull = |y: &Tensor, leaves: &[Tensor]| {
            Tensor::run_backward(&[(y * &weights).sum(Kind::Double)], leaves, false, false)
        };
        let mut pairs = vec![(found.detach(), expected.detach())];
        pairs.extend(pull(&found, &one).into_iter().zip(pull(&expected, &other)));
        let share =
            |(a, b): (Tensor, Tensor)| ((a - &b).abs().max() / b.abs().max().clamp_min(1e-30)).double_value(&[]);
        pairs.into_iter().map(share).fold(0.0, f64::max)
    }

    /// Runs `ours` in f64 and in bf16.
    fn in_both_kinds(inputs: &[Tensor], ours: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) {
        for (kind, bound) in [(Kind::Double, 1e-12), (Kind::BFloat16, 2e-2)] {
            let narrow = |x: &[Tensor]| x.iter().map(|x| x.to_kind(kind)).collect::<Vec<_>>();
            let found = worst(inputs, |x| ours(&narrow(x)), &plain);
            assert!(found < bound, "{kind:?}: {found}");
        }
    }

    #[test]
    fn parts_of_a_layer_are_their_formulas_in_kinds_that_have_no_loop_of_ours() {
        tch::manual_seed(1);
        let inputs = [Tensor::randn([37, 80], F64) * 3.0, Tensor::randn([80], F64)];
        let norm =
            |x: &[Tensor]| &x[0] * (x[0].square().mean_dim([-1].as_slice(), true, Kind::Double) + 1e-5).rsqrt() * &x[1];
        in_both_kinds(&inputs, |x| rms_norm(&x[0], &x[1], 1e-5).unwrap(), norm);
        let inputs = [Tensor::randn([65, 30], F64) * 4.0, Tensor::randn([65, 30], F64)];
        in_both_kinds(&inputs, |x| swiglu(&x[0], &x[1]).unwrap(), |x| x[0].silu() * &x[1]);
        let inputs = [Tensor::randn([70, 9, 64], F64)];
        let [cos, sin] = [0, 1].map(|_| Tensor::randn([70, 1, 64], F64));
        let turned = |x: &[Tensor]| {
            let turned = Tensor::cat(&[&x[0].narrow(-1, 32, 32).neg(), &x[0].narrow(-1, 0, 32)], -1);
            &x[0] * &cos + turned * &sin
        };
        let ours = |x: &[Tensor]| rotary(&x[0], &cos.to_kind(x[0].kind()), &sin.to_kind(x[0].kind())).unwrap();
        in_both_kinds(&inputs, ours, turned);
    }

    #[test]
    fn adapted_layers_are_their_formula_with_factors_in_f32() {
        tch::manual_seed(2);
        let (rows, input, sizes, scales) = (65, 24, [(7, 3), (30, 5)], [0.5, 2.0]);
        let mut inputs = vec![Tensor::randn([rows, input], F64)];
        inputs.extend(
            sizes.iter().flat_map(|&(out, rank)| [Tensor::randn([rank, input], F64), Tensor::randn([out, rank], F64)]),
        );
        let weights = sizes.map(|(out, _)| Tensor::randn([out, input], F64));
        let bias = Tensor::randn([30], F64);
        let plain = |x: &[Tensor]| {
            let layer = |i: usize| {
                let down = x[0].matmul(&x[1 + 2 * i].tr());
                x[0].matmul(&weights[i].tr()) + down.matmul(&x[2 + 2 * i].tr()) * scales[i]
            };
            Tensor::cat(&[layer(0), layer(1) + &bias], 1)
        };
        for (kind, of_factors, bound) in [(Kind::Double, Kind::Double, 1e-12), (Kind::BFloat16, Kind::Float, 2e-2)] {
            let ours = |x: &[Tensor]| {
                let factors: Vec<Tensor> = x[1..].iter().map(|factor| factor.to_kind(of_factors)).collect();
                let layer = |i: usize| AdaptedLinear {
                    weight: weights[i].to_kind(kind),
                    bias: (i == 1).then(|| bias.to_kind(kind)),
                    a: &factors[2 * i],
                    b: &factors[1 + 2 * i],
                    scale: scales[i],
                };
                let found = adapted_linears(&x[0].to_kind(kind), &[layer(0), layer(1)]).unwrap();
                assert!(found.iter().all(|y| y.kind() == kind));
                Tensor::cat(&found, 1)
            };
            let found = worst(&inputs, ours, plain);
            assert!(found < bound, "{kind:?}: {found}");
        }
    }

    #[test]
    fn a_wide_layer_is_its_steps_to_the_bit() {
        tch::manual_seed(5);
        let leaf = |x: &Tensor| x.copy().set_requires_grad(true);
        let wide = |x: &Tensor| x.to_kind(Kind::Float);
        for (kind, sizes) in [(Kind::BFloat16, &[65, 24][..]), (Kind::BFloat16, &[3, 21, 24]), (Kind::Half, &[65, 24])]
        {
            let narrow = |sizes: &[i64]| Tensor::randn(sizes, F64).to_kind(kind);
            let inputs = [narrow(sizes), narrow(&[40, 24]), narrow(&[40])];
            let pulled = narrow(&[&sizes[..sizes.len() - 1], &[40]].concat());
            let (one, other) = (inputs.each_ref().map(leaf), inputs.each_ref().map(leaf));
            let found = wide_linear(&one[0], &one[1], Some(&one[2])).unwrap();
            let steps = wide(&other[0]).linear(&wide(&other[1]), Some(&wide(&other[2]))).to_kind(kind);
            assert_eq!(found, steps);
            assert_eq!(tch::no_grad(|| wide_linear(&one[0], &one[1], Some(&one[2])).unwrap()), steps);
            for y in [&found, &steps] {
                (y * &pulled).sum(Kind::Float).backward();
            }
            for (ours, theirs) in one.iter().zip(&other) {
                assert_eq!(ours.grad().kind(), kind);
                assert_eq!(ours.grad(), theirs.grad());
            }
            // Each has the gradient it would have if the others were trained too.
            for trained in 0..3 {
                let leaf = leaf(&inputs[trained]);
                let of = |place: usize| if place == trained { &leaf } else { &inputs[place] };
                (wide_linear(of(0), of(1), Some(of(2))).unwrap() * &pulled).sum(Kind::Float).backward();
                assert_eq!(leaf.grad(), one[trained].grad());
            }
            let x = leaf(&inputs[0]);
            (wide_linear(&x, &inputs[1], None).unwrap() * &pulled).sum(Kind::Float).backward();
            assert_eq!(x.grad(), one[0].grad());
        }
        let narrow = |sizes: [i64; 2]| Tensor::randn(sizes, F64).to_kind(Kind::BFloat16);
        assert!(wide_linear(&narrow([5, 3]), &narrow([4, 2]), None).is_err());
    }

    #[test]
    fn a_gather_sums_the_gradients_of_a_row_that_comes_again() {
        tch::manual_seed(3);
        let rows = [4usize, 0, 1, 4, 1, 4, 2];
        let inputs = [Tensor::randn([6, 2, 3], F64)];
        let index = Tensor::from_slice(&rows.map(|row| row as i64));
        let gather = Gather::new(&rows, Device::Cpu);
        let found = worst(&inputs, |x| gather.of(&x[0]).unwrap(), |x| x[0].index_select(0, &index));
        assert!(found < 1e-15, "{found}");
        assert!(gather.of(&Tensor::zeros([4, 1], F64)).is_err());
        assert_eq!(Gather::new(&[], Device::Cpu).of(&inputs[0]).unwrap().size(), [0, 2, 3]);
    }

    /// The formula, written out; the kernel has the same state afterwards.
    #[test]
    fn adamw_moves_as_its_formula() {
        tch::manual_seed(4);
        let with = AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, weight_decay: 0.1, epsilon: 1e-6 };
        let zeros = |size: i64| Tensor::zeros([size], (Kind::Float, Device::Cpu));
        let start = [5, 3].map(|size| Tensor::randn([size], (Kind::Float, Device::Cpu)));
        let leaves = start.each_ref().map(|x| x.copy().set_requires_grad(true));
        let state = [5, 3].map(|size| (zeros(size), zeros(size)));
        let mut plain = start
            .each_ref()
            .map(|x| (x.to_kind(Kind::Double), x.to_kind(Kind::Double) * 0.0, x.to_kind(Kind::Double) * 0.0));
        for step in 1..=3 {
            let gradients = start.each_ref().map(|x| x.randn_like());
            let moving = |i: usize| Moving {
                leaf: leaves[i].shallow_clone(),
                gradient: gradients[i].shallow_clone(),
                first: state[i].0.shallow_clone(),
                second: state[i].1.shallow_clone(),
            };
            adamw(&[moving(0), moving(1)], step, with).unwrap();
            for ((x, m, v), g) in plain.iter_mut().zip(&gradients) {
                let g = g.to_kind(Kind::Double);
                *m = &*m * 0.9 + &g * 0.1;
                *v = &*v * 0.99 + g.square() * 0.01;
                let (by_m, by_v) = (1.0 - 0.9f64.powi(step as i32), 1.0 - 0.99f64.powi(step as i32));
                *x = &*x * (1.0 - 0.01 * 0.1) - (&*m / by_m) / ((&*v / by_v).sqrt() + 1e-6) * 0.01;
            }
        }
        for (leaf, (x, _, _)) in leaves.iter().zip(&plain) {
            assert!((leaf.to_kind(Kind::Double) - x).abs().max().double_value(&[]) < 1e-6);
            assert!(leaf.requires_grad());
        }
        assert!(adamw(&[], 1, with).is_ok());
    }
}
