//! Yes-no questions about a scene, as POPE puts them, for supervised training.
//!
//! They carry the habit of the captions: what is asked about most is what usually stands together. An anchor's partner is asked about
//! about as often where it is missing as where it is there, and it is there nine times in ten, so "yes" is mostly right unseen.

use crate::address::Purpose;
use crate::scenes::{Object, Scene};
use mdpo_measure::benchmark::poll;
use rand::{RngExt, seq::IndexedRandom};

/// The most questions about one scene.
const MOST: usize = 6;

/// A question whether an object is in the picture, and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What is asked about.
    pub object: Object,
    /// Whether it is there.
    pub is_there: bool,
}

impl Question {
    /// As POPE's authors write it.
    pub fn text(self) -> String {
        poll::question(self.object.name())
    }

    /// `yes` or `no`.
    pub fn answer(self) -> &'static str {
        if self.is_there { "yes" } else { "no" }
    }
}

/// One to six questions in a row, a function of the scene's address.
///
/// Each answer is a fair coin whatever was answered before, so that neither the number of questions nor the answers so far tell the next
/// one; the row ends where nothing is left that is there. Of what is missing, an anchor's partner is asked about half of the time where
/// there is such a one.
pub fn about(scene: &Scene) -> Vec<Question> {
    let mut rng = scene.address.rng(Purpose::Questions);
    let objects = scene.objects();
    let expected = |object: &Object| objects.iter().any(|anchor| anchor.partner() == Some(*object));
    let mut left: Vec<Object> = Object::all().collect();
    let mut questions = Vec::new();
    while questions.len() < MOST && left.iter().any(|object| objects.contains(object)) {
        let is_there = rng.random_bool(0.5);
        let mut fitting: Vec<Object> =
            left.iter().copied().filter(|object| objects.contains(object) == is_there).collect();
        if !is_there && fitting.iter().any(expected) && rng.random_bool(0.5) {
            fitting.retain(expected);
        }
        let Some(&object) = fitting.choose(&mut rng) else { break };
        questions.push(Question { object, is_there });
        left.retain(|&other| other != object);
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, Split};

    fn scenes() -> impl Iterator<Item = Scene> {
        (0..4000).map(|index| Scene::at(Address { seed: 5, split: Split::Sft, index }))
    }

    #[test]
    fn questions_are_true_and_each_is_asked_once() {
        for scene in scenes() {
            let questions = about(&scene);
            assert_eq!(about(&scene), questions);
            assert!(questions.len() <= MOST);
            for (nth, question) in questions.iter().enumerate() {
                assert_eq!(scene.objects().contains(&question.object), question.is_there);
                assert!(questions[..nth].iter().all(|other| other.object != question.object));
            }
        }
    }

    /// Within four standard errors: all answers, the first one, the one behind two that are alike.
    #[test]
    fn an_answer_is_a_fair_coin_whatever_was_answered_before() {
        let all: Vec<Vec<Question>> = scenes().map(|scene| about(&scene)).collect();
        let fair = |what: &str, answers: Vec<bool>| {
            let (count, yes) = (answers.len() as f64, answers.iter().filter(|yes| **yes).count() as f64);
            assert!(count > 200.0 && (yes - count / 2.0).abs() < 2.0 * count.sqrt(), "{what}: {yes} of {count}");
        };
        fair("all", all.iter().flatten().map(|question| question.is_there).collect());
        fair("first", all.iter().map(|asked| asked[0].is_there).collect());
        for before in [true, false] {
            let alike = all.iter().filter(|asked| asked.len() > 2 && asked[..2].iter().all(|q| q.is_there == before));
            fair(&format!("after two times {before}"), alike.map(|asked| asked[2].is_there).collect());
        }
    }

    #[test]
    fn a_partner_is_mostly_there_where_its_anchor_is() {
        let (mut there, mut asked) = (0.0, 0.0);
        for scene in scenes() {
            for question in about(&scene) {
                if scene.objects().iter().any(|anchor| anchor.partner() == Some(question.object)) {
                    asked += 1.0;
                    there += f64::from(u8::from(question.is_there));
                }
            }
        }
        assert!((0.8..0.95).contains(&(there / asked)), "{there} of {asked}");
    }
}
