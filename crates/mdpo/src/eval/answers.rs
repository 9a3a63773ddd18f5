//! Answer files: one JSON object a line for each question, written as answers end, continued where a run was cut off.
//!
//! Beside the file stands another one, `<name>.made_by.json`, that says which model, adapter and settings made it: a run with others is refused, so
//! no file ever mixes two. Each line has a digest of its question for the same reason. A line that was cut off is dropped; when all questions are
//! answered the lines are put into their order.

use super::batch::{Answer, Settings};
use super::decoding::{Beams, Decoding, EarlyStopping, Sampling};
use super::generate::End;
use super::questions::{Tools, answer_questions};
use crate::data::{ImageSource, Question};
use crate::error::caught;
use crate::model::Model;
use crate::model::load::{Plan, stored_kind};
use crate::text::Tokens;
use crate::train::Talk;
use crate::weights::{self, Checkpoint};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind};

/// Who answers a file of questions, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Answerer {
    /// The checkpoint's folder.
    pub model: PathBuf,
    /// A PEFT adapter to apply.
    pub adapter: Option<PathBuf>,
    /// Precision of weights and activations; that of the checkpoint where there is none.
    pub kind: Option<Kind>,
    /// Where to compute.
    pub device: Device,
    /// How tokens are chosen.
    pub decoding: Decoding,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// How many questions are answered at once, at least one.
    pub batch_size: usize,
}

/// How many answers a file has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answered {
    /// Those that this run gave.
    pub new: usize,
    /// Those that were there before.
    pub kept: usize,
    /// Tokens of the new ones, those that ended them included.
    pub tokens: usize,
    /// What the new ones took once the model was there, pictures included, in seconds.
    pub seconds: f64,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    id: String,
    answer: String,
    /// How many ids the model gave, the one that ended the answer included.
    tokens: usize,
    /// `stop`, `max_new_tokens` or `model_limit`.
    end: String,
    /// Of the question: token ids and images.
    asked: String,
}

/// Answers questions into the file `output`, or those that it does not answer yet.
///
/// # Errors
/// Before weights are read: a question that cannot be asked, a file that cannot be written or was made otherwise. Later: what
/// [`answer_questions`] gives; what was answered until then is kept.
pub fn answer_file(answerer: &Answerer, questions: &[Question], output: &Path, talk: Talk) -> Result<Answered> {
    if answerer.batch_size == 0 {
        return Err(Error::at("`batch_size`", "expected at least 1, found 0"));
    }
    let tools = Tools::open(&answerer.model)?;
    let asker = tools.asker();
    let kind = answerer.kind.map_or_else(|| stored_kind(&answerer.model), Ok)?;
    let settings = Settings {
        decoding: answerer.decoding,
        max_new_tokens: answerer.max_new_tokens,
        stop: asker.encoder.eos_ids().to_vec(),
        batch_size: answerer.batch_size,
    };
    let tokens = asker.tokens(questions, settings.max_new_tokens)?;
    let adapter = answerer.adapter.as_deref().map(weights::lora::read).transpose()?;
    let asked = questions.iter().zip(&tokens).map(|(question, tokens)| digest(question, tokens));
    let asked = asked.collect::<Result<Vec<String>>>()?;
    let made_by = made_by(answerer, &settings, kind)?;
    let mut file = AnswerFile::open(output, &made_by, questions, &asked)?;
    let missing: Vec<usize> = (0..questions.len()).filter(|&index| file.lines[index].is_none()).collect();
    let mut answered = Answered { new: missing.len(), kept: questions.len() - missing.len(), tokens: 0, seconds: 0.0 };
    if !missing.is_empty() {
        let model = caught(|| Model::load(&answerer.model, kind, answerer.device, Plan::Frozen { adapter }))?;
        let began = Instant::now();
        let bar = bar(talk, answered.kept, questions.len());
        let pairs: Vec<(&Question, &Tokens)> =
            missing.iter().map(|&index| (&questions[index], &tokens[index])).collect();
        let done = answer_questions(&model, asker, &pairs, &settings, |place, answer: Answer| {
            let index = missing[place];
            let end = match answer.end {
                End::Stop => "stop",
                End::MaxNewTokens => "max_new_tokens",
                End::ModelLimit(_) => "model_limit",
            };
            let line = Line {
                id: questions[index].id.clone(),
                answer: asker.encoder.tokenizer().decode(answer.spoken())?.trim().to_owned(),
                tokens: answer.ids.len(),
                end: end.to_owned(),
                asked: asked[index].clone(),
            };
            bar.inc(1);
            answered.tokens += line.tokens;
            file.add(index, line)
        });
        bar.finish_and_clear();
        done?;
        answered.seconds = began.elapsed().as_secs_f64();
    }
    file.finish()?;
    Ok(answered)
}

fn bar(talk: Talk, kept: usize, all: usize) -> ProgressBar {
    let bar = ProgressBar::new(all as u64).with_position(kept as u64);
    if talk == Talk::Silent || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} answers [{elapsed}<{eta}]");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.reset_eta();
    bar
}

/// Half a SHA-256 of what a question gives the model: its token ids, and of its images where they are and how long, or their bytes.
fn digest(question: &Question, tokens: &Tokens) -> Result<String> {
    let mut hash = Sha256::new();
    tokens.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    for image in &question.images {
        match image {
            ImageSource::Path(path) => {
                let bytes = path.metadata().map_err(|error| Error::io("read", path, &error))?.len();
                hash.update(path.as_os_str().as_encoded_bytes());
                hash.update(bytes.to_le_bytes());
            }
            ImageSource::Embedded(_) => hash.update(image.read()?),
        }
    }
    Ok(hex(&hash.finalize()[..16]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All that answers depend on besides the question, in transformers' names. Device and batch size only round differently.
fn made_by(answerer: &Answerer, settings: &Settings, kind: Kind) -> Result<Map<String, Value>> {
    let mut files =
        ["config.json", "tokenizer.json", "chat_template.jinja"].map(|name| answerer.model.join(name)).to_vec();
    files.extend(Checkpoint::open(&answerer.model)?.files().iter().map(|file| file.path().to_owned()));
    let adapter = answerer
        .adapter
        .as_ref()
        .map(|folder| fingerprint(&["adapter_config.json", "adapter_model.safetensors"].map(|name| folder.join(name))));
    let mut made_by = Map::new();
    let mut set = |key: &str, value: Value| drop(made_by.insert(key.to_owned(), value));
    set("mdpo", json!(env!("CARGO_PKG_VERSION")));
    set("model", json!(fingerprint(&files)?));
    set("adapter", json!(adapter.transpose()?));
    set("dtype", json!(format!("{kind:?}")));
    set("max_new_tokens", json!(settings.max_new_tokens));
    set("eos_token_id", json!(settings.stop));
    let (beams, sampled) = match settings.decoding {
        Decoding::Sampling(sampling) => (1, sampling != Sampling::Greedy),
        Decoding::Beams(beams) => (beams.count, false),
    };
    set("num_beams", json!(beams));
    set("do_sample", json!(sampled));
    match settings.decoding {
        Decoding::Sampling(Sampling::Greedy) => {}
        Decoding::Sampling(Sampling::Sample { temperature, top_p, top_k, seed }) => {
            set("temperature", json!(temperature));
            set("top_p", json!(top_p));
            set("top_k", json!(top_k));
            set("seed", json!(seed));
        }
        Decoding::Beams(Beams { length_penalty, early_stopping, .. }) => {
            let early_stopping = match early_stopping {
                EarlyStopping::Yes => json!(true),
                EarlyStopping::Heuristic => json!(false),
                EarlyStopping::Never => json!("never"),
            };
            set("length_penalty", json!(length_penalty));
            set("early_stopping", early_stopping);
        }
    }
    Ok(made_by)
}

/// SHA-256 over the files that are there, by name: the whole of those up to 64 MB, of larger ones their length and 1024 pieces of 16 kB at even
/// distances, since all that training or merging moves lies in many of them, and the whole of 7B weights takes half a minute to read.
fn fingerprint(files: &[PathBuf]) -> Result<String> {
    const WHOLE: u64 = 64 << 20;
    const PIECES: u64 = 1024;
    const PIECE: u64 = 16 << 10;
    let mut hash = Sha256::new();
    for path in files.iter().filter(|path| path.exists()) {
        let failed = |error: std::io::Error| Error::io("read", path, &error);
        let mut file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(len.to_le_bytes());
        let (pieces, piece) = if len <= WHOLE { (1, len) } else { (PIECES, PIECE) };
        for number in 0..pieces {
            let start = if pieces == 1 { 0 } else { (len - piece) / (pieces - 1) * number };
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(piece).read_to_end(&mut bytes).map_err(failed)?;
            hash.update(&bytes);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The file that answers go to.
#[derive(Debug)]
struct AnswerFile {
    path: PathBuf,
    file: File,
    /// The answer to each question, where there is one.
    lines: Vec<Option<Line>>,
    /// The questions in the order of the lines.
    order: Vec<usize>,
}

impl AnswerFile {
    /// Opens the file, or begins it.
    fn open(path: &Path, made_by: &Map<String, Value>, questions: &[Question], asked: &[String]) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("write", path, &error);
        let mut file = File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::at(path.display(), "another run writes to this file")
                .hint("wait for it, or choose another file"));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let beside = path.with_extension("made_by.json");
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut answers =
            AnswerFile { path: path.to_owned(), file, lines: vec![None; questions.len()], order: Vec::new() };
        if text.is_empty() {
            let text = serde_json::to_string_pretty(made_by).expect("a map of texts and numbers is JSON");
            weights::write_file(&beside, |file| writeln!(file, "{text}"))?;
            return Ok(answers);
        }
        same(path, &beside, made_by)?;
        answers.read(&text[..whole], questions, asked)?;
        if whole < text.len() {
            answers.file.set_len(whole as u64).map_err(failed)?;
        }
        Ok(answers)
    }

    /// Takes in the lines that are there.
    fn read(&mut self, text: &[u8], questions: &[Question], asked: &[String]) -> Result<()> {
        let places: HashMap<&str, usize> =
            questions.iter().zip(0..).map(|(question, i)| (question.id.as_str(), i)).collect();
        let lines = text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
        for (number, line) in lines {
            let wrong = |what: String| Error::at(format!("{} line {}", self.path.display(), number + 1), what);
            let other = "delete the file to answer all prompts anew, or choose another one";
            let line: Line = serde_json::from_slice(line)
                .map_err(|error| wrong(format!("not an answer of `mdpo generate`: {error}")).hint(other))?;
            let Some(&index) = places.get(line.id.as_str()) else {
                return Err(wrong(format!("answers `{}`, which is not among the prompts", line.id)).hint(other));
            };
            if line.asked != asked[index] {
                return Err(
                    wrong(format!("answers another prompt or other images than `{}` has now", line.id)).hint(other)
                );
            }
            if self.lines[index].replace(line).is_some() {
                return Err(wrong(format!("answers `{}` again", questions[index].id)).hint(other));
            }
            self.order.push(index);
        }
        Ok(())
    }

    /// Writes an answer, at once.
    fn add(&mut self, index: usize, line: Line) -> Result<()> {
        let text = serde_json::to_string(&line).expect("texts and numbers are JSON") + "\n";
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|error| {
            Error::io("write", &self.path, &error).hint("run again to continue; what is answered is kept")
        })?;
        self.lines[index] = Some(line);
        self.order.push(index);
        Ok(())
    }

    /// Puts the lines into the order of the questions.
    fn finish(self) -> Result<()> {
        if self.order.is_sorted() {
            return self.file.sync_all().map_err(|error| Error::io("write", &self.path, &error));
        }
        weights::write_file(&self.path, |file| {
            self.lines.iter().flatten().try_for_each(|line| {
                writeln!(file, "{}", serde_json::to_string(line).expect("texts and numbers are JSON"))
            })
        })
    }
}

/// Refuses a file that was made otherwise than this run would.
fn same(path: &Path, beside: &Path, made_by: &Map<String, Value>) -> Result<()> {
    let hint = "choose another file, or delete this one to answer all prompts anew";
    let text = std::fs::read_to_string(beside).map_err(|_| {
        let what = format!("the file is there already, and no {} says what made it", beside.display());
        Error::at(path.display(), what).hint(hint)
    })?;
    let found: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| Error::at(beside.display(), format!("not an object of JSON: {error}")).hint(hint))?;
    let keys = made_by.keys().chain(found.keys());
    match keys.into_iter().find(|key| made_by.get(*key) != found.get(*key)) {
        None => Ok(()),
        Some(key) => {
            let value =
                |map: &Map<String, Value>| map.get(key).map_or("nothing".to_owned(), |value| format!("`{value}`"));
            let what = match key.as_str() {
                "model" | "adapter" => format!("its answers are of another {key}"),
                _ => format!("its answers were made with `{key}` {}, this run has {}", value(&found), value(made_by)),
            };
            Err(Error::at(path.display(), what).hint(hint))
        }
    }
}
