//! Connections that reach the sidecar, and those that do not.

use anyhow::{Context, ensure};
use larder_api::{admin::path, annotations};
use larder_crds::ConditionType;
use larder_e2e::{Workload, eventually, eventually::SHORT_TIMEOUT, in_a_namespace, policy::sidecar_of};
use serde_json::json;

use super::common::IN_MEMORY;

#[tokio::test]
async fn a_protocol_that_is_not_http_passes_through_the_captured_port() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::talking("app"), 1).await?;
        let heard = eventually("the Service answers", SHORT_TIMEOUT, async || {
            agent.talk("app:80", &["HELO agent", "\u{16}\u{3}\u{1} not a letter", "QUIT"]).await
        })
        .await?;
        ensure!(
            heard == ["220 ready", "250 HELO agent", "250 \u{16}\u{3}\u{1} not a letter", "250 QUIT"],
            "another conversation: {heard:?}"
        );
        let pod = &sandbox.pods("app").await?[0];
        ensure!(sidecar_of(&pod.object).is_some(), "the sidecar was not in between");
        let metrics = agent.get(&pod.admin(path::METRICS)).await?.body;
        let spliced = metrics.lines().find(|line| line.starts_with("larder_spliced_connections_total"));
        let count =
            spliced.and_then(|line| line.rsplit(' ').next()).context("spliced connections aren't counted")?;
        ensure!(count.parse::<f64>()? >= 1.0, "{count} spliced connections");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_is_left_alone_with_the_reason() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // The standard that the other tests are held to forbids host networking.
        sandbox.enforce("privileged").await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.injects(&Workload::deployment("app", 1).template()?).await?;
        let workload = Workload::deployment("app", 1).pod(json!({"hostNetwork": true})).container(json!({
            "args": ["serve", "--port=18080"],
            "ports": [{"name": "http", "containerPort": 18080}],
        }));
        sandbox.apply(&workload.objects()?).await?;
        sandbox.rolled_out("app").await?;

        let pod = &sandbox.pods("app").await?[0];
        ensure!(sidecar_of(&pod.object).is_none(), "it was injected");
        let skipped = pod.object["metadata"]["annotations"][annotations::SKIPPED].as_str();
        ensure!(skipped.is_some_and(|text| text.starts_with("HostNetwork: ")), "{skipped:?}");
        let injected = policy.condition(ConditionType::Injected, "False").await?;
        ensure!(injected.reason == "HostNetwork" && injected.message.contains("hostNetwork"), "{injected:?}");
        let message = sandbox.event("Skipped").await?;
        ensure!(message.contains("HostNetwork") && message.contains(&pod.name), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_service_with_a_numeric_target_port_is_reported_as_not_captured() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let workload = Workload::deployment("app", 1).target_port(json!(8080));
        sandbox.apply(&workload.objects()?).await?;
        let agent = sandbox.agent().await?;
        sandbox.rolled_out("app").await?;

        let captured = policy.condition(ConditionType::TrafficCaptured, "False").await?;
        ensure!(captured.message.contains("app") && captured.message.contains("targetPort"), "{captured:?}");
        let message = sandbox.event(&captured.reason).await?;
        ensure!(message.contains("targetPort"), "{message}");
        agent.reaches("app").await?;
        let answer = agent.get("http://app/items/1").await?;
        ensure!(answer.status == 200, "the application is not reached: {answer:?}");

        // The remedy that it names.
        sandbox.apply(&workload.target_port(json!("http")).objects()?).await?;
        policy.condition(ConditionType::TrafficCaptured, "True").await?;
        Ok(())
    })
    .await
}
