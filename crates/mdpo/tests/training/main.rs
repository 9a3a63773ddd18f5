//! Training as a whole: trajectories by peft, PyTorch and TRL, invariants that must hold between runs, kept log-probs of the reference, resuming, being killed, evaluations.

mod evaluate;
mod graded;
mod features;
mod feed;
mod invariants;
mod lab;
mod lanes;
mod objectives;
mod parity;
mod ranks;
mod reference;
mod resume;
/// The judge that the tests of `mdpo-measure` are held against; not all that it can do is wanted here.
#[allow(dead_code, clippy::unwrap_used)]
#[path = "../../../measure/tests/judge/server.rs"]
mod server;
mod signals;
mod tensorboard;
mod trl;
