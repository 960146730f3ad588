//! Service meshes whose proxy is a container of the pod: Istio and Linkerd.
//!
//! The mesh's rules send what reaches the pod to its proxy, which ends mTLS and connects to the port that was asked for. The
//! sidecar listens on that port like any application, so requests pass the mesh first and the cache second. Connections within
//! the pod, such as the sidecar's to the application, are left alone by the rules of both.
//!
//! # Guarantees
//! - The rules treat a port of the sidecar like the application's port that it stands for.
//! - The port of the admin API is exempt from them: the operator and the kubelet, which are not in the mesh, reach it where
//!   the mesh requires mTLS, too. So it is on the way out: sidecars that tell one another of purges authenticate their connections, and
//!   no proxy is to send requests of one over several.
//! - The sidecar starts after the rules are in force and, where it is an init container, after the mesh's proxy.
//! - Probes that Istio has taken over from the kubelet reach the application.
//! - Both orders of the webhooks end in the same rules.
//!
//! The rules are the arguments of an init container, which nothing but an edit of them changes once the mesh has injected.
//! Where the mesh's CNI plugin makes the rules it reads annotations.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Captured, Plan, Skip, SkipReason, text};
use crate::cli::SidecarSettings;

/// A mesh whose rules are known.
struct Mesh {
    name: &'static str,
    proxy: &'static str,
    /// The init container that makes the rules.
    init: &'static str,
    /// The init container that is there instead where a CNI plugin makes the rules.
    validator: &'static str,
    /// An argument that every such init container has.
    signature: &'static str,
    /// Ports that the rules leave alone.
    exclude: List,
    /// Ports of others that they leave alone.
    exclude_outbound: List,
    /// Ports that the rules are for, instead of all.
    include: Option<List>,
    /// True if a proxy without either init container captures nothing.
    needs_init: bool,
}

/// A list of ports in the mesh's settings.
struct List {
    flags: &'static [&'static str],
    annotation: &'static str,
}

const MESHES: [Mesh; 2] = [
    Mesh {
        name: "Istio",
        proxy: "istio-proxy",
        init: "istio-init",
        validator: "istio-validation",
        signature: "istio-iptables",
        exclude: List {
            flags: &["-d", "--istio-local-exclude-ports"],
            annotation: "traffic.sidecar.istio.io/excludeInboundPorts",
        },
        exclude_outbound: List {
            flags: &["-o", "--istio-local-outbound-ports-exclude"],
            annotation: "traffic.sidecar.istio.io/excludeOutboundPorts",
        },
        include: Some(List {
            flags: &["-b", "--istio-inbound-ports"],
            annotation: "traffic.sidecar.istio.io/includeInboundPorts",
        }),
        needs_init: true,
    },
    Mesh {
        name: "Linkerd",
        proxy: "linkerd-proxy",
        init: "linkerd-init",
        validator: "linkerd-network-validator",
        signature: "--incoming-proxy-port",
        exclude: List {
            flags: &["--inbound-ports-to-ignore"],
            annotation: "config.linkerd.io/skip-inbound-ports",
        },
        exclude_outbound: List {
            flags: &["--outbound-ports-to-ignore"],
            annotation: "config.linkerd.io/skip-outbound-ports",
        },
        include: None,
        needs_init: false,
    },
];

/// Proxies of meshes whose rules are not known.
const OTHER_PROXIES: [&str; 2] = ["kuma-sidecar", "consul-dataplane"];

/// Environment variable of Istio's agent with the probes that it makes for the kubelet.
const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";

/// Ports that are added to a list of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    at: Place,
    ports: Vec<u16>,
    /// True if there was no list.
    is_new: bool,
}

/// Place of a list of ports in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Place {
    /// An argument of an init container.
    Argument { container: String, flag: String },
    /// An annotation of the pod.
    Annotation(String),
}

/// Returns the additions to the mesh's settings that a sidecar needs; none without a mesh.
///
/// # Errors
/// The reason that there can be no sidecar beside this mesh.
pub fn plan(pod: &Value, capture: &Plan, settings: &SidecarSettings) -> Result<Vec<Addition>, Skip> {
    let captured = capture.captured();
    let skip = |message: String| Skip { reason: SkipReason::Mesh, message };
    if let (Some(mode), Some(proxy)) = (capture.excludes_meshes(), proxy_in(pod)) {
        return Err(skip(format!(
            "the container {proxy} captures the pod's traffic, and so would capture.mode {mode}; set capture.mode: \
             NamedPort, or exclude the pod from the mesh"
        )));
    }
    if let Some(proxy) = OTHER_PROXIES.into_iter().find(|name| has(pod, name)) {
        return Err(skip(format!(
            "the rules of the mesh whose proxy is the container {proxy} are not known; exclude the pod from the mesh"
        )));
    }
    let mut additions = Vec::new();
    for mesh in MESHES.iter().filter(|mesh| is_in(mesh, pod)) {
        if captured.iter().any(|port| port.container == mesh.proxy) {
            return Err(skip(format!("the port belongs to {}, the proxy of {}", mesh.proxy, mesh.name)));
        }
        let place: fn(&Mesh, &List) -> Place = if let Some(init) = init_container(pod, mesh.init) {
            let args = init["args"].as_array().into_iter().flatten();
            if !args.map(text).any(|arg| arg.starts_with(mesh.signature)) {
                return Err(skip(format!(
                    "the container {} has other arguments than those of {}, so its rules are not known; exclude the pod \
                     from the mesh",
                    mesh.init, mesh.name
                )));
            }
            |mesh, list| Place::Argument { container: mesh.init.into(), flag: list.flags[0].into() }
        } else if mesh.needs_init && !has(pod, mesh.validator) {
            return Err(skip(format!(
                "the pod has {} without {} or {}, as gateways and proxyless gRPC have: no rules bring requests to a \
                 sidecar after the proxy; exclude the pod from the policy's selector",
                mesh.proxy, mesh.init, mesh.validator
            )));
        } else {
            |_, list| Place::Annotation(list.annotation.into())
        };
        let exclude = place(mesh, &mesh.exclude);
        let excluded = read(pod, &exclude).unwrap_or_default();
        let include = mesh.include.as_ref().map(|list| place(mesh, list));
        let included = include.as_ref().and_then(|place| read(pod, place)).filter(|list| list != "*");
        let mut to_exclude = standing_in(captured, &excluded);
        match (include, included) {
            (Some(place), Some(included)) => {
                add(&mut additions, pod, place, standing_in(captured, &included))
            }
            _ if !contains(&excluded, settings.admin_port) => to_exclude.push(settings.admin_port),
            _ => {}
        }
        add(&mut additions, pod, exclude, to_exclude);
        let outbound = place(mesh, &mesh.exclude_outbound);
        let excluded = read(pod, &outbound).unwrap_or_default();
        let is_missing = !contains(&excluded, settings.admin_port);
        add(&mut additions, pod, outbound, is_missing.then_some(settings.admin_port).into_iter().collect());
    }
    Ok(additions)
}

/// Adds the ports to the mesh's settings, and points the probes that Istio has taken over at the application.
pub fn apply(additions: &[Addition], captured: &[Captured], pod: &mut Value) {
    move_probes(captured, pod, |captured| (captured.sidecar_port, captured.port));
    for Addition { at, ports, .. } in additions {
        let list = read(pod, at).unwrap_or_default();
        let added = joined(ports);
        let list = if list.is_empty() { added } else { format!("{list},{added}") };
        write(pod, at, Some(&list));
    }
}

/// Removes the ports that were added, and points the probes that Istio has taken over at the application's own number.
/// Additions of others to the same list stay.
pub fn undo(additions: &[Addition], captured: &[Captured], pod: &mut Value) {
    move_probes(captured, pod, |captured| (captured.port, captured.sidecar_port));
    for Addition { at, ports, is_new } in additions {
        let Some(list) = read(pod, at) else { continue };
        let is_ours = |item: &&str| item.parse().is_ok_and(|port| ports.contains(&port));
        let added = joined(ports);
        let before = match list.strip_suffix(&added) {
            Some("") => String::new(),
            Some(before) if before.ends_with(',') => before[..before.len() - 1].to_owned(),
            _ => items(&list).filter(|item| !is_ours(item)).collect::<Vec<_>>().join(","),
        };
        write(pod, at, Some(before.as_str()).filter(|list| !list.is_empty() || !is_new));
    }
}

/// Gives other ports to the probes that Istio's agent makes for the kubelet, if the application has another number than
/// without the sidecar. Where its port's name has moved instead, the agent has the application's number.
fn move_probes(captured: &[Captured], pod: &mut Value, ports: impl Fn(&Captured) -> (u16, u16)) {
    let moved: Vec<_> = captured.iter().filter(|one| one.variable.is_some()).map(ports).collect();
    let lists = ["containers", "initContainers"];
    for list in lists.into_iter().filter(|_| !moved.is_empty()) {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
                let probers = variable["value"].as_str().filter(|_| variable["name"] == PROBERS);
                let Some(Ok(mut probers)) = probers.map(serde_json::from_str::<Value>) else { continue };
                let before = probers.clone();
                for prober in probers.as_object_mut().into_iter().flat_map(|probers| probers.values_mut()) {
                    for action in prober.as_object_mut().into_iter().flat_map(|prober| prober.values_mut()) {
                        let to = moved.iter().find(|(from, _)| action["port"] == *from).map(|(_, to)| *to);
                        if let (Some(to), Some(action)) = (to, action.as_object_mut()) {
                            action.insert("port".into(), json!(to));
                        }
                    }
                }
                if probers != before {
                    variable["value"] = json!(probers.to_string());
                }
            }
        }
    }
}

fn joined(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

/// Returns the first place in the list of init containers at which the mesh's rules are in force and its proxy, if it is
/// among them, has started.
pub fn first_place(init_containers: &[Value]) -> usize {
    init_containers.iter().rposition(has_container).map_or(0, |last| last + 1)
}

/// Returns true if a container is one of a mesh's.
pub fn has_container(container: &Value) -> bool {
    MESHES.iter().any(|mesh| [mesh.init, mesh.validator, mesh.proxy].contains(&text(&container["name"])))
}

/// Returns true if the arguments of a container with this name are read here.
pub fn reads_arguments_of(container: &str) -> bool {
    MESHES.iter().any(|mesh| mesh.init == container)
}

/// Returns the name of the proxy in the pod that captures its traffic.
fn proxy_in(pod: &Value) -> Option<&'static str> {
    MESHES.iter().map(|mesh| mesh.proxy).chain(OTHER_PROXIES).find(|name| has(pod, name))
}

/// Returns the sidecar's ports that stand for the application's ports of a list, without those that are listed.
fn standing_in(captured: &[Captured], list: &str) -> Vec<u16> {
    let listed = captured.iter().filter(|port| contains(list, port.port));
    listed.map(|port| port.sidecar_port).filter(|port| !contains(list, *port)).collect()
}

fn add(additions: &mut Vec<Addition>, pod: &Value, at: Place, ports: Vec<u16>) {
    if !ports.is_empty() {
        let is_new = read(pod, &at).is_none();
        additions.push(Addition { at, ports, is_new });
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Returns true if a port is in a list of numbers and ranges.
fn contains(list: &str, port: u16) -> bool {
    items(list).any(|item| {
        let (first, last) = item.split_once(['-', ':']).unwrap_or((item, item));
        matches!((first.parse::<u16>(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

fn is_in(mesh: &Mesh, pod: &Value) -> bool {
    has(pod, mesh.proxy) || init_container(pod, mesh.init).is_some()
}

fn has(pod: &Value, name: &str) -> bool {
    super::all_containers(&pod["spec"]).any(|container| container["name"] == name)
}

fn init_container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let containers = pod["spec"]["initContainers"].as_array()?;
    containers.iter().find(|container| container["name"] == name)
}

/// Returns all spellings of a flag.
fn spellings(flag: &str) -> &'static [&'static str] {
    let lists = MESHES
        .iter()
        .flat_map(|mesh| [Some(&mesh.exclude), Some(&mesh.exclude_outbound), mesh.include.as_ref()]);
    lists.flatten().map(|list| list.flags).find(|flags| flags.contains(&flag)).unwrap_or_default()
}

/// Position of a flag's value among arguments: an argument of its own, or what follows `=` in the flag's.
enum Position {
    Next(usize),
    Within(usize, usize),
}

fn position(args: &[Value], flag: &str) -> Option<Position> {
    let flags = spellings(flag);
    args.iter().enumerate().find_map(|(index, arg)| {
        let arg = text(arg);
        if flags.contains(&arg) {
            return (index + 1 < args.len()).then_some(Position::Next(index + 1));
        }
        let (name, _) = arg.split_once('=')?;
        flags.contains(&name).then_some(Position::Within(index, name.len() + 1))
    })
}

fn read(pod: &Value, at: &Place) -> Option<String> {
    match at {
        Place::Annotation(name) => pod["metadata"]["annotations"][name].as_str().map(str::to_owned),
        Place::Argument { container, flag } => {
            let args = init_container(pod, container)?["args"].as_array()?;
            Some(match position(args, flag)? {
                Position::Next(index) => text(&args[index]).to_owned(),
                Position::Within(index, start) => text(&args[index])[start..].to_owned(),
            })
        }
    }
}

/// Writes a list; `None` removes it.
fn write(pod: &mut Value, at: &Place, list: Option<&str>) {
    match at {
        Place::Annotation(name) => match list {
            Some(list) => pod["metadata"]["annotations"][name] = json!(list),
            None => {
                if let Some(metadata) = pod["metadata"].as_object_mut()
                    && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
                {
                    annotations.remove(name);
                    if annotations.is_empty() {
                        metadata.remove("annotations");
                    }
                }
            }
        },
        Place::Argument { container, flag } => {
            let containers = pod["spec"]["initContainers"].as_array_mut();
            let init = containers.into_iter().flatten().find(|one| one["name"] == container.as_str());
            let Some(args) = init.and_then(|init| init["args"].as_array_mut()) else { return };
            match (position(args, flag), list) {
                (None, None) => {}
                (None, Some(list)) => args.extend([json!(flag), json!(list)]),
                (Some(Position::Next(index)), Some(list)) => args[index] = json!(list),
                (Some(Position::Next(index)), None) => drop(args.drain(index - 1..=index)),
                (Some(Position::Within(index, start)), Some(list)) => {
                    args[index] = json!(format!("{}{list}", &text(&args[index])[..start]));
                }
                (Some(Position::Within(index, _)), None) => drop(args.remove(index)),
            }
        }
    }
}
