//! Purges of every kind, in every sidecar.

use http::Method;

use super::harness::{Origin, Policy, RedisServer, Relay, Sidecar, TOKEN, exchange, reply, two, until};

const TAGGED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

/// Stores a path in both sidecars, the second one from L2.
async fn warm(policy: &Policy, [a, b]: &[Sidecar; 2], path: &str) -> String {
    let first = a.get(path).await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let second = b.get(path).await;
    assert_eq!(first.body, second.body);
    first.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_by_key_path_or_tag_acts_in_every_sidecar() {
    for body in [
        r#"{"keys": ["GET:http://shop.test/a"]}"#,
        r#"{"keys": ["GET:/a"]}"#,
        r#"{"paths": ["/a"]}"#,
        r#"{"tags": ["page:a"]}"#,
        r#"{"keys": ["GET:/x"], "paths": ["/x"], "tags": ["x", "page:a"]}"#,
    ] {
        let origin = Origin::numbered(&[]).await;
        let policy = Policy::new(TAGGED);
        let sidecars = two(&policy, &origin).await;
        let [a, b] = &sidecars;
        let old = warm(&policy, &sidecars, "/a").await;
        let kept = warm(&policy, &sidecars, "/b").await;
        let purged = a.purge(body).await;
        assert_eq!(purged.status, 200, "{body}: {}", purged.body);
        for sidecar in [b, a] {
            let answer = sidecar.get("/a").await;
            assert_ne!(answer.body, old, "{body}");
            assert_eq!(sidecar.get("/b").await.body, kept, "{body}");
        }
    }
}

const SITE: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: site, match: {path: "/{*path}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/write/{id}"}, purge: {prefixes: ["/docs/{id}"]}}
  - {match: {path: "/reset"}, purge: {everything: true}}
"#;

/// Stores these paths in both sidecars and in Redis.
async fn warm_all(policy: &Policy, [a, b]: &[Sidecar; 2], paths: &[&str]) -> Vec<String> {
    let mut bodies = vec![];
    for path in paths {
        bodies.push(a.get(path).await.body);
    }
    policy.until_stored(&mut RedisServer::shared().await, paths.len()).await;
    for (path, body) in paths.iter().zip(&bodies) {
        assert_eq!(b.get(path).await.body, *body, "{path}");
    }
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_is_purged_in_every_sidecar_and_in_redis() {
    let under = ["/docs/1", "/docs/1/", "/docs/1/a?b=c", "/DOCS/1/a/b", "/docs/%31/c"];
    let others = ["/docs/12", "/docs/2/1", "/", "/docs", "/x/docs/1/a"];
    let paths = [&under[..], &others].concat();
    let by_api = |body| (Method::POST, "/purge", body);
    for (method, path, body) in [
        by_api(r#"{"prefixes": ["/docs/1"]}"#),
        by_api(r#"{"prefixes": ["/docs/1/"]}"#),
        by_api(r#"{"tags": ["other"], "prefixes": ["/nothing/here", "/Docs/%31"]}"#),
        (Method::PUT, "/write/1", ""),
    ] {
        let origin = Origin::numbered(&[]).await;
        let policy = Policy::new(SITE);
        let sidecars = two(&policy, &origin).await;
        let [a, b] = &sidecars;
        let before = warm_all(&policy, &sidecars, &paths).await;
        let late = Sidecar::start(&policy, origin.address).await;
        let purged = match method {
            Method::POST => a.purge(body).await,
            method => a.request(method, path, &[], body).await,
        };
        assert_eq!(purged.status, 200, "{path} {body}: {}", purged.body);
        for sidecar in [&late, b, a] {
            for (path, before) in paths.iter().zip(&before) {
                let is_purged = under.contains(path);
                assert_eq!(sidecar.get(path).await.body != *before, is_purged, "{path} after {body}");
            }
        }
        let again = b.get(under[2]).await;
        assert_eq!(again.hit(), Some("l1"), "what was filled since is stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_of_everything_acts_in_every_sidecar_with_and_without_redis() {
    let paths = ["/", "/a", "/a/b?c"];
    for by_write in [false, true] {
        for policy in [SITE, &SITE.replace("l2: ", "# ")] {
            let has_redis = policy.starts_with("\nl2");
            let origin = Origin::numbered(&[]).await;
            let policy = Policy::new(policy);
            let sidecar = Sidecar::start(&policy, origin.address).await;
            let mut before = vec![];
            for path in paths {
                before.push(sidecar.get(path).await.body);
            }
            if has_redis {
                policy.until_stored(&mut RedisServer::shared().await, paths.len()).await;
            }
            let late = Sidecar::start(&policy, origin.address).await;
            let purged = match by_write {
                true => sidecar.request(Method::POST, "/reset", &[], "").await,
                false => sidecar.purge(r#"{"everything": true}"#).await,
            };
            assert_eq!(purged.status, 200, "{}", purged.body);
            for sidecar in [&late, &sidecar] {
                for (path, before) in paths.iter().zip(&before) {
                    assert_ne!(sidecar.get(path).await.body, *before, "{path}");
                }
            }
            assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
        }
    }
}

const STALE: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: soon, match: {path: "/soon/{page}"}, ttl: 60s, staleWhileRevalidate: 60s, tags: ["page:{page}"]}
- {name: error, match: {path: "/error/{page}"}, ttl: 60s, staleIfError: 60s, tags: ["page:{page}"]}
- {name: plain, match: {path: "/plain/{page}"}, ttl: 60s, tags: ["page:{page}"]}
invalidation:
  onWrite:
  - {match: {path: "/write/{page}"}, purge: {tags: ["page:{page}"], soft: true}}
  - {match: {path: "/error/{page}"}, purge: {tags: ["page:{page}"], soft: true}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn softly_purged_response_is_served_while_it_is_refreshed_and_while_the_application_is_down() {
    for body in [
        r#"{"tags": ["page:1"], "soft": true}"#,
        r#"{"keys": ["GET:/soon/1", "GET:/error/1", "GET:/plain/1"], "soft": true}"#,
        r#"{"paths": ["/soon/1", "/error/1", "/plain/1"], "soft": true}"#,
        r#"{"prefixes": ["/soon/1", "/error/1", "/plain/1"], "soft": true}"#,
        "/write/1",
    ] {
        let origin = Origin::numbered(&[("etag", "\"a\"")]).await;
        let relay = Relay::to(origin.address).await;
        let address = ([127, 0, 0, 1], relay.port).into();
        let policy = Policy::new(STALE);
        let sidecars = [Sidecar::start(&policy, address).await, Sidecar::start(&policy, address).await];
        let paths = ["/soon/1", "/error/1", "/plain/1", "/soon/2", "/error/2", "/plain/2"];
        let before = warm_all(&policy, &sidecars, &paths).await;
        let [a, b] = &sidecars;
        let late = Sidecar::start(&policy, address).await;
        let purged = if body.starts_with('/') { a.put(body).await } else { a.purge(body).await };
        assert_eq!(purged.status, 200, "{body}: {}", purged.body);
        for (path, before) in paths.iter().zip(&before).skip(3) {
            let kept = b.get(path).await;
            assert_eq!((&kept.body, kept.hit()), (before, Some("l1")), "{path} after {body}");
        }
        // Served while it is refreshed, and then fresh in every pod.
        assert_eq!(b.get("/soon/1").await.body, before[0], "{body}");
        for sidecar in [b, a, &late] {
            until("the response is refreshed", async || {
                let now = sidecar.get("/soon/1").await;
                (now.body != before[0] && now.hit().is_some()).then_some(())
            })
            .await;
        }
        assert_ne!(a.get("/plain/1").await.body, before[2], "it is stale, and nothing allows to serve it");
        // Served only while the application is down.
        drop(relay);
        for sidecar in [b, &late] {
            let instead = sidecar.get("/error/1").await;
            assert_eq!((instead.status.as_u16(), &instead.body), (200, &before[1]), "{body}");
            assert_eq!(sidecar.get("/error/2").await.body, before[4]);
        }
        assert_eq!(a.purge(r#"{"everything": true}"#).await.status, 200);
        assert_eq!(b.get("/error/1").await.status, 502, "a whole purge leaves nothing to serve");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_makes_its_own_path_unusable_although_its_rule_is_soft() {
    let origin = Origin::numbered(&[]).await;
    let relay = Relay::to(origin.address).await;
    let policy = Policy::new(STALE);
    let sidecar = Sidecar::start(&policy, ([127, 0, 0, 1], relay.port).into()).await;
    let mut before = vec![];
    for path in ["/error/1", "/soon/1"] {
        before.push(sidecar.get(path).await.body);
    }
    assert_eq!(sidecar.put("/error/1").await.status, 200);
    drop(relay);
    assert_eq!(sidecar.get("/soon/1").await.body, before[1], "it is stale, and served while it is refreshed");
    assert_eq!(sidecar.get("/error/1").await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn softly_purged_response_is_validated_and_fresh_again() {
    let origin = Origin::start(|seen| async move {
        let is_known = seen.headers.contains_key("if-none-match");
        let mut answer = reply(&[("etag", "\"a\"")], if is_known { "" } else { "body" });
        if is_known {
            *answer.status_mut() = http::StatusCode::NOT_MODIFIED;
        }
        answer
    })
    .await;
    let sidecar = Sidecar::start(&Policy::new(&STALE.replace("l2: ", "# ")), origin.address).await;
    sidecar.get("/plain/1").await;
    let purged = sidecar.purge(r#"{"everything": true, "soft": true}"#).await;
    assert_eq!(purged.status, 200);
    assert!(purged.body.contains(r#""redis":false"#), "there is none: {}", purged.body);
    let validated = sidecar.get("/plain/1").await;
    assert!(validated.header("cache-status").contains("fwd=stale; fwd-status=304"), "{validated:?}");
    assert_eq!((sidecar.get("/plain/1").await.hit(), &*validated.body), (Some("l1"), "body"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_deleted_by_its_exact_key_or_its_short_one() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(TAGGED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let delete =
        async |key: &str| sidecar.with_token(Method::DELETE, &format!("/entries/{key}"), "").await.status;
    for (path, key, other) in [
        ("/a", "GET:http://shop.test/a", "GET:http://other.test/a"),
        ("/a", "GET:/a", "GET:/a/"),
        ("/a?x=1", "GET:/a%3Fx=1", "GET:/a"),
        ("/a?x=1", "GET:/a?x=1", "GET:/a?x=2"),
    ] {
        let stored = sidecar.get(path).await.body;
        assert_eq!(delete(other).await, 200);
        assert_eq!(sidecar.get(path).await.body, stored, "{other} is not {path}");
        assert_eq!(delete(key).await, 200);
        assert_ne!(sidecar.get(path).await.body, stored, "{key} is {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_requires_the_token() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(TAGGED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stored = sidecar.get("/a").await.body;
    let ask = async |authorization: &str| {
        let body = r#"{"paths": ["/a"]}"#;
        let length = body.len();
        let head =
            format!("POST /purge HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n");
        String::from_utf8(exchange(sidecar.admin, format!("{head}{authorization}\r\n{body}")).await).unwrap()
    };
    let upper = TOKEN.to_uppercase();
    for wrong in [
        "",
        "Authorization: Bearer \r\n",
        &format!("Authorization: Bearer {upper}\r\n"),
        "Authorization: Basic x\r\n",
    ] {
        assert!(ask(wrong).await.starts_with("HTTP/1.1 401"), "{wrong}");
    }
    assert_eq!(sidecar.get("/a").await.body, stored);
    assert_eq!(sidecar.admin("/stats").await.status, 401);
    assert_eq!(sidecar.with_token(Method::GET, "/stats", "").await.status, 200);
    assert!(ask(&format!("Authorization: Bearer {TOKEN}\r\n")).await.starts_with("HTTP/1.1 200"));
    assert_ne!(sidecar.get("/a").await.body, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_that_can_match_nothing_is_refused_with_the_reason() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (body, says) in [
        ("", "send {"),
        ("{}", "nothing to purge"),
        (r#"{"pats": ["/a"]}"#, "unknown field"),
        (r#"{"paths": ["a"]}"#, "start it with '/'"),
        (r#"{"paths": [""]}"#, "start it with '/'"),
        (r#"{"paths": [" /a"]}"#, "start it with '/'"),
        (r#"{"paths": ["http://shop/a"]}"#, "start it with '/'"),
        (r#"{"paths": ["/a?x=1"]}"#, "leave out the query"),
        (r#"{"paths": ["/a#b"]}"#, "leave out the query"),
        (r#"{"paths": ["/items/*"]}"#, "patterns are not supported"),
        (r#"{"prefixes": ["/items/*"]}"#, "patterns are not supported"),
        (r#"{"prefixes": ["items"]}"#, "start it with '/'"),
        (r#"{"prefixes": ["/items?page=1"]}"#, "leave out the query"),
        (r#"{"prefixes": []}"#, "nothing to purge"),
        (r#"{"everything": false}"#, "nothing to purge"),
        (r#"{"soft": true}"#, "nothing to purge"),
        (r#"{"everything": "yes"}"#, "true"),
        (r#"{"paths": ["/ok", "/items/**/x"]}"#, "patterns are not supported"),
        (r#"{"paths": ["/items/user-*"]}"#, "patterns are not supported"),
        (r#"{"keys": ["/a"]}"#, "start it with the method"),
        (r#"{"keys": ["http://shop/a"]}"#, "start it with the method"),
        (r#"{"keys": ["get:/a"]}"#, "start it with the method"),
        (r#"{"keys": ["PUT:/a"]}"#, "start it with the method"),
        (r#"{"keys": ["GET:a"]}"#, "start it with the method"),
        (r#"{"keys": ["GET:http://shop"]}"#, "start it with the method"),
        (r#"{"keys": [""]}"#, "start it with the method"),
        (r#"{"keys": ["GET:shop/a"]}"#, "start it with the method"),
        (r#"{"keys": [" GET:/a"]}"#, "start it with the method"),
        (r#"{"keys": ["GET:/a#x"]}"#, "fragment"),
        (r#"{"keys": ["GET:/a#accept-language=de"]}"#, "fragment"),
        (r#"{"keys": ["GET:/a?b#"]}"#, "fragment"),
        (r#"{"keys": ["GET:http://shop/a#x"]}"#, "fragment"),
        (r#"{"keys": ["GET:/items/*"]}"#, "patterns are not supported"),
        (r#"{"keys": ["GET:http://shop/items/*?a"]}"#, "patterns are not supported"),
        (r#"{"tags": ["user:1 "]}"#, "remove the spaces"),
        (r#"{"tags": ["ok", "\tuser:1"]}"#, "remove the spaces"),
        (r#"{"tags": [""]}"#, "remove the spaces"),
        (r#"{"tags": ["user:1\n"]}"#, "remove the spaces"),
    ] {
        let refused = sidecar.purge(body).await;
        assert_eq!(refused.status, 400, "{body}");
        assert_eq!(refused.header("content-type"), "application/problem+json", "{body}");
        assert!(refused.body.contains(says), "{body}: {}", refused.body);
    }
    let long = "a".repeat(97 << 10);
    for body in [format!(r#"{{"keys": ["GET:/{long}"]}}"#), format!(r#"{{"paths": ["/{long}"]}}"#)] {
        let refused = sidecar.purge(body.leak()).await;
        assert_eq!(refused.status, 400);
        assert!(refused.body.contains("than any request target"), "{}", refused.body);
    }
    for key in ["PUT:/a", "a", "GET:/a%23x", "GET:/items/*"] {
        let deleted = sidecar.with_token(Method::DELETE, &format!("/entries/{key}"), "").await;
        // An escaped '#' may be one of the path.
        let expected = if key.contains('%') { 200 } else { 400 };
        assert_eq!(deleted.status, expected, "{key}: {}", deleted.body);
    }
    for body in [
        r#"{"paths": ["/users/a*b", "/items/%2A", "/u/a b", "/"]}"#,
        r#"{"tags": ["a b", "*"]}"#,
        r#"{"keys": ["GET:/a?x", "HEAD:http://shop/", "POST:https://shop:8443/a?b#c=d"]}"#,
    ] {
        assert_eq!(sidecar.purge(body).await.status, 200, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_in_any_spelling_purges_the_responses_of_its_route() {
    let origin = Origin::numbered(&[("vary", "x-a")]).await;
    let policy = Policy::new(
        r#"
routes:
- name: some
  match: {path: "/some/{id}"}
  ttl: 60s
  key: {query: {allow: [page, sort], order: Sorted}, headers: [accept-language]}
- {name: page, match: {path: "/{page}"}, ttl: 60s, key: {query: {ignore: ["utm_*"]}}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, keys) in [
        ("/some/1", &["GET:/some/1?x=1", "GET:/some/1\n", "GET:/some/1 ", "GET:/some/%31?x=1&y=2"][..]),
        (
            "/some/1?sort=a&page=2&x=3",
            &[
                "GET:/some/1?sort=a&page=2&x=3",
                "GET:/some/1?sort=a&page=2",
                "GET:http://shop.test/some/1?x=4&page=2&sort=a#accept-language=de",
                "GET:http://shop.test/some/1?page=2&sort=a#accept-language=de\nx-a=1",
            ],
        ),
        (
            "/a?utm_source=b&q=c+d",
            &["GET:/a?q=c d", "GET:/a?utm_medium=e&q=c%20d", "GET:http://SHOP.test:80/a?q=c%2Bd"],
        ),
        ("/cafe%CC%81", &["GET:/caf\u{e9}", "GET:/cafe\u{301}?utm_a=1", "GET:http://shop.test/caf%C3%A9"]),
        ("/caf%C3%A9", &["GET:/cafe\u{301}", "GET:/cafe%cc%81"]),
        ("/a*", &["GET:/a%2A"]),
    ] {
        for key in keys {
            let headers = [("accept-language", "de"), ("x-a", "1")];
            let stored = sidecar.get_with(path, &headers).await.body;
            assert_eq!(sidecar.get_with(path, &headers).await.body, stored, "{path} is stored");
            let body = serde_json::json!({"keys": [key]}).to_string();
            let purged = sidecar.purge(body.leak()).await;
            assert_eq!(purged.status, 200, "{key:?}: {}", purged.body);
            assert_ne!(sidecar.get_with(path, &headers).await.body, stored, "{key:?} is {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explained_purge_names_do_purge_the_response() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(TAGGED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/a", "/a*", "/*?b=*", "/a%2A", "/caf%C3%A9?b=%23", "/a+b"] {
        let described = serde_json::json!({"url": format!("http://shop.test{path}")}).to_string();
        let explained = sidecar.with_token(Method::POST, "/explain", described.leak()).await;
        let explained: serde_json::Value = serde_json::from_str(&explained.body).unwrap();
        for kind in ["keys", "paths", "tags"] {
            for name in explained["purge"][kind].as_array().unwrap() {
                let stored = sidecar.get(path).await.body;
                let body = serde_json::json!({kind: [name]}).to_string();
                let purged = sidecar.purge(body.leak()).await;
                assert_eq!(purged.status, 200, "{name}: {}", purged.body);
                assert_ne!(sidecar.get(path).await.body, stored, "{name} is {path}");
            }
        }
    }
}
