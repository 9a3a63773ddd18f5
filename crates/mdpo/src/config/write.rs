//! A run as keys again: the recipe that lies beside its results, and what a resumed run may not change.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::keys::{self, KEYS, OnResume};
use super::recipe::plain;
use super::*;

impl Run {
    /// The recipe of this run with every default spelled out; [`Run::from_yaml`] reads it back.
    pub fn to_yaml(&self) -> String {
        let keys = self.to_keys();
        let body = serde_saphyr::to_string(&keys).expect("keys, numbers, texts and lists are YAML");
        format!("# what this run was asked to do, defaults included\n{body}")
    }

    /// Everything a resumed run may not change, by key: the checkpoint (its commit when it came from the Hugging Face
    /// cache), data, objective, tuning, optimizer, batch, length and seed.
    pub fn identity(&self) -> Map<String, Value> {
        let fixed = |name: &String| keys::find(name).is_some_and(|key| key.on_resume == OnResume::MustMatch);
        let mut identity: Map<String, Value> = self.to_keys().into_iter().filter(|(name, _)| fixed(name)).collect();
        if let Some(commit) = commit(&self.model.path) {
            identity.insert("model_revision".to_owned(), json!(commit));
        }
        identity
    }

    /// The keys of this run in the order of the table; a key without meaning for it is left out.
    fn to_keys(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut put = |name: &str, value: Value| {
            if !value.is_null() {
                keys.insert(name.to_owned(), value);
            }
        };
        let Run {
            model,
            data,
            reference: kept,
            vision_feature_cache,
            rejected_image,
            objective,
            tuning,
            optim,
            batch,
            output,
            seed,
        } = self;
        put("model_name_or_path", json!(model.name));
        put("model_revision", json!(model.revision));
        put(
            "dtype",
            json!(match model.dtype {
                Dtype::F32 => "float32",
                Dtype::Bf16 => "bfloat16",
                Dtype::F16 => "float16",
            }),
        );
        put(
            "device",
            json!(match model.device {
                Device::Auto => "auto",
                Device::Cpu => "cpu",
                Device::Cuda => "cuda",
            }),
        );
        put("dataset_name", data.paths.iter().map(|file| path(file)).collect());
        put("image_folder", data.image_folder.as_deref().map_or(Value::Null, path));
        put("max_length", json!(data.max_length));
        put(
            "truncation_mode",
            json!(match data.overlong {
                Overlong::Refuse => "refuse",
                Overlong::ShortenResponse => "keep_start",
                Overlong::KeepTurns => "keep_turns",
            }),
        );
        put("max_skipped_rows", json!(data.max_skipped_rows));
        put("shuffle", json!(data.shuffle));
        put(
            "pairs_from_scores",
            json!(match data.pairs_from_scores {
                PairsFromScores::BestVsWorst => "best_vs_worst",
                PairsFromScores::Threshold(_) => "threshold",
                PairsFromScores::All => "all",
            }),
        );
        if let PairsFromScores::Threshold(threshold) = data.pairs_from_scores {
            put("score_threshold", json!(threshold));
        }
        if matches!(objective, Objective::Odpo(_)) {
            put(
                "odpo_ties",
                json!(match data.odpo_ties {
                    ScoreTies::Refuse => "refuse",
                    ScoreTies::Skip => "skip",
                }),
            );
        }
        put(
            "train_images",
            json!(match data.train_images {
                TrainImages::Keep => "keep",
                TrainImages::Drop => "drop",
                TrainImages::Black => "black",
                TrainImages::MeanColour => "mean_colour",
            }),
        );
        if objective.compares() {
            put(
                "reference_logps",
                json!(match data.reference_logps {
                    ReferenceLogps::Computed => "computed",
                    ReferenceLogps::Columns => "columns",
                }),
            );
            put("reference_cache", kept.cache.as_deref().map_or(Value::Null, path));
            put("precompute_ref_log_probs", json!(kept.when == ReferenceWhen::BeforeTraining));
        }
        put("vision_feature_cache", vision_feature_cache.as_deref().map_or(Value::Null, path));
        for (name, value) in objective.to_keys() {
            put(name, value);
        }
        if matches!(objective, Objective::Mdpo(_)) {
            put(
                "rejected_image",
                json!(match rejected_image.corruption {
                    Corruption::Crop { .. } => "crop",
                    Corruption::RandomImage => "random_image",
                    Corruption::Moco => "moco",
                    Corruption::Blank => "blank",
                    Corruption::Noise => "noise",
                    Corruption::Given => "given",
                }),
            );
            if let Corruption::Crop { scale, ratio } = rejected_image.corruption {
                put("rejected_image_scale", json!(scale));
                put("rejected_image_ratio", json!(ratio));
            }
            put(
                "rejected_image_redraw",
                json!(match rejected_image.redraw {
                    Redraw::EachEpoch => "epoch",
                    Redraw::Once => "once",
                    Redraw::EachForward => "forward",
                }),
            );
        }
        match tuning {
            Tuning::Lora(lora) => {
                put("use_peft", json!(true));
                match &lora.start {
                    AdapterStart::Fresh => {
                        put("lora_r", json!(lora.r));
                        put("lora_alpha", json!(lora.alpha));
                        put("lora_dropout", json!(lora.dropout));
                        put("use_rslora", json!(lora.rslora));
                        put(
                            "lora_target_modules",
                            match &lora.targets {
                                Targets::AllLinear => json!("all-linear"),
                                Targets::Names(names) => json!(names),
                            },
                        );
                    }
                    AdapterStart::From { path: adapter, reference } => {
                        put("lora_dropout", json!(lora.dropout));
                        put("adapter_name_or_path", path(adapter));
                        if objective.compares() {
                            put(
                                "reference",
                                json!(match reference {
                                    Reference::Adapter => "adapter",
                                    Reference::Base => "base",
                                }),
                            );
                        }
                    }
                }
            }
            Tuning::Full { parts } => {
                put("use_peft", json!(false));
                let name = |part: &Part| match part {
                    Part::LanguageModel => "language_model",
                    Part::Projector => "projector",
                    Part::VisionTower => "vision_tower",
                };
                put("trained_parts", parts.iter().map(name).collect());
            }
        }
        put("learning_rate", json!(optim.learning_rate));
        put("weight_decay", json!(optim.weight_decay));
        put("adam_beta1", json!(optim.beta1));
        put("adam_beta2", json!(optim.beta2));
        put("adam_epsilon", json!(optim.epsilon));
        put("max_grad_norm", json!(optim.max_grad_norm));
        put(
            "lr_scheduler_type",
            json!(match optim.schedule {
                Schedule::Linear => "linear",
                Schedule::Cosine => "cosine",
                Schedule::CosineWithMinLr { .. } => "cosine_with_min_lr",
                Schedule::Polynomial => "polynomial",
                // The same as `constant` where there is no warm-up.
                Schedule::Constant => "constant_with_warmup",
            }),
        );
        if let Schedule::CosineWithMinLr { min_lr_rate } = optim.schedule {
            put("lr_scheduler_kwargs", json!({ "min_lr_rate": min_lr_rate }));
        }
        match optim.warmup {
            Warmup::Steps(steps) => put("warmup_steps", json!(steps)),
            Warmup::Ratio(ratio) => put("warmup_ratio", json!(ratio)),
        }
        put("per_device_train_batch_size", json!(batch.per_device));
        put("gradient_accumulation_steps", json!(batch.accumulation));
        put("max_tokens_per_batch", json!(batch.max_tokens));
        match batch.length {
            Length::Epochs(epochs) => put("num_train_epochs", json!(epochs)),
            Length::Steps(steps) => put("max_steps", json!(steps)),
        }
        put(
            "gradient_checkpointing",
            json!(match batch.checkpointing {
                GradientCheckpointing::None => "none",
                GradientCheckpointing::Layers => "layers",
            }),
        );
        put("output_dir", path(&output.dir));
        put("logging_steps", json!(output.logging_steps));
        match &output.report_to {
            ReportTo::Nobody => put("report_to", json!("none")),
            ReportTo::TensorBoard { folder } => {
                put("report_to", json!("tensorboard"));
                put("logging_dir", folder.as_deref().map_or(Value::Null, path));
            }
        }
        put(
            "save_strategy",
            json!(match output.save {
                Save::Never => "no",
                Save::Steps(_) => "steps",
                Save::EachEpoch => "epoch",
            }),
        );
        if let Save::Steps(steps) = output.save {
            put("save_steps", json!(steps));
        }
        put("save_total_limit", json!(output.save_total_limit));
        put(
            "resume_from_checkpoint",
            match &output.resume {
                Resume::No => json!(false),
                Resume::Newest => json!(true),
                Resume::From(checkpoint) => path(checkpoint),
            },
        );
        put("seed", json!(seed));
        keys
    }
}

/// The keys whose values differ between two identities, each with both values, in the order of the table.
pub fn differing(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<String> {
    let value = |map: &Map<String, Value>, name: &str| map.get(name).map_or("not set".to_owned(), plain);
    let known = KEYS.iter().map(|key| key.name);
    // A checkpoint of another version may hold keys that this one does not know.
    let others = old.keys().map(String::as_str).filter(|name| keys::find(name).is_none());
    known
        .chain(others)
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| format!("`{name}` (was {}, is {})", value(old, name), value(new, name)))
        .collect()
}

fn path(path: &Path) -> Value {
    json!(path.to_string_lossy())
}

/// The commit of a checkpoint that lies in the Hugging Face cache: `…/snapshots/<commit>`.
fn commit(folder: &Path) -> Option<String> {
    let kept = folder.parent()?.file_name()? == "snapshots";
    kept.then(|| folder.file_name().map(|name| name.to_string_lossy().into_owned())).flatten()
}
