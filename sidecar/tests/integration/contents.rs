//! POST requests whose content is part of the key, without a declared length.

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::harness::{Origin, Policy, Sidecar, Wire, header};

const SPEC: &str = r#"
routes:
- {name: search, match: {path: "/search", methods: [POST]}, ttl: 60s, key: {body: {maxSize: 8}}}
"#;

const HEAD: &str = "POST /search HTTP/1.1\r\nHost: shop.test\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn chunked_post_is_cached_like_one_with_a_length() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    let chunked = |pieces: &str| format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{pieces}0\r\n\r\n");
    let length = |body: &str| format!("{HEAD}Content-Length: {}\r\n\r\n{body}", body.len());
    let mut ask = async |request: String| {
        wire.say(request).await;
        let (head, body) = wire.answer().await;
        (header(&head, "cache-status").contains("; hit"), body)
    };
    assert_eq!(ask(chunked("3\r\nabc\r\n3\r\ndef\r\n")).await, (false, "1".to_owned()));
    let seen = origin.last();
    assert_eq!((&seen.body[..], seen.header("content-length")), (&b"abcdef"[..], "6"));
    for same in [chunked("6\r\nabcdef\r\n"), chunked("1\r\na\r\n5\r\nbcdef\r\n"), length("abcdef")] {
        assert_eq!(ask(same).await, (true, "1".to_owned()));
    }
    assert_eq!(ask(chunked("6\r\nabcdeg\r\n")).await, (false, "2".to_owned()));
    assert_eq!(ask(chunked("")).await, (false, "3".to_owned()));
    assert_eq!(ask(length("")).await, (true, "3".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_post_with_trailers_is_sent_on_without_announcing_them() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say(format!(
        "{HEAD}Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
    ))
    .await;
    wire.answer().await;
    let seen = origin.last();
    assert_eq!((&seen.body[..], seen.header("trailer"), seen.header("x-sum")), (&b"a"[..], "", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_post_that_turns_out_too_long_passes_whole() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in 1..=2 {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(format!("{HEAD}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
        assert!(wire.head().await.starts_with("http/1.1 100 "));
        wire.say("6\r\nabcdef\r\n").await;
        wire.say("6\r\nghijkl\r\n").await;
        wire.say("3\r\nmno\r\n0\r\n\r\n").await;
        let (head, body) = wire.answer().await;
        assert_eq!((header(&head, "cache-status").contains("bypass"), body), (true, number.to_string()));
        let seen = origin.last();
        assert_eq!((&seen.body[..], seen.header("transfer-encoding")), (&b"abcdefghijklmno"[..], "chunked"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn post_over_http2_needs_no_content_length() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let ask = async |pieces: &[&'static str]| {
        let frames: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, hyper::Error>(Frame::data(Bytes::from(*piece)))).collect();
        let body = StreamBody::new(futures::stream::iter(frames));
        let request = Request::post(format!("http://{}/search", sidecar.address)).body(body).unwrap();
        let response = client.request(request).await.unwrap();
        let is_hit = |headers: &HeaderMap| headers["cache-status"].to_str().unwrap().contains("; hit");
        (is_hit(response.headers()), response.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(ask(&["abc", "def"]).await, (false, Bytes::from("1")));
    assert!(!origin.last().headers.contains_key("transfer-encoding"));
    assert_eq!(ask(&["abcdef"]).await, (true, Bytes::from("1")));
    assert_eq!(ask(&["abcdef", "ghijkl"]).await, (false, Bytes::from("2")));
    assert_eq!(&origin.last().body[..], b"abcdefghijkl");
    assert_eq!(ask(&["abcdef", "ghijkl"]).await, (false, Bytes::from("3")));
}
