//! LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Written as peft 0.21.2 writes them, with the module paths of transformers 5; read also with the paths of transformers before 4.52
//! (`base_model.model.language_model.model.layers…`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use regex::Regex;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::{
    SafetensorsFile, check_finite, names,
    write::{write_file, write_safetensors},
};
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// PEFT puts this before every module path.
const PREFIX: &str = "base_model.model.";

/// An adapter: what it is, and its matrices by canonical module path (`model.language_model.layers.0.self_attn.q_proj`).
#[derive(Debug)]
pub struct LoraFile {
    /// What it is.
    pub config: AdapterConfig,
    /// Its matrices.
    pub tensors: BTreeMap<String, LoraPair>,
}

/// The two matrices of one adapted linear layer; the layer's weight gains `scale · b · a`.
#[derive(Debug)]
pub struct LoraPair {
    /// `[r, in_features]`, f32 on the CPU when read; any kind and device when written.
    pub a: Tensor,
    /// `[out_features, r]`, likewise.
    pub b: Tensor,
}

/// What `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator (`lora_alpha`).
    pub alpha: f64,
    /// Dropout on the adapter's input while training (`lora_dropout`).
    pub dropout: f64,
    /// Scale is alpha / √r instead of alpha / r (`use_rslora`).
    pub rslora: bool,
    /// Other ranks, by regular expression on the end of the module path; the first that fits counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Which modules; `None`: the ones of the tensors, in a form that hits nothing else.
    pub target_modules: Option<TargetModules>,
    /// The checkpoint it belongs to (`base_model_name_or_path`).
    pub base_model: Option<String>,
    /// The transformers class it was made for.
    pub auto_mapping: Option<AutoMapping>,
    /// PEFT's `task_type`, such as `CAUSAL_LM`.
    pub task_type: Option<String>,
}

/// PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Ends of module paths.
    Names(Vec<String>),
    /// A regular expression on the whole module path.
    Pattern(String),
}

/// The transformers class of the model under the adapter (PEFT's `auto_mapping`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoMapping {
    /// Such as `LlavaForConditionalGeneration`.
    pub base_model_class: String,
    /// Such as `transformers.models.llava.modeling_llava`.
    pub parent_library: String,
}

impl Default for AdapterConfig {
    /// PEFT's own defaults.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_modules: None,
            base_model: None,
            auto_mapping: None,
            task_type: None,
        }
    }
}

impl AdapterConfig {
    /// The factor of `b · a` for the module at a path: alpha / r, or alpha / √r with rslora (Kalajdzievski 2023).
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        self.alpha(module) / if self.rslora { rank.sqrt() } else { rank }
    }

    /// The rank for the module at a path.
    pub fn rank(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.r)
    }

    fn alpha(&self, module: &str) -> f64 {
        first_match(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }
}

/// PEFT's `get_pattern_key`: the pattern has to fit a whole end of the path.
fn first_match<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| end_pattern(pattern).is_ok_and(|regex| regex.is_match(module)))
        .map(|(_, value)| *value)
}

fn end_pattern(pattern: &str) -> std::result::Result<Regex, regex::Error> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
}

/// Reads an adapter.
///
/// # Errors
/// A missing or damaged file, a kind of adapter that is not plain LoRA (the field is named), tensors that are not LoRA matrices, do not
/// come in pairs, do not have the rank of the config, or are not finite.
pub fn read(folder: &Path) -> Result<LoraFile> {
    let mut config = read_config(&folder.join(CONFIG))?;
    let path = folder.join(TENSORS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::at(folder.display(), format!("expected {TENSORS}, found adapter_model.bin"))
            .hint("pickled adapters are not read; load it with peft and save it again"));
    }
    let file = SafetensorsFile::open(&path)?;
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for entry in file.entries() {
        let (module, half) = split_key(&entry.name).ok_or_else(|| {
            Error::at(file.place(&entry.name), format!("expected `{PREFIX}<module>.lora_A.weight` or `…lora_B.weight`"))
                .hint("only LoRA on linear layers is supported")
        })?;
        let tensor = file.tensor(entry)?.f_to_kind(Kind::Float)?.f_alias_copy()?;
        check_finite(&tensor, &file.place(&entry.name))?;
        halves.entry(module.to_owned()).or_default()[half] = Some(tensor);
    }
    let mut tensors = BTreeMap::new();
    let mut written = Vec::new();
    for (module, pair) in halves {
        let place = file.place(&format!("{PREFIX}{module}"));
        let [Some(a), Some(b)] = pair else {
            return Err(Error::at(place, "expected both `lora_A` and `lora_B`, found one"));
        };
        let rank = config.rank(&module) as i64;
        if a.dim() != 2 || b.dim() != 2 || a.size()[0] != rank || b.size()[1] != rank {
            let what =
                format!("expected [{rank}, in] and [out, {rank}] by {CONFIG}, found {:?} and {:?}", a.size(), b.size());
            return Err(Error::at(place, what));
        }
        let canonical = names::canonical_module(&module);
        written.push((module, canonical.clone()));
        if tensors.insert(canonical, LoraPair { a, b }).is_some() {
            return Err(Error::at(place, "stands there under two names"));
        }
    }
    if tensors.is_empty() {
        return Err(Error::at(path.display(), "expected LoRA matrices, found none"));
    }
    if written.iter().any(|(module, canonical)| module != canonical) {
        // Patterns were made for the old paths: say the same of the canonical ones.
        config.alpha_pattern = translate(&config.alpha_pattern, &written);
        config.rank_pattern = translate(&config.rank_pattern, &written);
        config.target_modules = None;
    }
    Ok(LoraFile { config, tensors })
}

fn translate<T: Copy>(patterns: &[(String, T)], modules: &[(String, String)]) -> Vec<(String, T)> {
    modules.iter().filter_map(|(old, new)| Some((regex::escape(new), first_match(patterns, old)?))).collect()
}

/// The module path as written and whether it is the first or the second matrix.
fn split_key(key: &str) -> Option<(&str, usize)> {
    let key = key.strip_prefix(PREFIX)?;
    // The name of the adapter stands in keys that were not written by `save_pretrained`.
    let key = key.strip_suffix(".weight")?;
    let key = key.strip_suffix(".default").unwrap_or(key);
    key.strip_suffix(".lora_A").map(|module| (module, 0)).or_else(|| Some((key.strip_suffix(".lora_B")?, 1)))
}

/// Fields of `adapter_config.json` that change what the adapter computes and must be absent, null, false or empty.
const REFUSED: [&str; 18] = [
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

fn read_config(path: &Path) -> Result<AdapterConfig> {
    let text = fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    let json: Map<String, Value> = serde_json::from_slice(&text)
        .map_err(|error| Error::at(path.display(), format!("expected a JSON object, found {error}")))?;
    let key = |name: &str| format!("{}: `{name}`", path.display());
    let wrong = |name: &str, expected: &str| {
        Error::at(key(name), format!("expected {expected}, found {}", json.get(name).unwrap_or(&Value::Null)))
    };
    let get = |name: &str| json.get(name).filter(|value| !value.is_null());
    let mut problems: Vec<Error> = REFUSED
        .iter()
        .filter(|name| get(name).is_some_and(|value| !is_nothing(value)))
        .map(|name| wrong(name, "nothing").hint("only plain LoRA adapters are supported"))
        .collect();
    if get("peft_type").is_some_and(|kind| kind != "LORA") {
        problems.push(wrong("peft_type", "\"LORA\""));
    }
    if get("bias").is_some_and(|bias| bias != "none") {
        problems.push(wrong("bias", "\"none\""));
    }
    // These change the base weights when training starts, so that the matrices alone do not say what was learned.
    let start = get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|kind| start.starts_with(kind)) {
        problems.push(
            wrong("init_lora_weights", "a start that leaves the base weights alone")
                .hint("convert it with peft's `path_initial_model_for_weight_conversion`"),
        );
    }
    let mut config =
        AdapterConfig { rslora: get("use_rslora").is_some_and(|value| value == true), ..AdapterConfig::default() };
    let string = |value: &Value| value.as_str().map(str::to_owned);
    config.base_model = get("base_model_name_or_path").and_then(string);
    config.task_type = get("task_type").and_then(string);
    config.auto_mapping = get("auto_mapping").and_then(|mapping| {
        Some(AutoMapping {
            base_model_class: string(mapping.get("base_model_class")?)?,
            parent_library: string(mapping.get("parent_library")?)?,
        })
    });
    let positive = |value: &Value| value.as_u64().filter(|&r| r > 0).and_then(|r| usize::try_from(r).ok());
    match get("r").map(positive) {
        Some(Some(r)) => config.r = r,
        Some(None) => problems.push(wrong("r", "a whole number from 1")),
        None => {}
    }
    for (name, field) in [("lora_alpha", &mut config.alpha), ("lora_dropout", &mut config.dropout)] {
        match get(name).map(Value::as_f64) {
            Some(Some(value)) => *field = value,
            Some(None) => problems.push(wrong(name, "a number")),
            None => {}
        }
    }
    match get("rank_pattern").map_or(Some(Vec::new()), |value| patterns(value, positive)) {
        Some(patterns) => config.rank_pattern = patterns,
        None => problems.push(wrong("rank_pattern", "an object of regular expressions and ranks")),
    }
    match get("alpha_pattern").map_or(Some(Vec::new()), |value| patterns(value, Value::as_f64)) {
        Some(patterns) => config.alpha_pattern = patterns,
        None => problems.push(wrong("alpha_pattern", "an object of regular expressions and numbers")),
    }
    // With a choice of layers the names alone say too much; the tensors say which.
    if get("layers_to_transform").is_none_or(is_nothing) && get("exclude_modules").is_none_or(is_nothing) {
        match get("target_modules") {
            Some(Value::String(pattern)) => config.target_modules = Some(TargetModules::Pattern(pattern.clone())),
            Some(Value::Array(names)) => match names.iter().map(string).collect() {
                Some(names) => config.target_modules = Some(TargetModules::Names(names)),
                None => problems.push(wrong("target_modules", "a list of names or a regular expression")),
            },
            Some(_) => problems.push(wrong("target_modules", "a list of names or a regular expression")),
            None => {}
        }
    }
    Error::all(problems)?;
    Ok(config)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn patterns<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    let one = |(pattern, value): (&String, &Value)| {
        end_pattern(pattern).ok()?;
        Some((pattern.clone(), read(value)?))
    };
    value.as_object()?.iter().map(one).collect()
}

/// Writes an adapter into `folder`, which is made when it is not there: f32 matrices, and the same bytes for the same adapter.
///
/// # Errors
/// An adapter without matrices, a folder that cannot be made, those of [`write_file`].
pub fn write(folder: &Path, config: &AdapterConfig, tensors: &BTreeMap<String, LoraPair>) -> Result<()> {
    if tensors.is_empty() {
        return Err(Error::at(folder.display(), "expected an adapter with matrices, found none"));
    }
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
    let mut keyed = BTreeMap::new();
    for (module, pair) in tensors {
        for (half, tensor) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            keyed.insert(format!("{PREFIX}{module}.{half}.weight"), tensor.f_detach()?.f_to_kind(Kind::Float)?);
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(TENSORS), keyed.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata)?;
    let text = config_json(config, tensors);
    write_file(&folder.join(CONFIG), |out| out.write_all(text.as_bytes()))
}

/// `adapter_config.json` as peft 0.21.2 writes it: every field, sorted, indented by two.
fn config_json(config: &AdapterConfig, tensors: &BTreeMap<String, LoraPair>) -> String {
    let targets = config.target_modules.clone().unwrap_or_else(|| targets(tensors.keys().map(String::as_str)));
    // PEFT and vLLM read whole numbers here.
    let number =
        |value: f64| if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) };
    let sorted = |map: BTreeMap<&String, Value>| json!(map);
    let auto_mapping = config
        .auto_mapping
        .as_ref()
        .map(|mapping| json!({"base_model_class": mapping.base_model_class, "parent_library": mapping.parent_library}));
    let target_modules = match targets {
        TargetModules::Names(names) => json!(names),
        TargetModules::Pattern(pattern) => json!(pattern),
    };
    let json = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": sorted(config.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha))).collect()),
        "arrow_config": null,
        "auto_mapping": auto_mapping,
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": number(config.alpha),
        "lora_bias": false,
        "lora_dropout": config.dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "monteclora_config": null,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": config.r,
        "rank_pattern": sorted(config.rank_pattern.iter().map(|(key, rank)| (key, json!(rank))).collect()),
        "revision": null,
        "target_modules": target_modules,
        "target_parameters": null,
        "task_type": config.task_type,
        "trainable_token_indices": null,
        "use_bdlora": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": config.rslora,
        "velora_config": null,
    });
    format!("{json:#}")
}

/// The shortest `target_modules` that hits these modules and no other part of the model.
fn targets<'a>(modules: impl Iterator<Item = &'a str>) -> TargetModules {
    let modules: Vec<&str> = modules.collect();
    let every = || TargetModules::Names(modules.iter().map(|module| (*module).to_owned()).collect());
    let mut parents = BTreeSet::new();
    let mut layers: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for module in &modules {
        let split = module.split_once(".layers.").and_then(|(parent, rest)| Some((parent, rest.split_once('.')?)));
        let Some((parent, (Ok(layer), name))) = split.map(|(parent, (layer, name))| (parent, (layer.parse(), name)))
        else {
            return every();
        };
        parents.insert(parent);
        layers.entry(layer).or_default().insert(name);
    }
    let names = layers.values().next().cloned().unwrap_or_default();
    let whole = layers.keys().copied().eq(0..layers.len()) && layers.values().all(|layer| *layer == names);
    let last: BTreeSet<String> = names.iter().filter_map(|name| name.rsplit('.').next()).map(str::to_owned).collect();
    match parents.into_iter().collect::<Vec<_>>()[..] {
        ["model"] if whole => TargetModules::Names(last.into_iter().collect()),
        [parent] if whole => {
            let tower = parent.rsplit('.').next().unwrap_or(parent);
            let names: Vec<String> = last.iter().map(|name| regex::escape(name)).collect();
            TargetModules::Pattern(format!(r".*{}.*\.({})", regex::escape(tower), names.join("|")))
        }
        _ => every(),
    }
}
