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
    /// The address is that of this pod itself.
    Own,
}

impl State {
    /// Returns true if no request to it has ended well.
    pub(super) const fn has_never_replied(&self) -> bool {
        self.asked_at.is_none()
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
        let is_prompt = now.duration_since(asked_at) <= ACKNOWLEDGEMENT_TIMEOUT;
        if is_prompt {
            self.prompt_at = Some(now);
        }
        match &mut self.reach {
            Reach::Unreachable(reason) if !is_prompt => {
                LATE.clone_into(reason);
                None
            }
            reach => match std::mem::replace(reach, Reach::Reachable) {
                Reach::Unreachable(reason) => Some(reason),
                Reach::Unknown | Reach::Reachable | Reach::Own => None,
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
