//! `examples/full-path`: keyed by path and query, each answer in an envelope.

use anyhow::{Context, ensure};
use larder_e2e::{Agent, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace};
use serde_json::{Value, json};

#[tokio::test]
async fn examples_full_path_reports_source_age_and_ttl() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_policy, agent) = examples::deploy(sandbox, "full-path", 1).await?;

        let first = envelope(&agent, "/data?foo=bar").await?;
        eprintln!("first: {first}");
        ensure!(first["source"] == "postgres", "not from the database: {first}");
        ensure!(first["data"] == json!({"foo": "bar", "value": 1}), "not the row: {first}");
        let second = envelope(&agent, "/data?foo=bar").await?;
        eprintln!("second: {second}");
        ensure!(second["source"] == "l1", "not from the cache: {second}");
        for part in ["data", "cached_at"] {
            ensure!(second[part] == first[part], "another {part}: {second}");
        }
        for answer in [&first, &second] {
            let left = answer["expires_in_seconds"].as_u64().context("not a number")?;
            ensure!(left <= 5, "not for 5 s: {answer}");
            cached_at(answer)?;
        }

        for (path, value) in [("/data?foo=baz", 2), ("/data?foo=bar&page=2", 1)] {
            let other = envelope(&agent, path).await?;
            ensure!(other["source"] == "postgres", "another query is another key: {other}");
            ensure!(other["data"]["value"] == value, "not the row: {other}");
        }
        let none = agent.get("http://app/data?foo=nothing").await?;
        ensure!(none.status == 404, "there is no such row: {none:?}");

        let renewed = eventually("the answer is no longer fresh", SHORT_TIMEOUT, async || {
            let answer = envelope(&agent, "/data?foo=bar").await?;
            ensure!(answer["source"] == "postgres", "still from the cache: {answer}");
            Ok(answer)
        })
        .await?;
        let lived = cached_at(&renewed)?.duration_since(cached_at(&first)?).as_secs_f64();
        ensure!(lived >= 5.0, "it was fresh for {lived} s only: {first}, {renewed}");
        Ok(())
    })
    .await
}

async fn envelope(agent: &Agent, path: &str) -> anyhow::Result<Value> {
    let answer = agent.get(&format!("http://app{path}")).await?;
    ensure!(answer.status == 200, "no answer: {answer:?}");
    answer.json()
}

fn cached_at(envelope: &Value) -> anyhow::Result<jiff::Timestamp> {
    let text = envelope["cached_at"].as_str().with_context(|| format!("no time in {envelope}"))?;
    text.parse().with_context(|| format!("not a time of RFC 3339: {text}"))
}
