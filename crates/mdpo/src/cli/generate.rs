//! `mdpo generate`.

use super::Done;
use crate::data::{self, Asked, ImageSource};
use crate::eval::{
    self, Answered, Answerer, Ask, Asker, Decoding, EarlyStopping, End, Generation, Request, Sampling, Search,
    Settings, Tools,
};
use crate::image::Pixels;
use crate::model::Model;
use crate::model::load::{Plan, stored_kind};
use crate::text::Tokens;
use crate::train::Talk;
use crate::{Error, Result, config, train, weights};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tch::{Device, Kind};

/// What `mdpo generate` takes; the names of transformers' `generate`.
#[derive(Debug, Args)]
pub(super) struct Generate {
    /// The checkpoint: a folder, or a repository in the local Hugging Face cache
    model: String,
    /// What the user says; `-` reads it from standard input
    #[arg(required_unless_present = "prompts")]
    prompt: Option<String>,
    /// Answer the prompts of this file instead: JSONL with `prompt`, and where there are some `id`, `image` or `images`, `system`
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with_all = ["prompt", "images", "system"])]
    prompts: Option<PathBuf>,
    /// Where their answers go, one JSON object a line; a file that is there already is continued
    #[arg(long, value_name = "FILE", requires = "prompts", conflicts_with = "prompt")]
    output: Option<PathBuf>,
    /// How many prompts of the file to answer at once
    #[arg(long, default_value_t = 16, requires = "prompts")]
    batch_size: usize,
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
    /// Search with so many beams; the answer then comes at once
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// Divide an ended beam's summed log-prob by its length to this power: above 0 favours long answers [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End the search as soon as there are enough ended beams (`true`), when the best beam no longer looks better (`false`), or when none can be (`never`) [default: false]
    #[arg(long, value_parser = PossibleValuesParser::new(STOPPINGS.map(|(name, _)| name)).map(|name| stopping(&name)))]
    early_stopping: Option<EarlyStopping>,
    /// Precision of weights and activations [default: the checkpoint's own]
    #[arg(long, value_parser = PossibleValuesParser::new(DTYPES.map(|(name, _)| name)).map(|name| dtype(&name)))]
    dtype: Option<Kind>,
    /// Where to compute
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(DEVICES.map(|(name, _)| name)).map(|name| device(&name)))]
    device: config::Device,
}

pub(super) const DTYPES: [(&str, Kind); 3] =
    [("float32", Kind::Float), ("bfloat16", Kind::BFloat16), ("float16", Kind::Half)];
pub(super) const DEVICES: [(&str, config::Device); 3] =
    [("auto", config::Device::Auto), ("cpu", config::Device::Cpu), ("cuda", config::Device::Cuda)];

const STOPPINGS: [(&str, EarlyStopping); 3] =
    [("true", EarlyStopping::Yes), ("false", EarlyStopping::Heuristic), ("never", EarlyStopping::Never)];

fn stopping(name: &str) -> EarlyStopping {
    STOPPINGS.iter().find(|(other, _)| *other == name).map_or(EarlyStopping::Heuristic, |(_, stopping)| *stopping)
}

pub(super) fn dtype(name: &str) -> Kind {
    DTYPES.iter().find(|(other, _)| *other == name).map_or(Kind::Float, |(_, kind)| *kind)
}

pub(super) fn device(name: &str) -> config::Device {
    DEVICES.iter().find(|(other, _)| *other == name).map_or(config::Device::Auto, |(_, device)| *device)
}

impl Generate {
    pub fn run(&self) -> Done {
        // Everything that can be refused is, before weights are read.
        let sampling = Sampling::new(self.temperature, self.top_p, self.top_k, self.seed)?;
        let search = Search { length_penalty: self.length_penalty, early_stopping: self.early_stopping };
        let decoding = Decoding::new(sampling, self.num_beams, search)?;
        let device = train::device(self.device)?;
        let folder = config::find_model(&self.model)?;
        match (&self.prompts, &self.output, decoding) {
            (Some(prompts), Some(output), _) => self.answer_file(prompts, output, folder, device, decoding),
            (_, _, Decoding::Sampling(sampling)) => self.stream(&folder, device, sampling),
            (_, _, Decoding::Beams(_)) => self.search(&folder, device, decoding),
        }
    }

    fn answer_file(&self, prompts: &Path, output: &Path, model: PathBuf, device: Device, decoding: Decoding) -> Done {
        let answerer = Answerer {
            model,
            adapter: self.adapter.clone(),
            kind: self.dtype,
            device,
            decoding,
            max_new_tokens: self.max_new_tokens,
            batch_size: self.batch_size,
        };
        let answered = eval::answer_file(&answerer, &data::questions(prompts)?, output, Talk::Aloud)?;
        let Answered { new, kept, tokens, seconds } = answered;
        let mut told = format!("{} answers, written to {}\n", new + kept, output.display());
        if kept > 0 {
            told += &format!("{kept} of them were there before\n");
        }
        if new > 0 {
            told += &format!("{tokens} tokens in {seconds:.2} s, {:.1} a second\n", tokens as f64 / seconds.max(1e-9));
        }
        super::print(told)?;
        Ok(ExitCode::SUCCESS)
    }

    /// One prompt, its answer shown as it comes.
    fn stream(&self, folder: &Path, device: Device, sampling: Sampling) -> Done {
        let tools = Tools::open(folder)?;
        let asker = tools.asker();
        let (prompt, images) = self.prompt(asker)?;
        let stop = asker.encoder.eos_ids();
        let request = Request { prompt: &prompt, images: &images, sampling, max_new_tokens: self.max_new_tokens, stop };
        request.check(asker.shape)?;
        let model = self.load(folder, device)?;
        let mut answer = Generation::start(&model, request)?;
        let mut text = asker.encoder.tokenizer().decode_stream();
        while let Some(id) = answer.next() {
            let id = id?;
            if answer.end() != Some(End::Stop) {
                super::print(text.push(id)?)?;
            }
        }
        super::print(text.finish()? + "\n")?;
        note_limit(answer.end());
        Ok(ExitCode::SUCCESS)
    }

    /// One prompt, its answer found by a search.
    fn search(&self, folder: &Path, device: Device, decoding: Decoding) -> Done {
        let tools = Tools::open(folder)?;
        let asker = tools.asker();
        let (prompt, images) = self.prompt(asker)?;
        let stop = asker.encoder.eos_ids().to_vec();
        let (sampling, max_new_tokens) = (Sampling::Greedy, self.max_new_tokens);
        Request { prompt: &prompt, images: &images, sampling, max_new_tokens, stop: &stop }.check(asker.shape)?;
        let model = self.load(folder, device)?;
        let settings = Settings { decoding, max_new_tokens, stop, batch_size: 1 };
        let ask = Ask { prompt, images: images.into_iter().map(Arc::new).collect(), number: 0 };
        eval::answer_all(&model, [Ok(ask)], &settings, |_, answer| {
            super::print(asker.encoder.tokenizer().decode(answer.spoken())? + "\n")?;
            note_limit(Some(answer.end));
            Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn load(&self, folder: &Path, device: Device) -> Result<Model> {
        let adapter = self.adapter.as_deref().map(weights::lora::read).transpose()?;
        let kind = self.dtype.map_or_else(|| stored_kind(folder), Ok)?;
        Model::load(folder, kind, device, Plan::Frozen { adapter })
    }

    /// The prompt's tokens and its images.
    fn prompt(&self, asker: Asker<'_>) -> Result<(Tokens, Vec<Pixels>)> {
        let mut text = self.prompt.clone().unwrap_or_default();
        if text == "-" {
            text.clear();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|error| Error::at("standard input", format!("cannot read: {error}")))?;
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
        }
        let asked = Asked::Words { text, system: self.system.clone() };
        let prompt = asker.prompt(&asked, self.images.len())?;
        let mut images = Vec::new();
        for path in &self.images {
            let picture = train::picture(&ImageSource::Path(path.clone()))?;
            images.extend(asker.processor.map(|processor| processor.process(&picture)));
        }
        Ok((prompt, images))
    }
}

fn note_limit(end: Option<End>) {
    if let Some(End::ModelLimit(limit)) = end {
        eprintln!("stopped at the model's limit of {limit} tokens, prompt and images included");
    }
}
