//! The connections to a Postgres server, by a URL and a CA that may change.

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

/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a URL or CA that was kept out is tried again though it did not change.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The pool in use. One of a changed URL or CA takes its place when it has connected once.
#[derive(Debug)]
pub(super) struct Pools {
    spec: spec::Postgres,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<(Told, Pool)>,
    /// What was kept out, and when.
    refused: Option<(Told, Instant)>,
    last_error: Option<String>,
}

/// Where the server is, and whom to trust.
#[derive(Clone, PartialEq)]
struct Told {
    url: String,
    ca_pem: Option<Vec<u8>>,
}

/// Not what it is: it has the password.
impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Pools {
    /// The pool of what can be read now, if it can be. It connects when it is asked.
    pub(super) fn new(spec: &spec::Postgres) -> Self {
        let pools = Self { spec: spec.clone(), state: Mutex::default() };
        match pools.told().and_then(|told| Ok((pools.connect(&told)?, told))) {
            Ok((pool, told)) => pools.state().current = Some((told, pool)),
            Err(error) => pools.complain(Some(format!("{error:#}"))),
        }
        pools
    }

    /// The pool in use.
    ///
    /// # Errors
    /// Without one: why.
    pub(super) fn current(&self) -> Result<Pool, PostgresError> {
        let state = self.state();
        match &state.current {
            Some((_, pool)) => Ok(pool.clone()),
            None => Err(PostgresError::Failed(anyhow!(state.last_error.clone().unwrap_or_default()))),
        }
    }

    /// Why the pool in use is not that of what the URL and the CA are now.
    pub(super) fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }

    /// Closes connections that were idle for long.
    pub(super) fn close_idle(&self) {
        if let Some((_, pool)) = &self.state().current {
            pool.retain(|_, metrics| metrics.last_used() < IDLE_TIMEOUT);
        }
    }

    /// Changes over to what the URL and the CA are now, if they changed and can be used.
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
            // Without another, there is nothing to lose.
            if !is_first {
                let connected = timeout(self.spec.statement_timeout.0, pool.get()).await;
                drop(connected.context("no connection in time")?.map_err(PostgresError::of_connecting)?);
            }
            anyhow::Ok(pool)
        };
        let proven = proven.await;
        let mut state = self.state();
        match proven {
            Ok(pool) => {
                if !is_first {
                    tracing::info!("postgres is reached by a new URL or CA");
                }
                state.current = Some((told, pool));
                state.refused = None;
                Ok(())
            }
            Err(error) => {
                state.refused = Some((told, Instant::now()));
                Err(if is_first { error } else { error.context("a changed URL or CA is kept out") })
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
    // Whether a connection was broken is found when it is used: a statement that fails or is late takes it out of the pool.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    if ca_pem.is_some() {
        // Who names a CA wants no connection without.
        ensure!(
            config.get_ssl_mode() != SslMode::Disable,
            "caFrom is for TLS: take sslmode=disable out of the URL, or caFrom"
        );
        config.ssl_mode(SslMode::Require);
    }
    let mode = config.get_ssl_mode();
    if mode == SslMode::Disable {
        return Ok(Manager::from_config(config, NoTls, recycling));
    }
    let tls = match client_config(ca_pem) {
        Ok(tls) => tls,
        // Where the system trusts nobody, no TLS is better than none that works.
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
