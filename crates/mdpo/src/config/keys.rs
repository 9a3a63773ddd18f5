//! Every key a recipe may hold: the one list that the reader, the writer, the error messages and `docs/recipes.md` share.

use serde_json::Value;

/// A key that a run obeys.
#[derive(Debug)]
pub(super) struct Key {
    /// The name, TRL's or Hugging Face's wherever such a name exists.
    pub name: &'static str,
    /// Names of other trainers that mean exactly the same.
    pub aliases: &'static [&'static str],
    /// What a valid value is, worded to follow "expected".
    pub expects: &'static str,
    /// The default as JSON or a bare word; [`REQUIRED`] or a text in parentheses when there is no such value.
    pub default: &'static str,
    /// Whether a resumed run may have another value.
    pub on_resume: OnResume,
}

/// Whether a resumed run may have another value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnResume {
    /// The trajectory depends on it.
    MustMatch,
    /// It says where, how often or with what memory, not what is learned.
    MayChange,
}

/// The `default` of a key that every recipe must hold.
pub(super) const REQUIRED: &str = "(required)";

impl Key {
    /// The default as a value; none when the key is required or its absence is a choice of its own.
    pub fn default_value(&self) -> Option<Value> {
        let bare = || Value::String(self.default.to_owned());
        (!self.default.starts_with('(')).then(|| serde_json::from_str(self.default).unwrap_or_else(|_| bare()))
    }

    const fn known_as(mut self, aliases: &'static [&'static str]) -> Key {
        self.aliases = aliases;
        self
    }

    const fn may_change(mut self) -> Key {
        self.on_resume = OnResume::MayChange;
        self
    }
}

const fn key(name: &'static str, expects: &'static str, default: &'static str) -> Key {
    Key { name, aliases: &[], expects, default, on_resume: OnResume::MustMatch }
}

const LOSS_TYPES: &str = "`mdpo`, `dpo` (also `sigmoid`), `cdpo`, `hinge`, `ipo`, `exo_pair`, `nca_pair`, `robust`, `bco_pair`, `sppo_hard`, `aot`, \
    `aot_unpaired`, `apo_zero`, `apo_down`, `discopop`, `sigmoid_norm`, `sft`, `simpo`, `orpo`, `cpo`, `kto`, `apo_zero_unpaired`, `odpo`, \
    `dmpo` or `hpo` (also `upo`), or a list of losses of DPO's family";

/// The keys that a run obeys, in the order in which a recipe is written.
pub(super) const KEYS: &[Key] = &[
    key("model_name_or_path", "a folder or a repository id `org/name`", REQUIRED),
    key("model_revision", "a branch, tag or commit", "(main)").known_as(&["revision"]),
    key("dtype", "`float32`, `bfloat16` or `float16`", "(float32)").known_as(&["torch_dtype"]),
    key("bf16", "true or false", "false"),
    key("fp16", "true or false", "false"),
    key("device", "`auto`, `cpu` or `cuda`", "auto").may_change(),
    key("dataset_name", "a file or folder, or a list of them", REQUIRED),
    key("image_folder", "a folder", "(the folder of each file)").known_as(&["media_dir"]),
    key("max_length", "a whole number from 1", "(the model's limit)").known_as(&["cutoff_len"]),
    key("truncation_mode", "`refuse`, `keep_start` or `keep_turns`", "refuse"),
    key("max_skipped_rows", "a whole number from 0", "0"),
    key("shuffle", "true or false", "true"),
    key("pairs_from_scores", "`best_vs_worst`, `threshold` or `all`", "best_vs_worst"),
    key("score_threshold", "a number", "3.0"),
    key("odpo_ties", "`refuse` or `skip`", "refuse"),
    key("train_images", "`keep`, `drop`, `black` or `mean_colour`", "keep"),
    key("reference_logps", "`computed` or `columns`", "computed"),
    key("reference_cache", "a folder", "(none)").may_change(),
    key("precompute_ref_log_probs", "true or false", "false").may_change(),
    key("vision_feature_cache", "a folder", "(none)").may_change(),
    key("loss_type", LOSS_TYPES, "mdpo").known_as(&["pref_loss"]),
    key("loss_weights", "a number from 0 for each of `loss_type`, or a list of them", "(1 each)"),
    key("beta", "a number above 0", "0.1").known_as(&["pref_beta"]),
    key("label_smoothing", "a number from 0 to below 0.5", "0.0"),
    key("discopop_tau", "a number above 0", "0.05"),
    key("f_divergence_type", "`reverse_kl`, `forward_kl`, `js_divergence` or `alpha_divergence`", "reverse_kl"),
    key("f_alpha_divergence_coef", "a number", "0.5"),
    key("ld_alpha", "a number from 0 to 1", "(1)"),
    key("reference_free", "true or false", "false"),
    key("preference_weight", "a number from 0", "1.0"),
    key("conditional_weight", "a number from 0", "1.0"),
    key("anchor_weight", "a number from 0", "1.0"),
    key("anchor_delta", "a number", "0.0"),
    key("anchors", "some of `chosen`, `rejected` and `corrupted`, each once", "[\"chosen\"]"),
    key("rejected_image", "`crop`, `random_image`, `moco`, `blank`, `noise` or `given`", "crop"),
    key("rejected_image_scale", "two numbers `[a, b]` with 0 < a ≤ b ≤ 1", "[0.01, 0.2]"),
    key("rejected_image_ratio", "two numbers `[a, b]` with 0 < a ≤ b", "[0.75, 1.3333333333333333]"),
    key("rejected_image_redraw", "`epoch`, `once` or `forward`", "epoch"),
    key("simpo_gamma", "a number from 0", "0.5"),
    key("cpo_alpha", "a number from 0", "(1 with `cpo`, 0 with `simpo`)"),
    key("desirable_weight", "a number from 0", "1.0").known_as(&["kto_chosen_weight"]),
    key("undesirable_weight", "a number from 0", "1.0").known_as(&["kto_rejected_weight"]),
    key("odpo_alpha", "a number from 0", "1.0"),
    key("odpo_offset", "`log`, `identity` or `ratio`", "log"),
    key("dmpo_gamma", "a number from 0 to 1", "0.7"),
    key("dmpo_eos", "`discounted` or `undiscounted`", "discounted"),
    key("rewards", "`{name: weight}` with a column of the rows or `flesch_kincaid` for each name", "(none)"),
    key("hpo_preference", "`kto`, `apo_zero_unpaired` or a loss of DPO's family", "kto"),
    key("hpo_gamma", "a number from 0", "0.1"),
    key("hpo_lambda", "a number above 0", "1.0"),
    key("hpo_weight_clip", "a number above 0", "20.0"),
    key("hpo_logps", "`sum` or `token_mean`", "token_mean"),
    key("hpo_tau", "a number between 0 and 1", "0.7"),
    key("hpo_value_weight", "a number above 0", "1.0"),
    key("hpo_value_learning_rate", "a number above 0", "1e-3"),
    key("use_peft", "true or false", "true"),
    key("lora_r", "a whole number from 1", "16").known_as(&["lora_rank"]),
    key("lora_alpha", "a number above 0", "32.0"),
    key("lora_dropout", "a number from 0 to below 1", "0.0"),
    key("use_rslora", "true or false", "false"),
    key("lora_target_modules", "`all-linear` or a list of module names, each once", "all-linear")
        .known_as(&["lora_target", "target_modules"]),
    key("adapter_name_or_path", "a folder or a repository id `org/name`", "(a fresh adapter)"),
    key("reference", "`adapter` or `base`", "adapter"),
    key("trained_parts", "some of `language_model`, `projector` and `vision_tower`, each once", "(with LoRA: none)"),
    key("learning_rate", "a number above 0", "1e-6"),
    key("weight_decay", "a number from 0", "0.0"),
    key("adam_beta1", "a number from 0 to below 1", "0.9"),
    key("adam_beta2", "a number from 0 to below 1", "0.999"),
    key("adam_epsilon", "a number above 0", "1e-8"),
    key("max_grad_norm", "a number from 0", "1.0"),
    key(
        "lr_scheduler_type",
        "`linear`, `cosine`, `cosine_with_min_lr`, `polynomial`, `constant` or `constant_with_warmup`",
        "linear",
    ),
    key("lr_scheduler_kwargs", "`{min_lr_rate: a number from 0 to 1}`", "{}"),
    key("warmup_steps", "a whole number from 0, or a share below 1", "0"),
    key("warmup_ratio", "a number from 0 to 1", "0.0"),
    key("per_device_train_batch_size", "a whole number from 1", "8"),
    key("gradient_accumulation_steps", "a whole number from 1", "1"),
    key("max_tokens_per_batch", "a whole number from 1", "(no budget)"),
    key("num_train_epochs", "a number above 0", "3.0"),
    key("max_steps", "a whole number from 1, or -1 for none", "-1"),
    key("gradient_checkpointing", "`none` or `layers` (also false and true)", "layers")
        .known_as(&["activation_checkpointing"])
        .may_change(),
    key("eval_strategy", "`no`, `steps` or `epoch`", "no").may_change(),
    key("eval_steps", "a whole number from 1", "(`logging_steps`)").may_change(),
    key("eval_on_start", "true or false", "false").may_change(),
    key("eval_dataset_name", "a file or folder, or a list of them", "(none)").may_change(),
    key("val_size", "a share below 1, or a whole number of rows", "0")
        .known_as(&["val_set_size", "split_dataset_ratio"]),
    key("max_eval_samples", "a whole number from 1", "(all)").may_change(),
    key("per_device_eval_batch_size", "a whole number from 1", "8").may_change(),
    key("metric_for_best_model", "the name of a metric", "(`eval_loss`, where one is needed)").may_change(),
    key("greater_is_better", "true or false", "(what the metric says)").may_change(),
    key("load_best_model_at_end", "true or false", "false").may_change(),
    key("early_stopping_patience", "a whole number from 1", "(none)").known_as(&["early_stopping_steps"]).may_change(),
    key("early_stopping_threshold", "a number from 0", "0.0").may_change(),
    key("eval_benchmarks", "a list of `{name: NAME, data: FOLDER, limit: N}`, each name once", "(none)").may_change(),
    key("judge_url", "the address of a service", "(none)").may_change(),
    key("judge_model", "the name of a model", "(none)").may_change(),
    key("judge_key_env", "the name of an environment variable", "(`OPENAI_API_KEY`, if it is set)").may_change(),
    key("judge_concurrency", "a whole number from 1", "4").may_change(),
    key("judge_cache", "a folder", "(`judged` in `output_dir`)").may_change(),
    key("judge_prompt", "a file", "(our own words)").may_change(),
    key("eval_prompts", "a file", "(none)").may_change(),
    key("eval_max_new_tokens", "a whole number from 1", "256").may_change(),
    key("output_dir", "a folder", REQUIRED).may_change(),
    key("logging_steps", "a whole number from 1", "10").may_change(),
    key("report_to", "`none` or `tensorboard`", "none").may_change(),
    key("logging_dir", "a folder", "(`runs` in `output_dir`)").may_change(),
    key("save_strategy", "`no`, `steps` or `epoch`", "steps").may_change(),
    key("save_steps", "a whole number from 1", "500").may_change(),
    key("save_total_limit", "a whole number from 1", "(no limit)").may_change(),
    key("resume_from_checkpoint", "true, false or a checkpoint folder", "false").may_change(),
    key("seed", "a whole number from 0", "42"),
];

/// Keys of other trainers that change nothing here, whatever their value.
pub(super) const NO_EFFECT: &[&str] = &[
    "activation_checkpointing_kwargs",
    "attn_implementation",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "disable_tqdm",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "hub_model_id",
    "hub_strategy",
    "log_level",
    "logging_first_step",
    "lora_task_type",
    "overwrite_output_dir",
    "preprocessing_num_workers",
    "project",
    "remove_unused_columns",
    "run_name",
    "tf32",
    "trust_remote_code",
    "use_cache",
];

/// A key of other trainers that stops the run, but for the values that ask for nothing.
#[derive(Debug)]
pub(super) struct Refused {
    /// Its name there.
    pub name: &'static str,
    /// Values that are what mdpo does anyway.
    pub unless: &'static [&'static str],
    /// Why, and what to write instead.
    pub why: &'static str,
}

const fn refused(name: &'static str, unless: &'static [&'static str], why: &'static str) -> Refused {
    Refused { name, unless, why }
}

const NO_QUANTISATION: &str = "mdpo does not quantise weights; use `bf16: true` and LoRA";
const NO_SHARDING: &str = "mdpo trains on one device";
const FROZEN_REFERENCE: &str = "the reference of mdpo stays as it is during a run";
const NO_STREAMING: &str = "mdpo reads local files whole";

/// Keys of other trainers that mdpo knows and does not support.
pub(super) const REFUSED: &[Refused] = &[
    refused("auto_find_batch_size", &["false"], "write `per_device_train_batch_size`"),
    refused("data_seed", &[], "one `seed` governs everything random"),
    refused("dataset", &[], "write the files themselves in `dataset_name`"),
    refused("dataset_config", &[], "write the files themselves in `dataset_name`"),
    refused("dataset_dir", &[], "write the files themselves in `dataset_name`"),
    refused("dataset_streaming", &["false"], NO_STREAMING),
    refused("dataset_train_split", &["train"], "write the files of that split in `dataset_name`"),
    refused("dataset_test_split", &["test"], "write the files of that split in `eval_dataset_name`"),
    refused("deepspeed", &[], NO_SHARDING),
    refused(
        "disable_dropout",
        &["true"],
        "the model's own dropout is never applied; `lora_dropout` sets the adapter's",
    ),
    refused("do_eval", &["false"], "write `eval_strategy`, which evaluates while the run trains"),
    refused("do_train", &["true"], "`mdpo train` trains; `mdpo check` reads a recipe and its data without training"),
    refused("dpo_label_smoothing", &["0"], "write `loss_type: cdpo` and `label_smoothing`"),
    refused("eval_dataset", &[], "write the files themselves in `eval_dataset_name`"),
    refused("eval_delay", &["0"], "evaluations begin with the run; `eval_steps` says how often"),
    refused("finetuning_type", &["lora"], "write `use_peft: false` and `trained_parts` to train parts in full"),
    refused("freeze_multi_modal_projector", &["true"], "write `use_peft: false` and `trained_parts: [projector]`"),
    refused("freeze_vision_tower", &["true"], "write `use_peft: false` and `trained_parts: [vision_tower]`"),
    refused("fsdp", &["", "[]"], NO_SHARDING),
    refused("gamma_beta_ratio", &[], "write `simpo_gamma`, which is this ratio times `beta`"),
    refused("group_by_length", &["false"], "batches are packed without padding, so lengths need no grouping"),
    refused("load_in_4bit", &["false"], NO_QUANTISATION),
    refused("load_in_8bit", &["false"], NO_QUANTISATION),
    refused("logging_strategy", &["steps"], "write `logging_steps`"),
    refused("lora_modules_to_save", &[], "with LoRA only the adapters are trained"),
    refused("max_completion_length", &[], "write `max_length`, which counts the prompt, its images and the response"),
    refused("max_prompt_length", &[], "write `max_length`, which counts the prompt, its images and the response"),
    refused("model", &[], "write `model_name_or_path`"),
    refused("neftune_noise_alpha", &[], "mdpo adds no noise to embeddings"),
    refused("optim", &["adamw_torch", "adamw_torch_fused"], "the optimizer is AdamW with its state in f32"),
    refused("packing", &["true"], "batches are always packed, without padding"),
    refused("padding_free", &["true"], "batches are always packed, without padding"),
    refused("plot_loss", &["false"], "mdpo draws no plot; `trainer_state.json` holds every figure"),
    refused("pref_ftx", &["0"], "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, PREF_FTX]`"),
    refused("push_to_hub", &["false"], "mdpo uses no network; upload with `hf upload`"),
    refused("quantization_bit", &[], NO_QUANTISATION),
    refused("ref_model_mixup_alpha", &[], FROZEN_REFERENCE),
    refused("ref_model_sync_steps", &[], FROZEN_REFERENCE),
    refused("rpo_alpha", &[], "write `loss_type: [sigmoid, sft]` and `loss_weights: [1.0, ALPHA]`"),
    refused("save_only_model", &["false"], "checkpoints hold what resuming needs"),
    refused("save_safetensors", &["true"], "weights are always written as safetensors"),
    refused("stage", &["dpo"], "write `loss_type`"),
    refused("streaming", &["false"], NO_STREAMING),
    refused("sync_ref_model", &["false"], FROZEN_REFERENCE),
    refused("template", &[], "the chat template is the checkpoint's own"),
    refused("use_cpu", &["false"], "write `device: cpu`"),
    refused("use_dora", &["false"], "DoRA is not there; `use_rslora` is"),
    refused("use_liger_kernel", &["false"], "mdpo has its own kernels"),
    refused("use_weighting", &["false"], "pairs are not weighted"),
];

/// The key of a name or alias.
pub(super) fn find(written: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == written || key.aliases.contains(&written))
}
