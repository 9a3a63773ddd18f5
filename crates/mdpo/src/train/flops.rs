//! How many floating-point operations a micro-batch takes: two per multiplication of matrix products, everything else left out.
//!
//! Counted is what is needed, not what is computed twice: a forward pass that gradient checkpointing repeats counts once, so that a
//! share of the machine's peak is a share of useful work (model FLOPs, as in PaLM, arXiv 2204.02311, appendix B). What a frozen weight
//! saves in the backward pass (no gradient of its own) and what the shared prompt saves are not counted either.

use crate::model::load::Trainable;
use crate::model::{Model, Shape};
use crate::objective::Needs;
use crate::text::pack::PackedBatch;
use serde::{Deserialize, Serialize};

/// Operations by stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// The vision tower, each distinct image once.
    pub vision: f64,
    /// The reference's forward pass.
    pub reference: f64,
    /// The policy's forward pass, and the head's gradient with respect to its hidden states.
    pub forward: f64,
    /// The backward pass.
    pub backward: f64,
}

impl Flops {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.vision + self.reference + self.forward + self.backward
    }

    /// Adds those of another micro-batch.
    pub fn add(&mut self, other: &Flops) {
        self.vision += other.vision;
        self.reference += other.reference;
        self.forward += other.forward;
        self.backward += other.backward;
    }
}

/// Those of one micro-batch with `images` distinct images; `reference` is the part of the batch that the reference had to compute.
pub fn of(model: &Model, batch: &PackedBatch, images: usize, reference: Option<&PackedBatch>, needs: Needs) -> Flops {
    let shape = &model.shape;
    let policy = Passes::of(shape, batch);
    let adapters = Adapters::of(&model.trainables, shape);
    // A gradient with respect to the input of every product; the first layer's input has none under LoRA, which is left uncounted.
    let inputs = policy.linear + policy.attention * 2.5;
    let weights = if adapters.lora > 0.0 { 2.0 * adapters.lora } else { adapters.full };
    let tokens = batch.ids.len() as f64;
    Flops {
        vision: images as f64 * tower(shape),
        reference: reference.filter(|_| needs.reference).map_or(0.0, |batch| {
            let passes = Passes::of(shape, batch);
            passes.linear + passes.attention + passes.head
        }),
        forward: policy.linear + policy.attention + 2.0 * policy.head + adapters.lora * tokens,
        backward: inputs + weights * tokens,
    }
}

/// One forward pass through the language model.
struct Passes {
    linear: f64,
    attention: f64,
    head: f64,
}

impl Passes {
    fn of(shape: &Shape, batch: &PackedBatch) -> Self {
        let language = &shape.language;
        let (width, inner) = (language.width as f64, language.intermediate as f64);
        let queries = (language.heads * language.head_dim) as f64;
        let keys = (language.kv_heads * language.head_dim) as f64;
        let (key_value, rest) = (2.0 * width * keys, 2.0 * width * queries + 3.0 * width * inner);
        let (tokens, predictors) = (batch.ids.len() as f64, batch.predictors().len() as f64);
        let layers = language.layers as f64;
        // The last layer has keys and values of every token, all else only where a label is predicted.
        let linear = 2.0 * ((layers - 1.0) * tokens * (key_value + rest) + tokens * key_value + predictors * rest);
        let seen = |(prefix, len): (f64, f64)| len * prefix + len * (len + 1.0) / 2.0;
        let segments = batch.segments.iter();
        let pairs: f64 = segments.map(|s| seen((s.prefix.map_or(0, |(_, len)| len) as f64, s.len as f64))).sum::<f64>();
        let labels = batch.label_count() as f64;
        Passes { linear, attention: 4.0 * queries * pairs * layers, head: 2.0 * labels * width * language.vocab as f64 }
    }
}

/// Operations per token of what is trained.
struct Adapters {
    /// The products with the adapters' factors.
    lora: f64,
    /// The gradients of weights that are trained in full.
    full: f64,
}

impl Adapters {
    fn of(trainables: &[Trainable], shape: &Shape) -> Self {
        let sum = |pick: &dyn Fn(&Trainable) -> bool| -> f64 {
            trainables.iter().filter(|t| pick(t)).map(|t| 2.0 * t.leaf.numel() as f64).sum()
        };
        let is_lora = |t: &Trainable| t.name.contains("lora_");
        let table = shape.language.vocab as i64;
        // Tables and the head are touched at few positions.
        let is_layer = |t: &Trainable| !is_lora(t) && t.leaf.dim() == 2 && t.leaf.size()[0] != table;
        Adapters { lora: sum(&is_lora), full: sum(&is_layer) }
    }
}

/// The tower's forward pass over one image, up to the last layer that is read, and the projector's.
fn tower(shape: &Shape) -> f64 {
    let Some(vision) = &shape.vision else { return 0.0 };
    let tower = &vision.tower;
    let (width, inner, tokens) = (tower.width as f64, tower.intermediate as f64, tower.patches() as f64 + 1.0);
    let layers = vision.selection.layers.iter().max().copied().unwrap_or(tower.layers) as f64;
    let layer = 2.0 * tokens * (4.0 * width * width + 2.0 * width * inner) + 4.0 * width * tokens * tokens;
    let hidden = shape.language.width as f64;
    let projector = 2.0 * tokens * (width * vision.selection.layers.len() as f64 * hidden + hidden * hidden);
    2.0 * tokens * 3.0 * (tower.patch * tower.patch) as f64 * width + layers * layer + projector
}
