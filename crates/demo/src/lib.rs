//! The embedded example of mdpo: emoji scenes whose objects are known exactly, captions about them, and a small checkpoint.
//!
//! A [`scenes::Scene`] is drawn with real artwork ([`artwork`]), described truly and falsely ([`captions`]), asked about ([`questions`]) and written as a
//! data set that any trainer reads ([`dataset`]); [`checkpoint`] writes a LLaVA-architecture model with the words of these
//! captions ([`tokenizer`]). [`show`] runs the example from end to end: an [`experiment::Experiment`] says what is trained, [`examine`] measures it,
//! [`table`] prints what came out. Everything drawn is a pure function of an [`address::Address`].

pub mod address;
pub mod artwork;
pub mod captions;
pub mod checkpoint;
pub mod dataset;
pub mod examine;
pub mod experiment;
pub mod questions;
pub mod scenes;
pub mod show;
pub mod table;
pub mod tokenizer;
