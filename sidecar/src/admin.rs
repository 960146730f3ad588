//! The admin API: health, metrics and the hash for everybody; stats, entries and purges for those who have the token.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use aide::{
    axum::{
        ApiRouter,
        routing::{delete_with, get_with, post_with},
    },
    openapi::OpenApi,
};
use axum::{Router, middleware};
use http::{Method, StatusCode, Uri};
use larder_api::admin::path;

use crate::{config::ConfigWatcher, drain::Drain, telemetry::Telemetry};

mod document;
mod entries;
mod explain;
mod health;
mod json;
mod key_text;
mod pages;
mod purging;
mod refused;
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
    let router: Router<Arc<Admin>> = routes(endpoint).into();
    let router = match endpoint {
        AdminEndpoint::Own => router,
        // Whoever reaches the application reaches this, too.
        AdminEndpoint::Application => {
            router.layer(middleware::from_fn_with_state(Arc::clone(&admin), token::for_all_but_health))
        }
    };
    router.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(admin)
}

/// The document of the admin API (OpenAPI 3.1), as `openapi.json` has it.
pub fn document() -> String {
    let mut document = document::start();
    let _: Router<Arc<Admin>> = routes(AdminEndpoint::Own).finish_api_with(&mut document, document::finish);
    let text = serde_json::to_string_pretty::<OpenApi>(&document);
    text.expect("the document has only string keys, which JSON can represent") + "\n"
}

fn routes(endpoint: AdminEndpoint) -> ApiRouter<Arc<Admin>> {
    let entries = format!("{}{{*key}}", path::ENTRIES);
    let routes = ApiRouter::new()
        .api_route(path::LIVEZ, get_with(health::livez, health::about_livez))
        .api_route(path::READYZ, get_with(health::readyz, health::about_readyz))
        .api_route(path::METRICS, get_with(health::metrics, health::about_metrics))
        .api_route(path::POLICY, get_with(health::policy, health::about_policy))
        .api_route(path::STATS, get_with(stats::stats, stats::about))
        .api_route(&entries, get_with(entries::entries, entries::about))
        .api_route(&entries, delete_with(purging::delete_entry, purging::about_delete))
        .api_route(path::PURGE, post_with(purging::purge, purging::about_purge))
        .api_route(path::EXPLAIN, post_with(explain::explained, explain::about))
        .api_route(path::OPENAPI, get_with(pages::openapi, pages::about_openapi))
        .api_route(path::DOCS, get_with(pages::docs, pages::about_docs))
        .api_route(path::REDOC, get_with(pages::redoc, pages::about_redoc));
    match endpoint {
        AdminEndpoint::Own => routes.api_route(path::DRAIN, post_with(health::drain, health::about_drain)),
        AdminEndpoint::Application => routes,
    }
}
