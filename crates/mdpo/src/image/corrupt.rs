//! The rejected image of mDPO (arXiv 2406.11839, §3.1 and Table 3), drawn once per [`Address`].
//!
//! Unlike the released code, which crops the padded and normalised tensor inside each forward pass (so that policy and reference see
//! different pixels, and padding can be drawn), the crop is drawn here, on the picture itself, before the image processor.

use rand::{Rng, RngExt};

use super::resize::{Filter, resize};
use super::{Picture, jitter};
use crate::address::Address;
use crate::config::Corruption;

/// A rectangle of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// Columns left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// A rejected image and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrupted {
    /// The rejected image, as large as the true one.
    pub picture: Picture,
    /// The rectangle that was kept, for [`Corruption::Crop`] and [`Corruption::Moco`].
    pub kept: Option<CropBox>,
}

/// Makes the rejected image of `picture`; `mean_colour` is what [`Corruption::Blank`] fills with.
///
/// For [`Corruption::RandomImage`] and [`Corruption::Given`] the caller has found the other picture and passes that one; it is
/// returned as it is. `image` is the image's place in its row: each draws a stream of its own.
pub fn corrupt(
    picture: &Picture,
    corruption: &Corruption,
    mean_colour: [u8; 3],
    address: Address,
    image: usize,
) -> Corrupted {
    let (width, height) = picture.dimensions();
    match corruption {
        Corruption::Crop { scale, ratio } => {
            let kept = draw_box(&mut address.rng(&format!("crop {image}")), (width, height), *scale, *ratio);
            Corrupted { picture: enlarge(picture, kept, Filter::Bicubic), kept: Some(kept) }
        }
        Corruption::Moco => {
            let (picture, kept) = moco(picture, &mut address.rng(&format!("moco {image}")));
            Corrupted { picture, kept: Some(kept) }
        }
        Corruption::Blank => Corrupted { picture: blank(picture, mean_colour), kept: None },
        Corruption::Noise => {
            let mut noise = Picture::new(width, height);
            address.rng(&format!("noise {image}")).fill_bytes(&mut noise);
            Corrupted { picture: noise, kept: None }
        }
        Corruption::RandomImage | Corruption::Given => Corrupted { picture: picture.clone(), kept: None },
    }
}

/// A picture of one colour, as large as `picture`.
pub fn blank(picture: &Picture, colour: [u8; 3]) -> Picture {
    let (width, height) = picture.dimensions();
    Picture::from_pixel(width, height, ::image::Rgb(colour))
}

/// Which other picture of `len` gives the image for [`Corruption::RandomImage`]: any but `own`, all alike; `None` when there is no other.
pub fn random_other(address: Address, image: usize, len: usize, own: usize) -> Option<usize> {
    let others = if own < len { len - 1 } else { len };
    if others == 0 {
        return None;
    }
    let drawn = address.rng(&format!("random_image {image}")).random_range(0..others as u64) as usize;
    Some(if drawn >= own { drawn + 1 } else { drawn })
}

/// The rectangle of torchvision's `RandomResizedCrop`: an area in `scale` of the whole and a width over height drawn log-uniformly
/// in `ratio`, ten tries to fit it, else the middle of the picture; here at least one pixel each way.
fn draw_box(rng: &mut impl Rng, (width, height): (u32, u32), scale: [f64; 2], ratio: [f64; 2]) -> CropBox {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..10 {
        let target = area * uniform(rng, scale);
        let aspect = uniform(rng, ratio.map(f64::ln)).exp();
        let side = |square: f64| square.sqrt().round_ties_even().max(1.0);
        let (across, down) = (side(target * aspect), side(target / aspect));
        if across <= f64::from(width) && down <= f64::from(height) {
            let (across, down) = (across as u32, down as u32);
            let top = rng.random_range(0..=height - down);
            let left = rng.random_range(0..=width - across);
            return CropBox { left, top, width: across, height: down };
        }
    }
    // Too long or too tall a picture: all of its short edge, and as much of the long one as the ratio allows.
    let aspect = f64::from(width) / f64::from(height);
    let (mut across, mut down) = (width, height);
    if aspect < ratio[0] {
        down = ((f64::from(width) / ratio[0]).round_ties_even() as u32).clamp(1, height);
    } else if aspect > ratio[1] {
        across = ((f64::from(height) * ratio[1]).round_ties_even() as u32).clamp(1, width);
    }
    CropBox { left: (width - across) / 2, top: (height - down) / 2, width: across, height: down }
}

/// A value in `[low, high)`, or `low` when the range is one point.
fn uniform(rng: &mut impl Rng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// Cuts `kept` out and resizes it to the picture's size.
fn enlarge(picture: &Picture, kept: CropBox, filter: Filter) -> Picture {
    let cut = ::image::imageops::crop_imm(picture, kept.left, kept.top, kept.width, kept.height).to_image();
    resize(&cut, picture.width() as usize, picture.height() as usize, filter)
}

/// MoCo v2's augmentation (arXiv 2003.04297; `aug_plus` of the released code): a crop of 20–100 %, colour jitter of strength
/// (0.4, 0.4, 0.4, 0.1) with probability 0.8, grey with 0.2, blur with 0.5, mirrored with 0.5.
///
/// MoCo works at 224 × 224 pixels; the blur's σ of 0.1–2 pixels is scaled from there to this picture's shorter edge.
fn moco(picture: &Picture, rng: &mut impl Rng) -> (Picture, CropBox) {
    let kept = draw_box(rng, picture.dimensions(), [0.2, 1.0], [3.0 / 4.0, 4.0 / 3.0]);
    let mut out = enlarge(picture, kept, Filter::Bilinear);
    if rng.random_bool(0.8) {
        let strength = |rng: &mut _| uniform(rng, [0.6, 1.4]) as f32;
        let mut steps = [
            jitter::Step::Brightness(strength(rng)),
            jitter::Step::Contrast(strength(rng)),
            jitter::Step::Saturation(strength(rng)),
            jitter::Step::Hue(uniform(rng, [-0.1, 0.1]) as f32),
        ];
        for last in (1..steps.len()).rev() {
            steps.swap(last, rng.random_range(0..=last as u32) as usize);
        }
        steps.iter().for_each(|step| step.apply(&mut out));
    }
    if rng.random_bool(0.2) {
        jitter::Step::Saturation(0.0).apply(&mut out);
    }
    if rng.random_bool(0.5) {
        let scale = f64::from(out.width().min(out.height())) / 224.0;
        out = jitter::blur(&out, (uniform(rng, [0.1, 2.0]) * scale) as f32);
    }
    if rng.random_bool(0.5) {
        ::image::imageops::flip_horizontal_in_place(&mut out);
    }
    (out, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;
    use proptest::prelude::*;

    const HERE: Address = Address { seed: 42, epoch: 0, example: 3 };
    const PAPER: Corruption = Corruption::Crop { scale: [0.01, 0.2], ratio: [3.0 / 4.0, 4.0 / 3.0] };
    const GREY: [u8; 3] = [122, 116, 104];

    /// Each pixel tells where it stood.
    fn map(width: u32, height: u32) -> Picture {
        Picture::from_fn(width, height, |x, y| {
            Rgb([(x * 255 / width.max(2)) as u8, (y * 255 / height.max(2)) as u8, (x ^ y) as u8])
        })
    }

    #[test]
    fn the_same_address_gives_the_same_pixels_and_another_epoch_others() {
        let picture = map(97, 64);
        for corruption in [PAPER, Corruption::Moco, Corruption::Noise] {
            let first = corrupt(&picture, &corruption, GREY, HERE, 0);
            assert_eq!(first, corrupt(&picture, &corruption, GREY, HERE, 0));
            assert_ne!(
                first.picture,
                corrupt(&picture, &corruption, GREY, Address { epoch: 1, ..HERE }, 0).picture,
                "{corruption:?}"
            );
            assert_ne!(first.picture, picture, "{corruption:?}");
            assert_eq!(first.picture.dimensions(), picture.dimensions());
        }
    }

    #[test]
    fn blank_is_the_mean_colour_and_other_pictures_pass_through() {
        let picture = map(5, 4);
        assert!(corrupt(&picture, &Corruption::Blank, GREY, HERE, 0).picture.pixels().all(|pixel| pixel.0 == GREY));
        assert_eq!(corrupt(&picture, &Corruption::Given, GREY, HERE, 0).picture, picture);
        assert_eq!(corrupt(&picture, &Corruption::RandomImage, GREY, HERE, 0).picture, picture);
    }

    #[test]
    fn a_crop_shows_what_is_in_its_box() {
        let mut picture = Picture::from_pixel(200, 150, Rgb([0, 0, 0]));
        let kept = corrupt(&picture, &PAPER, GREY, HERE, 0).kept.expect("a crop has a box");
        for y in kept.top..kept.top + kept.height {
            for x in kept.left..kept.left + kept.width {
                picture.put_pixel(x, y, Rgb([255, 128, 7]));
            }
        }
        assert!(corrupt(&picture, &PAPER, GREY, HERE, 0).picture.pixels().all(|pixel| pixel.0 == [255, 128, 7]));
    }

    #[test]
    fn the_kept_area_has_torchvisions_distribution() {
        // methods.md 1.3: 200,000 simulated draws of torchvision on 384² keep 10.5 % on average, 0.98–20.1 %, sides 33–198.
        let draws: Vec<CropBox> = (0..20_000)
            .map(|example| {
                draw_box(&mut Address { example, ..HERE }.rng("crop"), (384, 384), [0.01, 0.2], [3.0 / 4.0, 4.0 / 3.0])
            })
            .collect();
        let shares: Vec<f64> = draws.iter().map(|b| f64::from(b.width * b.height) / f64::from(384 * 384)).collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((mean - 0.105).abs() < 0.002, "{mean}");
        assert!(shares.iter().all(|share| (0.0097..0.202).contains(share)));
        assert!(draws.iter().all(|b| (33..=198).contains(&b.width) && (33..=198).contains(&b.height)));
        let left = draws.iter().map(|b| f64::from(b.left) / f64::from(384 - b.width)).sum::<f64>() / draws.len() as f64;
        assert!((left - 0.5).abs() < 0.01, "{left}");
    }

    #[test]
    fn any_other_example_is_drawn_alike() {
        assert_eq!(random_other(HERE, 0, 1, 0), None);
        assert_eq!(random_other(HERE, 0, 2, 1), Some(0));
        let mut counts = [0; 5];
        for example in 0..8000 {
            counts[random_other(Address { example, ..HERE }, 0, 5, 2).expect("there are others")] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!([0, 1, 3, 4].iter().all(|&i| (1800..2200).contains(&counts[i])), "{counts:?}");
    }

    proptest! {
        #[test]
        fn the_box_lies_inside_and_keeps_its_share(width in 64u32..900, height in 64u32..900, seed: u64) {
            let address = Address { seed, ..HERE };
            let (scale, ratio) = ([0.01, 0.2], [3.0 / 4.0, 4.0 / 3.0]);
            let kept = draw_box(&mut address.rng("crop"), (width, height), scale, ratio);
            prop_assert!(kept.left + kept.width <= width && kept.top + kept.height <= height);
            // Half a pixel of rounding on each side.
            let (w, h) = (f64::from(kept.width), f64::from(kept.height));
            let area = f64::from(width * height);
            prop_assert!((w + 0.5) * (h + 0.5) >= scale[0] * area);
            prop_assert!((w - 0.5) * (h - 0.5) <= scale[1] * area);
            prop_assert!((w + 0.5) / (h - 0.5) >= ratio[0] && (w - 0.5) / (h + 0.5) <= ratio[1]);
        }

        #[test]
        fn any_size_gives_a_picture(width in 1u32..12, height in 1u32..300, seed: u64) {
            for corruption in [PAPER, Corruption::Moco] {
                for (width, height) in [(width, height), (height, width)] {
                    let out = corrupt(&map(width, height), &corruption, GREY, Address { seed, ..HERE }, 0);
                    let kept = out.kept.expect("both crop");
                    prop_assert!(kept.width >= 1 && kept.left + kept.width <= width);
                    prop_assert!(kept.height >= 1 && kept.top + kept.height <= height);
                    prop_assert_eq!(out.picture.dimensions(), (width, height));
                }
            }
        }
    }
}
