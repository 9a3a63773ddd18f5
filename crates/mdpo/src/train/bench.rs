//! Where the time of a step goes: `mdpo bench`. Nothing is written.

use super::flops::Flops;
use super::run::Trainer;
use super::stage::{Laps, Stage};
use super::{Feed, Inputs, PictureCheck, Ranks, ReferenceCache, data_threads, device, kind};
use crate::config::Run;
use crate::nn::precision::of_products;
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// What was measured; seconds and operations are means per optimizer step.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Where it ran.
    pub device: String,
    /// Precision of weights and activations.
    pub dtype: String,
    /// Threads of a CPU.
    pub threads: i32,
    /// Measured optimizer steps.
    pub steps: usize,
    /// Pairs per optimizer step.
    pub pairs: f64,
    /// Packed tokens per optimizer step.
    pub tokens: f64,
    /// Seconds of a step, the median and both ends.
    pub step_time: [f64; 3],
    /// Seconds by stage, in order.
    pub stages: Vec<(&'static str, f64)>,
    /// Seconds the trainer waited for data, a part of the first stage.
    pub data_wait: f64,
    /// Operations by stage.
    pub flops: Vec<(&'static str, f64)>,
    /// Operations per second over the whole step.
    pub flops_per_second: f64,
    /// The most that a matrix product reached, operations per second.
    pub matmul_peak: f64,
    /// Peak resident memory of this process in bytes, where the system tells it.
    pub peak_rss: Option<u64>,
    /// Most bytes that tensors took on the GPU at once, on one.
    pub peak_gpu: Option<u64>,
}

/// Measures `steps` optimizer steps after `warmup` others that are not counted. Nothing is kept of the reference, so that every step is one of a first epoch.
pub fn bench(run: &Run, warmup: usize, steps: usize) -> Result<BenchReport> {
    let device = device(run.model.device)?;
    let inputs = Inputs::open(run, PictureCheck::Header)?;
    let peak = matmul_peak(kind(run.model.dtype), device);
    let ranks = Ranks::one();
    let mut trainer = Trainer::new(&ranks, run, &inputs, device, ReferenceCache::nothing())?;
    trainer.measure(Laps::Waited);
    let all = warmup + steps;
    if trainer.total < all {
        let what = format!("the run has {} optimizer steps, fewer than the {all} to measure", trainer.total);
        return Err(Error::at("`--steps`", what).hint("set `num_train_epochs` or `max_steps` higher"));
    }
    std::thread::scope(|scope| {
        let mut feed = Feed::new(scope, trainer.steps(), 0..all, data_threads())?;
        let (mut times, mut stages, mut flops) = (Vec::new(), [0.0; Stage::ALL.len()], Flops::default());
        let (mut pairs, mut tokens, mut waited) = (0.0, 0.0, 0.0);
        for index in 0..all {
            let began = Instant::now();
            let done = trainer.optimizer_step(&mut feed)?;
            let seconds = began.elapsed().as_secs_f64();
            let laps = trainer.clock.take();
            if index < warmup {
                continue;
            }
            times.push(seconds);
            stages.iter_mut().zip(laps).for_each(|(sum, lap)| *sum += lap / steps as f64);
            flops.add(&done.flops);
            pairs += done.pairs as f64 / steps as f64;
            tokens += done.tokens as f64 / steps as f64;
            waited += done.waited / steps as f64;
        }
        times.sort_by(f64::total_cmp);
        let per_step = |count: f64| count / steps as f64;
        Ok(BenchReport {
            device: format!("{device:?}"),
            dtype: format!("{:?}", run.model.dtype),
            threads: tch::get_num_threads(),
            steps,
            pairs,
            tokens,
            step_time: [times[times.len() / 2], times[0], times[times.len() - 1]],
            stages: Stage::ALL.iter().zip(stages).map(|(stage, seconds)| (stage.name(), seconds)).collect(),
            data_wait: waited,
            flops: vec![
                ("vision", per_step(flops.vision)),
                ("reference", per_step(flops.reference)),
                ("forward", per_step(flops.forward)),
                ("backward", per_step(flops.backward)),
            ],
            flops_per_second: flops.total() / times.iter().sum::<f64>(),
            matmul_peak: peak,
            peak_rss: peak_rss(),
            peak_gpu: match device {
                Device::Cuda(index) => torch_ext::cuda_peak(index).ok().map(|peak| peak.allocated),
                _ => None,
            },
        })
    })
}

/// The most operations per second that libtorch's matrix product reaches here: the best of some large square products.
fn matmul_peak(kind: Kind, device: Device) -> f64 {
    let side: i64 = if device == Device::Cpu { 2048 } else { 8192 };
    let kind = of_products(kind, device);
    let factor = || tch::no_grad(|| Tensor::rand([side, side], (Kind::Float, device)).to_kind(kind));
    let (a, b) = (factor(), factor());
    let wait = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    let once = || {
        let began = Instant::now();
        let _product = tch::no_grad(|| a.matmul(&b));
        wait();
        began.elapsed().as_secs_f64()
    };
    let best = (0..8).map(|_| once()).fold(f64::INFINITY, f64::min);
    2.0 * (side as f64).powi(3) / best
}

/// `VmHWM` of this process.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
