//! Requests that are served from the cache, and those that are not.

use std::time::Duration;

use anyhow::ensure;
use larder_e2e::{Ask, Workload, cluster, eventually, in_a_namespace, load::Load};
use serde_json::json;

use super::common::{IN_MEMORY, calls, ensure_hit, ensure_not_hit};

#[tokio::test]
async fn the_second_request_is_a_hit_and_the_application_is_called_once() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;

        let first = agent.get("http://app/items/1?size=1000").await?;
        ensure!(first.is_stored(), "not a miss that was stored: {first:?}");
        let second = agent.get("http://app/items/1?size=1000").await?;
        ensure_hit(&second)?;
        ensure!(second.cache_status().contains("detail=l1"), "not from memory: {second:?}");
        ensure!(second.body == first.body, "another body: {second:?}");
        ensure!(second.headers.contains_key("age"), "a stored answer says its age: {second:?}");
        ensure!(first.json()?["host"] == "app", "the application did not see the client's Host: {first:?}");

        let other = agent.get("http://app/items/1?size=10").await?;
        ensure!(other.is_miss(), "another query is another key: {other:?}");
        let elsewhere = agent.get("http://app/elsewhere").await?;
        ensure!(elsewhere.cache_status().contains("no-route"), "no route matches: {elsewhere:?}");

        let pods = sandbox.pods("app").await?;
        let calls = calls(&agent, &pods).await?;
        ensure!(calls["GET /items/1"] == 2, "once for each query: {calls:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn nocache_neither_reads_nor_stores() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;

        for expected in 1..=2 {
            let answer = agent.get("http://app/items/1?nocache=true").await?;
            ensure!(answer.cache_status().contains("fwd=bypass"), "not bypassed: {answer:?}");
            ensure!(answer.json()?["call"] == expected, "not the application's answer: {answer:?}");
        }
        let plain = agent.get("http://app/items/1").await?;
        ensure!(plain.is_stored(), "nothing was stored by those that bypassed: {plain:?}");
        let bypassing = agent.get("http://app/items/1?nocache=true").await?;
        ensure!(bypassing.json()?["call"] == 4, "what is stored was read: {bypassing:?}");
        let again = agent.get("http://app/items/1").await?;
        ensure_hit(&again)?;
        ensure!(again.json()?["call"] == 3, "what bypasses was stored: {again:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn response_that_must_not_be_shared_is_not_stored() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;

        for header in ["Cache-Control:no-store", "Cache-Control:private", "Set-Cookie:id=7", "Vary:*"] {
            let url = format!("http://app/items/1?header={header}");
            for _ in 0..2 {
                ensure_not_hit(&agent.get(&url).await?)?;
            }
        }
        for (name, value) in
            [("cookie", "id=7"), ("authorization", "Bearer secret"), ("x-forwarded-user", "ada")]
        {
            let url = format!("http://app/items/{name}");
            let personal = agent.send(&Ask::get(&url).header(name, value)).await?;
            ensure_not_hit(&personal)?;
            let first = agent.get(&url).await?;
            ensure!(first.is_stored(), "an answer to a person was stored, or keeps others out: {first:?}");
            let personal = agent.send(&Ask::get(&url).header(name, value)).await?;
            ensure_not_hit(&personal)?;
            ensure_hit(&agent.get(&url).await?)?;
        }
        for status in [404, 500] {
            let url = format!("http://app/items/1?status={status}");
            for call in 1..=2 {
                let answer = agent.get(&url).await?;
                ensure!(answer.status == status && !answer.is_hit(), "call {call}: {answer:?}");
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn columns_show_ratio_and_rate_within_10_s() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let columns = async || {
            let arguments = ["get", "cachepolicy", "cache", "--namespace", &sandbox.name];
            let shown = cluster::tool("LARDER_KUBECTL", &arguments).await?;
            let row = |line: Option<&str>| -> Vec<String> {
                line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
            };
            let mut lines = shown.lines();
            Ok::<_, anyhow::Error>((row(lines.next()), row(lines.next())))
        };
        let (names, before) = columns().await?;
        ensure!(names == ["NAME", "PODS", "READY", "HIT%", "RATE", "CAPTURE", "AGE"], "{names:?}");
        ensure!(before[1..3] == ["2", "True"], "{before:?}");

        let load = Load::start(&agent, "http://app/items/1").await?;
        eventually("the columns show the load", Duration::from_secs(10), async || {
            let (_, shown) = columns().await?;
            let number = |at: usize| shown.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            ensure!(number(3) > 90.0 && number(4) > 10.0, "{shown:?}");
            Ok(())
        })
        .await?;
        ensure!(load.lost().await? == 0, "requests were lost");

        let before = policy.status().await?;
        policy.change(json!({"suspend": true})).await?;
        eventually("the status is of the changed policy", Duration::from_secs(10), async || {
            let status = policy.status().await?;
            ensure!(status.observed_generation > before.observed_generation, "{status:?}");
            ensure!(status.config_hash != before.config_hash, "{status:?}");
            Ok(())
        })
        .await
    })
    .await
}
