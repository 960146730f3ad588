//! What memory holds for a request.

use std::sync::Arc;

use http::Method;
use larder_policy::{
    Fields, Key,
    freshness::{Standing, Verdict},
    range, vary,
};

use super::question::Question;
use crate::{
    cache_status::{Bypass, Forward},
    clock::monotonic_ms,
    entry::{Content, Entry},
    l1::Stored,
    serving::Serving,
};

/// What memory holds for a request.
#[derive(Debug)]
pub(super) enum Looked {
    /// What answers it.
    Usable(Arc<Entry>, Standing),
    /// What may answer it when the application has been asked, and why it does not now.
    Candidate(Arc<Entry>, Forward),
    /// What stands in for an answer that failed a moment ago.
    StandsIn(Arc<Entry>),
    /// What is stored of the answer, which is not all.
    Part(Arc<Entry>),
    /// Nothing, and why.
    Nothing(Forward),
    /// Nothing, and nothing is waited for: the last answer was not for sharing.
    Unshared,
}

impl Question {
    pub(super) fn look_in_memory(&self) -> Looked {
        let of_get = self.key_of_get.as_ref().map(|key| self.look_under(key));
        match of_get {
            Some(of_get @ (Looked::Usable(..) | Looked::StandsIn(_))) => of_get,
            Some(of_get @ Looked::Candidate(..)) => match self.look_under(&self.key) {
                Looked::Nothing(_) => of_get,
                own => own,
            },
            _ => self.look_under(&self.key),
        }
    }

    /// What an answer to GET has left in memory, for a HEAD.
    pub(super) fn stored_of_get(&self) -> Option<Arc<Entry>> {
        find(&self.serving, &mut self.key_of_get.as_ref()?.as_str().to_owned(), &self.headers).ok()
    }

    fn look_under(&self, key: &Key) -> Looked {
        match find(&self.serving, &mut key.as_str().to_owned(), &self.headers) {
            Ok(entry) => match self.weigh(entry) {
                Looked::Candidate(entry, _) if entry.stands_in() && self.may_stand_in(&entry) => {
                    Looked::StandsIn(entry)
                }
                // Another pod may have stored something newer in L2.
                Looked::Usable(entry, _) if !self.keeps_in_l1(&entry) => {
                    if entry.stands_in() && self.asked.is_empty() {
                        Looked::StandsIn(entry)
                    } else {
                        Looked::Candidate(entry, self.why(Forward::Stale))
                    }
                }
                looked => looked,
            },
            Err(Missing::Nothing) => Looked::Nothing(self.why(Forward::UriMiss)),
            Err(Missing::OtherVariants) => Looked::Nothing(self.why(Forward::VaryMiss)),
            Err(Missing::Unshared) => Looked::Unshared,
        }
    }

    /// Whether an answer still stands in: for as long as it may be served on an error, or as the last good one for as long as it does.
    fn may_stand_in(&self, entry: &Entry) -> bool {
        let standing = entry.head.standing(self.lifetimes(), &self.asked);
        self.asked.is_empty()
            && (standing.verdict.serves_on_error() || self.route().last_known_good.is_some())
    }

    /// Whether what is in memory answers without another look into L2.
    pub(super) fn keeps_in_l1(&self, entry: &Entry) -> bool {
        self.lifetimes().in_l1.is_none_or(|most| entry.here_for() < most)
    }

    /// Whether an answer that is served is to be renewed behind it.
    pub(super) fn renews(&self, entry: &Entry, standing: &Standing) -> bool {
        // A renewal has just failed.
        if entry.stands_in() {
            return false;
        }
        let is_early =
            |left| self.lifetimes().early_refresh && (entry.takes_renewal() || entry.is_renewed_early(left));
        match standing.verdict {
            Verdict::Fresh { ttl } => is_early(ttl),
            verdict => verdict.refreshes(),
        }
    }

    /// Whether a stored answer is for who asks (RFC 9111, section 3.5).
    pub(super) fn may_have(&self, entry: &Entry) -> bool {
        let directives = entry.head.claims.directives();
        let may_be_shared = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
        may_be_shared || !self.shares_only_what_it_may
    }

    /// What a stored answer is worth to this request.
    pub(super) fn weigh(&self, entry: Arc<Entry>) -> Looked {
        if !self.may_have(&entry) {
            return Looked::Nothing(Forward::Bypass(Bypass::Credentials));
        }
        if entry.is_purged(&self.serving.barriers) {
            return Looked::Nothing(self.why(Forward::Stale));
        }
        let standing = entry.head.standing(self.lifetimes(), &self.asked);
        if let Content::Parts(pieces) = &entry.content {
            let range = match &self.range {
                range::Asked::One(spec) => spec.resolve(pieces.total()),
                _ => None,
            };
            let is_there = range.is_some_and(|range| pieces.slice(range).is_some())
                && range::if_range_holds(&self.headers, &entry.head.headers);
            if !is_there || !standing.verdict.serves_now() || self.is_head() {
                return Looked::Part(entry);
            }
        }
        if standing.verdict.serves_now() {
            Looked::Usable(entry, standing)
        } else {
            let without_directives = entry.head.standing(self.lifetimes(), &Default::default());
            let reason =
                if without_directives.verdict.serves_now() { Forward::Request } else { Forward::Stale };
            Looked::Candidate(entry, self.why(reason))
        }
    }

    fn why(&self, reason: Forward) -> Forward {
        if self.shares_only_what_it_may {
            Forward::Bypass(Bypass::Credentials)
        } else if self.asked.no_store && self.method == Method::GET {
            Forward::Request
        } else {
            reason
        }
    }
}

/// Why there is no answer under a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Missing {
    Nothing,
    OtherVariants,
    Unshared,
}

/// The answer under a key for a request with these fields. The key becomes that of the variant, where there are several.
pub(super) fn find(serving: &Serving, key: &mut String, fields: &impl Fields) -> Result<Arc<Entry>, Missing> {
    match serving.l1.get(key) {
        None => Err(Missing::Nothing),
        Some(Stored::Entry(entry)) => Ok(entry),
        Some(Stored::Unshared { until }) if monotonic_ms() < until => Err(Missing::Unshared),
        Some(Stored::Unshared { .. }) => Err(Missing::Nothing),
        Some(Stored::Vary(names)) => {
            vary::write_variant(key, &names, fields);
            match serving.l1.get(key) {
                Some(Stored::Entry(entry)) => Ok(entry),
                Some(Stored::Unshared { until }) if monotonic_ms() < until => Err(Missing::Unshared),
                _ => Err(Missing::OtherVariants),
            }
        }
    }
}
