//! A language model that judges answers, behind any service with OpenAI's chat completions.
//!
//! ```no_run
//! use mdpo_measure::judge::{Judge, JudgeSettings, Part, Request};
//!
//! let settings = JudgeSettings { cache: Some("judged".into()), ..JudgeSettings::new("http://localhost:8000/v1", "qwen") };
//! let judge = Judge::open(settings)?;
//! for reply in judge.ask(&[Request::user([Part::Text("Is a whale a fish?".to_owned())])])? {
//!     println!("{}", reply?.text);
//! }
//! # Ok::<(), mdpo_measure::Error>(())
//! ```
//!
//! No answer is paid for twice: each is on disk before the next is asked for (`cache`). What may pass (429, 5xx, a cut connection, an
//! answer that is none) is asked again after a growing wait, or the wait that the judge asks for; what will not pass ends the call at once.
//! Both are told apart in `http`; who asks what and when is in `ask`.

mod ask;
mod cache;
mod http;
mod reply;
mod request;
mod settings;

pub use reply::{End, Reply, Spent, Usage};
pub use request::{Message, Part, Request, Role};
pub use settings::{DEFAULT_KEY_ENV, JudgeSettings, Price, Secret, TokenLimit};

use std::sync::{Mutex, MutexGuard};

use crate::Result;
use cache::Cache;
use http::Endpoint;

/// A judge that can be asked; [`Judge::ask`] is the way.
pub struct Judge {
    settings: JudgeSettings,
    endpoint: Endpoint,
    cache: Option<Cache>,
    spent: Mutex<Spent>,
}

impl Judge {
    /// Checks the settings, takes the key from the environment and opens the cache. Nothing is sent.
    ///
    /// # Errors
    /// Settings that cannot be right, a named variable without a key, a cache that cannot be written to.
    pub fn open(settings: JudgeSettings) -> Result<Self> {
        let key = settings.key()?;
        Self::with_key(settings, key)
    }

    /// [`Judge::open`] with a key that does not come from the environment.
    ///
    /// # Errors
    /// As [`Judge::open`].
    pub fn with_key(settings: JudgeSettings, key: Option<Secret>) -> Result<Self> {
        let address = settings.checked()?;
        let cache = settings.cache.as_deref().map(Cache::open).transpose()?;
        let endpoint = Endpoint::new(&settings, address, key);
        Ok(Judge { settings, endpoint, cache, spent: Mutex::default() })
    }

    /// How it was opened.
    pub fn settings(&self) -> &JudgeSettings {
        &self.settings
    }

    /// What has been spent up to now; can be read from another thread while [`Judge::ask`] runs.
    pub fn spent(&self) -> Spent {
        *self.count()
    }

    fn count(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().expect("no thread panics while it counts")
    }
}
