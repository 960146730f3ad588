//! Texts for users, of bounded length.

/// Returns a text of at most `max` bytes, cut between characters.
pub fn cut(mut text: String, max: usize) -> String {
    const MARK: char = '…';
    if text.len() > max {
        let room = max.saturating_sub(MARK.len_utf8());
        text.truncate((0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
        text.push(MARK);
    }
    text
}

/// Writes the first names of a list, and the number of the others.
pub fn list<S: AsRef<str>>(names: &[S], max: usize) -> String {
    let first: Vec<_> = names.iter().take(max).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(max) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = cut("é".repeat(2000), 1024);
        assert!(text.len() <= 1024 && text.len() > 1020 && text.ends_with('…'), "{}", text.len());
        assert_eq!(cut("é".into(), 2), "é");
    }

    #[test]
    fn long_list_names_the_first() {
        assert_eq!(list(&["a", "b"], 2), "a, b");
        assert_eq!(list(&["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(list::<String>(&[], 2), "");
    }
}
