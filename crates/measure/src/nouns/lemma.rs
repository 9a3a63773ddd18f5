//! The singulars that an English plural may have.
//!
//! The endings are those that WordNet's `morphy` takes off nouns (Miller et al., `morphy(7WN)`), with `-ves` → `-fe` and `-oes` → `-o`,
//! which it has as exceptions. It looks every result up in its dictionary; here the vocabulary does that. Nouns that follow no rule
//! stand in a table and lose no ending.

/// Plural and singular of nouns that no ending tells, or that an ending tells wrongly (`leaves` is not several leaves of absence).
const IRREGULAR: [(&str, &str); 34] = [
    ("people", "person"),
    ("children", "child"),
    ("grandchildren", "grandchild"),
    ("schoolchildren", "schoolchild"),
    ("feet", "foot"),
    ("teeth", "tooth"),
    ("geese", "goose"),
    ("mice", "mouse"),
    ("lice", "louse"),
    ("dice", "die"),
    ("oxen", "ox"),
    ("leaves", "leaf"),
    ("loaves", "loaf"),
    ("sheaves", "sheaf"),
    ("halves", "half"),
    ("calves", "calf"),
    ("wolves", "wolf"),
    ("shelves", "shelf"),
    ("bookshelves", "bookshelf"),
    ("hooves", "hoof"),
    ("scarves", "scarf"),
    ("wharves", "wharf"),
    ("thieves", "thief"),
    ("cacti", "cactus"),
    ("fungi", "fungus"),
    ("octopi", "octopus"),
    ("hippopotami", "hippopotamus"),
    ("busses", "bus"),
    ("passersby", "passerby"),
    ("mothers-in-law", "mother-in-law"),
    ("radii", "radius"),
    ("antennae", "antenna"),
    ("paparazzi", "paparazzo"),
    ("graffiti", "graffito"),
];

/// What a plural ends in, and its singular in place of that.
const ENDINGS: [(&str, &str); 10] = [
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("ves", "fe"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("oes", "o"),
    ("ies", "y"),
];

/// Every singular that `word` may be the plural of; most of them are no words, and a vocabulary says which are.
pub fn singulars(word: &str) -> Vec<String> {
    if let Some((_, singular)) = IRREGULAR.iter().find(|(plural, _)| *plural == word) {
        return vec![(*singular).to_owned()];
    }
    if let Some(stem) = word.strip_suffix("men") {
        return vec![format!("{stem}man")];
    }
    let without = |(ending, singular): &(&str, &str)| {
        let stem = word.strip_suffix(ending)?;
        // `glass` is no plural of `glas`, and `as` none of `a`.
        let is_stem = stem.chars().count() > 1 && !(*ending == "s" && stem.ends_with('s'));
        is_stem.then(|| format!("{stem}{singular}"))
    };
    ENDINGS.iter().filter_map(without).collect()
}

#[cfg(test)]
mod tests {
    use super::singulars;

    #[test]
    fn the_singular_is_among_those_that_are_offered() {
        let pairs = [
            ("dogs", "dog"),
            ("buses", "bus"),
            ("knives", "knife"),
            ("shelves", "shelf"),
            ("boxes", "box"),
            ("benches", "bench"),
            ("toothbrushes", "toothbrush"),
            ("women", "woman"),
            ("cherries", "cherry"),
            ("skis", "ski"),
            ("potatoes", "potato"),
            ("shoes", "shoe"),
            ("quizzes", "quizz"),
            ("mice", "mouse"),
            ("TVs", "TV"),
        ];
        for (plural, singular) in pairs {
            assert!(singulars(plural).iter().any(|offered| offered == singular), "{plural}: {:?}", singulars(plural));
        }
    }

    #[test]
    fn what_is_no_plural_has_no_singular_that_could_be_a_word() {
        for word in ["glass", "dog", "grass", "as", "s", ""] {
            assert!(singulars(word).is_empty(), "{word}: {:?}", singulars(word));
        }
        assert_eq!(singulars("leaves"), ["leaf"]);
    }
}
