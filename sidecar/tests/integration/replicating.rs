//! Changes of tables in Postgres, read by logical replication.

use std::{fs, time::Duration};

use super::harness::{Authority, Fault, Folder, Origin, Policy, PostgresServer, Relay, Sidecar, two, until};

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

/// A Postgres with a published table, and the file with its URL.
struct Shop {
    server: PostgresServer,
    folder: Folder,
}

impl Shop {
    async fn open(statements: &str) -> Self {
        let authority = Authority::new();
        let server = PostgresServer::start(&authority.certify("127.0.0.1")).await;
        let shop = Self { server, folder: Folder::new() };
        fs::write(shop.folder.join("ca"), authority.pem()).unwrap();
        shop.reach_by(&shop.url("larder", PostgresServer::PASSWORD));
        shop.server.run(statements).await;
        shop
    }

    fn url(&self, user: &str, password: &str) -> String {
        self.server.url(user, password, "disable")
    }

    fn reach_by(&self, url: &str) {
        fs::write(self.folder.join("written"), url).unwrap();
        fs::rename(self.folder.join("written"), self.folder.join("url")).unwrap();
    }

    fn spec(&self, head: &str) -> String {
        let file = format!("{{file: {}}}", self.folder.join("url").display());
        format!("{head}{}", SPEC.replace("DATABASE", &file))
    }

    fn policy(&self, head: &str) -> Policy {
        Policy::new(&self.spec(head))
    }

    async fn slots(&self) -> i64 {
        self.server.number("select count(*) from pg_replication_slots").await
    }

    /// Ends the connections that replicate, or those that go with them.
    async fn end_connections(&self, kind: &str) -> i64 {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'larder-feed'";
        self.server.number(&format!("{end} and backend_type = '{kind}'")).await
    }
}

/// Returns the response that a sidecar has stored.
async fn stored(sidecar: &Sidecar, path: &str) -> String {
    until("a stored response", async || {
        let answer = sidecar.get(path).await;
        (answer.hit() == Some("l1")).then_some(answer.body)
    })
    .await
}

/// Waits until a sidecar no longer serves what it had stored.
async fn until_new(sidecar: &Sidecar, path: &str, old: &str) {
    until("a new response", async || (sidecar.get(path).await.body != old).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_by_anyone_purges_names_of_its_rows_in_every_sidecar() {
    let shop = Shop::open(USERS).await;
    for head in [REDIS, ""] {
        let origin = Origin::numbered(&[]).await;
        let policy = shop.policy(head);
        let sidecars = two(&policy, &origin).await;
        let mut kept = vec![];
        for sidecar in &sidecars {
            kept.push((stored(sidecar, "/users/2").await, stored(sidecar, "/teams/none").await));
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
                old.push(stored(sidecar, purged).await);
            }
            shop.server.run(write).await;
            for (sidecar, old) in sidecars.iter().zip(&old) {
                until_new(sidecar, purged, old).await;
            }
        }
        for (sidecar, (user, team)) in sidecars.iter().zip(&kept) {
            assert_eq!(sidecar.get("/users/2").await.body, *user, "another user stays stored");
            assert_eq!(sidecar.get("/teams/none").await.body, *team, "and another team");
        }
        shop.server.run("begin; delete from users where id = '2'; rollback").await;
        let old = stored(&sidecars[0], "/users/1").await;
        shop.server.run("update users set name = 'later' where id = '1'").await;
        until_new(&sidecars[0], "/users/1", &old).await;
        assert_eq!(sidecars[0].get("/users/2").await.body, kept[0].0, "what was rolled back purges nothing");
        let old = stored(&sidecars[1], "/users/3").await;
        shop.server.run("truncate users; insert into users values ('1', 'new', 'a')").await;
        until_new(&sidecars[1], "/users/3", &old).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_values_does_not_depend_on_settings_of_the_role() {
    let shop = Shop::open(&USERS.replace("team text", "team float8").replace("'a'", "1 / 3.0::float8")).await;
    shop.server
        .run("alter role larder set extra_float_digits = -5; alter role larder set datestyle = 'SQL, DMY'")
        .await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let team = format!("/teams/{}", 1.0 / 3.0);
    let [old, other] = [stored(&sidecar, &team).await, stored(&sidecar, "/teams/1").await];
    shop.server.run("update users set name = 'other' where id = '1'").await;
    until_new(&sidecar, &team, &old).await;
    assert_eq!(sidecar.get("/teams/1").await.body, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sidecar_reads_another_takes_over_and_no_slot_stays() {
    let shop = Shop::open(USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy(REDIS);
    let [a, b] = two(&policy, &origin).await;
    let reads = |sidecar: &Sidecar| sidecar.logged("reading changes").is_some();
    until("a reader", async || (reads(&a) || reads(&b)).then_some(())).await;
    assert!(!(reads(&a) && reads(&b)) && shop.slots().await == 1, "both read");
    let (ends, stays) = if reads(&a) { (a, b) } else { (b, a) };
    let old = stored(&stays, "/users/1").await;
    drop(ends);
    shop.server.run("update users set name = 'unread' where id = '1'").await;
    until("the other reads", async || reads(&stays).then_some(())).await;
    until_new(&stays, "/users/1", &old).await;
    let old = stored(&stays, "/users/1").await;
    shop.server.run("update users set name = 'read' where id = '1'").await;
    until_new(&stays, "/users/1", &old).await;
    drop(stays);
    until("no slot", async || (shop.slots().await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_tables_name_is_purged_after_a_connection_was_lost() {
    let shop = Shop::open(USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for kind in ["walsender", "client backend", "walsender"] {
        let old = stored(&sidecar, "/users/1").await;
        until("a connection to end", async || (shop.end_connections(kind).await > 0).then_some(())).await;
        until_new(&sidecar, "/users/1", &old).await;
        sidecar.until_tiers_are("up").await;
    }
    until("one slot", async || (shop.slots().await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connection_is_given_up() {
    let shop = Shop::open(USERS).await;
    let relay = Relay::to(([127, 0, 0, 1], shop.server.port).into()).await;
    let url = shop.url("larder", PostgresServer::PASSWORD);
    shop.reach_by(&url.replace(&shop.server.port.to_string(), &relay.port.to_string()));
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = stored(&sidecar, "/users/1").await;
    relay.suffer(Fault::Silent);
    let error = sidecar.last_error("changes/db").await;
    assert!(error.contains("did not respond"), "{error}");
    shop.server.run("update users set name = 'unread' where id = '1'").await;
    relay.suffer(Fault::Nothing);
    until_new(&sidecar, "/users/1", &old).await;
    sidecar.until_no_error().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_others_do_not_see_yet_is_purged_when_they_do() {
    let shop = Shop::open(USERS).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    // Commits wait for a standby that does not exist: they are in the log, and nobody sees them.
    shop.server.run("alter system set synchronous_standby_names = 'nobody'").await;
    shop.server.run("select pg_reload_conf()").await;
    let synchronous =
        "select count(*) from pg_settings where name = 'synchronous_standby_names' and setting = 'nobody'";
    until("the setting", async || (shop.server.number(synchronous).await == 1).then_some(())).await;
    let old = stored(&sidecar, "/users/1").await;
    let seen = "select count(*) from users where name = 'synchronous'";
    let write = shop.server.run("update users set name = 'synchronous' where id = '1'");
    let checks = async {
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        until("a commit that waits", async || (shop.server.number(waits).await == 1).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(shop.server.number(seen).await, 0, "nobody sees it");
        assert_eq!(sidecar.get("/users/1").await.body, old, "what is stored is what others see");
        let others = stored(&sidecar, "/users/2").await;
        shop.server
            .run("set synchronous_commit = local; update users set name = 'local' where id = '2'")
            .await;
        until_new(&sidecar, "/users/2", &others).await;
        shop.server.run("alter system reset synchronous_standby_names").await;
        shop.server.run("select pg_reload_conf()").await;
    };
    tokio::join!(write, checks);
    assert_eq!(shop.server.number(seen).await, 1);
    until_new(&sidecar, "/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_requirements_are_named_with_their_remedy() {
    let shop = Shop::open(
        "create table users (id text primary key, name text, team text);
         create role reader login password 'open'; grant all on users to reader;",
    )
    .await;
    shop.reach_by(&shop.url("reader", "open"));
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
    let shop = Shop::open(&USERS.replace("alter table users replica identity full;", "")).await;
    let origin = Origin::numbered(&[]).await;
    let policy = shop.policy("");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let error = sidecar.last_error("changes/db").await;
    assert!(error.contains("REPLICA IDENTITY FULL"), "{error}");
    for write in ["update users set team = 'b' where id = '1'", "delete from users where id = '1'"] {
        let [team, other] = [stored(&sidecar, "/teams/a").await, stored(&sidecar, "/users/2").await];
        shop.server.run(write).await;
        until_new(&sidecar, "/teams/a", &team).await;
        assert_eq!(sidecar.get("/users/2").await.body, other, "the key is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_replicates_is_encrypted_and_trusts_the_ca() {
    let shop = Shop::open(USERS).await;
    let origin = Origin::numbered(&[]).await;
    let ca = format!("postgres: {{caFrom: {{file: {}}}, ", shop.folder.join("ca").display());
    shop.reach_by(&shop.server.url("larder", PostgresServer::PASSWORD, "verify-full"));
    let policy = Policy::new(&shop.spec("").replace("postgres: {", &ca));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where ssl and application_name = 'larder-feed'";
    assert_eq!(shop.server.number(encrypted).await, 2);
    let old = stored(&sidecar, "/users/1").await;
    shop.server.run("update users set name = 'other' where id = '1'").await;
    until_new(&sidecar, "/users/1", &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_that_waits_for_a_transaction_says_so() {
    let shop = Shop::open(USERS).await;
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
