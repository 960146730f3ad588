//! `POST /purge` and `DELETE /entries/{key}`: purges.

use std::sync::Arc;

use aide::transform::TransformOperation;
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use larder_policy::PurgeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Admin,
    entries::Keys,
    json::{Sent, Strict},
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::purge::{self, Purged};

/// What to purge: something of one kind at least.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(
    extend("anyOf" = [
        {"required": ["keys"], "properties": {"keys": {"minItems": 1}}},
        {"required": ["paths"], "properties": {"paths": {"minItems": 1}}},
        {"required": ["tags"], "properties": {"tags": {"minItems": 1}}},
    ]),
    example = json!({"keys": ["GET:/api/posts/"], "paths": ["/api/users/1"], "tags": ["user:1"]}),
)]
pub(super) struct Names {
    /// Whole keys, such as `GET:http://shop/api/posts/`, or short ones, such as `GET:/api/posts/`.
    #[schemars(inner(regex(pattern = r"^(GET|HEAD|POST):([^/?#]*://[^/?#]*)?/")))]
    keys: Vec<String>,
    /// Whole paths, whatever the host, scheme, query and variant, in any spelling. A segment that ends in `*` is refused, because no
    /// pattern is matched: write `%2A` for the character.
    #[schemars(inner(regex(pattern = r"^(/([^/?#*]|[*]+[^/?#*])*)+$")))]
    paths: Vec<String>,
    /// Tags that routes give to answers.
    #[schemars(inner(regex(pattern = r"^\S([\s\S]*\S)?$")))]
    tags: Vec<String>,
}

impl Names {
    pub(super) fn new(keys: Vec<String>, paths: Vec<String>, tags: Vec<String>) -> Self {
        Self { keys, paths, tags }
    }

    /// Why one of the names can be that of no stored response: who sends it would take it for purged.
    fn names_nothing(&self) -> Option<String> {
        let Self { keys, paths, tags } = self;
        let of_key = keys.iter().find(|key| !is_key(key)).map(|key| {
            format!("{key:?} is not a key: start it with the method, GET, HEAD or POST, as in GET:/api/posts/?page=2")
        });
        let of_path = || {
            paths.iter().find_map(|path| {
                if !path.starts_with('/') || path.contains(['?', '#']) {
                    Some(format!("{path:?} is not a path: start it with '/' and leave out the query"))
                } else if path.split('/').any(|segment| segment.ends_with('*')) {
                    Some(format!(
                        "{path:?} is no pattern: a purge by path is of one path, and one by tag of many; write %2A for a '*'"
                    ))
                } else {
                    None
                }
            })
        };
        let of_tag = || {
            tags.iter()
                .find(|tag| tag.is_empty() || tag.trim() != *tag)
                .map(|tag| format!("{tag:?} is the tag of nothing: leave out the blanks at its ends"))
        };
        of_key.or_else(of_path).or_else(of_tag)
    }
}

/// Whether something may be stored under a key, whole or short.
fn is_key(key: &str) -> bool {
    let Some((method, target)) = key.split_once(':') else { return false };
    let authority = target.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#']));
    let path = match authority {
        Some((_, rest)) => &rest[rest.find(['/', '?', '#']).unwrap_or(rest.len())..],
        None => target,
    };
    matches!(method, "GET" | "HEAD" | "POST") && path.starts_with('/')
}

impl Sent for Names {
    const SHAPE: &'static str = r#"{"keys": [...], "paths": [...], "tags": [...]}"#;
}

/// A purge, and how far it has come.
#[derive(Debug, Serialize, JsonSchema)]
struct Done {
    /// The names that were purged.
    purged: PurgedNames,
    /// Its place in the order of purges; null while it is pending.
    order: Option<u64>,
    /// Why Redis could not be told yet, or may not be the one that pods listen to. This pod tells it, or that one, when it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<String>,
}

/// The names of a purge. Keys may have any form: `DELETE /entries/{key}` also purges its key as it was sent.
#[derive(Debug, Serialize, JsonSchema)]
struct PurgedNames {
    keys: Vec<String>,
    paths: Vec<String>,
    tags: Vec<String>,
}

impl From<Names> for PurgedNames {
    fn from(Names { keys, paths, tags }: Names) -> Self {
        Self { keys, paths, tags }
    }
}

pub(super) async fn delete_entry(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Keys(keys): Keys,
) -> Result<Response, Refused> {
    raise(&admin, Names { keys, ..Names::default() }).await
}

pub(super) async fn purge(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Strict(names): Strict<Names>,
) -> Result<Response, Refused> {
    if let Some(reason) = names.names_nothing() {
        return Err(Refused::malformed(reason));
    }
    raise(&admin, names).await
}

async fn raise(admin: &Admin, request: Names) -> Result<Response, Refused> {
    let Names { keys, paths, tags } = &request;
    let names: Vec<_> = keys
        .iter()
        .map(|key| PurgeName::key(key))
        .chain(paths.iter().flat_map(|path| PurgeName::paths(path)))
        .chain(tags.iter().map(|tag| PurgeName::tag(tag)))
        .collect();
    if names.is_empty() {
        return Err(Refused::malformed("say what to purge: keys, paths or tags"));
    }
    let purged = purge::on_request(&admin.config, &names, &admin.telemetry.stats).await;
    let (status, order, pending) = match purged {
        Purged::Everywhere(order) | Purged::Here(order) => (StatusCode::OK, Some(order), None),
        Purged::Pending(error) => (StatusCode::ACCEPTED, None, Some(error.to_string())),
    };
    Ok((status, Json(Done { purged: request.into(), order, pending })).into_response())
}

pub(super) fn about_delete(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation.id("deleteEntry").tag("cache").summary("Purge a key").description(
        "Whether anything is stored under it or not: other pods may have what this one has not.",
    );
    answers(guarded(operation))
}

pub(super) fn about_purge(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation.id("purge").tag("cache").summary("Purge keys, paths and tags").description(
        "What bears one of these names and was stored before now is not served any more, by any pod.",
    );
    let operation = answers(guarded(operation));
    let operation = refuses::<400>(operation, "The body is not what is to be sent, or names nothing.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}

fn answers(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation
        .response_with::<200, Json<Done>, _>(|response| {
            response.description(
                "Redis has it, and so has every pod that answered at once. Without Redis: this pod has it.",
            )
        })
        .response_with::<202, Json<Done>, _>(|response| {
            response.description(
                "This pod has it. Redis could not be told yet, or another may have taken its place.",
            )
        })
}
