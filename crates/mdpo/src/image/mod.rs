//! 3: from encoded images to what the vision tower sees.
//!
//! [`decode::decode`] reads a file as `datasets` and Pillow do, [`resize`] is Pillow's resampling, [`clip::ImageProcessor`] is
//! transformers' CLIP processor, and [`corrupt::corrupt`] makes the rejected image of mDPO.

pub mod clip;
pub mod corrupt;
pub mod decode;
pub mod resize;

mod jitter;
mod jpeg;

pub use clip::ImageProcessor;
pub use corrupt::{Corrupted, CropBox, blank, corrupt, random_other};
pub use decode::{decode, header};

/// A decoded picture: 8-bit RGB, rows top to bottom, as Pillow's `convert("RGB")` gives it.
pub type Picture = ::image::RgbImage;

/// What the vision tower sees: normalised values in the order channel, row, column.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `3 · height · width` values.
    pub values: Vec<f32>,
}
