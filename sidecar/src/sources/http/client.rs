//! Connections to an HTTP source, and the certificates that they trust.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri,
    header::{ACCEPT, USER_AGENT},
};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, Builder, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use larder_policy::spec::{self, ValueFrom};
use parking_lot::{Mutex, MutexGuard};

use super::connector::Connector;
use crate::{
    reload::Reload,
    resolver::Resolver,
    secret::read_ca,
    tls::client_config,
    upstream::{MAX_HEAD, MAX_LINES, may_have_been_dead},
};

/// Interval for reading the certificates again, because a Secret's file may change.
const CA_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum idle time of a connection, shorter than that of common servers, and maximum number of idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 16;
/// Interval of pings on an HTTP/2 connection, and timeout for their replies, needed because all requests share one
/// connection and a deadline ends only its request.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PONG_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum buffer size in bytes, with room for a head. Bodies come in smaller pieces.
const MAX_BUFFER: usize = MAX_HEAD + (64 << 10);

type TcpConnector = HttpConnector<Resolver>;

/// A client without TLS, or with the configured trust.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Plain(legacy::Client<Connector<TcpConnector>, Empty<Bytes>>),
    Secure(legacy::Client<Connector<HttpsConnector<TcpConnector>>, Empty<Bytes>>),
}

impl Client {
    fn plain(connector: TcpConnector) -> Self {
        Self::Plain(builder().build(Connector(connector)))
    }

    fn secure(mut connector: TcpConnector, ca_pem: Option<&[u8]>) -> anyhow::Result<Self> {
        let config = Arc::unwrap_or_clone(client_config(ca_pem)?);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_all_versions()
            .wrap_connector(connector);
        Ok(Self::Secure(builder().build(Connector(connector))))
    }

    /// Sends a GET; a second time, if the first failed on a connection that may have been dead.
    pub(super) async fn get(&self, uri: Uri) -> Result<Response<Incoming>, legacy::Error> {
        match self.send(uri.clone()).await {
            Err(error) if !error.is_connect() && may_have_been_dead(&error) => self.send(uri).await,
            outcome => outcome,
        }
    }

    async fn send(&self, uri: Uri) -> Result<Response<Incoming>, legacy::Error> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*;q=0.5"));
        headers.insert(USER_AGENT, HeaderValue::from_static("larder"));
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Secure(client) => client.request(request).await,
        }
    }
}

fn connector(connect_timeout: Duration, resolver: Resolver) -> TcpConnector {
    let mut connector = HttpConnector::new_with_resolver(resolver);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector
}

fn builder() -> Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .http1_max_headers(MAX_LINES + 1)
        .http2_max_header_list_size(MAX_HEAD as u32)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PONG_TIMEOUT)
        .http1_max_buf_size(MAX_BUFFER);
    builder
}

/// The client of a source, replaced when its trusted certificates change.
#[derive(Debug)]
pub(super) struct Clients {
    is_secure: bool,
    ca_from: Option<ValueFrom>,
    connect_timeout: Duration,
    resolver: Resolver,
    /// The certificates, in PEM, that the client trusts; `None` for the system's.
    reload: Reload<Option<Vec<u8>>>,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    checked: Option<Instant>,
    /// The last client that could be made.
    client: Option<Client>,
}

impl Clients {
    pub(super) fn new(spec: &spec::Http, resolver: Resolver) -> Self {
        let is_secure = spec.url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        Self {
            is_secure,
            ca_from: spec.ca_from.clone(),
            connect_timeout: spec.hard_timeout().0,
            resolver,
            reload: Reload::new("CA of an HTTP source"),
            current: Mutex::default(),
        }
    }

    /// Returns the last good client, or the reason why there is none.
    pub(super) fn current(&self) -> Result<Client, String> {
        self.checked().client.clone().ok_or_else(|| self.reload.last_error().unwrap_or_default())
    }

    /// Returns the reason why the last good client does not trust the current certificates.
    pub(super) fn last_error(&self) -> Option<String> {
        drop(self.checked());
        self.reload.last_error()
    }

    fn checked(&self) -> MutexGuard<'_, Current> {
        let mut current = self.current.lock();
        if current.checked.is_none_or(|checked| checked.elapsed() >= CA_CHECK_INTERVAL) {
            current.checked = Some(Instant::now());
            let newest = self.ca_from.as_ref().map(read_ca).transpose();
            if let Some(pem) = self.reload.candidate(newest.map_err(|error| format!("{error:#}"))) {
                match self.client(pem.as_deref()) {
                    Ok(client) => {
                        current.client = Some(client);
                        self.reload.take(pem);
                    }
                    Err(error) => self.reload.refuse(Some(pem), format!("{error:#}")),
                }
            }
        }
        current
    }

    fn client(&self, ca_pem: Option<&[u8]>) -> anyhow::Result<Client> {
        let connector = connector(self.connect_timeout, self.resolver.clone());
        if self.is_secure { Client::secure(connector, ca_pem) } else { Ok(Client::plain(connector)) }
    }
}
