//! State of another pod, as far as this one knows.

use larder_api::admin::PeerReplied;
use tokio::time::Instant;

use super::ACKNOWLEDGEMENT_TIMEOUT;

/// Reason for which nobody waits for a pod that replies later than purges wait, if at all.
pub(super) const LATE: &str = "no reply in time";

/// State of another pod, as far as this one knows.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) reach: Reach,
    /// Number of the last purge through this process up to which all hold there.
    pub(super) acknowledged: u64,
    /// Time at which the last request left that it replied to.
    pub(super) asked_at: Option<Instant>,
    /// The last reply.
    pub(super) replied: Option<PeerReplied>,
    /// Time of the last reply that came in time.
    prompt_at: Option<Instant>,
    /// Time at which the last request left that failed.
    failed_at: Option<Instant>,
    /// The last process that is known there: it has replied, or said that this is its address.
    process: Option<u64>,
    /// True once that process has said that it serves nothing any more.
    has_left: bool,
}

/// Outcome of the last request to another pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// None has ended.
    #[default]
    Unknown,
    /// Replied.
    Reachable,
    /// Did not reply, or not in time, for this reason.
    Unreachable(String),
    /// Nothing is stored there: nobody has ever been there and connections are refused, or whoever was there has left.
    Absent,
    /// The address is that of this pod itself.
    Own,
}

impl State {
    /// Returns true if no request to it has ended well.
    pub(super) const fn has_never_replied(&self) -> bool {
        self.asked_at.is_none()
    }

    /// Returns true if a pod that begins need not wait for it: it has replied, or it will find this pod by itself.
    pub(super) fn is_joined(&self) -> bool {
        !self.has_never_replied() || matches!(self.reach, Reach::Absent | Reach::Own)
    }

    /// Returns true if nobody is there who has to hear of a purge that was made then, as far as is known since.
    pub(super) fn needs_none(&self, since: Instant) -> bool {
        match self.reach {
            Reach::Own => true,
            // Somebody may have begun there meanwhile.
            Reach::Absent => self.has_left || self.failed_at.is_some_and(|at| at >= since),
            _ => false,
        }
    }

    /// Takes note of a process that said that this is its address. Returns true if it is to be waited for again.
    pub(super) fn is_announced(&mut self, instance: u64, begins: bool) -> bool {
        self.is_of(instance);
        let is_lost = matches!(self.reach, Reach::Unreachable(_)) && begins
            || self.reach == Reach::Absent && !self.has_left;
        if is_lost {
            self.reach = Reach::Unknown;
        }
        is_lost
    }

    /// Takes note of a process that serves nothing any more. Returns true if it is the one that is known here.
    pub(super) fn has_gone(&mut self, instance: u64) -> bool {
        let is_here = self.process == Some(instance);
        if is_here {
            (self.has_left, self.reach) = (true, Reach::Absent);
        }
        is_here
    }

    fn is_of(&mut self, instance: u64) {
        if self.process != Some(instance) {
            (self.process, self.has_left) = (Some(instance), false);
        }
    }

    /// Takes note of a request that left at `asked_at` and failed, because the connection was refused (`is_refused`) or for another
    /// reason. Returns true if the pod could be reached until then.
    pub(super) fn fails(&mut self, reason: &str, is_refused: bool, asked_at: Instant) -> bool {
        self.failed_at = Some(asked_at);
        // A sidecar accepts connections before it stores anything, and is known to the others it can reach.
        let is_absent = self.has_left || is_refused && self.process.is_none();
        let was_reachable = !matches!(self.reach, Reach::Unreachable(_));
        self.reach = if is_absent { Reach::Absent } else { Reach::Unreachable(reason.to_owned()) };
        was_reachable && !is_absent
    }

    /// Takes a reply to a request that left at `asked_at`. Returns the reason that it was unreachable until then.
    ///
    /// One that came too late does not change that: each purge would wait for the pod in vain.
    pub(super) fn replied(
        &mut self,
        acknowledged: u64,
        reply: PeerReplied,
        asked_at: Instant,
        now: Instant,
    ) -> Option<String> {
        (self.acknowledged, self.replied, self.asked_at) = (acknowledged, Some(reply), Some(asked_at));
        self.is_of(reply.instance);
        let is_prompt = now.duration_since(asked_at) <= ACKNOWLEDGEMENT_TIMEOUT;
        if is_prompt {
            self.prompt_at = Some(now);
        }
        match &mut self.reach {
            Reach::Absent if self.has_left => None,
            Reach::Unreachable(reason) if !is_prompt => {
                LATE.clone_into(reason);
                None
            }
            reach => match std::mem::replace(reach, Reach::Reachable) {
                Reach::Unreachable(reason) => Some(reason),
                Reach::Unknown | Reach::Reachable | Reach::Absent | Reach::Own => None,
            },
        }
    }

    /// Returns true if nobody should wait for it, after a wait since `began` was in vain: if it has replied in time meanwhile, it was
    /// busy with what came before.
    pub(super) fn is_late(&self, began: Instant) -> bool {
        self.prompt_at.is_none_or(|at| at < began)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PROMPT: Duration = Duration::from_millis(20);
    const SLOW: Duration = Duration::from_millis(130);

    #[test]
    fn slow_pod_stays_unreachable_until_it_replies_in_time() {
        let (mut state, now) =
            (State { reach: Reach::Unreachable("x".into()), ..State::default() }, Instant::now());
        assert_eq!(state.replied(3, PeerReplied::default(), now, now + SLOW), None);
        assert_eq!((state.acknowledged, &state.reach), (3, &Reach::Unreachable(LATE.into())), "it has them");
        assert_eq!(state.replied(4, PeerReplied::default(), now, now + PROMPT), Some(LATE.into()));
        assert_eq!(state.reach, Reach::Reachable);
        assert_eq!(state.replied(5, PeerReplied::default(), now, now + SLOW), None);
        assert_eq!(state.reach, Reach::Reachable, "no purge has waited for it in vain");
    }

    #[test]
    fn address_that_refuses_connections_is_absent_unless_somebody_was_there() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(!state.fails("refused", true, now) && state.reach == Reach::Absent && state.is_joined());
        assert!(state.needs_none(now) && !state.needs_none(now + PROMPT), "until it is tried again");
        assert!(state.fails("timed out", false, now), "somebody may be there");
        assert!(!state.needs_none(now) && !state.is_joined());
        assert!(!state.fails("refused", true, now) && state.needs_none(now));
        assert!(state.is_announced(1, false), "its requests arrive, at least");
        assert_eq!(state.reach, Reach::Unknown);
        assert!(
            state.fails("refused", true, now) && !state.needs_none(now),
            "it may be the network that refuses"
        );
    }

    #[test]
    fn pod_that_has_left_is_absent_until_another_process_is_there() {
        let (mut state, now) = (State::default(), Instant::now());
        let reply = |instance| PeerReplied { instance, ..PeerReplied::default() };
        assert!(!state.has_gone(1), "it is not known here");
        state.replied(0, reply(1), now, now);
        assert!(!state.has_gone(2) && state.has_gone(1) && state.needs_none(now + SLOW));
        state.replied(0, reply(1), now, now);
        assert!(!state.fails("timed out", false, now) && !state.is_announced(1, false));
        assert_eq!(state.reach, Reach::Absent, "late messages of it change nothing");
        assert!(state.is_announced(2, true) && !state.has_gone(1), "another process is there");
        state.replied(0, reply(2), now, now);
        assert_eq!(state.reach, Reach::Reachable);
    }

    #[test]
    fn wait_is_in_vain_if_no_reply_came_in_time_meanwhile() {
        let (mut state, began) = (State::default(), Instant::now());
        assert!(state.is_late(began));
        state.replied(0, PeerReplied::default(), began - SLOW, began + PROMPT);
        assert!(state.is_late(began), "it replied, but too late");
        state.replied(0, PeerReplied::default(), began, began + PROMPT);
        assert!(!state.is_late(began), "it replied to what it was sent before");
        assert!(state.is_late(began + SLOW), "and not since");
    }
}
