//! 1: what a run is asked to do.
//!
//! A recipe is YAML with the key names of TRL and Hugging Face. [`Run`] is what remains when every key was known, every value
//! valid and no two contradicted each other; the modules below take its small structs and never see the recipe.

mod evaluation;
mod hub;
mod judge;
mod keys;
mod objective;
mod recipe;
mod validate;
mod write;

#[cfg(test)]
mod evaluation_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub use evaluation::{BenchmarkSample, Best, Direction, EarlyStopping, EndsWith, EvaluateWhen, Evaluation, HeldOut};
pub use hub::find_model;
pub use judge::Judge;
pub(crate) use mdpo_measure::nearest;
#[cfg(test)]
pub(crate) use objective::loss_types;
pub use objective::{
    Anchor, Cpo, Divergence, Dmpo, Dpo, DpoLoss, Hpo, HpoPreference, Kto, Mdpo, Objective, Odpo, Offset, Reduction,
    ReferencePoint, Reward, Simpo, TurnEos, Weighted,
};
pub use write::differing;

/// Reads the recipe at `file`, lays `overrides` (`key=value`) over it and finds its checkpoint and data on this machine.
///
/// Fails with every problem at once: first those of what was written, then those of what is not there.
pub fn load(file: &Path, overrides: &[String]) -> Result<Run> {
    let text = std::fs::read_to_string(file).map_err(|error| Error::io("read", file, &error))?;
    let mut recipe = recipe::Recipe::read(&text, &file.display().to_string(), overrides)?;
    let run = recipe.validate()?;
    run.resolve_in(&hub::cache(), |key| format!("{}: `{key}`", recipe.place_of(key)))
}

impl Run {
    /// Reads the recipe `text`, called `place` in messages, lays `overrides` (`key=value`) over it and touches no disk:
    /// paths stay as written until [`Run::resolve`].
    ///
    /// Fails with every problem of the recipe at once.
    pub fn from_yaml(text: &str, place: &str, overrides: &[String]) -> Result<Run> {
        recipe::Recipe::read(text, place, overrides)?.validate()
    }
}

/// A valid run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Which checkpoint, in which precision, where.
    pub model: Model,
    /// Which rows.
    pub data: Data,
    /// Where the reference's log-probs are kept, and when they are computed.
    pub reference: KeptReference,
    /// The folder of vision features that outlive the run (`vision_feature_cache`); the tower stands still then.
    pub vision_feature_cache: Option<PathBuf>,
    /// How the rejected image is made.
    pub rejected_image: RejectedImage,
    /// What is minimised.
    pub objective: Objective,
    /// Which weights move.
    pub tuning: Tuning,
    /// How they move.
    pub optim: Optim,
    /// How many examples a step takes and how long the run is.
    pub batch: Batch,
    /// How it is evaluated while it trains (`eval_strategy`), where it is.
    pub evaluation: Option<Evaluation>,
    /// Where results go and how often.
    pub output: Output,
    /// Seed of everything random (`seed`, default 42).
    pub seed: u64,
}

/// The checkpoint to start from.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Folder in Hugging Face's layout (`model_name_or_path`, a folder or a repository found in the local Hugging Face cache).
    pub path: PathBuf,
    /// What the recipe wrote, for model cards and `adapter_config.json`.
    pub name: String,
    /// Branch, tag or commit of a repository (`model_revision`, alias `revision`); its main branch when absent.
    pub revision: Option<String>,
    /// Precision of frozen weights and of activations (`bf16: true`, `fp16: true`, else f32).
    pub dtype: Dtype,
    /// Where to compute (`device: auto | cpu | cuda`).
    pub device: Device,
}

/// Floating-point precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The first NVIDIA GPU when there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU; an error when there is none.
    Cuda,
}

/// The preference rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// JSON, JSONL or Parquet files, or folders of them (`dataset_name`, a path or a list), in this order.
    pub paths: Vec<PathBuf>,
    /// What relative image paths are relative to (`image_folder`, alias `media_dir`); by default the folder of the file.
    pub image_folder: Option<PathBuf>,
    /// Longest sequence in tokens, image tokens included (`max_length`); the model's own limit when absent.
    pub max_length: Option<usize>,
    /// What happens to a row over it (`truncation_mode: refuse | keep_start | keep_turns`).
    pub overlong: Overlong,
    /// How many unusable rows may be left out (`max_skipped_rows`, default 0).
    pub max_skipped_rows: usize,
    /// Whether the order changes each epoch (`shuffle`, default true).
    pub shuffle: bool,
    /// Which pairs a row of scored responses gives (`pairs_from_scores`).
    pub pairs_from_scores: PairsFromScores,
    /// What becomes of a pair whose chosen answer has not the higher score (`odpo_ties: refuse | skip`).
    pub odpo_ties: ScoreTies,
    /// What the model sees of the rows' images (`train_images`).
    pub train_images: TrainImages,
    /// Whose the reference's log-probs under the true image are (`reference_logps: computed | columns`).
    pub reference_logps: ReferenceLogps,
}

/// Which pairs a row of scored responses gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairsFromScores {
    /// `best_vs_worst`: one, of the first response of the highest score and the first of the lowest.
    BestVsWorst,
    /// `threshold`: one, drawn by seed and row from the responses that have at least this score (`score_threshold`, default 3) and from
    /// those below it (LLaVA-Hound-DPO).
    Threshold(f64),
    /// `all`: every response against every one of a lower score.
    All,
}

/// What becomes of a pair whose chosen answer has not the higher score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreTies {
    /// Its row is unusable.
    Refuse,
    /// It is left out and counted.
    Skip,
}

/// What the model sees of the rows' images (mDPO §2.2: DPO without images).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainImages {
    /// `keep`, the default: the images.
    Keep,
    /// `drop`: nothing, the places of images are taken out of the text.
    Drop,
    /// `black`: black pictures of the same size.
    Black,
    /// `mean_colour`: pictures of the same size in the colour that the image processor takes for the mean.
    MeanColour,
}

/// Whose the reference's log-probs under the true image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceLogps {
    /// Those that the run's own reference gives.
    Computed,
    /// Those that the rows bring, of whatever model gave them.
    Columns,
}

/// Where the reference's log-probs are kept, and when they are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptReference {
    /// The folder of those that outlive the run (`reference_cache`).
    pub cache: Option<PathBuf>,
    /// When they are computed (`precompute_ref_log_probs`).
    pub when: ReferenceWhen,
}

/// When the reference's log-probs are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceWhen {
    /// `false`, the default: with the first step that needs them.
    AsNeeded,
    /// `true`: all that come again in later epochs, before the first step.
    BeforeTraining,
}

/// What happens to a row over the longest length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlong {
    /// The row is unusable.
    Refuse,
    /// The end of its responses is cut, never the prompt, never an image.
    ShortenResponse,
    /// The last turns of its responses are left out, never a part of one.
    KeepTurns,
}

/// How the rejected image is made (mDPO §3.1 and Table 3).
#[derive(Debug, Clone, PartialEq)]
pub struct RejectedImage {
    /// The corruption.
    pub corruption: Corruption,
    /// When a new one is drawn (`rejected_image_redraw: epoch | once | forward`).
    pub redraw: Redraw,
}

/// A way to make the rejected image (`rejected_image`).
#[derive(Debug, Clone, PartialEq)]
pub enum Corruption {
    /// `crop`: a rectangle of the picture itself, resized to the picture's size.
    Crop {
        /// Share of the area that is kept (`rejected_image_scale`, default `[0.01, 0.2]`).
        scale: [f64; 2],
        /// Width over height of the rectangle (`rejected_image_ratio`, default `[3/4, 4/3]`), drawn log-uniformly.
        ratio: [f64; 2],
    },
    /// `random_image`: the image of another example.
    RandomImage,
    /// `moco`: MoCo v2's augmentation.
    Moco,
    /// `blank`: one grey value, the mean colour of the image processor.
    Blank,
    /// `noise`: uniform random pixels.
    Noise,
    /// `given`: the row's own `rejected_images`.
    Given,
}

/// When the rejected image is drawn anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redraw {
    /// At each epoch.
    EachEpoch,
    /// Once for the whole run.
    Once,
    /// At each epoch, one for the policy and another one for the reference, as the released code of mDPO does; for studies of that code.
    EachForward,
}

/// Which weights move.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuning {
    /// LoRA adapters (`use_peft: true`, the default).
    Lora(Lora),
    /// Full weights of chosen parts (`use_peft: false`, `trained_parts`).
    Full {
        /// The parts, at least one.
        parts: Vec<Part>,
    },
}

/// A part of the model that can be trained in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `language_model`: embeddings, layers, final norm and head.
    LanguageModel,
    /// `projector`.
    Projector,
    /// `vision_tower`.
    VisionTower,
}

/// LoRA settings with PEFT's names; rank, alpha, rslora and targets are the adapter's own where one is continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Rank (`lora_r`, default 16).
    pub r: usize,
    /// Scale numerator (`lora_alpha`, default 32).
    pub alpha: f64,
    /// Dropout on the adapter's input (`lora_dropout`, default 0).
    pub dropout: f64,
    /// Scale is alpha / √r instead of alpha / r (`use_rslora`).
    pub rslora: bool,
    /// Which linear layers (`lora_target_modules`).
    pub targets: Targets,
    /// Where the adapter starts.
    pub start: AdapterStart,
}

/// Which linear layers of the language model carry an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// `all-linear`: every linear layer of the language model but the head.
    AllLinear,
    /// Module names such as `q_proj`, matched as the last part of the path.
    Names(Vec<String>),
}

/// Where the adapter starts, and with it what the reference is.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterStart {
    /// A fresh adapter; the reference is the bare model.
    Fresh,
    /// An existing PEFT adapter (`adapter_name_or_path`).
    From {
        /// Its folder.
        path: PathBuf,
        /// What the policy is compared against (`reference: adapter | base`, default `adapter`).
        reference: Reference,
    },
}

/// What a policy that continues an adapter is compared against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// The adapter as it was, frozen.
    Adapter,
    /// The bare model.
    Base,
}

/// AdamW, its schedule and clipping.
#[derive(Debug, Clone, PartialEq)]
pub struct Optim {
    /// Peak learning rate (`learning_rate`, default 1e-6 as in TRL's DPO).
    pub learning_rate: f64,
    /// `weight_decay`, default 0.
    pub weight_decay: f64,
    /// `adam_beta1`, default 0.9.
    pub beta1: f64,
    /// `adam_beta2`, default 0.999.
    pub beta2: f64,
    /// `adam_epsilon`, default 1e-8.
    pub epsilon: f64,
    /// Largest global gradient norm (`max_grad_norm`, default 1; 0 turns clipping off).
    pub max_grad_norm: f64,
    /// `lr_scheduler_type`, default `linear`.
    pub schedule: Schedule,
    /// `warmup_steps` or `warmup_ratio`, default none.
    pub warmup: Warmup,
}

/// How the learning rate falls after the warm-up, with transformers' names and formulas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// `linear`: to zero.
    Linear,
    /// `cosine`: half a period, to zero.
    Cosine,
    /// `cosine_with_min_lr`: half a period, to `min_lr_rate` of the peak.
    CosineWithMinLr {
        /// Share of the peak that remains at the end (`lr_scheduler_kwargs: {min_lr_rate: …}`).
        min_lr_rate: f64,
    },
    /// `polynomial`: transformers' power 1 to 1e-7.
    Polynomial,
    /// `constant` (no warm-up) and `constant_with_warmup`.
    Constant,
}

/// Length of the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// Optimizer steps.
    Steps(usize),
    /// Share of all optimizer steps, rounded up.
    Ratio(f64),
}

/// How many examples a step takes, and how long the run is.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Examples in one forward and backward (`per_device_train_batch_size`, default 8), where there is no budget.
    pub per_device: usize,
    /// How many times as many make an optimizer step (`gradient_accumulation_steps`, default 1).
    pub accumulation: usize,
    /// Most packed tokens in one forward and backward (`max_tokens_per_batch`, default no budget); an example with more stands alone.
    pub max_tokens: Option<usize>,
    /// How long.
    pub length: Length,
    /// What is kept of the forward pass (`gradient_checkpointing: none | layers`, also `false | true`, default `layers`).
    pub checkpointing: GradientCheckpointing,
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Passes over the data (`num_train_epochs`, default 3; fractions allowed).
    Epochs(f64),
    /// Optimizer steps (`max_steps`, which wins over epochs as in transformers).
    Steps(usize),
}

/// What is kept of the forward pass for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientCheckpointing {
    /// Everything.
    None,
    /// The input of each decoder layer; the rest is computed again.
    Layers,
}

/// Where results go and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `output_dir`.
    pub dir: PathBuf,
    /// Optimizer steps between log entries (`logging_steps`, default 10; transformers' `logging_first_step` is always on).
    pub logging_steps: usize,
    /// Who else gets the log entries (`report_to`).
    pub report_to: ReportTo,
    /// When checkpoints are written.
    pub save: Save,
    /// How many `checkpoint-N` folders are kept (`save_total_limit`).
    pub save_total_limit: Option<usize>,
    /// Whether and from where to continue.
    pub resume: Resume,
}

/// Who gets the log entries besides `trainer_state.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportTo {
    /// `none`, the default: nobody.
    Nobody,
    /// `tensorboard`: event files.
    TensorBoard {
        /// Their folder (`logging_dir`); `runs` in `output_dir` when absent.
        folder: Option<PathBuf>,
    },
}

/// When checkpoints are written (`save_strategy`, `save_steps`); the final model is always written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// `no`.
    Never,
    /// `steps`, the default, every 500.
    Steps(usize),
    /// `epoch`.
    EachEpoch,
}

/// Whether and from where a run continues (`resume_from_checkpoint`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// `false`: from the start; an `output_dir` that already holds checkpoints is refused.
    No,
    /// `true`: from the newest whole checkpoint of `output_dir`, from the start when there is none.
    Newest,
    /// A checkpoint folder.
    From(PathBuf),
}
