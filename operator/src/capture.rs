//! Capture of a pod's requests by the sidecar, or the reason that a pod has none.
//!
//! A capture mode is a [`Mode`], and a file beside this one that makes its [`Plan`] for a pod. Everything that depends on
//! the mode is a `match` on one of the two, so that the compiler names each place that a further mode has to fill.

pub(crate) mod companion;
mod located;
pub mod mesh;
mod named_port;
mod network_policy;
mod port_from;
mod port_variable;
mod probes;
pub(crate) mod redirect;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod windows;

use std::{fmt, sync::Arc};

use k8s_openapi::{api::networking::v1::NetworkPolicy, apimachinery::pkg::util::intstr::IntOrString};
use larder_api::names;
use larder_crds::{Capture, CaptureMode, PortFrom, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use self::port_from::ends_with_port;
pub use self::{
    companion::{Companion, sidecar_port_name},
    named_port::NamedPort,
    port_variable::PortVariable,
    redirect::Redirect,
};
use crate::cli::SidecarSettings;

larder_api::labelled! {
    /// A way to capture requests.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// The port's name moves to the sidecar: see [`NamedPort`].
        NamedPort = "NamedPort",
        /// The sidecar takes the application's number: see [`PortVariable`].
        PortVariable = "PortVariable",
        /// Connections are redirected to the sidecar: see [`Redirect`].
        Redirect = "Redirect",
        /// Services beside others lead to the sidecar: see [`Companion`].
        CompanionService = "CompanionService",
    }
}

impl Mode {
    /// Returns the mode that a policy with these targets asks for; `None` gives no pod a sidecar.
    pub fn of(capture: &Capture, targets: &[Target]) -> Option<Self> {
        match capture.mode {
            CaptureMode::Auto if targets.iter().any(|target| target.port_from.is_some()) => {
                Some(Self::PortVariable)
            }
            CaptureMode::Auto | CaptureMode::NamedPort => Some(Self::NamedPort),
            CaptureMode::PortVariable => Some(Self::PortVariable),
            CaptureMode::Redirect => Some(Self::Redirect),
            CaptureMode::CompanionService => Some(Self::CompanionService),
            CaptureMode::None => None,
        }
    }

    /// Returns the mode's part of the injection hash: a name with a number that grows when the mode changes pods in another
    /// way, so that pods of the former way are replaced, and the settings on which only this mode depends. The policy's
    /// targets are part of the hash in any mode.
    pub fn fingerprint(self, settings: &SidecarSettings) -> Value {
        match self {
            Self::NamedPort => json!("NamedPort/2"),
            Self::PortVariable => json!(["PortVariable/2", settings.application_port]),
            Self::Redirect => {
                let pull_policy = settings.redirect_pull_policy.map(|policy| policy.as_str());
                json!(["Redirect/2", settings.redirect_image, pull_policy])
            }
            Self::CompanionService => json!("CompanionService/2"),
        }
    }

    /// Returns the sentence about the choice of `Auto` that follows in the status, or nothing where a mode was asked for.
    pub fn choice(self, capture: &Capture) -> Option<String> {
        let reason = match (capture.mode, self) {
            (CaptureMode::Auto, Self::NamedPort) => "no target has portFrom",
            (CaptureMode::Auto, Self::PortVariable) => "the targets have portFrom",
            _ => return None,
        };
        Some(format!("Auto chose {}, because {reason}", self.as_str()))
    }

    /// Returns the lines to write for this mode to capture the requests of a pod, where it could, with the mode's name.
    fn offer(self, pod: &Value, inputs: &Inputs<'_>) -> Option<String> {
        let (plan, line) = match self {
            Self::NamedPort => {
                let (plan, line) = NamedPort::offer(pod, inputs)?;
                (Plan::NamedPort(plan), line)
            }
            Self::PortVariable => {
                let (plan, line) = PortVariable::offer(pod, inputs)?;
                (Plan::PortVariable(plan), line)
            }
            Self::Redirect => {
                let line = "capture by Redirect: write `capture: {mode: Redirect}` in the policy and leave portFrom out; an init \
                            container redirects every connection";
                (Plan::Redirect(Redirect::plan(pod, inputs).ok()?), line.to_owned())
            }
            Self::CompanionService => {
                let line = "capture by CompanionService: write `capture: {mode: CompanionService}` in the policy and leave \
                            portFrom out; a Service beside yours leads callers who opt in to the cache";
                (Plan::CompanionService(Companion::plan(pod, inputs).ok()?), line.to_owned())
            }
        };
        mesh::plan(pod, &plan, inputs.settings).ok().map(|_| line)
    }
}

/// Returns the modes other than `used` that could capture the requests of `pod`, a pod's JSON before injection, each with
/// the lines to write.
pub fn offers(used: Option<Mode>, pod: &Value, inputs: &Inputs<'_>) -> Vec<String> {
    let others = Mode::ALL.into_iter().filter(|mode| Some(*mode) != used);
    others.filter_map(|mode| mode.offer(pod, inputs)).collect()
}

/// Inputs of a plan, besides the pod.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The policy's capture.
    pub capture: &'a Capture,
    /// The policy's targets.
    pub targets: &'a [Target],
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// The namespace's network policies.
    pub network_policies: &'a [Arc<NetworkPolicy>],
    /// The namespace's Pod Security level, if it forbids capabilities.
    pub pod_security: Option<&'a str>,
}

/// The changes to a pod by which its requests reach the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Port names move to the sidecar.
    NamedPort(NamedPort),
    /// Numbers of ports move to the sidecar.
    PortVariable(PortVariable),
    /// Connections are redirected.
    Redirect(Redirect),
    /// The sidecar has ports of its own.
    CompanionService(Companion),
}

impl Plan {
    /// Plans the capture of `pod`, a pod's JSON before injection.
    ///
    /// # Errors
    /// The reason that there can be no sidecar.
    pub fn new(pod: &Value, inputs: &Inputs<'_>) -> Result<Self, Skip> {
        match Mode::of(inputs.capture, inputs.targets) {
            Some(Mode::NamedPort) => NamedPort::plan(pod, inputs).map(Self::NamedPort),
            Some(Mode::PortVariable) => PortVariable::plan(pod, inputs).map(Self::PortVariable),
            Some(Mode::Redirect) => Redirect::plan(pod, inputs).map(Self::Redirect),
            Some(Mode::CompanionService) => Companion::plan(pod, inputs).map(Self::CompanionService),
            None => Err(Skip {
                reason: SkipReason::CaptureNone,
                message: "the policy's capture.mode is None; set Auto to have requests captured".into(),
            }),
        }
    }

    /// Returns the ports whose requests go to the sidecar.
    pub fn captured(&self) -> &[Captured] {
        match self {
            Self::NamedPort(plan) => plan.captured(),
            Self::PortVariable(plan) => plan.captured(),
            Self::Redirect(plan) => plan.captured(),
            Self::CompanionService(plan) => plan.captured(),
        }
    }

    /// Returns the mode's name if it cannot capture what comes from the proxy of a [`mesh`].
    const fn excludes_meshes(&self) -> Option<&'static str> {
        match self {
            Self::NamedPort(_) | Self::PortVariable(_) | Self::CompanionService(_) => None,
            Self::Redirect(_) => Some("Redirect"),
        }
    }

    /// Changes the pod's own containers. The sidecar is added by the injection.
    pub fn apply(&self, pod: &mut Value) {
        match self {
            Self::NamedPort(plan) => {
                apply_to_listeners(pod, plan.captured(), |container| plan.apply(container))
            }
            Self::PortVariable(plan) => {
                apply_to_listeners(pod, plan.captured(), |container| plan.apply(container))
            }
            Self::Redirect(plan) => plan.apply(pod),
            Self::CompanionService(plan) => plan.apply(pod),
        }
    }

    /// Returns the redirection, if connections are redirected.
    pub const fn redirect(&self) -> Option<&Redirect> {
        match self {
            Self::NamedPort(_) | Self::PortVariable(_) | Self::CompanionService(_) => None,
            Self::Redirect(plan) => Some(plan),
        }
    }
}

/// Changes the containers that may listen, and points their probes and hooks at the application.
fn apply_to_listeners(pod: &mut Value, captured: &[Captured], apply: impl Fn(&mut Value)) {
    for container in listeners_mut(pod) {
        apply(container);
        let name = text(&container["name"]).to_owned();
        captured.iter().for_each(|captured| captured.redirect(container, &name));
    }
}

/// A port whose requests go to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Captured {
    /// The container that listens.
    pub container: String,
    /// The port's name, if it has one, which refers to `sidecar_port` in the injected pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The number that the application listens on.
    pub port: u16,
    /// The number that the sidecar listens on.
    pub sidecar_port: u16,
    /// The place in which the application was given another number, if the sidecar listens on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variable: Option<Variable>,
}

/// A place from which an application takes its port, and which was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    /// The place.
    pub place: PortFrom,
    /// True if there was no such environment variable before.
    pub added: bool,
}

impl Captured {
    /// Points the probes and hooks of the container `name` that lead to the captured port at the application's number.
    fn redirect(&self, container: &mut Value, name: &str) {
        if self.variable.is_some() {
            let names = names_of(container, self.sidecar_port);
            let leads_there = |action: &Value| {
                let port = &action["port"];
                let is_named = || names.iter().any(|name| *port == name.as_str());
                text(&action["host"]).is_empty() && (*port == self.sidecar_port || is_named())
            };
            probes::redirect(container, leads_there, self.port);
        } else if name == self.container {
            let leads_there =
                |action: &Value| self.name.as_deref().is_some_and(|name| action["port"] == name);
            probes::redirect(container, leads_there, self.port);
        }
    }

    /// Returns the probes and hooks of the container `name` to their forms in `before`, if they still are as redirected, and
    /// the application's number to its place.
    pub(crate) fn restore(&self, container: &mut Value, name: &str, before: &Value) {
        let mut redirected = before.clone();
        self.redirect(&mut redirected, name);
        probes::restore(container, before, &redirected);
        if let Some(variable) = self.variable.as_ref().filter(|_| name == self.container) {
            if variable.added {
                port_from::remove(container, &variable.place, self.port);
            } else {
                // A place that others have changed since stays as it is.
                let _ = port_from::replace(container, &variable.place, self.port, self.sidecar_port, false);
            }
        }
    }
}

/// Returns the names of a container's TCP port of that number.
fn names_of(container: &Value, port: u16) -> Vec<String> {
    let entries = ports(container).filter(|entry| number(entry) == Some(port));
    entries.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

/// The reason that a pod gets no sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The reason, for programs.
    pub reason: SkipReason,
    /// The reason and the remedy, for users.
    pub message: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

larder_api::labelled! {
    /// The kinds of pods that get no sidecar.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum SkipReason {
        /// The pod uses the node's network.
        HostNetwork = "HostNetwork",
        /// The captured port is published on the node.
        HostPort = "HostPort",
        /// A service mesh captures the pod's traffic in a way that leaves no place for a sidecar: see [`mesh`].
        Mesh = "Mesh",
        /// A NetworkPolicy allows the application's port and not the sidecar's.
        NetworkPolicy = "NetworkPolicy",
        /// No container has such a port.
        NoSuchPort = "NoSuchPort",
        /// The port has no name that a Service could follow.
        UnnamedPort = "UnnamedPort",
        /// The port is one that the sidecar may not listen on in place of the application.
        PrivilegedPort = "PrivilegedPort",
        /// The port's number cannot be replaced where the application takes it from.
        PortNotVariable = "PortNotVariable",
        /// A container uses one of the sidecar's ports.
        PortClash = "PortClash",
        /// A policy asks for a redirection, which the operator may not make.
        RedirectDisabled = "RedirectDisabled",
        /// The namespace's Pod Security level forbids a redirection.
        PodSecurity = "PodSecurity",
        /// The pod has a container with the sidecar's name that differs from the operator's.
        ForeignSidecar = "ForeignSidecar",
        /// A rollout with the sidecar could not end and was undone.
        RolloutUndone = "RolloutUndone",
        /// The pod runs on Windows.
        Windows = "Windows",
        /// The pod is the API server's image of a static pod.
        MirrorPod = "MirrorPod",
        /// A container or volume of the pod has a name that the sidecar needs.
        NameClash = "NameClash",
        /// The API server would refuse the pod with the sidecar.
        AdmissionRefused = "AdmissionRefused",
        /// The annotations have no room for those of the sidecar.
        Annotations = "AnnotationsTooLarge",
        /// The policy captures nothing.
        CaptureNone = "CaptureNone",
    }
}

/// The annotation of the API server's image of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Returns the reason that a pod can have no sidecar in the modes in which it listens on ports of its own.
fn unfit(pod: &Value, settings: &SidecarSettings) -> Option<Skip> {
    let is_reserved = |port| settings.data_ports().contains(&port) || port == settings.admin_port;
    unfit_for(pod, "sidecar.dataPort", is_reserved)
}

/// Returns the reason that a pod can have no sidecar in any mode. `is_reserved` holds for the ports that the mode needs, from the
/// chart's value `setting` on.
fn unfit_for(pod: &Value, setting: &str, is_reserved: impl Fn(u16) -> bool) -> Option<Skip> {
    let spec = &pod["spec"];
    let skip = |reason, message: String| Some(Skip { reason, message });
    if spec["hostNetwork"] == true {
        return skip(
            SkipReason::HostNetwork,
            "the pod uses the node's network, where sidecars of several pods would need the same ports; take \
             hostNetwork out of its template"
                .into(),
        );
    }
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return skip(
            SkipReason::MirrorPod,
            "a static pod is changed in its manifest on the node only".into(),
        );
    }
    if windows::is_required(spec) {
        return skip(SkipReason::Windows, "the sidecar runs on Linux only".into());
    }
    let names = |list: &str| spec[list].as_array().into_iter().flatten().map(|item| text(&item["name"]));
    if names("containers").any(|name| name == names::SIDECAR) {
        let message = format!("a container has the sidecar's name, {}; give it another", names::SIDECAR);
        return skip(SkipReason::NameClash, message);
    }
    if let Some(name) = names("volumes").find(|name| names::is_sidecar_volume(name)) {
        let message = format!("the volume {name} has a name that the sidecar needs; give it another");
        return skip(SkipReason::NameClash, message);
    }
    all_containers(spec).find_map(|container| {
        let port = ports(container).filter_map(number).find(|port| is_reserved(*port))?;
        Some(Skip {
            reason: SkipReason::PortClash,
            message: format!(
                "the container {} uses port {port}, which the sidecar needs; give the sidecar other ports with the \
                 chart's {setting} and sidecar.adminPort",
                text(&container["name"])
            ),
        })
    })
}

/// Returns the containers of a pod's spec, init containers included.
fn all_containers(spec: &Value) -> impl Iterator<Item = &Value> {
    let list = |key: &str| spec[key].as_array().into_iter().flatten();
    list("containers").chain(list("initContainers")).filter(|container| container["name"] != names::SIDECAR)
}

/// Returns true if a container runs beside the application's: a sidecar of Kubernetes' own kind, and not the operator's.
fn is_beside(container: &Value) -> bool {
    container["restartPolicy"] == "Always" && container["name"] != names::SIDECAR
}

/// Returns the containers of a pod's spec that may listen on a captured port: those that run as long as the pod.
fn listeners(spec: &Value) -> impl Iterator<Item = &Value> + Clone {
    let list = |key: &str| spec[key].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    list("containers").chain(list("initContainers").filter(|container| is_beside(container)))
}

/// Returns the containers of a pod that [`listeners`] returns.
pub(crate) fn listeners_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut).into_iter().flatten();
    let lists = spec.filter(|(key, _)| *key == "containers" || *key == "initContainers");
    lists.flat_map(|(key, list)| {
        let all = key == "containers";
        list.as_array_mut().into_iter().flatten().filter(move |container| all || is_beside(container))
    })
}

/// Returns the TCP port entries of a target, with their containers.
fn entries_of<'a>(spec: &'a Value, port: &'a IntOrString) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    let entries = listeners(spec).flat_map(|container| ports(container).map(move |entry| (container, entry)));
    entries.filter(move |(_, entry)| match port {
        IntOrString::Int(wanted) => entry["containerPort"].as_i64() == Some(i64::from(*wanted)),
        IntOrString::String(name) => entry["name"] == name.as_str(),
    })
}

/// Returns true if the name of a port leads to this number. It leads to the first container that lists it.
fn leads_to(spec: &Value, name: &str, port: u16) -> bool {
    let first = entries_of(spec, &IntOrString::String(name.to_owned())).find_map(|(_, entry)| number(entry));
    first == Some(port)
}

fn no_such_port(port: &IntOrString) -> Skip {
    Skip {
        reason: SkipReason::NoSuchPort,
        message: format!(
            "no container of the pod lists a TCP port {}; add it to the container's ports, or correct the policy's targets",
            written(port)
        ),
    }
}

fn written(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

fn ports(container: &Value) -> impl Iterator<Item = &Value> {
    container["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|port| port.get("protocol").and_then(Value::as_str).is_none_or(|protocol| protocol == "TCP"))
}

fn number(entry: &Value) -> Option<u16> {
    u16::try_from(entry["containerPort"].as_u64()?).ok()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
