//! Everything a run reads before its first step: checked, counted, and ready to be asked for example by example.
//!
//! Kept for every row are its texts, where its images are and how large it is; token ids and pictures are made anew when its turn comes.

use crate::address::Address;
use crate::config::{Corruption, Objective, Odpo, Offset, Redraw, Run, TrainImages};
use crate::data::{self, Answer, Example, ImageSource, LeftOut, Need, Prompt, Scores, Sides};
use crate::image::{self, Corrupted, ImageProcessor, Picture};
use crate::model::{Shape, VisionShape};
use crate::objective::Needs;
use crate::text::{Encoded, EncodedRow, Encoder, ImageToken, Tokens};
use crate::{Error, Result};
use rand::RngExt;
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
    train_images: TrainImages,
    seed: u64,
    /// Every distinct picture, for `random_image`.
    distinct: Vec<ImageSource>,
    /// Where each of them stands there.
    places: HashMap<ImageSource, usize>,
    /// Answers without images in the order of their examples, and the length of each example's prompt, for [`Inputs::mismatched`].
    loose: Vec<LooseAnswer>,
    prompts: Vec<usize>,
    /// Weights of the auxiliary rewards, in the order of an answer's.
    reward_weights: Vec<f64>,
}

/// How large an example is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens as packed, of all views that the objective asks for.
    pub packed: usize,
    /// Pairs.
    pub pairs: usize,
    /// Answers of all pairs, one that is in two of them twice.
    pub answers: usize,
    /// Labels of the chosen answers of all pairs.
    pub chosen_labels: usize,
}

/// An answer without images that another example's prompt may be followed by.
#[derive(Debug, Clone, Copy)]
struct LooseAnswer {
    example: usize,
    answer: usize,
    tokens: usize,
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
    /// Rows and pairs that were left out since they give nothing to compare.
    pub left_out: LeftOut,
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
    /// SHA-256 over the token ids, pairs, scores, rewards and images of all usable rows, in hexadecimal.
    pub digest: String,
}

/// The pictures of an example.
#[derive(Debug)]
pub struct Pictures {
    /// As decoded.
    pub true_images: Vec<Picture>,
    /// What stands against them, where the objective asks for it.
    pub rejected: Vec<Corrupted>,
    /// What the reference sees in their place, where it does not see the same.
    pub rejected_of_reference: Vec<Corrupted>,
}

impl Inputs {
    /// Reads and checks everything but the weights; `check` says how closely images are looked at.
    pub fn open(run: &Run, check: PictureCheck) -> Result<Self> {
        let shape = Shape::read(&run.model.path)?;
        let needs = run.objective.needs();
        let encoder = encoder(&run.model.path, &shape)?;
        let processor = processor(&run.model.path, &shape)?;
        let max_length = max_length(run, &shape)?;
        let dataset = data::load(&run.data, &need(run, needs), run.seed)?;
        let rows = dataset.rows();
        let data::Dataset { examples, problems, left_out } = dataset;
        let mut inputs = Inputs {
            shape,
            encoder,
            processor,
            examples,
            sizes: Vec::new(),
            report: Report { rows, left_out, ..Report::default() },
            max_length,
            needs,
            overlong: run.data.overlong,
            rejected_image: run.rejected_image.clone(),
            train_images: run.data.train_images,
            seed: run.seed,
            distinct: Vec::new(),
            places: HashMap::new(),
            loose: Vec::new(),
            prompts: Vec::new(),
            reward_weights: run.objective.auxiliary_rewards().iter().map(|reward| reward.weight).collect(),
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
        let comparing = self.report.rows - self.report.left_out.rows;
        self.report.skipped = data::decide(problems, run.data.max_skipped_rows, comparing)?;
        self.find_mismatched()?;
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
        if self.needs.mismatched {
            let example = self.examples.len();
            let without_images = row.encoded.answers.iter().enumerate().filter(|(_, answer)| answer.images.is_empty());
            let loose =
                without_images.map(|(answer, tokens)| LooseAnswer { example, answer, tokens: tokens.ids.len() });
            self.loose.extend(loose);
            self.prompts.push(row.encoded.prompt.ids.len());
        }
        self.examples.push(example);
        self.sizes.push(size);
    }

    /// The last token of a response is no input, see [`crate::text::pack`].
    fn size(&self, example: &Example, encoded: &Encoded) -> Size {
        let inputs = |answer: &Tokens| answer.ids.len() - 1;
        let prompt = encoded.prompt.ids.len();
        let corrupted = self.needs.corrupted && !example.images.is_empty();
        let corrupted = match example.chosen_answers().as_slice() {
            chosen if corrupted && !chosen.is_empty() => {
                let one = prompt + chosen.iter().map(|&answer| inputs(&encoded.answers[answer])).sum::<usize>();
                if self.rejected_image.redraw == Redraw::EachForward { 2 * one } else { one }
            }
            _ => 0,
        };
        let chosen = || example.pairs.iter().filter_map(|pair| pair.chosen);
        Size {
            packed: prompt + encoded.answers.iter().map(inputs).sum::<usize>() + corrupted,
            pairs: example.pairs.len(),
            answers: example.pairs.iter().map(|pair| pair.sides().count()).sum(),
            chosen_labels: chosen().map(|answer| encoded.answers[answer].labels()).sum(),
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
        let shown = |source| Ok(self.shown(decoded(example, source)?));
        let true_images = example.images.iter().map(shown).collect::<Result<Vec<_>>>()?;
        if !self.needs.corrupted {
            return Ok(Pictures { true_images, rejected: Vec::new(), rejected_of_reference: Vec::new() });
        }
        /// Epochs of the images that the reference alone sees.
        const OF_REFERENCE: u64 = 1 << 63;
        let redraw = self.rejected_image.redraw;
        let drawn = |epoch: u64| -> Result<Vec<Corrupted>> {
            let address = Address { seed: self.seed, epoch, example: index as u64 };
            true_images.iter().enumerate().map(|(i, own)| self.rejected(example, own, i, address)).collect()
        };
        let rejected = drawn(if redraw == Redraw::Once { 0 } else { epoch as u64 })?;
        let rejected_of_reference = match redraw {
            Redraw::EachForward => drawn(OF_REFERENCE | epoch as u64)?,
            Redraw::EachEpoch | Redraw::Once => Vec::new(),
        };
        Ok(Pictures { true_images, rejected, rejected_of_reference })
    }

    /// What follows the prompt of example `index` for KTO's estimate of a divergence: an answer of another example, the same in every epoch, cut to
    /// the longest length where it must be; nothing where the objective asks for none.
    pub fn mismatched(&self, index: usize, prompt: &Tokens) -> Result<Option<Tokens>> {
        let Some(loose) = self.loose_answer(index) else { return Ok(None) };
        let mut encoded = self.encode(&self.examples[loose.example])?.encoded;
        let mut answer = encoded.answers.swap_remove(loose.answer);
        let room = self.max_length - prompt.ids.len();
        answer.ids.truncate(room);
        answer.counted.truncate(room);
        Ok(Some(answer))
    }

    /// The one of the loose answers that example `index` is given: any of another example, all alike.
    fn loose_answer(&self, index: usize) -> Option<LooseAnswer> {
        let own = |answer: &LooseAnswer| answer.example == index;
        let before = self.loose.partition_point(|answer| answer.example < index);
        let owned = self.loose[before..].iter().take_while(|answer| own(answer)).count();
        let others = self.loose.len().checked_sub(owned).filter(|others| *others > 0)?;
        let address = Address { seed: self.seed, epoch: 0, example: index as u64 };
        let drawn = address.rng("mismatched answer").random_range(0..others as u64) as usize;
        Some(self.loose[if drawn >= before { drawn + owned } else { drawn }])
    }

    /// Finds every example an answer of another one, and adds it to its size.
    fn find_mismatched(&mut self) -> Result<()> {
        if !self.needs.mismatched {
            return Ok(());
        }
        for index in 0..self.examples.len() {
            let Some(loose) = self.loose_answer(index) else {
                let what =
                    "the objective compares answers with those of other rows, but no other row has one without images";
                return Err(Error::at(&self.examples[index].row, what).hint("add rows, or use another `loss_type`"));
            };
            let room = self.max_length - self.prompts[index];
            self.sizes[index].packed += loose.tokens.min(room) - 1;
        }
        Ok(())
    }

    /// The auxiliary reward of an answer: those of the recipe, weighted.
    pub fn reward(&self, answer: &Answer) -> f64 {
        answer.rewards.iter().zip(&self.reward_weights).map(|(reward, weight)| reward * weight).sum()
    }

    /// A picture of the data as the model sees it.
    fn shown(&self, picture: Picture) -> Picture {
        match self.train_images {
            TrainImages::Keep | TrainImages::Drop => picture,
            TrainImages::Black => image::blank(&picture, [0; 3]),
            TrainImages::MeanColour => image::blank(&picture, self.mean_colour()),
        }
    }

    fn mean_colour(&self) -> [u8; 3] {
        self.processor.as_ref().map_or([127; 3], ImageProcessor::mean_colour)
    }

    /// Whether every epoch sees the same rejected images.
    pub fn rejected_images_recur(&self) -> bool {
        let drawn = !matches!(self.rejected_image.corruption, Corruption::Blank | Corruption::Given);
        !drawn || self.rejected_image.redraw == Redraw::Once
    }

    fn rejected(&self, example: &Example, own: &Picture, image: usize, address: Address) -> Result<Corrupted> {
        let corruption = &self.rejected_image.corruption;
        let mean = self.mean_colour();
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

/// What every row must hold for an objective with these needs.
fn need(run: &Run, needs: Needs) -> Need {
    let rejected_images = needs.corrupted && run.rejected_image.corruption == Corruption::Given;
    let sides = match (needs.unpaired, needs.rejected || rejected_images) {
        (true, _) => Sides::Either,
        (false, true) => Sides::Both,
        (false, false) => Sides::Chosen,
    };
    let scores = match &run.objective {
        Objective::Odpo(Odpo { offset: Offset::Ratio, .. }) => Scores::Positive,
        _ if needs.scores => Scores::Higher,
        _ => Scores::Unread,
    };
    let rewards = run.objective.auxiliary_rewards().iter().map(|reward| reward.name.clone()).collect();
    Need { sides, rejected_images, scores, rewards }
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
///
/// # Errors
/// A file that cannot be read, of no known format, or too large an image.
pub fn check_header(source: &ImageSource) -> Result<()> {
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

/// Adds what a row is to the digest of the data set: its token ids, pairs, scores and rewards, and where its images are or what they hold.
fn add_to_digest(digest: &mut Sha256, example: &Example, encoded: &Encoded) -> Result<()> {
    for tokens in std::iter::once(&encoded.prompt).chain(&encoded.answers) {
        digest.update((tokens.ids.len() as u64).to_le_bytes());
        tokens.ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
    }
    for pair in &example.pairs {
        // A missing side is 0, the first answer 1.
        let number = |side: Option<usize>| side.map_or(0, |answer| answer as u64 + 1);
        [pair.chosen, pair.rejected].into_iter().for_each(|side| digest.update(number(side).to_le_bytes()));
    }
    for answer in &example.answers {
        answer.score.iter().chain(&answer.rewards).for_each(|number| digest.update(number.to_le_bytes()));
    }
    for image in example.images.iter().chain(&example.rejected_images) {
        match image {
            ImageSource::Path(path) => digest.update(path.as_os_str().as_encoded_bytes()),
            ImageSource::Embedded(_) => digest.update(image.read()?),
        }
    }
    Ok(())
}
