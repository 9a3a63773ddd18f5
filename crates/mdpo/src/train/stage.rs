//! How long the stages of a step take.

use std::time::Instant;
use tch::Device;

/// What a step does, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for examples, packing them, moving them to the device.
    Data,
    /// The vision tower.
    Vision,
    /// The reference's forward pass.
    Reference,
    /// The policy's forward pass and the log-probs with their gradient.
    Forward,
    /// The objective and the backward pass.
    Backward,
    /// Clipping and the optimizer.
    Optimizer,
}

impl Stage {
    /// All of them in order.
    pub const ALL: [Stage; 6] =
        [Stage::Data, Stage::Vision, Stage::Reference, Stage::Forward, Stage::Backward, Stage::Optimizer];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Data => "data",
            Stage::Vision => "vision",
            Stage::Reference => "reference",
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Optimizer => "optimizer",
        }
    }
}

/// Whether a lap ends when the device has done the work, or when it has been given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Laps {
    /// A GPU is waited for, so that each stage has its own time; the waiting costs some.
    Waited,
    /// It is not: stages run into each other on a GPU.
    Unwaited,
}

/// Seconds by stage.
#[derive(Debug)]
pub struct Clock {
    laps: Laps,
    device: Device,
    since: Instant,
    seconds: [f64; Stage::ALL.len()],
}

impl Clock {
    /// A clock that runs from now on.
    pub fn new(laps: Laps, device: Device) -> Self {
        Clock { laps, device, since: Instant::now(), seconds: [0.0; Stage::ALL.len()] }
    }

    /// What passed since the last lap was `stage`.
    pub fn lap(&mut self, stage: Stage) {
        if let (Laps::Waited, Device::Cuda(index)) = (self.laps, self.device) {
            tch::Cuda::synchronize(index as i64);
        }
        self.seconds[stage as usize] += self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
    }

    /// Forgets what passed since the last lap.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Seconds of each stage since the last call, in the order of [`Stage::ALL`].
    pub fn take(&mut self) -> [f64; Stage::ALL.len()] {
        std::mem::take(&mut self.seconds)
    }
}
