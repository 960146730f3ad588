//! Pace of restarts: one workload first, then a bounded number at a time.
//!
//! # Guarantees
//! - While no pod of the cluster has been ready with the current sidecar image, one workload at a time is restarted for it
//!   in the whole cluster.
//! - While no workload of a policy has all its pods ready with the policy's sidecar, one workload of the policy at a time
//!   is restarted.
//! - A workload whose rollout does not end holds its place; if it is undone because the sidecar does not start, no other
//!   is restarted. A sidecar that does not start so breaks one pod.

use std::fmt;

/// Restarts in progress, and the evidence that the sidecar works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// True if a pod of the cluster is ready with the current sidecar image.
    pub image_is_proven: bool,
    /// True if a workload of the policy has all its pods ready with the policy's sidecar.
    pub policy_is_proven: bool,
    /// True if the sidecar did not start in another workload, whose restart was undone.
    pub has_failed: bool,
    /// True if other restarts in the namespace would take from the same quota or budget.
    pub alone: bool,
    /// Workloads of the namespace whose restart has not ended.
    pub in_namespace: usize,
    /// Workloads of the cluster whose restart has not ended.
    pub in_cluster: usize,
    /// Workloads of the policy whose restart has not ended.
    pub in_policy: usize,
    /// Maximum number of workloads of the cluster that are restarted at a time.
    pub max_in_cluster: usize,
    /// Maximum number of workloads of the policy that are restarted at a time.
    pub max_in_policy: usize,
}

/// The reason that a restart waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// The sidecar did not start in another workload.
    Failed,
    /// The sidecar image is tried on one workload of the cluster first.
    Image,
    /// The policy's sidecar is tried on one workload first.
    Policy,
    /// Another restart in the namespace takes from the same quota or budget.
    Shared,
    /// As many workloads of the policy as may be are being restarted.
    PolicyLimit,
    /// As many workloads of the cluster as may be are being restarted.
    ClusterLimit,
}

impl Pace {
    /// Returns the reason that a restart waits, or `None` if it may begin.
    pub const fn queue(&self) -> Option<Queued> {
        if self.has_failed {
            Some(Queued::Failed)
        } else if !self.image_is_proven && self.in_cluster > 0 {
            Some(Queued::Image)
        } else if !self.policy_is_proven && self.in_policy > 0 {
            Some(Queued::Policy)
        } else if self.alone && self.in_namespace > 0 {
            Some(Queued::Shared)
        } else if self.in_policy >= self.max_in_policy {
            Some(Queued::PolicyLimit)
        } else if self.in_cluster >= self.max_in_cluster {
            Some(Queued::ClusterLimit)
        } else {
            None
        }
    }
}

impl fmt::Display for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "the sidecar did not start in another workload, whose restart was undone",
            Self::Image => "the sidecar image is tried on one workload of the cluster first",
            Self::Policy => "one workload is restarted first, the others once its pods are ready",
            Self::Shared => "in a namespace with a ResourceQuota or PodDisruptionBudget one workload is restarted at a time",
            Self::PolicyLimit => {
                "as many workloads as sidecar.rollout.maxConcurrent allows are being restarted"
            }
            Self::ClusterLimit => {
                "as many workloads as the chart's rollout.maxConcurrent allows are being restarted"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVEN: Pace = Pace {
        image_is_proven: true,
        policy_is_proven: true,
        has_failed: false,
        alone: false,
        in_namespace: 0,
        in_cluster: 0,
        in_policy: 0,
        max_in_cluster: 3,
        max_in_policy: 2,
    };

    #[test]
    fn unproven_image_is_tried_on_one_workload_of_the_cluster() {
        let unproven = Pace { image_is_proven: false, ..PROVEN };
        assert_eq!(unproven.queue(), None);
        assert_eq!(Pace { in_cluster: 1, ..unproven }.queue(), Some(Queued::Image));
    }

    #[test]
    fn unproven_policy_is_tried_on_one_of_its_workloads() {
        let unproven = Pace { policy_is_proven: false, in_cluster: 1, ..PROVEN };
        assert_eq!(unproven.queue(), None, "another policy's restart");
        assert_eq!(Pace { in_policy: 1, ..unproven }.queue(), Some(Queued::Policy));
    }

    #[test]
    fn nothing_is_restarted_after_a_failure() {
        assert_eq!(Pace { has_failed: true, ..PROVEN }.queue(), Some(Queued::Failed));
    }

    #[test]
    fn restarts_that_share_a_quota_follow_one_another() {
        assert_eq!(Pace { alone: true, in_namespace: 1, ..PROVEN }.queue(), Some(Queued::Shared));
        assert_eq!(Pace { alone: true, ..PROVEN }.queue(), None);
    }

    #[test]
    fn number_of_restarts_at_a_time_is_bounded() {
        assert_eq!(Pace { in_cluster: 1, in_policy: 1, ..PROVEN }.queue(), None);
        assert_eq!(Pace { in_cluster: 2, in_policy: 2, ..PROVEN }.queue(), Some(Queued::PolicyLimit));
        assert_eq!(Pace { in_cluster: 3, in_policy: 1, ..PROVEN }.queue(), Some(Queued::ClusterLimit));
    }
}
