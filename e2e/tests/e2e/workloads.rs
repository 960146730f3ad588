//! Workloads of each kind under one policy, for tests of restarts.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::StatefulSet;
use larder_e2e::{Sandbox, Workload, eventually, eventually::ROLLOUT_TIMEOUT};
use serde_json::{Value, json};

/// A workload of each way in which pods are replaced: one after another, all at once, and beside the old ones.
pub(crate) fn workloads() -> anyhow::Result<Vec<Value>> {
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
pub(crate) async fn start(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply(&workloads()?).await?;
    sandbox.rolled_out("recreated").await?;
    sandbox.rolled_out("rolling").await?;
    set_is_ready(sandbox).await
}

/// Waits until both pods of the StatefulSet are ready.
pub(crate) async fn set_is_ready(sandbox: &Sandbox) -> anyhow::Result<()> {
    let sets = sandbox.api::<StatefulSet>();
    eventually("the StatefulSet is ready", ROLLOUT_TIMEOUT, async || {
        let status = sets.get("set").await?.status.unwrap_or_default();
        ensure!(status.ready_replicas == Some(2), "{status:?}");
        Ok(())
    })
    .await
}

/// Waits until every workload has all its pods ready.
pub(crate) async fn all_are_ready(sandbox: &Sandbox) -> anyhow::Result<()> {
    set_is_ready(sandbox).await?;
    for name in ["recreated", "rolling"] {
        sandbox.rolled_out(name).await?;
    }
    Ok(())
}
