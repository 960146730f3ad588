//! The application of a test: a Deployment or a StatefulSet, and its Service.

use serde_json::{Value, json};

use crate::environment;

/// An application, `app` unless it is named otherwise: its pods are labelled `app: <name>`, their port is `http`, and
/// the Service has port 80.
pub struct Workload {
    /// Name of the workload and its Service.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    replicas: u32,
    args: Vec<String>,
    /// True if the application speaks HTTP.
    pub(crate) http: bool,
    pod: Value,
    container: Value,
    template_labels: Value,
    target_port: Value,
}

impl Workload {
    /// The HTTP application, as a Deployment.
    pub fn deployment(name: &str, replicas: u32) -> Self {
        Self {
            name: name.to_owned(),
            kind: "Deployment",
            replicas,
            args: vec!["serve".to_owned()],
            http: true,
            pod: json!({}),
            container: json!({}),
            template_labels: json!({}),
            target_port: json!("http"),
        }
    }

    /// The HTTP application, as a StatefulSet.
    pub fn stateful_set(name: &str, replicas: u32) -> Self {
        Self { kind: "StatefulSet", ..Self::deployment(name, replicas) }
    }

    /// The application that is not HTTP.
    pub fn talking(name: &str) -> Self {
        Self {
            args: vec!["talk".to_owned(), "--port=8080".to_owned()],
            http: false,
            ..Self::deployment(name, 1)
        }
    }

    /// Continues to serve for this many seconds after SIGTERM.
    pub fn lingering(mut self, seconds: u32) -> Self {
        self.args.push(format!("--linger={seconds}"));
        self
    }

    /// Fields of the pod's spec, merged over those it has.
    pub fn pod(mut self, spec: Value) -> Self {
        merge(&mut self.pod, spec);
        self
    }

    /// Fields of the container, merged over those it has.
    pub fn container(mut self, fields: Value) -> Self {
        merge(&mut self.container, fields);
        self
    }

    /// Labels of the pods, besides `app`.
    pub fn labels(mut self, labels: Value) -> Self {
        merge(&mut self.template_labels, labels);
        self
    }

    /// Sets the target of the Service's port; default `http`.
    pub fn target_port(mut self, port: Value) -> Self {
        self.target_port = port;
        self
    }

    /// The template of its pods.
    pub fn template(&self) -> anyhow::Result<Value> {
        let mut container = json!({
            "name": "app",
            "image": environment::app_image()?,
            "imagePullPolicy": "IfNotPresent",
            "args": self.args,
            "env": [{"name": "HOSTNAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "securityContext": restricted_container(),
        });
        container["readinessProbe"] = if self.http {
            json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1})
        } else {
            json!({"tcpSocket": {"port": "http"}, "periodSeconds": 1})
        };
        merge(&mut container, self.container.clone());
        let mut spec = json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 2,
            "securityContext": restricted_pod(),
            // Both nodes are for applications, and replicas sit on both.
            "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
            "topologySpreadConstraints": [{
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": self.name}},
            }],
            "containers": [container],
        });
        merge(&mut spec, self.pod.clone());
        let mut labels = json!({"app": self.name});
        merge(&mut labels, self.template_labels.clone());
        Ok(json!({"metadata": {"labels": labels}, "spec": spec}))
    }

    /// The workload and its Service.
    pub fn objects(&self) -> anyhow::Result<Vec<Value>> {
        let mut spec = json!({
            "replicas": self.replicas,
            "selector": {"matchLabels": {"app": self.name}},
            "template": self.template()?,
        });
        if self.kind == "Deployment" {
            spec["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        } else {
            spec["serviceName"] = json!(self.name);
            spec["podManagementPolicy"] = json!("Parallel");
        }
        let workload = json!({"apiVersion": "apps/v1", "kind": self.kind, "metadata": {"name": self.name}, "spec": spec});
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name},
            "spec": {
                "selector": {"app": self.name},
                "ports": [{"name": "http", "port": 80, "targetPort": self.target_port}],
            },
        });
        Ok(vec![workload, service])
    }
}

/// The pod of that name that a template describes.
pub fn pod_of(mut template: Value, name: &str) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template
}

/// The agent's pod.
pub(crate) fn agent() -> anyhow::Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "labels": {"app": "agent"}},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            // A datagram that a busy cluster drops costs one second, and not the five in which a request must be answered.
            "dnsConfig": {"options": [{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "4"}]},
            "securityContext": restricted_pod(),
            "containers": [{
                "name": "agent",
                "image": environment::app_image()?,
                "imagePullPolicy": "IfNotPresent",
                "args": ["agent"],
                "securityContext": restricted_container(),
            }],
        },
    }))
}

/// Returns the fields that the `restricted` Pod Security Standard requires of a pod.
pub fn restricted_pod() -> Value {
    json!({"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
}

/// Returns the fields that the `restricted` Pod Security Standard requires of a container.
pub fn restricted_container() -> Value {
    json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})
}

/// Merges objects member by member; anything else takes the place of what is there, and null takes it away.
fn merge(onto: &mut Value, from: Value) {
    match (onto, from) {
        (Value::Object(onto), Value::Object(from)) => {
            for (name, value) in from {
                if value.is_null() {
                    onto.remove(&name);
                } else {
                    merge(onto.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (onto, from) => *onto = from,
    }
}
