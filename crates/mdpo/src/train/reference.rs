//! Log-probs of a data set without training: `mdpo reference`.

use super::held_out::drawn;
use super::{Inputs, Micro, PictureCheck, ReferenceCache, complete, device, kind};
use crate::Result;
use crate::config::{ReferenceLogps, Run};
use crate::error::caught;
use crate::model::Model;
use crate::model::load::Plan;
use crate::nn::Role;
use crate::weights;
use serde::Serialize;
use std::path::Path;

/// Log-probs of one pair of a row, in nats, summed over the response's labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReferenceRow {
    /// The file, where the data set has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line of a JSONL file, or ordinal of the row in its file; the first is 1.
    pub row: usize,
    /// The chosen answer under the true image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<f64>,
    /// Its labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen_tokens: Option<usize>,
    /// Its turns apart, where the objective looks at turns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen_turns: Vec<f64>,
    /// The rejected answer under the true image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<f64>,
    /// Its labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_tokens: Option<usize>,
    /// Its turns apart, where the objective looks at turns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected_turns: Vec<f64>,
    /// The chosen answer under the rejected image of the first epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupted: Option<f64>,
}

/// Which of the usable rows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// At most so many, drawn by the run's seed.
    Drawn(usize),
}

impl Rows {
    /// Their indices among `rows`, in order.
    pub(super) fn of(self, seed: u64, rows: usize) -> Vec<usize> {
        match self {
            Rows::All => (0..rows).collect(),
            Rows::Drawn(count) => {
                let drawn = drawn("row of a sample", seed, rows, count);
                (0..rows).filter(|&row| drawn[row]).collect()
            }
        }
    }
}

/// Gives the log-probs of every usable row under the checkpoint, with an adapter where one is given, in order. With a `reference_cache` those that it holds are
/// taken from there, the others are computed and added to it.
pub fn reference(run: &Run, adapter: Option<&Path>, take: impl FnMut(ReferenceRow) -> Result<()>) -> Result<()> {
    reference_of(run, adapter, Rows::All, take)
}

/// [`reference`] for some of the rows. A row's pictures are corrupted alike whichever others are looked at.
pub(super) fn reference_of(
    run: &Run,
    adapter: Option<&Path>,
    which: Rows,
    take: impl FnMut(ReferenceRow) -> Result<()>,
) -> Result<()> {
    let device = device(run.model.device)?;
    let mut references = ReferenceCache::of_model(run, adapter, device)?;
    let done = rows(run, adapter, device, which, &mut references, take);
    let kept = references.write();
    done.and(kept)
}

fn rows(
    run: &Run,
    adapter: Option<&Path>,
    device: tch::Device,
    which: Rows,
    references: &mut ReferenceCache,
    mut take: impl FnMut(ReferenceRow) -> Result<()>,
) -> Result<()> {
    // What rows bring is not what this model says.
    let mut run = run.clone();
    run.data.reference_logps = ReferenceLogps::Computed;
    let inputs = Inputs::open(&run, PictureCheck::Header)?;
    let adapter = adapter.map(weights::lora::read).transpose()?;
    let model = Model::load(&run.model.path, kind(run.model.dtype), device, Plan::Frozen { adapter })?;
    let first = inputs.examples.first().map(|example| &example.row.file);
    let several = inputs.examples.iter().any(|example| Some(&example.row.file) != first);
    for indices in which.of(run.seed, inputs.examples.len()).chunks(run.batch.per_device) {
        let encode = |&i: &usize| Ok(inputs.encode(&inputs.examples[i])?.encoded);
        let encoded = indices.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let micro = Micro::new(&inputs, indices, &encoded, 0, device)?;
        let mut known = references.known(&micro);
        caught(|| {
            complete(&model, &micro, Role::Policy, None, &mut known);
            Ok(())
        })?;
        references.learn(&micro, &known)?;
        let sums = known.sums();
        let value = |place: usize| micro.sum(&sums, place);
        let turns = |place: Option<usize>| place.map_or(Vec::new(), |place| micro.turns(&sums, place));
        let rows = indices.iter().flat_map(|&index| inputs.examples[index].pairs.iter().map(move |_| index));
        for (index, places) in rows.zip(&micro.pairs) {
            take(ReferenceRow {
                file: several.then(|| inputs.examples[index].row.file.display().to_string()),
                row: inputs.examples[index].row.row,
                chosen: places.chosen.map(value),
                chosen_tokens: places.chosen.map(|place| micro.labels(place)),
                chosen_turns: turns(places.chosen),
                rejected: places.rejected.map(value),
                rejected_tokens: places.rejected.map(|place| micro.labels(place)),
                rejected_turns: turns(places.rejected),
                corrupted: places.corrupted.map(value),
            })?;
        }
    }
    Ok(())
}
