//! A source that reads from Postgres.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use deadpool_postgres::{Object, PoolError};
use larder_policy::{Values, spec, sql::BoundQuery};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_postgres::{error::SqlState, types::ToSql};
use tokio_util::task::AbortOnDropHandle;

mod guarded;
pub mod pgoutput;
mod pools;
pub mod publication;
pub mod replication;
pub mod session;
mod url;

use self::{pools::Pools, replication::Replication, session::Session};
use super::blames_certificate;
use crate::{breaker::Breaker, resolver::Resolver};

/// Interval for reading the URL and the CA again, because a Secret's file may change.
const URL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of probes, which show the state of a source even without requests.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// A Postgres server that routes read from. Queries are read-only, and every statement has a deadline.
#[derive(Debug)]
pub struct PostgresSource {
    server: Arc<Server>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Server {
    spec: spec::Postgres,
    pools: Pools,
    /// Permits for connections, shared by a pool and its successor.
    slots: Semaphore,
    breaker: Breaker,
    /// True if the last statement or probe succeeded.
    answers: AtomicBool,
}

/// Failure of a request to Postgres.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The breaker is open.
    #[error("postgres failed repeatedly; queries to it are paused")]
    Down,
    /// All connections were in use for more than half of the timeout. That does not count as a failure of the server,
    /// because the statements on these connections show its state.
    #[error("all {0} connections to postgres were in use for too long: raise maxConnectionsPerPod")]
    Busy(u16),
    /// No connection or no result in time.
    #[error("postgres did not respond within {0:?}")]
    Deadline(Duration),
    /// The statement was rejected: the server works for others.
    #[error("postgres rejected the statement: {}", reason(.0))]
    Refused(tokio_postgres::Error),
    /// The tables of last known good responses are missing, and the user may not create them.
    #[error(
        "postgres lacks the tables for lastKnownGood and its user may not create them: run `{0}` and grant that user select, insert, update and delete on them"
    )]
    NoTable(&'static str),
    /// Postgres does not know all purges, and can't be informed.
    #[error("lastKnownGood is not used until postgres has all purges")]
    UnsentPurges,
    /// Postgres can't be reached, or broke the connection.
    #[error("postgres: {0:#}")]
    Failed(#[from] anyhow::Error),
}

impl PostgresSource {
    /// Starts a source, and connects in the background to learn its state.
    pub fn start(spec: spec::Postgres) -> Self {
        Self::start_within(spec, Resolver::default())
    }

    /// Starts a source that connects to the addresses which a resolver allows.
    pub fn start_within(spec: spec::Postgres, resolver: Resolver) -> Self {
        let server = Arc::new(Server {
            pools: Pools::new(&spec, resolver),
            slots: Semaphore::new(usize::from(spec.max_connections_per_pod)),
            spec,
            breaker: Breaker::default(),
            answers: AtomicBool::new(false),
        });
        let watch = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&server).watch()));
        Self { server, _watch: watch }
    }

    /// Returns the spec that it was started from.
    pub fn spec(&self) -> &spec::Postgres {
        &self.server.spec
    }

    /// Returns true if the last statement or probe succeeded and the breaker is closed.
    pub fn is_up(&self) -> bool {
        self.server.answers.load(Ordering::Relaxed) && self.server.breaker.is_closed()
    }

    /// Returns the reason why connections are refused here, or the error in the current URL or CA; the last good ones are used meanwhile. Never
    /// contains the password.
    pub fn last_error(&self) -> Option<String> {
        self.server.pools.last_error()
    }

    /// Opens a connection to the primary besides those of the pool, for work that goes on.
    ///
    /// # Errors
    /// If there is none within the statement's deadline.
    pub async fn session(&self) -> anyhow::Result<Session> {
        let limit = self.server.spec.statement_timeout.0;
        let opened = timeout(limit, async { Session::open(self.server.pools.primary().await?).await });
        opened.await.with_context(|| PostgresError::Deadline(limit))?
    }

    /// Opens a connection to the primary that replicates.
    ///
    /// # Errors
    /// If there is none within the statement's deadline.
    pub async fn replication(&self) -> anyhow::Result<Replication> {
        Replication::open(self.server.pools.primary().await?).await
    }

    /// Returns true if a session has the URL and the CA that are in use.
    pub fn is_current(&self, session: &Session) -> bool {
        self.server.pools.uses(session.secrets())
    }

    /// Runs a query: one row is returned as a JSON object, several as an array; no row, or a parameter that the query
    /// can't cast, is `None`.
    ///
    /// # Errors
    /// If Postgres can't be reached, is too slow, or rejects the query.
    pub async fn fetch(
        &self,
        query: &BoundQuery,
        values: &Values<'_>,
    ) -> Result<Option<Bytes>, PostgresError> {
        self.ask(async |client| {
            let statement = client.prepare_cached(&query.statement).await?;
            let bound = query.bind(values);
            let bound: Vec<_> = bound.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
            let rows = match client.query(&statement, &bound).await {
                Ok(rows) => rows,
                // A value that the query can't cast identifies no row.
                Err(error) if error.code().is_some_and(is_data_exception) => return Ok(None),
                Err(error) => return Err(error),
            };
            let texts = rows.iter().map(|row| row.try_get::<_, &str>(0)).collect::<Result<Vec<_>, _>>()?;
            Ok(match texts.as_slice() {
                [] => None,
                [one] => Some(Bytes::copy_from_slice(one.as_bytes())),
                several => Some(Bytes::from(format!("[{}]", several.join(",")))),
            })
        })
        .await
    }

    /// Runs a statement that may write, in its own transaction, and returns the number of affected rows.
    ///
    /// # Errors
    /// If Postgres can't be reached, is too slow, or rejects the statement or a value. Nothing was written then, except
    /// that after [`PostgresError::Deadline`] and [`PostgresError::Failed`] the outcome is unknown.
    pub async fn execute(&self, statement: &BoundQuery, values: &Values<'_>) -> Result<u64, PostgresError> {
        self.ask(async |client| {
            let prepared = client.prepare_cached(&statement.statement).await?;
            let bound = statement.bind(values);
            let bound: Vec<_> = bound.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
            let transaction = client.build_transaction().read_only(false).start().await?;
            let touched = transaction.execute(&prepared, &bound).await?;
            transaction.commit().await?;
            Ok(touched)
        })
        .await
    }

    /// Runs work on a connection within the statement's deadline, which includes the wait for the connection.
    pub(super) async fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, PostgresError> {
        let server = &self.server;
        if !server.breaker.allows() {
            return Err(PostgresError::Down);
        }
        let outcome = server.ask(work).await;
        match &outcome {
            Ok(_) | Err(PostgresError::Refused(_)) => server.breaker.succeeded(),
            Err(PostgresError::Busy(_)) => {}
            Err(_) => server.breaker.failed(),
        }
        outcome
    }
}

impl Server {
    async fn watch(self: Arc<Self>) {
        let mut ticks = interval(URL_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probed: Option<Instant> = None;
        loop {
            ticks.tick().await;
            self.pools.renew().await;
            if probed.is_none_or(|probed| probed.elapsed() >= PROBE_INTERVAL) {
                probed = Some(Instant::now());
                self.pools.close_idle();
                if let Err(error) = self.ask(async |client| client.simple_query("").await).await {
                    tracing::debug!(%error, "postgres does not respond");
                }
            }
        }
    }

    async fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, PostgresError> {
        let limit = self.spec.statement_timeout.0;
        let started = Instant::now();
        let deadline = started + limit;
        let busy = PostgresError::Busy(self.spec.max_connections_per_pod);
        let slot = match timeout_at(deadline, self.slots.acquire()).await {
            Ok(slot) => slot.context("the connections are closed")?,
            Err(_) => return Err(busy),
        };
        let waited = started.elapsed();
        let asked = async {
            let mut pooled = PooledClient::begin(&self.pools, slot).await?;
            let outcome = work(pooled.client()).await;
            pooled.hand_back();
            outcome.map_err(|error| PostgresError::of_statement(error, limit))
        };
        let outcome = match timeout_at(deadline, asked).await {
            Ok(outcome) => outcome,
            Err(_) if waited > limit / 2 => return Err(busy),
            Err(_) => Err(PostgresError::Deadline(limit)),
        };
        self.answers.store(matches!(outcome, Ok(_) | Err(PostgresError::Refused(_))), Ordering::Relaxed);
        outcome
    }
}

/// A connection in use. It is closed unless it is handed back, because a statement may still run on it, for which the
/// next one would wait.
struct PooledClient<'a> {
    client: Option<Object>,
    _slot: SemaphorePermit<'a>,
}

impl<'a> PooledClient<'a> {
    async fn begin(pools: &Pools, slot: SemaphorePermit<'a>) -> Result<Self, PostgresError> {
        let client = pools.current()?.get().await.map_err(PostgresError::of_connecting)?;
        Ok(Self { client: Some(client), _slot: slot })
    }

    fn client(&mut self) -> &mut Object {
        self.client.as_mut().expect("the client is taken only when the connection is returned")
    }

    fn hand_back(mut self) {
        drop(self.client.take());
    }
}

impl Drop for PooledClient<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            drop(Object::take(client));
        }
    }
}

impl PostgresError {
    fn of_connecting(error: PoolError) -> Self {
        let blames_certificate = blames_certificate(&error);
        let error = match error {
            PoolError::Backend(error) => anyhow::Error::from(error),
            error => error.into(),
        };
        Self::Failed(error.context(no_connection(blames_certificate)))
    }

    fn of_statement(error: tokio_postgres::Error, limit: Duration) -> Self {
        match error.code() {
            // Postgres has the same deadline, and may notice it first.
            Some(&SqlState::QUERY_CANCELED) => Self::Deadline(limit),
            Some(code) if is_the_statements(code) => Self::Refused(error),
            _ => Self::Failed(anyhow::Error::from(error).context("the statement failed")),
        }
    }
}

/// Returns what stands before the reason that there is no connection.
const fn no_connection(blames_certificate: bool) -> &'static str {
    if blames_certificate {
        "no connection; name the CA of its certificate in caFrom, or write sslmode=disable"
    } else {
        "no connection"
    }
}

/// Returns the message from Postgres without its details, which may contain data of rows; the error's own text is only
/// "db error".
fn reason(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |error| format!("{}: {} ({})", error.severity(), error.message(), error.code().code()),
    )
}

/// Returns true for error classes that concern only the statement: unsupported feature, cardinality, data, constraints,
/// a write in a read-only transaction, functions, missing schemas, concurrent changes, syntax and access rules,
/// PL/pgSQL.
fn is_the_statements(code: &SqlState) -> bool {
    let class = code.code().get(..2);
    matches!(class, Some("0A" | "21" | "22" | "23" | "25" | "2F" | "38" | "39" | "3F" | "40" | "42" | "P0"))
}

/// Returns true for class 22.
fn is_data_exception(code: &SqlState) -> bool {
    code.code().starts_with("22")
}
