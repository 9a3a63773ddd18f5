//! 8: AdamW, the learning rate, clipping.

use crate::config;
use crate::model::load::{Group, Trainable};
use tch::{Device, Kind, Tensor};
use torch_ext::Moving;

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101) with f32 state, as `torch.optim.AdamW` computes it.
#[derive(Debug)]
pub struct AdamW {
    settings: config::Optim,
    moments: Vec<Moments>,
    step: u64,
}

/// The two running means of one tensor.
#[derive(Debug)]
pub struct Moments {
    /// Of the gradient.
    pub first: Tensor,
    /// Of its square.
    pub second: Tensor,
}

impl AdamW {
    /// Fresh state for `trainables`.
    pub fn new(settings: config::Optim, trainables: &[Trainable]) -> Self {
        let zeros =
            |t: &Trainable| Moments { first: t.leaf.detach().zeros_like(), second: t.leaf.detach().zeros_like() };
        AdamW { settings, moments: trainables.iter().map(zeros).collect(), step: 0 }
    }

    /// The state, in the order of the trainables, and how many steps it has seen.
    pub fn state(&self) -> (&[Moments], u64) {
        (&self.moments, self.step)
    }

    /// Continues from a saved state.
    pub fn restore(&mut self, moments: Vec<Moments>, step: u64) {
        self.moments = moments;
        self.step = step;
    }

    /// Moves every leaf by its gradient and clears the gradients; a leaf without a gradient stays.
    pub fn step(&mut self, trainables: &[Trainable], learning_rate: f64) {
        self.step += 1;
        if trainables.iter().all(|t| matches!(t.leaf.device(), Device::Cuda(_))) {
            return self.step_together(trainables, learning_rate);
        }
        let config::Optim { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let correction1 = 1.0 - beta1.powf(self.step as f64);
        let correction2 = (1.0 - beta2.powf(self.step as f64)).sqrt();
        tch::no_grad(|| {
            for (trainable, Moments { first, second }) in trainables.iter().zip(&mut self.moments) {
                let mut leaf = trainable.leaf.shallow_clone();
                let mut gradient = leaf.grad();
                if !gradient.defined() {
                    continue;
                }
                let learning_rate = match trainable.group {
                    Group::Model => learning_rate,
                    Group::ValueHead { rate } => learning_rate * rate,
                };
                if decays(&trainable.name) {
                    let _ = leaf.g_mul_scalar_(1.0 - learning_rate * weight_decay);
                }
                let _ = first.lerp_(&gradient, 1.0 - beta1);
                let _ = second.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
                let denominator = second.sqrt() / correction2 + epsilon;
                let _ = leaf.g_sub_(&(first.divide(&denominator) * (learning_rate / correction1)));
                let _ = gradient.zero_();
            }
        });
    }
}

impl AdamW {
    /// The same by libtorch's kernel for many tensors: a GPU is given a few pieces of work instead of ten for each tensor.
    fn step_together(&self, trainables: &[Trainable], learning_rate: f64) {
        let config::Optim { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let rate = |t: &Trainable| match t.group {
            Group::Model => 1.0,
            Group::ValueHead { rate } => rate,
        };
        let alike = |t: &Trainable| (rate(t), if decays(&t.name) { weight_decay } else { 0.0 });
        let mut groups: Vec<((f64, f64), Vec<Moving>)> = Vec::new();
        for (trainable, Moments { first, second }) in trainables.iter().zip(&self.moments) {
            let gradient = trainable.leaf.grad();
            if !gradient.defined() {
                continue;
            }
            let leaf = trainable.leaf.shallow_clone();
            let (first, second) = (first.shallow_clone(), second.shallow_clone());
            let (key, moving) = (alike(trainable), Moving { leaf, gradient, first, second });
            match groups.iter_mut().find(|(of, _)| *of == key) {
                Some((_, group)) => group.push(moving),
                None => groups.push((key, vec![moving])),
            }
        }
        for ((rate, weight_decay), group) in groups {
            let with = torch_ext::AdamW { learning_rate: learning_rate * rate, beta1, beta2, weight_decay, epsilon };
            // As every operation of tch; the step turns it into an error.
            torch_ext::adamw(&group, self.step, with).unwrap_or_else(|error| panic!("{error}"));
            for mut moving in group {
                let _ = tch::no_grad(|| moving.gradient.zero_());
            }
        }
    }
}

/// transformers' rule: biases and norms do not decay.
fn decays(name: &str) -> bool {
    !(name.ends_with(".bias") || name.contains("norm"))
}

/// What a loss is multiplied by so that its gradients stay within the range of `kind`: f16 loses numbers under 6e-8.
pub fn loss_scale(kind: Kind) -> f64 {
    if kind == Kind::Half { 1024.0 } else { 1.0 }
}

/// Divides every gradient by the loss scale; a power of two, so nothing is rounded.
pub fn unscale(trainables: &[Trainable], scale: f64) {
    if scale != 1.0 {
        for mut gradient in trainables.iter().map(|t| t.leaf.grad()).filter(Tensor::defined) {
            let _ = tch::no_grad(|| gradient.g_div_scalar_(scale));
        }
    }
}

/// The global norm of the model's gradients before clipping; afterwards none is longer than `max_norm` (0 turns clipping off), with
/// `torch.nn.utils.clip_grad_norm_`'s formula. A value head's are clipped apart.
pub fn clip(trainables: &[Trainable], max_norm: f64) -> f64 {
    let (model, others): (Vec<&Trainable>, Vec<&Trainable>) = trainables.iter().partition(|t| t.group == Group::Model);
    let other_norm = clip_together(&others, max_norm);
    let norm = clip_together(&model, max_norm);
    if other_norm.is_finite() { norm } else { other_norm }
}

fn clip_together(trainables: &[&Trainable], max_norm: f64) -> f64 {
    let gradients: Vec<Tensor> = trainables.iter().map(|t| t.leaf.grad()).filter(Tensor::defined).collect();
    if gradients.is_empty() {
        return 0.0;
    }
    let norms: Vec<Tensor> = gradients.iter().map(|gradient| gradient.to_kind(Kind::Float).norm()).collect();
    // Read together, so that a GPU is waited for once and not for every tensor.
    let norms = Vec::<f64>::try_from(Tensor::stack(&norms, 0)).expect("norms are one row of numbers");
    let norm = norms.iter().map(|norm| norm.powi(2)).sum::<f64>().sqrt();
    if max_norm > 0.0 && norm > max_norm {
        for mut gradient in gradients {
            let _ = gradient.g_mul_scalar_(max_norm / (norm + 1e-6));
        }
    }
    norm
}

/// How many optimizer steps the warm-up takes of `total`.
pub fn warmup_steps(warmup: config::Warmup, total: usize) -> usize {
    match warmup {
        config::Warmup::Steps(steps) => steps,
        config::Warmup::Ratio(ratio) => (ratio * total as f64).ceil() as usize,
    }
}

/// The learning rate of optimizer step `step` (the first is 0), by transformers' formulas.
pub fn learning_rate(settings: &config::Optim, step: usize, total: usize) -> f64 {
    let warmup = warmup_steps(settings.warmup, total);
    let peak = settings.learning_rate;
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    match settings.schedule {
        config::Schedule::Constant => peak,
        config::Schedule::Linear => peak * (1.0 - progress).max(0.0),
        config::Schedule::Cosine => peak * cosine.max(0.0),
        config::Schedule::CosineWithMinLr { min_lr_rate } => {
            peak * (cosine * (1.0 - min_lr_rate) + min_lr_rate).max(0.0)
        }
        config::Schedule::Polynomial => {
            let end = 1e-7;
            (peak - end) * (1.0 - progress).max(0.0) + end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{Optim, Schedule, Warmup};
    use serde_json::Value;
    use std::path::Path;

    fn settings(schedule: Schedule, warmup: usize) -> Optim {
        Optim {
            learning_rate: 1e-3,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            schedule,
            warmup: Warmup::Steps(warmup),
        }
    }

    /// One tensor with a gradient.
    fn trainable(name: &str, values: &[f32], gradient: &[f32]) -> Trainable {
        let leaf = Tensor::from_slice(values).set_requires_grad(true);
        (&leaf * Tensor::from_slice(gradient)).sum(Kind::Float).backward();
        Trainable { name: name.to_owned(), leaf, group: Group::Model }
    }

    /// Every rate that transformers' schedulers gave; worst relative difference measured 3e-16.
    #[test]
    fn learning_rates_are_those_of_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/training/schedules.json");
        let fixture: Value =
            serde_json::from_str(&std::fs::read_to_string(path).expect("schedules.json")).expect("JSON");
        let total = fixture["max_steps"].as_u64().expect("steps") as usize;
        let curves = fixture["schedules"].as_object().expect("schedules");
        assert_eq!(curves.len(), 6);
        let mut worst = 0.0f64;
        for (name, curve) in curves {
            let schedule = match name.as_str() {
                "linear" => Schedule::Linear,
                "cosine" => Schedule::Cosine,
                "cosine_with_min_lr" => Schedule::CosineWithMinLr { min_lr_rate: 0.1 },
                "polynomial" => Schedule::Polynomial,
                "constant" | "constant_with_warmup" => Schedule::Constant,
                other => panic!("no schedule `{other}`"),
            };
            let settings = settings(schedule, if name == "constant" { 0 } else { 3 });
            let rates = curve["learning_rates"].as_array().expect("rates");
            assert_eq!(rates.len(), total + 1);
            for (step, expected) in rates.iter().enumerate() {
                let (found, expected) = (learning_rate(&settings, step, total), expected.as_f64().expect("a rate"));
                let difference = (found - expected).abs() / 1e-3;
                assert!(difference <= 2e-15, "{name}, step {step}: {found} ≠ {expected}");
                worst = worst.max(difference);
            }
        }
        println!("learning rates: worst {worst:.1e} of the peak");
    }

    #[test]
    fn a_ratio_of_the_steps_is_rounded_up_as_transformers_does() {
        for (ratio, total, steps) in [(0.1, 20, 2), (0.1, 21, 3), (0.0, 9, 0), (1.0, 9, 9), (0.03, 1, 1)] {
            assert_eq!(warmup_steps(Warmup::Ratio(ratio), total), steps, "{ratio} of {total}");
        }
    }

    #[test]
    fn after_the_last_step_no_rate_is_negative() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Polynomial, Schedule::Constant] {
            for warmup in [0, 3, 40] {
                let rates = (0..60).map(|step| learning_rate(&settings(schedule, warmup), step, 20));
                assert!(rates.into_iter().all(|rate| (0.0..=1e-3).contains(&rate)), "{schedule:?}, {warmup}");
            }
        }
    }

    #[test]
    fn clipping_scales_all_gradients_by_the_same_factor_and_tells_the_norm_before() {
        let all = [trainable("a", &[0.0; 2], &[3.0, 0.0]), trainable("b", &[0.0; 1], &[4.0])];
        assert_eq!(clip(&all, 0.0), 5.0);
        assert_eq!(clip(&all, 10.0), 5.0);
        assert_eq!(all[1].leaf.grad().double_value(&[0]), 4.0);
        assert_eq!(clip(&all, 1.0), 5.0);
        assert!((all[0].leaf.grad().double_value(&[0]) - 0.6).abs() < 1e-6);
        assert!((clip(&all, 0.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_value_head_is_clipped_apart_and_moves_at_its_own_rate() {
        let group = Group::ValueHead { rate: 10.0 };
        let all = [trainable("a", &[0.0], &[3.0]), Trainable { group, ..trainable("v_head", &[0.0], &[400.0]) }];
        assert_eq!(clip(&all, 2.0), 3.0);
        let gradient = |i: usize| all[i].leaf.grad().double_value(&[0]);
        assert!((gradient(0) - 2.0).abs() < 1e-6 && (gradient(1) - 2.0).abs() < 1e-6);
        AdamW::new(settings(Schedule::Constant, 0), &all).step(&all, 1e-3);
        let moved = |i: usize| all[i].leaf.double_value(&[0]);
        assert!((moved(1) / moved(0) - 10.0).abs() < 1e-5);
    }

    #[test]
    fn a_gradient_that_is_not_a_number_shows_in_the_norm() {
        let all = [trainable("a", &[0.0; 2], &[f32::NAN, 0.0]), trainable("b", &[0.0; 1], &[4.0])];
        assert!(clip(&all, 1.0).is_nan());
    }

    /// The update rule of arXiv 1711.05101, algorithm 2, in plain f64.
    #[test]
    fn adamw_follows_its_paper_and_decays_neither_norms_nor_biases() {
        let gradients = [[0.5f32, -2.0], [0.25, 1.0], [-1.5, 1e-4]];
        let names = ["w.weight", "w.bias", "input_layernorm.weight"];
        let mut all: Vec<_> = names.iter().map(|name| trainable(name, &[1.0, -3.0], &gradients[0])).collect();
        let mut adamw = AdamW::new(settings(Schedule::Constant, 0), &all);
        let (mut first, mut second) = ([0.0f64; 2], [0.0f64; 2]);
        let mut expected = [[1.0f64, -3.0]; 3];
        for (step, gradient) in gradients.iter().enumerate() {
            if step > 0 {
                for trainable in &mut all {
                    (&trainable.leaf * Tensor::from_slice(gradient)).sum(Kind::Float).backward();
                }
            }
            adamw.step(&all, 1e-3);
            let power = step as i32 + 1;
            for (i, g) in gradient.iter().map(|&g| f64::from(g)).enumerate() {
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                let (m, v) = (first[i] / (1.0 - 0.9f64.powi(power)), second[i] / (1.0 - 0.999f64.powi(power)));
                for (name, weights) in names.iter().zip(&mut expected) {
                    let decay = if *name == "w.weight" { 1.0 - 1e-3 * 0.1 } else { 1.0 };
                    weights[i] = weights[i] * decay - 1e-3 * m / (v.sqrt() + 1e-8);
                }
            }
        }
        for (trainable, expected) in all.iter().zip(expected) {
            for (i, expected) in expected.into_iter().enumerate() {
                let found = trainable.leaf.double_value(&[i as i64]);
                assert!((found - expected).abs() < 1e-6, "{}: {found} ≠ {expected}", trainable.name);
            }
            assert_eq!(trainable.leaf.grad().abs().sum(Kind::Double).double_value(&[]), 0.0, "gradients are cleared");
        }
    }

    #[test]
    fn a_tensor_without_a_gradient_stays() {
        let leaf = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let all =
            [Trainable { name: "unused.weight".to_owned(), leaf, group: Group::Model }, trainable("a", &[0.0], &[1.0])];
        let mut adamw = AdamW::new(settings(Schedule::Constant, 0), &all);
        assert_eq!(clip(&all, 1.0), 1.0);
        adamw.step(&all, 1e-3);
        assert_eq!(all[0].leaf.sum(Kind::Double).double_value(&[]), 3.0);
        assert!(all[1].leaf.double_value(&[0]) < 0.0);
    }
}
