//! The gallery: the same question answered by several models, side by side, with the objects marked that the picture does not show.
//!
//! Which questions are shown is decided by their place in the file alone, never by how an answer came out.

use super::evaluation::{Evaluation, Row};
use super::table::number;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The longest answer that is shown whole, in characters.
const LONGEST_ANSWER: usize = 2000;

/// One question.
#[derive(Debug)]
pub(super) struct Card {
    pub benchmark: String,
    pub id: String,
    pub image: Option<PathBuf>,
    pub question: String,
    /// In the order of the evaluations: index of the evaluation and what it says.
    pub answers: Vec<(usize, Told)>,
}

/// An answer in pieces.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Told {
    pub pieces: Vec<Piece>,
    /// Invented objects whose words do not stand in the answer as such: benchmarks count synonyms and double words under one name.
    pub elsewhere: Vec<String>,
    /// Whether anything in it is invented.
    pub invented: bool,
    pub correct: Option<bool>,
    /// As many digits as a reader compares; a grade has none.
    pub score: Option<String>,
    /// Whether the end was left out.
    pub cut: bool,
}

/// A run of words that are all invented, or all not.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Piece {
    pub text: String,
    pub invented: bool,
}

/// Chooses `count` questions, shared out among the benchmarks, and tells how many there were. A question that more models answered
/// comes before one that fewer did; among those it is every n-th.
pub(super) fn choose(evaluations: &[Evaluation], count: usize) -> (Vec<Card>, usize) {
    let benchmarks: Vec<&str> = {
        let mut seen = BTreeSet::new();
        let all = evaluations.iter().filter(|evaluation| !evaluation.rows.is_empty()).map(Evaluation::benchmark);
        all.filter(|benchmark| seen.insert(*benchmark)).collect()
    };
    let (mut cards, mut questions) = (Vec::new(), 0);
    for (place, benchmark) in benchmarks.iter().enumerate() {
        // The first benchmarks get what does not divide.
        let share = count / benchmarks.len() + usize::from(place < count % benchmarks.len());
        let own: Vec<(usize, &Evaluation)> =
            evaluations.iter().enumerate().filter(|(_, evaluation)| evaluation.benchmark() == *benchmark).collect();
        let (mut order, mut answered) = (Vec::new(), BTreeMap::<&str, Vec<(usize, &Row)>>::new());
        for (index, evaluation) in &own {
            for row in &evaluation.rows {
                let known = answered.entry(&row.id).or_default();
                if known.is_empty() {
                    order.push(row.id.as_str());
                }
                known.push((*index, row));
            }
        }
        questions += order.len();
        let most = answered.values().map(Vec::len).max().unwrap_or(0);
        let (shared, others): (Vec<&str>, Vec<&str>) = order.iter().partition(|id| answered[**id].len() == most);
        let chosen = spread(&shared, share).chain(spread(&others, share.saturating_sub(shared.len())));
        cards.extend(chosen.map(|id| card(benchmark, id, &answered[id])));
    }
    (cards, questions)
}

/// `count` of `all`, evenly spaced, the first among them.
fn spread<'a>(all: &'a [&'a str], count: usize) -> impl Iterator<Item = &'a str> {
    let count = count.min(all.len());
    (0..count).map(move |i| all[i * all.len() / count])
}

fn card(benchmark: &str, id: &str, answers: &[(usize, &Row)]) -> Card {
    let first = answers[0].1;
    Card {
        benchmark: benchmark.to_owned(),
        id: id.to_owned(),
        image: answers.iter().find_map(|(_, row)| row.image.clone()),
        question: first.question.clone(),
        answers: answers.iter().map(|(index, row)| (*index, tell(row))).collect(),
    }
}

fn tell(row: &Row) -> Told {
    let cut = row.answer.chars().count() > LONGEST_ANSWER;
    let answer: String = row.answer.chars().take(LONGEST_ANSWER).collect();
    let (pieces, elsewhere) = mark(&answer, &row.hallucinated);
    let shown = |score: f64| if score.fract() == 0.0 { format!("{score}").replace('-', "−") } else { number(score) };
    let (correct, score) = (row.correct, row.score.map(shown));
    Told { pieces, elsewhere, invented: !row.hallucinated.is_empty(), correct, score, cut }
}

/// Cuts an answer where invented objects begin and end; the second part is those that were not found.
fn mark(answer: &str, invented: &[String]) -> (Vec<Piece>, Vec<String>) {
    let words = words(answer);
    let mut marked = vec![false; words.len()];
    let mut elsewhere = Vec::new();
    for object in invented {
        let lemmas: Vec<String> = object.split_whitespace().map(str::to_lowercase).collect();
        let mut found = false;
        if !lemmas.is_empty() {
            for (start, window) in words.windows(lemmas.len()).enumerate() {
                if window.iter().zip(&lemmas).all(|(word, lemma)| is_form_of(&word.1, lemma)) {
                    marked[start..start + lemmas.len()].fill(true);
                    found = true;
                }
            }
        }
        if !found && !elsewhere.contains(object) {
            elsewhere.push(object.clone());
        }
    }
    let (mut pieces, mut at, mut index) = (Vec::new(), 0, 0);
    while index < words.len() {
        if !marked[index] {
            index += 1;
            continue;
        }
        let first = index;
        // Words of one object stand together; another object behind a comma is another mark.
        while index + 1 < words.len()
            && marked[index + 1]
            && answer[words[index].0.end..words[index + 1].0.start].trim().is_empty()
        {
            index += 1;
        }
        let (start, end) = (words[first].0.start, words[index].0.end);
        if start > at {
            pieces.push(Piece { text: answer[at..start].to_owned(), invented: false });
        }
        pieces.push(Piece { text: answer[start..end].to_owned(), invented: true });
        (at, index) = (end, index + 1);
    }
    if at < answer.len() {
        pieces.push(Piece { text: answer[at..].to_owned(), invented: false });
    }
    (pieces, elsewhere)
}

/// The words of a text in lower case, with where they stand.
fn words(text: &str) -> Vec<(std::ops::Range<usize>, String)> {
    let mut found = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_alphanumeric(), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push((from..at, text[from..at].to_lowercase()));
                start = None;
            }
            _ => {}
        }
    }
    found
}

/// Whether a word is `lemma` or its plural: for marking only, the scores were made where the rows were.
fn is_form_of(word: &str, lemma: &str) -> bool {
    const IRREGULAR: [(&str, &str); 9] = [
        ("man", "men"),
        ("woman", "women"),
        ("child", "children"),
        ("person", "people"),
        ("mouse", "mice"),
        ("goose", "geese"),
        ("foot", "feet"),
        ("tooth", "teeth"),
        ("ox", "oxen"),
    ];
    if word == lemma || IRREGULAR.contains(&(lemma, word)) {
        return true;
    }
    let behind = |stem: &str, ending: &str| word.strip_prefix(stem) == Some(ending);
    let stem = |ending: &str| lemma.strip_suffix(ending);
    behind(lemma, "s")
        || behind(lemma, "es")
        || stem("y").is_some_and(|stem| behind(stem, "ies"))
        || stem("f").or(stem("fe")).is_some_and(|stem| behind(stem, "ves"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(answer: &str, invented: &[&str]) -> (String, Vec<String>) {
        let invented: Vec<String> = invented.iter().map(|&object| object.to_owned()).collect();
        let (pieces, elsewhere) = mark(answer, &invented);
        let text = pieces.iter().map(|p| if p.invented { format!("[{}]", p.text) } else { p.text.clone() }).collect();
        (text, elsewhere)
    }

    #[test]
    fn invented_objects_are_marked_in_the_forms_they_take() {
        let (text, elsewhere) = marks(
            "Two knives, berries and a Fire Hydrant by the boxes; dishcloth. Été, café!",
            &["knife", "berry", "fire hydrant", "box", "dish", "café"],
        );
        assert_eq!(text, "Two [knives], [berries] and a [Fire Hydrant] by the [boxes]; dishcloth. Été, [café]!");
        assert_eq!(elsewhere, ["dish"]);
    }

    #[test]
    fn neighbours_are_marked_apart_unless_they_are_one_object() {
        assert_eq!(marks("dog, cat", &["dog", "cat"]).0, "[dog], [cat]");
        assert_eq!(marks("", &["dog"]), (String::new(), vec!["dog".to_owned()]));
        assert_eq!(marks("no dog", &["", "dog"]).0, "no [dog]");
    }

    #[test]
    fn the_questions_are_spread_evenly() {
        let all = ["a", "b", "c", "d", "e", "f", "g"];
        assert_eq!(spread(&all, 3).collect::<Vec<_>>(), ["a", "c", "e"]);
        assert_eq!(spread(&all, 99).count(), 7);
        assert_eq!(spread(&[], 3).count(), 0);
    }
}
