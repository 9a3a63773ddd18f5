//! What reads texts and images for a checkpoint: its tokenizer with its template, its image processor, and pictures wherever they are.

use crate::data::ImageSource;
use crate::image::{self, ImageProcessor, Picture};
use crate::model::{Shape, VisionShape};
use crate::text::{Encoder, ImageToken};
use crate::{Error, Result};
use std::path::Path;

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

/// Reads and decodes an image.
///
/// # Errors
/// A file that cannot be read, of no known format, damaged, or too large an image.
pub fn picture(source: &ImageSource) -> Result<Picture> {
    image::decode(&source.read()?, &source.describe())
}

/// Tokenizer and template of the checkpoint in `folder`, whose configuration is `shape`.
///
/// # Errors
/// Files that are missing or damaged, or that do not fit the configuration.
pub fn encoder(folder: &Path, shape: &Shape) -> Result<Encoder> {
    let token = |vision: &VisionShape| ImageToken { id: vision.image_token, features: vision.tokens_per_image() };
    Encoder::load(folder, shape.vision.as_ref().map(token), shape.language.vocab)
}

/// What prepares images for the checkpoint in `folder`, whose configuration is `shape`; nothing for a model without eyes.
///
/// # Errors
/// Files that are missing or damaged, or that do not fit the vision tower.
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
