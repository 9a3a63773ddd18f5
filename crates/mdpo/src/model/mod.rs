//! 5c: models: a packed batch and the features of its images in, hidden states out.

pub mod config;
pub mod family;
pub mod language;
pub mod load;
pub mod projector;
pub mod vision;

use crate::Result;
use crate::image::Pixels;
use crate::nn::Pass;
use crate::text::pack::PackedBatch;
use language::{Cache, Keep, Language};
use load::{Plan, Trainable};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What `config.json` says.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The family.
    pub family: family::Family,
    /// The language model.
    pub language: config::LanguageConfig,
    /// The eyes, where it has some.
    pub vision: Option<VisionShape>,
}

/// The visual part of a configuration.
#[derive(Debug, Clone)]
pub struct VisionShape {
    /// The tower.
    pub tower: config::VisionConfig,
    /// Which of its states are the features.
    pub selection: vision::Selection,
    /// The token that stands for one feature of an image.
    pub image_token: u32,
    /// Whether the projector has biases.
    pub projector_bias: bool,
}

impl VisionShape {
    /// How many tokens an image takes.
    pub fn tokens_per_image(&self) -> usize {
        self.tower.patches() + usize::from(self.selection.class_token == vision::ClassToken::Kept)
    }
}

impl Shape {
    /// Reads the configuration of a checkpoint folder.
    pub fn read(folder: &Path) -> Result<Self> {
        family::shape(folder)
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    /// Its configuration.
    pub shape: Shape,
    /// Where its weights are.
    pub device: Device,
    /// The language model.
    pub language: Language,
    /// Tower and projector.
    pub vision: Option<Vision>,
    /// What is trained, in the order in which it was loaded.
    pub trainables: Vec<Trainable>,
}

/// The eyes.
#[derive(Debug)]
pub struct Vision {
    tower: vision::Tower,
    projector: projector::Projector,
}

/// A batch on the model's device, ready for any number of passes.
#[derive(Debug)]
pub struct DeviceBatch {
    /// Where everything stands.
    pub packed: PackedBatch,
    ids: Tensor,
    positions: Tensor,
    /// Flat index of every image token, in the order of `image_rows`.
    image_places: Option<Tensor>,
    /// Row of the flattened features for every image token.
    image_rows: Option<Tensor>,
}

impl DeviceBatch {
    /// Moves a packed batch to `device`.
    pub fn new(packed: PackedBatch, device: Device) -> Self {
        let ids = Tensor::from_slice(&packed.ids).to_device(device);
        let positions = Tensor::from_slice(&packed.positions).to_device(device);
        let slots = || packed.images.iter().flat_map(|image| (0..image.len).map(move |i| (image, i)));
        let places: Vec<i64> = slots().map(|(image, i)| (image.start + i) as i64).collect();
        let rows: Vec<i64> = slots().map(|(image, i)| (image.image * image.len + i) as i64).collect();
        let indices = |values: &[i64]| (!values.is_empty()).then(|| Tensor::from_slice(values).to_device(device));
        let (image_places, image_rows) = (indices(&places), indices(&rows));
        DeviceBatch { packed, ids, positions, image_places, image_rows }
    }
}

/// A finished forward pass of the whole model.
#[derive(Debug)]
pub struct ModelRun {
    run: language::Run,
    /// The embeddings with their graph, where something before the layers is trained.
    embeddings: Tensor,
    pass: Pass,
}

impl ModelRun {
    /// Final hidden states `[tokens, width]`, without a graph.
    pub fn hidden(&self) -> &Tensor {
        &self.run.hidden
    }
}

impl Model {
    /// Loads a checkpoint folder; its weights come in `kind` on `device`.
    pub fn load(folder: &Path, kind: Kind, device: Device, plan: Plan) -> Result<Self> {
        family::load(folder, kind, device, plan)
    }

    /// The precision of weights and activations.
    pub fn kind(&self) -> Kind {
        self.language.head(Pass::of(crate::nn::Role::Reference)).kind()
    }

    /// The tower's features `[images, tokens, width]` of processed images, one forward for all of them.
    pub fn features(&self, images: &[&Pixels], pass: Pass) -> Option<Tensor> {
        let vision = self.vision.as_ref()?;
        let one =
            |image: &&Pixels| Tensor::from_slice(&image.values).view([1, 3, image.height as i64, image.width as i64]);
        if images.is_empty() {
            return None;
        }
        let pixels = Tensor::cat(&images.iter().map(one).collect::<Vec<_>>(), 0);
        Some(vision.tower.forward(&pixels.to_device(self.device).to_kind(self.kind()), pass))
    }

    /// The tower's features after the projector `[images · tokens, width]`.
    pub fn project(&self, features: &Tensor, pass: Pass) -> Option<Tensor> {
        Some(self.vision.as_ref()?.projector.forward(features, pass).flatten(0, 1))
    }

    /// Embeds the batch: tokens from the table, image tokens from the projected features.
    pub fn embed(&self, batch: &DeviceBatch, features: Option<&Tensor>, pass: Pass) -> Tensor {
        let tokens = self.language.embed(&batch.ids, pass);
        let projected = features.and_then(|features| self.project(features, pass));
        match (&batch.image_places, &batch.image_rows, projected) {
            (Some(places), Some(rows), Some(projected)) => {
                tokens.index_copy(0, places, &projected.index_select(0, rows))
            }
            _ => tokens,
        }
    }

    /// Runs the batch; `features` are those of [`Model::features`], indexed by the batch's list of images.
    pub fn forward(&self, batch: &DeviceBatch, features: Option<&Tensor>, pass: Pass, keep: Keep) -> ModelRun {
        let embeddings = match keep {
            Keep::Nothing => tch::no_grad(|| self.embed(batch, features, pass)),
            Keep::Graph | Keep::LayerInputs => self.embed(batch, features, pass),
        };
        let run = self.language.run(embeddings.shallow_clone(), &batch.positions, &batch.packed.segments, pass, keep);
        ModelRun { run, embeddings, pass }
    }

    /// Pushes the gradient of the hidden states back into every trained weight.
    pub fn backward(&self, batch: &DeviceBatch, run: ModelRun, gradient: &Tensor) {
        let ModelRun { run, embeddings, pass } = run;
        let gradient = self.language.backward(run, gradient, &batch.positions, &batch.packed.segments, pass);
        if let (Some(gradient), true) = (gradient, embeddings.requires_grad()) {
            language::push_back(&embeddings, &gradient);
        }
    }

    /// Runs more tokens of one sequence after what `cache` holds, for generation; `[new, width]` hidden states.
    pub fn extend(&self, batch: &DeviceBatch, features: Option<&Tensor>, cache: &mut Cache, pass: Pass) -> Tensor {
        tch::no_grad(|| self.language.extend(self.embed(batch, features, pass), &batch.positions, cache, pass))
    }
}
