//! Everything a run reads before its first step: checked, counted, and ready to be asked for example by example.

use crate::address::Address;
use crate::config::{Corruption, Redraw, Run};
use crate::data::{self, Example, ImageSource, Need, Prompt};
use crate::image::{self, Corrupted, ImageProcessor, Picture};
use crate::model::{Shape, VisionShape};
use crate::objective::Needs;
use crate::text::{Encoded, EncodedRow, Encoder, ImageToken};
use crate::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The inputs of a run.
#[derive(Debug)]
pub struct Inputs {
    /// The checkpoint's configuration.
    pub shape: Shape,
    /// Tokenizer and template.
    pub encoder: Encoder,
    /// What prepares images, for a model with eyes.
    pub processor: Option<ImageProcessor>,
    /// The usable rows.
    pub examples: Vec<Example>,
    /// What was found while reading them.
    pub report: Report,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// What the objective asks for.
    pub needs: Needs,
    overlong: crate::config::Overlong,
    rejected_image: crate::config::RejectedImage,
    seed: u64,
    /// One source of each distinct picture, for `random_image`.
    distinct: Vec<ImageSource>,
}

/// What was found while reading the data.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows in the files.
    pub rows: usize,
    /// Problems of rows that were left out.
    pub skipped: Vec<Error>,
    /// Rows whose response was shortened to `max_length`.
    pub shortened: usize,
    /// Rows where a token straddles the seam between prompt and response.
    pub seams: usize,
    /// Rows with images.
    pub with_images: usize,
    /// Tokens of the longest example (prompt and all responses, each once) and its index.
    pub longest: (usize, usize),
    /// Tokens of all examples together, as packed.
    pub tokens: u64,
    /// SHA-256 over the token ids and images of all usable rows, in hexadecimal.
    pub digest: String,
}

/// The pictures of an example.
#[derive(Debug)]
pub struct Pictures {
    /// As decoded.
    pub true_images: Vec<Picture>,
    /// What stands against them, where the objective asks for it.
    pub rejected: Vec<Corrupted>,
}

impl Inputs {
    /// Reads and checks everything but the weights.
    pub fn open(run: &Run) -> Result<Self> {
        let shape = Shape::read(&run.model.path)?;
        let needs = run.objective.needs();
        let encoder = encoder(&run.model.path, &shape)?;
        let processor = processor(&run.model.path, &shape)?;
        let max_length = max_length(run, &shape)?;
        let given = needs.corrupted && run.rejected_image.corruption == Corruption::Given;
        let need = match (needs.rejected, given) {
            (_, true) => Need::PairWithRejectedImages,
            (true, false) => Need::Pair,
            (false, false) => Need::Chosen,
        };
        let data::Dataset { examples, problems } = data::load(&run.data, need)?;
        let rows = examples.len() + problems.len();
        let mut inputs = Inputs {
            shape,
            encoder,
            processor,
            examples,
            report: Report { rows, ..Report::default() },
            max_length,
            needs,
            overlong: run.data.overlong,
            rejected_image: run.rejected_image.clone(),
            seed: run.seed,
            distinct: Vec::new(),
        };
        inputs.check_rows(problems, run)?;
        Ok(inputs)
    }

    /// Encodes every row and decodes every image once; what cannot be used is left out or ends the run.
    fn check_rows(&mut self, mut problems: Vec<Error>, run: &Run) -> Result<()> {
        self.check_template()?;
        let encoded: Vec<Result<EncodedRow>> = self.examples.par_iter().map(|example| self.encode(example)).collect();
        let unusable = self.undecodable();
        let mut kept = Vec::with_capacity(self.examples.len());
        let mut digest = Sha256::new();
        for (example, encoded) in std::mem::take(&mut self.examples).into_iter().zip(encoded) {
            let images = example.images.iter().chain(&example.rejected_images);
            let broken = images.filter_map(|source| unusable.iter().find(|(bad, _)| *bad == *source)).next();
            let row = match (encoded, broken) {
                (Err(error), _) => Err(error),
                (Ok(_), Some((_, what))) => Err(Error::at(&example.row, what)),
                (Ok(encoded), None) => Ok(encoded),
            };
            match row {
                Err(error) => problems.push(error),
                Ok(EncodedRow { encoded, shortened, seam }) => {
                    let answers = encoded.chosen.ids.len() + encoded.rejected.as_ref().map_or(0, |r| r.ids.len());
                    let mut tokens = encoded.prompt.ids.len() + answers;
                    if self.needs.corrupted && !example.images.is_empty() {
                        tokens += encoded.prompt.ids.len() + encoded.chosen.ids.len();
                    }
                    let report = &mut self.report;
                    report.longest = report.longest.max((tokens, kept.len()));
                    report.tokens += tokens as u64;
                    report.shortened += usize::from(shortened);
                    report.seams += usize::from(seam);
                    report.with_images += usize::from(!example.images.is_empty());
                    add_to_digest(&mut digest, &example, &encoded);
                    kept.push(example);
                }
            }
        }
        self.examples = kept;
        self.report.digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.report.skipped = data::decide(problems, run.data.max_skipped_rows, self.report.rows)?;
        if self.needs.corrupted && self.report.with_images == 0 {
            let hint = "use `loss_type: dpo`, or rows with `images`";
            return Err(Error::at("`loss_type`", "the objective compares images, but no row has one").hint(hint));
        }
        self.find_distinct()
    }

    /// Rows with messages need a chat template; that is told once, not for each row.
    fn check_template(&self) -> Result<()> {
        let needs = |example: &&Example| matches!(example.prompt, Prompt::Messages(_));
        match self.examples.iter().find(needs) {
            Some(example) if !self.encoder.has_template() => {
                let what = "the row has messages, but the checkpoint has no chat template";
                let hint = "put one into `chat_template.jinja` of the checkpoint, or write prompts as text that is already templated";
                Err(Error::at(&example.row, what).hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// The images that cannot be decoded, each with its problem; every distinct file is decoded once.
    fn undecodable(&self) -> Vec<(ImageSource, String)> {
        let mut seen = BTreeSet::<PathBuf>::new();
        let all = self.examples.iter().flat_map(|example| example.images.iter().chain(&example.rejected_images));
        let distinct: Vec<&ImageSource> = all
            .filter(|source| match source {
                ImageSource::Path(path) => seen.insert(path.clone()),
                ImageSource::Bytes(_) => true,
            })
            .collect();
        let problem = |source: &&ImageSource| match picture(source) {
            Ok(_) => None,
            Err(Error::One(problem)) => Some(((*source).clone(), format!("{}: {}", problem.place, problem.what))),
            Err(error) => Some(((*source).clone(), error.to_string())),
        };
        distinct.par_iter().filter_map(problem).collect()
    }

    fn find_distinct(&mut self) -> Result<()> {
        if !self.needs.corrupted || self.rejected_image.corruption != Corruption::RandomImage {
            return Ok(());
        }
        let mut distinct: Vec<ImageSource> = Vec::new();
        let mut paths = BTreeSet::new();
        for source in self.examples.iter().flat_map(|example| &example.images) {
            let new = match source {
                ImageSource::Path(path) => paths.insert(path.clone()),
                ImageSource::Bytes(_) => !distinct.contains(source),
            };
            if new {
                distinct.push(source.clone());
            }
        }
        self.distinct = distinct;
        if self.distinct.len() < 2 {
            let what = "`random_image` needs at least two different images in the data";
            return Err(Error::at("`rejected_image`", what).hint("use `rejected_image: crop`"));
        }
        Ok(())
    }

    /// Token ids of an example.
    pub fn encode(&self, example: &Example) -> Result<EncodedRow> {
        self.encoder.encode(example, Some(self.max_length), self.overlong)
    }

    /// The pictures of example `index` as `epoch` sees them: a pure function of seed, epoch and example.
    pub fn pictures(&self, index: usize, epoch: usize) -> Result<Pictures> {
        let example = &self.examples[index];
        let true_images = example.images.iter().map(picture).collect::<Result<Vec<_>>>()?;
        if !self.needs.corrupted {
            return Ok(Pictures { true_images, rejected: Vec::new() });
        }
        let epoch = match self.rejected_image.redraw {
            Redraw::EachEpoch => epoch as u64,
            Redraw::Once => 0,
        };
        let address = Address { seed: self.seed, epoch, example: index as u64 };
        let rejected = true_images.iter().enumerate().map(|(i, own)| self.rejected(example, own, i, address));
        let rejected = rejected.collect::<Result<_>>()?;
        Ok(Pictures { true_images, rejected })
    }

    fn rejected(&self, example: &Example, own: &Picture, image: usize, address: Address) -> Result<Corrupted> {
        let corruption = &self.rejected_image.corruption;
        let mean = self.processor.as_ref().map_or([127; 3], ImageProcessor::mean_colour);
        match corruption {
            Corruption::Given => {
                let given = picture(&example.rejected_images[image])?;
                Ok(image::corrupt(&given, corruption, mean, address, image))
            }
            Corruption::RandomImage => {
                let own = self.distinct.iter().position(|source| *source == example.images[image]);
                let own = own.expect("every image of the data is among the distinct ones");
                let other = image::random_other(address, image, self.distinct.len(), own);
                let other = other.expect("there are at least two distinct images");
                Ok(image::corrupt(&picture(&self.distinct[other])?, corruption, mean, address, image))
            }
            _ => Ok(image::corrupt(own, corruption, mean, address, image)),
        }
    }
}

/// Reads and decodes an image.
pub fn picture(source: &ImageSource) -> Result<Picture> {
    image::decode(&source.read()?, &source.describe())
}

/// Tokenizer and template of the checkpoint in `folder`, whose configuration is `shape`.
pub fn encoder(folder: &Path, shape: &Shape) -> Result<Encoder> {
    let token = |vision: &VisionShape| ImageToken { id: vision.image_token, features: vision.tokens_per_image() };
    Encoder::load(folder, shape.vision.as_ref().map(token), shape.language.vocab)
}

/// What prepares images for the checkpoint in `folder`, whose configuration is `shape`; nothing for a model without eyes.
pub fn processor(folder: &Path, shape: &Shape) -> Result<Option<ImageProcessor>> {
    let Some(vision) = &shape.vision else { return Ok(None) };
    let (processor, side) = (ImageProcessor::load(folder)?, vision.tower.image);
    if processor.output_size() != (side, side) {
        let (height, width) = processor.output_size();
        let what = format!("the image processor gives {width}×{height} pixels, the vision tower takes {side}×{side}");
        return Err(Error::at(folder.display(), what).hint("`crop_size` must equal `vision_config.image_size`"));
    }
    Ok(Some(processor))
}

fn max_length(run: &Run, shape: &Shape) -> Result<usize> {
    let own = shape.language.max_length;
    match run.data.max_length {
        Some(wanted) if wanted > own => {
            let field = shape.language.limit_field;
            let what = format!("{wanted} is over the model's own limit of {own} tokens (`{field}` in config.json)");
            Err(Error::at("`max_length`", what).hint(format!("set at most {own}, or leave it out")))
        }
        wanted => Ok(wanted.unwrap_or(own)),
    }
}

/// Adds what a row is to the digest of the data set: its token ids, and where its images are or what they hold.
fn add_to_digest(digest: &mut Sha256, example: &Example, encoded: &Encoded) {
    for tokens in [Some(&encoded.prompt), Some(&encoded.chosen), encoded.rejected.as_ref()].into_iter().flatten() {
        digest.update((tokens.ids.len() as u64).to_le_bytes());
        tokens.ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
    }
    for image in example.images.iter().chain(&example.rejected_images) {
        match image {
            ImageSource::Path(path) => digest.update(path.as_os_str().as_encoded_bytes()),
            ImageSource::Bytes(bytes) => digest.update(bytes),
        }
    }
}
