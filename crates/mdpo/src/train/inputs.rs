//! Everything a run reads before its first step: checked, counted, and ready to be asked for example by example.
//!
//! Kept for every row are its texts, where its images are and how large it is; token ids and pictures are made anew when its turn comes.

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
use std::collections::{HashMap, HashSet};
use std::path::Path;

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
    /// How large each of them is.
    pub sizes: Vec<Size>,
    /// What was found while reading them.
    pub report: Report,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// What the objective asks for.
    pub needs: Needs,
    overlong: crate::config::Overlong,
    rejected_image: crate::config::RejectedImage,
    seed: u64,
    /// Every distinct picture, for `random_image`.
    distinct: Vec<ImageSource>,
    /// Where each of them stands there.
    places: HashMap<ImageSource, usize>,
}

/// How large an example is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens as packed, of all views that the objective asks for.
    pub packed: usize,
    /// Labels of the chosen answer.
    pub chosen_labels: usize,
}

/// What is looked at of every image before the run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureCheck {
    /// The header: that it can be read, is of a known format and not too large. With `max_skipped_rows` above 0 everything, since
    /// which rows are usable must be known.
    Header,
    /// Everything.
    Decode,
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
    /// Tokens of the longest example, as packed, and its index.
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
    /// Reads and checks everything but the weights; `check` says how closely images are looked at.
    pub fn open(run: &Run, check: PictureCheck) -> Result<Self> {
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
            sizes: Vec::new(),
            report: Report { rows, ..Report::default() },
            max_length,
            needs,
            overlong: run.data.overlong,
            rejected_image: run.rejected_image.clone(),
            seed: run.seed,
            distinct: Vec::new(),
            places: HashMap::new(),
        };
        let check = if run.data.max_skipped_rows > 0 { PictureCheck::Decode } else { check };
        inputs.check_rows(problems, run, check)?;
        Ok(inputs)
    }

    /// Encodes every row and looks at every image once; what cannot be used is left out or ends the run.
    fn check_rows(&mut self, mut problems: Vec<Error>, run: &Run, check: PictureCheck) -> Result<()> {
        /// Rows whose token ids are held at a time.
        const BLOCK: usize = 512;
        self.check_template()?;
        let unusable = self.unusable_images(check);
        let mut digest = Sha256::new();
        let mut rows = std::mem::take(&mut self.examples).into_iter();
        loop {
            let block: Vec<Example> = rows.by_ref().take(BLOCK).collect();
            if block.is_empty() {
                break;
            }
            let encoded: Vec<Result<EncodedRow>> = block.par_iter().map(|example| self.encode(example)).collect();
            for (example, encoded) in block.into_iter().zip(encoded) {
                let mut images = example.images.iter().chain(&example.rejected_images);
                let row = match (encoded, images.find_map(|source| unusable.get(source))) {
                    (Ok(_), Some(what)) => Err(Error::at(&example.row, what)),
                    (row, _) => row,
                };
                match row {
                    Err(error) => problems.push(error),
                    Ok(row) => {
                        add_to_digest(&mut digest, &example, &row.encoded)?;
                        self.keep(example, &row);
                    }
                }
            }
        }
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

    /// Counts a usable row.
    fn keep(&mut self, example: Example, row: &EncodedRow) {
        let size = self.size(&example, &row.encoded);
        let report = &mut self.report;
        report.longest = report.longest.max((size.packed, self.examples.len()));
        report.tokens += size.packed as u64;
        report.shortened += usize::from(row.shortened);
        report.seams += usize::from(row.seam);
        report.with_images += usize::from(!example.images.is_empty());
        self.examples.push(example);
        self.sizes.push(size);
    }

    /// The last token of a response is no input, see [`crate::text::pack`].
    fn size(&self, example: &Example, encoded: &Encoded) -> Size {
        let (prompt, chosen) = (encoded.prompt.ids.len(), encoded.chosen.ids.len() - 1);
        let rejected = encoded.rejected.as_ref().filter(|_| self.needs.rejected).map_or(0, |r| r.ids.len() - 1);
        let corrupted = self.needs.corrupted && !example.images.is_empty();
        Size {
            packed: prompt + chosen + rejected + if corrupted { prompt + chosen } else { 0 },
            chosen_labels: encoded.chosen.counted.iter().filter(|&&counted| counted).count(),
        }
    }

    /// The images that cannot be used, each with its problem; every distinct one is looked at once.
    fn unusable_images(&self, check: PictureCheck) -> HashMap<ImageSource, String> {
        let all = self.examples.iter().flat_map(|example| example.images.iter().chain(&example.rejected_images));
        let distinct: Vec<&ImageSource> = all.collect::<HashSet<_>>().into_iter().collect();
        let problem = |source: &&ImageSource| {
            let found = match check {
                PictureCheck::Header => check_header(source),
                PictureCheck::Decode => picture(source).map(drop),
            };
            found.err().map(|error| ((*source).clone(), without_hint(&error)))
        };
        distinct.par_iter().filter_map(problem).collect()
    }

    fn find_distinct(&mut self) -> Result<()> {
        if !self.needs.corrupted || self.rejected_image.corruption != Corruption::RandomImage {
            return Ok(());
        }
        for source in self.examples.iter().flat_map(|example| &example.images) {
            if !self.places.contains_key(source) {
                self.places.insert(source.clone(), self.distinct.len());
                self.distinct.push(source.clone());
            }
        }
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
        let true_images = example.images.iter().map(|source| decoded(example, source)).collect::<Result<Vec<_>>>()?;
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

    /// Whether every epoch sees the same rejected images.
    pub fn rejected_images_recur(&self) -> bool {
        let drawn = !matches!(self.rejected_image.corruption, Corruption::Blank | Corruption::Given);
        !drawn || self.rejected_image.redraw == Redraw::Once
    }

    fn rejected(&self, example: &Example, own: &Picture, image: usize, address: Address) -> Result<Corrupted> {
        let corruption = &self.rejected_image.corruption;
        let mean = self.processor.as_ref().map_or([127; 3], ImageProcessor::mean_colour);
        match corruption {
            Corruption::Given => {
                let given = decoded(example, &example.rejected_images[image])?;
                Ok(image::corrupt(&given, corruption, mean, address, image))
            }
            Corruption::RandomImage => {
                let own = self.places.get(&example.images[image]);
                let own = *own.expect("every image of the data is among the distinct ones");
                let other = image::random_other(address, image, self.distinct.len(), own);
                let other = other.expect("there are at least two distinct images");
                Ok(image::corrupt(&decoded(example, &self.distinct[other])?, corruption, mean, address, image))
            }
            _ => Ok(image::corrupt(own, corruption, mean, address, image)),
        }
    }
}

/// Decodes an image for a row; a problem is the row's, as one found before the first step is.
fn decoded(example: &Example, source: &ImageSource) -> Result<Picture> {
    picture(source).map_err(|error| {
        let hint =
            "replace the image; `mdpo check` names every row like this, `max_skipped_rows` above 0 leaves them out";
        Error::at(&example.row, without_hint(&error)).hint(hint)
    })
}

/// Checks an image by its first kilobytes, by more of it only where those do not hold the header.
fn check_header(source: &ImageSource) -> Result<()> {
    let mut limit = 1 << 14;
    loop {
        let start = source.start(limit)?;
        match image::header(&start, &source.describe()) {
            Err(_) if start.len() == limit => limit *= 16,
            found => return found.map(drop),
        }
    }
}

fn without_hint(error: &Error) -> String {
    match error {
        Error::One(problem) => format!("{}: {}", problem.place, problem.what),
        Error::Many(_) => error.to_string(),
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
fn add_to_digest(digest: &mut Sha256, example: &Example, encoded: &Encoded) -> Result<()> {
    for tokens in [Some(&encoded.prompt), Some(&encoded.chosen), encoded.rejected.as_ref()].into_iter().flatten() {
        digest.update((tokens.ids.len() as u64).to_le_bytes());
        tokens.ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
    }
    for image in example.images.iter().chain(&example.rejected_images) {
        match image {
            ImageSource::Path(path) => digest.update(path.as_os_str().as_encoded_bytes()),
            ImageSource::Embedded(_) => digest.update(image.read()?),
        }
    }
    Ok(())
}
