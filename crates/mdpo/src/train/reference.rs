//! Log-probs of a data set without training: `mdpo reference`.

use super::{Inputs, Micro, PictureCheck, device, evaluate, kind};
use crate::Result;
use crate::config::Run;
use crate::model::Model;
use crate::model::load::Plan;
use crate::nn::Role;
use crate::weights;
use serde::Serialize;
use std::path::Path;

/// Log-probs of one example, in nats, summed over the response's labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReferenceRow {
    /// The file, where the data set has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line of a JSONL file, or ordinal of the row in its file; the first is 1.
    pub row: usize,
    /// The chosen answer under the true image.
    pub chosen: f64,
    /// Its labels.
    pub chosen_tokens: usize,
    /// The rejected answer under the true image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<f64>,
    /// Its labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_tokens: Option<usize>,
    /// The chosen answer under the rejected image of the first epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupted: Option<f64>,
}

/// Computes the log-probs of every usable row under the checkpoint, with an adapter where one is given, and hands them over in order.
pub fn reference(run: &Run, adapter: Option<&Path>, mut take: impl FnMut(ReferenceRow) -> Result<()>) -> Result<()> {
    let device = device(run.model.device)?;
    let inputs = Inputs::open(run, PictureCheck::Header)?;
    let adapter = adapter.map(weights::lora::read).transpose()?;
    let model = Model::load(&run.model.path, kind(run.model.dtype), device, Plan::Frozen { adapter })?;
    let first = inputs.examples.first().map(|example| &example.row.file);
    let several = inputs.examples.iter().any(|example| Some(&example.row.file) != first);
    let all: Vec<usize> = (0..inputs.examples.len()).collect();
    for indices in all.chunks(run.batch.per_device) {
        let encode = |&i: &usize| Ok(inputs.encode(&inputs.examples[i])?.encoded);
        let encoded = indices.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let micro = Micro::new(&inputs, indices, &encoded, 0, device)?;
        let sums = evaluate(&model, &micro, Role::Policy).sums;
        let value = |place: usize| sums.double_value(&[place as i64]);
        for (&index, places) in indices.iter().zip(&micro.pairs) {
            take(ReferenceRow {
                file: several.then(|| inputs.examples[index].row.file.display().to_string()),
                row: inputs.examples[index].row.row,
                chosen: value(places.chosen),
                chosen_tokens: micro.labels(places.chosen),
                rejected: places.rejected.map(value),
                rejected_tokens: places.rejected.map(|place| micro.labels(place)),
                corrupted: places.corrupted.map(value),
            })?;
        }
    }
    Ok(())
}
