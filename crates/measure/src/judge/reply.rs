//! What a judge answered, and what it took.

use serde::{Deserialize, Serialize};

use super::settings::Price;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Its words.
    pub text: String,
    /// Why it ends.
    pub end: End,
    /// The model that answered, as the service calls it (often with a date).
    pub model: Option<String>,
    /// The tokens it took, where the service told them.
    pub usage: Option<Usage>,
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It was complete.
    Complete,
    /// At the bound on its length ([`super::TokenLimit`]).
    Length,
    /// The service's filter cut it off.
    Filter,
}

/// Tokens, as the service counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(rename = "prompt_tokens")]
    pub prompt: u64,
    /// Of the answer.
    #[serde(rename = "completion_tokens", default)]
    pub completion: u64,
}

/// What has been asked and paid for since the judge was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Requests that the judge answered.
    pub answered: usize,
    /// Requests answered from the cache, or by an equal request of the same call.
    pub cached: usize,
    /// Requests that came to nothing after all retries.
    pub failed: usize,
    /// How often something was sent again.
    pub retries: usize,
    /// Files of the cache that were damaged; their answers were asked for again.
    pub damaged: usize,
    /// Answers without a count of their tokens, which therefore are in no sum below.
    pub unmetered: usize,
    /// Tokens of prompts that were paid for.
    pub prompt_tokens: u64,
    /// Tokens of answers that were paid for, usable or not.
    pub completion_tokens: u64,
}

impl Spent {
    /// The cost of the tokens that were counted, in the currency of `price`.
    pub fn cost(&self, price: Price) -> f64 {
        (self.prompt_tokens as f64 * price.prompt + self.completion_tokens as f64 * price.completion) / 1e6
    }

    pub(super) fn pay(&mut self, usage: Option<Usage>) {
        match usage {
            Some(usage) => {
                self.prompt_tokens += usage.prompt;
                self.completion_tokens += usage.completion;
            }
            None => self.unmetered += 1,
        }
    }
}
