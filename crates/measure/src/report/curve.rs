//! A metric over optimizer steps, with no more points than a screen shows.

use serde::Serialize;

/// The most points of one curve in the page.
pub(super) const MOST_POINTS: usize = 400;

/// A metric over steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Curve {
    /// Optimizer steps, rising.
    pub steps: Vec<f64>,
    /// The value there, or the mean of the values that a point stands for.
    pub values: Vec<f64>,
    /// Least and greatest of those values; empty where every value has its own point.
    pub low: Vec<f64>,
    pub high: Vec<f64>,
}

impl Curve {
    /// The points as they are, or means of equally many neighbours (with their range, so that no spike is lost) where there are more
    /// than [`MOST_POINTS`].
    pub fn thinned(points: &[(f64, f64)]) -> Self {
        let mut curve = Curve { steps: Vec::new(), values: Vec::new(), low: Vec::new(), high: Vec::new() };
        if points.len() <= MOST_POINTS {
            curve.steps = points.iter().map(|(step, _)| *step).collect();
            curve.values = points.iter().map(|(_, value)| rounded(*value)).collect();
            return curve;
        }
        for bucket in 0..MOST_POINTS {
            let range = bucket * points.len() / MOST_POINTS..(bucket + 1) * points.len() / MOST_POINTS;
            let part = &points[range];
            let count = part.len() as f64;
            curve.steps.push((part.iter().map(|(step, _)| step).sum::<f64>() / count).round());
            curve.values.push(rounded(part.iter().map(|(_, value)| value / count).sum()));
            curve.low.push(rounded(part.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min)));
            curve.high.push(rounded(part.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max)));
        }
        curve
    }
}

/// Six significant digits: more than a curve shows.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// What a metric is about, in the order of the page; neighbours may share a heading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Loss,
    Terms,
    Rewards,
    Margins,
    Accuracies,
    Benchmarks,
    Likelihoods,
    Optimizer,
    Speed,
}

impl Group {
    pub const ALL: [Group; 9] = [
        Group::Loss,
        Group::Terms,
        Group::Rewards,
        Group::Margins,
        Group::Accuracies,
        Group::Benchmarks,
        Group::Likelihoods,
        Group::Optimizer,
        Group::Speed,
    ];

    /// The group of a metric by its name in the log; what was measured on held-out pairs (`eval_`) stands beside what it belongs to.
    pub fn of(metric: &str) -> Group {
        let (held_out, name) = match metric.strip_prefix("eval_") {
            Some(name) => (true, name),
            None => (false, metric),
        };
        match name {
            "loss" => Group::Loss,
            _ if name.starts_with("loss/") => Group::Terms,
            _ if name.starts_with("rewards/") && name.ends_with("margins") => Group::Margins,
            _ if name.starts_with("rewards/") && name.ends_with("accuracies") => Group::Accuracies,
            _ if name.starts_with("rewards/") => Group::Rewards,
            "kl" | "entropy" | "mean_token_accuracy" => Group::Likelihoods,
            _ if ["logps/", "logits/", "lengths/"].iter().any(|start| name.starts_with(start)) => Group::Likelihoods,
            "learning_rate" | "grad_norm" => Group::Optimizer,
            "runtime" | "samples_per_second" | "steps_per_second" => Group::Speed,
            _ if held_out => Group::Benchmarks,
            _ => Group::Speed,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Group::Loss | Group::Terms => "Loss and its terms",
            Group::Rewards | Group::Margins => "Rewards and margins",
            Group::Accuracies => "Accuracies",
            Group::Benchmarks => "Benchmarks while training",
            Group::Likelihoods => "Likelihoods",
            Group::Optimizer => "Optimizer",
            Group::Speed => "Speed and everything else",
        }
    }

    /// Whether its metrics are drawn before anybody chooses; those of single turns are not.
    pub fn shown_first(self, metric: &str) -> bool {
        self <= Group::Benchmarks && !metric.contains("/turn_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_stay_as_they_are() {
        let curve = Curve::thinned(&[(1.0, 0.731_058_58), (10.0, 0.5)]);
        assert_eq!((curve.steps, curve.values), (vec![1.0, 10.0], vec![0.731_059, 0.5]));
        assert!(curve.low.is_empty());
    }

    #[test]
    fn many_points_keep_their_mean_and_their_extremes() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        points[54_321].1 = 99.0;
        let curve = Curve::thinned(&points);
        assert_eq!(curve.steps.len(), MOST_POINTS);
        assert!(curve.steps.is_sorted());
        assert_eq!((curve.values[0], curve.low[0], curve.high[0]), (0.5, 0.0, 1.0));
        assert_eq!(curve.high.iter().copied().fold(0.0, f64::max), 99.0);
    }

    #[test]
    fn metrics_stand_where_they_belong() {
        let expected = [
            ("loss", Group::Loss),
            ("eval_loss", Group::Loss),
            ("loss/conditional", Group::Terms),
            ("rewards/chosen", Group::Rewards),
            ("rewards/image_margins", Group::Margins),
            ("eval_rewards/accuracies", Group::Accuracies),
            ("eval_chair_CHAIRi", Group::Benchmarks),
            ("logps/rejected", Group::Likelihoods),
            ("grad_norm", Group::Optimizer),
            ("step_time", Group::Speed),
            ("eval_runtime", Group::Speed),
        ];
        for (metric, group) in expected {
            assert_eq!(Group::of(metric), group, "{metric}");
        }
        assert!(!Group::Rewards.shown_first("rewards/chosen/turn_3") && Group::Rewards.shown_first("rewards/chosen"));
    }
}
