//! HEAD requests and the stored GET response.

use http::Method;

use super::harness::{
    Answer, Origin, Policy, RawOrigin, RedisServer, Sidecar, exchange, read_head, reply, until,
};
use tokio::io::AsyncWriteExt;

async fn head(sidecar: &Sidecar, headers: &[(&str, &str)]) -> Answer {
    sidecar.request(Method::HEAD, "/a", headers, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_get_response_serves_head() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/a").await;
    let hit = head(&sidecar, &[]).await;
    assert_eq!((hit.hit(), hit.body.as_str(), hit.header("content-length")), (Some("l1"), "", "1"));
    assert_eq!(head(&sidecar, &[("if-none-match", "\"a\"")]).await.status, 304);
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_response_freshens_the_stored_get_response() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let say = [("x-say", "etag: \"a\"")];
    sidecar.get_with("/a", &[say[0], ("x-say", "cache-control: max-age=0")]).await;
    let headers = [say[0], ("x-say", "cache-control: max-age=60"), ("x-say", "x-part: new")];
    assert_eq!(head(&sidecar, &headers).await.hit(), None);
    assert_eq!(origin.last().method, Method::HEAD);
    let hit = sidecar.get("/a").await;
    assert_eq!((hit.hit(), hit.body.as_str(), hit.header("x-part")), (Some("l1"), "1", "new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_response_invalidates_a_different_stored_get_response() {
    // The response to HEAD has another tag or another length.
    for (tag, body) in [("\"b\"", "same"), ("\"a\"", "longer")] {
        let origin = Origin::start(move |seen| async move {
            let (tag, body) = if seen.method == Method::HEAD { (tag, body) } else { ("\"a\"", "same") };
            reply(&[("cache-control", "max-age=60"), ("etag", tag)], body)
        })
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        sidecar.get("/a").await;
        assert_eq!(head(&sidecar, &[]).await.hit(), Some("l1"));
        assert_eq!(head(&sidecar, &[("cache-control", "no-cache")]).await.hit(), None);
        assert_eq!((sidecar.get("/a").await.hit(), origin.calls()), (None, 3), "{tag} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_invalidated_by_head_does_not_come_back_from_redis() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, clientDirectives: Honor}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let fresh = ("x-say", "cache-control: max-age=60");
    sidecar.get_with("/a", &[fresh, ("x-say", "etag: \"a\"")]).await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    head(&sidecar, &[fresh, ("x-say", "etag: \"b\""), ("cache-control", "no-cache")]).await;
    until("the stored response is dropped", async || {
        (sidecar.get_with("/a", &[fresh]).await.body == "3").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_response_without_a_length_gets_none() {
    let origin = RawOrigin::start(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let request = "HEAD /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    for stored in ["; stored", "; hit"] {
        let answer = String::from_utf8(exchange(sidecar.address, request).await).unwrap().to_lowercase();
        assert!(answer.contains(stored), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_to_head_in_place_of_an_error_is_none_to_get() {
    let origin = Origin::start(|seen| async move {
        let lines: &[_] = if seen.number > 1 {
            &[]
        } else {
            &[("cache-control", "max-age=5, stale-if-error=600"), ("age", "15")]
        };
        let mut response = reply(lines, "body");
        if seen.number > 1 {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(head(&sidecar, &[]).await.status, 200);
    for _ in 0..2 {
        let stale = head(&sidecar, &[]).await;
        assert_eq!((stale.status.as_u16(), stale.header("content-length")), (200, "4"));
        let got = sidecar.get("/a").await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (503, "body"), "nothing is stored for GET");
    }
}
