//! Stand-in for the webhooks of Istio and Linkerd.
//!
//! Pods get the container names, ports, users, arguments, annotations and probes that these meshes give them. The proxy is
//! Envoy with a configuration of its own: it requires mTLS of everybody but the kubelet's probes, and connects to the port
//! that was asked for.

mod envoy;
mod istio;
mod linkerd;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use axum_server::tls_rustls::RustlsConfig;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// The port of the webhooks.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// The image of proxies and of the init containers that make the rules.
    #[arg(long)]
    image: String,
    /// The CA of clients and servers, as PEM.
    #[arg(long, env = "MESH_CA")]
    ca: String,
    /// The certificate of proxies and webhooks, as PEM.
    #[arg(long, env = "MESH_CERTIFICATE")]
    certificate: String,
    /// The certificate's key, as PEM.
    #[arg(long, env = "MESH_KEY")]
    key: String,
}

/// Kind of the proxy's container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An init container that restarts.
    Native,
    /// A container beside the application's.
    Classic,
}

/// Serves the webhooks until the process is killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider exists"))?;
    let tls = RustlsConfig::from_pem(args.certificate.clone().into(), args.key.clone().into()).await?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.port));
    let app = Router::new().route("/{mesh}/{kind}", post(review)).with_state(Arc::new(args));
    axum_server::bind_rustls(address, tls).serve(app.into_make_service()).await?;
    Ok(())
}

async fn review(
    State(args): State<Arc<Args>>,
    Path((mesh, kind)): Path<(String, String)>,
    Json(review): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    let kind = match kind.as_str() {
        "native" => Kind::Native,
        "classic" => Kind::Classic,
        _ => return Err(StatusCode::NOT_FOUND),
    };
    let before = &review["request"]["object"];
    let mut after = before.clone();
    match mesh.as_str() {
        "istio" => istio::inject(&mut after, kind, &args),
        "linkerd" => linkerd::inject(&mut after, kind, &args),
        _ => return Err(StatusCode::NOT_FOUND),
    }
    let patch = json_patch::diff(before, &after).to_string();
    Ok(Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"],
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": BASE64_STANDARD.encode(patch),
        },
    })))
}

fn list<'a>(pod: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let list = &mut pod["spec"][key];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("the API server has checked it")
}

/// Adds the proxy and the init container that makes the rules.
fn add_containers(pod: &mut Value, init: Value, mut proxy: Value, kind: Kind, proxy_first: bool) {
    match kind {
        Kind::Native => {
            proxy["restartPolicy"] = json!("Always");
            proxy["startupProbe"] = proxy["readinessProbe"].clone();
            proxy["startupProbe"]["failureThreshold"] = json!(60);
            list(pod, "initContainers").splice(0..0, [init, proxy]);
        }
        Kind::Classic => {
            list(pod, "initContainers").push(init);
            let containers = list(pod, "containers");
            let place = if proxy_first { 0 } else { containers.len() };
            containers.insert(place, proxy);
        }
    }
}

fn init_container(name: &str, args: &Args, arguments: &Value) -> Value {
    json!({
        "name": name,
        "image": args.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/sh", format!("/{name}")],
        "args": arguments,
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        },
    })
}

fn proxy_container(name: &str, args: &Args, user: u32, ready: &Value, configuration: &Value) -> Value {
    json!({
        "name": name,
        "image": args.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/envoy", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"],
        "args": ["--config-yaml", configuration.to_string()],
        "readinessProbe": {"httpGet": ready, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "runAsUser": user, "runAsGroup": user, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        },
    })
}

/// Probes of a container by the name that Istio's agent has for them.
const PROBES: [(&str, &str); 3] =
    [("readinessProbe", "readyz"), ("livenessProbe", "livez"), ("startupProbe", "startupz")];

/// Returns the HTTP probes of all containers: their paths to the kubelet, and the port and the path that they ask.
fn http_probes(pod: &Value) -> BTreeMap<String, (u64, String)> {
    let lists = ["containers", "initContainers"].map(|key| pod["spec"][key].as_array());
    let mut probes = BTreeMap::new();
    for container in lists.into_iter().flatten().flatten() {
        let ports = container["ports"].as_array();
        let number = |name: &Value| {
            let mut ports = ports.into_iter().flatten();
            ports.find(|port| port["name"] == *name).and_then(|port| port["containerPort"].as_u64())
        };
        for (field, short) in PROBES {
            let action = &container[field]["httpGet"];
            let Some(port) = action["port"].as_u64().or_else(|| number(&action["port"])) else { continue };
            let name = container["name"].as_str().unwrap_or_default();
            let path = action["path"].as_str().unwrap_or("/").to_owned();
            probes.insert(format!("/app-health/{name}/{short}"), (port, path));
        }
    }
    probes
}
