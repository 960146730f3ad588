//! Whether to restart a workload: one rule for pods that were missed, are outdated, or should lose their sidecar.
//!
//! # Guarantees
//! - A rollout that is under way, or that is stuck for a reason of its own, is left alone. Only when a pod of its newest
//!   revision is wrong on Larder's account does another begin: the way out of a rollout that Larder itself got stuck.
//! - Restarts that don't help come ever more rarely, after 10 s, 20 s and so on, and after [`MOST_ATTEMPTS`] not any more,
//!   until what they are for changes.

use std::time::Duration;

use jiff::Timestamp;

const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// How many restarts in a row may fail to help.
pub const MOST_ATTEMPTS: u32 = 4;

/// What is wrong with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It has no sidecar and should have one.
    Missed,
    /// Its sidecar is of other settings.
    Outdated,
    /// It has a sidecar and should have none.
    Stray,
}

impl Fault {
    /// Its name in metrics and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "Missed",
            Self::Outdated => "Outdated",
            Self::Stray => "Stray",
        }
    }
}

/// A pod of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodState {
    /// What is wrong with it.
    pub fault: Option<Fault>,
    /// Whether it was made from the workload's newest template.
    pub newest: bool,
}

/// How far a workload's own rollout is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether every replica is of the newest template, and available.
    pub complete: bool,
    /// Whether a changed template would be rolled out at all: not while paused, nor with `OnDelete`.
    pub rolls: bool,
    /// When the operator last restarted it.
    pub restarted_at: Option<Timestamp>,
    /// How many of its restarts in a row have not helped.
    pub attempts: u32,
    /// Whether those were for something else than what a restart would be for now.
    pub outlived: bool,
}

impl Progress {
    /// How many restarts in a row have not brought what a restart would bring now.
    pub const fn tries(&self) -> u32 {
        if self.outlived { 0 } else { self.attempts }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: its pods are right.
    Settled,
    /// Forget the attempts: its pods are right.
    Forget,
    /// Restart it, for the first of these faults.
    Restart(Fault),
    /// Nothing yet: its rollout is under way, or the pause is not over.
    Wait,
    /// Nothing at all: it does not roll out by itself.
    Manual,
    /// Nothing any more: restarts don't help.
    GivenUp,
}

/// What to do with a workload whose pods these are.
pub fn decide(pods: &[PodState], progress: &Progress, now: Timestamp) -> Decision {
    let wrong = |newest_only: bool| {
        pods.iter().filter(|pod| pod.newest || !newest_only).filter_map(|pod| pod.fault).max()
    };
    if wrong(false).is_none() {
        return match (progress.attempts, progress.complete) {
            (0, _) => Decision::Settled,
            (_, true) => Decision::Forget,
            (_, false) => Decision::Wait,
        };
    }
    if !progress.rolls {
        return Decision::Manual;
    }
    let fault = if progress.complete {
        wrong(false)
    } else {
        // A pod that was missed answers requests; its rollout gets its time. Others may be why it does not end.
        wrong(true).filter(|fault| *fault != Fault::Missed)
    };
    match fault {
        Some(fault) if progress.restarted_at.is_none_or(|at| now >= at + pause(progress.tries())) => {
            if progress.tries() < MOST_ATTEMPTS {
                Decision::Restart(fault)
            } else {
                Decision::GivenUp
            }
        }
        _ => Decision::Wait,
    }
}

/// How long after a restart the next may come.
fn pause(attempts: u32) -> Duration {
    let doublings = attempts.min(MOST_ATTEMPTS).saturating_sub(1);
    if attempts == 0 { Duration::ZERO } else { FIRST_PAUSE * 2_u32.pow(doublings) }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const RIGHT: PodState = PodState { fault: None, newest: true };

    fn wrong(fault: Fault) -> PodState {
        PodState { fault: Some(fault), newest: true }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn complete() -> Progress {
        Progress { complete: true, rolls: true, ..Progress::default() }
    }

    #[test]
    fn a_complete_rollout_with_a_wrong_pod_is_restarted() {
        for fault in [Fault::Missed, Fault::Outdated, Fault::Stray] {
            assert_eq!(decide(&[RIGHT, wrong(fault)], &complete(), now()), Decision::Restart(fault));
        }
        assert_eq!(decide(&[RIGHT], &complete(), now()), Decision::Settled);
        assert_eq!(decide(&[], &complete(), now()), Decision::Settled);
    }

    #[test]
    fn a_rollout_under_way_is_left_alone() {
        let under_way = Progress { complete: false, ..complete() };
        let old = PodState { fault: Some(Fault::Outdated), newest: false };
        assert_eq!(decide(&[RIGHT, old], &under_way, now()), Decision::Wait);
        assert_eq!(
            decide(&[wrong(Fault::Missed)], &under_way, now()),
            Decision::Wait,
            "a crashing application"
        );
    }

    #[test]
    fn a_rollout_that_the_sidecar_got_stuck_is_replaced() {
        let stuck = Progress { complete: false, ..complete() };
        assert_eq!(decide(&[wrong(Fault::Outdated)], &stuck, now()), Decision::Restart(Fault::Outdated));
        assert_eq!(decide(&[wrong(Fault::Stray)], &stuck, now()), Decision::Restart(Fault::Stray));
    }

    #[test]
    fn restarts_that_do_not_help_come_ever_more_rarely() {
        use Decision::{GivenUp, Restart};
        let restart = Restart(Fault::Missed);
        for (attempts, seconds, then) in
            [(1, 10, restart), (2, 20, restart), (3, 40, restart), (4, 80, GivenUp), (50, 80, GivenUp)]
        {
            let progress = |ago: i64| Progress {
                restarted_at: Some(now() - SignedDuration::from_secs(ago)),
                attempts,
                ..complete()
            };
            let decide = |ago| decide(&[wrong(Fault::Missed)], &progress(ago), now());
            assert_eq!(decide(seconds - 1), Decision::Wait, "{attempts}");
            assert_eq!(decide(seconds), then, "{attempts}");
        }
    }

    #[test]
    fn another_aim_is_tried_anew() {
        let progress =
            Progress { restarted_at: Some(now()), attempts: MOST_ATTEMPTS, outlived: true, ..complete() };
        assert_eq!(decide(&[wrong(Fault::Missed)], &progress, now()), Decision::Restart(Fault::Missed));
        assert_eq!(decide(&[RIGHT], &progress, now()), Decision::Forget);
    }

    #[test]
    fn attempts_are_forgotten_when_the_pods_are_right() {
        let progress = Progress { attempts: 3, ..complete() };
        assert_eq!(decide(&[RIGHT], &progress, now()), Decision::Forget);
        assert_eq!(decide(&[RIGHT], &Progress { complete: false, ..progress }, now()), Decision::Wait);
    }

    #[test]
    fn what_does_not_roll_out_by_itself_is_left_to_people() {
        let paused = Progress { rolls: false, ..complete() };
        assert_eq!(decide(&[wrong(Fault::Missed)], &paused, now()), Decision::Manual);
    }
}
