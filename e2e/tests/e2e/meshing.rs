//! Pods with the proxy of a mesh. Istio and Linkerd themselves cannot be had here: see `larder_e2e::mesh`.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use larder_api::{admin::path, names};
use larder_crds::ConditionType;
use larder_e2e::{
    Ask, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT, seconds},
    examples, exec, in_a_namespace, mesh,
    sandbox::RunningPod,
};
use serde_json::{Value, json};

use super::common::ensure_hit;

/// The headers by which a proxy tells the application the client's identity do not count for one of the routes.
const POLICY: &str = r#"
selector: {matchLabels: {tier: meshed}}
targets: [{port: http}]
routes:
- name: item
  match: {path: "/items/{id}"}
  ttl: 300s
  tags: ["item:{id}"]
  key: {ignoreHeaders: [x-forwarded-client-cert, l5d-client-id]}
- name: items
  match: {path: /items}
  ttl: 300s
l2:
  redis: {urlFrom: {secretKeyRef: {name: shop-redis, key: url}}, timeout: 250ms}
"#;

/// Returns a container's status.
fn status_of<'p>(pod: &'p Value, name: &str) -> Option<&'p Value> {
    let lists = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array());
    lists.into_iter().flatten().flatten().find(|status| status["name"] == name)
}

/// Asserts that the admin port is exempt from the mesh's rules, and that they are in force before the sidecar starts.
fn ensure_in_place(pod: &RunningPod) -> anyhow::Result<()> {
    let init = pod.object["spec"]["initContainers"].as_array().context("no init containers")?;
    let last = init.last().context("no init containers")?;
    ensure!(last["name"] == names::SIDECAR, "the sidecar is not the last: {init:?}");
    let rules = init.iter().find(|one| one["name"].as_str().is_some_and(|name| name.ends_with("-init")));
    let arguments = &rules.context("no rules")?["args"];
    let ports = arguments.as_array().into_iter().flatten().filter_map(|one| one.as_str());
    let lists = ports.filter(|one| one.split(',').any(|port| port == "24890")).count();
    ensure!(lists == 2, "the admin port is not exempt in both directions: {arguments}");
    Ok(())
}

#[tokio::test]
async fn pods_of_meshes_are_cached_behind_the_proxy_in_both_orders_of_webhooks() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        for file in ["secrets.yaml", "redis.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        let client = mesh::start(sandbox).await?;
        let policy = sandbox.policy("cache", POLICY).await?;
        let workloads: Vec<_> = mesh::INJECTIONS.iter().map(mesh::Injection::workload).collect();
        policy.injects(&workloads[0].template()?).await?;
        for workload in &workloads {
            sandbox.apply(&workload.objects()?).await?;
        }
        let agent = sandbox.agent().await?;
        policy.serves(4).await?;
        policy.condition(ConditionType::TiersHealthy, "True").await?;

        let get = |name: &str, path: &str| Ask::get(&format!("{client}{path}")).header("host", name);
        let mut pods = Vec::new();
        for injection in &mesh::INJECTIONS {
            let name = injection.name;
            let pod = sandbox.pods(name).await?.pop().with_context(|| format!("no pod of {name}"))?;
            ensure_in_place(&pod).with_context(|| name.to_owned())?;
            let plain = agent.get(&pod.url("/items/1")).await;
            ensure!(
                plain.as_ref().map_or(true, |answer| answer.status == 403),
                "{name}: no mTLS is asked for: {plain:?}"
            );
            eventually("the Service answers in the mesh", SHORT_TIMEOUT, async || {
                let answer = agent.send(&get(name, "/healthz")).await?;
                ensure!(answer.status == 200, "{name}: {answer:?}");
                Ok(())
            })
            .await?;
            let first = agent.send(&get(name, "/items/1")).await?;
            ensure!(first.is_stored(), "{name}: {first:?}");
            ensure_hit(&agent.send(&get(name, "/items/1")).await?).with_context(|| name.to_owned())?;
            let identified = agent.send(&get(name, "/items")).await?;
            ensure!(
                identified.status == 200 && identified.cache_status().contains("detail=credentials"),
                "{name}: the client's identity does not reach the sidecar: {identified:?}"
            );
            pods.push(pod);
        }

        // The purge reaches the other pods by way of Redis, which their proxies connect them to.
        let token = sandbox.admin_token("cache").await?;
        let purge =
            Ask::new("POST", &pods[0].admin(path::PURGE)).json(&json!({"tags": ["item:1"]})).token(&token);
        let purged = agent.send(&purge).await?;
        ensure!(purged.status == 200, "not purged: {purged:?}");
        for injection in &mesh::INJECTIONS {
            let answer = agent.send(&get(injection.name, "/items/1")).await?;
            ensure!(answer.status == 200 && !answer.is_hit(), "{}: stale: {answer:?}", injection.name);
        }

        let api = sandbox.api::<Pod>();
        let signal = async |what: &str| {
            for pod in &pods {
                let command = ["/larder-e2e-app", "signal", what, "/larder-e2e-app serve"];
                exec::run(&api, &pod.name, "app", &command).await?;
            }
            anyhow::Ok(())
        };
        let readiness = async |wanted: bool, deadline: Duration| {
            for pod in &pods {
                eventually("the kubelet's probes reach the application", deadline, async || {
                    let object = serde_json::to_value(api.get(&pod.name).await?)?;
                    let app = status_of(&object, "app").context("no status")?;
                    ensure!(app["ready"] == wanted, "{}: {app}", pod.name);
                    let sidecar = status_of(&object, names::SIDECAR).context("no status")?;
                    ensure!(
                        sidecar["ready"] == true && sidecar["restartCount"] == 0,
                        "{}: {sidecar}",
                        pod.name
                    );
                    Ok(())
                })
                .await?;
            }
            anyhow::Ok(())
        };
        readiness(true, SHORT_TIMEOUT).await?;
        signal("stop").await?;
        readiness(false, seconds(30)).await?;
        signal("continue").await?;
        readiness(true, seconds(30)).await?;
        policy
            .eventually("the policy is in force again", ROLLOUT_TIMEOUT, |status| {
                ensure!(status.pods.ready == 4 && status.pods.current == 4, "not in all pods");
                Ok(())
            })
            .await
            .map(drop)
    })
    .await
}
