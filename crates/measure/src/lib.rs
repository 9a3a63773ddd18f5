//! What mdpo measures, from answers to figures to a page: nothing here needs libtorch.
//!
//! A [`benchmark`] reads its authors' files and gives questions; whoever answers them (a model of mdpo, or a file) gets [`Figures`] and
//! one row per question back.

pub mod error;
mod nearest;
pub mod figures;
mod files;
pub mod interval;
pub mod nouns;
pub mod judge;
pub mod benchmark;
pub mod report;
pub mod tensorboard;

pub use error::{Error, Result};
pub use figures::{Better, Figure, Figures};
pub use nearest::nearest;
