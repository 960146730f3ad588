//! A policy that changes while its sidecars run.

use std::time::Instant;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::Patch;
use larder_api::{
    admin::{CacheState, PolicyReport, path},
    config_map, names,
};
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, cluster, eventually,
    eventually::{RELOAD_TIMEOUT, ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    exec, in_a_namespace, policy,
    policy::Policy,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit, get_from, ttl};

#[tokio::test]
async fn a_changed_ttl_is_served_without_a_restart_and_status_waits_for_every_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // A sidecar can be stopped from beside it.
        let workload = Workload::deployment("app", 2).pod(json!({"shareProcessNamespace": true}));
        let (policy, agent) = sandbox.with_policy("cache", IN_MEMORY, &workload, 2).await?;
        let pods = sandbox.pods("app").await?;
        let before = policy.status().await?.config_hash;
        for pod in &pods {
            get_from(&agent, pod, "/items/1").await?;
            let hit = get_from(&agent, pod, "/items/1").await?;
            ensure!(ttl(&hit)? > 60, "{hit:?}");
        }
        let signal = async |what: &str| {
            let command = ["/larder-e2e-app", "signal", what, "/larder-sidecar --listen"];
            exec::run(&sandbox.api::<Pod>(), &pods[1].name, "app", &command).await
        };

        signal("stop").await?;
        let changed = Instant::now();
        let mut routes: Value = serde_yaml::from_str::<Value>(IN_MEMORY)?["routes"].take();
        routes[0]["ttl"] = json!("60s");
        policy.change(json!({"routes": routes})).await?;
        eventually("the changed ttl is served", RELOAD_TIMEOUT, async || {
            let hit = get_from(&agent, &pods[0], "/items/1").await?;
            ensure_hit(&hit)?;
            ensure!(ttl(&hit)? <= 60, "the old ttl: {hit:?}");
            Ok(())
        })
        .await?;
        eprintln!("the changed ttl was served after {:?}", changed.elapsed());
        let status = policy
            .eventually("one of two pods has answered", SHORT_TIMEOUT, |status| {
                ensure!(status.pods.current == 1, "current is not 1");
                policy::has(status, ConditionType::ConfigCurrent, "False").map(drop)
            })
            .await?;
        ensure!(status.config_hash != before, "the hash is the old one: {status:?}");

        signal("continue").await?;
        policy.serves(2).await?;
        let hit = get_from(&agent, &pods[1], "/items/1").await?;
        ensure_hit(&hit)?;
        ensure!(ttl(&hit)? <= 60, "status is ahead of the pod: {hit:?}");
        for pod in sandbox.pods("app").await? {
            ensure!(pods.iter().any(|before| before.uid == pod.uid), "{} is a new pod", pod.name);
            let restarts = pod.object["status"]["initContainerStatuses"][0]["restartCount"].as_u64();
            ensure!(restarts == Some(0), "the sidecar of {} was restarted", pod.name);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_configuration_broken_by_hand_is_kept_out_and_reported() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
        let pods = sandbox.pods("app").await?;
        agent.get("http://app/items/1").await?;
        ensure_hit(&agent.get("http://app/items/1").await?)?;
        let good = configuration(sandbox).await?;

        write_configuration(sandbox, "spec: {routes: [{name: broken, ttl: soon").await?;
        let broken = policy.condition(ConditionType::ConfigCurrent, "False").await?;
        ensure!(broken.message.contains(&pods[0].name), "it does not name the pod: {broken:?}");
        let said: PolicyReport = agent.get(&pods[0].admin(path::POLICY)).await?.read()?;
        let error = said.error.as_deref().context("the sidecar reports no error")?;
        ensure!(broken.message.contains(error), "{broken:?} does not say {error:?}");
        ensure!(said.state == CacheState::Serving, "it serves no more: {said:?}");
        ensure_hit(&agent.get("http://app/items/1").await?)?;
        policy.condition(ConditionType::Ready, "False").await?;

        write_configuration(sandbox, &good).await?;
        policy.serves(1).await?;
        ensure_hit(&agent.get("http://app/items/1").await?)?;
        Ok(())
    })
    .await
}

async fn configuration(sandbox: &Sandbox) -> anyhow::Result<String> {
    let config_map = sandbox.api::<ConfigMap>().get(&names::config_map("cache")).await?;
    config_map.data.and_then(|mut data| data.remove(config_map::DOCUMENT)).context("no document")
}

/// Edits the ConfigMap by hand.
async fn write_configuration(sandbox: &Sandbox, text: &str) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"data": {config_map::DOCUMENT: text}}));
    sandbox.api::<ConfigMap>().patch(&names::config_map("cache"), &Default::default(), &patch).await?;
    Ok(())
}

#[tokio::test]
async fn a_deleted_policy_passes_everything_through_until_the_last_sidecar_is_gone() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // Nothing is rolled, so that what the sidecars do without a policy can be seen.
        let spec = format!("{IN_MEMORY}sidecar: {{rollout: {{strategy: OnCreate}}}}\n");
        let (policy, agent) = sandbox.with_policy("cache", &spec, &Workload::deployment("app", 1), 1).await?;
        let injected = sandbox.pods("app").await?.remove(0);
        agent.get("http://app/items/1").await?;
        ensure_hit(&agent.get("http://app/items/1").await?)?;

        policy.delete().await?;
        eventually("the sidecar passes through", RELOAD_TIMEOUT, async || {
            let answer = agent.get("http://app/items/1").await?;
            ensure!(answer.status == 200 && answer.cache_status().contains("fwd=bypass"), "{answer:?}");
            Ok(())
        })
        .await?;
        let left = sandbox.pods("app").await?;
        ensure!(left.len() == 1 && left[0].uid == injected.uid, "the pod was replaced: {left:?}");
        let config_maps = sandbox.api::<ConfigMap>();
        ensure!(
            config_maps.get_opt(&names::config_map("cache")).await?.is_some(),
            "its ConfigMap went before its sidecar"
        );

        sandbox.api::<Pod>().delete(&injected.name, &Default::default()).await?;
        eventually("nothing of the policy is left", ROLLOUT_TIMEOUT, async || {
            let pods = sandbox.pods("app").await?;
            ensure!(pods.len() == 1 && pods[0].uid != injected.uid, "there is no new pod");
            ensure!(policy::sidecar_of(&pods[0].object).is_none(), "the new pod has a sidecar");
            ensure!(
                config_maps.get_opt(&names::config_map("cache")).await?.is_none(),
                "its ConfigMap is left"
            );
            let secrets = sandbox.api::<Secret>().list(&Default::default()).await?.items;
            ensure!(secrets.is_empty(), "a Secret is left: {:?}", secrets[0].metadata);
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_policy_and_its_deployment_may_come_in_one_apply() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let workload = Workload::deployment("app", 2).container(json!({"args": ["serve"]}));
        let mut objects = workload.objects()?;
        objects.push(policy::manifest("cache", IN_MEMORY)?);
        let documents: Vec<String> = objects.iter().map(serde_yaml::to_string).collect::<Result<_, _>>()?;
        cluster::kubectl_with_input(
            &["apply", "--namespace", &sandbox.name, "--filename", "-"],
            &documents.join("---\n"),
        )
        .await?;
        let agent = sandbox.agent().await?;
        Policy::of(sandbox, "cache").serves(2).await?;
        sandbox.rolled_out("app").await?;
        for pod in sandbox.pods("app").await? {
            get_from(&agent, &pod, "/items/1").await?;
            ensure_hit(&get_from(&agent, &pod, "/items/1").await?)?;
        }
        Ok(())
    })
    .await
}
