//! Rules for writes, and the stored responses that they invalidate.

use super::{Policy, Route, check::Check};
use crate::{
    PathTemplate, PurgeName, Writing,
    path::{Readings, decode_fully},
    spec::{OnWrite, PurgeSpec},
    template::expand,
};

/// A compiled rule of `invalidation.onWrite`.
#[derive(Clone, Debug)]
pub(super) struct WriteRule {
    path: PathTemplate,
    methods: Vec<String>,
    purge: PurgeSpec,
}

impl Check {
    /// Compiles a rule for writes.
    pub(super) fn write(&mut self, at: &str, write: &OnWrite, routes: &[Route]) -> WriteRule {
        let OnWrite { matches, purge } = write;
        self.methods(&format!("{at}.match.methods"), &matches.methods);
        self.no_reads(&format!("{at}.match"), matches, routes);
        let at = format!("{at}.purge");
        let PurgeSpec { tags, paths, prefixes, everything, soft: _ } = purge;
        for (index, tag) in tags.iter().enumerate() {
            self.placeholders(&format!("{at}.tags[{index}]"), tag, &matches.path);
        }
        for (list, paths) in [("paths", paths), ("prefixes", prefixes)] {
            for (index, path) in paths.iter().enumerate() {
                self.placeholders(&format!("{at}.{list}[{index}]"), path.as_str(), &matches.path);
            }
        }
        if tags.is_empty() && paths.is_empty() && prefixes.is_empty() && !everything {
            self.refuse(&at, "nothing to purge: set tags, paths or prefixes, or everything: true");
        }
        WriteRule { path: matches.path.clone(), methods: matches.methods.clone(), purge: purge.clone() }
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

    /// Returns everything that the policy names for a write.
    pub fn purges_of(&self, writing: &Writing) -> WritePurges {
        let mut purges = WritePurges::default();
        if self.writes.is_empty() {
            return purges;
        }
        let readings: Vec<_> = writing.paths().iter().map(|path| Readings::of(path)).collect();
        let rules = self.writes.iter().filter(|rule| writing.is_one_of(&rule.methods));
        for WriteRule { path: template, methods: _, purge } in rules {
            let found =
                readings.iter().flat_map(Readings::iter).filter_map(|path| template.matches_reading(path));
            let purges = if purge.soft { &mut purges.soft } else { &mut purges.hard };
            for parameters in found {
                purges.tags.extend(purge.tags.iter().map(|tag| expand(tag, &parameters)));
                let expanded = |path: &PathTemplate| path.expand_with(&parameters, template.rest());
                purges.paths.extend(purge.paths.iter().map(expanded));
                purges.prefixes.extend(purge.prefixes.iter().map(|prefix| within(prefix, expanded(prefix))));
                purges.everything |= purge.everything;
            }
        }
        purges.hard.sort();
        purges.soft.sort();
        purges
    }
}

/// Returns a prefix that a template was expanded to, or the literal part of the template if a value leads out of it: a write to
/// `/items/..` is no reason to purge what is above.
fn within(template: &PathTemplate, prefix: String) -> String {
    let leads_out = |segment: &str| matches!(&*decode_fully(segment), "." | "..");
    if !prefix.split('/').any(leads_out) {
        return prefix;
    }
    let literal = template.as_str().split('{').next().unwrap_or_default();
    literal[..=literal.rfind('/').unwrap_or_default()].to_owned()
}

/// Stored responses that a write invalidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePurges {
    /// Those that are served no more.
    pub hard: Purges,
    /// Those that become stale.
    pub soft: Purges,
}

impl WritePurges {
    /// Returns true if nothing is invalidated.
    pub fn is_empty(&self) -> bool {
        let Self { hard, soft } = self;
        hard.is_empty() && soft.is_empty()
    }

    /// Returns the names to purge.
    pub fn names(&self) -> Vec<PurgeName> {
        let Self { hard, soft } = self;
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
