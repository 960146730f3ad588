//! HTTP/1.1 connections without a pool of their own, so that each error can be told from the others.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection that requests can be sent on, one after the other.
pub(crate) type Connection = SendRequest<Full<Bytes>>;

/// Opens a connection to the host and port of `uri`; returns the client's own address too, by which the nodes' tables of
/// connections name it.
///
/// # Errors
/// When nobody answers there.
pub(crate) async fn open(uri: &Uri) -> std::io::Result<(Connection, SocketAddr)> {
    let host = uri.host().unwrap_or_default();
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Its error is also the error of the request that is under way; between requests it is an end like any other.
    tokio::spawn(connection);
    Ok((sender, local))
}

/// Names the cause of a failed request: `reset`, `refused`, `closed` (no answer or half of one), `timeout` or `other`.
pub(crate) fn kind_of(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => return "reset",
                std::io::ErrorKind::ConnectionRefused => return "refused",
                std::io::ErrorKind::TimedOut => return "timeout",
                _ => {}
            }
        }
        if let Some(hyper) = error.downcast_ref::<hyper::Error>()
            && (hyper.is_incomplete_message() || hyper.is_closed() || hyper.is_canceled())
        {
            return "closed";
        }
        cause = error.source();
    }
    "other"
}
