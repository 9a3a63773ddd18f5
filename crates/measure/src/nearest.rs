//! What a name that nothing has was meant to be: the known one that is most like it.

/// The candidate most like `written`, when one is alike enough to be meant.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // 0.7 lets `crpo` be `crop` and keeps `ipo` from being `dpo`.
    let plain = |name: &str| name.replace('-', "_").to_lowercase();
    let written = plain(written);
    let alike = |name: &str| strsim::normalized_damerau_levenshtein(&written, &plain(name));
    let scored = candidates.into_iter().map(|name| (alike(name), name));
    scored.filter(|(score, _)| *score >= 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_is_found_and_another_name_is_not() {
        let names = ["crop", "dpo", "amber-generative"];
        assert_eq!(nearest("crpo", names), Some("crop"));
        assert_eq!(nearest("Amber_Generativ", names), Some("amber-generative"));
        assert_eq!(nearest("ipo", names), None);
    }
}
