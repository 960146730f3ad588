//! A configuration, and its differences from another one.

use std::sync::Arc;

use larder_policy::{Destinations, Metadata, Policy};

use crate::{l1::Bounds, mode::Mode};

/// Everything that decides what a sidecar serves.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Hash of the policy file; `None` without a file.
    pub hash: Option<String>,
    /// The policy.
    pub policy: Arc<Policy>,
    /// Namespace, name and UID of the policy.
    pub metadata: Metadata,
    /// Permission to serve from the cache, besides the policy's own.
    pub permission: Permission,
    /// Bounds of the cluster on the servers that tiers connect to.
    pub destinations: Arc<Destinations>,
}

/// Permission to serve from the cache, besides the policy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Not needed: no operator knows the other pods, or nothing depends on seeing their writes.
    NotNeeded,
    /// needed and not granted.
    Waiting,
    /// Granted: every write is seen since this round of [`Coverage`](larder_policy::Coverage) began.
    Granted(String),
}

impl Configuration {
    /// Returns the configuration of a sidecar that never had a policy: a plain shared cache.
    pub fn bare() -> Self {
        let policy = Arc::new(Policy::bare());
        Self {
            hash: None,
            policy,
            metadata: Metadata::default(),
            permission: Permission::NotNeeded,
            destinations: Arc::default(),
        }
    }

    /// Returns the configuration of a sidecar whose policy file is missing: everything passes.
    pub fn absent() -> Self {
        Self { policy: Arc::new(Policy::absent()), ..Self::bare() }
    }

    /// Returns the treatment of requests as a whole.
    pub fn mode(&self) -> Mode {
        match &self.permission {
            _ if self.hash.is_none() && !self.policy.is_bare() => Mode::Absent,
            _ if self.policy.suspended => Mode::Suspended,
            Permission::Waiting => Mode::Waiting,
            Permission::NotNeeded | Permission::Granted(_) => Mode::Serving,
        }
    }

    /// Returns the hash of the rules on storing. A round has one of its own, because a response of an earlier round may be older than
    /// a write that no sidecar saw.
    pub fn fingerprint(&self) -> String {
        match &self.permission {
            Permission::NotNeeded | Permission::Waiting => self.policy.fingerprint(),
            Permission::Granted(round) => format!("{} {round}", self.policy.fingerprint()),
        }
    }
}

/// Differences between two configurations, as far as running parts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// Another policy, rather than another version of it.
    pub(super) owner: bool,
    /// Sources connect anew: other bounds.
    pub(super) destinations: bool,
    /// Purges are counted anew: another version, Redis or grace, or other bounds.
    pub(super) order: bool,
    /// Memory begins anew: another order of purges, or another size or eviction.
    pub(super) memory: bool,
}

impl Changes {
    /// Compares two configurations, each with its [fingerprint](Configuration::fingerprint).
    pub(super) fn between(
        before: Option<(&Configuration, &str)>,
        (after, fingerprint): (&Configuration, &str),
    ) -> Self {
        let Some((before, fingerprint_before)) = before else {
            return Self { owner: true, destinations: true, order: true, memory: true };
        };
        let owner = before.metadata != after.metadata;
        let destinations = before.destinations != after.destinations;
        let order = owner
            || destinations
            || fingerprint_before != fingerprint
            || before.policy.redis != after.policy.redis
            || before.policy.l1.bus_grace != after.policy.l1.bus_grace
            || before.mode() == Mode::Absent;
        let memory = order
            || bounds_of(&before.policy) != bounds_of(&after.policy)
            || before.policy.l1.eviction != after.policy.l1.eviction;
        Self { owner, destinations, order, memory }
    }
}

pub(super) fn bounds_of(policy: &Policy) -> Bounds {
    Bounds { max_bytes: policy.l1.max_size.0, max_entries: policy.l1.max_entries.map(u64::from) }
}

#[cfg(test)]
mod tests {
    use larder_policy::ByteSize;

    use super::*;

    fn configuration(spec: &str) -> Configuration {
        let policy = Policy::compile(&serde_yaml::from_str(spec).unwrap()).unwrap();
        let hash = Some("hash".to_owned());
        Configuration { hash, policy: Arc::new(policy), ..Configuration::bare() }
    }

    #[test]
    fn changes_begin_anew_only_parts_that_depend_on_them() {
        let route = "routes: [{name: a, match: {path: /a}, ttl: 1s}]";
        let before = configuration(route);
        let between = |before: Option<&Configuration>, after: &Configuration| {
            let fingerprint = before.map(Configuration::fingerprint).unwrap_or_default();
            let before = before.map(|before| (before, fingerprint.as_str()));
            Changes::between(before, (after, &after.fingerprint()))
        };
        let changes = |after: &Configuration| between(Some(&before), after);
        let none = Changes { owner: false, destinations: false, order: false, memory: false };
        assert_eq!(changes(&before), none);
        assert_eq!(changes(&configuration("routes: [{name: b, match: {path: /a}, ttl: 2s}]")), none);
        let memory = Changes { memory: true, ..none };
        assert_eq!(changes(&configuration(&format!("l1: {{maxSize: 32Mi}}\n{route}"))), memory);
        let order = Changes { order: true, ..memory };
        assert_eq!(changes(&configuration("routes: [{name: a, match: {path: /b}, ttl: 1s}]")), order);
        assert_eq!(changes(&configuration(&format!("l1: {{busGrace: 9s}}\n{route}"))), order);
        assert_eq!(
            changes(&Configuration { permission: Permission::Granted("1".to_owned()), ..before.clone() }),
            order
        );
        let metadata = Metadata { uid: "other".to_owned(), ..Metadata::default() };
        let owner = Changes { owner: true, ..order };
        assert_eq!(changes(&Configuration { metadata, ..before.clone() }), owner);
        let bounded = Configuration { destinations: Arc::new(Destinations::of_cluster()), ..before.clone() };
        assert_eq!(changes(&bounded), Changes { destinations: true, ..order });
        assert_eq!(between(None, &before), Changes { destinations: true, ..owner });
        assert_eq!(between(Some(&Configuration::absent()), &before), order);
    }

    #[test]
    fn mode_follows_the_file_the_policy_and_its_coverage() {
        let serving = configuration("routes: []");
        let waiting = Configuration { permission: Permission::Waiting, ..serving.clone() };
        let suspended = Configuration { permission: Permission::Waiting, ..configuration("suspend: true") };
        let modes = [Configuration::bare(), Configuration::absent(), serving, waiting, suspended];
        assert_eq!(
            modes.each_ref().map(Configuration::mode),
            [Mode::Serving, Mode::Absent, Mode::Serving, Mode::Waiting, Mode::Suspended]
        );
        assert_ne!(bounds_of(&modes[0].policy).max_bytes, ByteSize(0).0);
    }
}
