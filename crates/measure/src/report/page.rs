//! The page itself: what the template gets, and the policy that lets nothing but the page's own script and style run.

use super::curve::{Curve, Group};
use super::evaluation::Evaluation;
use super::gallery::Told;
use super::picture::{Album, Shown};
use super::table::{self, Benchmark};
use super::{Report, gallery::Card};
use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const TEMPLATES: [(&str, &str); 3] = [
    ("page.html", include_str!("page.html")),
    ("table.html", include_str!("table.html")),
    ("card.html", include_str!("card.html")),
];
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("chart.js"), "\n", include_str!("page.js"));

/// What only the caller knows.
#[derive(Debug, Default)]
pub struct Additions {
    /// By the folder of a training run: names and values worth knowing, such as `loss_type` and `beta`.
    pub facts: BTreeMap<PathBuf, Vec<(String, String)>>,
    /// By the path of a picture of the gallery: the picture as a recipe would corrupt it.
    pub rejected: BTreeMap<PathBuf, Rejected>,
}

/// A corrupted picture.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// How it came about, to stand under it.
    pub caption: String,
    /// JPEG, PNG, WebP, GIF or BMP.
    pub bytes: Vec<u8>,
}

/// A finished page.
#[derive(Debug, Clone)]
pub struct Page {
    /// The whole file.
    pub html: String,
    /// What was left out, thinned or missing; it stands in the page too.
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RunHead<'a> {
    name: &'a str,
    style: usize,
    steps: String,
    facts: &'a [(String, String)],
}

#[derive(Debug, Serialize)]
struct Figure {
    caption: String,
    alt: String,
    shown: Shown,
}

#[derive(Debug, Serialize)]
struct CardView<'a> {
    benchmark: &'a str,
    id: &'a str,
    question: &'a str,
    invented: bool,
    figures: Vec<Figure>,
    answers: Vec<AnswerView<'a>>,
}

#[derive(Debug, Serialize)]
struct AnswerView<'a> {
    name: &'a str,
    owner: usize,
    #[serde(flatten)]
    told: &'a Told,
}

/// A line of the table of last values.
#[derive(Debug, Serialize)]
struct MetricLine<'a> {
    name: &'a str,
    /// First and last value, one for each run.
    cells: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GroupView<'a> {
    title: &'static str,
    metrics: Vec<MetricView<'a>>,
}

#[derive(Debug, Serialize)]
struct MetricView<'a> {
    name: &'a str,
    about: Option<&'static str>,
    shown: bool,
}

#[derive(Debug, Serialize)]
struct NameView<'a> {
    name: &'a str,
    style: usize,
}

/// What the script draws.
#[derive(Debug, Serialize)]
struct Drawn<'a> {
    names: &'a [String],
    metrics: Vec<DrawnMetric<'a>>,
}

#[derive(Debug, Serialize)]
struct DrawnMetric<'a> {
    name: &'a str,
    lines: Vec<DrawnLine<'a>>,
}

#[derive(Debug, Serialize)]
struct DrawnLine<'a> {
    run: usize,
    #[serde(flatten)]
    curve: &'a Curve,
}

impl Report {
    /// Writes the page.
    ///
    /// # Errors
    /// When the template cannot be rendered, which is a mistake of ours.
    pub fn render(&self, additions: &Additions) -> Result<Page> {
        let internal = |error: minijinja::Error| Error::at("report", format!("the page cannot be written: {error}"));
        let mut environment = minijinja::Environment::new();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // The names' ending turns escaping on.
        for (name, text) in TEMPLATES {
            environment.add_template(name, text).map_err(internal)?;
        }
        let template = environment.get_template("page.html").map_err(internal)?;

        let mut album = Album::default();
        let cards: Vec<CardView> = self.cards.iter().map(|card| self.card(card, additions, &mut album)).collect();
        let mut notes = self.notes.clone();
        if album.missing() > 0 {
            notes.push(format!("pictures of the gallery that are missing: {}; their places say why", album.missing()));
        }
        if self.questions > cards.len() {
            let shown = cards.len();
            notes.push(format!(
                "the gallery shows {shown} of {} questions, evenly spaced over the files and not chosen by result",
                self.questions
            ));
        }
        let bare = cards.iter().filter(|card| card.figures.is_empty()).count();
        if bare > 0 {
            notes.push(format!("questions of the gallery whose rows name no picture: {bare}"));
        }
        let benchmarks = table::benchmarks(self);
        let apart = benchmarks.iter().filter(|benchmark| benchmark.apart.is_some());
        for name in apart.map(|benchmark| benchmark.name.as_str()).collect::<BTreeSet<_>>() {
            notes.push(format!(
                "evaluations of `{name}` are over different questions: each sample has a table of its own, and nothing is compared between them"
            ));
        }
        let empty = Vec::new();
        let runs: Vec<RunHead> = self
            .runs
            .iter()
            .map(|run| RunHead {
                name: &run.name,
                style: self.style(&run.name),
                steps: match run.steps {
                    (done, Some(planned)) if done != planned => format!("{done} of {planned} steps"),
                    (done, _) => format!("{done} steps"),
                },
                facts: additions.facts.get(&run.path).unwrap_or(&empty),
            })
            .collect();
        let groups = self.groups();
        let context = minijinja::context! {
            title => self.title(&benchmarks),
            policy => policy(),
            style => STYLE,
            script => SCRIPT,
            data => self.drawn()?,
            version => env!("CARGO_PKG_VERSION"),
            names => self.names.iter().enumerate().map(|(style, name)| NameView { name, style }).collect::<Vec<_>>(),
            runs, groups, benchmarks, cards, notes,
            last => self.last_values(),
            galleries => self.cards.iter().map(|card| card.benchmark.as_str()).collect::<BTreeSet<_>>(),
            rejected => !additions.rejected.is_empty(),
        };
        let html = template.render(context).map_err(internal)?;
        Ok(Page { html, notes })
    }

    fn title(&self, benchmarks: &[Benchmark]) -> String {
        let names = match self.names.len() {
            0..=4 => self.names.join(", "),
            count => format!("{} and {} more", self.names[..3].join(", "), count - 3),
        };
        match benchmarks {
            [] => names,
            _ => {
                let mut of: Vec<&str> = benchmarks.iter().map(|benchmark| benchmark.name.as_str()).collect();
                of.dedup();
                format!("{names} on {}", of.join(", "))
            }
        }
    }

    fn card<'a>(&'a self, card: &'a Card, additions: &Additions, album: &mut Album) -> CardView<'a> {
        let mut figures = Vec::new();
        if let Some(path) = &card.image {
            let alt = format!("picture to the question {}", card.id);
            figures.push(Figure { caption: "picture".to_owned(), alt, shown: album.file(path) });
            if let Some(rejected) = additions.rejected.get(path) {
                let alt = format!("the same picture, corrupted: {}", rejected.caption);
                figures.push(Figure { caption: rejected.caption.clone(), alt, shown: album.bytes(&rejected.bytes) });
            }
        }
        let answer = |(index, told): &'a (usize, Told)| {
            let Evaluation { name, owner, .. } = &self.evaluations[*index];
            AnswerView { name, owner: self.style(owner), told }
        };
        let answers: Vec<AnswerView> = card.answers.iter().map(answer).collect();
        let invented = answers.iter().any(|answer| answer.told.invented);
        CardView { benchmark: &card.benchmark, id: &card.id, question: &card.question, invented, figures, answers }
    }

    /// All metrics by group, each once, in the order in which the runs have them.
    fn metrics(&self) -> Vec<(Group, Vec<&str>)> {
        let all = || self.runs.iter().flat_map(|run| run.metrics.iter().map(|(metric, _)| metric.as_str()));
        let of = |group: Group| {
            let mut seen = BTreeSet::new();
            all().filter(|metric| Group::of(metric) == group && seen.insert(*metric)).collect::<Vec<_>>()
        };
        Group::ALL.into_iter().map(|group| (group, of(group))).filter(|(_, metrics)| !metrics.is_empty()).collect()
    }

    fn groups(&self) -> Vec<GroupView<'_>> {
        let view = |group: Group, name| MetricView { name, about: about(name), shown: group.shown_first(name) };
        let mut sections: Vec<GroupView> = Vec::new();
        for (group, names) in self.metrics() {
            if sections.last().is_none_or(|last| last.title != group.title()) {
                sections.push(GroupView { title: group.title(), metrics: Vec::new() });
            }
            if let Some(section) = sections.last_mut() {
                section.metrics.extend(names.into_iter().map(|name| view(group, name)));
            }
        }
        sections
    }

    /// First and last value of every metric, for those who cannot see a curve or want the number.
    fn last_values(&self) -> Vec<MetricLine<'_>> {
        let cell = |curve: Option<&Curve>| match curve.map(|curve| curve.values.as_slice()) {
            None | Some([]) => "–".to_owned(),
            Some([only]) => short(*only),
            Some([first, .., last]) => format!("{} → {}", short(*first), short(*last)),
        };
        let metrics = self.metrics().into_iter().flat_map(|(_, metrics)| metrics);
        metrics
            .map(|name| MetricLine { name, cells: self.runs.iter().map(|run| cell(run.curve(name))).collect() })
            .collect()
    }

    /// The curves as JSON that may stand in a `<script>`: no `<` in it can end the element or open a comment.
    fn drawn(&self) -> Result<String> {
        let line = |name: &str| {
            let runs = self.runs.iter().filter_map(|run| Some((self.style(&run.name), run.curve(name)?)));
            runs.map(|(run, curve)| DrawnLine { run, curve }).collect()
        };
        let metrics = self.metrics().into_iter().flat_map(|(_, metrics)| metrics);
        let metrics = metrics.map(|name| DrawnMetric { name, lines: line(name) }).collect();
        let text = serde_json::to_string(&Drawn { names: &self.names, metrics })
            .map_err(|error| Error::at("report", format!("the curves cannot be written: {error}")))?;
        Ok(text.replace('<', "\\u003c"))
    }
}

/// What a metric is, in a few words; those of held-out pairs are what they are in training.
fn about(metric: &str) -> Option<&'static str> {
    Some(match metric.strip_prefix("eval_").unwrap_or(metric) {
        "loss" => "what is minimised: the weighted sum of its terms",
        "loss/preference" => "chosen against rejected answer, under the true picture",
        "loss/conditional" => "chosen answer under the true against the corrupted picture",
        name if name.starts_with("loss/anchor") => "keeps the reward of the chosen answer from falling",
        "loss/nll" => "negative log-likelihood of the chosen answer",
        "rewards/chosen" => "β times the log-ratio of policy and reference, chosen answer",
        "rewards/rejected" => "the same of the rejected answer",
        "rewards/corrupted" => "the same of the chosen answer under the corrupted picture",
        "rewards/margins" => "reward of the chosen less that of the rejected answer",
        "rewards/image_margins" => "reward under the true less that under the corrupted picture",
        "rewards/accuracies" => "share of pairs whose margin is above zero",
        "rewards/image_accuracies" => "share of pairs whose image margin is above zero",
        "grad_norm" => "norm of the gradient before clipping",
        "kl" => "estimate of the divergence from the reference",
        "step_time" => "seconds a step",
        "data_wait" => "seconds a step waited for data",
        _ => return None,
    })
}

/// A number in four significant digits.
fn short(value: f64) -> String {
    let text = match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e5).contains(&size) => {
            let digits = (3 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
        _ => format!("{value:.2e}"),
    };
    text.replace('-', "−")
}

/// Scripts and styles are known by their digest, so no text of an answer can become one even if it were not escaped.
fn policy() -> String {
    let digest = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
    format!(
        "default-src 'none'; img-src data:; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
        digest(STYLE),
        digest(SCRIPT)
    )
}
