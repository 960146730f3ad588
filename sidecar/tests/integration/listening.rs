//! Notifications of Postgres, which purge.

use std::{fs, time::Duration};

use larder_policy::trigger::Trigger;
use tokio_postgres::NoTls;

use super::harness::{Fault, Folder, Origin, RedisServer, Relay, Shop, Sidecar, two, until};

const SPEC: &str = r#"
sources: [{name: db, postgres: {urlFrom: DATABASE}}]
routes:
- {name: user, match: {path: "/users/{id}"}, ttl: 600s, tags: ["user:{id}"]}
invalidation: {notifications: {source: db, channel: shop}}
"#;

const REDIS: &str = "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}\n";

const USERS: &str = "create table users (id text primary key, name text, team text);
insert into users select number, 'name', 'a' from generate_series(1, 5000) as number;";

/// Opens a shop with a table whose trigger notifies.
pub(crate) async fn open(trigger: &Trigger) -> Shop {
    let shop = Shop::open(SPEC, USERS).await;
    // Twice, because it replaces itself.
    shop.server.run(&trigger.sql().unwrap()).await;
    shop.server.run(&trigger.sql().unwrap()).await;
    shop
}

/// Changes the first user without a notification.
async fn write_unheard(shop: &Shop) {
    let statements =
        "alter table users disable trigger all; update users set name = 'unheard' where id = '1'";
    shop.server.run(statements).await;
}

pub(crate) fn trigger() -> Trigger {
    Trigger {
        schema: "public".into(),
        table: "users".into(),
        channel: "shop".into(),
        tags: vec!["user:{id}".into()],
        ..Trigger::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_by_plain_sql_purges_in_every_sidecar() {
    let shop = open(&trigger()).await;
    for head in [REDIS, ""] {
        let origin = Origin::numbered(&[]).await;
        let policy = shop.policy(head);
        let sidecars = two(&policy, &origin).await;
        let mut kept = vec![];
        for sidecar in &sidecars {
            kept.push(sidecar.stored("/users/2").await);
        }
        for write in [
            "update users set name = 'other' where id = '1'",
            "delete from users where id = '1'",
            "insert into users values ('1', 'new')",
            "update users set id = 'moved' where id = '1'; update users set id = '1' where id = 'moved'",
        ] {
            let mut old = vec![];
            for sidecar in &sidecars {
                old.push(sidecar.stored("/users/1").await);
            }
            shop.server.run(write).await;
            for (sidecar, old) in sidecars.iter().zip(&old) {
                sidecar.until_new("/users/1", old).await;
            }
        }
        for (sidecar, kept) in sidecars.iter().zip(&kept) {
            assert_eq!(sidecar.get("/users/2").await.body, *kept, "another user stays stored");
            assert!(sidecar.metric("larder_malformed_notifications_total", &[]).await == 0.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_sidecars_listens_and_another_takes_over_when_it_ends() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy(REDIS);
    let [a, b] = two(&policy, &origin).await;
    let listens = |sidecar: &Sidecar| sidecar.logged("listening for notifications").is_some();
    until("a listener", async || (listens(&a) || listens(&b)).then_some(())).await;
    assert!(!(listens(&a) && listens(&b)), "both listen");
    let (ends, stays) = if listens(&a) { (a, b) } else { (b, a) };
    let old = stays.stored("/users/1").await;
    drop(ends);
    shop.server.run("update users set name = 'unheard' where id = '1'").await;
    until("the other listens", async || listens(&stays).then_some(())).await;
    stays.until_new("/users/1", &old).await;
    let old = stays.stored("/users/1").await;
    shop.server.run("update users set name = 'heard' where id = '1'").await;
    stays.until_new("/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_can_not_tell_redis_leaves_the_lock() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let redis = RedisServer::start().await;
    let folder = Folder::new();
    let head = async |name: &str| {
        let relay = Relay::to(([127, 0, 0, 1], redis.port).into()).await;
        fs::write(folder.join(name), format!("redis://127.0.0.1:{}/", relay.port)).unwrap();
        (format!("l2: {{redis: {{urlFrom: {{file: {}}}}}}}\n", folder.join(name).display()), relay)
    };
    let [(one, to_one), (other, to_other)] = [head("one").await, head("other").await];
    let policy = shop.policy(&one);
    let a = Sidecar::start(&policy, origin.address).await;
    let twin = policy.twin(&shop.spec(&other));
    let b = Sidecar::start(&twin, origin.address).await;
    let listens = |sidecar: &Sidecar| sidecar.logged("listening for notifications").is_some();
    until("a listener", async || (listens(&a) || listens(&b)).then_some(())).await;
    let (stays, relay) = if listens(&a) { (b, to_one) } else { (a, to_other) };
    let old = stays.stored("/users/1").await;
    relay.suffer(Fault::Cut);
    shop.server.run("update users set name = 'other' where id = '1'").await;
    stays.until_new("/users/1", &old).await;
    until("the other listens", async || listens(&stays).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_of_a_listener_that_is_gone_without_a_word_is_free_soon() {
    let shop = open(&trigger()).await;
    let (relay, by_relay) = shop.relay().await;
    let folder = Folder::new();
    let file = |folder: &Folder| folder.join("url").display().to_string();
    fs::write(file(&folder), by_relay).unwrap();
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy(REDIS);
    let spec = shop.spec(REDIS).replace(&file(&shop.folder), &file(&folder));
    let twin = policy.twin(&spec);
    let gone = Sidecar::start(&twin, origin.address).await;
    until("a listener", async || gone.logged("listening for notifications")).await;
    let stays = Sidecar::start(&policy, origin.address).await;
    let old = stays.stored("/users/1").await;
    // The server learns nothing of its client's end.
    relay.suffer(Fault::Parted);
    gone.last_error("notifications/db").await;
    write_unheard(&shop).await;
    stays.until_new("/users/1", &old).await;
    until("another listener", async || stays.logged("listening for notifications")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_that_a_stranger_has_is_reported_and_the_gap_is_purged() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy(REDIS);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    until("a listener", async || sidecar.logged("listening for notifications")).await;
    shop.server.run("create role stranger login password 'x'").await;
    let url = shop.server.url("stranger", "x", "disable");
    let (stranger, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let of_locks = "from pg_locks where locktype = 'advisory'";
    let key = shop.server.number(&format!("select (classid::bigint << 32) | objid::bigint {of_locks}")).await;
    let takes = tokio::spawn(async move {
        stranger.batch_execute(&format!("select pg_advisory_lock({key})")).await.unwrap();
        stranger
    });
    until("the stranger waits for the lock", async || {
        let waiting = format!("select count(*) {of_locks} and not granted");
        (shop.server.number(&waiting).await == 1).then_some(())
    })
    .await;
    let old = sidecar.stored("/users/1").await;
    shop.end_connections("client backend").await;
    let stranger = takes.await.unwrap();
    until("the stranger is named", async || {
        let error = sidecar.last_error("notifications/db").await;
        error.contains("of role stranger").then_some(())
    })
    .await;
    until("the feed is down", async || {
        (sidecar.metric("larder_tier_up", &["notifications/db"]).await == 0.0).then_some(())
    })
    .await;
    write_unheard(&shop).await;
    drop(stranger);
    sidecar.until_new("/users/1", &old).await;
    sidecar.until_no_error().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notification_received_before_a_connection_ends_purges() {
    let shop = open(&trigger()).await;
    let (relay, url) = shop.relay().await;
    shop.reach_by(&url);
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let (admin, connection) = tokio_postgres::connect(&shop.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let [old, kept] = [sidecar.stored("/users/1").await, sidecar.stored("/users/2").await];
        relay.suffer(Fault::Silent);
        for statement in [
            "alter role larder nologin",
            "update users set name = 'last' where id = '1'",
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'larder-feed'",
        ] {
            admin.batch_execute(statement).await.unwrap();
            // A server process that is to end does so before it notifies.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        relay.suffer(Fault::Nothing);
        sidecar.until_new("/users/1", &old).await;
        assert_eq!(sidecar.get("/users/2").await.body, kept, "listening has not begun again");
        admin.batch_execute("alter role larder login").await.unwrap();
        sidecar.until_new("/users/2", &kept).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connection_is_given_up() {
    let shop = open(&trigger()).await;
    let (relay, url) = shop.relay().await;
    shop.reach_by(&url);
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.stored("/users/1").await;
    relay.suffer(Fault::Silent);
    let error = sidecar.last_error("notifications/db").await;
    assert!(error.contains("did not respond"), "{error}");
    write_unheard(&shop).await;
    relay.suffer(Fault::Nothing);
    sidecar.until_new("/users/1", &old).await;
    sidecar.until_no_error().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_purged_after_a_connection_was_lost() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for _ in 0..3 {
        let old = sidecar.stored("/users/1").await;
        // Nobody hears of this write: it changes no row by which the trigger would notify.
        until("a connection to end", async || {
            (shop.end_connections("client backend").await > 0).then_some(())
        })
        .await;
        sidecar.until_new("/users/1", &old).await;
        sidecar.until_tiers_are("up").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_that_can_not_listen_says_why_until_it_can() {
    let shop = open(&trigger()).await;
    shop.reach_by("postgres://larder@127.0.0.1:1/postgres?sslmode=disable");
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
    let error = sidecar.last_error("notifications/db").await;
    until("no connection", async || {
        sidecar.last_error("notifications/db").await.contains("no connection").then_some(())
    })
    .await;
    assert!(sidecar.metric("larder_tier_up", &["notifications/db"]).await == 0.0, "{error}");
    let old = sidecar.stored("/users/1").await;
    shop.reach_by(&shop.url());
    sidecar.until_no_error().await;
    sidecar.until_new("/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_notification_purges_everything_and_is_counted() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (number, payload) in ["", "user:1", r#"{"tag": ["user:1"]}"#, "{}"].into_iter().enumerate() {
        let old = sidecar.stored("/users/2").await;
        shop.server.run(&format!("select pg_notify('shop', '{payload}')")).await;
        sidecar.until_new("/users/2", &old).await;
        let count = sidecar.metric("larder_malformed_notifications_total", &[]).await;
        assert!((count - (number + 1) as f64).abs() < f64::EPSILON, "{count}");
    }
    assert!(sidecar.logged("a notification names nothing").is_some());
    let old = sidecar.stored("/users/2").await;
    shop.server.run("notify \"SHOP\", 'x'; notify shop, '{\"tags\": [\"user:1\"]}'").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(sidecar.get("/users/2").await.body, old, "another channel, and another user");
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_notifications_loses_nothing() {
    let shop = open(&trigger()).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.stored("/users/5").await;
    shop.server
        .run("select pg_notify('shop', '{\"tags\": [\"other:' || n || '\"]}') from generate_series(1, 50000) n")
        .await;
    shop.server.run("update users set name = 'x' where id = '5'").await;
    sidecar.until_new("/users/5", &old).await;
    sidecar.until_tiers_are("up").await;
}
