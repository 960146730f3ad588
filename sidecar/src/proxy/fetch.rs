//! Asking beyond this pod's memory: Redis, the route's sources, the application.

use std::sync::Arc;

use larder_flight::Lead;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answered, Proxy,
    ask::Landing,
    keep::Place,
    look::Looked,
    question::Question,
    refresh::{DEADLINE, drain},
};
use crate::{
    barriers::Stamp,
    cache_status::{Forward, Tier},
    entry::Entry,
    l2::{Found, Lease, Patience},
};

/// A request that goes beyond memory, and who waits for what comes of it.
pub(super) struct Errand {
    pub(super) question: Question,
    /// Those who wait for the same.
    pub(super) lead: Option<Lead<Landing>>,
    /// What is stored and too old: it may be said to hold still, or stand in for an error.
    pub(super) candidate: Option<Arc<Entry>>,
    /// Where that is stored.
    pub(super) candidate_in: Tier,
    /// What is stored of the answer.
    pub(super) part: Option<Arc<Entry>>,
    pub(super) reason: Forward,
    /// When it began to wait, for others in this pod or in another.
    pub(super) began_at: Instant,
    /// Where the order of purges stood when it began, as Redis says.
    pub(super) stamp: Stamp,
    /// The same, as this pod knew it.
    pub(super) began: Stamp,
    /// Nobody waits for it: what is stored has been served.
    pub(super) is_refresh: bool,
    /// Whether what comes of it may be stored.
    pub(super) stores: bool,
    /// Which variant Redis says that it asks for; empty if it knows of none.
    pub(super) variant: String,
    /// The last purge of what is asked for, as Redis says.
    pub(super) barrier: u64,
    /// That it is this pod's turn to ask.
    pub(super) lease: Option<Lease>,
    /// Redis did not say what it has: it was slow, or not asked because it had been.
    pub(super) redis_is_silent: bool,
    /// Who is asked.
    pub(super) tier: Tier,
}

impl Errand {
    pub(super) fn new(question: Question, lead: Option<Lead<Landing>>, reason: Forward) -> Self {
        let stamp = question.serving.barriers.stamp();
        Self {
            question,
            lead,
            candidate: None,
            candidate_in: Tier::L1,
            part: None,
            reason,
            began_at: Instant::now(),
            stamp,
            began: stamp,
            is_refresh: false,
            stores: true,
            variant: String::new(),
            barrier: 0,
            lease: None,
            redis_is_silent: false,
            tier: Tier::Application,
        }
    }

    /// Whether what Redis has is another answer than the one that is to be renewed.
    fn is_newer(&self, entry: &Entry) -> bool {
        let known = self.candidate.as_ref().map_or(0, |known| known.head.times.received_at);
        entry.head.times.received_at > known
    }

    /// Tells those who wait that it goes on: whoever was asked until now has given way to the next.
    pub(super) fn goes_on(&self) {
        if let Some(lead) = &self.lead {
            lead.goes_on();
        }
    }

    /// Tells those who wait what came of it.
    pub(super) fn land(&mut self, landing: Landing) {
        if let Some(lead) = self.lead.take() {
            drop(lead.land(landing));
        }
    }
}

impl Proxy {
    /// Asks Redis, then the route's sources, or the application. Where what is stored may stand in, it does so as soon as a
    /// source takes longer than its `timeout`, whichever pod asks it; what the source says then is stored all the same.
    pub(super) async fn fetch(self: &Arc<Self>, mut errand: Errand) -> Answered {
        if let Some(answered) = self.look_in_redis(&mut errand, Patience::Soft).await {
            return answered;
        }
        let Some(soft) = errand.soft_timeout() else { return self.ask_in_turn(errand).await };
        let stand_in = errand.stand_in_later();
        let limit = errand.question.serving.policy.l1.max_object_size.0;
        let proxy = Arc::clone(self);
        let mut asking = AbortOnDropHandle::new(tokio::spawn(async move { proxy.ask_in_turn(errand).await }));
        let asked = match timeout(soft, &mut asking).await {
            Ok(asked) => asked,
            Err(_) => {
                if let Some(answered) = stand_in.answer() {
                    tokio::spawn(async move {
                        if let Ok(Ok(Answered { response, .. })) = timeout(DEADLINE, asking).await {
                            drain(response.into_body(), limit, DEADLINE).await;
                        }
                    });
                    return answered;
                }
                // What would have stood in was purged meanwhile.
                asking.await
            }
        };
        asked.expect("a task that is not aborted ends, unless it panics, and then so do we")
    }

    /// Asks the route's sources, or the application, when no other pod does.
    async fn ask_in_turn(self: &Arc<Self>, mut errand: Errand) -> Answered {
        if let Some(answered) = self.wait_for_turn(&mut errand).await {
            return answered;
        }
        errand.goes_on();
        if errand.question.route().sources.is_empty() {
            self.ask_application(errand).await
        } else {
            self.ask_sources(errand).await
        }
    }

    /// An answer from Redis, if it has one; and where the order of purges stands, if it answers.
    pub(super) async fn look_in_redis(
        self: &Arc<Self>,
        errand: &mut Errand,
        patience: Patience,
    ) -> Option<Answered> {
        let question = &errand.question;
        let l2 = question.serving.l2.as_ref()?;
        let key = question.key_of_answer();
        let names = question.names();
        let lookup = l2.lookup(key.as_str(), &question.headers, &names, question.limits(), patience).await;
        errand.redis_is_silent = lookup.is_err();
        let lookup = lookup.ok()?;
        errand.stamp = lookup.stamp;
        errand.variant = lookup.variant;
        errand.barrier = lookup.purge;
        let (vary, entry) = match lookup.found {
            Found::Nothing => return None,
            Found::OtherVariants => {
                errand.reason = Forward::VaryMiss;
                return None;
            }
            Found::Purged => {
                errand.reason = Forward::Stale;
                return None;
            }
            Found::Entry(vary, entry) => (vary, Arc::new(*entry)),
        };
        let place = Place::looked_up(question, vary);
        match question.weigh(Arc::clone(&entry)) {
            Looked::Usable(entry, _) if errand.is_refresh && !errand.is_newer(&entry) => None,
            Looked::Usable(entry, standing) => {
                place.keep_in_memory(&entry);
                let answered = question.hit(&entry, &standing, Tier::L2);
                errand.land(Landing::Stored(Arc::clone(&entry), Tier::L2, place));
                // Whoever renews it leads those who wait for the same: not while this errand does.
                if standing.verdict.refreshes() {
                    self.refresh_in_background(&errand.question, &entry);
                }
                Some(answered)
            }
            Looked::Candidate(entry, reason) => {
                if errand.is_newer(&entry) {
                    (errand.candidate, errand.candidate_in) = (Some(entry), Tier::L2);
                }
                errand.reason = reason;
                None
            }
            Looked::Part(entry) => {
                errand.part.get_or_insert(entry);
                None
            }
            Looked::StandsIn(_) | Looked::Nothing(_) | Looked::Unshared => None,
        }
    }
}
