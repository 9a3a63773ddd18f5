//! In which precision matrix products are computed.
//!
//! libtorch multiplies bf16 on x86 CPUs with oneDNN, which needs AVX-512, and f16 with AVX-512-FP16; without them it falls back to a
//! plain loop that is hundreds of times slower. There, factors are widened to f32 for the product and its result is rounded, which is
//! what the fast kernels do inside (f32 accumulation, one rounding).

use tch::{Device, Kind, TchError, Tensor};
use torch_ext::QuerySpans;

/// The precision in which factors of `kind` are multiplied on `device`.
pub(crate) fn of_products(kind: Kind, device: Device) -> Kind {
    match (kind, device) {
        (Kind::BFloat16, Device::Cpu) if !multiplies_bf16() => Kind::Float,
        (Kind::Half, Device::Cpu) if !multiplies_f16() => Kind::Float,
        _ => kind,
    }
}

#[cfg(target_arch = "x86_64")]
fn multiplies_bf16() -> bool {
    is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq")
}

#[cfg(target_arch = "x86_64")]
fn multiplies_f16() -> bool {
    multiplies_bf16() && is_x86_feature_detected!("avx512fp16")
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_bf16() -> bool {
    true
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_f16() -> bool {
    true
}

/// `x Wᵀ + b` in the precision of products, rounded to the precision of `x`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    if of_products(x.kind(), x.device()) == x.kind() {
        return x.linear(weight, bias);
    }
    done(torch_ext::wide_linear(x, weight, bias))
}

/// Attention of `[…, heads, tokens, head_dim]` in the precision of products, rounded to the precision of `q`; `mask` is additive.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Tensor {
    let (kind, products) = (q.kind(), of_products(q.kind(), q.device()));
    let grouped = q.size()[q.dim() - 3] != k.size()[k.dim() - 3];
    let (mask, causal) = match mask {
        Mask::None => (None, false),
        Mask::Causal => (None, true),
        Mask::Additive(mask) => (Some(mask.to_kind(products)), false),
    };
    let wide = |x: &Tensor| x.to_kind(products);
    let out = Tensor::scaled_dot_product_attention(&wide(q), &wide(k), &wide(v), mask, 0.0, causal, None, grouped);
    out.to_kind(kind)
}

/// Whether tensors like `x` have the operations of [`torch_ext::has_fused`], which are for f32 on a CPU.
pub(crate) fn is_fused(x: &Tensor) -> bool {
    x.kind() == Kind::Float && x.device() == Device::Cpu && torch_ext::has_fused()
}

/// Whether the parts of a layer are operations of `torch_ext` for tensors like `x`: everywhere but on a CPU in kinds other than f32, where
/// the formulas are computed step by step with transformers' rounding.
pub(crate) fn has_parts(x: &Tensor) -> bool {
    is_fused(x) || matches!(x.device(), Device::Cuda(_))
}

/// Attention of spans where [`is_fused`] holds in the precision of products, rounded to the precision of `q`.
pub(crate) fn span_attention(q: &Tensor, k: &Tensor, v: &Tensor, spans: &QuerySpans) -> Option<Tensor> {
    let (kind, products) = (q.kind(), of_products(q.kind(), q.device()));
    let [q, k, v] = [q, k, v].map(|x| x.to_kind(products));
    is_fused(&q).then(|| done(torch_ext::span_attention(&q, &k, &v, spans)).to_kind(kind))
}

/// A result of `torch_ext`, whose errors are treated like those of every operation of tch; the step turns a panic into an error.
pub(crate) fn done<T>(found: Result<T, TchError>) -> T {
    found.unwrap_or_else(|error| panic!("{error}"))
}

/// What a query does not see.
pub(crate) enum Mask<'a> {
    /// It sees every key.
    None,
    /// It sees its own key and those before; as many queries as keys.
    Causal,
    /// 0 where it sees, −∞ where it does not.
    Additive(&'a Tensor),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_bf16_are_those_of_f32_rounded_once() {
        let options = (Kind::BFloat16, Device::Cpu);
        tch::manual_seed(1);
        let (x, w) = (Tensor::randn([5, 64], options), Tensor::randn([7, 64], options));
        let exact = x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double).tr());
        let found = linear(&x, &w, None);
        assert_eq!(found.kind(), Kind::BFloat16);
        let error = ((found.to_kind(Kind::Double) - &exact) / exact.abs().clamp_min(1.0)).abs().max();
        assert!(error.double_value(&[]) < 1.0 / 128.0, "{error:?}");
    }
}
