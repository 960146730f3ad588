//! Labels and port of a workload's pods.

use std::{collections::BTreeMap, str::FromStr};

use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;

use super::USUAL_PORT;
use crate::{
    cluster::Cluster,
    error::{Error, Result},
};

/// Kinds of workloads, with the names that kubectl takes.
const KINDS: [(&str, [&str; 3]); 3] = [
    ("Deployment", ["deployment", "deployments", "deploy"]),
    ("StatefulSet", ["statefulset", "statefulsets", "sts"]),
    ("DaemonSet", ["daemonset", "daemonsets", "ds"]),
];

/// A workload as kubectl names it, such as `deployment/shop`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadName {
    kind: &'static str,
    pub(super) name: String,
}

impl FromStr for WorkloadName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or_default();
        let kind = kind.to_lowercase();
        let known =
            KINDS.iter().find(|(_, names)| names.contains(&kind.split('.').next().unwrap_or_default()));
        match known {
            Some((kind, _)) if !name.is_empty() => Ok(Self { kind, name: name.to_owned() }),
            _ => Err("write a deployment, statefulset or daemonset with its name, such as deployment/shop"
                .to_owned()),
        }
    }
}

/// Pods of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) labels: BTreeMap<String, String>,
    /// Port that serves HTTP, if that is clear.
    pub(super) port: Option<String>,
}

/// Reads a workload of the namespace.
pub(super) async fn find(cluster: &Cluster, WorkloadName { kind, name }: &WorkloadName) -> Result<Found> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    let workloads: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
    let found = workloads.get_opt(name).await.map_err(|error| Error::of_api(error, "get the workload"))?;
    let found = found.ok_or_else(|| {
        Error::Usage(format!(
            "namespace {} has no {kind} {name}: choose another --namespace",
            cluster.namespace
        ))
    })?;
    read(&found.data).ok_or_else(|| {
        Error::Usage(format!(
            "{kind} {name} does not select its pods by labels alone: give --selector instead"
        ))
    })
}

fn read(workload: &Value) -> Option<Found> {
    let selector = &workload["spec"]["selector"];
    if selector["matchExpressions"].as_array().is_some_and(|expressions| !expressions.is_empty()) {
        return None;
    }
    let labels = serde_json::from_value::<BTreeMap<_, _>>(selector["matchLabels"].clone()).ok()?;
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array()?;
    let ports: Vec<_> =
        containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten()).collect();
    let named = |port: &&&Value| port["name"] == USUAL_PORT;
    let port = match ports.as_slice() {
        [port] => Some(port),
        ports => ports.iter().find(named),
    };
    let port = port.and_then(|port| match port["name"].as_str() {
        Some(name) => Some(name.to_owned()),
        None => port["containerPort"].as_u64().map(|number| number.to_string()),
    });
    Some(Found { labels, port }).filter(|found| !found.labels.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_are_named_as_for_kubectl() {
        for text in ["deployment/shop", "deploy/shop", "deployments.apps/shop", "Deployment/shop"] {
            let read: WorkloadName = text.parse().unwrap();
            assert_eq!((read.kind, read.name.as_str()), ("Deployment", "shop"), "{text}");
        }
        for text in ["shop", "job/shop", "deployment/", ""] {
            assert!(text.parse::<WorkloadName>().is_err(), "{text}");
        }
    }

    #[test]
    fn port_is_that_of_the_only_container_or_the_one_named_http() {
        let port = |ports: Value| {
            let workload = json!({"spec": {
                "selector": {"matchLabels": {"app": "shop"}},
                "template": {"spec": {"containers": [{"ports": ports}]}},
            }});
            read(&workload).unwrap().port
        };
        assert_eq!(port(json!([{"name": "web", "containerPort": 8080}])).as_deref(), Some("web"));
        assert_eq!(port(json!([{"containerPort": 8080}])).as_deref(), Some("8080"));
        let both = json!([{"name": "metrics", "containerPort": 9}, {"name": "http", "containerPort": 8080}]);
        assert_eq!(port(both).as_deref(), Some("http"));
        assert_eq!(port(json!([{"containerPort": 1}, {"containerPort": 2}])), None);
        assert_eq!(read(&json!({"spec": {"selector": {}}})), None);
    }

    #[test]
    fn workload_with_expressions_is_not_known_by_its_labels_alone() {
        let workload = |expressions: Value| {
            json!({"spec": {
                "selector": {"matchLabels": {"app": "shop"}, "matchExpressions": expressions},
                "template": {"spec": {"containers": []}},
            }})
        };
        assert!(read(&workload(json!([]))).is_some());
        assert_eq!(read(&workload(json!([{"key": "tier", "operator": "Exists"}]))), None);
    }
}
