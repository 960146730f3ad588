//! Restarts that would do harm do not begin, and the status says why.

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Pod, ResourceQuota},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch},
};
use larder_api::annotations;
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, apply, cluster, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{Policy, has, sidecar_of},
    workload::pod_of,
};
use serde_json::{Value, json};

use super::{
    common::IN_MEMORY,
    workloads::{set_is_ready, start},
};

/// Waits until a restart is refused for a reason that contains `words`, and asserts that no pod was replaced.
async fn is_refused(
    sandbox: &Sandbox,
    policy: &Policy<'_>,
    reason: &str,
    words: &[&str],
) -> anyhow::Result<()> {
    let before = uids(sandbox).await?;
    policy
        .eventually("the restart is refused", SHORT_TIMEOUT, |status| {
            let injected = has(status, ConditionType::Injected, "False")?;
            ensure!(injected.reason == reason, "not {reason}");
            for words in words {
                ensure!(injected.message.contains(words), "it does not say {words:?}");
            }
            Ok(())
        })
        .await?;
    ensure!(uids(sandbox).await? == before, "pods were replaced");
    for deployment in sandbox.api::<Deployment>().list(&Default::default()).await? {
        let status = deployment.status.clone().unwrap_or_default();
        ensure!(status.available_replicas == Some(1), "{} is not available", deployment.name_any());
    }
    set_is_ready(sandbox).await
}

async fn uids(sandbox: &Sandbox) -> anyhow::Result<Vec<String>> {
    let mut uids: Vec<_> = sandbox.pods("app").await?.into_iter().map(|pod| pod.uid).collect();
    uids.sort();
    ensure!(uids.len() == 4, "{} pods", uids.len());
    Ok(uids)
}

/// Deletes a pod and scales a Deployment, and asserts that both get a pod, without the sidecar that the API server refuses.
async fn pods_are_created_for_other_reasons(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = uids(sandbox).await?;
    sandbox.api::<Pod>().delete("set-0", &DeleteParams::default()).await?;
    let scaled = Patch::Merge(json!({"spec": {"replicas": 2}}));
    sandbox.api::<Deployment>().patch("rolling", &Default::default(), &scaled).await?;
    eventually("two pods are new and ready", ROLLOUT_TIMEOUT, async || {
        let pods = sandbox.pods("app").await?;
        let new: Vec<_> = pods.iter().filter(|pod| !before.contains(&pod.uid)).collect();
        ensure!(pods.len() == 5 && new.len() == 2, "{} pods, {} new", pods.len(), new.len());
        for pod in new {
            ensure!(sidecar_of(&pod.object).is_none(), "{} has the sidecar", pod.name);
            let note = &pod.object["metadata"]["annotations"][annotations::SKIPPED];
            let words = note.as_str().and_then(|note| note.strip_prefix("AdmissionRefused: "));
            ensure!(words.is_some_and(|words| words.contains("must specify limits.cpu")), "{note}");
            let containers = pod.object["status"]["containerStatuses"].as_array();
            let is_ready = |container: &Value| container["ready"] == true;
            ensure!(containers.is_some_and(|all| all.iter().all(is_ready)), "{} is not ready", pod.name);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn quota_that_requires_a_limit_restarts_nothing() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
            "spec": {"hard": {"limits.cpu": "2"}}});
        sandbox.apply(&[quota]).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let words = ["must specify limits.cpu", "set sidecar.resources.limits.cpu"];
        is_refused(sandbox, &policy, "AdmissionRefused", &words).await?;
        ensure!(sandbox.event("AdmissionRefused").await?.contains("must specify limits.cpu"));
        pods_are_created_for_other_reasons(sandbox).await?;

        policy.change(json!({"sidecar": {"resources": {"limits": {"cpu": "100m"}}}})).await?;
        policy.serves(5).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn quota_without_room_for_every_sidecar_restarts_nothing_until_it_is_raised() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        // Room for one sidecar of 128 MiB beside the four pods of 64 MiB.
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
            "spec": {"hard": {"limits.memory": "384Mi"}}});
        sandbox.apply(&[quota]).await?;
        let quotas = sandbox.api::<ResourceQuota>();
        eventually("the quota counts the pods", SHORT_TIMEOUT, async || {
            let used = quotas.get("team").await?.status.and_then(|status| status.used).unwrap_or_default();
            ensure!(used.get("limits.memory").is_some_and(|used| used.0 == "256Mi"), "{used:?}");
            Ok(())
        })
        .await?;
        // One workload may take the room for one sidecar; the others are refused.
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy
            .eventually("the other restarts are refused", ROLLOUT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "False")?;
                ensure!(injected.reason == "AdmissionRefused" && status.pods.injected <= 1, "{injected:?}");
                ensure!(injected.message.contains("quota"), "{injected:?}");
                Ok(())
            })
            .await?;
        set_is_ready(sandbox).await?;
        for name in ["recreated", "rolling"] {
            sandbox.rolled_out(name).await?;
        }

        let raised = Patch::Merge(json!({"spec": {"hard": {"limits.memory": "4Gi"}}}));
        quotas.patch("team", &Default::default(), &raised).await?;
        policy.serves(4).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn limit_range_that_refuses_the_sidecar_restarts_nothing() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "team"},
            "spec": {"limits": [{"type": "Container", "max": {"memory": "100Mi"}}]}});
        sandbox.apply(&[range]).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let words = ["maximum memory usage per Container is 100Mi", "lower sidecar.resources"];
        is_refused(sandbox, &policy, "AdmissionRefused", &words).await?;

        let smaller =
            json!({"l1": {"maxSize": "32Mi"}, "sidecar": {"resources": {"limits": {"memory": "96Mi"}}}});
        policy.change(smaller).await?;
        policy.serves(4).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn admission_by_others_that_refuses_the_sidecar_restarts_nothing() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        let name = format!("{}-refuses", sandbox.name);
        let metadata = json!({ "name": name });
        let policy_object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": metadata,
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": sandbox.name}},
                    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                },
                "validations": [{
                    "expression": "!has(object.spec.initContainers) || !object.spec.initContainers.exists(c, c.name == 'larder-sidecar')",
                    "message": "no sidecars here",
                }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let policies = Api::<ValidatingAdmissionPolicy>::all(sandbox.client.clone());
        let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(sandbox.client.clone());
        policies.create(&Default::default(), &serde_json::from_value(policy_object)?).await?;
        bindings.create(&Default::default(), &serde_json::from_value(binding)?).await?;
        let outcome = async {
            let mut probe = pod_of(Workload::deployment("probe", 1).template()?, "probe");
            probe["spec"]["initContainers"] = probe["spec"]["containers"].clone();
            probe["spec"]["initContainers"][0]["name"] = json!("larder-sidecar");
            probe["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
            eventually("the API server refuses sidecars", SHORT_TIMEOUT, async || {
                let refused = apply::dry_run(&sandbox.client, &sandbox.name, &probe).await.err();
                ensure!(refused.is_some_and(|error| format!("{error:#}").contains("no sidecars here")), "not yet");
                Ok(())
            })
            .await?;
            let policy = sandbox.policy("cache", IN_MEMORY).await?;
            is_refused(sandbox, &policy, "AdmissionRefused", &["no sidecars here"]).await
        }
        .await;
        bindings.delete(&name, &DeleteParams::default()).await?;
        policies.delete(&name, &DeleteParams::default()).await?;
        outcome?;
        Policy::of(sandbox, "cache").serves(4).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn restart_waits_for_a_disruption_budget() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let set = Workload::stateful_set("app", 2);
        sandbox.apply(&set.objects()?).await?;
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "app"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "app"}}}});
        sandbox.apply(&[budget]).await?;
        let sets = sandbox.api::<StatefulSet>();
        eventually("the StatefulSet is ready", ROLLOUT_TIMEOUT, async || {
            let status = sets.get("app").await?.status.unwrap_or_default();
            ensure!(status.ready_replicas == Some(2), "{status:?}");
            Ok(())
        })
        .await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let command = format!("kubectl rollout restart statefulset app --namespace {}", sandbox.name);
        policy
            .eventually("the restart waits for the budget", SHORT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "False")?;
                ensure!(injected.reason == "DisruptionBudget", "{injected:?}");
                ensure!(injected.message.contains("PodDisruptionBudget app allows 0"), "{injected:?}");
                ensure!(injected.message.contains(&command), "{injected:?}");
                Ok(())
            })
            .await?;
        for pod in sandbox.pods("app").await? {
            ensure!(sidecar_of(&pod.object).is_none(), "{} was restarted", pod.name);
        }
        let budgets = sandbox.api::<PodDisruptionBudget>();
        let looser = Patch::Merge(json!({"spec": {"minAvailable": 1}}));
        budgets.patch("app", &Default::default(), &looser).await?;
        policy.serves(2).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn operator_may_create_pods_in_dry_runs_only() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let account = format!("--as=system:serviceaccount:{}:larder-operator", cluster::NAMESPACE);
        let create = async |dry_run: &str| {
            let arguments = ["run", "trial", "--image=a", "--namespace", &sandbox.name, &account, dry_run, "--overrides",
                r#"{"spec":{"securityContext":{"runAsNonRoot":true,"runAsUser":1,"seccompProfile":{"type":"RuntimeDefault"}},
                "containers":[{"name":"trial","image":"a","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]}}"#];
            cluster::tool("LARDER_KUBECTL", &arguments).await
        };
        create("--dry-run=server").await?;
        let refused = create("--dry-run=none").await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains("creates pods in dry runs only"), "{refused}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn limits_that_the_api_server_gives_the_sidecar_stay() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // A container without a limit is refused, and gets the default before that.
        let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "team"},
            "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}, "default": {"cpu": "200m"}}]}});
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
            "spec": {"hard": {"limits.cpu": "4"}}});
        sandbox.apply(&[range, quota]).await?;
        start(sandbox).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.serves(4).await?;
        for pod in sandbox.pods("app").await? {
            let sidecar = sidecar_of(&pod.object).context("no sidecar")?;
            ensure!(sidecar["resources"]["limits"]["cpu"] == "200m", "{sidecar}");
        }
        Ok(())
    })
    .await
}
