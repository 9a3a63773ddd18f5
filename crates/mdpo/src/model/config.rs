//! `config.json` of a checkpoint, as transformers 4.3x to 5.x write it.
//!
//! A missing field has the default of transformers' configuration class; what is not supported is refused by naming the field.

use crate::nn::RopeScaling;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A section of `config.json` with the name it has in messages.
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    file: &'a Path,
    section: &'a str,
}

impl<'a> Fields<'a> {
    /// The whole file.
    pub fn root(map: &'a Map<String, Value>, file: &'a Path) -> Self {
        Fields { map, file, section: "" }
    }

    /// The object under `key`; an empty one when it is absent.
    pub fn section(&self, key: &'a str) -> Result<Fields<'a>> {
        static EMPTY: std::sync::OnceLock<Map<String, Value>> = std::sync::OnceLock::new();
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(Fields { map: EMPTY.get_or_init(Map::new), file: self.file, section: key }),
            Some(Value::Object(map)) => Ok(Fields { map, file: self.file, section: key }),
            Some(other) => Err(self.refuse(key, format!("expected an object, found `{other}`"))),
        }
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error at `key`.
    pub fn refuse(&self, key: &str, what: impl std::fmt::Display) -> Error {
        let dot = if self.section.is_empty() { "" } else { "." };
        Error::at(self.file.display(), format!("`{}{dot}{key}`: {what}", self.section))
    }

    /// A whole number of at least 1.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|&n| n > 0)
                .map(|n| n as usize)
                .ok_or_else(|| self.refuse(key, format!("expected a whole number of at least 1, found `{value}`"))),
        }
    }

    /// A positive number.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|&x| x > 0.0)
                .ok_or_else(|| self.refuse(key, format!("expected a number above 0, found `{value}`"))),
        }
    }

    /// A flag.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.refuse(key, format!("expected true or false, found `{value}`")))
            }
        }
    }

    /// One of `choices`.
    pub fn choice(&self, key: &str, default: &'a str, choices: &[&str]) -> Result<&'a str> {
        let value = match self.get(key) {
            None => default,
            Some(value) => value.as_str().unwrap_or("(not text)"),
        };
        if choices.contains(&value) {
            return Ok(value);
        }
        Err(self.refuse(key, format!("`{value}` is not supported; supported: {}", choices.join(", "))))
    }

    /// Refuses every one of `keys` that is present and not null, false or empty.
    pub fn refuse_present(&self, keys: &[&str]) -> Result<()> {
        let set =
            |value: &Value| !matches!(value, Value::Bool(false)) && value.as_array().is_none_or(|a| !a.is_empty());
        match keys.iter().find(|key| self.get(key).is_some_and(set)) {
            Some(key) => Err(self.refuse(key, "not supported, expected it to be absent")),
            None => Ok(()),
        }
    }
}

/// Reads `config.json` of the checkpoint folder.
pub fn read(folder: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let file = folder.join("config.json");
    let text = std::fs::read_to_string(&file).map_err(|error| Error::io("read", &file, &error))?;
    let map = serde_json::from_str(&text)
        .map_err(|error| Error::at(file.display(), format!("not a JSON object: {error}")))?;
    Ok((file, map))
}

/// A Llama-like language model.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageConfig {
    /// Width of the hidden states.
    pub width: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Longest sequence the model was made for, a sliding window included; the field it comes from is in `limit_field`.
    pub max_length: usize,
    /// Which field of `config.json` gives `max_length`.
    pub limit_field: &'static str,
    /// Bias of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub out_bias: bool,
    /// Bias in the MLP.
    pub mlp_bias: bool,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

/// What differs between the Llama-like `model_type`s: the defaults of transformers' configuration classes.
struct LanguageDefaults {
    intermediate: usize,
    kv_heads: Option<usize>,
    vocab: usize,
    max_length: usize,
}

/// The `model_type`s a language model can have.
pub const LANGUAGE_TYPES: [&str; 3] = ["llama", "mistral", "qwen2"];

impl LanguageConfig {
    /// Reads the fields of a language model (`text_config`, or the whole file of a text-only checkpoint).
    pub fn read(fields: &Fields) -> Result<Self> {
        let kind = fields.choice("model_type", "llama", &LANGUAGE_TYPES)?;
        let defaults = match kind {
            "mistral" => {
                LanguageDefaults { intermediate: 14336, kv_heads: Some(8), vocab: 32000, max_length: 4096 * 32 }
            }
            "qwen2" => LanguageDefaults { intermediate: 22016, kv_heads: Some(32), vocab: 151_936, max_length: 32768 },
            _ => LanguageDefaults { intermediate: 11008, kv_heads: None, vocab: 32000, max_length: 2048 },
        };
        fields.choice("hidden_act", "silu", &["silu"])?;
        fields.refuse_present(&["quantization_config", "num_local_experts"])?;
        if fields.size("pretraining_tp", 1)? != 1 {
            return Err(fields.refuse("pretraining_tp", "only 1 is supported"));
        }
        let width = fields.size("hidden_size", 4096)?;
        let heads = fields.size("num_attention_heads", 32)?;
        let kv_heads = fields.size("num_key_value_heads", defaults.kv_heads.unwrap_or(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.refuse("num_key_value_heads", format!("{kv_heads} does not divide {heads} heads")));
        }
        let head_dim = fields.size("head_dim", (width / heads).max(1))?;
        if !head_dim.is_multiple_of(2) {
            return Err(fields.refuse("head_dim", format!("expected an even number, found {head_dim}")));
        }
        let attention_bias = fields.flag("attention_bias", false)?;
        let (rope_theta, rope_scaling) = rope(fields)?;
        let (max_length, limit_field) = length_limit(fields, kind, defaults.max_length)?;
        Ok(LanguageConfig {
            width,
            intermediate: fields.size("intermediate_size", defaults.intermediate)?,
            layers: fields.size("num_hidden_layers", 32)?,
            heads,
            kv_heads,
            head_dim,
            vocab: fields.size("vocab_size", defaults.vocab)?,
            eps: fields.number("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            max_length,
            limit_field,
            qkv_bias: attention_bias || kind == "qwen2",
            out_bias: attention_bias && kind != "qwen2",
            mlp_bias: fields.flag("mlp_bias", false)?,
            tied: fields.flag("tie_word_embeddings", false)?,
        })
    }
}

/// A sliding window is exact up to its own length, so it is a limit on the length of a row.
fn length_limit(fields: &Fields, kind: &str, default: usize) -> Result<(usize, &'static str)> {
    let positions = fields.size("max_position_embeddings", default)?;
    let slides = match kind {
        "mistral" => true,
        "qwen2" => fields.flag("use_sliding_window", false)?,
        _ => false,
    };
    // MistralConfig's own default is 4096; files that mean none say null.
    let absent = kind == "mistral" && !fields.map.contains_key("sliding_window");
    match fields.get("sliding_window") {
        Some(_) if slides => {
            let window = fields.size("sliding_window", positions)?;
            Ok(if window < positions { (window, "sliding_window") } else { (positions, "max_position_embeddings") })
        }
        None if absent && positions > 4096 => Ok((4096, "sliding_window")),
        _ => Ok((positions, "max_position_embeddings")),
    }
}

/// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn rope(fields: &Fields) -> Result<(f64, RopeScaling)> {
    let (key, section) = if fields.get("rope_parameters").is_some() {
        ("rope_parameters", fields.section("rope_parameters")?)
    } else {
        ("rope_scaling", fields.section("rope_scaling")?)
    };
    let theta = section.number("rope_theta", fields.number("rope_theta", 10000.0)?)?;
    if section.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)?)? != 1.0 {
        return Err(section.refuse("partial_rotary_factor", "only 1 is supported"));
    }
    let name = section.get("rope_type").or(section.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match name {
        // `dynamic` stretches only beyond the trained length, which no row may exceed.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required(&section, "factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: required(&section, "factor")?,
            low: required(&section, "low_freq_factor")?,
            high: required(&section, "high_freq_factor")?,
            original: required(&section, "original_max_position_embeddings")?,
        },
        other => {
            let what = format!("rope type `{other}` is not supported; supported: default, linear, dynamic, llama3");
            return Err(fields.refuse(key, what));
        }
    };
    Ok((theta, scaling))
}

fn required(fields: &Fields, key: &str) -> Result<f64> {
    match fields.get(key) {
        Some(_) => fields.number(key, 1.0),
        None => Err(fields.refuse(key, "missing")),
    }
}

/// A CLIP vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the hidden states.
    pub width: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Side of the square image in pixels.
    pub image: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Activation of the MLP.
    pub activation: Activation,
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)`.
    QuickGelu,
    /// The exact one, with the error function.
    Gelu,
}

impl VisionConfig {
    /// Reads `vision_config`.
    pub fn read(fields: &Fields) -> Result<Self> {
        fields.choice("model_type", "clip_vision_model", &["clip_vision_model"])?;
        let absent = fields.map.is_empty();
        // LlavaConfig without a vision_config means CLIP ViT-L/14 at 336 pixels; CLIPVisionConfig's own defaults are ViT-B/32.
        let default = |large: usize, base: usize| if absent { large } else { base };
        let activation = match fields.choice("hidden_act", "quick_gelu", &["quick_gelu", "gelu"])? {
            "gelu" => Activation::Gelu,
            _ => Activation::QuickGelu,
        };
        let config = VisionConfig {
            width: fields.size("hidden_size", default(1024, 768))?,
            intermediate: fields.size("intermediate_size", default(4096, 3072))?,
            layers: fields.size("num_hidden_layers", default(24, 12))?,
            heads: fields.size("num_attention_heads", default(16, 12))?,
            image: fields.size("image_size", default(336, 224))?,
            patch: fields.size("patch_size", default(14, 32))?,
            eps: fields.number("layer_norm_eps", 1e-5)?,
            activation,
        };
        if !config.width.is_multiple_of(config.heads) {
            return Err(
                fields.refuse("num_attention_heads", format!("{} does not divide {}", config.heads, config.width))
            );
        }
        Ok(config)
    }

    /// Patches of one image.
    pub fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }
}
