//! Workloads of a policy that has no pods.

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use larder_crds::selector;

use crate::{
    policies::opted_out,
    stores::{Stores, in_namespace},
};

/// The reason that a policy has no pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// No workload has such pods.
    NoWorkload,
    /// The workloads want no pods now, with one of them.
    Idle(String),
    /// A workload wants pods and has none, with the reason where it gives one.
    NotCreated(String),
}

/// Returns the reason that no pod matches a policy's selector, as far as Deployments, StatefulSets and DaemonSets tell.
pub fn vacancy(stores: &Stores, namespace: &str, own: &LabelSelector) -> Vacancy {
    let mut idle = None;
    let deployments = in_namespace(&stores.deployments, namespace);
    let sets = in_namespace(&stores.stateful_sets, namespace);
    let daemons = in_namespace(&stores.daemon_sets, namespace);
    let deployments = deployments.iter().filter_map(|one| {
        let spec = one.spec.as_ref().filter(|spec| is_selected(own, &spec.template))?;
        let conditions = one.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let failure =
            conditions.into_iter().find(|one| one.type_ == "ReplicaFailure" && one.status == "True");
        let reason = failure.and_then(|one| one.message.clone());
        Some((named("Deployment", &one.metadata), spec.replicas.unwrap_or(1), reason))
    });
    let sets = sets.iter().filter_map(|one| {
        let spec = one.spec.as_ref().filter(|spec| is_selected(own, &spec.template))?;
        Some((named("StatefulSet", &one.metadata), spec.replicas.unwrap_or(1), None))
    });
    let daemons = daemons.iter().filter_map(|one| {
        one.spec.as_ref().filter(|spec| is_selected(own, &spec.template))?;
        let wanted = one.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
        Some((named("DaemonSet", &one.metadata), wanted, None))
    });
    for (name, wanted, reason) in deployments.chain(sets).chain(daemons) {
        if wanted > 0 {
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            return Vacancy::NotCreated(format!("{name} has no pods{reason}"));
        }
        idle.get_or_insert(name);
    }
    idle.map_or(Vacancy::NoWorkload, |name| Vacancy::Idle(format!("{name} wants no pods")))
}

/// Returns true if a selector matches the pods of a template.
pub fn is_selected(own: &LabelSelector, template: &PodTemplateSpec) -> bool {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    labels.is_some_and(|labels| !opted_out(labels) && selector::matches(own, labels))
}

fn named(kind: &str, metadata: &ObjectMeta) -> String {
    format!("{kind} {}", metadata.name.as_deref().unwrap_or_default())
}
