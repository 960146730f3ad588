//! HTTP/2 client connections.

use std::{
    future::poll_fn,
    future::ready,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::future;
use http_body_util::{Either, Empty};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{accepted::Accepted, requests::Requests, resets::Resets};
use crate::{
    connections::Admitted,
    head_room,
    held::Held,
    http1_guard::{RequestError, check_http2},
    http2_guard::{ErrorCode, Http2Guard, InterimStream, Interims, MAX_LIST, Shared},
    in_progress::InProgress,
    problem::Problem,
    proxy::{Client, FastPath2},
    work::Work,
};

/// Interval of pings on a quiet connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum size of a header list, which the guard enforces, too.
const MAX_HEADER_LIST: u32 = MAX_LIST as u32;
/// Maximum number of body bytes that are received before they are read, per request and per connection. These are the
/// initial windows of every connection (RFC 9113, section 6.9.2), and do not grow.
const STREAM_WINDOW: u32 = (64 << 10) - 1;
const CONNECTION_WINDOW: u32 = (64 << 10) - 1;
/// Maximum number of bytes of a response that are buffered for a slow client.
const SEND_BUFFER: usize = 16 << 10;
/// Maximum number of open streams, the lowest that RFC 9113, section 6.5.2, recommends, and of requests in progress,
/// including those that the client has given up.
const MAX_STREAMS: u32 = 100;
/// Number of malformed requests that are reset before the connection is closed.
const MAX_MALFORMED: usize = 128;
/// Time without a request after which a connection ends; it may last twice as long, as with HTTP/1.
const IDLE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Serves a connection until it ends, the process ends, it is idle for too long, or gives up too many streams.
pub(super) async fn serve_http2<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: IO,
    beginning: &[u8],
    accepted: Accepted<'_>,
) -> anyhow::Result<()> {
    serve_until_idle(stream, beginning, accepted, IDLE_INTERVAL).await
}

async fn serve_until_idle<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: IO,
    beginning: &[u8],
    Accepted { address: client, proxy, shutdown, place }: Accepted<'_>,
    idle_interval: Duration,
) -> anyhow::Result<()> {
    // Cancelled when the client should turn to another pod.
    let leaves = CancellationToken::new();
    let requests = Requests::new(place);
    let in_progress = Arc::<InProgress>::default();
    let streams = proxy.telemetry().stats.budget.grant_streams(MAX_STREAMS);
    in_progress.limit_to(streams.count() as usize);
    let (resets, is_used) = (Arc::<Resets>::default(), Arc::new(AtomicBool::new(true)));
    let interims = Arc::<Interims>::default();
    let service = service_fn(|mut request| {
        let (proxy, requests, leaves) = (Arc::clone(proxy), requests.clone(), leaves.clone());
        let (stream, work) = (resets.stream(), Work::begin(&proxy.telemetry().stats.budget, &in_progress));
        is_used.store(true, Ordering::Relaxed);
        let interim = interims.stream_of(&mut request);
        let Some(work) = work else {
            proxy.telemetry().refused(RequestError::Overloaded, client);
            let response = Problem::Overloaded.response_without_content();
            return future::Either::Left(ready(Ok(
                response.map(|()| stream.refuse(Either::Left(Empty::new())))
            )));
        };
        // Boxed, so that a stream with an unread response does not hold the request's memory.
        future::Either::Right(Box::pin(async move {
            let until_response = interim.as_ref().map(InterimStream::closed_on_drop);
            let mut response = match check_http2(&mut request) {
                Err(error) => {
                    proxy.telemetry().refused(error, client);
                    Problem::Refused(error).response().map(Either::Left)
                }
                Ok(()) => match requests.admit(&request, &proxy.telemetry().stats.budget) {
                    None => Problem::Overloaded.response().map(Either::Left),
                    Some(admitted) => {
                        let client = Client {
                            address: client,
                            handoff: None,
                            stream: interim,
                            work: Some(work.clone()),
                        };
                        let response = proxy.handle(request, client).await;
                        if proxy.upstream().is_gone() {
                            leaves.cancel();
                        }
                        response.map(|body| Either::Right(Held::new(body, admitted)))
                    }
                },
            };
            drop(until_response);
            let room = head_room::take(&mut response);
            let held = (work, room);
            let response = response.map(|body| stream.until_end_of(Either::Right(Held::new(body, held))));
            Ok::<_, std::convert::Infallible>(response)
        }))
    });
    let budget = &proxy.telemetry().stats.budget;
    let shared = Shared {
        place: Arc::clone(place),
        in_progress: Arc::clone(&in_progress),
        is_used: Arc::clone(&is_used),
        interims: Arc::clone(&interims),
    };
    let responder = FastPath2::new(Arc::clone(proxy));
    let mut guard = Http2Guard::new(stream, beginning, responder, budget, shared);
    let ended = {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_concurrent_streams(streams.count())
            .max_local_error_reset_streams(MAX_MALFORMED)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(TokioIo::new(&mut guard), service);
        let mut connection = pin!(connection);
        let mut looks = interval(idle_interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_ending = false;
        loop {
            let ends = tokio::select! {
                ended = connection.as_mut() => break Some(ended),
                () = resets.too_many() => break None,
                () = shutdown.cancelled(), if !is_ending => true,
                () = leaves.cancelled(), if !is_ending => true,
                () = ends_when_idle(place), if !is_ending => true,
                _ = looks.tick() => in_progress.count() == 0 && !is_used.swap(false, Ordering::Relaxed),
            };
            match (ends, is_ending) {
                (true, false) => {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                // No request arrived for as long as a connection may be idle.
                (true, true) => break Some(Ok(())),
                (false, _) => {}
            }
        }
    };
    match (guard.failure(), ended) {
        (Some(failure), ended) => {
            guard.end(failure).await?;
            ended.transpose()?;
            Ok(())
        }
        (None, Some(ended)) => Ok(ended?),
        (None, None) => {
            proxy.telemetry().refused(RequestError::Resets, client);
            Ok(guard.end(ErrorCode::EnhanceYourCalm).await?)
        }
    }
}

/// Waits until a connection must end because it is idle, and wakes the task that serves it.
async fn ends_when_idle(place: &Admitted) {
    poll_fn(|_| if place.connection().ends_when_idle() { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::{config::ConfigWatcher, proxy::Proxy, telemetry::Telemetry};

    async fn proxy() -> Arc<Proxy> {
        let telemetry = Arc::new(Telemetry::new().unwrap());
        let config = Arc::new(ConfigWatcher::load(None, None, Arc::clone(&telemetry)).await);
        Proxy::alone(config, telemetry)
    }

    #[tokio::test]
    async fn an_idle_connection_ends() {
        let (proxy, shutdown) = (proxy().await, CancellationToken::new());
        let place = Arc::new(proxy.telemetry().stats.budget.connections.admit().unwrap());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let begun = Instant::now();
        let (client, idle) = (Ipv4Addr::LOCALHOST.into(), Duration::from_millis(50));
        let accepted = Accepted { address: client, proxy: &proxy, shutdown: &shutdown, place: &place };
        let served = serve_until_idle(theirs, b"", accepted, idle);
        let asked = async {
            let (sender, connection) = h2::client::handshake(ours).await.unwrap();
            let _open: h2::client::SendRequest<Bytes> = sender;
            connection.await
        };
        // Either side may find the connection closed when it reads or sends GOAWAY.
        let ends = async { tokio::join!(served, asked) };
        let _ = tokio::time::timeout(Duration::from_secs(20), ends).await.expect("an end in time");
        assert!(begun.elapsed() >= idle, "{:?}", begun.elapsed());
    }
}
