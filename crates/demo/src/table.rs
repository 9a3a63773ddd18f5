//! What a comparison came to, as tables of fixed width and as data.

use mdpo_measure::Figures;
use serde_json::{Value, json};
use std::fmt::Write;

/// A figure as it is shown: the benchmark's name of it, that of its column, digits behind the point.
struct Column {
    name: &'static str,
    title: &'static str,
    digits: usize,
}

const fn column(name: &'static str, title: &'static str, digits: usize) -> Column {
    Column { name, title, digits }
}

/// The figures of descriptions. `Hal` is AMBER's name for the share of descriptions that invent something.
const OF_SCENES: [Column; 4] = [
    column("CHAIRs", "CHAIRs", 1),
    column("CHAIRi", "CHAIRi", 1),
    column("Cover", "Cover", 1),
    column("Hal", "Hal", 1),
];
/// The figures of POPE's questions: how many answers are right in each setting, and the rest over all of them.
const OF_POLLS: [Column; 7] = [
    column("POPE/random/accuracy", "random acc.", 1),
    column("POPE/popular/accuracy", "popular acc.", 1),
    column("POPE/adversarial/accuracy", "adversarial acc.", 1),
    column("POPE/precision", "precision", 1),
    column("POPE/recall", "recall", 1),
    column("POPE/F1", "F1", 1),
    column("POPE/yes_share", "yes share", 1),
];
const OF_PAIRS: [Column; 4] = [
    column("image-pair accuracy", "image-pair acc.", 1),
    column("image gap", "image gap, nats", 1),
    column("text-pair accuracy", "text-pair acc.", 1),
    column("chosen reward", "chosen reward", 2),
];

const NAMES: usize = 36;
const CELLS: usize = 21;

/// One model: its name, and its figures of each set of held-out scenes and of the pairs.
#[derive(Debug, Clone)]
pub struct Line {
    /// `base`, `DPO` …
    pub title: String,
    /// In the order of the headings.
    pub scenes: Vec<Figures>,
    /// Of the held-out pairs.
    pub pairs: Figures,
    /// Of the broken prior as training went: optimizer step and figures, the checkpoint at step 0 and the trained model included.
    pub curve: Vec<(usize, Figures)>,
}

/// The table: for each set of scenes a block with a row for each model, then as many of POPE's questions, then one of the pairs.
pub fn table(headings: &[String], pairs: &str, lines: &[Line]) -> String {
    let mut text = String::new();
    let mut block = |heading: &str, columns: &[Column], figures: &dyn Fn(&Line) -> Option<&Figures>| {
        let held = |column: &Column| lines.iter().any(|line| value(figures(line), column.name).is_some());
        let columns: Vec<&Column> = columns.iter().filter(|column| held(column)).collect();
        let titles: String = columns.iter().map(|column| format!("{:>CELLS$}", column.title)).collect();
        let _ = writeln!(text, "{heading:<NAMES$}{titles}");
        for line in lines {
            let cells = columns.iter().map(|column| format!("{:>CELLS$}", cell(figures(line), column)));
            let _ = writeln!(text, "  {:<width$}{}", line.title, cells.collect::<String>(), width = NAMES - 2);
        }
        text.push('\n');
    };
    for (place, heading) in headings.iter().enumerate() {
        block(heading, &OF_SCENES, &|line| line.scenes.get(place));
    }
    let asked = |line: &Line, place: usize| value(line.scenes.get(place), OF_POLLS[0].name).is_some();
    for (place, heading) in
        headings.iter().enumerate().filter(|(place, _)| lines.iter().any(|line| asked(line, *place)))
    {
        block(&format!("POPE, {heading}"), &OF_POLLS, &|line| line.scenes.get(place));
    }
    block(pairs, &OF_PAIRS, &|line| Some(&line.pairs));
    text
}

/// CHAIRs against Cover over training: a row for each model, a column for each step.
pub fn curves(lines: &[Line]) -> String {
    let mut steps: Vec<usize> = lines.iter().flat_map(|line| line.curve.iter().map(|(step, _)| *step)).collect();
    steps.sort_unstable();
    steps.dedup();
    let titles: String = steps.iter().map(|step| format!("{:>15}", format!("step {step}"))).collect();
    let mut text = format!("{:<NAMES$}{titles}\n", "CHAIRs / Cover");
    for line in lines.iter().filter(|line| line.curve.len() > 1) {
        let at = |step: &usize| {
            let figures = line.curve.iter().find(|(at, _)| at == step).map(|(_, figures)| figures);
            let number = |name| value(figures, name).map_or("-".to_owned(), |(value, _)| format!("{value:.1}"));
            format!("{:>15}", format!("{} / {}", number("CHAIRs"), number("Cover")))
        };
        let cells: String = steps.iter().map(at).collect();
        let _ = writeln!(text, "  {:<width$}{cells}", line.title, width = NAMES - 2);
    }
    text
}

/// Everything that was measured.
pub fn data(sets: &[&str], lines: &[Line]) -> Value {
    let line = |line: &Line| {
        let scenes: serde_json::Map<String, Value> =
            sets.iter().zip(&line.scenes).map(|(name, figures)| ((*name).to_owned(), json!(figures.figures))).collect();
        let curve = line.curve.iter().map(|(step, figures)| {
            let number = |name| value(Some(figures), name).map(|(value, _)| value);
            json!({"step": step, "CHAIRs": number("CHAIRs"), "CHAIRi": number("CHAIRi"), "Cover": number("Cover")})
        });
        json!({"model": line.title, "scenes": scenes, "pairs": line.pairs.figures, "curve": curve.collect::<Vec<_>>()})
    };
    Value::Array(lines.iter().map(line).collect())
}

/// A figure and its interval.
fn value(figures: Option<&Figures>, name: &str) -> Option<(f64, Option<(f64, f64)>)> {
    let figure = figures?.figures.iter().find(|figure| figure.name == name)?;
    Some((figure.value?, figure.low.zip(figure.high)))
}

fn cell(figures: Option<&Figures>, column: &Column) -> String {
    let digits = column.digits;
    match value(figures, column.name) {
        None => "-".to_owned(),
        Some((value, None)) => format!("{value:.digits$}"),
        Some((value, Some((low, high)))) => format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mdpo_measure::{Better, Figure};

    fn figures(all: &[(&str, f64)]) -> Figures {
        let figure = |&(name, value): &(&str, f64)| Figure {
            name: name.to_owned(),
            value: Some(value),
            low: Some(value - 5.0),
            high: Some(value + 5.0),
            better: Better::Lower,
        };
        Figures {
            benchmark: "objects".to_owned(),
            model: "model".to_owned(),
            adapter: None,
            answers: 10,
            figures: all.iter().map(figure).collect(),
        }
    }

    #[test]
    fn a_table_has_a_block_for_each_set_and_leaves_out_what_nobody_measured() {
        let line = |title: &str, chairs: f64| Line {
            title: title.to_owned(),
            scenes: vec![
                figures(&[("CHAIRs", chairs)]),
                figures(&[("CHAIRs", chairs), ("POPE/random/accuracy", 75.0), ("POPE/yes_share", 50.0)]),
            ],
            pairs: figures(&[("chosen reward", -0.25)]),
            curve: vec![(0, figures(&[("CHAIRs", 50.0), ("Cover", 60.0)])), (38, figures(&[("CHAIRs", chairs)]))],
        };
        let lines = [line("base", 50.0), line("mDPO", 40.125)];
        let shown = table(&["broken".to_owned(), "mixed".to_owned()], "pairs", &lines) + &curves(&lines);
        let expected = "\
broken                                             CHAIRs
  base                                  50.0 [45.0, 55.0]
  mDPO                                  40.1 [35.1, 45.1]

mixed                                              CHAIRs
  base                                  50.0 [45.0, 55.0]
  mDPO                                  40.1 [35.1, 45.1]

POPE, mixed                                   random acc.            yes share
  base                                  75.0 [70.0, 80.0]    50.0 [45.0, 55.0]
  mDPO                                  75.0 [70.0, 80.0]    50.0 [45.0, 55.0]

pairs                                       chosen reward
  base                                -0.25 [-5.25, 4.75]
  mDPO                                -0.25 [-5.25, 4.75]

CHAIRs / Cover                               step 0        step 38
  base                                  50.0 / 60.0       50.0 / -
  mDPO                                  50.0 / 60.0       40.1 / -
";
        assert_eq!(shown, expected);
        let data = data(&["broken", "mixed"], &lines);
        assert_eq!(data[1]["scenes"]["mixed"][1]["value"], 75.0);
        assert_eq!(data[1]["curve"][1], json!({"step": 38, "CHAIRs": 40.125, "CHAIRi": null, "Cover": null}));
    }
}
