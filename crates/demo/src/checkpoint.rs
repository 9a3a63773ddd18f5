//! A fresh checkpoint in Hugging Face's layout: LLaVA's architecture, 1.7 million random weights.
//!
//! CLIP tower (64 px, patch 8, so 64 image tokens; its last layer is what the projector sees), two-layer projector, Llama with
//! a tied head. Files and tensor names are those transformers 5.23 writes.

use crate::scenes::{CANVAS, normal};
use crate::tokenizer::{self, BOS, EOS, IMAGE, PAD};
use mdpo::weights::header::Entry;
use mdpo::weights::{SafetensorsFile, write_safetensors};
use mdpo::{Error, Result};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

const PATCH: usize = 8;
const WIDTH: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const TOWER_INNER: usize = 512;
const LANGUAGE_INNER: usize = 384;
const MAX_POSITIONS: usize = 512;

/// Writes the checkpoint into a folder, which is made if need be; weights are drawn from the seed.
///
/// # Errors
/// The folder or a file in it cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<()> {
    write_with(folder, &weights(seed)?)
}

/// Writes the checkpoint that is shipped: trained on captions of scenes whose partners stand together nine times out of ten, so that
/// it describes well and names partners that are not there.
///
/// # Errors
/// The folder or a file in it cannot be written.
pub fn write_trained(folder: &Path) -> Result<()> {
    write_with(folder, TRAINED)
}

/// How it was made is in this crate's README.
const TRAINED: &[u8] = include_bytes!("../assets/model.safetensors");

/// Writes the weights of `checkpoint` in half precision to `out`: how the shipped file was made from a trained checkpoint.
///
/// # Errors
/// The checkpoint cannot be read, `out` cannot be written.
pub fn write_asset(checkpoint: &Path, out: &Path) -> Result<()> {
    let file = SafetensorsFile::open(&checkpoint.join("model.safetensors"))?;
    let tensor = |entry: &Entry| Ok((entry.name.clone(), file.tensor(entry)?.to_kind(tch::Kind::Half)));
    let tensors = file.entries().iter().map(tensor).collect::<Result<Vec<_>>>()?;
    write_safetensors(out, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), file.metadata())
}

fn write_with(folder: &Path, weights: &[u8]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
    let files = [
        ("config.json", config()),
        ("generation_config.json", generation_config()),
        ("preprocessor_config.json", preprocessor_config()),
        ("processor_config.json", processor_config()),
        ("tokenizer.json", tokenizer::tokenizer_json()),
        ("tokenizer_config.json", tokenizer::tokenizer_config_json(MAX_POSITIONS)),
    ];
    for (name, content) in files {
        write_file(&folder.join(name), format!("{content:#}\n").as_bytes())?;
    }
    write_file(&folder.join("chat_template.jinja"), tokenizer::CHAT_TEMPLATE.as_bytes())?;
    write_file(&folder.join("model.safetensors"), weights)
}

fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|error| Error::io("write", path, &error))
}

fn special_id(token: &str) -> usize {
    tokenizer::special_id(token).expect("it is one of the special tokens")
}

fn config() -> Value {
    let (bos, eos, pad) = (special_id(BOS), special_id(EOS), special_id(PAD));
    let patches = (CANVAS as usize / PATCH).pow(2);
    json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float32",
        "image_token_index": special_id(IMAGE),
        "image_seq_length": patches,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": true,
        "text_config": {
            "model_type": "llama", "vocab_size": tokenizer::vocabulary().len(), "hidden_size": WIDTH,
            "intermediate_size": LANGUAGE_INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS, "head_dim": WIDTH / HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "max_position_embeddings": MAX_POSITIONS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
            "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "image_size": CANVAS, "patch_size": PATCH, "num_channels": 3,
            "hidden_size": WIDTH, "intermediate_size": TOWER_INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": WIDTH,
        },
    })
}

fn generation_config() -> Value {
    json!({"bos_token_id": special_id(BOS), "eos_token_id": special_id(EOS), "pad_token_id": special_id(PAD), "do_sample": false})
}

fn preprocessor_config() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
        "do_convert_rgb": true, "do_resize": true, "size": {"shortest_edge": CANVAS}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": CANVAS, "width": CANVAS},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    })
}

fn processor_config() -> Value {
    json!({
        "processor_class": "LlavaProcessor", "image_token": IMAGE, "patch_size": PATCH,
        "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
    })
}

/// How a tensor begins.
#[derive(Clone, Copy)]
enum Start {
    Zero,
    One,
    /// Normal with this standard deviation.
    Normal(f64),
}

/// What embeddings begin with.
const EMBEDDING: Start = Start::Normal(0.02);

/// A matrix of `inputs` columns: the variance of PyTorch's default, which learns faster at this width than 0.02.
fn matrix(inputs: usize) -> Start {
    Start::Normal((3.0 * inputs as f64).sqrt().recip())
}

/// A matrix that writes to the residual stream, smaller by the square root of how many do (GPT-2).
fn residual(inputs: usize) -> Start {
    Start::Normal((3.0 * inputs as f64 * (2 * LAYERS) as f64).sqrt().recip())
}

/// Every tensor of the checkpoint: name, shape, start.
fn tensors() -> Vec<(String, Vec<usize>, Start)> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], start| all.push((name, shape.to_vec(), start));
    let patches = (CANVAS as usize / PATCH).pow(2);

    let tower = "vision_tower";
    add(format!("{tower}.embeddings.class_embedding"), &[WIDTH], EMBEDDING);
    add(format!("{tower}.embeddings.patch_embedding.weight"), &[WIDTH, 3, PATCH, PATCH], matrix(3 * PATCH * PATCH));
    add(format!("{tower}.embeddings.position_embedding.weight"), &[patches + 1, WIDTH], EMBEDDING);
    let norms = (0..LAYERS).flat_map(|n| [1, 2].map(|k| format!("encoder.layers.{n}.layer_norm{k}")));
    for norm in ["pre_layrnorm", "post_layernorm"].map(str::to_owned).into_iter().chain(norms) {
        add(format!("{tower}.{norm}.weight"), &[WIDTH], Start::One);
        add(format!("{tower}.{norm}.bias"), &[WIDTH], Start::Zero);
    }
    for layer in 0..LAYERS {
        let mut linear = |name: &str, outputs: usize, inputs: usize, start| {
            add(format!("{tower}.encoder.layers.{layer}.{name}.weight"), &[outputs, inputs], start);
            add(format!("{tower}.encoder.layers.{layer}.{name}.bias"), &[outputs], Start::Zero);
        };
        for name in ["q_proj", "k_proj", "v_proj"] {
            linear(&format!("self_attn.{name}"), WIDTH, WIDTH, matrix(WIDTH));
        }
        linear("self_attn.out_proj", WIDTH, WIDTH, residual(WIDTH));
        linear("mlp.fc1", TOWER_INNER, WIDTH, matrix(WIDTH));
        linear("mlp.fc2", WIDTH, TOWER_INNER, residual(TOWER_INNER));
    }

    for name in ["linear_1", "linear_2"] {
        add(format!("multi_modal_projector.{name}.weight"), &[WIDTH, WIDTH], matrix(WIDTH));
        add(format!("multi_modal_projector.{name}.bias"), &[WIDTH], Start::Zero);
    }

    let language = "language_model.model";
    add(format!("{language}.embed_tokens.weight"), &[tokenizer::vocabulary().len(), WIDTH], EMBEDDING);
    add(format!("{language}.norm.weight"), &[WIDTH], Start::One);
    for layer in 0..LAYERS {
        let mut layered = |name: &str, shape: &[usize], start| {
            add(format!("{language}.layers.{layer}.{name}.weight"), shape, start);
        };
        layered("input_layernorm", &[WIDTH], Start::One);
        layered("post_attention_layernorm", &[WIDTH], Start::One);
        for name in ["q_proj", "k_proj", "v_proj"] {
            layered(&format!("self_attn.{name}"), &[WIDTH, WIDTH], matrix(WIDTH));
        }
        layered("self_attn.o_proj", &[WIDTH, WIDTH], residual(WIDTH));
        layered("mlp.gate_proj", &[LANGUAGE_INNER, WIDTH], matrix(WIDTH));
        layered("mlp.up_proj", &[LANGUAGE_INNER, WIDTH], matrix(WIDTH));
        layered("mlp.down_proj", &[WIDTH, LANGUAGE_INNER], residual(LANGUAGE_INNER));
    }
    all
}

/// The bytes of `model.safetensors`, f32.
fn weights(seed: u64) -> Result<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn: Vec<(String, Vec<usize>, Vec<u8>)> = tensors()
        .into_iter()
        .map(|(name, shape, start)| {
            let value = || match start {
                Start::Zero => 0.0,
                Start::One => 1.0,
                Start::Normal(deviation) => (normal(&mut rng) * deviation) as f32,
            };
            let count = shape.iter().product();
            let bytes = std::iter::repeat_with(value).take(count).flat_map(f32::to_le_bytes).collect();
            (name, shape, bytes)
        })
        .collect();
    let broken = |error| Error::at("model.safetensors", format!("cannot be made: {error}"));
    let views = drawn.iter().map(|(name, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(format)).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_complete_and_a_function_of_the_seed() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        for (folder, seed) in folders.iter().zip([5, 5, 6]) {
            write(folder.path(), seed).unwrap();
        }
        let bytes = folders.each_ref().map(|folder| std::fs::read(folder.path().join("model.safetensors")).unwrap());
        assert_eq!(bytes[0], bytes[1]);
        assert_ne!(bytes[0], bytes[2]);
        let model = safetensors::SafeTensors::deserialize(&bytes[0]).unwrap();
        let count: usize = model.tensors().iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum();
        assert!((1_700_000..1_750_000).contains(&count), "{count} weights");
        let config: Value =
            serde_json::from_slice(&std::fs::read(folders[0].path().join("config.json")).unwrap()).unwrap();
        let embedding = model.tensor("language_model.model.embed_tokens.weight").unwrap();
        assert_eq!(config["text_config"]["vocab_size"], embedding.shape()[0]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        let error = write(&taken.join("model"), 0).unwrap_err().to_string();
        assert!(error.starts_with(&taken.join("model").display().to_string()), "{error}");
    }
}
