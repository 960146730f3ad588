//! The writes of the controllers to the API server, those of companions aside.

use std::{collections::BTreeMap, fmt};

use jiff::{Timestamp, Unit};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, EvictParams, Patch, PatchParams, PostParams, Preconditions},
    core::ApiResource,
    runtime::reflector::ObjectRef,
};
use larder_api::{annotations, config_map, labels, names};
use larder_crds::{CachePolicy, CachePolicyStatus, RolloutStrategy};
use larder_policy::Coverage;
use serde_json::{Value, json};

use super::Context;
use crate::{
    argo,
    compile::{self, Compiled},
    error::{Error, Result},
    policy_pods::PodReport,
    rollout::{Deviation, Undone},
    workload::{NOTES, Workload, WorkloadKind},
};

/// Contents of a policy's ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// uid of the ConfigMap.
    pub(super) uid: String,
    /// True if the ConfigMap was just written.
    pub(super) wrote: bool,
    /// The hash of the document in it.
    pub(super) hash: String,
    /// True if sidecars run the document only while the coverage permits that.
    pub(super) follows_coverage: bool,
    /// The coverage beside the document, as text.
    pub(super) coverage: Option<String>,
}

impl Held {
    fn of(map: &ConfigMap, wrote: bool) -> Self {
        Self {
            uid: map.uid().unwrap_or_default(),
            wrote,
            hash: compile::held_hash(map),
            follows_coverage: compile::held_follows_coverage(map),
            coverage: compile::held_coverage(map).map(str::to_owned),
        }
    }
}

/// Maximum number of pods of a policy that are annotated at a time.
const MAX_TOUCHES: usize = 32;

/// A failed write, after which the others continued.
#[derive(Debug)]
pub(super) struct WriteError {
    /// The attempted action.
    pub(super) what: String,
    /// The cause.
    pub(super) error: Error,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Error::Kubernetes(kube::Error::Api(status)) => write!(f, "{}: {}", self.what, status.message),
            error => write!(f, "{}: {error}", self.what),
        }
    }
}

impl Context {
    /// Writes a policy's ConfigMap if it is missing or was written for another configuration. A manual edit leaves the
    /// recorded hash unchanged and so persists until the policy changes.
    pub(super) async fn put_config_map(
        &self,
        namespace: &str,
        policy: &str,
        compiled: &Compiled,
        strategy: RolloutStrategy,
    ) -> Result<Held> {
        let maps: Api<ConfigMap> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let name = names::config_map(policy);
        let current = self.config_map(&maps, namespace, &name).await?;
        if let Some(label) = current.as_ref().and_then(|map| foreign(map.labels(), policy)) {
            return Err(Error::NameTaken { kind: "ConfigMap", name, label });
        }
        let recorded = current.as_ref().and_then(compile::recorded_hash);
        let (map, wrote) = match &current {
            Some(map) if recorded == Some(compiled.hash.as_str()) => {
                let strategy = compile::strategy_name(strategy);
                if map
                    .annotations()
                    .get(annotations::ROLLOUT_STRATEGY)
                    .is_none_or(|recorded| recorded != strategy)
                {
                    let annotations = json!({ annotations::ROLLOUT_STRATEGY: strategy });
                    annotate(&maps, &name, annotations).await?;
                    self.wrote_config_map(namespace, &name).await;
                }
                (map.clone(), false)
            }
            _ => {
                let map = compile::config_map(namespace, policy, compiled, strategy);
                let options = PatchParams::apply(names::FIELD_MANAGER).force();
                self.wrote_config_map(namespace, &name).await;
                (maps.patch(&name, &options, &Patch::Apply(&map)).await?, true)
            }
        };
        self.put_token(namespace, policy, &map).await?;
        Ok(Held::of(&map, wrote))
    }

    /// Returns a ConfigMap: from the watched list if that has the version that was last seen here, and from the API server
    /// otherwise.
    async fn config_map(
        &self,
        maps: &Api<ConfigMap>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ConfigMap>> {
        let key = ObjectRef::new(name).within(namespace);
        let listed = self.config_maps.get(&key);
        let mut seen = self.seen_config_maps.lock().await;
        if let Some(listed) = listed.filter(|listed| seen.get(&key) == listed.resource_version().as_ref()) {
            return Ok(Some((*listed).clone()));
        }
        // Until it has been read, nobody knows its version.
        seen.remove(&key);
        drop(seen);
        let found = maps.get_opt(name).await?;
        if let Some(version) = found.as_ref().and_then(ResourceExt::resource_version) {
            self.seen_config_maps.lock().await.insert(key, version);
        }
        Ok(found)
    }

    /// Has a ConfigMap read from the API server next time, because the watched list may lag behind a write.
    async fn wrote_config_map(&self, namespace: &str, name: &str) {
        self.seen_config_maps.lock().await.remove(&ObjectRef::new(name).within(namespace));
    }

    /// Returns the contents of a policy's ConfigMap, if there is one.
    pub(super) async fn held(&self, namespace: &str, policy: &str) -> Result<Option<Held>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let map = self.config_map(&maps, namespace, &names::config_map(policy)).await?;
        let map = map.filter(|map| foreign(map.labels(), policy).is_none());
        Ok(map.map(|map| Held::of(&map, false)))
    }

    /// Writes or removes the coverage beside a policy's document. A manual edit of the document persists.
    pub(super) async fn put_coverage(
        &self,
        namespace: &str,
        policy: &str,
        coverage: Option<&Coverage>,
    ) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let body = json!({ "data": { config_map::COVERAGE: coverage.map(Coverage::to_json) } });
        let options =
            PatchParams { field_manager: Some(names::COVERAGE_MANAGER.into()), ..PatchParams::default() };
        let name = names::config_map(policy);
        let written = maps.patch_metadata(&name, &options, &Patch::Merge(&body)).await;
        self.wrote_config_map(namespace, &name).await;
        match written {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Deletes a ConfigMap if it is unchanged since it was observed; its token is deleted with it.
    pub(super) async fn delete_config_map(&self, map: &ConfigMap) -> Result<()> {
        let maps: Api<ConfigMap> =
            Api::namespaced(self.dependencies.client.clone(), &map.namespace().unwrap_or_default());
        let unchanged = Preconditions { uid: map.uid(), resource_version: map.resource_version() };
        let options = DeleteParams::default().preconditions(unchanged);
        self.wrote_config_map(&map.namespace().unwrap_or_default(), &map.name_any()).await;
        match maps.delete(&map.name_any(), &options).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Annotates pods with the hash and the coverage if theirs differ, so that the kubelet refreshes their ConfigMap at
    /// once and not in a minute or two. A pod that cannot be written does not affect the others.
    pub(super) async fn touch(
        &self,
        namespace: &str,
        pods: &[PodReport],
        hash: &str,
        coverage: Option<&Coverage>,
    ) -> Vec<WriteError> {
        let api: Api<Pod> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let coverage = coverage.map(|Coverage { state, since, .. }| format!("{state:?} since {since}"));
        let stale = pods.iter().filter(|pod| {
            let is_told = coverage.is_none() || pod.coverage == coverage;
            pod.injected && (pod.config_hash.as_deref() != Some(hash) || !is_told)
        });
        let touch = async |pod: &PodReport| {
            let mut annotations = json!({ annotations::CONFIG_HASH: hash });
            if let Some(coverage) = &coverage {
                annotations[annotations::COVERAGE] = json!(coverage);
            }
            let error = annotate(&api, &pod.name, annotations).await.err()?;
            Some(WriteError { what: format!("could not annotate pod {}", pod.name), error })
        };
        let mut failed = Vec::new();
        for some in stale.collect::<Vec<_>>().chunks(MAX_TOUCHES) {
            let touched = futures::future::join_all(some.iter().map(|pod| touch(pod))).await;
            failed.extend(touched.into_iter().flatten());
        }
        failed
    }

    /// Restarts a workload, as `kubectl rollout restart` does.
    pub(super) async fn restart(
        &self,
        workload: &Workload,
        deviation: Deviation,
        now: Timestamp,
    ) -> Result<()> {
        // Where the last restart has not ended, the way back leads to what was before it.
        let unfinished = workload.progress.attempts > 0 && !workload.progress.complete;
        let before = if unfinished { &workload.restarted_before } else { &workload.restarted_at };
        let mut body = json!({
            "metadata": { "annotations": {
                annotations::ROLL_ATTEMPTS: (workload.progress.tries() + 1).to_string(),
                annotations::ROLL_AIM: workload.aim,
                annotations::ROLL_BEFORE: before.as_deref().unwrap_or_default(),
                annotations::ROLL_UNDONE: null,
            } },
            "spec": { "template": { "metadata": { "annotations": {
                annotations::RESTARTED_AT: now.to_string(),
                annotations::WITHHELD: null,
            } } } },
        });
        if workload.kind == WorkloadKind::Rollout {
            // A changed template would be a new revision, with all steps of its strategy.
            let seconds = now.round(Unit::Second).unwrap_or(now);
            body["spec"] = argo::restart_patch(Some(&seconds.to_string()));
        } else if let Some(cause) = workload.cause(deviation.clause()) {
            body["metadata"]["annotations"][annotations::CHANGE_CAUSE] = json!(cause);
        }
        self.patch_workload(workload, body).await
    }

    /// Undoes the last restart of a workload, as `kubectl rollout undo` does. Where earlier pods may be gone, their
    /// successors would get the same sidecar again: they are created without one until the restart's aim changes.
    pub(super) async fn undo_restart(&self, workload: &Workload, undone: &Undone) -> Result<()> {
        let withheld = workload.injection.as_ref().filter(|_| workload.replacement.unavailable > 0);
        let mut body = json!({
            "metadata": { "annotations": { annotations::ROLL_UNDONE: serde_json::to_string(undone)? } },
            "spec": { "template": { "metadata": { "annotations": {
                annotations::RESTARTED_AT: workload.restarted_before,
                annotations::WITHHELD: withheld,
            } } } },
        });
        let text = format!("a restart was undone, because {}", undone.obstacle.as_str());
        if workload.kind == WorkloadKind::Rollout {
            // Pods that were replaced stay as they are; no others follow.
            body["spec"] = argo::restart_patch(workload.restarted_before.as_deref());
        } else if let Some(cause) = workload.cause(&text) {
            body["metadata"]["annotations"][annotations::CHANGE_CAUSE] = json!(cause);
        }
        self.patch_workload(workload, body).await
    }

    /// Evicts a pod, unless a PodDisruptionBudget does not allow that now.
    pub(super) async fn evict(&self, namespace: &str, name: &str, uid: &str) -> Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.dependencies.client.clone(), namespace);
        let unchanged = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let options = EvictParams {
            delete_options: Some(DeleteParams::default().preconditions(unchanged)),
            ..EvictParams::default()
        };
        match pods.evict(name, &options).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Resets the number of a workload's ineffective restarts. Its change cause goes as well, because the next revision
    /// is somebody else's; the revision that the restart made keeps its copy.
    pub(super) async fn forget_attempts(&self, workload: &Workload) -> Result<()> {
        if let Some(cause) = workload.own_cause() {
            self.remove_cause(workload, cause).await?;
        }
        let removed: serde_json::Map<_, _> =
            NOTES.into_iter().map(|note| (note.to_owned(), Value::Null)).collect();
        let body = json!({ "metadata": { "annotations": removed } });
        self.patch_workload(workload, body).await
    }

    /// Removes a change cause, unless somebody has written another since.
    async fn remove_cause(&self, workload: &Workload, cause: &str) -> Result<()> {
        let path = format!("/metadata/annotations/{}", annotations::CHANGE_CAUSE.replace('/', "~1"));
        let steps = json!([
            { "op": "test", "path": path, "value": cause },
            { "op": "remove", "path": path },
        ]);
        match self.patch(workload, &Patch::<Value>::Json(serde_json::from_value(steps)?)).await {
            Err(Error::Kubernetes(kube::Error::Api(status))) if status.code == 422 => Ok(()),
            outcome => outcome,
        }
    }

    async fn patch_workload(&self, workload: &Workload, body: Value) -> Result<()> {
        self.patch(workload, &Patch::Merge(body)).await
    }

    async fn patch(&self, workload: &Workload, body: &Patch<Value>) -> Result<()> {
        let namespace = &workload.namespace;
        let client = self.dependencies.client.clone();
        let options = managed();
        let patched = match workload.kind {
            WorkloadKind::Deployment => {
                let api: Api<Deployment> = Api::namespaced(client, namespace);
                api.patch(&workload.name, &options, body).await.map(drop)
            }
            WorkloadKind::DaemonSet => {
                let api: Api<DaemonSet> = Api::namespaced(client, namespace);
                api.patch(&workload.name, &options, body).await.map(drop)
            }
            WorkloadKind::StatefulSet => {
                let api: Api<StatefulSet> = Api::namespaced(client, namespace);
                api.patch(&workload.name, &options, body).await.map(drop)
            }
            WorkloadKind::Rollout => {
                let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &argo::resource());
                api.patch(&workload.name, &options, body).await.map(drop)
            }
        };
        match patched {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes a policy's status. Fields that `status` omits are removed.
    pub(super) async fn put_status(
        &self,
        namespace: &str,
        name: &str,
        status: &CachePolicyStatus,
    ) -> Result<()> {
        // Not typed, since the answer may be a policy that can't be read.
        let resource = ApiResource::erase::<CachePolicy>(&());
        let policies: Api<DynamicObject> =
            Api::namespaced_with(self.dependencies.client.clone(), namespace, &resource);
        let mut body = json!({ "status": status });
        for left_out in ["missedPods", "configHash", "traffic"] {
            if body["status"].get(left_out).is_none() {
                body["status"][left_out] = Value::Null;
            }
        }
        if let Some(traffic) = &status.traffic {
            body["status"]["traffic"]["hitPercent"] = json!(traffic.hit_percent);
        }
        match policies.patch_status(name, &managed(), &Patch::Merge(&body)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Returns the options of a patch under the operator's name, which `kubectl get --show-managed-fields` shows.
pub(super) fn managed() -> PatchParams {
    PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Returns the options of a creation under the operator's name.
pub(super) fn created() -> PostParams {
    PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() }
}

/// Returns the label that an object of the operator for a policy would have and this one has not, as `name: value`.
fn foreign(own: &BTreeMap<String, String>, policy: &str) -> Option<String> {
    let wanted = [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, policy)];
    let missing = wanted.into_iter().find(|(key, value)| own.get(*key).is_none_or(|own| own != value));
    missing.map(|(key, value)| format!("{key}: {value}"))
}

pub(super) async fn annotate<K>(api: &Api<K>, name: &str, annotations: Value) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + Resource,
{
    let body = json!({ "metadata": { "annotations": annotations } });
    match api.patch_metadata(name, &managed(), &Patch::Merge(&body)).await {
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns true if an object exists, or has changed.
pub(super) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Returns true if the object, or its kind, does not exist.
pub(super) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_write_reports_the_api_servers_message() {
        let status = serde_json::from_value(json!({"code": 403, "message": "denied by a policy"})).unwrap();
        let error = Error::Kubernetes(kube::Error::Api(Box::new(status)));
        let refused = WriteError { what: "could not restart Deployment shop".into(), error };
        assert_eq!(refused.to_string(), "could not restart Deployment shop: denied by a policy");
    }

    #[test]
    fn object_without_both_labels_is_not_the_operators() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let both = [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, "shop")];
        assert_eq!(foreign(&labels(&both), "shop"), None);
        assert_eq!(foreign(&labels(&both), "web").unwrap(), "larder.dev/policy: web");
        assert_eq!(foreign(&labels(&both[..1]), "shop").unwrap(), "larder.dev/policy: shop");
        assert_eq!(foreign(&labels(&[]), "shop").unwrap(), "app.kubernetes.io/managed-by: larder");
    }
}
