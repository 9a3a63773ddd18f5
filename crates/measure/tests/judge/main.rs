//! The judge against a real server on loopback, which is slow, overloaded, cut off, or talks rubbish.

// Helpers outside of `#[test]` functions are tests too.
#![allow(clippy::unwrap_used)]

mod answers;
mod failures;
mod mmhal;
mod server;

use std::{num::NonZeroUsize, path::Path, time::Duration};

use mdpo_measure::judge::{Judge, JudgeSettings, Part, Request, Secret};

const KEY: &str = "sk-a-key-of-the-tests";

/// A patient judge that waits next to nothing between retries.
fn settings(url: impl Into<String>) -> JudgeSettings {
    JudgeSettings {
        backoff: Duration::from_millis(2),
        timeout: Duration::from_secs(60),
        ..JudgeSettings::new(url, "judge")
    }
}

fn cached(url: impl Into<String>, folder: &Path) -> JudgeSettings {
    JudgeSettings { cache: Some(folder.to_owned()), ..settings(url) }
}

fn at_once(requests: usize, settings: JudgeSettings) -> JudgeSettings {
    JudgeSettings { concurrency: NonZeroUsize::new(requests).expect("not zero"), ..settings }
}

fn open(settings: JudgeSettings) -> Judge {
    Judge::with_key(settings, Secret::new(KEY)).expect("settings that are right")
}

fn asks(texts: impl IntoIterator<Item = impl Into<String>>) -> Vec<Request> {
    texts.into_iter().map(|text| Request::user([Part::Text(text.into())])).collect()
}

fn numbered(count: usize) -> Vec<Request> {
    asks((0..count).map(|index| format!("question {index}")))
}

/// The words of answers that all came.
fn texts(judge: &Judge, requests: &[Request]) -> Vec<String> {
    let replies = judge.ask(requests).expect("a call that is not ended");
    replies.into_iter().map(|reply| reply.expect("an answer").text).collect()
}
