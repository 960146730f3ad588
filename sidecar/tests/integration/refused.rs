//! Invalid requests and responses: their refusal, and that they have no other effect.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::harness::{Origin, Sidecar, Steps, Wire, exchange, header, reply, until};

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop.test\r\n";

async fn cacheable() -> Origin {
    Origin::start(|seen| async move {
        reply(&[("cache-control", "max-age=60")], seen.path + " " + std::str::from_utf8(&seen.body).unwrap())
    })
    .await
}

async fn until_refused(sidecar: &Sidecar, reason: &str, count: f64) {
    let label = format!("reason=\"{reason}\"");
    until(&format!("{count} refused for {reason}"), async || {
        (sidecar.metric("larder_refused_requests_total", &[&label]).await >= count).then_some(())
    })
    .await;
}

/// Asserts that a response is a refusal, and that the connection ends after it.
fn assert_refused(answer: &[u8], status: u16, what: &str) {
    let answer = String::from_utf8_lossy(answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what:?} got {answer:?}"));
    let head = format!("{}\r\n", head.to_lowercase());
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{what:?} got {answer}");
    assert_eq!(header(&head, "content-type"), "application/problem+json", "{what:?}");
    assert_eq!(header(&head, "connection"), "close", "{what:?}");
    assert_eq!(header(&head, "content-length"), body.len().to_string(), "{what:?}: one answer and no more");
    assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], status, "{what:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_request_is_refused() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: shop.test\r\n\r\n", "a".repeat(33 << 10));
    let large = format!("{GET}X: {}\r\n\r\n", "a".repeat(65 << 10));
    let many = format!("{GET}{}\r\n", "X: a\r\n".repeat(100));
    let body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    let with = |lines: &str| format!("{GET}{lines}\r\n");
    let post = |lines: &str| format!("POST /a HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n{body}");
    for (request, status, reason) in [
        (post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400, "two-lengths"),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400, "two-lengths"),
        (post("Content-Length: 5\r\nContent-Length: 6\r\n"), 400, "content-length"),
        (post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400, "content-length"),
        (post("Content-Length: 0x5\r\n"), 400, "content-length"),
        (post("Transfer-Encoding: chunked, identity\r\n"), 501, "transfer-coding"),
        (post("Transfer-Encoding: \x0bchunked\r\n"), 400, "syntax"),
        (post("Transfer-Encoding : chunked\r\n"), 400, "syntax"),
        (with("X: a\r\n b\r\n"), 400, "syntax"),
        (with("X: a\rb\r\n"), 400, "syntax"),
        (with("X: a\0b\r\n"), 400, "syntax"),
        (with("X\0Y: a\r\n"), 400, "syntax"),
        (with("no colon\r\n"), 400, "syntax"),
        (with(": no name\r\n"), 400, "syntax"),
        (with("Host: other.test\r\n"), 400, "host"),
        ("GET /a HTTP/1.1\r\nX: y\r\n\r\n".into(), 400, "host"),
        ("GET /a HTTP/1.1\r\nHost: shop.test/evil\r\n\r\n".into(), 400, "host"),
        ("GET /a HTTP/2.0\r\nHost: shop.test\r\n\r\n".into(), 505, "version"),
        ("GET /a HTTP/1.2\r\nHost: shop.test\r\n\r\n".into(), 505, "version"),
        ("GET /a#b HTTP/1.1\r\nHost: shop.test\r\n\r\n".into(), 400, "target"),
        ("GET /a b HTTP/1.1\r\nHost: shop.test\r\n\r\n".into(), 505, "version"),
        ("GET /a\0b HTTP/1.1\r\nHost: shop.test\r\n\r\n".into(), 400, "syntax"),
        (long, 414, "target-too-long"),
        (large, 431, "head-too-large"),
        (many, 431, "head-too-large"),
    ] {
        let start = String::from_utf8_lossy(&request.as_bytes()[..request.len().min(200)]).into_owned();
        let label = format!("reason=\"{reason}\"");
        let before = sidecar.metric("larder_refused_requests_total", &[&label]).await;
        assert_refused(&exchange(sidecar.address, request).await, status, &start);
        until_refused(&sidecar, reason, before + 1.0).await;
    }
    assert_eq!(origin.calls(), 0);
    assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_request_is_refused_even_for_a_stored_response() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/a").await;
    for request in [
        format!("{GET}Host: shop.test\r\n\r\n"),
        format!("{GET}Host: other.test\r\n\r\n"),
        format!("{GET}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("{GET}X: a\r\n b\r\n\r\n"),
        "GET /a#b HTTP/1.1\r\nHost: shop.test\r\n\r\n".into(),
        "GET /a HTTP/1.1\r\n\r\n".into(),
    ] {
        // Behind a hit.
        let both = format!("{GET}\r\n{request}");
        let answer = exchange(sidecar.address, &both).await;
        let second =
            String::from_utf8(answer).unwrap().split_once("\r\n\r\n/a ").expect("a hit").1.to_owned();
        assert_refused(second.as_bytes(), 400, &request);
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_made_of_chunks_never_arrives_whole() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let bodies = [
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\r\n-1\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabc\r\n0\r\nX: a\nb\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        // All at once, and after the application has seen the head.
        for pieces in [vec![body], body.split_inclusive('c').collect()] {
            let mut wire = Wire::to(sidecar.address).await;
            wire.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for piece in pieces {
                wire.try_to_say(piece).await;
            }
            wire.try_to_say("GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
            let answer = String::from_utf8(wire.rest().await).unwrap();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
            assert!(!answer.contains("smuggled"), "{body:?}: {answer}");
        }
        until_refused(&sidecar, "chunking", 2.0 * (number + 1) as f64).await;
    }
    assert_eq!(origin.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_off_never_arrives_whole() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for request in [
        "POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhalf",
        "POST /a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "GET /a HTTP/1.1\r\nHost: shop.test\r\n",
    ] {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(request).await;
        drop(wire);
    }
    until("the connections are gone", async || {
        (sidecar.metric("larder_connections", &[]).await == 0.0).then_some(())
    })
    .await;
    assert_eq!(sidecar.get("/b").await.body, "/b ");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut idle = Wire::asking(sidecar.address, "/a").await;
    idle.answer().await;
    let begun = Instant::now();
    let starts = [
        "G",
        "GET",
        "GET /slow HTTP/1.1\r\nHost:",
        "\r\nGET /slow HTT",
        "GET /slow HTTP/1.1\r\nHost: shop.test\r\nX: y\r\n",
    ];
    let address = sidecar.address;
    join_all(starts.map(|start| async move {
        let mut wire = Wire::to(address).await;
        wire.say(start).await;
        assert_refused(&wire.rest().await, 408, start);
    }))
    .await;
    assert!(begun.elapsed() >= Duration::from_secs(8), "a slow client has some time");
    idle.ask("/a").await;
    assert!(idle.answer().await.0.contains("larder; hit"), "the connection was idle, not slow");
    until_refused(&sidecar, "too-slow", starts.len() as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_slowly_behind_another_is_not_waited_for() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::asking(sidecar.address, "/a").await;
    wire.answer().await;
    // One byte after the other does not make it last longer.
    let begun = Instant::now();
    let slow = "GET /slow HTTP/1.1\r\nHost: shop.test\r\nX: a very slow header\r\n";
    for byte in slow.as_bytes() {
        wire.try_to_say([*byte]).await;
        tokio::time::sleep(Duration::from_millis(200)).await; // as a slow client does
        if begun.elapsed() > Duration::from_secs(11) {
            break;
        }
    }
    assert_refused(&wire.rest().await, 408, slow);
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_lines_without_end_cost_little() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    // More than a head may have, in lines that end nothing.
    let lines = "\r\n".repeat(256 << 10);
    let mut wire = Wire::asking(sidecar.address, "/a").await;
    wire.answer().await;
    let begun = Instant::now();
    wire.try_to_say(&lines).await;
    wire.try_to_say(format!("{GET}Connection: close\r\n\r\n")).await;
    wire.rest().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_get_their_responses_in_order() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/hit").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    let inner = get("/smuggled");
    let post =
        format!("POST /post HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
    let chunked = format!(
        "PUT /put HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
        inner.len()
    );
    let requests = [
        get("/hit"),
        get("/miss1"),
        get("/hit"),
        post,
        get("/hit"),
        get("/hit"),
        chunked,
        get("/miss2"),
        get("/hit"),
    ];
    let expected = [
        "/hit ".into(),
        "/miss1 ".into(),
        "/hit ".into(),
        format!("/post {inner}"),
        "/hit ".into(),
        "/hit ".into(),
        format!("/put {inner}"),
        "/miss2 ".into(),
        "/hit ".into(),
    ];
    for size in [7, 100, 10_000] {
        let mut wire = Wire::to(sidecar.address).await;
        for piece in requests.concat().as_bytes().chunks(size) {
            wire.say(piece).await;
        }
        for body in &expected {
            assert_eq!(wire.answer().await.1, *body, "in pieces of {size}");
        }
    }
    assert!((0..).zip([origin.last()]).all(|(_, seen)| seen.path != "/smuggled"));
}

/// Returns the outcome of `answer` to a first request, and of a valid response to a second.
async fn after_a_liar(answer: &'static str) -> (String, String) {
    let origin = Steps::answering(
        move |head| match head.contains("/lie") {
            true => vec![answer.into()],
            false => vec!["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhonest".into()],
        },
        false,
    )
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::asking(sidecar.address, "/lie").await;
    // All that comes for it, which may be nothing more for as long as the application waits for its next request.
    let head = wire.head().await;
    let body = match header(&head, "transfer-encoding") {
        "chunked" => wire.chunks().await,
        _ => wire.bytes(header(&head, "content-length").parse().unwrap_or(0)).await,
    };
    for path in ["/b", "/c"] {
        let next = sidecar.get(path).await;
        assert_eq!((next.status.as_u16(), next.body.as_str()), (200, "honest"), "after {answer:?}");
    }
    let second = sidecar.get("/lie").await;
    assert!(!second.body.contains("evil"), "{answer:?}: {}", second.body);
    (head, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn response_longer_than_its_length_ends_at_its_length() {
    for answer in [
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nokevil",
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        let (head, body) = after_a_liar(answer).await;
        assert!(head.starts_with("http/1.1 200"), "{answer:?}: {head}");
        assert_eq!(body, "ok", "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_with_two_lengths_is_refused_or_has_the_valid_one() {
    for (answer, whole) in [
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\nContent-Length: 6\r\n\r\nokevil",
            None,
        ),
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2, 6\r\n\r\nokevil", None),
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: -2\r\n\r\nok", None),
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok", None),
        // RFC 9112, section 6.3: the transfer coding counts, and a proxy takes the length out.
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Some("ok"),
        ),
        (
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            Some("ok"),
        ),
    ] {
        let origin = Steps::answering(
            move |head| match head.contains("/lie") {
                true => vec![answer.into()],
                false => vec!["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhonest".into()],
            },
            true,
        )
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        for _ in 0..2 {
            let got =
                exchange(sidecar.address, GET.replace("/a", "/lie") + "Connection: close\r\n\r\n").await;
            let got = String::from_utf8(got).unwrap().to_lowercase();
            let (head, body) = got.split_once("\r\n\r\n").unwrap_or_default();
            match whole {
                Some(whole) if got.starts_with("http/1.1 200") => {
                    let body = body
                        .strip_prefix("2\r\n")
                        .and_then(|body| body.strip_suffix("\r\n0\r\n\r\n"))
                        .unwrap_or(body);
                    assert_eq!(body, whole, "{answer:?}: {got}");
                    let length = header(head, "content-length");
                    assert!(length.is_empty() || length == "2", "{answer:?}: {got}");
                }
                _ => {
                    let cut = !got.starts_with("http/1.1 502") && !got.ends_with("0\r\n\r\n");
                    assert!(
                        cut || header(head, "content-type") == "application/problem+json",
                        "{answer:?}: {got}"
                    );
                }
            }
            assert!(!got.contains("evil"), "{got}");
        }
        assert_eq!(sidecar.get("/b").await.body, "honest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_shorter_than_its_length_is_cut_and_not_stored() {
    let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 20\r\n\r\nshort";
    let origin = Steps::new(&[head, ""], true).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for _ in 0..2 {
        let mut wire = Wire::asking(sidecar.address, "/a").await;
        let head = wire.head().await;
        assert!(head.contains("content-length: 20") && head.contains("fwd=uri-miss"), "{head}");
        origin.let_go(1);
        assert_eq!(wire.rest().await, b"short");
    }
    assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0);
}
