//! Faults of Postgres.

use futures::future::join_all;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_stored_responses_and_the_next_source_serve() {
    let stand = Stand::new().await;
    let pods = stand.pods_with(&["/row/hot", "/row/theirs", "/brief-row/a"]).await;
    let [near, far] = &pods;
    for (round, fault) in
        [Fault::Cut, Fault::Silent, Fault::Slow(Duration::from_secs(3))].into_iter().enumerate()
    {
        stand.to_postgres.suffer(fault);
        assert_eq!(good(near, "/row/hot").await.hit(), Some("l1"), "{fault:?}");
        assert!(good(far, "/row/theirs").await.hit().is_some(), "{fault:?}");
        until_it_stands_in(near, "/brief-row/a").await;
        assert_eq!(who(&good(near, &format!("/item/{round}")).await), "http", "{fault:?}");
        assert_eq!(near.get(&format!("/row/new-{round}")).await.status, 502, "{fault:?}");
        // A request is as good as the watch that asks every 5 s.
        until("the fault is reported", async || {
            near.get(&format!("/row/new-{round}")).await;
            (near.policy().await["tiers"]["postgres/catalog"] == "down").then_some(())
        })
        .await;
        until_tier(near, "postgres/catalog", "down").await;
        stand.to_postgres.suffer(Fault::Nothing);
        until("a row", async || {
            (who(&near.get(&format!("/row/new-{round}")).await) == "postgres").then_some(())
        })
        .await;
        until_tier(near, "postgres/catalog", "up").await;
        until("the response is refreshed", async || near.get("/brief-row/a").await.hit().map(drop)).await;
    }
    assert!(failures(near, "postgres").await > 0.0);
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_without_a_postgres_connection_is_served_by_the_next_source() {
    let stand = Stand::new().await;
    let [pod, _] = stand.pods_with(&["/item/hot"]).await;
    stand.to_postgres.suffer(Fault::Silent);
    let paths: Vec<_> = (0..20).map(|number| format!("/item/{number}")).collect();
    for answer in join_all(paths.iter().map(|path| good(&pod, path))).await {
        assert_eq!(who(&answer), "http");
    }
    assert_eq!(good(&pod, "/item/hot").await.hit(), Some("l1"));
    assert!(failures(&pod, "postgres").await >= 20.0);
    stand.to_postgres.suffer(Fault::Nothing);
    let mut number = 20;
    until("a row", async || {
        number += 1;
        (who(&good(&pod, &format!("/item/{number}")).await) == "postgres").then_some(())
    })
    .await;
    stand.database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_fails_and_a_value_that_does_not_parse_are_left_to_the_next_source() {
    let stand = Stand::new().await;
    let pod = stand.pod().await;
    for number in 0..10 {
        assert_eq!(who(&good(&pod, &format!("/broken/{number}")).await), "http");
    }
    assert!(pod.logged("nowhere").is_some(), "the log says why");
    assert_eq!(failures(&pod, "postgres").await, 10.0);
    assert_eq!(who(&good(&pod, "/number/pen").await), "http");
    assert_eq!(who(&good(&pod, "/number/1").await), "postgres");
    assert_eq!(failures(&pod, "postgres").await, 10.0, "a value is no fault of the tier");
    until_tier(&pod, "postgres/catalog", "up").await;
    stand.database.drop_schema().await;
}
