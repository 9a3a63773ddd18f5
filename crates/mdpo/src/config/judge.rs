//! Who grades the answers that no rule can score, while a run trains; the keys are called as the options of `mdpo eval`.

use super::recipe::Recipe;
use super::validate::{text, whole};
use mdpo_measure::benchmark::mmhal;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// A language model behind an OpenAI-compatible service; the key itself is in no recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judge {
    /// Base of the service (`judge_url`).
    pub url: String,
    /// The model, as the service calls it (`judge_model`).
    pub model: String,
    /// The environment variable that holds the key (`judge_key_env`).
    pub key_env: Option<String>,
    /// Requests under way at once, at most (`judge_concurrency`, default 4).
    pub concurrency: NonZeroUsize,
    /// The folder in which its answers are kept (`judge_cache`); `judged` in `output_dir` when absent.
    pub cache: Option<PathBuf>,
    /// What it is told, as a template (`judge_prompt`); our own words when absent.
    pub prompt: Option<PathBuf>,
}

/// Its keys.
pub(super) const KEYS: [&str; 6] =
    ["judge_url", "judge_model", "judge_key_env", "judge_concurrency", "judge_cache", "judge_prompt"];

impl Recipe {
    /// The judge that is named.
    pub(super) fn judge(&mut self) -> Judge {
        Judge {
            url: self.optional("judge_url", text).unwrap_or_default(),
            model: self.optional("judge_model", text).unwrap_or_default(),
            key_env: self.optional("judge_key_env", variable),
            concurrency: self.value("judge_concurrency", |value| NonZeroUsize::new(whole(1)(value)?)),
            cache: self.optional("judge_cache", text).map(PathBuf::from),
            prompt: self.optional("judge_prompt", text).map(PathBuf::from),
        }
    }

    /// That a judge is named where a benchmark needs one (`needed`), and nowhere else.
    pub(super) fn check_judge(&mut self, needed: Option<&Judge>) {
        for key in KEYS.into_iter().filter(|_| needed.is_none()) {
            let what = format!("`{key}` has no meaning unless `{}` is in `eval_benchmarks`", mmhal::NAME);
            self.forbid(key, &what, "leave it out: the other benchmarks are scored by a rule");
        }
        for key in ["judge_url", "judge_model"].into_iter().filter(|_| needed.is_some()) {
            if self.entry(key).is_none() {
                let what = format!("`{}` needs a judge, and there is no `{key}`", mmhal::NAME);
                self.complain("eval_benchmarks", what, "docs/judge.md says which services fit, and what is to be set");
            }
        }
    }
}

/// What can be the name of an environment variable; a key that was written in its place mostly is not.
fn variable(value: &Value) -> Option<String> {
    let name = text(value)?;
    let fits = |(at, byte): (usize, u8)| byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit();
    name.bytes().enumerate().all(fits).then_some(name)
}

impl Judge {
    /// Its keys with their values, in the order of the table.
    pub(super) fn to_keys(&self) -> Vec<(&'static str, Value)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map_or(Value::Null, |path| json!(path.to_string_lossy()));
        vec![
            ("judge_url", json!(self.url)),
            ("judge_model", json!(self.model)),
            ("judge_key_env", json!(self.key_env)),
            ("judge_concurrency", json!(self.concurrency)),
            ("judge_cache", path(&self.cache)),
            ("judge_prompt", path(&self.prompt)),
        ]
    }
}
