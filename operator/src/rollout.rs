//! Restart decisions: one rule for pods that were missed, are outdated, or should lose their sidecar.
//!
//! # Guarantees
//! - A rollout in progress, or one that is stuck for a reason of its own, is not disturbed. Only if a pod of its newest
//!   revision deviates from what Larder wants does another begin, which resolves a rollout that Larder itself blocked.
//! - Ineffective restarts are repeated at growing intervals, after 10 s, 20 s and so on, and no more than
//!   [`MAX_ATTEMPTS`] times until their aim changes.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FIRST_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of consecutive ineffective restarts.
pub const MAX_ATTEMPTS: u32 = 4;

larder_api::labelled! {
    /// A pod's deviation from the desired state.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Deviation {
        /// The pod should have a sidecar and has none.
        Missed = "Missed",
        /// The pod's sidecar has outdated settings.
        Outdated = "Outdated",
        /// The pod should have no sidecar and has one.
        Stray = "Stray",
    }
}

impl Deviation {
    /// Returns the reason that a workload with such pods is restarted, as a clause.
    pub const fn clause(self) -> &'static str {
        match self {
            Self::Missed => "pods have no sidecar",
            Self::Outdated => "pods have a sidecar with outdated settings",
            Self::Stray => "pods have a sidecar that they should no longer have",
        }
    }
}

/// A pod of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodState {
    /// The pod's deviation from the desired state.
    pub deviation: Option<Deviation>,
    /// True if the pod was created from the workload's newest template.
    pub newest: bool,
    /// True if the pod has the sidecar.
    pub injected: bool,
    /// The reason that the pod does not start.
    pub obstacle: Option<Obstacle>,
}

larder_api::labelled! {
    /// Reasons that a pod with the sidecar does not start and will not without a change.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Obstacle {
        /// No node takes the pod.
        Unschedulable = "no node takes a pod with the sidecar",
        /// The sidecar's image cannot be pulled.
        Image = "the sidecar's image cannot be pulled",
        /// The sidecar's container cannot be created or ends again and again.
        Sidecar = "the sidecar does not start",
        /// The application ends again and again, after it was given another port.
        Application = "the application does not start with another port, by the portFrom of the policy's targets",
        /// The API server refuses the pods that are still to be created.
        Refused = "the API server refuses a pod with the sidecar",
    }
}

impl Obstacle {
    /// Returns the reason of a condition.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unschedulable => "Unschedulable",
            Self::Image => "ImageNotPulled",
            Self::Sidecar => "SidecarNotStarted",
            Self::Application => "ApplicationNotStarted",
            Self::Refused => "AdmissionRefused",
        }
    }

    /// Returns true if other workloads would meet the obstacle as well.
    pub const fn is_common(self) -> bool {
        match self {
            Self::Unschedulable | Self::Application | Self::Refused => false,
            Self::Image | Self::Sidecar => true,
        }
    }
}

/// A restart that was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The aim of the restart.
    pub aim: String,
    /// The sidecar's image.
    pub image: String,
    /// The reason.
    pub obstacle: Obstacle,
    /// The reason in Kubernetes' words.
    pub message: String,
}

larder_api::labelled! {
    /// Reasons that a restart does not begin.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum HoldReason {
        /// The API server refuses the pods that the workload would create.
        AdmissionRefused = "AdmissionRefused",
        /// The API server would create the pods without the sidecar.
        NotInjected = "NotInjected",
        /// A PodDisruptionBudget does not allow it.
        DisruptionBudget = "DisruptionBudget",
        /// The last restart could not end and was undone.
        RolloutUndone = "RolloutUndone",
        /// Other workloads are restarted first.
        Queued = "Queued",
    }
}

/// A restart that is needed and does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// uid of the workload.
    pub uid: String,
    /// The reason, for programs.
    pub reason: HoldReason,
    /// The reason and the remedy, for users, as a clause.
    pub message: String,
}

/// Progress of a workload's own rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// True if every replica is of the newest template, and available.
    pub complete: bool,
    /// True if a changed template would be rolled out: false while paused, and with `OnDelete`.
    pub rolls: bool,
    /// Time of the operator's last restart of the workload.
    pub restarted_at: Option<Timestamp>,
    /// Number of consecutive ineffective restarts.
    pub attempts: u32,
    /// True if those restarts had another aim than a restart would have now.
    pub outlived: bool,
    /// True if a restart with the current aim was undone.
    pub undone: bool,
    /// Time after which a restart whose pods do not start is undone.
    pub patience: Duration,
}

impl Progress {
    /// Returns the number of consecutive ineffective restarts with the current aim.
    pub const fn tries(&self) -> u32 {
        if self.outlived { 0 } else { self.attempts }
    }
}

/// The action for a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// None: its pods are right.
    Settled,
    /// Reset the attempts: its pods are right.
    Forget,
    /// Restart the workload, for the first of these deviations.
    Restart(Deviation),
    /// Wait: a rollout is in progress, or the pause is not over.
    Wait,
    /// Undo the last restart, because its pods do not start.
    Undo(Obstacle),
    /// None: the last restart was undone, and another would end in the same way.
    Undone,
    /// None: the workload does not roll out by itself.
    Manual,
    /// None: restarts have no effect.
    GivenUp,
}

/// Decides the action for a workload with these pods.
pub fn decide(pods: &[PodState], progress: &Progress, now: Timestamp) -> Decision {
    let wrong = |newest_only: bool| {
        pods.iter().filter(|pod| pod.newest || !newest_only).filter_map(|pod| pod.deviation).max()
    };
    let is_right = |pod: &PodState| pod.injected && pod.deviation.is_none();
    if progress.undone && !(progress.complete && pods.iter().all(is_right)) {
        return Decision::Undone;
    }
    if let Some(obstacle) = obstacle(pods, progress, now) {
        return Decision::Undo(obstacle);
    }
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
    let deviation = if progress.complete {
        wrong(false)
    } else {
        // A pod that was missed answers requests; its rollout gets its time. Others may be why it does not end.
        wrong(true).filter(|deviation| *deviation != Deviation::Missed)
    };
    match deviation {
        Some(deviation) if progress.restarted_at.is_none_or(|at| now >= at + pause(progress.tries())) => {
            if progress.tries() < MAX_ATTEMPTS {
                Decision::Restart(deviation)
            } else {
                Decision::GivenUp
            }
        }
        _ => Decision::Wait,
    }
}

/// Returns the reason that a restart by the operator is overdue, if it is one that only a change removes.
fn obstacle(pods: &[PodState], progress: &Progress, now: Timestamp) -> Option<Obstacle> {
    let is_overdue = progress.restarted_at.is_some_and(|at| now >= at + progress.patience);
    if progress.complete || progress.tries() == 0 || !is_overdue {
        return None;
    }
    pods.iter().filter(|pod| pod.newest).find_map(|pod| pod.obstacle)
}

/// Returns the minimum time between a restart and the next.
fn pause(attempts: u32) -> Duration {
    let doublings = attempts.min(MAX_ATTEMPTS).saturating_sub(1);
    if attempts == 0 { Duration::ZERO } else { FIRST_INTERVAL * 2_u32.pow(doublings) }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const RIGHT: PodState = PodState { deviation: None, newest: true, injected: true, obstacle: None };

    fn wrong(deviation: Deviation) -> PodState {
        PodState { deviation: Some(deviation), newest: true, injected: true, obstacle: None }
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn complete() -> Progress {
        Progress { complete: true, rolls: true, ..Progress::default() }
    }

    #[test]
    fn a_complete_rollout_with_a_wrong_pod_is_restarted() {
        for deviation in [Deviation::Missed, Deviation::Outdated, Deviation::Stray] {
            assert_eq!(decide(&[RIGHT, wrong(deviation)], &complete(), now()), Decision::Restart(deviation));
        }
        assert_eq!(decide(&[RIGHT], &complete(), now()), Decision::Settled);
        assert_eq!(decide(&[], &complete(), now()), Decision::Settled);
    }

    #[test]
    fn rollout_in_progress_is_not_disturbed() {
        let under_way = Progress { complete: false, ..complete() };
        let old =
            PodState { deviation: Some(Deviation::Outdated), newest: false, injected: true, obstacle: None };
        assert_eq!(decide(&[RIGHT, old], &under_way, now()), Decision::Wait);
        assert_eq!(
            decide(&[wrong(Deviation::Missed)], &under_way, now()),
            Decision::Wait,
            "a crashing application"
        );
    }

    #[test]
    fn rollout_blocked_by_the_sidecar_is_replaced() {
        let stuck = Progress { complete: false, ..complete() };
        assert_eq!(
            decide(&[wrong(Deviation::Outdated)], &stuck, now()),
            Decision::Restart(Deviation::Outdated)
        );
        assert_eq!(decide(&[wrong(Deviation::Stray)], &stuck, now()), Decision::Restart(Deviation::Stray));
    }

    #[test]
    fn restart_whose_pods_do_not_start_is_undone() {
        let progress = |ago: i64| Progress {
            complete: false,
            attempts: 1,
            restarted_at: Some(now() - SignedDuration::from_secs(ago)),
            patience: Duration::from_secs(300),
            ..complete()
        };
        let stuck = PodState { obstacle: Some(Obstacle::Image), ..RIGHT };
        let old = PodState { deviation: Some(Deviation::Missed), newest: false, ..RIGHT };
        for pods in [&[stuck][..], &[stuck, old]] {
            assert_eq!(decide(pods, &progress(299), now()), Decision::Wait);
            assert_eq!(decide(pods, &progress(300), now()), Decision::Undo(Obstacle::Image));
        }
        assert_eq!(decide(&[RIGHT, old], &progress(300), now()), Decision::Wait, "the application is slow");
        let old_stuck = PodState { newest: false, ..stuck };
        assert_eq!(decide(&[RIGHT, old_stuck], &progress(300), now()), Decision::Wait);
        let anothers = Progress { attempts: 0, ..progress(300) };
        assert_eq!(decide(&[stuck], &anothers, now()), Decision::Settled, "not a restart by the operator");
        let undone = Progress { undone: true, ..progress(300) };
        assert_eq!(decide(&[wrong(Deviation::Missed)], &undone, now()), Decision::Undone);
        let withheld = PodState { injected: false, ..RIGHT };
        assert_eq!(decide(&[withheld], &Progress { complete: true, ..undone }, now()), Decision::Undone);
        assert_eq!(
            decide(&[RIGHT], &Progress { complete: true, ..undone }, now()),
            Decision::Forget,
            "it was mended"
        );
    }

    #[test]
    fn ineffective_restarts_back_off() {
        use Decision::{GivenUp, Restart};
        let restart = Restart(Deviation::Missed);
        for (attempts, seconds, then) in
            [(1, 10, restart), (2, 20, restart), (3, 40, restart), (4, 80, GivenUp), (50, 80, GivenUp)]
        {
            let progress = |ago: i64| Progress {
                restarted_at: Some(now() - SignedDuration::from_secs(ago)),
                attempts,
                ..complete()
            };
            let decide = |ago| decide(&[wrong(Deviation::Missed)], &progress(ago), now());
            assert_eq!(decide(seconds - 1), Decision::Wait, "{attempts}");
            assert_eq!(decide(seconds), then, "{attempts}");
        }
    }

    #[test]
    fn new_aim_resets_the_attempts() {
        let progress =
            Progress { restarted_at: Some(now()), attempts: MAX_ATTEMPTS, outlived: true, ..complete() };
        assert_eq!(
            decide(&[wrong(Deviation::Missed)], &progress, now()),
            Decision::Restart(Deviation::Missed)
        );
        assert_eq!(decide(&[RIGHT], &progress, now()), Decision::Forget);
    }

    #[test]
    fn attempts_reset_when_the_pods_are_right() {
        let progress = Progress { attempts: 3, ..complete() };
        assert_eq!(decide(&[RIGHT], &progress, now()), Decision::Forget);
        assert_eq!(decide(&[RIGHT], &Progress { complete: false, ..progress }, now()), Decision::Wait);
    }

    #[test]
    fn workload_without_automatic_rollout_is_left_to_the_user() {
        let paused = Progress { rolls: false, ..complete() };
        assert_eq!(decide(&[wrong(Deviation::Missed)], &paused, now()), Decision::Manual);
    }
}
