//! Spellings of the paths that templates match.

use std::borrow::Cow;

use super::{PathTemplate, Segment};
use crate::path::fold;

impl PathTemplate {
    /// Returns the template with a slash at its end if it has none, and without it otherwise; `None` for `/` and `/{*path}`, which have
    /// no other. `/static/{*path}` becomes `/static`.
    pub(crate) fn with_other_slash(&self) -> Option<Self> {
        let (last, before) = self.segments.split_last()?;
        let ends_with_slash = matches!(last, Segment::Rest(_)) || is_empty(last);
        if !ends_with_slash {
            let segments = [&self.segments[..], &[Segment::Literal(String::new())]].concat();
            return Some(Self { text: format!("{}/", self.text), segments });
        }
        let (text, _) = self.text.rsplit_once('/')?;
        (!before.is_empty()).then(|| Self { text: text.to_owned(), segments: before.to_vec() })
    }

    /// Returns true if the template has text that a path may spell otherwise.
    pub(crate) fn has_literals(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Literal(_)) && !is_empty(segment))
    }

    /// Returns true if every path matches.
    pub(crate) fn matches_all(&self) -> bool {
        matches!(self.segments[..], [Segment::Rest(_)])
    }

    /// Returns true if some server may read one path as a match of both templates: in another case, or with other slashes.
    pub(crate) fn may_overlap(&self, other: &Self) -> bool {
        let mut own = self.segments.iter().filter(|segment| !is_empty(segment));
        let mut others = other.segments.iter().filter(|segment| !is_empty(segment));
        loop {
            match (own.next(), others.next()) {
                (Some(Segment::Rest(_)), _) | (_, Some(Segment::Rest(_))) | (None, None) => return true,
                (Some(Segment::Literal(one)), Some(Segment::Literal(other))) if fold(one) != fold(other) => {
                    return false;
                }
                (Some(_), Some(_)) => {}
                _ => return false,
            }
        }
    }
}

fn is_empty(segment: &Segment) -> bool {
    matches!(segment, Segment::Literal(text) if text.is_empty())
}

/// Returns a text in lower case, letter by letter. Texts that are alike in it have one purge name.
pub(crate) fn lowered(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().flat_map(char::to_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn template(text: &str) -> PathTemplate {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn other_slash_is_at_the_end_or_missing() {
        for (text, other) in [
            ("/a", Some("/a/")),
            ("/a/", Some("/a")),
            ("/a//", Some("/a/")),
            ("/a/{id}", Some("/a/{id}/")),
            ("/{id}/", Some("/{id}")),
            ("/a/{*rest}", Some("/a")),
            ("/", None),
            ("/{*rest}", None),
        ] {
            let expected = other.map(template);
            assert_eq!(template(text).with_other_slash(), expected, "{text}");
        }
    }

    #[test]
    fn templates_may_overlap_in_other_spellings() {
        for (one, other, overlap) in [
            ("/a/{id}", "/A/b/", true),
            ("/a/{*p}", "/a", true),
            ("/a", "/{x}/", true),
            ("/", "/{*p}", true),
            ("/a", "/b", false),
            ("/a/b", "/a", false),
            ("/", "/{x}", false),
        ] {
            let (one, other) = (template(one), template(other));
            assert_eq!(
                (one.may_overlap(&other), other.may_overlap(&one)),
                (overlap, overlap),
                "{one} {other}"
            );
        }
    }

    proptest! {
        #[test]
        fn texts_alike_in_lower_case_are_folded_alike(one in "[aAbß+ÄäΣσςİıſKk]{0,3}", other in "[aAbß+ÄäΣσςİıſKk]{0,3}") {
            let (upper, again) = (one.to_uppercase(), lowered(&one));
            prop_assert!(lowered(&one) != lowered(&other) || fold(&one) == fold(&other));
            prop_assert_eq!(fold(&again), fold(&one));
            prop_assert_eq!(fold(&upper), fold(&one));
        }
    }
}
