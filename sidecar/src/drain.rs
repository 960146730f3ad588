//! Draining: before a pod ends, its clients are asked to turn to another.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use http::{Method, Request};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli;

/// State of draining. A draining sidecar continues to respond, because endpoints change slowly, and asks HTTP/1 clients
/// to close their connections.
#[derive(Debug, Default)]
pub struct Drain {
    on: AtomicBool,
    ends: AtomicBool,
}

impl Drain {
    /// Begins draining.
    pub fn begin(&self) {
        if !self.on.swap(true, Ordering::AcqRel) {
            tracing::info!("draining: clients are asked to close their connections");
        }
    }

    /// Records that the process is ending: requests in progress are finished, and no new ones begin.
    pub fn end(&self) {
        self.begin();
        self.ends.store(true, Ordering::Release);
    }

    /// Returns true if the process is ending.
    pub fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Returns true while draining.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
}

/// Asks the sidecar on this host to drain, in a pod's `preStop` hook.
///
/// # Errors
/// If no sidecar responds at the address.
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
            bail!("the sidecar responded with {status}");
        }
        Ok(())
    };
    asked.await.with_context(|| format!("can't drain the sidecar at {}", args.admin))
}
