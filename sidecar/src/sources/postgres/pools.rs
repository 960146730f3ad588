//! Connections to a Postgres server, by a URL and a CA that may change.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use deadpool_postgres::{
    ConfigConnectImpl, Connect, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod,
};
use larder_policy::spec;
use parking_lot::Mutex;
use tokio::time::{Duration, timeout};
use tokio_postgres::{
    Config, NoTls,
    config::{SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{PostgresError, guarded::Guarded, url};
use crate::{
    reload::{Newest, Reload},
    resolver::Resolver,
    secret::Secrets,
    tls::client_config,
};

/// Maximum idle time of a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The pool in use, replaced by one of a changed URL or CA once that has connected.
#[derive(Debug)]
pub(super) struct Pools {
    spec: spec::Postgres,
    resolver: Resolver,
    reload: Reload<Secrets>,
    current: Mutex<Option<Pool>>,
}

impl Pools {
    /// Creates a pool for the current URL and CA, if they can be read. It connects on first use.
    pub(super) fn new(spec: &spec::Postgres, resolver: Resolver) -> Self {
        let reload = Reload::new("URL or CA of a postgres source");
        let pools = Self { spec: spec.clone(), resolver, reload, current: Mutex::default() };
        if let Some(secrets) = pools.reload.candidate(pools.newest()) {
            let connected = pools.connect(&secrets);
            pools.replace(secrets, connected);
        }
        pools
    }

    /// Returns the pool in use.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub(super) fn current(&self) -> Result<Pool, PostgresError> {
        let current = self.current.lock().clone();
        current.ok_or_else(|| PostgresError::Failed(anyhow!(self.last_error().unwrap_or_default())))
    }

    /// Returns the reason why connections are refused here, or why the pool in use is not that of the current URL and CA.
    pub(super) fn last_error(&self) -> Option<String> {
        self.resolver.refused().or_else(|| self.reload.last_error())
    }

    /// Closes idle connections.
    pub(super) fn close_idle(&self) {
        if let Some(pool) = &*self.current.lock() {
            pool.retain(|_, metrics| metrics.last_used() < IDLE_TIMEOUT);
        }
    }

    /// Replaces the pool if the URL or the CA has changed and can be used.
    pub(super) async fn renew(&self) {
        let Some(secrets) = self.reload.candidate(self.newest()) else { return };
        let is_first = self.reload.in_use().is_none();
        let proven = async {
            let pool = self.connect(&secrets)?;
            // The first pool is used in any case.
            if !is_first {
                let connected = timeout(self.spec.statement_timeout.0, pool.get()).await;
                drop(connected.context("could not connect in time")?.map_err(PostgresError::of_connecting)?);
            }
            anyhow::Ok(pool)
        };
        let proven = proven.await;
        self.replace(secrets, proven);
    }

    fn replace(&self, secrets: Secrets, pool: anyhow::Result<Pool>) {
        match pool {
            Ok(pool) => {
                *self.current.lock() = Some(pool);
                self.reload.take(secrets);
            }
            Err(error) => self.reload.refuse(Some(secrets), format!("{error:#}")),
        }
    }

    fn newest(&self) -> Newest<Secrets> {
        Secrets::read(&self.spec.url_from, self.spec.ca_from.as_ref()).map_err(|error| format!("{error:#}"))
    }

    fn connect(&self, secrets: &Secrets) -> anyhow::Result<Pool> {
        let mut config = url::parse(&secrets.url)?;
        let timeout = self.spec.statement_timeout.0;
        let own = format!("-c default_transaction_read_only=on -c statement_timeout={}", timeout.as_millis());
        let options = config.get_options().map_or_else(|| own.clone(), |theirs| format!("{theirs} {own}"));
        config.options(options).connect_timeout(timeout);
        if config.get_application_name().is_none() {
            config.application_name("larder");
        }
        let pool = Pool::builder(self.manager(config, secrets.ca.as_deref())?)
            .max_size(usize::from(self.spec.max_connections_per_pod))
            // The probe of an otherwise idle server uses one connection, and the others age.
            .queue_mode(QueueMode::Lifo)
            .build()?;
        Ok(pool)
    }

    fn manager(&self, mut config: Config, ca_pem: Option<&[u8]>) -> anyhow::Result<Manager> {
        // A broken connection is detected on use: a statement that fails or is late removes it from the pool.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        if ca_pem.is_some() {
            // A configured CA requires TLS.
            ensure!(
                config.get_ssl_mode() != SslMode::Disable,
                "caFrom requires TLS: remove sslmode=disable from the URL, or remove caFrom"
            );
            config.ssl_mode(SslMode::Require);
        }
        let mode = config.get_ssl_mode();
        if mode == SslMode::Disable {
            return Ok(self.connecting(config, ConfigConnectImpl { tls: NoTls }, recycling));
        }
        let tls = match client_config(ca_pem) {
            Ok(tls) => tls,
            // Without any trusted certificate, no TLS is better than failing TLS.
            Err(_) if mode == SslMode::Prefer => {
                return Ok(self.connecting(config, ConfigConnectImpl { tls: NoTls }, recycling));
            }
            Err(error) => return Err(error),
        };
        let mut tls = Arc::unwrap_or_clone(tls);
        if config.get_ssl_negotiation() == SslNegotiation::Direct {
            tls.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(self.connecting(config, ConfigConnectImpl { tls: MakeRustlsConnect::new(tls) }, recycling))
    }

    fn connecting(&self, config: Config, inner: impl Connect + 'static, recycling: ManagerConfig) -> Manager {
        Manager::from_connect(config, Guarded { inner, resolver: self.resolver.clone() }, recycling)
    }
}
