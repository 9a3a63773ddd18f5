//! LLaVA-1.5 (`LlavaForConditionalGeneration`; Liu et al., arXiv 2310.03744): CLIP tower, two-layer projector, Llama-like model.

use super::Family;
use crate::Result;
use crate::config::Part;
use crate::model::config::{Fields, LanguageConfig, VisionConfig};
use crate::model::language::Language;
use crate::model::load::Loader;
use crate::model::projector::Projector;
use crate::model::vision::{ClassToken, Selection, Tower};
use crate::model::{Model, Shape, Vision, VisionShape};
use serde_json::Value;

/// `LlavaConfig`'s default image token.
const IMAGE_TOKEN: u64 = 32000;

pub(super) fn shape(fields: &Fields) -> Result<Shape> {
    fields.choice("projector_hidden_act", "gelu", &["gelu"])?;
    fields.refuse_present(&["quantization_config"])?;
    let mut language = LanguageConfig::read(&fields.section("text_config")?)?;
    // The outer flag is what transformers ties by; the inner one is older.
    language.tied = fields.flag("tie_word_embeddings", language.tied)?;
    let tower = VisionConfig::read(&fields.section("vision_config")?)?;
    let class_token = match fields.choice("vision_feature_select_strategy", "default", &["default", "full"])? {
        "full" => ClassToken::Kept,
        _ => ClassToken::Dropped,
    };
    let selection = Selection { layers: feature_layers(fields, tower.layers)?, class_token };
    let image_token = match fields.get("image_token_index").or(fields.get("image_token_id")) {
        None => IMAGE_TOKEN,
        Some(value) => value
            .as_u64()
            .ok_or_else(|| fields.refuse("image_token_index", format!("expected a token id, found `{value}`")))?,
    };
    let projector_bias = fields.flag("multimodal_projector_bias", true)?;
    let vision = VisionShape { tower, selection, image_token: image_token as u32, projector_bias };
    Ok(Shape { family: Family::Llava, language, vision: Some(vision) })
}

/// `vision_feature_layer`: an index or a list of them into the hidden states, negative ones from the end.
fn feature_layers(fields: &Fields, layers: usize) -> Result<Vec<usize>> {
    let key = "vision_feature_layer";
    let states = layers as i64 + 1;
    let index = |value: &Value| {
        let place = value.as_i64().map(|i| if i < 0 { states + i } else { i }).filter(|i| (0..states).contains(i));
        let expected = format!("expected an index into {states} hidden states, found `{value}`");
        place.map(|i| i as usize).ok_or_else(|| fields.refuse(key, expected))
    };
    match fields.get(key) {
        None => index(&Value::from(-2)),
        Some(Value::Array(list)) if !list.is_empty() => return list.iter().map(index).collect(),
        Some(value) => index(value),
    }
    .map(|layer| vec![layer])
}

pub(super) fn load(shape: Shape, mut loader: Loader) -> Result<Model> {
    let vision = shape.vision.clone().expect("LLaVA's shape has a vision part");
    loader.enter(Part::VisionTower);
    let tower = Tower::load(&vision.tower, vision.selection.clone(), "model.vision_tower.", &mut loader)?;
    loader.enter(Part::Projector);
    let features = (vision.tower.width * vision.selection.layers.len()) as i64;
    let width = shape.language.width as i64;
    let bias = vision.projector_bias;
    let projector = Projector::load("model.multi_modal_projector.", features, width, bias, &mut loader)?;
    loader.enter(Part::LanguageModel);
    let language = Language::load(&shape.language, "model.language_model.", &mut loader)?;
    let device = loader.device();
    Ok(Model {
        shape,
        device,
        language,
        vision: Some(Vision { tower, projector }),
        value_head: None,
        trainables: loader.finish()?,
    })
}
