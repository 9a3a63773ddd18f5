//! The Flesch–Kincaid grade level (Kincaid et al. 1975): how many years of American school an English text asks for.
//!
//! 0.39 · words per sentence + 11.8 · syllables per word − 15.59. The formula leaves open what is counted; here
//! a word is a run of letters, digits and apostrophes, a sentence ends at `.`, `!`, `?` or `…` (a run of them once) where white space or the
//! end of the text follows, and after the last word in any case, and a word has as many syllables as runs of the vowels `aeiouy`, at least one;
//! a last `e` (but for `-le` after a consonant), and that of `-es` and `-ed` where it is not spoken, is silent.

/// The name of this reward in recipes.
pub const FLESCH_KINCAID: &str = "flesch_kincaid";

/// The grade level of a text; −15.59 where it has no word.
pub fn flesch_kincaid(text: &str) -> f64 {
    let words: Vec<&str> =
        text.split(|c: char| !in_word(c)).filter(|word| word.contains(char::is_alphanumeric)).collect();
    if words.is_empty() {
        return -15.59;
    }
    let syllables: usize = words.iter().map(|word| syllables(word)).sum();
    let words = words.len() as f64;
    0.39 * words / sentences(text) as f64 + 11.8 * syllables as f64 / words - 15.59
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '\'' || c == '’'
}

/// Sentences that have a word.
fn sentences(text: &str) -> usize {
    let (mut sentences, mut open) = (0, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        open |= c.is_alphanumeric();
        let ends = ['.', '!', '?', '…'].contains(&c) && chars.peek().is_none_or(|next| next.is_whitespace());
        if ends && open {
            (sentences, open) = (sentences + 1, false);
        }
    }
    sentences + usize::from(open)
}

fn syllables(word: &str) -> usize {
    let word = word.to_lowercase();
    let word = word.strip_suffix("'s").or_else(|| word.strip_suffix("’s")).unwrap_or(&word);
    let letters: Vec<char> = word.chars().collect();
    let vowel = |c: &char| "aeiouyàáâäèéêëìíîïòóôöùúûü".contains(*c);
    let runs = letters.chunk_by(|a, b| vowel(a) == vowel(b)).filter(|run| vowel(&run[0])).count();
    let silent = match letters.as_slice() {
        [.., before, 'l', 'e'] => vowel(before),
        [.., before, 'e'] => !vowel(before),
        [.., before, 'e', 'd'] => !vowel(before) && !['t', 'd'].contains(before),
        [.., 'c' | 's', 'h', 'e', 's'] => false,
        [.., before, 'l', 'e', 's'] => vowel(before),
        [.., before, 'e', 's'] => !vowel(before) && !['s', 'x', 'z', 'c', 'g'].contains(before),
        _ => false,
    };
    (runs - usize::from(silent && runs > 1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts_have_their_known_grades() {
        let grade = |text: &str, words: f64, sentences: f64, syllables: f64| {
            let expected = 0.39 * words / sentences + 11.8 * syllables / words - 15.59;
            let found = flesch_kincaid(text);
            assert!((found - expected).abs() < 1e-12, "{text}: {found}, expected {expected}");
            (found * 100.0).round() / 100.0
        };
        assert_eq!(grade("The cat sat on the mat.", 6.0, 1.0, 6.0), -1.45);
        // The example that Wikipedia works through: 24 syllables in 13 words, grade 11.3.
        let platypus = "The Australian platypus is seemingly a hybrid of a mammal and reptilian creature.";
        assert_eq!(grade(platypus, 13.0, 1.0, 24.0), 11.26);
        // Dots inside numbers and words end nothing, a run of marks ends one sentence, a last one needs no mark.
        grade("It costs 3.5 dollars?! No... It's free", 8.0, 3.0, 9.0);
        assert_eq!(flesch_kincaid(" … !"), -15.59);
        assert_eq!(flesch_kincaid(""), -15.59);
    }

    #[test]
    fn syllables_are_runs_of_vowels_but_for_silent_ends() {
        for (word, expected) in [
            ("cat", 1),
            ("make", 1),
            ("makes", 1),
            ("table", 2),
            ("tables", 2),
            ("whale", 1),
            ("the", 1),
            ("jumped", 1),
            ("wanted", 2),
            ("boxes", 2),
            ("dishes", 2),
            ("changes", 2),
            ("reading", 2),
            ("café", 2),
            ("Happy", 2),
            ("rhythm", 1),
            ("42", 1),
            ("dog's", 1),
            ("tree", 1),
            ("created", 2),
            ("xyz", 1),
            ("猫", 1),
            ("whales", 1),
        ] {
            assert_eq!(syllables(word), expected, "{word}");
        }
    }
}
