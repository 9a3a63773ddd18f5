//! The vision tower's features of images, computed once where they can be.
//!
//! A frozen tower gives the same features for the same pixels, so within a step each distinct image meets it once, whatever rows and micro-batches
//! show it. With `vision_feature_cache` those of uncorrupted images outlive the run: a file for each, named by the digest of its pixels, in a
//! folder named by all that the tower depends on. On a CPU an image runs alone, so features that were kept are those that would be computed, to
//! the bit; on a GPU, where images run together, to rounding.

use super::micro::{Micro, Origin};
use super::reference_store::{Identity, hex};
use crate::config::Run;
use crate::image::Pixels;
use crate::model::Model;
use crate::nn::Pass;
use crate::weights;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// SHA-256 of an image's pixels and size, as the tower is given them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageKey(pub(super) [u8; 32]);

impl ImageKey {
    /// That of processed pixels.
    pub fn of(pixels: &Pixels) -> Self {
        let mut hash = Sha256::new();
        hash.update((pixels.height as u64).to_le_bytes());
        hash.update((pixels.width as u64).to_le_bytes());
        let bytes: Vec<u8> = pixels.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        hash.update(&bytes);
        ImageKey(hash.finalize().into())
    }
}

/// What is known of images.
#[derive(Debug)]
pub struct FeatureCache {
    /// The folder of this tower, where features outlive the run.
    folder: Option<PathBuf>,
    /// Features `[1, tokens, width]` of the images of the step that is under way.
    of_step: HashMap<ImageKey, Tensor>,
}

impl FeatureCache {
    /// One that keeps nothing beyond a step.
    pub fn of_steps() -> Self {
        FeatureCache { folder: None, of_step: HashMap::new() }
    }

    /// The one that a recipe asks for.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the folder cannot be made.
    pub fn of_run(run: &Run, device: Device) -> Result<Self> {
        let Some(folder) = &run.vision_feature_cache else { return Ok(Self::of_steps()) };
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))?;
        let identity = Identity::of(folder, &run.model, None, device)?.text();
        let own = folder.join(format!("features-{}", hex(&Sha256::digest(&identity)[..8])));
        std::fs::create_dir_all(&own).map_err(|error| Error::io("create the folder", &own, &error))?;
        Ok(FeatureCache { folder: Some(own), of_step: HashMap::new() })
    }

    /// A new step begins.
    pub fn begin_step(&mut self) {
        self.of_step.clear();
    }

    /// The features `[images, tokens, width]` of a micro-batch's images under a tower that stands still, and how many of them the tower
    /// had to compute; nothing without images.
    ///
    /// # Errors
    /// A damaged file, or one that cannot be written.
    pub fn features(&mut self, model: &Model, micro: &Micro, pass: Pass) -> Result<(Option<Tensor>, usize)> {
        if model.vision.is_none() || micro.images.is_empty() {
            return Ok((None, 0));
        }
        let mut missing: Vec<usize> = Vec::new();
        for (i, key) in micro.image_keys.iter().enumerate() {
            let new = !self.of_step.contains_key(key) && missing.iter().all(|&other| micro.image_keys[other] != *key);
            if !new {
                continue;
            }
            match self.kept(*key, micro.origins[i])? {
                Some(features) => {
                    self.of_step.insert(*key, features.to_device(model.device));
                }
                None => missing.push(i),
            }
        }
        let pixels: Vec<&Pixels> = missing.iter().map(|&i| &micro.images[i]).collect();
        if let Some(features) = tch::no_grad(|| model.features(&pixels, pass)) {
            for (&i, features) in missing.iter().zip(features.split(1, 0)) {
                let key = micro.image_keys[i];
                self.keep(key, micro.origins[i], &features)?;
                self.of_step.insert(key, features);
            }
        }
        let all: Vec<&Tensor> = micro.image_keys.iter().map(|key| &self.of_step[key]).collect();
        Ok((Some(Tensor::cat(&all, 0)), missing.len()))
    }

    fn file(&self, key: ImageKey, origin: Origin) -> Option<PathBuf> {
        Some(self.folder.as_ref().filter(|_| origin == Origin::Data)?.join(format!("{}.safetensors", hex(&key.0))))
    }

    fn kept(&self, key: ImageKey, origin: Origin) -> Result<Option<Tensor>> {
        let Some(path) = self.file(key, origin).filter(|path| path.exists()) else { return Ok(None) };
        // Read and closed at once: a mapping for every image of a long run would add up.
        let tensors = Tensor::read_safetensors(&path).map_err(|error| damaged(&path, &error.to_string()))?;
        let tensor = |name: &str| tensors.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor);
        let (Some(features), Some(digest)) = (tensor("features"), tensor("sha256")) else {
            return Err(damaged(&path, "no tensors `features` and `sha256`"));
        };
        if features.dim() != 3 || *digest != contents(features)? {
            return Err(damaged(&path, "their digest is another"));
        }
        Ok(Some(features.shallow_clone()))
    }

    fn keep(&self, key: ImageKey, origin: Origin, features: &Tensor) -> Result<()> {
        let Some(path) = self.file(key, origin) else { return Ok(()) };
        let tensors = [("features", features), ("sha256", &contents(features)?)];
        weights::write_safetensors(&path, tensors, &BTreeMap::new())
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::at(path.display(), format!("the kept features of an image are damaged: {what}"))
        .hint("delete the file; its features are then computed again")
}

/// SHA-256 of their bytes, u8 `[32]`.
fn contents(features: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_slice(&Sha256::digest(torch_ext::tensor_bytes(features)?)))
}
