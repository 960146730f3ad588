//! `POST /purge` and `DELETE /entries/{key}`: purges.

use std::sync::Arc;

use aide::transform::TransformOperation;
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use larder_api::admin::{PurgeReport, PurgeRequest};
use larder_policy::{Policy, PurgeName, WrittenKey, policy::Purges};

use super::{
    Admin,
    entries::Keys,
    json::{Sent, Strict},
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::purge::{self, Purged};

/// Maximum length of a path in bytes: that of a request target, 32 KiB, with every byte escaped.
const MAX_PATH: usize = 3 * (32 << 10);

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

/// Returns the reason that a name can't be that of a stored response: its sender would take it for purged.
fn names_nothing(request: &PurgeRequest) -> Option<String> {
    let PurgeRequest { keys, paths, prefixes, tags, everything: _, soft: _ } = request;
    let of_key =
        keys.iter().find_map(|key| WrittenKey::parse(key).err().map(|reason| format!("{key:?} {reason}")));
    let of_path = || {
        paths.iter().chain(prefixes).find_map(|path| {
            if !path.starts_with('/') || path.contains(['?', '#']) {
                Some(format!("{path:?} is not a path: start it with '/' and leave out the query"))
            } else if path.split('/').any(|segment| segment.ends_with('*')) {
                Some(format!(
                    "{path:?} has a '*', but patterns are not supported: purge one of prefixes, such as /static, or a tag to reach several paths, or write %2A for a literal '*'"
                ))
            } else if path.len() > MAX_PATH {
                Some(format!("the path has {} bytes, more than any request target", path.len()))
            } else {
                None
            }
        })
    };
    let of_tag = || {
        tags.iter()
            .find(|tag| tag.is_empty() || tag.trim() != *tag)
            .map(|tag| format!("{tag:?} matches no tag: remove the spaces at its ends"))
    };
    of_key.or_else(of_path).or_else(of_tag)
}

impl Sent for PurgeRequest {
    const SHAPE: &'static str = r#"{"keys": [...], "paths": [...], "prefixes": [...], "tags": [...], "everything": true, "soft": true}"#;
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
    raise(&admin, PurgeRequest { keys, ..PurgeRequest::default() }).await
}

pub(super) async fn purge(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Strict(names): Strict<PurgeRequest>,
) -> Result<Response, Refused> {
    if let Some(reason) = names_nothing(&names) {
        return Err(Refused::malformed(reason));
    }
    raise(&admin, names).await
}

async fn raise(admin: &Admin, request: PurgeRequest) -> Result<Response, Refused> {
    let PurgeRequest { keys, paths, prefixes, tags, everything, soft } = request.clone();
    let others = Purges { tags, paths, prefixes, everything }.names();
    let names = |policy: &Policy| -> Vec<_> {
        let written = keys.iter().filter_map(|key| WrittenKey::parse(key).ok());
        written.flat_map(|key| key.purge_names(policy)).chain(others.iter().copied()).collect()
    };
    if names(admin.config.snapshot().policy()).is_empty() {
        return Err(Refused::malformed(
            "nothing to purge: set keys, paths, prefixes or tags, or everything to true",
        ));
    }
    let names = |policy: &Policy| if soft { PurgeName::softly(names(policy)) } else { names(policy) };
    let purged = purge::on_request(&admin.config, names, &admin.telemetry.stats).await;
    let redis = matches!(purged, Purged::Everywhere(_));
    let (status, order, pending) = match purged {
        Purged::Everywhere(order) | Purged::Here(order) => (StatusCode::OK, Some(order), None),
        Purged::Pending(error) => (StatusCode::ACCEPTED, None, Some(error.to_string())),
    };
    Ok((status, Json(PurgeReport { purged: request.into(), order, redis, pending })).into_response())
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
                "The purge is in Redis and in every pod that acknowledged it at once. Without Redis: in this pod.",
            )
        })
        .response_with::<202, Json<PurgeReport>, _>(|response| {
            response.description(
                "The purge is in this pod. Redis does not have it yet, or another Redis may have taken over.",
            )
        })
}
