//! Connections to the application: their address, their end, and retries.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

use super::harness::{
    Application, Origin, Policy, RawOrigin, Sidecar, Wire, header, read_head, reply, until,
};

/// Plays the address of the pod: callers from it are not from 127.0.0.1.
const POD: &str = "127.0.0.2";

/// An application that tells every caller, of HTTP/1, HTTP/2 or another protocol, the address of the call.
async fn telling(ip: &str) -> RawOrigin {
    RawOrigin::start_at(ip, |mut stream| async move {
        let caller = stream.peer_addr().unwrap().ip();
        let mut first = [0];
        if stream.peek(&mut first).await.is_ok_and(|count| count == 1) && first[0] == 0 {
            let _ = stream.write_all(format!("{caller}\n").as_bytes()).await;
            let _ = stream.read(&mut [0; 64]).await;
            return;
        }
        let service = service_fn(move |_: Request<Incoming>| async move {
            let said = format!("{caller}");
            Ok::<_, hyper::Error>(
                Response::builder()
                    .header("cache-control", "no-store")
                    .body(Full::new(Bytes::from(said)))
                    .unwrap(),
            )
        });
        let _ =
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// Returns the addresses that the application is called from, over each protocol.
async fn callers(sidecar: &Sidecar) -> Vec<String> {
    let mut callers = vec![sidecar.get("/local-only").await.body, sidecar.get("/local-only").await.body];
    let mut raw = Wire::to(sidecar.address).await;
    raw.say(b"\0\0raw").await;
    let mut caller = String::new();
    while !caller.ends_with('\n') {
        caller.push_str(&raw.bytes(1).await);
    }
    callers.push(caller.trim().to_owned());
    let (mut client, connection) = http2(sidecar.address).await;
    let response = client.send_request(get("/local-only")).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    callers.push(String::from_utf8(body.to_vec()).unwrap());
    connection.abort();
    callers
}

type Http2Client = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn http2(address: SocketAddr) -> (Http2Client, tokio::task::JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (client, tokio::spawn(connection))
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://shop.test{path}")).body(Empty::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_for_local_callers_stays_closed() {
    let origin = telling("0.0.0.0").await;
    let sidecar = Sidecar::launch(origin.address, &["--pod-ip", POD]).await;
    assert_eq!(callers(&sidecar).await, [POD; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_nginx_for_local_callers_stays_closed() {
    let application = Application::nginx().await;
    let sidecar = Sidecar::launch(application.address, &["--pod-ip", POD]).await;
    for path in ["/local-only", "/local-only", "//local-only"] {
        assert_eq!(sidecar.get(path).await.status, 403, "{path}");
    }
    assert_eq!(sidecar.get("/account").await.header("x-peer"), POD);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_outside_a_pod_calls_the_configured_upstream_address() {
    let origin = telling("0.0.0.0").await;
    let sidecar = Sidecar::launch(origin.address, &[]).await;
    assert_eq!(callers(&sidecar).await, ["127.0.0.1"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_listens_only_on_loopback_is_reached_there() {
    let origin = telling("127.0.0.1").await;
    let sidecar = Sidecar::launch(origin.address, &["--pod-ip", POD]).await;
    assert_eq!(callers(&sidecar).await, ["127.0.0.1"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_same_port_on_loopback_is_not_the_application() {
    let origin = telling(POD).await;
    let other =
        RawOrigin::start_on(SocketAddr::from(([127, 0, 0, 1], origin.address.port())), |_| async {}).await;
    let sidecar = Sidecar::launch(origin.address, &["--pod-ip", POD]).await;
    assert_eq!(callers(&sidecar).await, [POD; 4]);
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_begins_to_listen_everywhere_is_called_at_its_pods_address() {
    let origin = telling("127.0.0.1").await;
    let sidecar = Sidecar::launch(origin.address, &["--pod-ip", POD]).await;
    assert_eq!(sidecar.get("/a").await.body, "127.0.0.1");
    let pods = RawOrigin::start_on(
        SocketAddr::new(POD.parse().unwrap(), origin.address.port()),
        |mut stream| async move {
            while !read_head(&mut stream).await.is_empty() {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nCache-Control: no-store\r\n\r\npod")
                    .await
                    .unwrap();
            }
        },
    )
    .await;
    until("the pod's address", async || {
        // Connections that there are go on.
        tokio::time::sleep(Duration::from_millis(1600)).await;
        (sidecar.get("/a").await.body == "pod").then_some(())
    })
    .await;
    drop((origin, pods));
}

/// An application that ends an idle connection when it is notified, and confirms that it has.
async fn ending_idle_connections() -> (RawOrigin, Arc<Notify>, Arc<Notify>, Arc<AtomicUsize>) {
    let (end, ended, answered) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (told, tells, counts) = (Arc::clone(&end), Arc::clone(&ended), Arc::clone(&answered));
    let origin = RawOrigin::start(move |mut stream| {
        let (end, ended, answered) = (Arc::clone(&told), Arc::clone(&tells), Arc::clone(&counts));
        async move {
            let head = read_head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            answered.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            end.notified().await;
            drop(stream);
            ended.notify_one();
        }
    })
    .await;
    (origin, end, ended, answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_not_put_on_a_connection_that_the_application_has_closed() {
    let (origin, end, ended, answered) = ending_idle_connections().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    for number in 0..75 {
        client.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200"), "{number}: {head}{body}");
        end.notify_one();
        ended.notified().await;
    }
    assert_eq!(answered.load(Ordering::SeqCst), 75);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_aimed_at_the_end_of_idle_connections_arrive() {
    const KEEPALIVE: Duration = Duration::from_millis(60);
    let origin = RawOrigin::start(|mut stream| async move {
        while let Ok(head) = tokio::time::timeout(KEEPALIVE, read_head(&mut stream)).await {
            if head.is_empty() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    for number in 0..50 {
        client.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200"), "{number}: {head}{body}");
        tokio::time::sleep(KEEPALIVE).await; // as a client that thinks for exactly so long
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_before_a_request_are_no_response() {
    // As servers do before they end a connection that was idle for long.
    let unasked = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil";
    let spoke = Arc::new(Notify::new());
    let speaks = Arc::clone(&spoke);
    let origin = RawOrigin::start(move |mut stream| {
        let speaks = Arc::clone(&speaks);
        async move {
            if read_head(&mut stream).await.is_empty() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            let _ = stream.write_all(unasked.as_bytes()).await;
            speaks.notify_one();
            let _ = stream.read(&mut [0; 64]).await;
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    for number in 0..30 {
        client.say("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n").await;
        let (head, body) = client.answer().await;
        assert_eq!((head.starts_with("http/1.1 200"), body.as_str()), (true, "ok"), "{number}: {head}");
        spoke.notified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_used_again_and_ended_in_time() {
    let connections = Arc::new(AtomicUsize::new(0));
    let open = Arc::clone(&connections);
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let origin = RawOrigin::start(move |mut stream| {
        let open = Arc::clone(&open);
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            while !read_head(&mut stream).await.is_empty() {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = Wire::to(sidecar.address).await;
    for _ in 0..20 {
        client.ask("/a").await;
        assert_eq!(client.answer().await.1, "ok");
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
    until("no idle connection", async || (connections.load(Ordering::SeqCst) == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_an_application_that_starts_again() {
    let origin = Origin::numbered(&[]).await;
    let address = origin.address;
    let sidecar = Sidecar::bare(address).await;
    assert_eq!(sidecar.get("/a").await.status, 200);
    drop(origin);
    let again = async {
        tokio::time::sleep(Duration::from_millis(600)).await; // as long as a container takes to start
        Origin::start_on(address, |seen| async move { reply(&[], format!("again {}", seen.number)) }).await
    };
    let headers = [];
    let (got, posted, put, origin) = tokio::join!(
        sidecar.get("/a"),
        sidecar.request(Method::POST, "/b", &headers, "body"),
        sidecar.put("/c"),
        again
    );
    for answer in [got, posted, put] {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.starts_with("again"), "{answer:?}");
        assert_eq!(answer.header("connection"), "");
    }
    assert_eq!(origin.calls(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_without_its_application_closes_client_connections() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60"), ("connection", "close")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut wire = Wire::asking(sidecar.address, "/stored").await;
    wire.answer().await;
    end(origin).await;

    let begun = Instant::now();
    wire.ask("/a").await;
    let (head, body) = wire.answer().await;
    assert!(head.starts_with("http/1.1 502") && body.contains("refused"), "{head}{body}");
    assert_eq!(header(&head, "connection"), "close");
    assert_eq!(wire.rest().await, b"");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // The application is down for good: no request waits for it any more.
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(sidecar.get("/a").await.status, 502);
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    }
    let (mut client, connection) = http2(sidecar.address).await;
    assert_eq!(client.send_request(get("/a")).await.unwrap().status(), 502);
    tokio::time::timeout(Duration::from_secs(10), connection)
        .await
        .expect("the end of the connection")
        .unwrap()
        .unwrap();
    assert_eq!(sidecar.get("/stored").await.hit(), Some("l1"));
}

/// Ends an application that closes each connection after its response.
async fn end(origin: Origin) {
    let address = origin.address;
    drop(origin);
    until("a refused connection", async || TcpStream::connect(address).await.err()).await;
}

/// Opens idle connections of both versions to a sidecar whose application then dies, and asserts that they end before any fails.
async fn assert_idle_connections_end(address: SocketAddr, end_application: impl AsyncFnOnce()) {
    const IDLE: usize = 12;
    let sidecar = Sidecar::bare(address).await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut wire = Wire::asking(sidecar.address, "/a").await;
        assert!(wire.answer().await.0.starts_with("http/1.1 200"));
        idle.push(wire);
    }
    let (mut client, connection) = http2(sidecar.address).await;
    assert_eq!(client.send_request(get("/a")).await.unwrap().status(), 200);
    end_application().await;

    let failing = async {
        let mut wire = Wire::asking(sidecar.address, "/a").await;
        let (head, body) = wire.answer().await;
        assert!(head.starts_with("http/1.1 502") && body.contains("refused"), "{head}{body}");
        assert_eq!((header(&head, "connection"), &wire.rest().await[..]), ("close", &b""[..]));
    };
    let ends = async {
        for wire in &mut idle {
            assert_eq!(wire.rest().await, b"", "a clean end");
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
        ended.expect("the end of the connection").unwrap().unwrap();
    };
    tokio::join!(failing, ends);
    assert_eq!(sidecar.metric("larder_upstream_errors_total", &["reason=\"refused\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_end_when_the_application_is_gone_before_they_see_a_502() {
    let origin = Origin::numbered(&[("connection", "close")]).await;
    assert_idle_connections_end(origin.address, async || end(origin).await).await;
    let application = Application::go().await;
    assert_idle_connections_end(application.address, async || drop(application)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_with_a_refused_connection_purges_nothing() {
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#,
    );
    let origin = Origin::numbered(&[]).await;
    let address = origin.address;
    let sidecar = Sidecar::start(&policy, address).await;
    sidecar.get("/a").await;
    drop(origin);
    let written = sidecar.put("/a").await;
    assert_eq!(written.status, 502, "{written:?}");
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
    assert_eq!(sidecar.metric("larder_purges_total", &["origin=\"write\""]).await, 0.0);

    // A write that may have arrived does purge.
    let origin = RawOrigin::start_on(address, |mut stream| async move {
        read_head(&mut stream).await;
    })
    .await;
    assert_eq!(sidecar.put("/a").await.status, 502);
    assert_eq!(sidecar.metric("larder_purges_total", &["origin=\"write\""]).await, 1.0);
    assert_ne!(sidecar.get("/a").await.hit(), Some("l1"));
    drop(origin);
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_is_served_at_once_when_the_application_is_gone() {
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 1s, staleIfError: 10m}
"#,
    );
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    drop(origin);
    tokio::time::sleep(Duration::from_millis(1_100)).await; // until it is stale
    let begun = Instant::now();
    let answer = sidecar.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "1"), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
