//! From a checkpoint's tensors to layers: dtype, device, adapters and what is trained, decided in one place.

use crate::address::Address;
use crate::config::{Lora, Part, Reference, Targets};
use crate::nn::{LayerNorm, Linear, LoraAdapter, LoraWeights, Param};
use crate::weights::{self, AdapterConfig, Checkpoint, LoraFile, LoraPair};
use crate::{Error, Result};
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What becomes of the weights.
#[derive(Debug)]
pub enum Plan<'a> {
    /// Nothing is trained; an adapter may be applied.
    Frozen {
        /// The adapter.
        adapter: Option<LoraFile>,
    },
    /// LoRA on the language model's linear layers.
    Lora {
        /// Rank, targets and the rest.
        settings: &'a Lora,
        /// Where a fresh adapter's random values come from.
        seed: u64,
        /// The adapter to start from, and what the reference is then.
        start: Option<(LoraFile, Reference)>,
    },
    /// Full weights of these parts.
    Full(&'a [Part]),
}

/// A tensor that the optimizer moves.
#[derive(Debug)]
pub struct Trainable {
    /// Canonical name; an adapter's end in `lora_A.weight` and `lora_B.weight`.
    pub name: String,
    /// f32 leaf.
    pub leaf: Tensor,
    /// With which others it moves.
    pub group: Group,
}

/// Tensors whose gradients are clipped together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Group {
    /// The model's own, or its adapter's.
    Model,
    /// The value head's: whatever its loss, it must not change how far the model moves.
    ValueHead {
        /// How many times the run's learning rate it moves at.
        rate: f64,
    },
}

/// Hands out layers, each weight of the checkpoint once.
#[derive(Debug)]
pub struct Loader<'a> {
    checkpoint: Checkpoint,
    kind: Kind,
    device: Device,
    plan: Plan<'a>,
    part: Part,
    training: bool,
    trainables: Vec<Trainable>,
    linear_names: BTreeSet<String>,
    targets_met: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    /// A loader that gives weights in `kind` on `device`.
    pub fn new(checkpoint: Checkpoint, kind: Kind, device: Device, plan: Plan<'a>) -> Self {
        Loader {
            checkpoint,
            kind,
            device,
            plan,
            part: Part::LanguageModel,
            training: true,
            trainables: Vec::new(),
            linear_names: BTreeSet::new(),
            targets_met: BTreeSet::new(),
        }
    }

    /// Where weights go.
    pub fn device(&self) -> Device {
        self.device
    }

    /// What follows belongs to `part`.
    pub fn enter(&mut self, part: Part) {
        self.part = part;
    }

    /// Loads something that is never run: shapes are checked, nothing is trained.
    pub fn untrained<T>(&mut self, load: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.training = false;
        let loaded = load(self);
        self.training = true;
        loaded
    }

    /// A tensor that may be stored although `field` of `config.json` says that it is `other`.
    pub fn same(&mut self, name: &str, other: &Tensor, field: &str) -> Result<()> {
        if !self.checkpoint.has(name) {
            return Ok(());
        }
        let stored = self.checkpoint.take(name, &other.size())?.to_device(self.device).to_kind(self.kind);
        if stored.equal(other) {
            return Ok(());
        }
        let what = format!("`{field}` says that it is the embedding table, but its values are others");
        Err(Error::at(name, what).hint(format!("set `{field}` to false in config.json if the head is its own")))
    }

    /// One weight.
    pub fn param(&mut self, name: &str, shape: &[i64]) -> Result<Param> {
        let tensor = self.checkpoint.take(name, shape)?;
        weights::check_finite(&tensor, name)?;
        let tensor = tensor.to_device(self.device).to_kind(self.kind);
        let trained = self.training && matches!(self.plan, Plan::Full(parts) if parts.contains(&self.part));
        if !trained {
            return Ok(Param::frozen(tensor));
        }
        let param = Param::trained(tensor);
        let leaf = param.leaf().expect("a trained parameter has a leaf").shallow_clone();
        self.trainables.push(Trainable { name: name.to_owned(), leaf, group: Group::Model });
        Ok(param)
    }

    /// The head: a linear layer that never carries an adapter.
    pub fn head(&mut self, path: &str, out: i64, input: i64) -> Result<Linear> {
        Ok(Linear::new(self.param(&format!("{path}.weight"), &[out, input])?, None, None))
    }

    /// A linear layer at module path `path`, with the adapter that the plan gives it.
    pub fn linear(&mut self, path: &str, out: i64, input: i64, bias: bool) -> Result<Linear> {
        let weight = self.param(&format!("{path}.weight"), &[out, input])?;
        let bias = if bias { Some(self.param(&format!("{path}.bias"), &[out])?) } else { None };
        let adapter =
            if self.training { self.adapter(path, out, input)? } else { self.unused_adapter(path, out, input)? };
        if self.part == Part::LanguageModel {
            self.linear_names.insert(last_name(path).to_owned());
        }
        Ok(Linear::new(weight, bias, adapter))
    }

    /// A layer norm at module path `path`.
    pub fn layer_norm(&mut self, path: &str, width: i64, eps: f64) -> Result<LayerNorm> {
        let weight = self.param(&format!("{path}.weight"), &[width])?;
        Ok(LayerNorm::new(weight, self.param(&format!("{path}.bias"), &[width])?, eps))
    }

    fn adapter(&mut self, path: &str, out: i64, input: i64) -> Result<Option<LoraAdapter>> {
        let device = self.device;
        let on_device = |tensor: &Tensor| tensor.to_kind(Kind::Float).to_device(device);
        match &mut self.plan {
            Plan::Full(_) | Plan::Frozen { adapter: None } => Ok(None),
            Plan::Frozen { adapter: Some(file) } => {
                let scale = file.config.scale(path);
                let Some(LoraPair { a, b }) = take_pair(file, path, out, input)? else { return Ok(None) };
                let policy = LoraWeights { a: on_device(&a).into(), b: on_device(&b).into() };
                Ok(Some(LoraAdapter { policy, reference: None, scale, dropout: 0.0 }))
            }
            Plan::Lora { settings, start: Some((file, reference)), .. } => {
                let scale = file.config.scale(path);
                let Some(LoraPair { a, b }) = take_pair(file, path, out, input)? else { return Ok(None) };
                if self.part != Part::LanguageModel {
                    let what = "an adapter on the vision tower or the projector can be applied but not trained further";
                    return Err(Error::at(path, what).hint("train one that targets the language model alone"));
                }
                let frozen = |tensor: &Tensor| on_device(tensor).copy();
                let kept = match reference {
                    Reference::Adapter => Some(LoraWeights { a: frozen(&a).into(), b: frozen(&b).into() }),
                    Reference::Base => None,
                };
                let policy = LoraWeights { a: frozen(&a).into(), b: frozen(&b).into() };
                let dropout = settings.dropout;
                Ok(Some(self.trained_adapter(path, LoraAdapter { policy, reference: kept, scale, dropout })))
            }
            Plan::Lora { settings, seed, start: None } => {
                let Some(target) = target(&settings.targets, self.part, path) else { return Ok(None) };
                self.targets_met.insert(target.to_owned());
                let rank = settings.r as i64;
                let config = AdapterConfig {
                    r: settings.r,
                    alpha: settings.alpha,
                    rslora: settings.rslora,
                    ..AdapterConfig::default()
                };
                let policy = LoraWeights {
                    a: initial_down(*seed, path, rank, input).to_device(device).into(),
                    b: Tensor::zeros([out, rank], (Kind::Float, device)).into(),
                };
                let (scale, dropout) = (config.scale(path), settings.dropout);
                Ok(Some(self.trained_adapter(path, LoraAdapter { policy, reference: None, scale, dropout })))
            }
        }
    }

    /// An adapter on a layer that is never run (PEFT puts one on every layer of a name) changes nothing.
    fn unused_adapter(&mut self, path: &str, out: i64, input: i64) -> Result<Option<LoraAdapter>> {
        if let Plan::Frozen { adapter: Some(file) } | Plan::Lora { start: Some((file, _)), .. } = &mut self.plan {
            take_pair(file, path, out, input)?;
        }
        Ok(None)
    }

    fn trained_adapter(&mut self, path: &str, adapter: LoraAdapter) -> LoraAdapter {
        let LoraWeights { a, b } = adapter.policy;
        let (a, b) = (a.set_requires_grad(true), b.set_requires_grad(true));
        for (leaf, letter) in [(&a, 'A'), (&b, 'B')] {
            let name = format!("{path}.lora_{letter}.weight");
            self.trainables.push(Trainable { name, leaf: leaf.shallow_clone(), group: Group::Model });
        }
        LoraAdapter { policy: LoraWeights { a: a.into(), b: b.into() }, ..adapter }
    }

    /// Checks that every tensor of the checkpoint and of the adapter was used and every target met; gives what is trained.
    pub fn finish(self) -> Result<Vec<Trainable>> {
        self.checkpoint.finish()?;
        let left = match &self.plan {
            Plan::Frozen { adapter: Some(file) } | Plan::Lora { start: Some((file, _)), .. } => &file.tensors,
            _ => &BTreeMap::new(),
        };
        if let Some(path) = left.keys().next() {
            let what = format!("{} modules of the adapter are not in the model, `{path}` first", left.len());
            return Err(Error::at("adapter", what).hint("use the adapter with the model it was trained on"));
        }
        if let Plan::Lora { settings: Lora { targets: Targets::Names(names), .. }, start: None, .. } = &self.plan
            && let Some(name) = names.iter().find(|name| !self.targets_met.contains(*name))
        {
            let known: Vec<_> = self.linear_names.iter().map(String::as_str).collect();
            let what = format!("no linear layer of the language model is called `{name}`");
            let hint = format!("the language model has {}; the head cannot carry an adapter", known.join(", "));
            return Err(Error::at("lora_target_modules", what).hint(hint));
        }
        Ok(self.trainables)
    }
}

/// The target that the linear layer at `path` meets, if any; the tower and the projector meet none.
fn target<'t>(targets: &'t Targets, part: Part, path: &str) -> Option<&'t str> {
    if part != Part::LanguageModel {
        return None;
    }
    match targets {
        Targets::AllLinear => Some("all-linear"),
        Targets::Names(names) => names
            .iter()
            .find(|name| path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
            .map(String::as_str),
    }
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn take_pair(file: &mut LoraFile, path: &str, out: i64, input: i64) -> Result<Option<LoraPair>> {
    let Some(pair) = file.tensors.remove(path) else { return Ok(None) };
    let rank = file.config.rank(path) as i64;
    for (tensor, letter, expected) in [(&pair.a, 'A', [rank, input]), (&pair.b, 'B', [out, rank])] {
        if tensor.size() != expected {
            let place = format!("{path}.lora_{letter}.weight");
            let what = format!("expected shape {expected:?}, found {:?}", tensor.size());
            return Err(Error::at(place, what).hint("use the adapter with the model it was trained on"));
        }
    }
    Ok(Some(pair))
}

/// PEFT's initial A: uniform in ±1/√in (Kaiming with a = √5), a pure function of seed and module path.
fn initial_down(seed: u64, path: &str, rank: i64, input: i64) -> Tensor {
    let bound = 1.0 / (input as f32).sqrt();
    let mut rng = Address { seed, epoch: 0, example: 0 }.rng(&format!("lora/{path}"));
    let values: Vec<f32> = (0..rank * input).map(|_| rng.random_range(-bound..bound)).collect();
    Tensor::from_slice(&values).view([rank, input])
}

/// Precisions by the names of `config.json`.
const DTYPES: [(&str, Kind); 3] = [("float32", Kind::Float), ("bfloat16", Kind::BFloat16), ("float16", Kind::Half)];

/// The precision that `config.json` of a checkpoint names, as transformers' `dtype="auto"` finds it, else that of the first weight.
///
/// # Errors
/// A precision that is not supported, a folder without configuration or weights.
pub fn stored_kind(folder: &Path) -> Result<Kind> {
    let (file, map) = super::config::read(folder)?;
    let inner = map.get("text_config").and_then(serde_json::Value::as_object);
    let named = |map: &serde_json::Map<_, serde_json::Value>| {
        ["dtype", "torch_dtype"].iter().find_map(|key| map.get(*key)?.as_str().map(str::to_owned))
    };
    match named(&map).or_else(|| inner.and_then(named)) {
        Some(name) => {
            let known = DTYPES.iter().find(|(other, _)| *other == name).map(|(_, kind)| *kind);
            let refuse = || Error::at(file.display(), format!("`dtype`: `{name}` is not supported"));
            known.ok_or_else(|| refuse().hint("choose one with `--dtype float32`, `bfloat16` or `float16`"))
        }
        None => {
            let checkpoint = Checkpoint::open(folder)?;
            Ok(checkpoint.names().next().and_then(|name| checkpoint.kind(name)).unwrap_or(Kind::Float))
        }
    }
}
