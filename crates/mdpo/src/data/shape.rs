//! Which shape a row has, and what holds for the rows of every shape.

use super::row::{Row, Value};
use super::{Example, Message, Need, Part, Prompt, Response, images, mdpo, trl};
use crate::{Error, Result};

/// The columns that some shape uses; others are ignored.
pub(super) const COLUMNS: [&str; 22] = [
    "images",
    "image",
    "img_path",
    "rejected_images",
    "rejected_image",
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "messages",
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
     or `img_path`, `prompt`, `chosen`, `rejected` (mDPO); for `sft` also `prompt`, `completion` or `messages`; see docs/data.md";

/// The mark of an image in text that is already templated.
pub(super) const MARK: &str = "<image>";

/// The example that a row holds.
pub(super) fn example(mut row: Row, need: Need) -> Result<Example> {
    let known = ["prompt", "chosen", "rejected", "completion", "messages"];
    if !known.iter().any(|key| row.fields.has(key)) {
        return Err(missing(&row, "a row of no known shape"));
    }
    if let Some(key) = UNSUPPORTED.iter().find(|key| row.fields.has_content(key)) {
        return Err(row.wrong(format!("`{key}` is not supported")).hint("leave the column out, or the row"));
    }
    let rejected_images = match need {
        Need::Chosen => Vec::new(),
        Need::Pair | Need::PairWithRejectedImages => images::column(&mut row, &["rejected_images", "rejected_image"])?,
    };
    let mut example =
        if row.fields.has("img_path") { mdpo::example(&mut row, need)? } else { trl::example(&mut row, need)? };
    example.rejected_images = rejected_images;
    check(&row, &example, need)?;
    Ok(example)
}

/// A row that lacks something; names the keys it has.
pub(super) fn missing(row: &Row, what: &str) -> Error {
    row.wrong(format!("{what}; keys found: {}", row.fields.keys())).hint(SHAPES)
}

/// What `key` holds.
///
/// # Errors
/// The row has no such key, or a null.
pub(super) fn required(row: &mut Row, key: &str) -> Result<Value> {
    row.fields.take(key).ok_or_else(|| missing(row, &format!("no `{key}`")))
}

fn check(row: &Row, example: &Example, need: Need) -> Result<()> {
    check_prompt(row, example)?;
    check_response(row, example, "chosen", &example.chosen)?;
    if let Some(rejected) = &example.rejected {
        check_response(row, example, "rejected", rejected)?;
        if *rejected == example.chosen {
            return Err(row.wrong("`chosen` and `rejected` are equal"));
        }
    }
    let (images, rejected) = (example.images.len(), example.rejected_images.len());
    if rejected > 0 && rejected != images {
        let what =
            format!("`rejected_images` has {}, `images` has {}", count(rejected, "image"), count(images, "image"));
        return Err(row.wrong(what).hint("give one rejected image for each image"));
    }
    if need == Need::PairWithRejectedImages && rejected == 0 && images > 0 {
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
        Prompt::Messages(messages) => {
            let marked = messages.iter().any(|message| text(message).contains(MARK));
            if images > 0 && marked {
                return Err(row.wrong("`prompt` writes `<image>` inside a message, which would be one image too many").hint(
                    "write the place of an image as the part {\"type\": \"image\"}, or leave the mark out: images go before the first user text",
                ));
            }
            Ok(())
        }
    }
}

fn check_response(row: &Row, example: &Example, key: &str, response: &Response) -> Result<()> {
    let texts: Vec<String> = match response {
        Response::Text(text) => vec![text.clone()],
        Response::Messages(messages) => {
            messages.iter().filter(|message| message.role == "assistant").map(text).collect()
        }
    };
    if texts.iter().any(|text| text.trim().is_empty()) || texts.is_empty() {
        return Err(row.wrong(format!("`{key}` is empty")));
    }
    let marks_count = matches!(example.prompt, Prompt::Text(_)) || !example.images.is_empty();
    if marks_count && texts.iter().any(|text| text.contains(MARK)) {
        return Err(row.wrong(format!("`{key}` holds the mark `<image>`, responses have no images")));
    }
    Ok(())
}

/// What a message says, images left out.
fn text(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Image => None,
    });
    texts.collect()
}

/// `1 image`, `2 images`.
pub(super) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
