//! What stands in for an answer that failed (RFC 5861, section 4).

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use larder_policy::{freshness::may_be_stale, policy::Ask, vary};

use super::{Answered, Proxy, ask::Landing, fetch::Errand, keep::Place, question::Question};
use crate::{
    barriers::Stamp,
    cache_status::{Became, CacheStatus, Forward, Tier},
    entry::{
        Entry,
        codec::{self, Record},
    },
    l2::Patience,
    serving::Serving,
    sources::Source,
    stats::Outcome,
};

impl Proxy {
    /// What stands in for an answer that failed with this status, or did not come: what is stored here, what a Redis that was slow
    /// has after all, or the last good answer.
    pub(super) async fn rescue(
        self: &Arc<Self>,
        errand: &mut Errand,
        status: Option<StatusCode>,
    ) -> Option<Answered> {
        // What bypasses the cache is not looked up in any.
        if !errand.stores {
            return None;
        }
        if let Some(answered) = errand.stand_in(status) {
            return Some(answered);
        }
        if std::mem::take(&mut errand.redis_is_silent) {
            // The error, which may be stored, was asked for before this.
            let stamp = errand.stamp;
            let answered = self.look_in_redis(errand, Patience::Hard).await;
            errand.stamp = stamp;
            if let Some(answered) = answered.or_else(|| errand.stand_in(status)) {
                return Some(answered);
            }
        }
        let entry = errand.last_known_good().await?;
        Some(errand.stands_in(Arc::new(entry), status, Tier::LastKnownGood))
    }
}

impl Errand {
    /// An answer from what is stored, in place of an error.
    pub(super) fn stand_in(&mut self, status: Option<StatusCode>) -> Option<Answered> {
        let stored = self.candidate.clone().filter(|_| self.may_stand_in())?;
        Some(self.stands_in(stored, status, self.candidate_in))
    }

    fn stands_in(&mut self, stored: Arc<Entry>, status: Option<StatusCode>, tier: Tier) -> Answered {
        stored.stands_in_for(self.question.lifetimes().retry_interval);
        let place = Place::looked_up(&self.question, vary::names_to_store(&stored.head.headers));
        place.keep_unless_newer(&stored);
        let (answered, cache_status) = self.question.stand_in(&stored, self.reason, status, tier);
        self.land(Landing::StandIn(stored, cache_status, place));
        answered
    }

    pub(super) fn may_stand_in(&self) -> bool {
        self.candidate.as_ref().is_some_and(|stored| {
            let standing = stored.head.standing(self.question.lifetimes(), &self.question.asked);
            standing.verdict.serves_on_error() && !stored.is_purged(&self.question.serving.barriers)
        })
    }

    /// How long the route's HTTP sources are waited for before what is stored stands in, if it may.
    pub(super) fn soft_timeout(&self) -> Option<Duration> {
        if self.is_refresh || !self.may_stand_in() {
            return None;
        }
        let serving = &self.question.serving;
        let timeouts = self.question.route().sources.iter().filter_map(|ask| match ask {
            Ask::Http(ask) => match serving.source(&ask.source) {
                Some(Source::Http(source)) => Some(source.spec().timeout.0),
                _ => None,
            },
            Ask::Postgres(_) => None,
        });
        timeouts.max()
    }

    /// What stands in if it takes too long.
    pub(super) fn stand_in_later(&self) -> StandIn {
        let stored = self.candidate.clone().expect("only what is stored can stand in");
        StandIn { question: self.question.clone(), stored, tier: self.candidate_in, reason: self.reason }
    }
}

/// What is stored, for when asking takes too long.
pub(super) struct StandIn {
    question: Question,
    stored: Arc<Entry>,
    tier: Tier,
    reason: Forward,
}

impl StandIn {
    /// `None` if it was purged since.
    pub(super) fn answer(self) -> Option<Answered> {
        let Self { question, stored, tier, reason } = self;
        let is_purged = stored.is_purged(&question.serving.barriers);
        (!is_purged).then(|| question.stand_in(&stored, reason, None, tier).0)
    }
}

impl Question {
    /// What is stored, in place of an answer that failed.
    pub(super) fn stand_in(
        &self,
        stored: &Entry,
        reason: Forward,
        status: Option<StatusCode>,
        tier: Tier,
    ) -> (Answered, CacheStatus) {
        let cache_status = CacheStatus::Forwarded { reason, status, tier, answer: Became::StaleIfError };
        (self.answer_with(stored, cache_status, Outcome::Stale, tier), cache_status)
    }
}

impl Errand {
    /// The last good answer, which no purge made stale: the table knows of those before this began.
    async fn last_known_good(&self) -> Option<Entry> {
        let question = &self.question;
        let table = question.serving.last_known_good(question.route)?;
        let key = question.key_of_answer();
        let record = match table.load(last_known_good_id(&question.serving, key.as_str())).await {
            Ok(record) => record?,
            Err(error) => {
                question.report("lastKnownGood", &error);
                return None;
            }
        };
        let barriers = &question.serving.barriers;
        let Ok(Record::Entry(mut entry)) = codec::decode(record, question.rules()) else {
            return None;
        };
        if !may_be_stale(&entry.head.claims, question.lifetimes()) || !question.may_have(&entry) {
            return None;
        }
        let (own, stamp) = (entry.head.stamp, self.stamp_in(barriers.stamp().generation));
        // What was stored in an earlier generation came before all purges of this one; a pod's own order means nothing to another.
        let is_counted = own.generation != 0 && own.generation == stamp.generation;
        let order = if is_counted { own.order } else { 0 };
        entry.head.stamp = Stamp { order, ..stamp };
        // The table knows itself what other versions of the policy purged: a version that begins anew, as after a flush, is none.
        let names = entry.head.names.iter().filter(|name| **name != question.serving.version);
        let is_purged = barriers.covers(&names.copied().collect::<Vec<_>>(), entry.head.stamp);
        (!is_purged).then_some(*entry)
    }

    /// Where the order of purges stood when it began, in a generation. Redis may have lost the order, before or after it was
    /// asked: all that was purged in a generation that this had no part in came later.
    fn stamp_in(&self, generation: u64) -> Stamp {
        let known = [self.stamp, self.began].into_iter().find(|stamp| stamp.generation == generation);
        known.unwrap_or(Stamp { generation, order: 0, ..self.began })
    }
}

/// What an answer is kept under in a table of last good answers.
pub(super) fn last_known_good_id(serving: &Serving, key: &str) -> [u8; 32] {
    *blake3::hash(format!("{} {} {key}", serving.metadata.uid, serving.shape).as_bytes()).as_bytes()
}
