//! Where a scene stands: everything random about it is a pure function of seed, split and index.

use crate::artwork::Style;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// How often an anchor is seen with its partner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// The probability in 0..=1 that the partner is in the picture when its anchor is.
    pub partner_given_anchor: f64,
}

/// A set of scenes; two sets share no scene, even at equal seed and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// For supervised training: partners nearly always come along (0.9), so a model learns to expect them.
    Sft,
    /// For preference training: partners come along half of the time.
    Pairs,
    /// Held out: an anchor never has its partner, and whoever names it by habit is wrong.
    Broken,
    /// Held out: an anchor always has its partner.
    Intact,
    /// Held out: partners come along half of the time.
    Mixed,
    /// Held out: like [`Split::Mixed`], in artwork that no model of the example was trained on.
    Unseen,
}

impl Split {
    /// Every split.
    pub const ALL: [Split; 6] = [Split::Sft, Split::Pairs, Split::Broken, Split::Intact, Split::Mixed, Split::Unseen];

    /// Its name, at most 16 bytes long.
    pub fn name(self) -> &'static str {
        match self {
            Split::Sft => "sft",
            Split::Pairs => "pairs",
            Split::Broken => "broken",
            Split::Intact => "intact",
            Split::Mixed => "mixed",
            Split::Unseen => "unseen",
        }
    }

    /// How often an anchor has its partner here.
    pub fn prior(self) -> Prior {
        let partner_given_anchor = match self {
            Split::Sft => 0.9,
            Split::Broken => 0.0,
            Split::Intact => 1.0,
            Split::Pairs | Split::Mixed | Split::Unseen => 0.5,
        };
        Prior { partner_given_anchor }
    }

    /// How its scenes are drawn.
    pub fn style(self) -> Style {
        if self == Split::Unseen { Style::Fluent } else { Style::Twemoji }
    }
}

/// Names one scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The seed of the whole example.
    pub seed: u64,
    /// The set.
    pub split: Split,
    /// Which scene of the set.
    pub index: u64,
}

/// What the random numbers are for; each purpose has its own stream, so that drawing more for one changes no other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Arrangement = 0,
    Noise = 1,
    Mistake = 2,
    Questions = 3,
}

impl Address {
    /// The generator of this scene for one purpose: ChaCha8 keyed with seed, index (8 bytes each, little endian) and the
    /// split's name (16 bytes, zeros at the end), stream = purpose.
    pub(crate) fn rng(&self, purpose: Purpose) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.index.to_le_bytes());
        let name = self.split.name().as_bytes();
        key[16..16 + name.len()].copy_from_slice(name);
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose as u64);
        rng
    }
}
