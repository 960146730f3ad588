//! Workloads of each of Kubernetes' own kinds.

use std::sync::LazyLock;

use k8s_openapi::{
    api::apps::v1::{DaemonSet, Deployment, DeploymentCondition, DeploymentStrategy, StatefulSet},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{DEADLINE_EXCEEDED, Halt, Replacement, Workload, WorkloadKind, workload};

/// The default of a Deployment's `maxSurge` and `maxUnavailable`.
static QUARTER: LazyLock<IntOrString> = LazyLock::new(|| IntOrString::String("25%".into()));

/// Returns the condition of a Deployment whose pods cannot be created.
pub(crate) fn replica_failure(deployment: &Deployment) -> Option<&DeploymentCondition> {
    let mut conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
}

pub(super) fn of_deployment(deployment: &Deployment) -> Workload {
    let (spec, status) = (deployment.spec.as_ref(), deployment.status.as_ref());
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let complete = status.is_some_and(|status| {
        status.observed_generation >= deployment.metadata.generation
            && [status.updated_replicas, status.replicas, status.available_replicas]
                .iter()
                .all(|count| count.unwrap_or(0) == wanted)
    });
    let halt = spec.is_none_or(|spec| spec.paused == Some(true)).then_some(Halt::Paused);
    let template = spec.map(|spec| &spec.template);
    let replacement = of_strategy(spec.and_then(|spec| spec.strategy.as_ref()), wanted);
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let stalled = conditions.find(|one| one.reason.as_deref() == Some(DEADLINE_EXCEEDED));
    let stalled = stalled.map(|one| one.message.clone().unwrap_or_default());
    let lacks_pods = replica_failure(deployment).is_some()
        || status.is_some_and(|status| status.replicas.unwrap_or(0) < wanted);
    let workload = workload(WorkloadKind::Deployment, &deployment.metadata, template, complete, halt);
    Workload { stalled, lacks_pods, replacement, ..workload }
}

fn of_strategy(strategy: Option<&DeploymentStrategy>, replicas: i32) -> Replacement {
    if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate")) {
        return Replacement { surge: 0, unavailable: replicas };
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let count = |value: Option<&IntOrString>, up| scaled(value.unwrap_or(&QUARTER), replicas, up);
    let surge = count(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
    let unavailable = count(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
    Replacement::of(surge, unavailable, replicas)
}

/// Returns a number of pods that is given as such or as a percentage of the replicas, rounded up or down.
pub(crate) fn scaled(value: &IntOrString, replicas: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.saturating_mul(replicas);
            if up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 }
        }
    }
}

pub(super) fn of_stateful_set(set: &StatefulSet) -> Workload {
    let (spec, status) = (set.spec.as_ref(), set.status.as_ref());
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let complete = status.is_some_and(|status| {
        status.observed_generation >= set.metadata.generation
            && status.replicas == wanted
            && [status.updated_replicas, status.ready_replicas]
                .iter()
                .all(|count| count.unwrap_or(0) == wanted)
    });
    let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
    let halt = strategy.and_then(|strategy| {
        let partition = strategy.rolling_update.as_ref().and_then(|update| update.partition);
        match (strategy.type_.as_deref(), partition.unwrap_or(0)) {
            (Some("OnDelete"), _) => Some(Halt::OnDelete),
            (_, 0) => None,
            (_, _) => Some(Halt::Partition),
        }
    });
    let template = spec.map(|spec| &spec.template);
    let unavailable = strategy
        .and_then(|strategy| strategy.rolling_update.as_ref()?.max_unavailable.as_ref())
        .map_or(1, |value| scaled(value, wanted, true));
    let mut workload = workload(WorkloadKind::StatefulSet, &set.metadata, template, complete, halt);
    workload.lacks_pods = status.is_some_and(|status| status.replicas < wanted);
    workload.replacement = Replacement::of(0, unavailable, wanted);
    let claims = spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    add_claims(
        &mut workload.template,
        &set.name_any(),
        claims.filter_map(|claim| claim.metadata.name.as_deref()),
    );
    workload
}

pub(super) fn of_daemon_set(set: &DaemonSet) -> Workload {
    let (spec, status) = (set.spec.as_ref(), set.status.as_ref());
    let wanted = status.map_or(0, |status| status.desired_number_scheduled);
    let complete = status.is_some_and(|status| {
        status.observed_generation >= set.metadata.generation
            // A node that is not ready has a pod that is not available, for as long as it takes.
            && status.updated_number_scheduled.unwrap_or(0) == wanted
    });
    let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
    let halt =
        strategy.filter(|strategy| strategy.type_.as_deref() == Some("OnDelete")).map(|_| Halt::OnDelete);
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let count = |value: Option<&IntOrString>| value.map_or(0, |value| scaled(value, wanted, true));
    let surge = count(rolling.and_then(|rolling| rolling.max_surge.as_ref()));
    let unavailable = count(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()));
    let template = spec.map(|spec| &spec.template);
    let workload = workload(WorkloadKind::DaemonSet, &set.metadata, template, complete, halt);
    let lacks_pods = status.is_some_and(|status| status.current_number_scheduled < wanted);
    Workload { lacks_pods, replacement: Replacement::of(surge, unavailable, wanted), ..workload }
}

/// Adds the volumes that a StatefulSet adds to the template of its pods.
fn add_claims<'a>(template: &mut Value, set: &str, claims: impl Iterator<Item = &'a str>) {
    let volumes: Vec<_> = claims
        .map(|claim| json!({ "name": claim, "persistentVolumeClaim": { "claimName": format!("{claim}-{set}-0") } }))
        .collect();
    if volumes.is_empty() {
        return;
    }
    let is_claimed = |volume: &Value| volumes.iter().any(|claimed| claimed["name"] == volume["name"]);
    let mut all = template["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    all.retain(|volume| !is_claimed(volume));
    all.extend(volumes);
    template["spec"]["volumes"] = json!(all);
}
