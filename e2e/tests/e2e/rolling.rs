//! Rollouts, suspension and deletion under load: nothing is lost.
//!
//! The application has no `preStop` and dies at SIGTERM, but for the pods that Larder has not yet touched: no rollout of
//! those loses nothing by itself, so they linger.

use anyhow::{bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Sandbox, Timeline, Workload, alone_in_the_cluster, cluster, environment, eventually,
    eventually::{RELOAD_TIMEOUT, ROLLOUT_TIMEOUT, SHORT_TIMEOUT, seconds},
    in_a_namespace,
    load::Load,
    policy::{self, Policy, sidecar_of},
};
use serde_json::json;

use super::common::{IN_MEMORY, ensure_hit};

/// Half of what it asks for is in the cache after a moment.
const URL: &str = "http://app/items/{n}";

/// Runs a step under load, waits until the pods that it replaced are gone, and asserts that nothing was lost.
async fn under_load(
    sandbox: &Sandbox,
    agent: &Agent,
    name: &str,
    step: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let timeline = Timeline::of(sandbox, "app");
    let load = Load::start(agent, URL).await?;
    // The load has begun when its requests are counted.
    eventually("the load has begun", SHORT_TIMEOUT, async || {
        let pods = sandbox.pods("app").await?;
        let calls = super::common::calls(agent, &pods).await?;
        ensure!(calls.values().sum::<u64>() >= 50, "{calls:?}");
        Ok(())
    })
    .await?;
    step().await?;
    sandbox.rolled_out("app").await?;
    sandbox.pods_left("app", 2).await?;
    tokio::time::sleep(seconds(1)).await;
    let outcome = load.lost_nothing(name).await;
    if outcome.is_err() {
        timeline.print();
    }
    outcome
}

/// The same application without its patience: only Larder's drain saves it from now on.
async fn lose_patience(sandbox: &Sandbox, policy: &Policy<'_>) -> anyhow::Result<()> {
    sandbox.apply(&Workload::deployment("app", 2).objects()?).await?;
    sandbox.rolled_out("app").await?;
    policy.serves(2).await.map(drop)
}

#[tokio::test]
async fn a_rollout_without_larder_is_seen_to_lose_requests() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let mut workload = Workload::deployment("app", 2);
        sandbox.apply(&workload.objects()?).await?;
        let agent = sandbox.agent().await?;
        sandbox.rolled_out("app").await?;
        agent.reaches("app").await?;
        // A request is lost only if it meets a pod that is gone before the proxies know: not in every rollout.
        for version in 1..=5 {
            let load = Load::start(&agent, URL).await?;
            workload = workload.labels(json!({"version": version.to_string()}));
            sandbox.apply(&workload.objects()?).await?;
            sandbox.rolled_out("app").await?;
            sandbox.pods_left("app", 2).await?;
            if load.lost().await? > 0 {
                return Ok(());
            }
        }
        bail!("five rollouts lost no request, so that the loads of the other tests prove nothing");
    })
    .await
}

#[tokio::test]
async fn injecting_and_taking_back_lose_nothing() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let lingering =
            Workload::deployment("app", 2).lingering(5).pod(json!({"terminationGracePeriodSeconds": 10}));
        sandbox.apply(&lingering.objects()?).await?;
        let agent = sandbox.agent().await?;
        sandbox.rolled_out("app").await?;
        agent.reaches("app").await?;

        under_load(sandbox, &agent, "inject", async || {
            sandbox.policy("cache", IN_MEMORY).await?.serves(2).await.map(drop)
        })
        .await?;
        let policy = Policy::of(sandbox, "cache");
        agent.get("http://app/items/1").await?;
        under_load(sandbox, &agent, "a rollout of its own", async || lose_patience(sandbox, &policy).await)
            .await?;
        under_load(sandbox, &agent, "un-inject by deleting the policy", async || {
            policy.delete().await?;
            eventually("the sidecars are gone", ROLLOUT_TIMEOUT, async || {
                for pod in sandbox.pods("app").await? {
                    ensure!(sidecar_of(&pod.object).is_none(), "{} has one", pod.name);
                }
                Ok(())
            })
            .await
        })
        .await?;
        let plain = agent.get("http://app/items/1").await?;
        ensure!(plain.status == 200 && plain.cache_status().is_empty(), "a cache still answers: {plain:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn suspending_and_resuming_lose_nothing() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let pods = sandbox.pods("app").await?;
        let load = Load::start(&agent, URL).await?;
        eventually("the cache is in use", SHORT_TIMEOUT, async || {
            ensure_hit(&agent.get("http://app/items/1").await?)
        })
        .await?;

        policy.change(json!({"suspend": true})).await?;
        for pod in &pods {
            eventually("the sidecar passes through", RELOAD_TIMEOUT, async || {
                let answer = super::common::get_from(&agent, pod, "/items/1").await?;
                ensure!(answer.status == 200 && answer.cache_status().contains("suspended"), "{answer:?}");
                Ok(())
            })
            .await?;
        }
        policy
            .eventually("both pods have said that they are suspended", SHORT_TIMEOUT, |status| {
                ensure!(status.pods.current == 2, "current is not 2");
                let ready = policy::has(status, ConditionType::Ready, "False")?;
                ensure!(ready.reason == "Suspended", "{ready:?}");
                Ok(())
            })
            .await?;
        policy.change(json!({"suspend": false})).await?;
        for pod in &pods {
            let mut first = true;
            eventually("the sidecar caches again", RELOAD_TIMEOUT, async || {
                let answer = super::common::get_from(&agent, pod, "/items/once").await?;
                let before_suspension = first && answer.is_hit();
                first = false;
                ensure!(!before_suspension, "what was stored before was kept: {answer:?}");
                ensure_hit(&answer)
            })
            .await?;
        }
        policy.serves(2).await?;
        load.lost_nothing("suspend and resume").await?;
        for pod in sandbox.pods("app").await? {
            ensure!(pods.iter().any(|before| before.uid == pod.uid), "{} is a new pod", pod.name);
        }
        Ok(())
    })
    .await
}

pub(crate) async fn a_changed_sidecar_image_loses_nothing() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let (now, next) = (
            environment::variable("LARDER_SIDECAR_IMAGE")?,
            environment::variable("LARDER_SIDECAR_IMAGE_NEXT")?,
        );
        let changed = under_load(sandbox, &agent, "image change", async || {
            set_sidecar_image(sandbox, &next).await?;
            every_pod_has_image(sandbox, &next).await?;
            policy.serves(2).await.map(drop)
        })
        .await;
        let restored = under_load(sandbox, &agent, "image change back", async || {
            set_sidecar_image(sandbox, &now).await?;
            every_pod_has_image(sandbox, &now).await?;
            policy.serves(2).await.map(drop)
        })
        .await;
        changed.and(restored)
    })
    .await
}

/// Changes the sidecar's image by an upgrade of the chart.
pub(crate) async fn set_sidecar_image(sandbox: &Sandbox, image: &str) -> anyhow::Result<()> {
    let (repository, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    let values = format!("image.sidecar.repository={repository},image.sidecar.tag={tag}");
    cluster::tool(
        "LARDER_HELM",
        &[
            "upgrade",
            "larder",
            "charts/larder",
            "--namespace",
            cluster::NAMESPACE,
            "--reuse-values",
            "--set",
            &values,
            "--wait",
            "--timeout",
            "120s",
        ],
    )
    .await?;
    cluster::operator_is_ready(&sandbox.client).await
}

async fn every_pod_has_image(sandbox: &Sandbox, image: &str) -> anyhow::Result<()> {
    eventually(&format!("every pod has {image}"), ROLLOUT_TIMEOUT, async || {
        let pods = sandbox.api::<Pod>().list(&kube::api::ListParams::default().labels("app=app")).await?;
        ensure!(!pods.items.is_empty(), "no pods");
        for pod in pods {
            let pod = serde_json::to_value(pod)?;
            let found = sidecar_of(&pod).map(|sidecar| &sidecar["image"]);
            ensure!(found.is_some_and(|found| found == image), "{} has {found:?}", pod["metadata"]["name"]);
        }
        Ok(())
    })
    .await
}
