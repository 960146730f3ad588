//! `examples/two-level`: a slow source behind memory and Redis.

use anyhow::ensure;
use larder_api::admin::{Stats, path};
use larder_e2e::{
    Agent, Ask, Sandbox, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace,
    sandbox::RunningPod, users,
};

use super::common::{calls, ensure_hit, get_from, shared_by_redis, ttl};

#[tokio::test]
async fn examples_two_level_sends_its_slow_source_one_request_for_100_users_of_3_pods() -> anyhow::Result<()>
{
    in_a_namespace(async |sandbox| {
        let (_policy, agent) = examples::deploy(sandbox, "two-level", 3).await?;
        let pods = sandbox.pods("app").await?;

        let report =
            users::ask(sandbox, &pods[0], &["--users=100", "--for=0s", "http://app/reports/1"]).await?;
        report.lost_nothing()?;
        eprintln!("100 users, one report: {report:?}");
        ensure!(report.requests == 100 && report.times.max_ms >= 2_000.0, "not cold: {report:?}");
        let calls = calls(&agent, &pods).await?;
        ensure!(calls.get("GET /reports/1") == Some(&1), "the source was not asked once: {calls:?}");

        let path = shared_by_redis(&agent, &pods, |number| format!("/reports/{}", 1_000 + number)).await?;
        let again = get_from(&agent, &pods[1], &path).await?;
        ensure_hit(&again)?;
        ensure!(again.cache_status().contains("detail=l1"), "not promoted into memory: {again:?}");
        ensure!((1..=30).contains(&ttl(&again)?), "not fresh for 30 s: {again:?}");

        let many = ["--users=100", "--for=0s", "--keys=100", "http://app/reports/{n}"];
        users::ask(sandbox, &pods[0], &many).await?.lost_nothing()?;
        counted(sandbox, &agent, &pods).await
    })
    .await
}

/// Waits until the pods together have counted each of what a two-level cache does.
async fn counted(sandbox: &Sandbox, agent: &Agent, pods: &[RunningPod]) -> anyhow::Result<()> {
    let token = sandbox.admin_token("two-level").await?;
    eventually("hits of both levels, misses and evictions are counted", SHORT_TIMEOUT, async || {
        let mut of_pods: Vec<Stats> = Vec::new();
        for pod in pods {
            of_pods.push(agent.send(&Ask::get(&pod.admin(path::STATS)).token(&token)).await?.read()?);
        }
        let sum = |count: fn(&Stats) -> u64| of_pods.iter().map(count).sum::<u64>();
        let sums = [
            ("l1_hits", sum(|stats| stats.l1_hits)),
            ("l2_hits", sum(|stats| stats.l2_hits)),
            ("cache_misses", sum(|stats| stats.cache_misses)),
            ("l1_evictions", sum(|stats| stats.l1_evictions)),
        ];
        ensure!(sums.iter().all(|(_, sum)| *sum > 0), "not all of them: {sums:?}");
        eprintln!("the pods together: {sums:?}");
        Ok(())
    })
    .await
}
