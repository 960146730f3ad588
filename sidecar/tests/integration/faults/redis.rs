//! Faults of Redis.

use futures::future::join_all;

use super::*;

const SLOW: Fault = Fault::Slow(Duration::from_millis(500));

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_l1_and_every_source_serve_and_sharing_resumes_after() {
    let stand = Stand::new().await;
    let pods = stand.pods_with(&["/page/hot", "/item/hot", "/page/theirs"]).await;
    let [near, far] = &pods;
    for (round, fault) in [Fault::Cut, Fault::Silent, SLOW].into_iter().enumerate() {
        stand.to_redis.suffer(fault);
        for path in ["/page/hot", "/item/hot"] {
            assert_eq!(good(near, path).await.hit(), Some("l1"), "{fault:?}");
        }
        // In Redis, and in the other pod.
        good(far, "/page/theirs").await;
        for route in ["page", "row", "product", "kept-product"] {
            let path = format!("/{route}/{round}");
            let answer = good(far, &path).await;
            assert_eq!(answer.hit(), None, "{fault:?}");
            assert_eq!(good(far, &path).await.hit(), Some("l1"), "{fault:?}: it is stored in memory");
        }
        if fault != SLOW {
            until_tier(near, "redis", "down").await;
        }
        stand.to_redis.suffer(Fault::Nothing);
        for pod in &pods {
            until("redis is back", async || {
                // A breaker closes only on a request.
                good(pod, &format!("/page/{}", pod.metric("larder_requests_total", &[]).await)).await;
                (pod.policy().await["tiers"]["redis"] == "up").then_some(())
            })
            .await;
        }
        stand.until_shared(&pods).await;
    }
    assert!(failures(far, "l2").await > 0.0);
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_missing_at_the_start_is_used_once_it_is_up() {
    let stand = Stand::new().await;
    stand.to_redis.suffer(Fault::Cut);
    let application = stand.application.relay.address();
    let mut pods = vec![];
    for _ in 0..2 {
        let pod = Sidecar::start_at_once(&stand.policy, application).await;
        for path in ["/page/a", "/row/a", "/product/a"] {
            // Postgres may still be connecting.
            until("a response", async || (pod.get(path).await.status == 200).then_some(())).await;
            assert_eq!(good(&pod, path).await.hit(), Some("l1"));
        }
        assert_eq!(pod.admin("/readyz").await.status, 200);
        assert!(!pod.last_error("redis").await.is_empty());
        until_tier(&pod, "redis", "down").await;
        pods.push(pod);
    }
    stand.to_redis.suffer(Fault::Nothing);
    let pods: [Sidecar; 2] = pods.try_into().unwrap();
    for pod in &pods {
        until_tier(pod, "redis", "up").await;
        pod.until_no_error().await;
    }
    stand.until_shared(&pods).await;
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_only_in_a_slow_redis_is_served_after_many_failures() {
    let stand = Stand::new().await;
    let paths = ["/product/1", "/product/2", "/product/3", "/product/4", "/product/5", "/product/6"];
    let [_, near] = stand.pods_with(&paths).await;
    stand.to_redis.suffer(SLOW);
    stand.store.relay.suffer(Fault::Cut);
    assert_eq!(good(&near, paths[0]).await.hit(), Some("l2"));
    // A lookup that finds nothing does not close the breaker.
    let unstored: Vec<_> = (0..10).map(|number| format!("/page/unstored-{number}")).collect();
    join_all(unstored.iter().map(|path| good(&near, path))).await;
    until_tier(&near, "redis", "down").await;
    for answer in join_all(paths[1..].iter().map(|path| good(&near, path))).await {
        assert_eq!(answer.hit(), Some("l2"));
    }
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_waits_for_a_slow_redis_once_if_it_has_a_source() {
    let stand = Stand::new().await;
    let pod = stand.pod().await;
    stand.to_redis.suffer(SLOW);
    for (path, times) in [("/page/unstored", 1.0), ("/product/a", 2.0)] {
        good(&pod, path).await;
        assert_eq!(failures(&pod, "l2").await, times, "{path}: Redis was asked for a turn, too");
    }
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_response_is_served_at_once_after_a_flush() {
    let stand = Stand::new().await;
    let pods = stand.pods_with(&["/kept-product/a", "/kept-page/a", "/page/hot"]).await;
    let [near, far] = &pods;
    stand.until_kept(2).await;
    stand.store.relay.suffer(Fault::Cut);
    stand.application.says(503);
    for _ in 0..3 {
        stand.redis.say(&["FLUSHALL"]).await;
        for answer in join_all(["/kept-product/a", "/kept-page/a"].map(|path| good(far, path))).await {
            assert!(stood_in(&answer) || answer.hit() == Some("l1"), "{}", answer.cache_status());
        }
    }
    let stand_ins = far.metric("larder_requests_total", &["tier=\"last-known-good\""]).await;
    assert!(stand_ins >= 2.0, "{stand_ins}");
    // And without Redis.
    stand.to_redis.suffer(Fault::Cut);
    let newcomer = Sidecar::start_at_once(&stand.policy, stand.application.relay.address()).await;
    until("the last good response", async || stood_in(&newcomer.get("/kept-product/a").await).then_some(()))
        .await;
    stand.to_redis.suffer(Fault::Nothing);
    stand.store.relay.suffer(Fault::Nothing);
    stand.application.says(200);
    good(near, "/page/hot").await;
    for pod in &pods {
        until_tier(pod, "redis", "up").await;
    }
    until("a new response", async || (who(&near.get("/kept-product/b").await) == "http").then_some(())).await;
    stand.until_shared(&pods).await;
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_during_a_source_request_costs_no_last_good_response() {
    let stand = Stand::new().await;
    let [_keeps, far] = stand.pods_with(&["/kept-product/a"]).await;
    stand.until_kept(1).await;
    // Only the entry is deleted: the pod without it in memory must ask the source.
    for key in stand.redis.ask::<Vec<String>>(&["KEYS", "*:{*"]).await {
        stand.redis.say(&["DEL", &key]).await;
    }
    good(&far, "/page/hot").await;
    stand.store.relay.suffer(Fault::Silent);
    let asked = stand.store.origin.calls();
    let flushed = async {
        until("the source has the request", async || (stand.store.origin.calls() > asked).then_some(()))
            .await;
        stand.redis.say(&["FLUSHALL"]).await;
        // The pod learns of the flush at a lookup, and its stored responses are of another generation then.
        let mut number = 0;
        until("the pod knows", async || {
            number += 1;
            good(&far, &format!("/page/{number}")).await;
            good(&far, "/page/hot").await.hit().is_none().then_some(())
        })
        .await;
        stand.store.relay.suffer(Fault::Cut);
    };
    let (answer, ()) = tokio::join!(good(&far, "/kept-product/a"), flushed);
    assert!(stood_in(&answer), "{}", answer.cache_status());
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_redis_counts_as_none() {
    let stand = Stand::new().await;
    let pods = stand.pods_with(&["/page/hot", "/page/theirs"]).await;
    let [near, far] = &pods;
    stand.redis.say(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for number in 0..10 {
        assert_eq!(good(near, "/page/hot").await.hit(), Some("l1"));
        for route in ["page", "row", "product"] {
            good(near, &format!("/{route}/{number}")).await;
        }
    }
    let last_error = near.last_error("redis").await;
    assert!(last_error.contains("OOM"), "{last_error}");
    assert_eq!(near.policy().await["tiers"]["redis"], "down");
    // The other pod writes nothing: its heartbeat notices.
    until("redis is down for the other pod", async || {
        (far.policy().await["tiers"]["redis"] == "down").then_some(())
    })
    .await;
    assert_eq!(who(&good(far, "/page/theirs").await), "larder; fwd=uri-miss; fwd-status=200; stored");
    assert!(failures(near, "l2").await > 0.0);
    stand.redis.say(&["CONFIG", "SET", "maxmemory", "0"]).await;
    for pod in &pods {
        pod.until_no_error().await;
    }
    stand.until_shared(&pods).await;
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_older_than_the_grace_is_requested_again_or_is_a_fallback() {
    let stand = Stand::trusting_for("500ms").await;
    let pods = stand.pods_with(&["/product/a", "/kept-product/a", "/page/a"]).await;
    let pod = &pods[0];
    stand.until_kept(1).await;
    stand.to_redis.suffer(Fault::Cut);
    stand.store.relay.suffer(Fault::Cut);
    // The price of safety: no pod can tell any more if it was purged.
    until("the stored response is no longer trusted", async || {
        (pod.get("/product/a").await.status == 502).then_some(())
    })
    .await;
    let asked = stand.application.origin.calls();
    until("the stored response is requested again", async || {
        good(pod, "/page/a").await;
        (stand.application.origin.calls() > asked).then_some(())
    })
    .await;
    // The table of last good responses hears of purges by itself.
    assert!(stood_in(&good(pod, "/kept-product/a").await));
    stand.to_redis.suffer(Fault::Nothing);
    stand.store.relay.suffer(Fault::Nothing);
    until_tier(pod, "redis", "up").await;
    until("the response is stored again", async || {
        (pod.get("/product/a").await.hit() == Some("l1")).then_some(())
    })
    .await;
    stand.database.drop_schema().await;
}
