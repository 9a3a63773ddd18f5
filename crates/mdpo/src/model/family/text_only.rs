//! A language model alone: `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`.

use super::Family;
use crate::Result;
use crate::model::config::{Fields, LanguageConfig};
use crate::model::language::Language;
use crate::model::load::Loader;
use crate::model::{Model, Shape};

pub(super) fn shape(fields: &Fields) -> Result<Shape> {
    Ok(Shape { family: Family::TextOnly, language: LanguageConfig::read(fields)?, vision: None })
}

pub(super) fn load(shape: Shape, mut loader: Loader) -> Result<Model> {
    let language = Language::load(&shape.language, "model.", &mut loader)?;
    let device = loader.device();
    Ok(Model { shape, device, language, vision: None, value_head: None, trainables: loader.finish()? })
}
