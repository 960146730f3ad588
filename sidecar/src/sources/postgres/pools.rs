//! Connections to a Postgres server, by a URL and a CA that may change.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use deadpool_postgres::{Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod};
use larder_policy::spec;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Duration, Instant, timeout};
use tokio_postgres::{
    Config, NoTls,
    config::{SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{PostgresError, url};
use crate::{
    secret::{read_ca, read_url},
    tls::client_config,
};

/// Maximum idle time of a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval for retrying an unchanged URL or CA that was rejected.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The pool in use, replaced by one of a changed URL or CA once that has connected.
#[derive(Debug)]
pub(super) struct Pools {
    spec: spec::Postgres,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<(Told, Pool)>,
    /// The rejected URL and CA, and the time of the rejection.
    refused: Option<(Told, Instant)>,
    last_error: Option<String>,
}

/// The server's address and its trusted CA.
#[derive(Clone, PartialEq)]
struct Told {
    url: String,
    ca_pem: Option<Vec<u8>>,
}

/// Hides the contents, which include the password.
impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Pools {
    /// Creates a pool for the current URL and CA, if they can be read. It connects on first use.
    pub(super) fn new(spec: &spec::Postgres) -> Self {
        let pools = Self { spec: spec.clone(), state: Mutex::default() };
        match pools.told().and_then(|told| Ok((pools.connect(&told)?, told))) {
            Ok((pool, told)) => pools.state().current = Some((told, pool)),
            Err(error) => pools.complain(Some(format!("{error:#}"))),
        }
        pools
    }

    /// Returns the pool in use.
    ///
    /// # Errors
    /// The reason, if there is none.
    pub(super) fn current(&self) -> Result<Pool, PostgresError> {
        let state = self.state();
        match &state.current {
            Some((_, pool)) => Ok(pool.clone()),
            None => Err(PostgresError::Failed(anyhow!(state.last_error.clone().unwrap_or_default()))),
        }
    }

    /// Returns the reason why the pool in use is not that of the current URL and CA.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }

    /// Closes idle connections.
    pub(super) fn close_idle(&self) {
        if let Some((_, pool)) = &self.state().current {
            pool.retain(|_, metrics| metrics.last_used() < IDLE_TIMEOUT);
        }
    }

    /// Replaces the pool if the URL or the CA has changed and can be used.
    pub(super) async fn renew(&self) {
        let last_error = self.try_renewing().await.err().map(|error| format!("{error:#}"));
        self.complain(last_error);
    }

    async fn try_renewing(&self) -> anyhow::Result<()> {
        let told = self.told()?;
        let is_first = {
            let mut state = self.state();
            if state.current.as_ref().is_some_and(|(current, _)| *current == told) {
                state.refused = None;
                return Ok(());
            }
            let refused = state.refused.as_ref();
            if refused.is_some_and(|(refused, at)| *refused == told && at.elapsed() < RETRY_INTERVAL) {
                return state.last_error.clone().map_or(Ok(()), |last_error| Err(anyhow!(last_error)));
            }
            state.current.is_none()
        };
        let proven = async {
            let pool = self.connect(&told)?;
            // The first pool is used in any case.
            if !is_first {
                let connected = timeout(self.spec.statement_timeout.0, pool.get()).await;
                drop(connected.context("could not connect in time")?.map_err(PostgresError::of_connecting)?);
            }
            anyhow::Ok(pool)
        };
        let proven = proven.await;
        let mut state = self.state();
        match proven {
            Ok(pool) => {
                if !is_first {
                    tracing::info!("connected to postgres with the new URL or CA");
                }
                state.current = Some((told, pool));
                state.refused = None;
                Ok(())
            }
            Err(error) => {
                state.refused = Some((told, Instant::now()));
                Err(if is_first {
                    error
                } else {
                    error.context("the changed URL or CA can't be used; keeping the previous one")
                })
            }
        }
    }

    fn complain(&self, last_error: Option<String>) {
        let mut state = self.state();
        if let Some(last_error) =
            last_error.as_ref().filter(|last_error| state.last_error.as_ref() != Some(last_error))
        {
            tracing::warn!(last_error, "the URL or the CA of a postgres source can't be used");
        }
        state.last_error = last_error;
    }

    fn told(&self) -> anyhow::Result<Told> {
        let ca_pem = self.spec.ca_from.as_ref().map(read_ca).transpose()?;
        Ok(Told { url: read_url(&self.spec.url_from)?, ca_pem })
    }

    fn connect(&self, told: &Told) -> anyhow::Result<Pool> {
        let mut config = url::parse(&told.url)?;
        let timeout = self.spec.statement_timeout.0;
        let own = format!("-c default_transaction_read_only=on -c statement_timeout={}", timeout.as_millis());
        let options = config.get_options().map_or_else(|| own.clone(), |theirs| format!("{theirs} {own}"));
        config.options(options).connect_timeout(timeout);
        if config.get_application_name().is_none() {
            config.application_name("larder");
        }
        let pool = Pool::builder(manager(config, told.ca_pem.as_deref())?)
            .max_size(usize::from(self.spec.max_connections_per_pod))
            // The probe of an otherwise idle server uses one connection, and the others age.
            .queue_mode(QueueMode::Lifo)
            .build()?;
        Ok(pool)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn manager(mut config: Config, ca_pem: Option<&[u8]>) -> anyhow::Result<Manager> {
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
        return Ok(Manager::from_config(config, NoTls, recycling));
    }
    let tls = match client_config(ca_pem) {
        Ok(tls) => tls,
        // Without any trusted certificate, no TLS is better than failing TLS.
        Err(_) if mode == SslMode::Prefer => {
            return Ok(Manager::from_config(config, NoTls, recycling));
        }
        Err(error) => return Err(error),
    };
    let mut tls = Arc::unwrap_or_clone(tls);
    if config.get_ssl_negotiation() == SslNegotiation::Direct {
        tls.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Manager::from_config(config, MakeRustlsConnect::new(tls), recycling))
}
