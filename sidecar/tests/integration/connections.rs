//! Connections: forwarding of each protocol, draining, and shutdown.

use std::{sync::Arc, time::Duration};

use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

use super::harness::{Origin, RawOrigin, Sidecar, Steps, exchange, read_head, reply, until};

async fn connect(sidecar: &Sidecar) -> TcpStream {
    TcpStream::connect(sidecar.address).await.unwrap()
}

async fn read_exactly(stream: &mut TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(read, expected);
}

/// Echoes all bytes.
async fn echo(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_is_passed_both_ways() {
    let origin = RawOrigin::start(|mut stream| async move {
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        echo(stream).await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(&sidecar).await;
    let request = "GET /chat HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    client.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("sec-websocket-accept: x"), "{head}");
    assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
    read_exactly(&mut client, b"early").await;
    for words in ["hello", "again"] {
        client.write_all(words.as_bytes()).await.unwrap();
        read_exactly(&mut client, words.as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_pass_through_unchanged() {
    let origin = RawOrigin::start(echo).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for words in [&b"\x16\x03\x01\x00\xa5\x01\x00\x00"[..], b"SSH-2.0-client\r\n", b"*1\r\n$4\r\nPING\r\n"] {
        let mut client = connect(&sidecar).await;
        client.write_all(words).await.unwrap();
        read_exactly(&mut client, words).await;
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the end is passed on too");
    }
    assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_speaks_first_is_forwarded() {
    let origin = RawOrigin::start(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        echo(stream).await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(&sidecar).await;
    read_exactly(&mut client, b"220 ready\r\n").await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    read_exactly(&mut client, b"GET / HTTP/1.1\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_first_line_is_still_served_as_http() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(&sidecar).await;
    client.write_all(b"GE").await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await; // longer than the application is given to speak first
    client.write_all(b"T / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("larder; fwd="), "{answer}");
    assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_body_arrives_in_any_framing() {
    let origin = Origin::start(|seen| async move { reply(&[], seen.body) }).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let head = "PUT /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n";
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
    let answer = String::from_utf8(exchange(sidecar.address, chunked).await).unwrap();
    assert!(answer.ends_with("\r\n\r\nabcdef"), "{answer}");
    assert_eq!(origin.last().header("transfer-encoding"), "chunked");
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        let head = format!("{method} /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n");
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
        exchange(sidecar.address, chunked).await;
        let seen = origin.last();
        assert_eq!((seen.method.as_str(), &seen.body[..]), (method, &b"abcdef"[..]));
    }

    let mut client = connect(&sidecar).await;
    let expecting = format!("{head}Content-Length: 6\r\nExpect: 100-continue\r\n\r\n");
    client.write_all(expecting.as_bytes()).await.unwrap();
    let interim = tokio::time::timeout(Duration::from_secs(10), read_head(&mut client)).await.unwrap();
    assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
    client.write_all(b"abcdef").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("abcdef"), "{answer}");
    assert_eq!(origin.last().header("content-length"), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_sees_the_clients_host_address_and_target() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let request = "GET /a/../%7eb?q=%20 HTTP/1.1\r\nHost: shop.test:8080\r\nX-Forwarded-For: 10.0.0.1\r\n\
                   Keep-Alive: timeout=5\r\nConnection: close\r\n\r\n";
    exchange(sidecar.address, request).await;
    let seen = origin.last();
    assert_eq!((seen.path.as_str(), seen.header("host")), ("/a/../%7eb?q=%20", "shop.test:8080"));
    assert_eq!((seen.header("x-forwarded-for"), seen.header("via")), ("10.0.0.1, 127.0.0.1", "1.1 larder"));
    assert_eq!(seen.header("keep-alive"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_listens_only_on_the_pods_address_is_reached_there() {
    let origin =
        Origin::start_at("127.0.0.2", |seen| async move { reply(&[], seen.number.to_string()) }).await;
    let sidecar = Sidecar::launch(origin.address, &["--pod-ip", "127.0.0.2"]).await;
    assert_eq!(sidecar.get("/a").await.body, "1");

    let raw = RawOrigin::start(echo).await;
    let sidecar = Sidecar::launch(raw.address, &["--pod-ip", "127.0.0.2"]).await;
    let mut client = connect(&sidecar).await;
    client.write_all(b"\0\0raw").await.unwrap();
    read_exactly(&mut client, b"\0\0raw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_sidecar_responds_with_connection_close() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.get("/a").await.header("connection"), "");
    let drain = tokio::process::Command::new(env!("CARGO_BIN_EXE_larder-sidecar"))
        .args(["drain", "--admin", &sidecar.admin.to_string()])
        .status()
        .await
        .unwrap();
    assert!(drain.success());
    for _ in 0..2 {
        let answer = sidecar.get("/a").await;
        assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, "close"));
    }
    assert_eq!(sidecar.admin("/readyz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_in_progress_is_finished_before_exit() {
    let gate = Arc::new(Semaphore::new(0));
    let let_go = Arc::clone(&gate);
    let origin = Origin::start(move |_| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[], "finished")
        }
    })
    .await;
    let mut sidecar = Sidecar::bare(origin.address).await;
    let mut idle = connect(&sidecar).await;
    let asking = async { sidecar.request(Method::GET, "/a", &[], "").await };
    let ending = async {
        until("the request", async || (origin.calls() == 1).then_some(())).await;
        sidecar.terminate();
        until("the listener is closed", async || {
            TcpStream::connect(sidecar.address).await.is_err().then_some(())
        })
        .await;
        let_go.add_permits(1);
    };
    let (answer, ()) = tokio::join!(asking, ending);
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("finished", "close"));
    assert!(sidecar.ended().await);
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_that_has_just_begun_to_listen_ends_in_order() {
    for _ in 0..10 {
        let mut sidecar = Sidecar::bare("127.0.0.1:1".parse().unwrap()).await;
        sidecar.terminate();
        assert!(sidecar.ended().await, "it died of the signal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_with_a_malformed_response_is_not_retried() {
    for (words, asked) in [("nonsense\r\n\r\n", 1), ("", 2)] {
        let origin = Steps::answering(move |_: &str| vec![words.to_owned()], true).await;
        let sidecar = Sidecar::bare(origin.address).await;
        assert_eq!(sidecar.get("/a").await.status.as_u16(), 502, "{words:?}");
        assert_eq!(origin.heads().len(), asked, "{words:?}");
    }
}
