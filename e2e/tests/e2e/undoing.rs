//! Restarts that cannot end are undone, and what is left behind has a name.

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, ResourceQuota, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use larder_api::{annotations, names};
use larder_crds::{CachePolicy, ConditionType};
use larder_e2e::{
    Workload, alone_in_the_cluster, cluster, environment, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{has, sidecar_of},
    workload::pod_of,
};
use serde_json::json;

use super::{
    common::IN_MEMORY,
    workloads::{all_are_ready, start, workloads},
};

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

        // A restart by the user is tried like another template, and ends in the same way.
        let arguments = ["rollout", "restart", "statefulset", "set", "--namespace", &sandbox.name];
        cluster::tool("LARDER_KUBECTL", &arguments).await?;
        let sets = sandbox.api::<StatefulSet>();
        eventually("the StatefulSet is tried again", ROLLOUT_TIMEOUT, async || {
            let template = sets.get("set").await?.spec.map(|spec| spec.template).unwrap_or_default();
            let annotations = template.metadata.and_then(|metadata| metadata.annotations).unwrap_or_default();
            ensure!(!annotations.contains_key(annotations::WITHHELD), "{annotations:?}");
            Ok(())
        })
        .await?;

        policy.change(json!({"sidecar": {"resources": {"requests": {"cpu": "10m"}}}})).await?;
        policy.serves(4).await?;
        all_are_ready(sandbox).await
    })
    .await
}

#[tokio::test]
async fn pod_that_comes_to_be_refused_is_created_without_the_sidecar() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let limits = json!({"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}});
        let app = Workload::stateful_set("app", 1).container(limits).lingering(5);
        sandbox.apply(&app.pod(json!({"terminationGracePeriodSeconds": 10})).objects()?).await?;
        let sets = sandbox.api::<StatefulSet>();
        let is_ready = async || {
            let status = sets.get("app").await?.status.unwrap_or_default();
            ensure!(status.ready_replicas == Some(1), "{status:?}");
            Ok(())
        };
        eventually("the application is ready", ROLLOUT_TIMEOUT, is_ready).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let pods = sandbox.api::<Pod>();
        eventually("the old pod is on its way out", SHORT_TIMEOUT, async || {
            let pod = pods.get("app-0").await?;
            ensure!(pod.metadata.deletion_timestamp.is_some(), "it is not");
            Ok(())
        })
        .await?;
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
            "spec": {"hard": {"limits.cpu": "4"}}});
        sandbox.apply(&[quota]).await?;

        let refused = policy
            .eventually("the next restart is refused", ROLLOUT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "False")?;
                ensure!(injected.reason == "AdmissionRefused", "{injected:?}");
                ensure!(status.pods.matched == 1, "the workload has no pod yet");
                Ok(())
            })
            .await?;
        let message = &has(&refused, ConditionType::Injected, "False")?.message;
        ensure!(message.contains("must specify limits.cpu"), "{message}");
        eventually("the application is ready again", ROLLOUT_TIMEOUT, is_ready).await?;
        let pod = &sandbox.pods("app").await?[0];
        ensure!(sidecar_of(&pod.object).is_none(), "the pod has the sidecar, which the quota refuses");

        policy
            .change(json!({"sidecar": {"resources": {"limits": {"cpu": "100m", "memory": "128Mi"}}}}))
            .await?;
        policy.serves(1).await.map(drop)
    })
    .await
}

pub(crate) async fn sidecar_image_that_is_not_there_costs_one_pod_for_a_while() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        start(sandbox).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.serves(4).await?;
        all_are_ready(sandbox).await?;
        let now = environment::variable("LARDER_SIDECAR_IMAGE")?;
        super::rolling::set_sidecar_image(sandbox, "larder/sidecar:not-there").await?;
        let watched = async {
            // Another namespace may have the workload that is tried first.
            let policies = Api::<CachePolicy>::all(sandbox.client.clone());
            eventually("a status names the image", SHORT_TIMEOUT, async || {
                let all = policies.list(&ListParams::default()).await?.items;
                let mut conditions = all.iter().filter_map(|policy| policy.status.as_ref());
                let named = conditions.any(|status| {
                    has(status, ConditionType::ConfigCurrent, "False")
                        .is_ok_and(|current| current.reason == "ImageNotPulled")
                });
                ensure!(named, "none of {} policies", all.len());
                Ok(())
            })
            .await?;
            let started = std::time::Instant::now();
            let mut fewest = 4;
            while started.elapsed() < eventually::seconds(15) {
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
        let set = Workload::stateful_set("app", 1).objects()?.remove(0);
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "app"},
            "spec": {"template": of_job}});
        for object in [objects.remove(0), set, job] {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            sandbox.apply(&[object]).await?;
            policy
                .eventually("pods that cannot be created are told from none", SHORT_TIMEOUT, |status| {
                    let ready = has(status, ConditionType::Ready, "False")?;
                    ensure!(ready.reason == "PodsNotCreated", "{ready:?}");
                    ensure!(ready.message.contains(&format!("{kind} app")), "{ready:?}");
                    ensure!(ready.message.contains("exceeded quota"), "{ready:?}");
                    Ok(())
                })
                .await?;
            let delete = ["delete", &kind, "app", "--wait=false", "--namespace", &sandbox.name];
            cluster::tool("LARDER_KUBECTL", &delete).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rollout_that_does_not_progress_is_the_users_and_is_named() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let mut objects = Workload::deployment("app", 1).objects()?;
        sandbox.apply(&objects).await?;
        sandbox.rolled_out("app").await?;
        objects[0]["spec"]["progressDeadlineSeconds"] = json!(2);
        objects[0]["spec"]["template"]["spec"]["containers"][0]["image"] = json!("larder/e2e-app:not-there");
        sandbox.apply(&objects).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy
            .eventually("the user's rollout is named", SHORT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "False")?;
                let named = injected.message.contains("Deployment app (ReplicaSet");
                ensure!(named && injected.message.contains("which does not progress"), "{injected:?}");
                ensure!(injected.reason == "Waiting", "{injected:?}");
                Ok(())
            })
            .await?;
        // It is of the time when the policy began to wait, when the rollout may still have been in progress.
        let event = sandbox.event("Waiting").await?;
        ensure!(event.contains("Deployment app") && event.contains("restarted after a rollout"), "{event}");
        let undo = ["rollout", "undo", "deployment/app", "--namespace", &sandbox.name];
        cluster::tool("LARDER_KUBECTL", &undo).await?;
        policy.serves(1).await.map(drop)
    })
    .await
}
