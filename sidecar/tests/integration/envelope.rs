//! Envelopes: responses that state their source.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use super::harness::{Answer, Database, Origin, Policy, RedisServer, Sidecar, Steps, reply, until};

/// JSON in a form that no serialiser reproduces.
const ODD: &str = "{\"b\": 1.0,\n \"a\" : [ ],\"\u{e9}\":\"\\u00e9\", \"b\": 2}";

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 10m, envelope: true, bypass: {query: {nocache: "true"}}}
"#;

const JSON: (&str, &str) = ("content-type", "application/json");

async fn odd() -> Origin {
    Origin::start(|_| async {
        let headers = [JSON, ("etag", "\"a\""), ("last-modified", "Sat, 21 Nov 2020 10:00:00 GMT")];
        reply(&headers, ODD)
    })
    .await
}

/// Returns the source of an envelope, the remaining freshness of its data, and the data as written.
#[track_caller]
fn opened(answer: &Answer) -> (String, u64, &str) {
    assert_eq!(
        (answer.status.as_u16(), answer.header("content-type")),
        (200, "application/json"),
        "{answer:?}"
    );
    let said: Value =
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let source = said["source"].as_str().unwrap().to_owned();
    let left = said["expires_in_seconds"].as_u64().unwrap();
    if left > 0 {
        let cached_at: jiff::Timestamp = said["cached_at"].as_str().unwrap().parse().unwrap();
        let ago = jiff::Timestamp::now().as_second() - cached_at.as_second();
        assert!((0..60).contains(&ago), "{ago}");
    }
    let start = answer.body.find("\"data\":").unwrap() + "\"data\":".len();
    let end = answer.body.rfind(",\"cached_at\":").unwrap();
    (source, left, &answer.body[start..end])
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_names_the_application_and_the_caches() {
    let origin = odd().await;
    let policy = Policy::new(SPEC);
    let a = Sidecar::start(&policy, origin.address).await;
    let answer = a.get("/a").await;
    let (source, first, data) = opened(&answer);
    assert_eq!((source.as_str(), data), ("application", ODD));
    assert!((540..=600).contains(&first), "{first}");
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let b = Sidecar::start(&policy, origin.address).await;
    for expected in ["l2", "l1"] {
        let answer = b.get("/a").await;
        let (source, _, data) = opened(&answer);
        assert_eq!((source.as_str(), data, answer.hit()), (expected, ODD, Some(expected)));
        for name in ["etag", "last-modified", "accept-ranges"] {
            assert_eq!(answer.header(name), "", "{name} is about the data");
        }
    }
    until("the remaining freshness counts down", async || {
        (opened(&a.get("/a").await).1 < first).then_some(())
    })
    .await;
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_names_the_sources_of_a_route() {
    let database =
        Database::new("create table items (key text, value text); insert into items values ('a', 'x')").await;
    let store = odd().await;
    let spec = r#"
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
- {name: store, http: {url: "http://STORE"}}
routes:
- name: item
  match: {path: "/data/{key}"}
  ttl: 10m
  envelope: true
  bypass: {query: {nocache: "true"}}
  from:
  - {postgres: {source: catalog, query: "select value from items where key = {key}"}}
  - {http: {source: store, path: "/{key}"}}
"#;
    let spec = spec.replace("STORE", &store.address.to_string());
    let policy = Policy::new(&database.serve(&spec));
    let sidecar = Sidecar::start(&policy, store.address).await;
    for (path, first, data) in [("/data/a", "postgres", r#"{"value": "x"}"#), ("/data/b", "http", ODD)] {
        for expected in [first, "l1"] {
            let answer = sidecar.get(path).await;
            let (source, left, found) = opened(&answer);
            assert_eq!((source.as_str(), found), (expected, data));
            assert!((540..=600).contains(&left), "{left}");
        }
        let path = format!("{path}?nocache=true");
        for _ in 0..2 {
            let answer = sidecar.get(&path).await;
            let (source, left, found) = opened(&answer);
            assert_eq!((source.as_str(), left, found), (first, 0, data), "the response is not stored");
        }
    }
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_ignores_conditions_ranges_and_codings() {
    let origin = odd().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let lines = [
        ("if-none-match", "\"a\""),
        ("if-none-match", "*"),
        ("if-modified-since", "Sat, 21 Nov 2026 10:00:00 GMT"),
        ("range", "bytes=0-3"),
        ("accept-encoding", "gzip"),
    ];
    for round in 0..2 {
        for (number, line) in lines.iter().enumerate() {
            let answer = sidecar.get_with(&format!("/{number}"), &[*line]).await;
            assert_eq!(opened(&answer).2, ODD, "{round}: {line:?}");
        }
    }
    assert_eq!(origin.calls(), lines.len());
    assert_eq!(origin.last().header("accept-encoding"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_an_envelope_has_the_headers_of_get() {
    let origin = odd().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let length = sidecar.get("/stored").await.body.len();
    for path in ["/stored", "/stored", "/other", "/other"] {
        let head = sidecar.request(Method::HEAD, path, &[], "").await;
        assert_eq!(
            (head.status.as_u16(), head.header("content-type"), head.header("etag")),
            (200, JSON.1, "")
        );
        if let Ok(said) = head.header("content-length").parse::<usize>() {
            assert!(said.abs_diff(length) < 20, "{path}: {said}, and GET has {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_is_served_over_http2() {
    let origin = odd().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (mut sender, connection) =
        handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for expected in ["application", "l1", "l1"] {
        let request = Request::get("http://shop.test/a").header("if-none-match", "\"a\"").body(Empty::new());
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let said: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((said["source"].as_str(), said["data"]["b"].as_i64()), (Some(expected), Some(2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_unknown_length_is_streamed() {
    for end in ["0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n"] {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.api+json; charset=utf-8\r\n\
                    Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\n[1,\r\n";
        let origin = Steps::new(&[head, "3\r\n 2]\r\n", end], false).await;
        let policy = Policy::new(SPEC);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        origin.let_go(2);
        let answer = sidecar.get("/a").await;
        assert_eq!(opened(&answer).2, "[1, 2]");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_data_makes_no_complete_envelope() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[1,2]";
    let origin = Steps::new(&[head], true).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let request = "GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(super::harness::exchange(sidecar.address, request).await).unwrap();
    assert!(!answer.contains("cached_at"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_successful_json_is_wrapped() {
    let origin = Origin::start(|seen| async move {
        let (headers, status): (&[_], _) = match seen.path.as_str() {
            "/gone" => (&[JSON], 404),
            "/broken" => (&[JSON], 500),
            "/text" => (&[("content-type", "text/plain")], 200),
            "/packed" => (&[JSON, ("content-encoding", "gzip")], 200),
            _ => (&[], 200),
        };
        let mut reply = reply(headers, "[]");
        *reply.status_mut() = status.try_into().unwrap();
        reply
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/gone", "/broken", "/text", "/packed", "/nothing"] {
        for _ in 0..2 {
            assert_eq!(sidecar.get(path).await.body, "[]", "{path}");
        }
    }
    let policy = Policy::new(SPEC);
    let nowhere = Sidecar::start(&policy, ([127, 0, 0, 1], 1).into()).await;
    let answer = nowhere.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (502, "application/problem+json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_data_is_null() {
    let origin = Origin::start(|_| async { reply(&[JSON], "") }).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for _ in 0..2 {
        assert_eq!(opened(&sidecar.get("/a").await).2, "null");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bypassing_response_is_wrapped() {
    let origin = odd().await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for line in [&[][..], &[("accept-encoding", "gzip"), ("range", "bytes=0-1"), ("if-none-match", "\"a\"")]]
    {
        let answer = sidecar.get_with("/a?nocache=true", line).await;
        let (source, left, data) = opened(&answer);
        assert_eq!((source.as_str(), left, data), ("application", 0, ODD));
        assert_eq!(["accept-encoding", "range"].map(|name| origin.last().header(name).to_owned()), ["", ""]);
    }
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn envelope_states_the_ttl_from_the_response() {
    let origin = Origin::start(|_| async { reply(&[JSON, ("x-ttl", "100")], "[]") }).await;
    let spec =
        SPEC.replace("envelope: true", "envelope: true, ttlFrom: {header: x-ttl}, ttlJitterPercent: 50");
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in 0..8 {
        let path = format!("/{number}");
        let (first, second) = (sidecar.get(&path).await, sidecar.get(&path).await);
        let (first, second) = (opened(&first), opened(&second));
        assert_eq!((first.0.as_str(), second.0.as_str()), ("application", "l1"));
        assert!((20..=100).contains(&first.1), "{}", first.1);
        assert!(first.1.abs_diff(second.1) < 10, "{} and {}", first.1, second.1);
    }
}
