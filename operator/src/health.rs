//! `/livez`, `/readyz` and `/metrics`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::{
    error::{Error, Result},
    metrics::Metrics,
};
use larder_api::ListenAddress;

/// Readiness of the webhook: its stores are filled and its certificate is loaded.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Marks the webhook as ready.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns true if the webhook is ready.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Serves the endpoints until the process ends.
///
/// # Errors
/// If it cannot listen on the address.
pub async fn serve(address: ListenAddress, readiness: Readiness, metrics: Metrics) -> Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route(
            "/metrics",
            get(|State(metrics): State<Metrics>| async move { metrics.text() }).with_state(metrics),
        );
    let failed = |source| Error::Serve { address, source };
    let server = address.bind().and_then(axum_server::from_tcp).map_err(failed)?;
    server.serve(app.into_make_service()).await.map_err(failed)
}

/// Responds with 200 once the webhook is ready, 503 before.
pub async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    if readiness.get() {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for the certificate and for the lists of policies and network policies",
        )
    }
}
