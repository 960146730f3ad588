//! Upgrades of a connection, and other forms of a target.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::harness::{Origin, RawOrigin, Sidecar, Steps, Wire, exchange, header, read_head, reply};

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

/// An application that changes the protocol, sends some bytes at once, and then echoes its input.
async fn echoing(first: &'static str) -> RawOrigin {
    RawOrigin::start(move |mut stream: TcpStream| async move {
        if read_head(&mut stream).await.is_empty() {
            return;
        }
        stream.write_all(first.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_right_behind_an_upgrade_head_pass_both_ways() {
    let origin =
        echoing("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
            .await;
    let sidecar = Sidecar::bare(origin.address).await;
    // More than is read at once.
    let early = "x".repeat(100_000);
    let mut client = Wire::to(sidecar.address).await;
    client
        .say("GET /chat HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    client.say(&early).await;
    assert!(client.head().await.starts_with("http/1.1 101 "));
    assert_eq!(client.bytes(5).await, "first");
    assert_eq!(client.bytes(early.len()).await, early);
    for words in ["GET / HTTP/1.1\r\n\r\n", "\0\r\n", "again"] {
        client.say(words).await;
        assert_eq!(client.bytes(words.len()).await, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_method_may_change_the_protocol() {
    let origin = echoing(SWITCHING).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("POST /containers/x/attach?stdin=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\nls\n").await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 101 ") && header(&head, "upgrade") == "tcp", "{head}");
    assert_eq!(client.bytes(3).await, "ls\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_stays_http_if_the_application_declines_the_upgrade() {
    let origin =
        Origin::start(|seen| async move { reply(&[("cache-control", "max-age=60")], seen.path) }).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/hit").await;
    let mut client = Wire::to(sidecar.address).await;
    let upgrade =
        "GET /chat HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let next = |path| format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.say([upgrade, &next("/hit"), &next("/miss"), upgrade, &next("/hit")].concat()).await;
    for path in ["/chat", "/hit", "/miss", "/chat", "/hit"] {
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_method_is_refused() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let answer = exchange(
        sidecar.address,
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\nConnection: close\r\n\r\n",
    )
    .await;
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 501 "), "{answer}");
    assert!(answer.contains("content-type: application/problem+json") && !answer.contains("cache-status"));
    assert_eq!(origin.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_for_the_whole_server_passes() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (target, host) in [("*", "shop.test"), ("http://shop.test", "other.test")] {
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = String::from_utf8(exchange(sidecar.address, request).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = origin.last();
        assert_eq!(
            (seen.method.as_str(), seen.path.as_str(), seen.header("host")),
            ("OPTIONS", "*", "shop.test"),
            "{target}"
        );
    }
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn absolute_target_decides_path_and_host() {
    let origin = Origin::start(|seen| async move {
        reply(&[("cache-control", "max-age=60")], format!("{} {}", seen.header("host"), seen.path))
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    for (target, host, body, is_hit) in [
        ("http://shop.test/a?x=1", "shop.test", "shop.test /a?x=1", false),
        ("/a?x=1", "shop.test", "shop.test /a?x=1", true),
        ("http://shop.test/a?x=1", "evil.test", "shop.test /a?x=1", true),
        ("HTTP://shop.test", "shop.test", "shop.test /", false),
        ("http://shop.test?q", "shop.test", "shop.test /?q", false),
        ("//evil.test/a", "shop.test", "shop.test //evil.test/a", false),
    ] {
        client.say(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let (head, got) = client.answer().await;
        assert_eq!((got.as_str(), head.contains("larder; hit")), (body, is_hit), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_pass_as_they_come() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    let event = |number: usize| format!("9\r\ndata: {number}\n\n\r\n");
    let origin = Steps::new(&[head, &event(1), &event(2), &event(3), "0\r\n\r\n"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut clients =
        [Wire::asking(sidecar.address, "/events").await, Wire::asking(sidecar.address, "/events").await];
    for client in &mut clients {
        assert!(client.head().await.starts_with("http/1.1 200 "));
    }
    origin.until_asked(2).await;
    // Whichever of the application's connections takes a step, its client reads that at once.
    let events = ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n", ""];
    let mut left = [events.into_iter(), events.into_iter()];
    let [one, other] = &mut clients;
    for _ in 0..left.len() * events.len() {
        origin.let_go(1);
        let (client, left) = tokio::select! {
            () = one.until_readable() => (&mut *one, &mut left[0]),
            () = other.until_readable() => (&mut *other, &mut left[1]),
        };
        assert_eq!(Some(client.chunk().await.as_str()), left.next());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_never_hears_of_an_upgrade_to_http_2() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, x\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: x\r\nUpgrade: H2C\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket , h2c/1\r\n",
    ] {
        for method in ["GET", "POST"] {
            let mut client = Wire::to(sidecar.address).await;
            client
                .say(format!("{method} /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n{lines}\r\n"))
                .await;
            assert!(client.head().await.starts_with("http/1.1 200 "), "{lines:?}");
            let seen = origin.last();
            assert_eq!((seen.header("upgrade"), seen.header("http2-settings")), ("", ""), "{lines:?}");
        }
    }
}
