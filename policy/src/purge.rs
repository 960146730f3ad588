//! The names under which stored answers are purged.

use std::fmt;

/// One name of a stored answer, hashed: a key, a path or a tag. An entry has a few of them; a purge raises a barrier on
/// one, and whatever bears that name and is older is stale. The kinds never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PurgeName([u8; 16]);

impl PurgeName {
    /// A key, with or without scheme and host.
    pub fn key(key: &str) -> Self {
        Self::new("key", key)
    }

    /// A normalised path, whatever the host, scheme, query and variant.
    pub fn path(path: &str) -> Self {
        Self::new("path", path)
    }

    /// A tag, its values encoded as [`crate::template::expand`] does.
    pub fn tag(tag: &str) -> Self {
        Self::new("tag", tag)
    }

    fn new(kind: &str, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(kind.as_bytes()).update(b":").update(name.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(hash)
    }

    /// The name as it travels: 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A name that has travelled; `None` if it is not 16 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for PurgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_never_meet() {
        assert_ne!(PurgeName::key("/a"), PurgeName::path("/a"));
        assert_ne!(PurgeName::tag("/a"), PurgeName::path("/a"));
        let name = PurgeName::tag("user:42");
        assert_eq!(PurgeName::from_bytes(name.as_bytes()), Some(name));
        assert_eq!(PurgeName::from_bytes(b"short"), None);
    }
}
