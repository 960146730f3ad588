//! `POST /purge` and `DELETE /entries/{key}`: purges.

use std::sync::Arc;

use aide::transform::TransformOperation;
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use larder_policy::{Policy, PurgeName, WrittenKey};
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

/// The keys under which something may be stored ([`WrittenKey::parse`]): short ones, and whole ones with their headers and variant.
pub(super) const KEY: &str = concat!(
    r"^(GET|HEAD|POST):(",
    r"(/([^/?#*]|[*]+[^/?#*])*)+([?][^#]*)?",
    r"|[^/?#\n]*://[^/?#\n]*(/([^/?#*\n]|[*]+[^/?#*\n])*)+([?][^#\n]*)?(#[^=\n]+=[^\n]*)?(\n[\s\S]*)?",
    r")$",
);

/// Maximum length of a path in bytes: that of a request target, 32 KiB, with every byte escaped.
const MAX_PATH: usize = 3 * (32 << 10);

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
    /// Whole keys, such as `GET:http://shop/api/posts/#accept-language=de`, or short ones, such as `GET:/api/posts/`. Parameters that the
    /// route leaves out of the key may be in them.
    #[schemars(inner(regex(pattern = KEY)))]
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
        // As it is stored, a name may look like a pattern.
        let plain = |names: Vec<String>| {
            let spelled = names.into_iter().map(|name| {
                let is_pattern = name.split(['/', '?', '#']).any(|segment| segment.ends_with('*'));
                if is_pattern { name.replace('*', "%2A") } else { name }
            });
            spelled.collect()
        };
        Self { keys: plain(keys), paths: plain(paths), tags }
    }

    /// Why one of the names can be that of no stored response: who sends it would take it for purged.
    fn names_nothing(&self) -> Option<String> {
        let Self { keys, paths, tags } = self;
        let of_key = keys
            .iter()
            .find_map(|key| WrittenKey::parse(key).err().map(|reason| format!("{key:?} {reason}")));
        let of_path = || {
            paths.iter().find_map(|path| {
                if !path.starts_with('/') || path.contains(['?', '#']) {
                    Some(format!("{path:?} is not a path: start it with '/' and leave out the query"))
                } else if path.split('/').any(|segment| segment.ends_with('*')) {
                    Some(format!(
                        "{path:?} is no pattern: a purge by path is of one path, and one by tag of many; write %2A for a '*'"
                    ))
                } else if path.len() > MAX_PATH {
                    Some(format!("a path of {} bytes is longer than the target of any request", path.len()))
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

/// The names of a purge. `DELETE /entries/{key}` purges both its key as it was sent and decoded.
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
    Keys(mut keys): Keys,
) -> Result<Response, Refused> {
    let names = Names { keys: keys.clone(), ..Names::default() };
    keys.retain(|key| WrittenKey::parse(key).is_ok());
    if let Some(reason) = names.names_nothing().filter(|_| keys.is_empty()) {
        return Err(Refused::malformed(reason));
    }
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
    let names = |policy: &Policy| -> Vec<_> {
        keys.iter()
            .filter_map(|key| WrittenKey::parse(key).ok())
            .flat_map(|key| key.purge_names(policy))
            .chain(paths.iter().flat_map(|path| PurgeName::paths(path)))
            .chain(tags.iter().map(|tag| PurgeName::tag(tag)))
            .collect()
    };
    if names(&admin.config.serving().policy).is_empty() {
        return Err(Refused::malformed("say what to purge: keys, paths or tags"));
    }
    let purged = purge::on_request(&admin.config, names, &admin.telemetry.stats).await;
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
    refuses::<400>(answers(guarded(operation)), "Nothing can be stored under this key.")
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
