//! A shop with a slow API, to put a cache in front of: users and posts in Postgres, and a count of its own calls.

mod api;
mod args;
mod calls;
mod problem;
mod store;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::{args::Args, calls::Calls, store::Store};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().json().with_env_filter("info").init();
    let args = Args::parse();

    let mut terminate = signal(SignalKind::terminate())?;
    let store = tokio::select! {
        store = Store::when_it_answers(args.database_url) => store?,
        _ = terminate.recv() => return Ok(()),
    };
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    info!(address = %listener.local_addr()?, delay = ?args.delay, "serving");

    axum::serve(listener, api::router(store, Calls::default(), args.delay))
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}
