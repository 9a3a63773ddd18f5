//! A run: from a valid recipe to a trained model.

mod bench;
mod feature_cache;
mod feed;
pub mod flops;
mod inputs;
mod judge;
pub mod memory;
mod metrics;
mod micro;
mod output;
mod progress;
mod reference;
mod reference_cache;
mod reference_store;
mod run;
mod stage;
mod step;

pub use bench::{BenchReport, bench};
pub use feature_cache::{FeatureCache, ImageKey};
pub use feed::{Feed, data_threads};
pub use inputs::{Inputs, PictureCheck, Pictures, Report, Size, check_header, encoder, picture, processor};
pub use judge::{Found, Judged, Pull, judge};
pub use metrics::Metrics;
pub use micro::{Micro, Origin, Places, Prepared, StepCut, Steps};
pub use progress::{Talk, clock};
pub use reference::{ReferenceRow, reference};
pub use reference_cache::{KnownReference, Missing, PromptKey, ReferenceCache, ReferencePrompt};
pub use run::{Outcome, train, try_load};
pub use stage::{Clock, Laps, Stage};
pub use step::{Evaluated, Ready, StepPlan, StepResult, Tower, complete, evaluate, follow, look_ahead, ready, step};

use crate::config;
use crate::{Error, Result};
use tch::{Device, Kind};

/// Where a run computes.
pub fn device(wanted: config::Device) -> Result<Device> {
    if wanted == config::Device::Cpu {
        return Ok(Device::Cpu);
    }
    match (torch_ext::load_cuda(), wanted) {
        (torch_ext::CudaState::Usable { .. }, _) => Ok(Device::Cuda(0)),
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
