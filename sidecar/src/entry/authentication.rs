//! Authentication of the records in Redis.
//!
//! Redis is a trust boundary: write access to it must not suffice to make a sidecar serve a forged response. Each
//! record ends with a MAC over the record and its [`Place`], so that a record can be neither forged nor moved to another
//! key.
//!
//! The MAC is a nonce and a tag: Poly1305 (RFC 8439, section 2.8, with the record as associated data and an empty text) under a key
//! that is used once. That key is a keyed hash (BLAKE3) of the nonce and the place. The nonce is a keyed hash of what is
//! authenticated, so that two records have different ones without a source of random numbers that could fail.
//!
//! The keys of both hashes are derived from the token of the admin API, which all pods of a policy share. A sidecar without
//! `--admin-token-file` writes and reads records without a MAC.
//!
//! # Guarantees
//! - A record that no holder of the token wrote under this very key is never returned.
//! - Pods with different tokens use different keys in Redis: while a token is replaced they share less, and nothing
//!   fails.
//!
//! # Assumptions
//! The token cannot be guessed, although each MAC allows guesses to be tested. The operator's tokens have 256 random
//! bits.

use std::{io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Length in bytes of the nonce, with which a MAC begins: no two records under one Redis key have the same.
const NONCE_LENGTH: usize = 16;

/// Length in bytes of the tag, with which a MAC ends.
const TAG_LENGTH: usize = 16;

/// Length in bytes of the MAC at the end of a record.
pub const MAC_LENGTH: usize = NONCE_LENGTH + TAG_LENGTH;

/// Length in bytes of a [`Place`]: with a nonce it is one block of BLAKE3.
pub const PLACE_LENGTH: usize = 48;

/// Identity of a key in Redis: a hash that no two keys have in common.
pub type Place = [u8; PLACE_LENGTH];

const NONCE_CONTEXT: &str = "larder 2026-11-28 nonces of records in Redis";
const TAG_CONTEXT: &str = "larder 2026-11-28 keys of tags of records in Redis";
/// Another way to authenticate has another name: releases that differ in it share no record.
const NAME_CONTEXT: &str = "larder 2026-11-28 name of the keys that authenticate records in Redis";

/// The key that authenticates records, read again when its file changes.
#[derive(Debug)]
pub struct Authentication {
    token_file: Option<PathBuf>,
    current: ArcSwap<State>,
}

/// The current authentication of records.
#[derive(Debug)]
pub enum State {
    /// The sidecar has no token: records carry no MAC.
    Off,
    /// Records carry a MAC made with this key.
    On(RecordKey),
    /// The token could not be read yet: no record can be written or read.
    Unavailable(String),
}

/// A key that authenticates records.
#[derive(Clone)]
pub struct RecordKey {
    nonces: [u8; blake3::KEY_LEN],
    tags: [u8; blake3::KEY_LEN],
    name: String,
}

impl Authentication {
    /// Reads the token of the admin API from its file; `None`: records carry no MAC.
    pub fn new(token_file: Option<PathBuf>) -> Self {
        let authentication = Self { token_file, current: ArcSwap::from_pointee(State::Off) };
        authentication.refresh();
        authentication
    }

    /// Reads the file again. The previous token stays in use if the file cannot be read.
    pub fn refresh(&self) {
        let Some(file) = &self.token_file else { return };
        let read = std::fs::read(file).and_then(|text| {
            RecordKey::from_token(&text).ok_or_else(|| io::Error::other("the file is empty"))
        });
        let current = self.current.load();
        match (read, &**current) {
            (Ok(key), State::On(known)) if known.tags == key.tags => {}
            (Ok(key), _) => self.current.store(Arc::new(State::On(key))),
            (Err(_), State::On(_)) => {}
            (Err(error), _) => {
                let why = format!("can't read {}: {error}", file.display());
                self.current.store(Arc::new(State::Unavailable(why)));
            }
        }
    }

    /// Returns the current authentication.
    pub fn state(&self) -> Arc<State> {
        self.current.load_full()
    }
}

impl RecordKey {
    /// Derives the key from a token without its surrounding white space; `None` for an empty one.
    pub fn from_token(token: &[u8]) -> Option<Self> {
        let token = token.trim_ascii();
        (!token.is_empty()).then(|| Self {
            nonces: blake3::derive_key(NONCE_CONTEXT, token),
            tags: blake3::derive_key(TAG_CONTEXT, token),
            name: larder_policy::digest::short(&blake3::derive_key(NAME_CONTEXT, token).into()),
        })
    }

    /// Returns the public name of the key, which reveals nothing about the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends the MAC of a record that is stored under `place`.
    pub fn seal(&self, place: &Place, record: &[u8]) -> Bytes {
        let nonce = self.nonce(place, record);
        let key = self.key_of_tag(place, &nonce);
        let tag = key.seal_in_place_separate_tag(used_once(), Aad::from(record), &mut []);
        let tag = tag.expect("a record is shorter than ChaCha20-Poly1305 takes");
        let mut sealed = BytesMut::with_capacity(record.len() + MAC_LENGTH);
        sealed.extend_from_slice(record);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(tag.as_ref());
        sealed.freeze()
    }

    /// Returns the record without its MAC; `None` if the MAC does not match the record and `place`.
    pub fn open(&self, place: &Place, mut sealed: Bytes) -> Option<Bytes> {
        let mac = sealed.split_off(sealed.len().checked_sub(MAC_LENGTH)?);
        let (nonce, tag) = mac.split_first_chunk::<NONCE_LENGTH>()?;
        let mut tag: [u8; TAG_LENGTH] = tag.try_into().ok()?;
        // Tags are compared in constant time.
        let opened = self.key_of_tag(place, nonce).open_in_place(used_once(), Aad::from(&sealed), &mut tag);
        opened.is_ok().then_some(sealed)
    }

    fn nonce(&self, place: &Place, record: &[u8]) -> [u8; NONCE_LENGTH] {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonces);
        hasher.update(place);
        hasher.update(record);
        let mut nonce = [0; NONCE_LENGTH];
        nonce.copy_from_slice(&hasher.finalize().as_bytes()[..NONCE_LENGTH]);
        nonce
    }

    /// Returns the key of the tag of one record.
    fn key_of_tag(&self, place: &Place, nonce: &[u8; NONCE_LENGTH]) -> LessSafeKey {
        let mut hashed = [0; NONCE_LENGTH + PLACE_LENGTH];
        hashed[..NONCE_LENGTH].copy_from_slice(nonce);
        hashed[NONCE_LENGTH..].copy_from_slice(place);
        let key = blake3::keyed_hash(&self.tags, &hashed);
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes());
        LessSafeKey::new(key.expect("a hash is as long as a key"))
    }
}

/// Returns the nonce of a key that is used once.
fn used_once() -> Nonce {
    Nonce::assume_unique_for_key([0; ring::aead::NONCE_LEN])
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordKey").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = [1; PLACE_LENGTH];
    const OTHER: Place = [2; PLACE_LENGTH];

    fn key(token: &str) -> RecordKey {
        RecordKey::from_token(token.as_bytes()).unwrap()
    }

    #[test]
    fn only_the_record_itself_under_its_own_key_is_opened() {
        let sealed = key("a").seal(&PLACE, b"record");
        assert_eq!(key(" a\n").open(&PLACE, sealed.clone()).as_deref(), Some(&b"record"[..]));
        assert_eq!(key("a").open(&OTHER, sealed.clone()), None, "moved to another key");
        for at in 0..PLACE_LENGTH {
            let mut place = PLACE;
            place[at] ^= 1;
            assert_eq!(key("a").open(&place, sealed.clone()), None, "every byte of the place counts");
        }
        assert_eq!(key("b").open(&PLACE, sealed.clone()), None, "another token");
        assert_eq!(key("a").open(&PLACE, Bytes::from_static(b"record")), None, "no MAC");
        assert_eq!(key("a").open(&PLACE, Bytes::new()), None);
        assert_ne!(key("a").name(), key("b").name());
        assert!(RecordKey::from_token(b" \n").is_none());
    }

    #[test]
    fn each_record_and_place_has_a_nonce_of_its_own() {
        let nonce = |place: &Place, record: &[u8]| {
            let sealed = key("a").seal(place, record);
            sealed[record.len()..][..NONCE_LENGTH].to_vec()
        };
        let nonces = [(PLACE, "record"), (PLACE, "other"), (OTHER, "record"), (OTHER, "other")]
            .map(|(place, record)| nonce(&place, record.as_bytes()));
        assert_eq!(nonces.iter().collect::<std::collections::HashSet<_>>().len(), nonces.len());
        assert_eq!(nonces[0], nonce(&PLACE, b"record"), "no number that could fail to be random");
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_noticed(record in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), by in 1..=255_u8) {
            let mut sealed = key("a").seal(&PLACE, &record).to_vec();
            let at = at.index(sealed.len());
            sealed[at] ^= by;
            prop_assert_eq!(key("a").open(&PLACE, sealed.into()), None);
        }
    }

    #[test]
    fn a_token_that_cannot_be_read_leaves_the_one_before_in_use() {
        let file = std::env::temp_dir().join(format!("larder-token-{}", std::process::id()));
        let _ = std::fs::remove_file(&file);
        let authentication = Authentication::new(Some(file.clone()));
        assert!(matches!(&*authentication.state(), State::Unavailable(_)));
        let name = || match &*authentication.state() {
            State::On(key) => key.name().to_owned(),
            state => panic!("{state:?}"),
        };
        for (written, known) in [(Some("a"), "a"), (None, "a"), (Some(""), "a"), (Some("b\n"), "b")] {
            match written {
                Some(token) => std::fs::write(&file, token).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            authentication.refresh();
            assert_eq!(name(), key(known).name());
        }
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(&*Authentication::new(None).state(), State::Off));
    }
}
