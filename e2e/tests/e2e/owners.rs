//! Owners of pods besides Deployments, StatefulSets and DaemonSets.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PostParams},
};
use larder_api::names;
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, cluster, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{Policy, has, has_sidecar},
    workload::pod_of,
};
use serde_json::{Value, json};

use super::common::IN_MEMORY;

const DEFINITION: &str = "rollouts.argoproj.io";

/// A ReplicaSet of these pods.
fn replica_set(name: &str, replicas: u32, labels: &Value) -> anyhow::Result<Value> {
    let mut template = Workload::deployment("app", 1).template()?;
    template["metadata"]["labels"] = labels.clone();
    Ok(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}}))
}

/// Waits until so many pods of the application are ready.
async fn pods_are_ready(sandbox: &Sandbox, count: usize) -> anyhow::Result<()> {
    eventually("the pods are ready", ROLLOUT_TIMEOUT, async || {
        let pods = sandbox.pods("app").await?;
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let ready = pods.iter().filter(|pod| is_ready(&pod.object)).count();
        ensure!(pods.len() == count && ready == count, "{ready} of {} pods", pods.len());
        Ok(())
    })
    .await
}

/// Waits until the condition `Injected` is false and says this.
pub(super) async fn says(policy: &Policy<'_>, words: &[&str]) -> anyhow::Result<()> {
    policy
        .eventually(&format!("the status says {words:?}"), SHORT_TIMEOUT, |status| {
            let injected = has(status, ConditionType::Injected, "False")?;
            for words in words {
                ensure!(injected.message.contains(words), "it does not say {words:?}");
            }
            Ok(())
        })
        .await
        .map(drop)
}

#[tokio::test]
async fn pods_that_no_rollout_replaces_are_named_with_the_command() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy_of = |app: &str| IN_MEMORY.replace("app: app", &format!("app: {app}"));
        sandbox.apply(&[replica_set("bare", 1, &json!({"app": "app"}))?]).await?;
        let mut alone = pod_of(Workload::deployment("alone", 1).template()?, "alone");
        alone["metadata"]["labels"] = json!({"app": "alone"});
        let mut template = Workload::deployment("job", 1).template()?;
        template["spec"]["restartPolicy"] = json!("Never");
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"template": template}});
        let mut timed = Workload::deployment("timed", 1).template()?;
        timed["spec"]["restartPolicy"] = json!("Never");
        let timed = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "timed"},
            "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": timed}}}});
        sandbox.apply(&[alone, job, timed, replica_set("idle", 0, &json!({"app": "idle"}))?]).await?;
        pods_are_ready(sandbox, 1).await?;

        let bare = sandbox.policy("bare", &policy_of("app")).await?;
        let pod = sandbox.pods("app").await?.remove(0).name;
        let command = format!("`kubectl delete pod {pod} --namespace {}`", sandbox.name);
        says(&bare, &["pods of a ReplicaSet are not restarted", &command]).await?;
        let alone = sandbox.policy("alone", &policy_of("alone")).await?;
        says(&alone, &["pod alone has no owner", "kubectl replace --force"]).await?;
        let job = sandbox.policy("job", &policy_of("job")).await?;
        says(&job, &["pods of a Job are not restarted", "the next Job gets the sidecar by itself"]).await?;
        start_next_job(sandbox, &job).await?;
        for (name, words) in [("timed", "CronJob timed has no pods between its runs"), ("idle", "ReplicaSet idle wants no pods")] {
            let policy = sandbox.policy(name, &policy_of(name)).await?;
            let ready = policy.condition(ConditionType::Ready, "True").await?;
            ensure!(ready.reason == "NoPods" && ready.message.contains(words), "{ready:?}");
        }
        next_job_completes_and_is_left_alone(sandbox).await?;
        // The command does what it says.
        sandbox.api::<Pod>().delete(&pod, &Default::default()).await?;
        bare.serves(1).await.map(drop)
    })
    .await
}

/// Starts a Job whose pod ends by itself, and gets the sidecar.
async fn start_next_job(sandbox: &Sandbox, policy: &Policy<'_>) -> anyhow::Result<()> {
    let arguments = json!(["load", "--url=http://127.0.0.1:8080/", "--duration=1"]);
    let ends = json!({"args": arguments, "readinessProbe": null});
    let mut template = Workload::deployment("job", 1).container(ends).template()?;
    template["spec"]["restartPolicy"] = json!("Never");
    policy.injects(&template).await?;
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "next"},
        "spec": {"backoffLimit": 0, "template": template}});
    sandbox.apply(&[job]).await
}

/// Waits until that Job is complete, and requires that its one pod had the sidecar and that the operator wrote nothing of it.
async fn next_job_completes_and_is_left_alone(sandbox: &Sandbox) -> anyhow::Result<()> {
    let jobs = sandbox.api::<Job>();
    let job = eventually("the Job is complete", ROLLOUT_TIMEOUT, async || {
        let job = jobs.get("next").await?;
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_complete = conditions.into_iter().any(|one| one.type_ == "Complete" && one.status == "True");
        ensure!(is_complete, "{:?}", job.status);
        Ok(job)
    })
    .await?;
    let status = job.status.clone().unwrap_or_default();
    ensure!(status.succeeded == Some(1) && status.failed.unwrap_or(0) == 0, "{status:?}");
    let is_operator = |manager: &String| manager == names::FIELD_MANAGER;
    let written = job.managed_fields().iter().any(|entry| entry.manager.as_ref().is_some_and(is_operator));
    ensure!(!written, "the operator wrote something of it: {:?}", job.metadata);
    let pods = sandbox.api::<Pod>().list(&ListParams::default().labels("job-name=next")).await?.items;
    ensure!(pods.len() == 1, "it had {} pods", pods.len());
    ensure!(has_sidecar(&serde_json::to_value(&pods[0])?), "its pod had no sidecar");
    Ok(())
}

/// Has the cluster serve Argo Rollouts. Their controller cannot be had here.
pub(super) async fn serve_rollouts(sandbox: &Sandbox) -> anyhow::Result<()> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION, "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"}},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": {"plural": "rollouts", "singular": "rollout", "kind": "Rollout", "listKind": "RolloutList"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": anything}}],
        },
    });
    let definitions = Api::<CustomResourceDefinition>::all(sandbox.client.clone());
    definitions.create(&PostParams::default(), &serde_json::from_value(definition)?).await?;
    let rollouts = rollouts(&sandbox.client, &sandbox.name);
    eventually("the kind is served", SHORT_TIMEOUT, async || {
        rollouts.list(&Default::default()).await?;
        Ok(())
    })
    .await
}

/// Takes the kind away again, if it is there.
pub(super) async fn stop_serving_rollouts(sandbox: &Sandbox) -> anyhow::Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(sandbox.client.clone());
    match definitions.delete(DEFINITION, &Default::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => Ok(outcome.map(drop)?),
    }
}

/// Creates a Rollout of an application, and what its controller would create.
pub(super) async fn apply_rollout(
    sandbox: &Sandbox,
    name: &str,
    app: &str,
    replicas: u32,
) -> anyhow::Result<()> {
    let mut set = replica_set(
        &format!("{name}-h1"),
        replicas,
        &json!({"app": app, "rollouts-pod-template-hash": "h1"}),
    )?;
    let mut template = set["spec"]["template"].clone();
    template["metadata"]["labels"] = json!({"app": app});
    let rollout = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}}, "template": template,
            "strategy": {"canary": {"maxUnavailable": 1}}},
        "status": {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas, "currentPodHash": "h1"}});
    sandbox.apply(&[rollout]).await?;
    let rollout = sandbox.raw("argoproj.io/v1alpha1", "Rollout", name).await?;
    let owner = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": name, "uid": rollout.uid(), "controller": true});
    set["metadata"]["ownerReferences"] = json!([owner]);
    sandbox.apply(&[set]).await
}

/// Requires that the operator's account changes nothing of a Rollout but what it writes in a restart.
async fn is_confined(sandbox: &Sandbox, name: &str) -> anyhow::Result<()> {
    let rollouts = rollouts(&cluster::client_of_operator().await?, &sandbox.name);
    let attempts = [
        ("replicas", json!({"spec": {"replicas": 7}})),
        (
            "the template",
            json!({"spec": {"template": {"metadata": {"annotations": {"larder.dev/restarted-at": "now"}}}}}),
        ),
        ("a label", json!({"metadata": {"labels": {"app": "other"}}})),
        ("an annotation", json!({"metadata": {"annotations": {"example.com/team": "other"}}})),
        ("the status", json!({"status": {"currentPodHash": "other"}})),
    ];
    for (what, patch) in attempts {
        match rollouts.patch(name, &Default::default(), &Patch::Merge(patch)).await {
            Ok(_) => anyhow::bail!("not refused: {what}"),
            Err(error) => ensure!(
                error
                    .to_string()
                    .contains("changes nothing of a Rollout but annotations of larder.dev and restartAt"),
                "{what}: {error:#}"
            ),
        }
    }
    Ok(())
}

/// The test deletes pods that are older than `restartAt`, as the controller of Argo Rollouts does.
pub(crate) async fn argo_rollout_is_restarted_by_its_own_field() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        serve_rollouts(sandbox).await?;
        let outcome = restarted_by_its_own_field(sandbox).await;
        stop_serving_rollouts(sandbox).await?;
        outcome
    })
    .await
}

async fn restarted_by_its_own_field(sandbox: &Sandbox) -> anyhow::Result<()> {
    apply_rollout(sandbox, "web", "app", 2).await?;
    pods_are_ready(sandbox, 2).await?;
    is_confined(sandbox, "web").await?;

    let policy = sandbox.policy("cache", IN_MEMORY).await?;
    says(&policy, &["Rollout web is being restarted"]).await?;
    let rollouts = rollouts(&sandbox.client, &sandbox.name);
    let restart_at = eventually("the Rollout is told to restart", SHORT_TIMEOUT, async || {
        let rollout = rollouts.get("web").await?;
        let at = rollout.data["spec"]["restartAt"].as_str().context("no restartAt")?.to_owned();
        ensure!(rollout.annotations().contains_key("larder.dev/roll-attempts"), "{:?}", rollout.metadata);
        ensure!(
            rollout.data["spec"]["template"]["metadata"] == json!({"labels": {"app": "app"}}),
            "another revision"
        );
        Ok(at)
    })
    .await?;
    let at: Timestamp = restart_at.parse()?;
    for pod in sandbox.pods("app").await? {
        let created = sandbox.api::<Pod>().get(&pod.name).await?.creation_timestamp().context("no time")?;
        ensure!(created.0 < at, "the pod is as new as the restart");
        sandbox.api::<Pod>().delete(&pod.name, &Default::default()).await?;
    }
    pods_are_ready(sandbox, 2).await?;
    let status = json!({"status": {"restartedAt": restart_at}});
    rollouts.patch("web", &Default::default(), &Patch::Merge(status)).await?;
    policy.serves(2).await?;
    ensure!(sandbox.pods("app").await?.iter().all(|pod| has_sidecar(&pod.object)), "a pod has no sidecar");
    eventually("the annotations are gone", ROLLOUT_TIMEOUT, async || {
        let rollout = rollouts.get("web").await?;
        ensure!(!rollout.annotations().contains_key("larder.dev/roll-attempts"), "{:?}", rollout.metadata);
        ensure!(rollout.data["spec"]["restartAt"] == restart_at.as_str(), "it was restarted again");
        Ok(())
    })
    .await?;

    // Paused, it is left to its owner, with the command.
    rollouts.patch("web", &Default::default(), &Patch::Merge(json!({"spec": {"paused": true}}))).await?;
    policy.change(json!({"sidecar": {"resources": {"limits": {"memory": "160Mi"}}}})).await?;
    policy
        .eventually("the status names the command", SHORT_TIMEOUT, |status| {
            let injected = has(status, ConditionType::Injected, "True")?;
            let command = format!("kubectl patch rollouts.argoproj.io web --namespace {}", sandbox.name);
            ensure!(injected.message.contains(&command), "{injected:?}");
            Ok(())
        })
        .await
        .map(drop)
}

fn rollouts(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Rollout");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, "rollouts"))
}
