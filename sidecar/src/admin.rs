//! The admin API: health, metrics and the hash for everybody; stats, entries and purges for those who have the token.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use aide::{
    axum::{ApiRouter, routing as documented},
    openapi::OpenApi,
};
use axum::{Router, middleware, routing};
use http::{Method, StatusCode, Uri};
use larder_api::admin::path;

use crate::{config::ConfigWatcher, drain::Drain, peers::Peers, purge::Purging, telemetry::Telemetry};

mod document;
mod entries;
mod explain;
mod health;
mod json;
mod key_text;
mod pages;
mod peering;
mod purging;
mod refused;
mod requests;
mod server;
mod stats;
mod stored;
mod token;

use refused::Refused;
pub use server::serve;

/// State behind the admin API.
#[derive(Debug)]
pub struct Admin {
    /// The configuration in force.
    pub config: Arc<ConfigWatcher>,
    /// The other pods, if they can be told of purges directly.
    pub peers: Option<Arc<Peers>>,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
    /// Draining.
    pub drain: Arc<Drain>,
    /// Where the token is. It is read at each request: a Secret's file may change.
    pub token_file: Option<PathBuf>,
    /// The application's ports.
    pub targets: Vec<u16>,
    /// True once every listener is up.
    pub ready: AtomicBool,
}

impl Admin {
    /// Returns the parts of the process that purges go through.
    fn purging(&self) -> Purging<'_> {
        Purging { config: &self.config, peers: self.peers.as_deref(), stats: &self.telemetry.stats }
    }
}

/// Where the admin API is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminEndpoint {
    /// On its own port.
    Own,
    /// Under the application's address, where everything but `/livez` and `/readyz` wants the token.
    Application,
}

/// The admin API, at one of its endpoints.
pub fn router(admin: Arc<Admin>, endpoint: AdminEndpoint) -> Router {
    let no_such_path = |uri: Uri| async move {
        Refused::new(
            StatusCode::NOT_FOUND,
            format!("there is no {}: /openapi.json lists the paths of this API", uri.path()),
        )
    };
    let no_such_method = |method: Method| async move {
        Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{method} is not allowed here: use one of the methods in Allow"),
        )
    };
    let router = routes(endpoint);
    let router = match endpoint {
        AdminEndpoint::Own => router,
        // Whoever reaches the application reaches this, too.
        AdminEndpoint::Application => {
            router.layer(middleware::from_fn_with_state(Arc::clone(&admin), token::for_all_but_health))
        }
    };
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(admin)
}

/// Lists the routes for a macro: the path, axum's method, aide's, the handler, and its description.
macro_rules! for_all_routes {
    ($add:ident) => {
        $add!(path::LIVEZ, get, get_with, health::livez, health::about_livez);
        $add!(path::READYZ, get, get_with, health::readyz, health::about_readyz);
        $add!(path::METRICS, get, get_with, health::metrics, health::about_metrics);
        $add!(path::POLICY, get, get_with, health::policy, health::about_policy);
        $add!(path::STATS, get, get_with, stats::stats, stats::about);
        $add!(&entries_path(), get, get_with, entries::entries, entries::about);
        $add!(&entries_path(), delete, delete_with, purging::delete_entry, purging::about_delete);
        $add!(path::PURGE, post, post_with, purging::purge, purging::about_purge);
        $add!(path::EXPLAIN, post, post_with, explain::explained, explain::about);
        $add!(path::OPENAPI, get, get_with, pages::openapi, pages::about_openapi);
        $add!(path::DOCS, get, get_with, pages::docs, pages::about_docs);
        $add!(path::REDOC, get, get_with, pages::redoc, pages::about_redoc);
    };
}

fn entries_path() -> String {
    format!("{}{{*key}}", path::ENTRIES)
}

fn routes(endpoint: AdminEndpoint) -> Router<Arc<Admin>> {
    let mut router = Router::new();
    macro_rules! add {
        ($path:expr, $method:ident, $with:ident, $handler:expr, $about:expr) => {
            router = router.route($path, routing::$method($handler));
        };
    }
    for_all_routes!(add);
    match endpoint {
        AdminEndpoint::Own => router
            .route(path::DRAIN, routing::post(health::drain))
            .route(path::PEER_PURGES, routing::post(peering::purges))
            .route(path::REQUESTS, routing::get(requests::requests)),
        // Its responses are short and complete.
        AdminEndpoint::Application => router,
    }
}

/// The document of the admin API (OpenAPI 3.1), which `openapi.json` has and the sidecar serves from there: what makes it
/// would be a megabyte of a running sidecar's memory.
pub fn document() -> String {
    let mut router = ApiRouter::<Arc<Admin>>::new();
    macro_rules! add {
        ($path:expr, $method:ident, $with:ident, $handler:expr, $about:expr) => {
            router = router.api_route($path, documented::$with($handler, $about));
        };
    }
    for_all_routes!(add);
    add!(path::DRAIN, post, post_with, health::drain, health::about_drain);
    add!(path::PEER_PURGES, post, post_with, peering::purges, peering::about);
    add!(path::REQUESTS, get, get_with, requests::requests, requests::about);
    let mut document = document::start();
    let _: Router<Arc<Admin>> = router.finish_api_with(&mut document, document::finish);
    let text = serde_json::to_string_pretty::<OpenApi>(&document);
    text.expect("the document has only string keys, which JSON can represent") + "\n"
}
