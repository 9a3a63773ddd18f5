//! Pictures as data URLs: scaled down, as JPEG or PNG, whichever is smaller, within a budget for the whole page.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, imageops::FilterType};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// The longest edge of a picture in the page, in pixels.
pub const EDGE: u32 = 384;
/// The most bytes that all pictures of a page take together.
pub const BUDGET: usize = 8 << 20;
const QUALITY: u8 = 80;

/// The pictures of a page.
#[derive(Debug, Default)]
pub(super) struct Album {
    known: BTreeMap<PathBuf, Shown>,
    used: usize,
}

/// A picture in the page, or why there is none.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Shown {
    Picture { url: String, width: u32, height: u32 },
    Missing { why: String },
}

impl Album {
    /// The picture of a file; what is wrong with it stands in its place.
    pub fn file(&mut self, path: &Path) -> Shown {
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let shown = match std::fs::read(path) {
            Ok(bytes) => self.bytes(&bytes),
            Err(error) => {
                // The page is shared: it tells the file's name, not where it lay.
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Shown::Missing { why: format!("cannot read `{name}`: {error}") }
            }
        };
        self.known.insert(path.to_owned(), shown.clone());
        shown
    }

    /// The picture of a file's bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Shown {
        let picture = match decoded(bytes) {
            Ok(picture) => picture,
            Err(error) => return Shown::Missing { why: format!("not a picture that can be shown: {error}") },
        };
        let picture = match picture.width().max(picture.height()) > EDGE {
            true => picture.resize(EDGE, EDGE, FilterType::Lanczos3),
            false => picture,
        };
        let Some(url) = data_url(&picture) else {
            return Shown::Missing { why: "the picture cannot be encoded".to_owned() };
        };
        if self.used + url.len() > BUDGET {
            return Shown::Missing { why: format!("left out: the pictures of this page fill {} MiB", BUDGET >> 20) };
        }
        self.used += url.len();
        Shown::Picture { url, width: picture.width(), height: picture.height() }
    }

    /// How many files could not be shown.
    pub fn missing(&self) -> usize {
        self.known.values().filter(|shown| matches!(shown, Shown::Missing { .. })).count()
    }
}

fn decoded(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
    let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    Ok(DynamicImage::ImageRgb8(picture.into_rgb8()))
}

fn data_url(picture: &DynamicImage) -> Option<String> {
    let (mut jpeg, mut png) = (Vec::new(), Cursor::new(Vec::new()));
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).ok()?;
    picture.write_to(&mut png, ImageFormat::Png).ok()?;
    let png = png.into_inner();
    let (kind, bytes) = if png.len() <= jpeg.len() { ("png", png) } else { ("jpeg", jpeg) };
    Some(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let noise = |x: u32, y: u32| image::Rgb([(x * 7 % 256) as u8, (y * 13 % 256) as u8, (x * y % 256) as u8]);
        image::RgbImage::from_fn(width, height, noise).write_to(&mut bytes, ImageFormat::Png).expect("encoded");
        bytes.into_inner()
    }

    #[test]
    fn pictures_are_scaled_and_what_is_broken_says_why() {
        let mut album = Album::default();
        let Shown::Picture { url, width, height } = album.bytes(&png(1000, 500)) else { panic!("a picture") };
        assert_eq!((width, height), (384, 192));
        assert!(url.starts_with("data:image/jpeg;base64,") && url.len() < 80_000, "{}", url.len());
        let Shown::Missing { why } = album.bytes(b"GIF89a") else { panic!("no picture") };
        assert!(why.starts_with("not a picture"), "{why}");
        let Shown::Missing { why } = album.file(Path::new("/no/such.png")) else { panic!("no picture") };
        assert!(why.starts_with("cannot read `such.png`"), "{why}");
        assert_eq!(album.missing(), 1);
    }

    #[test]
    fn pictures_stay_within_their_budget() {
        let mut album = Album { used: BUDGET - 100, ..Album::default() };
        let Shown::Missing { why } = album.bytes(&png(64, 64)) else { panic!("no room") };
        assert!(why.contains("8 MiB"), "{why}");
    }
}
