//! Detection of HTTP and of other protocols, and input that disguises one as the other.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Application, Origin, Policy, RawOrigin, Sidecar, Wire, exchange, header, until};

const POLICY: &str = r#"
routes:
- {name: user, match: {path: "/api/users/{id}"}, ttl: 60s, tags: ["user:{id}"]}
invalidation:
  onWrite:
  - {match: {path: "/api/users/{id}"}, purge: {tags: ["user:{id}"]}}
"#;

/// First lines of a write to `/api/users/ID` that some server carries out, or may.
const WRITES: [&str; 39] = [
    "\rPUT /api/users/ID HTTP/1.1",
    "\r\r\r\nPUT /api/users/ID HTTP/1.1",
    "\n\rPUT /api/users/ID HTTP/1.1",
    " PUT /api/users/ID HTTP/1.1",
    "\tPUT /api/users/ID HTTP/1.1",
    "\x0bPUT /api/users/ID HTTP/1.1",
    "\x1cPUT /api/users/ID HTTP/1.1",
    "\0PUT /api/users/ID HTTP/1.1",
    "\0\0\0\x08PUT /api/users/ID HTTP/1.1",
    "\x16\x03\x01PUT /api/users/ID HTTP/1.1",
    "\u{feff}PUT /api/users/ID HTTP/1.1",
    "\u{feff}\r\nPUT /api/users/ID HTTP/1.1",
    "x\r\nPUT /api/users/ID HTTP/1.1",
    "PUT ftp://shop/api/users/ID HTTP/1.1",
    "PUT https://shop/api/users/ID HTTP/1.1",
    "PUT HTTP://shop/api/users/ID HTTP/1.1",
    "PUT ws://shop/api/users/ID HTTP/1.1",
    "PUT x-y+z://shop/api/users/ID HTTP/1.1",
    "PUT x:/api/users/ID HTTP/1.1",
    "POST rtsp://shop/api/users/ID RTSP/1.0",
    "POST /api/users/ID RTSP/1.0",
    "PUT api/users/ID HTTP/1.1",
    "PUT ?/api/users/ID HTTP/1.1",
    "PUT shop:80/api/users/ID HTTP/1.1",
    "PUT %2fapi/users/ID HTTP/1.1",
    "put /api/users/ID HTTP/1.1",
    "Put /api/users/ID HTTP/1.1",
    "P\0UT /api/users/ID HTTP/1.1",
    "PUT\x0b/api/users/ID HTTP/1.1",
    "PUT\t/api/users/ID HTTP/1.1",
    "PUT  /api/users/ID HTTP/1.1",
    "PUT /api/users/ID  HTTP/1.1",
    "PUT /api/users/ID HTTP/1.1 ",
    "PUT /api/users/ID http/1.1",
    "PUT /api/users/ID HTTP/1.2",
    "PUT /api/users/ID HTTP/2.0",
    "PUT /api/users/ID HTTP/01.1",
    "PUT /api/users/ID",
    "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nPUT /api/users/ID HTTP/1.1",
];

/// Returns true if the client's bytes begin with one response of this status class.
fn is_of_class(answer: &[u8], class: char) -> bool {
    String::from_utf8_lossy(answer).strip_prefix("HTTP/1.1 ").is_some_and(|rest| rest.starts_with(class))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_an_odd_spelling_is_refused_or_purges() {
    for application in [Application::express().await, Application::go().await] {
        let policy = Policy::new(POLICY);
        let sidecar = Sidecar::start(&policy, application.address).await;
        join_all(WRITES.iter().enumerate().map(async |(number, line)| {
            let id = (number + 1).to_string();
            let path = format!("/api/users/{id}");
            let before = sidecar.get(&path).await;
            assert_eq!(sidecar.get(&path).await.hit(), Some("l1"), "{path}");
            let line = line.replace("ID", &id);
            let write =
                format!("{line}\r\nHost: shop.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let answer = exchange(sidecar.address, write).await;
            let text = String::from_utf8_lossy(&answer);
            let is_refused = is_of_class(&answer, '4') || is_of_class(&answer, '5');
            assert!(is_refused || is_of_class(&answer, '2'), "{line:?}: {text}");
            let after = sidecar.get(&path).await;
            assert_eq!(after.body == before.body, is_refused, "{line:?}: {text}, then {after:?}");
        }))
        .await;
        // The first line is no request, and no server goes on after one.
        assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_arrives_byte_by_byte_is_refused_or_purges() {
    let application = Application::express().await;
    let policy = Policy::new(POLICY);
    let sidecar = Sidecar::start(&policy, application.address).await;
    join_all(WRITES.iter().enumerate().map(async |(number, line)| {
        let id = (number + 1).to_string();
        let path = format!("/api/users/{id}");
        let before = sidecar.get(&path).await.body;
        let line = line.replace("ID", &id);
        let mut wire = Wire::to(sidecar.address).await;
        for byte in
            format!("{line}\r\nHost: shop.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes()
        {
            wire.try_to_say([*byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await; // so that each is read alone
        }
        let answer = wire.rest().await;
        let is_carried_out = is_of_class(&answer, '2');
        let after = sidecar.get(&path).await.body;
        assert_eq!(after == before, !is_carried_out, "{line:?}: {}", String::from_utf8_lossy(&answer));
    }))
    .await;
}

/// An application that records its input, and sends nothing unless `first` is something.
async fn listening(first: &'static [u8]) -> (RawOrigin, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let hears = Arc::clone(&heard);
    let origin = RawOrigin::start(move |mut stream| {
        let hears = Arc::clone(&hears);
        async move {
            let _ = stream.write_all(first).await;
            while let Ok(byte) = stream.read_u8().await {
                hears.lock().unwrap().push(byte);
            }
        }
    })
    .await;
    (origin, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_line_that_names_http_late_never_ends_at_the_application() {
    let (origin, heard) = listening(b"").await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say("\0\x01PUT users/5").await;
    until("the application sees the connection", async || {
        heard.lock().unwrap().ends_with(b"users/5").then_some(())
    })
    .await;
    wire.say(" HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert!(is_of_class(&wire.rest().await, '4'));
    assert!(!heard.lock().unwrap().contains(&b'\n'));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_server_that_speaks_first_opens_no_way_past_the_guard() {
    for first in [&b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"[..], b"\0\0\0\x04\0\0\0\0\0"]
    {
        let (origin, _) = listening(first).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut wire = Wire::to(sidecar.address).await;
        tokio::time::sleep(Duration::from_millis(700)).await; // longer than a client may think unnoticed
        wire.say("GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let (head, _) = wire.answer().await;
        assert!(head.contains("cache-status: larder") || head.contains("problem+json"), "{head}");
        assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_behind_a_proxy_protocol_header_is_refused() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let request = b"GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for before in [
        &b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n"[..],
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x03\xe8\0\x50",
    ] {
        let answer = exchange(sidecar.address, [before, request].concat()).await;
        assert!(is_of_class(&answer, '4'), "{}", String::from_utf8_lossy(&answer));
    }
    let refused = sidecar.metric("larder_refused_requests_total", &["proxy-protocol"]).await;
    assert_eq!((refused, origin.calls()), (3.0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_line_without_end_is_refused() {
    let (origin, heard) = listening(b"").await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.try_to_say("x".repeat(10_000)).await;
    assert!(is_of_class(&wire.rest().await, '4'));
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_are_refused_where_the_policy_says_so() {
    let (origin, heard) = listening(b"220 ready\r\n").await;
    let policy = Policy::new("otherProtocols: Refuse");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let others = [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"[..],
        b"SSH-2.0-client\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
    ];
    for words in others {
        assert!(
            exchange(sidecar.address, words).await.is_empty(),
            "nothing that the other protocol would not understand"
        );
    }
    let refused = sidecar.metric("larder_refused_requests_total", &["other-protocol"]).await;
    assert_eq!(refused, others.len() as f64);
    assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 0.0);
    assert!(heard.lock().unwrap().is_empty());
    let line = sidecar.logged("refused a request").expect("a line in the log");
    assert!(
        line.contains("\"reason\":\"other-protocol\"") && line.contains("\"client\":\"127.0.0.1\""),
        "{line}"
    );
    // HTTP is served as ever, and a client that says nothing is not connected to the application.
    let mut wire = Wire::to(sidecar.address).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    wire.say("GET /a b HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    assert_eq!(header(&wire.head().await, "content-type"), "application/problem+json");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_are_logged_once_a_second_at_most() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for _ in 0..50 {
        exchange(sidecar.address, "GET /a#b HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
    }
    let line = sidecar.logged("refused a request").expect("a line in the log");
    assert!(
        line.contains("\"reason\":\"target\"")
            && line.contains("\"status\":400")
            && line.contains("127.0.0.1"),
        "{line}"
    );
    let refused = sidecar.metric("larder_refused_requests_total", &["target"]).await;
    assert_eq!(refused, 50.0);
    until("a line that counts those left out", async || {
        exchange(sidecar.address, "GET /a#b HTTP/1.1\r\nHost: shop.test\r\n\r\n").await;
        let left_out = sidecar
            .logged_lines("refused a request")
            .into_iter()
            .any(|line| !line.contains("\"left_out\":0"));
        left_out.then_some(())
    })
    .await;
}
