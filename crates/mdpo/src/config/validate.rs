//! From what was written to what is valid: each value judged against its key, then keys against each other.

use std::path::PathBuf;

use serde_json::Value;

use super::keys::{self, REQUIRED};
use super::recipe::{Recipe, plain};
use super::*;

pub(super) const LEAVE_ONE: &str =
    "leave one of the two out (`key=null` on the command line takes a key of the recipe back)";

impl Recipe {
    /// The run that was asked for.
    ///
    /// Fails with every problem of the recipe at once.
    pub(super) fn validate(&mut self) -> crate::Result<Run> {
        let objective = self.objective();
        let output = self.output();
        let run = Run {
            model: self.model(),
            data: self.data(&objective),
            reference: self.reference(&objective),
            vision_feature_cache: self.vision_feature_cache(),
            rejected_image: self.rejected_image(&objective),
            tuning: self.tuning(&objective),
            optim: self.optim(),
            batch: self.batch(),
            evaluation: self.evaluation(&output),
            output,
            seed: self.value("seed", whole(0)),
            objective,
        };
        if matches!(run.objective, Objective::Mdpo(_)) && run.data.train_images != TrainImages::Keep {
            let what = "`train_images` takes the images away that `loss_type: mdpo` compares";
            self.complain("train_images", what, "leave it out, or write `loss_type: dpo`");
        }
        self.finish().map(|()| run)
    }

    fn model(&mut self) -> Model {
        let name = self.required("model_name_or_path", text).unwrap_or_default();
        let asked = self
            .optional("dtype", one_of(&[("float32", Dtype::F32), ("bfloat16", Dtype::Bf16), ("float16", Dtype::F16)]));
        let flags =
            [("bf16", Dtype::Bf16), ("fp16", Dtype::F16)].map(|(key, dtype)| (key, self.value(key, flag), dtype));
        if flags.iter().all(|(_, on, _)| *on) {
            self.complain("fp16", "`bf16` and `fp16` are both true, but a run has one precision", LEAVE_ONE);
        }
        let flagged = flags.iter().find(|(_, on, _)| *on);
        if let (Some(asked), Some((key, _, dtype))) = (asked, flagged)
            && asked != *dtype
        {
            let what = format!("`dtype` contradicts `{key}: true`: frozen weights and activations share one precision");
            self.complain("dtype", &what, LEAVE_ONE);
        }
        Model {
            path: PathBuf::from(&name),
            name,
            revision: self.optional("model_revision", text),
            dtype: asked.or(flagged.map(|(_, _, dtype)| *dtype)).unwrap_or(Dtype::F32),
            device: self
                .value("device", one_of(&[("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda", Device::Cuda)])),
        }
    }

    fn data(&mut self, objective: &Objective) -> Data {
        let reference_logps = self.value(
            "reference_logps",
            one_of(&[("computed", ReferenceLogps::Computed), ("columns", ReferenceLogps::Columns)]),
        );
        if reference_logps == ReferenceLogps::Columns && objective.weighs_labels() {
            let what =
                "`reference_logps: columns` are sums over whole responses, but the labels of a response are weighted";
            self.forbid("reference_logps", what, "leave it out, or leave out `ld_alpha` or `loss_type: dmpo`");
        }
        if reference_logps == ReferenceLogps::Columns && objective.follows_prompts_by_other_answers() {
            let what =
                "`reference_logps: columns` have nothing of the other rows' answers that KTO puts behind a prompt";
            self.forbid("reference_logps", what, "leave it out, or write `loss_type: apo_zero_unpaired`");
        }
        let odpo_ties = self.value("odpo_ties", one_of(&[("refuse", ScoreTies::Refuse), ("skip", ScoreTies::Skip)]));
        if !matches!(objective, Objective::Odpo(_)) {
            let what = "`odpo_ties` belongs to `loss_type: odpo`: no other objective compares scores";
            self.forbid("odpo_ties", what, "leave it out, or write `loss_type: odpo`");
        }
        let threshold = self.value("score_threshold", number(|_| true));
        let pairs_from_scores = self.value(
            "pairs_from_scores",
            one_of(&[
                ("best_vs_worst", PairsFromScores::BestVsWorst),
                ("threshold", PairsFromScores::Threshold(threshold)),
                ("all", PairsFromScores::All),
            ]),
        );
        if !matches!(pairs_from_scores, PairsFromScores::Threshold(_)) {
            let what = "`score_threshold` belongs to `pairs_from_scores: threshold`";
            self.forbid("score_threshold", what, "leave it out, or write `pairs_from_scores: threshold`");
        }
        let overlong = self.value(
            "truncation_mode",
            one_of(&[
                ("refuse", Overlong::Refuse),
                ("keep_start", Overlong::ShortenResponse),
                ("keep_turns", Overlong::KeepTurns),
            ]),
        );
        if overlong == Overlong::ShortenResponse && matches!(objective, Objective::Dmpo(_)) {
            let what = "`truncation_mode: keep_start` cuts within a turn, but `loss_type: dmpo` weighs whole turns";
            self.forbid("truncation_mode", what, "write `truncation_mode: keep_turns`, which cuts between turns");
        }
        Data {
            paths: self
                .required("dataset_name", |value| each(value, text))
                .unwrap_or_default()
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            image_folder: self.optional("image_folder", text).map(PathBuf::from),
            max_length: self.optional("max_length", whole(1)),
            overlong,
            max_skipped_rows: self.value("max_skipped_rows", whole(0)),
            shuffle: self.value("shuffle", flag),
            reference_logps,
            pairs_from_scores,
            odpo_ties,
            train_images: self.value(
                "train_images",
                one_of(&[
                    ("keep", TrainImages::Keep),
                    ("drop", TrainImages::Drop),
                    ("black", TrainImages::Black),
                    ("mean_colour", TrainImages::MeanColour),
                ]),
            ),
        }
    }

    fn vision_feature_cache(&mut self) -> Option<PathBuf> {
        let parts = self.entry("trained_parts").and_then(|parts| each(&parts.value, text)).unwrap_or_default();
        if parts.iter().any(|part| part == "vision_tower") {
            let what = "`vision_feature_cache` keeps what a frozen vision tower gives, but `trained_parts` trains it";
            self.forbid("vision_feature_cache", what, "leave it out");
        }
        self.optional("vision_feature_cache", text).map(PathBuf::from)
    }

    fn reference(&mut self, objective: &Objective) -> KeptReference {
        let precompute = self.value("precompute_ref_log_probs", flag);
        if !objective.compares() {
            for key in ["reference_logps", "reference_cache"] {
                self.forbid(key, &objective.no_reference(key), "leave it out");
            }
            if precompute {
                let key = "precompute_ref_log_probs";
                self.forbid(key, &objective.no_reference(key), "leave it out");
            }
        }
        KeptReference {
            cache: self.optional("reference_cache", text).map(PathBuf::from),
            when: if precompute { ReferenceWhen::BeforeTraining } else { ReferenceWhen::AsNeeded },
        }
    }

    fn rejected_image(&mut self, objective: &Objective) -> RejectedImage {
        if !matches!(objective, Objective::Mdpo(_)) {
            for key in ["rejected_image", "rejected_image_scale", "rejected_image_ratio", "rejected_image_redraw"] {
                let what =
                    format!("`{key}` belongs to `loss_type: mdpo`: no other objective looks at a rejected image");
                self.forbid(key, &what, "leave it out, or write `loss_type: mdpo`");
            }
        }
        let scale = self.value("rejected_image_scale", pair(|[a, b]| 0.0 < a && a <= b && b <= 1.0));
        let ratio = self.value("rejected_image_ratio", pair(|[a, b]| 0.0 < a && a <= b));
        let corruption = self.value(
            "rejected_image",
            one_of(&[
                ("crop", Corruption::Crop { scale, ratio }),
                ("random_image", Corruption::RandomImage),
                ("moco", Corruption::Moco),
                ("blank", Corruption::Blank),
                ("noise", Corruption::Noise),
                ("given", Corruption::Given),
            ]),
        );
        if !matches!(corruption, Corruption::Crop { .. }) {
            for key in ["rejected_image_scale", "rejected_image_ratio"] {
                let what = format!("`{key}` belongs to `rejected_image: crop`");
                self.forbid(key, &what, "leave it out, or write `rejected_image: crop`");
            }
        }
        let redraw = self.value(
            "rejected_image_redraw",
            one_of(&[("epoch", Redraw::EachEpoch), ("once", Redraw::Once), ("forward", Redraw::EachForward)]),
        );
        RejectedImage { corruption, redraw }
    }

    fn tuning(&mut self, objective: &Objective) -> Tuning {
        const SHAPE: [&str; 4] = ["lora_r", "lora_alpha", "use_rslora", "lora_target_modules"];
        const PARTS: [(&str, Part); 3] = [
            ("language_model", Part::LanguageModel),
            ("projector", Part::Projector),
            ("vision_tower", Part::VisionTower),
        ];
        let parts = self.optional("trained_parts", |value| distinct(value, one_of(&PARTS)));
        let lora = Lora {
            r: self.value("lora_r", whole(1)),
            alpha: self.value("lora_alpha", number(|alpha| alpha > 0.0)),
            dropout: self.value("lora_dropout", number(|share| (0.0..1.0).contains(&share))),
            rslora: self.value("use_rslora", flag),
            targets: self.value("lora_target_modules", targets),
            start: AdapterStart::Fresh,
        };
        let adapter = self.optional("adapter_name_or_path", text);
        let reference = self.value("reference", one_of(&[("adapter", Reference::Adapter), ("base", Reference::Base)]));
        if self.value("use_peft", flag) {
            let what = "`trained_parts` is for full fine-tuning, but LoRA is on (`use_peft` is true unless written)";
            self.forbid(
                "trained_parts",
                what,
                "write `use_peft: false` to train the parts in full, or leave `trained_parts` out",
            );
            let Some(path) = adapter.map(PathBuf::from) else {
                if objective.compares() {
                    let what =
                        "`reference` is a choice only when an adapter is continued; a fresh one has the bare model";
                    self.forbid("reference", what, "leave it out, or add `adapter_name_or_path`");
                }
                return Tuning::Lora(lora);
            };
            for key in SHAPE {
                let what =
                    format!("`{key}` contradicts `adapter_name_or_path`: an adapter that is continued keeps its own");
                self.forbid(key, &what, LEAVE_ONE);
            }
            return Tuning::Lora(Lora { start: AdapterStart::From { path, reference }, ..lora });
        }
        for key in SHAPE.into_iter().chain(["lora_dropout", "adapter_name_or_path", "reference"]) {
            self.forbid(
                key,
                &format!("`{key}` contradicts `use_peft: false`"),
                "leave it out, or write `use_peft: true`",
            );
        }
        if self.entry("trained_parts").is_none() {
            let hint = "add `trained_parts: [language_model]`, or any of `language_model`, `projector`, `vision_tower`";
            self.complain("use_peft", "`use_peft: false` without `trained_parts` trains nothing", hint);
        }
        Tuning::Full { parts: parts.unwrap_or_default() }
    }

    fn optim(&mut self) -> Optim {
        let share = || number(|share: f64| (0.0..1.0).contains(&share));
        Optim {
            learning_rate: self.value("learning_rate", number(|rate| rate > 0.0)),
            weight_decay: self.value("weight_decay", number(|decay| decay >= 0.0)),
            beta1: self.value("adam_beta1", share()),
            beta2: self.value("adam_beta2", share()),
            epsilon: self.value("adam_epsilon", number(|epsilon| epsilon > 0.0)),
            max_grad_norm: self.value("max_grad_norm", number(|norm| norm >= 0.0)),
            warmup: self.warmup(),
            schedule: self.schedule(),
        }
    }

    fn warmup(&mut self) -> Warmup {
        // transformers 5 folded the ratio into `warmup_steps`: a number below 1 is a share.
        let steps = self.value("warmup_steps", |value| match number(|steps| steps > 0.0 && steps < 1.0)(value) {
            Some(share) => Some(Warmup::Ratio(share)),
            None => whole(0)(value).map(Warmup::Steps),
        });
        let ratio = self.value("warmup_ratio", number(|ratio| (0.0..=1.0).contains(&ratio)));
        match (steps, ratio > 0.0) {
            (Warmup::Steps(0), true) => Warmup::Ratio(ratio),
            (steps, true) => {
                self.complain("warmup_ratio", "`warmup_steps` and `warmup_ratio` both set the warm-up", LEAVE_ONE);
                steps
            }
            (steps, false) => steps,
        }
    }

    fn schedule(&mut self) -> Schedule {
        let kwargs = self.value("lr_scheduler_kwargs", |value| match value {
            Value::Object(map) if map.keys().all(|key| key == "min_lr_rate") => match map.get("min_lr_rate") {
                Some(rate) => number(|rate| (0.0..=1.0).contains(&rate))(rate).map(Some),
                None => Some(None),
            },
            _ => None,
        });
        const NAMES: [&str; 6] =
            ["linear", "cosine", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup"];
        let names = NAMES.map(|name| (name, name));
        let known = one_of(&names);
        let misspelt = self.entry("lr_scheduler_type").is_some_and(|entry| known(&entry.value).is_none());
        let name = self.value("lr_scheduler_type", known);
        match (name, kwargs) {
            ("cosine_with_min_lr", None) => {
                let hint = "add `lr_scheduler_kwargs: {min_lr_rate: 0.1}`";
                let what = "`lr_scheduler_type: cosine_with_min_lr` does not say where it ends";
                if self.entry("lr_scheduler_kwargs").is_none_or(|entry| entry.value == serde_json::json!({})) {
                    self.complain("lr_scheduler_type", what, hint);
                }
            }
            (name, Some(_)) if name != "cosine_with_min_lr" && !misspelt => {
                let what = format!("`min_lr_rate` has no meaning with `lr_scheduler_type: {name}`");
                self.complain(
                    "lr_scheduler_kwargs",
                    &what,
                    "leave it out, or write `lr_scheduler_type: cosine_with_min_lr`",
                );
            }
            _ => {}
        }
        if name == "constant" {
            for key in ["warmup_steps", "warmup_ratio"] {
                if self.entry(key).is_some_and(|entry| number(|_| true)(&entry.value) != Some(0.0)) {
                    let what = format!("`{key}` has no meaning with `lr_scheduler_type: constant`");
                    self.complain(
                        key,
                        &what,
                        "write `lr_scheduler_type: constant_with_warmup`, or leave the warm-up out",
                    );
                }
            }
        }
        match name {
            "linear" => Schedule::Linear,
            "cosine" => Schedule::Cosine,
            "cosine_with_min_lr" => Schedule::CosineWithMinLr { min_lr_rate: kwargs.unwrap_or(0.0) },
            "polynomial" => Schedule::Polynomial,
            _ => Schedule::Constant,
        }
    }

    fn batch(&mut self) -> Batch {
        let epochs = self.value("num_train_epochs", number(|epochs| epochs > 0.0));
        let steps = self.value("max_steps", |value| match number(|steps| steps == -1.0)(value) {
            Some(_) => Some(None),
            None => whole(1)(value).map(Some),
        });
        Batch {
            per_device: self.value("per_device_train_batch_size", whole(1)),
            accumulation: self.value("gradient_accumulation_steps", whole(1)),
            max_tokens: self.optional("max_tokens_per_batch", whole(1)),
            length: steps.map_or(Length::Epochs(epochs), Length::Steps),
            checkpointing: self.value("gradient_checkpointing", |value| {
                use GradientCheckpointing::{Layers, None};
                one_of(&[("none", None), ("layers", Layers), ("false", None), ("true", Layers)])(value)
            }),
        }
    }

    fn output(&mut self) -> Output {
        let every = self.value("save_steps", whole(1));
        let save = self.value(
            "save_strategy",
            one_of(&[
                ("no", Save::Never),
                ("false", Save::Never),
                ("steps", Save::Steps(every)),
                ("epoch", Save::EachEpoch),
            ]),
        );
        if !matches!(save, Save::Steps(_)) {
            let what = "`save_steps` has no meaning unless `save_strategy` is `steps`";
            self.forbid("save_steps", what, "leave it out, or write `save_strategy: steps`");
        }
        let folder = self.optional("logging_dir", text).map(PathBuf::from);
        let tensorboard = self.value("report_to", |value| {
            // transformers takes a list of services too.
            let only = value.as_array().filter(|list| list.len() <= 1);
            let value = only.map_or(value, |list| list.first().unwrap_or(&Value::Null));
            if value.is_null() { Some(false) } else { one_of(&[("none", false), ("tensorboard", true)])(value) }
        });
        Output {
            report_to: if tensorboard { ReportTo::TensorBoard { folder } } else { ReportTo::Nobody },
            dir: PathBuf::from(self.required("output_dir", text).unwrap_or_default()),
            logging_steps: self.value("logging_steps", whole(1)),
            save,
            save_total_limit: self.optional("save_total_limit", whole(1)),
            resume: self.value("resume_from_checkpoint", |value| match flag(value) {
                Some(true) => Some(Resume::Newest),
                Some(false) => Some(Resume::No),
                None => text(value).map(|path| Resume::From(PathBuf::from(path))),
            }),
        }
    }

    /// The value of a key, or its default where it is not written or not valid.
    pub(super) fn value<T>(&mut self, name: &'static str, convert: impl Fn(&Value) -> Option<T>) -> T {
        let default = keys::find(name).and_then(keys::Key::default_value).and_then(|value| convert(&value));
        self.optional(name, convert).or(default).expect("every key read this way has a valid default in the table")
    }

    fn required<T>(&mut self, name: &'static str, convert: impl Fn(&Value) -> Option<T>) -> Option<T> {
        if self.entry(name).is_none() {
            let expects = keys::find(name).map_or("", |key| key.expects);
            self.complain(name, format!("`{name}` is missing: expected {expects}"), format!("add a line `{name}: …`"));
        }
        self.optional(name, convert)
    }

    pub(super) fn optional<T>(&mut self, name: &'static str, convert: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let entry = self.entry(name)?;
        if let Some(value) = convert(&entry.value) {
            return Some(value);
        }
        let (key, written, found) = (entry.key, entry.written.clone(), plain(&entry.value));
        // The names a key accepts stand in backticks in its description.
        let choices: Vec<&str> = key.expects.split('`').skip(1).step_by(2).collect();
        // In a list the first name that is none of them.
        let items = entry.value.as_array().map_or(std::slice::from_ref(&entry.value), Vec::as_slice);
        let unknown = items.iter().map(plain).find(|item| !choices.contains(&item.as_str()));
        let near = unknown.and_then(|name| nearest(&name, choices));
        let glued = entry.value.as_object().is_some_and(|map| map.iter().any(|(k, v)| k.contains(':') && v.is_null()));
        let scalar = entry.value.is_number() || entry.value.is_boolean();
        let quoted = Value::String(found.clone());
        let hint = match near {
            _ if glued => "YAML wants a space after the colon: `{name: weight}`".to_owned(),
            _ if scalar && convert(&quoted).is_some() => format!("put it in quotes: `{quoted}`"),
            Some(choice) => format!("did you mean `{choice}`?"),
            None if key.default == REQUIRED => "docs/recipes.md describes every key".to_owned(),
            None => match key.default.strip_prefix('(') {
                Some(default) => format!("leave it out for the default: {}", default.trim_end_matches(')')),
                None => format!("leave it out for the default: `{}`", key.default),
            },
        };
        self.complain(name, format!("`{written}`: expected {}, found `{found}`", key.expects), hint);
        None
    }

    /// A key that may not be written beside others.
    pub(super) fn forbid(&mut self, name: &'static str, what: &str, hint: &str) {
        if self.entry(name).is_some() {
            self.complain(name, what, hint);
        }
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned)
}

/// Also the words, since PyYAML's recipes quote freely.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::String(word) => word.to_lowercase().parse().ok(),
        _ => None,
    }
}

/// A finite number; `1e-5` is text to PyYAML, so text that is a number counts.
pub(super) fn number(valid: impl Fn(f64) -> bool) -> impl Fn(&Value) -> Option<f64> {
    move |value| {
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|number| number.is_finite() && valid(*number))
    }
}

pub(super) fn whole<T: TryFrom<u64>>(least: u64) -> impl Fn(&Value) -> Option<T> {
    move |value| {
        let exact = match value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_u64(),
        };
        // 2⁵³: above it not every f64 is the number that was written.
        let rounded = || {
            number(|number| number.fract() == 0.0 && (0.0..9e15).contains(&number))(value).map(|number| number as u64)
        };
        exact.or_else(rounded).filter(|whole| *whole >= least).and_then(|whole| T::try_from(whole).ok())
    }
}

fn pair(valid: impl Fn([f64; 2]) -> bool) -> impl Fn(&Value) -> Option<[f64; 2]> {
    move |value| match value.as_array()?.as_slice() {
        [a, b] => Some([number(|_| true)(a)?, number(|_| true)(b)?]).filter(|pair| valid(*pair)),
        _ => None,
    }
}

pub(super) fn one_of<T: Clone>(choices: &[(&'static str, T)]) -> impl Fn(&Value) -> Option<T> {
    move |value| {
        let word = match value {
            Value::Bool(on) => on.to_string(),
            value => value.as_str()?.to_owned(),
        };
        choices.iter().find(|(name, _)| *name == word).map(|(_, choice)| choice.clone())
    }
}

/// One value or a list of at least one.
pub(super) fn each<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().map(convert).collect::<Option<Vec<T>>>().filter(|list| !list.is_empty())
}

pub(super) fn distinct<T: PartialEq>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let list = each(value, convert)?;
    list.iter().enumerate().all(|(index, item)| !list[..index].contains(item)).then_some(list)
}

/// Also `all` and `q_proj,v_proj`, as LLaMA-Factory writes them; a regular expression is no list of names.
fn targets(value: &Value) -> Option<Targets> {
    let names = match value {
        Value::String(text) => text.split(',').map(|name| Value::String(name.trim().to_owned())).collect(),
        value => value.as_array()?.clone(),
    };
    let name = |value: &Value| {
        text(value).filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'))
    };
    let names = distinct(&Value::Array(names), name)?;
    match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["all-linear" | "all"] => Some(Targets::AllLinear),
        several if several.contains(&"all-linear") => None,
        _ => Some(Targets::Names(names)),
    }
}
