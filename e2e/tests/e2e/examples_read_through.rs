//! `examples/read-through`: memory and Redis, then Postgres, then an API of others, whose answers Postgres keeps.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use larder_api::admin::path;
use larder_e2e::{
    Agent, Ask, Sandbox, eventually, eventually::SHORT_TIMEOUT, examples, exec, in_a_namespace,
    policy::Policy, users,
};
use serde_json::{Value, json};

use super::common::ensure_hit;

#[tokio::test]
async fn examples_read_through_persists_the_api_response_in_postgres_once() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (policy, agent) = examples::deploy(sandbox, "read-through", 2).await?;

        let first = agent.get("http://app/products/7").await?;
        ensure!(
            first.is_stored() && first.cache_status().contains("detail=http"),
            "not from the API: {first:?}"
        );
        let none = agent.get("http://app/products/999").await?;
        ensure!(none.status == 404, "there is no such product: {none:?}");
        eventually("the product is in Postgres", SHORT_TIMEOUT, async || {
            ensure!(rows(sandbox).await? == (1, 1), "it is not");
            Ok(())
        })
        .await?;
        let kept = after_a_purge(sandbox, &agent, "/products/7").await?;
        ensure!(kept.cache_status().contains("detail=postgres"), "not from Postgres: {kept:?}");
        ensure!(kept.json()? == first.json()?, "not what the API said: {kept:?}");
        eventually("it is a hit, whichever pod is asked", SHORT_TIMEOUT, async || {
            ensure_hit(&agent.get("http://app/products/7").await?)
        })
        .await?;

        measure(sandbox, "with Redis", "10s", "http://app/products/{n}", 20).await?;
        ensure!(rows_eventually(sandbox, 20).await? == (20, 20), "rows that are there twice");
        let route = of_route(&policy, json!({"l1TTL": "1ms"})).await?;
        policy.change(json!({"routes": [route]})).await?;
        policy.serves(2).await?;
        measure(sandbox, "with Redis, memory left out", "5s", "http://app/products/{n}", 20).await?;

        // Both pods ask the API for these at the same time, for without Redis neither knows of the other.
        let route = of_route(&policy, json!({"l1TTL": null})).await?;
        policy.change(json!({"l2": null, "routes": [route]})).await?;
        policy.serves(2).await?;
        sandbox.rolled_out("app").await?;
        measure(sandbox, "without Redis", "10s", "http://app/products/5{n}", 9).await?;
        ensure!(rows_eventually(sandbox, 29).await? == (29, 29), "rows that are there twice");
        let route = of_route(&policy, json!({"ttl": "1ms"})).await?;
        policy.change(json!({"routes": [route]})).await?;
        policy.serves(2).await?;
        measure(sandbox, "without Redis, memory left out", "5s", "http://app/products/{n}", 20).await
    })
    .await
}

/// The policy's route with some fields changed.
async fn of_route(policy: &Policy<'_>, fields: Value) -> anyhow::Result<Value> {
    let mut route = policy.spec().await?["routes"][0].clone();
    for (name, value) in fields.as_object().context("no fields")? {
        route[name] = value.clone();
    }
    Ok(route)
}

/// Has 20 connections ask for that long, and prints how fast they were answered.
async fn measure(sandbox: &Sandbox, how: &str, lasting: &str, url: &str, keys: u32) -> anyhow::Result<()> {
    let pods = sandbox.pods("app").await?;
    let (lasting, keys) = (format!("--for={lasting}"), format!("--keys={keys}"));
    let report = users::ask(sandbox, &pods[0], &["--users=20", &lasting, &keys, url]).await?;
    let counts: Vec<_> =
        report.answers.iter().map(|(said, times)| format!("{said} {}", times.count)).collect();
    eprintln!(
        "{how}: {} requests a second, p50 {} ms, p99 {} ms, {} failed; {}",
        report.requests_per_second,
        report.times.p50_ms,
        report.times.p99_ms,
        report.failed,
        counts.join(", ")
    );
    report.lost_nothing()
}

/// The first answer after a purge of a path.
async fn after_a_purge(sandbox: &Sandbox, agent: &Agent, path: &str) -> anyhow::Result<larder_e2e::Answer> {
    let token = sandbox.admin_token("read-through").await?;
    let pods = sandbox.pods("app").await?;
    let purge = Ask::new("POST", &pods[0].admin(path::PURGE)).json(&json!({"paths": [path]})).token(&token);
    let purged = agent.send(&purge).await?;
    ensure!(purged.status == 200, "not purged: {purged:?}");
    agent.get(&format!("http://app{path}")).await
}

/// Waits for so many rows, and counts them as [`rows`] does.
async fn rows_eventually(sandbox: &Sandbox, count: u64) -> anyhow::Result<(u64, u64)> {
    eventually(&format!("{count} products are in Postgres"), SHORT_TIMEOUT, async || {
        let rows = rows(sandbox).await?;
        ensure!(rows.0 >= count, "there are {rows:?}");
        Ok(rows)
    })
    .await
}

/// Returns the number of products in Postgres, and of distinct ones.
async fn rows(sandbox: &Sandbox) -> anyhow::Result<(u64, u64)> {
    let pods = sandbox.pods("postgres").await?;
    let query = "select count(*), count(distinct id) from products";
    let command = ["psql", "-U", "example", "-d", "example", "-tAc", query];
    let printed = exec::run(&sandbox.api::<Pod>(), &pods[0].name, "postgres", &command).await?;
    let (all, different) =
        printed.trim().split_once('|').with_context(|| format!("not a row: {printed:?}"))?;
    Ok((all.parse()?, different.parse()?))
}
