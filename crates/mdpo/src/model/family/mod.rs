//! Which parts a checkpoint has and under which names; one file per family.

mod llava;
mod text_only;

use super::Model;
use super::config::{Fields, LANGUAGE_TYPES};
use super::load::Plan;
use crate::Result;
use crate::weights::Checkpoint;
use serde_json::Value;
use std::path::Path;
use tch::{Device, Kind};

/// A family of checkpoints, told by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlavaForConditionalGeneration`.
    Llava,
    /// `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`.
    TextOnly,
}

impl Family {
    fn of(fields: &Fields) -> Result<Self> {
        match fields.get("model_type").and_then(Value::as_str) {
            Some("llava") => Ok(Family::Llava),
            Some(kind) if LANGUAGE_TYPES.contains(&kind) => Ok(Family::TextOnly),
            Some(other) => {
                let what = format!("`{other}` is not supported; supported: llava, {}", LANGUAGE_TYPES.join(", "));
                Err(fields.refuse("model_type", what))
            }
            None => Err(fields.refuse("model_type", "missing")),
        }
    }
}

/// Reads a checkpoint's configuration without its weights.
pub(super) fn shape(folder: &Path) -> Result<super::Shape> {
    let (file, map) = super::config::read(folder)?;
    let fields = Fields::root(&map, &file);
    match Family::of(&fields)? {
        Family::Llava => llava::shape(&fields),
        Family::TextOnly => text_only::shape(&fields),
    }
}

/// Loads the checkpoint of `folder`.
pub(super) fn load(folder: &Path, kind: Kind, device: Device, plan: Plan) -> Result<Model> {
    let shape = shape(folder)?;
    let loader = super::load::Loader::new(Checkpoint::open(folder)?, kind, device, plan);
    match shape.family {
        Family::Llava => llava::load(shape, loader),
        Family::TextOnly => text_only::load(shape, loader),
    }
}
