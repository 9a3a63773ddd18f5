//! `mdpo generate`.

use super::Done;
use crate::data::{ImageSource, Message, Part, Prompt};
use crate::eval::{End, Generation, Request, Sampling};
use crate::model::load::Plan;
use crate::model::{self, Model, Shape};
use crate::text::{Encoder, Tokens};
use crate::weights::{self, Checkpoint};
use crate::{Error, Result, config, train};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Kind;

/// What marks an image in a text that no template writes.
const IMAGE_MARK: &str = "<image>";

/// What `mdpo generate` takes; the names of transformers' `generate`.
#[derive(Debug, Args)]
pub(super) struct Generate {
    /// The checkpoint: a folder, or a repository in the local Hugging Face cache
    model: String,
    /// What the user says; `-` reads it from standard input
    prompt: String,
    /// Apply this PEFT adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// An image that comes before the text; several are given by repeating the option
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// A system message
    #[arg(long)]
    system: Option<String>,
    /// The most tokens to answer with
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Divide logits by this and sample; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Sample among so many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed of sampling: the same seed gives the same answer
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Precision of weights and activations [default: the checkpoint's own]
    #[arg(long, value_parser = PossibleValuesParser::new(DTYPES.map(|(name, _)| name)).map(|name| dtype(&name)))]
    dtype: Option<Kind>,
    /// Where to compute
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(DEVICES.map(|(name, _)| name)).map(|name| device(&name)))]
    device: config::Device,
}

const DTYPES: [(&str, Kind); 3] = [("float32", Kind::Float), ("bfloat16", Kind::BFloat16), ("float16", Kind::Half)];
const DEVICES: [(&str, config::Device); 3] =
    [("auto", config::Device::Auto), ("cpu", config::Device::Cpu), ("cuda", config::Device::Cuda)];

fn dtype(name: &str) -> Kind {
    DTYPES.iter().find(|(other, _)| *other == name).map_or(Kind::Float, |(_, kind)| *kind)
}

fn device(name: &str) -> config::Device {
    DEVICES.iter().find(|(other, _)| *other == name).map_or(config::Device::Auto, |(_, device)| *device)
}

impl Generate {
    pub fn run(&self) -> Done {
        // Everything that can be refused is, before weights are read.
        let sampling = Sampling::new(self.temperature, self.top_p, self.top_k, self.seed)?;
        let device = train::device(self.device)?;
        let folder = config::find_model(&self.model)?;
        let shape = Shape::read(&folder)?;
        let encoder = train::encoder(&folder, &shape)?;
        let prompt = self.prompt(&encoder)?;
        let processor = train::processor(&folder, &shape)?;
        let mut images = Vec::new();
        for path in &self.images {
            let picture = train::picture(&ImageSource::Path(path.clone()))?;
            images.extend(processor.as_ref().map(|processor| processor.process(&picture)));
        }
        let (images, stop, max_new_tokens) = (images.as_slice(), encoder.eos_ids(), self.max_new_tokens);
        let request = Request { prompt: &prompt, images, sampling, max_new_tokens, stop };
        request.check(&shape)?;
        let adapter = self.adapter.as_deref().map(weights::lora::read).transpose()?;
        let kind = self.dtype.map_or_else(|| own_dtype(&folder), Ok)?;

        let model = Model::load(&folder, kind, device, Plan::Frozen { adapter })?;
        let mut answer = Generation::start(&model, request)?;
        let mut text = encoder.tokenizer().decode_stream();
        while let Some(id) = answer.next() {
            let id = id?;
            if answer.end() != Some(End::Stop) {
                super::print(text.push(id)?)?;
            }
        }
        super::print(text.finish()? + "\n")?;
        if let Some(End::ModelLimit(limit)) = answer.end() {
            eprintln!("stopped at the model's limit of {limit} tokens, prompt and images included");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The prompt's tokens: a message of the user through the chat template, or the text as it is where there is no template.
    fn prompt(&self, encoder: &Encoder) -> Result<Tokens> {
        let mut said = self.prompt.clone();
        if said == "-" {
            said.clear();
            let read = std::io::stdin().read_to_string(&mut said);
            read.map_err(|error| Error::at("standard input", format!("cannot read: {error}")))?;
            said.truncate(said.trim_end_matches(['\n', '\r']).len());
        }
        if said.trim().is_empty() && self.images.is_empty() {
            return Err(Error::at("prompt", "the prompt is empty"));
        }
        let message =
            |role: &str, text: &str| Message { role: role.to_owned(), content: vec![Part::Text(text.to_owned())] };
        let prompt = match (encoder.has_template(), &self.system) {
            (true, system) => {
                let system = system.iter().map(|text| message("system", text));
                Prompt::Messages(system.chain([message("user", &said)]).collect())
            }
            (false, None) => {
                let marks = if said.contains(IMAGE_MARK) { 0 } else { self.images.len() };
                Prompt::Text(format!("{IMAGE_MARK}\n").repeat(marks) + &said)
            }
            (false, Some(_)) => {
                let hint = "write the system message into the prompt";
                return Err(Error::at("`--system`", "the checkpoint has no chat template to write it with").hint(hint));
            }
        };
        encoder.prompt_only(&prompt, self.images.len())
    }
}

/// The precision that `config.json` names, as transformers' `dtype="auto"` finds it, else that of the first weight.
fn own_dtype(folder: &Path) -> Result<Kind> {
    let (file, map) = model::config::read(folder)?;
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
