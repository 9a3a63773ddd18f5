//! 5b: the layers that every model is made of.
//!
//! A layer holds its weights once. What is trained lies beside the frozen original, so that the reference is the same layer read in
//! another [`Role`]: no second model, no swapping.

mod attention;
mod gate;
mod linear;
mod norm;
mod param;
pub(crate) mod precision;
mod rope;

pub use attention::{Layout, Span, attend};
pub use gate::swiglu;
pub use linear::{Linear, LoraAdapter, LoraWeights};
pub use norm::{LayerNorm, RmsNorm};
pub use param::Param;
pub use rope::{Rope, RopeScaling};

/// Whose weights a forward pass reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What is being trained.
    Policy,
    /// What it is compared against: the weights before training.
    Reference,
}

/// What a forward pass needs to know besides its input.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Whose weights.
    pub role: Role,
    /// Seed of the adapters' dropout; nothing drops without one.
    pub dropout: Option<u64>,
}

impl Pass {
    /// A pass without dropout.
    pub fn of(role: Role) -> Self {
        Pass { role, dropout: None }
    }

    /// Seeds libtorch's generator for layer `index`, so that computing the layer again drops the same entries.
    pub fn enter_layer(&self, index: usize) {
        if let (Role::Policy, Some(seed)) = (self.role, self.dropout) {
            tch::manual_seed((seed.wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(index as u64 + 1)) >> 1) as i64);
        }
    }
}
