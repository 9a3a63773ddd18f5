//! Training as a whole: trajectories by peft, PyTorch and TRL, invariants that must hold between runs, kept log-probs of the reference, resuming, being killed.

mod features;
mod feed;
mod invariants;
mod lab;
mod objectives;
mod parity;
mod reference;
mod resume;
mod signals;
mod tensorboard;
mod trl;
