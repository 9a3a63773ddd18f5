//! LLaVA-1.5's projector: two linear layers with a GELU between (Liu et al., arXiv 2310.03744).

use super::load::Loader;
use crate::Result;
use crate::nn::{Linear, Pass};
use tch::Tensor;

/// From the tower's features to the language model's width.
#[derive(Debug)]
pub struct Projector {
    first: Linear,
    second: Linear,
}

impl Projector {
    /// Takes the weights below `prefix`.
    pub fn load(prefix: &str, features: i64, width: i64, bias: bool, loader: &mut Loader) -> Result<Self> {
        let first = loader.linear(&format!("{prefix}linear_1"), width, features, bias)?;
        let second = loader.linear(&format!("{prefix}linear_2"), width, width, bias)?;
        Ok(Projector { first, second })
    }

    /// `[…, features]` to `[…, width]`.
    pub fn forward(&self, features: &Tensor, pass: Pass) -> Tensor {
        self.second.forward(&self.first.forward(features, pass).gelu("none"), pass)
    }
}
