//! What a row is made of, and what holds for the rows of every shape.

use super::answers::{self, Answers, Column};
use super::chat::{NamedSaid, Said, said};
use super::readability::flesch_kincaid;
use super::row::{Row, Value};
use super::{Answer, Example, LeftOut, Message, Need, Pair, Part, Prompt, Reading, Response, Sides, images, trl};
use crate::address::Address;
use crate::config::TrainImages;
use crate::{Error, Result};

/// The columns that some shape uses; others are ignored, but for the rewards that the recipe names ([`Need::columns`]).
pub(super) const COLUMNS: [&str; 34] = [
    "images",
    "image",
    "img_path",
    "rejected_images",
    "rejected_image",
    "prompt",
    "conversations",
    "chosen",
    "rejected",
    "completion",
    "messages",
    "label",
    "responses",
    "scores",
    "completions",
    "score_chosen",
    "score_rejected",
    "chosen_score",
    "rejected_score",
    "aux",
    "aux_chosen",
    "aux_rejected",
    "logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "reference_chosen_logp",
    "reference_rejected_logp",
    "tools",
    "chat_template_kwargs",
    "video",
    "videos",
    "audio",
    "audios",
    "tool_calls",
];

/// Columns that would change what the model sees: a row that fills one is refused rather than misread.
const UNSUPPORTED: [&str; 7] = ["tools", "chat_template_kwargs", "video", "videos", "audio", "audios", "tool_calls"];

/// The shapes, for hints.
pub(super) const SHAPES: &str = "accepted rows have `images` or `image`, `prompt`, `chosen`, `rejected` (TRL; `chosen` and `rejected` may be whole dialogs without `prompt`), \
     `img_path`, `prompt`, `chosen`, `rejected` (mDPO), `conversations`, `chosen`, `rejected` (ShareGPT), or `prompt`, `responses`, `scores`; for `kto` also `prompt`, \
     `completion`, `label`; for `sft` also `prompt`, `completion` or `messages`; see docs/data.md";

/// The mark of an image in text that is already templated.
pub(super) const MARK: &str = "<image>";

/// The example that a row holds; none where it gives no pair, which `left_out` counts. `address` is the row's own.
pub(super) fn example(
    mut row: Row,
    reading: &Reading,
    address: Address,
    left_out: &mut LeftOut,
) -> Result<Option<Example>> {
    let known = ["prompt", "conversations", "chosen", "rejected", "completion", "messages", "responses", "completions"];
    if !known.iter().any(|key| row.fields.has(key)) {
        return Err(missing(&row, "a row of no known shape"));
    }
    if let Some(key) = UNSUPPORTED.iter().find(|key| row.fields.has_content(key)) {
        return Err(row.wrong(format!("`{key}` is not supported")).hint("leave the column out, or the row"));
    }
    let need = reading.need;
    let rejected_images = match need.sides {
        Sides::Chosen => Vec::new(),
        Sides::Both | Sides::Either => images::column(&mut row, &["rejected_images", "rejected_image"])?,
    };
    let keys: &[&str] =
        if row.fields.has("img_path") { &["img_path", "images", "image"] } else { &["images", "image"] };
    let images = images::column(&mut row, keys)?;
    let prompt = prompt(&mut row, need)?;
    let Answers { columns, pairs, ties } = answers::read(&mut row, reading, address)?;
    let (about, said) = told(&row, columns)?;
    let unread = match need.sides {
        Sides::Chosen => unread(&mut row),
        Sides::Both | Sides::Either => None,
    };
    let (prompt, images, responses) = trl::read(&row, trl::Columns { prompt, answers: said, unread, images })?;
    let answers = about.into_iter().zip(responses).map(|(about, response)| about.answer(response)).collect();
    let mut example = Example { row: row.id.clone(), prompt, answers, pairs, images, rejected_images, reference: None };
    example.drop_unused();
    check(&row, &example, need)?;
    if reading.settings.train_images == TrainImages::Drop {
        example.drop_images();
    }
    left_out.pairs += ties;
    if example.pairs.is_empty() {
        left_out.rows += 1;
        return Ok(None);
    }
    Ok(Some(example))
}

/// What the row asks, under either name. A dialog for `sft` may be called `conversations` too, and has no prompt apart.
fn prompt(row: &mut Row, need: &Need) -> Result<Option<Said>> {
    if need.sides == Sides::Chosen && answers::is_dialog(row) {
        return Ok(None);
    }
    match row.fields.take_one(&["prompt", "conversations"]) {
        Err(second) => Err(row.wrong(format!("`{second}` beside `prompt`, expected one of the two"))),
        Ok(None) => Ok(None),
        // VLFeedback's prompts are bare questions.
        Ok(Some((key, value @ (Value::Text(_) | Value::Bytes(_))))) if row.fields.has("completions") => {
            Ok(Some(Said::question(row.text(key, value)?)))
        }
        Ok(Some((key, value))) => Ok(Some(said(row, key, value)?)),
    }
}

/// What a row says of an answer, apart from the answer itself.
struct About {
    name: std::borrow::Cow<'static, str>,
    score: Option<f64>,
    rewards: Vec<Option<f64>>,
}

impl About {
    fn answer(self, response: Response) -> Answer {
        let grade = || flesch_kincaid(&spoken(&response).join("\n"));
        let rewards = self.rewards.into_iter().map(|reward| reward.unwrap_or_else(grade)).collect();
        Answer { name: self.name, score: self.score, rewards, response }
    }
}

fn told(row: &Row, columns: Vec<Column>) -> Result<(Vec<About>, Vec<NamedSaid>)> {
    let (mut about, mut answers) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
    for Column { name, value, score, rewards } in columns {
        answers.push((name.to_string(), said(row, &name, value)?));
        about.push(About { name, score, rewards });
    }
    Ok((about, answers))
}

/// The rejected answer of a row that is read for `sft`, for the images that it may hold; whatever else is wrong with it does not matter.
fn unread(row: &mut Row) -> Option<Said> {
    let value = row.fields.take("rejected")?;
    said(row, "rejected", value).ok()
}

impl Example {
    /// Leaves out the answers that are in no pair, unless images within answers must keep their numbers.
    fn drop_unused(&mut self) {
        let has_images = |answer: &Answer| match &answer.response {
            Response::Messages(messages) => messages.iter().any(|message| message.content.contains(&Part::Image)),
            Response::Text(_) => false,
        };
        if self.pairs.is_empty() || self.answers.iter().any(has_images) {
            return;
        }
        let used = |i: usize| self.pairs.iter().any(|pair| pair.chosen == Some(i) || pair.rejected == Some(i));
        let kept: Vec<usize> = (0..self.answers.len()).filter(|&i| used(i)).collect();
        let place = |side: Option<usize>| side.and_then(|old| kept.iter().position(|&i| i == old));
        self.pairs =
            self.pairs.iter().map(|pair| Pair { chosen: place(pair.chosen), rejected: place(pair.rejected) }).collect();
        let mut at = 0;
        self.answers.retain(|_| {
            at += 1;
            kept.contains(&(at - 1))
        });
    }

    /// Leaves out the images and their places (`train_images: drop`); the line break behind a mark goes with it.
    fn drop_images(&mut self) {
        let without = |messages: &mut Vec<Message>| {
            messages.iter_mut().for_each(|message| message.content.retain(|part| *part != Part::Image));
        };
        match &mut self.prompt {
            Prompt::Text(text) if !self.images.is_empty() => {
                *text = text.replace(&format!("{MARK}\n"), "").replace(MARK, "");
            }
            Prompt::Text(_) => {}
            Prompt::Messages(messages) => without(messages),
        }
        for answer in &mut self.answers {
            if let Response::Messages(messages) = &mut answer.response {
                without(messages);
            }
        }
        self.images.clear();
        self.rejected_images.clear();
    }
}

/// A row that lacks what every row of its shape has; names the keys it has.
pub(super) fn missing(row: &Row, what: &str) -> Error {
    lacks(row, what).hint(SHAPES)
}

/// A row that lacks something that is asked for besides its shape; names the keys it has.
pub(super) fn lacks(row: &Row, what: &str) -> Error {
    row.wrong(format!("{what}; keys found: {}", row.fields.keys()))
}

/// What `key` holds.
///
/// # Errors
/// The row has no such key, or a null.
pub(super) fn required(row: &mut Row, key: &str) -> Result<Value> {
    row.fields.take(key).ok_or_else(|| missing(row, &format!("no `{key}`")))
}

fn check(row: &Row, example: &Example, need: &Need) -> Result<()> {
    check_prompt(row, example)?;
    for (i, answer) in example.answers.iter().enumerate() {
        check_response(row, example, &answer.name, &answer.response)?;
        // Samples of one model that were judged may be equal, as long as they were judged alike.
        let contradicts = |other: &&Answer| {
            other.response == answer.response && (answer.score.is_none() || other.score != answer.score)
        };
        if let Some(equal) = example.answers[..i].iter().find(contradicts) {
            return Err(row.wrong(format!("`{}` and `{}` are equal", equal.name, answer.name)));
        }
    }
    let (images, rejected) = (example.images.len(), example.rejected_images.len());
    if rejected > 0 && rejected != images {
        let what =
            format!("`rejected_images` has {}, `images` has {}", count(rejected, "image"), count(images, "image"));
        return Err(row.wrong(what).hint("give one rejected image for each image"));
    }
    if need.rejected_images && rejected == 0 && images > 0 {
        return Err(row
            .wrong("no `rejected_images`")
            .hint("`rejected_image: given` takes them from the rows; the other kinds are made from `images`"));
    }
    Ok(())
}

/// The number of images must be told by the prompt: once text and images are apart nobody can know where a surplus one belongs.
fn check_prompt(row: &Row, example: &Example) -> Result<()> {
    let images = example.images.len();
    match &example.prompt {
        Prompt::Text(text) if text.trim().is_empty() => Err(row.wrong("`prompt` is empty")),
        Prompt::Text(text) => {
            let marks = text.matches(MARK).count();
            let what =
                || format!("`prompt` has {}, the row has {}", count(marks, "`<image>` mark"), count(images, "image"));
            if marks == images { Ok(()) } else { Err(row.wrong(what()).hint("write `<image>` once for each image")) }
        }
        Prompt::Messages(messages) if messages.is_empty() => Err(row.wrong("`prompt` is empty")),
        Prompt::Messages(messages) => check_marks(row, example, "prompt", messages),
    }
}

/// A mark that is left in a message of a row with images would be taken for one more.
fn check_marks(row: &Row, example: &Example, key: &str, messages: &[Message]) -> Result<()> {
    if example.images.is_empty() || !messages.iter().any(|message| text(message).contains(MARK)) {
        return Ok(());
    }
    Err(row.wrong(format!("`{key}` writes `<image>` inside a message, which would be one image too many")).hint(
        "write the place of an image as the part {\"type\": \"image\"}, or leave the mark out: images go before the first user text",
    ))
}

fn check_response(row: &Row, example: &Example, key: &str, response: &Response) -> Result<()> {
    let texts = spoken(response);
    if texts.iter().any(|text| text.trim().is_empty()) || texts.is_empty() {
        return Err(row.wrong(format!("`{key}` is empty")));
    }
    let marks_count = matches!(example.prompt, Prompt::Text(_)) || !example.images.is_empty();
    if marks_count && texts.iter().any(|text| text.contains(MARK)) {
        return Err(row.wrong(format!("`{key}` holds the mark `<image>`, responses have no images")));
    }
    match response {
        Response::Messages(messages) if messages.windows(2).any(|two| two.iter().all(|m| m.role == "assistant")) => {
            Err(row
                .wrong(format!("`{key}` has two messages of the assistant in a row"))
                .hint("join them into one, or put between them what they answer"))
        }
        Response::Messages(messages) => check_marks(row, example, key, messages),
        Response::Text(_) => Ok(()),
    }
}

/// What the assistant says in a response, turn by turn.
fn spoken(response: &Response) -> Vec<String> {
    match response {
        Response::Text(text) => vec![text.clone()],
        Response::Messages(messages) => {
            messages.iter().filter(|message| message.role == "assistant").map(text).collect()
        }
    }
}

/// What a message says, images left out.
fn text(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Image => None,
    });
    texts.collect()
}

/// `1 image`, `2 images`, `3 entries`.
pub(super) fn count(number: usize, thing: &str) -> String {
    match (number, thing.strip_suffix('y')) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {thing}s"),
    }
}
