//! Preference accuracy on held-out pairs: is the better answer the likelier one, and is it likelier under its picture than under the
//! corrupted one?
//!
//! The first is what DPO is about, the second what mDPO adds (Wang et al., arXiv 2406.11839, section 3). Pairs are read, cut and corrupted
//! as in training, at the first epoch's addresses, so that two models are asked about the same pictures. With an adapter both questions are also asked
//! of the log-ratio to the model without it, which is the implicit reward over β.

use super::reference::reference_of;
use super::{Inputs, PictureCheck, ReferenceRow, Rows};
use crate::Result;
use crate::config::{Dpo, DpoLoss, Objective, Run};
use crate::data::{Answer, Example, ImageSource, Message, Part, Prompt, Response};
use mdpo_measure::benchmark::{Row, Scored};
use mdpo_measure::interval::{Bootstrap, Formula, Measure, Tally};
use mdpo_measure::{Better, Figures};
use std::path::Path;

/// The name that `--benchmark` takes.
pub const NAME: &str = "preferences";

/// What a pair adds to the figures.
#[derive(Debug, Clone, Copy)]
enum Column {
    TextPairs,
    TextRight,
    TextMargin,
    ImagePairs,
    ImageRight,
    ImageMargin,
    TextRewardRight,
    ImageRewardRight,
    ChosenRatio,
}

const COLUMNS: usize = Column::ChosenRatio as usize + 1;

/// Whether any row of `run`'s data set has an image, whatever its objective asks for.
///
/// # Errors
/// Rows that cannot be read.
pub fn shows_images(run: &Run) -> Result<bool> {
    let text = Run { objective: Objective::Dpo(Dpo::of(DpoLoss::Sigmoid, 0.1)), ..run.clone() };
    let inputs = Inputs::open(&text, PictureCheck::Header)?;
    Ok(inputs.examples.iter().any(|example| !example.images.is_empty()))
}

/// Figures of the pairs of `run`'s data set, or of those of some of its rows, under its checkpoint, with an adapter where one is given: accuracies in percent, margins in nats.
///
/// # Errors
/// What [`reference()`](super::reference()) gives.
pub fn preferences(run: &Run, adapter: Option<&Path>, which: Rows, bootstrap: Bootstrap) -> Result<Scored> {
    let log_probs = |adapter: Option<&Path>| -> Result<Vec<ReferenceRow>> {
        let mut rows = Vec::new();
        reference_of(run, adapter, which, |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    };
    let policy = log_probs(adapter)?;
    let bare = adapter.map(|_| log_probs(None)).transpose()?;
    let inputs = Inputs::open(run, PictureCheck::Header)?;
    let (mut tally, mut rows, mut next) = (Tally::new(COLUMNS), Vec::new(), 0);
    for index in which.of(run.seed, inputs.examples.len()) {
        let example = &inputs.examples[index];
        let mut of_row = Vec::new();
        for (nth, pair) in example.pairs.iter().enumerate() {
            let Some(found) = policy.get(next) else { continue };
            of_row.extend(counts(found, bare.as_ref().map(|rows| &rows[next])));
            next += 1;
            let margin = found.chosen.zip(found.rejected).map(|(chosen, rejected)| chosen - rejected);
            let answer = pair.chosen.or(pair.rejected).map(|answer| &example.answers[answer]);
            let id = match example.pairs.len() {
                1 => example.row.to_string(),
                _ => format!("{} pair {}", example.row, nth + 1),
            };
            rows.push(Row {
                id,
                image: example.images.first().and_then(path),
                question: question(example),
                answer: answer.map(said).unwrap_or_default(),
                correct: margin.map(|margin| margin > 0.0),
                score: margin,
                image_margin: found.chosen.zip(found.corrupted).map(|(chosen, corrupted)| chosen - corrupted),
                ..Row::default()
            });
        }
        // Pairs of one row are no independent draws: an interval draws rows.
        tally.push(of_row.into_iter().map(|(column, count)| (column as usize, count)));
    }
    let measures = measures(bare.is_some());
    let figures = Figures {
        benchmark: NAME.to_owned(),
        model: run.model.name.clone(),
        adapter: adapter.map(|adapter| adapter.display().to_string()),
        answers: rows.len(),
        figures: bootstrap.figures(&tally, &measures),
    };
    Ok(Scored { figures, rows })
}

fn counts(found: &ReferenceRow, bare: Option<&ReferenceRow>) -> Vec<(Column, f64)> {
    let share = |right: bool| f64::from(u8::from(right));
    let mut counts = Vec::new();
    if let Some((chosen, rejected)) = found.chosen.zip(found.rejected) {
        let margin = chosen - rejected;
        counts.extend([
            (Column::TextPairs, 1.0),
            (Column::TextRight, share(margin > 0.0)),
            (Column::TextMargin, margin),
        ]);
        if let Some((bare_chosen, bare_rejected)) = bare.and_then(|bare| bare.chosen.zip(bare.rejected)) {
            counts.push((Column::TextRewardRight, share(margin > bare_chosen - bare_rejected)));
            counts.push((Column::ChosenRatio, chosen - bare_chosen));
        }
    }
    if let Some((chosen, corrupted)) = found.chosen.zip(found.corrupted) {
        let margin = chosen - corrupted;
        counts.extend([
            (Column::ImagePairs, 1.0),
            (Column::ImageRight, share(margin > 0.0)),
            (Column::ImageMargin, margin),
        ]);
        if let Some((bare_chosen, bare_corrupted)) = bare.and_then(|bare| bare.chosen.zip(bare.corrupted)) {
            counts.push((Column::ImageRewardRight, share(margin > bare_chosen - bare_corrupted)));
        }
    }
    counts
}

fn measures(with_rewards: bool) -> Vec<Measure> {
    let measure = |name: &str, formula| Measure { name: name.to_owned(), better: Better::Higher, formula };
    let share = |of: Column, among: Column| Formula::Share { of: of as usize, among: among as usize };
    let mean = |of: Column, count: Column| Formula::Mean { of: of as usize, count: count as usize };
    let mut measures = vec![
        measure("text_accuracy", share(Column::TextRight, Column::TextPairs)),
        measure("text_margin", mean(Column::TextMargin, Column::TextPairs)),
        measure("image_accuracy", share(Column::ImageRight, Column::ImagePairs)),
        measure("image_margin", mean(Column::ImageMargin, Column::ImagePairs)),
    ];
    if with_rewards {
        measures.extend([
            measure("text_reward_accuracy", share(Column::TextRewardRight, Column::TextPairs)),
            measure("image_reward_accuracy", share(Column::ImageRewardRight, Column::ImagePairs)),
            measure("chosen_log_ratio", mean(Column::ChosenRatio, Column::TextPairs)),
        ]);
    }
    measures
}

fn path(image: &ImageSource) -> Option<std::path::PathBuf> {
    match image {
        ImageSource::Path(path) => path.canonicalize().ok(),
        _ => None,
    }
}

/// What the prompt ends with, images left out.
fn question(example: &Example) -> String {
    match &example.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => messages.last().map(words).unwrap_or_default(),
    }
}

fn said(answer: &Answer) -> String {
    match &answer.response {
        Response::Text(text) => text.clone(),
        Response::Messages(messages) => messages.iter().map(words).collect::<Vec<_>>().join("\n"),
    }
}

fn words(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Image => None,
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(chosen: f64, rejected: f64, corrupted: Option<f64>) -> ReferenceRow {
        ReferenceRow {
            file: None,
            row: 1,
            chosen: Some(chosen),
            chosen_tokens: None,
            chosen_turns: Vec::new(),
            rejected: Some(rejected),
            rejected_tokens: None,
            rejected_turns: Vec::new(),
            corrupted,
        }
    }

    #[test]
    fn pairs_count_by_their_margins_and_by_what_the_adapter_moved() {
        let policy = [row(-10.0, -12.0, Some(-11.0)), row(-8.0, -7.0, Some(-7.0)), row(-5.0, -9.0, None)];
        let bare = [row(-11.0, -12.5, Some(-13.0)), row(-9.0, -7.0, Some(-7.5)), row(-5.0, -10.0, None)];
        let mut tally = Tally::new(COLUMNS);
        for (policy, bare) in policy.iter().zip(&bare) {
            tally.push(counts(policy, Some(bare)).into_iter().map(|(column, count)| (column as usize, count)));
        }
        let figures = Bootstrap::default().figures(&tally, &measures(true));
        let value = |name: &str| figures.iter().find(|figure| figure.name == name).and_then(|figure| figure.value);
        let expected = [
            ("text_accuracy", 200.0 / 3.0),
            ("text_margin", 5.0 / 3.0),
            ("image_accuracy", 50.0),
            ("image_margin", 0.0),
            ("text_reward_accuracy", 200.0 / 3.0),
            ("image_reward_accuracy", 50.0),
            ("chosen_log_ratio", 2.0 / 3.0),
        ];
        for (name, expected) in expected {
            let found = value(name).expect("the figure has a value");
            assert!((found - expected).abs() < 1e-12, "{name}: {found} ≠ {expected}");
        }
        assert_eq!(measures(false).len(), 4);
    }
}
