//! Tags from headers of responses.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use tokio::sync::Semaphore;

use super::{
    harness::{Origin, Policy, RedisServer, Sidecar, reply, two, until},
    http2_hits::{ask, connect},
};

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 60s
  tags: ["page:{page}"]
  tagsFrom: {headers: [Surrogate-Key, Cache-Tag, xkey]}
  staleWhileRevalidate: 0s
invalidation:
  onWrite:
  - {match: {path: "/write/{tag}"}, purge: {tags: ["{tag}"]}}
"#;

/// An application whose responses say the request's number, and have the header fields that the query has, such as `xkey=a+b`.
async fn tagged() -> Origin {
    Origin::start(|seen| async move {
        let mut answer = reply(&[("etag", "\"1\"")], seen.number.to_string());
        if seen.headers.contains_key("if-none-match") {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        }
        for pair in seen.path.split(['?', '&']).skip(1) {
            let (name, value) = pair.split_once('=').unwrap();
            let value = value.replace('+', " ").parse().unwrap();
            answer.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value);
        }
        answer
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_from_a_header_is_purged_in_every_sidecar() {
    let by_api = |body| (Method::POST, "/purge", body);
    for (method, path, body) in [
        by_api(r#"{"tags": ["one"]}"#),
        by_api(r#"{"tags": ["TWO"]}"#),
        by_api(r#"{"tags": ["three 3"]}"#),
        by_api(r#"{"tags": ["four"]}"#),
        by_api(r#"{"tags": ["page:a"]}"#),
        (Method::PUT, "/write/four", ""),
    ] {
        let origin = tagged().await;
        let policy = Policy::new(SPEC);
        let [a, b] = &two(&policy, &origin).await;
        let tags = "/a?Surrogate-Key=one+two&Cache-Tag=three+3,x&xkey=four";
        let (old, kept) = (a.get(tags).await, a.get("/b?xkey=five").await);
        assert_eq!(
            old.header("surrogate-key"),
            "one two",
            "headers are kept unless the policy says otherwise"
        );
        policy.until_stored(&mut RedisServer::shared().await, 2).await;
        assert_eq!(b.get(tags).await.body, old.body);
        let late = Sidecar::start(&policy, origin.address).await;
        let purged = match method {
            Method::POST => b.purge(body).await,
            method => b.request(method, path, &[], body).await,
        };
        assert_eq!(purged.status, 200, "{path} {body}: {}", purged.body);
        for sidecar in [a, &late, b] {
            assert_ne!(sidecar.get(tags).await.body, old.body, "{path} {body}");
            assert_eq!(sidecar.get("/b?xkey=five").await.body, kept.body, "{path} {body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_by_a_tag_of_a_response_in_flight_covers_it() {
    let gate = Arc::new(Semaphore::new(0));
    let let_through = Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[("xkey", "t")], seen.number.to_string())
        }
    })
    .await;
    let policy = Policy::new(SPEC);
    let [a, b] = &two(&policy, &origin).await;
    let purging = async {
        until("the fill", async || (origin.calls() == 1).then_some(())).await;
        assert_eq!(b.purge(r#"{"tags": ["t"]}"#).await.status, 200);
        // Neither waits for the fill that began before the purge.
        let later = async {
            until("the others", async || (origin.calls() > 1).then_some(())).await;
            let_through.add_permits(100);
        };
        let (in_a, in_b, ()) = tokio::join!(a.get("/a"), b.get("/a"), later);
        assert_ne!(in_a.body, "1", "{}", in_a.cache_status());
        assert_ne!(in_b.body, "1", "{}", in_b.cache_status());
    };
    let (old, ()) = tokio::join!(a.get("/a"), purging);
    assert_eq!(old.body, "1");
    assert_ne!(a.get("/a").await.body, "1");
    assert_eq!(a.metric("larder_not_stored_total", &["reason=\"purged\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_that_brings_other_tags_replaces_them() {
    for remove in [false, true] {
        let origin = Origin::start(|seen| async move {
            let is_known = seen.headers.contains_key("if-none-match");
            let key = if is_known { "new" } else { "old" };
            let mut answer = reply(&[("etag", "\"a\""), ("xkey", key)], if is_known { "" } else { "body" });
            if is_known {
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
            }
            answer
        })
        .await;
        let spec = SPEC.replace("l2: ", "# ").replace("[Surrogate-Key, Cache-Tag, xkey]", "[xkey]");
        let spec = spec.replace("[xkey]", &format!("[xkey], remove: {remove}"));
        let policy = Policy::new(&spec);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        sidecar.get("/a").await;
        assert_eq!(sidecar.purge(r#"{"tags": ["old"], "soft": true}"#).await.status, 200);
        let validated = sidecar.get("/a").await;
        assert!(validated.header("cache-status").contains("fwd-status=304"), "{validated:?}");
        assert_eq!((&*validated.body, validated.header("xkey")), ("body", if remove { "" } else { "new" }));
        assert_eq!(sidecar.purge(r#"{"tags": ["old"]}"#).await.status, 200);
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "it has that tag no more");
        assert_eq!(sidecar.purge(r#"{"tags": ["new"]}"#).await.status, 200);
        assert_eq!(sidecar.get("/a").await.hit(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_headers_reach_no_client() {
    let origin = tagged().await;
    let spec = SPEC
        .replace("xkey]", "xkey], remove: true")
        .replace("  staleWhileRevalidate: 0s", "  bypass: {headers: {x-skip: \"1\"}}");
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let target = "/a?Surrogate-Key=one&x-other=1";
    let is_removed = |headers: &HeaderMap, what: &str| {
        assert!(
            !headers.contains_key("surrogate-key") && headers.contains_key("x-other"),
            "{what}: {headers:?}"
        );
    };
    let conditional = [("if-none-match", "\"1\"")];
    let bypassing = [("x-skip", "1")];
    for (method, path, fields, what) in [
        (Method::GET, target, &[][..], "miss"),
        (Method::GET, target, &[], "hit"),
        (Method::HEAD, target, &[], "HEAD"),
        (Method::GET, target, &conditional, "304"),
        (Method::GET, "/b?Surrogate-Key=one&x-other=1", &conditional, "304 of a miss"),
        (Method::GET, target, &bypassing, "bypass"),
        (Method::GET, "/no/route?Surrogate-Key=one&x-other=1", &[], "pass"),
        (Method::POST, target, &[], "write"),
        (Method::GET, target, &[("te", "trailers"), ("x-skip", "1")], "pass on the general path"),
    ] {
        let answer = sidecar.request(method, path, fields, "").await;
        is_removed(&answer.headers, what);
        assert!(answer.header("cache-status").starts_with("larder;"), "{what}");
    }
    let client = connect(sidecar.address, 1 << 20).await;
    for (method, path) in
        [(Method::GET, target), (Method::HEAD, target), (Method::GET, "/no/route?xkey=1&x-other=1")]
    {
        let (status, headers, _) = ask(&client, method, path).await;
        assert_eq!(status, 200);
        is_removed(&headers, "HTTP/2");
    }
    assert_eq!(sidecar.purge(r#"{"tags": ["one"]}"#).await.status, 200);
    assert_eq!(sidecar.get(target).await.hit(), None, "they count all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_with_more_tags_than_are_stored_is_not_stored() {
    let origin = Origin::start(|seen| async move {
        let tags: Vec<_> = (0..seen.number * 1_000).map(|tag| tag.to_string()).collect();
        reply(&[("cache-tag", &tags.join(","))], seen.number.to_string())
    })
    .await;
    let policy = Policy::new(&SPEC.replace("l2: ", "# "));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "1");
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"), "1,000 are few enough");
    assert_eq!(sidecar.purge(r#"{"tags": ["999"]}"#).await.status, 200);
    for number in ["2", "3"] {
        let answer = sidecar.get("/a").await;
        assert_eq!((&*answer.body, answer.hit()), (number, None));
    }
    assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"too-many-tags\""]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_of_an_http_source_has_tags_from_its_headers() {
    let origin = tagged().await;
    let spec = format!(
        r#"
sources: [{{name: catalog, http: {{url: "http://{}"}}}}]
routes:
- name: item
  match: {{path: "/items/{{id}}"}}
  ttl: 60s
  from: [{{http: {{source: catalog, path: "/{{id}}?xkey=item"}}}}]
  tagsFrom: {{headers: [xkey], remove: true}}
"#,
        origin.address
    );
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let old = sidecar.get("/items/1").await;
    assert_eq!((old.status.as_u16(), old.header("xkey")), (200, ""));
    assert_eq!(sidecar.get("/items/1").await.body, old.body);
    assert_eq!(sidecar.purge(r#"{"tags": ["item"]}"#).await.status, 200);
    assert_ne!(sidecar.get("/items/1").await.body, old.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_that_freshens_a_response_replaces_its_tags() {
    let origin = Origin::start(|seen| async move {
        let tags: Vec<_> = (0..600).map(|tag| format!("{}-{tag}", seen.number)).collect();
        reply(&[("cache-tag", &tags.join(",")), ("xkey", "of-all"), ("etag", "\"a\"")], "body")
    })
    .await;
    let spec = SPEC.replace("l2: ", "# ").replace("[Surrogate-Key, Cache-Tag, xkey]", "[Cache-Tag, xkey]");
    let policy = Policy::new(&spec.replace("  ttl: 60s", "  ttl: 60s\n  clientDirectives: Honor"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    for _ in 0..3 {
        let answer = sidecar.request(Method::HEAD, "/a", &[("cache-control", "no-cache")], "").await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (200, None));
    }
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
    let of_get = (r#"{"tags": ["1-1"]}"#, true);
    for (body, is_hit) in [of_get, (r#"{"tags": ["3-1"]}"#, true), (r#"{"tags": ["4-1"]}"#, false)] {
        assert_eq!(sidecar.purge(body).await.status, 200);
        assert_eq!(sidecar.get("/a").await.hit().is_some(), is_hit, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_one_route_removes_are_removed_from_responses_of_every_route() {
    let origin = tagged().await;
    let policy = Policy::new(
        r#"
routes:
- {name: tagged, match: {path: "/tagged/{page}"}, ttl: 60s, tagsFrom: {headers: [xkey], remove: true}}
- {name: kept, match: {path: "/kept/{page}"}, ttl: 60s, tagsFrom: {headers: [xkey]}}
- {name: page, match: {path: "/{page}"}, ttl: 60s, bypass: {headers: {x-skip: "1"}}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/tagged/a?xkey=t", "/kept/a?xkey=t", "/a?xkey=t"] {
        for fields in [&[][..], &[], &[("x-skip", "1")], &[("te", "trailers"), ("x-skip", "1")]] {
            let answer = sidecar.get_with(path, fields).await;
            assert_eq!(answer.header("xkey"), "", "{path}: {}", answer.cache_status());
        }
    }
    assert_eq!(sidecar.purge(r#"{"tags": ["t"]}"#).await.status, 200);
    assert_eq!(sidecar.get("/kept/a?xkey=t").await.hit(), None);
    assert_eq!(sidecar.get("/a?xkey=t").await.hit(), Some("l1"));
}
