//! Rules for writes, and the stored responses that they invalidate.

use std::sync::Arc;

use http::{HeaderName, Response};

use super::{Policy, Route, check::Check};
use crate::{
    Fields, PathTemplate, PurgeName, Writing,
    path::{Readings, decode_fully, fold, loose_texts},
    spec::{OnWrite, PurgeSpec},
    tags::TagsFrom,
    template::{Parameters, encoded, encoded_segments, literal_folder},
    writing::{Expandable, Expanded, Placeholder},
};

/// Maximum size of a body that is read where a rule does not say.
const DEFAULT_BODY_LIMIT: u64 = 64 << 10;
/// Maximum size of a body that a rule may have read, because a copy of it is held in memory.
const MAX_BODY_LIMIT: u64 = 1 << 20;

/// A compiled rule of `invalidation.onWrite`.
#[derive(Clone, Debug)]
pub(super) struct WriteRule {
    path: PathTemplate,
    methods: Vec<String>,
    tags: Vec<Expandable>,
    pub(super) tags_from: Option<TagsFrom>,
    paths: Vec<Expandable>,
    prefixes: Vec<Expandable>,
    everything: bool,
    soft: bool,
    /// Placeholders for values that are elsewhere than in the path.
    values: Vec<Placeholder>,
    body_limit: u64,
}

impl Check {
    /// Compiles a rule for writes.
    pub(super) fn write(&mut self, at: &str, write: &OnWrite, routes: &[Route]) -> WriteRule {
        let OnWrite { matches, purge, max_body_size } = write;
        self.methods(&format!("{at}.match.methods"), &matches.methods);
        self.no_reads(&format!("{at}.match"), matches, routes);
        let PurgeSpec { tags, tags_from, paths, prefixes, everything, soft } = purge;
        let tags_from = tags_from.as_ref().map(|from| self.tags_from(&format!("{at}.purge.tagsFrom"), from));
        let mut expandable = |list: &str, texts: &mut dyn Iterator<Item = &str>| {
            let parsed = texts.enumerate().map(|(index, text)| {
                let (parsed, errors) = Expandable::parse(text, &matches.path);
                errors
                    .into_iter()
                    .for_each(|error| self.refuse(&format!("{at}.purge.{list}[{index}]"), error));
                parsed
            });
            parsed.collect::<Vec<_>>()
        };
        let tags = expandable("tags", &mut tags.iter().map(String::as_str));
        let paths = expandable("paths", &mut paths.iter().map(|path| path.as_str()));
        let prefixes = expandable("prefixes", &mut prefixes.iter().map(|path| path.as_str()));
        if tags.is_empty() && tags_from.is_none() && paths.is_empty() && prefixes.is_empty() && !everything {
            self.refuse(
                &format!("{at}.purge"),
                "nothing to purge: set tags, tagsFrom, paths or prefixes, or everything: true",
            );
        }
        let mut values: Vec<Placeholder> = vec![];
        for placeholder in [&tags, &paths, &prefixes].into_iter().flatten().flat_map(Expandable::placeholders)
        {
            if !matches!(placeholder, Placeholder::Path(_)) && !values.contains(placeholder) {
                values.push(placeholder.clone());
            }
        }
        if let Some(limit) = max_body_size {
            let at = format!("{at}.maxBodySize");
            if limit.0 == 0 || limit.0 > MAX_BODY_LIMIT {
                self.refuse(&at, "must be between 1 and 1Mi: a copy of the body is held in memory until the application has responded");
            }
            if !values.iter().any(is_in_body) {
                self.refuse(
                    &at,
                    "is for values of the body: use one, such as {body:/user/id}, or take this out",
                );
            }
        }
        WriteRule {
            path: matches.path.clone(),
            methods: matches.methods.clone(),
            tags,
            tags_from,
            paths,
            prefixes,
            everything: *everything,
            soft: *soft,
            values,
            body_limit: max_body_size.map_or(DEFAULT_BODY_LIMIT, |limit| limit.0),
        }
    }
}

impl Policy {
    /// Returns the names that a write invalidates, if the policy has a rule for it or, without a policy, for any write
    /// (RFC 9111, section 4.4), by every reading that an application may have.
    pub fn purged_by(&self, writing: &Writing) -> Vec<PurgeName> {
        if self.bare {
            return super::sorted(writing.paths().iter().flat_map(|path| PurgeName::paths(path)).collect());
        }
        self.purges_of(writing).names()
    }

    /// Returns everything that the policy names for a write. Values that were not read count as unknown.
    pub fn purges_of(&self, writing: &Writing) -> WritePurges {
        let mut purges = WritePurges::default();
        for (rule, parameters) in self.rules_for(writing) {
            self.add_purges(&mut purges, rule, writing, &parameters);
        }
        purges.hard.sort();
        purges.soft.sort();
        purges
    }

    /// Reads the values in the query and in the header fields of a write that rules for it use.
    pub fn read_head(&self, writing: &mut Writing, query: Option<&str>, fields: &(impl Fields + ?Sized)) {
        if self.writes.iter().all(|rule| rule.values.iter().all(is_in_body)) {
            return;
        }
        for placeholder in self.values_for(writing).into_iter().filter(|placeholder| !is_in_body(placeholder))
        {
            writing.note_values(placeholder, placeholder.values_in_head(query, fields));
        }
    }

    /// Returns the maximum size of a write's body up to which values are looked for in it; `None` if rules for the write use none.
    pub fn body_limit_of(&self, writing: &Writing) -> Option<u64> {
        if !self.writes.iter().any(WriteRule::reads_body) {
            return None;
        }
        let rules = self.rules_for(writing).into_iter().map(|(rule, _)| rule);
        rules.filter(|rule| rule.reads_body()).map(|rule| rule.body_limit).max()
    }

    /// Reads the values in the body of a write that rules for it use.
    pub fn read_body(&self, writing: &mut Writing, body: &[u8]) {
        for placeholder in self.values_for(writing) {
            if let Placeholder::Body(pointer) = placeholder {
                writing.note_values(placeholder, pointer.values(body));
            }
        }
    }

    /// Reads the values in the beginning of a body that broke off before a response. JSON that is whole in it may have been read; any other
    /// has told the application no value, so that nothing is purged by one.
    pub fn read_broken_off(&self, writing: &mut Writing, beginning: &[u8]) {
        for placeholder in self.values_for(writing) {
            if let Placeholder::Body(pointer) = placeholder {
                writing.note_values(placeholder, Some(pointer.values(beginning).unwrap_or_default()));
            }
        }
    }

    /// Returns true if a rule for a write purges tags that its response names.
    pub fn reads_response_to(&self, writing: &Writing) -> bool {
        self.writes.iter().any(|rule| rule.tags_from.is_some())
            && self.rules_for(writing).iter().any(|(rule, _)| rule.tags_from.is_some())
    }

    /// Reads the tags that the response to a write names, for the rules that purge them. Without a response, or after an error that
    /// names none, they are unknown: the application may have written, or never have had what it was to change.
    pub fn read_response<B>(&self, writing: &mut Writing, response: Option<&Response<B>>) {
        let rules = self.rules_for(writing).into_iter();
        let all: Vec<_> = rules.filter_map(|(rule, _)| rule.tags_from.as_ref()).collect();
        for tags_from in all {
            let named = response.and_then(|response| {
                let may_name_none = response.status().is_success() || response.status().is_redirection();
                tags_from.texts(response.headers()).filter(|tags| may_name_none || !tags.is_empty())
            });
            writing.note_values(&named_by_response(tags_from), named);
        }
    }

    /// Returns the values that rules for a write use, without those of its path.
    fn values_for(&self, writing: &Writing) -> Vec<&Placeholder> {
        let mut values = vec![];
        for placeholder in self.rules_for(writing).into_iter().flat_map(|(rule, _)| &rule.values) {
            if !values.contains(&placeholder) {
                values.push(placeholder);
            }
        }
        values
    }

    /// Returns the rules for a write, each with the values of its path's parameters, once for every reading that matches.
    fn rules_for(&self, writing: &Writing) -> Vec<(&WriteRule, Parameters<'_>)> {
        if self.writes.is_empty() {
            return vec![];
        }
        let readings: Vec<_> = writing.paths().iter().map(|path| Readings::of(path)).collect();
        let rules = self.writes.iter().filter(|rule| writing.is_one_of(&rule.methods));
        let found = rules.flat_map(|rule| {
            let readings = readings.iter().flat_map(Readings::iter);
            readings.filter_map(move |reading| Some((rule, rule.path.matches_reading(reading)?)))
        });
        found.collect()
    }

    fn add_purges(
        &self,
        purges: &mut WritePurges,
        rule: &WriteRule,
        writing: &Writing,
        parameters: &Parameters<'_>,
    ) {
        let WriteRule { path, tags, tags_from, paths, prefixes, everything, soft, .. } = rule;
        let of_path =
            |name: &str| parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
        let value = |placeholder: &Placeholder| match placeholder {
            Placeholder::Path(name) => of_path(name).map(|value| vec![encoded(value)]),
            elsewhere => Some(writing.values(elsewhere)?.iter().map(|value| encoded(value)).collect()),
        };
        let value_in_path = |placeholder: &Placeholder| match placeholder {
            Placeholder::Path(name) if path.rest() == Some(name) => {
                of_path(name).map(|value| vec![encoded_segments(value)])
            }
            other => value(other),
        };
        let named = if *soft { &mut purges.soft } else { &mut purges.hard };
        let unknown = &mut purges.unknown;
        if let Some(named_by) = tags_from.as_ref().map(named_by_response) {
            match writing.values(&named_by) {
                Some(tags) => named.tags.extend_from_slice(tags),
                None => {
                    named.prefixes.extend(self.folders_with_tags("", ""));
                    note(unknown, &named_by);
                }
            }
        }
        let mut expand = |template: &Expandable, value: &dyn Fn(&Placeholder) -> Option<Vec<String>>| {
            let expanded = template.expand(value);
            if expanded.iter().any(|one| matches!(one, Expanded::Between(..))) {
                note_unknown(unknown, template, writing);
            }
            expanded
        };
        for expanded in tags.iter().flat_map(|tag| expand(tag, &value)) {
            match expanded {
                Expanded::Text(tag) => named.tags.push(tag),
                Expanded::Between(start, end) => named.prefixes.extend(self.folders_with_tags(&start, &end)),
            }
        }
        for path in paths {
            for expanded in expand(path, &value_in_path) {
                match expanded {
                    Expanded::Text(text) if leads_out(path.literal_folder(), &text) => {
                        named.prefixes.push(path.literal_folder().to_owned());
                    }
                    Expanded::Text(text) => named.paths.push(text),
                    Expanded::Between(start, _) => named.prefixes.push(within(path, literal_folder(&start))),
                }
            }
        }
        for prefix in prefixes {
            for expanded in expand(prefix, &value_in_path) {
                named.prefixes.push(match &expanded {
                    Expanded::Text(text) => within(prefix, text),
                    Expanded::Between(start, _) => within(prefix, literal_folder(start)),
                });
            }
        }
        named.everything |= everything;
    }

    /// Returns the folders of all responses that may have a tag with this beginning and this end.
    fn folders_with_tags(&self, start: &str, end: &str) -> impl Iterator<Item = String> {
        let may_have = move |route: &&Arc<Route>| {
            // What responses name themselves can be any tag.
            route.tags_from.is_some() || route.tags.iter().any(|tag| may_be(tag, start, end))
        };
        let routes = self.routes.iter().filter(may_have);
        routes.filter_map(|route| route.path.as_ref()).map(|path| path.literal_folder().to_owned())
    }
}

/// Adds the placeholders because of which not all texts of a template are known: those without values, or all if there are too many.
fn note_unknown(unknown: &mut Vec<Placeholder>, template: &Expandable, writing: &Writing) {
    let elsewhere = || template.placeholders().filter(|one| !matches!(one, Placeholder::Path(_)));
    let are_too_many = elsewhere().all(|one| writing.values(one).is_some());
    for one in elsewhere().filter(|one| are_too_many || writing.values(one).is_none()) {
        note(unknown, one);
    }
}

fn note(unknown: &mut Vec<Placeholder>, one: &Placeholder) {
    if !unknown.contains(one) {
        unknown.push(one.clone());
    }
}

/// Returns the place of the tags that a response names.
fn named_by_response(tags_from: &TagsFrom) -> Placeholder {
    Placeholder::Response(tags_from.headers().map(HeaderName::as_str).collect::<Vec<_>>().join(","))
}

impl WriteRule {
    fn reads_body(&self) -> bool {
        self.values.iter().any(is_in_body)
    }
}

fn is_in_body(placeholder: &Placeholder) -> bool {
    matches!(placeholder, Placeholder::Body(_))
}

/// Returns true if a tag of a route's template may have this beginning and this end, as tags are compared.
pub(super) fn may_be(template: &str, start: &str, end: &str) -> bool {
    let own_start = template.split('{').next().unwrap_or_default();
    let own_end =
        if template.contains('{') { template.rsplit('}').next().unwrap_or_default() } else { template };
    let may_meet =
        |one: &str, other: &str, is_one_in: fn(&str, &str) -> bool| match (settled(one), settled(other)) {
            (Some(one), Some(other)) => is_one_in(&one, &other) || is_one_in(&other, &one),
            _ => true,
        };
    // A value that ends with a '%' would make an escape of it.
    let may_be_of_escape = |text: &str| text.starts_with(|c: char| c.is_ascii_hexdigit());
    may_meet(own_start, start, |one, other| other.starts_with(one))
        && (may_be_of_escape(own_end)
            || may_be_of_escape(end)
            || may_meet(own_end, end, |one, other| other.ends_with(one)))
}

/// Returns a part of a tag as tags are compared; `None` if what stands beside it may change it.
fn settled(text: &str) -> Option<String> {
    let text = decode_fully(text);
    (text.is_ascii() && !text.contains('%')).then(|| fold(&text).into_owned())
}

/// Returns a prefix that a template was expanded to, or the literal part of the template if a value leads out of it: a write to
/// `/items/..` is no reason to purge what is above.
fn within(template: &Expandable, prefix: &str) -> String {
    let folder = template.literal_folder();
    if leads_out(folder, prefix) { folder } else { prefix }.to_owned()
}

/// Returns true if some server may read a path in a folder as one that is not below it. A purge by that path would be one by such a reading,
/// too.
pub(crate) fn leads_out(folder: &str, path: &str) -> bool {
    let folders: Vec<_> = loose_texts(folder).collect();
    let is_below = |text: &str| {
        folders.iter().any(|folder| {
            let rest = text.strip_prefix(folder.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
        })
    };
    path != folder && !loose_texts(path).all(|text| is_below(&text))
}

/// Stored responses that a write invalidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePurges {
    /// Those that are served no more.
    pub hard: Purges,
    /// Those that become stale.
    pub soft: Purges,
    /// Places whose values are not known, so that everything is invalidated that could be meant.
    pub unknown: Vec<Placeholder>,
}

impl WritePurges {
    /// Returns true if nothing is invalidated.
    pub fn is_empty(&self) -> bool {
        let Self { hard, soft, unknown: _ } = self;
        hard.is_empty() && soft.is_empty()
    }

    /// Returns the names to purge.
    pub fn names(&self) -> Vec<PurgeName> {
        let Self { hard, soft, unknown: _ } = self;
        let mut names = hard.names();
        if !soft.is_empty() {
            names.extend(PurgeName::softly(soft.names()));
            names.sort();
        }
        names
    }
}

/// Stored responses to invalidate, values encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purges {
    /// Tags.
    pub tags: Vec<String>,
    /// Paths.
    pub paths: Vec<String>,
    /// Prefixes of paths.
    pub prefixes: Vec<String>,
    /// True if every stored response is meant.
    pub everything: bool,
}

impl Purges {
    /// Returns true if nothing is invalidated.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the names to purge.
    pub fn names(&self) -> Vec<PurgeName> {
        let Self { tags, paths, prefixes, everything } = self;
        let of_tags = tags.iter().map(|tag| PurgeName::tag(tag));
        let of_paths = paths.iter().flat_map(|path| PurgeName::paths(path));
        // Every path is under the root.
        let prefixes = prefixes.iter().map(String::as_str).chain(everything.then_some("/"));
        super::sorted(of_tags.chain(of_paths).chain(prefixes.flat_map(PurgeName::prefixes)).collect())
    }

    /// Sorts the lists, and leaves each element in them once.
    fn sort(&mut self) {
        for list in [&mut self.tags, &mut self.paths, &mut self.prefixes] {
            list.sort();
            list.dedup();
        }
    }
}
