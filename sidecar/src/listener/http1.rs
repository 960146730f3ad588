//! HTTP/1 client connections.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io, mem,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use http_body_util::Either;
use hyper::{body::Incoming, rt::Write, server::conn::http1, service::service_fn};
use tokio::net::TcpStream;
use tokio_util::sync::WaitForCancellationFuture;

use super::accepted::Accepted;
use crate::{
    body::Body,
    head_room::{self, HeadRoom},
    headers,
    held::Held,
    http1_guard::{Alone, Handoff, Http1Guard, ReleasingBody, RequestError},
    in_progress::InProgress,
    problem::Problem,
    proxy::{Client, Direct, Proxy},
    work::Work,
};

/// Maximum number of bytes of an HTTP/1 response that are buffered for a slow client. A request's head must fit in,
/// too.
const MAX_BUFFER: usize = 80 << 10;

/// Body of a response over HTTP/1, which holds the request's place.
type Http1Body = ReleasingBody<Either<Body, Held<Body, (Work, Option<HeadRoom>)>>>;

/// Serves a connection until it ends, or the process does.
pub(super) async fn serve_http1(
    stream: TcpStream,
    beginning: &[u8],
    Accepted { address: client, proxy, shutdown, place }: Accepted<'_>,
) -> anyhow::Result<()> {
    let handoff = Arc::new(Handoff::new(&proxy.telemetry().stats.budget, place));
    let in_progress = Arc::<InProgress>::default();
    let responder = Direct::new(proxy, client, &in_progress, &handoff);
    let mut guard = Http1Guard::new(stream, beginning, responder, Arc::clone(&handoff));
    let cancelled = pin!(shutdown.cancelled());
    let mut end = End { proxy, handoff: &handoff, cancelled, listens: false, is_cancelled: false };
    let alone = poll_fn(|context| end.poll_before(context, |context| guard.poll_alone(context))).await;
    let outcome = match alone {
        Some(Ok(Alone::NeedsHyper)) => serve_through_hyper(guard, client, &in_progress, end).await,
        Some(Ok(Alone::Ended)) | None => shut(&mut guard).await.map_err(Into::into),
        Some(Err(error)) => {
            // The client gets what there is of a response that breaks off.
            let _ = shut(&mut guard).await;
            Err(error.into())
        }
    };
    if let Some(error) = handoff.error() {
        proxy.telemetry().refused(error, client);
    }
    outcome
}

/// Writes what is left to write, and ends the connection.
async fn shut(guard: &mut Http1Guard<TcpStream, Direct>) -> io::Result<()> {
    poll_fn(|context| Pin::new(&mut *guard).poll_shutdown(context)).await
}

/// Serves a connection from its first request for hyper on.
async fn serve_through_hyper(
    guard: Http1Guard<TcpStream, Direct>,
    client: IpAddr,
    in_progress: &Arc<InProgress>,
    mut end: End<'_, '_>,
) -> anyhow::Result<()> {
    let (proxy, handoff) = (end.proxy, end.handoff);
    let service = service_fn(|request| {
        let (proxy, handoff) = (Arc::clone(proxy), Arc::clone(handoff));
        let work = Work::begin(&proxy.telemetry().stats.budget, in_progress);
        // Boxed, so that an idle connection does not hold a request's memory.
        Box::pin(respond(proxy, handoff, request, client, work))
    });
    // The guard times heads that arrive in pieces.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(guard, service);
    // Boxed, because most connections never come here.
    let mut connection = Box::pin(connection.with_upgrades());
    let served = poll_fn(|context| end.poll_before(context, |context| connection.as_mut().poll(context)));
    match served.await {
        Some(outcome) => outcome?,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

/// The end of the process.
struct End<'a, 'b> {
    proxy: &'a Arc<Proxy>,
    handoff: &'a Arc<Handoff>,
    cancelled: Pin<&'a mut WaitForCancellationFuture<'b>>,
    listens: bool,
    is_cancelled: bool,
}

impl End<'_, '_> {
    /// Polls a connection. Returns `None` once the process ends and the guard drives no exchange: hyper can end gracefully what it
    /// has begun, of which it learns by being polled, but knows nothing of exchanges.
    fn poll_before<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Option<T>> {
        // `cancelled` takes a lock that all connections share: poll it once to register, and again only when the proxy
        // is ending.
        let learns = !mem::replace(&mut self.listens, true) || self.proxy.is_ending();
        self.is_cancelled = self.is_cancelled || learns && self.cancelled.as_mut().poll(context).is_ready();
        let polled = poll(context).map(Some);
        if polled.is_pending() && self.is_cancelled && !self.handoff.is_in_exchange() {
            return Poll::Ready(None);
        }
        polled
    }
}

/// Responds to a request over HTTP/1, for which there may be no place.
async fn respond(
    proxy: Arc<Proxy>,
    handoff: Arc<Handoff>,
    mut request: Request<Incoming>,
    client: IpAddr,
    work: Option<Work>,
) -> Result<Response<Http1Body>, Infallible> {
    handoff.restore(&mut request);
    let expects = headers::expects_to_go_on(request.headers());
    let Some(work) = work else {
        proxy.telemetry().refused(RequestError::Overloaded, client);
        return Ok(Problem::Overloaded.response().map(|body| handoff.releasing(Either::Left(body))));
    };
    let (handoff_of_client, work_of_client) = (Some(Arc::clone(&handoff)), Some(work.clone()));
    let client = Client { address: client, handoff: handoff_of_client, stream: None, work: work_of_client };
    let mut response = proxy.handle(request, client).await;
    if expects && !handoff.has_told_to_go_on() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // Only the client knows whether it sends its body all the same (RFC 9110, section 10.1.1).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let room = head_room::take(&mut response);
    Ok(response.map(|body| handoff.releasing(Either::Right(Held::new(body, (work, room))))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// hyper moves the future of a request to the heap, and the request holds it until it ends.
    #[test]
    fn future_of_a_request_is_small() {
        fn size_of_future<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        let size = size_of_future(respond);
        assert!(size <= 1_536, "{size}");
    }
}
