//! The stage that asks Redis.

use std::{ops::ControlFlow, sync::Arc};

use super::{
    Proxy, Served,
    fetch::{Fetch, Purpose, Step},
    memory::Lookup,
};
use crate::{
    cache_key::CacheKey,
    cache_status::{Forward, Tier},
    l2::{Found, Patience},
    store::{in_flight::FetchOutcome, slot::CacheSlot},
};

impl Proxy {
    /// Responds from Redis, or passes on what is known since.
    pub(super) async fn ask_redis(self: &Arc<Self>, mut fetch: Box<Fetch>, patience: Patience) -> Step {
        if fetch.request.store().l2.is_some()
            && let Some(served) = Box::pin(self.look_in_redis(&mut fetch, patience)).await
        {
            return ControlFlow::Break(served);
        }
        ControlFlow::Continue(fetch)
    }

    /// Responds from Redis if it has a usable response, and otherwise learns from it what is stored and purged.
    pub(super) async fn look_in_redis(
        self: &Arc<Self>,
        fetch: &mut Fetch,
        patience: Patience,
    ) -> Option<Box<Served>> {
        let Fetch { request, known, .. } = fetch;
        let store = request.store();
        let l2 = store.l2.as_ref()?;
        let (key, names) = (request.key_with_body(), request.names());
        let lookup = l2.lookup(key.as_str(), &request.headers, names, request.limits(), patience).await;
        known.redis_is_silent = lookup.is_err();
        let lookup = lookup.ok()?;
        known.stamp = lookup.stamp;
        known.variant = lookup.variant;
        known.purge = lookup.purge;
        known.vary.clone_from(&lookup.vary);
        let entry = match lookup.found {
            Found::Nothing => return None,
            Found::OtherVariants => {
                fetch.reason = Forward::VaryMiss;
                return None;
            }
            Found::Purged => {
                fetch.reason = Forward::Stale;
                return None;
            }
            Found::Entry(entry) => entry,
        };
        let slot =
            CacheSlot::shared(store, &request.route, CacheKey::under(key, lookup.vary, &request.headers));
        let entry = Arc::new(entry.under(slot.key().whole()));
        match request.evaluate(entry) {
            Lookup::Hit(entry, _) if fetch.purpose == Purpose::Refresh && !known.is_outdated_by(&entry) => {
                None
            }
            Lookup::Hit(entry, freshness) => {
                slot.store_in_memory(&entry);
                let served = request.hit(&entry, &freshness, Tier::L2);
                fetch.finish(FetchOutcome::Stored(Arc::clone(&entry), Tier::L2, slot));
                // The refresh leads those who wait for the same, so this fetch must not lead them any more.
                if freshness.state.refreshes() {
                    self.refresh_in_background(&fetch.request, &entry);
                }
                Some(served)
            }
            Lookup::Revalidate(entry, reason) => {
                if known.is_outdated_by(&entry) {
                    known.stored = Some((entry, Tier::L2));
                }
                fetch.reason = reason;
                None
            }
            Lookup::Part(entry) => {
                known.part.get_or_insert(entry);
                None
            }
            Lookup::Fallback(_) | Lookup::Miss(_) | Lookup::Unshared => None,
        }
    }
}
