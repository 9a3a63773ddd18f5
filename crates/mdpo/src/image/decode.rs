//! From the bytes of a file to a [`Picture`], as `datasets` 5.2 and Pillow 13 read it: `Image.open`, the EXIF orientation
//! applied, then `convert("RGB")`.
//!
//! What Pillow's conversion means and a reader may not expect: transparency is dropped without blending (the hidden colours
//! appear), 16-bit grey is cut off at 255 rather than scaled, other 16-bit files keep the high byte, CMYK files are taken as
//! inverted (Adobe's habit) whatever they say. All files give Pillow's bytes but 16-bit BMP, which is within 1/255.
//!
//! Unlike Pillow, a picture over [`MAX_PIXELS`] is refused where Pillow first warns, and a PNG without its last checksum is refused.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb};

use super::{Picture, jpeg};
use crate::{Error, Result};

/// The most pixels a picture may have: Pillow's threshold for a decompression bomb (a quarter GiB of 24-bit pixels, in thirds).
pub const MAX_PIXELS: u64 = 178_956_970;

/// Width and height of the picture that [`decode`] would give, read from the file's header alone.
///
/// `place` names the image in errors (its path, or the row that holds its bytes).
pub fn header(bytes: &[u8], place: &str) -> Result<(u32, u32)> {
    if format(bytes, place)? == ImageFormat::Gif {
        return Ok(gif_frame(bytes, place)?.canvas);
    }
    let mut decoder = open(bytes, place)?;
    let (width, height) = decoder.dimensions();
    Ok(match orientation(decoder.as_mut()) {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    })
}

/// Decodes a JPEG, PNG, WebP, GIF (its first frame) or BMP file, told apart by content.
///
/// # Errors
/// Names `place` when the bytes are of another kind, broken or truncated, or when the picture has over [`MAX_PIXELS`].
pub fn decode(bytes: &[u8], place: &str) -> Result<Picture> {
    let format = format(bytes, place)?;
    if format == ImageFormat::Gif {
        return gif(bytes, place);
    }
    let mut decoder = open(bytes, place)?;
    let orientation = orientation(decoder.as_mut());
    if is_cut_short(bytes, format) {
        return Err(truncated(place, bytes.len()));
    }
    let picture = if format == ImageFormat::Jpeg {
        jpeg::decode(bytes, place)?
    } else {
        to_rgb(DynamicImage::from_decoder(decoder).map_err(|error| broken(place, &error))?, bytes)
    };
    let mut image = DynamicImage::ImageRgb8(picture);
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// The kind of file, one of the five.
fn format(bytes: &[u8], place: &str) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    let hint = "JPEG, PNG, WebP, GIF and BMP images are read; convert it to one of them";
    if bytes.is_empty() {
        return Err(Error::at(place, "expected an image, found no bytes"));
    }
    match ::image::guess_format(bytes) {
        Ok(format @ (Jpeg | Png | WebP | Gif | Bmp)) => Ok(format),
        Ok(other) => Err(Error::at(place, format!("expected an image mdpo can read, found {other:?}")).hint(hint)),
        Err(_) => Err(Error::at(place, "expected an image, found bytes of no known image format").hint(hint)),
    }
}

fn open<'a>(bytes: &'a [u8], place: &str) -> Result<Box<dyn ImageDecoder + 'a>> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format(bytes, place)?);
    reader.limits(Limits::no_limits());
    let decoder = reader.into_decoder().map_err(|error| broken(place, &error))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, place)?;
    Ok(Box::new(decoder))
}

fn check_size(width: u32, height: u32, place: &str) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::at(place, format!("expected a picture, found one of {width} × {height} pixels")));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let what = format!("expected at most {MAX_PIXELS} pixels, found {width} × {height}");
        return Err(
            Error::at(place, what).hint("make the picture smaller; a file like this may be meant to fill the memory")
        );
    }
    Ok(())
}

pub(super) fn broken(place: &str, error: &dyn std::fmt::Display) -> Error {
    Error::at(place, format!("cannot decode the image: {error}"))
        .hint("the file is broken or incomplete; fetch it again or leave the row out")
}

fn truncated(place: &str, bytes: usize) -> Error {
    broken(place, &format!("it ends early, after {bytes} bytes"))
}

/// Which turn or flip makes the picture upright, by EXIF or else by XMP, as Pillow's `getexif` reads them.
fn orientation(decoder: &mut dyn ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten().and_then(|chunk| Orientation::from_exif_chunk(&chunk));
    let xmp = || decoder.xmp_metadata().ok().flatten().and_then(|xmp| Orientation::from_exif(xmp_orientation(&xmp)?));
    exif.or_else(xmp).unwrap_or(Orientation::NoTransforms)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    let text = String::from_utf8_lossy(xmp);
    let mut after = text.split("tiff:Orientation").skip(1);
    after.find_map(|rest| {
        let rest = rest.strip_prefix("=\"").or_else(|| rest.strip_prefix('>'))?;
        rest.chars().next()?.to_digit(10).map(|digit| digit as u8)
    })
}

/// Pillow's `convert("RGB")`.
fn to_rgb(image: DynamicImage, bytes: &[u8]) -> Picture {
    // Pillow opens 16-bit grey as `I;16`, whose conversion clips; the transparent colour of such a PNG must not hide that
    // (byte 25 of a PNG is its colour type, 0 is grey).
    let clipped = |value: u16| value.min(255) as u8;
    let high = |value: u16| (value >> 8) as u8;
    let (width, height) = (image.width(), image.height());
    let from = |colour: &dyn Fn(u32, u32) -> [u8; 3]| Picture::from_fn(width, height, |x, y| Rgb(colour(x, y)));
    match image {
        DynamicImage::ImageLuma16(grey) => from(&|x, y| [clipped(grey.get_pixel(x, y).0[0]); 3]),
        DynamicImage::ImageLumaA16(grey) if bytes.get(25) == Some(&0) => {
            from(&|x, y| [clipped(grey.get_pixel(x, y).0[0]); 3])
        }
        DynamicImage::ImageLumaA16(grey) => from(&|x, y| [high(grey.get_pixel(x, y).0[0]); 3]),
        DynamicImage::ImageRgb16(rgb) => from(&|x, y| rgb.get_pixel(x, y).0.map(high)),
        DynamicImage::ImageRgba16(rgba) => from(&|x, y| {
            let [red, green, blue, _] = rgba.get_pixel(x, y).0.map(high);
            [red, green, blue]
        }),
        other => other.into_rgb8(),
    }
}

/// Whether the file ends before its own structure says so, where the decoder would fill in the rest by itself.
fn is_cut_short(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Jpeg => !jpeg_ends(bytes),
        // The RIFF header counts the bytes after its first eight.
        ImageFormat::WebP => match bytes.get(4..8) {
            Some(&[a, b, c, d]) => (bytes.len() as u64) < 8 + u64::from(u32::from_le_bytes([a, b, c, d])),
            _ => true,
        },
        _ => false,
    }
}

/// Whether a walk from marker to marker meets the end-of-image marker.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(offset) =
        bytes.get(at..).and_then(|rest| rest.windows(2).position(|pair| pair[0] == 0xFF && pair[1] != 0xFF))
    {
        let marker = bytes[at + offset + 1];
        at += offset + 2;
        match marker {
            0xD9 => return true,
            // A stuffed zero, restart and other markers without content.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(&[high, low]) => at += usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
        }
    }
    false
}

/// The first frame of a GIF, before its pixels are read.
struct GifFrame<'a> {
    /// What reads them.
    decoder: gif::Decoder<&'a [u8]>,
    /// Width and height of the canvas, grown as Pillow does to hold the frame.
    canvas: (u32, u32),
    /// Left and top of the frame.
    origin: (u32, u32),
    /// Width and height of the frame.
    size: (u32, u32),
    /// RGB triples.
    palette: Vec<u8>,
    /// The index that fills what the frame does not cover: the transparent one, else 0.
    outside: u8,
}

fn gif_frame<'a>(bytes: &'a [u8], place: &str) -> Result<GifFrame<'a>> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(|error| broken(place, &error))?;
    let frame = decoder.next_frame_info().map_err(|error| broken(place, &error))?;
    let frame = frame.ok_or_else(|| broken(place, &"a GIF without a frame"))?;
    let origin = (u32::from(frame.left), u32::from(frame.top));
    let size = (u32::from(frame.width), u32::from(frame.height));
    let (local, outside) = (frame.palette.clone(), frame.transparent.unwrap_or(0));
    let canvas =
        (u32::from(decoder.width()).max(origin.0 + size.0), u32::from(decoder.height()).max(origin.1 + size.1));
    check_size(canvas.0, canvas.1, place)?;
    let grey = || (0..=255).flat_map(|grey| [grey; 3]).collect();
    let palette = local.or_else(|| decoder.global_palette().map(<[u8]>::to_vec)).unwrap_or_else(grey);
    Ok(GifFrame { decoder, canvas, origin, size, palette, outside })
}

/// Pillow draws the first frame on a canvas of the transparent colour, else of colour 0.
fn gif(bytes: &[u8], place: &str) -> Result<Picture> {
    let GifFrame { mut decoder, canvas, origin, size, palette, outside } = gif_frame(bytes, place)?;
    let mut indices = vec![0; (size.0 * size.1) as usize];
    decoder.read_into_buffer(&mut indices).map_err(|error| broken(place, &error))?;
    let colour = |index: u8| {
        let at = 3 * usize::from(index);
        Rgb(palette.get(at..at + 3).map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]]))
    };
    let mut picture = Picture::from_pixel(canvas.0, canvas.1, colour(outside));
    for (index, at) in indices.iter().zip(0u32..) {
        picture.put_pixel(origin.0 + at % size.0, origin.1 + at / size.0, colour(*index));
    }
    Ok(picture)
}
