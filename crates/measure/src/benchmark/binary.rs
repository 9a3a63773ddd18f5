//! Counting answers to yes-no questions: accuracy, and precision, recall and F1 of one of the two classes.

use crate::figures::Better;
use crate::interval::{Formula, Measure};

/// Columns that one group of questions takes.
pub const COLUMNS: usize = 5;

const COUNT: usize = 0;
const RIGHT: usize = 1;
const SAID: usize = 2;
const ARE: usize = 3;
const SAID_AND_ARE: usize = 4;

/// What an answer says and what is so, in terms of the class that precision and recall are about.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The answer names the right class.
    pub is_correct: bool,
    /// The answer names the class.
    pub says_class: bool,
    /// The class is the right one.
    pub is_class: bool,
}

impl Outcome {
    /// What it adds to the columns of a group.
    pub fn counts(self, group: usize) -> [(usize, f64); COLUMNS] {
        let first = group * COLUMNS;
        let both = self.says_class && self.is_class;
        [(COUNT, true), (RIGHT, self.is_correct), (SAID, self.says_class), (ARE, self.is_class), (SAID_AND_ARE, both)]
            .map(|(column, is_so)| (first + column, f64::from(u8::from(is_so))))
    }
}

/// The figures of a group; `prefix` is put before their names.
pub fn measures(prefix: &str, group: usize) -> Vec<Measure> {
    let column = |column: usize| group * COLUMNS + column;
    let share = |of, among| Formula::Share { of: column(of), among: column(among) };
    let f1 = Formula::F1 { right: column(SAID_AND_ARE), said: column(SAID), are: column(ARE) };
    let all = [
        ("accuracy", share(RIGHT, COUNT)),
        ("precision", share(SAID_AND_ARE, SAID)),
        ("recall", share(SAID_AND_ARE, ARE)),
        ("F1", f1),
    ];
    all.map(|(name, formula)| Measure { name: format!("{prefix}{name}"), better: Better::Higher, formula }).into()
}

/// How often the class was answered in a group, in percent.
pub fn share_said(name: String, group: usize) -> Measure {
    let formula = Formula::Share { of: group * COLUMNS + SAID, among: group * COLUMNS + COUNT };
    Measure { name, better: Better::Neither, formula }
}
