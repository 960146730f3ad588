//! Stored responses, as the admin API shows them.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use larder_api::admin::{self as api, EntryState, StoredResponse};
use larder_policy::{
    Lifetimes,
    cache_control::RequestDirectives,
    freshness::{StaleUse, State, keep_for},
};

use crate::{
    barriers::Stamp,
    entry::{Content, Entry},
    mode::Mode,
    snapshot::Snapshot,
};

/// Returns the state of an entry under the rules of its route.
pub(super) fn entry_state(entry: &Entry, snapshot: &Snapshot, lifetimes: Option<&Lifetimes>) -> EntryState {
    let Some(lifetimes) = lifetimes else {
        return if snapshot.mode() == Mode::Serving { EntryState::NoRoute } else { EntryState::Passing };
    };
    if snapshot.mode() != Mode::Serving {
        EntryState::Passing
    } else if entry.is_out_of_touch(&snapshot.store.barriers) {
        EntryState::BusSilent
    } else if entry.is_purged(&snapshot.store.barriers) {
        EntryState::Purged
    } else if matches!(entry.content, Content::Parts(_)) {
        EntryState::Partial
    } else {
        match entry.freshness(lifetimes, &RequestDirectives::default(), &snapshot.store.barriers).state {
            State::Fresh { .. } => EntryState::Fresh,
            State::Stale { use_: StaleUse::WhileRevalidating | StaleUse::AsAsked, .. } => {
                EntryState::StaleWhileRevalidate
            }
            State::Stale { use_: StaleUse::OnError, .. } => EntryState::StaleIfError,
            State::Stale { use_: StaleUse::No, .. } => EntryState::Stale,
        }
    }
}

/// Returns a stored response under the rules of its route, without its hits.
pub(super) fn stored_response(
    entry: &Entry,
    snapshot: &Snapshot,
    lifetimes: Option<&Lifetimes>,
) -> StoredResponse {
    let mut headers = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in entry.fields().iter() {
        let [name, value] = [name, value].map(|text| String::from_utf8_lossy(text).into_owned());
        headers.entry(name).or_default().push(value);
    }
    let (body_bytes, complete) = match &entry.content {
        Content::Whole(body) => (body.len() as u64, true),
        Content::Parts(pieces) => (pieces.iter().map(|(_, piece)| piece.len() as u64).sum(), false),
    };
    let resident = entry.resident();
    let received = i64::try_from(entry.times().received_at).ok();
    let stored_at = received.and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_default();
    let Stamp { generation, order, local, asked_at: _ } = entry.stamp();
    let state = lifetimes.map(|lifetimes| {
        entry.freshness(lifetimes, &RequestDirectives::default(), &snapshot.store.barriers).state
    });
    StoredResponse {
        status: entry.status().as_u16(),
        headers,
        bytes: entry.weight(),
        body_bytes,
        complete,
        hits: None,
        stored_at: stored_at.to_string(),
        age_seconds: seconds(entry.age()),
        ttl_seconds: state.map(|state| match state {
            State::Fresh { ttl } => seconds(ttl),
            State::Stale { stale_for, .. } => -seconds(stale_for),
        }),
        useful_for_seconds: lifetimes
            .map(|lifetimes| seconds(keep_for(entry.meta(), lifetimes).saturating_sub(resident))),
        stamp: api::Stamp { generation: format!("{generation:x}"), order, local },
        purge_names: entry.names().len(),
    }
}

/// Returns seconds to the millisecond.
pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}
