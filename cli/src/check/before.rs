//! Requirements of an installation, before there is one.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Namespace, rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Resource, ResourceExt, core::ObjectMeta};
use larder_api::names;
use larder_check::{Checked, Fault, restricted_pod, try_pod};
use larder_crds::{CacheInvalidation, CachePolicy};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{finding::Finding, installation::RELEASE_NAMESPACE};
use crate::{
    cluster::{Access, Cluster},
    error::{Error, Result},
    wording,
};

/// Oldest version of Kubernetes, as `kubeVersion` of the chart.
const OLDEST: (u32, u32) = (1, 30);
/// Annotation by which Helm knows the release of an object.
const RELEASE_NAME: &str = "meta.helm.sh/release-name";
/// Label with the level of Pod Security that a namespace enforces.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce";
/// API of the webhook and of the policies that confine the operator.
const ADMISSION_API: &str = "admissionregistration.k8s.io/v1";

/// Kinds of objects that the chart creates, each as API group and resource, in the whole cluster or in the release's namespace.
const OF_CLUSTER: [(&str, &str); 6] = [
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
];
/// Helm keeps its own record of a release in a Secret.
const OF_NAMESPACE: [(&str, &str); 8] = [
    ("", "configmaps"),
    ("", "secrets"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "deployments"),
    ("policy", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
];

/// A release of the chart that is to be installed.
#[derive(Clone, Copy, Debug)]
struct Release<'a> {
    name: &'a str,
    namespace: &'a str,
}

/// Owner of an object that the chart creates as well.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// The release.
    Release,
    /// Another release.
    Other { name: String, namespace: String },
    /// None of Helm's.
    Unknown,
}

/// Checks whether a release of the chart can be installed in the namespace.
pub(super) async fn findings(cluster: &Cluster, release: &str) -> Result<Vec<Finding>> {
    let release = Release { name: release, namespace: &cluster.namespace };
    let installed = installed(cluster, release).await;
    let is_alone =
        installed.as_ref().is_ok_and(|found| found.iter().all(|(_, owner)| *owner == Owner::Release));
    let installation = installed.and_then(|found| installation(&found, release));
    let mut findings = vec![
        version(cluster).await?,
        Finding::of("api", admission_api(cluster).await)?,
        rights(cluster, release).await?,
        Finding::of("definition", definitions(cluster, release, is_alone).await)?,
        Finding::of("installation", installation)?,
    ];
    findings.extend(namespace(cluster).await?);
    Ok(findings)
}

async fn version(cluster: &Cluster) -> Result<Finding> {
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| Error::of_api(error, "tell its version"))?;
    let said = wording::one_line(&version.git_version);
    // Some distributions write "30+".
    let number =
        |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    let ((major, minor), oldest) = ((number(&version.major), number(&version.minor)), OLDEST);
    Ok(match (major, minor) >= oldest {
        true => Finding::ok("version", format!("the API server is Kubernetes {said}")),
        false => Finding::failed(
            "version",
            format!(
                "the API server is Kubernetes {said}; {}.{} is the oldest that is supported",
                oldest.0, oldest.1
            ),
            "upgrade the cluster",
        ),
    })
}

async fn admission_api(cluster: &Cluster) -> Checked {
    let served = cluster.client.list_api_group_resources(ADMISSION_API).await;
    let served =
        served.map_err(|error| Fault::unknown("ask for the resources that the cluster serves", error))?;
    let needed = OF_CLUSTER.iter().filter(|(group, _)| ADMISSION_API.starts_with(group));
    let missing: Vec<_> = needed
        .map(|(_, resource)| *resource)
        .filter(|resource| served.resources.iter().all(|one| one.name != *resource))
        .collect();
    match missing.as_slice() {
        [] => Ok(format!("the cluster serves webhooks and admission policies of {ADMISSION_API}")),
        missing => Err(Fault::wrong(
            format!("the cluster does not serve {} of {ADMISSION_API}", missing.join(", ")),
            "enable the API on the API servers (--runtime-config, --feature-gates)",
        )),
    }
}

/// Asks for each right to create what the chart has.
async fn rights(cluster: &Cluster, release: Release<'_>) -> Result<Finding> {
    let of_cluster = OF_CLUSTER.iter().map(|(group, resource)| Access::to("create", group, resource));
    let of_namespace = OF_NAMESPACE
        .iter()
        .map(|(group, resource)| Access::to("create", group, resource).within(release.namespace));
    let mut missing = Vec::new();
    for access in of_cluster.chain(of_namespace) {
        if !cluster.may(&access).await? {
            missing.push(access.resource());
        }
    }
    if !missing.is_empty() {
        return Ok(Finding::failed(
            "rights",
            format!("you may not create {}", missing.join(", ")),
            "install as an administrator of the cluster, such as one with the ClusterRole cluster-admin",
        ));
    }
    // A role that grants more than its author has is refused to all others.
    let escalate = Access::to("escalate", "rbac.authorization.k8s.io", "clusterroles");
    let any = Access::to("*", "*", "*");
    Ok(match cluster.may(&any).await? || cluster.may(&escalate).await? {
        true => Finding::ok("rights", "you may create everything that the chart has"),
        false => Finding::warning(
            "rights",
            "you may create ClusterRoles with the rights that you have yourself alone",
            "install as an administrator of the cluster, unless you have all the rights in charts/larder/templates/rbac.yaml",
        ),
    })
}

/// Checks that definitions which the cluster has already are those of the release. Nothing may take them from another installation.
async fn definitions(cluster: &Cluster, release: Release<'_>, is_alone: bool) -> Checked {
    let plurals = [CachePolicy::plural(&()), CacheInvalidation::plural(&())];
    let mut found = 0;
    for plural in &plurals {
        let name = format!("{plural}.{}", larder_api::GROUP);
        let Some(definition) = get::<CustomResourceDefinition>(cluster, &name, "get the definition").await?
        else {
            continue;
        };
        found += 1;
        let version = CachePolicy::version(&());
        if !definition.spec.versions.iter().any(|one| one.name == version && one.served) {
            let has: Vec<_> = definition.spec.versions.iter().map(|one| one.name.as_str()).collect();
            return Err(Fault::wrong(
                format!("definition {name} is there without version {version}: it has {}", has.join(", ")),
                "find out whose it is, and delete it with its objects if they are not needed",
            ));
        }
        let whose = match owner(&definition.metadata, release) {
            Owner::Release => continue,
            Owner::Other { name, namespace } => format!("is of release {name} in namespace {namespace}"),
            Owner::Unknown => "was not made by Helm".to_owned(),
        };
        return Err(Fault::wrong(
            format!("definition {name} {whose}, so that Helm refuses to install over it"),
            match is_alone {
                true => {
                    "install with `--take-ownership` (Helm 3.17 and later), or with a tool that applies manifests"
                }
                false => {
                    "first see to it that no other installation needs it: the check `installation` looks for one"
                }
            },
        ));
    }
    Ok(match found {
        0 => "the cluster has no definition of Larder's yet".to_owned(),
        _ => "definitions of an earlier installation are there, and become those of the chart".to_owned(),
    })
}

/// Returns the objects of an installation that is there, each with its owner.
async fn installed(
    cluster: &Cluster,
    release: Release<'_>,
) -> std::result::Result<Vec<(String, Owner)>, Fault> {
    let role = get::<ClusterRole>(cluster, names::OPERATOR, "get the operator's ClusterRole").await?;
    let webhook = names::WEBHOOK_CONFIGURATION;
    let webhook =
        get::<MutatingWebhookConfiguration>(cluster, webhook, "get the webhook's configuration").await?;
    let found = [
        role.map(|role| (format!("ClusterRole {}", role.name_any()), role.metadata)),
        webhook.map(|one| (format!("MutatingWebhookConfiguration {}", one.name_any()), one.metadata)),
    ];
    let found = found.into_iter().flatten();
    Ok(found.map(|(object, metadata)| (object, owner(&metadata, release))).collect())
}

/// Checks that the cluster has no other installation.
fn installation(found: &[(String, Owner)], release: Release<'_>) -> Checked {
    for (object, owner) in found {
        match owner {
            Owner::Release => {}
            Owner::Other { name, namespace } => {
                return Err(Fault::wrong(
                    format!(
                        "release {name} in namespace {namespace} is installed, and a cluster has one Larder"
                    ),
                    format!(
                        "upgrade that one (`helm upgrade {name} --namespace {namespace}`), or uninstall it first"
                    ),
                ));
            }
            Owner::Unknown => {
                return Err(Fault::wrong(
                    format!("{object} is there, which Helm did not make, and a cluster has one Larder"),
                    "upgrade Larder with the tool that installed it, or delete that installation first",
                ));
            }
        }
    }
    Ok(match found.is_empty() {
        true => "the cluster has no other one".to_owned(),
        false => {
            format!("release {} is installed in namespace {}: upgrade it", release.name, release.namespace)
        }
    })
}

fn owner(metadata: &ObjectMeta, release: Release<'_>) -> Owner {
    let annotations = metadata.annotations.as_ref();
    let of = |key| annotations.and_then(|all| all.get(key)).cloned();
    match (of(RELEASE_NAME), of(RELEASE_NAMESPACE)) {
        (Some(name), Some(namespace)) if name == release.name && namespace == release.namespace => {
            Owner::Release
        }
        (Some(name), Some(namespace)) => Owner::Other { name, namespace },
        _ => Owner::Unknown,
    }
}

/// Checks that the namespace admits pods like the operator's.
async fn namespace(cluster: &Cluster) -> Result<Vec<Finding>> {
    let (check, name) = ("namespace", cluster.namespace.as_str());
    let found = match get::<Namespace>(cluster, name, "get the namespace").await {
        Ok(Some(found)) => Some(found),
        Ok(None) if cluster.may(&Access::to("create", "", "namespaces")).await? => {
            let message =
                format!("there is no namespace {name} yet: `helm install --create-namespace` creates it");
            return Ok(vec![Finding::ok(check, message)]);
        }
        Ok(None) => {
            let message = format!("there is no namespace {name}, and you may not create it");
            return Ok(vec![Finding::failed(check, message, "have an administrator create it")]);
        }
        Err(fault) => return Ok(vec![Finding::of(check, Err(fault))?]),
    };
    let labels = found.iter().flat_map(|found| found.labels()).collect::<BTreeMap<_, _>>();
    let enforced = labels.get(&ENFORCED.to_owned()).map_or("privileged", |level| level.as_str());
    if found.as_ref().is_some_and(|found| found.metadata.deletion_timestamp.is_some()) {
        let message = format!("namespace {name} is being deleted");
        return Ok(vec![Finding::failed(check, message, "wait until it is gone, or choose another")]);
    }
    let labels = BTreeMap::from([("app.kubernetes.io/name".to_owned(), "larder".to_owned())]);
    let tried = try_pod(&cluster.client, name, &restricted_pod(&labels, vec![], &resources())).await;
    let checked = tried.and_then(|tried| match tried {
        Ok(_) => Ok(format!("{name} admits pods like the operator's (Pod Security: {enforced})")),
        Err(words) => Err(Fault::wrong(
            format!("{name} admits no pod like the operator's (Pod Security: {enforced}): {words}"),
            "choose another namespace, or let it admit pods of the restricted standard with requests and limits",
        )),
    });
    Ok(vec![Finding::of(check, checked)?])
}

/// Returns the resources of the operator, as the chart has them unless values say otherwise: quotas and limit ranges look at them.
fn resources() -> Value {
    json!({"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}})
}

async fn get<K>(cluster: &Cluster, name: &str, action: &str) -> std::result::Result<Option<K>, Fault>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let found = Api::<K>::all(cluster.client.clone()).get_opt(name).await;
    found.map_err(|error| Fault::unknown(&format!("{action} {name}"), error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use http::Method;

    use super::*;
    use crate::{
        cluster::fake::{refusal, with_server},
        outcome::Outcome,
        paint::Paint,
    };

    fn chart(file: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/larder");
        fs::read_to_string(format!("{folder}/{file}")).unwrap()
    }

    #[test]
    fn oldest_version_is_that_of_the_chart() {
        let (major, minor) = OLDEST;
        assert!(chart("Chart.yaml").contains(&format!("kubeVersion: \">={major}.{minor}.0-0\"")));
    }

    #[test]
    fn pod_that_is_tried_is_as_the_chart_has_the_operators() {
        let values: Value = serde_yaml::from_str(&chart("values.yaml")).unwrap();
        let pod = restricted_pod(&BTreeMap::new(), vec![], &resources());
        let pod = serde_json::to_value(pod).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["resources"], values["resources"]);
        assert_eq!(pod["spec"]["securityContext"], values["podSecurityContext"]);
    }

    #[test]
    fn rights_cover_every_kind_that_the_chart_creates() {
        // Off unless values turn them on.
        let optional = ["NetworkPolicy", "PodMonitor", "ServiceMonitor"];
        let plural = |kind: &str| match kind.to_lowercase() {
            kind if kind.ends_with("policy") => kind.replace("policy", "policies"),
            kind => kind + "s",
        };
        let files = [
            "_helpers.tpl",
            "confinement.yaml",
            "dashboard.yaml",
            "deployment.yaml",
            "monitors.yaml",
            "networkpolicy.yaml",
            "poddisruptionbudget.yaml",
            "rbac.yaml",
            "service.yaml",
            "serviceaccount.yaml",
            "webhook.yaml",
        ];
        let asked: Vec<_> = OF_CLUSTER.iter().chain(&OF_NAMESPACE).map(|(_, resource)| *resource).collect();
        for file in files {
            let text = chart(&format!("templates/{file}"));
            for kind in text.lines().filter_map(|line| line.strip_prefix("kind: ")) {
                let is_asked = asked.contains(&plural(kind).as_str());
                assert!(is_asked || optional.contains(&kind), "{kind} of {file}");
            }
        }
    }

    /// An API server of a version whose user may do everything but this, with these objects.
    fn said(
        minor: &'static str,
        forbidden: &'static str,
        objects: &'static [(&'static str, &'static str)],
    ) -> (String, Outcome) {
        let respond = move |method: &Method, path: &str| -> Value {
            let last = path.rsplit('/').next().unwrap_or_default();
            if let Some((_, release)) = objects.iter().find(|(name, _)| *name == last) {
                return json!({
                    "metadata": {"name": last, "annotations": {RELEASE_NAME: release, RELEASE_NAMESPACE: "larder"}},
                    "spec": {
                        "group": "larder.dev", "names": {"kind": "CachePolicy", "plural": "cachepolicies"}, "scope": "Namespaced",
                        "versions": [{"name": "v1alpha1", "served": true, "storage": true}],
                    },
                });
            }
            match last {
                "version" => json!({
                    "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.1"), "gitCommit": "", "gitTreeState": "",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
                }),
                "v1" => {
                    let resources = OF_CLUSTER.iter().map(|(_, resource)| {
                        json!({"name": resource, "singularName": "", "namespaced": false, "kind": "A", "verbs": []})
                    });
                    json!({"kind": "APIResourceList", "groupVersion": ADMISSION_API, "resources": resources.collect::<Vec<_>>()})
                }
                "selfsubjectaccessreviews" => {
                    json!({"spec": {}, "status": {"allowed": forbidden.is_empty()}})
                }
                "pods" if method == Method::POST => refusal(403, forbidden),
                _ => refusal(404, "not found"),
            }
        };
        with_server(respond, async |cluster| {
            let checks = findings(cluster, "larder").await.unwrap();
            let report = super::super::finding::Report { checks };
            (report.text(Paint::NONE), report.outcome())
        })
    }

    #[test]
    fn definitions_are_taken_over_only_where_no_other_installation_is() {
        let definition = ("cachepolicies.larder.dev", "cache");
        let (alone, _) = said("36", "", Vec::leak(vec![definition]));
        assert!(alone.contains("--take-ownership"), "{alone}");
        for other in ["larder-operator", "larder-webhook"] {
            let (text, outcome) = said("36", "", Vec::leak(vec![definition, (other, "cache")]));
            assert!(!text.contains("--take-ownership") && outcome == Outcome::Faulty, "{text}");
        }
        let fault = installation(
            &[("ClusterRole larder-operator".into(), Owner::Unknown)],
            Release { name: "larder", namespace: "shop" },
        );
        assert!(fault.unwrap_err().to_string().contains("the tool that installed it"));
    }

    #[test]
    fn empty_cluster_is_ready_for_an_installation() {
        let (text, outcome) = said("36", "", &[]);
        assert_eq!(outcome, Outcome::Good, "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), 6, "{text}");
        assert!(text.contains("there is no namespace shop yet"), "{text}");
    }

    #[test]
    fn each_obstacle_has_its_remedy() {
        let (text, outcome) = said(
            "29+",
            "no",
            &[("larder-operator", "cache"), ("cachepolicies.larder.dev", "cache"), ("shop", "")],
        );
        assert_eq!(outcome, Outcome::Faulty, "{text}");
        for expected in [
            "failed   version: the API server is Kubernetes v1.29+.1; 1.30 is the oldest",
            "failed   rights: you may not create customresourcedefinitions.apiextensions.k8s.io, ",
            "failed   definition: definition cachepolicies.larder.dev is of release cache in namespace larder",
            "failed   installation: release cache in namespace larder is installed",
            "`helm upgrade cache --namespace larder`",
            "failed   namespace: shop admits no pod like the operator's (Pod Security: privileged): no",
        ] {
            assert!(text.contains(expected), "no {expected:?} in {text}");
        }
    }
}
