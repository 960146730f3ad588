//! The observed state of a policy's pods: their selection, their sidecars and their deviations.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::ResourceExt;
use larder_api::{annotations, labels, names};
use larder_crds::{CachePolicy, selector};
use serde_json::{Value, json};

use crate::{
    argo,
    capture::{Captured, Skip, SkipReason},
    choice::Choice,
    cli::SidecarSettings,
    compile,
    in_force::InForce,
    inject,
    inject::{Injection, Outcome},
    pod::{admin_port_of, has_existed_for, has_sidecar, is_live, obstacle, stuck_because},
    quota::{self, Usage},
    rollout::{Deviation, Obstacle, PodState},
    stores::{Stores, in_namespace},
    workload::{self, Newest, Workload},
};

/// The end of the name of a pod's own choice, in JSON.
const CHOICE: &str = "larder.dev/inject\"";

/// A policy's pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyPods {
    /// Pods that the policy selects and that no older policy serves, and pods that have its sidecar.
    pub pods: Vec<PodReport>,
    /// The workloads that own them, with the state of all their pods here.
    pub workloads: Vec<(Workload, Vec<PodState>)>,
    /// The older policy that serves pods which this one also selects.
    pub conflict: Option<String>,
    /// Clauses about pods of the namespace whose choice for or against the sidecar has no effect.
    pub remarks: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodReport {
    /// The pod's name.
    pub name: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's address, once it has one.
    pub address: Option<IpAddr>,
    /// True if the policy selects the pod.
    pub matched: bool,
    /// True if the pod has the sidecar.
    pub injected: bool,
    /// True if the sidecar is ready.
    pub ready: bool,
    /// The port of the sidecar's admin API.
    pub admin_port: Option<u16>,
    /// The annotated hash of the configuration.
    pub config_hash: Option<String>,
    /// The annotated coverage.
    pub coverage: Option<String>,
    /// The captured ports.
    pub captured: Vec<Captured>,
    /// The pod itself, as far as the operator keeps it.
    pub object: Option<Arc<Pod>>,
    /// The pod's uid.
    pub uid: String,
    /// Kind of the object that controls the pod, or `Rollout` for one that is not known and whose ReplicaSet controls the pod.
    pub owner: Option<String>,
    /// uid of the workload that owns the pod.
    pub workload: Option<String>,
    /// True if the pod was created from its workload's newest template.
    pub newest: bool,
    /// Requests and limits of the pod's sidecar.
    pub usage: Usage,
    /// The reason that the pod does not start now, with Kubernetes' words for it.
    pub not_started: Option<(Obstacle, String)>,
    /// The same, if it has lasted for the time after which a restart is undone.
    pub obstacle: Option<(Obstacle, String)>,
    /// The pod's deviation from the desired state.
    pub deviation: Option<Deviation>,
    /// The reason that the pod cannot have a sidecar.
    pub skip: Option<Skip>,
}

/// The policy whose pods are examined.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// The policy's name.
    pub name: &'a str,
    /// The policy, unless it was deleted.
    pub policy: Option<&'a CachePolicy>,
    /// True if the running state is to be left as it is, because the policy is invalid.
    pub frozen: bool,
    /// The namespace's policies that may be in force.
    pub others: &'a InForce,
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// Time after which a restart whose pods do not start is undone.
    pub patience: Duration,
    /// The current time.
    pub now: Timestamp,
}

/// Examines a policy's pods.
pub fn policy_pods(stores: &Stores, subject: &Subject<'_>) -> PolicyPods {
    let Subject { namespace, name, policy, frozen, others, settings, patience, now } = *subject;
    let network_policies = in_namespace(&stores.network_policies, namespace);
    let pod_security = stores.pod_security.confined(namespace);
    let injection = policy.map(|policy| Injection {
        namespace,
        policy: name,
        spec: &policy.spec,
        settings,
        network_policies: &network_policies,
        pod_security: pod_security.as_deref(),
    });
    let hash = injection.map(|injection| inject::hash(&injection, &compile::secrets(&injection.spec.cache)));
    let mut policy_pods = PolicyPods::default();
    let mut owners: HashMap<_, Option<Owner>> = HashMap::new();
    let is_selected =
        |labels: &_| policy.is_some_and(|policy| selector::matches(&policy.spec.selector, labels));
    let is_named = |labels: &BTreeMap<_, _>| labels.get(labels::POLICY).is_some_and(|owner| owner == name);
    let is_concerned = |labels: &_| is_selected(labels) || is_named(labels);
    // Others may have made a choice that has no effect.
    let mut pods = stores.pods.selected_or_mentioning(namespace, is_concerned, CHOICE);
    pods.sort_by_key(|pod| pod.name_any());
    for pod in pods.iter().filter(|pod| is_live(pod)) {
        let labels = pod.labels();
        let injected = has_sidecar(pod);
        let ours = injected && is_named(labels);
        let choice = Choice::of(labels, pod.annotations());
        let opted_out = choice == Choice::Out;
        let selected = is_selected(labels) && !opted_out;
        let deciding = others.serving(labels);
        if let Some(remark) = choice.remark(selected).filter(|_| selected || deciding.is_none()) {
            policy_pods.remarks.push(format!("pod {}: {remark}", pod.name_any()));
        }
        if !selected && !ours {
            continue;
        }
        let deciding = deciding.filter(|_| !opted_out).map(|other| other.name_any());
        let deciding = deciding.filter(|other| policy.is_some() || other != name);
        if let Some(other) = deciding.as_ref().filter(|other| *other != name) {
            if selected {
                policy_pods.conflict = Some(other.clone());
            }
            continue;
        }
        let owner = workload::controller(pod).and_then(|controller| {
            let key = (controller.kind.clone(), controller.name.clone(), deciding.is_some());
            let wanted = injection.as_ref().zip(hash.as_deref()).filter(|_| deciding.is_some());
            owners.entry(key).or_insert_with(|| Owner::find(stores, subject, controller, wanted)).as_ref()
        });
        let (deviation, skip) = match (&injection, &deciding) {
            _ if frozen => (None, None),
            (Some(injection), Some(_)) => {
                let right = ours && pod.annotations().get(annotations::INJECTION_HASH) == hash.as_ref();
                let own = || {
                    let mut own = json!(**pod);
                    if owner.is_some_and(|owner| !owner.workload.progress.undone) {
                        workload::take_withheld(&mut own);
                    }
                    own
                };
                let template = owner.and_then(|owner| owner.template.as_ref());
                judge(own, injected, right, template, refusal(pod), injection)
            }
            _ => (injected.then_some(Deviation::Stray), None),
        };
        let mut report = report(pod, selected, injected, deviation, skip);
        report.not_started = obstacle(pod);
        report.obstacle = report.not_started.clone().filter(|_| has_existed_for(pod, patience, now));
        if let Some(Owner { workload, newest, .. }) = owner {
            (report.workload, report.newest) = (Some(workload.uid.clone()), newest.marks(pod));
            policy_pods.add_state(workload, report.state());
            if let Some(words) = stuck_because(pod).filter(|_| report.newest) {
                policy_pods.is_stalled(&workload.uid, words);
            }
        } else if workload::controller(pod).is_some_and(|owner| argo::is_of_rollout(stores, namespace, owner))
        {
            report.owner = Some(argo::KIND.to_owned());
        }
        policy_pods.pods.push(report);
    }
    policy_pods
}

impl PolicyPods {
    /// Adds a pod to those of its workload.
    fn add_state(&mut self, workload: &Workload, state: PodState) {
        match self.workloads.iter_mut().find(|(known, _)| known.uid == workload.uid) {
            Some((_, states)) => states.push(state),
            None => self.workloads.push((workload.clone(), vec![state])),
        }
    }

    /// Records why the rollout of a workload does not progress, if that is not known: a StatefulSet has no condition for it.
    fn is_stalled(&mut self, uid: &str, words: String) {
        let mut workloads = self.workloads.iter_mut();
        if let Some((workload, _)) = workloads.find(|(workload, _)| workload.uid == uid) {
            workload.stalled.get_or_insert(words);
        }
    }
}

impl PodReport {
    /// Returns what decides over a restart of the pod's workload.
    fn state(&self) -> PodState {
        let obstacle = self.obstacle.as_ref().map(|(obstacle, _)| *obstacle);
        PodState { deviation: self.deviation, newest: self.newest, injected: self.injected, obstacle }
    }
}

/// The owner of some pods.
struct Owner {
    workload: Workload,
    newest: Newest,
    /// The result of injecting the pod that the workload would create now.
    template: Option<Outcome>,
}

impl Owner {
    /// Finds the workload of a controller. `wanted` is the injection of its pods, with its hash, if they are to have one.
    fn find(
        stores: &Stores,
        subject: &Subject<'_>,
        controller: &OwnerReference,
        wanted: Option<(&Injection<'_>, &str)>,
    ) -> Option<Self> {
        let (mut workload, newest) = workload::of_owner(stores, subject.namespace, controller)?;
        workload.progress.patience = subject.patience;
        workload.aim_at(wanted.map(|(_, hash)| hash));
        let wanted = wanted.filter(|_| !subject.frozen);
        let template = wanted.map(|(injection, _)| inject::inject(&workload.template, injection));
        if let Some(Outcome::Injected(injected)) = &template {
            workload.injected = Some(injected.pod.clone());
        }
        Some(Self { workload, newest, template })
    }
}

/// Returns the deviation of a pod that the policy serves, from its JSON. `template` is the result of injecting the pod that its workload
/// would create now.
fn judge(
    pod: impl FnOnce() -> Value,
    injected: bool,
    right: bool,
    template: Option<&Outcome>,
    refusal: Option<Skip>,
    injection: &Injection<'_>,
) -> (Option<Deviation>, Option<Skip>) {
    match (injected, template) {
        (true, Some(Outcome::Skipped(skip))) => (Some(Deviation::Stray), Some(skip.clone())),
        (true, _) => ((!right).then_some(Deviation::Outdated), None),
        (false, Some(Outcome::Skipped(skip))) => (None, Some(skip.clone())),
        // Nothing replaces the pods of no workload, for which a restart would be tried.
        (false, None) if refusal.is_some() => (None, refusal),
        (false, _) => match inject::inject(&pod(), injection) {
            // Others put into the pod what its template does not show, such as a mesh's sidecar.
            Outcome::Skipped(skip) => (None, Some(skip)),
            Outcome::Injected(_) => (Some(Deviation::Missed), None),
        },
    }
}

/// Returns the API server's refusal of the pod with the sidecar, as it was noted when the pod was created.
fn refusal(pod: &Pod) -> Option<Skip> {
    let reason = SkipReason::AdmissionRefused;
    let note = pod.annotations().get(annotations::SKIPPED)?.strip_prefix(reason.as_str())?;
    let words = note.strip_prefix(": ")?;
    Some(Skip { reason, message: format!("{words}; correct that, and create the pod again") })
}

fn report(
    pod: &Arc<Pod>,
    matched: bool,
    injected: bool,
    deviation: Option<Deviation>,
    skip: Option<Skip>,
) -> PodReport {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    let ready = statuses.into_iter().any(|container| container.name == names::SIDECAR && container.ready);
    let original = json!({ "metadata": { "annotations": pod.annotations() } });
    let usage = if injected { quota::of_sidecar(&json!(**pod)) } else { Usage::new() };
    PodReport {
        name: pod.name_any(),
        labels: pod.labels().clone(),
        address: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
        matched,
        injected,
        ready,
        admin_port: admin_port_of(pod),
        config_hash: pod.annotations().get(annotations::CONFIG_HASH).cloned(),
        coverage: pod.annotations().get(annotations::COVERAGE).cloned(),
        captured: inject::captured_of(&original),
        object: Some(pod.clone()),
        usage,
        uid: pod.uid().unwrap_or_default(),
        owner: workload::controller(pod).map(|owner| owner.kind.clone()),
        deviation,
        skip,
        ..PodReport::default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
