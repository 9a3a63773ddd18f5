//! 5c: models: a packed batch and the features of its images in, hidden states out.

mod cache;
pub mod config;
pub mod family;
pub mod language;
pub mod load;
pub mod projector;
pub mod value_head;
pub mod vision;

pub use cache::Cache;

use crate::Result;
use crate::image::Pixels;
use crate::nn::{Layout, Pass, Span};
use crate::text::pack::PackedBatch;
use language::{Embeddings, Keep, Language, Piece};
use load::{Plan, Trainable};
use std::ops::Range;
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
    /// What estimates the worth of a prompt's answers, where the objective asks for it.
    pub value_head: Option<value_head::ValueHead>,
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
    pieces: Vec<Piece>,
    /// Flat index of every image token, in the order of `image_rows`.
    image_places: Option<Tensor>,
    /// Row of the flattened features for every image token.
    image_rows: Option<Tensor>,
}

/// Which final hidden states a pass gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum States {
    /// Those that predict a label ([`PackedBatch::predictors`]), which is all that log-probs need.
    Predictors,
    /// Those of every token.
    All,
    /// That of the last token of each prompt, which predicts the first of an answer.
    Last,
}

impl DeviceBatch {
    /// Moves a packed batch to `device`.
    pub fn new(packed: PackedBatch, device: Device) -> Self {
        Self::with_states(packed, device, States::Predictors)
    }

    /// Moves a packed batch to `device`, for passes that give `states`.
    pub fn with_states(packed: PackedBatch, device: Device, states: States) -> Self {
        let ids = Tensor::from_slice(&packed.ids).to_device(device);
        let wanted = match states {
            States::Predictors => packed.predictors(),
            States::All => (0..packed.ids.len() as i64).collect(),
            States::Last => packed.prompts.iter().map(|prompt| prompt.tokens.end as i64 - 1).collect(),
        };
        let piece = |tokens: Range<usize>, segments: Range<usize>| {
            let inside = wanted.iter().copied().filter(|&row| tokens.contains(&(row as usize)));
            Piece::new(tokens.clone(), &packed.positions, &packed.segments[segments], inside, device)
        };
        let pieces = match device {
            // One prompt after the other: as quick on a CPU, leaner, and what a prompt gives does not depend on its neighbours.
            Device::Cpu => packed.prompts.iter().map(|p| piece(p.tokens.clone(), p.segments.clone())).collect(),
            _ if packed.segments.is_empty() => Vec::new(),
            _ => vec![piece(0..packed.ids.len(), 0..packed.segments.len())],
        };
        let slots = || packed.images.iter().flat_map(|image| (0..image.len).map(move |i| (image, i)));
        let places: Vec<i64> = slots().map(|(image, i)| (image.start + i) as i64).collect();
        let rows: Vec<i64> = slots().map(|(image, i)| (image.image * image.len + i) as i64).collect();
        let indices = |values: &[i64]| (!values.is_empty()).then(|| Tensor::from_slice(values).to_device(device));
        let (image_places, image_rows) = (indices(&places), indices(&rows));
        DeviceBatch { packed, ids, pieces, image_places, image_rows }
    }
}

/// A finished forward pass of the whole model.
#[derive(Debug)]
pub struct ModelRun {
    runs: Vec<language::Run>,
    hidden: Tensor,
    /// The embeddings with their graph, where something before the layers is trained.
    embeddings: Tensor,
    pass: Pass,
}

impl ModelRun {
    /// Final hidden states `[states, width]`, those that the batch asks for, without a graph.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
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

    /// The tower's features `[images, tokens, width]` of processed images: on a CPU one image after the other, so that those of an
    /// image do not depend on its neighbours, elsewhere one forward for all of them.
    pub fn features(&self, images: &[&Pixels], pass: Pass) -> Option<Tensor> {
        let vision = self.vision.as_ref()?;
        let one =
            |image: &&Pixels| Tensor::from_slice(&image.values).view([1, 3, image.height as i64, image.width as i64]);
        let together = if self.device == Device::Cpu { 1 } else { images.len().max(1) };
        let some = |images: &[&Pixels]| {
            let pixels = Tensor::cat(&images.iter().map(one).collect::<Vec<_>>(), 0);
            vision.tower.forward(&pixels.to_device(self.device).to_kind(self.kind()), pass)
        };
        let features: Vec<Tensor> = images.chunks(together).map(some).collect();
        (!features.is_empty()).then(|| Tensor::cat(&features, 0))
    }

    /// The tower's features after the projector `[images · tokens, width]`; image by image where the tower runs so.
    pub fn project(&self, features: &Tensor, pass: Pass) -> Option<Tensor> {
        let projector = &self.vision.as_ref()?.projector;
        let project = |features: &Tensor| projector.forward(features, pass).flatten(0, 1);
        Some(match self.device {
            Device::Cpu => Tensor::cat(&features.split(1, 0).iter().map(project).collect::<Vec<_>>(), 0),
            _ => project(features),
        })
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
        let of = |piece: &Piece| match batch.pieces.len() {
            1 => embeddings.shallow_clone(),
            _ => embeddings.narrow(0, piece.tokens.start as i64, piece.tokens.len() as i64),
        };
        let run = |piece: &Piece| self.language.run(of(piece), piece, pass, keep);
        let runs: Vec<language::Run> = batch.pieces.iter().map(run).collect();
        let hidden = Tensor::cat(&runs.iter().map(|run| &run.hidden).collect::<Vec<_>>(), 0);
        ModelRun { runs, hidden, embeddings, pass }
    }

    /// Pushes the gradient of the hidden states back into every trained weight.
    pub fn backward(&self, batch: &DeviceBatch, run: ModelRun, gradient: &Tensor) {
        let ModelRun { runs, embeddings, pass, .. } = run;
        let before = if embeddings.requires_grad() { Embeddings::Graph } else { Embeddings::Constant };
        let sizes: Vec<i64> = runs.iter().map(|run| run.hidden.size()[0]).collect();
        let gradients = gradient.split_with_sizes(sizes, 0);
        let pieces = batch.pieces.iter().zip(runs).zip(&gradients);
        let back = |((piece, run), gradient)| self.language.backward(run, gradient, piece, pass, before);
        let gradients: Vec<Option<Tensor>> = pieces.map(back).collect();
        if let Some(gradients) = gradients.into_iter().collect::<Option<Vec<Tensor>>>() {
            language::push_back(&embeddings, &Tensor::cat(&gradients, 0));
        }
    }

    /// Runs the prompts of a batch and keeps the keys and values of its tokens in `rows` of the cache, one row a token; the result is the states
    /// that the batch asks for.
    pub fn prefill(
        &self,
        batch: &DeviceBatch,
        features: Option<&Tensor>,
        rows: &[i64],
        cache: &mut Cache,
        pass: Pass,
    ) -> Tensor {
        tch::no_grad(|| {
            let embeddings = self.embed(batch, features, pass);
            let rows = Tensor::from_slice(rows).to_device(self.device);
            let run = |piece: &Piece| {
                let of = |x: &Tensor| x.narrow(0, piece.tokens.start as i64, piece.tokens.len() as i64);
                self.language.prefill(of(&embeddings), piece, &of(&rows), cache, pass)
            };
            Tensor::cat(&batch.pieces.iter().map(run).collect::<Vec<_>>(), 0)
        })
    }

    /// Runs the next token of each of some sequences: its id, its position and the span of its one query over rows of the cache, the last of
    /// which becomes its own. The result is their hidden states `[sequences, width]`.
    pub fn decode(&self, next: &[(u32, usize, Span)], cache: &mut Cache, pass: Pass) -> Tensor {
        let column = |of: &dyn Fn(&(u32, usize, Span)) -> i64| {
            Tensor::from_slice(&next.iter().map(of).collect::<Vec<i64>>()).to_device(self.device)
        };
        let (ids, positions) = (column(&|next| i64::from(next.0)), column(&|next| next.1 as i64));
        let layout = Layout::new(next.iter().map(|next| next.2).collect(), self.device);
        tch::no_grad(|| {
            let x = self.language.embed(&ids, pass);
            self.language.decode(x, &positions, &layout, cache, pass)
        })
    }
}
