//! Which judge is asked, how, and what it costs.

use std::{fmt, num::NonZeroUsize, path::PathBuf, time::Duration};

use ureq::http::{HeaderValue, Uri};

use crate::{Error, Result};

/// The variable that is read for a key when none is named.
pub const DEFAULT_KEY_ENV: &str = "OPENAI_API_KEY";

/// Which judge is asked and how patiently; [`JudgeSettings::new`] has the defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeSettings {
    /// The base of an OpenAI-compatible service, as `https://api.openai.com/v1`; `/chat/completions` is added where it is missing.
    pub url: String,
    /// Name of the model, as the service knows it.
    pub model: String,
    /// The environment variable that holds the key. Unnamed: [`DEFAULT_KEY_ENV`] if it is set, else no key is sent, as local servers like it.
    pub key_env: Option<String>,
    /// Sampling temperature; `None` leaves it to the service (some models refuse the parameter). Default 0.
    pub temperature: Option<f64>,
    /// How long an answer may become.
    pub limit: TokenLimit,
    /// How many requests are under way at once, at most. Default 4.
    pub concurrency: NonZeroUsize,
    /// The time one request may take, from the connection to the last byte of the answer. Default 120 s.
    pub timeout: Duration,
    /// How often a request is sent again that came to nothing. Default 6.
    pub retries: u32,
    /// The wait before the first retry; it doubles each time, up to 30 s, and is shortened at random by up to half. Default 0.5 s.
    pub backoff: Duration,
    /// The folder in which answers are kept; `None` keeps nothing.
    pub cache: Option<PathBuf>,
    /// What tokens cost, to have the cost counted.
    pub price: Option<Price>,
}

/// The bound on an answer, under the name that the service takes it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLimit {
    /// `max_tokens`, which every server of this interface knows.
    MaxTokens(u32),
    /// `max_completion_tokens`, which OpenAI's reasoning models ask for; their hidden reasoning counts too.
    MaxCompletionTokens(u32),
}

/// Price of a million tokens, in whichever currency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// Of a million tokens of prompts.
    pub prompt: f64,
    /// Of a million tokens of answers.
    pub completion: f64,
}

impl JudgeSettings {
    /// A judge behind `url` that is asked for `model`, with the defaults.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        JudgeSettings {
            url: url.into(),
            model: model.into(),
            key_env: None,
            temperature: Some(0.0),
            limit: TokenLimit::MaxTokens(1024),
            concurrency: NonZeroUsize::new(4).expect("four is not zero"),
            timeout: Duration::from_secs(120),
            retries: 6,
            backoff: Duration::from_millis(500),
            cache: None,
            price: None,
        }
    }

    /// Checks what [`super::Judge::open`] checks, but makes no folder; for whoever asks much later. There a service on another machine
    /// that gets no key is refused too (`https` without a key in the environment), since it would say no only then.
    ///
    /// # Errors
    /// Settings that cannot be right, a variable without a key.
    pub fn check(&self) -> Result<()> {
        let address = self.checked()?;
        if self.key()?.is_none() && address.scheme_str() == Some("https") {
            let name = self.key_env_name();
            let what = format!("expected the key of `{address}` in this environment variable, and it is not set");
            return Err(Error::at(format!("`{name}`"), what).hint(
                "set it, to anything where the service wants none, or name another variable with `--judge-key-env`",
            ));
        }
        Ok(())
    }

    /// The address that requests go to.
    ///
    /// # Errors
    /// Every setting that cannot be right: an address that is none, or that carries a password; an empty model; a temperature or price that
    /// is negative or no number; no time at all.
    pub(super) fn checked(&self) -> Result<Uri> {
        let mut problems = Vec::new();
        let address = self.address().map_err(|problem| problems.push(problem)).ok();
        if self.model.trim().is_empty() {
            problems.push(
                Error::at("judge", "expected the name of a model, found an empty one").hint("give `--judge-model`"),
            );
        }
        if self.temperature.is_some_and(|t| !t.is_finite() || t < 0.0) {
            problems.push(Error::at("judge", "expected a temperature of 0 or more"));
        }
        if self.limit.tokens() == 0 {
            problems.push(Error::at("judge", "expected room for at least one token of an answer, found 0"));
        }
        if self.timeout.is_zero() {
            problems.push(Error::at("judge", "expected a timeout above 0 s"));
        }
        if self.price.is_some_and(|price| [price.prompt, price.completion].iter().any(|p| !p.is_finite() || *p < 0.0)) {
            problems.push(Error::at("judge", "expected prices of 0 or more for a million tokens"));
        }
        Error::all(problems)?;
        address.ok_or_else(|| Error::at("judge", "expected an address"))
    }

    fn address(&self) -> Result<Uri> {
        let wrong = |what: &str| {
            Error::at(format!("judge `{}`", hide_password(&self.url)), what)
                .hint("`--judge-url` takes the base of an OpenAI-compatible service, as `https://api.openai.com/v1` or `http://localhost:8000/v1`")
        };
        let (base, query) = self.url.trim().split_once('?').unwrap_or((self.url.trim(), ""));
        let base = base.trim_end_matches('/');
        let path = if base.ends_with("/chat/completions") { "" } else { "/chat/completions" };
        let mark = if query.is_empty() { "" } else { "?" };
        let uri: Uri = format!("{base}{path}{mark}{query}")
            .parse()
            .map_err(|_| wrong("expected an address, and cannot read this one"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(wrong("expected an address that starts with `http://` or `https://`"));
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("expected an address without user and password")
                .hint("put the key into an environment variable and name it with `--judge-key-env`"));
        }
        Ok(uri)
    }

    /// The key from the environment.
    ///
    /// # Errors
    /// A variable that was named and is not set.
    pub(super) fn key(&self) -> Result<Option<Secret>> {
        let name = self.key_env_name();
        match std::env::var(name) {
            Ok(key) if !key.trim().is_empty() => Secret::new(&key).map(Some).ok_or_else(|| {
                Error::at(format!("`{name}`"), "expected a key of visible ASCII characters, and found others")
                    .hint("set the variable to the key alone")
            }),
            _ if self.key_env.is_some() => Err(Error::at(
                format!("`{name}`"),
                "expected the judge's key in this environment variable, and it is not set",
            )
            .hint("set it, or name another variable with `--judge-key-env`")),
            _ => Ok(None),
        }
    }

    pub(super) fn key_env_name(&self) -> &str {
        self.key_env.as_deref().unwrap_or(DEFAULT_KEY_ENV)
    }
}

/// The address without what stands before an `@`, for messages.
fn hide_password(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://…@{rest}"),
        None => url.to_owned(),
    }
}

impl TokenLimit {
    /// The number of tokens.
    pub fn tokens(self) -> u32 {
        match self {
            TokenLimit::MaxTokens(tokens) | TokenLimit::MaxCompletionTokens(tokens) => tokens,
        }
    }
}

/// A key: sent, and otherwise neither printed nor written.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The key without the white space around it; `None` where a header could not carry it, or it is empty.
    pub fn new(key: &str) -> Option<Self> {
        let key = key.trim();
        let sendable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        sendable.then(|| Secret(key.to_owned()))
    }

    pub(super) fn header(&self) -> HeaderValue {
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", self.0)).expect("a key holds visible ASCII characters only");
        value.set_sensitive(true);
        value
    }

    /// `text` with the key taken out, since some servers repeat it in what they answer.
    pub(super) fn hidden_in(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
