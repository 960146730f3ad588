//! Writes whose rules use values of the query, of header fields and of bodies.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::harness::{Origin, Policy, Sidecar, Wire, reply, two, until};

const VALUES: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: user, match: {path: "/api/users/{id}"}, ttl: 60s, tags: ["user:{id}"]}
- {name: doc, match: {path: "/docs/{*path}"}, ttl: 60s, tags: ["doc:{path}"]}
- {name: other, match: {path: "/other"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/rpc"}, purge: {tags: ["user:{body:/user/id}"]}, maxBodySize: 1Ki}
  - {match: {path: "/find"}, purge: {paths: ["/docs/{query:doc}/a"]}}
  - {match: {path: "/move"}, purge: {prefixes: ["/docs/{header:X-Doc}"]}}
"#;

const PATHS: [&str; 7] = [
    "/api/users/7",
    "/api/users/8",
    "/api/users/a%20b%20%C3%BC+",
    "/docs/1/a",
    "/docs/1/b",
    "/docs/a%2Bb/a",
    "/other",
];
const USERS: [usize; 3] = [0, 1, 2];
const DOCS: [usize; 3] = [3, 4, 5];

/// Two sidecars that have [`PATHS`] stored, over an application that sends bodies back.
struct Shop {
    _origin: Origin,
    _policy: Policy,
    sidecars: [Sidecar; 2],
}

impl Shop {
    async fn open() -> Self {
        let origin = Origin::start(|seen| async move {
            match seen.method {
                Method::GET => reply(&[], seen.number.to_string()),
                _ => reply(&[], seen.body),
            }
        })
        .await;
        let policy = Policy::new(VALUES);
        let sidecars = two(&policy, &origin).await;
        Self { _origin: origin, _policy: policy, sidecars }
    }

    /// Stores all paths in both sidecars.
    async fn warm(&self) {
        let [a, b] = &self.sidecars;
        for path in PATHS {
            let first = a.get(path).await.body;
            until("the response is in Redis", async || (b.get(path).await.body == first).then_some(())).await;
        }
    }

    /// Asserts that a write has purged the paths with these indices, and no others, in the sidecar that did not see it.
    async fn assert_purged(&self, expected: &[usize], context: &str) {
        for (index, path) in PATHS.iter().enumerate() {
            let is_purged = self.sidecars[1].get(path).await.hit().is_none();
            assert_eq!(is_purged, expected.contains(&index), "{path} after {context}");
        }
    }

    fn first(&self) -> &Sidecar {
        &self.sidecars[0]
    }
}

/// Sends a POST over HTTP/1, in pieces: of a chunked body if there is no length.
async fn post_in_pieces(sidecar: &Sidecar, fields: &str, pieces: &[&str]) -> String {
    let is_chunked = !fields.to_lowercase().contains("content-length");
    let framing = if is_chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
    let mut wire = Wire::to(sidecar.address).await;
    wire.say(format!("POST /rpc HTTP/1.1\r\nHost: shop.test\r\n{framing}{fields}\r\n")).await;
    for piece in pieces {
        if is_chunked {
            wire.say(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
        } else {
            wire.say(piece).await;
        }
        tokio::task::yield_now().await;
    }
    if is_chunked {
        wire.say("0\r\n\r\n").await;
    }
    let (head, body) = wire.answer().await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    body
}

/// Sends a POST over HTTP/2, each piece in a frame of its own.
async fn post_over_http2(sidecar: &Sidecar, pieces: &[&'static str]) -> String {
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let frames: Vec<_> = pieces
        .iter()
        .map(|piece| {
            Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(piece.as_bytes())))
        })
        .collect();
    let body = StreamBody::new(futures::stream::iter(frames));
    let request = Request::post("http://shop.test/rpc").body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_read_from_bodies_over_both_protocols() {
    let shop = Shop::open().await;
    for (pieces, purged) in [
        (&[r#"{"user": {"id": 7}}"#][..], &[0][..]),
        (&["{\"user\": {\"i", "d\": \"7\"", "}}"], &[0]),
        (&[r#"{"user": {"id": [7, "8"]}}"#], &[0, 1]),
        (&[r#"{"user": {"id": 7}, "#, r#""user": {"ID": 8}}"#], &[0, 1]),
        (&[r#"{"user": {"id": "a b \u00fc+"}}"#], &[2]),
        (&["{\"user\": {\"id\": \"a b \u{fc}", "+\"}}"], &[2]),
        (&[r#"{"user": {"id": 7.0}}"#], &[0]),
        (&[r#"{"user": {"id": "nobody"}}"#], &[]),
    ] {
        let whole = pieces.concat();
        for way in ["content-length", "chunked", "http2"] {
            shop.warm().await;
            let context = format!("{whole} by {way}");
            let echoed = match way {
                "http2" => post_over_http2(shop.first(), pieces).await,
                "chunked" => post_in_pieces(shop.first(), "", pieces).await,
                _ => {
                    let length = format!("Content-Length: {}\r\n", whole.len());
                    post_in_pieces(shop.first(), &length, pieces).await
                }
            };
            assert_eq!(echoed, whole, "{context}");
            shop.assert_purged(purged, &context).await;
        }
    }
    assert_eq!(shop.first().metric("larder_purges_broadened_total", &["place=\"body\""]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn write_whose_body_does_not_say_purges_all_that_it_could_mean() {
    let shop = Shop::open().await;
    let padding = " ".repeat(1 << 10);
    let large = format!("{{\"user\": {{\"id\": 7}}}}{padding}");
    let (first, second) = large.split_at(600);
    let whole = r#"{"user": {"id": 7}}"#;
    let of_length = |body: &str| format!("Content-Length: {}\r\n", body.len());
    let coded = format!("Content-Encoding: gzip\r\n{}", of_length(whole));
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let utf7 = "Content-Type: application/json; charset=utf-7\r\n";
    let cases: [(&str, &[&str]); 11] = [
        ("", &["{}"]),
        ("", &["user=7"]),
        ("", &[r#"{"user": {"id": null}}"#]),
        ("", &[r#"{"user": {"id": 7}"#]),
        ("", &[]),
        ("Content-Length: 0\r\n", &[]),
        (&coded, &[whole]),
        (form, &[r#"{"user": {"id": 8}, "x": "&user[id]=7&y="}"#]),
        (utf7, &[whole]),
        ("", &[first, second]),
        (&of_length(&large), &[first, second]),
    ];
    for (number, (fields, pieces)) in cases.iter().enumerate() {
        shop.warm().await;
        let context = format!("{fields} {pieces:?}");
        assert_eq!(post_in_pieces(shop.first(), fields, pieces).await, pieces.concat(), "{context}");
        shop.assert_purged(&USERS, &context).await;
        let broadened = shop.first().metric("larder_purges_broadened_total", &["place=\"body\""]).await;
        assert_eq!(broadened, (number + 1) as f64, "{context}");
    }
    assert!(shop.first().logged("{body:/user/id}").is_some(), "the log names the value");
    shop.warm().await;
    let coded =
        format!("Content-Encoding: identity\r\nContent-Type: application/json\r\n{}", of_length(whole));
    post_in_pieces(shop.first(), &coded, &[whole]).await;
    shop.assert_purged(&[0], "a body without a coding").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_breaks_off_purges_by_the_json_that_was_whole() {
    let shop = Shop::open().await;
    shop.warm().await;
    for beginning in [r#"{"user": {"id": 8"#, r#"{"user": {"id": 7}}"#] {
        let mut wire = Wire::to(shop.first().address).await;
        wire.say(format!("POST /rpc HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 100\r\n\r\n{beginning}"))
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        drop(wire);
    }
    until("the user of the whole JSON is purged", async || {
        shop.sidecars[1].get(PATHS[0]).await.hit().is_none().then_some(())
    })
    .await;
    for path in &PATHS[1..] {
        assert!(shop.sidecars[1].get(path).await.hit().is_some(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_waits_for_a_100_is_read_when_the_application_wants_it() {
    let shop = Shop::open().await;
    shop.warm().await;
    let body = r#"{"user": {"id": 8}}"#;
    let mut wire = Wire::to(shop.first().address).await;
    let length = body.len();
    wire.say(format!(
        "POST /rpc HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.head().await, "http/1.1 100 continue\r\n\r\n");
    wire.say(body).await;
    assert_eq!(wire.answer().await.1, body);
    shop.assert_purged(&[1], body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_query_and_header_are_inserted_as_whole_segments() {
    let shop = Shop::open().await;
    for (target, fields, purged) in [
        ("/find?doc=1", &[][..], &[3][..]),
        ("/find?x=2&DOC[]=1&doc=a%2Bb", &[], &[3, 5]),
        ("/find?doc=a+b", &[], &[5]),
        ("/find?doc=1/b", &[], &[]),
        ("/find?doc=", &[], &DOCS),
        ("/find", &[], &DOCS),
        ("/move", &[("x-doc", "1")], &[3, 4]),
        ("/move", &[("x_doc", "9, 1")], &[3, 4]),
        ("/move", &[("x-doc", "1"), ("x-doc", "a+b")], &DOCS),
        ("/move", &[("x-doc", "..")], &DOCS),
        ("/move", &[], &DOCS),
        ("/other", &[], &[6]),
    ] {
        shop.warm().await;
        let written = shop.first().request(Method::POST, target, fields, "x").await;
        assert_eq!((written.status.as_u16(), written.body.as_str()), (200, "x"), "{target}");
        shop.assert_purged(purged, &format!("{target} {fields:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_reads_the_values_that_a_write_would_have() {
    let shop = Shop::open().await;
    let explain = async |described: Value| -> Value {
        let described: &'static str = Box::leak(described.to_string().into_boxed_str());
        let explained = shop.first().with_token(Method::POST, "/explain", described).await;
        assert_eq!(explained.status, 200, "{}", explained.body);
        serde_json::from_str(&explained.body).unwrap()
    };
    let rpc = |body: &str| json!({"method": "POST", "url": "http://shop.test/rpc", "body": body});
    let known = explain(rpc(r#"{"user": {"id": 7}}"#)).await;
    assert_eq!((&known["on_write"]["tags"], &known["on_write_unknown"]), (&json!(["user:7"]), &json!([])));
    for body in ["", "{}", &format!("{{\"user\": {{\"id\": 7}}}}{}", " ".repeat(1 << 10))] {
        let unknown = explain(rpc(body)).await;
        assert_eq!(unknown["on_write"]["prefixes"], json!(["/api/users/"]), "{body}");
        assert_eq!(unknown["on_write_unknown"], json!(["{body:/user/id}"]), "{body}");
    }
    let moved = json!({"method": "PUT", "url": "http://shop.test/move", "headers": {"x-doc": "1"}});
    assert_eq!(explain(moved).await["on_write"]["prefixes"], json!(["/docs/1"]));
    let found = json!({"method": "PUT", "url": "http://shop.test/find?doc=1&doc=2"});
    assert_eq!(explain(found).await["on_write"]["paths"], json!(["/docs/1/a", "/docs/2/a"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn value_is_unknown_to_a_policy_that_comes_while_the_write_is_on_its_way() {
    let (origin, permits) = Origin::holding_writes().await;
    let values = VALUES.replace("l2: ", "# ");
    let policy = Policy::new(values.split("invalidation:").next().unwrap());
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let write = sidecar.request(Method::PUT, "/rpc", &[], r#"{"user": {"id": 7}}"#);
    let changed = async {
        until("the write is on its way", async || (origin.calls() == 1).then_some(())).await;
        policy.change(&values);
        sidecar.until_it_serves(&policy).await;
        for path in PATHS {
            sidecar.get(path).await;
        }
        permits.add_permits(1);
    };
    let (written, ()) = tokio::join!(write, changed);
    assert_eq!(written.status, 200);
    for index in USERS {
        assert_eq!(sidecar.get(PATHS[index]).await.hit(), None, "{}", PATHS[index]);
    }
    assert_eq!(sidecar.get(PATHS[3]).await.hit(), Some("l1"));
}
