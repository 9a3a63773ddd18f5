//! A linear layer, with or without a LoRA adapter (Hu et al., arXiv 2106.09685, eq. 3; scaling and names as in PEFT).

use super::{Param, Pass, Role, precision};
use tch::{Kind, Tensor};
use torch_ext::{AdaptedLinear, Shared};

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
    pub a: Shared,
    /// The up projection.
    pub b: Shared,
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

impl LoraAdapter {
    /// What is added in `role`.
    fn factors(&self, role: Role) -> Option<&LoraWeights> {
        match role {
            Role::Policy => Some(&self.policy),
            Role::Reference => self.reference.as_ref(),
        }
    }

    /// Whether some of the adapter's input is dropped.
    fn drops(&self, pass: Pass) -> bool {
        pass.role == Role::Policy && pass.dropout.is_some() && self.dropout > 0.0
    }
}

impl Linear {
    /// A layer from weight `[out, in]`, bias `[out]` and an adapter.
    pub fn new(weight: Param, bias: Option<Param>, lora: Option<LoraAdapter>) -> Self {
        Linear { weight, bias, lora }
    }

    /// `x` is `[…, in]`, the result `[…, out]`, both in the dtype of the weights.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let [y] = Self::forward_all([self], x, pass);
        y
    }

    /// What [`Linear::forward`] of each layer gives, for layers that read the same `x`.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: &Tensor, pass: Pass) -> [Tensor; N] {
        let adapted: Vec<AdaptedLinear> = layers.iter().filter_map(|layer| layer.adapted(x, pass)).collect();
        if adapted.is_empty() {
            return layers.map(|layer| layer.forward_alone(x, pass));
        }
        let mut together = precision::done(torch_ext::adapted_linears(x, &adapted)).into_iter();
        layers.map(|layer| match layer.adapted(x, pass) {
            Some(_) => together.next().expect("there is one output for each adapted layer"),
            None => layer.forward_alone(x, pass),
        })
    }

    /// The layer where its adapter can be applied in one operation with those of others.
    fn adapted(&self, x: &Tensor, pass: Pass) -> Option<AdaptedLinear<'_>> {
        let lora = self.lora.as_ref()?;
        let plain = x.dim() == 2 && self.leaves().next().is_none() && !lora.drops(pass);
        (plain && precision::has_parts(x)).then_some(())?;
        let LoraWeights { a, b } = lora.factors(pass.role)?;
        let bias = self.bias.as_ref().map(|bias| bias.get(pass.role));
        Some(AdaptedLinear { weight: self.weight.get(pass.role), bias, a, b, scale: lora.scale })
    }

    /// What is trained of weight and bias.
    fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        [Some(&self.weight), self.bias.as_ref()].into_iter().flatten().filter_map(Param::leaf)
    }

    fn forward_alone(&self, x: &Tensor, pass: Pass) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.get(pass.role));
        let mut y = precision::linear(x, &self.weight.get(pass.role), bias.as_ref());
        let Some(lora) = &self.lora else { return y };
        let Some(LoraWeights { a, b }) = lora.factors(pass.role) else { return y };
        let x = if lora.drops(pass) { x.dropout(lora.dropout, true) } else { x.shallow_clone() };
        let kind = y.kind();
        // The scale goes on the small matrix B, so that no extra pass over the activations is needed.
        let b = (&**b * lora.scale).to_kind(kind);
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
