//! The tables of last known good responses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use larder_policy::PurgeName;
use tokio_postgres::{error::SqlState, types::ToSql};

use crate::sources::postgres::{PostgresError, PostgresSource};

/// Creates the tables. The second one holds the time of the last purge of each name, the empty name being everything: a
/// response that was requested before is not stored afterwards. Under the name of the policy and [`VERSIONS`], it holds
/// the time of the last purge under each version of the policy: no response that was stored under another version
/// before is loaded.
const MAKE: &str = "\
create table if not exists larder_last_known_good (policy text, id bytea, names bytea[] not null, record bytea not null, \
stored_at timestamptz not null default now(), primary key (policy, id)); \
create index if not exists larder_last_known_good_names on larder_last_known_good using gin (names); \
create table if not exists larder_last_known_good_purges (policy text, name bytea, \
purged_at timestamptz not null default clock_timestamp(), primary key (policy, name));";

const ARE_MADE: &str = "select to_regclass('larder_last_known_good') is not null \
and to_regclass('larder_last_known_good_purges') is not null";

/// Serializes concurrent creation, which fails in spite of `if not exists`.
const LOCK_MAKING: &str = "select pg_advisory_xact_lock(hashtextextended('larder_last_known_good', 0))";

/// Serializes storing and forgetting, so that each sees the other's result.
const LOCK_STORING: &str = "select pg_advisory_xact_lock_shared(hashtextextended($1, 1)), \
(extract(epoch from clock_timestamp()) * 1000000)::bigint";
const LOCK_FORGETTING: &str = "select pg_advisory_xact_lock(hashtextextended($1, 1))";

const STORE: &str = "\
insert into larder_last_known_good as known (policy, id, names, record) select $1::text, $2::bytea, $3::bytea[], $4::bytea \
where not exists (select from larder_last_known_good_purges where policy = $1 and (name = any($3) or name = '') \
and (extract(epoch from purged_at) * 1000000)::bigint >= $5) \
and not exists (select from larder_last_known_good_purges where policy = $6 and name <> $7 \
and (extract(epoch from purged_at) * 1000000)::bigint >= $5) \
on conflict (policy, id) do update set names = excluded.names, record = excluded.record, stored_at = excluded.stored_at";

const LOAD: &str = "select record from larder_last_known_good as known where policy = $1 and id = $2 \
and not exists (select from larder_last_known_good_purges where policy = $3 and name <> $4 and purged_at >= known.stored_at)";

/// Suffix of the policy's name for the list of purges by version.
const VERSIONS: &str = " versions";

const PURGE: &str = "\
insert into larder_last_known_good_purges (policy, name) select $1::text, unnest($2::bytea[]) \
on conflict (policy, name) do update set purged_at = excluded.purged_at";
const FORGET: &str = "delete from larder_last_known_good where policy = $1 and names && $2";
const FORGET_EVERYTHING: &str = "delete from larder_last_known_good where policy = $1";
/// Forgets purges after a time longer than [`MAX_AGE`].
const FORGET_OLD_PURGES: &str = "delete from larder_last_known_good_purges where policy = $1 \
and purged_at < clock_timestamp() - interval '2 hours'";

/// Maximum time from a request to storing its response.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The rows of a policy.
#[derive(Debug)]
pub(super) struct Table {
    source: Arc<PostgresSource>,
    policy: String,
    /// Name of the policy for the list of purges by version.
    versions: String,
    version: PurgeName,
    made: AtomicBool,
}

impl Table {
    pub(super) fn new(source: Arc<PostgresSource>, policy: String, version: PurgeName) -> Self {
        let versions = format!("{policy}{VERSIONS}");
        Self { source, policy, versions, version, made: AtomicBool::new(false) }
    }

    pub(super) fn is_of(&self, policy: &str, version: PurgeName) -> bool {
        self.policy == policy && self.version == version
    }

    pub(super) fn is_of_version_of(&self, other: &Self) -> bool {
        self.version == other.version
    }

    /// Creates the tables if they do not exist.
    pub(super) async fn make(&self) -> Result<(), PostgresError> {
        if self.made.load(Ordering::Acquire) {
            return Ok(());
        }
        let making = self.source.ask(async |client| {
            if client.query_one(ARE_MADE, &[]).await?.try_get(0)? {
                return Ok(());
            }
            let transaction = client.build_transaction().read_only(false).start().await?;
            transaction.batch_execute(LOCK_MAKING).await?;
            transaction.batch_execute(MAKE).await?;
            transaction.commit().await
        });
        match making.await {
            Ok(()) => {
                self.made.store(true, Ordering::Release);
                Ok(())
            }
            Err(PostgresError::Refused(_)) => Err(PostgresError::NoTable(MAKE)),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn store(
        &self,
        id: [u8; 32],
        names: &[PurgeName],
        record: Bytes,
        asked_at: Instant,
    ) -> Result<(), PostgresError> {
        let names = bytes_of(names);
        let storing = self.source.ask(async |client| {
            let (lock, store) =
                (client.prepare_cached(LOCK_STORING).await?, client.prepare_cached(STORE).await?);
            let transaction = client.build_transaction().read_only(false).start().await?;
            let now: i64 = transaction.query_one(&lock, &[&self.policy]).await?.try_get(1)?;
            // Both clocks were read after the request, ours last: by Postgres' clock, this is not later than the
            // request.
            let age = asked_at.elapsed();
            if age < MAX_AGE {
                let asked_at = now - i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
                let version = &self.version.as_bytes()[..];
                let row: [&(dyn ToSql + Sync); 7] =
                    [&self.policy, &&id[..], &names, &&record[..], &asked_at, &self.versions, &version];
                transaction.execute(&store, &row).await?;
            }
            transaction.commit().await
        });
        self.noticing(storing.await)
    }

    pub(super) async fn load(&self, id: [u8; 32]) -> Result<Option<Bytes>, PostgresError> {
        let loading = self.source.ask(async |client| {
            let load = client.prepare_cached(LOAD).await?;
            let version = &self.version.as_bytes()[..];
            let row = client.query_opt(&load, &[&self.policy, &&id[..], &self.versions, &version]).await?;
            row.map(|row| row.try_get(0).map(Bytes::copy_from_slice)).transpose()
        });
        self.noticing(loading.await)
    }

    /// Forgets the responses with one of these names; without names, all.
    pub(super) async fn forget(&self, names: Option<&[PurgeName]>) -> Result<(), PostgresError> {
        let purged = names.map_or_else(|| vec![&[][..]], bytes_of);
        let forgetting = self.source.ask(async |client| {
            let transaction = client.build_transaction().read_only(false).start().await?;
            transaction.execute(LOCK_FORGETTING, &[&self.policy]).await?;
            transaction.execute(FORGET_OLD_PURGES, &[&self.policy]).await?;
            transaction.execute(PURGE, &[&self.policy, &purged]).await?;
            transaction.execute(PURGE, &[&self.versions, &vec![&self.version.as_bytes()[..]]]).await?;
            match names {
                Some(_) => transaction.execute(FORGET, &[&self.policy, &purged]).await?,
                None => transaction.execute(FORGET_EVERYTHING, &[&self.policy]).await?,
            };
            transaction.commit().await
        });
        self.noticing(forgetting.await)
    }

    /// Notices dropped tables, which are created again next time.
    fn noticing<T>(&self, outcome: Result<T, PostgresError>) -> Result<T, PostgresError> {
        if let Err(PostgresError::Refused(error)) = &outcome
            && error.code() == Some(&SqlState::UNDEFINED_TABLE)
        {
            self.made.store(false, Ordering::Release);
        }
        outcome
    }
}

fn bytes_of(names: &[PurgeName]) -> Vec<&[u8]> {
    names.iter().map(|name| &name.as_bytes()[..]).collect()
}
