//! The API: slow, and aware of how often it was called.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::catalog::product;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,

    /// Minimum time of every response, such as 2s.
    #[arg(long, default_value = "0s", value_parser = crate::duration)]
    delay: Duration,
}

/// Calls since the start of this process, by method and path.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<BTreeMap<String, u64>>>);

impl Calls {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// Serves until SIGTERM.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    axum::serve(listener, router(args.delay))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}

/// Each answer slower by `delay` and each call counted; `/calls` and `/healthz` are neither.
fn router(delay: Duration) -> Router {
    let calls = Calls::default();
    Router::new()
        .route("/reports/{id}", get(report))
        .route("/products/{id}", get(find_product))
        .route_layer(middleware::from_fn_with_state((calls.clone(), delay), count_and_wait))
        .route("/calls", get(move || async move { Json(calls.lock().clone()) }))
        .route("/healthz", get(|| async { "ok" }))
}

async fn count_and_wait(
    State((calls, delay)): State<(Calls, Duration)>,
    request: Request,
    next: Next,
) -> Response {
    *calls.lock().entry(format!("{} {}", request.method(), request.uri().path())).or_default() += 1;
    tokio::time::sleep(delay).await;
    next.run(request).await
}

async fn report(Path(id): Path<u32>) -> Json<Value> {
    Json(json!({"report": id, "made_at": jiff::Timestamp::now()}))
}

async fn find_product(Path(id): Path<u32>) -> Response {
    match product(id) {
        Some(product) => Json(product).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({"error": "there is no such product"}))).into_response(),
    }
}
