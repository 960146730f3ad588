//! Texts with placeholders, and the texts that they become with the values of a write.

use super::{Placeholder, values::MAX_VALUES};
use crate::{PathTemplate, template::literal_folder};

/// A tag or a path with placeholders.
#[derive(Clone, Debug)]
pub(crate) struct Expandable(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Literal(String),
    Value(Placeholder),
}

/// A text, or the texts, that an [`Expandable`] stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expanded {
    /// One text.
    Text(String),
    /// Every text with this beginning and this end: what is between depends on a value that is not known.
    Between(String, String),
}

impl Expandable {
    /// Parses a text in a rule with this path. Returns the errors of its placeholders beside it.
    pub(crate) fn parse(text: &str, path: &PathTemplate) -> (Self, Vec<String>) {
        let (mut pieces, mut errors) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some((before, (inner, after))) =
            rest.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            pieces.push(Piece::Literal(before.to_owned()));
            match Placeholder::parse(inner, path) {
                Ok(placeholder) => pieces.push(Piece::Value(placeholder)),
                Err(error) => errors.push(format!("{text:?} {error}")),
            }
            rest = after;
        }
        pieces.push(Piece::Literal(rest.to_owned()));
        (Self(pieces), errors)
    }

    /// Returns the placeholders, in their order.
    pub(crate) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Value(placeholder) => Some(placeholder),
        })
    }

    /// Returns the text before the first placeholder, as far as its last slash.
    pub(crate) fn literal_folder(&self) -> &str {
        match self.0.first() {
            Some(Piece::Literal(text)) => literal_folder(text),
            _ => "",
        }
    }

    /// Returns the texts that all values make, where `values` returns those of a placeholder, encoded, if they are known. Values that
    /// make too many texts count as unknown.
    pub(crate) fn expand(&self, values: impl Fn(&Placeholder) -> Option<Vec<String>>) -> Vec<Expanded> {
        let mut all = vec![Expanded::Text(String::new())];
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => all.iter_mut().for_each(|one| one.push(text)),
                Piece::Value(placeholder) => match values(placeholder) {
                    Some(values) if values.len() * all.len() <= MAX_VALUES => {
                        let with = |one: &Expanded| {
                            let one = one.clone();
                            values.iter().map(move |value| one.clone().with(value)).collect::<Vec<_>>()
                        };
                        all = all.iter().flat_map(with).collect();
                    }
                    _ => all = all.into_iter().map(Expanded::with_unknown).collect(),
                },
            }
        }
        all.dedup();
        all
    }
}

impl Expanded {
    fn push(&mut self, text: &str) {
        match self {
            Self::Text(last) | Self::Between(_, last) => last.push_str(text),
        }
    }

    fn with(mut self, value: &str) -> Self {
        self.push(value);
        self
    }

    fn with_unknown(self) -> Self {
        match self {
            Self::Text(start) | Self::Between(start, _) => Self::Between(start, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str, values: &[(&str, &[&str])]) -> Vec<Expanded> {
        let path = PathTemplate::try_from("/{a}/{b}/{c}".to_owned()).unwrap();
        let (template, errors) = Expandable::parse(text, &path);
        assert!(errors.is_empty(), "{errors:?}");
        template.expand(|placeholder| {
            let name = placeholder.to_string();
            let (_, values) = values.iter().find(|(known, _)| format!("{{{known}}}") == name)?;
            Some(values.iter().map(|value| (*value).to_owned()).collect())
        })
    }

    fn between(start: &str, end: &str) -> Expanded {
        Expanded::Between(start.to_owned(), end.to_owned())
    }

    #[test]
    fn every_combination_of_values_is_a_text() {
        let texts =
            |texts: &[&str]| texts.iter().map(|text| Expanded::Text((*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(expanded("x{open", &[]), texts(&["x{open"]));
        assert_eq!(expanded("x:{a}", &[("a", &["1", "2"])]), texts(&["x:1", "x:2"]));
        let both: &[(&str, &[&str])] = &[("a", &["1", "2"]), ("b", &["3", "4"])];
        assert_eq!(expanded("{a}-{b}", both), texts(&["1-3", "1-4", "2-3", "2-4"]));
    }

    #[test]
    fn unknown_value_leaves_beginning_and_end() {
        assert_eq!(expanded("x:{b}:y", &[]), [between("x:", ":y")]);
        let some: &[(&str, &[&str])] = &[("a", &["1", "2"])];
        assert_eq!(expanded("{a}:{b}:{c}!", some), [between("1:", "!"), between("2:", "!")]);
        assert_eq!(expanded("{b}:{a}", some), [between("", ":1"), between("", ":2")]);
        let many: Vec<_> = (0..MAX_VALUES).map(|number| number.to_string()).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let too_many: &[(&str, &[&str])] = &[("a", &many), ("b", &["1", "2"])];
        assert_eq!(expanded("{a}:{b}!", too_many).first(), Some(&between("0:", "!")));
    }
}
