//! What a run says while it runs: a bar on a terminal, plain lines elsewhere; everything on standard error.

use crate::talk::Talk;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The progress of a run.
pub(super) struct Progress {
    talk: Talk,
    bar: Option<ProgressBar>,
    total: usize,
    started: Instant,
    first: usize,
}

impl Progress {
    /// A run of `total` steps that begins after `first` of them.
    pub fn new(talk: Talk, first: usize, total: usize) -> Self {
        let bar = (talk == Talk::Aloud && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} [{elapsed}<{eta}] {msg}");
            let bar = ProgressBar::new(total as u64).with_position(first as u64);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar.reset_eta();
            bar
        });
        Progress { talk, bar, total, started: Instant::now(), first }
    }

    /// A line of its own.
    pub fn say(&self, text: impl AsRef<str>) {
        match (self.talk, &self.bar) {
            (Talk::Silent, _) => {}
            (Talk::Aloud, Some(bar)) => bar.println(text),
            (Talk::Aloud, None) => eprintln!("{}", text.as_ref()),
        }
    }

    /// A finished step; `entry` is what was logged, where something was.
    pub fn step(&self, done: usize, entry: Option<&Map<String, Value>>) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            if let Some(entry) = entry {
                bar.set_message(summary(entry));
            }
        } else if let Some(entry) = entry {
            let per_step = self.started.elapsed().as_secs_f64() / (done - self.first).max(1) as f64;
            let left = per_step * (self.total - done) as f64;
            self.say(format!("step {done}/{} · {} · {} left", self.total, summary(entry), clock(left)));
        }
    }

    /// The run is over.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The few numbers that a user watches.
fn summary(entry: &Map<String, Value>) -> String {
    let shown = [
        ("loss", "loss", 4),
        ("rewards/margins", "margin", 3),
        ("rewards/accuracies", "accuracy", 2),
        ("rewards/image_margins", "image margin", 3),
        ("rewards/chosen", "chosen", 3),
        ("samples_per_second", "samples/s", 2),
        ("tokens_per_second", "tokens/s", 0),
    ];
    let part = |(key, label, digits): (&str, &str, usize)| {
        entry.get(key).and_then(Value::as_f64).map(|value| format!("{label} {value:.digits$}"))
    };
    shown.into_iter().filter_map(part).collect::<Vec<_>>().join(" · ")
}

/// Seconds as `1:02:03` or `2:03`.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}
