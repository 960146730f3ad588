//! Deployments, StatefulSets, DaemonSets and Argo Rollouts: the owners of pods, and the progress of their rollouts.

mod kinds;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use larder_api::annotations;
use serde_json::{Value, json};

use self::kinds::{of_daemon_set, of_deployment, of_stateful_set};
pub(crate) use self::kinds::{replica_failure, scaled};
use crate::{
    argo,
    choice::Choice,
    rollout::{Progress, Undone},
    stores::Stores,
};

/// The annotation by which a Deployment counts its revisions, on itself and on its ReplicaSets.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The label by which a DaemonSet marks the generation of the template of its pods.
const TEMPLATE_GENERATION: &str = "pod-template-generation";
/// The annotation by which a DaemonSet counts the generations of its template.
const TEMPLATE_GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
/// The reason of a Deployment's condition `Progressing` after its `progressDeadlineSeconds`.
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// Start of the operator's change causes.
const OWN_CAUSE: &str = "Larder: ";
/// The label by which a StatefulSet marks its pods' revision.
const REVISION_HASH: &str = "controller-revision-hash";

larder_api::labelled! {
    /// Kinds of workloads that can be restarted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum WorkloadKind {
        /// A Deployment.
        Deployment = "Deployment",
        /// A StatefulSet.
        StatefulSet = "StatefulSet",
        /// A DaemonSet.
        DaemonSet = "DaemonSet",
        /// An Argo Rollout.
        Rollout = "Rollout",
    }
}

impl WorkloadKind {
    /// Returns the API version of the kind.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet => "apps/v1",
            Self::Rollout => "argoproj.io/v1alpha1",
        }
    }
}

/// Replacement of a workload's pods by a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// Number of pods that may exist beside the wanted ones; with 0, a pod is deleted before its successor is created.
    pub surge: i32,
    /// Number of pods that may be missing during a rollout.
    pub unavailable: i32,
}

impl Replacement {
    /// Creates the replacement by a strategy: without a surge one pod at least is missing, and never more than are wanted.
    pub fn of(surge: i32, unavailable: i32, wanted: i32) -> Self {
        let least = i32::from(surge == 0);
        Self { surge, unavailable: unavailable.max(least).min(wanted) }
    }
}

/// The reason that a changed template is not rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The Deployment is paused.
    Paused,
    /// The StatefulSet has a partition.
    Partition,
    /// Pods are replaced when they are deleted.
    OnDelete,
}

/// A workload that can be restarted.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Kind of the workload.
    pub kind: WorkloadKind,
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub name: String,
    /// uid of the workload.
    pub uid: String,
    /// JSON of a pod as the workload would create it.
    pub template: Value,
    /// JSON of that pod with the sidecar, if it can have one.
    pub injected: Option<Value>,
    /// The reason that a changed template is not rolled out.
    pub halt: Option<Halt>,
    /// The Deployment's words, or those about a pod, if its rollout does not progress.
    pub stalled: Option<String>,
    /// True if pods are wanted that do not exist.
    pub lacks_pods: bool,
    /// Replacement of pods by a rollout.
    pub replacement: Replacement,
    /// Progress of the rollout.
    pub progress: Progress,
    /// The aim of a restart: a hash of the template and of the injection.
    pub aim: String,
    /// The aim of the last restart.
    last_aim: Option<String>,
    /// The last restart that was undone.
    undone: Option<Undone>,
    /// The hash of the injection that a restart would apply.
    pub injection: Option<String>,
    /// The time of the last restart as the template has it.
    pub restarted_at: Option<String>,
    /// The time of the restart before the last one, as the template had it.
    pub restarted_before: Option<String>,
    /// The cause of its newest revision, as `kubectl rollout history` shows it.
    pub change_cause: Option<String>,
}

impl Workload {
    /// Sets the injection that a restart would apply; `None` means no sidecar.
    pub fn aim_at(&mut self, injection: Option<&str>) {
        let mut template = self.template.clone();
        if let Some(metadata) = template["metadata"].as_object_mut()
            && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
        {
            annotations.remove(annotations::RESTARTED_AT);
            annotations.remove(annotations::WITHHELD);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(injection.unwrap_or_default().as_bytes());
        hasher.update(&[0]);
        hasher.update(template.to_string().as_bytes());
        self.aim = larder_policy::digest::short(&hasher.finalize());
        self.progress.outlived = self.last_aim.as_ref() != Some(&self.aim);
        self.injection = injection.map(str::to_owned);
        self.progress.undone = self.undone.as_ref().is_some_and(|undone| undone.aim == self.aim);
        if !self.progress.undone {
            take_withheld(&mut self.template);
        }
    }

    /// Returns the restart with the current aim, if it was undone.
    pub fn undone(&self) -> Option<&Undone> {
        self.undone.as_ref().filter(|_| self.progress.undone)
    }

    /// Returns the labels of the workload's pods.
    pub fn labels(&self) -> BTreeMap<String, String> {
        serde_json::from_value(self.template["metadata"]["labels"].clone()).unwrap_or_default()
    }

    /// Returns the choice that the template makes for the workload's pods.
    pub fn choice(&self) -> Choice {
        let annotations = self.template["metadata"]["annotations"].clone();
        Choice::of(&self.labels(), &serde_json::from_value(annotations).unwrap_or_default())
    }

    /// Returns true if a restart by the operator began after `since` and has not ended.
    pub fn is_being_restarted(&self, since: Timestamp) -> bool {
        let Progress { attempts, complete, restarted_at, .. } = self.progress;
        attempts > 0 && !complete && restarted_at.is_some_and(|at| at > since)
    }

    /// Returns the change cause of a restart by the operator; `None` leaves somebody else's as it is.
    pub fn cause(&self, text: &str) -> Option<String> {
        let is_foreign = self.change_cause.is_some() && self.own_cause().is_none();
        (!is_foreign).then(|| format!("{OWN_CAUSE}{text}"))
    }

    /// Returns the change cause, if it is the operator's.
    pub fn own_cause(&self) -> Option<&str> {
        self.change_cause.as_deref().filter(|cause| cause.starts_with(OWN_CAUSE))
    }

    /// Returns the command that restarts the workload.
    pub fn restart_command(&self) -> String {
        match self.kind {
            WorkloadKind::Rollout => self.command("patch", argo::RESTART),
            _ => self.command("rollout restart", ""),
        }
    }

    /// Returns a sentence for a workload that does not roll out by itself: the reason, and the command that helps. `pods`
    /// are the names of those to be replaced.
    pub fn manual(&self, pods: &[&str]) -> Option<String> {
        Some(match self.halt? {
            Halt::Paused if self.kind == WorkloadKind::Rollout => {
                let patch = r#" --type=merge --patch='{"spec":{"paused":false}}'"#;
                format!("{self} is paused: resume it with `{}`", self.command("patch", patch))
            }
            Halt::Paused => {
                format!("{self} is paused: resume it with `{}`", self.command("rollout resume", ""))
            }
            Halt::Partition => {
                let patch = r#" --type=merge --patch='{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}'"#;
                format!(
                    "{self} has a partition that keeps pods as they are: lower it, as with `{}`",
                    self.command("patch", patch)
                )
            }
            Halt::OnDelete => format!(
                "{self} has the update strategy OnDelete: delete its pods, as with `kubectl delete pod {} --namespace {}`",
                pods.join(" "),
                self.namespace
            ),
        })
    }

    fn command(&self, verb: &str, rest: &str) -> String {
        let kind = match self.kind {
            // The plain word is also that of other groups' kinds.
            WorkloadKind::Rollout => "rollouts.argoproj.io".to_owned(),
            kind => kind.as_str().to_lowercase(),
        };
        format!("kubectl {verb} {kind} {} --namespace {}{rest}", self.name, self.namespace)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// The mark of the pods that were created from a workload's newest template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Newest {
    /// A label of the pod, with its value.
    Label(&'static str, Option<String>),
    /// A label of the pod, with its value, and the time before which no such pod was created.
    LabelSince(&'static str, Option<String>, Option<Timestamp>),
    /// The owner of the pod, which is of the newest template or is not.
    Owner(bool),
}

impl Newest {
    /// Returns true if a pod was created from the newest template.
    pub fn marks(&self, pod: &Pod) -> bool {
        match self {
            Self::Label(label, value) => has_label(pod, label, value.as_ref()),
            Self::LabelSince(label, value, since) => {
                let created = pod.creation_timestamp().map(|time| time.0);
                let is_later = since.is_none_or(|since| created.is_some_and(|created| created >= since));
                is_later && has_label(pod, label, value.as_ref())
            }
            Self::Owner(is_newest) => *is_newest,
        }
    }
}

fn has_label(pod: &Pod, label: &str, value: Option<&String>) -> bool {
    value.is_some() && pod.labels().get(label) == value
}

/// Returns the owner that controls a pod.
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.owner_references().iter().find(|owner| owner.controller == Some(true))
}

/// Returns the workload whose pods are controlled by `owner`, and the mark of its newest pods.
pub fn of_owner(stores: &Stores, namespace: &str, owner: &OwnerReference) -> Option<(Workload, Newest)> {
    // Others have kinds of the same names.
    let is_own = |owner: &OwnerReference| owner.api_version.starts_with("apps/");
    match owner.kind.as_str() {
        _ if !is_own(owner) => None,
        "StatefulSet" => {
            let set = stores.stateful_sets.get(&ObjectRef::new(&owner.name).within(namespace))?;
            let newest = set.status.as_ref().and_then(|status| status.update_revision.clone());
            Some((of_stateful_set(&set), Newest::Label(REVISION_HASH, newest)))
        }
        "DaemonSet" => {
            let set = stores.daemon_sets.get(&ObjectRef::new(&owner.name).within(namespace))?;
            let newest = set.annotations().get(TEMPLATE_GENERATION_ANNOTATION).cloned();
            Some((of_daemon_set(&set), Newest::Label(TEMPLATE_GENERATION, newest)))
        }
        "ReplicaSet" => {
            let set = stores.replica_sets.get(&ObjectRef::new(&owner.name).within(namespace))?;
            let owner = set.owner_references().iter().find(|owner| owner.controller == Some(true))?;
            if argo::is_rollout(owner) {
                return argo::of_owner(stores, namespace, owner);
            }
            if owner.kind != "Deployment" || !is_own(owner) {
                return None;
            }
            let deployment = stores.deployments.get(&ObjectRef::new(&owner.name).within(namespace))?;
            let newest = deployment.annotations().get(REVISION);
            let newest = newest.is_some() && set.annotations().get(REVISION) == newest;
            Some((of_deployment(&deployment), Newest::Owner(newest)))
        }
        _ => None,
    }
}

/// Removes the note by which the sidecar is withheld from a pod.
pub fn take_withheld(pod: &mut Value) {
    if let Some(annotations) = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(annotations::WITHHELD);
    }
}

/// The annotations of a restart on the workload itself.
pub const NOTES: [&str; 4] =
    [annotations::ROLL_ATTEMPTS, annotations::ROLL_AIM, annotations::ROLL_BEFORE, annotations::ROLL_UNDONE];

/// The beginning of the names in [`NOTES`].
const NOTE_PREFIX: &str = "larder.dev/roll-";

/// Returns the workloads of a namespace, or of the cluster, that the operator has restarted and does not regard as settled.
pub fn restarted(stores: &Stores, namespace: Option<&str>) -> impl Iterator<Item = Workload> {
    let is_noted = |own: &BTreeMap<String, String>| NOTES.iter().any(|note| own.contains_key(*note));
    let deployments = stores.deployments.mentioning(namespace, NOTE_PREFIX);
    let sets = stores.stateful_sets.mentioning(namespace, NOTE_PREFIX);
    let daemons = stores.daemon_sets.mentioning(namespace, NOTE_PREFIX);
    let rollouts = match namespace {
        Some(namespace) => stores.rollouts.of(namespace),
        None => stores.rollouts.all(),
    };
    let deployments = deployments.filter(move |one| is_noted(one.annotations()));
    let sets = sets.filter(move |one| is_noted(one.annotations()));
    let daemons = daemons.filter(move |one| is_noted(one.annotations()));
    let rollouts = rollouts.into_iter().filter(move |one| is_noted(one.annotations()));
    deployments
        .map(|deployment| of_deployment(&deployment))
        .chain(sets.map(|set| of_stateful_set(&set)))
        .chain(daemons.map(|set| of_daemon_set(&set)))
        .chain(rollouts.filter_map(|rollout| argo::of_rollout(stores, &rollout)))
}

/// Returns true if a restart of a workload, `except` the one with that uid, was undone because a sidecar with this image does
/// not start.
pub fn image_has_failed(stores: &Stores, image: &str, except: &str) -> bool {
    let failed = |undone: &Undone| undone.image == image && undone.obstacle.is_common();
    restarted(stores, None)
        .any(|workload| workload.uid != except && workload.undone.as_ref().is_some_and(failed))
}

/// Returns true if a Deployment is still replacing pods of an older template. A rollout that has failed returns false.
pub fn is_rolling(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return true };
    let mut conditions = status.conditions.iter().flatten();
    if conditions.any(|condition| condition.reason.as_deref() == Some(DEADLINE_EXCEEDED)) {
        return false;
    }
    let updated = status.updated_replicas.unwrap_or(0);
    status.observed_generation < deployment.metadata.generation
        || updated < wanted
        || status.replicas.unwrap_or(0) > updated
}

pub(crate) fn workload(
    kind: WorkloadKind,
    metadata: &ObjectMeta,
    template: Option<&PodTemplateSpec>,
    complete: bool,
    halt: Option<Halt>,
) -> Workload {
    let template_annotations = template.and_then(|template| template.metadata.as_ref()?.annotations.as_ref());
    let restarted_at = template_annotations.and_then(|all| all.get(annotations::RESTARTED_AT));
    let own = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name));
    Workload {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        template: json!(template),
        injected: None,
        halt,
        stalled: None,
        lacks_pods: false,
        replacement: Replacement::default(),
        progress: Progress {
            complete,
            rolls: halt.is_none(),
            restarted_at: restarted_at.and_then(|at| at.parse().ok()),
            attempts: own(annotations::ROLL_ATTEMPTS).and_then(|text| text.parse().ok()).unwrap_or(0),
            ..Progress::default()
        },
        aim: String::new(),
        last_aim: own(annotations::ROLL_AIM).cloned(),
        undone: own(annotations::ROLL_UNDONE).and_then(|text| serde_json::from_str(text).ok()),
        injection: None,
        restarted_at: restarted_at.cloned(),
        restarted_before: own(annotations::ROLL_BEFORE).filter(|at| !at.is_empty()).cloned(),
        change_cause: own(annotations::CHANGE_CAUSE).cloned(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
