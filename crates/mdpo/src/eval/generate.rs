//! A model's answer to one prompt, token by token: a batch of one, whose tokens are handed over as they come.

use super::batch::{Ask, Batch, Settings};
use super::decoding::{Decoding, Sampling};
use crate::image::Pixels;
use crate::model::{Model, Shape};
use crate::text::Tokens;
use crate::{Error, Result};
use std::sync::Arc;

/// What to answer and how.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The prompt, generation prompt included.
    pub prompt: &'a Tokens,
    /// Its processed images, in the order of the prompt's slots.
    pub images: &'a [Pixels],
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens to give, at least one.
    pub max_new_tokens: usize,
    /// The ids that end an answer ([`crate::text::Encoder::eos_ids`]).
    pub stop: &'a [u32],
}

impl Request<'_> {
    /// Checks the request against a model's configuration, before any weight is read.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room under the model's length limit, other images than slots, no token asked for.
    pub fn check(&self, shape: &Shape) -> Result<()> {
        check(self.prompt, self.images.len(), self.max_new_tokens, shape)
    }
}

/// What [`Request::check`] checks, for a prompt with so many images.
pub(super) fn check(prompt: &Tokens, images: usize, max_new_tokens: usize, shape: &Shape) -> Result<()> {
    let (tokens, limit) = (prompt.ids.len(), shape.language.max_length);
    let place = "prompt";
    if tokens == 0 {
        return Err(Error::at(place, "the prompt is empty"));
    }
    if prompt.images.len() != images {
        return Err(Error::at(place, format!("has {} image slots for {images} images", prompt.images.len())));
    }
    if shape.vision.is_none() && images > 0 {
        return Err(Error::at(place, "the model takes no images").hint("choose a vision checkpoint"));
    }
    if tokens >= limit {
        let field = shape.language.limit_field;
        let what = format!(
            "{tokens} tokens, images included, leave no room for an answer: the model's limit is {limit} tokens (`{field}` in config.json)"
        );
        return Err(Error::at(place, what).hint("shorten the prompt, or give fewer images"));
    }
    match max_new_tokens {
        0 => Err(Error::at("`max_new_tokens`", "expected at least 1, found 0")),
        _ => Ok(()),
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model said so: the last id is one of those that end an answer.
    Stop,
    /// `max_new_tokens` were given.
    MaxNewTokens,
    /// Prompt and answer are as long as the model's limit, in tokens.
    ModelLimit(usize),
}

/// An answer in the making: an iterator over its token ids, the one that ends it included.
#[derive(Debug)]
pub struct Generation<'a> {
    batch: Batch<'a>,
    /// What is asked, until it has run.
    ask: Option<Ask>,
    end: Option<End>,
}

impl<'a> Generation<'a> {
    /// Takes a request; prompt and images run with the first token.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn start(model: &'a Model, request: Request<'_>) -> Result<Self> {
        request.check(&model.shape)?;
        let settings = Settings {
            decoding: Decoding::Sampling(request.sampling),
            max_new_tokens: request.max_new_tokens,
            stop: request.stop.to_vec(),
            batch_size: 1,
        };
        let images = request.images.iter().cloned().map(Arc::new).collect();
        let ask = Ask { prompt: request.prompt.clone(), images, number: 0 };
        Ok(Generation { batch: Batch::new(model, settings), ask: Some(ask), end: None })
    }

    /// Why the answer ended; nothing while it goes on, or after an error.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    fn step(&mut self) -> Result<Option<u32>> {
        match self.ask.take() {
            Some(ask) => self.batch.begin(vec![(0, ask)])?,
            None if self.batch.rows.is_empty() => return Ok(None),
            None => self.batch.step()?,
        }
        if let Some((_, answer)) = self.batch.ended.pop() {
            self.end = Some(answer.end);
            return Ok(answer.ids.last().copied());
        }
        Ok(self.batch.rows.first().and_then(|row| row.answers.first()?.ids.last().copied()))
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        let id = self.step();
        if id.is_err() {
            self.batch.rows.clear();
        }
        id.transpose()
    }
}
