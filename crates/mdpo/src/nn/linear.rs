//! A linear layer, with or without a LoRA adapter (Hu et al., arXiv 2106.09685, eq. 3; scaling and names as in PEFT).

use super::{Param, Pass, Role, precision};
use tch::{Kind, Tensor};

/// `y = x Wᵀ + b`, plus `scale · dropout(x) Aᵀ Bᵀ` where an adapter is attached.
#[derive(Debug)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
    lora: Option<LoraAdapter>,
}

/// The two factors of an adapter, f32: A `[rank, in]` and B `[out, rank]`.
#[derive(Debug)]
pub struct LoraWeights {
    /// The down projection.
    pub a: Tensor,
    /// The up projection.
    pub b: Tensor,
}

/// An adapter in its two roles.
#[derive(Debug)]
pub struct LoraAdapter {
    /// What is trained (or applied, when nothing is).
    pub policy: LoraWeights,
    /// What the reference adds: nothing when the reference is the bare model.
    pub reference: Option<LoraWeights>,
    /// alpha / r, or alpha / √r with rank stabilisation.
    pub scale: f64,
    /// Share of the adapter's input that is dropped while training.
    pub dropout: f64,
}

impl Linear {
    /// A layer from weight `[out, in]`, bias `[out]` and an adapter.
    pub fn new(weight: Param, bias: Option<Param>, lora: Option<LoraAdapter>) -> Self {
        Linear { weight, bias, lora }
    }

    /// `x` is `[…, in]`, the result `[…, out]`, both in the dtype of the weights.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.get(pass.role));
        let mut y = precision::linear(x, &self.weight.get(pass.role), bias.as_ref());
        let Some(lora) = &self.lora else { return y };
        let factors = match pass.role {
            Role::Policy => Some(&lora.policy),
            Role::Reference => lora.reference.as_ref(),
        };
        let Some(LoraWeights { a, b }) = factors else { return y };
        let dropping = pass.role == Role::Policy && pass.dropout.is_some() && lora.dropout > 0.0;
        let x = if dropping { x.dropout(lora.dropout, true) } else { x.shallow_clone() };
        let kind = y.kind();
        // The scale goes on the small matrix B, so that no extra pass over the activations is needed.
        let b = (b * lora.scale).to_kind(kind);
        let down = precision::linear(&x, &a.to_kind(kind), None);
        match x.dim() == 2 && precision::of_products(kind, x.device()) == kind {
            // Added by the product itself: nothing reads `y` before.
            true => y.addmm_(&down, &b.tr()),
            false => y + precision::linear(&down, &b, None),
        }
    }

    /// The weight `[out, in]` of `role` in f32, without the adapter.
    pub fn weight(&self, role: Role) -> Tensor {
        self.weight.get(role).to_kind(Kind::Float)
    }

    /// The weight as a parameter.
    pub fn param(&self) -> &Param {
        &self.weight
    }

    /// The adapter.
    pub fn lora(&self) -> Option<&LoraAdapter> {
        self.lora.as_ref()
    }
}
