//! `mdpo inspect`: one example at every stage of its way, from the row to its log-probs.

use super::Done;
use crate::config::{AdapterStart, Lora, Run, Tuning};
use crate::data::{Answer, Example, ImageSource, Message, Pair, Part, Prompt, Response};
use crate::image::{Picture, Pixels};
use crate::logprob::{Gradients, LogProbs, log_probs};
use crate::model::Model;
use crate::model::language::Keep;
use crate::model::load::Plan;
use crate::nn::{Pass, Role};
use crate::text::pack::PackedBatch;
use crate::text::{EncodedRow, Tokens};
use crate::train::{self, Inputs, Micro, Pictures};
use crate::{Error, Result, config, weights};
use clap::Args;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Columns that a line of tokens fills.
const WIDTH: usize = 100;

/// What `mdpo inspect` takes.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The recipe (YAML)
    recipe: PathBuf,
    /// Keys to set over the recipe's, as `key=value`
    overrides: Vec<String>,
    /// Which of the usable rows, in the order of the files; the first is 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    example: usize,
    /// The epoch whose rejected image is drawn; the first is 0
    #[arg(long, value_name = "E", default_value_t = 0)]
    epoch: usize,
    /// Where to write the images [default: `inspect-N` in the recipe's output_dir if that is there, else here]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// How tokens that do not count are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Uncounted {
    /// Dimmed, on a terminal.
    Dim,
    /// A `·` in front.
    Dot,
}

impl Inspect {
    pub fn run(&self) -> Done {
        let run = config::load(&self.recipe, &self.overrides)?;
        let device = train::device(run.model.device)?;
        let inputs = Inputs::open(&run, train::PictureCheck::Header)?;
        let examples = &inputs.examples;
        let Some(example) = examples.get(self.example) else {
            let what = format!("{} is not there: the data has {} usable rows", self.example, examples.len());
            return Err(Error::at("`--example`", what)
                .hint(format!("the first is 0, the last {}", examples.len().saturating_sub(1))));
        };
        let row = inputs.encode(example)?;
        let pictures = inputs.pictures(self.example, self.epoch)?;
        let encoded = std::slice::from_ref(&row.encoded);
        let micro = Micro::new(&inputs, &[self.example], encoded, self.epoch, device)?;

        let place = format!("example {} of {}, epoch {}", self.example, examples.len(), self.epoch);
        super::print(format!("{place}\n{}\n\n{}", example.row, messages(example)))?;
        if !micro.images.is_empty() {
            let folder = self.folder(&run);
            super::print(self.images(&inputs, example, &pictures, &micro.images, &folder)?)?;
        }
        super::print(texts(&inputs, example)?)?;
        super::print(tokens(&inputs, example, &row, uncounted()))?;
        super::print(packed(&micro, example))?;

        let adapter = match &run.tuning {
            Tuning::Lora(Lora { start: AdapterStart::From { path, .. }, .. }) => Some(weights::lora::read(path)?),
            _ => None,
        };
        let started = if adapter.is_some() { " with its adapter" } else { "" };
        let model = Model::load(&run.model.path, train::kind(run.model.dtype), device, Plan::Frozen { adapter })?;
        let found = evaluate(&model, &micro);
        let name = &run.model.name;
        super::print(format!("log-probs under {name}{started}, weights in {}, in nats\n", dtype(run.model.dtype)))?;
        super::print(sums(&micro, example, &found))?;
        super::print(per_token(&inputs, &micro, &found)?)?;
        Ok(ExitCode::SUCCESS)
    }

    fn folder(&self, run: &Run) -> PathBuf {
        let name = format!("inspect-{}", self.example);
        match &self.out {
            Some(folder) => folder.clone(),
            None if run.output.dir.is_dir() => run.output.dir.join(name),
            None => PathBuf::from(name),
        }
    }

    /// Writes the pictures: as decoded, as corrupted, and as the vision tower sees both.
    fn images(
        &self,
        inputs: &Inputs,
        example: &Example,
        pictures: &Pictures,
        sent: &[Pixels],
        folder: &Path,
    ) -> Result<String> {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create the folder", folder, &error))?;
        let mut text = format!("images, written to {}\n", folder.display());
        let mut line = |name: String, picture: &Picture, what: String| -> Result<()> {
            write(&folder.join(&name), picture)?;
            let (width, height) = picture.dimensions();
            let _ = writeln!(text, "  {name:<14} {:<9}  {what}", format!("{width}×{height}"));
            Ok(())
        };
        for (i, (source, picture)) in example.images.iter().zip(&pictures.true_images).enumerate() {
            line(format!("image-{i}.png"), picture, source.describe())?;
        }
        for (i, corrupted) in pictures.rejected.iter().enumerate() {
            let what = match (&corrupted.kept, example.rejected_images.get(i)) {
                (Some(kept), _) => format!(
                    "rejected image {i}: {}×{} pixels from ({}, {}), counted from the upper left, enlarged",
                    kept.width, kept.height, kept.left, kept.top
                ),
                (None, Some(source @ ImageSource::Path(_))) => format!("rejected image {i}: {}", source.describe()),
                (None, _) => format!("rejected image {i}"),
            };
            line(format!("rejected-{i}.png"), &corrupted.picture, what)?;
        }
        let processor =
            inputs.processor.as_ref().expect("rows with images were refused for a model without a processor");
        for (i, pixels) in sent.iter().enumerate() {
            line(
                format!("sent-{i}.png"),
                &processor.restore(pixels),
                format!("batch image {i}, as the tower sees it"),
            )?;
        }
        Ok(text + "\n")
    }
}

fn write(path: &Path, picture: &Picture) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let encoded = picture.write_to(&mut bytes, ::image::ImageFormat::Png);
    encoded.map_err(|error| Error::at(path.display(), format!("cannot encode the picture: {error}")))?;
    std::fs::write(path, bytes.into_inner()).map_err(|error| Error::io("write", path, &error))
}

fn dtype(dtype: config::Dtype) -> &'static str {
    match dtype {
        config::Dtype::F32 => "float32",
        config::Dtype::Bf16 => "bfloat16",
        config::Dtype::F16 => "float16",
    }
}

fn uncounted() -> Uncounted {
    let colourless = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if std::io::stdout().is_terminal() && !colourless { Uncounted::Dim } else { Uncounted::Dot }
}

/// The lines of `text`, each after two spaces and `mark`.
fn block(mark: &str, text: &str) -> String {
    text.split('\n').map(|line| format!("  {mark}{}\n", visible(line))).collect()
}

/// Control characters written out, so that no text moves the cursor.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn content(message: &Message) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Image => "<image>".to_owned(),
    };
    message.content.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// What the row says of an answer, where it says something.
fn told(answer: &Answer) -> String {
    let score = answer.score.map(|score| format!("score {score}"));
    let rewards: Vec<String> = answer.rewards.iter().map(f64::to_string).collect();
    let rewards = (!rewards.is_empty()).then(|| format!("rewards {}", rewards.join(", ")));
    let told: Vec<String> = score.into_iter().chain(rewards).collect();
    if told.is_empty() { String::new() } else { block("", &format!("{}: {}", answer.name, told.join(", "))) }
}

/// The row as it was understood.
fn messages(example: &Example) -> String {
    let all = |name: &str, messages: &[Message]| -> String {
        messages.iter().map(|message| block("", &format!("{name}, {}: {}", message.role, content(message)))).collect()
    };
    let plain = |name: &str, said: &str| block("", &format!("{name}: {said}"));
    let response = |name: &str, response: &Response| match response {
        Response::Messages(messages) => all(name, messages),
        Response::Text(said) => plain(name, said),
    };
    let prompt = match &example.prompt {
        Prompt::Messages(messages) => all("prompt", messages),
        Prompt::Text(said) => plain("prompt", said),
    };
    let answer = |answer: &Answer| response(&answer.name, &answer.response) + &told(answer);
    let answers: String = example.answers.iter().map(answer).collect();
    let name = |side: Option<usize>| side.map_or("nothing", |i| example.answers[i].name.as_ref());
    let pair = |pair: &Pair| format!("{} over {}", name(pair.chosen), name(pair.rejected));
    let pairs = match example.pairs.as_slice() {
        [Pair { chosen: Some(0), rejected: Some(1) | None }] if example.answers.len() < 3 => String::new(),
        pairs => block("", &format!("pairs: {}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))),
    };
    format!("row\n{prompt}{answers}{pairs}\n")
}

/// Prompt and responses as text, after the chat template where the row has messages.
fn texts(inputs: &Inputs, example: &Example) -> Result<String> {
    let (prompt, responses) = inputs.encoder.texts(example)?;
    let mut text = "text, as the tokenizer gets it\n".to_owned();
    let names = example.answers.iter().map(|answer| answer.name.as_ref());
    for (name, said) in std::iter::once(("prompt", &prompt)).chain(names.zip(&responses)) {
        text += &format!("  {name}\n{}", block("  │", said));
    }
    Ok(text + "\n")
}

/// The token ids with the text of each, those that do not count marked.
fn tokens(inputs: &Inputs, example: &Example, row: &EncodedRow, uncounted: Uncounted) -> String {
    let how = match uncounted {
        Uncounted::Dim => "dimmed where they do not count",
        Uncounted::Dot => "· before those that do not count",
    };
    let mut text = format!("tokens as id:text, {how}\n");
    if row.shortened {
        text += "  the response was shortened to `max_length`\n";
    }
    if row.seam {
        text += "  a token straddles the seam of prompt and response: the response was tokenized alone\n";
    }
    let names = example.answers.iter().map(|answer| answer.name.as_ref());
    for (name, run) in std::iter::once(("prompt", &row.encoded.prompt)).chain(names.zip(&row.encoded.answers)) {
        let _ = writeln!(text, "  {name}: {} tokens, {} counted", run.ids.len(), run.labels());
        let mut column = WIDTH;
        for (word, counted) in words(inputs, run) {
            let word = if !counted && uncounted == Uncounted::Dot { format!("·{word}") } else { word };
            let width = word.chars().count() + 2;
            if column + width > WIDTH {
                text += if column == WIDTH { "    " } else { "\n    " };
                column = 4;
            } else {
                text += "  ";
            }
            column += width;
            text += &if !counted && uncounted == Uncounted::Dim { format!("\x1b[2m{word}\x1b[0m") } else { word };
        }
        text += "\n";
    }
    text + "\n"
}

/// Each token as `id:text` with whether it counts; an image is one word.
fn words(inputs: &Inputs, run: &Tokens) -> Vec<(String, bool)> {
    let inside = |i: usize| run.images.iter().any(|slot| slot.start < i && i < slot.start + slot.len);
    let word = |i: usize| {
        let times = run.images.iter().find(|slot| slot.start == i).map(|slot| format!("×{}", slot.len));
        (spelled(inputs, run.ids[i]) + &times.unwrap_or_default(), run.counted[i])
    };
    (0..run.ids.len()).filter(|&i| !inside(i)).map(word).collect()
}

/// A token as `id:text`, as the vocabulary spells it.
fn spelled(inputs: &Inputs, id: u32) -> String {
    format!("{id}:{}", visible(&inputs.encoder.tokenizer().token(id).unwrap_or_default()))
}

/// The responses with their places in the packed batch, in order.
fn views(micro: &Micro, example: &Example) -> Vec<(String, usize)> {
    let mut all = Vec::new();
    for (pair, places) in example.pairs.iter().zip(&micro.pairs) {
        let name = |answer: Option<usize>| answer.map_or("", |answer| example.answers[answer].name.as_ref());
        let (chosen, rejected) = (name(pair.chosen), name(pair.rejected));
        let seen = [
            (chosen.to_owned(), places.chosen),
            (rejected.to_owned(), places.rejected),
            ("another row's answer".to_owned(), places.mismatched),
            (format!("{chosen} under the rejected image"), places.corrupted),
            (format!("{chosen} as the reference sees it"), places.corrupted_of_reference),
        ];
        all.extend(seen.into_iter().filter_map(|(name, place)| Some((name, place?))));
    }
    all.sort_by_key(|(_, place)| *place);
    all.dedup_by_key(|(_, place)| *place);
    all
}

/// Segments, image slots and responses of the packed batch.
fn packed(micro: &Micro, example: &Example) -> String {
    let batch: &PackedBatch = &micro.batch.packed;
    let views = views(micro, example);
    let mut text = format!("packed batch: {} tokens, {} images\n", batch.ids.len(), micro.images.len());
    let _ = writeln!(text, "  {:<32} {:>6} {:>6}  {:<10} positions", "segment", "start", "len", "after");
    for segment in &batch.segments {
        let rows = segment.start..segment.start + segment.len;
        let ends = |place: usize| batch.responses[place].from.last().is_some_and(|&row| rows.contains(&(row as usize)));
        let response = views.iter().find(|(_, place)| ends(*place)).map(|(name, _)| name.as_str());
        let name = match segment.prefix {
            None if segment.start == 0 => "prompt",
            None => "prompt under the rejected image",
            Some(_) => response.unwrap_or("response"),
        };
        let after = segment.prefix.map_or("nothing".to_owned(), |(start, len)| range(start, start + len));
        let positions = &batch.positions[segment.start..segment.start + segment.len];
        let (first, last) = (positions[0] as usize, positions[positions.len() - 1] as usize);
        let (start, len) = (segment.start, segment.len);
        let _ = writeln!(text, "  {name:<32} {start:>6} {len:>6}  {after:<10} {}", range(first, last + 1));
    }
    if !batch.images.is_empty() {
        let _ = writeln!(text, "  {:<32} {:>6} {:>6}", "image slot", "start", "len");
    }
    for slot in &batch.images {
        let _ = writeln!(text, "  {:<32} {:>6} {:>6}", format!("batch image {}", slot.image), slot.start, slot.len);
    }
    let _ = writeln!(text, "  {:<32} {:>6}  predicted from", "response", "labels");
    for (name, place) in &views {
        let response = &batch.responses[*place];
        let _ = writeln!(text, "  {name:<32} {:>6}  {}", response.labels.len(), ranges(&response.from));
    }
    text + "\n"
}

/// The whole numbers from `start` to before `end`.
fn range(start: usize, end: usize) -> String {
    if end == start + 1 { start.to_string() } else { format!("{start}–{}", end - 1) }
}

/// Rising indices, runs joined.
fn ranges(indices: &[i64]) -> String {
    let runs = indices.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| range(run[0] as usize, run[0] as usize + run.len())).collect::<Vec<_>>().join(", ")
}

fn evaluate(model: &Model, micro: &Micro) -> LogProbs {
    let pass = Pass::of(Role::Policy);
    let features = tch::no_grad(|| model.features(&micro.images.iter().collect::<Vec<_>>(), pass));
    let run = model.forward(&micro.batch, features.as_ref(), pass, Keep::Nothing);
    let head = tch::no_grad(|| model.language.head(pass));
    log_probs(run.hidden(), &head, &micro.batch.packed, Gradients::Unwanted)
}

fn sums(micro: &Micro, example: &Example, found: &LogProbs) -> String {
    let sums = found.sums();
    let mut text = format!("  {:<32} {:>12} {:>6} {:>10}\n", "response", "sum", "labels", "per label");
    for (name, place) in views(micro, example) {
        let (sum, labels) = (micro.sum(&sums, place), micro.labels(place));
        let _ = writeln!(text, "  {name:<32} {sum:>12.4} {labels:>6} {:>10.4}", sum / labels as f64);
    }
    text + "\n"
}

/// Log-probs of the chosen answer's labels, beside those under the rejected image where there is one.
fn per_token(inputs: &Inputs, micro: &Micro, found: &LogProbs) -> Result<String> {
    let values = Vec::<f32>::try_from(found.per_token.to_device(tch::Device::Cpu))?;
    let of = |place: usize| {
        let start: usize = found.lengths[..place].iter().sum();
        &values[start..start + found.lengths[place]]
    };
    let places = micro.pairs[0];
    let Some(chosen) = places.chosen else { return Ok(String::new()) };
    let corrupted = places.corrupted.map(of);
    let head = if corrupted.is_some() { "  rejected image" } else { "" };
    let mut text = format!("chosen, token by token\n      log-prob{head}  id:text\n");
    let labels = &micro.batch.packed.responses[chosen].labels;
    for (i, (&label, value)) in labels.iter().zip(of(chosen)).enumerate() {
        let other = corrupted.map_or(String::new(), |values| format!("{:>16.4}", values[i]));
        let _ = writeln!(text, "  {value:>12.4}{other}  {}", spelled(inputs, label as u32));
    }
    Ok(text)
}
