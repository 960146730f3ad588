//! What somebody may have meant to write.

/// The name of `known` that is nearest to `written`, if it is near enough to be meant.
pub(super) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = known.map(|name| (between(written, name), name)).min()?;
    (distance <= name.len().div_ceil(3)).then_some(name)
}

/// How many letters must be put in, left out or replaced to make one of the other, whatever their case (Levenshtein).
pub(super) fn between(one: &str, other: &str) -> usize {
    let letters = |text: &str| -> Vec<char> { text.chars().take(64).collect() };
    let (one, other) = (letters(one), letters(other));
    let mut row: Vec<_> = (0..=other.len()).collect();
    for (line, letter) in one.iter().enumerate() {
        let mut before = std::mem::replace(&mut row[0], line + 1);
        for (column, against) in other.iter().enumerate() {
            let replaced = before + usize::from(!letter.eq_ignore_ascii_case(against));
            before = row[column + 1];
            row[column + 1] = replaced.min(before + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = || ["ttl", "maxTTL", "staleIfError", "match"].into_iter();
        for (written, meant) in [
            ("tll", Some("ttl")),
            ("TTL", Some("ttl")),
            ("maxTtl", Some("maxTTL")),
            ("stale_if_error", Some("staleIfError")),
            ("matches", Some("match")),
            ("x", None),
        ] {
            assert_eq!(nearest(written, known()), meant, "{written}");
        }
        assert_eq!(between("kitten", "sitting"), 3);
        assert_eq!(between("", "abc"), 3);
    }
}
