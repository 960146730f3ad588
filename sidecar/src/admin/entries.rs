//! `GET /entries/{key}`: stored responses of a key.

use std::{collections::BTreeMap, sync::Arc};

use aide::{OperationInput, generate::GenContext, openapi::Operation, transform::TransformOperation};
use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
};
use http::{StatusCode, request::Parts};
use larder_api::admin::{Entries, Entry, EntryState, KEY_PATTERN, Place, RedisLookup, StoredResponse};
use larder_policy::{Lifetimes, policy::Match, spec::SetCookie};
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Admin,
    key_text::KeyText,
    refused::{Refused, refuses},
    stored::{entry_state, stored_response},
    token::{Token, guarded},
};
use crate::{
    clock::monotonic_ms,
    entry::codec::Rules,
    l1::{Held, Stored},
    l2::{Found, Limits, Patience},
    snapshot::Snapshot,
};

/// A key in the path of a request. It may be written as it is or encoded, whole or in part; a key can have escapes of its own,
/// so there are two readings.
#[derive(Debug)]
pub(super) struct Keys(pub(super) Vec<String>);

impl<S: Sync> FromRequestParts<S> for Keys {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
        let raw = target.strip_prefix("/entries/").unwrap_or(target).to_owned();
        let decoded = percent_decode_str(&raw).decode_utf8_lossy().into_owned();
        Ok(Self(if raw == decoded { vec![raw] } else { vec![raw, decoded] }))
    }
}

/// Key of stored responses, as part of a path.
#[derive(Deserialize, JsonSchema)]
struct KeyInPath {
    /// A whole key as `/stats` lists it, such as `GET:http://shop/api/posts/?page=2#accept-language=de`, or a short one, such as
    /// `GET:/api/posts/?page=2`, for all hosts and all such headers. Encode it.
    #[serde(rename = "key")]
    #[schemars(regex(pattern = KEY_PATTERN), example = "GET:/api/users/1")]
    _key: String,
}

impl OperationInput for Keys {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Path::<KeyInPath>::operation_input(context, operation);
    }
}

pub(super) async fn entries(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Keys(keys): Keys,
) -> Result<Json<Entries>, Refused> {
    let snapshot = admin.config.snapshot();
    let mut found = in_memory(&snapshot, &keys).await;
    let mut redis = RedisLookup::default();
    for key in keys.iter().filter_map(|key| KeyText::parse(key)) {
        match in_redis(&snapshot, key).await {
            None => {}
            Some(Ok(kept)) => {
                redis.responded = true;
                found.extend(kept);
            }
            Some(Err(error)) => redis.error = Some(error),
        }
    }
    if found.is_empty() {
        let elsewhere = match &redis {
            RedisLookup { error: Some(error), .. } => format!("; the lookup in Redis failed: {error}"),
            RedisLookup { responded: true, .. } => "; neither does Redis".to_owned(),
            RedisLookup { .. } => String::new(),
        };
        let detail = format!("memory has no response under {:?}{elsewhere}", keys[0]);
        return Err(Refused::new(StatusCode::NOT_FOUND, detail));
    }
    Ok(Json(Entries { entries: found, redis }))
}

/// Returns the entries in memory under these keys, whole or short, and their variants.
async fn in_memory(snapshot: &Snapshot, keys: &[String]) -> Vec<Entry> {
    // Entries are examined after the cache has released its locks.
    let mut held = BTreeMap::new();
    let see = |Held { key: text, stored, hits, .. }: Held<'_>| {
        let Some(key) = KeyText::parse(text) else { return };
        if keys.iter().any(|asked| *asked == text || *asked == key.base() || *asked == key.short()) {
            held.insert(text.to_owned(), (stored.clone(), hits));
        }
    };
    snapshot.store.l1.for_each(see).await;
    held.into_iter()
        .filter_map(|(text, (stored, hits))| {
            let route = KeyText::parse(&text)?.route(snapshot);
            let kept = match stored {
                Stored::Entry(stored) => {
                    let lifetimes = lifetimes(route);
                    let state = entry_state(&stored, snapshot, lifetimes);
                    let response =
                        StoredResponse { hits: Some(hits), ..stored_response(&stored, snapshot, lifetimes) };
                    entry(&text, Place::L1, route, state, Some(response))
                }
                Stored::Vary(names) => {
                    let vary = names.iter().map(ToString::to_string).collect();
                    Entry { vary, ..entry(&text, Place::L1, route, EntryState::Variants, None) }
                }
                Stored::Unshared { until } if monotonic_ms() < until => {
                    entry(&text, Place::L1, route, EntryState::Unshared, None)
                }
                Stored::Unshared { .. } => return None,
            };
            Some(kept)
        })
        .collect()
}

/// Returns the entry in Redis under a key; `None` if there is no Redis.
async fn in_redis(snapshot: &Snapshot, key: KeyText<'_>) -> Option<Result<Option<Entry>, String>> {
    let l2 = snapshot.store.l2.as_ref()?;
    let (route, headers) = (key.route(snapshot), key.headers());
    let names = key.purge_names(route);
    let set_cookie = lifetimes(route).is_some_and(|lifetimes| lifetimes.set_cookie == SetCookie::Store);
    let rules = Rules { targets: snapshot.policy().targets(), set_cookie };
    let limits = Limits { rules, max_body: snapshot.policy().l1.max_object_size.0 };
    let lookup = l2.lookup(key.base(), &headers, &names, limits, Patience::Hard).await;
    let kept = |state, response| entry(key.base(), Place::L2, route, state, response);
    Some(match lookup.map(|lookup| (lookup.found, lookup.vary)) {
        Err(error) => Err(error.to_string()),
        Ok((Found::Nothing, _)) => Ok(None),
        Ok((Found::OtherVariants, _)) => Ok(Some(kept(EntryState::Variants, None))),
        Ok((Found::Purged, _)) => Ok(Some(kept(EntryState::Purged, None))),
        Ok((Found::Entry(stored), vary)) => {
            let lifetimes = lifetimes(route);
            let state = entry_state(&stored, snapshot, lifetimes);
            let vary = vary.iter().map(ToString::to_string).collect();
            Ok(Some(Entry { vary, ..kept(state, Some(stored_response(&stored, snapshot, lifetimes))) }))
        }
    })
}

fn lifetimes(route: Option<Match<'_>>) -> Option<&Lifetimes> {
    route.map(|found| &found.route.lifetimes)
}

/// Returns an entry without the headers by which variants differ.
fn entry(
    key: &str,
    tier: Place,
    route: Option<Match<'_>>,
    state: EntryState,
    response: Option<StoredResponse>,
) -> Entry {
    let route = route.map(|found| found.route.name.clone());
    let served = state.is_served();
    Entry { key: key.to_owned(), tier, route, state, served, vary: vec![], response }
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation.id("entries").tag("cache").summary("Stored responses of a key").description(
        "The entries in this pod's memory and, for a whole key, in Redis: for how long each is useful, and whether it is served.",
    );
    refuses::<404>(guarded(operation), "Nothing is stored under this key.")
}
