//! The cache that the pods share: Redis.
//!
//! A request waits for Redis at most as long as the policy's `timeout`, and not at all while the breaker is open or the
//! connection is down; if nobody else can answer, as long as `hardTimeout`, whatever the breaker says; who has waited for
//! another pod waits as long for what that pod stored. [`link`] keeps the connection and hears of purges; [`commands`] is what is said to Redis.

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderName;
use larder_policy::{Fields, PurgeName, spec, vary};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    barriers::{Barriers, Stamp},
    budget::Kind,
    cache_key::CacheKey,
    clock::boot_ms,
    entry::{
        Entry,
        authentication::Authentication,
        codec::{self, MAX_VARY_NAMES, Record, Rules},
    },
    resolver::Resolver,
    telemetry::Telemetry,
};

mod acknowledgements;
mod breakers;
mod bus;
mod catch_up;
mod commands;
mod connection;
mod connector;
mod coverage;
mod former;
mod generation;
mod keyspace;
mod lease;
mod leases;
mod link;
mod message;
mod peers;
mod pending;
mod recent;
mod records;
mod relay;
mod round_trips;
#[cfg(test)]
mod simulation;
mod subscription;
mod thread_connection;
mod versions;

use breakers::Breakers;
use commands::{NewRecord, PurgeCommand, Question, RecordStart};
use connection::Connection;
use connector::Connector;
use coverage::Coverage;
pub use former::Formers;
pub use keyspace::Keyspace;
use keyspace::RecordPlace;
pub use lease::{Lease, LeaseOutcome};
pub use leases::{LeaseWait, WakeReason};
use link::{Link, Ordered, PURGE_DEADLINE};
use message::Origin;
pub use peers::Acknowledged;
use records::{Records, Seal};
use round_trips::RoundTrips;
use versions::Version;

/// Why Redis did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum L2Error {
    /// There is no connection, or the breaker is open.
    #[error("redis is not connected")]
    Down,
    /// The server took a purge, but another may have taken its place, whose pods have not heard of it: no majority of the Sentinels
    /// said otherwise afterwards.
    #[error("no majority of the Sentinels names the master: pods at another one may not have heard of it")]
    Unproven,
    /// The response has more header fields, or a longer body, than a record holds.
    #[error("it is too large for redis")]
    TooLarge,
    /// Redis did not respond in time.
    #[error("redis did not answer within {0:?}")]
    Deadline(Duration),
    /// Redis responded with an error, or the connection broke.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
}

/// Time for which a request waits for Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// `timeout`: a source can answer.
    Soft,
    /// `hardTimeout`: nobody else can, or another pod has asked a source already.
    Hard,
}

/// Proof that a purge was told to the server that pods listen to, where Sentinels may replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The Sentinels named it within the policy's `busGrace`: a writer waits for no more, since its response can't say what came of it.
    Recent,
    /// The Sentinels named it when they were asked after it had ordered the purge.
    Afterwards,
}

/// Limits of a stored response that is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Rules for its head.
    pub rules: Rules<'a>,
    /// Maximum length of its body: the policy's `l1.maxObjectSize`.
    pub max_body: u64,
}

/// Result of a lookup.
#[derive(Debug)]
pub struct L2Lookup {
    /// Where Redis stands: the stamp of a fill that begins now.
    pub stamp: Stamp,
    /// Variant that the request selects; empty if the stored responses do not vary.
    pub variant: String,
    /// Names of the request headers that select it; none if the stored responses do not vary.
    pub vary: Vec<HeaderName>,
    /// The last purge that covers the key, in the order of `stamp`; 0: none.
    pub purge: u64,
    /// The stored response, unless it was purged.
    pub found: Found,
}

/// Contents of Redis under a key.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Answers for other values of the headers that `Vary` names.
    OtherVariants,
    /// An answer that a purge made stale.
    Purged,
    /// An answer.
    Entry(Box<Entry>),
}

/// A shared cache in Redis.
#[derive(Debug)]
pub struct L2 {
    keys: Keyspace,
    link: Arc<Link>,
    version: Arc<Version>,
    question: Question,
    formers: Arc<Formers>,
    _listing: AbortOnDropHandle<()>,
    round_trips: RoundTrips,
    breakers: Breakers,
    timeout: Duration,
    hard_timeout: Duration,
    max_object_size: Option<u64>,
    records: Records,
    barriers: Arc<Barriers>,
    telemetry: Arc<Telemetry>,
}

impl L2 {
    /// Connects in the background, and again whenever the connection breaks or the URL changes, until it is dropped. What
    /// `previous` could not tell Redis, or told one that may have been replaced, is told by this one, and what is heard of at `formers`.
    pub fn start(
        (spec, resolver): (&spec::Redis, Resolver),
        (keys, shape): (Keyspace, &str),
        barriers: Arc<Barriers>,
        bus_grace: Duration,
        telemetry: Arc<Telemetry>,
        authentication: Arc<Authentication>,
        (previous, formers): (Option<&Self>, &Arc<Formers>),
    ) -> Self {
        let name = keys.barriers().to_owned();
        let version = Version::new(PurgeName::version(shape), name.clone(), Arc::clone(&barriers));
        let link = Connector::start(
            (spec.clone(), resolver),
            name.clone(),
            Arc::clone(&version),
            Arc::clone(&barriers),
            bus_grace,
            previous.map(|previous| &*previous.link),
            Arc::clone(formers),
        );
        let state = Arc::clone(link.state());
        let listing = Arc::clone(&version).keep_listed(move || state.connection());
        Self {
            records: Records::new(authentication, Arc::clone(&telemetry), keys.clone(), shape),
            keys,
            link,
            question: Question::new(&name, version.name()),
            version,
            formers: Arc::clone(formers),
            _listing: listing,
            round_trips: RoundTrips::default(),
            breakers: Breakers::new(spec.topology),
            timeout: spec.timeout.0,
            hard_timeout: spec.hard_timeout().0,
            max_object_size: spec.max_object_size.map(|size| size.0),
            barriers,
            telemetry,
        }
    }

    /// Returns true if Redis is connected and trusted to respond, and purges of other pods are heard.
    pub fn is_up(&self) -> bool {
        self.takes_purges() && self.breakers.are_closed()
    }

    /// Why it is not connected, or not with the URL and CA that it is given now. It has no password in it.
    pub fn last_error(&self) -> Option<String> {
        self.link.last_error().or_else(|| self.records.last_error())
    }

    /// Looks up a key, and learns in the same round trip where the order of purges stands. What is larger than the policy
    /// allows is not transferred.
    ///
    /// # Errors
    /// If Redis is down, slow or unwilling; the request goes on without it.
    pub async fn lookup(
        &self,
        key: &str,
        request: &impl Fields,
        names: &[PurgeName],
        within: Limits<'_>,
        patience: Patience,
    ) -> Result<L2Lookup, L2Error> {
        // Without authentication nothing is read, and the order of purges is learned all the same.
        let seal = self.records.seal();
        let primary = seal.as_ref().map(|seal| (seal, seal.keys().primary(key)));
        let asked = primary.as_ref().map(|(_, place)| &*place.name);
        let place = asked.unwrap_or(self.keys.barriers());
        // Slow is better than nothing, and than asking a source twice: the breaker says only what Redis was.
        if patience == Patience::Soft && !self.breakers.of(place).allows() {
            return Err(L2Error::Down);
        }
        let timeout = self.deadline(patience);
        let connection = match self.link.shared_connection() {
            Some(connection) => connection,
            // Until the first attempt to connect has ended nothing in memory is trusted: it is worth a moment, and no fault of Redis.
            None => {
                let connection = tokio::time::timeout(timeout, self.link.first_connection()).await;
                Arc::new(connection.ok().flatten().ok_or(L2Error::Down)?)
            }
        };
        // No timer of its own: each wait for a reply ends at the deadline.
        let started = Instant::now();
        let deadline = started + timeout;
        let outcome = async {
            let Limits { rules, max_body } = within;
            let limit = self.limit(max_body);
            let asked_at = boot_ms();
            let mut reply = commands::lookup(&connection, deadline, &self.question, names, asked).await?;
            let start = mem::take(&mut reply.record);
            let said_at = connection.date(asked_at);
            if !reply.is_listed {
                // Purges of other versions do not cover what is stored under this one.
                self.version.is_missing();
                return Err(L2Error::Down);
            }
            // Others wait only for a fetch that began after every purge that may concern it.
            let purge = reply.covering().max(reply.indirect);
            let stamp = self.barriers.stamp_at(reply.generation, reply.order, asked_at);
            if stamp.generation != self.barriers.stamp().generation {
                self.link.request_resync();
            }
            let coverage = Coverage { l2: self, at: (&connection, deadline), asked: names, reply: &reply };
            let (mut variant, mut vary) = (String::new(), vec![]);
            let read = |seal: &Seal, place: &RecordPlace, record| {
                let mut record = self.records.read((seal, place, key), record, limit, rules)?;
                if let Record::Entry(entry) = &mut record {
                    // No purge covered it until then, as Redis says.
                    entry.set_stamp(Stamp { asked_at: said_at, ..entry.stamp() });
                }
                Some(record)
            };
            let Some((seal, primary)) = &primary else {
                return Ok(L2Lookup { stamp, variant, vary, purge, found: Found::Nothing });
            };
            let record = self.whole((&connection, deadline), &primary.name, start, limit).await?;
            let found = match read(seal, primary, record) {
                None => Found::Nothing,
                Some(Record::Entry(entry)) if coverage.is_purged(&entry).await? => Found::Purged,
                Some(Record::Entry(entry)) => Found::Entry(entry),
                Some(Record::Vary(names)) => {
                    vary::write_variant(&mut variant, &names, request);
                    vary = names;
                    let own = seal.keys().variant(key, &variant);
                    let beginning = commands::begin(&connection, deadline, &own.name).await?;
                    let record = self.whole((&connection, deadline), &own.name, beginning, limit).await?;
                    match read(seal, &own, record) {
                        Some(Record::Entry(entry)) if coverage.is_purged(&entry).await? => Found::Purged,
                        Some(Record::Entry(entry)) => Found::Entry(entry),
                        _ => Found::OtherVariants,
                    }
                }
            };
            Ok(L2Lookup { stamp, variant, vary, purge, found })
        };
        let outcome = outcome.await.map_err(|error| match error {
            L2Error::Redis(error) if error.is_timeout() => L2Error::Deadline(timeout),
            error => error,
        });
        self.judge(("lookup", place), started, &outcome);
        outcome
    }

    /// The record that begins so. A long one is transferred only where there is room for it: without, it counts as none.
    async fn whole(
        &self,
        (connection, deadline): (&Connection, Instant),
        key: &str,
        beginning: RecordStart,
        limit: u64,
    ) -> Result<Option<Bytes>, L2Error> {
        let budget = &self.telemetry.stats.budget;
        if beginning.is_whole() {
            return Ok(Some(beginning.bytes)
                .filter(|bytes| !bytes.is_empty())
                .map(|bytes| budget.counted(bytes)));
        }
        let length = commands::in_time(deadline, commands::length(connection, key)).await?;
        if self.records.is_too_large(key, length, limit) {
            return Ok(None);
        }
        let Some(_room) = budget.reserve(Kind::Responses, length + commands::TRANSFER) else {
            return Ok(None);
        };
        let rest = commands::complete(connection, key, beginning, length);
        let record = commands::in_time(deadline, rest).await?;
        // Counted before the room is given back.
        Ok(record.map(|record| budget.counted(record)))
    }

    /// Returns true if a response is not too large for Redis.
    pub fn takes(&self, entry: &Entry) -> bool {
        self.max_object_size.is_none_or(|most| entry.content.bytes() <= most)
    }

    /// Maximum length of a record, where memory takes bodies up to `max_body`.
    fn limit(&self, max_body: u64) -> u64 {
        records::limit(self.max_object_size.map_or(max_body, |most| most.min(max_body)))
    }

    /// Stores an answer for as long as it is of use.
    ///
    /// # Errors
    /// If Redis is down, slow or unwilling; nothing is stored then.
    pub async fn store(
        &self,
        key: &CacheKey,
        entry: &Entry,
        max_body: u64,
        keep: Duration,
    ) -> Result<(), L2Error> {
        let seal = self.records.seal().ok_or(L2Error::Down)?;
        let place = seal.keys().primary(key.primary());
        let name = place.name.clone();
        // Nobody waits for this one: a large body may take longer than a lookup.
        self.timed(("store", &name), self.hard_timeout, async {
            let mut connection = self.link.connection().ok_or(L2Error::Down)?;
            let mut records = Vec::with_capacity(2);
            let mut add = |place: RecordPlace, record, yields| {
                let bytes = seal.close(&place, record);
                records.push(NewRecord { key: place.name, bytes, yields });
            };
            let vary = key.vary();
            if vary.is_empty() {
                add(place, codec::encode(entry), false);
            } else {
                // An error has the names of the responses beside it, which are of use for longer.
                add(place, codec::encode_vary(vary), entry.status().as_u16() >= 400);
                add(seal.keys().variant(key.primary(), key.variant()), codec::encode(entry), false);
            }
            // A record that would be refused when it is read must not replace another one.
            let limit = self.limit(max_body);
            if vary.len() > MAX_VARY_NAMES || records.iter().any(|record| record.bytes.len() as u64 > limit) {
                return Err(L2Error::TooLarge);
            }
            Ok(commands::store(&mut connection, &records, keep).await?)
        })
        .await
    }

    /// Makes everything stale that is stored now, here at once and in Redis before anything is read from it.
    pub fn purge_everything(&self) {
        self.link.raise_on_everything();
    }

    /// Raises barriers for every pod; without names, barriers on all that pods of other versions of the policy stored, if there are any.
    /// When this returns, Redis has them and so has every pod that answers at once; when it fails, this pod has them and tells Redis as
    /// soon as it can. `number` identifies the purge to pods that hear of it in other ways.
    ///
    /// # Errors
    /// If Redis is down, slow or unwilling, or is not proven to be the one that counts purges.
    pub async fn purge(
        &self,
        names: &[PurgeName],
        proof: Proof,
        number: Option<u64>,
    ) -> Result<Acknowledged, L2Error> {
        self.link.will_tell(names);
        let beside = self.link.connection().map(|_| self.barriers.stamp().generation);
        let is_relayed = self.formers.are_told();
        let origin = number.map(Origin::Pod).or_else(|| is_relayed.then(Origin::new));
        let formers = self.formers.tell_beside(names, self.version.name(), beside, origin);
        // Whatever the breaker says: lookups that were slow are no reason to leave other pods in the dark.
        let purged = self.attempt(("purge", self.keys.barriers()), PURGE_DEADLINE, async {
            let mut connection = self.link.first_connection().await.ok_or(L2Error::Down)?;
            let (asker, asked_at) = (connection.asker(), boot_ms());
            let version = self.version.name();
            let elsewhere = self.formers.reached();
            let purge = PurgeCommand { asker, version, names, elsewhere: &elsewhere, origin, is_relayed };
            let ordered = self.link.order(&mut connection, purge).await?;
            let is_named = async {
                match proof {
                    Proof::Recent => self.barriers.is_recent(connection.vouched().limit(asked_at)),
                    Proof::Afterwards => connection.vouched().is_named().await,
                }
            };
            let Some(Ordered { order, pods, .. }) = ordered else {
                return Ok((Acknowledged { order: 0, by_all: true, told: None }, is_named.await));
            };
            let acknowledged = self.link.acknowledgements().wait_for(asker, order, pods);
            let (by_all, is_named) = tokio::join!(acknowledged, is_named);
            Ok((Acknowledged { order, by_all, told: (pods > 0).then_some(pods) }, is_named))
        });
        let (outcome, ()) = tokio::join!(purged, formers);
        match outcome {
            Ok((acknowledged, true)) => Ok(acknowledged),
            // The purge applies here. Another master would be told of every purge since trust was last proven.
            Ok((_, false)) => Err(L2Error::Unproven),
            Err(error) => {
                self.link.raise_and_remember(names);
                Err(error)
            }
        }
    }

    /// Returns the Redis that a pod has left once its Redis is that of `spec`, or none: those that were left before, and that of
    /// `previous`, unless it goes on to be used.
    pub fn left_for(previous: Option<(&Formers, Option<&Self>)>, spec: Option<&spec::Redis>) -> Arc<Formers> {
        Formers::following(previous.map(|(formers, l2)| (formers, l2.map(|l2| &l2.link))), spec)
    }

    const fn deadline(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Soft => self.timeout,
            Patience::Hard => self.hard_timeout,
        }
    }
}
