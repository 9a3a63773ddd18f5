//! What a judge is asked, and the bytes that are sent for it.

use std::{fs, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use image::ImageFormat;
use serde::Serialize;

use super::settings::{JudgeSettings, TokenLimit};
use crate::{Error, Result};

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the talk.
    System,
    /// Who asks.
    User,
    /// Who answers: earlier answers, as examples.
    Assistant,
}

/// A piece of what is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture file (JPEG, PNG, GIF or WebP), read when it is sent and sent as it is.
    Image(PathBuf),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub parts: Vec<Part>,
}

/// One question to the judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The talk so far; the judge says what comes next.
    pub messages: Vec<Message>,
}

impl Request {
    /// One message of a user.
    pub fn user(parts: impl IntoIterator<Item = Part>) -> Self {
        Request { messages: vec![Message { role: Role::User, parts: parts.into_iter().collect() }] }
    }

    /// The body of the request.
    ///
    /// # Errors
    /// A picture that is not there, cannot be read, or has a format that judges do not take.
    pub(super) fn body(&self, settings: &JudgeSettings) -> Result<Vec<u8>> {
        let messages = self.messages.iter().map(wire_message).collect::<Result<Vec<_>>>()?;
        let (max_tokens, max_completion_tokens) = match settings.limit {
            TokenLimit::MaxTokens(tokens) => (Some(tokens), None),
            TokenLimit::MaxCompletionTokens(tokens) => (None, Some(tokens)),
        };
        let body = Wire {
            model: &settings.model,
            messages,
            temperature: settings.temperature,
            max_tokens,
            max_completion_tokens,
        };
        Ok(serde_json::to_vec(&body).expect("text and finite numbers are JSON"))
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: Role,
    content: Content<'a>,
}

/// Words alone are sent as a string, since servers of text models know nothing else.
#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Parts(Vec<WirePart<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WirePart<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: ImageUrl },
}

#[derive(Serialize)]
struct ImageUrl {
    url: String,
}

fn wire_message(message: &Message) -> Result<WireMessage<'_>> {
    let content = match message.parts.as_slice() {
        [Part::Text(text)] => Content::Text(text),
        parts => Content::Parts(parts.iter().map(wire_part).collect::<Result<_>>()?),
    };
    Ok(WireMessage { role: message.role, content })
}

fn wire_part(part: &Part) -> Result<WirePart<'_>> {
    let path = match part {
        Part::Text(text) => return Ok(WirePart::Text { text }),
        Part::Image(path) => path,
    };
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    let kind = match image::guess_format(&bytes) {
        Ok(ImageFormat::Jpeg) => "jpeg",
        Ok(ImageFormat::Png) => "png",
        Ok(ImageFormat::Gif) => "gif",
        Ok(ImageFormat::WebP) => "webp",
        _ => {
            return Err(Error::at(
                path.display(),
                "expected a JPEG, PNG, GIF or WebP picture, which judges take, and found something else",
            ));
        }
    };
    let url = format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
    Ok(WirePart::ImageUrl { image_url: ImageUrl { url } })
}
