//! A connection to Postgres that goes on: it listens, holds locks, and shows what others see.
//!
//! # Guarantees
//! - A notification that was received is never dropped silently: if more come than can wait, the session ends, with [`Overflow`].
//! - What came before the session ended can still be had.
//! - The server ends the session, and with it its locks, some seconds after it last heard of this process ([`BOUNDS`]).

use std::{future::poll_fn, time::Duration};

use anyhow::{Context, anyhow, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{self, OwnedPermit},
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

/// Sets the time after which the server takes a client for dead, as far as the server's version knows these settings: idle sessions for a
/// process that is frozen or cut off, the others for a host that is gone while the server sends or is silent.
pub(super) const BOUNDS: &str = "select set_config(name, bound, false) from pg_settings join (values
  ('idle_session_timeout', '5s'), ('tcp_user_timeout', '5s'),
  ('tcp_keepalives_idle', '2s'), ('tcp_keepalives_interval', '1s'), ('tcp_keepalives_count', '3')
) as bounds (name, bound) using (name)";

/// The holder of a lock with a key of 64 bits, unless it has this session's role and name. Both are shown to every role.
const STRANGER: &str = "
select format('process %s of role %s, named %L', other.pid, other.usename, other.application_name)
from pg_stat_activity as own, pg_locks as lock join pg_stat_activity as other using (pid)
where own.pid = pg_backend_pid() and lock.granted and lock.locktype = 'advisory' and lock.objsubid = 1
and lock.database = own.datid and lock.classid = (($1::bigint >> 32) & 4294967295)::oid
and lock.objid = ($1::bigint & 4294967295)::oid
and (other.usesysid, other.application_name) is distinct from (own.usesysid, own.application_name)";

/// A connection to the primary. It must be used each second ([`BOUNDS`]).
#[derive(Debug)]
pub struct Session {
    client: Client,
    inbox: Inbox,
    secrets: Secrets,
    limit: Duration,
    _connection: AbortOnDropHandle<()>,
}

impl Session {
    /// Connects.
    pub(super) async fn open(primary: Primary) -> anyhow::Result<Self> {
        let Primary { secrets, config, tls } = primary;
        let limit = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(2));
        let (sender, inbox) = inbox();
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
        let session = Self { client, inbox, secrets, limit, _connection: connection };
        session.within(session.client.batch_execute(BOUNDS)).await?;
        Ok(session)
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

    /// Returns a description of the session that holds a lock, if it is of another role, or has another name, than this one: a pod of the
    /// same policy has neither.
    ///
    /// # Errors
    /// If the session ends or is too slow.
    pub async fn stranger_with(&self, key: i64) -> anyhow::Result<Option<String>> {
        let rows = self.query(STRANGER, &[&key]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
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
        self.inbox.next().await
    }

    /// Returns the payloads of notifications that have come, without waiting; none if there are no more.
    ///
    /// # Errors
    /// As those of [`Self::next`].
    pub fn arrived(&mut self) -> anyhow::Result<Vec<String>> {
        self.inbox.arrived()
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

/// More notifications came than could be handled.
#[derive(Debug, thiserror::Error)]
#[error("more notifications came than could be handled")]
pub struct Overflow;

/// Payloads that were received, and the reason that no more follow.
#[derive(Debug)]
struct Inbox {
    received: mpsc::Receiver<anyhow::Result<String>>,
    /// The reason, until it was told.
    end: Option<anyhow::Error>,
}

/// The other end of an [`Inbox`].
#[derive(Debug)]
struct Outbox {
    payloads: mpsc::Sender<anyhow::Result<String>>,
    /// Room for the last word, however many payloads wait.
    end: OwnedPermit<anyhow::Result<String>>,
}

fn inbox() -> (Outbox, Inbox) {
    let (payloads, received) = mpsc::channel(MAX_WAITING + 1);
    let end = payloads.clone().try_reserve_owned().expect("a new channel has room");
    (Outbox { payloads, end }, Inbox { received, end: None })
}

impl Inbox {
    async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        let mut received = Vec::new();
        if self.end.is_none() && self.received.recv_many(&mut received, MAX_TOGETHER).await == 0 {
            bail!("postgres closed the connection");
        }
        self.payloads(received)
    }

    fn arrived(&mut self) -> anyhow::Result<Vec<String>> {
        let received = std::iter::from_fn(|| self.received.try_recv().ok()).take(MAX_TOGETHER).collect();
        self.payloads(received)
    }

    /// Returns payloads before the reason that no more follow.
    fn payloads(&mut self, received: Vec<anyhow::Result<String>>) -> anyhow::Result<Vec<String>> {
        let mut payloads = Vec::with_capacity(received.len());
        for one in received {
            match one {
                Ok(payload) => payloads.push(payload),
                Err(error) => self.end = Some(error),
            }
        }
        if payloads.is_empty() { self.end.take().map_or(Ok(payloads), Err) } else { Ok(payloads) }
    }
}

/// Drives a connection, and passes on what it is notified of.
fn spawn<S, T>(mut connection: Connection<S, T>, outbox: Outbox) -> AbortOnDropHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        let Outbox { payloads, end } = outbox;
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notification(notification)) => {
                    if payloads.try_send(Ok(notification.payload().to_owned())).is_err() {
                        end.send(Err(Overflow.into()));
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let error = if error.code().is_some() { anyhow!(reason(&error)) } else { error.into() };
                    end.send(Err(error));
                    return;
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn payloads_come_before_the_reason_that_no_more_follow() {
        let (outbox, mut inbox) = inbox();
        for payload in ["a", "b"] {
            outbox.payloads.try_send(Ok(payload.to_owned())).unwrap();
        }
        outbox.end.send(Err(anyhow!("the end")));
        drop(outbox.payloads);
        assert_eq!(inbox.next().await.unwrap(), ["a", "b"]);
        assert_eq!(inbox.next().await.unwrap_err().to_string(), "the end");
        assert_eq!(inbox.next().await.unwrap_err().to_string(), "postgres closed the connection");
        assert!(inbox.arrived().unwrap().is_empty());
    }

    #[test]
    fn overflow_is_told_behind_all_payloads() {
        let (outbox, mut inbox) = inbox();
        let mut sent = 0;
        while outbox.payloads.try_send(Ok(sent.to_string())).is_ok() {
            sent += 1;
        }
        outbox.end.send(Err(Overflow.into()));
        assert_eq!(sent, MAX_WAITING);
        let mut got = 0;
        let error = loop {
            match inbox.arrived() {
                Ok(payloads) => got += payloads.len(),
                Err(error) => break error,
            }
        };
        assert!(error.is::<Overflow>() && got == sent);
    }
}
