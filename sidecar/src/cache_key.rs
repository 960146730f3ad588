//! Identity of a stored response.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::LazyLock,
};

use http::HeaderName;
use larder_policy::{Fields, Key, PurgeName, vary};

/// Returns the hash of a key for tables in memory. It has a secret of this process, because clients choose the keys.
pub fn hash_of(key: &str) -> u64 {
    static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = SECRET.build_hasher();
    hasher.write(key.as_bytes());
    hasher.finish()
}

/// Primary key of a request, which is hashed once.
#[derive(Clone, Debug)]
pub struct PrimaryKey {
    key: Key,
    hash: u64,
}

impl PrimaryKey {
    /// Hashes a key.
    pub fn new(key: Key) -> Self {
        let hash = hash_of(key.as_str());
        Self { key, hash }
    }

    /// Takes a key over with its hash.
    pub fn hashed(key: Key, hash: u64) -> Self {
        Self { key, hash }
    }

    /// Returns the key in readable form.
    pub fn as_str(&self) -> &str {
        self.key.as_str()
    }

    /// Returns the hash.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the names under which a purge finds the response stored under this key, tags aside.
    pub fn purge_names(&self) -> [PurgeName; 3] {
        self.key.purge_names()
    }
}

/// Key of a stored response: the primary key of its request and, where the response has `Vary`, its variant (RFC 9111,
/// section 4.1).
#[derive(Clone, Debug)]
pub struct CacheKey {
    /// The primary key, then the variant.
    whole: String,
    /// Hash of the whole key.
    hash: u64,
    primary_length: usize,
    vary: Vec<HeaderName>,
}

impl CacheKey {
    /// Creates the key of a response with these names in `Vary` to a request with these fields.
    pub fn new(primary: &str, vary: Vec<HeaderName>, fields: &impl Fields) -> Self {
        let mut whole = primary.to_owned();
        vary::write_variant(&mut whole, &vary, fields);
        Self { hash: hash_of(&whole), whole, primary_length: primary.len(), vary }
    }

    /// Creates the key of a response with these names in `Vary` to the request of a primary key.
    pub fn under(primary: &PrimaryKey, vary: Vec<HeaderName>, fields: &impl Fields) -> Self {
        if !vary.is_empty() {
            return Self::new(primary.as_str(), vary, fields);
        }
        let whole = primary.as_str().to_owned();
        Self { hash: primary.hash, primary_length: whole.len(), whole, vary }
    }

    /// Returns the part that all variants share.
    pub fn primary(&self) -> &str {
        &self.whole[..self.primary_length]
    }

    /// Returns the request header names that select the variant; none if the response does not vary.
    pub fn vary(&self) -> &[HeaderName] {
        &self.vary
    }

    /// Returns the part that is specific to this variant; empty if the response does not vary.
    pub fn variant(&self) -> &str {
        &self.whole[self.primary_length..]
    }

    /// Returns the whole key as one text.
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// Returns the hash of the whole key.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the whole key of the variant that a request with these fields selects, if it is not this one.
    pub fn other_variant(&self, fields: &impl Fields) -> Option<String> {
        let mut key = self.primary().to_owned();
        vary::write_variant(&mut key, &self.vary, fields);
        (key != self.whole).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header::ACCEPT_LANGUAGE};

    use super::*;

    #[test]
    fn a_key_is_selected_by_requests_for_its_own_variant_alone() {
        let request = |language: &'static str| {
            HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static(language))])
        };
        let german = CacheKey::new("GET:/a", vec![ACCEPT_LANGUAGE], &request("de"));
        let french = CacheKey::new("GET:/a", vec![ACCEPT_LANGUAGE], &request("fr"));
        assert_eq!(german.other_variant(&request("de")), None);
        assert_eq!(german.other_variant(&request("fr")).unwrap(), french.whole());
        assert!(german.whole().starts_with(german.primary()));
        assert_eq!((german.hash(), french.hash()), (hash_of(german.whole()), hash_of(french.whole())));
        let plain = CacheKey::new("GET:/a", vec![], &request("de"));
        assert_eq!((plain.variant(), plain.whole()), ("", "GET:/a"));
        assert_eq!(plain.other_variant(&request("fr")), None);
    }
}
