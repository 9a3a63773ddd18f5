//! Training as a whole: trajectories by peft, PyTorch and TRL, invariants that must hold between runs, kept log-probs of the reference, resuming, being killed, evaluations.

mod evaluate;
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
mod signals;
mod tensorboard;
mod trl;
