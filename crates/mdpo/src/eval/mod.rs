//! 10: what a model says.
//!
//! `decoding` says how tokens are chosen (`beams`: by a search), `batch` answers many questions side by side, `generate` one, token by token.

pub mod batch;
mod beams;
pub mod decoding;
pub mod generate;

pub use batch::{Answer, Ask, Settings, answer_all};
pub use decoding::{Beams, Decoding, EarlyStopping, Sampling, Search};
pub use generate::{End, Generation, Request};
