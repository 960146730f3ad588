//! Trials of pods that are being created: with a sidecar that the API server refuses, a pod would not be created at all.
//!
//! A restart is tried before it is made, but pods are created for other reasons, too: a Deployment is scaled, a node is drained.
//!
//! # Guarantees
//! - A trial takes half of the webhook's timeout at most. Without an answer the pod gets the sidecar.
//! - A workload's pods are tried once in [`TRUST`] while they are admitted.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use larder_api::annotations;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{sync::Semaphore, time::timeout};

use crate::dry_run;

/// Time for which an answer in favour of a workload's pods is trusted.
const TRUST: Duration = Duration::from_secs(3);
/// Maximum number of trials at a time. Pods beyond get the sidecar without one.
const MAX_CONCURRENT: usize = 16;

/// Source of trials.
#[derive(Clone)]
pub struct Trials {
    client: Client,
    patience: Duration,
    running: Arc<Semaphore>,
    /// The last time that the pods of an owner were admitted with the sidecar, by the owner's uid and the injection's hash.
    admitted: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Trials {
    /// Creates a source for a webhook with this timeout.
    pub fn new(client: Client, webhook_timeout: Duration) -> Self {
        Self {
            client,
            patience: webhook_timeout / 2,
            running: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            admitted: Arc::default(),
        }
    }

    /// Returns the API server's words if it would refuse a pod with the sidecar, whose injection has this hash, and not without.
    pub async fn refusal(&self, namespace: &str, pod: &Value, hash: &str) -> Option<String> {
        let key = owner_of(pod).map(|owner| format!("{owner} {hash}"));
        if key
            .as_ref()
            .is_some_and(|key| self.admitted.lock().get(key).is_some_and(|at| at.elapsed() < TRUST))
        {
            return None;
        }
        let _permit = self.running.try_acquire().ok()?;
        let pod = as_sent(pod);
        let trial = dry_run::refusal(&self.client, namespace, &pod);
        match timeout(self.patience, trial).await {
            Ok(Ok(Some(words))) => Some(words),
            Ok(Ok(None)) => {
                let mut admitted = self.admitted.lock();
                admitted.retain(|_, at| at.elapsed() < TRUST);
                admitted.extend(key.map(|key| (key, Instant::now())));
                None
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, namespace, "a pod could not be tried");
                None
            }
            Err(_) => None,
        }
    }
}

/// Returns true if a pod of a dry run is one of the operator's own trials.
pub fn is_trial(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][annotations::TRIAL].is_null()
}

fn owner_of(pod: &Value) -> Option<&str> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}

/// Returns a pod that is being created as somebody else may ask for it: without what the API server has added, and without
/// the right over its owner that `blockOwnerDeletion` takes.
fn as_sent(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("status");
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        for field in ["managedFields", "uid", "resourceVersion", "creationTimestamp", "generation"] {
            metadata.remove(field);
        }
        for owner in metadata.get_mut("ownerReferences").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(owner) = owner.as_object_mut() {
                owner.remove("blockOwnerDeletion");
            }
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tried_pod_lacks_parts_that_only_its_creator_may_write() {
        let owner = |more: Value| {
            let mut owner = json!({"kind": "ReplicaSet", "uid": "r", "controller": true});
            owner.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!([owner])
        };
        let pod = json!({
            "metadata": {"generateName": "shop-", "managedFields": [{}], "ownerReferences": owner(json!({"blockOwnerDeletion": true}))},
            "spec": {"containers": []}, "status": {},
        });
        let sent = json!({"metadata": {"generateName": "shop-", "ownerReferences": owner(json!({}))}, "spec": {"containers": []}});
        assert_eq!(as_sent(&pod), sent);
        assert_eq!(owner_of(&pod), Some("r"));
        assert!(!is_trial(&pod));
        assert!(is_trial(&json!({"metadata": {"annotations": {annotations::TRIAL: "true"}}})));
    }
}
