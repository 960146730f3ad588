//! The names that rows of a table purge.

use std::collections::BTreeSet;

use crate::{
    PathTemplate, PurgeName,
    policy::{Purges, leads_out},
    spec::RowPurge,
    template::{expand, placeholders},
};

/// The value of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnValue<'a> {
    /// A text.
    Text(&'a str),
    /// NULL, which names nothing.
    Null,
    /// Any value: it was not told.
    Unknown,
}

impl RowPurge {
    /// Returns the columns that names are made of.
    pub fn columns(&self) -> BTreeSet<&str> {
        let Self { tags, paths, prefixes, everything: _, soft: _ } = self;
        let paths = paths.iter().chain(prefixes).map(PathTemplate::as_str);
        tags.iter().map(String::as_str).chain(paths).flat_map(placeholders).collect()
    }

    /// Returns the names that a row purges: where a value is unknown, those that any value could purge.
    pub fn names<'a>(&self, value: impl Fn(&str) -> ColumnValue<'a>) -> Vec<PurgeName> {
        let Self { tags, paths, prefixes, everything, soft } = self;
        let mut purges = Purges { everything: *everything, ..Purges::default() };
        for template in tags {
            match Filled::of(template, &value) {
                Filled::Text(tag) => purges.tags.push(tag),
                Filled::Nothing => {}
                Filled::Unknown => purges.everything = true,
            }
        }
        for (templates, is_prefix) in [(paths, false), (prefixes, true)] {
            for template in templates {
                match Filled::of(template.as_str(), &value) {
                    Filled::Text(path) if leads_out(template.literal_folder(), &path) => {
                        purges.prefixes.push(template.literal_folder().to_owned());
                    }
                    Filled::Text(path) if is_prefix => purges.prefixes.push(path),
                    Filled::Text(path) => purges.paths.push(path),
                    Filled::Nothing => {}
                    Filled::Unknown => purges.prefixes.push(template.literal_folder().to_owned()),
                }
            }
        }
        let names = purges.names();
        if *soft && !names.is_empty() { PurgeName::softly(names) } else { names }
    }

    /// Returns the names that any row could purge.
    pub fn all_names(&self) -> Vec<PurgeName> {
        self.names(|_| ColumnValue::Unknown)
    }
}

/// A template with the values of a row.
enum Filled {
    Text(String),
    /// A value is NULL.
    Nothing,
    /// A value is unknown.
    Unknown,
}

impl Filled {
    fn of<'a>(template: &str, value: &impl Fn(&str) -> ColumnValue<'a>) -> Self {
        let (mut parameters, mut is_unknown) = (vec![], false);
        for name in placeholders(template) {
            match value(name) {
                ColumnValue::Text(text) => parameters.push((name, text.to_owned())),
                ColumnValue::Null => return Self::Nothing,
                ColumnValue::Unknown => is_unknown = true,
            }
        }
        if is_unknown { Self::Unknown } else { Self::Text(expand(template, &parameters)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(text: &str) -> RowPurge {
        serde_yaml::from_str(text).unwrap()
    }

    fn purges(tags: &[&str], paths: &[&str], prefixes: &[&str]) -> Vec<PurgeName> {
        let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Purges { tags: list(tags), paths: list(paths), prefixes: list(prefixes), everything: false }.names()
    }

    const USERS: &str =
        r#"{tags: ["user:{id}", users], paths: ["/users/{id}"], prefixes: ["/teams/{team}/{id}"]}"#;

    #[test]
    fn values_are_inserted_encoded() {
        let names =
            purge(USERS).names(|name| ColumnValue::Text(if name == "id" { "a/b {team}" } else { "1" }));
        let encoded = "a%2Fb%20%7Bteam%7D";
        let (tag, path) = (format!("user:{encoded}"), format!("/users/{encoded}"));
        assert_eq!(names, purges(&[&tag, "users"], &[&path], &[&format!("/teams/1/{encoded}")]));
        assert_eq!(purge(USERS).columns().into_iter().collect::<Vec<_>>(), ["id", "team"]);
    }

    #[test]
    fn value_leads_out_of_no_folder() {
        for value in ["..", ".", "%2e%2E", "../..", "a/..", "..;a", "..\\.."] {
            for list in ["prefixes", "paths"] {
                let spec = format!(r#"{{{list}: ["/teams/{{team}}"]}}"#);
                let names = purge(&spec).names(|_| ColumnValue::Text(value));
                assert_eq!(names, purges(&[], &[], &["/teams/"]), "{list}, {value}");
            }
        }
        let names = purge(r#"{paths: ["/a/b", "/teams/{team}"]}"#).names(|_| ColumnValue::Text("a.b..c"));
        assert_eq!(names, purges(&[], &["/a/b", "/teams/a.b..c"], &[]));
    }

    #[test]
    fn missing_value_names_nothing() {
        let names =
            purge(USERS).names(|name| if name == "id" { ColumnValue::Text("7") } else { ColumnValue::Null });
        assert_eq!(names, purges(&["user:7", "users"], &["/users/7"], &[]));
    }

    #[test]
    fn unknown_value_stands_for_every_value() {
        let unknown = |name: &str| if name == "id" { ColumnValue::Text("7") } else { ColumnValue::Unknown };
        assert_eq!(purge(USERS).names(unknown), purges(&["user:7", "users"], &["/users/7"], &["/teams/"]));
        let everything = Purges { everything: true, ..Purges::default() }.names();
        assert!(everything.iter().all(|name| purge(USERS).all_names().contains(name)));
        let paths = purge(r#"{paths: ["/a/{b}", "/c"], soft: true}"#);
        assert_eq!(paths.all_names(), PurgeName::softly(purges(&[], &["/c"], &["/a/"])));
        assert!(purge("{tags: [a]}").names(|_| ColumnValue::Unknown) == purges(&["a"], &[], &[]));
    }
}
