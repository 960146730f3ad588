//! Cost of a tier's fault for hits in memory: none.

use futures::future::{LocalBoxFuture, join_all};

use super::*;

/// Number of measurements, of both pods at the same time, so that other load on the machine affects both.
const SLICES: usize = 7;
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 150;
/// Number of repetitions before a difference counts: noise passes, and a fault that slows hits down does not.
const ROUNDS: usize = 3;

/// Twice next to nothing is nothing: on a machine of two cores, a turn of the scheduler is longer than a hit. A wait for a tier
/// would be longer than this by far.
const NOISE: Duration = Duration::from_millis(2);

const ROUTES: &[&str] = &["/page", "/row", "/item", "/product"];

/// Brings about a fault.
type Suffer = for<'a> fn(&'a Stand) -> LocalBoxFuture<'a, ()>;

/// Compares a pod whose tiers are up with one whose tiers are at fault, while clients send both requests for unstored paths.
async fn compare(faults: &[(&str, Suffer)], mend: Suffer) {
    let (well, ill) = tokio::join!(Stand::trusting_for("1h"), Stand::trusting_for("1h"));
    let (healthy, faulty) = tokio::join!(well.pod(), ill.pod());
    let patience = Duration::from_millis(300);
    let asking = [&healthy, &faulty].map(|pod| newcomers(pod.address, ROUTES, 8, patience));
    for (what, suffer) in faults {
        suffer(&ill).await;
        for round in 1..=ROUNDS {
            let [well, ill] = measure([&healthy, &faulty]).await;
            eprintln!("p99 of hits, {what}: {ill:?}, and {well:?} in health");
            if ill <= (well * 2).max(well + NOISE) {
                break;
            }
            assert!(round < ROUNDS, "{what}: {ill:?}, and {well:?} in health");
        }
        mend(&ill).await;
    }
    drop(asking);
    drop([healthy, faulty]);
    well.database.drop_schema().await;
    ill.database.drop_schema().await;
}

/// The 99th percentile of hits at each pod, in the middle of several slices.
async fn measure(pods: [&Sidecar; 2]) -> [Duration; 2] {
    let mut slices: [Vec<Duration>; 2] = Default::default();
    for _ in 0..SLICES {
        for pod in pods {
            good(pod, "/page/hot").await;
        }
        let both = pods.map(|pod| p99_of_hits(pod.address, "/page/hot", CONNECTIONS, REQUESTS));
        for (slices, p99) in slices.iter_mut().zip(join_all(both).await) {
            slices.push(p99);
        }
    }
    slices.map(|mut slices| {
        slices.sort_unstable();
        slices[SLICES / 2]
    })
}

fn now<'a>(suffer: impl FnOnce()) -> LocalBoxFuture<'a, ()> {
    suffer();
    Box::pin(async {})
}

#[tokio::test(flavor = "multi_thread")]
async fn l1_hits_are_as_fast_during_any_fault() {
    compare(
        &[
            ("redis slow", |stand| now(|| stand.to_redis.suffer(Fault::Slow(Duration::from_millis(500))))),
            ("redis silent", |stand| now(|| stand.to_redis.suffer(Fault::Silent))),
            ("redis down", |stand| now(|| stand.to_redis.suffer(Fault::Cut))),
            ("postgres down", |stand| now(|| stand.to_postgres.suffer(Fault::Cut))),
            ("postgres silent, its pool exhausted", |stand| now(|| stand.to_postgres.suffer(Fault::Silent))),
            ("source 500", |stand| now(|| stand.store.says(500))),
            ("source reset", |stand| now(|| stand.store.relay.suffer(Fault::Cut))),
            ("source silent", |stand| now(|| stand.store.relay.suffer(Fault::Silent))),
            ("application 500", |stand| now(|| stand.application.says(500))),
            ("application down", |stand| now(|| stand.application.relay.suffer(Fault::Cut))),
            ("application silent", |stand| now(|| stand.application.relay.suffer(Fault::Silent))),
            // The last one: no relay mends it.
            ("redis full", |stand| Box::pin(stand.redis.say(&["CONFIG", "SET", "maxmemory", "1"]))),
        ],
        |stand| {
            now(|| {
                stand.to_redis.suffer(Fault::Nothing);
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
