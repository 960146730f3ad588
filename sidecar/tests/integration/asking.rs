//! Request directives of clients (RFC 9111, section 5.2.1).

use super::harness::{Origin, Policy, Sidecar};

/// Headers of a response that is ten seconds old, fresh for a minute, and has a validator.
const TEN_OLD: [(&str, &str); 3] =
    [("x-say", "cache-control: max-age=60"), ("x-say", "age: 10"), ("x-say", "etag: \"a\"")];
/// Headers of a response that is ten seconds past its lifetime.
const TEN_OVER: [(&str, &str); 3] =
    [("x-say", "cache-control: max-age=60"), ("x-say", "age: 70"), ("x-say", "etag: \"a\"")];

/// Returns the response to a request with `directives` for a response stored with the headers of `stored`.
async fn asked(sidecar: &Sidecar, path: &str, stored: &[(&str, &str)], directives: &str) -> String {
    sidecar.get_with(path, stored).await;
    let answer = sidecar.get_with(path, &[stored, &[("cache-control", directives)]].concat()).await;
    answer.cache_status().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn request_limits_the_age_and_freshness_of_its_response() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (at, (directives, hit)) in [
        ("max-age=40", true),
        ("max-age=5", false),
        ("max-age=0", false),
        ("min-fresh=20", true),
        ("min-fresh=55", false),
        ("no-cache", false),
        ("NO-CACHE", false),
        ("no-store", true),
        ("no-transform", true),
    ]
    .into_iter()
    .enumerate()
    {
        let status = asked(&sidecar, &format!("/{at}"), &TEN_OLD, directives).await;
        assert_eq!(status.contains("; hit; "), hit, "{directives}: {status}");
        assert_eq!(status.contains("fwd=request"), !hit, "{directives}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_limits_the_staleness_of_its_response() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let revalidated = |word| [&TEN_OVER[..], &[("x-say", word)]].concat();
    let (must, proxy) =
        (revalidated("cache-control: must-revalidate"), revalidated("cache-control: proxy-revalidate"));
    let shared = revalidated("cache-control: s-maxage=60");
    for (at, (stored, directives, hit)) in [
        (&TEN_OVER[..], "max-stale", true),
        (&TEN_OVER, "max-stale=50", true),
        (&TEN_OVER, "max-stale=5", false),
        (&TEN_OVER, "max-age=65, max-stale=50", false),
        (&TEN_OVER, "max-age=600, max-stale=50", true),
        (&must, "max-stale", false),
        (&proxy, "max-stale", false),
        (&shared, "max-stale", false),
    ]
    .into_iter()
    .enumerate()
    {
        let status = asked(&sidecar, &format!("/{at}"), stored, directives).await;
        assert_eq!(status.starts_with("larder; hit; ttl=-"), hit, "{directives}: {status}");
        assert_eq!(status.starts_with("larder; fwd=stale"), !hit, "{directives}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pragma_counts_where_there_is_no_cache_control() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let both = [("pragma", "no-cache"), ("cache-control", "max-age=60")];
    assert_eq!(sidecar.get_with("/", &both).await.hit(), Some("l1"));
    assert_eq!(sidecar.get_with("/", &both[..1]).await.body, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_to_a_no_store_request_is_not_stored() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let answer = sidecar.get_with("/", &[("cache-control", "no-store")]).await;
    assert_eq!(answer.cache_status(), "larder; fwd=request; fwd-status=200");
    let answer = sidecar.get("/").await;
    assert_eq!((answer.body.as_str(), answer.hit()), ("2", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_is_served_from_storage_or_fails() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let only = ("cache-control", "only-if-cached");
    let none = sidecar.get_with("/", &[only]).await;
    assert_eq!((none.status.as_u16(), none.headers.contains_key("cache-status")), (504, false));
    assert_eq!(origin.calls(), 0);
    sidecar.get_with("/", &TEN_OLD).await;
    assert_eq!(sidecar.get_with("/", &[only]).await.hit(), Some("l1"));
    sidecar.get_with("/stale", &TEN_OVER).await;
    assert_eq!(sidecar.get_with("/stale", &[only]).await.status, 504);
    let stale = sidecar.get_with("/stale", &[("cache-control", "only-if-cached, max-stale")]).await;
    assert_eq!(stale.hit(), Some("l1"));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_is_served_from_redis() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, clientDirectives: Honor}
"#,
    );
    let a = Sidecar::start(&policy, origin.address).await;
    let b = Sidecar::start(&policy, origin.address).await;
    a.get_with("/a", &TEN_OLD).await;
    policy.until_stored(&mut super::harness::RedisServer::shared().await, 1).await;
    let only = [("cache-control", "only-if-cached")];
    assert_eq!(b.get_with("/b", &only).await.status, 504);
    assert_eq!(b.get_with("/a", &only).await.hit(), Some("l2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn route_decides_on_request_directives() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: deaf, match: {path: "/deaf/{page}"}, ttl: 60s}
- {name: heard, match: {path: "/heard/{page}"}, ttl: 60s, clientDirectives: Honor}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (name, value) in
        [("cache-control", "no-cache"), ("cache-control", "min-fresh=61"), ("pragma", "no-cache")]
    {
        let path = |route: &str| format!("/{route}/{name}-{}", value.len());
        for (path, hit) in [(path("deaf"), true), (path("heard"), false)] {
            sidecar.get(&path).await;
            assert_eq!(sidecar.get_with(&path, &[(name, value)]).await.hit().is_some(), hit, "{path}");
        }
    }
    sidecar.get_with("/deaf/x", &[("cache-control", "no-store")]).await;
    assert_eq!(sidecar.get("/deaf/x").await.hit(), Some("l1"));
    assert_eq!(sidecar.get_with("/deaf/y", &[("cache-control", "only-if-cached")]).await.status, 200);
}
