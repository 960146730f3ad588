//! An answer on its way into the cache.

use std::{mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::HeaderName;
use larder_policy::freshness::NotStored;

use super::{Question, keep_in_memory};
use crate::{
    body::Tap,
    entry::{Entry, Parts, variant},
    serving::Serving,
};

/// Collects the body of an answer while it passes, and stores the answer when the body is whole.
///
/// Dropped before that, it stores nothing: the client left, or the origin died in mid-body.
pub(super) struct Fill {
    serving: Arc<Serving>,
    route: usize,
    key: String,
    vary: Vec<HeaderName>,
    variant: String,
    parts: Option<Parts>,
    collected: BytesMut,
}

impl Fill {
    pub(super) fn new(question: &Question<'_>, parts: Parts, vary: Vec<HeaderName>) -> Self {
        Self {
            serving: Arc::clone(question.serving),
            route: question.found.index,
            key: question.key.as_str().to_owned(),
            variant: variant(&vary, &question.headers),
            vary,
            parts: Some(parts),
            collected: BytesMut::new(),
        }
    }

    /// Stores the answer with a body that is at hand.
    pub(super) fn store(mut self, body: Bytes) {
        self.keep(body);
    }

    fn give_up(&mut self, reason: NotStored) {
        if self.parts.take().is_none() {
            return;
        }
        self.collected = BytesMut::new();
        self.serving.not_stored(self.route, reason);
    }

    fn keep(&mut self, body: Bytes) {
        let Some(parts) = &self.parts else { return };
        if self.serving.barriers.covers(&parts.names, parts.stamp) {
            return self.give_up(NotStored::Purged);
        }
        let Some(parts) = self.parts.take() else { return };
        let entry = Arc::new(Entry::new(parts, body));
        keep_in_memory(&self.serving, &self.key, &self.vary, &self.variant, &entry);
        let ttl = self.serving.policy.routes()[self.route].ttl;
        if let (Some(l2), Some(fresh_for)) = (self.serving.l2.clone(), entry.fresh_for(ttl)) {
            let (key, vary, variant) =
                (mem::take(&mut self.key), mem::take(&mut self.vary), mem::take(&mut self.variant));
            let shape = self.serving.shape.clone();
            tokio::spawn(async move {
                // A failure is counted where it happens; the entry is in memory all the same.
                let _ = l2.store(&shape, &key, &vary, &variant, &entry, fresh_for).await;
            });
        }
    }
}

impl Tap for Fill {
    fn data(&mut self, piece: &Bytes) {
        if self.parts.is_none() {
            return;
        }
        if (self.collected.len() + piece.len()) as u64 > self.serving.policy.l1.max_object_size.0 {
            self.give_up(NotStored::TooLarge);
        } else {
            self.collected.extend_from_slice(piece);
        }
    }

    fn trailers(&mut self) {
        self.give_up(NotStored::Trailers);
    }

    fn complete(&mut self) {
        // A copy takes no more than its length; what grew has room to spare.
        let body = Bytes::copy_from_slice(&mem::take(&mut self.collected));
        self.keep(body);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.give_up(NotStored::Incomplete);
    }
}
