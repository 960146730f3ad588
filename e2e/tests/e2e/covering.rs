//! Writes through pods that have no sidecar.

use std::time::Instant;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use larder_api::labels;
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Ask, Sandbox, Workload, alone_in_the_cluster, eventually,
    eventually::{RELOAD_TIMEOUT, ROLLOUT_TIMEOUT, seconds},
    examples, in_a_namespace,
    policy::{Policy, sidecar_of},
    sandbox::RunningPod,
    workload::pod_of,
};
use serde_json::json;

use super::{
    common::{IN_MEMORY, ensure_hit, get_from},
    operating::scale_operator,
};

/// A policy that relies on seeing every write, and restarts nothing.
fn with_rules(unseen: &str) -> String {
    format!(
        "{IN_MEMORY}sidecar: {{rollout: {{strategy: OnCreate}}}}\ninvalidation:\n  {unseen}onWrite:\n  - match: {{path: \"/items/{{id}}\"}}\n    \
         purge: {{tags: [\"item:{{id}}\"]}}\n"
    )
}

/// Writes a user of the shop through the Service and reads it, through the Service and from every sidecar, until the policy is
/// in force in both pods and a few times more.
///
/// # Errors
/// A response that is older than the last write.
async fn write_and_read(
    sandbox: &Sandbox,
    agent: &Agent,
    policy: &Policy<'_>,
    label: &str,
) -> anyhow::Result<u32> {
    let mut hits = 0;
    let mut rounds_left = 5;
    let begun = Instant::now();
    for round in 0.. {
        ensure!(begun.elapsed() < ROLLOUT_TIMEOUT, "the policy is not in force after {round} rounds");
        let name = format!("{label} {round}");
        let put = Ask::new("PUT", "http://shop/api/users/1")
            .json(&json!({"name": name, "email": "ada@shop.example"}))
            .within(seconds(5));
        // A pod that ends may lose a write; what it was about is written again in the next round.
        if !agent.send(&put).await.is_ok_and(|written| written.status == 200) {
            continue;
        }
        let mut urls = vec!["http://shop/api/users/1".to_owned(); 2];
        urls.extend(running(sandbox).await.iter().map(|pod| pod.url("/api/users/1")));
        for url in urls {
            let read = Ask::get(&url).header("host", "shop").within(seconds(5));
            let Ok(answer) = agent.send(&read).await else { continue };
            if answer.status != 200 {
                continue;
            }
            hits += u32::from(answer.is_hit());
            ensure!(answer.json()?["name"] == name.as_str(), "{url} is stale in round {round}: {answer:?}");
        }
        let status = policy.status().await;
        let is_ready = status.is_ok_and(|status| {
            status.pods.matched == 2 && larder_e2e::policy::has(&status, ConditionType::Ready, "True").is_ok()
        });
        if is_ready {
            rounds_left -= 1;
        }
        if rounds_left == 0 {
            break;
        }
    }
    Ok(hits)
}

/// The shop's pods that have the sidecar and an address.
async fn running(sandbox: &Sandbox) -> Vec<RunningPod> {
    let mut pods = sandbox.pods("shop").await.unwrap_or_default();
    pods.retain(|pod| sidecar_of(&pod.object).is_some());
    pods
}

#[tokio::test]
async fn first_rollout_and_a_policy_made_again_serve_nothing_stale_under_writes() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        for file in ["secrets.yaml", "redis.yaml", "postgres.yaml", "shop.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        let agent = sandbox.agent().await?;
        sandbox.rolled_out("shop").await?;
        eventually("the plain shop answers", ROLLOUT_TIMEOUT, async || {
            let answer = agent.get("http://shop/api/users/1").await?;
            ensure!(answer.status == 200 && answer.cache_status().is_empty(), "{answer:?}");
            Ok(())
        })
        .await?;

        let policy = Policy::of(sandbox, "shop");
        sandbox.apply(&examples::shop("policy.yaml", &sandbox.name)?).await?;
        let hits = write_and_read(sandbox, &agent, &policy, "first").await?;
        ensure!(hits > 0, "the cache was never in use, so this proves nothing");
        policy.condition(ConditionType::WritesSeen, "True").await?;

        policy.delete().await?;
        tokio::time::sleep(seconds(2)).await;
        sandbox.apply(&examples::shop("policy.yaml", &sandbox.name)?).await?;
        let hits = write_and_read(sandbox, &agent, &policy, "again").await?;
        ensure!(hits > 0, "the cache was never in use again, so this proves nothing");
        Ok(())
    })
    .await
}

/// Waits until a pod's sidecar passes everything through, or answers from the cache.
async fn passes(agent: &Agent, pod: &RunningPod, wanted: bool) -> anyhow::Result<()> {
    let what = if wanted { "the sidecar passes everything through" } else { "the sidecar serves again" };
    eventually(what, RELOAD_TIMEOUT, async || {
        let answer = get_from(agent, pod, "/items/1").await?;
        let waits = answer.cache_status().contains("detail=waiting-for-pods");
        ensure!(waits == wanted && (wanted || answer.is_hit()), "{answer:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn plain_pod_that_appears_later_is_reported_and_treated_as_the_policy_chose() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let workload = Workload::deployment("app", 2);
        let (policy, agent) = sandbox.with_policy("cache", &with_rules(""), &workload, 2).await?;
        policy.condition(ConditionType::WritesSeen, "True").await?;
        let pods = sandbox.pods("app").await?;
        get_from(&agent, &pods[0], "/items/1").await?;
        let before = get_from(&agent, &pods[0], "/items/1").await?;
        ensure_hit(&before)?;

        let mut plain = pod_of(workload.template()?, "plain");
        plain["metadata"]["labels"][labels::INJECT] = json!("false");
        sandbox.apply(&[plain]).await?;
        let made = Instant::now();
        policy.condition(ConditionType::WritesSeen, "False").await?;
        eprintln!("the status named the plain pod after {:?}", made.elapsed());
        passes(&agent, &pods[0], true).await?;
        eprintln!("the first sidecar passed everything through after {:?}", made.elapsed());
        passes(&agent, &pods[1], true).await?;
        let told = sandbox.event("UnseenWrites").await?;
        ensure!(told.contains("pod plain") && told.contains("opted out"), "{told}");
        let ready = policy.condition(ConditionType::Ready, "False").await?;
        ensure!(ready.reason == "WaitingForPods", "{ready:?}");

        policy.change(json!({"invalidation": {"unseenWrites": "Serve"}})).await?;
        passes(&agent, &pods[0], false).await?;
        let after = get_from(&agent, &pods[0], "/items/1").await?;
        ensure!(
            after.json()?["call"] != before.json()?["call"],
            "what was stored before is served: {after:?}"
        );
        policy.condition(ConditionType::Ready, "True").await?;
        let unseen = policy.condition(ConditionType::WritesSeen, "False").await?;
        ensure!(unseen.message.contains("may be older"), "{unseen:?}");

        policy.change(json!({"invalidation": {"unseenWrites": "PassThrough"}})).await?;
        passes(&agent, &pods[0], true).await?;
        sandbox.api::<Pod>().delete("plain", &Default::default()).await?;
        policy.serves(2).await?;
        passes(&agent, &pods[0], false).await?;
        policy.condition(ConditionType::WritesSeen, "True").await.map(drop)
    })
    .await
}

pub(crate) async fn pods_made_while_the_webhook_was_away_are_reported_and_interrupt() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", &with_rules(""), &Workload::deployment("app", 1), 1).await?;
        let injected = sandbox.pods("app").await?.pop().context("no pod")?;
        get_from(&agent, &injected, "/items/1").await?;
        ensure_hit(&get_from(&agent, &injected, "/items/1").await?)?;

        let replicas = scale_operator(sandbox, 0).await?;
        let scaled = sandbox.scale("app", 2).await;
        scale_operator(sandbox, replicas).await?;
        scaled?;
        let unseen = policy.condition(ConditionType::WritesSeen, "False").await?;
        ensure!(unseen.message.contains("unseenWrites: Serve"), "no remedy: {unseen:?}");
        passes(&agent, &injected, true).await?;

        let pods = sandbox.pods("app").await?;
        let plain = pods.iter().find(|pod| sidecar_of(&pod.object).is_none()).context("no plain pod")?;
        policy.injects(&Workload::deployment("app", 1).template()?).await?;
        sandbox.api::<Pod>().delete(&plain.name, &Default::default()).await?;
        policy.serves(2).await?;
        passes(&agent, &injected, false).await
    })
    .await
}
