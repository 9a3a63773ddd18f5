//! Names of weights.
//!
//! The canonical names are the module paths of transformers 5 (`model.language_model.layers.0.self_attn.q_proj.weight`,
//! `model.vision_tower.encoder…`, `model.multi_modal_projector.linear_1…`, `lm_head.weight`), which are also what PEFT writes into
//! adapters. Files name them differently by age: transformers before 4.52 and after 5.0 write `language_model.model.layers…`, those between
//! write the module paths of their day, in which the tower still has a `vision_model`. A text-only model's names are the same everywhere.

use std::borrow::Cow;

/// Prefixes in files of the LLaVA family and the canonical ones; the first that fits counts (transformers 5.23, `conversion_mapping.py`).
const LLAVA: [(&str, &str); 6] = [
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
];

/// The table of each family; no prefix of one begins a canonical name of another.
const FAMILIES: [&[(&str, &str)]; 1] = [&LLAVA];

/// The canonical name of a tensor that a file calls `name`.
pub fn canonical(name: &str) -> Cow<'_, str> {
    let rule = FAMILIES.iter().copied().flatten().find_map(|(old, new)| Some((name.strip_prefix(old)?, new)));
    rule.map_or(Cow::Borrowed(name), |(rest, new)| Cow::Owned(format!("{new}{rest}")))
}

/// The canonical path of a module that a file calls `module`.
pub fn canonical_module(module: &str) -> String {
    let name = format!("{module}.weight");
    let name = canonical(&name);
    name.strip_suffix(".weight").unwrap_or(&name).to_owned()
}

/// Whether a tensor is a buffer that old versions saved and that every model computes itself.
pub(super) fn is_computed(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".position_ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_has_the_same_canonical_names() {
        for (expected, names) in [
            ("lm_head.weight", vec!["lm_head.weight", "language_model.lm_head.weight"]),
            (
                "model.language_model.norm.weight",
                vec!["model.language_model.norm.weight", "language_model.model.norm.weight"],
            ),
            (
                "model.vision_tower.pre_layrnorm.bias",
                vec![
                    "vision_tower.vision_model.pre_layrnorm.bias",
                    "vision_tower.pre_layrnorm.bias",
                    "model.vision_tower.vision_model.pre_layrnorm.bias",
                ],
            ),
            ("model.multi_modal_projector.linear_1.bias", vec!["multi_modal_projector.linear_1.bias"]),
            ("model.layers.0.mlp.up_proj.weight", vec!["model.layers.0.mlp.up_proj.weight"]),
        ] {
            assert_eq!(canonical(expected), expected, "canonical names stay");
            names.iter().for_each(|name| assert_eq!(canonical(name), expected));
        }
        assert_eq!(canonical_module("language_model.lm_head"), "lm_head");
        assert_eq!(
            canonical_module("language_model.model.layers.3.mlp.up_proj"),
            "model.language_model.layers.3.mlp.up_proj"
        );
    }
}
