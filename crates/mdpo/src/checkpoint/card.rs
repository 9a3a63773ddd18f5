//! `README.md` of a trained model: the card that the Hugging Face hub shows.

use crate::config::{Objective, Run, Tuning};
use std::fmt::Write;

/// The card's text.
pub fn card(run: &Run, steps: usize, examples: usize) -> String {
    let (method, paper) = match run.objective {
        Objective::Dpo { .. } => ("DPO", Some(("Direct Preference Optimization", "2305.18290"))),
        Objective::Mdpo(_) => {
            ("mDPO", Some(("mDPO: Conditional Preference Optimization for Multimodal LLMs", "2406.11839")))
        }
        Objective::Sft => ("SFT", None),
    };
    let library = if matches!(run.tuning, Tuning::Lora(_)) { "peft" } else { "transformers" };
    let name = run.output.dir.file_name().map_or("model".into(), |name| name.to_string_lossy());
    let mut text = String::new();
    let tag = method.to_lowercase();
    let base = &run.model.name;
    let is_repository =
        !run.model.path.ends_with(base) && !base.starts_with(['.', '/']) && base.matches('/').count() == 1;
    let link = if is_repository { format!("[{base}](https://huggingface.co/{base})") } else { format!("`{base}`") };
    let tags = if tag == "mdpo" { "- mdpo".to_owned() } else { format!("- mdpo\n- {tag}") };
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "---\nbase_model: {base}\nlibrary_name: {library}\nmodel_name: {name}\ntags:\n{tags}\n---\n\n\
         # {name}\n\n{link}, trained with {method} by mdpo for {steps} optimizer steps on \
         {examples} examples.\n\nThe recipe is in `mdpo_recipe.yaml`, the training curves are in `trainer_state.json`.\n"
    );
    if let Some((title, arxiv)) = paper {
        let _ = write!(text, "\n{method}: *{title}*, arXiv [{arxiv}](https://arxiv.org/abs/{arxiv}).\n");
    }
    text
}
