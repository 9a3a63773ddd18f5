//! A micro-batch: some examples, packed, with the images they need.

use super::Inputs;
use crate::Result;
use crate::data::ImageSource;
use crate::image::Pixels;
use crate::model::DeviceBatch;
use crate::text::Encoded;
use crate::text::pack::PackedBatch;
use tch::{Device, Tensor};

/// Some examples, ready for the model.
#[derive(Debug)]
pub struct Micro {
    /// Prompts with their responses.
    pub batch: DeviceBatch,
    /// The distinct images, true and rejected.
    pub images: Vec<Pixels>,
    /// Where each pair's responses are.
    pub pairs: Vec<Places>,
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

impl Micro {
    /// Packs the examples `indices` (with their token ids) as `epoch` sees them.
    pub fn new(inputs: &Inputs, indices: &[usize], encoded: &[Encoded], epoch: usize, device: Device) -> Result<Self> {
        let (mut packed, mut images, mut pairs) = (PackedBatch::default(), Vec::new(), Vec::new());
        let mut sources: Vec<(&ImageSource, usize)> = Vec::new();
        for (&index, encoded) in indices.iter().zip(encoded) {
            let pictures = inputs.pictures(index, epoch)?;
            let process = |picture| inputs.processor.as_ref().map(|processor| processor.process(picture));
            let mut true_images = Vec::new();
            for (source, picture) in inputs.examples[index].images.iter().zip(&pictures.true_images) {
                let known = sources.iter().find(|(other, _)| *other == source).map(|(_, image)| *image);
                let place = known.unwrap_or(images.len());
                if known.is_none() {
                    images.extend(process(picture));
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
                packed.push(&encoded.prompt, &[&encoded.chosen], |image| start + image);
            }
            pairs.push(Places { chosen: first, rejected, corrupted });
        }
        Ok(Micro { batch: DeviceBatch::new(packed, device), images, pairs })
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
