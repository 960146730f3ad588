//! Argo Rollouts, which own ReplicaSets as Deployments do.
//!
//! A cluster may serve the kind or not, and may begin to at any time. So it is not watched: the Rollouts of a namespace are listed when
//! a ReplicaSet there belongs to one, or when a policy has no pods. They are restarted by `spec.restartAt`: their
//! controller evicts, a few at a time, the pods that are older.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
    runtime::reflector::ObjectRef,
};
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::{
    error::Result,
    rollout::Progress,
    stores::Stores,
    workload::{Halt, Newest, Replacement, Workload, WorkloadKind, scaled, workload},
};

/// The API group of Rollouts.
const GROUP: &str = "argoproj.io";
/// The kind.
pub const KIND: &str = "Rollout";
/// The label by which a Rollout marks its pods' revision.
const POD_HASH: &str = "rollouts-pod-template-hash";

/// The Rollouts of each namespace, as they were last listed.
#[derive(Clone, Debug, Default)]
pub struct Rollouts(Arc<RwLock<Lists>>);

#[derive(Debug, Default)]
struct Lists {
    listed: HashMap<String, Vec<Arc<DynamicObject>>>,
    /// Namespaces in which the API server last refused to list them, with its words.
    refused: HashMap<String, String>,
}

impl Rollouts {
    /// Lists the Rollouts of a namespace. Where the cluster does not serve the kind, there are none. The same holds where the operator
    /// may not list it, but the log says so, once, and the status of policies whose pods may be of one ([`Self::refusal`]): policies of
    /// other workloads must not wait for that right.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn refresh(&self, client: &Client, namespace: &str) -> Result<()> {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource());
        let (listed, refusal) = match api.list(&ListParams::default()).await {
            Ok(list) => (list.items.into_iter().map(Arc::new).collect(), None),
            Err(kube::Error::Api(status)) if status.code == 404 => (Vec::new(), None),
            Err(kube::Error::Api(status)) if status.code == 403 => (Vec::new(), Some(status.message)),
            Err(error) => return Err(error.into()),
        };
        if let Some(error) = self.put(namespace, listed, refusal) {
            tracing::warn!(error, namespace, "may not list Argo Rollouts, so none is restarted");
        }
        Ok(())
    }

    /// Replaces the list of a namespace; returns the words of a refusal that is not known yet.
    pub(crate) fn put(
        &self,
        namespace: &str,
        listed: Vec<Arc<DynamicObject>>,
        refusal: Option<String>,
    ) -> Option<String> {
        let mut lists = self.0.write();
        if listed.is_empty() {
            lists.listed.remove(namespace);
        } else {
            lists.listed.insert(namespace.to_owned(), listed);
        }
        match refusal {
            Some(words) => {
                let is_new = lists.refused.insert(namespace.to_owned(), words.clone()).is_none();
                is_new.then_some(words)
            }
            None => {
                lists.refused.remove(namespace);
                None
            }
        }
    }

    /// Returns the Rollouts of a namespace.
    pub fn of(&self, namespace: &str) -> Vec<Arc<DynamicObject>> {
        self.0.read().listed.get(namespace).cloned().unwrap_or_default()
    }

    /// Returns the API server's words if it last refused to list the Rollouts of a namespace.
    pub fn refusal(&self, namespace: &str) -> Option<String> {
        self.0.read().refused.get(namespace).cloned()
    }

    /// Returns all Rollouts that are known.
    pub fn all(&self) -> Vec<Arc<DynamicObject>> {
        self.0.read().listed.values().flatten().cloned().collect()
    }

    fn get(&self, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        let lists = self.0.read();
        lists.listed.get(namespace)?.iter().find(|rollout| rollout.name_any() == name).cloned()
    }
}

/// Returns the kind, for requests to the API server.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1alpha1", KIND), "rollouts")
}

/// Returns true if an owner is a Rollout.
pub fn is_rollout(owner: &OwnerReference) -> bool {
    owner.kind == KIND && owner.api_version.split('/').next() == Some(GROUP)
}

/// Returns true if an owner of pods is a ReplicaSet that belongs to a Rollout.
pub fn is_of_rollout(stores: &Stores, namespace: &str, owner: &OwnerReference) -> bool {
    let set = || stores.replica_sets.get(&ObjectRef::new(&owner.name).within(namespace));
    owner.kind == "ReplicaSet" && set().is_some_and(|set| set.owner_references().iter().any(is_rollout))
}

/// Returns true if a ReplicaSet of a namespace belongs to a Rollout.
pub fn are_used(stores: &Stores, namespace: &str) -> bool {
    let mut sets = stores.replica_sets.mentioning(Some(namespace), GROUP);
    sets.any(|set| set.owner_references().iter().any(is_rollout))
}

/// Returns the Rollout that owns a ReplicaSet, and the mark of the pods of its newest template and restart.
pub fn of_owner(stores: &Stores, namespace: &str, owner: &OwnerReference) -> Option<(Workload, Newest)> {
    let rollout = stores.rollouts.get(namespace, &owner.name)?;
    let workload = of_rollout(stores, &rollout)?;
    let hash = rollout.data["status"]["currentPodHash"].as_str().map(str::to_owned);
    let since = workload.progress.restarted_at;
    Some((workload, Newest::LabelSince(POD_HASH, hash, since)))
}

/// Returns a Rollout as a workload; `None` if it takes its template from an object that is unknown.
pub fn of_rollout(stores: &Stores, rollout: &DynamicObject) -> Option<Workload> {
    let (spec, status) = (&rollout.data["spec"], &rollout.data["status"]);
    let namespace = rollout.namespace()?;
    let template = template_of(stores, &namespace, spec)?;
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let (restart_at, restarted_at) = (time(&spec["restartAt"]), time(&status["restartedAt"]));
    let count = |name: &str| status[name].as_i64().unwrap_or(0);
    // Argo Rollouts writes the generation as a text.
    let observed = status["observedGeneration"].as_str().and_then(|text| text.parse::<i64>().ok());
    let is_observed = observed.is_none_or(|observed| Some(observed) >= rollout.metadata.generation);
    let complete = is_observed
        && ["replicas", "updatedReplicas", "availableReplicas"].into_iter().all(|name| count(name) == wanted)
        && restart_at.is_none_or(|at| restarted_at.is_some_and(|done| done >= at));
    let halt = (spec["paused"] == true).then_some(Halt::Paused);
    let mut workload = workload(WorkloadKind::Rollout, &rollout.metadata, Some(&template), complete, halt);
    let replicas = i32::try_from(wanted).unwrap_or(i32::MAX);
    let most = serde_json::from_value(spec["strategy"]["canary"]["maxUnavailable"].clone());
    let most = most.unwrap_or_else(|_| IntOrString::String("25%".into()));
    workload.replacement = Replacement::of(0, scaled(&most, replicas, false), replicas);
    workload.restarted_at = spec["restartAt"].as_str().map(str::to_owned);
    workload.progress = Progress { restarted_at: restart_at, ..workload.progress };
    Some(workload)
}

/// Returns the template of a Rollout's pods, its own or that of the Deployment to which it refers.
pub fn template_of(stores: &Stores, namespace: &str, spec: &Value) -> Option<PodTemplateSpec> {
    let reference = &spec["workloadRef"];
    if reference.is_null() {
        return serde_json::from_value(spec["template"].clone()).ok();
    }
    let name = reference["name"].as_str().filter(|_| reference["kind"] == "Deployment")?;
    let deployment = stores.deployments.get(&ObjectRef::new(name).within(namespace))?;
    Some(deployment.spec.as_ref()?.template.clone())
}

/// Returns the part of a merge patch that restarts a Rollout, or takes the last restart back.
pub fn restart_patch(at: Option<&str>) -> Value {
    json!({ "restartAt": at })
}

/// Returns the rest of the command that restarts a Rollout by hand.
pub const RESTART: &str =
    r#" --type=merge --patch="{\"spec\":{\"restartAt\":\"$(date -u +%Y-%m-%dT%H:%M:%SZ)\"}}""#;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::{
        policy_pods::tests::{list, stores},
        workload,
    };

    fn rollout(restart_at: Option<&str>, restarted_at: Option<&str>) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": "web", "namespace": "shop", "uid": "w", "generation": 3},
            "spec": {"replicas": 2, "restartAt": restart_at, "strategy": {"canary": {"maxUnavailable": "50%"}},
                "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": []}}},
            "status": {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": "3",
                "currentPodHash": "h1", "restartedAt": restarted_at},
        }))
        .unwrap()
    }

    fn owned(created: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "creationTimestamp": created,
                "labels": {"app": "shop", POD_HASH: "h1"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-h1", "uid": "s", "controller": true}]},
        }))
        .unwrap()
    }

    fn with(rollout: DynamicObject) -> Stores {
        let set = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "web-h1", "namespace": "shop", "ownerReferences":
                [{"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "web", "uid": "w", "controller": true}]},
        });
        let stores = Stores { replica_sets: list(vec![set]), ..stores(vec![]) };
        stores.rollouts.put("shop", vec![Arc::new(rollout)], None);
        stores
    }

    /// Returns the workload of a pod, and true if it is of the newest template.
    fn of_pod(stores: &Stores, pod: &Pod) -> Option<(Workload, bool)> {
        let (workload, newest) = workload::of_owner(stores, "shop", workload::controller(pod)?)?;
        Some((workload, newest.marks(pod)))
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn pod_of_a_rollout_is_newest_after_its_restart() {
        let plain = with(rollout(None, None));
        assert!(are_used(&plain, "shop") && !are_used(&plain, "other"));
        let (workload, newest) = of_pod(&plain, &owned(EARLY)).unwrap();
        assert_eq!(workload.to_string(), "Rollout web");
        assert!(newest && workload.progress.complete && workload.progress.rolls);
        assert_eq!(workload.replacement, Replacement { surge: 0, unavailable: 1 });
        assert!(
            workload.restart_command().contains("kubectl patch rollouts.argoproj.io web --namespace shop")
        );

        let in_progress = with(rollout(Some(LATE), Some(EARLY)));
        let (workload, newest) = of_pod(&in_progress, &owned(EARLY)).unwrap();
        assert!(!newest && !workload.progress.complete, "it is older than the restart");
        assert_eq!(workload.progress.restarted_at, Some(LATE.parse().unwrap()));
        assert!(of_pod(&in_progress, &owned(LATE)).unwrap().1);
        let (workload, _) = of_pod(&with(rollout(Some(LATE), Some(LATE))), &owned(LATE)).unwrap();
        assert!(workload.progress.complete);
    }

    #[test]
    fn template_may_be_that_of_a_deployment() {
        let mut referring = rollout(None, None);
        referring.data["spec"]["template"] = Value::Null;
        referring.data["spec"]["workloadRef"] =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"});
        let (workload, _) = of_pod(&with(referring.clone()), &owned(EARLY)).unwrap();
        assert_eq!(workload.labels()["app"], "shop");
        referring.data["spec"]["workloadRef"]["kind"] = json!("PodTemplate");
        assert!(of_pod(&with(referring), &owned(EARLY)).is_none());
    }

    #[test]
    fn paused_rollout_is_left_to_its_owner() {
        let mut paused = rollout(None, None);
        paused.data["spec"]["paused"] = json!(true);
        let (workload, _) = of_pod(&with(paused), &owned(EARLY)).unwrap();
        assert!(workload.manual(&[]).unwrap().contains(r#"--patch='{"spec":{"paused":false}}'"#));
    }

    #[test]
    fn refusal_to_list_is_reported_once_until_it_ends() {
        let rollouts = Rollouts::default();
        let refused = |namespace: &str| rollouts.put(namespace, Vec::new(), Some("forbidden".into()));
        assert_eq!(refused("shop").as_deref(), Some("forbidden"));
        assert_eq!(refused("shop"), None);
        assert_eq!(rollouts.refusal("shop").as_deref(), Some("forbidden"));
        assert!(refused("other").is_some());
        rollouts.put("shop", vec![Arc::new(rollout(None, None))], None);
        assert_eq!(rollouts.of("shop").len(), 1);
        assert_eq!(rollouts.refusal("shop"), None);
        assert!(refused("shop").is_some());
        assert!(rollouts.of("shop").is_empty());
    }
}
