//! Whether a stored answer may be served (RFC 9111, section 4.2; RFC 5861).

use std::time::Duration;

use crate::{
    cache_control::{RequestDirectives, ResponseDirectives},
    claims::Claims,
    lifetimes::Lifetimes,
};

mod window;

use window::{Windows, forbids_stale};

/// How old a stored answer is and what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `current_age` (RFC 9111, section 4.2.3): what `Age` says.
    pub age: Duration,
    /// What may be done with it.
    pub verdict: Verdict,
}

/// What may be done with a stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be served.
    Fresh {
        /// For how much longer.
        ttl: Duration,
    },
    /// It may be served only after the origin was asked, or as `use_` says.
    Stale {
        /// For how long it has been past its life; zero for one that is within it and that its own `no-cache`, or the
        /// client, keeps from being served.
        stale_for: Duration,
        /// What it is good for nevertheless.
        use_: StaleUse,
    },
}

/// What an answer that is not fresh is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleUse {
    /// Nothing but being validated.
    No,
    /// May be served while it is refreshed in the background (RFC 5861, section 3). May be served if the origin fails, too.
    WhileRevalidating,
    /// May be served if the origin was asked and failed (RFC 5861, section 4).
    OnError,
    /// May be served as it is: the client said how stale it may be (RFC 9111, section 5.2.1.2).
    AsAsked,
}

impl Verdict {
    /// Whether it may be served now.
    pub fn serves_now(self) -> bool {
        match self {
            Self::Fresh { .. } => true,
            Self::Stale { use_, .. } => matches!(use_, StaleUse::WhileRevalidating | StaleUse::AsAsked),
        }
    }

    /// Whether it must be refreshed in the background when it is served now.
    pub fn refreshes(self) -> bool {
        matches!(self, Self::Stale { use_: StaleUse::WhileRevalidating, .. })
    }

    /// Whether it may be served if the origin fails.
    pub fn serves_on_error(self) -> bool {
        !matches!(self, Self::Stale { use_: StaleUse::No, .. })
    }
}

/// What may be done with an answer that was received `resident` ago, by what it says, by what its route says and by what the
/// client asks; pass the default where the client has no say.
///
/// A route's `ttl` replaces lifetimes, `Expires`, `no-cache` and `must-revalidate`, and is counted from when the answer was
/// received: its `Age` does not matter. All of it is computed at every read, so that a changed policy changes what is
/// stored already.
pub fn judge(
    claims: &Claims,
    lifetimes: &Lifetimes,
    resident: Duration,
    asked: &RequestDirectives,
) -> Standing {
    let age = claims.initial_age.saturating_add(resident);
    let ttl = ttl(claims, lifetimes);
    let left = match life(claims, lifetimes, ttl, resident) {
        Ok(_) if never_unasked(claims, ttl) => Err(Duration::ZERO),
        left => left,
    };
    let verdict = match left {
        Ok(ttl) if accepts(asked, age, ttl) => Verdict::Fresh { ttl },
        // The client alone does not want it: its wish for a newer one can't be met if the origin fails.
        Ok(_) => {
            let use_ = if asked.no_cache { StaleUse::No } else { StaleUse::OnError };
            Verdict::Stale { stale_for: Duration::ZERO, use_ }
        }
        Err(stale_for) => {
            let use_ = Windows::of(claims, lifetimes, ttl).use_of(age, stale_for, asked);
            Verdict::Stale { stale_for, use_ }
        }
    };
    Standing { age, verdict }
}

/// `no-cache`: not even within its life (section 5.2.2.4), unless a TTL replaces it.
fn never_unasked(claims: &Claims, ttl: Option<Duration>) -> bool {
    claims.directives.no_cache && ttl.is_none()
}

/// How much longer it is within its life, or for how long it has not been: fresh is what is younger than its lifetime
/// (section 4.2).
fn life(
    claims: &Claims,
    lifetimes: &Lifetimes,
    ttl: Option<Duration>,
    resident: Duration,
) -> Result<Duration, Duration> {
    if let Some(ttl) = ttl {
        return left(ttl, resident);
    }
    let age = claims.initial_age.saturating_add(resident);
    let own = left(claims.lifetime.unwrap_or_default(), age);
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

/// The TTL that replaces what an answer says of itself.
pub(crate) fn ttl(claims: &Claims, lifetimes: &Lifetimes) -> Option<Duration> {
    let given = claims.given_ttl().filter(|_| lifetimes.ttl_from.is_some());
    let ttl = given.or_else(|| lifetimes.ttl_of(crate::storing::counted_as(claims.status)));
    ttl.map(|ttl| claims.jittered(ttl, lifetimes.jitter_percent))
}

/// Whether an answer that is fresh for `left` is renewed now, by XFetch (Vattani, Chierichetti and Lowenstein, Optimal
/// Probabilistic Cache Stampede Prevention, 2015): the later of many readers, each with a number of its own, is the more
/// likely to renew it, and the longer it took to make, the earlier.
///
/// `random` is anything of 64 bits. Where an answer comes at once, a hundredth of its life, at most a second, counts in place
/// of the time that it takes.
pub fn refreshes_early(claims: &Claims, left: Duration, resident: Duration, random: u64) -> bool {
    let floor = (left.saturating_add(resident) / 100).min(Duration::from_secs(1));
    let scale = claims.delay().max(floor);
    // No number of 53 bits has a larger logarithm.
    if left > scale.saturating_mul(37) {
        return false;
    }
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    scale.as_secs_f64() * -uniform.ln() >= left.as_secs_f64()
}

/// Whether a client takes what is fresh (RFC 9111, sections 5.2.1.1, 5.2.1.3 and 5.2.1.4).
fn accepts(asked: &RequestDirectives, age: Duration, ttl: Duration) -> bool {
    !asked.no_cache
        // A client that asks for an age of nothing wants it validated, however young it is.
        && asked.max_age.is_none_or(|most| age <= most && !most.is_zero())
        && asked.min_fresh.is_none_or(|least| ttl >= least)
}

/// How long after it was received an answer may be of any use: its life, the longer of its stale windows, and the time for
/// which a validator is worth keeping.
pub fn keep_for(claims: &Claims, lifetimes: &Lifetimes) -> Duration {
    let ttl = ttl(claims, lifetimes);
    let life = life(claims, lifetimes, ttl, Duration::ZERO).unwrap_or_default();
    let worth_validating = if claims.has_validator() {
        life.clamp(Duration::from_secs(10 * 60), Duration::from_secs(24 * 60 * 60))
    } else {
        Duration::ZERO
    };
    life.saturating_add(Windows::of(claims, lifetimes, ttl).longest().max(worth_validating))
}

/// Whether an answer may be served stale at all: not if it says `no-cache`, `must-revalidate` or `proxy-revalidate`, unless a
/// TTL replaces that (RFC 9111, section 4.2.4).
pub fn may_be_stale(claims: &Claims, lifetimes: &Lifetimes) -> bool {
    ttl(claims, lifetimes).is_some() || !forbids_stale(&claims.directives)
}

/// Whether an answer that just came is fresh for a moment, or may be served stale.
pub(crate) fn is_of_use(claims: &Claims, lifetimes: &Lifetimes) -> bool {
    let ttl = ttl(claims, lifetimes);
    let fresh = !never_unasked(claims, ttl) && life(claims, lifetimes, ttl, Duration::ZERO).is_ok();
    // One that came stale may be past its windows, too.
    fresh || keep_stale(claims, lifetimes, ttl)
}

fn keep_stale(claims: &Claims, lifetimes: &Lifetimes, ttl: Option<Duration>) -> bool {
    let over = life(claims, lifetimes, ttl, Duration::ZERO).err().unwrap_or_default();
    over < Windows::of(claims, lifetimes, ttl).longest()
}

#[cfg(test)]
mod tests;
