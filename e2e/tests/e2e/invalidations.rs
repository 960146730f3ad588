//! `CacheInvalidation`: purges as objects, with their result.

use anyhow::ensure;
use larder_crds::{CacheInvalidation, ConditionType, PurgeResult};
use larder_e2e::{Sandbox, Workload, apply, eventually, eventually::SHORT_TIMEOUT, examples, in_a_namespace};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit, ensure_not_hit, get_from, with_redis};

fn invalidation(name: &str, mut spec: Value) -> Value {
    spec["policy"] = json!("cache");
    json!({"apiVersion": "larder.dev/v1alpha1", "kind": "CacheInvalidation", "metadata": {"name": name}, "spec": spec})
}

/// Returns a purge once it has ended with this result.
async fn ended(sandbox: &Sandbox, name: &str, result: PurgeResult) -> anyhow::Result<CacheInvalidation> {
    eventually(&format!("{name} ends"), SHORT_TIMEOUT, async || {
        let object = sandbox.api::<CacheInvalidation>().get(name).await?;
        let status = object.status.as_ref();
        let condition =
            status.and_then(|status| status.conditions.iter().find(|one| one.type_ == result.as_str()));
        ensure!(condition.is_some_and(|condition| condition.status == "True"), "{status:?}");
        Ok(object)
    })
    .await
}

#[tokio::test]
async fn cache_invalidation_holds_in_every_pod_when_it_is_complete() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 3), 3).await?;
        let pods = sandbox.pods("app").await?;
        let all = ["/items/1", "/items/2", "/items"];
        for (name, spec, gone) in [
            ("tags", json!({"tags": ["item:1"]}), &all[..1]),
            ("prefixes", json!({"prefixes": ["/items/2"]}), &all[1..2]),
            ("keys", json!({"keys": ["GET:/items"]}), &all[2..]),
            ("paths", json!({"paths": ["/items/1", "/items"]}), &["/items/1", "/items"]),
            ("everything", json!({"everything": true}), &all),
        ] {
            // Pods tell one another as well, so that a purge may reach one of them again a moment later.
            for pod in &pods {
                for path in all {
                    eventually("the response is stored", SHORT_TIMEOUT, async || {
                        ensure_hit(&get_from(&agent, pod, path).await?)
                    })
                    .await?;
                }
            }
            sandbox.apply(&[invalidation(name, spec)]).await?;
            let object = ended(sandbox, name, PurgeResult::Complete).await?;
            let status = object.status.unwrap_or_default();
            ensure!((status.pods, status.acknowledged, status.missing.len()) == (3, 3, 0), "{status:?}");
            for pod in &pods {
                for path in gone {
                    ensure_not_hit(&get_from(&agent, pod, path).await?)?;
                }
            }
        }

        let changed = invalidation("tags", json!({"tags": ["item:2"]}));
        apply::rejects(&sandbox.client, &sandbox.name, &changed, "create another CacheInvalidation").await?;
        for (spec, message) in [
            (json!({}), "nothing to purge"),
            (json!({"everything": false}), "nothing to purge"),
            (json!({"keys": ["/items/1"]}), "a key begins with its method"),
            (json!({"paths": ["items"]}), "a path starts with '/'"),
            (json!({"paths": ["/items?a=b"]}), "without the query"),
            (json!({"prefixes": ["/items/*"]}), "no pattern is matched"),
            (json!({"tags": [" item:1"]}), "no spaces at its ends"),
        ] {
            apply::rejects(&sandbox.client, &sandbox.name, &invalidation("wrong", spec), message).await?;
        }
        // The sidecars know more of keys than the API server.
        sandbox.apply(&[invalidation("no-key", json!({"keys": ["GET:items"]}))]).await?;
        let refused = ended(sandbox, "no-key", PurgeResult::Partial).await?.status.unwrap_or_default();
        ensure!(
            refused.conditions.iter().any(|one| one.reason == "Refused" && one.message.contains("GET:items")),
            "{refused:?}"
        );

        sandbox
            .apply(&[invalidation("short", json!({"everything": true, "ttlSecondsAfterFinished": 0}))])
            .await?;
        eventually("the finished object is deleted", SHORT_TIMEOUT, async || {
            ensure!(sandbox.api::<CacheInvalidation>().get_opt("short").await?.is_none());
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn cache_invalidation_that_redis_does_not_have_is_partial() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let purge = |name: &str| invalidation(name, json!({"everything": true, "timeoutSeconds": 3}));
        sandbox.apply(&[purge("early")]).await?;
        let early = ended(sandbox, "early", PurgeResult::Partial).await?.status.unwrap_or_default();
        ensure!(early.conditions.iter().all(|one| one.reason == "NoPolicy"), "{early:?}");

        for file in ["secrets.yaml", "redis.yaml"] {
            sandbox.apply(&examples::shop(file, &sandbox.name)?).await?;
        }
        let (policy, agent) =
            sandbox.with_policy("cache", &with_redis(), &Workload::deployment("app", 2), 2).await?;
        sandbox.rolled_out("redis").await?;
        policy.condition(ConditionType::TiersHealthy, "True").await?;
        let pods = sandbox.pods("app").await?;
        get_from(&agent, &pods[0], "/items/1").await?;
        sandbox.apply(&[purge("told")]).await?;
        ended(sandbox, "told", PurgeResult::Complete).await?;
        ensure_not_hit(&get_from(&agent, &pods[1], "/items/1").await?)?;

        sandbox.scale("redis", 0).await?;
        sandbox.pods_left("redis", 0).await?;
        sandbox.apply(&[purge("untold")]).await?;
        let untold = ended(sandbox, "untold", PurgeResult::Partial).await?.status.unwrap_or_default();
        ensure!((untold.pods, untold.acknowledged) == (2, 0), "{untold:?}");
        ensure!(untold.missing.iter().all(|pod| pod.message.contains("not in Redis yet")), "{untold:?}");
        Ok(())
    })
    .await
}
