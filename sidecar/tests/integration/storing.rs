//! Storing: stored responses, their keys, and responses that are not stored.

use http::{Method, Response};
use http_body_util::Full;

use tokio::io::AsyncWriteExt;

use super::harness::{Origin, Policy, RawOrigin, RedisServer, Sidecar, exchange, read_head, reply, until};

const CACHED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_followed_by_a_hit() {
    let origin = Origin::numbered(&[("x-from", "origin"), ("age", "5")]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let miss = sidecar.get("/a").await;
    assert_eq!(miss.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored");
    let hit = sidecar.get("/a").await;
    assert_eq!((hit.hit(), hit.body.as_str(), hit.header("x-from")), (Some("l1"), "1", "origin"));
    assert!(hit.header("age").parse::<u64>().unwrap() >= 5, "the age on arrival counts");
    assert_eq!(origin.calls(), 1);
    let elsewhere = sidecar.get("/not/cached").await;
    assert_eq!(elsewhere.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=no-route");
}

#[tokio::test(flavor = "multi_thread")]
async fn optional_upgrade_is_served_from_the_cache() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let asks = [("connection", "Upgrade"), ("upgrade", "TLS/1.2")];
    assert_eq!(sidecar.get_with("/a", &asks).await.body, "1");
    assert_eq!(sidecar.get_with("/a", &asks).await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_share_no_responses() {
    let (public, internal) = (Origin::numbered(&[]).await, Origin::numbered(&[]).await);
    let upstream = format!("http://127.0.0.1:{}", internal.address.port());
    let policy = Policy::new(CACHED);
    let file = policy.path();
    let arguments = ["--policy", file.to_str().unwrap(), "--listen", "127.0.0.1:0", "--upstream", &upstream];
    let sidecar = Sidecar::launch(public.address, &arguments).await;
    let request = "GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    for address in sidecar.addresses(2).await {
        exchange(address, request).await;
    }
    assert_eq!((public.calls(), internal.calls()), (1, 1));
    sidecar.with_token(Method::DELETE, "/entries/GET:/a", "").await;
    for address in sidecar.addresses(2).await {
        exchange(address, request).await;
    }
    assert_eq!((public.calls(), internal.calls()), (2, 2), "a key without a host means every port");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_of_another_sidecar_is_an_l2_hit() {
    let origin = Origin::numbered(&[("x-from", "origin"), ("x-from", "again")]).await;
    let policy = Policy::new(CACHED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    a.get("/a").await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let hit = b.get("/a").await;
    assert_eq!((hit.hit(), hit.body.as_str()), (Some("l2"), "1"));
    assert_eq!(hit.headers.get_all("x-from").iter().count(), 2);
    assert_eq!(b.get("/a").await.hit(), Some("l1"), "the response is in memory now");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_are_distinguished_in_memory_and_in_redis() {
    let origin = Origin::start(|seen| async move {
        let body = format!("{}{}", seen.header("accept-language"), seen.number);
        reply(&[("vary", "Accept-Language, X-Theme")], body)
    })
    .await;
    let policy = Policy::new(CACHED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let (en, de) = ([("accept-language", "en")], [("accept-language", "de")]);
    assert_eq!(a.get_with("/a", &en).await.body, "en1");
    let other = a.get_with("/a", &de).await;
    assert_eq!((other.body.as_str(), other.cache_status().contains("fwd=vary-miss")), ("de2", true));
    assert_eq!(a.get("/a").await.body, "3", "an absent header is a value of its own");
    policy.until_stored(&mut RedisServer::shared().await, 4).await;
    for (sidecar, tier) in [(&a, "l1"), (&b, "l2"), (&b, "l1")] {
        for (headers, body) in [(&en[..], "en1"), (&de, "de2"), (&[], "3")] {
            let hit = sidecar.get_with("/a", headers).await;
            assert_eq!((hit.hit(), hit.body.as_str()), (Some(tier), body));
        }
    }
    assert!(b.get_with("/a", &[("accept-language", "fr")]).await.cache_status().contains("fwd=vary-miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_response_is_only_for_clients_that_accept_the_same_codings() {
    let origin = Origin::start(|seen| async move {
        match seen.header("accept-encoding") {
            "" => reply(&[], "plain"),
            // An application that compresses, and forgets to say `Vary`.
            _ => reply(&[("content-encoding", "gzip")], "gzipped"),
        }
    })
    .await;
    let policy = Policy::new(CACHED);
    let (a, b) =
        (Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await);
    let gzip = |value| [("accept-encoding", value)];
    assert_eq!(a.get_with("/a", &gzip("gzip, br")).await.body, "gzipped");
    policy.until_stored(&mut RedisServer::shared().await, 2).await;
    for pod in [&a, &b] {
        for same in ["br, gzip", "GZIP;q=1.0,br", "gzip,br"] {
            assert!(pod.get_with("/a", &gzip(same)).await.hit().is_some(), "{same}");
        }
    }
    for pod in [&a, &b] {
        let plain = pod.get("/a").await;
        assert_eq!((plain.body.as_str(), plain.header("content-encoding")), ("plain", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_status_says_stored_only_if_the_response_is_known_to_fit() {
    let origin = RawOrigin::start(|mut stream| async move {
        while let Some(path) = read_head(&mut stream).await.split(' ').nth(1).map(str::to_owned) {
            let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n";
            let said = match &*path {
                "/length" => format!("{head}Content-Length: 5\r\n\r\nsmall"),
                "/small" => format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nsmall\r\n0\r\n\r\n"),
                _ => format!("{head}Transfer-Encoding: chunked\r\n\r\n2000\r\n{:8192}\r\n0\r\n\r\n", ""),
            };
            stream.write_all(said.as_bytes()).await.unwrap();
        }
    })
    .await;
    let policy = Policy::new("l1: {maxObjectSize: 4Ki}\nroutes: [{name: page, match: {path: \"/{page}\"}}]");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, claims, is_stored) in
        [("/length", true, true), ("/small", false, true), ("/large", false, false)]
    {
        let first = sidecar.get(path).await;
        assert_eq!(first.cache_status().contains("stored"), claims, "{path}: {}", first.cache_status());
        let found = async || sidecar.get(path).await.hit().map(drop);
        if is_stored {
            until(path, found).await;
        } else {
            assert_eq!(found().await, None, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_response_is_never_stored() {
    let origin = Origin::start(|seen| async move {
        let body = seen.number.to_string();
        match seen.path.as_str() {
            "/no-store" => reply(&[("cache-control", "max-age=9, no-store")], body),
            "/private" => reply(&[("cache-control", "private=\"x\"")], body),
            "/set-cookie" => reply(&[("set-cookie", "a=b")], body),
            "/vary-any" => reply(&[("vary", "accept"), ("vary", "*")], body),
            _ => Response::builder().status(404).body(Full::from(body)).unwrap(),
        }
    })
    .await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for reason in ["no-store", "private", "set-cookie", "vary-any", "status"] {
        let path = format!("/{reason}");
        let answers = [sidecar.get(&path).await, sidecar.get(&path).await];
        assert_ne!(answers[0].body, answers[1].body, "{reason}");
        assert!(answers.iter().all(|answer| !answer.cache_status().contains("stored")), "{reason}");
        let label = format!("reason=\"{reason}\"");
        assert_eq!(sidecar.metric("larder_not_stored_total", &[&label]).await, 2.0, "{reason}");
    }
    assert!(policy.nothing_is_stored(&mut RedisServer::shared().await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_restriction_still_holds() {
    let origin = Origin::start(|seen| async move {
        let said: &[(&str, &str)] = match seen.path.as_str() {
            "/semicolon" => &[("cache-control", "max-age=60; private")],
            "/space" => &[("cache-control", "public no-store")],
            "/quote" => &[("cache-control", "ext=\"x, private")],
            "/connection" => &[("connection", "cache-control"), ("cache-control", "private")],
            "/cookie" => &[("connection", "set-cookie"), ("set-cookie", "a=b")],
            _ => &[("connection", "vary"), ("vary", "*")],
        };
        reply(said, seen.number.to_string())
    })
    .await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/semicolon", "/space", "/quote", "/connection", "/cookie", "/vary"] {
        let answers = [sidecar.get(path).await, sidecar.get(path).await];
        assert_ne!(answers[0].body, answers[1].body, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_credentials_pass() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let everybodys = sidecar.get("/a").await;
    for header in ["authorization", "cookie", "x-forwarded-user", "x-auth-request-email"] {
        let one = sidecar.get_with("/a", &[(header, "me")]).await;
        assert_eq!(one.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=credentials", "{header}");
        assert_ne!(one.body, everybodys.body, "{header}");
        assert_eq!(sidecar.get("/a").await.body, everybodys.body, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_by_query_neither_reads_nor_stores() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, bypass: {query: {nocache: "true"}}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in ["1", "2"] {
        let bypass = sidecar.get("/a?x=1&nocache=true").await;
        assert_eq!(bypass.body, number);
        assert_eq!(bypass.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=bypass-query");
    }
    assert_eq!(sidecar.get("/a?nocache=false").await.body, "3");
    assert_eq!(sidecar.get("/a?nocache=false").await.body, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_has_the_headers_and_parameters_that_the_route_says() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 60s
  key: {query: {ignore: ["utm_*", "ref"]}, headers: [X-Theme, Authorization], ignoreHeaders: [Cookie]}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let body =
        async |path: &'static str, headers: &[(&str, &str)]| sidecar.get_with(path, headers).await.body;
    assert_eq!(body("/a?x=1", &[]).await, "1");
    assert_eq!(body("/a?utm_source=y&x=1&ref=z", &[]).await, "1", "ignored parameters");
    assert_eq!(body("/a?x=1", &[("cookie", "a=b")]).await, "1", "an ignored header");
    assert_eq!(body("/a?x=2", &[]).await, "2");
    assert_eq!(body("/a?x=1", &[("x-theme", "dark")]).await, "3");
    assert_eq!(body("/a?x=1", &[("x-theme", "dark")]).await, "3");
    assert_eq!(body("/a?x=1", &[("authorization", "me")]).await, "4");
    assert_eq!(body("/a?x=1", &[("authorization", "you")]).await, "5");
    assert_eq!(body("/a?x=1", &[("authorization", "me")]).await, "4");
    assert_eq!(body("/a?x=1", &[("x-forwarded-proto", "https")]).await, "6", "the client's scheme");
    assert_eq!(body("/a?x=1", &[("x-forwarded-host", "other.test")]).await, "7", "the client's host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_ends_at_the_sidecar_is_not_in_the_key() {
    // Otherwise a client poisons a key: the application never sees the header, and responds as if it were absent.
    let origin = Origin::start(|seen| async move {
        reply(
            &[("vary", "x-theme")],
            format!("{}|{}|{}", seen.header("host"), seen.header("x-lang"), seen.header("x-theme")),
        )
    })
    .await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, key: {headers: [X-Lang]}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let headers = [("x-lang", "de"), ("x-theme", "dark")];
    let hidden = [("x-lang", "de"), ("x-theme", "dark"), ("connection", "x-lang, x-theme, host")];
    assert_eq!(sidecar.get_with("/a", &hidden).await.body, "shop.test||");
    assert_eq!(sidecar.get_with("/a", &headers).await.body, "shop.test|de|dark");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_served_from_the_cache_without_a_body() {
    let origin = Origin::numbered(&[("x-from", "origin")]).await;
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for hit in [None, Some("l1")] {
        let head = sidecar.request(Method::HEAD, "/a", &[], "").await;
        assert_eq!((head.hit(), head.body.as_str(), head.header("content-length")), (hit, "", "1"));
    }
    assert_eq!(origin.calls(), 1);
    assert_eq!(sidecar.get("/a").await.body, "2", "a response without a body serves no GET");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_larger_than_the_bound_passes_and_is_not_stored() {
    let origin = Origin::start(|seen| async move {
        let size: usize = seen.path[1..].parse().unwrap();
        reply(&[], vec![b'x'; size])
    })
    .await;
    let policy = Policy::new(
        r#"
l1: {maxSize: 1Mi, maxObjectSize: 100Ki}
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, size, hit) in [("/102400", 102_400, Some("l1")), ("/102401", 102_401, None)] {
        assert_eq!(sidecar.get(path).await.body.len(), size);
        let second = sidecar.get(path).await;
        assert_eq!((second.body.len(), second.hit()), (size, hit));
    }
    assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"too-large\""]).await, 2.0);
}
