//! Heads of responses that are about to be stored.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use larder_policy::{
    Fields as _, Lifetimes, PurgeName,
    cache_control::RequestDirectives,
    freshness::{Freshness, evaluate},
    response_meta::ResponseMeta,
    storing::is_kept,
};

use super::{resident, spread};
use crate::{barriers::Stamp, headers::FieldLines};

/// A response without its body that is about to be stored.
#[derive(Clone, Debug)]
pub struct Head {
    /// The end-to-end header fields, most of which are stored.
    pub fields: Arc<FieldLines>,
    /// True for a response to HEAD, whose `Content-Length` is stored: nothing else says how long the response to GET is.
    pub is_to_head: bool,
    /// Cache metadata of the response.
    pub meta: ResponseMeta,
    /// The time of its fill in the order of purges.
    pub stamp: Stamp,
    /// The names under which it can be purged.
    pub names: Box<[PurgeName]>,
}

impl Head {
    /// Returns the name of each header field that is stored, and its line with its end.
    pub(super) fn stored_lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.named().filter(|(name, _)| self.stores(name))
    }

    /// Returns a map of the header fields that are stored.
    pub fn headers(&self) -> HeaderMap {
        let stored = self.fields.lines().filter(|(name, _)| self.stores(name));
        stored.collect::<FieldLines>().to_map()
    }

    fn stores(&self, name: &[u8]) -> bool {
        is_kept(name) && (self.is_to_head || name != b"content-length")
    }

    /// Sets the position among responses that were stored at the same time, by which their TTLs differ. The position is
    /// the same in every pod.
    pub fn spread(self) -> Self {
        let meta = spread(self.meta, self.names.first());
        Self { meta, ..self }
    }

    /// Returns the freshness for a request now.
    pub fn freshness(&self, lifetimes: &Lifetimes, asked: &RequestDirectives) -> Freshness {
        evaluate(&self.meta, lifetimes, resident(&self.meta), asked)
    }

    /// Returns the age now.
    pub fn age(&self) -> Duration {
        self.meta.initial_age() + resident(&self.meta)
    }
}
