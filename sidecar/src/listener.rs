//! Connections of clients.

use std::{
    future::poll_fn,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cli::ListenAddress,
    gate::{Gate, Guarded, Refusal, Turnstile},
    proxy::{Client, Lane, Proxy},
    sniff::{self, Protocol, sniff},
};

mod prefixed;

use prefixed::Prefixed;

/// How long a client may be silent before the application is asked whether it speaks first.
const SERVER_FIRST: Duration = Duration::from_millis(500);
/// How long the first words may take that tell the protocol, from the first byte. What follows has the gate's time.
const FIRST_WORDS: Duration = Duration::from_secs(4);
/// How long a connection may be quiet before the kernel asks whether the client is still there, and how often it then asks.
const QUIET: Duration = Duration::from_secs(60);
const PROBES: Duration = Duration::from_secs(15);
/// How long a client may take nothing of what it is sent.
const UNREAD: Duration = Duration::from_secs(5 * 60);
/// How often a quiet HTTP/2 connection is pinged.
const PING: Duration = Duration::from_secs(30);
/// The largest header list that is taken over HTTP/2, as over HTTP/1.
const HEADER_LIST: u32 = 64 << 10;
/// How long to wait when no connection can be accepted, because there are too many open files.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens at an address; one without an IP means every address of the host.
///
/// # Errors
/// If the address is taken or not ours.
pub async fn bind(address: &ListenAddress) -> io::Result<TcpListener> {
    match address.ip {
        Some(ip) => TcpListener::bind((ip, address.port)).await,
        // Where IPv6 exists, its wildcard takes IPv4 too.
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, address.port)).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port)).await
            }
            outcome => outcome,
        },
    }
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
            Ok((stream, client)) => {
                tasks.spawn(serve(stream, client, Arc::clone(&proxy), shutdown.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream, client: SocketAddr, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let stats = &proxy.telemetry().stats;
    stats.connections.fetch_add(1, Ordering::Relaxed);
    let _ = stream.set_nodelay(true);
    // A client that vanished without a word would stay here for good.
    let _ =
        SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(QUIET).with_interval(PROBES));
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
    let ip = client.ip().to_canonical();
    let outcome = match first_words(&mut stream, &proxy, &shutdown).await {
        Ok(FirstWords::Http1(beginning)) => serve_http1(stream, &beginning, ip, &proxy, &shutdown).await,
        Ok(FirstWords::Http2(beginning)) => {
            serve_http2(Prefixed::new(beginning, stream), ip, &proxy, &shutdown).await
        }
        Ok(FirstWords::Other(beginning, application)) => {
            stats.spliced.fetch_add(1, Ordering::Relaxed);
            splice(stream, &beginning, application, &proxy).await
        }
        Ok(FirstWords::TooSlow) => {
            stats.refused(Refusal::TooSlow);
            refuse(stream, Refusal::TooSlow).await.map_err(Into::into)
        }
        Ok(FirstWords::None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%client, error = format!("{error:#}"), "a connection broke");
    }
    stats.connections.fetch_sub(1, Ordering::Relaxed);
}

/// How a connection begins.
enum FirstWords {
    /// With what may be an HTTP/1 request.
    Http1(Vec<u8>),
    /// With the preface of HTTP/2.
    Http2(Vec<u8>),
    /// With something else of the client's, or with the application, which was then connected to already.
    Other(Vec<u8>, Option<TcpStream>),
    /// With too little to tell.
    TooSlow,
    /// It ends before anybody has said anything.
    None,
}

async fn first_words(
    stream: &mut TcpStream,
    proxy: &Proxy,
    shutdown: &CancellationToken,
) -> io::Result<FirstWords> {
    let mut beginning = Vec::with_capacity(sniff::ENOUGH);
    let mut application: Option<TcpStream> = None;
    let mut silence = std::pin::pin!(sleep(SERVER_FIRST));
    let mut deadline = std::pin::pin!(sleep(FIRST_WORDS));
    let mut asked = false;
    loop {
        let is_silent = beginning.is_empty();
        tokio::select! {
            read = stream.read_buf(&mut beginning) => match (read?, sniff(&beginning)) {
                (0, _) if beginning.is_empty() => return Ok(FirstWords::None),
                (_, Protocol::Http1) => return Ok(FirstWords::Http1(beginning)),
                (_, Protocol::Http2) => return Ok(FirstWords::Http2(beginning)),
                (0, _) | (_, Protocol::Other) => return Ok(FirstWords::Other(beginning, application)),
                (_, Protocol::Undecided) if is_silent => deadline.as_mut().reset(Instant::now() + FIRST_WORDS),
                (_, Protocol::Undecided) => {}
            },
            () = &mut deadline, if !is_silent => return Ok(FirstWords::TooSlow),
            () = &mut silence, if !asked => {
                asked = true;
                application = proxy.upstream().connect().await.ok();
            }
            spoke = spoke_or_left(application.as_ref()), if application.is_some() => {
                return Ok(match spoke {
                    Ok(true) => FirstWords::Other(beginning, application),
                    // Left alone, the application ends a silent connection as it would without us.
                    Ok(false) | Err(_) => FirstWords::None,
                });
            }
            () = shutdown.cancelled() => return Ok(FirstWords::None),
        }
    }
}

/// Says why a client is not listened to any longer.
async fn refuse(mut stream: TcpStream, refusal: Refusal) -> io::Result<()> {
    stream.write_all(&refusal.answer()).await?;
    stream.shutdown().await
}

/// Waits until the application says something (true) or ends the connection (false).
async fn spoke_or_left(application: Option<&TcpStream>) -> io::Result<bool> {
    match application {
        Some(application) => Ok(application.peek(&mut [0]).await? > 0),
        None => std::future::pending().await,
    }
}

async fn serve_http1(
    stream: TcpStream,
    beginning: &[u8],
    client: IpAddr,
    proxy: &Arc<Proxy>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let turnstile = Arc::new(Turnstile::default());
    let gate = Gate::new(stream, beginning, Lane::new(Arc::clone(proxy)), Arc::clone(&turnstile));
    let service = service_fn(|request| {
        let (proxy, turnstile) = (Arc::clone(proxy), Arc::clone(&turnstile));
        async move {
            let client = Client { address: client, turnstile: Some(Arc::clone(&turnstile)) };
            let response = proxy.handle(request, client).await;
            Ok::<_, std::convert::Infallible>(response.map(|body| Guarded::new(body, turnstile)))
        }
    });
    // A head that comes in pieces is timed by the gate.
    let connection = http1::Builder::new().header_read_timeout(None).serve_connection(gate, service);
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
    if let Some(refusal) = turnstile.refusal() {
        proxy.telemetry().stats.refused(refusal);
    }
    Ok(outcome?)
}

async fn serve_http2(
    stream: Prefixed,
    client: IpAddr,
    proxy: &Arc<Proxy>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let service = service_fn(|request| {
        let proxy = Arc::clone(proxy);
        async move {
            let client = Client { address: client, turnstile: None };
            Ok::<_, std::convert::Infallible>(proxy.handle(request, client).await)
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .max_header_list_size(HEADER_LIST)
        .adaptive_window(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// Passes bytes both ways until both sides have ended.
async fn splice(
    mut client: TcpStream,
    beginning: &[u8],
    application: Option<TcpStream>,
    proxy: &Proxy,
) -> anyhow::Result<()> {
    let mut application = match application {
        Some(application) => application,
        None => proxy.upstream().connect().await?,
    };
    application.write_all(beginning).await?;
    copy_bidirectional(&mut client, &mut application).await?;
    Ok(())
}
