//! Cleans up after a deleted policy: its sidecars pass everything through at once, its workloads are restarted without
//! them, and its ConfigMap is deleted with the last of its pods.
//!
//! A policy has no finalizer, so `kubectl delete` never hangs; the ConfigMap itself records the remaining work, and
//! survives the operator's absence.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{Api, ResourceExt, runtime::controller::Action};
use larder_api::{annotations, labels, names};
use larder_crds::{CachePolicy, RolloutStrategy};

use super::{
    Context,
    rolling::{Rollout, WebhookState},
    writes::is_not_found,
};
use crate::{
    choice::Choice,
    compile::{self, Owner},
    error::{Error, Result},
    events,
    pod::{has_sidecar, is_finished},
    policy_pods::{PodReport, PolicyPods},
    rollout::{Hold, HoldReason},
    stores::in_namespace,
    workload::{self, Workload},
};

/// Requeue interval while pods still have the sidecar.
const CHANGE_INTERVAL: Duration = Duration::from_millis(1500);

pub(super) async fn reconcile(map: Arc<ConfigMap>, context: Arc<Context>) -> Result<Action> {
    let namespace = map.namespace().unwrap_or_default();
    let Some(name) = map.labels().get(labels::POLICY).cloned() else {
        return Ok(Action::await_change());
    };
    let is_ours = map.labels().get(labels::MANAGED_BY).is_some_and(|manager| manager == labels::MANAGER);
    if !is_ours || map.name_any() != names::config_map(&name) || map.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    context.dependencies.watched_policies.store().wait_until_ready().await.map_err(|_| Error::WatchEnded)?;
    if context.dependencies.policies.get(&namespace, &name).is_some() {
        return Ok(Action::await_change());
    }
    // The list may lag behind. Without the definition the API server responds with a 404 that has no reason, where kube's
    // functions for objects that may be absent expect one.
    let policies: Api<CachePolicy> = Api::namespaced(context.dependencies.client.clone(), &namespace);
    match policies.get_metadata(&name).await {
        Ok(_) => return Ok(Action::await_change()),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error.into()),
    }
    context.stores.ready(&namespace).await?;
    context.teardown(&namespace, &name, &map).await
}

impl Context {
    async fn teardown(&self, namespace: &str, name: &str, map: &ConfigMap) -> Result<Action> {
        self.throughput.lock().await.remove(&(namespace.to_owned(), name.to_owned()));
        let is_owned =
            |labels: &BTreeMap<String, String>| labels.get(labels::POLICY).is_some_and(|of| of == name);
        self.refresh_rollouts(namespace).await?;
        let pods = self.stores.pods.selected(namespace, is_owned);
        let left = pods.iter().any(|pod| has_sidecar(pod) && !is_finished(pod));
        if !left {
            self.dependencies.registration.ensure().await?;
            let restarted: Vec<_> = workload::restarted(&self.stores, Some(namespace)).collect();
            self.forget_workloads(namespace, &restarted, true).await?;
            self.delete_config_map(map).await?;
            self.leftovers.lock().await.remove(&map.uid().unwrap_or_default());
            tracing::info!(namespace, name, "the last pod of a deleted policy is gone");
            return Ok(Action::await_change());
        }
        let strategy = match map.annotations().get(annotations::ROLLOUT_STRATEGY).map(String::as_str) {
            Some("OnCreate") => RolloutStrategy::OnCreate,
            _ => RolloutStrategy::Restart,
        };
        let suspended = compile::suspended(Owner { namespace, name, uid: "" });
        let held = self.put_config_map(namespace, name, &suspended, strategy).await?;
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ConfigMap".into()),
            name: map.metadata.name.clone(),
            namespace: Some(namespace.to_owned()),
            uid: map.uid(),
            ..ObjectReference::default()
        };
        let policy_pods = self.examine(namespace, name, None, false);
        let mut failed = self.touch(namespace, &policy_pods.pods, &held.hash, None).await;
        if held.wrote
            && let Some(event) = events::companions_end(name, &in_namespace(&self.stores.services, namespace))
        {
            self.publish(&event, &about).await;
        }
        failed.extend(self.put_companions((namespace, name), false, &held, &about).await);
        self.dependencies.registration.ensure().await?;
        let mut holds = Vec::new();
        // In the run after the one that wrote: by then every replica's webhook has seen that the policy is gone.
        if !held.wrote && strategy == RolloutStrategy::Restart {
            let rollout = Rollout {
                namespace,
                about: &about,
                webhook: &WebhookState::Settling,
                max_concurrent: u16::MAX,
                takes_back: true,
                restarts: true,
            };
            let rolled = self.roll(&rollout, &policy_pods).await;
            failed.extend(rolled.failed);
            holds = rolled.holds;
        }
        self.tell_of_leftovers(map, &about, &policy_pods, &holds, strategy).await;
        match failed.into_iter().next() {
            Some(first) => Err(first.error),
            None => Ok(Action::requeue(CHANGE_INTERVAL)),
        }
    }

    /// Removes the operator's annotations from those `restarted` workloads of a namespace that no policy selects any more;
    /// from those whose rollout has not ended only if no pod has a sidecar to lose.
    pub(super) async fn forget_workloads(
        &self,
        namespace: &str,
        restarted: &[Workload],
        unfinished_too: bool,
    ) -> Result<()> {
        let policies = self.dependencies.policies.of(namespace);
        for workload in restarted {
            let is_selected =
                || workload.choice() != Choice::Out && policies.serving(&workload.labels()).is_some();
            if (unfinished_too || workload.progress.complete) && !is_selected() {
                self.forget_attempts(workload).await?;
            }
        }
        Ok(())
    }

    /// Reports, once for a policy, the pods that keep their sidecar until somebody deletes them.
    async fn tell_of_leftovers(
        &self,
        map: &ConfigMap,
        about: &ObjectReference,
        policy_pods: &PolicyPods,
        holds: &[Hold],
        strategy: RolloutStrategy,
    ) {
        let lasting: Vec<_> = holds.iter().filter(|hold| hold.reason != HoldReason::Queued).collect();
        let is_restarted = |pod: &PodReport| {
            let mut workloads = policy_pods.workloads.iter();
            strategy == RolloutStrategy::Restart
                && workloads.any(|(workload, _)| {
                    let is_held = lasting.iter().any(|hold| hold.uid == workload.uid);
                    workload.progress.rolls && !is_held && pod.workload.as_ref() == Some(&workload.uid)
                })
        };
        let left = policy_pods.pods.iter().filter(|pod| pod.injected && !is_restarted(pod));
        let names: Vec<_> = left.map(|pod| pod.name.as_str()).collect();
        let uid = map.uid().unwrap_or_default();
        if names.is_empty() || !self.leftovers.lock().await.insert(uid) {
            return;
        }
        let reason = lasting.first().map(|hold| hold.message.as_str());
        self.publish(&events::leftovers(&names, reason), about).await;
    }
}
