//! A pod to send requests from.

use tokio::signal::unix::{SignalKind, signal};

/// Idles until SIGTERM.
pub(crate) async fn run() -> anyhow::Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    Ok(())
}
