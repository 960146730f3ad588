//! Connections of clients.

use std::{
    future::poll_fn,
    io, mem,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use futures::future::select;
use http::{HeaderValue, StatusCode, header::CONNECTION};
use http_body_util::Either;
use hyper::{server::conn::http1, service::service_fn};
use larder_api::ListenAddress;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connections::{Admitted, turn_away},
    head_room, headers,
    held::Held,
    http1_guard::{Handoff, Http1Guard, RequestError},
    in_progress::InProgress,
    problem::Problem,
    proxy::{Client, FastPath, Proxy},
    work::Work,
};

mod calm;
mod detect;
mod http2;
mod idle;
mod prefixed;
mod requests;
mod resets;
mod splice;

use detect::{Detected, Other, detect};
use http2::serve_http2;
pub use idle::end_idle;
use prefixed::Prefixed;
use splice::{Spliced, splice};

/// How long, and for how many bytes, a refused client is listened to, so that it can read why.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: u64 = 256 << 10;

/// How long a connection may be quiet before the kernel asks whether the client is still there, and how often it then asks.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a client may take nothing of what it is sent.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How much of a response over HTTP/1 is buffered for a client that does not read it, in bytes. A request's head must fit in, too.
const MAX_BUFFER: usize = 80 << 10;
/// How long to wait when no connection can be accepted, because there are too many open files.
pub(crate) const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Binds a listen address.
///
/// # Errors
/// If the address is taken or does not belong to this host.
pub fn bind(address: ListenAddress) -> io::Result<TcpListener> {
    TcpListener::from_std(address.bind()?)
}

/// Accepts connections until `shutdown`, and hands each to a task of its own in `tasks`.
pub async fn accept(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, client)) => match proxy.telemetry().stats.budget.connections.admit_to(proxy.target())
            {
                Some(admitted) => {
                    let served = serve(stream, client, Arc::clone(&proxy), shutdown.clone(), admitted.into());
                    tasks.spawn(served);
                }
                None => turn_away(&stream),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}

/// Serves a connection until it ends, or makes room for another.
async fn serve(
    stream: TcpStream,
    client: SocketAddr,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
    place: Arc<Admitted>,
) {
    let served = pin!(serve_to_its_end(stream, client, proxy, shutdown, &place));
    let mut listens = false;
    let gives_way = poll_fn(|context| {
        let connection = place.connection();
        // The task stays the same, and so does who wakes it, until it was woken.
        if !mem::replace(&mut listens, true) || connection.ends_when_idle() {
            let _ = connection.poll_must_leave(context);
        }
        if connection.gives_way() { Poll::Ready(()) } else { Poll::Pending }
    });
    // It is polled first: an HTTP/1 client is told why.
    select(served, pin!(gives_way)).await;
}

async fn serve_to_its_end(
    mut stream: TcpStream,
    client: SocketAddr,
    proxy: Arc<Proxy>,
    shutdown: CancellationToken,
    place: &Arc<Admitted>,
) {
    let _ = stream.set_nodelay(true);
    // A client that vanished without a word would stay here for good.
    let _ = SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL));
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
    let ip = client.ip().to_canonical();
    let outcome = match detect(&mut stream, &proxy, &shutdown).await {
        Ok(Detected::Http1(beginning)) => serve_http1(stream, &beginning, ip, &proxy, &shutdown, place).await,
        Ok(Detected::Http2(beginning)) => {
            serve_http2(Prefixed::new(beginning, stream), ip, &proxy, &shutdown, place).await
        }
        Ok(Detected::Other(other)) => {
            place.connection().serves();
            serve_other(stream, other, ip, &proxy).await.map_err(Into::into)
        }
        Ok(Detected::Refused(error)) => {
            proxy.telemetry().refused(error, ip);
            match error {
                // It would not understand why.
                RequestError::OtherProtocol => Ok(()),
                _ => refuse(&mut stream, error).await.map_err(Into::into),
            }
        }
        Ok(Detected::None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%client, error = format!("{error:#}"), "a connection broke");
    }
}

/// Says why a client is not listened to any longer, and lets it read that.
async fn refuse(stream: &mut TcpStream, error: RequestError) -> io::Result<()> {
    stream.write_all(&error.answer()).await?;
    stream.shutdown().await?;
    let (mut rest, mut nowhere) = (stream.take(MAX_LINGER_BYTES), tokio::io::sink());
    let _ = timeout(LINGER_TIMEOUT, tokio::io::copy(&mut rest, &mut nowhere)).await;
    Ok(())
}

/// Passes on what is not HTTP; refuses what turns out to be after all.
async fn serve_other(mut stream: TcpStream, other: Other, client: IpAddr, proxy: &Proxy) -> io::Result<()> {
    proxy.telemetry().stats.spliced.fetch_add(1, Ordering::Relaxed);
    match splice(&mut stream, other, proxy).await? {
        Spliced::Ended => Ok(()),
        Spliced::Http => {
            proxy.telemetry().refused(RequestError::Syntax, client);
            refuse(&mut stream, RequestError::Syntax).await
        }
    }
}

async fn serve_http1(
    stream: TcpStream,
    beginning: &[u8],
    client: IpAddr,
    proxy: &Arc<Proxy>,
    shutdown: &CancellationToken,
    place: &Arc<Admitted>,
) -> anyhow::Result<()> {
    let handoff = Arc::new(Handoff::new(&proxy.telemetry().stats.budget, place));
    let guard = Http1Guard::new(stream, beginning, FastPath::new(Arc::clone(proxy)), Arc::clone(&handoff));
    let in_progress = Arc::<InProgress>::default();
    let service = service_fn(|mut request| {
        let (proxy, handoff) = (Arc::clone(proxy), Arc::clone(&handoff));
        let work = Work::begin(&proxy.telemetry().stats.budget, &in_progress);
        // In a place of its own: a connection that waits does not hold what a request takes.
        Box::pin(async move {
            handoff.restore(&mut request);
            let expects = headers::expects_to_go_on(request.headers());
            let Some(work) = work else {
                proxy.telemetry().refused(RequestError::Overloaded, client);
                return Ok(Problem::Overloaded.response().map(|body| handoff.releasing(Either::Left(body))));
            };
            let (handoff_of_client, work_of_client) = (Some(Arc::clone(&handoff)), Some(work.clone()));
            let client = Client { address: client, handoff: handoff_of_client, work: work_of_client };
            let mut response = proxy.handle(request, client).await;
            if expects && !handoff.has_told_to_go_on() && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                // Whether the body comes all the same is the client's to know (RFC 9110, section 10.1.1).
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let room = head_room::take(&mut response);
            let response =
                response.map(|body| handoff.releasing(Either::Right(Held::new(body, (work, room)))));
            Ok::<_, std::convert::Infallible>(response)
        })
    });
    // A head that comes in pieces is timed by the guard.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(guard, service);
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let mut cancelled = std::pin::pin!(shutdown.cancelled());
    let mut listens = false;
    let ended = poll_fn(|context| {
        // It takes a lock that all connections share: once to be woken, and again when there is something to learn.
        let learns = !mem::replace(&mut listens, true) || proxy.is_ending();
        if learns && cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        connection.as_mut().poll(context).map(Some)
    });
    let outcome = match ended.await {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Some(error) = handoff.error() {
        proxy.telemetry().refused(error, client);
    }
    Ok(outcome?)
}
