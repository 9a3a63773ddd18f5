//! How much memory a run will need, from the shapes alone.

use super::Inputs;
use crate::config::{Dtype, GradientCheckpointing, Run};
use crate::nn::precision::of_products;
use tch::Device;

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// The checkpoint's weights in the recipe's precision.
    pub weights: u64,
    /// Trained weights, their gradients and AdamW's moments, f32.
    pub training: u64,
    /// What the largest micro-batch keeps for its backward pass, and what its largest layer needs.
    pub activations: u64,
    /// One chunk of logits with its softmax, and the head in f32.
    pub logits: u64,
    /// The program with libtorch, where it computes on a CPU.
    pub process: u64,
}

/// What a process takes on a CPU before it has a model (150 MB were measured), and what lies between tensors.
const PROCESS: u64 = 200 << 20;

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.training + self.activations + self.logits + self.process
    }
}

/// The estimate for a run that trains `trained` parameters; the largest micro-batch is taken as full of the longest example,
/// or as full as its budget allows.
pub fn estimate(run: &Run, inputs: &Inputs, trained: usize) -> Estimate {
    let language = &inputs.shape.language;
    let width = match run.model.dtype {
        Dtype::F32 => 4,
        Dtype::Bf16 | Dtype::F16 => 2,
    };
    let (hidden, inner, layers) = (language.width as u64, language.intermediate as u64, language.layers as u64);
    let queries = (language.heads * language.head_dim) as u64;
    let keys = (language.kv_heads * language.head_dim) as u64;
    let per_layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * inner + 2 * hidden;
    let tables = if language.tied { 1 } else { 2 } * language.vocab as u64 * hidden;
    let mut parameters = layers * per_layer + tables + hidden;
    if let Some(vision) = &inputs.shape.vision {
        let (w, i) = (vision.tower.width as u64, vision.tower.intermediate as u64);
        parameters += vision.tower.layers as u64 * (4 * w * w + 2 * w * i) + w * hidden + hidden * hidden;
    }
    let (longest, examples) = (inputs.report.longest.0, inputs.examples.len().max(1));
    let fullest = |count: usize| longest * count.min(examples);
    let tokens = match run.batch.max_tokens {
        None => fullest(run.batch.per_device),
        Some(budget) => fullest(run.batch.per_device * run.batch.accumulation).min(budget.max(longest)),
    } as u64;
    // A layer keeps its norms (in f32), projections, rotated heads, attention output and the three tensors of the MLP.
    let one_layer = tokens * (width * (4 * hidden + 3 * queries + 4 * keys + 4 * inner) + 8 * hidden);
    // Where products are widened to f32, attention keeps its factors so; those of a layer are widened when their turn comes.
    let (kind, device) = (super::kind(run.model.dtype), super::device(run.model.device).unwrap_or(Device::Cpu));
    let widened = of_products(kind, device) != kind;
    let (one_layer, factors) = match widened {
        true => (one_layer + tokens * 4 * (2 * queries + 2 * keys), 4 * (hidden + tokens) * inner),
        false => (one_layer, 0),
    };
    let activations = match run.batch.checkpointing {
        GradientCheckpointing::None => layers * one_layer + factors,
        GradientCheckpointing::Layers => layers * tokens * hidden * width + one_layer + factors,
    };
    let vocab = language.vocab as u64;
    Estimate {
        weights: parameters * width,
        training: trained as u64 * 16,
        activations,
        logits: 512 * vocab * 4 * 3 + vocab * hidden * 4,
        process: if device == Device::Cpu { PROCESS } else { 0 },
    }
}

/// Bytes for people: `1.2 GiB`.
pub fn bytes(count: u64) -> String {
    let (unit, size) = [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| count >= 1 << shift)
        .map_or(("B", 1.0), |(unit, shift)| (unit, (1u64 << shift) as f64));
    format!("{:.1} {unit}", count as f64 / size)
}
