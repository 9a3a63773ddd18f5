//! What a run writes: adapter or checkpoint, tokenizer and processor, card, state.

use super::Inputs;
use super::answering::EVALUATIONS;
use crate::checkpoint::{self, card};
use crate::config::{Run, Tuning};
use crate::model::Model;
use crate::model::family::Family;
use crate::model::load::{Group, Trainable};
use crate::weights::{self, AdapterConfig, AutoMapping, LoraPair};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::Tensor;

/// Checks that results could be written, and that nothing would be overwritten by accident; writes nothing that stays.
pub(super) fn check(run: &Run) -> Result<()> {
    let dir = &run.output.dir;
    let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    tempfile::tempfile_in(existing).map_err(|error| Error::io("write into", dir, &error))?;
    if run.output.resume == crate::config::Resume::No && !checkpoint::list(dir)?.is_empty() {
        let hint = "set `resume_from_checkpoint: true` to go on, choose another `output_dir`, or remove the folder";
        return Err(Error::at(dir.display(), "`output_dir` already holds checkpoints").hint(hint));
    }
    Ok(())
}

/// Checks as [`check`] does, makes `output_dir` and removes what a killed run left unfinished in it.
pub(super) fn prepare(run: &Run) -> Result<()> {
    check(run)?;
    let dir = &run.output.dir;
    fs::create_dir_all(dir).map_err(|error| Error::io("create the folder", dir, &error))?;
    let evaluations = dir.join(EVALUATIONS);
    if evaluations.is_dir() {
        checkpoint::sweep(&evaluations)?;
    }
    checkpoint::sweep(dir)
}

/// The adapter's configuration as PEFT will read it.
pub(super) fn adapter_config(run: &Run, model: &Model, start: Option<AdapterConfig>) -> Option<AdapterConfig> {
    let Tuning::Lora(lora) = &run.tuning else { return None };
    let fresh = AdapterConfig { r: lora.r, alpha: lora.alpha, rslora: lora.rslora, ..AdapterConfig::default() };
    let auto_mapping = (model.shape.family == Family::Llava).then(|| AutoMapping {
        base_model_class: "LlavaForConditionalGeneration".to_owned(),
        parent_library: "transformers.models.llava.modeling_llava".to_owned(),
    });
    Some(AdapterConfig {
        dropout: lora.dropout,
        target_modules: None,
        base_model: Some(run.model.name.clone()),
        auto_mapping,
        task_type: Some("CAUSAL_LM".to_owned()),
        ..start.unwrap_or(fresh)
    })
}

/// Writes what users load into `folder`: the adapter, or the whole checkpoint where full weights are trained.
pub(super) fn model(run: &Run, adapter: Option<&AdapterConfig>, model: &Model, folder: &Path) -> Result<()> {
    let trainables: Vec<&Trainable> = model.trainables.iter().filter(|t| t.group == Group::Model).collect();
    if let Some(value_head) = &model.value_head {
        value_head.write(folder)?;
    }
    match adapter {
        Some(config) => weights::lora::write(folder, config, &pairs(&trainables))?,
        None => {
            let mut trained: BTreeMap<&str, &Tensor> =
                trainables.iter().map(|trainable| (trainable.name.as_str(), &trainable.leaf)).collect();
            let table = trainables.iter().find(|trainable| trainable.name.ends_with("embed_tokens.weight"));
            if let Some(table) = table.filter(|_| model.shape.language.tied) {
                // Where the file stores the tied head as well, both stay one table.
                trained.insert("lm_head.weight", &table.leaf);
            }
            weights::rewrite(&run.model.path, folder, &trained)?;
        }
    }
    checkpoint::copy_companions(&run.model.path, folder, &checkpoint::TOKENIZER_FILES)?;
    let recipe = folder.join("mdpo_recipe.yaml");
    fs::write(&recipe, run.to_yaml()).map_err(|error| Error::io("write", &recipe, &error))
}

/// The model card.
pub(super) fn card(run: &Run, inputs: &Inputs, steps: usize, folder: &Path) -> Result<()> {
    let path = folder.join("README.md");
    let text = card::card(run, steps, inputs.examples.len());
    fs::write(&path, text).map_err(|error| Error::io("write", &path, &error))
}

fn pairs(trainables: &[&Trainable]) -> BTreeMap<String, LoraPair> {
    let factor = |suffix: &str| -> BTreeMap<&str, &Tensor> {
        trainables.iter().filter_map(|t| Some((t.name.strip_suffix(suffix)?, &t.leaf))).collect()
    };
    let (down, up) = (factor(".lora_A.weight"), factor(".lora_B.weight"));
    down.into_iter()
        .filter_map(|(path, a)| {
            let b = up.get(path)?;
            Some((path.to_owned(), LoraPair { a: a.detach(), b: b.detach() }))
        })
        .collect()
}
