//! Normalisation over the last dimension, with transformers' rounding.

use super::{Param, Pass, precision};
use tch::{Kind, Tensor};

/// Root-mean-square norm (Zhang & Sennrich 2019): the mean in f32, the result rounded before the weight, as `LlamaRMSNorm` does; on CUDA it is
/// rounded once, after the weight.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Param,
    eps: f64,
}

impl RmsNorm {
    /// A norm with weight `[width]`.
    pub fn new(weight: Param, eps: f64) -> Self {
        RmsNorm { weight, eps }
    }

    /// `x` is `[…, width]`.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let weight = self.weight.get(pass.role);
        if precision::has_parts(x) && weight.kind() == x.kind() {
            return precision::done(torch_ext::rms_norm(x, &weight, self.eps));
        }
        let kind = x.kind();
        let x = x.to_kind(Kind::Float);
        let scale = (x.square().mean_dim([-1].as_slice(), true, Kind::Float) + self.eps).rsqrt();
        (x * scale).to_kind(kind) * weight
    }
}

/// Layer norm with weight and bias.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Param,
    bias: Param,
    eps: f64,
}

impl LayerNorm {
    /// A norm with weight and bias `[width]`.
    pub fn new(weight: Param, bias: Param, eps: f64) -> Self {
        LayerNorm { weight, bias, eps }
    }

    /// `x` is `[…, width]`.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let (weight, bias) = (self.weight.get(pass.role), self.bias.get(pass.role));
        x.layer_norm(weight.size(), Some(&weight), Some(&bias), self.eps, false)
    }
}
