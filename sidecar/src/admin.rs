//! The admin API: health, metrics and the hash for everybody; stats and purges for those who have the token.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::{StatusCode, Uri, header};
use larder_policy::{NormalPath, PurgeName, template::encoded_tag};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    cache_status::Tier,
    config::Config,
    drain::Drain,
    purge::{self, Purged},
    stats::{Outcome, PurgeOrigin},
    telemetry::Telemetry,
};

/// What the admin API shows and does.
#[derive(Debug)]
pub struct Admin {
    /// What is served by.
    pub config: Arc<Config>,
    /// What has been counted.
    pub telemetry: Arc<Telemetry>,
    /// Draining.
    pub drain: Arc<Drain>,
    /// Where the token is. It is read at each request: a Secret's file may change.
    pub token_file: Option<PathBuf>,
    /// Whether every listener is up.
    pub ready: AtomicBool,
}

/// The admin API.
pub fn router(admin: Arc<Admin>) -> Router {
    let guarded = Router::new()
        .route("/stats", get(stats))
        .route("/entries/{*key}", delete(delete_entry))
        .route("/purge", post(purge_names))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&admin), require_token));
    Router::new()
        .route("/livez", get("ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/policy", get(policy))
        .route("/drain", post(begin_drain))
        .merge(guarded)
        .with_state(admin)
}

/// Whether the pod can take requests. No tier has a say in it: without any of them, the application still answers.
async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    if admin.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    match admin.telemetry.prometheus() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

async fn policy(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let serving = admin.config.serving();
    let tiers: serde_json::Map<_, _> =
        serving.tiers().into_iter().map(|(name, up)| (name, json!(if up { "up" } else { "down" }))).collect();
    let troubles: serde_json::Map<_, _> =
        serving.troubles().into_iter().map(|(name, why)| (name, json!(why))).collect();
    Json(json!({
        "hash": serving.hash,
        "state": serving.mode.as_str(),
        "error": admin.config.error().as_deref(),
        "tiers": tiers,
        "troubles": troubles,
    }))
}

/// Anybody who can reach a pod could take it out of service otherwise.
async fn begin_drain(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
) -> Response {
    if !client.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only the pod itself can be asked to drain, from 127.0.0.1")
            .into_response();
    }
    admin.drain.begin();
    StatusCode::NO_CONTENT.into_response()
}

async fn require_token(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let refusal = match (&admin.token_file, given) {
        (None, _) => "this sidecar has no token: start it with --admin-token-file",
        (Some(_), None) => "send the token: Authorization: Bearer TOKEN",
        (Some(file), Some(given)) => match tokio::fs::read(file).await {
            Err(_) => "the token's file can't be read",
            // Hashes of equal length are compared in constant time.
            Ok(token)
                if blake3::hash(token.trim_ascii()) == blake3::hash(given)
                    && !token.trim_ascii().is_empty() =>
            {
                return next.run(request).await;
            }
            Ok(_) => "this is not the token",
        },
    };
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}

async fn stats(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let stats = &admin.telemetry.stats;
    let of = |outcome| Tier::ALL.into_iter().map(|tier| stats.requests(outcome, tier)).sum::<u64>();
    let (hits, misses) = (of(Outcome::Hit), of(Outcome::Miss));
    let serving = admin.config.serving();
    Json(json!({
        "hits": hits,
        "misses": misses,
        "hit_rate": if hits + misses == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 },
        "l1_hits": stats.requests(Outcome::Hit, Tier::L1),
        "l2_hits": stats.requests(Outcome::Hit, Tier::L2),
        "collapsed": of(Outcome::Collapsed),
        "revalidated": of(Outcome::Revalidated),
        "stale": of(Outcome::Stale),
        "bypassed": of(Outcome::Bypass),
        "passed": of(Outcome::Pass),
        "errors": of(Outcome::Error),
        "l1_entries": serving.l1.entries(),
        "l1_bytes": serving.l1.bytes(),
        "l1_evictions": serving.l1.evictions(),
    }))
}

/// What to purge.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PurgeRequest {
    keys: Vec<String>,
    paths: Vec<String>,
    tags: Vec<String>,
}

/// The key may be written as it is or encoded, whole or in part. A key can have escapes of its own, so both readings are
/// purged.
async fn delete_entry(State(admin): State<Arc<Admin>>, uri: Uri) -> Response {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let raw = target.strip_prefix("/entries/").unwrap_or(target).to_owned();
    let decoded = percent_decode_str(&raw).decode_utf8_lossy().into_owned();
    let keys = if raw == decoded { vec![raw] } else { vec![raw, decoded] };
    raise(&admin, PurgeRequest { keys, ..PurgeRequest::default() }).await
}

async fn purge_names(State(admin): State<Arc<Admin>>, body: axum::body::Bytes) -> Response {
    match serde_json::from_slice::<PurgeRequest>(&body) {
        Ok(request) => raise(&admin, request).await,
        Err(error) => {
            let message = format!("send {{\"keys\": [...], \"paths\": [...], \"tags\": [...]}}: {error}");
            (StatusCode::BAD_REQUEST, message).into_response()
        }
    }
}

async fn raise(admin: &Admin, request: PurgeRequest) -> Response {
    let PurgeRequest { keys, paths, tags } = &request;
    if let Some(path) = paths.iter().find(|path| !path.starts_with('/') || path.contains(['?', '#'])) {
        let message = format!("{path:?} is not a path: start it with '/' and leave out the query");
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    let names: Vec<_> = keys
        .iter()
        .map(|key| PurgeName::key(key))
        .chain(paths.iter().map(|path| PurgeName::path(NormalPath::new(path).as_str())))
        // Stored tags have their values encoded; people write them either way.
        .chain(tags.iter().flat_map(|tag| [PurgeName::tag(tag), PurgeName::tag(&encoded_tag(tag))]))
        .collect();
    if names.is_empty() {
        return (StatusCode::BAD_REQUEST, "say what to purge: keys, paths or tags").into_response();
    }
    let serving = Arc::clone(&admin.config.serving());
    match purge::purge(&serving, &names, PurgeOrigin::Api, &admin.telemetry.stats).await {
        Purged::Everywhere(order) | Purged::Here(order) => {
            Json(json!({"purged": request, "order": order})).into_response()
        }
        Purged::Pending(error) => {
            let told = json!({"purged": request, "order": null, "pending": error.to_string()});
            (StatusCode::ACCEPTED, Json(told)).into_response()
        }
    }
}
