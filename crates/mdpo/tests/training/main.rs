//! Training as a whole: trajectories by peft and PyTorch, invariants that must hold between runs, resuming, being killed.

mod feed;
mod invariants;
mod lab;
mod parity;
mod resume;
mod signals;
