//! A source that answers from Postgres.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use larder_policy::{Values, spec, sql::BoundQuery};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::{NoTls, error::SqlState, types::ToSql};
use tokio_util::task::AbortOnDropHandle;

use crate::{breaker::Breaker, secret::read_url};

/// Failures in a row that open the breaker, and for how long.
const FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How often the URL is read again: a Secret's file may change.
const URL_CHECK: Duration = Duration::from_secs(1);

/// How often it is asked whether it is there: a route that nobody asks for says nothing about its source.
const PROBE: Duration = Duration::from_secs(5);

/// A Postgres server that routes read from. Every statement is read-only and has a deadline.
#[derive(Debug)]
pub struct PostgresSource {
    server: Arc<Server>,
    _probe: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Server {
    spec: spec::Postgres,
    pool: Mutex<Option<Connected>>,
    breaker: Breaker,
    /// Whether it answered when it was last asked for anything.
    answers: AtomicBool,
}

#[derive(Debug)]
struct Connected {
    url: String,
    checked: Instant,
    pool: Pool,
}

/// Why Postgres did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// It failed too often of late.
    #[error("postgres is not asked: it failed too often of late")]
    Down,
    /// No connection or no answer in time.
    #[error("postgres did not answer within {0:?}")]
    Deadline(Duration),
    /// It did not like the query: it works, for other queries.
    #[error("postgres refused the query: {0}")]
    Refused(tokio_postgres::Error),
    /// It can't be reached, or broke down.
    #[error("postgres: {0:#}")]
    Failed(#[from] anyhow::Error),
}

impl PostgresSource {
    /// Connects in the background, to know whether it is there.
    pub fn start(spec: spec::Postgres) -> Self {
        let server = Arc::new(Server {
            spec,
            pool: Mutex::new(None),
            breaker: Breaker::new(FAILURES, PAUSE),
            answers: AtomicBool::new(false),
        });
        let probe = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&server).probe()));
        Self { server, _probe: probe }
    }

    /// What it was made from.
    pub fn spec(&self) -> &spec::Postgres {
        &self.server.spec
    }

    /// Whether it answered when it was last asked, and is trusted to do so again.
    pub fn is_up(&self) -> bool {
        self.server.answers.load(Ordering::Relaxed) && self.server.breaker.is_closed()
    }

    /// Asks it: one row is a JSON object, several are an array, none, or a parameter that the query can't cast, is `None`.
    ///
    /// # Errors
    /// If it can't be reached, is too slow, or does not like the query.
    pub async fn fetch(
        &self,
        query: &BoundQuery,
        values: &Values<'_>,
    ) -> Result<Option<Bytes>, PostgresError> {
        let server = &self.server;
        if !server.breaker.allows() {
            return Err(PostgresError::Down);
        }
        let outcome = server.in_time(server.query(query, values)).await;
        match &outcome {
            Ok(_) | Err(PostgresError::Refused(_)) => server.breaker.succeeded(),
            Err(_) => server.breaker.failed(),
        }
        outcome
    }
}

impl Server {
    async fn probe(self: Arc<Self>) {
        let mut ticks = interval(PROBE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answered = self.in_time(async {
                let client = self.pool()?.get().await.context("no connection")?;
                Ok(client.simple_query("").await.context("no answer")?)
            });
            if let Err(error) = answered.await {
                tracing::debug!(%error, "postgres does not answer");
            }
        }
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, PostgresError>>,
    ) -> Result<T, PostgresError> {
        let deadline = self.spec.statement_timeout.0;
        let outcome =
            tokio::time::timeout(deadline, work).await.unwrap_or(Err(PostgresError::Deadline(deadline)));
        self.answers.store(matches!(outcome, Ok(_) | Err(PostgresError::Refused(_))), Ordering::Relaxed);
        outcome
    }

    async fn query(&self, query: &BoundQuery, values: &Values<'_>) -> Result<Option<Bytes>, PostgresError> {
        let client = self.pool()?.get().await.context("no connection")?;
        let statement = client.prepare_cached(&query.statement).await.map_err(PostgresError::of_query)?;
        let bound = query.bind(values);
        let bound: Vec<_> = bound.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        let rows = match client.query(&statement, &bound).await {
            Ok(rows) => rows,
            // Class 22, data exception: a value that the query can't cast names nothing that there is.
            Err(error) if error.code().is_some_and(is_data_exception) => return Ok(None),
            Err(error) => return Err(PostgresError::of_query(error)),
        };
        let texts = rows.iter().map(|row| row.try_get::<_, &str>(0)).collect::<Result<Vec<_>, _>>();
        Ok(match texts.context("a row is not JSON")?.as_slice() {
            [] => None,
            [one] => Some(Bytes::copy_from_slice(one.as_bytes())),
            several => Some(Bytes::from(format!("[{}]", several.join(",")))),
        })
    }

    fn pool(&self) -> anyhow::Result<Pool> {
        let mut connected = self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(connected) =
            connected.as_ref().filter(|connected| connected.checked.elapsed() < URL_CHECK)
        {
            return Ok(connected.pool.clone());
        }
        let url = read_url(&self.spec.url_from)?;
        if let Some(connected) = connected.as_mut().filter(|connected| connected.url == url) {
            connected.checked = Instant::now();
            return Ok(connected.pool.clone());
        }
        let pool = self.connect(&url)?;
        *connected = Some(Connected { url, checked: Instant::now(), pool: pool.clone() });
        Ok(pool)
    }

    fn connect(&self, url: &str) -> anyhow::Result<Pool> {
        let mut config: tokio_postgres::Config = url.parse().context("the postgres URL can't be used")?;
        let timeout = self.spec.statement_timeout.0;
        let own = format!("-c default_transaction_read_only=on -c statement_timeout={}", timeout.as_millis());
        let options = config.get_options().map_or_else(|| own.clone(), |theirs| format!("{theirs} {own}"));
        config.options(options).connect_timeout(timeout);
        if config.get_application_name().is_none() {
            config.application_name("larder");
        }
        let manager =
            Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(usize::from(self.spec.max_connections_per_pod))
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .build()?;
        Ok(pool)
    }
}

impl PostgresError {
    fn of_query(error: tokio_postgres::Error) -> Self {
        if error.code().is_some_and(is_the_querys) {
            Self::Refused(error)
        } else {
            Self::Failed(anyhow::Error::from(error).context("the query failed"))
        }
    }
}

/// Classes of errors that another query does not have: unsupported feature, cardinality, constraints, a write in a read-only
/// transaction, functions, syntax and access rules, PL/pgSQL.
fn is_the_querys(code: &SqlState) -> bool {
    matches!(code.code().get(..2), Some("0A" | "21" | "23" | "25" | "2F" | "38" | "39" | "42" | "P0"))
}

fn is_data_exception(code: &SqlState) -> bool {
    code.code().starts_with("22")
}
