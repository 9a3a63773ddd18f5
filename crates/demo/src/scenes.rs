//! Pictures whose objects are known exactly: a few emoji on a noisy light canvas.
//!
//! The 24 objects form 12 pairs of an *anchor* and its *partner* (dog and bone). Where partners nearly always come along, a
//! model learns to name them unseen; a picture without the partner then shows whether it looks or guesses.

use crate::address::{Address, Prior, Purpose};
use crate::artwork::{Artwork, extent};
use image::{Rgb, RgbImage};
use rand::{Rng, RngExt, seq::index};

/// Width and height of a picture in pixels.
pub const CANVAS: u32 = 64;

/// Standard deviation of the pixel noise, where black is 0 and white 1.
const NOISE: f64 = 0.15;
/// Side of an object in pixels.
const SIDE: std::ops::RangeInclusive<f32> = 14.0..=22.0;
/// Largest turn either way.
const TURN_DEGREES: f32 = 25.0;
/// Every channel of the background.
const BACKGROUND: std::ops::Range<f32> = 0.75..1.0;
/// The share of the smaller of two objects that may lie under the other, and how many places are tried for that.
const OVERLAP: f32 = 0.1;
const PLACES: usize = 200;
/// How often there are two pairs, and how often the second shows only its partner.
const SECOND_PAIR: f64 = 0.5;
const LONE_PARTNER: f64 = 0.2;

const NAMES: [&str; 24] = [
    "dog",
    "bone",
    "cat",
    "fish",
    "car",
    "traffic light",
    "tree",
    "bird",
    "house",
    "key",
    "pizza",
    "beer",
    "coffee",
    "cookie",
    "guitar",
    "drum",
    "ball",
    "trophy",
    "boat",
    "whale",
    "moon",
    "star",
    "bee",
    "flower",
];

/// One of the 24 things a picture may show; ordered pair by pair, anchor before partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object(u8);

impl Object {
    /// How many there are.
    pub const COUNT: usize = NAMES.len();

    /// Every object, in order.
    pub fn all() -> impl Iterator<Item = Object> {
        (0..Self::COUNT as u8).map(Object)
    }

    /// The object of this name, if there is one.
    pub fn named(name: &str) -> Option<Object> {
        Self::all().find(|object| object.name() == name)
    }

    /// What it is called: one word or two.
    pub fn name(self) -> &'static str {
        NAMES[self.id()]
    }

    /// Its place in the order, from 0.
    pub fn id(self) -> usize {
        usize::from(self.0)
    }

    /// The partner when this is an anchor.
    pub fn partner(self) -> Option<Object> {
        self.0.is_multiple_of(2).then(|| Object(self.0 + 1))
    }
}

/// An object and where it is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// What.
    pub object: Object,
    /// Its centre, right and down, in pixels of the canvas.
    pub centre: [f32; 2],
    /// Width and height before the turn, in pixels.
    pub side: f32,
    /// The turn in radians.
    pub angle: f32,
}

impl Placed {
    /// Half the width and height of the box around the turned object, in pixels.
    pub fn extent(&self) -> f32 {
        extent(self.side, self.angle)
    }

    /// The share of the smaller of the two that lies under the other, taking both as upright squares.
    pub fn overlap(&self, other: &Placed) -> f32 {
        let shared = |axis: usize| {
            let reach = (self.side + other.side) / 2.0 - (self.centre[axis] - other.centre[axis]).abs();
            reach.clamp(0.0, self.side.min(other.side))
        };
        shared(0) * shared(1) / self.side.min(other.side).powi(2)
    }
}

/// What a picture shows; the picture itself is [`Scene::draw`].
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Where it stands.
    pub address: Address,
    /// One to four objects, in the order of [`Object`], each once.
    pub placed: Vec<Placed>,
    /// Red, green and blue of the canvas, 0..=1.
    pub background: [f32; 3],
}

impl Scene {
    /// The scene at an address, with its split's prior.
    ///
    /// One or two pairs: the first shows its anchor, and its partner as often as the prior says; the second the same or,
    /// one time in five, its partner alone. So every scene has an anchor, and whether a partner is there is
    /// independent of everything else.
    pub fn at(address: Address) -> Self {
        let mut rng = address.rng(Purpose::Arrangement);
        let background = std::array::from_fn(|_| rng.random_range(BACKGROUND));
        let mut placed: Vec<Placed> = Vec::new();
        for object in objects(address.split.prior(), &mut rng) {
            let place = free_place(object, &placed, &mut rng);
            placed.push(place);
        }
        placed.sort_by_key(|place| place.object);
        Self { address, placed, background }
    }

    /// What the picture shows, in the order of [`Object`].
    pub fn objects(&self) -> Vec<Object> {
        self.placed.iter().map(|place| place.object).collect()
    }

    /// The picture, 64×64: objects over the background, then noise over everything.
    pub fn draw(&self, artwork: &Artwork) -> RgbImage {
        let mut canvas = vec![self.background; (CANVAS * CANVAS) as usize];
        for place in &self.placed {
            for fragment in artwork.fragments(place.object, place.centre, place.side, place.angle, CANVAS) {
                let under = &mut canvas[(fragment.y * CANVAS + fragment.x) as usize];
                *under = std::array::from_fn(|c| fragment.rgba[c] + (1.0 - fragment.rgba[3]) * under[c]);
            }
        }
        let mut rng = self.address.rng(Purpose::Noise);
        RgbImage::from_fn(CANVAS, CANVAS, |x, y| {
            let clean = canvas[(y * CANVAS + x) as usize];
            Rgb(clean
                .map(|value| ((f64::from(value) + NOISE * normal(&mut rng)) * 255.0).round().clamp(0.0, 255.0) as u8))
        })
    }
}

/// A standard normal number (Box and Muller's cosine half).
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Draws which objects are there.
fn objects(prior: Prior, rng: &mut impl Rng) -> Vec<Object> {
    let pairs = if rng.random_bool(SECOND_PAIR) { 2 } else { 1 };
    let mut objects = Vec::new();
    for (nth, pair) in index::sample(rng, Object::COUNT / 2, pairs).into_iter().enumerate() {
        let (anchor, partner) = (Object(2 * pair as u8), Object(2 * pair as u8 + 1));
        let lone = nth == 1 && rng.random_bool(LONE_PARTNER);
        let partnered = rng.random_bool(prior.partner_given_anchor.clamp(0.0, 1.0));
        objects.extend((!lone).then_some(anchor));
        objects.extend((lone || partnered).then_some(partner));
    }
    objects
}

/// Draws size, turn and a place inside the canvas, the first that lies free enough or else the freest of those tried.
fn free_place(object: Object, taken: &[Placed], rng: &mut impl Rng) -> Placed {
    let side = rng.random_range(SIDE);
    let angle = rng.random_range(-TURN_DEGREES..=TURN_DEGREES).to_radians();
    let reach = extent(side, angle);
    let mut best: Option<(f32, Placed)> = None;
    for _ in 0..PLACES {
        let centre = std::array::from_fn(|_| rng.random_range(reach..=CANVAS as f32 - reach));
        let place = Placed { object, centre, side, angle };
        let overlap = taken.iter().map(|other| place.overlap(other)).fold(0.0, f32::max);
        if best.is_none_or(|(least, _)| overlap < least) {
            best = Some((overlap, place));
        }
        if overlap <= OVERLAP {
            break;
        }
    }
    best.expect("at least one place is tried").1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Split;
    use crate::artwork::Style;

    fn scenes(split: Split, count: u64) -> impl Iterator<Item = Scene> {
        (0..count).map(move |index| Scene::at(Address { seed: 7, split, index }))
    }

    #[test]
    fn a_scene_is_a_function_of_its_address() {
        let artwork = Artwork::of(Style::Twemoji).unwrap();
        let address = Address { seed: 1, split: Split::Sft, index: 3 };
        let picture = |address| Scene::at(address).draw(&artwork);
        assert_eq!(Scene::at(address), Scene::at(address));
        assert_eq!(picture(address), picture(address));
        for other in [
            Address { seed: 2, ..address },
            Address { split: Split::Mixed, ..address },
            Address { index: 4, ..address },
        ] {
            assert_ne!(picture(address), picture(other), "{other:?}");
        }
    }

    #[test]
    fn objects_stand_inside_the_canvas_and_hardly_overlap() {
        let mut worst = 0.0f32;
        for scene in scenes(Split::Intact, 5000) {
            assert!((1..=4).contains(&scene.placed.len()));
            assert!(scene.objects().is_sorted_by(|a, b| a < b));
            for (nth, place) in scene.placed.iter().enumerate() {
                assert!(SIDE.contains(&place.side) && place.angle.abs() <= TURN_DEGREES.to_radians());
                for centre in place.centre {
                    assert!(centre - place.extent() >= -1e-4 && centre + place.extent() <= CANVAS as f32 + 1e-4);
                }
                worst = scene.placed[..nth].iter().map(|other| place.overlap(other)).fold(worst, f32::max);
            }
        }
        // Measured: 0.173.
        assert!(worst < 0.2, "two objects overlap by {worst}");
    }

    #[test]
    fn partners_come_as_often_as_the_prior_says() {
        for split in Split::ALL {
            let (mut anchors, mut partners) = (0, 0);
            for scene in scenes(split, 4000) {
                let objects = scene.objects();
                let wanted: Vec<Object> = objects.iter().filter_map(|object| object.partner()).collect();
                assert!(!wanted.is_empty(), "every scene has an anchor");
                anchors += wanted.len();
                partners += wanted.iter().filter(|partner| objects.contains(partner)).count();
            }
            let expected = split.prior().partner_given_anchor;
            let found = f64::from(u32::try_from(partners).unwrap()) / anchors as f64;
            // Four standard errors; exactly 0 and 1 where the prior says so.
            let margin = 4.0 * (expected * (1.0 - expected) / anchors as f64).sqrt();
            assert!((found - expected).abs() <= margin, "{split:?}: {found} of {anchors}");
        }
    }

    #[test]
    fn an_object_is_drawn_where_its_place_says() {
        let artwork = Artwork::of(Style::Twemoji).unwrap();
        for scene in scenes(Split::Mixed, 50) {
            for place in &scene.placed {
                let drawn = artwork.fragments(place.object, place.centre, place.side, place.angle, CANVAS);
                let opaque: f32 = drawn.iter().map(|fragment| fragment.rgba[3]).sum();
                assert!(opaque > 0.15 * place.side.powi(2), "{} covers {opaque} pixels", place.object.name());
                for fragment in drawn {
                    let away = (fragment.x as f32 + 0.5 - place.centre[0])
                        .abs()
                        .max((fragment.y as f32 + 0.5 - place.centre[1]).abs());
                    assert!(away <= place.extent() + 1.0);
                }
            }
        }
    }

    #[test]
    fn the_noise_has_the_stated_deviation() {
        let mut rng = Address { seed: 0, split: Split::Sft, index: 0 }.rng(Purpose::Noise);
        let draws: Vec<f64> = (0..100_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
