//! `examples/shop`: users and posts, with what its policy says of each. `purging` has its writes to users.

use anyhow::ensure;
use larder_api::admin::{Stats, path};
use larder_e2e::{Agent, Answer, Ask, Sandbox, in_a_namespace, sandbox::RunningPod};
use serde_json::json;

use super::common::{calls, deploy_shop, ensure_hit, ensure_not_hit, ttl};

#[tokio::test]
async fn examples_shop_has_two_ttls_a_way_past_the_cache_and_keeps_200s_alone() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy_shop(sandbox).await?;
        let pod = &pods[0];

        for (path, seconds) in
            [("/api/users/1", 91..=120), ("/api/users", 91..=120), ("/api/posts/", 60..=90)]
        {
            ensure!(read(&agent, pod, path).await?.is_stored(), "{path} is not stored");
            let hit = read(&agent, pod, path).await?;
            ensure_hit(&hit)?;
            ensure!(seconds.contains(&ttl(&hit)?), "not fresh for that long: {hit:?}");
        }
        let before = calls(&agent, &pods).await?["GET /api/posts/"];
        for _ in 0..2 {
            let past = read(&agent, pod, "/api/posts/?nocache=true").await?;
            ensure!(past.cache_status().contains("fwd=bypass"), "not past the cache: {past:?}");
        }
        let after = calls(&agent, &pods).await?["GET /api/posts/"];
        ensure!(after == before + 2, "the application was asked {before} times before, {after} times after");

        let kept = stats(sandbox, &agent, pod).await?.total_cached_keys;
        for _ in 0..2 {
            let nobody = read(&agent, pod, "/api/users/999").await?;
            ensure!(nobody.status == 404 && !nobody.is_hit() && !nobody.is_stored(), "{nobody:?}");
        }
        let stats = stats(sandbox, &agent, pod).await?;
        ensure!(stats.total_cached_keys == kept, "a 404 is kept: {stats:?}, not {kept:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn examples_shop_drops_posts_by_a_post_and_by_their_key() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (agent, pods) = deploy_shop(sandbox).await?;
        let warm = async || -> anyhow::Result<()> {
            for path in ["/api/posts/", "/api/posts/?page=2", "/api/users/1"] {
                for pod in &pods {
                    read(&agent, pod, path).await?;
                    ensure_hit(&read(&agent, pod, path).await?)?;
                }
            }
            Ok(())
        };

        warm().await?;
        let post = Ask::new("POST", &pods[0].url("/api/posts/"))
            .header("host", "shop")
            .json(&json!({"title": "On caches"}));
        let posted = agent.send(&post).await?;
        ensure!(posted.status == 201, "not posted: {posted:?}");
        ensure!(posted.json()? == json!({"message": "Post created"}), "{posted:?}");
        for pod in pods.iter().rev() {
            let posts = read(&agent, pod, "/api/posts/").await?;
            ensure!(posts.body.contains("On caches"), "a stale list in {}: {posts:?}", pod.name);
            ensure_hit(&read(&agent, pod, "/api/users/1").await?)?;
        }

        let put = Ask::new("PUT", &pods[1].url("/api/users/1")).header("host", "shop");
        let updated = agent.send(&put.json(&json!({"name": "Updated User A"}))).await?;
        ensure!(updated.json()? == json!({"message": "User updated"}), "{updated:?}");
        for pod in &pods {
            let user = read(&agent, pod, "/api/users/1").await?.json()?;
            ensure!(user["name"] == "Updated User A" && user["email"] == "ada@shop.example", "{user}");
        }

        warm().await?;
        let token = sandbox.admin_token("shop").await?;
        let purge = Ask::new("DELETE", &pods[0].admin("/entries/GET:/api/posts/")).token(&token);
        let purged = agent.send(&purge).await?;
        ensure!(purged.status == 200, "not purged: {purged:?}");
        ensure_not_hit(&read(&agent, &pods[1], "/api/posts/").await?)?;
        let of_other = read(&agent, &pods[0], "/api/posts/").await?;
        ensure!(!of_other.cache_status().contains("detail=l1"), "still in memory: {of_other:?}");
        for pod in &pods {
            for path in ["/api/posts/?page=2", "/api/users/1"] {
                ensure_hit(&read(&agent, pod, path).await?)?;
            }
        }

        let stats = stats(sandbox, &agent, &pods[0]).await?;
        eprintln!("stats of the shop: {stats:?}");
        let counted = [stats.hits, stats.misses, stats.total_cached_keys.unwrap_or_default()];
        ensure!(counted.iter().all(|count| *count > 0), "not counted: {stats:?}");
        let top = &stats.top_keys;
        ensure!(top.iter().any(|top| top.key.contains("/api/posts/")), "not asked for most: {stats:?}");
        Ok(())
    })
    .await
}

async fn read(agent: &Agent, pod: &RunningPod, path: &str) -> anyhow::Result<Answer> {
    agent.send(&Ask::get(&pod.url(path)).header("host", "shop")).await
}

async fn stats(sandbox: &Sandbox, agent: &Agent, pod: &RunningPod) -> anyhow::Result<Stats> {
    let token = sandbox.admin_token("shop").await?;
    agent.send(&Ask::get(&pod.admin(path::STATS)).token(&token)).await?.read()
}
