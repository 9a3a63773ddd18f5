//! One weight: the frozen original and, where it is trained, the f32 copy that moves.

use super::Role;
use tch::{Kind, Tensor};
use torch_ext::Shared;

/// A weight read in two roles.
#[derive(Debug)]
pub struct Param {
    frozen: Shared,
    trained: Option<Shared>,
}

impl Param {
    /// A weight that stays as it is, in the dtype of the activations.
    pub fn frozen(weight: Tensor) -> Self {
        Param { frozen: weight.into(), trained: None }
    }

    /// A weight whose policy moves: an f32 leaf starts at the original's values, the original stays for the reference.
    pub fn trained(weight: Tensor) -> Self {
        let leaf = tch::no_grad(|| weight.to_kind(Kind::Float).copy()).set_requires_grad(true);
        Param { frozen: weight.into(), trained: Some(leaf.into()) }
    }

    /// The weight in the dtype of the activations; the policy's cast stays in the graph.
    pub fn get(&self, role: Role) -> Tensor {
        match (&self.trained, role) {
            (Some(leaf), Role::Policy) => leaf.to_kind(self.frozen.kind()),
            _ => self.frozen.shallow_clone(),
        }
    }

    /// The leaf the optimizer moves.
    pub fn leaf(&self) -> Option<&Tensor> {
        self.trained.as_deref()
    }
}
