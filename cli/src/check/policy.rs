//! A policy: its conditions, sidecars, tiers and peers, the linter's words, and a pod that is tried.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{ResourceExt, core::ObjectMeta};
use larder_api::{admin::TierState, names};
use larder_check::{admit, injects, pod_of};
use larder_crds::{CachePolicy, ConditionType};
use larder_lint::Checker;

use super::{finding::Finding, full_name};
use crate::{
    args::program,
    cluster::Cluster,
    conditions,
    error::Result,
    status::{self, PolicyState, SidecarState},
    wording::listed,
};

/// Reason of conditions of a policy that has no pods.
const NO_PODS: &str = "NoPods";
/// Remedy where pods do not reach one another.
const REACH: &str = "let the policy's pods reach one another on the port of their admin API (NetworkPolicies; \
                     networkPolicy.sidecarNamespaces of the chart)";
/// Place of a pod's name in a remedy.
const POD: &str = "{pod}";

/// A problem of a sidecar, which others may have as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    check: &'static str,
    message: String,
    remedy: String,
}

/// Checks a policy.
pub(super) async fn findings(
    cluster: &Cluster,
    policy: &CachePolicy,
    checker: &Checker,
) -> Result<Vec<Finding>> {
    let mut findings = of_conditions(policy);
    findings.extend(of_linter(policy, checker));
    match status::state(cluster, policy).await {
        Ok(state) => findings.extend(of_sidecars(&state)),
        Err(error) => findings.push(Finding::not_checked("sidecars", error)?.of_policies()),
    }
    match pod_of(policy) {
        Some(pod) => findings.push(Finding::of("admission", admit(&cluster.client, policy, &pod).await)?),
        None if injects(policy) => findings.push(Finding::skipped(
            "admission",
            "not tried: the selector has matchExpressions, which do not tell the labels of its pods",
            "create a pod of the application itself, and look for the sidecar in it",
        )),
        // Its conditions say why no pod gets a sidecar.
        None => {}
    }
    let name = full_name(policy);
    Ok(findings.into_iter().map(|finding| finding.of_policy(&name)).collect())
}

fn of_conditions(policy: &CachePolicy) -> Vec<Finding> {
    let check = "conditions";
    let (namespace, name) = (policy.namespace().unwrap_or_default(), policy.name_any());
    if conditions::find(policy, ConditionType::Ready).is_none() {
        let remedy = "if that lasts, look at the check `leader` and at the operator's log";
        let message = "the operator has not reported on the policy as it is now";
        return vec![Finding::failed(check, message, remedy)];
    }
    let status = policy.status.clone().unwrap_or_default();
    let all = ConditionType::ALL.map(|kind| (kind, conditions::find(policy, kind)));
    let of_kind = |state: &str| {
        let in_state = all.iter().filter_map(|(kind, one)| Some((*kind, (*one)?)));
        in_state.filter(|(_, one)| one.status == state).collect::<Vec<_>>()
    };
    let mut wrong = of_kind("False");
    if wrong.len() > 1 {
        // It sums the others up.
        wrong.retain(|(kind, _)| *kind != ConditionType::Ready);
    }
    let missed = match status.missed_pods.as_slice() {
        [] => String::new(),
        pods => format!(" (pods without the sidecar: {})", listed(pods)),
    };
    let described = format!("`kubectl -n {namespace} describe cachepolicy {name}` has the events");
    let message = |kind: ConditionType, Condition { status, reason, message, .. }: &Condition| {
        let missed = if kind == ConditionType::Injected { missed.as_str() } else { "" };
        format!("{} is {status} ({reason}): {message}{missed}", kind.as_str())
    };
    let failed = wrong.into_iter().map(|(kind, one)| {
        let remedy = match one.reason.as_str() {
            NO_PODS => "start the workload, or have the selector name its pods' labels".to_owned(),
            _ => remedy(kind),
        };
        Finding::failed(check, message(kind, one), format!("{remedy}; {described}"))
    });
    // Without pods there is nothing to know, which Ready says once.
    let unknown = of_kind("Unknown").into_iter();
    let unknown = unknown.filter(|(kind, one)| *kind == ConditionType::Ready || one.reason != NO_PODS);
    let unknown = unknown.map(|(kind, one)| {
        Finding::warning(check, message(kind, one), format!("wait until the operator knows it; {described}"))
    });
    let findings: Vec<_> = failed.chain(unknown).collect();
    if findings.is_empty() { vec![Finding::ok(check, "all of them hold")] } else { findings }
}

fn remedy(kind: ConditionType) -> String {
    let remedy = match kind {
        ConditionType::Accepted => {
            return format!("change the policy, and `{} lint` it before it is applied", program());
        }
        ConditionType::Injected => "restart the workloads of these pods once what is named is corrected",
        ConditionType::TrafficCaptured => {
            "choose a capture mode for these Services (docs/operations.md, Capture modes)"
        }
        ConditionType::ConfigCurrent => {
            "wait for a minute until every pod has the configuration; the check `sidecars` says why not"
        }
        ConditionType::WritesSeen => "give every pod that takes writes the sidecar",
        ConditionType::TiersHealthy => "the check `tiers` says which server does not respond, and to whom",
        ConditionType::Ready => "correct what is named",
    };
    remedy.to_owned()
}

/// Checks the policy as `larder lint` does: it may be older than the rules.
fn of_linter(policy: &CachePolicy, checker: &Checker) -> Vec<Finding> {
    let bare = CachePolicy {
        status: None,
        metadata: ObjectMeta {
            name: Some(policy.name_any()),
            namespace: policy.namespace(),
            ..Default::default()
        },
        ..policy.clone()
    };
    let Ok(text) = serde_yaml::to_string(&bare) else { return vec![] };
    let report = checker.check(&text);
    let errors = report
        .diagnostics
        .iter()
        .map(|one| Finding::failed("lint", format!("{}: {}", one.path, one.message), "change the policy"));
    let warnings = report.warnings.iter().map(|one| {
        Finding::warning(
            "lint",
            format!("{}: {}", one.path, one.message),
            "take it out, or change what is before it",
        )
    });
    errors.chain(warnings).collect()
}

fn of_sidecars(state: &PolicyState) -> Vec<Finding> {
    let sidecars = || state.sidecars.iter().filter(|sidecar| !sidecar.terminating);
    let mut pods = BTreeMap::<Problem, Vec<&str>>::new();
    for sidecar in sidecars() {
        for problem in problems(sidecar, state) {
            pods.entry(problem).or_default().push(&sidecar.pod);
        }
    }
    let mut findings: Vec<_> = pods
        .into_iter()
        .map(|(Problem { check, message, remedy }, pods)| {
            let word = if pods.len() == 1 { "pod" } else { "pods" };
            let remedy = remedy.replace(POD, pods.first().copied().unwrap_or_default());
            Finding::failed(check, format!("{word} {}: {message}", listed(&pods)), remedy)
        })
        .collect();
    findings.extend(of_unreachable(state));
    let count = sidecars().count();
    // Pods that lack one are told of by the conditions.
    let is_awaited = count == 0 && state.status.pods.matched > 0;
    if findings.is_empty() && !is_awaited {
        let message = match count {
            0 => "there are no pods".to_owned(),
            1 => "1 responds, with the current configuration, its tiers and its peers".to_owned(),
            count => format!("{count} respond, with the current configuration, their tiers and their peers"),
        };
        findings.push(Finding::ok("sidecars", message));
    }
    findings
}

/// Returns a finding for each reason for which pods do not reach one another: where a NetworkPolicy is in the way, no pod reaches any.
fn of_unreachable(state: &PolicyState) -> Vec<Finding> {
    let mut by_reason = BTreeMap::<&str, (BTreeSet<&str>, BTreeSet<&str>)>::new();
    for sidecar in state.sidecars.iter().filter(|sidecar| !sidecar.terminating) {
        let peers = sidecar.report.iter().filter_map(|report| report.peers.as_ref());
        for (address, reason) in peers.flat_map(|peers| &peers.unreachable) {
            let (pods, addresses) = by_reason.entry(reason).or_default();
            pods.insert(&sidecar.pod);
            addresses.insert(address);
        }
    }
    let list = |names: BTreeSet<&str>| listed(&Vec::from_iter(names));
    let finding = |(reason, (pods, addresses)): (&str, (BTreeSet<&str>, BTreeSet<&str>))| {
        let word = if pods.len() == 1 { "pod" } else { "pods" };
        let message = format!("{word} {}: no response from {}: {reason}", list(pods), list(addresses));
        Finding::failed("peers", message, REACH)
    };
    by_reason.into_iter().map(finding).collect()
}

/// Returns the problems of a sidecar.
fn problems(sidecar: &SidecarState, state: &PolicyState) -> Vec<Problem> {
    let problem = |check, message: String, remedy: String| Problem { check, message, remedy };
    let log = format!("`kubectl -n {} logs {POD} -c {}` says why", state.namespace, names::SIDECAR);
    let Some(report) = &sidecar.report else {
        let message = sidecar.error.clone().unwrap_or_else(|| "no response".to_owned());
        // Pods with the same error are one finding, which names them.
        let message = message.replace(&format!(" in pod {}", sidecar.pod), "");
        return vec![problem("sidecars", message, log)];
    };
    let mut problems = Vec::new();
    if let Some(error) = &report.error {
        let remedy =
            "change the policy, or what the error names; until then the configuration before it is in force";
        problems.push(problem(
            "sidecars",
            format!("the configuration can't be loaded: {error}"),
            remedy.into(),
        ));
    } else if state.observed && !sidecar.current {
        let message = match report.hash {
            Some(_) => "an older configuration is in force",
            None => "no configuration is in force",
        };
        let remedy = format!("the kubelet renews it within a minute; if not, {log}");
        problems.push(problem("sidecars", message.to_owned(), remedy));
    }
    if !report.admin_token {
        let secret = names::admin_secret(&state.name);
        let message = "the token of the admin API can't be read: stats, explanations and purges are refused";
        let remedy = format!(
            "the operator creates Secret {secret}: `kubectl -n {} get secret {secret}`",
            state.namespace
        );
        problems.push(problem("sidecars", message.to_owned(), remedy));
    }
    for (tier, _) in report.tiers.iter().filter(|(_, state)| **state == TierState::Down) {
        let reason = report.last_errors.get(tier).map(|error| format!(": {error}")).unwrap_or_default();
        let remedy = "check the server, the Secret with its URL, and NetworkPolicies on the way to it";
        problems.push(problem("tiers", format!("{tier} does not respond{reason}"), remedy.to_owned()));
    }
    let Some(peers) = &report.peers else { return problems };
    if let Some(error) = &peers.error {
        let remedy = format!("let the pods resolve Service {}; {REACH}", names::peers(&state.name));
        problems.push(problem("peers", format!("other pods can't be found: {error}"), remedy));
    }
    problems
}

#[cfg(test)]
mod tests {
    use larder_lint::Environment;
    use serde_json::{Value, json};

    use super::*;
    use crate::paint::Paint;

    fn policy(conditions: &[(&str, &str)], routes: Value) -> CachePolicy {
        let conditions = conditions.iter().map(|(kind, status)| {
            json!({
                "type": kind, "status": status, "reason": "R", "message": format!("about {kind}"),
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        });
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CachePolicy",
            "metadata": {"name": "shop", "namespace": "shop", "generation": 1},
            "spec": {
                "selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}], "routes": routes,
            },
            "status": {
                "observedGeneration": 1, "missedPods": ["shop-1"], "conditions": conditions.collect::<Vec<_>>(),
            },
        }))
        .unwrap()
    }

    fn said(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|finding| finding.text(Paint::NONE).trim_end().to_owned()).collect()
    }

    #[test]
    fn conditions_that_do_not_hold_have_remedies_and_ready_sums_them_up() {
        let well = policy(&[("Ready", "True"), ("Accepted", "True")], json!([]));
        assert_eq!(said(&of_conditions(&well)), ["ok       conditions: all of them hold"]);
        let ill =
            policy(&[("Ready", "False"), ("Injected", "False"), ("TiersHealthy", "Unknown")], json!([]));
        let said_of_ill = said(&of_conditions(&ill));
        assert_eq!(said_of_ill.len(), 2, "{said_of_ill:?}");
        let injected =
            "failed   conditions: Injected is False (R): about Injected (pods without the sidecar: shop-1)";
        assert!(said_of_ill[0].starts_with(injected), "{said_of_ill:?}");
        assert!(said_of_ill[0].contains("describe cachepolicy shop"), "{said_of_ill:?}");
        assert!(
            said_of_ill[1].starts_with("warning  conditions: TiersHealthy is Unknown"),
            "{said_of_ill:?}"
        );
        let suspended = policy(&[("Ready", "False")], json!([]));
        assert!(said(&of_conditions(&suspended))[0].contains("Ready is False"));
        let unseen = policy(&[], json!([]));
        assert!(said(&of_conditions(&unseen))[0].contains("has not reported"));
    }

    #[test]
    fn linter_warns_of_routes_that_no_request_reaches() {
        let checker = Checker::new(Environment::Cluster);
        let route = |name: &str| json!({"name": name, "match": {"path": "/a"}, "ttl": "1s"});
        assert_eq!(of_linter(&policy(&[], json!([route("a")])), &checker), []);
        let twice = said(&of_linter(&policy(&[], json!([route("a"), route("b")])), &checker));
        assert!(twice.len() == 1 && twice[0].starts_with("warning  lint: spec.routes[1]"), "{twice:?}");
    }

    fn state(sidecars: &[(&str, Value)]) -> PolicyState {
        let of = |(pod, report): &(&str, Value)| {
            let report = serde_json::from_value(report.clone()).ok();
            SidecarState::named(pod, report, Some("h"))
        };
        PolicyState::named("shop", sidecars.iter().map(of).collect())
    }

    #[test]
    fn problems_that_pods_share_are_one_finding() {
        let well = json!({"hash": "h", "state": "serving", "tiers": {"redis": "up"}});
        let findings = said(&of_sidecars(&state(&[("a", well.clone()), ("b", well.clone())])));
        assert_eq!(
            findings,
            ["ok       sidecars: 2 respond, with the current configuration, their tiers and their peers"]
        );
        let ill = json!({
            "hash": "old", "state": "serving", "tiers": {"redis": "down"}, "last_errors": {"redis": "refused"},
            "peers": {"reachable": 0, "unreachable": {"10.0.0.9:24890": "timeout"}},
        });
        let findings =
            said(&of_sidecars(&state(&[("a", ill.clone()), ("b", ill), ("c", Value::Null)]))).join("\n");
        for expected in [
            "peers: pods a, b: no response from 10.0.0.9:24890: timeout",
            "`kubectl -n shop logs c -c larder-sidecar` says why",
            "sidecars: pods a, b: an older configuration is in force",
            "sidecars: pod c: the sidecar does not run",
            "tiers: pods a, b: redis does not respond: refused",
        ] {
            assert!(findings.contains(expected), "no {expected:?} in {findings}");
        }
    }
    #[test]
    fn pods_that_do_not_reach_one_another_for_one_reason_are_one_finding() {
        let cut_off = |address: &str| {
            let peers = json!({"reachable": 0, "unreachable": {address: "timeout"}});
            json!({"hash": "h", "state": "serving", "tiers": {}, "peers": peers})
        };
        let findings =
            said(&of_sidecars(&state(&[("a", cut_off("10.0.0.2:1")), ("b", cut_off("10.0.0.1:1"))])));
        assert_eq!(findings.len(), 1, "{findings:?}");
        let expected = "failed   peers: pods a, b: no response from 10.0.0.1:1, 10.0.0.2:1: timeout";
        assert!(findings[0].starts_with(expected), "{findings:?}");
    }

    #[test]
    fn policy_without_pods_has_one_finding_at_most() {
        let without_pods = |ready: &str| {
            let mut policy = policy(
                &[
                    ("Ready", ready),
                    ("Injected", "Unknown"),
                    ("TiersHealthy", "Unknown"),
                    ("WritesSeen", "True"),
                ],
                json!([]),
            );
            let conditions = policy.status.iter_mut().flat_map(|status| &mut status.conditions);
            conditions.for_each(|condition| condition.reason = NO_PODS.to_owned());
            said(&of_conditions(&policy))
        };
        assert_eq!(without_pods("True"), ["ok       conditions: all of them hold"], "it is scaled to zero");
        let findings = without_pods("False");
        assert!(findings.len() == 1 && findings[0].contains("start the workload"), "{findings:?}");
    }
}
