//! Reconciles a `CacheInvalidation`: has the pods of its policy purge, reports which did, and deletes the object after its TTL.
//!
//! # Guarantees
//! - A pod counts as one that acknowledged the purge when its sidecar no longer serves what was purged, and Redis, if the policy
//!   has one, knows.
//! - The object ends in either case, so that callers that wait for it do not wait forever.
//! - After a restart of the operator, or another replica's election, pods are asked once more: what they stored since is purged, too.
//! - A pod is not asked twice otherwise, even if Redis does not know yet, but to tell the others in place of one that can't be reached.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, Preconditions},
    runtime::{controller::Action, reflector::ObjectRef},
};
use larder_api::{
    admin::{PurgeRequest, TierState},
    labels, names,
};
use larder_crds::{CacheInvalidation, CacheInvalidationSpec, CacheInvalidationStatus, MissingPod};
use serde_json::{Value, json};

use super::{
    Context,
    writes::{is_conflict, is_not_found, managed},
};
use crate::{
    error::Result,
    invalidation::{self, Progress},
    pod::{admin_port_of, has_sidecar, is_finished, runs_sidecar},
    sidecars::{PurgeError, Sidecar},
};

/// Maximum number of purges of a namespace that are carried out at a time: pods that hang must not keep those of others waiting.
const MAX_OF_NAMESPACE: usize = 4;

/// Maximum number of pods that are asked to tell the others in a round.
const MAX_STAND_INS: usize = 3;

/// Purges that have not ended, by their uids.
pub(super) type Begun = HashMap<String, Asked>;

/// Pods that were asked for a purge, by their uids.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    acknowledged: HashSet<String>,
    /// Pods that have purged, and whose Redis does not know yet. They tell it by themselves: asked again, they would purge again.
    pending: HashSet<String>,
    /// One of them has told the others.
    is_told: bool,
}

impl Asked {
    /// Returns the pod whose sidecar is to tell the others as well, unless one has.
    fn teller(&self, pods: &[Pod]) -> Option<String> {
        let is_new =
            |pod: &&Pod| !self.acknowledged.contains(&uid_of(pod)) && !self.pending.contains(&uid_of(pod));
        let mut new = pods.iter().filter(|_| !self.is_told).filter(is_new).filter_map(sidecar);
        new.next().map(|sidecar| sidecar.pod)
    }

    /// Returns sidecars that have purged and may tell the others, if none has.
    fn stand_ins(&self, pods: &[Pod]) -> Vec<Sidecar> {
        let has_purged =
            |pod: &&Pod| self.acknowledged.contains(&uid_of(pod)) || self.pending.contains(&uid_of(pod));
        let tellers = pods.iter().filter(|_| !self.is_told).filter(has_purged).filter_map(sidecar);
        tellers.take(MAX_STAND_INS).collect()
    }
}

/// A place among those that carry out purges of a namespace.
struct Turn<'a> {
    turns: &'a parking_lot::Mutex<HashMap<String, usize>>,
    namespace: String,
}

impl<'a> Turn<'a> {
    fn take(turns: &'a parking_lot::Mutex<HashMap<String, usize>>, namespace: &str) -> Option<Self> {
        let mut taken = turns.lock();
        let number = taken.entry(namespace.to_owned()).or_default();
        (*number < MAX_OF_NAMESPACE).then(|| {
            *number += 1;
            Self { turns, namespace: namespace.to_owned() }
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut taken = self.turns.lock();
        if let Some(number) = taken.get_mut(&self.namespace) {
            *number -= 1;
            if *number == 0 {
                taken.remove(&self.namespace);
            }
        }
    }
}

pub(super) async fn reconcile(object: Arc<CacheInvalidation>, context: Arc<Context>) -> Result<Action> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    if invalidation::is_finished(&object) {
        return match invalidation::time_left(&object, now) {
            Some(left) if !left.is_zero() => Ok(Action::requeue(left)),
            _ => context.delete_invalidation(&object).await,
        };
    }
    let again = Action::requeue(invalidation::retry_interval(&object, now));
    let namespace = object.namespace().unwrap_or_default();
    let Some(_turn) = Turn::take(&context.purging, &namespace) else { return Ok(again) };
    let progress = context.purge(&object).await?;
    let status = invalidation::status(&object, &progress, Timestamp::now());
    if object.status.as_ref() != Some(&status) {
        context.put_invalidation_status(&object, &status).await?;
    }
    if status.completion_time.is_some() {
        context.begun.lock().await.remove(&object.uid().unwrap_or_default());
    }
    // The write of a result comes back as a change.
    Ok(again)
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
        let outside = self.stores_outside_of_pods(&namespace, policy);
        // Not from the watched list, which may lack a pod that has stored something already.
        let pods: Api<Pod> = Api::namespaced(self.dependencies.client.clone(), &namespace);
        let selector = ListParams::default().labels(&format!("{}={policy}", labels::POLICY));
        let mut pods = pods.list(&selector).await?.items;
        pods.retain(|pod| has_sidecar(pod) && !is_finished(pod));
        let uid = object.uid().unwrap_or_default();
        let mut asked = self.begun.lock().await.get(&uid).cloned().unwrap_or_default();
        let token = self.token(&map).await?;
        let teller = asked.teller(&pods);
        let mut responses = self.ask_pods(&pods, &asked, &token, object, teller.as_deref()).await;
        let is_told_by = |teller| matches!(responses.get(teller), Some(Ok(()) | Err(PurgeError::Pending(_))));
        asked.is_told |= teller.as_ref().is_some_and(is_told_by);
        let (mut missing, mut absent) = (Vec::new(), 0);
        for pod in &pods {
            if asked.acknowledged.contains(&uid_of(pod)) {
                continue;
            }
            let response = responses.remove(&pod.name_any());
            match response.map(|response| outcome(response, outside, &names::admin_secret(policy))) {
                Some(Ok(())) => drop(asked.acknowledged.insert(uid_of(pod))),
                Some(Err(Failure::Refused(reason))) => return Ok(Progress::Refused(reason)),
                // A sidecar that does not run has nothing in memory.
                Some(Err(Failure::Missing(_))) | None if !runs_sidecar(pod) => absent += 1,
                Some(Err(Failure::Pending(message))) => {
                    asked.pending.insert(uid_of(pod));
                    missing.push(MissingPod { pod: pod.name_any(), message });
                }
                Some(Err(Failure::Missing(message))) => {
                    missing.push(MissingPod { pod: pod.name_any(), message });
                }
                None => {
                    let message = "the pod has no address yet".to_owned();
                    missing.push(MissingPod { pod: pod.name_any(), message });
                }
            }
        }
        if !missing.is_empty() {
            asked.is_told |= self.have_told(asked.stand_ins(&pods), &token, object).await;
        }
        let acknowledged = pods.len() - missing.len() - absent;
        if pods.len() == absent && outside {
            let words = "no pod of the policy runs, so responses that Redis or Postgres has are not purged";
            return Ok(Progress::Obstructed("NoPods", words.into()));
        }
        let mut begun = self.begun.lock().await;
        // Objects that were deleted before they ended.
        let left: HashSet<_> = self.invalidations.state().iter().filter_map(|object| object.uid()).collect();
        begun.retain(|uid, _| left.contains(uid));
        begun.insert(uid, asked);
        Ok(Progress::Asked { acknowledged, missing })
    }

    /// Has pods purge that have not yet, and those whose Redis may know by now; returns the reports by pod.
    async fn ask_pods(
        &self,
        pods: &[Pod],
        asked: &Asked,
        token: &str,
        object: &CacheInvalidation,
        teller: Option<&str>,
    ) -> BTreeMap<String, Result<(), PurgeError>> {
        let is_pending = |pod: &&Pod| asked.pending.contains(&uid_of(pod));
        let left = pods.iter().filter(|pod| !asked.acknowledged.contains(&uid_of(pod)));
        let (pending, mut ready): (Vec<_>, Vec<_>) = left.partition(is_pending);
        let states = self.sidecars.ask(pending.iter().filter_map(|pod| sidecar(pod)).collect()).await;
        let mut waiting = BTreeMap::new();
        for pod in pending {
            match states.get(&pod.name_any()) {
                Some(Ok(report)) if report.tiers.get("redis") != Some(&TierState::Up) => {
                    let reason =
                        report.last_errors.get("redis").cloned().unwrap_or_else(|| "no response".into());
                    waiting.insert(pod.name_any(), Err(PurgeError::Pending(reason)));
                }
                _ => ready.push(pod),
            }
        }
        let sidecars = ready.into_iter().filter_map(sidecar).collect();
        waiting.extend(self.sidecars.purge(sidecars, token, &request(&object.spec), teller).await);
        waiting
    }

    /// Has one of these sidecars tell the others. Returns true if it has.
    async fn have_told(&self, stand_ins: Vec<Sidecar>, token: &str, object: &CacheInvalidation) -> bool {
        let request = request(&object.spec);
        for sidecar in stand_ins {
            let teller = sidecar.pod.clone();
            let responses = self.sidecars.purge(vec![sidecar], token, &request, Some(&teller)).await;
            if matches!(responses.get(&teller), Some(Ok(()) | Err(PurgeError::Pending(_)))) {
                return true;
            }
        }
        false
    }

    /// Returns true if a policy stores responses where they outlive its pods.
    fn stores_outside_of_pods(&self, namespace: &str, policy: &str) -> bool {
        self.dependencies.policies.get(namespace, policy).is_some_and(|policy| {
            let Ok(policy) = &policy.0 else { return true };
            let cache = &policy.spec.cache;
            cache.l2.is_some() || cache.complete_routes().iter().any(|route| route.last_known_good.is_some())
        })
    }

    /// Writes the status of this very object, in the version that was read: another one of its name has not been carried out.
    async fn put_invalidation_status(
        &self,
        object: &CacheInvalidation,
        status: &CacheInvalidationStatus,
    ) -> Result<()> {
        let mut body = json!({
            "metadata": {"uid": object.uid(), "resourceVersion": object.resource_version()},
            "status": status,
        });
        for left_out in ["missing", "completionTime"] {
            if body["status"].get(left_out).is_none() {
                body["status"][left_out] = Value::Null;
            }
        }
        let invalidations = self.api_of(object);
        match invalidations.patch_status(&object.name_any(), &managed(), &Patch::Merge(&body)).await {
            // The newer version comes as a change, unless it is this replica's own write.
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn delete_invalidation(&self, object: &CacheInvalidation) -> Result<Action> {
        let preconditions = Preconditions { uid: object.uid(), ..Preconditions::default() };
        let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.api_of(object).delete(&object.name_any(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(Action::await_change()),
        }
    }

    fn api_of(&self, object: &CacheInvalidation) -> Api<CacheInvalidation> {
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
    /// The pod has purged, and Redis does not know yet.
    Pending(String),
    /// The pod has not purged.
    Missing(String),
}

/// Returns the outcome of a purge in a pod whose token is in a Secret of this name. `outside` means that responses are stored where they
/// outlive pods.
fn outcome(response: Result<(), PurgeError>, outside: bool, secret: &str) -> Result<(), Failure> {
    match response {
        Ok(()) => Ok(()),
        // Without Redis the pod could not tell another one, which is asked by itself.
        Err(PurgeError::Pending(_)) if !outside => Ok(()),
        Err(PurgeError::Pending(reason)) => {
            Err(Failure::Pending(format!("purged in the pod, and not in Redis yet: {reason}")))
        }
        Err(PurgeError::Unauthorized) => Err(Failure::Missing(format!(
            "the Secret {secret} does not hold the token that the operator made: delete the Secret, and the operator \
             makes another"
        ))),
        Err(PurgeError::Refused(reason)) => Err(Failure::Refused(reason)),
        Err(PurgeError::Failed(reason)) => Err(Failure::Missing(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purge_that_redis_does_not_have_is_not_acknowledged() {
        let pending = || Err(PurgeError::Pending("timed out".into()));
        assert_eq!(outcome(Ok(()), true, "s"), Ok(()));
        let expected = "purged in the pod, and not in Redis yet: timed out".to_owned();
        assert_eq!(outcome(pending(), true, "s"), Err(Failure::Pending(expected)));
        assert_eq!(outcome(pending(), false, "s"), Ok(()), "there is no Redis");
    }

    #[test]
    fn one_pod_tells_the_others_until_it_has() {
        let pod = |name: &str, address: Option<&str>| {
            let ports = json!([{"name": names::ADMIN_PORT, "containerPort": 24890}]);
            let containers = json!([{"name": names::SIDECAR, "ports": ports}]);
            let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": [], "initContainers": containers},
                "status": {"podIP": address}});
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let pods = [pod("a", None), pod("b", Some("10.0.0.1")), pod("c", Some("10.0.0.2"))];
        let mut asked = Asked::default();
        assert_eq!(asked.teller(&pods).as_deref(), Some("b"));
        assert!(asked.stand_ins(&pods).is_empty(), "none has purged");
        asked.acknowledged.insert("b".into());
        assert_eq!(asked.teller(&pods).as_deref(), Some("c"), "the other one has not told");
        let stand_ins =
            |asked: &Asked| asked.stand_ins(&pods).into_iter().map(|sidecar| sidecar.pod).collect();
        let told: Vec<_> = stand_ins(&asked);
        assert_eq!(told, ["b"], "if c can't be reached");
        asked.is_told = true;
        assert_eq!(asked.teller(&pods), None);
        assert_eq!(stand_ins(&asked), Vec::<String>::new());
    }

    #[test]
    fn replaced_token_is_named_with_its_remedy() {
        let Err(Failure::Missing(reason)) = outcome(Err(PurgeError::Unauthorized), true, "larder-shop-admin")
        else {
            panic!()
        };
        assert!(reason.contains("larder-shop-admin") && reason.contains("delete the Secret"), "{reason}");
    }

    #[test]
    fn purges_of_a_namespace_leave_room_for_those_of_others() {
        let turns = parking_lot::Mutex::default();
        let mut taken: Vec<_> = (0..MAX_OF_NAMESPACE).map(|_| Turn::take(&turns, "shop").unwrap()).collect();
        assert!(Turn::take(&turns, "shop").is_none());
        drop(Turn::take(&turns, "web").unwrap());
        taken.pop();
        assert!(Turn::take(&turns, "shop").is_some());
        drop(taken);
        assert!(turns.lock().is_empty());
    }
}
