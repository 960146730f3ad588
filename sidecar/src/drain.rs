//! Draining: before a pod ends, its clients are asked to go elsewhere.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use http::{Method, Request};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli;

/// Whether the sidecar drains. It goes on answering, for endpoints move slowly, and asks HTTP/1 clients to close their
/// connections.
#[derive(Debug, Default)]
pub struct Drain {
    on: AtomicBool,
    ends: AtomicBool,
}

impl Drain {
    /// Begins to drain.
    pub fn begin(&self) {
        if !self.on.swap(true, Ordering::AcqRel) {
            tracing::info!("draining: clients are asked to close their connections");
        }
    }

    /// Says that the process ends: what is under way is finished, and nothing else is begun.
    pub fn end(&self) {
        self.begin();
        self.ends.store(true, Ordering::Release);
    }

    /// Whether the process ends.
    pub fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Whether it drains.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
}

/// Asks the sidecar on this host to drain: what a pod's `preStop` hook runs.
///
/// # Errors
/// If no sidecar answers there.
pub async fn request(args: &cli::Drain) -> anyhow::Result<()> {
    let asked = async {
        let stream = TcpStream::connect(args.admin).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::POST)
            .uri(larder_api::admin::path::DRAIN)
            .header(http::header::HOST, args.admin.to_string())
            .body(Empty::<Bytes>::new())?;
        let status = sender.send_request(request).await?.status();
        connection.abort();
        if !status.is_success() {
            bail!("it answered {status}");
        }
        Ok(())
    };
    asked.await.with_context(|| format!("can't drain the sidecar at {}", args.admin))
}
