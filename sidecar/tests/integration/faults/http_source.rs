//! Faults of an HTTP source.

use super::*;

/// A way to fail: by a status or by the network.
#[derive(Clone, Copy, Debug)]
enum Failing {
    Says(u16),
    Network(Fault),
}

impl Server {
    fn fails(&self, failing: Failing) {
        match failing {
            Failing::Says(status) => self.says(status),
            Failing::Network(fault) => self.relay.suffer(fault),
        }
    }

    fn recovers(&self) {
        self.says(200);
        self.relay.suffer(Fault::Nothing);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_source_a_route_serves_every_stored_response() {
    let stand = Stand::new().await;
    let stored = ["/product/hot", "/product/theirs", "/brief-product/a", "/kept-product/a"];
    let pods = stand.pods_with(&stored).await;
    let [near, far] = &pods;
    stand.until_kept(1).await;
    for (round, failing) in
        [Failing::Says(500), Failing::Network(Fault::Cut), Failing::Network(Fault::Silent)]
            .into_iter()
            .enumerate()
    {
        stand.store.fails(failing);
        assert_eq!(good(near, "/product/hot").await.hit(), Some("l1"), "{failing:?}");
        assert!(good(far, "/product/theirs").await.hit().is_some(), "{failing:?}");
        let took = until_it_stands_in(near, "/brief-product/a").await;
        assert!(
            took < Duration::from_millis(2_500),
            "{failing:?}: the request waited for the hard timeout, {took:?}"
        );
        assert_eq!(near.get(&format!("/product/new-{round}")).await.status, 502, "{failing:?}");
        let mut number = 0;
        until("the fault is reported", async || {
            number += 1;
            let paths: Vec<_> = (0..5).map(|more| format!("/product/more-{number}-{more}")).collect();
            futures::future::join_all(paths.iter().map(|path| near.get(path))).await;
            (near.policy().await["tiers"]["http/store"] == "down").then_some(())
        })
        .await;
        until_tier(near, "http/store", "down").await;
        // Gone from Redis too.
        stand.redis.say(&["FLUSHALL"]).await;
        assert!(good(far, "/kept-product/a").await.body.parse::<u32>().is_ok(), "{failing:?}");
        stand.store.recovers();
        until("a new response", async || {
            (who(&near.get(&format!("/product/new-{round}")).await) == "http").then_some(())
        })
        .await;
        until_tier(near, "http/store", "up").await;
        for path in stored {
            until("all is stored again", async || near.get(path).await.hit().map(drop)).await;
        }
        good(far, "/kept-product/a").await;
    }
    assert!(failures(near, "http").await > 0.0);
    assert!(far.metric("larder_requests_total", &["outcome=\"stale\""]).await > 0.0);
    stand.database.drop_schema().await;
}
