//! Workloads of a policy that has no pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use larder_crds::selector;
use serde_json::{Value, json};

use crate::{
    argo,
    choice::Choice,
    stores::{Stores, in_namespace},
    workload::replica_failure,
};

/// The reason that a policy has no pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// No workload has such pods.
    NoWorkload,
    /// The workloads want no pods now, with one of them.
    Idle(String),
    /// A workload wants pods and has none yet.
    Awaited(Awaited),
    /// A workload wants pods, and they cannot be created, with the reason.
    NotCreated(String),
}

/// Pods that a workload wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Kind and name of the workload.
    pub owner: String,
    /// JSON of a pod as the workload would create it.
    pub pod: Value,
}

impl Awaited {
    /// Creates the expectation of a pod by a template.
    pub fn new(owner: String, template: &PodTemplateSpec) -> Self {
        Self { owner, pod: json!(template) }
    }

    /// Returns the vacancy that a refusal of the pod explains.
    pub fn refused(&self, words: &str) -> Vacancy {
        Vacancy::NotCreated(format!("{} has no pods: {words}", self.owner))
    }
}

/// Returns the reason that no pod matches a policy's selector, as far as Deployments, StatefulSets, DaemonSets and the
/// Rollouts that were listed last tell.
pub fn vacancy(stores: &Stores, namespace: &str, own: &LabelSelector) -> Vacancy {
    let (mut idle, mut awaited) = (None, None);
    let deployments = in_namespace(&stores.deployments, namespace);
    let sets = in_namespace(&stores.stateful_sets, namespace);
    let daemons = in_namespace(&stores.daemon_sets, namespace);
    let deployments = deployments.iter().filter_map(|one| {
        let spec = one.spec.as_ref()?;
        let reason = replica_failure(one).and_then(|condition| condition.message.clone());
        Some((named("Deployment", &one.metadata), &spec.template, spec.replicas.unwrap_or(1), reason))
    });
    let sets = sets.iter().filter_map(|one| {
        let spec = one.spec.as_ref()?;
        Some((named("StatefulSet", &one.metadata), &spec.template, spec.replicas.unwrap_or(1), None))
    });
    let daemons = daemons.iter().filter_map(|one| {
        let wanted = one.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
        Some((named("DaemonSet", &one.metadata), &one.spec.as_ref()?.template, wanted, None))
    });
    let rollouts = stores.rollouts.of(namespace);
    let rollouts = rollouts.iter().filter_map(|one| {
        let template = argo::template_of(stores, namespace, &one.data["spec"])?;
        let wanted = one.data["spec"]["replicas"].as_i64().unwrap_or(1);
        Some((named("Rollout", &one.metadata), template, i32::try_from(wanted).unwrap_or(i32::MAX), None))
    });
    let own_kinds = deployments.chain(sets).chain(daemons);
    let own_kinds =
        own_kinds.map(|(owner, template, wanted, reason)| (owner, template.clone(), wanted, reason));
    for (owner, template, wanted, reason) in own_kinds.chain(rollouts) {
        if !is_selected(own, &template) {
            continue;
        }
        if wanted == 0 {
            idle.get_or_insert(owner);
            continue;
        }
        let pods = Awaited::new(owner, &template);
        if let Some(reason) = reason {
            return pods.refused(&reason);
        }
        awaited.get_or_insert(pods);
    }
    match (awaited, idle) {
        (Some(pods), _) => Vacancy::Awaited(pods),
        (None, Some(owner)) => Vacancy::Idle(format!("{owner} wants no pods")),
        (None, None) => Vacancy::NoWorkload,
    }
}

/// Returns true if a selector matches the pods of a template.
pub fn is_selected(own: &LabelSelector, template: &PodTemplateSpec) -> bool {
    let nothing = BTreeMap::new();
    let of = |metadata: &ObjectMeta| {
        let labels = metadata.labels.as_ref().unwrap_or(&nothing);
        let annotations = metadata.annotations.as_ref().unwrap_or(&nothing);
        Choice::of(labels, annotations) != Choice::Out && selector::matches(own, labels)
    };
    of(template.metadata.as_ref().unwrap_or(&ObjectMeta::default()))
}

/// Returns the kind and the name of an object.
pub fn named(kind: &str, metadata: &ObjectMeta) -> String {
    format!("{kind} {}", metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy_pods::tests::{list, stores};

    fn of(replicas: i32, status: Value) -> Vacancy {
        let deployment = json!({
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"replicas": replicas, "selector": {}, "template": {"metadata": {"labels": {"app": "shop"}}}},
            "status": status,
        });
        let stores = Stores { deployments: list(vec![deployment]), ..stores(vec![]) };
        vacancy(&stores, "shop", &shop())
    }

    fn shop() -> LabelSelector {
        LabelSelector {
            match_labels: Some([("app".to_owned(), "shop".to_owned())].into()),
            ..LabelSelector::default()
        }
    }

    #[test]
    fn rollout_by_the_template_of_a_deployment_is_awaited_although_that_wants_no_pods() {
        let deployment = json!({
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"replicas": 0, "selector": {}, "template": {"metadata": {"labels": {"app": "shop"}}}},
        });
        let of = |replicas: i32| {
            let rollout = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"replicas": replicas, "workloadRef": {"kind": "Deployment", "name": "shop"}}});
            let stores = Stores { deployments: list(vec![deployment.clone()]), ..stores(vec![]) };
            stores.rollouts.put("shop", vec![Arc::new(serde_json::from_value(rollout).unwrap())], None);
            vacancy(&stores, "shop", &shop())
        };
        assert!(matches!(of(2), Vacancy::Awaited(awaited) if awaited.owner == "Rollout web"));
        assert!(matches!(of(0), Vacancy::Idle(_)));
    }

    #[test]
    fn pods_that_are_awaited_are_told_from_those_that_cannot_be_created() {
        assert_eq!(of(0, json!({})), Vacancy::Idle("Deployment shop wants no pods".into()));
        let is_awaited =
            |vacancy| matches!(vacancy, Vacancy::Awaited(awaited) if awaited.owner == "Deployment shop");
        assert!(is_awaited(of(1, json!({}))));
        let failure = |status: &str| json!({"conditions": [{"type": "ReplicaFailure", "status": status, "message": "exceeded quota"}]});
        let failed = Vacancy::NotCreated("Deployment shop has no pods: exceeded quota".into());
        assert_eq!(of(1, failure("True")), failed);
        assert!(is_awaited(of(1, failure("False"))));
    }
}
