//! Responses that set a cookie, on routes that store them without it.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::harness::{Database, Origin, Policy, Sidecar, Steps, Wire, header, reply, until};

const STRIP: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, setCookie: Strip}
"#;

const FIRST: &str =
    "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Kept: 1\r\nContent-Length: 4\r\n\r\nfi";

/// Returns the cookies of a head in lower case.
fn cookies(head: &str) -> Vec<&str> {
    head.lines().filter_map(|line| line.strip_prefix("set-cookie: ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stripped_cookie_reaches_only_the_client_of_the_fill() {
    let origin = Steps::new(&[FIRST, "ll"], false).await;
    let policy = Policy::new(STRIP);
    let [pod, other] =
        [Sidecar::start(&policy, origin.address).await, Sidecar::start(&policy, origin.address).await];
    let mut first = Wire::asking(pod.address, "/a").await;
    assert_eq!(cookies(&first.head().await), ["a=1", "b=2"]);
    let mut second = Wire::asking(pod.address, "/a").await;
    let head = second.head().await;
    assert!(head.contains("; collapsed"), "{head}");
    assert_eq!((cookies(&head), header(&head, "x-kept")), (vec![], "1"));
    origin.let_go(1);
    assert_eq!((first.bytes(4).await, second.bytes(4).await), ("fill".to_owned(), "fill".to_owned()));
    let hit = pod.get("/a").await;
    assert_eq!((hit.hit(), hit.header("set-cookie"), hit.header("x-kept")), (Some("l1"), "", "1"));
    let shared = until("the response is in Redis", async || {
        let found = other.get("/a").await;
        assert_eq!(found.header("set-cookie"), "");
        found.hit().is_some().then_some(found)
    });
    assert_eq!(shared.await.body, "fill");
    assert_eq!(origin.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stripped_cookie_reaches_a_client_over_http2() {
    let origin = Origin::numbered(&[("set-cookie", "a=1")]).await;
    let policy = Policy::new(STRIP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let ask = async || {
        let request = Request::get(format!("http://{}/a", sidecar.address)).body(Empty::new()).unwrap();
        let response = client.request(request).await.unwrap();
        let cookie = response.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        (cookie, response.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(ask().await, (Some("a=1".to_owned()), Bytes::from("1")));
    assert_eq!(ask().await, (None, Bytes::from("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_of_a_304_reaches_only_the_client_whose_request_was_forwarded() {
    let origin = Origin::start(|seen| async move {
        if seen.header("if-none-match").is_empty() {
            return reply(&[("etag", "\"a\"")], "body");
        }
        let mut reply = reply(&[("etag", "\"a\""), ("set-cookie", "a=1")], "");
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply
    })
    .await;
    for treatment in ["Refuse", "Strip"] {
        let policy = Policy::new(&format!(
            "routes:\n- {{name: page, match: {{path: \"/{{page}}\"}}, ttl: 1s, setCookie: {treatment}}}\n"
        ));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        sidecar.get("/a").await;
        let validated = until("the response is stale", async || {
            let answer = sidecar.get("/a").await;
            answer.hit().is_none().then_some(answer)
        })
        .await;
        assert!(validated.cache_status().contains("fwd-status=304; stored"), "{}", validated.cache_status());
        assert_eq!((validated.body.as_str(), validated.header("set-cookie")), ("body", "a=1"));
        let hit = sidecar.get("/a").await;
        assert_eq!((hit.hit(), hit.header("set-cookie")), (Some("l1"), ""), "{treatment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_of_a_background_refresh_reaches_nobody() {
    let origin = Origin::numbered(&[("set-cookie", "a=1")]).await;
    let policy = Policy::new(
        "routes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 1s, staleWhileRevalidate: 1h, setCookie: Strip}\n",
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.header("set-cookie"), "a=1");
    until("the response is refreshed", async || {
        let answer = sidecar.get("/a").await;
        assert_eq!(answer.header("set-cookie"), "");
        (answer.body == "2").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_known_good_response_has_no_stripped_cookie() {
    let origin = Origin::obedient().await;
    let database = Database::new("").await;
    let policy = Policy::new(&format!(
        "sources: [{{name: keeper, postgres: {{urlFrom: {{file: '{}'}}}}}}]\nroutes:\n- {{name: page, match: {{path: \"/{{page}}\"}}, ttl: 60s, setCookie: Strip, lastKnownGood: {{source: keeper}}}}\n",
        database.url_file().display()
    ));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get_with("/a", &[("x-say", "set-cookie: a=1")]).await.header("set-cookie"), "a=1");
    until("the response is persisted", async || {
        let other = Sidecar::start(&policy, origin.address).await;
        let answer = other.get_with("/a", &[("x-status", "503")]).await;
        assert_eq!(answer.header("set-cookie"), "");
        (answer.body == "1").then_some(())
    })
    .await;
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_of_a_missing_part_reaches_only_the_client_whose_request_completed_the_response() {
    let origin = Origin::start(|seen| async move {
        let (range, part, cookie) = match seen.header("range") {
            "bytes=0-1" => ("bytes 0-1/4", "fi", "x=0"),
            "bytes=2-3" => ("bytes 2-3/4", "ll", "a=1"),
            other => panic!("{other:?} was not expected"),
        };
        let mut reply = reply(&[("etag", "\"a\""), ("content-range", range), ("set-cookie", cookie)], part);
        *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
        reply
    })
    .await;
    let policy =
        Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 60s, setCookie: Strip}\n");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let part = sidecar.get_with("/a", &[("range", "bytes=0-1")]).await;
    assert_eq!((part.status.as_u16(), part.header("set-cookie")), (206, "x=0"));
    let whole = sidecar.get("/a").await;
    assert_eq!(
        (whole.status.as_u16(), whole.body.as_str(), whole.header("set-cookie")),
        (200, "fill", "a=1")
    );
    let hit = sidecar.get("/a").await;
    assert_eq!((hit.hit(), hit.header("set-cookie")), (Some("l1"), ""));
}
