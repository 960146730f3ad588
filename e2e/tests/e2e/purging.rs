//! Invalidation of stored responses.

use anyhow::ensure;
use larder_api::admin::{Stats, path};
use larder_crds::ConditionType;
use larder_e2e::{Agent, Ask, Workload, examples, in_a_namespace, sandbox::RunningPod};
use serde_json::{Value, json};

use super::common::{deploy_shop, ensure_hit, get_from, with_redis};

#[tokio::test]
async fn after_a_write_through_one_pod_the_next_read_in_every_pod_is_fresh() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy_shop(sandbox).await?;

        for round in 0..10 {
            let name = format!("Ada {round}");
            let read = async |pod: &RunningPod, path: &str| -> anyhow::Result<larder_e2e::Answer> {
                agent.send(&Ask::get(&pod.url(path)).header("host", "shop")).await
            };
            for pod in &pods {
                read(pod, "/api/users/1").await?;
                read(pod, "/api/users").await?;
                ensure_hit(&read(pod, "/api/users/1").await?)?;
            }
            let put = Ask::new("PUT", &pods[round % 2].url("/api/users/1"))
                .header("host", "shop")
                .json(&json!({"name": name, "email": "ada@shop.example"}));
            let written = agent.send(&put).await?;
            ensure!(written.status == 200, "not written: {written:?}");
            // The pod that did not see the write is asked first.
            for pod in [&pods[(round + 1) % 2], &pods[round % 2]] {
                let user = read(pod, "/api/users/1").await?;
                ensure!(
                    user.json()?["name"] == name.as_str(),
                    "round {round}: stale in {}: {user:?}",
                    pod.name
                );
                let users = read(pod, "/api/users").await?;
                ensure!(users.body.contains(&name), "round {round}: a stale list in {}: {users:?}", pod.name);
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn keys_paths_prefixes_tags_and_everything_are_purged_with_the_token() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        for file in ["secrets.yaml", "redis.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        let (policy, agent) =
            sandbox.with_policy("cache", &with_redis(), &Workload::deployment("app", 2), 2).await?;
        sandbox.rolled_out("redis").await?;
        policy.condition(ConditionType::TiersHealthy, "True").await?;
        let pods = sandbox.pods("app").await?;
        let token = sandbox.admin_token("cache").await?;
        let [asked, other] = &pods[..] else { anyhow::bail!("not two pods: {pods:?}") };

        for ask in [
            Ask::get(&asked.admin(path::STATS)),
            Ask::new("POST", &asked.admin(path::PURGE)).json(&json!({"tags": ["item:1"]})),
            Ask::new("DELETE", &asked.admin("/entries/GET%3A%2Fitems%2F1")),
            Ask::new("POST", &asked.admin(path::PURGE))
                .json(&json!({"tags": ["item:1"]}))
                .token("not-the-token"),
        ] {
            let refused = agent.send(&ask).await?;
            ensure!(refused.status == 401, "let in without the token: {refused:?}");
            ensure!(refused.header("www-authenticate") == "Bearer", "it does not say how: {refused:?}");
        }

        let by_key = Ask::new("DELETE", &asked.admin("/entries/GET%3Ahttp%3A%2F%2Fapp%2Fitems%2F1"));
        purges(&agent, &pods, &by_key.token(&token), &["/items/1"], &["/items/2", "/items/1?a=b"]).await?;
        let post = |names: Value| Ask::new("POST", &other.admin(path::PURGE)).json(&names).token(&token);
        let keys = post(json!({"keys": ["GET:/items/1"]}));
        purges(&agent, &pods, &keys, &["/items/1"], &["/items/2", "/items/1?a=b"]).await?;
        let paths = post(json!({"paths": ["/items/1"]}));
        purges(&agent, &pods, &paths, &["/items/1", "/items/1?a=b"], &["/items/2", "/items"]).await?;
        let tags = post(json!({"tags": ["item:1", "item:3"]}));
        purges(&agent, &pods, &tags, &["/items/1", "/items/1?a=b", "/items/3"], &["/items/2", "/items"])
            .await?;

        let prefixes = post(json!({"prefixes": ["/items/1"]}));
        purges(&agent, &pods, &prefixes, &["/items/1", "/items/1?a=b"], &["/items/2", "/items/12"]).await?;
        let everything = post(json!({"everything": true}));
        purges(&agent, &pods, &everything, &["/items/1", "/items/2", "/items"], &[]).await?;

        let nothing = agent.send(&post(json!({}))).await?;
        ensure!(nothing.status == 400, "an empty purge is a mistake: {nothing:?}");
        let stats = agent.send(&Ask::get(&asked.admin(path::STATS)).token(&token)).await?;
        ensure!(stats.status == 200 && stats.read::<Stats>()?.hits > 0, "{stats:?}");
        Ok(())
    })
    .await
}

/// Asserts that a purge drops these paths and not those, in every pod.
async fn purges(
    agent: &Agent,
    pods: &[RunningPod],
    purge: &Ask,
    gone: &[&str],
    left: &[&str],
) -> anyhow::Result<()> {
    for pod in pods {
        for path in gone.iter().chain(left) {
            get_from(agent, pod, path).await?;
            ensure_hit(&get_from(agent, pod, path).await?)?;
        }
    }
    let purged = agent.send(purge).await?;
    ensure!(purged.status == 200, "{purge:?}: {purged:?}");
    for pod in pods {
        for path in left {
            ensure_hit(&get_from(agent, pod, path).await?)?;
        }
    }
    // The first pod that is asked fills for the others, which must take no older answer for it.
    let mut fresh = Vec::new();
    for pod in pods {
        for path in gone {
            let answer = get_from(agent, pod, path).await?;
            ensure!(
                !answer.cache_status().contains("detail=l1"),
                "{purge:?} left {path} in the memory of {}: {answer:?}",
                pod.name
            );
            fresh.push((*path, answer));
        }
    }
    for (path, answer) in &fresh[..gone.len()] {
        ensure!(!answer.is_hit(), "{purge:?} left {path} in Redis: {answer:?}");
    }
    Ok(())
}
