//! 4: from messages to token ids, and from token ids to the packed batch.

pub mod encode;
pub mod pack;
pub mod template;
pub mod tokenizer;

pub use encode::{EncodedRow, Encoder, ImageToken};

use crate::data::Example;
use std::ops::Range;

#[cfg(test)]
mod parity_tests;

/// One example as token ids; an image is a run of image tokens, as long as the tower's features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The prompt, generation prompt included.
    pub prompt: Tokens,
    /// The answers, in the order of [`crate::data::Example::answers`].
    pub answers: Vec<Tokens>,
}

impl Encoded {
    /// The preferred answer of the first pair of `example`, whose encoding this is; none where only a rejected answer is there.
    pub fn chosen(&self, example: &Example) -> Option<&Tokens> {
        example.pairs.first().and_then(|pair| pair.chosen).map(|chosen| &self.answers[chosen])
    }
}

/// A run of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Token ids; image slots hold the image token's id.
    pub ids: Vec<u32>,
    /// Which ids count in the log-prob, one flag per id: none in a prompt, in a response all but what others said.
    pub counted: Vec<bool>,
    /// Where images stand, in order.
    pub images: Vec<ImageSlot>,
    /// The turns of the assistant in an answer, its EOS included: one in an answer without other voices, none in a prompt.
    pub turns: Vec<Range<usize>>,
}

impl Tokens {
    /// How many ids count.
    pub fn labels(&self) -> usize {
        self.counted.iter().filter(|&&counted| counted).count()
    }
}

/// A run of image tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSlot {
    /// Index of the first image token.
    pub start: usize,
    /// How many tokens, which is how many features the tower gives.
    pub len: usize,
    /// Which image of the row.
    pub image: usize,
}
