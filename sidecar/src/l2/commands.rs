//! Commands and scripts for Redis.
//!
//! One hash per policy holds the barriers: `g`, the generation ([`super::generation`]); `s`, the number of the last purge;
//! `f`, the last purge that covers everything; `v`, the versions of the policy that pods serve by ([`super::versions`]), each
//! as `<name in hex>=<when one was seen last, in seconds>`; `p`, purges that were passed on from another Redis of late, each as
//! ` <generation there>:<number there>=<number here>`; and under each purged name of 16 bytes the number of its last purge.
//! Losing any of it means losing the generation with it.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::try_join;
use larder_policy::PurgeName;
use redis::{InfoDict, Pipeline, RedisResult, Script};
use tokio::time::{Instant, timeout, timeout_at};

use self::{
    listing::is_in_list,
    purging::{KEEP_BARRIERS, PURGE},
};
use super::{
    connection::{CONNECT_DEADLINE, Connection},
    message::PROBE,
    thread_connection::{Expected, header, late, word},
};
use crate::{barriers::RedisBarriers, entry::codec};

mod listing;
mod purging;

pub(super) use listing::list;
pub(super) use purging::{PurgeCommand, have_all_left, left_channel, purge, purge_everything};

/// Where Redis stands, and what is stored under a key.
pub(super) struct LookupReply {
    pub(super) generation: u64,
    pub(super) order: u64,
    /// The last purge of any of the names, or of everything.
    pub(super) barrier: u64,
    /// The last purge of all that was stored under the version of the policy: by pods of another, or before the version was listed.
    pub(super) version: u64,
    /// The last purge of those that none of the names may tell of: of a prefix of paths, or a soft one.
    pub(super) indirect: u64,
    /// The version of the policy is in the list of those that pods serve by, and there is a generation to count in. Otherwise nothing
    /// in the reply is of use.
    pub(super) is_listed: bool,
    pub(super) record: RecordStart,
}

impl LookupReply {
    /// The last purge that covers what bears the names and was stored under the version.
    pub(super) fn covering(&self) -> u64 {
        self.barrier.max(self.version)
    }
}

/// Length of the part of a record that a lookup transfers, in bytes. Most records are shorter.
pub(super) const MAX_BEGINNING: usize = 64 << 10;
/// Places of its first and last byte.
const BEGINNING: [&[u8]; 2] = [b"0", b"65535"];

/// The beginning of a record; nothing, if there is no record.
#[derive(Default)]
pub(super) struct RecordStart {
    pub(super) bytes: Bytes,
}

impl RecordStart {
    /// Returns true if this is all of the record.
    pub(super) const fn is_whole(&self) -> bool {
        self.bytes.len() < MAX_BEGINNING
    }
}

/// Fields of the barriers that a lookup asks for, before those of the version and of names.
const POSITION: [&[u8]; 6] =
    [b"v", b"g", b"s", b"f", PurgeName::ANY_PREFIX.as_bytes(), PurgeName::ANY_SOFT.as_bytes()];

/// Where Redis stands, as the fields of the barriers say one after another.
#[derive(Default)]
pub(super) struct Position {
    /// Number of fields so far.
    count: usize,
    generation: u64,
    order: u64,
    barrier: u64,
    version: u64,
    indirect: u64,
    is_listed: bool,
}

impl Position {
    /// Takes the next field.
    pub(super) fn take(&mut self, field: Option<&[u8]>, version: PurgeName) {
        // A field that is no number was not written by a sidecar, and is taken to cover everything.
        let number = |field: &[u8]| number(field).unwrap_or(u64::MAX);
        match (self.count, field) {
            (_, None) => {}
            (0, Some(listed)) => self.is_listed = is_in_list(listed, version),
            (1, Some(generation)) => self.generation = number(generation),
            (2, Some(order)) => self.order = number(order),
            (4 | 5, Some(barrier)) => self.indirect = self.indirect.max(number(barrier)),
            (6, Some(barrier)) => self.version = number(barrier),
            (_, Some(barrier)) => self.barrier = self.barrier.max(number(barrier)),
        }
        self.count += 1;
    }

    /// The reply that this and a record are.
    pub(super) const fn with(self, record: RecordStart) -> LookupReply {
        let Self { generation, order, barrier, version, indirect, is_listed, .. } = self;
        let is_listed = is_listed && generation != 0;
        LookupReply { generation, order, barrier, version, indirect, is_listed, record }
    }
}

/// Question to the barriers in every lookup under one version of a policy.
#[derive(Debug)]
pub(super) struct Question {
    barriers: String,
    version: PurgeName,
    /// Words as they are written: those of the command, and the fields before those of names.
    words: Vec<u8>,
}

impl Question {
    /// Number of the words.
    const WORDS: usize = 3 + POSITION.len();

    /// The question to the barriers under this key.
    pub(super) fn new(barriers: &str, version: PurgeName) -> Self {
        let mut words = Vec::new();
        let fields = POSITION.into_iter().chain([&version.as_bytes()[..]]);
        [b"HMGET", barriers.as_bytes()].into_iter().chain(fields).for_each(|each| word(&mut words, each));
        Self { barriers: barriers.to_owned(), version, words }
    }
}

/// Asks where Redis stands, and for the beginning of the record under a key: two commands, and neither writes.
///
/// Barriers without a generation say nothing about what is stored: they were lost, and the purges with them. Whoever writes next,
/// the heartbeat or [`list`], begins a generation; until then the version counts as not listed.
pub(super) async fn lookup(
    connection: &Connection,
    deadline: Instant,
    question: &Question,
    names: &[PurgeName],
    record: Option<&str>,
) -> RedisResult<LookupReply> {
    if let Some(own) = connection.of_this_thread() {
        let expected = Expected { version: Some(question.version), record: record.is_some() };
        return own.ask(expected, deadline, |out| write_lookup(out, question, names, record)).await;
    }
    in_time(deadline, lookup_shared(connection.clone(), question, names, record)).await
}

/// Asks over the connection that all threads share.
async fn lookup_shared(
    mut connection: Connection,
    Question { barriers, version, .. }: &Question,
    names: &[PurgeName],
    record: Option<&str>,
) -> RedisResult<LookupReply> {
    let mut fields: Vec<&[u8]> = Vec::with_capacity(POSITION.len() + 1 + names.len());
    fields.extend(POSITION);
    fields.extend([version].into_iter().chain(names).map(|name| &name.as_bytes()[..]));
    let mut pipeline = redis::pipe();
    pipeline.cmd("HMGET").arg(barriers).arg(&fields);
    let (fields, bytes): (Vec<Option<Bytes>>, Bytes) = match (connection.both(), record) {
        ((counting, _), None) => {
            let (fields,) = pipeline.query_async(counting).await?;
            (fields, Bytes::new())
        }
        ((counting, None), Some(key)) => {
            ask_for_beginning(&mut pipeline, key);
            pipeline.query_async(counting).await?
        }
        // Two servers at the same time. Whichever answers first, both were asked after the request came: a purge that was
        // acknowledged before is among the barriers.
        ((counting, Some(cluster)), Some(key)) => {
            let mut get = redis::pipe();
            ask_for_beginning(&mut get, key);
            let ((fields,), (bytes,)) = try_join!(pipeline.query_async(counting), get.query_async(cluster))?;
            (fields, bytes)
        }
    };
    let mut position = Position::default();
    fields.iter().for_each(|field| position.take(field.as_deref(), *version));
    Ok(position.with(RecordStart { bytes }))
}

/// Writes the commands of a lookup.
pub(super) fn write_lookup(
    out: &mut Vec<u8>,
    question: &Question,
    names: &[PurgeName],
    record: Option<&str>,
) {
    header(out, b'*', Question::WORDS + names.len());
    out.extend_from_slice(&question.words);
    for name in names {
        // A word of 16 bytes, in one piece.
        let mut word = *b"$16\r\n................\r\n";
        word[5..21].copy_from_slice(name.as_bytes());
        out.extend_from_slice(&word);
    }
    if let Some(key) = record {
        write_beginning(out, key);
    }
}

fn write_beginning(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b"*4\r\n$8\r\nGETRANGE\r\n");
    word(out, key.as_bytes());
    out.extend_from_slice(b"$1\r\n0\r\n$5\r\n65535\r\n");
}

fn number(text: &[u8]) -> Option<u64> {
    let (first, others) = text.split_first()?;
    let digit = |byte: &u8| Some(byte.wrapping_sub(b'0')).filter(|digit| *digit < 10).map(u64::from);
    others.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

/// Writes as a purge would, and says whether the barriers or the version were lost, and what the server is now. Sends a probe after it, which
/// comes back over the bus behind all that was published at this server before.
///
/// A Redis that answers but takes no writes, out of memory or a replica after a failover, refuses this too.
pub(super) async fn touch(
    connection: &mut Connection,
    barriers: &str,
    own_channel: &str,
    version: PurgeName,
    probe: u64,
) -> RedisResult<HeartbeatReply> {
    let mut pipeline = redis::pipe();
    pipeline.hset_nx(barriers, "g", connection.mark().new_generation());
    pipeline.hget(barriers, "v");
    pipeline.cmd("INFO").arg("replication");
    pipeline.publish(own_channel, [PROBE, probe.to_string().as_bytes()].concat()).ignore();
    let (is_lost, listed, info): (bool, Option<Bytes>, InfoDict) =
        pipeline.query_async(connection.counting()).await?;
    Ok(HeartbeatReply { is_lost, is_listed: listed.is_some_and(|listed| is_in_list(&listed, version)), info })
}

/// Response of a server to a heartbeat.
pub(super) struct HeartbeatReply {
    /// The barriers were lost.
    pub(super) is_lost: bool,
    /// The version of the policy is in the list of those that pods serve by.
    pub(super) is_listed: bool,
    /// Properties of the server.
    pub(super) info: InfoDict,
}

/// The beginning of the record under a key.
pub(super) async fn begin(connection: &Connection, deadline: Instant, key: &str) -> RedisResult<RecordStart> {
    if let Some(own) = connection.of_this_thread() {
        let expected = Expected { version: None, record: true };
        return Ok(own.ask(expected, deadline, |out| write_beginning(out, key)).await?.record);
    }
    let mut pipeline = redis::pipe();
    ask_for_beginning(&mut pipeline, key);
    let (bytes,) = in_time(deadline, pipeline.query_async(&mut connection.clone())).await?;
    Ok(RecordStart { bytes })
}

/// Waits for a reply until a deadline.
///
/// # Errors
/// If the time is over ([`redis::RedisError::is_timeout`]), or the work fails.
pub(super) async fn in_time<T>(
    deadline: Instant,
    work: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(late()))
}

/// A key that is not there has an empty value.
fn ask_for_beginning(pipeline: &mut Pipeline, key: &str) {
    pipeline.cmd("GETRANGE").arg(key).arg(&BEGINNING);
}

/// The length of the record under a key, in bytes.
pub(super) async fn length(connection: &Connection, key: &str) -> RedisResult<u64> {
    redis::cmd("STRLEN").arg(key).query_async(&mut connection.clone()).await
}

/// Length of the pieces in which the rest of a record is transferred, in bytes. The client's buffers grow to twice the largest reply,
/// and stay so.
const PIECE: u64 = 512 << 10;

/// Memory that the transfer of a record takes besides the record: a reply and the client's buffer.
pub(super) const TRANSFER: u64 = 3 * PIECE;

/// The whole of a record of this length that begins so; `None` if another record has taken its place meanwhile.
pub(super) async fn complete(
    connection: &Connection,
    key: &str,
    RecordStart { bytes: start }: RecordStart,
    length: u64,
) -> RedisResult<Option<Bytes>> {
    let mut connection = connection.clone();
    let mut record = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
    record.extend_from_slice(&start);
    loop {
        let first = record.len() as u64;
        let mut pipeline = redis::pipe();
        pipeline.cmd("GETRANGE").arg(key).arg(first).arg(first + PIECE - 1);
        // After the piece: it belongs to the record that is there then.
        pipeline.cmd("GETRANGE").arg(key).arg(0).arg(codec::IDENTITY - 1).cmd("STRLEN").arg(key);
        let (piece, identity, length_now): (Bytes, Bytes, u64) =
            pipeline.query_async(&mut connection).await?;
        let is_short = piece.is_empty() && first < length;
        if !start.starts_with(&identity) || length_now != length || is_short {
            return Ok(None);
        }
        record.extend_from_slice(&piece);
        if record.len() as u64 >= length {
            return Ok(Some(record.freeze()));
        }
    }
}

/// A record to be written.
pub(super) struct NewRecord {
    pub(super) key: String,
    pub(super) bytes: Bytes,
    /// True if a record that is under the key already stays, for as long as it would.
    pub(super) yields: bool,
}

pub(super) async fn store(
    connection: &mut Connection,
    records: &[NewRecord],
    keep: Duration,
) -> RedisResult<()> {
    let mut pipeline = redis::pipe();
    for NewRecord { key, bytes, yields } in records {
        pipeline.cmd("SET").arg(key).arg(&bytes[..]).arg("PX").arg(milliseconds(keep));
        if *yields {
            pipeline.arg("NX");
        }
        pipeline.ignore();
    }
    pipeline.query_async(connection).await
}

/// Loads the scripts, so that each takes a single round trip from the first time on. Those of leases come in the background: they
/// go to all servers of a Cluster, and one that is lost must not keep the others from use.
pub(super) async fn prepare(connection: &mut Connection) -> RedisResult<()> {
    PURGE.prepare_invoke().load_async(connection.counting()).await?;
    let mut connection = connection.clone();
    tokio::spawn(timeout(CONNECT_DEADLINE, async move {
        for script in [&LEASE, &RENEW, &RELEASE] {
            // One that is not there is loaded where it is called.
            let _ = script.prepare_invoke().load_async(&mut connection).await;
        }
    }));
    Ok(())
}

/// Reply to a request for a lease.
pub(super) enum LeaseReply {
    /// Granted to this pod.
    Granted { is_stored: bool },
    /// Another has it, for so much longer.
    Held { left: Duration },
}

/// Takes a lease, or notes that somebody waits for it. One that no pod can have taken, since it does not end in time, is taken over.
/// KEYS: lease, those who wait, entry. ARGV: token, milliseconds.
static LEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
          return {1, redis.call('EXISTS', KEYS[3])}
        end
        local left = redis.call('PTTL', KEYS[1])
        if left < 0 or left > tonumber(ARGV[2]) then
          redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
          return {1, redis.call('EXISTS', KEYS[3])}
        end
        redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
        return {0, left}
        ",
    )
});

pub(super) async fn lease(
    connection: &mut Connection,
    keys: &[String; 2],
    entry: &str,
    token: u64,
    term: Duration,
) -> RedisResult<LeaseReply> {
    let mut call = LEASE.prepare_invoke();
    call.key(&keys[..]).key(entry).arg(token).arg(milliseconds(term));
    let (granted, number): (bool, i64) = call.invoke_async(connection).await?;
    Ok(if granted {
        LeaseReply::Granted { is_stored: number > 0 }
    } else {
        LeaseReply::Held { left: Duration::from_millis(u64::try_from(number).unwrap_or(0)) }
    })
}

/// Makes a lease last, if it is still this token's. Who waits, waits on. KEYS: lease. ARGV: token, milliseconds.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        return redis.call('PEXPIRE', KEYS[1], ARGV[2])
        ",
    )
});

pub(super) async fn renew(
    connection: &mut Connection,
    lease: &str,
    token: u64,
    term: Duration,
) -> RedisResult<bool> {
    RENEW.key(lease).arg(token).arg(milliseconds(term)).invoke_async(connection).await
}

/// Gives a lease back, if it is still this token's, and tells those who wait, if anybody does. KEYS: lease, those who wait.
/// ARGV: token, channel, message.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        redis.call('DEL', KEYS[1])
        if redis.call('DEL', KEYS[2]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
        return 1
        ",
    )
});

pub(super) async fn release(
    connection: &mut Connection,
    keys: &[String; 2],
    token: u64,
    channel: &str,
    message: &[u8],
) -> RedisResult<()> {
    let mut call = RELEASE.prepare_invoke();
    call.key(&keys[..]).arg(token).arg(channel).arg(message);
    call.invoke_async::<i64>(connection).await.map(drop)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The generation in which purges are counted; `None`: nobody has begun one.
pub(super) async fn generation(connection: &mut Connection, barriers: &str) -> RedisResult<Option<u64>> {
    let field: Option<Bytes> =
        redis::cmd("HGET").arg(barriers).arg("g").query_async(connection.counting()).await?;
    Ok(field.and_then(|field| number(&field)))
}

/// Reads all barriers.
pub(super) async fn snapshot(connection: &mut Connection, barriers: &str) -> RedisResult<RedisBarriers> {
    let mut pipeline = redis::pipe();
    pipeline.hset_nx(barriers, "g", connection.mark().new_generation()).ignore();
    pipeline.cmd("EXPIRE").arg(barriers).arg(KEEP_BARRIERS.as_secs()).ignore();
    pipeline.hgetall(barriers);
    let (fields,): (Vec<(Vec<u8>, Bytes)>,) = pipeline.query_async(connection.counting()).await?;
    let mut snapshot = RedisBarriers::default();
    for (field, value) in fields {
        // The list of versions is none, nor are the purges that were passed on.
        let Some(number) = number(&value) else { continue };
        match &field[..] {
            b"g" => snapshot.generation = number,
            b"s" => snapshot.order = number,
            b"f" => snapshot.floor = number,
            name => snapshot.raised.extend(PurgeName::from_bytes(name).map(|name| (name, number))),
        }
    }
    Ok(snapshot)
}

/// The channel of a pod's own: purges are acknowledged to it there, and its probes come back.
pub(super) fn own_channel(barriers: &str, asker: u64) -> String {
    format!("{barriers}:ack:{asker}")
}

/// Tells the pods that asked for purges that these hold here: one message for each, whatever their number.
pub(super) async fn acknowledge(
    connection: &mut Connection,
    barriers: &str,
    held: &BTreeMap<u64, Vec<u64>>,
) -> RedisResult<()> {
    let mut pipeline = redis::pipe();
    for (asker, orders) in held {
        let orders: Vec<_> = orders.iter().map(u64::to_string).collect();
        pipeline.publish(own_channel(barriers, *asker), orders.join(" ")).ignore();
    }
    pipeline.query_async(connection.counting()).await
}
