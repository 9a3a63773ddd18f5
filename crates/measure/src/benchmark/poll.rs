//! POPE's polling: which objects are asked about, how a question is put, how an answer is read, what is counted.
//!
//! Source: Li et al., EMNLP 2023 (arXiv 2305.10355), and `main.py`, `utils.py` and `evaluate.py` of its authors. Of each image some objects that
//! are there are asked about, and for each of them one that is not: a random one, the most frequent one, or the one that most often stands
//! together with it. Differences: the authors ask about the first three objects and leave out images with fewer, here an image with fewer is
//! asked about what it has; where every object of the vocabulary is in the image there is nothing to ask for; numbers are drawn per image, so a
//! question does not depend on the images before it; a vowel takes `an` without changing other letters of the question.

use super::binary::{self, Outcome};
use crate::interval::{Measure, below};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::fmt;

/// How objects that are not in the image are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Any.
    Random,
    /// The most frequent one in all images.
    Popular,
    /// The one that most often stands together with the object asked about before.
    Adversarial,
}

impl Setting {
    /// All of them, in the order of the paper.
    pub const ALL: [Setting; 3] = [Setting::Random, Setting::Popular, Setting::Adversarial];

    /// The paper's name.
    pub fn name(self) -> &'static str {
        match self {
            Setting::Random => "random",
            Setting::Popular => "popular",
            Setting::Adversarial => "adversarial",
        }
    }

    /// Its group of columns; group 0 is all settings together.
    fn group(self) -> usize {
        1 + self as usize
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A question whether an object is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poll {
    /// The object, as an index into the vocabulary.
    pub object: usize,
    /// Whether it is there.
    pub is_there: bool,
}

/// The most objects of an image that are asked about, as in the authors' files.
const MOST: usize = 3;

/// How often objects occur, alone and together, over all images.
#[derive(Debug)]
pub struct Occurrences {
    /// From the most frequent object to the rarest, those of equal frequency in the order in which they first occur.
    popular: Vec<usize>,
    /// For every object the others that occur with it, in the same order.
    together: Vec<Vec<usize>>,
}

impl Occurrences {
    /// Counts the objects of all `images`, which are indices below `objects`, each once an image.
    pub fn count(images: &[Vec<usize>], objects: usize) -> Self {
        let (mut alone, mut together) = (Counts::new(objects), vec![Counts::new(objects); objects]);
        for image in images {
            for &object in image {
                alone.add(object);
                image.iter().filter(|&&other| other != object).for_each(|&other| together[object].add(other));
            }
        }
        Self { popular: alone.sorted(), together: together.into_iter().map(Counts::sorted).collect() }
    }

    /// The questions about image number `index`, which has `objects`.
    pub fn polls(&self, index: usize, objects: &[usize], setting: Setting, seed: u64) -> Vec<Poll> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64);
        let mut absent: Vec<usize> = self.popular.clone();
        absent.retain(|object| !objects.contains(object));
        let (mut polls, mut asked) = (Vec::new(), 0);
        for &object in objects {
            if asked == MOST || absent.is_empty() {
                break;
            }
            let together = || self.together[object].iter().find_map(|other| absent.iter().position(|o| o == other));
            let at = match setting {
                Setting::Random => None,
                Setting::Popular => Some(0),
                Setting::Adversarial => together(),
            };
            let at = at.unwrap_or_else(|| below(absent.len(), &mut random));
            polls.push(Poll { object, is_there: true });
            polls.push(Poll { object: absent.remove(at), is_there: false });
            asked += 1;
        }
        polls
    }
}

/// How often each object was seen, and when first.
#[derive(Debug, Clone)]
struct Counts {
    counts: Vec<usize>,
    order: Vec<usize>,
}

impl Counts {
    fn new(objects: usize) -> Self {
        Self { counts: vec![0; objects], order: Vec::new() }
    }

    fn add(&mut self, object: usize) {
        if self.counts[object] == 0 {
            self.order.push(object);
        }
        self.counts[object] += 1;
    }

    fn sorted(self) -> Vec<usize> {
        let mut order = self.order;
        order.sort_by_key(|&object| std::cmp::Reverse(self.counts[object]));
        order
    }
}

/// The question whether an object is in the image, as in the authors' files.
pub fn question(object: &str) -> String {
    let article = if object.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("Is there {article} {object} in the image?")
}

/// Whether an answer says yes, by the rule of the authors' `evaluate.py`: the words up to the first full stop, without commas and cut at
/// blanks; `No`, `no` or `not` among them is a no, everything else a yes.
pub fn says_yes(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or(answer).replace(',', "");
    !sentence.split(' ').any(|word| matches!(word, "No" | "no" | "not"))
}

/// Columns that polls take.
pub(super) const COLUMNS: usize = 4 * binary::COLUMNS;

/// What an answer adds to the columns, which start at 0; and whether it is correct.
pub(super) fn judge(setting: Setting, is_there: bool, answer: &str) -> (bool, Vec<(usize, f64)>) {
    let says_class = says_yes(answer);
    let outcome = Outcome { is_correct: says_class == is_there, says_class, is_class: is_there };
    (outcome.is_correct, outcome.counts(0).into_iter().chain(outcome.counts(setting.group())).collect())
}

/// The figures over all settings and over each that is there; `prefix` is put before their names.
pub(super) fn measures(prefix: &str, settings: &[Setting]) -> Vec<Measure> {
    let group = |name: &str, group: usize| {
        let name = format!("{prefix}{name}");
        let mut measures = binary::measures(&name, group);
        measures.push(binary::share_said(format!("{name}yes_share"), group));
        measures
    };
    let all = group("", 0).into_iter();
    all.chain(settings.iter().flat_map(|setting| group(&format!("{setting}/"), setting.group()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_as_the_authors_read_them() {
        let yes =
            ["Yes", "yes, there is.", "There is a dog. No cat", "NO", "None", "Nothing", "", "no\n", "There is-not"];
        let no = ["No", "no", "No, there is not.", "There is not a dog", "It is, no, a cat"];
        assert!(yes.iter().all(|answer| says_yes(answer)));
        assert!(!no.iter().any(|answer| says_yes(answer)));
    }

    #[test]
    fn negatives_are_frequent_or_stand_together() {
        // Object 3 is the most frequent; 1 stands with 0 twice, 2 with 0 once.
        let images = [vec![0, 1], vec![0, 1, 3], vec![0, 2, 3], vec![3], vec![3], vec![0]];
        let occurrences = Occurrences::count(&images, 4);
        assert_eq!(occurrences.popular, [0, 3, 1, 2]);
        assert_eq!(occurrences.together[0], [1, 3, 2]);
        let asked = |setting| occurrences.polls(5, &images[5], setting, 1)[1].object;
        assert_eq!(asked(Setting::Popular), 3);
        assert_eq!(asked(Setting::Adversarial), 1);
    }

    #[test]
    fn a_vowel_takes_an() {
        assert_eq!(question("apple"), "Is there an apple in the image?");
        assert_eq!(question("banana"), "Is there a banana in the image?");
    }

    proptest! {
        #[test]
        fn polls_are_balanced_true_and_repeat(
            images in prop::collection::vec(prop::collection::btree_set(0usize..6, 0..6), 1..8), seed in 0u64..100
        ) {
            let images: Vec<Vec<usize>> = images.into_iter().map(|image| image.into_iter().collect()).collect();
            let occurrences = Occurrences::count(&images, 6);
            for setting in Setting::ALL {
                for (index, image) in images.iter().enumerate() {
                    let polls = occurrences.polls(index, image, setting, seed);
                    prop_assert_eq!(&occurrences.polls(index, image, setting, seed), &polls);
                    prop_assert!(polls.iter().all(|poll| image.contains(&poll.object) == poll.is_there));
                    let there = polls.iter().filter(|poll| poll.is_there).count();
                    prop_assert_eq!(2 * there, polls.len());
                    let mut objects: Vec<usize> = polls.iter().map(|poll| poll.object).collect();
                    objects.sort_unstable();
                    objects.dedup();
                    prop_assert_eq!(objects.len(), polls.len());
                    prop_assert!(there == MOST.min(image.len()) || there == occurrences.popular.len() - image.len());
                }
            }
        }
    }
}
