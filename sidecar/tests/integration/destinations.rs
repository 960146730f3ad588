//! Bounds of the cluster on the servers that tiers connect to.

use super::harness::{Database, Origin, Policy, RedisServer, Sidecar, reply, until};

/// The bounds of a cluster, as far as this host is concerned.
const NOT_HERE: &str = "{deniedNetworks: [127.0.0.0/8, '::1/128', 169.254.0.0/16]}";

#[tokio::test(flavor = "multi_thread")]
async fn http_source_is_refused_by_the_address_that_its_name_has() {
    let source = Origin::start(|_| async { reply(&[("content-type", "application/json")], "{}") }).await;
    let origin = Origin::numbered(&[]).await;
    let port = source.address.port();
    // Whatever the system makes of a number, nothing connects to this host.
    for host in ["2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "127.0.0.1", "localhost"] {
        let before = source.calls();
        let spec = format!(
            "sources: [{{name: here, http: {{url: 'http://{host}:{port}'}}}}]\n\
             routes: [{{name: a, match: {{path: /a}}, ttl: 60s, from: [{{http: {{source: here, path: /a}}}}]}}]"
        );
        let policy = Policy::within(&spec, NOT_HERE);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        assert!(sidecar.get("/a").await.status.is_server_error(), "{host}");
        assert_eq!(source.calls(), before, "{host}");
        if host == "localhost" || host == "127.0.0.1" {
            let error = sidecar.last_error("http/here").await;
            assert!(
                error.contains("in the denied network 127.0.0.0/8") || error.contains("::1/128"),
                "{error}"
            );
            assert_eq!(sidecar.policy().await["tiers"]["http/here"], "down");
            policy.change(&spec);
            sidecar.until_it_serves(&policy).await;
            assert_eq!(sidecar.get("/a").await.body, "{}", "the bounds are gone");
            policy.change(&format!("{spec}\nl1: {{maxSize: 32Mi}}"));
            policy.bound(NOT_HERE);
            sidecar.until_it_serves(&policy).await;
            assert!(sidecar.get("/a").await.status.is_server_error(), "an open connection was used");
            assert_eq!(source.calls(), before + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_and_postgres_are_refused_by_their_addresses_and_hosts() {
    let database = Database::new("create table items (id int)").await;
    drop(RedisServer::shared().await);
    let origin = Origin::numbered(&[]).await;
    let spec = database.serve(
        "l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}}}\n\
         sources: [{name: db, postgres: {urlFrom: DATABASE}}]\n\
         routes: [{name: a, match: {path: /a}, ttl: 60s, from: [{postgres: {source: db, query: select 1}}]}]",
    );
    let policy = Policy::within(&spec, NOT_HERE);
    let sidecar = Sidecar::start_at_once(&policy, origin.address).await;
    sidecar.until_tiers_are("down").await;
    for tier in ["redis", "postgres/db"] {
        let error = sidecar.last_error(tier).await;
        assert!(error.contains("in the denied network"), "{tier}: {error}");
    }

    policy.change(&spec);
    policy.bound("{allowedHosts: ['*.example.com']}");
    for tier in ["redis", "postgres/db"] {
        until("the host is refused", async || {
            let error = sidecar.last_error(tier).await;
            error.contains("policies of this cluster may name *.example.com").then_some(())
        })
        .await;
    }

    policy.change(&spec);
    sidecar.until_it_serves(&policy).await;
    sidecar.until_tiers_are("up").await;
    sidecar.until_no_error().await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_is_refused_by_the_address_that_its_name_has() {
    let origin = Origin::numbered(&[]).await;
    let collector = Origin::numbered(&[]).await;
    for host in ["127.0.0.1", "localhost"] {
        let spec = format!("telemetry: {{otlp: {{endpoint: 'http://{host}:{}'}}}}", collector.address.port());
        let policy = Policy::within(&spec, NOT_HERE);
        let mut sidecar = Sidecar::start(&policy, origin.address).await;
        if host == "127.0.0.1" {
            assert!(sidecar.last_error("otlp").await.contains("in the denied network"));
        }
        // The last metrics are pushed at the end.
        sidecar.terminate();
        assert!(sidecar.ended().await, "{host}");
        let said = until("the refusal", async || sidecar.logged("a connection was refused")).await;
        assert!(said.contains("in the denied network"), "{host}: {said}");
    }
}
