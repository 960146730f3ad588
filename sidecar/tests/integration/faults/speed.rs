//! What a tier's fault costs those who are answered from memory: nothing.

use futures::future::LocalBoxFuture;

use super::*;

/// How often each pod is measured, by turns, under each fault.
const SLICES: usize = 9;
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 250;

/// Fewer than the slowest hundredth, so that a machine that is busy with something else for some milliseconds does not count:
/// where another wait came into the way of a hit, it would be longer by far.
const NOISE: Duration = Duration::from_millis(2);

const ROUTES: &[&str] = &["/page", "/row", "/item", "/product"];

/// Brings a fault about.
type Suffer = for<'a> fn(&'a Stand) -> LocalBoxFuture<'a, ()>;

/// Compares two pods whose tiers are alike, while many ask both for what is not stored; those of the second one are at fault.
async fn compare(faults: &[(&str, Suffer)], mend: Suffer) {
    let (well, ill) = tokio::join!(Stand::trusting_for("1h"), Stand::trusting_for("1h"));
    let (healthy, faulty) = tokio::join!(well.pod(), ill.pod());
    let patience = Duration::from_millis(300);
    let asking = [&healthy, &faulty].map(|pod| newcomers(pod.address, ROUTES, 8, patience));
    for (what, suffer) in faults {
        suffer(&ill).await;
        let mut slices: [Vec<Duration>; 2] = Default::default();
        for number in 0..SLICES {
            // Neither is always the first.
            for which in [number % 2, 1 - number % 2] {
                let pod = [&healthy, &faulty][which];
                let answer = pod.get("/page/hot").await;
                assert!(answer.status == 200, "{what}: {}", answer.cache_status());
                slices[which].push(p99_of_hits(pod.address, "/page/hot", CONNECTIONS, REQUESTS).await);
            }
        }
        let [healthy, faulty] = slices.map(|mut slices| {
            slices.sort_unstable();
            slices[SLICES / 2]
        });
        println!("p99 of hits, {what}: {faulty:?}, and {healthy:?} in health");
        assert!(faulty <= (healthy * 2).max(healthy + NOISE), "{what}: {faulty:?}, {healthy:?} in health");
        mend(&ill).await;
    }
    drop(asking);
    drop([healthy, faulty]);
    well.database.drop_schema().await;
    ill.database.drop_schema().await;
}

fn now<'a>(suffer: impl FnOnce()) -> LocalBoxFuture<'a, ()> {
    suffer();
    Box::pin(async {})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_is_served_as_fast_whatever_redis_does() {
    compare(
        &[
            ("redis slow", |stand| now(|| stand.to_redis.suffer(Fault::Slow(Duration::from_millis(500))))),
            ("redis silent", |stand| now(|| stand.to_redis.suffer(Fault::Silent))),
            ("redis down", |stand| now(|| stand.to_redis.suffer(Fault::Cut))),
            ("redis full", |stand| Box::pin(stand.redis.say(&["CONFIG", "SET", "maxmemory", "1"]))),
        ],
        |stand| now(|| stand.to_redis.suffer(Fault::Nothing)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_is_served_as_fast_whatever_sources_and_application_do() {
    compare(
        &[
            ("postgres down", |stand| now(|| stand.to_postgres.suffer(Fault::Cut))),
            ("postgres silent, its pool exhausted", |stand| now(|| stand.to_postgres.suffer(Fault::Silent))),
            ("source 500", |stand| now(|| stand.store.says(500))),
            ("source reset", |stand| now(|| stand.store.relay.suffer(Fault::Cut))),
            ("source silent", |stand| now(|| stand.store.relay.suffer(Fault::Silent))),
            ("application 500", |stand| now(|| stand.application.says(500))),
            ("application down", |stand| now(|| stand.application.relay.suffer(Fault::Cut))),
            ("application silent", |stand| now(|| stand.application.relay.suffer(Fault::Silent))),
        ],
        |stand| {
            now(|| {
                stand.to_postgres.suffer(Fault::Nothing);
                for server in [&stand.store, &stand.application] {
                    server.says(200);
                    server.relay.suffer(Fault::Nothing);
                }
            })
        },
    )
    .await;
}
