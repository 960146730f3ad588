//! `POST /purge` and `DELETE /entries/{key}`: purges.

use std::sync::Arc;

use aide::{OperationInput, generate::GenContext, openapi::Operation, transform::TransformOperation};
use axum::{
    Json,
    extract::{FromRequestParts, Query, State},
    response::{IntoResponse, Response},
};
use http::request::Parts;
use larder_api::admin::{PurgeQuery, PurgeReport, PurgeRequest};
use larder_policy::WrittenKey;

use super::{
    Admin,
    entries::Keys,
    json::{Sent, Strict},
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::{
    purge::{
        Purging,
        document::{self, names_nothing},
    },
    stats::PurgeOrigin,
};

/// Returns a request for names as they are stored, of which some may look like patterns.
pub(super) fn request_for(names: PurgeRequest) -> PurgeRequest {
    let plain = |names: Vec<String>| {
        let spelled = names.into_iter().map(|name| {
            let is_pattern = name.split(['/', '?', '#']).any(|segment| segment.ends_with('*'));
            if is_pattern { name.replace('*', "%2A") } else { name }
        });
        spelled.collect()
    };
    let PurgeRequest { keys, paths, prefixes, tags, everything, soft } = names;
    PurgeRequest { keys: plain(keys), paths: plain(paths), prefixes: plain(prefixes), tags, everything, soft }
}

/// The query of a request, checked.
pub(super) struct CheckedQuery(PurgeQuery);

impl<S: Send + Sync> FromRequestParts<S> for CheckedQuery {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let query = Query::<PurgeQuery>::from_request_parts(parts, state).await;
        query
            .map(|Query(query)| Self(query))
            .map_err(|_| Refused::malformed("each_pod must be true or false"))
    }
}

impl OperationInput for CheckedQuery {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Query::<PurgeQuery>::operation_input(context, operation);
    }
}

impl Sent for PurgeRequest {
    const SHAPE: &'static str = document::SHAPE;
}

pub(super) async fn delete_entry(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Keys(mut keys): Keys,
) -> Result<Response, Refused> {
    let names = PurgeRequest { keys: keys.clone(), ..PurgeRequest::default() };
    keys.retain(|key| WrittenKey::parse(key).is_ok());
    if let Some(reason) = names_nothing(&names).filter(|_| keys.is_empty()) {
        return Err(Refused::malformed(reason));
    }
    raise(&admin, PurgeRequest { keys, ..PurgeRequest::default() }, PurgeQuery::default()).await
}

pub(super) async fn purge(
    _: Token,
    State(admin): State<Arc<Admin>>,
    CheckedQuery(query): CheckedQuery,
    Strict(names): Strict<PurgeRequest>,
) -> Result<Response, Refused> {
    if let Some(reason) = names_nothing(&names) {
        return Err(Refused::malformed(reason));
    }
    raise(&admin, names, query).await
}

async fn raise(admin: &Admin, request: PurgeRequest, query: PurgeQuery) -> Result<Response, Refused> {
    if document::names_of(&request, admin.config.snapshot().policy()).is_empty() {
        return Err(Refused::malformed(
            "nothing to purge: set keys, paths, prefixes or tags, or everything to true",
        ));
    }
    let purging = admin.purging();
    // Whoever asks each pod tells them all.
    let purging = Purging { peers: purging.peers.filter(|_| !query.each_pod), ..purging };
    let (status, report) = purging.report(request, PurgeOrigin::Api).await;
    Ok((status, Json(report)).into_response())
}

pub(super) fn about_delete(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("deleteEntry")
        .tag("cache")
        .summary("Purge a key")
        .description("Succeeds even if this pod has no response under the key, because others may.");
    refuses::<400>(answers(guarded(operation)), "Nothing can be stored under this key.")
}

pub(super) fn about_purge(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("purge")
        .tag("cache")
        .summary("Purge keys, paths, prefixes, tags or everything")
        .description(
            "Responses that match one of these and were stored before now are no longer served by any pod or, where the purge is soft, are stale in every pod.",
        );
    let operation = answers(guarded(operation));
    let operation = refuses::<400>(operation, "The body is malformed, or names nothing.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}

fn answers(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation
        .response_with::<200, Json<PurgeReport>, _>(|response| {
            response.description(
                "The purge is in Redis and in every pod that acknowledged it at once. Without Redis: in this pod, and in every pod that this one can find.",
            )
        })
        .response_with::<202, Json<PurgeReport>, _>(|response| {
            response.description(
                "The purge is in this pod, and in those that acknowledged it directly. Redis does not have it yet, or another Redis may have taken over; without Redis, some pods did not acknowledge it.",
            )
        })
}
