//! Rotary position embeddings (Su et al., arXiv 2104.09864) with the scalings that Llama checkpoints use.

use super::precision;
use tch::{Device, Kind, Tensor};
use torch_ext::Shared;

/// How frequencies are stretched for longer texts (`rope_scaling` / `rope_parameters`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None (`default`), which is also what `dynamic` is up to the length it was trained for.
    None,
    /// `linear`: positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `llama3`: low frequencies divided, high ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths over `original / low` are divided.
        low: f64,
        /// Wavelengths under `original / high` are kept.
        high: f64,
        /// Length of the first training.
        original: f64,
    },
}

/// Tables of cos and sin, `[positions, head_dim]`.
#[derive(Debug)]
pub struct Rope {
    /// On the device, so that a pass does not wait for a copy.
    inverse_frequencies: Shared,
}

impl Rope {
    /// Frequencies for heads of `head_dim` (even) and base `theta`.
    pub fn new(head_dim: usize, theta: f64, scaling: RopeScaling, device: Device) -> Self {
        let plain = (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32));
        let scaled = plain.map(|frequency| match scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor as f32
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    ((1.0 - smooth) * f64::from(frequency) / factor + smooth * f64::from(frequency)) as f32
                }
            }
        });
        Rope { inverse_frequencies: Tensor::from_slice(&scaled.collect::<Vec<f32>>()).to_device(device).into() }
    }

    /// cos and sin for `positions` `[tokens]`, each `[tokens, 1, head_dim]` in `kind`: computed in f32, then rounded.
    pub fn tables(&self, positions: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &*self.inverse_frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        (angles.cos().to_kind(kind), angles.sin().to_kind(kind))
    }

    /// Turns queries or keys `[tokens, heads, head_dim]`: the two halves of a head form the pairs, as in transformers.
    pub fn apply(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Tensor {
        if precision::has_parts(x) {
            return precision::done(torch_ext::rotary(x, cos, sin));
        }
        let half = x.size()[2] / 2;
        let turned = Tensor::cat(&[&x.narrow(-1, half, half).neg(), &x.narrow(-1, 0, half)], -1);
        x * cos + turned * sin
    }
}
