//! Metrics as sums and counts, so that a mean is one over everything and never a mean of means.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Named sums with their counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics(BTreeMap<String, (f64, f64)>);

impl Metrics {
    /// Adds `count` observations whose values sum to `sum`.
    pub fn add(&mut self, name: impl Into<String>, sum: f64, count: f64) {
        let entry = self.0.entry(name.into()).or_default();
        entry.0 += sum;
        entry.1 += count;
    }

    /// Adds every value of a tensor.
    pub fn add_all(&mut self, name: impl Into<String>, values: &Tensor) {
        self.add(name, values.sum(Kind::Double).double_value(&[]), values.numel() as f64);
    }

    /// Adds the values where `mask` is 1.
    pub fn add_where(&mut self, name: impl Into<String>, values: &Tensor, mask: &Tensor) {
        let count = mask.sum(Kind::Double).double_value(&[]);
        if count > 0.0 {
            self.add(name, (values * mask).sum(Kind::Double).double_value(&[]), count);
        }
    }

    /// Adds another set.
    pub fn merge(&mut self, other: &Metrics) {
        for (name, &(sum, count)) in &other.0 {
            self.add(name.clone(), sum, count);
        }
    }

    /// The mean of one metric.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.0.get(name).map(|(sum, count)| sum / count)
    }

    /// All means by name.
    pub fn means(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, (sum, count))| (name.as_str(), sum / count))
    }
}
