//! mdpo: preference optimization for multimodal LLMs.
//!
//! The modules stand in the order in which an example travels; a module uses only those above it.

pub mod error;
pub mod talk;

pub mod config;
pub mod address;
pub mod data;
pub mod image;
pub mod text;
pub mod weights;
pub mod nn;
pub mod model;
pub mod reading;
pub mod logprob;
pub mod objective;
pub mod optim;
pub mod checkpoint;
pub mod eval;
pub mod train;
pub mod report;
pub mod cli;

pub use error::{Error, Result};
