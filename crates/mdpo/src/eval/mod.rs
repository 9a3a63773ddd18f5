//! 10: what a model says.

pub mod generate;

pub use generate::{End, Generation, Request, Sampling};
