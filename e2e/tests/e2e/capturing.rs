//! Connections that reach the sidecar, and those that do not.

use anyhow::{Context, ensure};
use larder_api::{admin::path, annotations, ports};
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Workload, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::sidecar_of,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

/// Asserts that a path is answered out of the cache, in the end, by each of these addresses.
async fn ensure_cached(agent: &Agent, addresses: &[String]) -> anyhow::Result<()> {
    for address in addresses {
        eventually(&format!("{address} is served from the cache"), SHORT_TIMEOUT, async || {
            ensure_hit(&agent.get(&format!("http://{address}/items/1")).await?)
        })
        .await?;
    }
    Ok(())
}

/// Asserts that an address leads to an application without a sidecar.
async fn ensure_plain(agent: &Agent, address: &str) -> anyhow::Result<()> {
    let answer = agent.get(&format!("http://{address}/items/1")).await?;
    ensure!(answer.status == 200 && answer.cache_status().is_empty(), "{address}: {answer:?}");
    Ok(())
}

/// Returns the targets that a message says to write, as YAML.
fn targets_of(message: &str) -> anyhow::Result<Value> {
    let line = message.split('`').find(|part| part.starts_with("targets: ")).context(message.to_owned())?;
    Ok(serde_yaml::from_str(line)?)
}

/// The application, which takes its port from a variable.
fn by_variable() -> Workload {
    Workload::deployment("app", 1).target_port(json!(8080)).container(json!({
        "args": ["serve", "--port=$(PORT)"],
        "env": [{"name": "PORT", "value": "8080"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
    }))
}

#[tokio::test]
async fn application_with_a_port_variable_is_captured_whichever_way_it_is_reached() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let workload = by_variable();
        sandbox.apply(&workload.objects()?).await?;
        sandbox
            .apply(&[json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"},
            "spec": {"clusterIP": "None", "selector": {"app": "app"}, "ports": [{"port": 8080}]}})])
            .await?;
        let agent = sandbox.agent().await?;

        // The numeric targetPort is reported with the line that captures it.
        let bypassed = policy.condition(ConditionType::TrafficCaptured, "False").await?;
        ensure!(bypassed.reason == "NumericTargetPort", "{bypassed:?}");
        ensure!(bypassed.message.contains("`targetPort: http`"), "{bypassed:?}");
        ensure!(bypassed.message.contains("Auto chose NamedPort"), "{bypassed:?}");
        ensure!(
            policy.status().await?.capture.as_deref() == Some("NamedPort"),
            "{:?}",
            policy.status().await?
        );
        policy.change(targets_of(&bypassed.message)?).await?;
        let captured = policy.condition(ConditionType::TrafficCaptured, "True").await?;
        ensure!(captured.reason == "PortVariable", "{captured:?}");
        ensure!(captured.message.contains("Auto chose PortVariable"), "{captured:?}");
        let status = policy.serves(1).await?;
        ensure!(status.capture.as_deref() == Some("PortVariable"), "{status:?}");
        sandbox.rolled_out("app").await?;
        sandbox.pods_left("app", 1).await?;

        let pod = &sandbox.pods("app").await?[0];
        let addresses = ["app:80".to_owned(), "peers:8080".to_owned(), format!("{}:8080", pod.ip)];
        ensure_cached(&agent, &addresses).await?;

        // Probes reach the application, which has another number.
        let app = &pod.object["spec"]["containers"][0];
        for probe in ["readinessProbe", "livenessProbe"] {
            ensure!(app[probe]["httpGet"]["port"] == ports::APPLICATION, "{app}");
        }
        ensure_plain(&agent, &format!("{}:{}", pod.ip, ports::APPLICATION)).await?;

        // Without the policy the workload has its port back.
        policy.delete().await?;
        eventually("the application has its port back", ROLLOUT_TIMEOUT, async || {
            let pod = sandbox.pods("app").await?.pop().context("there is no pod")?;
            for address in ["app:80".to_owned(), format!("{}:8080", pod.ip)] {
                ensure_plain(&agent, &address).await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn application_with_a_port_argument_is_captured_or_left_alone_with_the_reason() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = IN_MEMORY.replace(
            "[{port: http}]",
            "[{port: 8080, portFrom: {argument: --port}}]\ncapture: {mode: PortVariable}",
        );
        // Nothing lists the port.
        let workload = |args: Value| {
            Workload::deployment("app", 1).target_port(json!(8080)).container(json!({
                "args": args,
                "ports": [],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
            }))
        };
        let listed = workload(json!(["serve", "--port", "8080"]));
        let (policy, agent) = sandbox.with_policy("cache", &policy, &listed, 1).await?;
        let pod = &sandbox.pods("app").await?[0];
        ensure_cached(&agent, &["app:80".to_owned(), format!("{}:8080", pod.ip)]).await?;
        ensure_plain(&agent, &format!("{}:{}", pod.ip, ports::APPLICATION)).await?;

        // Without the argument there is nothing to replace: the pod goes on without a sidecar.
        let other = workload(json!(["serve"])).container(json!({"ports": [{"containerPort": 8080}]}));
        sandbox.apply(&other.objects()?).await?;
        sandbox.rolled_out("app").await?;
        let injected = policy.condition(ConditionType::Injected, "False").await?;
        ensure!(injected.reason == "PortNotVariable", "{injected:?}");
        ensure!(injected.message.contains("has the argument --port by itself"), "{injected:?}");
        let pod = &sandbox.pods("app").await?[0];
        let skipped = pod.object["metadata"]["annotations"][annotations::SKIPPED].as_str();
        ensure!(skipped.is_some_and(|text| text.starts_with("PortNotVariable: ")), "{skipped:?}");
        ensure_plain(&agent, &format!("{}:8080", pod.ip)).await
    })
    .await
}

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
