//! `larder`, the program for a terminal, against pods of a policy.

use std::time::Duration;

use anyhow::ensure;
use larder_crds::ConditionType;
use larder_e2e::{
    Agent, Sandbox, Workload, cluster, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace,
    larder::Larder, policy::Policy, sandbox::RunningPod,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::common::{IN_MEMORY, ensure_hit, ensure_not_hit, get_from, with_redis};

/// A policy with Redis, before two pods.
async fn deploy_with_redis(sandbox: &Sandbox) -> anyhow::Result<(Agent, Vec<RunningPod>)> {
    for file in ["secrets.yaml", "redis.yaml"] {
        sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
    }
    let (policy, agent) =
        sandbox.with_policy("cache", &with_redis(), &Workload::deployment("app", 2), 2).await?;
    sandbox.rolled_out("redis").await?;
    policy.condition(ConditionType::TiersHealthy, "True").await?;
    Ok((agent, sandbox.pods("app").await?))
}

/// Stores a path in every pod's memory.
async fn fill(agent: &Agent, pods: &[RunningPod], path: &str) -> anyhow::Result<()> {
    for pod in pods {
        get_from(agent, pod, path).await?;
        ensure_hit(&get_from(agent, pod, path).await?)?;
    }
    Ok(())
}

#[tokio::test]
async fn status_stats_and_explain_describe_each_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy_with_redis(sandbox).await?;
        fill(&agent, &pods, "/items/1").await?;
        let larder = Larder::of(sandbox);

        let status: Value = eventually("the policy is well", SHORT_TIMEOUT, async || {
            larder.read(0, &["status", "cache"]).await
        })
        .await?;
        let sidecars = status[0]["sidecars"].as_array().map_or(0, Vec::len);
        ensure!(status[0]["name"] == "cache" && sidecars == 2, "{status}");
        for sidecar in status[0]["sidecars"].as_array().into_iter().flatten() {
            ensure!(sidecar["current"] == true && sidecar["report"]["tiers"]["redis"] == "up", "{sidecar}");
        }
        ensure!(status[0]["requests"]["hits"].as_u64() >= Some(2), "{status}");

        let stats: Value = larder.read(0, &["stats", "cache"]).await?;
        let hits = |stats: &Value| stats["hits"].as_u64().unwrap_or_default();
        let of_pods: u64 =
            stats["pods"].as_array().into_iter().flatten().map(|pod| hits(&pod["figures"])).sum();
        ensure!(hits(&stats["total"]) == of_pods && of_pods >= 2, "{stats}");

        let url = "http://app/items/1";
        let explained: Value =
            larder.read(0, &["explain", "cache", "GET", url, "--pod", &pods[1].name]).await?;
        let explanation = &explained["explanation"];
        ensure!(explained["pod"] == pods[1].name.as_str(), "{explained}");
        ensure!(explanation["route"]["name"] == "item" && explanation["l1"]["hit"] == true, "{explained}");
        let text = larder.run(&["explain", "cache", "GET", &format!("{url}?nocache=true")]).await?;
        ensure!(text.printed.contains("no stored response is used"), "{text:?}");

        let lost = larder.run(&["stats", "nothing"]).await?;
        ensure!(lost.code == 2 && lost.said.contains("has no policy nothing"), "{lost:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn top_shows_rates_of_routes_once_without_a_terminal() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let pods = sandbox.pods("app").await?;
        let larder = Larder::of(sandbox);
        eventually("requests within the interval are shown", SHORT_TIMEOUT, async || {
            let requests = async {
                for _ in 0..10 {
                    fill(&agent, &pods, "/items/1").await?;
                }
                anyhow::Ok(())
            };
            let (top, requests) =
                tokio::join!(larder.read::<Value>(0, &["top", "cache", "--interval", "5"]), requests);
            requests?;
            let top = top?;
            let routes = top["total"]["routes"].as_array().into_iter().flatten();
            let item = routes.into_iter().find(|route| route["route"] == "item");
            let hits = item.and_then(|item| item["hits"].as_f64()).unwrap_or_default();
            ensure!(hits > 0.0 && top["pods"].as_array().map(Vec::len) == Some(2), "{top}");
            Ok(())
        })
        .await?;
        let text = larder.run(&["top", "cache", "--interval", "1"]).await?;
        ensure!(text.code == 0 && text.printed.contains("ROUTE"), "{text:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tail_shows_requests_of_every_pod_as_they_are_served() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let pods = sandbox.pods("app").await?;
        let larder = Larder::of(sandbox);
        let (_program, mut lines) =
            larder.start(&["tail", "cache", "--path", "/items", "--outcome", "hit", "-o", "json"])?;
        for pod in &pods {
            eventually("a hit of the pod is shown", SHORT_TIMEOUT, async || {
                get_from(&agent, pod, "/other").await?;
                get_from(&agent, pod, "/items/1?token=secret").await?;
                let line = timeout(Duration::from_secs(2), lines.next_line()).await??.unwrap_or_default();
                let seen: Value = serde_json::from_str(&line)?;
                ensure!(seen["path"] == "/items/1" && seen["query"] == "token=*", "{seen}");
                ensure!(seen["outcome"] == "hit" && seen["tier"] == "l1", "{seen}");
                ensure!(seen["pod"] == pod.name.as_str(), "{seen}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn purge_through_one_pod_holds_in_all_and_is_pending_while_redis_is_away() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy_with_redis(sandbox).await?;
        let larder = Larder::of(sandbox);
        fill(&agent, &pods, "/items/1").await?;
        let purge = ["purge", "cache", "--tag", "item:1"];

        let purged: Value = larder.read(0, &purge).await?;
        ensure!(purged["through"] == "redis" && purged["pods"][0]["state"] == "acknowledged", "{purged}");
        for pod in pods.iter().rev() {
            let answer = get_from(&agent, pod, "/items/1").await?;
            ensure!(!answer.cache_status().contains("detail=l1"), "left in {}: {answer:?}", pod.name);
        }

        let refused = larder.run(&["purge", "cache", "--path", "/items/*"]).await?;
        ensure!(refused.code == 2 && refused.said.contains("patterns are not supported"), "{refused:?}");

        fill(&agent, &pods, "/items/1").await?;
        sandbox.scale("redis", 0).await?;
        eventually("the purge is in every pod, and pending", SHORT_TIMEOUT, async || {
            let pending: Value = larder.read(1, &purge).await?;
            let pods = pending["pods"].as_array().into_iter().flatten();
            let states: Vec<_> = pods.map(|pod| &pod["state"]).collect();
            ensure!(states == [&json!("pending"), &json!("pending")], "{pending}");
            Ok(())
        })
        .await?;
        for pod in &pods {
            ensure_not_hit(&get_from(&agent, pod, "/items/1").await?)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn purge_without_redis_is_made_in_every_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 2), 2).await?;
        let pods = sandbox.pods("app").await?;
        for path in ["/items/1", "/items/2"] {
            fill(&agent, &pods, path).await?;
        }
        let purged: Value = Larder::of(sandbox).read(0, &["purge", "cache", "--path", "/items/1"]).await?;
        let told = purged["pods"].as_array().map_or(0, Vec::len);
        ensure!(purged["through"] == "everyPod" && told == 2, "{purged}");
        for pod in &pods {
            ensure_not_hit(&get_from(&agent, pod, "/items/1").await?)?;
            ensure_hit(&get_from(&agent, pod, "/items/2").await?)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn each_missing_right_is_named_with_the_command_that_grants_it() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
        let larder = Larder::without_rights(sandbox).await?;
        for right in
            ["get cachepolicies cache", "list pods", "get secrets larder-cache-admin", "get pods/portforward"]
        {
            let refused = larder.run(&["stats", "cache"]).await?;
            let named = format!("reader may not {right} in namespace {}", sandbox.name);
            ensure!(refused.code == 2 && refused.said.contains(&named), "not {named:?}: {refused:?}");
            for command in refused.said.lines().filter_map(|line| line.strip_prefix("  ")) {
                for command in command.split(" && ") {
                    let arguments: Vec<_> = command.split(' ').skip(1).collect();
                    cluster::tool("LARDER_KUBECTL", &arguments).await?;
                }
            }
            eventually("the right is granted", SHORT_TIMEOUT, async || {
                let run = larder.run(&["stats", "cache"]).await?;
                ensure!(!run.said.contains(&named), "{run:?}");
                Ok(())
            })
            .await?;
        }
        let allowed = larder.run(&["stats", "cache"]).await?;
        ensure!(allowed.code == 0, "{allowed:?}");
        Ok(())
    })
    .await
}

/// Returns the states of a check in a report.
fn states<'a>(report: &'a Value, check: &str) -> Vec<&'a str> {
    let all = report["checks"].as_array().into_iter().flatten();
    all.filter(|one| one["check"] == check).filter_map(|one| one["state"].as_str()).collect()
}

#[tokio::test]
async fn check_names_faults_and_missing_rights_with_their_remedies() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        deploy_with_redis(sandbox).await?;
        let larder = Larder::of(sandbox);
        let well: Value =
            eventually("all is well", SHORT_TIMEOUT, async || larder.read(0, &["check"]).await).await?;
        for check in ["definition", "leader", "webhook", "conditions", "sidecars", "admission"] {
            ensure!(states(&well, check) == ["ok"], "{check}: {well}");
        }

        sandbox.scale("redis", 0).await?;
        eventually("the server that is away is named", SHORT_TIMEOUT, async || {
            let ill: Value = larder.read(1, &["check"]).await?;
            let tiers = states(&ill, "tiers");
            ensure!(!tiers.is_empty() && tiers.iter().all(|state| *state == "failed"), "{ill}");
            Ok(())
        })
        .await?;
        let text = larder.run(&["check"]).await?;
        ensure!(
            text.printed.contains("redis does not respond") && text.printed.contains("check the server"),
            "{text:?}"
        );

        let reader = Larder::without_rights(sandbox).await?;
        let refused: Value = reader.read(2, &["check"]).await?;
        for check in ["leader", "webhook", "policies"] {
            ensure!(states(&refused, check) == ["skipped"], "{check}: {refused}");
        }
        let text = reader.run(&["check"]).await?;
        ensure!(text.printed.contains("reader may not list cachepolicies in namespace"), "{text:?}");
        ensure!(text.printed.contains("kubectl create role larder-list-cachepolicies"), "{text:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn check_before_an_installation_finds_the_one_that_is_there() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let larder = Larder::of(sandbox);
        let report: Value = larder.read(1, &["check", "--pre"]).await?;
        for check in ["version", "api", "rights", "namespace"] {
            ensure!(states(&report, check) == ["ok"], "{check}: {report}");
        }
        for check in ["definition", "installation"] {
            ensure!(states(&report, check) == ["failed"], "{check}: {report}");
        }
        let text = larder.run(&["check", "--pre"]).await?;
        ensure!(text.printed.contains("is installed, and a cluster has one Larder"), "{text:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn policies_of_init_are_accepted_and_put_in_force() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let larder = Larder::of(sandbox);
        let init = async |options: &[&str]| {
            let written = larder.run(&[&["policy", "init"], options].concat()).await?;
            ensure!(written.code == 0, "{options:?}: {written:?}");
            anyhow::Ok(written.printed)
        };
        for template in ["rest", "graphql", "wordpress", "nextjs", "static", "grpc-gateway"] {
            for redis in [&[][..], &["--redis-secret", "redis/url"]] {
                let pods = ["tried", "--selector", "app=none", "--port", "http", "--template", template];
                let policy = init(&[&pods, redis].concat()).await?;
                cluster::kubectl_with_input(&["apply", "--dry-run=server", "-f", "-"], &policy).await?;
            }
        }

        sandbox.apply(&Workload::deployment("app", 1).objects()?).await?;
        let policy =
            init(&["--workload", "deployment/app", "--path", "/items/{id}", "--ttl", "300s"]).await?;
        cluster::kubectl_with_input(&["apply", "-f", "-"], &policy).await?;
        Policy::of(sandbox, "app").serves(1).await?;
        let missing = larder.run(&["policy", "init", "--workload", "deployment/app"]).await?;
        ensure!(missing.code == 2 && missing.said.contains("give --template or --path"), "{missing:?}");
        Ok(())
    })
    .await
}
