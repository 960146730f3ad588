//! `larder check`.

mod before;
mod finding;
mod installation;
mod policy;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use larder_crds::CachePolicy;
use larder_lint::{Checker, Environment};

use self::{
    finding::{Finding, Report},
    installation::Installation,
};
use crate::{
    args,
    cluster::{Cluster, Unreadable},
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
};

/// Checks the cluster and its policies, or whether Larder can be installed.
pub(crate) async fn run(args: &args::Check, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let checks = match args.pre {
        true => before::findings(cluster, &args.release).await?,
        false => findings(args, cluster).await?,
    };
    let report = Report { checks };
    output.print(&report, |paint| report.text(paint))?;
    Ok(report.outcome())
}

async fn findings(args: &args::Check, cluster: &Cluster) -> Result<Vec<Finding>> {
    let definition = Finding::of("definition", larder_check::definition(&cluster.client).await)?;
    if definition.is_failed() {
        return Ok(vec![definition]);
    }
    let mut findings = vec![definition];
    let mut policies = Vec::new();
    match cluster.policies_read(args.all_namespaces).await {
        Ok(found) if found.is_empty() && args.all_namespaces => {
            findings.push(Finding::ok("policies", "there are none in any namespace"));
        }
        Ok(found) if found.is_empty() => findings.push(no_policies(cluster).await?),
        Ok(found) => {
            for policy in found {
                match policy {
                    Ok(policy) => policies.push(policy),
                    Err(unreadable) => findings.push(of_unreadable(&unreadable)),
                }
            }
        }
        Err(error) => findings.push(Finding::not_checked("policies", error)?.of_policies()),
    }
    let installation = Installation::find(cluster, args.operator_namespace.as_deref()).await;
    findings.extend(installation.findings(cluster, &policies).await?);
    let checker = Checker::new(Environment::Cluster);
    for policy in &policies {
        findings.extend(policy::findings(cluster, policy, &checker).await?);
    }
    Ok(findings)
}

/// Returns the finding of a namespace without policies, which may be misspelt.
async fn no_policies(cluster: &Cluster) -> Result<Finding> {
    let (check, name) = ("policies", &cluster.namespace);
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    Ok(match namespaces.get_opt(name).await {
        Ok(None) => Finding::failed(
            check,
            format!("there is no namespace {name}"),
            "choose another --namespace; `kubectl get namespaces` lists them",
        ),
        // Whoever may not look at the namespace may still list what it has.
        Ok(Some(_)) => Finding::ok(check, format!("there are none in namespace {name}")),
        Err(error) => match Error::of_api(error, "get the namespace") {
            Error::Forbidden(_) => Finding::ok(check, format!("there are none in namespace {name}")),
            error => Finding::not_checked(check, error)?,
        },
    })
}

fn of_unreadable(Unreadable { name, reason }: &Unreadable) -> Finding {
    let remedy = "correct the policy, or install a newer version of this program: it may be older than the cluster's Larder";
    Finding::failed("policies", format!("this program can't read it: {reason}"), remedy).of_policy(name)
}

/// Returns the name of a policy with its namespace.
fn full_name(policy: &CachePolicy) -> String {
    format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any())
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::fake::{refusal, with_server},
        paint::Paint,
    };

    /// Returns what is said of a cluster with these policies in namespace `shop`, and the outcome.
    fn said(policies: Value, has_namespace: bool) -> (String, Outcome) {
        let respond = move |_: &Method, path: &str| match path {
            "/apis/larder.dev/v1alpha1" => json!({
                "kind": "APIResourceList", "groupVersion": "larder.dev/v1alpha1",
                "resources": [{"name": "cachepolicies", "singularName": "", "namespaced": true, "kind": "CachePolicy", "verbs": []}],
            }),
            "/apis/larder.dev/v1alpha1/namespaces/shop/cachepolicies" => {
                json!({"apiVersion": "larder.dev/v1alpha1", "kind": "CachePolicyList", "metadata": {}, "items": policies})
            }
            "/api/v1/namespaces/shop" if has_namespace => json!({"metadata": {"name": "shop"}}),
            "/api/v1/namespaces/shop/pods" => {
                json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []})
            }
            path if path.contains("/leases/") => refusal(503, "overloaded"),
            _ => refusal(404, "not found"),
        };
        let args = args::Check {
            pre: false,
            all_namespaces: false,
            operator_namespace: None,
            release: String::new(),
        };
        with_server(respond, async |cluster| {
            let report = Report { checks: findings(&args, cluster).await.unwrap() };
            (report.text(Paint::NONE), report.outcome())
        })
    }

    #[test]
    fn misspelt_namespace_is_told_from_one_without_policies() {
        assert!(said(json!([]), true).0.contains("ok       policies: there are none in namespace shop"));
        let (text, outcome) = said(json!([]), false);
        assert!(text.contains("failed   policies: there is no namespace shop"), "{text}");
        assert!(outcome != Outcome::Good);
    }

    #[test]
    fn policy_that_can_not_be_read_keeps_no_other_from_being_checked() {
        let policy = |name: &str, spec: Value| {
            let metadata = json!({"name": name, "namespace": "shop"});
            json!({"apiVersion": "larder.dev/v1alpha1", "kind": "CachePolicy", "metadata": metadata, "spec": spec})
        };
        let spec = json!({"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]});
        let (text, outcome) = said(json!([policy("a", json!({"targets": 1})), policy("b", spec)]), true);
        assert!(text.contains("failed   shop/a policies: this program can't read it: "), "{text}");
        assert!(text.contains("shop/b conditions: the operator has not reported"), "{text}");
        assert!(
            text.contains("skipped  leader: the API server refuses to get the Lease: overloaded"),
            "{text}"
        );
        assert_eq!(outcome, Outcome::Failed, "the API server did not answer");
    }
}
