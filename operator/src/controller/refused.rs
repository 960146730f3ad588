//! The way back from a restart whose pods the API server has come to refuse: a quota, a limit or a webhook that was not
//! there when the restart was tried.

use jiff::Timestamp;
use larder_crds::CachePolicy;

use super::{Context, admission, rolling::Rollout, writes::WriteError};
use crate::{
    choice::Choice,
    compile,
    error::Result,
    inject::{self, Injection},
    rollout::Obstacle,
    workload::Workload,
};

impl Context {
    /// Undoes the overdue restarts of a policy's workloads that lack pods which the API server refuses with the sidecar and
    /// would create without it. Such a workload may have no pods at all. `restarted` are those of the namespace.
    pub(super) async fn undo_refused(
        &self,
        rollout: &Rollout<'_>,
        policy: &CachePolicy,
        restarted: &[Workload],
    ) -> Vec<WriteError> {
        let now = Timestamp::now();
        let patience = self.dependencies.arguments.patience();
        let of_policy = |workload: &Workload| {
            let labels = workload.labels();
            let deciding = self.dependencies.policies.deciding(rollout.namespace, &labels);
            workload.choice() != Choice::Out
                && deciding.is_some_and(|deciding| deciding.metadata.uid == policy.metadata.uid)
        };
        let stuck = restarted.iter().filter(|workload| {
            let progress = &workload.progress;
            let is_overdue = progress.restarted_at.is_some_and(|at| now >= at + patience);
            let lacks = workload.lacks_pods && !progress.complete && progress.attempts > 0 && progress.rolls;
            lacks && is_overdue && of_policy(workload)
        });
        let stuck: Vec<_> = stuck.cloned().collect();
        if stuck.is_empty() {
            return Vec::new();
        }
        let injection = Injection {
            namespace: rollout.namespace,
            policy: policy.metadata.name.as_deref().unwrap_or_default(),
            spec: &policy.spec,
            settings: &self.dependencies.arguments.sidecar,
            network_policies: &[],
            pod_security: None,
        };
        let hash = inject::hash(&injection, &compile::secrets(&policy.spec.cache));
        let mut failed = Vec::new();
        for mut workload in stuck {
            workload.aim_at(Some(&hash));
            if workload.progress.outlived || workload.progress.undone {
                continue;
            }
            if let Err(error) = self.undo_if_refused(rollout, &workload).await {
                failed.push(WriteError { what: format!("could not undo the restart of {workload}"), error });
            }
        }
        failed
    }

    async fn undo_if_refused(&self, rollout: &Rollout<'_>, workload: &Workload) -> Result<()> {
        let Some(message) = admission::refusal(&self.dependencies.client, workload).await? else {
            return Ok(());
        };
        self.undo_because(rollout, workload, Obstacle::Refused, message).await
    }
}
