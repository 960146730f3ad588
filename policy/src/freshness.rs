//! Freshness of stored responses (RFC 9111, section 4.2; RFC 5861).

use std::time::Duration;

use crate::{cache_control::RequestDirectives, lifetimes::Lifetimes, response_meta::ResponseMeta};

mod window;

use window::Windows;

/// The age of a stored response and its permitted use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// `current_age` (RFC 9111, section 4.2.3): the value of `Age`.
    pub age: Duration,
    /// The permitted use.
    pub state: State,
}

/// Permitted use of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Fresh: may be served.
    Fresh {
        /// Remaining freshness lifetime.
        ttl: Duration,
    },
    /// Stale: may be served only after validation, or as `use_` permits.
    Stale {
        /// Time since the freshness lifetime ended; zero for a response that is still within it, but whose own
        /// `no-cache`, or the client, forbids serving it.
        stale_for: Duration,
        /// Use without validation.
        use_: StaleUse,
    },
}

/// Permitted use of a response that is not fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleUse {
    /// Validation only.
    No,
    /// May be served while it is refreshed in the background (RFC 5861, section 3), and also if the origin fails.
    WhileRevalidating,
    /// May be served if a request to the origin failed (RFC 5861, section 4).
    OnError,
    /// May be served as it is: the client accepts its staleness (RFC 9111, section 5.2.1.2).
    AsAsked,
}

impl State {
    /// Returns true if the response may be served now.
    pub fn serves_now(self) -> bool {
        match self {
            Self::Fresh { .. } => true,
            Self::Stale { use_, .. } => matches!(use_, StaleUse::WhileRevalidating | StaleUse::AsAsked),
        }
    }

    /// Returns true if the response must be refreshed in the background when it is served now.
    pub fn refreshes(self) -> bool {
        matches!(self, Self::Stale { use_: StaleUse::WhileRevalidating, .. })
    }

    /// Returns true if the response may be served when the origin fails.
    pub fn serves_on_error(self) -> bool {
        !matches!(self, Self::Stale { use_: StaleUse::No, .. })
    }
}

/// Evaluates a response that was received `resident` ago, by its own metadata, its route and the client's directives;
/// pass the default where the client's directives are ignored.
///
/// A route's `ttl` replaces lifetimes, `Expires`, `no-cache` and `must-revalidate`, and starts when the response was
/// received: its `Age` does not matter. Everything is computed on every lookup, so that a changed policy applies to
/// responses that are already stored.
pub fn evaluate(
    meta: &ResponseMeta,
    lifetimes: &Lifetimes,
    resident: Duration,
    asked: &RequestDirectives,
) -> Freshness {
    let age = meta.initial_age().saturating_add(resident);
    let ttl = ttl(meta, lifetimes);
    let left = match life(meta, lifetimes, ttl, resident) {
        Ok(_) if never_unasked(meta, ttl) => Err(Duration::ZERO),
        left => left,
    };
    let state = match left {
        Ok(ttl) if accepts(asked, age, ttl) => State::Fresh { ttl },
        // The client alone does not want it: its wish for a newer one can't be met if the origin fails.
        Ok(_) => {
            let use_ = if asked.no_cache { StaleUse::No } else { StaleUse::OnError };
            State::Stale { stale_for: Duration::ZERO, use_ }
        }
        Err(stale_for) => {
            let use_ = Windows::of(meta, lifetimes, ttl).use_of(age, stale_for, asked);
            State::Stale { stale_for, use_ }
        }
    };
    Freshness { age, state }
}

/// Evaluates a response of this age that would be fresh, but that something is known to have changed since: its lifetime ends
/// now.
pub fn outdated(
    meta: &ResponseMeta,
    lifetimes: &Lifetimes,
    age: Duration,
    asked: &RequestDirectives,
) -> Freshness {
    let windows = Windows::of(meta, lifetimes, ttl(meta, lifetimes));
    let use_ = windows.use_of(age, Duration::ZERO, asked);
    Freshness { age, state: State::Stale { stale_for: Duration::ZERO, use_ } }
}

/// Returns true for `no-cache`, which forbids serving even a response within its lifetime (section 5.2.2.4), unless a
/// TTL replaces it.
fn never_unasked(meta: &ResponseMeta, ttl: Option<Duration>) -> bool {
    meta.is_no_cache() && ttl.is_none()
}

/// Returns the remaining lifetime, or the time since it ended: a response is fresh while it is younger than its
/// lifetime (section 4.2).
fn life(
    meta: &ResponseMeta,
    lifetimes: &Lifetimes,
    ttl: Option<Duration>,
    resident: Duration,
) -> Result<Duration, Duration> {
    if let Some(ttl) = ttl {
        return left(ttl, resident);
    }
    let age = meta.initial_age().saturating_add(resident);
    let own = left(meta.lifetime().unwrap_or_default(), age);
    // What the route caps is the time in this cache, whatever the answer did before it came.
    match (own, lifetimes.max_ttl.map(|most| left(most, resident))) {
        (own, None) => own,
        (Ok(own), Some(Ok(capped))) => Ok(own.min(capped)),
        (Err(own), Some(Err(capped))) => Err(own.max(capped)),
        (Err(over), _) | (_, Some(Err(over))) => Err(over),
    }
}

fn left(life: Duration, used: Duration) -> Result<Duration, Duration> {
    if used < life { Ok(life - used) } else { Err(used - life) }
}

/// Returns the TTL that replaces the response's own lifetime.
pub(crate) fn ttl(meta: &ResponseMeta, lifetimes: &Lifetimes) -> Option<Duration> {
    let given = meta.ttl_from_response().filter(|_| lifetimes.ttl_from.is_some());
    let ttl = given.or_else(|| lifetimes.ttl_of(crate::lifetimes::counted_as(meta.status())));
    ttl.map(|ttl| meta.jittered(ttl, lifetimes.jitter_percent))
}

/// Decides whether a response that is fresh for `left` is refreshed now, by XFetch (Vattani, Chierichetti and
/// Lowenstein, Optimal Probabilistic Cache Stampede Prevention, 2015). Each lookup passes its own random number; the
/// probability rises as the response nears its expiry, and earlier for one that took long to produce.
///
/// `random` is any 64 bits. Where a response arrives at once, a hundredth of its lifetime, at most a second, replaces
/// the time that it took.
pub fn refreshes_early(meta: &ResponseMeta, left: Duration, resident: Duration, random: u64) -> bool {
    let floor = (left.saturating_add(resident) / 100).min(Duration::from_secs(1));
    let scale = meta.delay().max(floor);
    // No number of 53 bits has a larger logarithm.
    if left > scale.saturating_mul(37) {
        return false;
    }
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    scale.as_secs_f64() * -uniform.ln() >= left.as_secs_f64()
}

/// Returns true if a client accepts a fresh response (RFC 9111, sections 5.2.1.1, 5.2.1.3 and 5.2.1.4).
fn accepts(asked: &RequestDirectives, age: Duration, ttl: Duration) -> bool {
    !asked.no_cache
        // A client that asks for an age of nothing wants it validated, however young it is.
        && asked.max_age.is_none_or(|most| age <= most && !most.is_zero())
        && asked.min_fresh.is_none_or(|least| ttl >= least)
}

/// Returns the time after receipt for which a response can be of use: its lifetime, the longer of its stale windows,
/// and the time for which its validator is worth storing.
pub fn keep_for(meta: &ResponseMeta, lifetimes: &Lifetimes) -> Duration {
    let ttl = ttl(meta, lifetimes);
    let life = life(meta, lifetimes, ttl, Duration::ZERO).unwrap_or_default();
    let worth_validating = if meta.has_validator() {
        life.clamp(Duration::from_secs(10 * 60), Duration::from_secs(24 * 60 * 60))
    } else {
        Duration::ZERO
    };
    life.saturating_add(Windows::of(meta, lifetimes, ttl).longest().max(worth_validating))
}

/// Returns true if a response may be served stale at all: not with `no-cache`, `must-revalidate` or `proxy-revalidate`,
/// unless a TTL replaces them (RFC 9111, section 4.2.4).
pub fn may_be_stale(meta: &ResponseMeta, lifetimes: &Lifetimes) -> bool {
    ttl(meta, lifetimes).is_some() || !meta.forbids_stale()
}

/// Returns true if a response that just arrived is fresh for a moment, or may be served stale.
pub(crate) fn is_of_use(meta: &ResponseMeta, lifetimes: &Lifetimes) -> bool {
    let ttl = ttl(meta, lifetimes);
    let fresh = !never_unasked(meta, ttl) && life(meta, lifetimes, ttl, Duration::ZERO).is_ok();
    // One that came stale may be past its windows, too.
    fresh || keep_stale(meta, lifetimes, ttl)
}

fn keep_stale(meta: &ResponseMeta, lifetimes: &Lifetimes, ttl: Option<Duration>) -> bool {
    let over = life(meta, lifetimes, ttl, Duration::ZERO).err().unwrap_or_default();
    over < Windows::of(meta, lifetimes, ttl).longest()
}

#[cfg(test)]
mod tests;
