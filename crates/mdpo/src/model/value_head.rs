//! What a prompt's answers are worth on average: a number read off the state that predicts an answer's first label.
//!
//! One linear layer, as TRL's `ValueHead` without its dropout. The state comes without a graph, so nothing of its loss reaches the model
//! (HPO, arXiv 2405.17956: the value network only weighs).

use super::load::{Group, Trainable};
use crate::weights::{self, SafetensorsFile};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The file it is written to, beside the adapter.
pub const FILE: &str = "value_head.safetensors";
const WEIGHT: &str = "v_head.summary.weight";
const BIAS: &str = "v_head.summary.bias";

/// `V(x) = w · h(x) + b`, both zero at the start.
#[derive(Debug)]
pub struct ValueHead {
    /// `[1, width]`, f32.
    weight: Tensor,
    /// `[1]`, f32.
    bias: Tensor,
}

impl ValueHead {
    /// A head for states of `width` numbers that says 0.
    pub fn new(width: usize, device: Device) -> Self {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, device)).set_requires_grad(true);
        ValueHead { weight: zeros(&[1, width as i64]), bias: zeros(&[1]) }
    }

    /// The value of each state `[prompts, width]`, f32 `[prompts]`.
    pub fn forward(&self, states: &Tensor) -> Tensor {
        states.detach().to_kind(Kind::Float).linear(&self.weight, Some(&self.bias)).squeeze_dim(1)
    }

    /// Its weights for the optimizer, at `rate` times the run's learning rate.
    pub fn trainables(&self, rate: f64) -> [Trainable; 2] {
        [(WEIGHT, &self.weight), (BIAS, &self.bias)].map(|(name, leaf)| Trainable {
            name: name.to_owned(),
            leaf: leaf.shallow_clone(),
            group: Group::ValueHead { rate },
        })
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let tensors = [(BIAS, &self.bias), (WEIGHT, &self.weight)];
        weights::write_safetensors(&folder.join(FILE), tensors, &BTreeMap::new())
    }

    /// Takes the values of the one in `folder`, where there is one.
    ///
    /// # Errors
    /// A file that is damaged or of another model.
    pub fn restore(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(());
        }
        let file = SafetensorsFile::open(&path)?;
        for (name, own) in [(WEIGHT, &mut self.weight), (BIAS, &mut self.bias)] {
            let entry = file.entries().iter().find(|entry| entry.name == name);
            let entry = entry.ok_or_else(|| Error::at(path.display(), format!("`{name}` is missing")))?;
            let tensor = file.tensor(entry)?;
            if tensor.size() != own.size() {
                let what = format!("`{name}`: expected shape {:?}, found {:?}", own.size(), tensor.size());
                return Err(Error::at(path.display(), what).hint("the value head belongs to another model"));
            }
            tch::no_grad(|| own.f_copy_(&tensor))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_zero_at_first_moves_no_state_and_comes_back_from_the_disk() {
        let head = ValueHead::new(3, Device::Cpu);
        let states = Tensor::from_slice(&[1.0f32, 2.0, 3.0, -1.0, 0.5, 0.25]).view([2, 3]).set_requires_grad(true);
        let values = head.forward(&states);
        assert_eq!(Vec::<f32>::try_from(&values).unwrap(), [0.0, 0.0]);
        (&values * Tensor::from_slice(&[1.0f32, -2.0])).sum(Kind::Float).backward();
        assert!(!states.grad().defined());
        let gradient = Vec::<f32>::try_from(head.weight.grad().view([-1])).unwrap();
        assert_eq!(gradient, [3.0, 1.0, 2.5]);

        let folder = tempfile::tempdir().unwrap();
        let moved = ValueHead { weight: Tensor::from_slice(&[1.5f32, -2.0, 0.5]).view([1, 3]), ..head };
        moved.write(folder.path()).unwrap();
        let mut read = ValueHead::new(3, Device::Cpu);
        read.restore(folder.path()).unwrap();
        assert_eq!(read.weight.detach(), moved.weight);
        let text = ValueHead::new(4, Device::Cpu).restore(folder.path()).unwrap_err().to_string();
        assert!(text.contains("expected shape [1, 4], found [1, 3]"), "{text}");
    }
}
