//! JPEG through libjpeg-turbo's decoder (as mozjpeg carries it): the bits that Pillow gives.
//!
//! Photos are what people train on, and decoders differ: a pure Rust one was up to 9/255 off, which moved the log-prob of an answer
//! by 0.08 nats.

use super::Picture;
use crate::Result;
use crate::error::guarded;
use std::io;

/// Decodes a whole JPEG as Pillow's `Image.open(f).convert("RGB")`; its four-channel files are inverted CMYK (Adobe's convention).
pub(super) fn decode(bytes: &[u8], place: &str) -> Result<Picture> {
    // libjpeg has no way back from an error but out of its call; the crate unwinds.
    let read = guarded(|| read(bytes)).unwrap_or_else(|| Err(io::Error::other("the data is damaged")));
    let (width, height, values) = read.map_err(|error| super::decode::broken(place, &error))?;
    let found = values.len();
    Picture::from_raw(width, height, values)
        .ok_or_else(|| super::decode::broken(place, &format!("{found} values for {width} × {height} pixels")))
}

fn read(bytes: &[u8]) -> io::Result<(u32, u32, Vec<u8>)> {
    let decoder = mozjpeg::Decompress::new_mem(bytes)?;
    let (width, height) = (decoder.width() as u32, decoder.height() as u32);
    use mozjpeg::ColorSpace::{JCS_CMYK, JCS_YCCK};
    if matches!(decoder.color_space(), JCS_CMYK | JCS_YCCK) {
        let mut started = decoder.to_colorspace(JCS_CMYK)?;
        let inks: Vec<[u8; 4]> = started.read_scanlines()?;
        started.finish()?;
        return Ok((width, height, inks.into_iter().flat_map(rgb).collect()));
    }
    let mut started = decoder.rgb()?;
    let pixels: Vec<[u8; 3]> = started.read_scanlines()?;
    started.finish()?;
    Ok((width, height, pixels.into_flattened()))
}

/// Pillow's conversion of one pixel of inverted CMYK: each ink takes its share of what black leaves.
fn rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(k);
    [c, m, y].map(|ink| {
        let product = (255 - u32::from(ink)) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}
