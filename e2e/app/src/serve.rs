//! The application.
//!
//! Has no `preStop` and no patience: SIGTERM ends the process at once, listener and connections with it, so that only a
//! drain around it can save a request. With `--linger` the application survives a plain rollout.

use std::{
    collections::BTreeMap,
    env,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::answer::Wanted;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The port to listen on.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Seconds for which to continue serving after SIGTERM.
    #[arg(long, default_value_t = 0)]
    linger: u64,
}

#[derive(Clone, Default)]
struct App(Arc<AppState>);

#[derive(Default)]
struct AppState {
    /// Number of calls of each method and path.
    calls: Mutex<BTreeMap<String, u64>>,
    /// SIGTERM was received, and the process lingers.
    terminating: AtomicBool,
}

/// Serves until SIGTERM.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let app = App::default();
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/calls", get(report))
        .fallback(answer)
        .with_state(app.clone());
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port)).await?;
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served?,
        () = async {
            terminate.recv().await;
            app.0.terminating.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(args.linger)).await;
        } => {}
    }
    std::process::exit(0)
}

impl App {
    fn count(&self, method: &Method, uri: &Uri) -> u64 {
        let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(format!("{method} {}", uri.path())).or_default();
        *count += 1;
        *count
    }
}

async fn report(State(app): State<App>) -> Json<BTreeMap<String, u64>> {
    Json(app.0.calls.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

async fn answer(State(app): State<App>, request: Request) -> Response {
    let wanted = match Wanted::parse(request.uri().query().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(error) => return (StatusCode::BAD_REQUEST, error).into_response(),
    };
    let call = app.count(request.method(), request.uri());
    tokio::time::sleep(wanted.delay).await;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let body = json!({
        "pod": env::var("HOSTNAME").unwrap_or_default(),
        "path": request.uri().path(),
        "host": host,
        "call": call,
        "padding": "x".repeat(wanted.size),
    });
    let mut response = (wanted.status, Json(body)).into_response();
    for (name, value) in wanted.headers {
        response.headers_mut().append(name, value);
    }
    if app.0.terminating.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
