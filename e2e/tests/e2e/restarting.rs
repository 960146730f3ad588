//! Restarts that would do harm do not begin, and the status says why.

use anyhow::ensure;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, ResourceQuota, Secret},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch},
};
use larder_api::names;
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, apply, cluster, environment, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{Policy, has, sidecar_of},
};
use serde_json::{Value, json};

use super::common::IN_MEMORY;

/// A workload of each way in which pods are replaced: one after another, all at once, and beside the old ones.
fn workloads() -> anyhow::Result<Vec<Value>> {
    let resources =
        json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "50m", "memory": "64Mi"}});
    let fields = || json!({ "resources": resources });
    let labels = || json!({"app": "app"});
    let mut set = Workload::stateful_set("set", 2).container(fields()).labels(labels()).objects()?;
    let mut recreated =
        Workload::deployment("recreated", 1).container(fields()).labels(labels()).objects()?;
    let mut rolling = Workload::deployment("rolling", 1).container(fields()).labels(labels()).objects()?;
    set[0]["spec"]["podManagementPolicy"] = json!("OrderedReady");
    recreated[0]["spec"]["strategy"] = json!({"type": "Recreate"});
    for (name, objects) in [("set", &mut set), ("recreated", &mut recreated), ("rolling", &mut rolling)] {
        let own = json!({"app": "app", "own": name});
        objects[0]["spec"]["selector"] = json!({"matchLabels": own});
        objects[0]["spec"]["template"]["metadata"]["labels"] = own.clone();
        objects[1]["spec"]["selector"] = own;
    }
    Ok([set, recreated, rolling].concat())
}

/// Starts the workloads and waits until they are available.
async fn start(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply(&workloads()?).await?;
    sandbox.rolled_out("recreated").await?;
    sandbox.rolled_out("rolling").await?;
    set_is_ready(sandbox).await
}

async fn set_is_ready(sandbox: &Sandbox) -> anyhow::Result<()> {
    let sets = sandbox.api::<StatefulSet>();
    eventually("the StatefulSet is ready", ROLLOUT_TIMEOUT, async || {
        let status = sets.get("set").await?.status.unwrap_or_default();
        ensure!(status.ready_replicas == Some(2), "{status:?}");
        Ok(())
    })
    .await
}

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

        policy.change(json!({"sidecar": {"resources": {"limits": {"cpu": "100m"}}}})).await?;
        policy.serves(4).await.map(drop)
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
            let mut probe = Workload::deployment("probe", 1).template()?;
            probe["apiVersion"] = json!("v1");
            probe["kind"] = json!("Pod");
            probe["metadata"]["name"] = json!("probe");
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

/// Waits until every workload has all its pods ready.
async fn all_are_ready(sandbox: &Sandbox) -> anyhow::Result<()> {
    set_is_ready(sandbox).await?;
    for name in ["recreated", "rolling"] {
        sandbox.rolled_out(name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rollout_that_no_node_takes_is_undone_and_tried_again_after_a_change() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        let spec = format!("{IN_MEMORY}sidecar: {{resources: {{requests: {{cpu: '100'}}}}}}\n");
        let policy = sandbox.policy("cache", &spec).await?;
        let note = sandbox.event("RolloutUndone").await?;
        ensure!(
            note.contains("no node takes a pod with the sidecar") && note.contains("Insufficient cpu"),
            "{note}"
        );
        let undone = policy
            .eventually("every restart was undone", ROLLOUT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "False")?;
                ensure!(injected.reason == "RolloutUndone", "{injected:?}");
                ensure!(injected.message.contains("2 other workloads"), "{injected:?}");
                ensure!(status.pods.injected == 0 && status.pods.matched == 4, "{status:?}");
                Ok(())
            })
            .await?;
        ensure!(undone.pods.missed == 4, "{undone:?}");
        all_are_ready(sandbox).await?;

        policy.change(json!({"sidecar": {"resources": {"requests": {"cpu": "10m"}}}})).await?;
        policy.serves(4).await?;
        all_are_ready(sandbox).await
    })
    .await
}

#[tokio::test]
async fn sidecar_image_that_is_not_there_costs_one_pod_for_a_while() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        start(sandbox).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.serves(4).await?;
        all_are_ready(sandbox).await?;
        let now = environment::variable("LARDER_SIDECAR_IMAGE")?;
        super::rolling::set_sidecar_image(sandbox, "larder/sidecar:not-there").await?;
        let watched = async {
            // Another namespace may have the workload that is tried first.
            let started = std::time::Instant::now();
            let mut fewest = 4;
            while started.elapsed() < eventually::seconds(45) {
                let pods = sandbox.api::<Pod>().list(&ListParams::default().labels("app=app")).await?;
                fewest = fewest.min(pods.items.iter().filter(|pod| is_ready(pod)).count());
                tokio::time::sleep(eventually::seconds(1)).await;
            }
            ensure!(fewest >= 3, "only {fewest} of 4 pods were ready");
            all_are_ready(sandbox).await?;
            policy
                .eventually("the status says what is wrong", SHORT_TIMEOUT, |status| {
                    let ready = has(status, ConditionType::Ready, "False")?;
                    let says = ready.message.contains("did not start in another workload")
                        || ready.message.contains("image cannot be pulled");
                    ensure!(says, "{ready:?}");
                    Ok(())
                })
                .await
        }
        .await;
        super::rolling::set_sidecar_image(sandbox, &now).await?;
        watched?;
        policy.serves(4).await?;
        all_are_ready(sandbox).await
    })
    .await
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[tokio::test]
async fn deleted_policy_leaves_no_notes_and_names_the_pods_that_it_waits_for() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        start(sandbox).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.injects(&workloads()?[0]["spec"]["template"]).await?;
        let single = Workload::deployment("single", 1).labels(json!({"app": "app", "own": "single"}));
        sandbox.apply(&[pod_of(single.template()?, "single")]).await?;
        policy.serves(5).await?;

        policy.delete().await?;
        let note = sandbox.event("Leftover").await?;
        ensure!(note.contains("single"), "{note}");
        all_are_ready(sandbox).await?;
        sandbox.api::<Pod>().delete("single", &DeleteParams::default()).await?;
        let maps = sandbox.api::<ConfigMap>();
        let secrets = sandbox.api::<Secret>();
        eventually("nothing of the policy is left", ROLLOUT_TIMEOUT, async || {
            ensure!(maps.get_opt(&names::config_map("cache")).await?.is_none(), "the ConfigMap");
            ensure!(secrets.get_opt(&names::admin_secret("cache")).await?.is_none(), "the Secret");
            let mut annotations = sandbox.api::<StatefulSet>().get("set").await?.annotations().clone();
            for name in ["recreated", "rolling"] {
                annotations.extend(sandbox.api::<Deployment>().get(name).await?.annotations().clone());
            }
            let noted: Vec<_> = annotations.keys().filter(|name| name.starts_with("larder.dev/")).collect();
            ensure!(noted.is_empty(), "{noted:?}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn daemon_set_is_restarted_and_other_pods_are_named_with_a_command() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let template =
            |name: &str| Workload::deployment(name, 1).labels(json!({"app": "app", "own": name})).template();
        let daemon = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"},
            "spec": {"selector": {"matchLabels": {"own": "daemon"}}, "template": template("daemon")?},
        });
        sandbox.apply(&[daemon, pod_of(template("single")?, "single")]).await?;
        let daemons = sandbox.api::<DaemonSet>();
        let pods = eventually("the DaemonSet is ready", ROLLOUT_TIMEOUT, async || {
            let status = daemons.get("daemon").await?.status.unwrap_or_default();
            let wanted = status.desired_number_scheduled;
            ensure!(wanted > 0 && status.number_ready == wanted, "{status:?}");
            Ok(wanted)
        })
        .await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let status = policy
            .eventually("the DaemonSet has the sidecar", ROLLOUT_TIMEOUT, |status| {
                ensure!(status.pods.injected == pods && status.pods.ready == pods, "not in all of its pods");
                ensure!(status.missed_pods == ["single"], "{:?}", status.missed_pods);
                let injected = has(status, ConditionType::Injected, "False")?;
                ensure!(!injected.message.contains("being restarted"), "{injected:?}");
                Ok(())
            })
            .await?;
        let message = has(&status, ConditionType::Injected, "False")?.message.clone();
        let command = message.split('`').nth(1).unwrap_or_default();
        ensure!(command.starts_with("kubectl get pod single"), "{message}");
        // The two halves of the command.
        let get = ["get", "pod", "single", "--namespace", &sandbox.name, "--output", "yaml"];
        let single = cluster::tool("LARDER_KUBECTL", &get).await?;
        cluster::kubectl_with_input(&["replace", "--force", "--filename", "-"], &single).await?;
        policy.serves(pods + 1).await?;

        policy.delete().await?;
        eventually("the DaemonSet has lost the sidecar", ROLLOUT_TIMEOUT, async || {
            for pod in sandbox.pods("app").await? {
                ensure!(pod.name == "single" || sidecar_of(&pod.object).is_none(), "{} has one", pod.name);
            }
            Ok(())
        })
        .await
    })
    .await
}

/// Returns the pod that a template describes.
fn pod_of(mut template: Value, name: &str) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template
}

#[tokio::test]
async fn policy_whose_workloads_want_no_pods_is_ready() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let none = policy.condition(ConditionType::Ready, "False").await?;
        ensure!(none.reason == "NoPods" && none.message.contains("the pods of no workload"), "{none:?}");

        let mut of_job = Workload::deployment("app", 1).template()?;
        of_job["spec"]["restartPolicy"] = json!("Never");
        let timed = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 3 29 2 *", "jobTemplate": {"spec": {"template": of_job}}},
        });
        sandbox.apply(&[timed]).await?;
        let between = policy.condition(ConditionType::Ready, "True").await?;
        ensure!(between.reason == "NoPods" && between.message.contains("CronJob nightly"), "{between:?}");

        let mut objects = Workload::deployment("app", 0).objects()?;
        sandbox.apply(&objects).await?;
        policy
            .eventually("the Deployment that is scaled to zero is named", SHORT_TIMEOUT, |status| {
                let ready = has(status, ConditionType::Ready, "True")?;
                ensure!(ready.message.contains("Deployment app wants no pods"), "{ready:?}");
                Ok(())
            })
            .await?;

        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
            "spec": {"hard": {"pods": "0"}}});
        sandbox.apply(&[quota]).await?;
        let quotas = sandbox.api::<ResourceQuota>();
        eventually("the quota is in force", SHORT_TIMEOUT, async || {
            let hard = quotas.get("team").await?.status.and_then(|status| status.hard).unwrap_or_default();
            ensure!(hard.contains_key("pods"), "{hard:?}");
            Ok(())
        })
        .await?;
        objects[0]["spec"]["replicas"] = json!(1);
        sandbox.apply(&objects).await?;
        policy
            .eventually("pods that cannot be created are told from none", SHORT_TIMEOUT, |status| {
                let ready = has(status, ConditionType::Ready, "False")?;
                ensure!(ready.reason == "PodsNotCreated", "{ready:?}");
                ensure!(ready.message.contains("exceeded quota"), "{ready:?}");
                Ok(())
            })
            .await
            .map(drop)
    })
    .await
}
