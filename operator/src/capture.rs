//! Capture of a pod's requests by the sidecar, or the reason that a pod has none.
//!
//! A capture mode is a [`Mode`], and a file beside this one that makes its [`Plan`] for a pod. Everything that depends on
//! the mode is a `match` on one of the two, so that the compiler names each place that a further mode has to fill.

mod companion;
mod located;
pub mod mesh;
mod named_port;
pub(crate) mod probes;
pub(crate) mod redirect;

use std::{fmt, sync::Arc};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use larder_api::names;
use larder_crds::{Capture, CaptureMode, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    companion::{Companion, sidecar_port_name},
    named_port::NamedPort,
    redirect::Redirect,
};
use crate::cli::SidecarSettings;

larder_api::labelled! {
    /// A way to capture requests.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// The port's name moves to the sidecar: see [`NamedPort`].
        NamedPort = "NamedPort",
        /// Connections are redirected to the sidecar: see [`Redirect`].
        Redirect = "Redirect",
        /// Services beside others lead to the sidecar: see [`Companion`].
        CompanionService = "CompanionService",
    }
}

impl Mode {
    /// Returns the mode that a policy with these targets asks for; `None` gives no pod a sidecar.
    pub fn of(capture: &Capture, _targets: &[Target]) -> Option<Self> {
        match capture.mode {
            CaptureMode::Auto | CaptureMode::NamedPort => Some(Self::NamedPort),
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
            Self::NamedPort => json!("NamedPort/1"),
            Self::Redirect => {
                let pull_policy = settings.redirect_pull_policy.map(|policy| policy.as_str());
                json!(["Redirect/1", settings.redirect_image, pull_policy])
            }
            Self::CompanionService => json!("CompanionService/1"),
        }
    }

    /// Returns the sentence about the choice of `Auto` that follows in the status, or nothing where a mode was asked for.
    pub fn choice(self, capture: &Capture) -> Option<String> {
        let reason = match (capture.mode, self) {
            (CaptureMode::Auto, Self::NamedPort) => "it needs nothing but a named port",
            _ => return None,
        };
        Some(format!("Auto chose {}, because {reason}", self.as_str()))
    }

    /// Returns the lines to write for this mode to capture the requests of a pod, where it could, with the mode's name.
    fn offer(self, pod: &Value, inputs: &Inputs<'_>) -> Option<String> {
        match self {
            Self::NamedPort => None,
            Self::Redirect => Redirect::plan(pod, inputs).ok().map(|_| {
                "write capture: {mode: Redirect}, by which an init container redirects every connection"
                    .to_owned()
            }),
            Self::CompanionService => Companion::plan(pod, inputs).ok().map(|_| {
                "write capture: {mode: CompanionService}, for callers of a further Service".to_owned()
            }),
        }
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
            Self::Redirect(plan) => plan.captured(),
            Self::CompanionService(plan) => plan.captured(),
        }
    }

    /// Returns the mode's name if it cannot capture what comes from the proxy of a [`mesh`].
    const fn excludes_meshes(&self) -> Option<&'static str> {
        match self {
            Self::NamedPort(_) | Self::CompanionService(_) => None,
            Self::Redirect(_) => Some("Redirect"),
        }
    }

    /// Changes the pod's own containers. The sidecar is added by the injection.
    pub fn apply(&self, pod: &mut Value) {
        match self {
            Self::NamedPort(plan) => plan.apply(pod),
            Self::Redirect(plan) => plan.apply(pod),
            Self::CompanionService(_) => {}
        }
    }

    /// Returns the port entries of the sidecar's container, besides that of the admin API.
    pub fn sidecar_ports(&self) -> Vec<Value> {
        match self {
            Self::NamedPort(_) | Self::Redirect(_) => Vec::new(),
            Self::CompanionService(plan) => plan.sidecar_ports(),
        }
    }

    /// Returns the redirection, if connections are redirected.
    pub const fn redirect(&self) -> Option<&Redirect> {
        match self {
            Self::NamedPort(_) | Self::CompanionService(_) => None,
            Self::Redirect(plan) => Some(plan),
        }
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
        /// The annotations have no room for those of the sidecar.
        Annotations = "AnnotationsTooLarge",
        /// The policy captures nothing.
        CaptureNone = "CaptureNone",
    }
}

/// The label of a node's operating system, and the one that it had before.
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
/// The annotation of the API server's image of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Returns the reason that a pod can have no sidecar in any mode.
fn unfit(pod: &Value, settings: &SidecarSettings) -> Option<Skip> {
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
    let windows = |value: &Value| value == "windows";
    if windows(&spec["os"]["name"]) || OS_LABELS.iter().any(|label| windows(&spec["nodeSelector"][label])) {
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
    let taken = |port: u16| settings.data_ports().contains(&port) || port == settings.admin_port;
    all_containers(spec).find_map(|container| {
        let port = ports(container).filter_map(number).find(|port| taken(*port))?;
        Some(Skip {
            reason: SkipReason::PortClash,
            message: format!(
                "the container {} uses port {port}, which the sidecar needs; give the sidecar other ports with the \
                 chart's sidecar.dataPort and sidecar.adminPort",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inject::tests::{pod, settings};

    #[test]
    fn modes_have_different_fingerprints() {
        for mode in Mode::ALL {
            let fingerprint = |mode: Mode| mode.fingerprint(&settings());
            let same = Mode::ALL.into_iter().filter(|other| fingerprint(*other) == fingerprint(mode));
            assert_eq!(same.count(), 1, "{mode:?}");
        }
    }

    #[test]
    fn capture_none_plans_nothing() {
        let targets = [serde_json::from_value(json!({"port": "http"})).unwrap()];
        let settings = settings();
        let plan = |mode| {
            let capture = Capture { mode };
            let inputs = Inputs {
                capture: &capture,
                targets: &targets,
                settings: &settings,
                network_policies: &[],
                pod_security: None,
            };
            Plan::new(&pod(), &inputs)
        };
        assert_eq!(plan(CaptureMode::None).unwrap_err().reason, SkipReason::CaptureNone);
        assert_eq!(plan(CaptureMode::Auto).unwrap(), plan(CaptureMode::NamedPort).unwrap());
    }
}
