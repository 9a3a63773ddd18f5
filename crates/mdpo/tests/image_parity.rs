//! Decoding, resizing and CLIP's processor against Pillow 13, datasets 5.2 and transformers 5.23, on the files and values that
//! `parity/image/generate.py` wrote.

use std::path::{Path, PathBuf};

use image::Rgb;
use mdpo::image::Picture;
use mdpo::image::clip::ImageProcessor;
use mdpo::image::decode::{decode, header};
use mdpo::image::resize::{Filter, resize};
use safetensors::SafeTensors;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/image")
}

fn expected() -> Vec<u8> {
    std::fs::read(folder().join("expected.safetensors")).expect("the fixture")
}

/// The cases under a heading, with shapes and raw values.
fn cases<'a>(file: &'a [u8], heading: &str) -> Vec<(String, Vec<usize>, &'a [u8])> {
    let tensors = SafeTensors::deserialize(file).expect("the fixture is whole");
    let case = |(name, view): (String, safetensors::tensor::TensorView<'a>)| {
        Some((name.strip_prefix(heading)?.to_owned(), view.shape().to_vec(), view.data()))
    };
    let cases: Vec<_> = tensors.tensors().into_iter().filter_map(case).collect();
    assert!(!cases.is_empty(), "{heading}");
    cases
}

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("samples").join(name)).expect("the fixture")
}

fn samples() -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder().join("samples")).expect("the fixture");
    let name =
        |entry: std::io::Result<std::fs::DirEntry>| entry.expect("readable").file_name().into_string().expect("plain");
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), sample(&name))).collect()
}

/// The generator's `noise`.
fn noise(width: u32, height: u32) -> Picture {
    let value = |x: u32, y: u32, c: u32| ((x * 31 + y * 57 + c * 91).wrapping_mul(2_654_435_761) >> 24) as u8;
    Picture::from_fn(width, height, |x, y| Rgb([value(x, y, 0), value(x, y, 1), value(x, y, 2)]))
}

/// `337x201` as numbers.
fn size(text: &str) -> (u32, u32) {
    let (width, height) = text.split_once('x').expect("WxH");
    (width.parse().expect("a number"), height.parse().expect("a number"))
}

#[test]
fn files_decode_to_pillows_bytes() {
    let file = expected();
    for (name, shape, values) in cases(&file, "decode/") {
        let bytes = sample(&name);
        let picture = decode(&bytes, &name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!([picture.height() as usize, picture.width() as usize, 3], *shape, "{name}");
        assert_eq!(header(&bytes, &name).expect("has a header"), picture.dimensions(), "{name}");
        let worst = picture.iter().zip(values).map(|(ours, pillows)| ours.abs_diff(*pillows)).max();
        // Measured: 1 for BMP of 16 bits, 0 for all else.
        let allowed = match name.as_str() {
            "bmp_555.bmp" | "bmp_565.bmp" => 1,
            _ => 0,
        };
        println!("{name}: {worst:?}");
        assert!(worst <= Some(allowed), "{name}: {worst:?}");
    }
}

#[test]
fn resizing_gives_pillows_bytes() {
    let file = expected();
    for (name, shape, values) in cases(&file, "resize/") {
        let [filter, source, target] = *name.split('/').collect::<Vec<_>>() else { panic!("{name}") };
        let filter = match filter {
            "lanczos" => Filter::Lanczos,
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let ((from_width, from_height), (width, height)) = (size(source), size(target));
        assert_eq!(shape, [height as usize, width as usize, 3]);
        let out = resize(&noise(from_width, from_height), width as usize, height as usize, filter);
        let worst = out.iter().zip(values).map(|(ours, pillows)| ours.abs_diff(*pillows)).max();
        assert_eq!(worst, Some(0), "{name}");
    }
}

#[test]
fn clip_gives_transformers_values() {
    let file = expected();
    for (name, shape, values) in cases(&file, "clip/") {
        let (processor, source) = name.split_once('/').expect("processor/size");
        let processor = ImageProcessor::load(&folder().join("processors").join(processor))
            .unwrap_or_else(|error| panic!("{error}"));
        let (width, height) = size(source);
        let pixels = processor.process(&noise(width, height));
        assert_eq!((pixels.height, pixels.width), processor.output_size());
        // The fixture of the large processor keeps every 16th row and column.
        let step = pixels.height.div_ceil(shape[1]);
        let kept = |(index, _): &(usize, &f32)| {
            (index / pixels.width % pixels.height).is_multiple_of(step) && (index % pixels.width).is_multiple_of(step)
        };
        let ours: Vec<f32> = pixels.values.iter().enumerate().filter(kept).map(|(_, value)| *value).collect();
        let theirs: Vec<f32> = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        // Measured: bit for bit.
        assert!(ours == theirs, "{name}");
    }
}

#[test]
fn a_file_that_ends_early_is_refused_by_name() {
    // Half of the animated GIF still holds its first frame.
    for (name, bytes) in samples().into_iter().filter(|(name, _)| name != "gif_animated.gif") {
        // Bytes after the end of the picture: the trailer of a GIF, the last chunk of a PNG, metadata after a WebP's pixels.
        let body = if name.contains("trailing") { bytes.len() - b"more after the end".len() } else { bytes.len() };
        let spare = if name.ends_with(".png") {
            16
        } else if name.ends_with(".gif") {
            8
        } else {
            4
        };
        for kept in [1, body / 10, body / 3, body / 2, body * 9 / 10, body - spare] {
            let error = decode(&bytes[..kept.min(body - spare)], &name).err();
            let error = error.unwrap_or_else(|| panic!("{name} cut to {kept} of {body} bytes was read")).to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
        if name.ends_with(".jpg") {
            // Every cut, to the end-of-image marker: the decoder itself would fill the rest with grey.
            assert!((1..body).all(|kept| decode(&bytes[..kept], &name).is_err()), "{name}");
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let text = |bytes: &[u8]| decode(bytes, "row 3").expect_err("is no image").to_string();
    assert_eq!(text(b""), "row 3: expected an image, found no bytes");
    assert!(text(b"hello, this is text").contains("no known image format"));
    assert!(text(b"II*\0 a TIFF file").contains("Tiff"));
    // A PNG header that claims 60,000 × 60,000 pixels.
    let mut huge = sample("png_rgb.png");
    huge[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    let crc = crc(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    assert!(text(&huge).contains("at most 178956970 pixels, found 60000 × 60000"), "{}", text(&huge));
    assert!(header(&huge, "row 3").is_err());
}

#[test]
fn damaged_bytes_never_panic() {
    for (name, bytes) in samples() {
        let mut state = 1u32;
        for _ in 0..60 {
            let mut damaged = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize / 7 % damaged.len();
                damaged[at] = (state >> 24) as u8;
            }
            // Either answer is fine, a panic or an endless loop is not; large claims are left out, they only cost time.
            if header(&damaged, &name).is_ok_and(|(width, height)| u64::from(width) * u64::from(height) < 1 << 20) {
                let _ = decode(&damaged, &name);
            }
        }
    }
}

/// PNG's checksum.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
