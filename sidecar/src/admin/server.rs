//! The admin port's server: few connections, small heads, short times. Anybody in the cluster can reach it.

use std::{convert::Infallible, future::poll_fn, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    response::{IntoResponse, Response},
};
use futures::future::{Either, select};
use http::{Request, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tower_service::Service as _;

use super::refused::Refused;
use crate::{
    connections::{Admitted, Connection, Connections, turn_away},
    listener::ACCEPT_RETRY_INTERVAL,
    peers::authentication::Accepted,
};

/// Maximum number of connections. The kubelet, Prometheus, the operator and each other pod of the policy need one.
const MAX_CONNECTIONS: usize = 128;
/// Maximum size of a request's head, and of what is buffered of a body, in bytes: that of requests to the application, whose keys are
/// in targets here.
const MAX_BUFFER: usize = 64 << 10;
/// Timeout for a request's head, from the end of the response before it: an idle connection ends, too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a request's body and what it asks for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for a client to take a response.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the admin API over HTTP/1.1. A connection beyond the cap takes the place of the oldest one that waits for its client,
/// so that probes find a place whatever others do.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Connections::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, client)) => match connections.admit() {
                Some(admitted) => {
                    tokio::spawn(serve_connection(stream, client, router.clone(), admitted));
                }
                None => turn_away(&stream),
            },
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection to the admin API");
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, client: SocketAddr, router: Router, admitted: Admitted) {
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
    let Ok(address) = stream.local_addr() else { return };
    let accepted = Arc::new(Accepted::new(address));
    let connection = admitted.connection();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(client));
        request.extensions_mut().insert(Arc::clone(&accepted));
        respond(router.clone(), request, Arc::clone(connection))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let dismissed = pin!(poll_fn(|context| connection.poll_must_leave(context)));
    let outcome = match select(served.as_mut(), dismissed).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) if connection.is_serving() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        // The connection waits for its client.
        Either::Right(_) => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%client, %error, "a connection to the admin API failed");
    }
}

async fn respond(
    mut router: Router,
    request: Request<Incoming>,
    connection: Arc<Connection>,
) -> Result<Response, Infallible> {
    connection.serves();
    let response = match timeout(REQUEST_TIMEOUT, router.call(request.map(Body::new))).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            let detail = format!("the request took longer than {REQUEST_TIMEOUT:?}");
            Refused::new(StatusCode::REQUEST_TIMEOUT, detail).into_response()
        }
    };
    connection.rests();
    Ok(response)
}
