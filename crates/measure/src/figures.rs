//! What a benchmark says of a set of answers: named figures with their intervals, as they are written to `metrics.json`.

use serde::{Deserialize, Serialize};

/// Which direction of a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// As with CHAIR: fewer invented objects.
    Lower,
    /// As with accuracy.
    Higher,
    /// As with the share of "yes": it is told, not judged.
    Neither,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name as the benchmark's authors write it (`CHAIRi`, `Cover`, `accuracy`).
    pub name: String,
    /// A share in percent, or a score in the benchmark's own unit; nothing where its denominator is zero.
    pub value: Option<f64>,
    /// Lower end of the 95 % bootstrap interval over questions, in the unit of `value`.
    pub low: Option<f64>,
    /// Upper end of the interval.
    pub high: Option<f64>,
    /// Which direction is good.
    pub better: Better,
}

/// All figures of one benchmark over one set of answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Name of the benchmark, as `--benchmark` takes it.
    pub benchmark: String,
    /// The checkpoint that answered, or the file of answers.
    pub model: String,
    /// The adapter, where there is one.
    pub adapter: Option<String>,
    /// Answers that were scored.
    pub answers: usize,
    /// The figures, in the order in which they are shown.
    pub figures: Vec<Figure>,
}
