//! From an example to token ids: chat template, tokenizer, labels and image slots.
//!
//! Where the response starts follows TRL 1.16 (`apply_chat_template` and the common prefix in `DPOTrainer`), with these differences:
//! a response ends with an EOS even where neither template nor row writes one; when a token straddles the seam the prompt is kept whole
//! and the response tokenized alone (TRL cuts the prompt); plain text is tokenized in two pieces, as the released mDPO does, unless
//! white space at the seam says that both belong together.

use std::ops::Range;
use std::path::Path;

use super::template::{ChatEnd, ChatTemplate};
use super::tokenizer::{Span, Tokenizer, eos_ids};
use super::{Encoded, ImageSlot, Tokens};
use crate::config::Overlong;
use crate::data::{Example, Message, Part, Prompt, Response, RowId};
use crate::{Error, Result};

/// What marks an image in a row's text, whatever the checkpoint calls its image token.
const IMAGE_MARK: &str = "<image>";

/// How a model takes images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageToken {
    /// Id of the image token (`image_token_index` or `image_token_id` of `config.json`).
    pub id: u32,
    /// How many tokens stand for one image, which is how many features the tower gives.
    pub features: usize,
}

/// Turns examples into token ids.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    image: Option<(ImageToken, String)>,
    eos: Vec<u32>,
    vocab_size: usize,
    place: String,
}

/// An encoded row, and what was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// The token ids.
    pub encoded: Encoded,
    /// Whether a response was cut to `max_length`.
    pub shortened: bool,
    /// Whether prompt and response do not join as the template joins them, because a token straddles the seam or the template writes
    /// the prompt differently when an answer follows.
    pub seam: bool,
}

/// Token ids, each with the turn in whose log-prob it counts, if it does; an image is still one token.
type Run = Vec<(u32, Option<usize>)>;

/// The text of a row before it is tokenized.
struct Texts<'a> {
    prompt: String,
    responses: Vec<ResponseText<'a>>,
}

struct ResponseText<'a> {
    /// Prompt and response.
    full: String,
    /// The bytes of `full` in which the assistant speaks, turn by turn; everything after the prompt when absent.
    turns: Option<Vec<Range<usize>>>,
    /// What the row calls it.
    name: &'a str,
}

impl Encoder {
    /// Reads tokenizer, chat template and EOS ids of a checkpoint folder.
    ///
    /// `image` is absent for a text model. `vocab_size` is how many embeddings the model has.
    pub fn load(folder: &Path, image: Option<ImageToken>, vocab_size: usize) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let place = folder.display().to_string();
        let image = match image {
            None => None,
            Some(image) => match tokenizer.token(image.id) {
                Some(text) => Some((image, text)),
                None => {
                    let what = format!(
                        "the tokenizer has no token {}, which `config.json` names as the image token",
                        image.id
                    );
                    return Err(Error::at(place, what)
                        .hint("the folder mixes files of different checkpoints, or lacks `<image>`"));
                }
            },
        };
        let text = image.as_ref().map(|(_, text)| text.as_str());
        let template = ChatTemplate::load(folder, tokenizer.special_tokens(), text)?;
        // The tokenizer's own EOS comes first: it is the one that is appended.
        let mut eos: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        for id in eos_ids(folder)? {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        if eos.is_empty() {
            return Err(Error::at(place, "neither tokenizer nor `generation_config.json` names an EOS token")
                .hint("set `eos_token` in `tokenizer_config.json`"));
        }
        Ok(Encoder { tokenizer, template, image, eos, vocab_size, place })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The ids that end an answer; the first is the one that is appended.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Encodes a row.
    ///
    /// `max_length` is in tokens, image tokens included. Errors name the row: an empty prompt or response, equal responses, more or
    /// fewer image marks than images, a row that is too long, messages that the template refuses.
    pub fn encode(&self, example: &Example, max_length: Option<usize>, overlong: Overlong) -> Result<EncodedRow> {
        let row = &example.row;
        let responses = responses(example);
        if self.image.is_none() && !example.images.is_empty() {
            let what = format!("the row has {} image(s), but the model takes none", example.images.len());
            return Err(Error::at(row, what).hint("choose a vision checkpoint, or rows without images"));
        }
        if example.images.is_empty() && prompt_is_blank(&example.prompt) {
            return Err(Error::at(row, "`prompt` is empty"));
        }
        for (name, response) in &responses {
            if response_is_blank(response) {
                return Err(Error::at(row, format!("`{name}` is empty")));
            }
        }

        let mut seam = false;
        let (prompt, answers) = match &example.prompt {
            Prompt::Messages(prompt) => {
                let texts = self.chat_texts(row, prompt, &responses, example.images.len(), &mut seam)?;
                self.chat_ids(row, &texts, &mut seam)?
            }
            Prompt::Text(prompt) => self.plain_ids(row, prompt, &responses, &mut seam)?,
        };
        let prompt = self.expand(prompt, 0);
        let marks = prompt.images.len();
        let mut found = marks;
        let expand = |answer: Run| {
            let answer = self.expand(self.close(answer), found);
            found += answer.images.len();
            answer
        };
        let mut answers: Vec<Tokens> = answers.into_iter().map(expand).collect();
        if found != example.images.len() {
            let whole = if found > marks { "prompt and answers" } else { "`prompt`" };
            return Err(image_count(row, whole, found, example.images.len()));
        }
        for id in prompt.ids.iter().chain(answers.iter().flat_map(|answer| &answer.ids)) {
            if *id as usize >= self.vocab_size {
                let token = self.tokenizer.token(*id).unwrap_or_default();
                let what = format!("token {id} (`{token}`) is beyond the model's {} embeddings", self.vocab_size);
                return Err(Error::at(row, what).hint("the tokenizer belongs to another checkpoint"));
            }
        }
        if let Some((chosen, rejected)) = equal_sides(example, &answers) {
            return Err(Error::at(row, format!("`{chosen}` and `{rejected}` are the same text")));
        }
        let shortened = match max_length {
            Some(limit) => shorten(row, &prompt, &mut answers, limit, overlong)?,
            None => false,
        };
        if let Some((chosen, rejected)) = equal_sides(example, &answers) {
            let what = format!("cut to `max_length`, `{chosen}` and `{rejected}` are the same");
            return Err(Error::at(row, what).hint("raise `max_length`"));
        }
        Ok(EncodedRow { encoded: Encoded { prompt, answers }, shortened, seam })
    }

    /// Encodes a prompt for generation, the generation prompt included; `images` is how many images come with it.
    pub fn prompt_only(&self, prompt: &Prompt, images: usize) -> Result<Tokens> {
        let place = "prompt";
        if self.image.is_none() && images > 0 {
            return Err(Error::at(place, "the model takes no images")
                .hint("choose a vision checkpoint, or leave the images out"));
        }
        let text = match prompt {
            Prompt::Messages(messages) => {
                let messages = self.placed(messages, &[], images);
                self.template()?.render(&messages, ChatEnd::GenerationPrompt)?
            }
            Prompt::Text(text) => self.with_image_token(text),
        };
        let tokens = self.expand(uncounted(self.prompt_ids(&text)?), 0);
        if tokens.ids.is_empty() {
            return Err(Error::at(place, "the prompt is empty"));
        }
        match tokens.images.len() == images {
            true => Ok(tokens),
            false => Err(image_count(place, "the text", tokens.images.len(), images)),
        }
    }

    /// The text of a row's prompt and of its responses as the tokenizer gets them, for people to read; an image is its token, once.
    ///
    /// # Errors
    /// As [`Encoder::encode`], as far as the template goes.
    pub fn texts(&self, example: &Example) -> Result<(String, Vec<String>)> {
        let row = &example.row;
        let responses = responses(example);
        match &example.prompt {
            Prompt::Messages(prompt) => {
                let texts = self.chat_texts(row, prompt, &responses, example.images.len(), &mut false)?;
                let after = |response: &ResponseText<'_>| response.full[texts.prompt.len()..].to_owned();
                Ok((texts.prompt.clone(), texts.responses.iter().map(after).collect()))
            }
            Prompt::Text(prompt) => {
                let text = |response: &Response| match response {
                    Response::Text(text) => Some(self.with_image_token(text)),
                    Response::Messages(_) => None,
                };
                let texts = responses.iter().filter_map(|(_, response)| text(response)).collect();
                Ok((self.with_image_token(prompt), texts))
            }
        }
    }

    /// Whether the checkpoint has a chat template, without which a prompt is text.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::at(&self.place, "the checkpoint has no chat template, which rows with messages need")
                .hint("put one into `chat_template.jinja`, or write prompts as text that is already templated")
        })
    }

    /// The text with the checkpoint's own image token for each mark.
    fn with_image_token(&self, text: &str) -> String {
        match &self.image {
            Some((_, token)) if token != IMAGE_MARK => text.replace(IMAGE_MARK, token),
            _ => text.to_owned(),
        }
    }

    /// The messages with image parts for images that nothing marks, before the first text of the user (TRL's
    /// `prepare_multimodal_messages`).
    fn placed(&self, messages: &[Message], responses: &[Vec<Message>], images: usize) -> Vec<Message> {
        let mut placed: Vec<Message> = messages.iter().map(|message| self.with_image_tokens(message)).collect();
        let marked = |message: &Message| {
            message.content.iter().any(|part| match part {
                Part::Image => true,
                Part::Text(text) => {
                    text.contains(IMAGE_MARK)
                        || self.image.as_ref().is_some_and(|(_, token)| text.contains(token.as_str()))
                }
            })
        };
        if images > 0
            && !messages.iter().chain(responses.iter().flatten()).any(marked)
            && let Some(first) = placed.iter_mut().find(|message| message.role == "user")
        {
            first.content.splice(0..0, std::iter::repeat_n(Part::Image, images));
        }
        placed
    }

    fn with_image_tokens(&self, message: &Message) -> Message {
        let part = |part: &Part| match part {
            Part::Text(text) => Part::Text(self.with_image_token(text)),
            Part::Image => Part::Image,
        };
        Message { role: message.role.clone(), content: message.content.iter().map(part).collect() }
    }

    /// Renders prompt and responses, and finds the prompt that all of them share.
    fn chat_texts<'a>(
        &self,
        row: &RowId,
        prompt: &[Message],
        responses: &[(&'a str, &Response)],
        images: usize,
        seam: &mut bool,
    ) -> Result<Texts<'a>> {
        let template = self.template()?;
        let in_row = |error: Error| Error::at(row, error);
        let turns: Vec<Vec<Message>> = responses
            .iter()
            .map(|(_, response)| match response {
                Response::Messages(messages) => {
                    messages.iter().map(|message| self.with_image_tokens(message)).collect()
                }
                Response::Text(text) => {
                    vec![Message {
                        role: "assistant".to_owned(),
                        content: vec![Part::Text(self.with_image_token(text))],
                    }]
                }
            })
            .collect();
        let prompt = self.placed(prompt, &turns, images);
        let header = template.render(&prompt, ChatEnd::GenerationPrompt).map_err(in_row)?;
        let mut shared = header.as_str();
        let mut texts = Vec::with_capacity(turns.len());
        for ((name, _), turns) in responses.iter().zip(&turns) {
            let full = template.render(&[prompt.as_slice(), turns].concat(), ChatEnd::LastMessage).map_err(in_row)?;
            shared = &shared[..common_prefix(shared, &full)];
            let turns = match turns.iter().all(|message| message.role == "assistant") {
                true => None,
                false => Some(self.assistant_spans(row, &prompt, turns, &full)?),
            };
            texts.push(ResponseText { full, turns, name });
        }
        *seam |= shared.len() < header.len();
        Ok(Texts { prompt: shared.to_owned(), responses: texts })
    }

    /// Where in `full` the assistant speaks: after each generation prompt, to the end of that turn.
    fn assistant_spans(
        &self,
        row: &RowId,
        prompt: &[Message],
        turns: &[Message],
        full: &str,
    ) -> Result<Vec<Range<usize>>> {
        let template = self.template()?;
        let in_row = |error: Error| Error::at(row, error);
        let mut spans = Vec::new();
        for (i, turn) in turns.iter().enumerate().filter(|(_, turn)| turn.role == "assistant") {
            let before = [prompt, &turns[..i]].concat();
            let header = template.render(&before, ChatEnd::GenerationPrompt).map_err(in_row)?;
            let after = [before, vec![turn.clone()]].concat();
            let end = template.render(&after, ChatEnd::LastMessage).map_err(in_row)?;
            if !full.starts_with(&end) {
                let what = format!(
                    "the chat template writes turn {} of the response differently when more turns follow",
                    i + 1
                );
                return Err(
                    Error::at(row, what).hint("its labels cannot be told apart; give one response message a row")
                );
            }
            spans.push(common_prefix(&header, full)..end.len());
        }
        match spans.is_empty() {
            true => Err(Error::at(row, "the response has no message of the assistant")),
            false => Ok(spans),
        }
    }

    /// Prompt and responses of a chat as ids, each id with the turn in which it counts.
    fn chat_ids(&self, row: &RowId, texts: &Texts<'_>, seam: &mut bool) -> Result<(Run, Vec<Run>)> {
        let prompt = self.prompt_ids(&texts.prompt)?;
        if prompt.is_empty() {
            return Err(Error::at(row, "the chat template writes nothing before the response"));
        }
        let mut answers = Vec::new();
        for response in &texts.responses {
            let (ids, spans) = self.after_prompt(&prompt, &texts.prompt, &response.full, seam)?;
            let turn = spans.iter().map(|&(start, end)| match &response.turns {
                None => Some(0),
                Some(turns) => turns.iter().position(|turn| start < turn.end && end.max(start + 1) > turn.start),
            });
            let answer: Run = ids.into_iter().zip(turn).collect();
            if !answer.iter().any(|(_, turn)| turn.is_some()) {
                return Err(Error::at(row, format!("the chat template leaves nothing of `{}`", response.name)));
            }
            answers.push(answer);
        }
        Ok((uncounted(prompt), answers))
    }

    /// Ids of a templated prompt: with BOS, unless the text starts with one.
    fn prompt_ids(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = match self.tokenizer.bos() {
            Some(bos) if text.starts_with(bos) => Vec::new(),
            _ => self.tokenizer.prefix().to_vec(),
        };
        ids.extend(self.tokenizer.encode_with_spans(text)?.0);
        Ok(ids)
    }

    /// The ids of `full` after the prompt's, with the bytes of `full` they stand for.
    ///
    /// `full` is tokenized whole; where the prompt's ids are no prefix of it, the response is tokenized alone.
    fn after_prompt(
        &self,
        prompt: &[u32],
        prompt_text: &str,
        full: &str,
        seam: &mut bool,
    ) -> Result<(Vec<u32>, Vec<Span>)> {
        let (mut ids, mut spans) = self.tokenizer.encode_with_spans(full)?;
        // The prompt may carry a BOS that the tokenizer sets, the whole text then does too.
        let bare = prompt.len() - self.bos_len(prompt_text);
        if ids.len() > bare && ids[..bare] == prompt[prompt.len() - bare..] {
            return Ok((ids.split_off(bare), spans.split_off(bare)));
        }
        *seam = true;
        // After a line break no tokenizer sets a space that the text does not have (transformers' `_encode_chat_piece`).
        let text = &full[prompt_text.len()..];
        let newline = self.tokenizer.encode_with_spans("\n")?.0;
        (ids, spans) = self.tokenizer.encode_with_spans(&format!("\n{text}"))?;
        let lead = match ids.starts_with(&newline) {
            true => {
                (ids, spans) = (ids.split_off(newline.len()), spans.split_off(newline.len()));
                1
            }
            false => {
                (ids, spans) = self.tokenizer.encode_with_spans(text)?;
                0
            }
        };
        let moved = |at: usize| at.saturating_sub(lead) + prompt_text.len();
        Ok((ids, spans.into_iter().map(|(start, end)| (moved(start), moved(end))).collect()))
    }

    fn bos_len(&self, text: &str) -> usize {
        match self.tokenizer.bos() {
            Some(bos) if text.starts_with(bos) => 0,
            _ => self.tokenizer.prefix().len(),
        }
    }

    /// Prompt and responses of a row whose prompt is already templated.
    fn plain_ids(
        &self,
        row: &RowId,
        prompt: &str,
        responses: &[(&str, &Response)],
        seam: &mut bool,
    ) -> Result<(Run, Vec<Run>)> {
        let prompt = self.with_image_token(prompt);
        let ids = self.prompt_ids(&prompt)?;
        if ids.is_empty() {
            return Err(Error::at(row, "the tokenizer makes nothing of `prompt`"));
        }
        let mut answers = Vec::new();
        for (name, response) in responses {
            let Response::Text(text) = response else {
                let what = format!("`prompt` is text, but `{name}` is a list of messages");
                return Err(Error::at(row, what).hint("write both as text or both as messages"));
            };
            let text = self.with_image_token(text);
            let joined = prompt.ends_with(char::is_whitespace) || text.starts_with(char::is_whitespace);
            let answer = match joined {
                true => self.after_prompt(&ids, &prompt, &format!("{prompt}{text}"), seam)?.0,
                false => self.tokenizer.encode_with_spans(&text)?.0,
            };
            answers.push(answer.into_iter().map(|id| (id, Some(0))).collect());
        }
        Ok((uncounted(ids), answers))
    }

    /// Appends an EOS to the last turn where no counted id is one.
    fn close(&self, mut tokens: Run) -> Run {
        if !tokens.iter().any(|(id, turn)| turn.is_some() && self.eos.contains(id)) {
            let last = tokens.iter().filter_map(|(_, turn)| *turn).max();
            tokens.push((self.eos[0], Some(last.unwrap_or(0))));
        }
        tokens
    }

    /// Makes a run of image tokens of each image token; the first image is number `first`.
    fn expand(&self, tokens: Run, first: usize) -> Tokens {
        let mut out = Tokens::default();
        for (id, turn) in tokens {
            match &self.image {
                Some((image, _)) if image.id == id => {
                    let slot = ImageSlot { start: out.ids.len(), len: image.features, image: first + out.images.len() };
                    out.images.push(slot);
                    out.ids.extend(std::iter::repeat_n(id, image.features));
                    out.counted.extend(std::iter::repeat_n(false, image.features));
                }
                _ => {
                    out.ids.push(id);
                    out.counted.push(turn.is_some());
                    if let Some(turn) = turn {
                        // A turn of which the tokenizer leaves nothing is empty, so that turns keep their numbers.
                        let at = out.ids.len() - 1;
                        out.turns.resize(out.turns.len().max(turn + 1), at..at);
                        out.turns[turn].end = at + 1;
                    }
                }
            }
        }
        out
    }
}

fn uncounted(ids: Vec<u32>) -> Run {
    ids.into_iter().map(|id| (id, None)).collect()
}

/// The answers of a row with their names.
fn responses(example: &Example) -> Vec<(&str, &Response)> {
    example.answers.iter().map(|answer| (answer.name.as_ref(), &answer.response)).collect()
}

/// The names of the first pair whose sides have the same tokens.
fn equal_sides<'a>(example: &'a Example, answers: &[Tokens]) -> Option<(&'a str, &'a str)> {
    let sides = example.pairs.iter().filter_map(|pair| pair.chosen.zip(pair.rejected));
    let name = |i: usize| example.answers[i].name.as_ref();
    sides.filter(|&(chosen, rejected)| answers[chosen] == answers[rejected]).map(|(c, r)| (name(c), name(r))).next()
}

fn image_count(place: impl std::fmt::Display, whole: &str, marks: usize, images: usize) -> Error {
    let what = format!("{marks} image mark(s) in {whole}, but {images} image(s)");
    Error::at(place, what).hint(format!("write one `{IMAGE_MARK}`, or one image part, for each image"))
}

/// Length in bytes of the longest common start of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

fn blank(parts: &[Part]) -> bool {
    parts.iter().all(|part| matches!(part, Part::Text(text) if text.trim().is_empty()) || *part == Part::Image)
}

fn prompt_is_blank(prompt: &Prompt) -> bool {
    match prompt {
        Prompt::Messages(messages) => messages.iter().all(|message| blank(&message.content)),
        Prompt::Text(text) => text.trim().is_empty(),
    }
}

fn response_is_blank(response: &Response) -> bool {
    match response {
        Response::Messages(messages) => {
            messages.iter().filter(|message| message.role == "assistant").all(|message| blank(&message.content))
        }
        Response::Text(text) => text.trim().is_empty(),
    }
}

/// Cuts responses to `limit` tokens in all, never within an image or where turns are kept within a turn, and says whether it cut anything.
fn shorten(row: &RowId, prompt: &Tokens, answers: &mut [Tokens], limit: usize, overlong: Overlong) -> Result<bool> {
    let longest = prompt.ids.len() + answers.iter().map(|answer| answer.ids.len()).max().unwrap_or(0);
    if longest <= limit {
        return Ok(false);
    }
    if overlong == Overlong::Refuse {
        let what = format!("the row is {longest} tokens long, `max_length` is {limit}");
        let hint = "raise `max_length`, or set `truncation_mode: keep_start` to cut responses or `keep_turns` to leave out whole last turns; \
                    where the recipe sets none, the limit is the model's own";
        return Err(Error::at(row, what).hint(hint));
    }
    let room = limit.saturating_sub(prompt.ids.len());
    for answer in answers.iter_mut().filter(|answer| answer.ids.len() > room) {
        let cut = match overlong {
            Overlong::KeepTurns => {
                answer.turns.iter().map(|turn| turn.end).filter(|&end| end <= room).max().unwrap_or(0)
            }
            Overlong::Refuse | Overlong::ShortenResponse => {
                let split = answer.images.iter().find(|slot| slot.start + slot.len > room);
                split.map_or(room, |slot| slot.start.min(room))
            }
        };
        answer.images.retain(|slot| slot.start + slot.len <= cut);
        answer.ids.truncate(cut);
        answer.counted.truncate(cut);
        answer.turns.retain(|turn| turn.start < cut);
        answer.turns.iter_mut().for_each(|turn| turn.end = turn.end.min(cut));
        if !answer.counted.contains(&true) {
            let what = format!(
                "`max_length` {limit} leaves nothing of a response after a prompt of {} tokens",
                prompt.ids.len()
            );
            return Err(Error::at(row, what).hint("raise `max_length`"));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
