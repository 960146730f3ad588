//! A mesh for the pods of a test: webhooks that inject what Istio and Linkerd inject, and a client in the mesh.

use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Namespace, Pod},
    },
};
use kube::{Api, ResourceExt, api::Patch};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::{
    Sandbox, Workload, environment, eventually,
    eventually::ROLLOUT_TIMEOUT,
    workload::{restricted_container, restricted_pod},
};

/// The label by which a webhook selects pods; its value is the name of an [`Injection`].
pub const LABEL: &str = "larder.dev/e2e-mesh";

const NAME: &str = "mesh";
const V3: &str = "type.googleapis.com/envoy.extensions";

/// Injection by a mesh, whose name the Service of the workload has, too.
pub struct Injection {
    /// Name of the injection.
    pub name: &'static str,
    /// Path of the webhook.
    path: &'static str,
    /// True if the webhook is called before Larder's.
    is_first: bool,
}

/// The injections: each mesh in both orders of the webhooks, each kind of proxy in each mesh.
pub const INJECTIONS: [Injection; 4] = [
    Injection { name: "istio-first", path: "/istio/native", is_first: true },
    Injection { name: "istio-last", path: "/istio/classic", is_first: false },
    Injection { name: "linkerd-first", path: "/linkerd/classic", is_first: true },
    Injection { name: "linkerd-last", path: "/linkerd/native", is_first: false },
];

/// Certificate and key of everybody in the mesh, and the CA.
struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

impl Injection {
    /// Returns the workload that the mesh injects.
    pub fn workload(&self) -> Workload {
        Workload::deployment(self.name, 1)
            .labels(json!({LABEL: self.name, "tier": "meshed"}))
            .pod(json!({"shareProcessNamespace": true}))
    }
}

/// Starts the mesh in a sandbox. Returns the URL of the client, which sends each request by mTLS to the Service that its
/// `Host` names.
pub async fn start(sandbox: &Sandbox) -> anyhow::Result<String> {
    // The init containers of meshes may change the pod's network.
    let namespaces = Api::<Namespace>::all(sandbox.client.clone());
    let level = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    let namespace = namespaces.patch(&sandbox.name, &Default::default(), &Patch::Merge(level)).await?;
    let certificates = Certificates::new(&format!("{NAME}.{}.svc", sandbox.name))?;
    sandbox.apply(&objects(&certificates)?).await?;
    let pods = sandbox.api::<Pod>();
    let address = eventually("the mesh is ready", ROLLOUT_TIMEOUT, async || {
        let status = pods.get(NAME).await?.status.unwrap_or_default();
        let mut conditions = status.conditions.iter().flatten();
        let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
        status.pod_ip.filter(|_| is_ready).context("it is not")
    })
    .await?;
    let configurations = Api::<MutatingWebhookConfiguration>::all(sandbox.client.clone());
    for is_first in [true, false] {
        let configuration = serde_json::from_value(webhooks(&namespace, is_first, &certificates))?;
        configurations.create(&Default::default(), &configuration).await?;
    }
    Ok(format!("http://{address}:8000"))
}

impl Certificates {
    fn new(name: &str) -> anyhow::Result<Self> {
        let mut ca = CertificateParams::new([])?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // With the names of its leaf it would be taken for that.
        ca.distinguished_name.push(DnType::CommonName, "larder-e2e mesh CA");
        let ca_key = KeyPair::generate()?;
        let root = ca.self_signed(&ca_key)?.pem();
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([name.to_owned()])?.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok(Self { ca: root, certificate: leaf.pem(), key: key.serialize_pem() })
    }
}

/// Returns the pod of the webhooks and the client, and its Service.
fn objects(certificates: &Certificates) -> anyhow::Result<Vec<Value>> {
    let image = environment::variable("LARDER_MESH_IMAGE")?;
    let env = |name: &str, value: &str| json!({"name": name, "value": value});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"app": NAME}},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": restricted_pod(),
            "containers": [
                {
                    "name": "webhooks",
                    "image": environment::app_image()?,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["mesh", format!("--image={image}")],
                    "env": [
                        env("MESH_CA", &certificates.ca),
                        env("MESH_CERTIFICATE", &certificates.certificate),
                        env("MESH_KEY", &certificates.key),
                    ],
                    "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                    "securityContext": restricted_container(),
                },
                {
                    "name": "client",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["--disable-hot-restart", "--concurrency", "1", "--config-yaml", client(certificates).to_string()],
                    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                    "securityContext": restricted_container(),
                },
            ],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": NAME}, "ports": [{"port": 443, "targetPort": 8443}]},
    });
    Ok(vec![pod, service])
}

/// Returns Envoy's configuration for the client.
fn client(certificates: &Certificates) -> Value {
    let names = INJECTIONS.iter().map(|injection| injection.name);
    let hosts: Vec<_> = names
        .clone()
        .map(|name| {
            let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name}});
            json!({"name": name, "domains": [name], "routes": [route]})
        })
        .collect();
    let filter = json!({"name": "http", "typed_config": {
        "@type": format!("{V3}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "client",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": format!("{V3}.filters.http.router.v3.Router")}}],
    }});
    let address =
        |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let clusters: Vec<_> = names
        .map(|name| {
            let endpoint = json!({"endpoint": {"address": address(name, 80)}});
            let context = json!({
                "@type": format!("{V3}.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": {
                    "tls_certificates": [{
                        "certificate_chain": {"inline_string": certificates.certificate},
                        "private_key": {"inline_string": certificates.key},
                    }],
                    "validation_context": {"trusted_ca": {"inline_string": certificates.ca}},
                },
            });
            json!({
                "name": name, "type": "STRICT_DNS", "dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "1s",
                "connect_timeout": "5s", "transport_socket": {"name": "tls", "typed_config": context},
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            })
        })
        .collect();
    let listener = json!({"name": "client", "address": address("0.0.0.0", 8000), "filter_chains": [{"filters": [filter]}]});
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

/// Returns the webhooks that are called before Larder's or after it. They are called in the order of their configurations'
/// names, and go with the namespace.
fn webhooks(namespace: &Namespace, is_first: bool, certificates: &Certificates) -> Value {
    let name = namespace.name_any();
    let webhooks: Vec<_> = INJECTIONS
        .iter()
        .filter(|injection| injection.is_first == is_first)
        .map(|injection| {
            json!({
                "name": format!("{}.e2e.larder.dev", injection.name),
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "service": {"name": NAME, "namespace": name, "path": injection.path, "port": 443},
                    "caBundle": ByteString(certificates.ca.clone().into_bytes()),
                },
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                "objectSelector": {"matchLabels": {LABEL: injection.name}},
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "sideEffects": "None",
                "timeoutSeconds": 10,
            })
        })
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": format!("{}-{name}", if is_first { "a" } else { "z" }),
            "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": name, "uid": namespace.uid()}],
        },
        "webhooks": webhooks,
    })
}
