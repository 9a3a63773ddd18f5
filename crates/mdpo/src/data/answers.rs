//! Which columns hold a row's answers, what the row says of each, and which is preferred to which.

use std::borrow::Cow;

use super::readability::FLESCH_KINCAID;
use super::row::{Fields, Row, Value, shown};
use super::shape::{count, lacks, missing, required};
use super::{Need, Pair, Reading, Scores, Sides, scored};
use crate::Result;
use crate::address::Address;
use crate::config::ScoreTies;

/// An answer before it is read.
#[derive(Debug)]
pub(super) struct Column {
    /// What the row calls it.
    pub(super) name: Cow<'static, str>,
    /// What it holds.
    pub(super) value: Value,
    /// How good the row says it is.
    pub(super) score: Option<f64>,
    /// The rewards that the recipe names; none for one that is computed from the answer.
    pub(super) rewards: Vec<Option<f64>>,
}

/// The answers of a row.
#[derive(Debug)]
pub(super) struct Answers {
    /// Each of them.
    pub(super) columns: Vec<Column>,
    /// Which is preferred to which.
    pub(super) pairs: Vec<Pair>,
    /// Pairs that were left out since the chosen answer's score is not the higher one.
    pub(super) ties: usize,
}

/// The answers of a row, as far as the objective reads them; `address` is the row's own.
pub(super) fn read(row: &mut Row, reading: &Reading, address: Address) -> Result<Answers> {
    let need = reading.need;
    let answers = match need.sides {
        Sides::Chosen => one(row),
        _ if ["chosen", "rejected"].iter().any(|key| row.fields.has(key)) => {
            preferred(row, need, reading.settings.odpo_ties)
        }
        _ if scored::has(row) => judged(row, reading, address),
        Sides::Either if row.fields.has("completion") => labelled(row, need),
        Sides::Both | Sides::Either => Err(missing(row, "no `chosen`")),
    }?;
    if need.scores == Scores::Positive {
        for pair in &answers.pairs {
            [pair.chosen, pair.rejected]
                .into_iter()
                .flatten()
                .try_for_each(|i| above_zero(row, &answers.columns[i]))?;
        }
    }
    Ok(answers)
}

fn above_zero(row: &Row, column: &Column) -> Result<()> {
    match column.score {
        Some(score) if score <= 0.0 => {
            let what = format!("the score of `{}` is {score}, expected one above 0", column.name);
            Err(row
                .wrong(what)
                .hint("the recipe compares scores by their ratio; `odpo_offset: log` by their difference"))
        }
        _ => Ok(()),
    }
}

/// Answers that stand in one column, or of which one does.
struct Side {
    key: &'static str,
    /// What names of columns about them end in.
    suffix: &'static str,
    values: Vec<Value>,
    /// Whether the column is a list of answers, so that what is said of them is a list too.
    several: bool,
}

impl Side {
    fn one(key: &'static str, suffix: &'static str, value: Value) -> Self {
        Side { key, suffix, values: vec![value], several: false }
    }

    /// A list of texts or of lists of messages holds several answers, a list of messages is one.
    fn list(key: &'static str, suffix: &'static str, value: Value) -> Self {
        let is_answer = |item: &Value| matches!(item, Value::Text(_) | Value::Bytes(_) | Value::List(_));
        match value {
            Value::List(values) if !values.is_empty() && values.iter().all(is_answer) => {
                Side { key, suffix, values, several: true }
            }
            value => Side::one(key, suffix, value),
        }
    }

    /// `rejected`, or `rejected[2]` where there are several.
    fn name(&self, answer: usize) -> Cow<'static, str> {
        if self.several { format!("{}[{answer}]", self.key).into() } else { self.key.into() }
    }

    /// The answers with what the row says of them.
    fn columns(self, row: &mut Row, need: &Need) -> Result<Vec<Column>> {
        let scores = if need.scores == Scores::Unread { Vec::new() } else { self.scores(row)? };
        let rewards = self.rewards(row, &need.rewards)?;
        Ok(self.with(|i| scores.get(i).copied(), rewards))
    }

    fn with(self, score: impl Fn(usize) -> Option<f64>, rewards: Vec<Vec<Option<f64>>>) -> Vec<Column> {
        let names: Vec<_> = (0..self.values.len()).map(|i| self.name(i)).collect();
        let column = |(i, ((name, value), rewards))| Column { name, value, score: score(i), rewards };
        names.into_iter().zip(self.values).zip(rewards).enumerate().map(column).collect()
    }

    fn scores(&self, row: &mut Row) -> Result<Vec<f64>> {
        let keys = [format!("score{}", self.suffix), format!("{}_score", self.key)];
        let [first, second] = [keys[0].as_str(), keys[1].as_str()];
        match row.fields.take_one(&[first, second]) {
            Ok(Some((key, value))) => self.numbers(row, key, value),
            Ok(None) => Err(lacks(row, &format!("no `{first}`"))
                .hint("the objective compares how good the answers are: write `score_chosen` and `score_rejected`")),
            Err(_) => Err(row.wrong(format!("`{second}` beside `{first}`, expected one of the two"))),
        }
    }

    /// Each reward of each answer: from `aux_chosen` and the like, which hold them by name, or from a column of its own.
    fn rewards(&self, row: &mut Row, names: &[String]) -> Result<Vec<Vec<Option<f64>>>> {
        let mut rewards = vec![Vec::with_capacity(names.len()); self.values.len()];
        if names.iter().all(|name| name == FLESCH_KINCAID) {
            rewards.iter_mut().for_each(|own| own.resize(names.len(), None));
            return Ok(rewards);
        }
        let key = format!("aux{}", self.suffix);
        let mut by_name = self.aux(row, &key)?;
        for name in names {
            if name == FLESCH_KINCAID {
                rewards.iter_mut().for_each(|own| own.push(None));
                continue;
            }
            let column = format!("{name}{}", self.suffix);
            let numbers = match row.fields.take(&column) {
                Some(value) => self.numbers(row, &column, value)?,
                None => {
                    let of = |(i, fields): (usize, &mut Fields)| match fields.take(name) {
                        Some(value) => row.number(&format!("{}.{name}", self.entry(&key, i)), &value),
                        None => Err(lacks(row, &format!("no reward `{name}` for `{}`", self.name(i)))
                            .hint(format!("write it as `{key}: {{\"{name}\": number}}` or as `{column}`"))),
                    };
                    by_name.iter_mut().enumerate().map(of).collect::<Result<_>>()?
                }
            };
            rewards.iter_mut().zip(numbers).for_each(|(own, number)| own.push(Some(number)));
        }
        Ok(rewards)
    }

    /// What `key` holds for each answer, by name; nothing where the row has no such column.
    fn aux(&self, row: &mut Row, key: &str) -> Result<Vec<Fields>> {
        let values = match row.fields.take(key) {
            None => vec![Value::Object(Vec::new()); self.values.len()],
            Some(value) => self.entries(row, key, value)?,
        };
        let fields = |(i, value)| match value {
            Value::Object(fields) => Ok(Fields::new(fields)),
            other => {
                let place = self.entry(key, i);
                Err(row.wrong(format!("`{place}`: expected rewards by name, found {}", other.kind())))
            }
        };
        values.into_iter().enumerate().map(fields).collect()
    }

    fn numbers(&self, row: &Row, key: &str, value: Value) -> Result<Vec<f64>> {
        let values = self.entries(row, key, value)?;
        values.iter().enumerate().map(|(i, value)| row.number(&self.entry(key, i), value)).collect()
    }

    /// What `key` says of each answer: a list where the answers are one.
    fn entries(&self, row: &Row, key: &str, value: Value) -> Result<Vec<Value>> {
        match value {
            value if !self.several => Ok(vec![value]),
            Value::List(items) if items.len() == self.values.len() => Ok(items),
            other => {
                let found = match &other {
                    Value::List(items) => items.len().to_string(),
                    other => other.kind().to_owned(),
                };
                let answers = count(self.values.len(), "entry");
                Err(row.wrong(format!("`{key}`: expected a list of {answers} like `{}`, found {found}", self.key)))
            }
        }
    }

    fn entry(&self, key: &str, answer: usize) -> String {
        if self.several { format!("{key}[{answer}]") } else { key.to_owned() }
    }
}

/// Columns of which `sft` reads the first that a row has.
const ONE: [&str; 3] = ["chosen", "completion", "messages"];

/// Whether a row has no answer but `conversations`.
pub(super) fn is_dialog(row: &Row) -> bool {
    row.fields.has("conversations") && !ONE.iter().any(|key| row.fields.has(key)) && !scored::has(row)
}

/// The only answer that `sft` reads; none where the row calls it a bad one.
fn one(row: &mut Row) -> Result<Answers> {
    let found = ONE.iter().chain(&["conversations"]).find(|key| row.fields.has(key));
    let (name, value) = match found {
        None if scored::has(row) => {
            let scored::Responses { key, values, scores } = scored::responses(row)?;
            let best = scored::best(&scores).ok_or_else(|| row.wrong(format!("`{key}` is empty")))?;
            let value = values.into_iter().nth(best).unwrap_or(Value::Null);
            (format!("{key}[{best}]").into(), value)
        }
        found => {
            let key = found.copied().unwrap_or("chosen");
            (Cow::Borrowed(key), required(row, key)?)
        }
    };
    let good = name != "completion" || !row.fields.has("label") || label(row)?;
    let pair = Pair { chosen: Some(0), rejected: None };
    let column = Column { name, value, score: None, rewards: Vec::new() };
    Ok(Answers { columns: vec![column], pairs: if good { vec![pair] } else { Vec::new() }, ties: 0 })
}

/// `chosen`, which is preferred to `rejected` or to each of several.
fn preferred(row: &mut Row, need: &Need, ties: ScoreTies) -> Result<Answers> {
    let chosen = Side::one("chosen", "_chosen", required(row, "chosen")?);
    let rejected = match required(row, "rejected")? {
        Value::List(none) if none.is_empty() => return Err(row.wrong("`rejected` is empty")),
        value => Side::list("rejected", "_rejected", value),
    };
    let mut columns = chosen.columns(row, need)?;
    columns.extend(rejected.columns(row, need)?);
    let (mut pairs, mut left_out) = (Vec::new(), 0);
    for other in 1..columns.len() {
        match (columns[0].score, columns[other].score, ties) {
            (Some(chosen), Some(rejected), ScoreTies::Refuse) if chosen <= rejected => {
                let name = &columns[other].name;
                let what =
                    format!("the score of `chosen` is {chosen}, that of `{name}` {rejected}, expected a lower one");
                return Err(row.wrong(what).hint("`odpo_ties: skip` leaves such pairs out"));
            }
            (Some(chosen), Some(rejected), ScoreTies::Skip) if chosen <= rejected => left_out += 1,
            _ => pairs.push(Pair { chosen: Some(0), rejected: Some(other) }),
        }
    }
    Ok(Answers { columns, pairs, ties: left_out })
}

/// Scored responses with the pairs that the recipe's rule makes.
fn judged(row: &mut Row, reading: &Reading, address: Address) -> Result<Answers> {
    let scored::Responses { key, values, scores } = scored::responses(row)?;
    let pairs = scored::pairs(&scores, reading.settings.pairs_from_scores, address);
    let pairs = pairs.into_iter().map(|(chosen, rejected)| Pair { chosen: Some(chosen), rejected: Some(rejected) });
    let side = Side { key, suffix: "", values, several: true };
    let rewards = side.rewards(row, &reading.need.rewards)?;
    Ok(Answers { columns: side.with(|i| scores.get(i).copied(), rewards), pairs: pairs.collect(), ties: 0 })
}

/// `completion` and whether it is a good one, as TRL's KTO has it.
fn labelled(row: &mut Row, need: &Need) -> Result<Answers> {
    let good = label(row)?;
    let pair = match good {
        true => Pair { chosen: Some(0), rejected: None },
        false => Pair { chosen: None, rejected: Some(0) },
    };
    let columns = Side::one("completion", "", required(row, "completion")?).columns(row, need)?;
    Ok(Answers { columns, pairs: vec![pair], ties: 0 })
}

fn label(row: &mut Row) -> Result<bool> {
    let found = match row.fields.take("label") {
        Some(Value::Bool(good)) => return Ok(good),
        Some(Value::Number(number)) if number == 0.0 || number == 1.0 => return Ok(number == 1.0),
        Some(Value::Text(text)) => format!("the text `{}`", shown(&text)),
        Some(other) => other.kind().to_owned(),
        None if row.fields.names("label") => "null".to_owned(),
        None => return Err(missing(row, "no `label`")),
    };
    Err(row
        .wrong(format!("`label`: expected true or false, found {found}"))
        .hint("true says that `completion` is a good answer, false that it is a bad one"))
}
