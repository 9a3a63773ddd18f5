//! Training as a whole: trajectories by peft and PyTorch, invariants that must hold between runs, kept log-probs of the reference, resuming, being killed.

mod features;
mod feed;
mod invariants;
mod lab;
mod parity;
mod reference;
mod resume;
mod signals;
