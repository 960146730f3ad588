//! Routes that take the rest of a path, and policies of many routes.

use super::harness::{Database, Origin, Policy, RedisServer, Sidecar, reply, two};

const SITE: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- name: site
  match: {path: "/{*path}"}
  ttl: 60s
  key: {query: {allow: [page]}}
  tags: ["file:{path}"]
invalidation:
  onWrite:
  - {match: {path: "/admin/{*path}"}, purge: {tags: ["file:{path}"], paths: ["/copies/{path}"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn whole_site_is_one_route_in_memory_in_redis_and_by_range() {
    let origin =
        Origin::start(|seen| async move { reply(&[], format!("{:03} {}", seen.number, seen.path)) }).await;
    let policy = Policy::new(SITE);
    let [a, b] = &two(&policy, &origin).await;
    let mut redis = RedisServer::shared().await;
    for (count, path) in
        ["/", "/a", "/a/", "/a/b/c.css", "/caf%C3%A9/x", "/.well-known/x/y"].iter().enumerate()
    {
        let first = a.get(path).await;
        assert!(first.cache_status().contains("fwd=uri-miss"), "{path}: {first:?}");
        policy.until_stored(&mut redis, count + 1).await;
        for (sidecar, tier) in [(b, "l2"), (a, "l1"), (b, "l1")] {
            let again = sidecar.get(path).await;
            assert_eq!((again.hit(), &again.body), (Some(tier), &first.body), "{path}");
        }
    }
    let whole = a.get("/a/b/c.css").await.body;
    assert_eq!(a.get("/a/b/c.css?utm=x").await.body, whole, "the parameter is not in the key");
    assert_ne!(a.get("/a/b/c.css?page=2").await.body, whole, "the parameter is in the key");
    for sidecar in [a, b] {
        let part = sidecar.get_with("/a/b/c.css", &[("range", "bytes=0-2")]).await;
        assert_eq!((part.status.as_u16(), part.hit(), part.body.as_str()), (206, Some("l1"), &whole[..3]));
    }
    let ambiguous = a.get("/a/../a/b/c.css").await;
    assert!(ambiguous.cache_status().ends_with("detail=ambiguous-path"), "{ambiguous:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_below_a_prefix_is_purged_by_path_tag_and_write_in_any_spelling() {
    for way in [
        r#"{"paths": ["/a/b/c.css"]}"#,
        r#"{"paths": ["/A//b/%63.css/"]}"#,
        r#"{"paths": ["/x/../a%2Fb/c.css"]}"#,
        r#"{"tags": ["file:a/b/c.css"]}"#,
        r#"{"tags": ["FILE:a%2Fb%2fc.css"]}"#,
        "/admin/a/b/c.css",
        "/Admin//a/b;v=1/%63.css",
        "/admin/a%2Fb/x/../c.css",
        "/a/b/c.css",
        "/a//B/c.css/",
    ] {
        let origin = Origin::numbered(&[]).await;
        let policy = Policy::new(SITE);
        let [a, b] = &two(&policy, &origin).await;
        let mut redis = RedisServer::shared().await;
        let old = a.get("/a/b/c.css").await.body;
        let kept = a.get("/a/b").await.body;
        policy.until_stored(&mut redis, 2).await;
        assert_eq!((b.get("/a/b/c.css").await.body, b.get("/a/b").await.body), (old.clone(), kept.clone()));
        let done = if way.starts_with('/') { a.put(way).await } else { a.purge(way).await };
        assert_eq!(done.status, 200, "{way}: {}", done.body);
        for sidecar in [b, a] {
            assert_ne!(sidecar.get("/a/b/c.css").await.body, old, "{way}");
            assert_eq!(sidecar.get("/a/b").await.body, kept, "{way}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_below_a_prefix_purges_the_paths_that_its_rest_names() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SITE);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.get("/copies/a/b%20c").await.body;
    let kept = sidecar.get("/copies/a").await.body;
    sidecar.put("/admin/a/b%20c").await;
    assert_ne!(sidecar.get("/copies/a/b%20c").await.body, old);
    assert_eq!(sidecar.get("/copies/a").await.body, kept);
    let old = sidecar.get("/copies/").await.body;
    sidecar.put("/admin").await;
    assert_ne!(sidecar.get("/copies/").await.body, old, "a rest may be empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_of_a_path_reaches_sources_with_its_slashes_and_never_leaves_its_place() {
    let database = Database::new(
        "create table files (path text, value text); insert into files values ('a/b c', 'row')",
    )
    .await;
    let store = Origin::start(|seen| async move {
        reply(&[("content-type", "application/json")], format!("\"{}\"", seen.path))
    })
    .await;
    let origin = Origin::numbered(&[]).await;
    let spec = r#"
sources:
- {name: files, postgres: {urlFrom: DATABASE}}
- {name: store, http: {url: "http://STORE/v1"}}
routes:
- {name: row, match: {path: "/rows/{*path}"}, ttl: 60s, from: [{postgres: {source: files, query: "select value from files where path = {path}"}}]}
- {name: file, match: {path: "/files/{*path}"}, ttl: 60s, from: [{http: {source: store, path: "/assets/{path}?of={path}"}}]}
- {name: root, match: {path: "/root/{*path}"}, ttl: 60s, from: [{http: {source: store, path: "/{path}"}}]}
"#;
    let policy = Policy::new(&database.serve(&spec.replace("STORE", &store.address.to_string())));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/rows/a/b%20c").await.body, r#"{"value": "row"}"#);
    assert_eq!(sidecar.get("/rows/a/b").await.status, 404);
    for (path, asked) in [
        ("/files/a/b%20c.css", "/v1/assets/a/b%20c.css?of=a%2Fb%20c.css"),
        ("/files/", "/v1/assets/?of="),
        ("/files/a/", "/v1/assets/a/?of=a%2F"),
        ("/files/a%3Fb%23c%25/d", "/v1/assets/a%3Fb%23c%25/d?of=a%3Fb%23c%25%2Fd"),
        ("/files/a/%252e%252e/b", "/v1/assets/a/%252e%252e/b?of=a%2F%252e%252e%2Fb"),
        ("/root/a", "/v1/a"),
    ] {
        let answer = sidecar.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.as_str()),
            (200, format!("\"{asked}\"").as_str()),
            "{path}"
        );
    }
    let calls = store.calls();
    for path in
        ["/files/a%2F..%2F..%2Fsecret", "/files/..%2Fsecret", "/files/.%2F.", "/root//elsewhere.example/x"]
    {
        let answer = sidecar.get(path).await;
        assert_eq!((answer.status.as_u16(), store.calls()), (404, calls), "{path}: {}", answer.body);
    }
    assert_eq!(origin.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_routes_are_each_served_and_counted() {
    const COUNT: usize = 1000;
    let own: String = (0..COUNT - 1)
        .map(|number| {
            format!("- {{name: r{number}, match: {{path: \"/service-{number}/{{id}}\"}}, ttl: 60s, tags: [\"s{number}:{{id}}\"]}}\n")
        })
        .collect();
    let policy =
        Policy::new(&format!("routes:\n{own}- {{name: site, match: {{path: \"/{{*path}}\"}}, ttl: 60s}}\n"));
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut bodies = vec![];
    for number in 0..COUNT {
        let first = sidecar.get(&format!("/service-{number}/7")).await;
        let again = sidecar.get(&format!("/service-{number}/7")).await;
        assert_eq!((again.hit(), &again.body), (Some("l1"), &first.body), "{number}");
        bodies.push(first.body);
    }
    assert_eq!(sidecar.purge(r#"{"tags": ["s500:7"]}"#).await.status, 200);
    for number in [0, 499, 500, 501, 998, 999] {
        let stored = sidecar.get(&format!("/service-{number}/7")).await.body;
        assert_eq!(stored == bodies[number], number != 500, "{number}");
    }
    let text = sidecar.admin("/metrics").await.body;
    assert!(!text.contains("otel_metric_overflow"), "routes are counted together");
    for route in ["r0", "r500", "r998", "site"] {
        let label = format!("route=\"{route}\"");
        assert!(
            sidecar.metric("larder_requests_total", &[&label, "outcome=\"hit\""]).await >= 1.0,
            "{route}"
        );
    }
}
