//! Colour jitter and blur, for MoCo v2's augmentation.
//!
//! The formulas are torchvision's on Pillow images, on floats and rounded once a step.

use super::Picture;

/// A change of colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// A blend with black; 1 leaves the picture as it is.
    Brightness(f32),
    /// A blend with the picture's mean grey.
    Contrast(f32),
    /// A blend with the pixel's own grey; 0 is a grey picture.
    Saturation(f32),
    /// A turn of the hue, in turns.
    Hue(f32),
}

/// ITU-R 601 luma, as Pillow's `convert("L")`.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// `factor` of the value and the rest of `other`.
fn blend(value: u8, other: f32, factor: f32) -> u8 {
    (other + (f32::from(value) - other) * factor).round().clamp(0.0, 255.0) as u8
}

impl Step {
    pub(super) fn apply(self, picture: &mut Picture) {
        match self {
            Step::Brightness(factor) => picture.iter_mut().for_each(|value| *value = blend(*value, 0.0, factor)),
            Step::Contrast(factor) => {
                let sum: u64 = picture.pixels().map(|pixel| u64::from(luma(pixel.0))).sum();
                let mean = (sum as f64 / picture.pixels().len().max(1) as f64).round() as f32;
                picture.iter_mut().for_each(|value| *value = blend(*value, mean, factor));
            }
            Step::Saturation(factor) => picture.pixels_mut().for_each(|pixel| {
                let grey = f32::from(luma(pixel.0));
                pixel.0 = pixel.0.map(|value| blend(value, grey, factor));
            }),
            Step::Hue(turn) => picture.pixels_mut().for_each(|pixel| pixel.0 = turn_hue(pixel.0, turn)),
        }
    }
}

/// The same lightest and darkest value and the same chroma, the hue moved by `turn` turns.
fn turn_hue(rgb: [u8; 3], turn: f32) -> [u8; 3] {
    let [red, green, blue] = rgb.map(f32::from);
    let (high, low) = (red.max(green).max(blue), red.min(green).min(blue));
    let chroma = high - low;
    if chroma == 0.0 {
        return rgb;
    }
    let sixth = if high == red {
        (green - blue) / chroma
    } else if high == green {
        (blue - red) / chroma + 2.0
    } else {
        (red - green) / chroma + 4.0
    };
    let sixth = (sixth + 6.0 * turn).rem_euclid(6.0);
    // Each channel is a trapezoid over the hue, the three a third of a turn apart.
    let channel = |shift: f32| {
        let k = (sixth + shift).rem_euclid(6.0);
        (high - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

/// A Gaussian blur of standard deviation `sigma` pixels; the edge pixels go on outside the picture.
pub(super) fn blur(picture: &Picture, sigma: f32) -> Picture {
    let radius = (3.0 * sigma).ceil() as usize;
    let weights: Vec<f32> =
        (0..=2 * radius).map(|i| (-(i as f32 - radius as f32).powi(2) / (2.0 * sigma * sigma)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    // Along an axis of `len` pixels whose neighbours lie `step` values apart, for the line that starts at value `start`.
    let line = |from: &[f32], to: &mut [f32], start: usize, step: usize, len: usize| {
        for i in 0..len {
            let tap =
                |(k, weight): (usize, &f32)| weight * from[start + (i + k).saturating_sub(radius).min(len - 1) * step];
            to[start + i * step] = weights.iter().enumerate().map(tap).sum::<f32>() / sum;
        }
    };
    let mut values: Vec<f32> = picture.iter().map(|value| f32::from(*value)).collect();
    let mut other = values.clone();
    for start in (0..height).flat_map(|y| (0..3).map(move |c| 3 * width * y + c)) {
        line(&values, &mut other, start, 3, width);
    }
    for start in 0..3 * width {
        line(&other, &mut values, start, 3 * width, height);
    }
    let mut out = picture.clone();
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.round().clamp(0.0, 255.0) as u8;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;

    #[test]
    fn hue_turns_red_to_green_and_back() {
        assert_eq!(turn_hue([200, 10, 10], 1.0 / 3.0), [10, 200, 10]);
        assert_eq!(turn_hue([200, 10, 10], -1.0 / 3.0), [10, 10, 200]);
        for rgb in [[12, 200, 77], [255, 0, 254], [9, 9, 9], [0, 128, 255]] {
            assert_eq!(turn_hue(rgb, 0.0), rgb);
            assert_eq!(turn_hue(rgb, 1.0), rgb);
        }
    }

    #[test]
    fn neutral_steps_change_nothing_and_grey_is_grey() {
        let picture = Picture::from_fn(7, 5, |x, y| Rgb([(x * 30) as u8, (y * 50) as u8, 99]));
        for step in [Step::Brightness(1.0), Step::Contrast(1.0), Step::Saturation(1.0), Step::Hue(0.0)] {
            let mut same = picture.clone();
            step.apply(&mut same);
            assert_eq!(same, picture, "{step:?}");
        }
        let mut grey = picture.clone();
        Step::Saturation(0.0).apply(&mut grey);
        assert!(grey.pixels().all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    }

    #[test]
    fn blur_keeps_a_flat_picture_and_spreads_a_point() {
        let flat = Picture::from_pixel(6, 4, Rgb([9, 80, 255]));
        assert_eq!(blur(&flat, 1.5), flat);
        let mut point = Picture::new(9, 9);
        point.put_pixel(4, 4, Rgb([255; 3]));
        let soft = blur(&point, 1.0);
        // The peak of a normalised Gaussian of σ = 1 sampled at ±3: 0.3991² of 255.
        assert_eq!(soft.get_pixel(4, 4)[0], 41);
        assert_eq!(soft.get_pixel(3, 4), soft.get_pixel(4, 5));
    }
}
