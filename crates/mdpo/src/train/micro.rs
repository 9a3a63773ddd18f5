//! Micro-batches: which examples of an optimizer step meet in one, and those examples packed with the images they need.
//!
//! Preparing one is plain work of the processor and may run on any thread ([`Prepared`]); libtorch is asked only when it goes to the device
//! ([`Micro`]).

use super::Inputs;
use super::feature_cache::ImageKey;
use super::inputs::Size;
use super::reference_cache::ReferencePrompt;
use crate::Result;
use crate::config;
use crate::data::ImageSource;
use crate::data::order::{self, Order};
use crate::image::Pixels;
use crate::model::DeviceBatch;
use crate::objective::StepTotals;
use crate::text::Encoded;
use crate::text::pack::PackedBatch;
use std::cmp::Reverse;
use tch::{Device, Tensor};

/// The optimizer steps of a run, each cut into micro-batches: a pure function of the step.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    /// What the examples are.
    pub inputs: &'a Inputs,
    /// Which of them a step takes.
    pub order: Order,
    /// How many go into a micro-batch.
    pub batch: config::Batch,
}

/// An optimizer step, cut.
#[derive(Debug, Clone)]
pub struct StepCut {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Sums over the whole step.
    pub totals: StepTotals,
    /// Indices of the examples of each micro-batch.
    pub micros: Vec<Vec<usize>>,
}

impl Steps<'_> {
    /// Optimizer step `step`, from 0.
    pub fn step(&self, step: usize) -> StepCut {
        let order::Batch { epoch, examples } = self.order.batch(step);
        let sizes = &self.inputs.sizes;
        let chosen_tokens = examples.iter().map(|&i| sizes[i].chosen_labels).sum();
        let totals = StepTotals { pairs: examples.len(), chosen_tokens };
        StepCut { epoch, totals, micros: cut(examples, sizes, &self.batch) }
    }
}

/// Cuts a step's examples into micro-batches of similar examples, the longest first: a step that is too large for the memory says so at once.
/// Each has `per_device` examples, or with a budget as many as it holds; an example over the budget stands alone.
fn cut(mut examples: Vec<usize>, sizes: &[Size], batch: &config::Batch) -> Vec<Vec<usize>> {
    examples.sort_by_key(|&i| (Reverse(sizes[i].packed), i));
    let Some(budget) = batch.max_tokens else {
        return examples.chunks(batch.per_device).map(<[usize]>::to_vec).collect();
    };
    let (mut micros, mut room) = (Vec::<Vec<usize>>::new(), 0);
    for example in examples {
        let tokens = sizes[example].packed;
        match micros.last_mut() {
            Some(micro) if tokens <= room => {
                micro.push(example);
                room -= tokens;
            }
            _ => {
                micros.push(vec![example]);
                room = budget.saturating_sub(tokens);
            }
        }
    }
    micros
}

/// Some examples as plain data, ready for any device.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Their indices.
    pub examples: Vec<usize>,
    /// Prompts with their responses.
    pub packed: PackedBatch,
    /// The distinct images.
    pub images: Vec<Pixels>,
    /// What each of them is.
    pub image_keys: Vec<ImageKey>,
    /// Which of them are of the data, and not rejected ones.
    pub origins: Vec<Origin>,
    /// Where each pair's responses are.
    pub pairs: Vec<Places>,
    /// The prompts as the reference sees them, where there is one.
    pub prompts: Vec<ReferencePrompt>,
}

/// Some examples, ready for the model.
#[derive(Debug)]
pub struct Micro {
    /// Prompts with their responses.
    pub batch: DeviceBatch,
    /// The distinct images.
    pub images: Vec<Pixels>,
    /// What each of them is.
    pub image_keys: Vec<ImageKey>,
    /// Which of them are of the data, and not rejected ones.
    pub origins: Vec<Origin>,
    /// Where each pair's responses are.
    pub pairs: Vec<Places>,
    /// The prompts as the reference sees them, where there is one.
    pub prompts: Vec<ReferencePrompt>,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A row's `images`: every epoch shows it.
    Data,
    /// A rejected image.
    Rejected,
}

/// Indices of a pair's responses in the packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// The chosen answer under the true image.
    pub chosen: usize,
    /// The rejected answer under the true image.
    pub rejected: Option<usize>,
    /// The chosen answer under the rejected image; none for a row without images.
    pub corrupted: Option<usize>,
}

impl Prepared {
    /// Reads the examples `indices` as `epoch` sees them.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn read(inputs: &Inputs, indices: &[usize], epoch: usize) -> Result<Self> {
        let encode = |&i: &usize| Ok(inputs.encode(&inputs.examples[i])?.encoded);
        let encoded = indices.iter().map(encode).collect::<Result<Vec<_>>>()?;
        Prepared::new(inputs, indices, &encoded, epoch)
    }

    /// Packs the examples `indices` (with their token ids) as `epoch` sees them.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn new(inputs: &Inputs, indices: &[usize], encoded: &[Encoded], epoch: usize) -> Result<Self> {
        let (mut packed, mut images, mut pairs) = (PackedBatch::default(), Vec::new(), Vec::new());
        let mut sources: Vec<(&ImageSource, usize)> = Vec::new();
        let mut origins = Vec::new();
        for (&index, encoded) in indices.iter().zip(encoded) {
            let pictures = inputs.pictures(index, epoch)?;
            let process = |picture| inputs.processor.as_ref().map(|processor| processor.process(picture));
            let mut true_images = Vec::new();
            for (source, picture) in inputs.examples[index].images.iter().zip(&pictures.true_images) {
                let known = sources.iter().find(|(other, _)| *other == source).map(|(_, image)| *image);
                let place = known.unwrap_or(images.len());
                if known.is_none() {
                    images.extend(process(picture));
                    origins.resize(images.len(), Origin::Data);
                    sources.push((source, place));
                }
                true_images.push(place);
            }
            let first = packed.responses.len();
            let mut responses = vec![&encoded.chosen];
            responses.extend(encoded.rejected.as_ref().filter(|_| inputs.needs.rejected));
            packed.push(&encoded.prompt, &responses, |image| true_images[image]);
            let rejected = (responses.len() > 1).then_some(first + 1);
            let corrupted = (!pictures.rejected.is_empty()).then_some(packed.responses.len());
            if corrupted.is_some() {
                let start = images.len();
                images.extend(pictures.rejected.iter().filter_map(|corrupted| process(&corrupted.picture)));
                origins.resize(images.len(), Origin::Rejected);
                packed.push(&encoded.prompt, &[&encoded.chosen], |image| start + image);
            }
            pairs.push(Places { chosen: first, rejected, corrupted });
        }
        let image_keys: Vec<ImageKey> = images.iter().map(ImageKey::of).collect();
        let prompts = ReferencePrompt::all(inputs, indices, &packed, &image_keys, &pairs);
        Ok(Prepared { examples: indices.to_vec(), packed, images, image_keys, origins, pairs, prompts })
    }

    /// Moves them to `device`.
    pub fn to_device(self, device: Device) -> Micro {
        let Prepared { examples: _, packed, images, image_keys, origins, pairs, prompts } = self;
        Micro { batch: DeviceBatch::new(packed, device), images, image_keys, origins, pairs, prompts }
    }
}

impl Micro {
    /// Packs the examples `indices` (with their token ids) as `epoch` sees them, on `device`.
    ///
    /// # Errors
    /// An image that cannot be decoded, with its row.
    pub fn new(inputs: &Inputs, indices: &[usize], encoded: &[Encoded], epoch: usize, device: Device) -> Result<Self> {
        Ok(Prepared::new(inputs, indices, encoded, epoch)?.to_device(device))
    }

    /// Labels of the response at a place.
    pub fn labels(&self, place: usize) -> usize {
        self.batch.packed.responses[place].labels.len()
    }

    /// 1 for a pair with images, else 0; f64 `[pairs]`.
    pub fn has_image(&self) -> Tensor {
        let flags: Vec<f64> = self.pairs.iter().map(|pair| f64::from(u8::from(pair.corrupted.is_some()))).collect();
        Tensor::from_slice(&flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(per_device: usize, max_tokens: Option<usize>) -> config::Batch {
        let length = config::Length::Steps(1);
        let checkpointing = config::GradientCheckpointing::Layers;
        config::Batch { per_device, accumulation: 1, max_tokens, length, checkpointing }
    }

    fn sizes(tokens: &[usize]) -> Vec<Size> {
        tokens.iter().map(|&packed| Size { packed, chosen_labels: 1 }).collect()
    }

    proptest! {
        #[test]
        fn a_cut_keeps_the_examples_and_lets_the_like_meet(
            tokens in prop::collection::vec(1usize..500, 1..40), per_device in 1usize..9, budget in prop::option::of(1usize..900)
        ) {
            let sizes = sizes(&tokens);
            let settings = batch(per_device, budget);
            let micros = cut((0..tokens.len()).collect(), &sizes, &settings);
            // However the step is ordered, its micro-batches are the same.
            prop_assert_eq!(&micros, &cut((0..tokens.len()).rev().collect(), &sizes, &settings));
            let mut all = micros.concat();
            prop_assert!(all.is_sorted_by_key(|&i| (Reverse(tokens[i]), i)));
            all.sort_unstable();
            prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
            let sum = |micro: &[usize]| micro.iter().map(|&i| tokens[i]).sum::<usize>();
            match budget {
                None => prop_assert!(micros.iter().rev().skip(1).all(|micro| micro.len() == per_device)),
                Some(budget) => {
                    prop_assert!(micros.iter().all(|micro| micro.len() == 1 || sum(micro) <= budget));
                    // None could have taken in the next one's first.
                    prop_assert!(micros.windows(2).all(|pair| sum(&pair[0]) + tokens[pair[1][0]] > budget));
                }
            }
        }
    }
}
