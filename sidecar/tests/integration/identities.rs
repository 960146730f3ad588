//! Headers of any name that carry credentials or forwarding information.

use super::harness::{Origin, Policy, Sidecar, reply};

const PAGE: &str = r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

/// An application that repeats a request header as the body of its response.
async fn repeating(name: &'static str) -> Origin {
    Origin::start(move |seen| async move { reply(&[], seen.header(name).to_owned()) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn response_to_credentials_is_not_served_to_others() {
    let names = [
        "x-session-token",
        "x-upn",
        "x-on-behalf-of",
        "X-Session",
        "x-jwt-payload",
        "x-shop-api-key",
        "x-user-id",
        "x-end-user",
        "x-tenant",
        "x-csrf-token",
        "client-cert",
        "remote-user",
        "dpop",
        "x-pomerium-claim-email",
    ];
    for name in names {
        let origin = repeating(name).await;
        let policy = Policy::new(PAGE);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let own = sidecar.get_with("/a", &[(name, "alice")]).await;
        assert_eq!(own.body, "alice", "{name}");
        assert_eq!(own.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=credentials", "{name}");
        assert_eq!(sidecar.get("/a").await.body, "", "{name}");
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "{name}");
        assert_eq!(sidecar.get_with("/a", &[(name, "bob")]).await.body, "bob", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_forwarded_place_is_keyed() {
    let names = [
        "x-forwarded-protocol",
        "x_forwarded_host",
        "x.forwarded.proto",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-forwarded-prefix",
        "x-forwarded-anything",
        "x-http-host-override",
        "x-scheme",
        "x-script-name",
        "X-Backend-Host",
        "cloudfront-forwarded-proto",
        "x-arr-ssl",
        "x-original-url",
        "x-rewrite-path",
        "x-original-method",
    ];
    for name in names {
        let origin = repeating(name).await;
        let policy = Policy::new(PAGE);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        assert_eq!(sidecar.get_with("/a", &[(name, "evil")]).await.body, "evil", "{name}");
        assert_eq!(sidecar.get("/a").await.body, "", "{name}");
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "{name}");
        assert_eq!(sidecar.get_with("/a", &[(name, "evil")]).await.body, "evil", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_of_unlisted_forwarding_headers_does_not_matter() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(PAGE);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let [one, other] = [("x-forwarded-context", "a"), ("x-real-host", "b")];
    assert_eq!(sidecar.get_with("/a", &[one, other]).await.body, "1");
    assert_eq!(sidecar.get_with("/a", &[other, one]).await.hit(), Some("l1"));
    assert_eq!(sidecar.get_with("/a", &[one]).await.body, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_adds_credential_headers() {
    let origin = repeating("x-badge").await;
    let spec = format!("identityHeaders: [\"x-badge\", \"x-crew-*\"]\n{PAGE}");
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for name in ["x-badge", "x-crew-number"] {
        let own = sidecar.get_with("/a", &[(name, "7")]).await;
        assert_eq!(own.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=credentials", "{name}");
    }
    assert_eq!(sidecar.get("/a").await.body, "");
    // A hit leaves by the shortest way: that knows the policy's headers, too.
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
    assert_eq!(sidecar.get_with("/a", &[("x-badge", "8")]).await.body, "8");

    let keyed = spec.replace("ttl: 60s", "ttl: 60s, key: {headers: [x-badge]}");
    let policy = Policy::new(&keyed);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get_with("/a", &[("x-badge", "8")]).await.body, "8");
    assert_eq!(sidecar.get_with("/a", &[("x-badge", "8")]).await.hit(), Some("l1"));
    assert_eq!(sidecar.get_with("/a", &[("x-badge", "9")]).await.body, "9");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_route_forwards_only_keyed_headers() {
    let route = "ttl: 60s, forwardHeaders: Keyed, key: {headers: [x-lang], cookies: [theme], ignoreHeaders: [authorization]}";
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(&PAGE.replace("ttl: 60s", route));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let sent = [
        ("authorization", "Bearer alice"),
        ("cookie", "session=alice; theme=dark"),
        ("x-lang", "de"),
        ("x-anything", "evil"),
        ("accept", "text/csv"),
        ("accept-encoding", "identity"),
        ("user-agent", "evil"),
        ("x-forwarded-prefix", "/shop"),
    ];
    assert_eq!(sidecar.get_with("/a", &sent).await.body, "1");
    let seen = origin.last();
    for (name, value) in [
        ("authorization", ""),
        ("cookie", "theme=dark"),
        ("x-lang", "de"),
        ("x-anything", ""),
        ("accept", ""),
        ("accept-encoding", "identity"),
        ("user-agent", "larder"),
        ("x-forwarded-prefix", "/shop"),
        ("host", "shop.test"),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    assert!(seen.header("x-forwarded-for").starts_with("127.0.0.1"), "{}", seen.header("x-forwarded-for"));
    let alike = [("cookie", "session=bob; theme=dark"), ("x-lang", "de"), ("x-forwarded-prefix", "/shop")];
    assert_eq!(sidecar.get_with("/a", &alike).await.hit(), Some("l1"));
    // A request that passes retains all its headers.
    sidecar.get_with("/a", &[("x-user", "alice"), ("x-anything", "kept")]).await;
    assert_eq!((origin.last().header("x-user"), origin.last().header("x-anything")), ("alice", "kept"));
    sidecar.request(http::Method::PUT, "/a", &[("x-anything", "kept")], "written").await;
    assert_eq!(origin.last().header("x-anything"), "kept");
}
