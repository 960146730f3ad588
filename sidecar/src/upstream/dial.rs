//! Connections to the application: choice of the address, and retries of refused connections.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{cli::UpstreamUrl, clock::monotonic_ms};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keep-alive: time without traffic before the first probe, interval of the probes, and their number.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;
/// Time for which an alternative address is used before the first one is tried again.
const ALTERNATIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which refused connections are retried, counted from the first one. By then a container that was killed has restarted,
/// or its pod is no longer an endpoint.
const REFUSED_GRACE_MS: u64 = 2_000;
/// Intervals between these retries.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(10);
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which an application counts as gone after it refused a connection.
const GONE_INTERVAL_MS: u64 = 1_000;

/// Treatment of a request whose connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenRefused {
    /// The request fails at once, because a stored response may be served instead.
    Fail,
    /// The connection is retried for 2 s after the first refusal, if the application had ever accepted one.
    Retry,
}

/// An application's addresses, and the outcomes of earlier connections to them.
///
/// Many applications trust clients at a loopback address (`allow 127.0.0.1`, Express' `trust proxy`, Spring's actuator behind a
/// check of the address). Therefore an application on this host is called at its pod's address, which then is also the client's,
/// and at a loopback address only if it does not listen there.
#[derive(Debug)]
pub struct Dialer {
    host: Box<str>,
    port: u16,
    pod_ip: Option<IpAddr>,
    /// An address that accepted a connection after the first one had refused it, and the time of that.
    alternative: Mutex<Option<(SocketAddr, Instant)>>,
    has_connected: AtomicBool,
    /// Times of the first and the last refusal since a connection was accepted, as [`monotonic_ms`]; 0 if there was none.
    refused_since: AtomicU64,
    refused_last: AtomicU64,
    was_refused: Notify,
}

impl Dialer {
    /// Creates a dialer for an application at `url`, in the pod with this address.
    pub fn new(url: &UpstreamUrl, pod_ip: Option<IpAddr>) -> Self {
        Self {
            host: url.authority.host().trim_matches(['[', ']']).into(),
            port: url.port(),
            pod_ip,
            alternative: Mutex::default(),
            has_connected: AtomicBool::new(false),
            refused_since: AtomicU64::new(0),
            refused_last: AtomicU64::new(0),
            was_refused: Notify::new(),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// If the application listens at no address, or connecting takes longer than 5 s.
    pub async fn connect(&self, refused: WhenRefused) -> io::Result<TcpStream> {
        let mut pause = MIN_RETRY_INTERVAL;
        loop {
            let error = match self.dial().await {
                Ok(stream) => {
                    self.has_connected.store(true, Ordering::Relaxed);
                    self.refused_since.store(0, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => error,
            };
            if error.kind() != io::ErrorKind::ConnectionRefused {
                return Err(error);
            }
            let left = self.grace_left();
            if refused == WhenRefused::Fail || left.is_zero() {
                return Err(error);
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(MAX_RETRY_INTERVAL);
        }
    }

    /// Returns true if the application has refused connections for longer than a restart takes.
    pub fn is_gone(&self) -> bool {
        self.refused_for().is_some_and(|time| {
            time >= Duration::from_millis(REFUSED_GRACE_MS) || !self.has_connected.load(Ordering::Relaxed)
        })
    }

    /// Returns the time for which the application has refused every connection, if it refused one within the last second.
    pub fn refused_for(&self) -> Option<Duration> {
        let since = self.refused_since.load(Ordering::Relaxed);
        if since == 0 {
            return None;
        }
        let now = monotonic_ms();
        let is_recent = now.saturating_sub(self.refused_last.load(Ordering::Relaxed)) < GONE_INTERVAL_MS;
        is_recent.then(|| Duration::from_millis(now.saturating_sub(since)))
    }

    /// Waits until the application has refused a connection.
    pub async fn refused(&self) {
        self.was_refused.notified().await;
    }

    /// Records that a connection was refused, and returns the time for which it may still be retried.
    fn grace_left(&self) -> Duration {
        let now = monotonic_ms().max(1);
        self.refused_last.store(now, Ordering::Relaxed);
        let noted = self.refused_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        let since = noted.map_or_else(|since| since, |_| now);
        self.was_refused.notify_one();
        if !self.has_connected.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(REFUSED_GRACE_MS.saturating_sub(now.saturating_sub(since)))
    }

    /// Tries each address once.
    async fn dial(&self) -> io::Result<TcpStream> {
        if let Some(alternative) = self.alternative()
            && let Ok(stream) = self.connect_to(alternative).await
        {
            return Ok(stream);
        }
        let addresses = self.addresses().await?;
        let mut failure = None;
        for (index, &address) in addresses.iter().enumerate() {
            match self.connect_to(address).await {
                Ok(stream) if index == 0 => return Ok(stream),
                Ok(stream) => {
                    // The application may have begun to listen everywhere since the first address refused.
                    if let Ok(first) = self.connect_to(addresses[0]).await {
                        return Ok(first);
                    }
                    self.set_alternative(Some((address, Instant::now())));
                    return Ok(stream);
                }
                // The application listens at this address, and is overloaded.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => failure = Some(error),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        self.set_alternative(None);
        Err(failure.unwrap_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the application's host name has no address")
        }))
    }

    fn alternative(&self) -> Option<SocketAddr> {
        let alternative = *self.alternative.lock();
        alternative.filter(|(_, since)| since.elapsed() < ALTERNATIVE_INTERVAL).map(|(address, _)| address)
    }

    fn set_alternative(&self, alternative: Option<(SocketAddr, Instant)>) {
        *self.alternative.lock() = alternative;
    }

    /// Returns the addresses in order of preference: the pod's first, if the application is on a loopback address.
    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut ips: Vec<IpAddr> = match self.host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let found = tokio::net::lookup_host((&*self.host, self.port)).await?;
                found.map(|address| address.ip()).collect()
            }
        };
        if let Some(pod_ip) = self.pod_ip {
            if ips.iter().all(IpAddr::is_loopback) {
                ips.insert(0, pod_ip);
                // Applications understand `localhost` as one of these or both.
                ips.extend([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]);
            } else {
                ips.push(pod_ip);
            }
        }
        let mut addresses: Vec<SocketAddr> = Vec::with_capacity(ips.len());
        for ip in ips {
            let address = SocketAddr::new(ip, self.port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections to a local address have the same source address, except in 127.0.0.0/8.
        if address.ip().is_loopback() && Some(address.ip()) == self.pod_ip {
            socket.bind(SocketAddr::new(address.ip(), 0))?;
        }
        let stream = timeout(CONNECT_TIMEOUT, socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        // HTTP/2 pings are not used, because gRPC servers close a connection that is pinged more often than every five minutes.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ips(url: &str, pod_ip: Option<&str>) -> Vec<String> {
        let dialer = Dialer::new(&url.parse().unwrap(), pod_ip.map(|ip| ip.parse().unwrap()));
        let addresses = dialer.addresses().await.unwrap();
        addresses.into_iter().map(|address| address.to_string()).collect()
    }

    #[tokio::test]
    async fn the_pods_address_goes_before_loopback_and_behind_others() {
        for (url, pod_ip, addresses) in [
            ("http://127.0.0.1:8000", None, &["127.0.0.1:8000"][..]),
            ("http://[::1]:8000", None, &["[::1]:8000"]),
            ("http://127.0.0.1:8000", Some("10.0.0.5"), &["10.0.0.5:8000", "127.0.0.1:8000", "[::1]:8000"]),
            ("http://[::1]:8000", Some("fd00::5"), &["[fd00::5]:8000", "[::1]:8000", "127.0.0.1:8000"]),
            ("http://192.0.2.7", Some("10.0.0.5"), &["192.0.2.7:80", "10.0.0.5:80"]),
        ] {
            assert_eq!(ips(url, pod_ip).await, addresses, "{url} {pod_ip:?}");
        }
        let named = ips("http://localhost:8000", Some("10.0.0.5")).await;
        assert_eq!(named[0], "10.0.0.5:8000", "{named:?}");
    }
}
