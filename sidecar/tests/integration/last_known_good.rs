//! The last good responses in Postgres.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use larder_policy::PurgeName;
use larder_sidecar::sources::{
    last_known_good::LastKnownGood,
    postgres::{PostgresError, PostgresSource},
};

use super::harness::{Database, unique, until};

const ID: [u8; 32] = [7; 32];
const POLICY: &str = "shop/shop";

fn keeper(database: &Database) -> LastKnownGood {
    LastKnownGood::new(
        Arc::new(PostgresSource::start(database.source("statementTimeout: 1s"))),
        POLICY.to_owned(),
        version("one"),
    )
}

fn version(shape: &str) -> PurgeName {
    PurgeName::version(shape)
}

fn tag(name: &str) -> PurgeName {
    PurgeName::tag(name)
}

async fn store(keeper: &LastKnownGood, names: &[PurgeName], record: &'static str) {
    keeper.store(ID, names, Bytes::from_static(record.as_bytes()), Instant::now()).await.unwrap();
}

async fn load(keeper: &LastKnownGood) -> Option<Bytes> {
    keeper.load(ID).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_response_is_persisted_until_one_of_its_names_is_purged() {
    let database = Database::new("").await;
    let (one, other) = (keeper(&database), keeper(&database));
    assert_eq!(load(&one).await, None);
    store(&one, &[tag("a"), tag("b")], "first").await;
    assert_eq!(load(&other).await, Some(Bytes::from("first")), "pods share the response");
    store(&other, &[tag("b"), tag("c")], "second").await;
    one.forget(&[tag("a")]).await.unwrap();
    assert_eq!(load(&one).await, Some(Bytes::from("second")), "the response has other names now");
    one.forget(&[tag("x"), tag("c")]).await.unwrap();
    assert_eq!(load(&other).await, None);
    store(&one, &[tag("c")], "third").await;
    assert_eq!(load(&other).await, Some(Bytes::from("third")), "the response was requested after the purge");
    other.forget_everything().await.unwrap();
    assert_eq!(load(&one).await, None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_share_only_the_tables() {
    let database = Database::new("").await;
    let one = keeper(&database);
    let source = Arc::new(PostgresSource::start(database.source("statementTimeout: 1s")));
    let other = LastKnownGood::new(Arc::clone(&source), "shop/other".to_owned(), version("one"));
    assert!(other.is_of(&source, "shop/other", version("one")));
    assert!(
        !other.is_of(&source, POLICY, version("one")) && !other.is_of(&source, "shop/other", version("two"))
    );
    store(&one, &[tag("a")], "one").await;
    store(&other, &[tag("a")], "other").await;
    other.forget_everything().await.unwrap();
    other.forget(&[tag("a")]).await.unwrap();
    assert_eq!((load(&one).await, load(&other).await), (Some(Bytes::from("one")), None));
    store(&one, &[tag("a")], "again").await;
    assert_eq!(load(&one).await, Some(Bytes::from("again")));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_of_one_policy_version_covers_responses_persisted_under_another() {
    let database = Database::new("").await;
    let one = keeper(&database);
    let source = Arc::new(PostgresSource::start(database.source("statementTimeout: 1s")));
    let two = LastKnownGood::new(source, POLICY.to_owned(), version("two"));
    store(&one, &[tag("a")], "first").await;
    one.forget(&[tag("b")]).await.unwrap();
    assert_eq!(load(&one).await, Some(Bytes::from("first")), "the version's own names are exact");
    let asked_at = Instant::now();
    two.forget(&[tag("b")]).await.unwrap();
    assert_eq!(load(&one).await, None, "those of another version do not");
    one.store(ID, &[tag("a")], Bytes::from("late"), asked_at).await.unwrap();
    assert_eq!(load(&one).await, None, "the response was requested before");
    store(&one, &[tag("a")], "second").await;
    assert_eq!(load(&one).await, Some(Bytes::from("second")));
    two.note_unnamed_write();
    until("the write is published", async || load(&one).await.is_none().then_some(())).await;
    store(&one, &[tag("a")], "third").await;
    assert_eq!(load(&one).await, Some(Bytes::from("third")));
    // A successor of another version's pending purges does not know the meaning of their names.
    let far = LastKnownGood::new(
        Arc::new(PostgresSource::start(database.source_as_now("statementTimeout: 1s"))),
        POLICY.to_owned(),
        version("one"),
    );
    two.note_unnamed_write();
    far.inherit(&two);
    assert_eq!(load(&far).await, None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_requested_before_a_purge_is_persisted_by_no_pod_after_it() {
    let database = Database::new("").await;
    let (one, other) = (keeper(&database), keeper(&database));
    for everything in [false, true] {
        let asked_at = Instant::now();
        if everything {
            other.forget_everything().await.unwrap();
        } else {
            other.forget(&[tag("a")]).await.unwrap();
        }
        one.store(ID, &[tag("z"), tag("a")], Bytes::from("old"), asked_at).await.unwrap();
        assert_eq!(load(&one).await, None, "{everything}");
    }
    store(&one, &[tag("a")], "new").await;
    assert_eq!(load(&one).await, Some(Bytes::from("new")));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_postgres_missed_is_sent_before_anything_is_read() {
    let database = Database::new("").await;
    let far = LastKnownGood::new(
        Arc::new(PostgresSource::start(database.source_as_now("statementTimeout: 1s"))),
        POLICY.to_owned(),
        version("one"),
    );
    let relay = database.through_a_relay().await;
    let near = keeper(&database);
    store(&far, &[tag("a")], "old").await;
    assert_eq!(load(&near).await, Some(Bytes::from("old")));
    drop(relay);
    assert!(near.forget(&[tag("a")]).await.is_err());
    assert!(near.load(ID).await.is_err(), "the pod must not find the response that it purged");
    assert!(near.store(ID, &[], Bytes::from("new"), Instant::now()).await.is_err());
    assert_eq!(load(&far).await, Some(Bytes::from("old")));
    database.reach_by(|url| url);
    until("the purge is sent, though no request needs it", async || load(&far).await.is_none().then_some(()))
        .await;
    until("the response is read again", async || near.load(ID).await.ok()).await;
    assert_eq!(load(&near).await, None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_go_over_to_a_successor() {
    let database = Database::new("").await;
    let cut_off = keeper(&database);
    store(&cut_off, &[tag("a")], "old").await;
    let nowhere = Database::new("").await;
    nowhere.reach_in_vain();
    let lost = keeper(&nowhere);
    assert!(lost.forget(&[tag("a")]).await.is_err());
    let successor = keeper(&database);
    successor.inherit(&lost);
    assert_eq!(load(&successor).await, None);
    database.drop_schema().await;
    nowhere.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_created_once_and_again_when_they_are_gone() {
    let database = Database::new("").await;
    let keepers: Vec<_> = (0..8).map(|_| Arc::new(keeper(&database))).collect();
    let all = keepers.iter().map(|keeper| async { keeper.load(ID).await.map(drop) });
    for outcome in futures::future::join_all(all).await {
        outcome.unwrap();
    }
    database.run("drop table larder_last_known_good").await;
    let keeper = &keepers[0];
    assert!(matches!(keeper.load(ID).await, Err(PostgresError::Refused(_))));
    assert_eq!(load(keeper).await, None);
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_right_to_create_tables_is_reported_with_the_statements_to_run() {
    let database = Database::new("").await;
    let user = unique("itest");
    let schema = database.schema();
    database.run(&format!("create role {user} login; grant usage on schema {schema} to {user}")).await;
    database.reach_by(|url| url.replace("//larder@", &format!("//{user}@")));
    let keeper = keeper(&database);
    let error = keeper.load(ID).await.unwrap_err();
    let PostgresError::NoTable(remedy) = error else { panic!("{error}") };
    assert!(error.to_string().contains(remedy));
    assert!(keeper.forget(&[tag("a")]).await.is_err());
    database.run(remedy).await;
    let tables = "larder_last_known_good, larder_last_known_good_purges";
    database.run(&format!("grant select, insert, update, delete on {tables} to {user}")).await;
    store(&keeper, &[tag("b")], "kept").await;
    assert_eq!(load(&keeper).await, Some(Bytes::from("kept")));
    database.run(&format!("drop owned by {user}; drop role {user}")).await;
    database.drop_schema().await;
}
