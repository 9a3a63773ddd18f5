//! A run: from a valid recipe to a trained model.

mod answering;
mod bench;
mod evaluate;
mod feature_cache;
mod feed;
pub mod flops;
mod graded;
mod held_out;
mod inputs;
mod judge;
mod launch;
pub mod memory;
mod metrics;
mod micro;
mod optimizer_step;
mod output;
pub mod preferences;
mod progress;
mod ranks;
mod reference;
mod reference_cache;
mod reference_store;
mod run;
mod stage;
mod step;

pub use bench::{BenchReport, bench};
pub use evaluate::Evaluator;
pub use feature_cache::{FeatureCache, ImageKey};
pub use feed::{Feed, data_threads};
pub use inputs::{Inputs, PictureCheck, Pictures, Report, Size};
pub use judge::{Found, Judged, Part, Pull, columns, judge, judge_together};
pub use launch::Launch;
pub use metrics::Metrics;
pub use micro::{Micro, Origin, Places, Prepared, Share, StepCut, Steps};
pub use preferences::{preferences, shows_images};
pub use progress::clock;
pub use ranks::Ranks;
pub use reference::{ReferenceRow, Rows, reference};
pub use reference_cache::{KnownReference, Missing, PromptKey, ReferenceCache, ReferencePrompt};
pub use run::{Outcome, train, train_on, try_load};
pub use stage::{Clock, Laps, Stage};
pub use step::{
    Ahead, Evaluated, Looked, Ready, Seen, StepPlan, StepResult, Tower, complete, evaluate, follow, judge_ahead, look,
    look_ahead, ready, step,
};

pub use crate::reading::{check_header, encoder, picture, processor};
pub use crate::talk::Talk;

use crate::config;
use crate::{Error, Result};
use tch::{Device, Kind};

/// Where a run computes.
pub fn device(wanted: config::Device) -> Result<Device> {
    device_of(wanted, 0)
}

/// Where process `local_rank` of this machine computes.
fn device_of(wanted: config::Device, local_rank: usize) -> Result<Device> {
    if wanted == config::Device::Cpu {
        return Ok(Device::Cpu);
    }
    match (torch_ext::load_cuda(), wanted) {
        (torch_ext::CudaState::Usable { devices }, _) if local_rank < devices => Ok(Device::Cuda(local_rank)),
        (torch_ext::CudaState::Usable { devices }, _) => {
            let what = format!("the process with `LOCAL_RANK` {local_rank} finds {devices} GPUs");
            Err(Error::at("`device`", what).hint("start at most as many processes on a machine as it has GPUs"))
        }
        (torch_ext::CudaState::Unusable { why }, config::Device::Cuda) => {
            let hint = "set `device: auto`, or point LIBTORCH at a CUDA build of PyTorch 2.11 on a machine with a GPU";
            Err(Error::at("`device`", format!("`cuda` was asked for and is not usable: {why}")).hint(hint))
        }
        _ => Ok(Device::Cpu),
    }
}

/// libtorch's name of a precision.
pub fn kind(dtype: config::Dtype) -> Kind {
    match dtype {
        config::Dtype::F32 => Kind::Float,
        config::Dtype::Bf16 => Kind::BFloat16,
        config::Dtype::F16 => Kind::Half,
    }
}
