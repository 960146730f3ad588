//! Intervals after which a policy is reconciled again, although nothing that is watched has changed.

use std::time::Duration;

use jiff::Timestamp;
use larder_crds::{CachePolicyStatus, ConditionType, RolloutStrategy};

use crate::{
    policy_pods::PolicyPods,
    rollout::{Decision, decide},
    status,
};

/// Requeue interval while a change is in progress.
const CHANGE_INTERVAL: Duration = Duration::from_millis(1500);
/// Requeue interval while a change does not end.
const STUCK_INTERVAL: Duration = Duration::from_secs(6);
/// Share of a change's age after which it is looked at again, as a divisor.
const PATIENCE: u32 = 20;
/// Share of the time that reconciling a policy may take, as a divisor: timeouts of its sidecars must not delay others.
const SHARE: u32 = 4;
/// Requeue interval otherwise: sidecars are polled, because nothing else reports the loss of a tier, and requests.
pub(super) const IDLE_INTERVAL: Duration = Duration::from_secs(6);

/// Returns the interval for a policy with this status, whose reconciliation took a time. `rests` means that no change is in
/// progress.
pub(super) fn interval(rests: bool, status: &CachePolicyStatus, took: Duration, now: Timestamp) -> Duration {
    let interval = if rests { IDLE_INTERVAL } else { change_interval(status, now) };
    interval.max(took * SHARE).min(IDLE_INTERVAL)
}

/// Returns the interval at which a change in progress is looked at: it grows with the time since a condition changed.
fn change_interval(status: &CachePolicyStatus, now: Timestamp) -> Duration {
    let last = status.conditions.iter().map(|condition| condition.last_transition_time.0).max();
    let age = last.and_then(|last| Duration::try_from(now.duration_since(last)).ok()).unwrap_or_default();
    (age / PATIENCE).clamp(CHANGE_INTERVAL, STUCK_INTERVAL)
}

/// Returns true if no change is in progress that the operator has to follow.
pub(super) fn settled(
    policy_pods: &PolicyPods,
    status: &CachePolicyStatus,
    strategy: RolloutStrategy,
    now: Timestamp,
) -> bool {
    // What is wrong with other pods is not the operator's to repair.
    let on_its_way = strategy == RolloutStrategy::Restart
        && policy_pods.workloads.iter().any(|(workload, pods)| match decide(pods, &workload.progress, now) {
            Decision::Restart(_) | Decision::Wait | Decision::Forget | Decision::Undo(_) => true,
            Decision::Settled | Decision::Manual | Decision::GivenUp | Decision::Undone => false,
        });
    let pods = status.pods;
    let tiers = status::find(status, ConditionType::TiersHealthy).is_none_or(|tiers| tiers.status != "False");
    !on_its_way && tiers && pods.current == pods.injected && pods.ready == pods.injected
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;
    use crate::{
        policy_pods::PodReport,
        rollout::{Deviation, PodState, Progress},
        status::tests::right,
        workload::tests::workload_with,
    };

    fn status(current: i32) -> CachePolicyStatus {
        let mut status = CachePolicyStatus::default();
        status.pods.injected = 1;
        status.pods.ready = 1;
        status.pods.current = current;
        status
    }

    fn policy_pods(deviation: Option<Deviation>) -> PolicyPods {
        let pods = vec![PodReport { deviation, ..right("a") }];
        let workload = workload_with(Progress { complete: true, rolls: true, ..Progress::default() });
        let state = PodState { deviation, newest: true, injected: true, obstacle: None };
        PolicyPods { pods, workloads: vec![(workload, vec![state])], ..PolicyPods::default() }
    }

    #[test]
    fn change_that_does_not_end_is_looked_at_less_often() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let mut changed = status(1);
        changed.conditions = right_conditions(at(0));
        assert_eq!(change_interval(&changed, at(1)), CHANGE_INTERVAL);
        assert_eq!(change_interval(&changed, at(60)), Duration::from_secs(3));
        assert_eq!(change_interval(&changed, at(86_400)), STUCK_INTERVAL);
        assert_eq!(change_interval(&changed, at(-5)), CHANGE_INTERVAL, "clocks differ");
    }

    fn right_conditions(at: Timestamp) -> Vec<Condition> {
        vec![Condition {
            type_: "Ready".into(),
            status: "False".into(),
            reason: "Pending".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(at),
        }]
    }

    #[test]
    fn policy_is_requeued_soon_while_a_change_is_in_progress() {
        let settled = |policy_pods, current| {
            settled(&policy_pods, &status(current), RolloutStrategy::Restart, Timestamp::now())
        };
        assert!(settled(policy_pods(None), 1));
        assert!(!settled(policy_pods(None), 0));
        assert!(!settled(policy_pods(Some(Deviation::Missed)), 1));
    }

    #[test]
    fn controller_does_not_wait_for_pods_that_it_does_not_repair() {
        let now = Timestamp::now();
        let missed = || policy_pods(Some(Deviation::Missed));
        assert!(settled(&missed(), &status(1), RolloutStrategy::OnCreate, now));
        let bare = PolicyPods { workloads: vec![], ..missed() };
        assert!(settled(&bare, &status(1), RolloutStrategy::Restart, now));
        let mut paused = missed();
        paused.workloads[0].0.progress.rolls = false;
        assert!(settled(&paused, &status(1), RolloutStrategy::Restart, now));
    }
}
