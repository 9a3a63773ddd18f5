//! Rows of several scored responses, and the pairs that a rule makes of the scores.
//!
//! `responses` with `scores`, as the judged samples of LLaVA-Hound-DPO (Zhang et al. 2024, scores from 1 to 5), or the `completions` of
//! VLFeedback (Li et al. 2023), whose score is the mean of the ratings that they were given.

use rand::RngExt;

use super::row::{Fields, Row, Value};
use super::shape::{count, required};
use crate::Result;
use crate::address::Address;
use crate::config::PairsFromScores;

/// Whether a row has such responses.
pub(super) fn has(row: &Row) -> bool {
    ["responses", "completions"].iter().any(|key| row.fields.has(key))
}

/// Responses, and the column that they stand in.
#[derive(Debug)]
pub(super) struct Responses {
    /// `responses` or `completions`.
    pub(super) key: &'static str,
    /// What each says.
    pub(super) values: Vec<Value>,
    /// How good each is.
    pub(super) scores: Vec<f64>,
}

/// The responses of a row and their scores.
pub(super) fn responses(row: &mut Row) -> Result<Responses> {
    if !row.fields.has("responses") {
        return completions(row);
    }
    let key = "responses";
    let values = list(row, key)?;
    let scores = list(row, "scores")?;
    if scores.len() != values.len() {
        let what = format!("`responses` has {}, `scores` has {}", count(values.len(), "response"), scores.len());
        return Err(row.wrong(what).hint("give one score for each response"));
    }
    let score = |(i, value)| row.number(&format!("scores[{i}]"), &value);
    let scores = scores.into_iter().enumerate().map(score).collect::<Result<_>>()?;
    Ok(Responses { key, values, scores })
}

fn list(row: &mut Row, key: &str) -> Result<Vec<Value>> {
    match required(row, key)? {
        Value::List(items) => Ok(items),
        other => Err(row.wrong(format!("`{key}`: expected a list, found {}", other.kind()))),
    }
}

/// VLFeedback's responses: a list of objects, or as `datasets` writes a sequence of them, an object of lists.
fn completions(row: &mut Row) -> Result<Responses> {
    let key = "completions";
    let items = match required(row, key)? {
        Value::Object(columns) => {
            let mut columns = Fields::new(columns);
            match (columns.take("response"), columns.take("annotations")) {
                (Some(Value::List(said)), Some(Value::List(rated))) if said.len() == rated.len() => {
                    said.into_iter().zip(rated).map(|(said, rated)| (Some(said), Some(rated))).collect()
                }
                _ => return Err(row.wrong("`completions`: expected as many `annotations` as `response`s")),
            }
        }
        Value::List(items) => {
            let of = |(i, item): (usize, Value)| match item {
                Value::Object(fields) => {
                    let mut fields = Fields::new(fields);
                    Ok((fields.take("response"), fields.take("annotations")))
                }
                other => {
                    let what =
                        format!("`completions[{i}]`: expected `response` and `annotations`, found {}", other.kind());
                    Err(row.wrong(what).hint("texts with a number each are written as `responses` and `scores`"))
                }
            };
            items.into_iter().enumerate().map(of).collect::<Result<Vec<_>>>()?
        }
        other => return Err(row.wrong(format!("`completions`: expected a list, found {}", other.kind()))),
    };
    let (mut values, mut scores) = (Vec::new(), Vec::new());
    for (i, (said, rated)) in items.into_iter().enumerate() {
        values.push(said.ok_or_else(|| row.wrong(format!("`completions[{i}]`: no `response`")))?);
        scores.push(mean_rating(row, &format!("completions[{i}].annotations"), rated)?);
    }
    Ok(Responses { key, values, scores })
}

/// The mean of `Rating` over the aspects that have a number there; VLFeedback writes it as text, and `N/A` where there is none.
fn mean_rating(row: &Row, place: &str, rated: Option<Value>) -> Result<f64> {
    let aspects = match rated {
        Some(Value::Object(aspects)) => aspects,
        _ => Vec::new(),
    };
    let rating = |(_, aspect): (String, Value)| match aspect {
        Value::Object(fields) => match Fields::new(fields).take("Rating")? {
            Value::Number(number) => Some(number),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        },
        _ => None,
    };
    let ratings: Vec<f64> = aspects.into_iter().filter_map(rating).filter(|rating| rating.is_finite()).collect();
    match ratings.len() {
        0 => Err(row.wrong(format!("`{place}`: no aspect with a `Rating` that is a number"))),
        number => Ok(ratings.iter().sum::<f64>() / number as f64),
    }
}

/// The first response of the highest score; none where there is no response.
pub(super) fn best(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).reduce(|one, other| if scores[other] > scores[one] { other } else { one })
}

/// The pairs (preferred, other) of responses with these scores; none where no score is better than another.
pub(super) fn pairs(scores: &[f64], rule: PairsFromScores, address: Address) -> Vec<(usize, usize)> {
    let all = 0..scores.len();
    match rule {
        PairsFromScores::BestVsWorst => {
            let worst = all.reduce(|one, other| if scores[other] < scores[one] { other } else { one });
            best(scores).zip(worst).filter(|&(best, worst)| scores[best] > scores[worst]).into_iter().collect()
        }
        PairsFromScores::Threshold(threshold) => {
            let (chosen, rejected): (Vec<usize>, Vec<usize>) = all.partition(|&i| scores[i] >= threshold);
            if chosen.is_empty() || rejected.is_empty() {
                return Vec::new();
            }
            let mut rng = address.rng("score pair");
            let mut draw = |pool: &[usize]| pool[rng.random_range(0..pool.len() as u64) as usize];
            vec![(draw(&chosen), draw(&rejected))]
        }
        PairsFromScores::All => {
            let others = |i: usize| (0..scores.len()).filter(move |&j| scores[i] > scores[j]).map(move |j| (i, j));
            all.flat_map(others).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn at(row: u64) -> Address {
        Address { seed: 42, epoch: 0, example: row }
    }

    #[test]
    fn the_best_stands_against_the_worst_and_the_earlier_of_equals_wins() {
        let pairs = |scores: &[f64]| pairs(scores, PairsFromScores::BestVsWorst, at(0));
        assert_eq!(pairs(&[3.0, 5.0, 1.0, 5.0, 1.0]), [(1, 2)]);
        assert_eq!(pairs(&[2.0, 2.0]), []);
        assert_eq!(pairs(&[2.0]), []);
        assert_eq!(pairs(&[]), []);
    }

    #[test]
    fn every_better_response_stands_against_every_worse_one() {
        let pairs = |scores: &[f64]| pairs(scores, PairsFromScores::All, at(0));
        assert_eq!(pairs(&[3.0, 5.0, 3.0, 1.0]), [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]);
        assert_eq!(pairs(&[2.0, 2.0]), []);
    }

    /// The pools of LLaVA-Hound-DPO: 3 and above, and below 3.
    #[test]
    fn a_threshold_draws_one_of_each_pool_by_seed_and_row() {
        let pairs = |scores: &[f64], row| pairs(scores, PairsFromScores::Threshold(3.0), at(row));
        let scores = [5.0, 2.0, 3.0, 1.0, 4.0, 2.0];
        let drawn: HashSet<_> = (0..200).flat_map(|row| pairs(&scores, row)).collect();
        let expected: HashSet<_> = [0, 2, 4].into_iter().flat_map(|c| [1, 3, 5].map(|r| (c, r))).collect();
        assert_eq!(drawn, expected);
        assert_eq!(pairs(&scores, 7), pairs(&scores, 7));
        assert_eq!(pairs(&[4.0, 3.0, 5.0, 3.0, 4.0, 5.0], 0), []);
        assert_eq!(pairs(&[1.0, 2.0, 2.0, 1.0, 1.0, 2.0], 0), []);
    }
}
