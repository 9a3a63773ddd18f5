//! Benchmarks: one file each.

pub mod mmhal;
