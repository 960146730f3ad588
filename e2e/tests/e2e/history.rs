//! The traces of a restart: its change cause, the writer of each field, and `kubectl rollout undo`.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use larder_api::{annotations, names};
use larder_e2e::{Sandbox, Workload, cluster, eventually, eventually::ROLLOUT_TIMEOUT, in_a_namespace};
use serde_json::json;

use super::common::IN_MEMORY;

/// Runs `kubectl rollout` on a Deployment and returns what it prints.
async fn rollout(sandbox: &Sandbox, verb: &str, deployment: &str) -> anyhow::Result<String> {
    let object = format!("deployment/{deployment}");
    cluster::tool("LARDER_KUBECTL", &["rollout", verb, &object, "--namespace", &sandbox.name]).await
}

/// Waits until the operator has removed its notes of a restart.
async fn without_notes(sandbox: &Sandbox, deployment: &str) -> anyhow::Result<Deployment> {
    let deployments = sandbox.api::<Deployment>();
    eventually("the notes of the restart are gone", ROLLOUT_TIMEOUT, async || {
        let found = deployments.get(deployment).await?;
        let noted = found.annotations().keys().find(|name| name.starts_with("larder.dev/roll-"));
        ensure!(noted.is_none(), "{noted:?} is there");
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn rollout_history_shows_the_cause_and_undo_keeps_the_sidecar() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let labels = json!({"team": "shop"});
        let mut objects = Workload::deployment("app", 1).labels(labels.clone()).objects()?;
        let mut noted = Workload::deployment("noted", 1).labels(labels).objects()?;
        noted[0]["metadata"]["annotations"] = json!({annotations::CHANGE_CAUSE: "release 7"});
        objects.extend(noted);
        sandbox.apply(&objects).await?;
        let policy = sandbox.policy("cache", &IN_MEMORY.replace("app: app", "team: shop")).await?;
        policy.serves(2).await?;

        let app = without_notes(sandbox, "app").await?;
        ensure!(!app.annotations().contains_key(annotations::CHANGE_CAUSE), "{:?}", app.annotations());
        let history = rollout(sandbox, "history", "app").await?;
        ensure!(history.contains("Larder: pods have no sidecar"), "{history}");
        let restarts = |deployment: &Deployment| {
            let managers = deployment.managed_fields().iter().filter(|entry| {
                let fields = serde_json::to_string(&entry.fields_v1).unwrap_or_default();
                fields.contains(annotations::RESTARTED_AT)
            });
            managers.filter_map(|entry| entry.manager.clone()).collect::<Vec<_>>()
        };
        ensure!(restarts(&app) == [names::FIELD_MANAGER], "{:?}", app.managed_fields());

        let noted = without_notes(sandbox, "noted").await?;
        let cause = noted.annotations().get(annotations::CHANGE_CAUSE).context("no change cause")?;
        ensure!(cause == "release 7", "the user's change cause is now {cause}");

        rollout(sandbox, "undo", "app").await?;
        sandbox.rolled_out("app").await?;
        policy.serves(2).await?;
        let undone = without_notes(sandbox, "app").await?;
        let template = undone.spec.unwrap_or_default().template.metadata.unwrap_or_default();
        let again = template.annotations.unwrap_or_default().contains_key(annotations::RESTARTED_AT);
        ensure!(!again, "the pods of the earlier revision had the sidecar, and were restarted");
        Ok(())
    })
    .await
}
