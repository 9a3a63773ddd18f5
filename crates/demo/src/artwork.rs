//! The pictures of the 24 objects in two styles, square and with transparency: Twemoji (72 pixels, CC-BY 4.0), in which every model of the
//! example is trained, and Fluent Emoji 3D (48 pixels, MIT), which it meets only when it is measured. See this crate's README for both.

use crate::scenes::Object;
use image::{ImageFormat, RgbaImage};
use mdpo::{Error, Result};
use twemoji_assets::png::{PngTwemojiAsset, codes};

/// Sub-samples per pixel and direction when artwork is drawn smaller than it is.
const SUBSAMPLES: u32 = 4;

/// One emoji for every object, in the order of [`Object`].
const TWEMOJI: [&PngTwemojiAsset; 24] = [
    &codes::U_1F436, // dog face
    &codes::U_1F9B4, // bone
    &codes::U_1F431, // cat face
    &codes::U_1F41F, // fish
    &codes::U_1F697, // automobile
    &codes::U_1F6A6, // vertical traffic light
    &codes::U_1F333, // deciduous tree
    &codes::U_1F426, // bird
    &codes::U_1F3E0, // house
    &codes::U_1F511, // key
    &codes::U_1F355, // pizza
    &codes::U_1F37A, // beer mug
    &codes::U_2615,  // hot beverage
    &codes::U_1F36A, // cookie
    &codes::U_1F3B8, // guitar
    &codes::U_1F941, // drum
    &codes::U_26BD,  // soccer ball
    &codes::U_1F3C6, // trophy
    &codes::U_26F5,  // sailboat
    &codes::U_1F433, // spouting whale
    &codes::U_1F319, // crescent moon
    &codes::U_2B50,  // star
    &codes::U_1F41D, // honeybee
    &codes::U_1F33B, // sunflower
];

/// The pictures of Fluent Emoji 3D side by side, in the order of [`Object`]; `parity/demo/artwork.py` made the file.
const FLUENT: &[u8] = include_bytes!("../assets/fluent.png");

/// Whose pictures are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Flat drawings; what is trained on.
    Twemoji,
    /// Shaded ones, as if of clay, with other shapes and colours; only ever measured on.
    Fluent,
}

/// The decoded pictures of every object in one style.
pub struct Artwork {
    sprites: Vec<Sprite>,
}

/// A square picture: premultiplied red, green, blue and the alpha, each 0..=1, rows top to bottom.
struct Sprite {
    side: usize,
    rgba: Vec<[f32; 4]>,
}

/// A pixel of a drawn object, to be blended over what is there.
pub(crate) struct Fragment {
    pub x: u32,
    pub y: u32,
    pub rgba: [f32; 4],
}

impl Artwork {
    /// The pictures of a style.
    ///
    /// # Errors
    /// A picture cannot be decoded (the dependency or the asset changed).
    pub fn of(style: Style) -> Result<Self> {
        match style {
            Style::Twemoji => Self::twemoji(),
            Style::Fluent => Self::fluent(),
        }
    }

    fn fluent() -> Result<Self> {
        let broken = |what: String| Error::at("artwork `fluent.png`", what);
        let strip = image::load_from_memory_with_format(FLUENT, ImageFormat::Png)
            .map_err(|error| broken(format!("cannot decode: {error}")))?;
        let side = strip.height();
        if strip.width() != side * Object::COUNT as u32 {
            let (width, count) = (strip.width(), Object::COUNT);
            return Err(broken(format!("expected {count} squares side by side, found {width}×{side}")));
        }
        let cut = |place: usize| Sprite::new(&strip.crop_imm(place as u32 * side, 0, side, side).to_rgba8());
        let sprites = (0..Object::COUNT).map(cut).collect::<Option<_>>();
        Ok(Self { sprites: sprites.ok_or_else(|| broken("expected squares".to_owned()))? })
    }

    fn twemoji() -> Result<Self> {
        let sprites = TWEMOJI.iter().map(|asset| {
            let broken = |what: String| Error::at(format!("twemoji `{}`", asset.label.unwrap_or(asset.emoji)), what);
            let decoded = image::load_from_memory_with_format(asset.data.0, ImageFormat::Png)
                .map_err(|error| broken(format!("cannot decode: {error}")))?;
            Sprite::new(&decoded.to_rgba8()).ok_or_else(|| {
                broken(format!("expected a square picture, found {}×{}", decoded.width(), decoded.height()))
            })
        });
        Ok(Self { sprites: sprites.collect::<Result<_>>()? })
    }

    /// Draws an object: centre and side in pixels of the canvas, turned by `angle` radians, clipped at the canvas.
    pub(crate) fn fragments(&self, object: Object, at: [f32; 2], side: f32, angle: f32, canvas: u32) -> Vec<Fragment> {
        let sprite = &self.sprites[object.id()];
        let reach = extent(side, angle);
        let span = |centre: f32| {
            let last = canvas.saturating_sub(1);
            (centre - reach).max(0.0) as u32..=((centre + reach) as u32).min(last)
        };
        let mut fragments = Vec::new();
        for y in span(at[1]) {
            for x in span(at[0]) {
                let rgba = sprite.pixel([x as f32 - at[0], y as f32 - at[1]], side, angle);
                if rgba[3] > 0.0 {
                    fragments.push(Fragment { x, y, rgba });
                }
            }
        }
        fragments
    }
}

/// Half the width (and height) of the box around a square of this side, turned by `angle` radians.
pub(crate) fn extent(side: f32, angle: f32) -> f32 {
    side / 2.0 * (angle.cos().abs() + angle.sin().abs())
}

impl Sprite {
    /// Premultiplies a square picture; `None` when it is not square.
    fn new(picture: &RgbaImage) -> Option<Self> {
        let rgba = picture.pixels().map(|pixel| {
            let [r, g, b, a] = pixel.0.map(|value| f32::from(value) / 255.0);
            [r * a, g * a, b * a, a]
        });
        (picture.width() == picture.height()).then(|| Self { side: picture.width() as usize, rgba: rgba.collect() })
    }

    /// Mean over the pixel whose upper left corner is `corner`, relative to the centre of the drawn square.
    fn pixel(&self, corner: [f32; 2], side: f32, angle: f32) -> [f32; 4] {
        let (sin, cos) = angle.sin_cos();
        let scale = self.side as f32 / side;
        let mut sum = [0.0; 4];
        for sub in 0..SUBSAMPLES * SUBSAMPLES {
            let x = corner[0] + ((sub % SUBSAMPLES) as f32 + 0.5) / SUBSAMPLES as f32;
            let y = corner[1] + ((sub / SUBSAMPLES) as f32 + 0.5) / SUBSAMPLES as f32;
            let half = self.side as f32 / 2.0;
            let sample =
                self.bilinear((x * cos + y * sin) * scale + half - 0.5, (y * cos - x * sin) * scale + half - 0.5);
            (0..4).for_each(|c| sum[c] += sample[c]);
        }
        sum.map(|value| value / (SUBSAMPLES * SUBSAMPLES) as f32)
    }

    /// The value between the four nearest source pixels; transparent outside.
    fn bilinear(&self, u: f32, v: f32) -> [f32; 4] {
        let (left, top) = (u.floor(), v.floor());
        let mut sum = [0.0; 4];
        for (x, weight_x) in [(left, left + 1.0 - u), (left + 1.0, u - left)] {
            for (y, weight_y) in [(top, top + 1.0 - v), (top + 1.0, v - top)] {
                let inside = 0.0..self.side as f32;
                if inside.contains(&x) && inside.contains(&y) {
                    let source = self.rgba[y as usize * self.side + x as usize];
                    (0..4).for_each(|c| sum[c] += source[c] * weight_x * weight_y);
                }
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_styles_show_the_same_objects_differently() {
        let [known, unseen] = [Style::Twemoji, Style::Fluent].map(|style| Artwork::of(style).unwrap());
        for object in Object::all() {
            let draw = |artwork: &Artwork| artwork.fragments(object, [24.0; 2], 40.0, 0.0, 48);
            // Coverage and mean colour of what is drawn.
            let look = |artwork: &Artwork| {
                let drawn = draw(artwork);
                let sum = |channel: usize| drawn.iter().map(|fragment| fragment.rgba[channel]).sum::<f32>();
                (sum(3) / 1600.0, [0, 1, 2].map(|channel| sum(channel) / sum(3)))
            };
            let ((covered, colour), (also_covered, other_colour)) = (look(&known), look(&unseen));
            assert!((0.1..1.0).contains(&covered) && (0.1..1.0).contains(&also_covered), "{}", object.name());
            let differ = colour.iter().zip(other_colour).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
            assert!(differ > 0.005 || (covered - also_covered).abs() > 0.02, "{} is the same", object.name());
        }
    }
}
