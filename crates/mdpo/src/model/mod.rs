//! 5c: models: a packed batch and the features of its images in, hidden states out.

mod cache;
pub mod config;
pub mod family;
mod gradients;
pub mod language;
pub mod load;
pub mod projector;
pub mod value_head;
pub mod vision;

pub use cache::Cache;

use crate::image::Pixels;
use crate::nn::precision::done;
use crate::nn::{Layout, Pass, Span};
use crate::text::pack::PackedBatch;
use crate::{Result, error};
use cache::Tables;
use gradients::{InOrder, Sink, push_back};
use language::{Embeddings, Keep, Language, Piece};
use load::{Plan, Trainable};
use std::ops::Range;
use std::path::Path;
use tch::{Device, Kind, Tensor};
use torch_ext::Shared;

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

impl Vision {
    /// One forward of the tower for all `images`.
    fn features(&self, images: &[&Pixels], kind: Kind, device: Device, pass: Pass) -> Tensor {
        let one =
            |image: &&Pixels| Tensor::from_slice(&image.values).view([1, 3, image.height as i64, image.width as i64]);
        let pixels = Tensor::cat(&images.iter().map(one).collect::<Vec<_>>(), 0);
        self.tower.forward(&pixels.to_device(device).to_kind(kind), pass)
    }
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

/// How many pieces of a batch run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lanes {
    /// One after the other, each on all threads.
    One,
    /// Side by side on shares of the threads.
    Many,
}

/// What `work` gives for each piece of a batch and what stands beside it in `inputs`; it is also told at which turn the piece begins. The
/// longest begin first, so that no long one is left for the end.
fn side_by_side<I: Send, R: Send>(
    batch: &DeviceBatch,
    inputs: Vec<I>,
    work: impl Fn(usize, &Piece, I) -> R + Sync,
) -> Vec<R> {
    let mut items: Vec<(usize, &Piece, I)> =
        batch.pieces.iter().zip(inputs).enumerate().map(|(place, (piece, input))| (place, piece, input)).collect();
    items.sort_by_key(|(_, piece, _)| std::cmp::Reverse(piece.tokens.len()));
    let items = items.into_iter().enumerate().collect();
    let mut found = on_lanes(items, |(turn, (place, piece, input))| (place, work(turn, piece, input)));
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, result)| result).collect()
}

/// What `work` gives for each of `items`, side by side ([`torch_ext::side_by_side`]); its panics are told as those of this thread.
fn on_lanes<I: Send, R: Send>(items: Vec<I>, work: impl Fn(I) -> R + Sync) -> Vec<R> {
    let guarded = error::is_guarded();
    done(torch_ext::side_by_side(items, |item| error::as_guarded(guarded, || work(item))))
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

    /// How the pieces of a pass run that keeps something for the backward pass, or fills a cache. One that gives log-probs alone may give the
    /// reference's, which are kept and must be what would be computed, bit for bit, whatever else is computed with them, while products of
    /// another number of threads may round otherwise: such pieces never share the threads. Dropout draws from one generator for all threads.
    fn lanes(&self, batch: &DeviceBatch, pass: Pass) -> Lanes {
        let apart = self.device == Device::Cpu && pass.dropout.is_none();
        if apart && torch_ext::lanes(batch.pieces.len()) > 1 { Lanes::Many } else { Lanes::One }
    }

    /// The tower's features `[images, tokens, width]` of processed images: on a CPU one image after the other, so that those of an
    /// image do not depend on its neighbours, elsewhere one forward for all of them.
    pub fn features(&self, images: &[&Pixels], pass: Pass) -> Option<Tensor> {
        let vision = self.vision.as_ref()?;
        let together = if self.device == Device::Cpu { 1 } else { images.len().max(1) };
        let some = |images| vision.features(images, self.kind(), self.device, pass);
        let features: Vec<Tensor> = images.chunks(together).map(some).collect();
        (!features.is_empty()).then(|| Tensor::cat(&features, 0))
    }

    /// [`Model::features`] for answering: on a CPU the images run side by side, so that those of an image may round otherwise among others.
    pub fn features_for_answers(&self, images: &[&Pixels], pass: Pass) -> Option<Tensor> {
        if self.device != Device::Cpu || images.len() < 2 {
            return self.features(images, pass);
        }
        let (vision, kind, device) = (self.vision.as_ref()?, self.kind(), self.device);
        let features = on_lanes(images.to_vec(), |image| vision.features(&[image], kind, device, pass));
        Some(Tensor::cat(&features, 0))
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
        let language = &self.language;
        let lanes = if keep == Keep::Nothing { Lanes::One } else { self.lanes(batch, pass) };
        let runs: Vec<language::Run> = match lanes {
            Lanes::One => batch.pieces.iter().map(|piece| language.run(of(piece), piece, pass, keep)).collect(),
            Lanes::Many => {
                let inputs = batch.pieces.iter().map(of).collect();
                side_by_side(batch, inputs, |_, piece, x| language.run(x, piece, pass, keep))
            }
        };
        let hidden = Tensor::cat(&runs.iter().map(|run| &run.hidden).collect::<Vec<_>>(), 0);
        ModelRun { runs, hidden, embeddings, pass }
    }

    /// Pushes the gradient of the hidden states back into every trained weight.
    pub fn backward(&self, batch: &DeviceBatch, run: ModelRun, gradient: &Tensor) {
        let ModelRun { runs, embeddings, pass, .. } = run;
        let before = if embeddings.requires_grad() { Embeddings::Graph } else { Embeddings::Constant };
        let sizes: Vec<i64> = runs.iter().map(|run| run.hidden.size()[0]).collect();
        let gradients = gradient.split_with_sizes(sizes, 0);
        let language = &self.language;
        let gradients: Vec<Option<Tensor>> = match self.lanes(batch, pass) {
            Lanes::One => {
                let pieces = batch.pieces.iter().zip(runs).zip(&gradients);
                let back =
                    |((piece, run), gradient)| language.backward(run, gradient, piece, pass, before, &mut Sink::Leaves);
                pieces.map(back).collect()
            }
            Lanes::Many => {
                let leaves: Vec<Shared> = self.trainables.iter().map(|t| t.leaf.shallow_clone().into()).collect();
                let sums = InOrder::new(&leaves);
                let runs = runs.into_iter().zip(gradients).collect();
                side_by_side(batch, runs, |turn, piece, (run, gradient)| {
                    let mut sink = sums.sink();
                    let found = language.backward(run, &gradient, piece, pass, before, &mut sink);
                    sums.add(turn, sink);
                    found
                })
            }
        };
        if let Some(gradients) = gradients.into_iter().collect::<Option<Vec<Tensor>>>() {
            push_back(&embeddings, &Tensor::cat(&gradients, 0));
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
            let input = |piece: &Piece| {
                let of = |x: &Tensor| x.narrow(0, piece.tokens.start as i64, piece.tokens.len() as i64);
                (of(&embeddings), of(&rows), cache.handles())
            };
            let language = &self.language;
            let run = |piece: &Piece, (x, rows, mut tables): (Tensor, Tensor, Tables)| {
                language.prefill(x, piece, &rows, &mut tables, pass)
            };
            let states = match self.lanes(batch, pass) {
                Lanes::One => batch.pieces.iter().map(|piece| run(piece, input(piece))).collect(),
                Lanes::Many => {
                    side_by_side(batch, batch.pieces.iter().map(input).collect(), |_, piece, input| run(piece, input))
                }
            };
            Tensor::cat(&states, 0)
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
