//! `examples/records`: Postgres behind an LRU.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use larder_api::{
    admin::{Stats, path},
    names,
};
use larder_e2e::{Ask, Sandbox, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace, users};
use serde_json::Value;

use super::common::ensure_hit;

#[tokio::test]
async fn examples_records_come_from_postgres_once_and_200_users_lose_nothing_in_a_minute()
-> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_policy, agent) = examples::deploy(sandbox, "records", 1).await?;
        let pods = sandbox.pods("app").await?;
        let [pod] = &pods[..] else { anyhow::bail!("not one pod: {pods:?}") };

        let first = agent.get("http://app/data/1").await?;
        ensure!(first.is_stored() && first.cache_status().contains("detail=postgres"), "{first:?}");
        ensure!(first.json()?["value"] == "value 1", "not the row: {first:?}");
        let second = agent.get("http://app/data/1").await?;
        ensure_hit(&second)?;
        ensure!(second.cache_status().contains("detail=l1") && second.body == first.body, "{second:?}");
        let none = agent.get("http://app/data/1001").await?;
        ensure!(none.status == 404, "there is no such record: {none:?}");

        eventually("the log has a line for each step", SHORT_TIMEOUT, async || {
            let lines = messages(sandbox, &pod.name).await?;
            for step in ["request", "hit", "miss", "fetched from postgres"] {
                ensure!(lines.iter().any(|line| line == step), "no line {step:?} in {lines:?}");
            }
            Ok(())
        })
        .await?;

        let load = ["--users=200", "--for=60s", "--pause=1s", "--keys=100", "http://app/data/{n}"];
        let report = users::ask(sandbox, pod, &load).await?;
        report.lost_nothing()?;
        let hits = report.answers.get("hit l1").context("no hit")?;
        let queries = report.answers.get("uri-miss postgres").context("no query")?;
        eprintln!(
            "200 users: {} requests, {} failed, {} a second; from Postgres {} ms, from memory {} ms, {:.0} times as fast",
            report.requests,
            report.failed,
            report.requests_per_second,
            queries.p50_ms,
            hits.p50_ms,
            queries.p50_ms / hits.p50_ms
        );
        ensure!(queries.p50_ms > 2.0 * hits.p50_ms, "memory is not faster: {report:?}");

        let token = sandbox.admin_token("records").await?;
        let ask = Ask::get(&format!("http://app/_larder{}", path::STATS)).token(&token);
        let stats: Stats = agent.send(&ask).await?.read()?;
        eprintln!("stats: {stats:?}");
        let (hits, misses) = (stats.hits, stats.misses);
        ensure!(hits >= hits_of(&report), "hits that are not counted: {stats:?}");
        ensure!((100..=report.requests).contains(&misses), "100 records were asked for: {stats:?}");
        let rate = hits as f64 / (hits + misses) as f64;
        ensure!((stats.hit_rate - rate).abs() < 0.001, "not the rate of these: {stats:?}");
        Ok(())
    })
    .await
}

fn hits_of(report: &users::Report) -> u64 {
    report.count("hit")
}

/// Returns the messages in the sidecar's log.
async fn messages(sandbox: &Sandbox, pod: &str) -> anyhow::Result<Vec<String>> {
    let of_sidecar = LogParams { container: Some(names::SIDECAR.to_owned()), ..Default::default() };
    let log = sandbox.api::<Pod>().logs(pod, &of_sidecar).await?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect())
}
