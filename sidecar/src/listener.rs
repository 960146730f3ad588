//! Client connections.

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
    http1_guard::RequestError,
    proxy::Proxy,
};

mod accepted;
mod detect;
mod http1;
mod http2;
mod idle;
mod requests;
mod resets;
mod splice;

use accepted::Accepted;
use detect::{Detected, Other, detect};
use http1::serve_http1;
use http2::serve_http2;
pub use idle::end_idle;
use splice::{Spliced, splice};

/// Maximum time, and number of bytes, for which a rejected client's data is read and dropped, so that it can read the
/// error.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: u64 = 256 << 10;

/// Idle time before the kernel's first keepalive probe of a client, and the interval of further probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Maximum time for which a client may read nothing of its response.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Pause after a connection could not be accepted, because too many files are open.
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
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}

/// Serves a connection until it ends, or until it must make room for another.
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
        // The task never changes, so it registers once, and again after each wake-up.
        if !mem::replace(&mut listens, true) || connection.ends_when_idle() {
            let _ = connection.poll_must_leave(context);
        }
        if connection.gives_way() { Poll::Ready(()) } else { Poll::Pending }
    });
    // `served` is polled first, so that an HTTP/1 client gets an error.
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
    // Without keepalive, the connection of a client that vanished would stay forever.
    let _ = SockRef::from(&stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL));
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
    let ip = client.ip().to_canonical();
    let (proxy, shutdown) = (&proxy, &shutdown);
    let accepted = Accepted { address: ip, proxy, shutdown, place };
    let outcome = match detect(&mut stream, proxy, shutdown).await {
        Ok(Detected::Http1(beginning)) => serve_http1(stream, &beginning, accepted).await,
        Ok(Detected::Http2(beginning)) => serve_http2(stream, &beginning, accepted).await,
        Ok(Detected::Other(other)) => {
            place.connection().serves();
            serve_other(stream, other, ip, proxy).await.map_err(Into::into)
        }
        Ok(Detected::Refused(error)) => {
            proxy.telemetry().refused(error, ip);
            match error {
                // The client would not understand an error.
                RequestError::OtherProtocol => Ok(()),
                _ => refuse(&mut stream, error).await.map_err(Into::into),
            }
        }
        Ok(Detected::None) => Ok(()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%client, error = format!("{error:#}"), "a client's connection failed");
    }
}

/// Sends a client the reason for its rejection, and lets the client read it.
async fn refuse(stream: &mut TcpStream, error: RequestError) -> io::Result<()> {
    stream.write_all(&error.answer()).await?;
    stream.shutdown().await?;
    let (mut rest, mut nowhere) = (stream.take(MAX_LINGER_BYTES), tokio::io::sink());
    let _ = timeout(LINGER_TIMEOUT, tokio::io::copy(&mut rest, &mut nowhere)).await;
    Ok(())
}

/// Passes another protocol on; rejects a connection whose first line turns out to be HTTP.
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
