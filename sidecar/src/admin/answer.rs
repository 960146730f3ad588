//! A stored answer, as the admin API shows it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use larder_policy::{
    Lifetimes,
    cache_control::RequestDirectives,
    freshness::{StaleUse, Verdict, keep_for},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    barriers::Stamp,
    entry::{Content, Entry},
    serving::{Mode, Serving},
};

/// A stored answer, its body aside.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Answer {
    /// Its status.
    status: u16,
    /// Its header fields as they were received: the values of each name's lines.
    headers: BTreeMap<String, Vec<String>>,
    /// About how many bytes it takes in memory.
    bytes: usize,
    /// How many bytes of its body are stored.
    body_bytes: u64,
    /// Whether that is all of the body.
    complete: bool,
    /// How often this pod's memory was asked for it, or for what was there before; null for what is in Redis.
    hits: Option<u32>,
    /// When it was received, as RFC 3339 has it.
    stored_at: String,
    /// How old it is, as `Age` says.
    age_seconds: f64,
    /// For how much longer it is fresh; less than 0 once it is not. Null where no route takes its key.
    ttl_seconds: Option<f64>,
    /// For how much longer it is worth keeping: to be served stale, or to be validated. Null where no route takes its key.
    useful_for_seconds: Option<f64>,
    /// When its fill began, in the order of purges.
    stamp: ShownStamp,
    /// Under how many names it can be purged.
    purge_names: usize,
}

/// A place in the order of purges.
#[derive(Debug, Serialize, JsonSchema)]
struct ShownStamp {
    /// What `order` is counted in, in hexadecimal; 0 without Redis.
    generation: String,
    /// The last purge before it that Redis counted.
    order: u64,
    /// The last purge before it that only this pod knows of.
    local: u64,
}

/// Whether what is stored would be served to a client that asks for nothing special, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Standing {
    /// It is served: it is fresh.
    Fresh,
    /// It is served, and renewed meanwhile: it is too old, by less than `staleWhileRevalidate`.
    StaleWhileRevalidate,
    /// It is served if nobody can give a better one: it is too old, by less than `staleIfError`.
    StaleIfError,
    /// It is not served: it is too old. If the application says that it still holds, it is fresh again.
    Stale,
    /// It is not served: a purge made it stale.
    Purged,
    /// It is not served: purges have not been heard of for longer than `l1.busGrace`.
    BusSilent,
    /// Parts of it are served to those who ask for them: the rest is not stored.
    Partial,
    /// It is not served: no route of the policy takes requests of its key.
    NoRoute,
    /// It is not served: the policy is suspended, or there is none.
    Passing,
    /// It is no answer: requests differ by the headers in `vary`, and each of the variants has a key of its own.
    Variants,
    /// It is no answer: the last one was not for sharing, and nobody waits for another's.
    Unshared,
}

impl Standing {
    /// How an answer stands, under the rules of its route.
    pub(super) fn of(entry: &Entry, serving: &Serving, lifetimes: Option<&Lifetimes>) -> Self {
        let Some(lifetimes) = lifetimes else {
            return if serving.mode == Mode::Serving { Self::NoRoute } else { Self::Passing };
        };
        if serving.mode != Mode::Serving {
            Self::Passing
        } else if entry.is_out_of_touch(&serving.barriers) {
            Self::BusSilent
        } else if entry.is_purged(&serving.barriers) {
            Self::Purged
        } else if matches!(entry.content, Content::Parts(_)) {
            Self::Partial
        } else {
            match entry.head.standing(lifetimes, &RequestDirectives::default()).verdict {
                Verdict::Fresh { .. } => Self::Fresh,
                Verdict::Stale { use_: StaleUse::WhileRevalidating | StaleUse::AsAsked, .. } => {
                    Self::StaleWhileRevalidate
                }
                Verdict::Stale { use_: StaleUse::OnError, .. } => Self::StaleIfError,
                Verdict::Stale { use_: StaleUse::No, .. } => Self::Stale,
            }
        }
    }

    /// Whether it is served to whoever asks.
    pub(super) const fn is_served(self) -> bool {
        matches!(self, Self::Fresh | Self::StaleWhileRevalidate)
    }
}

impl Answer {
    /// With how often memory was asked for it.
    pub(super) fn asked_for(self, hits: u32) -> Self {
        Self { hits: Some(hits), ..self }
    }

    /// A stored answer under the rules of its route.
    pub(super) fn of(entry: &Entry, lifetimes: Option<&Lifetimes>) -> Self {
        let head = &entry.head;
        let mut headers = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in &head.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers.entry(name.as_str().to_owned()).or_default().push(value);
        }
        let (body_bytes, complete) = match &entry.content {
            Content::Whole(body) => (body.len() as u64, true),
            Content::Parts(pieces) => (pieces.iter().map(|(_, piece)| piece.len() as u64).sum(), false),
        };
        let resident = head.resident();
        let received = i64::try_from(head.times.received_at).ok();
        let stored_at = received.and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_default();
        let Stamp { generation, order, local, asked_at: _ } = head.stamp;
        let verdict =
            lifetimes.map(|lifetimes| head.standing(lifetimes, &RequestDirectives::default()).verdict);
        Self {
            status: head.status.as_u16(),
            headers,
            bytes: entry.weight(),
            body_bytes,
            complete,
            hits: None,
            stored_at: stored_at.to_string(),
            age_seconds: seconds(head.claims.initial_age() + resident),
            ttl_seconds: verdict.map(|verdict| match verdict {
                Verdict::Fresh { ttl } => seconds(ttl),
                Verdict::Stale { stale_for, .. } => -seconds(stale_for),
            }),
            useful_for_seconds: lifetimes
                .map(|lifetimes| seconds(keep_for(&head.claims, lifetimes).saturating_sub(resident))),
            stamp: ShownStamp { generation: format!("{generation:x}"), order, local },
            purge_names: head.names.len(),
        }
    }
}

/// Seconds to the millisecond.
pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}
