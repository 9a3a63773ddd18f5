//! Whether a word that can be a noun is one where it stands, told from its neighbours.
//!
//! No tagger: three cues that cover what goes wrong in descriptions of images. A word is *not* a noun when it is
//!
//! - a colour (`orange`, `peach` …), or `light` or `dark` before a colour, directly before a word that is not a function word (`an orange cat`, but
//!   `an orange on a plate`), or `hot` anywhere;
//! - one of the words that are verbs as often as nouns, and stands behind a modal, a subject pronoun or `to` (`to watch`, but not `next to
//!   water`), or before a determiner (`watches the dog`);
//! - `can`, unless a determiner or what cans are made for stands before it (`a trash can`);
//! - an `-ing` form of such a verb behind a form of *to be* or before a determiner (`is painting a wall`).

use super::Word;

const COLOURS: [&str; 14] = [
    "orange",
    "peach",
    "cream",
    "silver",
    "gold",
    "rose",
    "lavender",
    "violet",
    "lime",
    "olive",
    "salmon",
    "turquoise",
    "chocolate",
    "lemon",
];

const PLAIN_COLOURS: [&str; 14] = [
    "red", "blue", "green", "yellow", "brown", "black", "white", "grey", "gray", "pink", "purple", "beige", "tan",
    "colored",
];

const VERBS: [&str; 60] = [
    "watch", "support", "light", "sign", "line", "lock", "drink", "plug", "board", "ski", "skate", "surf", "book",
    "bat", "fish", "ring", "rock", "string", "tie", "train", "star", "stage", "brush", "fence", "range", "switch",
    "drain", "tap", "pack", "hose", "spray", "leave", "stand", "cover", "frame", "surround", "face", "display", "park",
    "walk", "run", "play", "show", "look", "sail", "ride", "note", "file", "track", "tape", "kite", "paddle", "shovel",
    "net", "cook", "bear", "fly", "duck", "pot", "toy",
];

const ING: [&str; 6] = ["painting", "drawing", "sailing", "skiing", "surfing", "clothing"];

const BE: [&str; 8] = ["is", "are", "was", "were", "be", "been", "being", "while"];

const BEFORE_A_VERB: [&str; 26] = [
    "i", "you", "we", "they", "he", "she", "it", "who", "which", "can", "could", "may", "might", "will", "would",
    "shall", "should", "must", "not", "don", "doesn", "didn", "won", "let", "to", "also",
];

/// Before `to`, which then is a preposition.
const BEFORE_TO: [&str; 18] = [
    "next",
    "close",
    "closer",
    "closest",
    "due",
    "adjacent",
    "attached",
    "connected",
    "similar",
    "opposite",
    "leading",
    "leads",
    "thanks",
    "addition",
    "tied",
    "proximity",
    "up",
    "back",
];

const DETERMINERS: [&str; 19] = [
    "a", "an", "the", "his", "her", "its", "their", "my", "your", "our", "this", "that", "these", "those", "each",
    "every", "some", "another", "one",
];

const BEFORE_A_CAN: [&str; 14] = [
    "trash",
    "garbage",
    "soda",
    "beer",
    "tin",
    "aluminum",
    "aluminium",
    "watering",
    "spray",
    "metal",
    "paint",
    "cola",
    "coke",
    "rubbish",
];

/// Words behind which a colour was a thing and not a property.
const FUNCTION_WORDS: [&str; 62] = [
    "and",
    "or",
    "but",
    "nor",
    "of",
    "in",
    "on",
    "at",
    "with",
    "without",
    "to",
    "from",
    "near",
    "by",
    "for",
    "as",
    "is",
    "are",
    "was",
    "were",
    "be",
    "has",
    "have",
    "had",
    "that",
    "which",
    "who",
    "behind",
    "beside",
    "under",
    "over",
    "above",
    "below",
    "between",
    "among",
    "next",
    "while",
    "can",
    "could",
    "may",
    "might",
    "will",
    "would",
    "should",
    "also",
    "sits",
    "lies",
    "stands",
    "sitting",
    "lying",
    "standing",
    "placed",
    "visible",
    "resting",
    "hanging",
    "located",
    "positioned",
    "into",
    "onto",
    "along",
    "around",
    "inside",
];

/// Whether the word at `at` is a noun.
pub fn is_noun(words: &[Word], at: usize) -> bool {
    let lower = |index: usize| words[index].text.to_lowercase();
    let word = lower(at);
    let before = if at > 0 && !words[at].after_boundary { lower(at - 1) } else { String::new() };
    let after = words.get(at + 1).filter(|next| !next.after_boundary).map(|next| next.text.to_lowercase());
    let after = after.unwrap_or_default();
    let is = |list: &[&str], word: &str| list.contains(&word);

    if word == "hot" {
        return false;
    }
    if word == "can" {
        return is(&DETERMINERS, &before) || is(&BEFORE_A_CAN, &before);
    }
    if is(&COLOURS, &word) {
        return after.is_empty() || is(&FUNCTION_WORDS, &after);
    }
    if word == "light" && (is(&COLOURS, &after) || is(&PLAIN_COLOURS, &after)) {
        return false;
    }
    if is(&ING, &word) {
        return !is(&BE, &before) && !is(&DETERMINERS, &after);
    }
    let base = word.strip_suffix("es").filter(|stem| is(&VERBS, stem)).or(word.strip_suffix('s')).unwrap_or(&word);
    if is(&VERBS, base) {
        let preposition = before == "to" && at > 1 && is(&BEFORE_TO, &lower(at - 2));
        let verb_before = is(&BEFORE_A_VERB, &before) && !preposition;
        let verb_after = is(&DETERMINERS, &after) && !is(&DETERMINERS, &before);
        return !(verb_before || verb_after);
    }
    true
}

#[cfg(test)]
mod tests {
    use crate::nouns::{Case, Parts, Vocabulary};

    const WORDS: [&str; 10] = ["orange", "watch", "can", "light", "hot", "painting", "water", "train", "cat", "dog"];

    #[test]
    fn nouns_are_told_from_verbs_and_properties() {
        let cases: [(&str, &[&str]); 14] = [
            ("an orange cat", &["cat"]),
            ("an orange and a cat", &["orange", "cat"]),
            ("oranges on a plate", &["orange"]),
            ("a light blue hot cat", &["cat"]),
            ("the light is on", &["light"]),
            ("the dog can be seen in a can", &["dog", "can"]),
            ("a trash can and cans", &["can", "can"]),
            ("she wears a watch", &["watch"]),
            ("the cat watches the dog", &["cat", "dog"]),
            ("two watches on the dog", &["watch", "dog"]),
            ("they watch a train", &["train"]),
            ("trying to watch. Next to water", &["water"]),
            ("he is painting a cat", &["cat"]),
            ("a painting of a cat", &["painting", "cat"]),
        ];
        let nouns = Vocabulary::of_names(WORDS);
        for (text, expected) in cases {
            let found: Vec<String> = nouns.mentions(text).into_iter().map(|mention| mention.word).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn any_part_of_speech_counts_where_it_is_asked_for() {
        let mut any = Vocabulary::new(Case::Ignored, Parts::Any);
        WORDS.iter().for_each(|word| any.add(word, word));
        let found: Vec<String> = any.mentions("an orange cat can watch").into_iter().map(|m| m.word).collect();
        assert_eq!(found, ["orange", "cat", "can", "watch"]);
    }
}
