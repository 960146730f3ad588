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
async fn tailored_response_is_served_only_to_requests_with_its_header() {
    for name in [
        "hx-request",
        "turbo-frame",
        "x-pjax",
        "x-inertia",
        "rsc",
        "x-requested-with",
        "cf-ipcountry",
        "cloudfront-is-mobile-viewer",
        "x-country-code",
        "x-vercel-ip-city",
        "save-data",
        "sec-ch-prefers-color-scheme",
        "x-api-version",
        "x-locale",
        "prefer",
    ] {
        let origin = repeating(name).await;
        let policy = Policy::new(PAGE);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        for value in ["one", "other"] {
            assert_eq!(sidecar.get_with("/a", &[(name, value)]).await.body, value, "{name}");
            assert_eq!(sidecar.get_with("/a", &[(name, value)]).await.hit(), Some("l1"), "{name}");
        }
        assert_eq!(sidecar.get("/a").await.body, "", "{name}");
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "{name}");
        sidecar.put("/a").await;
        assert_eq!(sidecar.get_with("/a", &[(name, "one")]).await.hit(), None, "{name} is purged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn route_may_ignore_a_header_that_may_tailor_or_hide_it_from_the_application() {
    let origin = repeating("x-requested-with").await;
    for (route, body) in [("key: {ignoreHeaders: [X-Requested-With]}", "a"), ("forwardHeaders: Keyed", "")] {
        let policy = Policy::new(&PAGE.replace("ttl: 60s", &format!("ttl: 60s, {route}")));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        assert_eq!(sidecar.get_with("/a", &[("x-requested-with", "a")]).await.body, body, "{route}");
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "{route}");
    }
}

/// Headers that this version of Chrome sends with every page.
fn chrome(version: &'static str) -> Vec<(&'static str, &'static str)> {
    let (brands, agent, platform) = match version {
        "139" => (r#""Chromium";v="139", "Not;A=Brand";v="99""#, "Chrome/139.0.0.0", r#""Windows""#),
        _ => (r#""Chromium";v="142", "Not_A Brand";v="99""#, "Chrome/142.0.0.0", r#""Linux""#),
    };
    vec![
        ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-US,en;q=0.9"),
        ("dnt", if version == "139" { "1" } else { "0" }),
        ("priority", "u=0, i"),
        ("referer", if version == "139" { "http://shop.test/" } else { "http://other.test/" }),
        ("sec-ch-ua", brands),
        ("sec-ch-ua-full-version-list", brands),
        ("sec-ch-ua-mobile", "?0"),
        ("sec-ch-ua-platform", platform),
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", if version == "139" { "same-origin" } else { "cross-site" }),
        ("sec-fetch-user", "?1"),
        ("sec-gpc", "1"),
        ("upgrade-insecure-requests", "1"),
        ("user-agent", agent),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_a_browser_share_a_response_unless_it_varies() {
    let origin = Origin::start(|seen| async move {
        let vary: &[_] = if seen.path == "/varies" { &[("vary", "sec-ch-ua")] } else { &[] };
        reply(vary, seen.number.to_string())
    })
    .await;
    let policy = Policy::new(PAGE);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, is_shared) in [("/a", true), ("/varies", false)] {
        sidecar.get_with(path, &chrome("139")).await;
        assert_eq!(sidecar.get_with(path, &chrome("139")).await.hit(), Some("l1"), "{path}");
        assert_eq!(sidecar.get_with(path, &chrome("142")).await.hit().is_some(), is_shared, "{path}");
    }
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "and with any other client");
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
