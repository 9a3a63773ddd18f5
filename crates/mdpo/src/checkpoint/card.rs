//! `README.md` of a trained model: the card that the Hugging Face hub shows.

use crate::config::{DpoLoss, Objective, ReferencePoint, Run, Tuning};
use std::fmt::Write;

/// The card's text.
pub fn card(run: &Run, steps: usize, examples: usize) -> String {
    let (method, paper) = method(&run.objective);
    let library = if matches!(run.tuning, Tuning::Lora(_)) { "peft" } else { "transformers" };
    let name = run.output.dir.file_name().map_or("model".into(), |name| name.to_string_lossy());
    let mut text = String::new();
    let tag = run.objective.name().replace(" + ", "-");
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

/// What a method is called, and its paper: title and number at arXiv.
fn method(objective: &Objective) -> (String, Option<(&'static str, &'static str)>) {
    let name = |name: &str, title, arxiv| (name.to_owned(), Some((title, arxiv)));
    match objective {
        Objective::Dpo(dpo) => match dpo.losses.as_slice() {
            [only] if only.loss == DpoLoss::Sigmoid => name("DPO", "Direct Preference Optimization", "2305.18290"),
            _ => (format!("losses of DPO's family ({})", objective.name()), None),
        },
        Objective::Mdpo(_) => {
            name("mDPO", "mDPO: Conditional Preference Optimization for Multimodal LLMs", "2406.11839")
        }
        Objective::Simpo(_) => {
            name("SimPO", "SimPO: Simple Preference Optimization with a Reference-Free Reward", "2405.14734")
        }
        Objective::Orpo { .. } => {
            name("ORPO", "ORPO: Monolithic Preference Optimization without Reference Model", "2403.07691")
        }
        Objective::Cpo(_) => name(
            "CPO",
            "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
            "2401.08417",
        ),
        Objective::Kto(kto) => match kto.point {
            ReferencePoint::Mismatched => {
                name("KTO", "KTO: Model Alignment as Prospect Theoretic Optimization", "2402.01306")
            }
            ReferencePoint::Zero => name(
                "APO-zero",
                "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
                "2408.06266",
            ),
        },
        Objective::Odpo(_) => name("ODPO", "Direct Preference Optimization with an Offset", "2402.10571"),
        Objective::Dmpo(_) => {
            name("DMPO", "Direct Multi-Turn Preference Optimization for Language Agents", "2406.14868")
        }
        Objective::Hpo(_) => name("HPO", "Hybrid Preference Optimization", "2405.17956"),
        Objective::Sft => ("SFT".to_owned(), None),
    }
}
