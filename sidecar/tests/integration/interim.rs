//! Interim responses (RFC 9110, section 15.2).

use super::harness::{Origin, Sidecar, Steps, Wire, exchange, header, reply};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_precede_the_response_and_are_not_stored() {
    let origin = Steps::new(&[HINTS, "HTTP/1.1 102 Processing\r\n\r\n", HINTS, FINAL], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::asking(sidecar.address, "/a").await;
    for expected in
        ["http/1.1 103 early hints\r\nlink: </a.css>; rel=preload\r\n\r\n", "http/1.1 102 processing\r\n\r\n"]
    {
        assert_eq!(client.head().await, expected, "while the application holds the rest");
        origin.let_go(1);
    }
    assert!(client.head().await.starts_with("http/1.1 103 "));
    origin.let_go(1);
    let (head, body) = client.answer().await;
    assert!(head.starts_with("http/1.1 200 ") && header(&head, "link").is_empty(), "{head}");
    assert_eq!(body, "ok");
    client.ask("/a").await;
    let (head, _) = client.answer().await;
    assert!(head.starts_with("http/1.1 200 ") && head.contains("larder; hit"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_lose_their_connection_headers() {
    let hints = "HTTP/1.1 103 Early Hints\r\nConnection: close, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let origin = Steps::new(&[&(hints.to_owned() + FINAL)], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::asking(sidecar.address, "/a").await;
    assert_eq!(client.head().await, "http/1.1 103 early hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
    assert_eq!(client.answer().await.1, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_precede_the_response_to_a_write() {
    let origin = Steps::new(&[HINTS, FINAL], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("DELETE /a HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert!(client.head().await.starts_with("http/1.1 103 "));
    origin.let_go(1);
    assert_eq!(client.answer().await.1, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_follow_the_previous_pipelined_response() {
    let origin = Steps::new(&[&(HINTS.to_owned() + FINAL)], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    let paths = ["/a", "/b", "/a", "/c"];
    client.say(paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).concat()).await;
    for is_miss in [true, true, false, true] {
        if is_miss {
            assert!(client.head().await.starts_with("http/1.1 103 "));
        }
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!((head.contains("larder; hit"), body.as_str()), (!is_miss, "ok"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_client_gets_no_early_hints() {
    let origin = Steps::new(&[&(HINTS.to_owned() + FINAL)], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let answer = exchange(sidecar.address, "GET /a HTTP/1.0\r\nHost: shop.test\r\n\r\n").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_expects_100_continue_gets_it_once() {
    // The application says so too, on its own connection.
    let origin = Origin::start(|seen| async move { reply(&[], seen.body) }).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for framing in ["Content-Length: 6", "Transfer-Encoding: chunked"] {
        let mut client = Wire::to(sidecar.address).await;
        client
            .say(format!("POST /a HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"))
            .await;
        assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
        let pieces: &[&str] = match framing {
            "Content-Length: 6" => &["abc", "def"],
            _ => &["3\r\nab", "c\r\n3\r", "\ndef\r\n", "0\r\n\r\n"],
        };
        for piece in pieces {
            client.say(piece).await;
        }
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "abcdef");
        client.ask("/next").await;
        assert!(client.answer().await.0.starts_with("http/1.1 200 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unexpected_100_continue_from_the_application_is_not_forwarded() {
    let origin = Steps::new(&[&("HTTP/1.1 100 Continue\r\n\r\n".to_owned() + HINTS + FINAL)], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::asking(sidecar.address, "/a").await;
    assert!(client.head().await.starts_with("http/1.1 103 "));
    assert!(client.head().await.starts_with("http/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_are_forwarded_during_the_request_body() {
    let origin = Steps::new(&[HINTS, FINAL], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 4\r\n\r\nab").await;
    assert!(client.head().await.starts_with("http/1.1 103 "), "before the body is whole");
    client.say("cd").await;
    origin.let_go(1);
    assert_eq!(client.answer().await.1, "ok");
}

const EXPECTING: &str =
    "POST /a HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn client_that_the_application_rejects_gets_no_100_continue() {
    for status in ["417 Expectation Failed", "401 Unauthorized", "413 Content Too Large"] {
        let words = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        let origin = Steps::answering(move |_: &str| vec![words.clone()], false).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut client = Wire::to(sidecar.address).await;
        client.say(EXPECTING).await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with(&format!("http/1.1 {}", status.to_lowercase())), "{head}");
        assert_eq!((header(&head, "connection"), body.as_str()), ("close", "no"));
        assert!(origin.heads()[0].to_lowercase().contains("expect: 100-continue"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_decides_when_100_continue_is_sent() {
    let origin = Steps::new(&["", "HTTP/1.1 100 Continue\r\n\r\n", FINAL], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say(EXPECTING).await;
    origin.until_asked(1).await;
    assert!(
        client.is_silent_for(std::time::Duration::from_millis(300)).await,
        "the application has not agreed yet"
    );
    origin.let_go(1);
    assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
    client.say("abcdef").await;
    origin.let_go(1);
    assert_eq!(client.answer().await.1, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_sent_without_100_continue_is_forwarded() {
    // An application that knows nothing of expectations reads the body, and says nothing before.
    let origin = super::harness::RawOrigin::start(|mut stream| async move {
        super::harness::read_head(&mut stream).await;
        let mut body = [0; 6];
        let _ = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, FINAL.as_bytes()).await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say(EXPECTING).await;
    client.say("abcdef").await;
    assert_eq!(client.answer().await.1, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_is_part_of_the_key_is_asked_for_with_100_continue() {
    let origin = Origin::start(|seen| async move { reply(&[], seen.body) }).await;
    let policy = super::harness::Policy::new(
        "routes: [{name: a, match: {path: /a, methods: [POST]}, ttl: 60s, key: {body: {}}}]",
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for _ in 0..2 {
        let mut client = Wire::to(sidecar.address).await;
        client.say(EXPECTING).await;
        assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
        client.say("abcdef").await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "abcdef");
    }
    assert_eq!(origin.calls(), 1);
}
