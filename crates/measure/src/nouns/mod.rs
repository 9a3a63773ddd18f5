//! Finding the objects of a vocabulary in an English answer.
//!
//! The authors of the benchmarks use NLTK's tagger and WordNet lemmatiser, `pattern` or spaCy. What exists for Rust and is kept up
//! (`harper-brill`) brings a neural-network framework with it, so this is a rule, which is easier to state than a tagger and can be
//! repeated anywhere. It needs no dictionary because only words of a known vocabulary matter:
//!
//! 1. A *word* is a run of letters, digits and inner hyphens; what follows an apostrophe is cut off. Everything but blanks between two
//!    words is a boundary.
//! 2. At every word the longest run of words without a boundary that is in the vocabulary is taken, and search goes on behind it. The
//!    last word of a run may be a plural ([`lemma`]); a run as it stands comes before its singular. A hyphen may stand for a blank.
//! 3. With [`Parts::Nouns`] a word that stands alone and is used as a verb or an adjective is left out ([`usage`]).
//!
//! How often this differs from the authors' tools on the same answers is in `docs/evaluation.md`.

pub mod lemma;
pub mod usage;

use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Which upper and lower case are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `Dog` is not `dog`.
    Kept,
    /// `Dog` is `dog`.
    Ignored,
}

/// Which words count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Every word of the vocabulary, whatever part of speech it is.
    Any,
    /// Those that are nouns where they stand.
    Nouns,
}

/// The objects that can be named, and the words for them.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    case: Case,
    parts: Parts,
    objects: Vec<String>,
    /// What a run of words stands for; nothing where it must not be read word by word (`home plate`).
    runs: HashMap<String, Option<Entry>>,
    longest: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    /// Index into the objects.
    object: usize,
    /// The word that is told, which for a run like `baby bird` is `bird`.
    word: String,
}

/// An object that an answer names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// The object's own name (`person`).
    pub object: String,
    /// The word of the vocabulary that names it, in its singular (`woman`).
    pub word: String,
}

impl Vocabulary {
    /// A vocabulary without objects.
    pub fn new(case: Case, parts: Parts) -> Self {
        Self { case, parts, objects: Vec::new(), runs: HashMap::new(), longest: 0 }
    }

    /// A vocabulary of names that are their own only words, in any case, as nouns.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut vocabulary = Self::new(Case::Ignored, Parts::Nouns);
        names.into_iter().for_each(|name| vocabulary.add(name, name));
        vocabulary
    }

    /// `words` name `object`. A run of words that has a meaning already keeps it.
    pub fn add(&mut self, words: &str, object: &str) {
        self.add_as(words, words, object);
    }

    /// `words` name `object` and are told as `word`.
    pub fn add_as(&mut self, words: &str, word: &str, object: &str) {
        let object = match self.objects.iter().position(|known| known == object) {
            Some(index) => index,
            None => {
                self.objects.push(object.to_owned());
                self.objects.len() - 1
            }
        };
        let word = self.normal(word);
        self.insert(words, Some(Entry { object, word }));
    }

    /// `words` name nothing, though their parts might.
    pub fn ignore(&mut self, words: &str) {
        self.insert(words, None);
    }

    fn insert(&mut self, words: &str, entry: Option<Entry>) {
        let run = self.normal(words);
        if !run.is_empty() {
            self.longest = self.longest.max(run.split(' ').count());
            self.runs.entry(run).or_insert(entry);
        }
    }

    /// The names of all objects, in the order in which they were added.
    pub fn objects(&self) -> &[String] {
        &self.objects
    }

    /// The object that `words` name, which must be a whole run of the vocabulary.
    pub fn object(&self, words: &str) -> Option<&str> {
        let entry = self.runs.get(&self.normal(words))?.as_ref()?;
        Some(&self.objects[entry.object])
    }

    /// Single blanks between words, and lower case where case does not matter.
    fn normal(&self, words: &str) -> String {
        let words: Vec<&str> = words.split_whitespace().collect();
        match self.case {
            Case::Kept => words.join(" "),
            Case::Ignored => words.join(" ").to_lowercase(),
        }
    }

    /// Every object that `text` names, in the order of the text and as often as it is named.
    pub fn mentions(&self, text: &str) -> Vec<Mention> {
        let lower;
        let text = match self.case {
            Case::Kept => text,
            Case::Ignored => {
                lower = text.to_lowercase();
                &lower
            }
        };
        let words = words(text);
        let (mut found, mut at) = (Vec::new(), 0);
        while at < words.len() {
            let Some((length, entry)) = self.run_at(&words, at) else {
                at += 1;
                continue;
            };
            let counts = length > 1 || self.parts == Parts::Any || usage::is_noun(&words, at);
            if let Some(entry) = entry.filter(|_| counts) {
                let object = self.objects[entry.object].clone();
                found.push(Mention { object, word: entry.word.clone() });
            }
            at += length;
        }
        found
    }

    /// The longest run of words from `at` on that is in the vocabulary: how many words, and what they mean.
    fn run_at(&self, words: &[Word], at: usize) -> Option<(usize, Option<&Entry>)> {
        let to_boundary = words[at + 1..].iter().take_while(|word| !word.after_boundary).count() + 1;
        (1..=self.longest.min(to_boundary)).rev().find_map(|length| {
            let run: Vec<&str> = words[at..at + length].iter().map(|word| word.text).collect();
            let run = run.join(" ");
            let entry =
                self.meaning(&run).or_else(|| self.meaning(&run.contains('-').then(|| run.replace('-', " "))?))?;
            Some((length, entry.as_ref()))
        })
    }

    /// What a run means as it stands, else with its last word in the singular (the shortest one that means something).
    fn meaning(&self, run: &str) -> Option<&Option<Entry>> {
        self.runs.get(run).or_else(|| {
            let (before, last) =
                run.rsplit_once(' ').map_or(("", run), |(_, last)| run.split_at(run.len() - last.len()));
            let mut singulars = lemma::singulars(last);
            singulars.sort_by_key(String::len);
            singulars.iter().find_map(|singular| self.runs.get(&format!("{before}{singular}")))
        })
    }
}

/// A word of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word, without what follows an apostrophe.
    pub text: &'a str,
    /// Something other than blanks stands between it and the word before, or it is the first.
    pub after_boundary: bool,
}

/// The words of a text.
fn words(text: &str) -> Vec<Word<'_>> {
    static WORD: LazyLock<Regex> = LazyLock::new(|| {
        let word = r"[\p{L}\p{N}]+(?:[-'\u{2019}][\p{L}\p{N}]+)*";
        Regex::new(word).expect("a pattern that compiles")
    });
    let (mut words, mut end) = (Vec::new(), 0);
    for found in WORD.find_iter(text) {
        let after_boundary = words.is_empty() || !text[end..found.start()].trim().is_empty();
        end = found.end();
        let word = found.as_str();
        words.push(Word { text: word.split(['\'', '\u{2019}']).next().unwrap_or(word), after_boundary });
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(vocabulary: &Vocabulary, text: &str) -> Vec<String> {
        vocabulary.mentions(text).into_iter().map(|mention| mention.word).collect()
    }

    #[test]
    fn the_longest_run_is_taken_and_its_last_word_may_be_a_plural() {
        let vocabulary = Vocabulary::of_names(["dog", "hot dog", "traffic light", "light", "stand"]);
        assert_eq!(
            named(&vocabulary, "Two hot dogs, a hot-dog stand and dogs."),
            ["hot dog", "hot dog", "stand", "dog"]
        );
        assert_eq!(named(&vocabulary, "traffic lights. The traffic, light"), ["traffic light", "light"]);
        assert_eq!(named(&vocabulary, "a dog-like shape, the dog's tail"), ["dog"]);
    }

    #[test]
    fn words_lose_what_follows_an_apostrophe_and_know_their_boundaries() {
        let found = words("  A man's hat; don\u{2019}t - 'quoted' well-kept  end.");
        let found: Vec<(&str, bool)> = found.iter().map(|word| (word.text, word.after_boundary)).collect();
        let expected = [
            ("A", true),
            ("man", false),
            ("hat", false),
            ("don", true),
            ("quoted", true),
            ("well-kept", true),
            ("end", false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_word_as_it_stands_comes_before_its_singular() {
        let vocabulary = Vocabulary::of_names(["glass", "glasses"]);
        assert_eq!(named(&vocabulary, "glasses and a glass"), ["glasses", "glass"]);
        assert_eq!(named(&Vocabulary::of_names(["glass"]), "glasses"), ["glass"]);
    }

    #[test]
    fn a_run_may_stand_for_another_word_or_for_nothing() {
        let mut vocabulary = Vocabulary::new(Case::Ignored, Parts::Any);
        vocabulary.add("person", "person");
        vocabulary.add("baby", "person");
        vocabulary.add("bird", "bird");
        vocabulary.add_as("baby bird", "bird", "bird");
        vocabulary.add("plate", "plate");
        vocabulary.ignore("home plate");
        let mentions = vocabulary.mentions("A baby bird, a baby and a home plate");
        let mentions: Vec<(&str, &str)> = mentions.iter().map(|m| (m.object.as_str(), m.word.as_str())).collect();
        assert_eq!(mentions, [("bird", "bird"), ("person", "baby")]);
        assert_eq!(vocabulary.object("Baby  bird"), Some("bird"));
        assert_eq!(vocabulary.object("home plate"), None);
    }

    #[test]
    fn case_is_kept_where_it_matters() {
        let mut vocabulary = Vocabulary::new(Case::Kept, Parts::Any);
        vocabulary.add("TV", "TV");
        vocabulary.add("dog", "dog");
        assert_eq!(named(&vocabulary, "Dogs see a TV, a tv, TVs and dogs"), ["TV", "TV", "dog"]);
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(text in "\\PC{0,60}") {
            let vocabulary = Vocabulary::of_names(["a", "b c", "s"]);
            let words = words(&text);
            prop_assert!(vocabulary.mentions(&text).len() <= words.len().max(text.to_lowercase().chars().count()));
        }

        #[test]
        fn what_is_listed_is_found(picked in prop::collection::vec(0usize..5, 0..8)) {
            const NAMES: [&str; 5] = ["cat", "fire hydrant", "bus", "knife", "cherry"];
            const PLURALS: [&str; 5] = ["cats", "fire hydrants", "buses", "knives", "cherries"];
            let vocabulary = Vocabulary::of_names(NAMES);
            let text: Vec<&str> = picked.iter().enumerate().map(|(at, &name)| [NAMES, PLURALS][at % 2][name]).collect();
            let expected: Vec<&str> = picked.iter().map(|&name| NAMES[name]).collect();
            prop_assert_eq!(named(&vocabulary, &text.join(", ")), expected.clone());
            prop_assert_eq!(named(&vocabulary, &format!("There is a {}.", text.join(" and a "))), expected);
        }
    }
}
