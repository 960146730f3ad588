//! Suggestions for misspelt names.

/// Maximum length of a name that suggestions are made for, because the comparison takes the product of two lengths.
const MAX_NAME: usize = 64;

/// Returns the name of `known` that is nearest to `written`, if it is near enough to be meant.
pub(super) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = known.filter_map(|name| Some((distance(written, name)?, name))).min()?;
    (distance <= name.len().div_ceil(3)).then_some(name)
}

/// Returns the number of letters to insert, remove or replace to turn one name into the other, in any case
/// (Levenshtein); `None` for a long name.
pub(super) fn distance(one: &str, other: &str) -> Option<usize> {
    let is_short = one.len() <= MAX_NAME && other.len() <= MAX_NAME;
    is_short.then(|| strsim::levenshtein(&one.to_ascii_lowercase(), &other.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_recognised() {
        let known = || ["ttl", "maxTTL", "staleIfError", "match"].into_iter();
        for (written, meant) in [
            ("tll", Some("ttl")),
            ("TTL", Some("ttl")),
            ("maxTtl", Some("maxTTL")),
            ("stale_if_error", Some("staleIfError")),
            ("matches", Some("match")),
            ("x", None),
            (&"t".repeat(100), None),
        ] {
            assert_eq!(nearest(written, known()), meant, "{written}");
        }
        assert_eq!(distance("Kitten", "sitting"), Some(3));
        assert_eq!(distance("", "abc"), Some(3));
    }
}
