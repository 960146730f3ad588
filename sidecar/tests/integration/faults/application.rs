//! Faults of the application.

use super::*;

const STORED: [&str; 4] = ["/page/hot", "/page/theirs", "/brief-page/a", "/kept-page/a"];

#[tokio::test(flavor = "multi_thread")]
async fn without_the_application_every_stored_response_is_served() {
    let stand = Stand::new().await;
    let pods = stand.pods_with(&STORED).await;
    let [near, far] = &pods;
    stand.until_kept(1).await;
    for (round, (fault, status)) in [(None, 500), (Some(Fault::Cut), 502)].into_iter().enumerate() {
        match fault {
            None => stand.application.says(500),
            Some(fault) => stand.application.relay.suffer(fault),
        }
        assert_eq!(good(near, "/page/hot").await.hit(), Some("l1"), "{fault:?}");
        assert!(good(far, "/page/theirs").await.hit().is_some(), "{fault:?}");
        until_it_stands_in(near, "/brief-page/a").await;
        for route in ["page", "kept-page"] {
            assert_eq!(near.get(&format!("/{route}/new-{round}")).await.status, status, "{fault:?}");
        }
        stand.redis.say(&["FLUSHALL"]).await;
        good(far, "/kept-page/a").await;
        for path in ["/row/a", "/product/a"] {
            good(near, path).await;
        }
        stand.application.says(200);
        stand.application.relay.suffer(Fault::Nothing);
        good(near, &format!("/page/new-{round}")).await;
        for path in STORED {
            until("all is stored again", async || near.get(path).await.hit().map(drop)).await;
        }
        stand.until_shared(&pods).await;
    }
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_upstream_blocks_only_its_own_request() {
    let stand = Stand::new().await;
    let [near, far] = stand.pods_with(&["/page/hot", "/page/theirs", "/renewed-page/a"]).await;
    stand.application.relay.suffer(Fault::Silent);
    until("the response is stale", async || {
        let answer = good(&near, "/renewed-page/a").await;
        assert_eq!(answer.hit(), Some("l1"), "the response is revalidated in the background");
        answer.ttl().is_some_and(|ttl| ttl < 0).then_some(())
    })
    .await;
    let answers = async {
        for _ in 0..20 {
            assert_eq!(good(&near, "/page/hot").await.hit(), Some("l1"));
            assert_eq!(good(&near, "/renewed-page/a").await.hit(), Some("l1"));
        }
        assert_eq!(good(&far, "/page/theirs").await.hit(), Some("l2"));
        for path in ["/row/a", "/product/a"] {
            good(&near, path).await;
        }
        stand.application.relay.suffer(Fault::Nothing);
    };
    let (waited, ()) = tokio::join!(good(&near, "/page/new"), answers);
    assert!(waited.hit().is_none());
    until("the response is refreshed", async || {
        near.get("/renewed-page/a").await.ttl().is_some_and(|ttl| ttl >= 0).then_some(())
    })
    .await;
    stand.database.drop_schema().await;
}
