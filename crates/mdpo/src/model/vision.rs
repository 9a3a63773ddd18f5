//! CLIP's vision tower (Radford et al., arXiv 2103.00020) as LLaVA reads it: hidden states of chosen layers, never the last norm.

use super::config::{Activation, VisionConfig};
use super::load::Loader;
use crate::Result;
use crate::nn::precision::{Mask, attention, of_products};
use crate::nn::{LayerNorm, Linear, Param, Pass};
use tch::Tensor;

/// Which hidden states are the features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Indices into the hidden states, of which there is one more than layers (0 is the embedding); joined along the width.
    pub layers: Vec<usize>,
    /// Whether the class token stays (`full`) or goes (`default`).
    pub class_token: ClassToken,
}

/// What becomes of the class token (`vision_feature_select_strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassToken {
    /// `default`.
    Dropped,
    /// `full`.
    Kept,
}

/// The tower up to the last layer that is read.
#[derive(Debug)]
pub struct Tower {
    patches: Param,
    class: Param,
    positions: Param,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    selection: Selection,
    patch: i64,
}

#[derive(Debug)]
struct Layer {
    heads: i64,
    activation: Activation,
    attention_norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Tower {
    /// Takes the weights below `prefix`. Layers behind the last one that is read are checked for shape and left alone.
    pub fn load(config: &VisionConfig, selection: Selection, prefix: &str, loader: &mut Loader) -> Result<Self> {
        let (width, patch) = (config.width as i64, config.patch as i64);
        let patches = loader.param(&format!("{prefix}embeddings.patch_embedding.weight"), &[width, 3, patch, patch])?;
        let class = loader.param(&format!("{prefix}embeddings.class_embedding"), &[width])?;
        let places = config.patches() as i64 + 1;
        let positions = loader.param(&format!("{prefix}embeddings.position_embedding.weight"), &[places, width])?;
        let read = selection.layers.iter().copied().max().unwrap_or(0);
        // The misspelling is the checkpoint's.
        let first_norm = loader.layer_norm(&format!("{prefix}pre_layrnorm"), width, config.eps)?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = format!("{prefix}encoder.layers.{index}.");
            if index < read {
                layers.push(Layer::load(config, &name, loader)?);
            } else {
                loader.untrained(|loader| Layer::load(config, &name, loader))?;
            }
        }
        loader.untrained(|loader| loader.layer_norm(&format!("{prefix}post_layernorm"), width, config.eps))?;
        Ok(Tower { patches, class, positions, first_norm, layers, selection, patch })
    }

    /// Features `[images, tokens, width]` of pixels `[images, 3, height, width]`.
    pub fn forward(&self, pixels: &Tensor, pass: Pass) -> Tensor {
        let images = pixels.size()[0];
        let (kind, products) = (pixels.kind(), of_products(pixels.kind(), pixels.device()));
        let kernel = self.patches.get(pass.role).to_kind(products);
        let patches = pixels.to_kind(products).conv2d::<&Tensor>(&kernel, None, self.patch, 0, 1, 1);
        let patches = patches.to_kind(kind).flatten(2, 3).transpose(1, 2);
        let class = self.class.get(pass.role).view([1, 1, -1]).expand([images, 1, -1], false);
        let x = Tensor::cat(&[class, patches], 1) + self.positions.get(pass.role);
        let mut states = vec![self.first_norm.forward(&x, pass)];
        for layer in &self.layers {
            states.push(layer.forward(&states[states.len() - 1], pass));
        }
        let chosen: Vec<&Tensor> = self.selection.layers.iter().map(|&layer| &states[layer]).collect();
        let features = Tensor::cat(&chosen, -1);
        match self.selection.class_token {
            ClassToken::Kept => features,
            ClassToken::Dropped => features.narrow(1, 1, features.size()[1] - 1),
        }
    }
}

impl Layer {
    fn load(config: &VisionConfig, prefix: &str, loader: &mut Loader) -> Result<Self> {
        let (width, inner) = (config.width as i64, config.intermediate as i64);
        let mut linear = |name: &str, out, input| loader.linear(&format!("{prefix}{name}"), out, input, true);
        let query = linear("self_attn.q_proj", width, width)?;
        let key = linear("self_attn.k_proj", width, width)?;
        let value = linear("self_attn.v_proj", width, width)?;
        let out = linear("self_attn.out_proj", width, width)?;
        let (up, down) = (linear("mlp.fc1", inner, width)?, linear("mlp.fc2", width, inner)?);
        let attention_norm = loader.layer_norm(&format!("{prefix}layer_norm1"), width, config.eps)?;
        let mlp_norm = loader.layer_norm(&format!("{prefix}layer_norm2"), width, config.eps)?;
        let (heads, activation) = (config.heads as i64, config.activation);
        Ok(Layer { heads, activation, attention_norm, query, key, value, out, mlp_norm, up, down })
    }

    fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let (images, tokens, width) = x.size3().expect("the tower's states are [images, tokens, width]");
        let normed = self.attention_norm.forward(x, pass);
        let heads = |linear: &Linear| {
            linear.forward(&normed, pass).view([images, tokens, self.heads, width / self.heads]).transpose(1, 2)
        };
        let attended = attention(&heads(&self.query), &heads(&self.key), &heads(&self.value), Mask::None);
        let attended = attended.transpose(1, 2).reshape([images, tokens, width]);
        let x = x + self.out.forward(&attended, pass);
        let inner = self.up.forward(&self.mlp_norm.forward(&x, pass), pass);
        let inner = match self.activation {
            Activation::QuickGelu => &inner * (&inner * 1.702).sigmoid(),
            Activation::Gelu => inner.gelu("none"),
        };
        x + self.down.forward(&inner, pass)
    }
}
