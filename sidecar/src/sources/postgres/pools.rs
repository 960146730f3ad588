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
    config::{SslMode, SslNegotiation, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    PostgresError,
    guarded::{Guarded, with_addresses},
    url,
};
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
        let mut config = self.config(secrets, "larder", "-c default_transaction_read_only=on")?;
        let manager = match encryption(&mut config, secrets.ca.as_deref())? {
            None => self.manager(config, ConfigConnectImpl { tls: NoTls }),
            Some(tls) => self.manager(config, ConfigConnectImpl { tls }),
        };
        let pool = Pool::builder(manager)
            .max_size(usize::from(self.spec.max_connections_per_pod))
            // The probe of an otherwise idle server uses one connection, and the others age.
            .queue_mode(QueueMode::Lifo)
            .build()?;
        Ok(pool)
    }

    fn manager(&self, config: Config, inner: impl Connect + 'static) -> Manager {
        // A broken connection is detected on use: a statement that fails or is late removes it from the pool.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Manager::from_connect(config, Guarded { inner, resolver: self.resolver.clone() }, recycling)
    }

    /// Returns the settings of connections with this name, unless the URL has one, and with these options besides those of the URL.
    fn config(&self, secrets: &Secrets, name: &str, options: &str) -> anyhow::Result<Config> {
        let mut config = url::parse(&secrets.url)?;
        let timeout = self.spec.statement_timeout.0;
        let own = format!("{options} -c statement_timeout={}", timeout.as_millis());
        let options = config.get_options().map_or_else(|| own.clone(), |theirs| format!("{theirs} {own}"));
        config.options(options).connect_timeout(timeout);
        if config.get_application_name().is_none() {
            config.application_name(name);
        }
        Ok(config)
    }

    /// Returns the settings of a connection to the primary with the secrets in use, for which no statement of a pool waits.
    ///
    /// # Errors
    /// If there are none that can be used.
    pub(super) async fn primary(&self) -> anyhow::Result<Primary> {
        let secrets = self.reload.in_use().ok_or_else(|| anyhow!(self.last_error().unwrap_or_default()))?;
        let mut config = self.config(&secrets, "larder-feed", "-c default_transaction_read_only=off")?;
        let tls = encryption(&mut config, secrets.ca.as_deref())?;
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        let config = with_addresses(&self.resolver, config).await?;
        Ok(Primary { secrets, config, tls })
    }

    /// Returns true if these secrets are the ones in use.
    pub(super) fn uses(&self, secrets: &Secrets) -> bool {
        self.reload.in_use().as_ref() == Some(secrets)
    }
}

/// Settings of a connection to the primary.
pub(super) struct Primary {
    pub(super) secrets: Secrets,
    pub(super) config: Config,
    pub(super) tls: Option<MakeRustlsConnect>,
}

/// Returns the TLS of connections, as their settings and a configured CA have it; `None` for plain text.
fn encryption(config: &mut Config, ca_pem: Option<&[u8]>) -> anyhow::Result<Option<MakeRustlsConnect>> {
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
        return Ok(None);
    }
    let tls = match client_config(ca_pem) {
        Ok(tls) => tls,
        // Without any trusted certificate, no TLS is better than failing TLS.
        Err(_) if mode == SslMode::Prefer => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut tls = Arc::unwrap_or_clone(tls);
    if config.get_ssl_negotiation() == SslNegotiation::Direct {
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Some(MakeRustlsConnect::new(tls)))
}
