//! `capture.mode: Redirect`.

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{EnvVar, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, Patch},
};
use larder_api::{names, ports};
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Ask, Sandbox, Workload, alone_in_the_cluster, cluster, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT, seconds},
    exec, in_a_namespace,
    policy::{has, sidecar_of},
    sandbox::RunningPod,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

/// The number that leads around the sidecar of the first target.
const PROBES: u16 = ports::DATA + 4;

/// A policy for the number of a port.
fn redirected() -> String {
    format!("{}capture: {{mode: Redirect}}\n", IN_MEMORY.replace("port: http", "port: 8080"))
}

/// An application whose port has no name, probed at a path that is cached, beside a Service with a numeric `targetPort`.
fn unnamed() -> Workload {
    let probe =
        json!({"httpGet": {"path": "/items/live", "port": 8080}, "periodSeconds": 1, "failureThreshold": 3});
    Workload::deployment("app", 1).target_port(json!(8080)).container(json!({
        "ports": [{"containerPort": 8080}],
        "readinessProbe": probe,
        "livenessProbe": probe,
    }))
}

#[tokio::test]
async fn redirection_captures_every_way_to_a_pod_and_its_probes_pass_beside() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.enforce("privileged").await?;
        let headless = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "peers"},
            "spec": {"clusterIP": "None", "selector": {"app": "app"}, "ports": [{"port": 8080}]},
        });
        sandbox.apply(&[headless]).await?;
        let shared = unnamed().pod(json!({"shareProcessNamespace": true}));
        let (policy, agent) = sandbox.with_policy("cache", &redirected(), &shared, 1).await?;
        let captured = policy.condition(ConditionType::TrafficCaptured, "True").await?;
        ensure!(captured.reason == "Redirect" && captured.message.contains("8080"), "{captured:?}");

        let pod = &sandbox.pods("app").await?[0];
        let first = &pod.object["spec"]["initContainers"][0];
        ensure!(first["name"] == names::REDIRECT, "another container runs before: {first}");
        let direct = pod.app("/items/3");
        for url in ["http://app/items/1", "http://peers:8080/items/2", &direct] {
            let filled = agent.get(url).await?;
            ensure!(filled.is_stored(), "{url} goes past the sidecar: {filled:?}");
            ensure_hit(&agent.get(url).await?)?;
        }

        agent.get("http://app/items/live").await?;
        ensure_hit(&agent.get("http://app/items/live").await?)?;
        more_probes(&agent, pod).await?;
        signal(sandbox, pod, "stop", "/larder-sidecar --listen").await?;
        more_probes(&agent, pod).await.context("while the sidecar hangs")?;
        signal(sandbox, pod, "continue", "/larder-sidecar --listen").await?;

        signal(sandbox, pod, "stop", "/larder-e2e-app serve").await?;
        let pods = sandbox.api::<Pod>();
        eventually("the application that hangs is started again", SHORT_TIMEOUT, async || {
            let status = pods.get(&pod.name).await?.status.unwrap_or_default();
            let app = status.container_statuses.into_iter().flatten().find(|one| one.name == "app");
            let app = app.context("no status of the application")?;
            ensure!(app.restart_count == 1 && app.ready, "{app:?}");
            Ok(())
        })
        .await?;
        answered_from_cache(&agent).await
    })
    .await
}

/// Waits until the Service answers from the cache: endpoints lag behind the pods.
async fn answered_from_cache(agent: &Agent) -> anyhow::Result<()> {
    eventually("the cache answers", SHORT_TIMEOUT, async || {
        ensure_hit(&agent.send(&Ask::get("http://app/items/1").within(seconds(2))).await?)
    })
    .await
}

/// Waits until the application has had more probes.
async fn more_probes(agent: &Agent, pod: &RunningPod) -> anyhow::Result<()> {
    let probes = async || -> anyhow::Result<u64> {
        let calls = agent.get(&format!("http://{}:{PROBES}/calls", pod.ip)).await?.json()?;
        Ok(calls["GET /items/live"].as_u64().unwrap_or_default())
    };
    let before = probes().await?;
    eventually("probes reach the application", SHORT_TIMEOUT, async || {
        let now = probes().await?;
        ensure!(now > before + 1, "there are {now} and were {before}");
        Ok(())
    })
    .await
}

async fn signal(sandbox: &Sandbox, pod: &RunningPod, what: &str, process: &str) -> anyhow::Result<()> {
    let command = ["/larder-e2e-app", "signal", what, process];
    exec::run(&sandbox.api(), &pod.name, "app", &command).await.map(drop)
}

#[tokio::test]
async fn redirection_that_pod_security_forbids_breaks_no_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.apply(&unnamed().objects()?).await?;
        let agent = sandbox.agent().await?;
        sandbox.rolled_out("app").await?;
        let policy = sandbox.policy("cache", &redirected()).await?;
        for condition in [ConditionType::Injected, ConditionType::TrafficCaptured] {
            let refused = policy.condition(condition, "False").await?;
            ensure!(refused.reason == "PodSecurity" && refused.message.contains("restricted"), "{refused:?}");
        }
        let pod = &sandbox.pods("app").await?[0];
        sandbox.api::<Pod>().delete(&pod.name, &DeleteParams::default()).await?;
        let successor = eventually("the pod has a successor", ROLLOUT_TIMEOUT, async || {
            let mut pods = sandbox.pods("app").await?;
            pods.retain(|other| other.uid != pod.uid);
            pods.pop().context("there is none")
        })
        .await?;
        ensure!(sidecar_of(&successor.object).is_none(), "{:?}", successor.object);

        sandbox.enforce("privileged").await?;
        policy.serves(1).await?;
        sandbox.rolled_out("app").await?;
        answered_from_cache(&agent).await
    })
    .await
}

pub(crate) async fn redirection_that_the_chart_does_not_allow_is_refused_with_its_line() -> anyhow::Result<()>
{
    alone_in_the_cluster(async |sandbox| {
        sandbox.enforce("privileged").await?;
        let policy = sandbox.policy("cache", &redirected()).await?;
        sandbox.apply(&unnamed().objects()?).await?;
        let image =
            operators_image(sandbox, None).await?.context("the chart was installed without Redirect")?;
        let refused = async {
            policy
                .eventually("the status names the chart's line", ROLLOUT_TIMEOUT, |status| {
                    for condition in [ConditionType::Injected, ConditionType::TrafficCaptured] {
                        let refused = has(status, condition, "False")?;
                        ensure!(refused.reason == "RedirectDisabled", "{refused:?}");
                        ensure!(refused.message.contains("capture.redirect.enabled=true"), "{refused:?}");
                    }
                    Ok(())
                })
                .await?;
            sandbox.rolled_out("app").await
        }
        .await;
        operators_image(sandbox, Some(image)).await?;
        refused?;
        policy.serves(1).await.map(drop)
    })
    .await
}

/// Sets or removes the operator's image for redirections, waits until it is in force, and returns the former one.
async fn operators_image(sandbox: &Sandbox, image: Option<String>) -> anyhow::Result<Option<String>> {
    const VARIABLE: &str = "LARDER_REDIRECT_IMAGE";
    let deployments = Api::<Deployment>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let spec = deployments.get(names::OPERATOR).await?.spec.context("no spec")?;
    let containers = spec.template.spec.context("no spec of pods")?.containers;
    let is_it = |variable: &&EnvVar| variable.name == VARIABLE;
    let env = containers[0].env.iter().flatten().find(is_it);
    let entry: Value = match &image {
        Some(image) => json!({"name": VARIABLE, "value": image}),
        None => json!({"name": VARIABLE, "$patch": "delete"}),
    };
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": containers[0].name, "env": [entry]}]}}}});
    deployments.patch(names::OPERATOR, &Default::default(), &Patch::Strategic(patch)).await?;
    cluster::operator_is_ready(&sandbox.client).await?;
    Ok(env.and_then(|variable| variable.value.clone()))
}
