//! The benchmark table: per figure one line for each model, with its interval drawn on a common scale.

use super::Report;
use super::evaluation::Evaluation;
use crate::{Better, Figure};
use serde::Serialize;

/// The figures of one benchmark, over the same questions.
#[derive(Debug, Serialize)]
pub(super) struct Benchmark {
    pub name: String,
    /// Answers that were scored.
    pub answers: String,
    /// Says that other questions of the benchmark have a table of their own.
    pub apart: Option<String>,
    pub figures: Vec<Scale>,
}

/// One figure of several models.
#[derive(Debug, Serialize)]
pub(super) struct Scale {
    pub name: String,
    /// Which direction is good, in words.
    pub better: &'static str,
    pub ticks: Vec<Tick>,
    pub rows: Vec<Line>,
}

/// A round number and its place on the scale, in percent.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Tick {
    pub at: f64,
    pub label: String,
}

/// One model.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub name: String,
    pub style: usize,
    pub value: String,
    pub interval: String,
    /// Value, low and high on the scale, in percent.
    pub places: Option<[f64; 3]>,
    /// How it stands to the base model.
    pub change: String,
    /// `clear` where the intervals do not overlap.
    pub change_kind: &'static str,
}

/// The tables of a report, in the order in which the benchmarks first appear. Evaluations over other questions have a table of their own:
/// a difference between samples is none between models.
pub(super) fn benchmarks(report: &Report) -> Vec<Benchmark> {
    let mut names: Vec<&str> = Vec::new();
    for evaluation in report.evaluations.iter().filter(|evaluation| evaluation.figures.is_some()) {
        if !names.contains(&evaluation.benchmark()) {
            names.push(evaluation.benchmark());
        }
    }
    let mut tables = Vec::new();
    for name in names {
        let samples = samples(report, name);
        let count = samples.len();
        for (index, own) in samples.into_iter().enumerate() {
            let apart = (count > 1).then(|| {
                let number = index + 1;
                format!(
                    "sample {number} of {count}: other questions than in the other tables, so not compared with them"
                )
            });
            tables.push(benchmark(report, name, &own, apart));
        }
    }
    tables
}

/// The evaluations of a benchmark, those over the same questions together.
fn samples<'a>(report: &'a Report, name: &str) -> Vec<Vec<&'a Evaluation>> {
    let mut samples: Vec<Vec<&Evaluation>> = Vec::new();
    for evaluation in report.evaluations.iter().filter(|e| e.figures.is_some() && e.benchmark() == name) {
        match samples.iter_mut().find(|sample| sample[0].is_over_the_same(evaluation)) {
            Some(sample) => sample.push(evaluation),
            None => samples.push(vec![evaluation]),
        }
    }
    samples
}

fn benchmark(report: &Report, name: &str, own: &[&Evaluation], apart: Option<String>) -> Benchmark {
    let all = || own.iter().filter_map(|evaluation| evaluation.figures.as_ref());
    let mut figures: Vec<&str> = Vec::new();
    for figure in all().flat_map(|figures| &figures.figures) {
        if !figures.contains(&figure.name.as_str()) {
            figures.push(&figure.name);
        }
    }
    let answers = all().map(|figures| figures.answers).max().unwrap_or(0);
    Benchmark {
        name: name.to_owned(),
        answers: format!("{answers} answers{}", if own.len() > 1 { " each" } else { "" }),
        apart,
        figures: figures.into_iter().filter_map(|figure| scale(report, own, figure)).collect(),
    }
}

fn scale(report: &Report, own: &[&Evaluation], name: &str) -> Option<Scale> {
    let figure = |evaluation: &&Evaluation| -> Option<Figure> {
        evaluation.figures.as_ref()?.figures.iter().find(|figure| figure.name == name).cloned()
    };
    let found: Vec<Option<Figure>> = own.iter().map(figure).collect();
    let known = || found.iter().flatten();
    let ends = known().flat_map(|figure| [figure.value, figure.low, figure.high]).flatten().filter(|v| v.is_finite());
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let axis = (low <= high).then(|| Axis::around(low, high));
    // The first of those that are most surely the bare model.
    let known_by = own.iter().zip(&found).filter_map(|(evaluation, figure)| Some((evaluation, figure.as_ref()?)));
    let base = known_by.min_by_key(|(evaluation, _)| evaluation.rank_as_base()).map(|(_, figure)| figure);
    let better = base?.better;
    let rows = own.iter().zip(&found).map(|(evaluation, figure)| {
        let value = figure.as_ref().and_then(|figure| figure.value);
        let ends = figure.as_ref().and_then(|figure| figure.low.zip(figure.high));
        let (change, change_kind) = match (figure, base) {
            (Some(figure), Some(base)) if !std::ptr::eq(figure, base) => change(base, figure),
            (Some(figure), Some(_)) if figure.value.is_some() => ("baseline".to_owned(), "base"),
            _ => (String::new(), "none"),
        };
        Line {
            name: evaluation.name.clone(),
            style: report.style(&evaluation.owner),
            value: value.map_or("–".to_owned(), number),
            interval: ends.map_or(String::new(), |(low, high)| format!("{} to {}", number(low), number(high))),
            places: axis.as_ref().zip(value).map(|(axis, value)| {
                let (low, high) = ends.unwrap_or((value, value));
                [value, low, high].map(|v| axis.place(v))
            }),
            change,
            change_kind,
        }
    });
    Some(Scale {
        name: name.to_owned(),
        better: match better {
            Better::Lower => "lower is better",
            Better::Higher => "higher is better",
            Better::Neither => "neither direction is better",
        },
        ticks: axis.as_ref().map_or(Vec::new(), Axis::ticks),
        rows: rows.collect(),
    })
}

/// The difference to the base model in words, and whether it is clear.
fn change(base: &Figure, other: &Figure) -> (String, &'static str) {
    let Some((from, to)) = base.value.zip(other.value) else { return (String::new(), "none") };
    let difference = to - from;
    let text = number(difference.abs());
    let sign = if difference > 0.0 { "+" } else { "−" };
    if difference == 0.0 || text.chars().all(|c| matches!(c, '0' | '.')) {
        return ("the same".to_owned(), "none");
    }
    let apart = match (base.low.zip(base.high), other.low.zip(other.high)) {
        (Some((low, high)), Some((other_low, other_high))) => other_low > high || other_high < low,
        _ => false,
    };
    let word = match (base.better, difference > 0.0) {
        (Better::Neither, _) => return (format!("{sign}{text}"), "none"),
        (Better::Higher, true) | (Better::Lower, false) => "better",
        _ => "worse",
    };
    match apart {
        true => (format!("{sign}{text} clearly {word}"), if word == "better" { "better" } else { "worse" }),
        false => (format!("{sign}{text} {word}"), "unclear"),
    }
}

/// As many digits as a reader compares: one behind the point from 10 on, two from 1, three below.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}").replace('-', "−")
}

/// A scale with a little room at both ends.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn around(low: f64, high: f64) -> Axis {
        let room = if high > low { 0.08 * (high - low) } else { 0.05 * high.abs().max(0.01) };
        Axis { low: low - room, high: high + room }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        (share * 10_000.0).round() / 100.0
    }

    /// Two to five multiples of 1, 2 or 5 times a power of ten.
    fn ticks(&self) -> Vec<Tick> {
        let width = self.high - self.low;
        let power = 10_f64.powf((width / 3.0).log10().floor());
        let step = [10.0, 5.0, 2.0, 1.0].map(|times| times * power).into_iter().find(|step| width / step >= 2.0);
        let step = step.unwrap_or(power);
        let digits = (-step.log10().floor()).max(0.0) as usize;
        let first = (self.low / step).ceil() as i64;
        (first..)
            .map(|times| times as f64 * step)
            .take_while(|value| *value <= self.high)
            .take(5)
            .map(|value| Tick { at: self.place(value), label: format!("{value:.digits$}").replace('-', "−") })
            // Labels at the very ends would be cut off.
            .filter(|tick| (4.0..=96.0).contains(&tick.at))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64, low: f64, high: f64, better: Better) -> Figure {
        Figure { name: "CHAIRi".to_owned(), value: Some(value), low: Some(low), high: Some(high), better }
    }

    #[test]
    fn a_change_is_clear_only_where_the_intervals_are_apart() {
        let base = figure(30.0, 28.0, 32.0, Better::Lower);
        assert_eq!(
            change(&base, &figure(20.0, 18.0, 22.0, Better::Lower)),
            ("−10.0 clearly better".to_owned(), "better")
        );
        assert_eq!(change(&base, &figure(27.5, 25.5, 29.5, Better::Lower)), ("−2.50 better".to_owned(), "unclear"));
        assert_eq!(
            change(&base, &figure(40.0, 38.0, 42.0, Better::Lower)),
            ("+10.0 clearly worse".to_owned(), "worse")
        );
        assert_eq!(change(&base, &figure(30.0, 28.0, 32.0, Better::Lower)).0, "the same");
        let share = figure(50.0, 40.0, 60.0, Better::Neither);
        assert_eq!(change(&share, &figure(70.0, 65.0, 75.0, Better::Neither)).0, "+20.0");
        let higher = figure(0.5, 0.4, 0.6, Better::Higher);
        assert_eq!(change(&higher, &figure(0.7, 0.65, 0.75, Better::Higher)).0, "+0.200 clearly better");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let labels = |low: f64, high: f64| -> Vec<String> {
            Axis::around(low, high).ticks().into_iter().map(|tick| tick.label).collect()
        };
        assert_eq!(labels(20.0, 42.0), ["20", "30", "40"]);
        assert_eq!(labels(0.0, 100.0), ["0", "50", "100"]);
        assert_eq!(labels(-0.2, 0.31), ["−0.2", "0.0", "0.2"]);
        assert!(!labels(3.0, 3.0).is_empty());
        assert!(!labels(0.0, 0.0).is_empty());
    }
}
