//! Changes of tables in Postgres, read by logical replication.

use std::time::Duration;

use super::harness::{Fault, Origin, Policy, PostgresServer, Shop, Sidecar, two, until};

const SPEC: &str = r#"
sources: [{name: db, postgres: {urlFrom: DATABASE}}]
routes:
- {name: user, match: {path: "/users/{id}"}, ttl: 600s, tags: ["user:{id}"]}
- {name: team, match: {path: "/teams/{team}"}, ttl: 600s, tags: ["team:{team}"]}
invalidation:
  changes:
    source: db
    publication: shop
    tables: [{table: users, purge: {tags: ["user:{id}"], paths: ["/teams/{team}"]}}]
"#;

const REDIS: &str = "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}\n";

const USERS: &str = "create table users (id text primary key, name text, team text);
alter table users alter name set storage external;
insert into users select number, 'name', 'a' from generate_series(1, 100) as number;
alter table users replica identity full;
create publication shop for table users;";

async fn slots(shop: &Shop) -> i64 {
    shop.server.number("select count(*) from pg_replication_slots").await
}

#[tokio::test(flavor = "multi_thread")]
async fn write_by_anyone_purges_names_of_its_rows_in_every_sidecar() {
    let shop = Shop::open(SPEC, USERS).await;
    for head in [REDIS, ""] {
        let origin = Origin::numbered(&[]).await;
        let policy = shop.policy(head);
        let sidecars = two(&policy, &origin).await;
        let mut kept = vec![];
        for sidecar in &sidecars {
            kept.push((sidecar.stored("/users/2").await, sidecar.stored("/teams/none").await));
        }
        for (write, purged) in [
            ("update users set name = 'other' where id = '1'", "/users/1"),
            ("update users set name = repeat('long', 10000) where id = '1'", "/users/1"),
            ("update users set team = 'b' where id = '1'", "/teams/a"),
            ("update users set team = 'a' where id = '1'", "/teams/a"),
            ("update users set id = 'moved' where id = '1'", "/users/1"),
            ("update users set id = '1' where id = 'moved'", "/users/moved"),
            ("delete from users where id = '1'", "/users/1"),
            ("begin; savepoint a; insert into users values ('1', 'new', 'a'); release a; commit", "/users/1"),
        ] {
            let mut old = vec![];
            for sidecar in &sidecars {
                old.push(sidecar.stored(purged).await);
            }
            shop.server.run(write).await;
            for (sidecar, old) in sidecars.iter().zip(&old) {
                sidecar.until_new(purged, old).await;
            }
        }
        for (sidecar, (user, team)) in sidecars.iter().zip(&kept) {
            assert_eq!(sidecar.get("/users/2").await.body, *user, "another user stays stored");
            assert_eq!(sidecar.get("/teams/none").await.body, *team, "and another team");
        }
        shop.server.run("begin; delete from users where id = '2'; rollback").await;
        let old = sidecars[0].stored("/users/1").await;
        shop.server.run("update users set name = 'later' where id = '1'").await;
        sidecars[0].until_new("/users/1", &old).await;
        assert_eq!(sidecars[0].get("/users/2").await.body, kept[0].0, "what was rolled back purges nothing");
        let old = sidecars[1].stored("/users/3").await;
        shop.server.run("truncate users; insert into users values ('1', 'new', 'a')").await;
        sidecars[1].until_new("/users/3", &old).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_values_does_not_depend_on_settings_of_the_role() {
    let shop =
        Shop::open(SPEC, &USERS.replace("team text", "team float8").replace("'a'", "1 / 3.0::float8")).await;
    shop.server
        .run("alter role larder set extra_float_digits = -5; alter role larder set datestyle = 'SQL, DMY'")
        .await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let team = format!("/teams/{}", 1.0 / 3.0);
    let [old, other] = [sidecar.stored(&team).await, sidecar.stored("/teams/1").await];
    shop.server.run("update users set name = 'other' where id = '1'").await;
    sidecar.until_new(&team, &old).await;
    assert_eq!(sidecar.get("/teams/1").await.body, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sidecar_reads_another_takes_over_and_no_slot_stays() {
    let shop = Shop::open(SPEC, USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy(REDIS);
    let [a, b] = two(&policy, &origin).await;
    let reads = |sidecar: &Sidecar| sidecar.logged("reading changes").is_some();
    until("a reader", async || (reads(&a) || reads(&b)).then_some(())).await;
    assert!(!(reads(&a) && reads(&b)) && slots(&shop).await == 1, "both read");
    let (ends, stays) = if reads(&a) { (a, b) } else { (b, a) };
    let old = stays.stored("/users/1").await;
    drop(ends);
    shop.server.run("update users set name = 'unread' where id = '1'").await;
    until("the other reads", async || reads(&stays).then_some(())).await;
    stays.until_new("/users/1", &old).await;
    let old = stays.stored("/users/1").await;
    shop.server.run("update users set name = 'read' where id = '1'").await;
    stays.until_new("/users/1", &old).await;
    drop(stays);
    until("no slot", async || (slots(&shop).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_tables_name_is_purged_after_a_connection_was_lost() {
    let shop = Shop::open(SPEC, USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for kind in ["walsender", "client backend", "walsender"] {
        let old = sidecar.stored("/users/1").await;
        until("a connection to end", async || (shop.end_connections(kind).await > 0).then_some(())).await;
        sidecar.until_new("/users/1", &old).await;
        sidecar.until_tiers_are("up").await;
    }
    until("one slot", async || (slots(&shop).await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connection_is_given_up() {
    let shop = Shop::open(SPEC, USERS).await;
    let (relay, url) = shop.relay().await;
    shop.reach_by(&url);
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.stored("/users/1").await;
    relay.suffer(Fault::Silent);
    let error = sidecar.last_error("changes/db").await;
    assert!(error.contains("did not respond"), "{error}");
    shop.server.run("update users set name = 'unread' where id = '1'").await;
    relay.suffer(Fault::Nothing);
    sidecar.until_new("/users/1", &old).await;
    sidecar.until_no_error().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_others_do_not_see_yet_is_purged_when_they_do() {
    let shop = Shop::open(SPEC, USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    // Commits wait for a standby that does not exist: they are in the log, and nobody sees them.
    shop.server.run("alter system set synchronous_standby_names = 'nobody'").await;
    shop.server.run("select pg_reload_conf()").await;
    let synchronous =
        "select count(*) from pg_settings where name = 'synchronous_standby_names' and setting = 'nobody'";
    until("the setting", async || (shop.server.number(synchronous).await == 1).then_some(())).await;
    let old = sidecar.stored("/users/1").await;
    let seen = "select count(*) from users where name = 'synchronous'";
    let write = shop.server.run("update users set name = 'synchronous' where id = '1'");
    let checks = async {
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        until("a commit that waits", async || (shop.server.number(waits).await == 1).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(shop.server.number(seen).await, 0, "nobody sees it");
        assert_eq!(sidecar.get("/users/1").await.body, old, "what is stored is what others see");
        let others = sidecar.stored("/users/2").await;
        shop.server
            .run("set synchronous_commit = local; update users set name = 'local' where id = '2'")
            .await;
        sidecar.until_new("/users/2", &others).await;
        shop.server.run("alter system reset synchronous_standby_names").await;
        shop.server.run("select pg_reload_conf()").await;
    };
    tokio::join!(write, checks);
    assert_eq!(shop.server.number(seen).await, 1);
    sidecar.until_new("/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_requirements_are_named_with_their_remedy() {
    let shop = Shop::open(
        SPEC,
        "create table users (id text primary key, name text, team text);
         create role reader login password 'open'; grant all on users to reader;",
    )
    .await;
    shop.reach_by(&shop.server.url("reader", "open", "disable"));
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
    for (says, remedy) in [
        (
            "run CREATE PUBLICATION shop FOR TABLE public.users",
            "create publication shop with (publish = 'insert')",
        ),
        (
            "SET (publish = 'insert, update, delete, truncate')",
            "alter publication shop set (publish = 'insert, update, delete, truncate')",
        ),
        (
            "run ALTER PUBLICATION shop ADD TABLE public.users",
            "alter publication shop add table users where (id <> '1')",
        ),
        ("only some rows of table public.users", "alter publication shop set table users (id, name)"),
        ("leaves out column \"team\"", "alter publication shop set table users"),
        ("ALTER ROLE … REPLICATION", "alter role reader replication"),
        ("run ALTER TABLE public.users REPLICA IDENTITY FULL", "alter table users replica identity full"),
    ] {
        until(says, async || sidecar.last_error("changes/db").await.contains(says).then_some(())).await;
        shop.server.run(remedy).await;
    }
    sidecar.until_no_error().await;
    sidecar.until_tiers_are("up").await;
    shop.server.run("alter publication shop drop table users").await;
    until("the check", async || {
        sidecar.last_error("changes/db").await.contains("ADD TABLE public.users").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_purged_that_old_values_could_name() {
    let shop = Shop::open(SPEC, &USERS.replace("alter table users replica identity full;", "")).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let error = sidecar.last_error("changes/db").await;
    assert!(error.contains("REPLICA IDENTITY FULL"), "{error}");
    for write in ["update users set team = 'b' where id = '1'", "delete from users where id = '1'"] {
        let [team, other] = [sidecar.stored("/teams/a").await, sidecar.stored("/users/2").await];
        shop.server.run(write).await;
        sidecar.until_new("/teams/a", &team).await;
        assert_eq!(sidecar.get("/users/2").await.body, other, "the key is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_replicates_is_encrypted_and_trusts_the_ca() {
    let shop = Shop::open(SPEC, USERS).await;
    let origin = Origin::numbered(&[]).await;
    let ca = format!("postgres: {{caFrom: {{file: {}}}, ", shop.folder.join("ca").display());
    shop.reach_by(&shop.server.url("larder", PostgresServer::PASSWORD, "verify-full"));
    let policy = Policy::new(&shop.spec("").replace("postgres: {", &ca));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and application_name = 'larder-feed'";
    assert_eq!(shop.server.number(encrypted).await, 2);
    let old = sidecar.stored("/users/1").await;
    shop.server.run("update users set name = 'other' where id = '1'").await;
    sidecar.until_new("/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_that_waits_for_a_transaction_says_so() {
    let shop = Shop::open(SPEC, USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let open =
        shop.server.run("begin; update users set name = 'open' where id = '5'; select pg_sleep(8); commit");
    let sidecar = async {
        let writes = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        until("a transaction", async || (shop.server.number(writes).await == 1).then_some(())).await;
        let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
        until("the reason", async || {
            sidecar.last_error("changes/db").await.contains("pg_stat_activity").then_some(())
        })
        .await;
        sidecar
    };
    let ((), sidecar) = tokio::join!(open, sidecar);
    sidecar.until_no_error().await;
    sidecar.until_tiers_are("up").await;
}
