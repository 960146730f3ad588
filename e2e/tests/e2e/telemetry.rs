//! Metrics and traces of the sidecars.

use anyhow::Context;
use larder_api::{admin::path, names};
use larder_e2e::{Workload, environment, eventually, eventually::SHORT_TIMEOUT, in_a_namespace, workload};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

#[tokio::test]
async fn metrics_arrive_at_a_collector() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.apply(&collector()?).await?;
        sandbox.rolled_out("collector").await?;
        let endpoint = format!("http://collector.{}:4317", sandbox.name);
        let spec = format!("{IN_MEMORY}telemetry: {{otlp: {{endpoint: \"{endpoint}\"}}}}\n");
        let (_, agent) = sandbox.with_policy("cache", &spec, &Workload::deployment("app", 1), 1).await?;
        for _ in 0..3 {
            agent.get("http://app/items/1").await?;
        }
        ensure_hit(&agent.get("http://app/items/1").await?)?;

        let pod = &sandbox.pods("app").await?[0];
        let scraped = agent.get(&pod.admin(path::METRICS)).await?.body;
        has_series(
            &scraped,
            "larder_requests_total",
            &[("outcome", "hit"), ("route", "item"), ("tier", "l1")],
        )?;
        has_series(&scraped, "larder_requests_total", &[("outcome", "miss"), ("tier", "app")])?;

        eventually("the collector has the sidecar's metrics", SHORT_TIMEOUT, async || {
            let exported = agent.get("http://collector:8889/metrics").await?.body;
            has_series(
                &exported,
                "larder_requests_total",
                &[("outcome", "hit"), ("route", "item"), ("tier", "l1")],
            )?;
            has_series(&exported, "larder_request_duration_seconds_count", &[("outcome", "miss")])?;
            let reporter = [("k8s_pod_name", pod.name.as_str()), ("k8s_namespace_name", &sandbox.name)];
            has_series(&exported, "larder_requests_total", &reporter)?;
            has_series(&exported, "larder_l1_entries", &[("service_name", names::SIDECAR)])
        })
        .await
    })
    .await
}

/// Asserts that there is a series of that name with these labels, whatever its other labels are, above 0.
fn has_series(text: &str, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
    let of_name = || text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let fitting = of_name().find(|line| {
        labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
            && line
                .rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok())
                .is_some_and(|value| value > 0.0)
    });
    fitting.map(drop).with_context(|| {
        format!("no {name} with {labels:?} among:\n{}", of_name().collect::<Vec<_>>().join("\n"))
    })
}

/// An OpenTelemetry Collector that shows in Prometheus' format what it was sent.
fn collector() -> anyhow::Result<Vec<Value>> {
    let config = json!({
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": "0.0.0.0:4317"}}}},
        "exporters": {"prometheus": {
            "endpoint": "0.0.0.0:8889",
            "resource_to_telemetry_conversion": {"enabled": true},
        }},
        "service": {"pipelines": {"metrics": {"receivers": ["otlp"], "exporters": ["prometheus"]}}},
    });
    Ok(vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "collector"},
            "data": {"config.yaml": config.to_string()},
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "collector"},
            "spec": {
                "selector": {"matchLabels": {"app": "collector"}},
                "template": {
                    "metadata": {"labels": {"app": "collector"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "securityContext": workload::restricted_pod(),
                        "containers": [{
                            "name": "collector",
                            "image": environment::variable("LARDER_COLLECTOR_IMAGE")?,
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["--config", "/etc/collector/config.yaml"],
                            "readinessProbe": {"tcpSocket": {"port": 4317}, "periodSeconds": 1},
                            "securityContext": workload::restricted_container(),
                            "volumeMounts": [{"name": "config", "mountPath": "/etc/collector"}],
                        }],
                        "volumes": [{"name": "config", "configMap": {"name": "collector"}}],
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "collector"},
            "spec": {
                "selector": {"app": "collector"},
                "ports": [{"name": "otlp", "port": 4317}, {"name": "metrics", "port": 8889}],
            },
        }),
    ])
}
