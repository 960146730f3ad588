//! The names of keys in Redis.

use larder_policy::Metadata;

use crate::entry::{
    authentication::{PLACE_LENGTH, Place},
    codec,
};

/// Prefix of every key of Larder.
const PREFIX: &str = "larder";

/// The keys of one policy.
#[derive(Clone, Debug)]
pub struct Keyspace {
    policy: String,
    uid: String,
    barriers: String,
}

/// The keys of one policy in one scope: `larder:<namespace>/<policy>:{<keyed blake3 of the key>}:<kind>`. Everything about one
/// answer has the same hash tag, so it shares a slot of Redis Cluster. The policy and its uid, the scope and the version of
/// records are what the hash is keyed with: two policies never meet, nor two clusters, nor one policy and itself with other keys
/// or tags, nor sidecars that write records differently. A scope is the policy's shape and the name of the key that authenticates
/// records.
#[derive(Debug)]
pub(super) struct ScopedKeys {
    /// Beginning of every name, to the hash.
    prefix: String,
    /// Key of the hash. It is no secret.
    scope: [u8; blake3::KEY_LEN],
}

/// The key of a record.
#[derive(Debug)]
pub(super) struct RecordPlace {
    /// Name of the key in Redis.
    pub(super) name: String,
    /// Identity of the key, which the MAC is bound to: the hash in the name, and that of the variant.
    pub(super) identity: Place,
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
        Self { policy, uid: uid.clone(), barriers }
    }

    /// The hash that holds the barriers, and the channel on which purges are told.
    pub fn barriers(&self) -> &str {
        &self.barriers
    }

    /// The keys in a scope.
    pub(super) fn within(&self, scope: &str) -> ScopedKeys {
        let Self { policy, uid, .. } = self;
        let scope = blake3::hash(format!("{policy} {uid} {} {scope}", codec::VERSION).as_bytes()).into();
        ScopedKeys { prefix: format!("{policy}:{{"), scope }
    }
}

impl ScopedKeys {
    /// The primary record of a key.
    pub(super) fn primary(&self, key: &str) -> RecordPlace {
        let hash = self.hash(key);
        let mut identity = [0; PLACE_LENGTH];
        identity[..blake3::OUT_LEN].copy_from_slice(&hash);
        RecordPlace { name: self.in_slot(&hash, &["entry"]), identity }
    }

    /// One variant of a key.
    pub(super) fn variant(&self, key: &str, variant: &str) -> RecordPlace {
        let (hash, variant) = (self.hash(key), blake3::hash(variant.as_bytes()));
        let mut identity = [0; PLACE_LENGTH];
        let (of_key, of_variant) = identity.split_at_mut(blake3::OUT_LEN);
        of_key.copy_from_slice(&hash);
        // As many bytes as the name has digits of.
        of_variant.copy_from_slice(&variant.as_bytes()[..PLACE_LENGTH - blake3::OUT_LEN]);
        let name = self.in_slot(&hash, &["variant:", &larder_policy::digest::long(&variant)]);
        RecordPlace { name, identity }
    }

    /// The lease of a key since the last purge of it, or of one variant of it where those are known, and who waits for it: who comes
    /// after a purge does not wait for what was asked before.
    pub(super) fn lease(&self, key: &str, variant: &str, purge: u64) -> [String; 2] {
        let hash = self.hash(key);
        let variant = if variant.is_empty() { String::new() } else { format!(":{}", short(variant)) };
        ["lease", "waiting"].map(|kind| self.in_slot(&hash, &[kind, &variant, ":", &purge.to_string()]))
    }

    fn hash(&self, key: &str) -> [u8; blake3::OUT_LEN] {
        blake3::keyed_hash(&self.scope, key.as_bytes()).into()
    }

    /// The name of a key in the slot of a hash. Lookups make one each, so it is put together without formatting.
    fn in_slot(&self, hash: &[u8; blake3::OUT_LEN], kind: &[&str]) -> String {
        let digits = larder_policy::digest::hex::<_, { 2 * blake3::OUT_LEN }>(hash);
        let digits = str::from_utf8(&digits).expect("digits are ASCII");
        let of_kind = kind.iter().map(|part| part.len()).sum::<usize>();
        let mut name = String::with_capacity(self.prefix.len() + digits.len() + "}:".len() + of_kind);
        name.push_str(&self.prefix);
        name.push_str(digits);
        name.push_str("}:");
        kind.iter().for_each(|part| name.push_str(part));
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

    fn keys(name: &str, scope: &str) -> ScopedKeys {
        let metadata = Metadata { name: name.into(), namespace: "shop".into(), uid: "u-1".into() };
        Keyspace::new(&metadata).within(scope)
    }

    #[test]
    fn names_of_keys_stay_as_they_are() {
        let keys = keys("a", "s");
        let scope = blake3::hash(format!("larder:shop/a u-1 {} s", codec::VERSION).as_bytes());
        let hash = blake3::keyed_hash(scope.as_bytes(), b"k");
        assert_eq!(keys.primary("k").name, format!("larder:shop/a:{{{hash}}}:entry"));
        assert_eq!(keys.variant("k", "v").name, format!("larder:shop/a:{{{hash}}}:variant:{}", short("v")));
        let [lease, waiting] = keys.lease("k", "", 7);
        assert_eq!(lease, format!("larder:shop/a:{{{hash}}}:lease:7"));
        assert_eq!(waiting, format!("larder:shop/a:{{{hash}}}:waiting:7"));
        let [lease, _] = keys.lease("k", "v", 7);
        assert_eq!(lease, format!("larder:shop/a:{{{hash}}}:lease:{}:7", short("v")));
    }

    #[test]
    fn policies_never_meet_and_variants_share_a_slot() {
        assert!(keys("a", "s").primary("k").name.starts_with("larder:shop/a:{"));
        let slot = |key: &str| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
        let primary = keys("a", "s").primary("k");
        let variant = keys("a", "s").variant("k", "\naccept=x");
        assert_eq!(slot(&primary.name), slot(&variant.name));
        let leases = ["", "\naccept=x", "\naccept=y"].map(|variant| keys("a", "s").lease("k", variant, 7));
        let primary = primary.name;
        assert!(leases.iter().flatten().all(|lease| slot(lease) == slot(&primary) && *lease != primary));
        assert!(leases[0] != leases[1] && leases[1] != leases[2]);
    }

    #[test]
    fn places_are_equal_iff_names_are() {
        let places = [
            keys("a", "s").primary("k"),
            keys("b", "s").primary("k"),
            keys("a", "t").primary("k"),
            keys("a", "s").primary("l"),
            keys("a", "s").variant("k", ""),
            keys("a", "s").variant("k", "v"),
            keys("a", "s").variant("k", "w"),
            keys("a", "s").variant("l", "v"),
        ];
        for (at, one) in places.iter().enumerate() {
            for other in &places[at + 1..] {
                assert!(one.name != other.name && one.identity != other.identity, "{one:?}, {other:?}");
            }
        }
        let (one, again) = (keys("a", "s").variant("k", "v"), &places[5]);
        assert_eq!((&one.name, one.identity), (&again.name, again.identity));
    }
}
