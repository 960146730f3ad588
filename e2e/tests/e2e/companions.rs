//! `capture.mode: CompanionService`.

use anyhow::ensure;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::api::Patch;
use larder_api::labels;
use larder_crds::ConditionType;
use larder_e2e::{
    Workload, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

fn service(name: &str, ports: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": "app"}, "ports": ports},
    })
}

#[tokio::test]
async fn companion_leads_its_callers_to_the_cache_as_long_as_there_is_one() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let spec = format!("{IN_MEMORY}capture: {{mode: CompanionService}}\n");
        let workload = Workload::deployment("app", 1).target_port(json!(8080));
        let (policy, agent) = sandbox.with_policy("cache", &spec, &workload, 1).await?;
        let captured = policy.condition(ConditionType::TrafficCaptured, "True").await?;
        ensure!(
            captured.reason == "CompanionService" && captured.message.contains("app-cached"),
            "{captured:?}"
        );
        sandbox.event("CompanionCreated").await?;

        agent.reaches("app-cached").await?;
        let filled = agent.get("http://app-cached/items/1").await?;
        ensure!(filled.is_stored(), "it goes past the sidecar: {filled:?}");
        ensure_hit(&agent.get("http://app-cached/items/1").await?)?;
        let plain = agent.get("http://app/items/1").await?;
        ensure!(
            plain.status == 200 && plain.cache_status().is_empty(),
            "not the application itself: {plain:?}"
        );

        let services = sandbox.api::<Service>();
        let version =
            async || -> anyhow::Result<_> { Ok(services.get("app-cached").await?.metadata.resource_version) };
        let before = version().await?;
        // A pod's change has the policy reconciled.
        sandbox.scale("app", 2).await?;
        policy.serves(2).await?;
        ensure!(version().await? == before, "it was written again, although nothing has changed");

        let ports = json!([
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "more", "port": 81, "targetPort": "http", "appProtocol": "http"},
        ]);
        sandbox.apply(&[service("app", ports)]).await?;
        eventually("the companion follows its Service", SHORT_TIMEOUT, async || {
            ensure_hit(&agent.get("http://app-cached:81/items/1").await?)
        })
        .await?;

        // One of somebody else.
        let foreign = service("other-cached", json!([{"port": 80, "targetPort": "http"}]));
        sandbox.apply(&[foreign, service("other", json!([{"port": 80, "targetPort": "http"}]))]).await?;
        let taken = policy.condition(ConditionType::TrafficCaptured, "False").await?;
        ensure!(taken.reason == "NameTaken" && taken.message.contains("other-cached"), "{taken:?}");

        // Without sidecars it leads to the application.
        let out = json!({"spec": {"template": {"metadata": {"labels": {labels::INJECT: "false"}}}}});
        sandbox.api::<Deployment>().patch("app", &Default::default(), &Patch::Merge(out)).await?;
        sandbox.rolled_out("app").await?;
        eventually("the companion leads to the application", SHORT_TIMEOUT, async || {
            let answer = agent.get("http://app-cached/items/1").await?;
            ensure!(answer.status == 200 && answer.cache_status().is_empty(), "{answer:?}");
            Ok(())
        })
        .await?;

        policy.delete().await?;
        eventually("the companion goes with the policy", ROLLOUT_TIMEOUT, async || {
            ensure!(services.get_opt("app-cached").await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        let foreign = services.get("other-cached").await?;
        ensure!(
            foreign.metadata.labels.is_none() && foreign.metadata.owner_references.is_none(),
            "{foreign:?}"
        );
        Ok(())
    })
    .await
}
