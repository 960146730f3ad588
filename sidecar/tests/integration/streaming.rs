//! Streaming of bodies.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

use super::harness::{Policy, RawOrigin, RedisServer, Sidecar, Steps, Wire, exchange, read_head, until};

const CACHED: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n";
const GET_AND_CLOSE: &str = "GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";

/// An application that sends `first` at once and `second` with a permit, then closes the connection.
async fn in_two_steps(first: &'static str, second: &'static str) -> (RawOrigin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let let_go = Arc::clone(&gate);
    let origin = RawOrigin::start(move |mut stream| {
        let gate = Arc::clone(&gate);
        async move {
            if read_head(&mut stream).await.is_empty() {
                return;
            }
            stream.write_all(first.as_bytes()).await.unwrap();
            gate.acquire().await.unwrap().forget();
            let _ = stream.write_all(second.as_bytes()).await;
        }
    })
    .await;
    (origin, let_go)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_reaches_the_client_before_the_application_sends_the_second() {
    for (first, second) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", "b"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "1\r\nb\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\n\r\na", "b"),
    ] {
        let (origin, gate) = in_two_steps(first, second).await;
        let policy = Policy::new(CACHED);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        client.write_all(GET_AND_CLOSE.as_bytes()).await.unwrap();
        let mut answer = read_head(&mut client).await.into_bytes();
        while !answer.ends_with(b"a") {
            answer.push(
                tokio::time::timeout(Duration::from_secs(10), client.read_u8()).await.unwrap().unwrap(),
            );
        }
        gate.add_permits(1);
        client.read_to_end(&mut answer).await.unwrap();
        until("the response is stored", async || (sidecar.get("/a").await.hit().is_some()).then_some(()))
            .await;
        assert_eq!(sidecar.get("/a").await.body, "ab", "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_dies_in_mid_body_leaves_nothing_stored_and_fails_its_client() {
    for (first, whole) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf", "halfhalf"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "0\r\n\r\n"),
    ] {
        let (origin, gate) = in_two_steps(first, "").await;
        let policy = Policy::new(CACHED);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(GET).await;
        let head = wire.head().await;
        gate.add_permits(100);
        let body = String::from_utf8(wire.rest().await).unwrap();
        assert!(head.contains(" 200 ok") && body.contains("half"), "{head}: {body}");
        assert!(!body.ends_with(whole), "the client can tell: {body}");
        let label = "reason=\"incomplete\"";
        assert_eq!(sidecar.metric("larder_not_stored_total", &[label]).await, 1.0, "{first}");
        assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0, "{first}");
        assert!(policy.nothing_is_stored(&mut RedisServer::shared().await).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_mid_body_stores_nothing() {
    let (origin, gate) = in_two_steps("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf", "half").await;
    // Where pods share, others may wait for it.
    let (_, alone) = CACHED.split_once("routes").unwrap();
    let policy = Policy::new(&format!("routes{alone}"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    read_head(&mut client).await;
    client.read_exact(&mut [0; 4]).await.unwrap();
    drop(client);
    let label = "reason=\"incomplete\"";
    until("the fill ends", async || {
        (sidecar.metric("larder_not_stored_total", &[label]).await == 1.0).then_some(())
    })
    .await;
    gate.add_permits(100);
    assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0);
    assert_eq!(sidecar.get("/a").await.body, "halfhalf");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_with_trailers_passes_and_is_not_stored() {
    let first = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    let (origin, gate) = in_two_steps(first, "0\r\nx-sum: 7\r\n\r\n").await;
    gate.add_permits(100);
    let policy = Policy::new(CACHED);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let request = GET_AND_CLOSE.replace("Host", "TE: trailers\r\nHost");
    let answer = String::from_utf8(exchange(sidecar.address, request).await).unwrap();
    assert!(answer.to_lowercase().ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
    assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"trailers\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_byte_reaches_every_reader_as_it_comes() {
    let steps =
        ["HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 5\r\n\r\na", "b", "c", "d", "e"];
    let origin = Steps::new(&steps, false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut clients = [Wire::asking(sidecar.address, "/a").await, Wire::asking(sidecar.address, "/a").await];
    for client in &mut clients {
        client.head().await;
    }
    for byte in ["a", "b", "c", "d", "e"] {
        for client in &mut clients {
            assert_eq!(client.bytes(1).await, byte, "before the application sends the next");
        }
        origin.let_go(1);
    }
    assert_eq!(origin.asked(), 1);
}

/// An application that sends so many bytes, in pieces of 64 KiB, with a length or in chunks.
async fn endless(length: u64) -> RawOrigin {
    const PIECE: usize = 64 << 10;
    RawOrigin::start(move |mut stream| async move {
        let head = read_head(&mut stream).await;
        let is_chunked = head.contains("/chunked");
        let framing = match is_chunked {
            true => "Transfer-Encoding: chunked".into(),
            false => format!("Content-Length: {length}"),
        };
        let answer = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{framing}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut piece = vec![b'x'; PIECE];
        if is_chunked {
            piece = [format!("{PIECE:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
        }
        for _ in 0..length / PIECE as u64 {
            if stream.write_all(&piece).await.is_err() {
                return;
            }
        }
        if is_chunked {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
    })
    .await
}

/// Runs `reading` and returns the growth of the sidecar's memory at its peak.
async fn growth_during(sidecar: &Sidecar, reading: impl Future<Output = ()>) -> u64 {
    let (before, mut reading) = (sidecar.resident(), std::pin::pin!(reading));
    let mut most = before;
    loop {
        tokio::select! {
            () = reading.as_mut() => return most - before,
            () = tokio::time::sleep(Duration::from_millis(10)) => most = most.max(sidecar.resident()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_passes_with_little_memory() {
    const LENGTH: u64 = 1 << 30;
    let origin = endless(LENGTH).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for path in ["/length", "/chunked"] {
        let grown = growth_during(&sidecar, async {
            let mut client = Wire::to(sidecar.address).await;
            client.say(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
            client.head().await;
            let count = client.discard().await;
            assert!(count >= LENGTH, "{path}: {count}");
        })
        .await;
        assert!(grown < 64 << 20, "{path}: it grew by {grown} bytes");
    }
    assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"too-large\""]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_a_body_that_is_too_large_costs_little() {
    const LENGTH: u64 = 64 << 20;
    let origin = endless(LENGTH).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for path in ["/length", "/chunked"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut slow = Wire::narrow(sidecar.address).await;
        slow.say(&get).await;
        slow.head().await;
        let mut read = 0;
        let grown = growth_during(&sidecar, async {
            let mut fast = Wire::to(sidecar.address).await;
            fast.say(&get).await;
            fast.head().await;
            read = fast.discard().await;
        })
        .await;
        assert!(grown < 32 << 20, "{path}: it grew by {grown} bytes");
        let rest = slow.rest().await;
        let (fast_has_it, slow_has_it) = (read >= LENGTH, rest.len() as u64 >= LENGTH);
        // A response known to be too large is not shared. Otherwise a client that falls behind is cut off, and can tell.
        assert!(fast_has_it && (slow_has_it || path == "/chunked"), "{path}");
        assert!(slow_has_it || !rest.ends_with(b"0\r\n\r\n"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_begins_before_its_request_ends_stalls_neither() {
    const LENGTH: usize = 16 << 20;
    let origin = RawOrigin::start(|mut stream| async move {
        read_head(&mut stream).await;
        let (mut reader, mut writer) = stream.into_split();
        let writing = async {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            writer.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        };
        // To close a connection with unread bytes would reset it, and lose what was written and not yet sent.
        let mut nowhere = tokio::io::sink();
        let (read, ()) = tokio::join!(tokio::io::copy(&mut reader, &mut nowhere), writing);
        assert!(read.unwrap() >= LENGTH as u64);
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for framing in [format!("Content-Length: {LENGTH}"), "Transfer-Encoding: chunked".into()] {
        let mut client = Wire::to(sidecar.address).await;
        client.say(format!("POST /a HTTP/1.1\r\nHost: shop.test\r\n{framing}\r\n\r\n")).await;
        let body = vec![b'x'; LENGTH];
        if framing.contains("chunked") {
            client.say([format!("{LENGTH:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
        } else {
            client.say(&body).await;
        }
        // Nothing of the response was read so far.
        assert!(client.head().await.starts_with("http/1.1 200 "), "{framing}");
        assert_eq!(client.bytes(LENGTH).await.len(), LENGTH, "{framing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_goes_on_after_a_response_that_ended_before_it() {
    let (reads, mut read) = tokio::sync::mpsc::unbounded_channel();
    let origin = RawOrigin::start(move |mut stream| {
        let reads = reads.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let mut body = [0; 6];
            stream.read_exact(&mut body).await.unwrap();
            // The connection is not reused, because the request had not ended when the response had.
            reads.send((body, stream.read(&mut [0; 1]).await.unwrap())).unwrap();
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    client.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let (head, body) = client.answer().await;
    assert!(head.starts_with("http/1.1 200 ") && body == "ok", "{head}{body}");
    client.say("def").await;
    assert_eq!(read.recv().await.unwrap(), (*b"abcdef", 0));
}
