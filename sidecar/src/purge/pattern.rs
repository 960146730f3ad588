//! Regular expressions in PURGE and BAN requests, as far as they name tags and paths exactly.
//!
//! Varnish compares such an expression with everything that it has stored. Here a purge is a barrier on a name, so an expression is
//! translated to names: one that lists tags, one that begins with a whole folder, one that matches everything. Any other is refused.
//!
//! # Assumptions
//! A dot without a quantifier stands for itself: Magento inserts tags without escapes, and nobody writes it for another character.

/// Maximum depth of groups within groups.
const MAX_DEPTH: u8 = 8;

/// Expressions that match every text.
const ALL: [&str; 11] = [".*", ".+", "^.*", "^.+", ".*$", ".+$", "^.*$", "^.+$", ".", "^.", ".$"];

/// Expressions for the place before a whole tag. `(^|\,)` is the one of API Platform 2.
const BEFORE_TAG: [&str; 10] =
    ["(^|,)", "(,|^)", r"(^|\,)", r"(\,|^)", "(^| )", "( |^)", r"(^|\s)", r"(\s|^)", "(?:^|,)", "^"];

/// Expressions for the place behind a whole tag. `(,.+)?$` is the one of FOSHttpCache 1, `($|\,)` that of API Platform.
const BEHIND_TAG: [&str; 11] = [
    "(,|$)", "($|,)", r"(\,|$)", r"($|\,)", "( |$)", "($| )", r"(\s|$)", r"($|\s)", "(?:,|$)", "(,.+)?$", "$",
];

/// Expressions for the rest of a path, behind a folder and its slash.
const REST: [&str; 5] = [".*", ".*$", "(.*)", "(.*)$", ""];

/// Expressions for the end of a folder, with what is below it or without.
const END_OF_FOLDER: [&str; 5] = ["(/|$)", "($|/)", "(/.*)?$", "(/.*|$)", "($|/.*)"];

/// Tags that an expression names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NamedTags {
    /// Whole tags, as texts between separators.
    pub(super) tags: Vec<String>,
    /// True if every response is meant, whatever its tags.
    pub(super) everything: bool,
}

/// Paths that an expression names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NamedPaths {
    /// All.
    Everything,
    /// A folder, with all that is below it.
    Folder(String),
    /// A path with its query.
    Exact(String),
}

/// Returns the whole tags that an expression lists; `None` if it can't be translated. A character stands for a byte of the field:
/// none but those of ASCII are blank.
pub(super) fn tags(expression: &str) -> Option<NamedTags> {
    let expression = expression.trim_ascii();
    let mut named = NamedTags::default();
    collect(expression.strip_prefix("(?i)").unwrap_or(expression), MAX_DEPTH, &mut named)?;
    Some(named)
}

/// Returns the paths that an expression matches from the beginning of the path on; `None` if it can't be translated.
pub(super) fn paths(expression: &str) -> Option<NamedPaths> {
    let expression = expression.trim();
    if ALL.contains(&expression) {
        return Some(NamedPaths::Everything);
    }
    let path = expression.strip_prefix('^').filter(|path| path.starts_with('/'))?;
    if let Some(exact) = before(path, "$").and_then(literal) {
        return Some(NamedPaths::Exact(exact));
    }
    let folders = END_OF_FOLDER.iter().filter_map(|end| before(path, end));
    let with_slash = REST.iter().filter_map(|rest| before(path, rest)).filter(|folder| folder.ends_with('/'));
    let mut literals = folders.chain(with_slash).filter_map(literal);
    literals.find(|folder| !folder.contains(['?', '#'])).map(folder)
}

/// Returns the paths that a target names to which a client appended `.*` without escaping what is before; `None` if it can't be
/// translated.
pub(super) fn appended(target: &str) -> Option<NamedPaths> {
    let path = target.strip_suffix(".*").unwrap_or(target);
    let is_folder =
        path.ends_with('/') && !path.contains(['*', '\\', '^', '$', '|', '[', ']', '{', '}', '?']);
    is_folder.then(|| folder(path.to_owned()))
}

/// Returns a folder, which may be the root.
pub(super) fn folder(path: String) -> NamedPaths {
    match path.trim_end_matches('/') {
        "" => NamedPaths::Everything,
        path => NamedPaths::Folder(path.to_owned()),
    }
}

/// Adds the tags of an expression, of which each alternative is a tag with or without the places around it, or a group of such.
fn collect(expression: &str, depth: u8, named: &mut NamedTags) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    if ALL.contains(&expression) {
        named.everything = true;
        return Some(());
    }
    let alternatives = alternatives(expression)?;
    if alternatives.len() > 1 {
        return alternatives.into_iter().try_for_each(|alternative| collect(alternative, depth, named));
    }
    let begun = BEFORE_TAG.iter().find_map(|place| expression.strip_prefix(place));
    let whole = begun.unwrap_or(expression);
    let ended = BEHIND_TAG.iter().find_map(|place| before(whole, place));
    // One that says where a tag begins and not where it ends means all that begin so.
    if begun.is_some() && ended.is_none() {
        return None;
    }
    let whole = ended.unwrap_or(whole);
    if whole.len() < expression.len() {
        return collect(whole, depth, named);
    }
    match before(whole, ")").and_then(|group| group.strip_prefix('(')) {
        Some(group) => collect(group.strip_prefix("?:").unwrap_or(group), depth, named),
        None => {
            named.tags.push(literal(whole).filter(|tag| !tag.is_empty())?);
            Some(())
        }
    }
}

/// Returns the part before an end that no backslash escapes.
fn before<'a>(expression: &'a str, end: &str) -> Option<&'a str> {
    let rest = expression.strip_suffix(end)?;
    let backslashes = rest.bytes().rev().take_while(|byte| *byte == b'\\').count();
    backslashes.is_multiple_of(2).then_some(rest)
}

/// Splits an expression at each `|` that is in no group; `None` if its groups are not closed.
fn alternatives(expression: &str) -> Option<Vec<&str>> {
    let (mut parts, mut begins, mut depth, mut is_escaped) = (vec![], 0, 0_usize, false);
    for (at, character) in expression.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            '|' if depth == 0 => {
                parts.push(&expression[begins..at]);
                begins = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&expression[begins..]);
    (depth == 0 && !is_escaped).then_some(parts)
}

/// Returns the text that an expression without operators stands for.
fn literal(expression: &str) -> Option<String> {
    let mut text = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(character) = characters.next() {
        match character {
            // An escaped letter or digit is a class, or a reference.
            '\\' => text.push(characters.next().filter(|escaped| !escaped.is_ascii_alphanumeric())?),
            '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' | '|' => return None,
            literal => text.push(literal),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listed(expression: &str) -> Option<Vec<String>> {
        tags(expression).filter(|named| !named.everything).map(|named| named.tags)
    }

    #[test]
    fn expressions_that_clients_send_list_whole_tags() {
        for (expression, expected) in [
            // Magento: magento/magento2, app/code/Magento/CacheInvalidate/Observer/InvalidateVarnishObserver.php
            ("((^|,)cat_p_1(,|$))", &["cat_p_1"][..]),
            (
                "((^|,)cat_p_1(,|$))|((^|,)cat_c_p_2(,|$))|((^|,)cms_b_a.b(,|$))",
                &["cat_p_1", "cat_c_p_2", "cms_b_a.b"],
            ),
            // FriendsOfSymfony/FOSHttpCache, src/ProxyClient/Varnish.php: 2 and later, and 1
            ("(^|,)(post\\-1|a\\.b|x\\+y)(,|$)", &["post-1", "a.b", "x+y"]),
            ("(^|,)(one)(,|$)", &["one"]),
            ("(post\\-1|two)(,.+)?$", &["post-1", "two"]),
            // api-platform/core, src/HttpCache/VarnishPurger.php
            ("(/dummies/1|/dummies)($|\\,)", &["/dummies/1", "/dummies"]),
            ("(/foo\\?a\\=b)($|\\,)", &["/foo?a=b"]),
            // The same, version 2
            ("(^|\\,)/foo($|\\,)", &["/foo"]),
            ("((^|\\,)/foo($|\\,))|((^|\\,)/bar($|\\,))", &["/foo", "/bar"]),
            // Drupal's purgers: a tag, or several with '|' between
            ("node:1", &["node:1"]),
            (
                "node:1|node_list|config:views.view.frontpage",
                &["node:1", "node_list", "config:views.view.frontpage"],
            ),
            ("(^|\\s)(node:1|node:2)(\\s|$)", &["node:1", "node:2"]),
            ("^a$", &["a"]),
            ("^(a|b)$|c", &["a", "b", "c"]),
            ("(?i)(?:a|b)", &["a", "b"]),
            ("a\\$", &["a$"]),
            ("user:1(,|$)", &["user:1"]),
            ("a\\(b\\)", &["a(b)"]),
            ("caf\u{e9}", &["caf\u{e9}"]),
        ] {
            assert_eq!(
                listed(expression).as_deref(),
                Some(&expected.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>()[..]),
                "{expression}"
            );
        }
    }

    #[test]
    fn expression_that_is_no_list_of_tags_is_not_translated() {
        for expression in [
            "",
            "|",
            "a|",
            "()",
            "node:.*",
            "node:[0-9]+",
            "node:\\d",
            "a*",
            "ab?",
            "a{2}",
            "(a",
            "a)",
            "a(b|c)",
            "(a)(b)",
            "a\\",
            "^",
            "$",
            "(a|b)+",
            "(?!a)b",
            "a.+",
            "\\",
            "(^|,)",
            "^user:",
            "(^|,)user:",
            "(^|,)(user:|post:)",
            "(^|,)user:|b(,|$)",
            "((^|,)user:)",
            "^(^|,)user:$",
            "((((((((((a))))))))))",
        ] {
            assert_eq!(tags(expression), None, "{expression}");
        }
    }

    #[test]
    fn expression_for_any_text_means_everything() {
        for expression in
            [".*", " .* ", "^.*$", ".+", ".", "^.", ".$", "^.$", "a|.*", "(.*)", "(^|,)(.*)(,|$)"]
        {
            assert!(tags(expression).unwrap().everything, "{expression}");
        }
    }

    #[test]
    fn anchored_expression_names_a_folder_or_a_whole_path() {
        let folder = |path: &str| Some(NamedPaths::Folder(path.to_owned()));
        let exact = |path: &str| Some(NamedPaths::Exact(path.to_owned()));
        for (expression, named) in [
            (".*", Some(NamedPaths::Everything)),
            (".", Some(NamedPaths::Everything)),
            ("^/", Some(NamedPaths::Everything)),
            ("^/.*$", Some(NamedPaths::Everything)),
            ("^/news/", folder("/news")),
            ("^/news/.*", folder("/news")),
            ("^/a\\.b/c\\-d/(.*)$", folder("/a.b/c-d")),
            ("^/news(/|$)", folder("/news")),
            ("^/news(/.*)?$", folder("/news")),
            ("^/news$", exact("/news")),
            ("^/news\\?page\\=2$", exact("/news?page=2")),
            ("^/index.html$", exact("/index.html")),
            ("^/a\\$$", exact("/a$")),
        ] {
            assert_eq!(paths(expression), named, "{expression}");
        }
        for expression in [
            "",
            "/news/.*",
            "news",
            "^news",
            "^/news",
            "^/news.*",
            "^/news/[0-9]+$",
            "^/news/.*/edit$",
            "\\.png$",
            ".*\\.css$",
            "^/(a|b)/.*",
            "^/a\\$",
            "^/a?/.*",
            "^/news\\?a/.*",
        ] {
            assert_eq!(paths(expression), None, "{expression}");
        }
    }

    #[test]
    fn path_with_an_appended_star_is_a_folder() {
        let folder = |path: &str| Some(NamedPaths::Folder(path.to_owned()));
        for (target, named) in [
            ("/.*", Some(NamedPaths::Everything)),
            ("/", Some(NamedPaths::Everything)),
            ("/blog/.*", folder("/blog")),
            ("/blog/2024/", folder("/blog/2024")),
            ("/a.b/caf%C3%A9/.*", folder("/a.b/caf%C3%A9")),
            ("/blog.*", None),
            ("/blog", None),
            ("/a?b=/.*", None),
            ("/(a|b)/.*", None),
            ("/a.*/.*", None),
        ] {
            assert_eq!(appended(target), named, "{target}");
        }
    }

    proptest! {
        #[test]
        fn quoted_tags_come_back(tags in proptest::collection::vec("[a-z0-9:./_|()+*?$^\\\\\\[\\]{}-]{1,8}", 1..5)) {
            let quoted: Vec<String> = tags.iter().map(|tag| {
                let quote = |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\{c}") };
                tag.chars().map(quote).collect()
            }).collect();
            let expression = format!("(^|,)({})(,|$)", quoted.join("|"));
            prop_assert_eq!(listed(&expression), Some(tags));
        }

        #[test]
        fn any_text_is_translated_or_not(expression in "[ab.*+?^$|(),/\\\\]{0,16}") {
            if let Some(named) = tags(&expression) {
                prop_assert!(named.everything || !named.tags.is_empty());
                prop_assert!(!named.tags.contains(&String::new()));
            }
            if let Some(NamedPaths::Folder(path) | NamedPaths::Exact(path)) = paths(&expression) {
                prop_assert!(path.starts_with('/'));
            }
        }
    }
}
