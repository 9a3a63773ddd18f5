//! Operations that libtorch has only in several passes over memory, with their gradients.
//!
//! In f32 on a CPU they are loops of ours (`fused.cpp`), there only where [`has_fused`] says so: a value depends on its own row alone, and
//! no sum's order on the number of threads. The parts of a layer are there for other devices and kinds too, made of libtorch's operations
//! (`composed.cpp`): they keep less for the backward pass than the formulas would.

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;
use std::sync::LazyLock;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::ext::done;
use crate::lanes::Shared;

// SAFETY: these are the signatures in fused.cpp. A `C_tensor` is an `at::Tensor`; every function that returns a message catches C++
// exceptions, and `torch_ext_has_fused` throws none.
#[expect(unsafe_code, reason = "the C interface of fused.cpp")]
unsafe extern "C" {
    safe fn torch_ext_has_fused() -> c_int;
    fn torch_ext_rms_norm(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
    ) -> *mut c_char;
    fn torch_ext_swiglu(out: *mut *mut C_tensor, gate: *const C_tensor, up: *const C_tensor) -> *mut c_char;
    fn torch_ext_rotary(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_adapted_linears(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        count: i64,
        weights: *const *const C_tensor,
        biases: *const *const C_tensor,
        a: *const *const C_tensor,
        b: *const *const C_tensor,
        scales: *const f64,
    ) -> *mut c_char;
    fn torch_ext_span_attention(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        spans: *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_label_log_probs(
        out: *mut *mut C_tensor,
        logits: *const C_tensor,
        labels: *const C_tensor,
    ) -> *mut c_char;
    fn torch_ext_softmax_with_statistics(
        out: *mut *mut C_tensor,
        logits: *const C_tensor,
        labels: *const C_tensor,
    ) -> *mut c_char;
}

/// Whether this libtorch lets its matrix products and threads be called from here; where not, nothing in this file may be.
pub fn has_fused() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| torch_ext_has_fused() != 0);
    *FOUND
}

/// The tensor that `call` writes where it succeeds.
fn made(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    let message = call(&raw mut out);
    // SAFETY: `call` is a function of fused.cpp: its message is ours to free, and without one `out` is a fresh tensor of ours.
    #[expect(unsafe_code, reason = "takes what fused.cpp gives")]
    unsafe {
        done(message)?;
        Ok(Tensor::from_ptr(out))
    }
}

/// `x / √(mean(x²) + eps) · weight` over the last dimension of `x` `[…, width]`, weight `[width]` in the kind of `x`; rounded once.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    // SAFETY: both tensors live through the call.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    made(|out| unsafe { torch_ext_rms_norm(out, x.as_ptr(), weight.as_ptr(), eps) })
}

/// `silu(gate) · up`, both of one shape; the backward pass needs nothing but the two.
///
/// # Errors
/// Shapes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: both tensors live through the call.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    made(|out| unsafe { torch_ext_swiglu(out, gate.as_ptr(), up.as_ptr()) })
}

/// `x · cos + turned(x) · sin` for `x` `[tokens, heads, head_dim]` and tables of `tokens · head_dim` numbers, where `turned` swaps the
/// halves of a head and negates what comes first (rotary positions, Su et al., arXiv 2104.09864, as transformers pairs them).
///
/// # Errors
/// Shapes that do not fit.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: all tensors live through the call.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    made(|out| unsafe { torch_ext_rotary(out, x.as_ptr(), cos.as_ptr(), sin.as_ptr()) })
}

/// A linear layer whose weight and bias stay as they are, with a LoRA adapter (Hu et al., arXiv 2106.09685) that moves.
#[derive(Debug)]
pub struct AdaptedLinear<'t> {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// The down projection `[rank, in]`.
    pub a: &'t Tensor,
    /// The up projection `[out, rank]`.
    pub b: &'t Tensor,
    /// What the adapter's product is multiplied by.
    pub scale: f64,
}

/// `x Wᵀ + bias + scale · (x Aᵀ) Bᵀ` of every layer for one `x` `[rows, in]`: the adapters' down projections are one product, and the
/// gradients of `x` are summed by the products that give them. Weights and biases are of the kind of `x` and get no gradient; the
/// adapters' factors are f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn adapted_linears(x: &Tensor, layers: &[AdaptedLinear]) -> Result<Vec<Tensor>, TchError> {
    let each = |of: &dyn Fn(&AdaptedLinear) -> *const C_tensor| layers.iter().map(of).collect::<Vec<_>>();
    let weights = each(&|layer| layer.weight.as_ptr());
    let biases = each(&|layer| layer.bias.as_ref().map_or(std::ptr::null(), |bias| bias.as_ptr()));
    let (a, b) = (each(&|layer| layer.a.as_ptr()), each(&|layer| layer.b.as_ptr()));
    let scales: Vec<f64> = layers.iter().map(|layer| layer.scale).collect();
    let mut out = vec![null_mut(); layers.len()];
    let count = layers.len() as i64;
    // SAFETY: all tensors live through the call, every list has `count` entries, and without a message each of `out` is a fresh tensor of
    // ours.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    unsafe {
        let (weights, biases, a, b) = (weights.as_ptr(), biases.as_ptr(), a.as_ptr(), b.as_ptr());
        done(torch_ext_adapted_linears(out.as_mut_ptr(), x.as_ptr(), count, weights, biases, a, b, scales.as_ptr()))?;
        Ok(out.into_iter().map(|tensor| Tensor::from_ptr(tensor)).collect())
    }
}

/// Some queries in a row and the keys that they see: the last query all of them, each query before it one less at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuerySpan {
    /// First row of the queries.
    pub query: usize,
    /// How many queries.
    pub queries: usize,
    /// First row of the keys of the prefix, which every query sees whole.
    pub prefix: usize,
    /// How many keys the prefix has, or none.
    pub prefixed: usize,
    /// First row of the other keys.
    pub own: usize,
    /// How many other keys the last query sees, at least as many as there are queries.
    pub owned: usize,
}

/// Checked spans, ready for any number of calls.
#[derive(Debug)]
pub struct QuerySpans {
    rows: Shared,
    /// Queries and keys that there must be.
    least: (i64, i64),
}

impl QuerySpans {
    /// Spans whose queries follow each other from row 0 on.
    ///
    /// # Errors
    /// Spans with a gap between them, and fewer own keys than queries.
    pub fn new(spans: &[QuerySpan]) -> Result<Self, TchError> {
        let (mut done, mut keys) = (0, 0);
        for span in spans {
            if span.query != done || span.owned < span.queries {
                return Err(TchError::Shape(format!("no span of queries from row {done} on: {span:?}")));
            }
            done += span.queries;
            keys = keys.max(span.own + span.owned).max(span.prefix + span.prefixed);
        }
        let rows = spans.iter().flat_map(|s| [s.query, s.queries, s.prefix, s.prefixed, s.own, s.owned]);
        let rows: Vec<i64> = rows.map(|row| row as i64).collect();
        let rows = Tensor::f_from_slice(&rows)?.f_view([spans.len() as i64, 6])?;
        Ok(QuerySpans { rows: rows.into(), least: (done as i64, keys as i64) })
    }
}

/// Softmax attention of every span: queries `[queries, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]`, the result like
/// the queries; heads share keys in groups, scores are scaled by 1/√head_dim.
///
/// Scores are computed some queries at a time, and again in the backward pass, so that none are kept.
///
/// # Errors
/// Anything but f32 on a CPU, and shapes that do not fit the spans.
pub fn span_attention(q: &Tensor, k: &Tensor, v: &Tensor, spans: &QuerySpans) -> Result<Tensor, TchError> {
    let ((queries, heads, width), (tokens, kv_heads, _)) = (q.size3()?, k.size3()?);
    let fits = k.size() == v.size() && k.size()[2] == width && kv_heads > 0 && heads % kv_heads == 0;
    if !fits || queries != spans.least.0 || tokens < spans.least.1 {
        let what = format!("no attention of {:?} over {:?} and {:?} in {spans:?}", q.size(), k.size(), v.size());
        return Err(TchError::Shape(what));
    }
    // SAFETY: all tensors live through the call, and every row that the spans name is there.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    made(|out| unsafe { torch_ext_span_attention(out, q.as_ptr(), k.as_ptr(), v.as_ptr(), spans.rows.as_ptr()) })
}

/// The log-prob of each label `[rows]` under the softmax of its row of logits `[rows, vocab]`; without a gradient.
///
/// # Errors
/// Logits that are not f32 on a CPU, and labels that are not in the vocabulary.
pub fn label_log_probs(logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    let labels = fitting(logits, labels)?;
    // SAFETY: both tensors live through the call; there is a label for each row, and it names one of the row's numbers.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    made(|out| unsafe { torch_ext_label_log_probs(out, logits.as_ptr(), labels.as_ptr()) })
}

/// What rows of logits say of their labels, each f32 `[rows]`.
#[derive(Debug)]
pub struct SoftmaxStatistics {
    /// Log-prob of the label.
    pub log_probs: Tensor,
    /// Entropy in nats.
    pub entropy: Tensor,
    /// 1 where the label is the (first of the) likeliest, else 0.
    pub top1: Tensor,
    /// Mean logit.
    pub mean_logit: Tensor,
}

/// Turns contiguous logits `[rows, vocab]` into their softmax, in place, and says on the way what they say of the labels `[rows]`; without
/// a gradient.
///
/// # Errors
/// Logits that are not contiguous f32 on a CPU, and labels that are not in the vocabulary.
pub fn softmax_with_statistics(logits: &mut Tensor, labels: &Tensor) -> Result<SoftmaxStatistics, TchError> {
    let labels = fitting(logits, labels)?;
    // SAFETY: both tensors live through the call; there is a label for each row, and it names one of the row's numbers.
    #[expect(unsafe_code, reason = "a call into fused.cpp")]
    let found = made(|out| unsafe { torch_ext_softmax_with_statistics(out, logits.as_ptr(), labels.as_ptr()) })?;
    let row = |index| found.f_get(index);
    Ok(SoftmaxStatistics { log_probs: row(0)?, entropy: row(1)?, top1: row(2)?, mean_logit: row(3)? })
}

/// Labels as the loops over rows read them.
fn fitting(logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    let (rows, vocab) = logits.size2()?;
    let labels = labels.f_to_kind(Kind::Int64)?.f_contiguous()?;
    let inside = || -> Result<bool, TchError> {
        let (least, most) = (labels.f_min()?.f_int64_value(&[])?, labels.f_max()?.f_int64_value(&[])?);
        Ok(0 <= least && most < vocab)
    };
    if labels.size() != [rows] || (rows > 0 && !inside()?) {
        let what = format!("labels of shape {:?} that do not fit logits of {:?}", labels.size(), logits.size());
        return Err(TchError::Shape(what));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Value and gradients of `ours` in f32 beside those of `plain` in f64, the worst difference of each.
    fn differences(
        inputs: &[Tensor],
        ours: impl Fn(&[Tensor]) -> Tensor,
        plain: impl Fn(&[Tensor]) -> Tensor,
    ) -> Vec<f64> {
        let leaves = |kind| inputs.iter().map(|x| x.to_kind(kind).copy().set_requires_grad(true)).collect::<Vec<_>>();
        let (narrow, wide) = (leaves(Kind::Float), leaves(Kind::Double));
        let (found, expected) = (ours(&narrow), plain(&wide));
        let weights = Tensor::randn(found.size(), F32);
        let pull = |y: &Tensor, leaves: &[Tensor]| {
            let sum = (y * weights.to_kind(y.kind())).sum(y.kind());
            Tensor::run_backward(&[sum], leaves, false, false)
        };
        let mut pairs = vec![(found.detach(), expected.detach())];
        pairs.extend(pull(&found, &narrow).into_iter().zip(pull(&expected, &wide)));
        let worst = |(a, b): &(Tensor, Tensor)| (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]);
        pairs.iter().map(worst).collect()
    }

    fn all_below(differences: &[f64], bound: f64) {
        assert!(differences.iter().all(|difference| *difference < bound), "{differences:?}");
    }

    #[test]
    fn a_norm_is_its_formula_and_gradients() {
        tch::manual_seed(1);
        for rows in [1, 37, 300] {
            let inputs = [Tensor::randn([rows, 83], F32) * 3.0, Tensor::randn([83], F32)];
            let plain = |x: &[Tensor]| {
                &x[0] * (x[0].square().mean_dim([-1].as_slice(), true, Kind::Double) + 1e-5).rsqrt() * &x[1]
            };
            all_below(&differences(&inputs, |x| rms_norm(&x[0], &x[1], 1e-5).unwrap(), plain), 1e-4);
        }
    }

    #[test]
    fn a_frozen_weight_of_a_norm_gets_no_gradient() {
        let x = Tensor::randn([4, 8], F32).set_requires_grad(true);
        let weight = Tensor::ones([8], F32);
        rms_norm(&x, &weight, 1e-5).unwrap().sum(Kind::Float).backward();
        assert!(x.grad().defined() && !weight.grad().defined());
    }

    #[test]
    fn a_gated_unit_is_its_formula_and_gradients() {
        tch::manual_seed(2);
        let inputs = [Tensor::randn([65, 301], F32) * 20.0, Tensor::randn([65, 301], F32)];
        all_below(&differences(&inputs, |x| swiglu(&x[0], &x[1]).unwrap(), |x| x[0].silu() * &x[1]), 1e-4);
        let extremes = Tensor::from_slice(&[-1e30f32, -200.0, 200.0, 1e30, f32::NAN]);
        let found = Vec::<f32>::try_from(swiglu(&extremes, &extremes.ones_like()).unwrap()).unwrap();
        assert!(found[0].abs() < 1e-7 && found[1].abs() < 1e-7 && found[2..4] == [200.0, 1e30] && found[4].is_nan());
    }

    #[test]
    fn rotary_positions_are_their_formula_and_gradient() {
        tch::manual_seed(3);
        let (x, cos, sin) =
            (Tensor::randn([70, 9, 64], F32), Tensor::randn([70, 1, 64], F32), Tensor::randn([70, 1, 64], F32));
        let plain = |x: &[Tensor]| {
            let turned = Tensor::cat(&[&x[0].narrow(-1, 32, 32).neg(), &x[0].narrow(-1, 0, 32)], -1);
            &x[0] * cos.to_kind(Kind::Double) + turned * sin.to_kind(Kind::Double)
        };
        all_below(&differences(&[x], |x| rotary(&x[0], &cos, &sin).unwrap(), plain), 1e-5);
    }

    #[test]
    fn adapted_linear_layers_are_their_formula_and_gradients() {
        tch::manual_seed(6);
        let (rows, input, sizes, scales) = (65, 24, [(7, 3), (30, 5)], [0.5, 2.0]);
        let mut inputs = vec![Tensor::randn([rows, input], F32)];
        inputs.extend(
            sizes.iter().flat_map(|&(out, rank)| [Tensor::randn([rank, input], F32), Tensor::randn([out, rank], F32)]),
        );
        let weights = sizes.map(|(out, _)| Tensor::randn([out, input], F32));
        let bias = Tensor::randn([30], F32);
        let ours = |x: &[Tensor]| {
            let layer = |i: usize| AdaptedLinear {
                weight: weights[i].shallow_clone(),
                bias: (i == 1).then(|| bias.shallow_clone()),
                a: &x[1 + 2 * i],
                b: &x[2 + 2 * i],
                scale: scales[i],
            };
            Tensor::cat(&adapted_linears(&x[0], &[layer(0), layer(1)]).unwrap(), 1)
        };
        let plain = |x: &[Tensor]| {
            let layer = |i: usize| {
                let down = x[0].matmul(&x[1 + 2 * i].tr());
                x[0].matmul(&weights[i].to_kind(Kind::Double).tr()) + down.matmul(&x[2 + 2 * i].tr()) * scales[i]
            };
            Tensor::cat(&[layer(0), layer(1) + bias.to_kind(Kind::Double)], 1)
        };
        all_below(&differences(&inputs, ours, plain), 2e-4);
        // Nothing before it is trained.
        let x = inputs[0].shallow_clone();
        let [a, b] = [&inputs[1], &inputs[2]].map(|factor| factor.copy().set_requires_grad(true));
        let layer = AdaptedLinear { weight: weights[0].shallow_clone(), bias: None, a: &a, b: &b, scale: 1.0 };
        adapted_linears(&x, &[layer]).unwrap()[0].sum(Kind::Float).backward();
        assert!(a.grad().defined() && b.grad().defined() && !x.grad().defined());
    }

    /// One span, written out.
    fn plain_attention(x: &[Tensor], span: &QuerySpan) -> Tensor {
        let rows = |x: &Tensor, start: usize, len: usize| x.narrow(0, start as i64, len as i64);
        let seen = |x: &Tensor| {
            let all = [rows(x, span.prefix, span.prefixed), rows(x, span.own, span.owned)];
            let groups = inputs_heads(x);
            Tensor::cat(&all, 0).repeat_interleave_self_int(groups, 1, None).transpose(0, 1)
        };
        fn inputs_heads(x: &Tensor) -> i64 {
            6 / x.size()[1]
        }
        let (queries, keys) = (span.queries as i64, (span.prefixed + span.owned) as i64);
        let hidden = Tensor::ones([queries, keys], (Kind::Bool, Device::Cpu)).triu(keys - queries + 1);
        let q = rows(&x[0], span.query, span.queries).transpose(0, 1);
        let scores = q.matmul(&seen(&x[1]).transpose(1, 2)) / (x[0].size()[2] as f64).sqrt();
        let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Double);
        weights.matmul(&seen(&x[2])).transpose(0, 1)
    }

    /// Of `queries` queries with six heads over `keys` keys with two.
    fn is_softmax_attention(queries: i64, keys: i64, spans: &[QuerySpan]) {
        let inputs = [[queries, 6, 16], [keys, 2, 16], [keys, 2, 16]].map(|sizes| Tensor::randn(sizes, F32));
        let ready = QuerySpans::new(spans).unwrap();
        let ours = |x: &[Tensor]| span_attention(&x[0], &x[1], &x[2], &ready).unwrap();
        let plain =
            |x: &[Tensor]| Tensor::cat(&spans.iter().map(|span| plain_attention(x, span)).collect::<Vec<_>>(), 0);
        all_below(&differences(&inputs, ours, plain), 1e-4);
    }

    #[test]
    fn attention_of_spans_is_softmax_attention_with_its_gradients() {
        tch::manual_seed(4);
        // A prompt of 250, two responses behind it, and the end of a third with the prompt before it.
        let span = |query, queries, prefixed, own, owned| QuerySpan { query, queries, prefix: 0, prefixed, own, owned };
        let spans = [
            span(0, 250, 0, 0, 250),
            span(250, 30, 250, 250, 30),
            span(280, 1, 250, 280, 1),
            span(281, 5, 250, 281, 9),
        ];
        is_softmax_attention(286, 290, &spans);
    }

    /// As when answers are made side by side: their spans are one query each, and heads that share keys run together.
    #[test]
    fn attention_of_single_queries_is_that_of_spans() {
        tch::manual_seed(7);
        let span = |query, prefix, prefixed, own, owned| QuerySpan { query, queries: 1, prefix, prefixed, own, owned };
        // Two answers behind one prompt, a prompt's own end, a first token, and numbers of keys that four does not divide.
        let spans = [span(0, 0, 250, 250, 30), span(1, 0, 250, 280, 1), span(2, 0, 0, 0, 250), span(3, 0, 0, 281, 1)];
        is_softmax_attention(4, 282, &spans);
    }

    #[test]
    fn spans_that_do_not_fit_are_errors() {
        let span = QuerySpan { query: 0, queries: 3, prefix: 0, prefixed: 0, own: 0, owned: 3 };
        assert!(QuerySpans::new(&[QuerySpan { query: 1, ..span }]).is_err());
        assert!(QuerySpans::new(&[QuerySpan { owned: 2, ..span }]).is_err());
        let spans = QuerySpans::new(&[span]).unwrap();
        let rows = |rows, heads| Tensor::ones([rows, heads, 8], F32);
        assert!(span_attention(&rows(3, 4), &rows(3, 2), &rows(3, 2), &spans).is_ok());
        for (q, k) in [(rows(4, 4), rows(3, 2)), (rows(3, 4), rows(2, 2)), (rows(3, 3), rows(3, 2))] {
            assert!(span_attention(&q, &k, &k, &spans).is_err());
        }
        let wide = rows(3, 2).to_kind(Kind::Double);
        assert!(span_attention(&wide, &wide, &wide, &spans).unwrap_err().to_string().contains("f32"));
    }

    #[test]
    fn rows_of_logits_say_what_libtorch_says() {
        tch::manual_seed(5);
        let mut logits = Tensor::randn([23, 1001], F32) * 4.0;
        let labels = Tensor::randint(1001, [23], (Kind::Int64, Device::Cpu));
        let _ = logits.get(3).index_fill_(0, &labels.narrow(0, 3, 1), 50.0);
        let log_softmax = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
        let expected = [
            log_softmax.gather(1, &labels.unsqueeze(1), false).squeeze_dim(1),
            -(log_softmax.exp() * &log_softmax).sum_dim_intlist([-1].as_slice(), false, Kind::Double),
            logits.argmax(-1, false).eq_tensor(&labels).to_kind(Kind::Double),
            logits.to_kind(Kind::Double).mean_dim([-1].as_slice(), false, Kind::Double),
        ];
        let alone = label_log_probs(&logits, &labels).unwrap();
        let found = softmax_with_statistics(&mut logits, &labels).unwrap();
        let difference = |a: &Tensor, b: &Tensor| (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]);
        for (a, b) in [&found.log_probs, &found.entropy, &found.top1, &found.mean_logit].into_iter().zip(&expected) {
            assert!(difference(a, b) < 2e-5, "{}", difference(a, b));
        }
        assert!(difference(&alone, &expected[0]) < 1e-5 && difference(&logits, &log_softmax.exp()) < 1e-6);
        assert!(found.top1.sum(Kind::Float).double_value(&[]) >= 1.0);
        assert!(label_log_probs(&logits, &(labels + 1000)).is_err());
    }
}
