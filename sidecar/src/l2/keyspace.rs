//! The names of keys in Redis.

use larder_policy::Metadata;

use crate::entry::codec;

/// Prefix of every key of Larder.
const PREFIX: &str = "larder";

/// The keys of one policy: `larder:<namespace>/<policy>:{<blake3 of the key>}:<kind>`. Everything about one answer has the
/// same hash tag, so it shares a slot of Redis Cluster. The policy's uid, its scope and the version of records are in the hash: two
/// policies never meet, nor two clusters, nor one policy and itself with other keys or tags, nor sidecars that write records
/// differently. A scope is the policy's shape and the name of the key that authenticates records.
#[derive(Clone, Debug)]
pub struct Keyspace {
    policy: String,
    /// Beginning of the text that is hashed: the policy's uid and the version of records.
    hashed: String,
    barriers: String,
}

impl Keyspace {
    /// The keys of a policy.
    ///
    /// The policy's UID names the barriers: a policy that was deleted and made again does not trust what the first one stored, for
    /// nobody purged in between.
    pub fn new(policy: &Metadata) -> Self {
        let Metadata { name, namespace, uid } = policy;
        let policy = format!("{PREFIX}:{namespace}/{name}");
        let barriers = format!("{policy}:barriers:{uid}");
        Self { policy, hashed: format!("{uid} {} ", codec::VERSION), barriers }
    }

    /// The hash that holds the barriers, and the channel on which purges are told.
    pub fn barriers(&self) -> &str {
        &self.barriers
    }

    /// The primary record of a key.
    pub fn primary(&self, scope: &str, key: &str) -> String {
        self.in_slot(&self.hash(scope, key), &["entry"])
    }

    /// One variant of a key.
    pub fn variant(&self, scope: &str, key: &str, variant: &str) -> String {
        self.in_slot(&self.hash(scope, key), &["variant:", &short(variant)])
    }

    /// The lease of a key since the last purge of it, or of one variant of it where those are known, and who waits for it: who comes
    /// after a purge does not wait for what was asked before.
    pub fn lease(&self, scope: &str, key: &str, variant: &str, purge: u64) -> [String; 2] {
        let hash = self.hash(scope, key);
        let variant = if variant.is_empty() { String::new() } else { format!(":{}", short(variant)) };
        ["lease", "waiting"].map(|kind| self.in_slot(&hash, &[kind, &variant, ":", &purge.to_string()]))
    }

    fn hash(&self, scope: &str, key: &str) -> blake3::Hash {
        blake3::hash([&*self.hashed, scope, " ", key].concat().as_bytes())
    }

    /// The name of a key in the slot of a hash. Lookups make one each, so it is put together without formatting.
    fn in_slot(&self, hash: &blake3::Hash, kind: &[&str]) -> String {
        let hex = hash.to_hex();
        let length =
            self.policy.len() + hex.len() + ":{}:".len() + kind.iter().map(|part| part.len()).sum::<usize>();
        let mut name = String::with_capacity(length);
        for part in [&*self.policy, ":{", &*hex, "}:"].iter().chain(kind) {
            name.push_str(part);
        }
        name
    }
}

/// A variant as keys have it.
fn short(variant: &str) -> String {
    larder_policy::digest::long(&blake3::hash(variant.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keys_stay_as_they_are() {
        let keys = Keyspace::new(&Metadata { name: "a".into(), namespace: "shop".into(), uid: "u-1".into() });
        let hash = blake3::hash(format!("u-1 {} s k", codec::VERSION).as_bytes());
        assert_eq!(keys.primary("s", "k"), format!("larder:shop/a:{{{hash}}}:entry"));
        assert_eq!(keys.variant("s", "k", "v"), format!("larder:shop/a:{{{hash}}}:variant:{}", short("v")));
        let [lease, waiting] = keys.lease("s", "k", "", 7);
        assert_eq!(lease, format!("larder:shop/a:{{{hash}}}:lease:7"));
        assert_eq!(waiting, format!("larder:shop/a:{{{hash}}}:waiting:7"));
        let [lease, _] = keys.lease("s", "k", "v", 7);
        assert_eq!(lease, format!("larder:shop/a:{{{hash}}}:lease:{}:7", short("v")));
    }

    #[test]
    fn policies_never_meet_and_variants_share_a_slot() {
        let keys = |name: &str| {
            Keyspace::new(&Metadata { name: name.into(), namespace: "shop".into(), uid: String::new() })
        };
        assert_ne!(keys("a").primary("s", "k"), keys("b").primary("s", "k"));
        assert!(keys("a").primary("s", "k").starts_with("larder:shop/a:{"));
        assert_ne!(keys("a").primary("s", "k"), keys("a").primary("t", "k"));
        let slot = |key: &str| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
        let primary = keys("a").primary("s", "k");
        assert_eq!(slot(&primary), slot(&keys("a").variant("s", "k", "\naccept=x")));
        let leases = ["", "\naccept=x", "\naccept=y"].map(|variant| keys("a").lease("s", "k", variant, 7));
        assert!(leases.iter().flatten().all(|lease| slot(lease) == slot(&primary) && *lease != primary));
        assert!(leases[0] != leases[1] && leases[1] != leases[2]);
    }
}
