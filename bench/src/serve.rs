//! An HTTP server with nothing around it: hyper on one thread.

use std::{convert::Infallible, future, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Serves each path by `answer`, over HTTP/1.1 or over HTTP/2, until the process ends.
///
/// # Errors
/// If it cannot listen on the address.
pub fn forever<F>(listen: SocketAddr, is_http2: bool, answer: F) -> anyhow::Result<()>
where
    F: Fn(&str) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let answer = Arc::new(answer);
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            stream.set_nodelay(true)?;
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let request: hyper::Request<hyper::body::Incoming> = request;
                    future::ready(Ok::<_, Infallible>(answer(request.uri().path())))
                });
                let stream = TokioIo::new(stream);
                // A client that goes away ends its connection, and nobody asks how.
                let _ = if is_http2 {
                    http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
                } else {
                    http1::Builder::new().serve_connection(stream, service).await
                };
            });
        }
    })
}
