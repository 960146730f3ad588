//! Reconciles a `CacheInvalidation`: has the pods of its policy purge, reports which did, and deletes the object after its TTL.
//!
//! # Guarantees
//! - A pod counts as one that acknowledged the purge when its sidecar no longer serves what was purged, and Redis, if the policy
//!   has one, knows.
//! - The object ends in either case, so that callers that wait for it do not wait forever.
//! - After a restart of the operator, or another replica's election, pods are asked again: purging twice harms nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};
use larder_api::{
    admin::{PurgeReport, PurgeRequest},
    labels, names,
};
use larder_crds::{CacheInvalidation, CacheInvalidationSpec, CacheInvalidationStatus, MissingPod};
use serde_json::{Value, json};

use super::{
    Context,
    writes::{is_not_found, managed},
};
use crate::{
    error::Result,
    invalidation::{self, Progress, RETRY_INTERVAL},
    pod::{admin_port_of, has_sidecar, is_finished, runs_sidecar},
    sidecars::{PurgeError, Sidecar},
};

/// The pods that acknowledged purges which have not ended, by the uids of the purge and of the pod.
pub(super) type Acknowledged = HashMap<String, HashSet<String>>;

pub(super) async fn reconcile(object: Arc<CacheInvalidation>, context: Arc<Context>) -> Result<Action> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    if invalidation::is_finished(&object) {
        context.acknowledged.lock().await.remove(&object.uid().unwrap_or_default());
        return match invalidation::time_left(&object, now) {
            Some(left) if !left.is_zero() => Ok(Action::requeue(left)),
            _ => context.delete_invalidation(&object).await,
        };
    }
    let progress = context.purge(&object).await?;
    let status = invalidation::status(&object, &progress, Timestamp::now());
    if object.status.as_ref() != Some(&status) {
        context.put_invalidation_status(&object, &status).await?;
    }
    // The write of a result comes back as a change.
    Ok(Action::requeue(RETRY_INTERVAL))
}

impl Context {
    /// Has each pod of the policy purge that has not yet.
    async fn purge(&self, object: &CacheInvalidation) -> Result<Progress> {
        let (namespace, policy) = (object.namespace().unwrap_or_default(), object.spec.policy.as_str());
        let map = ObjectRef::new(&names::config_map(policy)).within(&namespace);
        let Some(map) = self.config_maps.get(&map) else {
            let words =
                format!("there is no CachePolicy {policy} in this namespace, or it has never been in force");
            return Ok(Progress::Obstructed("NoPolicy", words));
        };
        self.stores.ready(&namespace).await?;
        let is_of_policy =
            |labels: &BTreeMap<_, _>| labels.get(labels::POLICY).is_some_and(|of| of == policy);
        let mut pods = self.stores.pods.selected(&namespace, is_of_policy);
        // A sidecar that does not run has nothing in memory.
        pods.retain(|pod| has_sidecar(pod) && !is_finished(pod) && runs_sidecar(pod));
        if pods.is_empty() && self.stores_outside_of_pods(&namespace, policy) {
            let words = "no pod of the policy runs, so responses that Redis or Postgres has are not purged";
            return Ok(Progress::Obstructed("NoPods", words.into()));
        }
        let uid = object.uid().unwrap_or_default();
        let mut acknowledged = self.acknowledged.lock().await.get(&uid).cloned().unwrap_or_default();
        let asked: Vec<_> = pods.iter().filter(|pod| !acknowledged.contains(&uid_of(pod))).collect();
        let sidecars = asked.iter().filter_map(|pod| sidecar(pod)).collect();
        let token = self.token(&map.uid().unwrap_or_default()).await?;
        let mut responses = self.sidecars.purge(sidecars, &token, &request(&object.spec)).await;
        let mut missing = Vec::new();
        for pod in asked {
            let response = responses.remove(&pod.name_any());
            match response.map(|response| outcome(response, &names::admin_secret(policy))) {
                Some(Ok(())) => drop(acknowledged.insert(uid_of(pod))),
                Some(Err(Failure::Refused(reason))) => return Ok(Progress::Refused(reason)),
                Some(Err(Failure::Missing(message))) => {
                    missing.push(MissingPod { pod: pod.name_any(), message });
                }
                None => {
                    let message = "the pod has no address yet".to_owned();
                    missing.push(MissingPod { pod: pod.name_any(), message });
                }
            }
        }
        let number = pods.len() - missing.len();
        self.acknowledged.lock().await.insert(uid, acknowledged);
        Ok(Progress::Asked { acknowledged: number, missing })
    }

    /// Returns true if a policy stores responses where they outlive its pods.
    fn stores_outside_of_pods(&self, namespace: &str, policy: &str) -> bool {
        self.dependencies.policies.get(namespace, policy).is_some_and(|policy| {
            let Ok(policy) = &policy.0 else { return true };
            let cache = &policy.spec.cache;
            cache.l2.is_some() || cache.routes.iter().any(|route| route.last_known_good.is_some())
        })
    }

    async fn put_invalidation_status(
        &self,
        object: &CacheInvalidation,
        status: &CacheInvalidationStatus,
    ) -> Result<()> {
        let mut body = json!({ "status": status });
        for left_out in ["missing", "completionTime"] {
            if body["status"].get(left_out).is_none() {
                body["status"][left_out] = Value::Null;
            }
        }
        let invalidations = self.invalidations(object);
        match invalidations.patch_status(&object.name_any(), &managed(), &Patch::Merge(&body)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn delete_invalidation(&self, object: &CacheInvalidation) -> Result<Action> {
        let preconditions = Preconditions { uid: object.uid(), ..Preconditions::default() };
        let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.invalidations(object).delete(&object.name_any(), &options).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::await_change()),
        }
    }

    fn invalidations(&self, object: &CacheInvalidation) -> Api<CacheInvalidation> {
        Api::namespaced(self.dependencies.client.clone(), &object.namespace().unwrap_or_default())
    }
}

fn uid_of(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

fn sidecar(pod: &Pod) -> Option<Sidecar> {
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    Some(Sidecar { pod: pod.name_any(), address, port: admin_port_of(pod)? })
}

fn request(spec: &CacheInvalidationSpec) -> PurgeRequest {
    let CacheInvalidationSpec { keys, paths, prefixes, tags, everything, soft, .. } = spec.clone();
    PurgeRequest { keys, paths, prefixes, tags, everything, soft }
}

/// The reason that a purge does not hold in a pod.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The purge is wrong, for every pod.
    Refused(String),
    /// The pod has not purged.
    Missing(String),
}

/// Returns the outcome of a purge in a pod whose token is in a Secret of this name.
fn outcome(response: Result<PurgeReport, PurgeError>, secret: &str) -> Result<(), Failure> {
    match response {
        Ok(PurgeReport { pending: None, .. }) => Ok(()),
        Ok(PurgeReport { pending: Some(reason), .. }) => {
            Err(Failure::Missing(format!("purged in the pod, and not in Redis yet: {reason}")))
        }
        Err(PurgeError::Unauthorized) => Err(Failure::Missing(format!(
            "the Secret {secret} does not hold the token that the operator made: delete the Secret, and the operator \
             makes it again"
        ))),
        Err(PurgeError::Refused(reason)) => Err(Failure::Refused(reason)),
        Err(PurgeError::Failed(reason)) => Err(Failure::Missing(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pending: Option<&str>) -> PurgeReport {
        let report = json!({"purged": {}, "order": null, "pending": pending});
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn purge_that_redis_does_not_have_is_not_acknowledged() {
        assert_eq!(outcome(Ok(report(None)), "s"), Ok(()));
        let Err(Failure::Missing(reason)) = outcome(Ok(report(Some("timed out"))), "s") else { panic!() };
        assert_eq!(reason, "purged in the pod, and not in Redis yet: timed out");
    }

    #[test]
    fn replaced_token_is_named_with_its_remedy() {
        let Err(Failure::Missing(reason)) = outcome(Err(PurgeError::Unauthorized), "larder-shop-admin")
        else {
            panic!()
        };
        assert!(reason.contains("larder-shop-admin") && reason.contains("delete the Secret"), "{reason}");
    }
}
