//! 10: what a model says.
//!
//! `decoding` says how tokens are chosen (`beams`: by a search), `batch` answers many questions side by side, `generate` one, token by token.
//! `questions` makes what the model reads, `answers` keeps what it says in a file.

pub mod answers;
pub mod batch;
mod beams;
pub mod decoding;
pub mod generate;
pub mod questions;

pub use answers::{Answered, Answerer, answer_file};
pub use batch::{Answer, Ask, Settings, answer_all};
pub use decoding::{Beams, Decoding, EarlyStopping, Sampling, Search};
pub use generate::{End, Generation, Request};
pub use questions::{Asker, Tools, answer_questions};
