//! A connection to Postgres that goes on: it listens, holds locks, and shows what others see.
//!
//! # Guarantees
//! - A notification that was received and is not in [`Session::next`] yet is never dropped silently: the session ends instead.

use std::{future::poll_fn, time::Duration};

use anyhow::{Context, anyhow, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{self, error::TrySendError},
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Row, error::SqlState, types::ToSql};
use tokio_util::task::AbortOnDropHandle;

use super::{blames_certificate, no_connection, pools::Primary, reason};
use crate::secret::Secrets;

/// Maximum number of notifications that wait.
const MAX_WAITING: usize = 10_000;

/// Maximum number of notifications that are handled together.
const MAX_TOGETHER: usize = 256;

/// A connection to the primary.
#[derive(Debug)]
pub struct Session {
    client: Client,
    payloads: mpsc::Receiver<anyhow::Result<String>>,
    secrets: Secrets,
    limit: Duration,
    _connection: AbortOnDropHandle<()>,
}

impl Session {
    /// Connects.
    pub(super) async fn open(primary: Primary) -> anyhow::Result<Self> {
        let Primary { secrets, config, tls } = primary;
        let limit = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(2));
        let (sender, payloads) = mpsc::channel(MAX_WAITING);
        let opened = match tls {
            None => {
                config.connect(NoTls).await.map(|(client, connection)| (client, spawn(connection, sender)))
            }
            Some(tls) => {
                config.connect(tls).await.map(|(client, connection)| (client, spawn(connection, sender)))
            }
        };
        let (client, connection) = opened.map_err(|error| {
            let context = no_connection(blames_certificate(&error));
            match error.as_db_error() {
                Some(_) => anyhow!(reason(&error)),
                None => anyhow::Error::from(error),
            }
            .context(context)
        })?;
        Ok(Self { client, payloads, secrets, limit, _connection: connection })
    }

    pub(super) const fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Listens on a channel.
    ///
    /// # Errors
    /// If the session ends or is too slow.
    pub async fn listen(&self, channel: &str) -> anyhow::Result<()> {
        let statement = format!("listen \"{}\"", channel.replace('"', "\"\""));
        self.within(self.client.batch_execute(&statement)).await
    }

    /// Takes a lock that ends with the session, unless another session holds it.
    ///
    /// # Errors
    /// If the session ends or is too slow.
    pub async fn try_lock(&self, key: i64) -> anyhow::Result<bool> {
        let row = self.query("select pg_try_advisory_lock($1)", &[&key]).await?;
        Ok(row.first().context("a function returned no row")?.try_get(0)?)
    }

    /// Runs a query.
    ///
    /// # Errors
    /// If the session ends, is too slow, or rejects the query.
    pub async fn query(&self, query: &str, values: &[&(dyn ToSql + Sync)]) -> anyhow::Result<Vec<Row>> {
        self.within(self.client.query(query, values)).await
    }

    /// Checks that the server responds.
    ///
    /// # Errors
    /// If it does not.
    pub async fn probe(&self) -> anyhow::Result<()> {
        self.within(self.client.batch_execute("")).await
    }

    /// Waits for notifications, and returns the payloads of those that have come.
    ///
    /// # Errors
    /// If the session has ended, or if more came than could be handled.
    pub async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        let mut received = Vec::new();
        if self.payloads.recv_many(&mut received, MAX_TOGETHER).await == 0 {
            bail!("postgres closed the connection");
        }
        received.into_iter().collect()
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> anyhow::Result<T> {
        let done = timeout(self.limit, work).await;
        let done = done.with_context(|| format!("postgres did not respond within {:?}", self.limit))?;
        done.map_err(|error| match error.code() {
            Some(&SqlState::QUERY_CANCELED) => anyhow!("postgres did not respond within {:?}", self.limit),
            Some(_) => anyhow!(reason(&error)),
            None => error.into(),
        })
    }
}

/// Drives a connection, and passes on what it is notified of.
fn spawn<S, T>(
    mut connection: Connection<S, T>,
    sender: mpsc::Sender<anyhow::Result<String>>,
) -> AbortOnDropHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            let passed_on = match message {
                Ok(AsyncMessage::Notification(notification)) => {
                    sender.try_send(Ok(notification.payload().to_owned()))
                }
                Ok(_) => Ok(()),
                Err(error) => {
                    let error = if error.code().is_some() { anyhow!(reason(&error)) } else { error.into() };
                    sender.try_send(Err(error))
                }
            };
            if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = passed_on {
                return;
            }
        }
    }))
}
