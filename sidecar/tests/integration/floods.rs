//! Clients that send more requests than they wait for.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Method, Request};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Semaphore, task::JoinHandle};

use super::harness::{RawOrigin, Sidecar, exchange, read_head, until};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// A connection of HTTP/2, and its end.
async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://shop.test{path}")).body(()).unwrap()
}

/// An application of HTTP/1 that responds to each request with a permit, and the number of requests it got.
async fn slow() -> (RawOrigin, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (permits, asked) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
    let (gate, count) = (Arc::clone(&permits), Arc::clone(&asked));
    let origin = RawOrigin::start(move |mut stream| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            let head = read_head(&mut stream).await;
            if head.starts_with("PRI ") || head.is_empty() {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            let _ = stream.write_all(RESPONSE).await;
        }
    })
    .await;
    (origin, permits, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_resets_its_streams_gets_enhance_your_calm() {
    let (origin, _permits, asked) = slow().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let before = sidecar.resident();
    let (mut sender, connection) = connect(sidecar.address).await;
    let mut sent = 0;
    for number in 0..4_000 {
        let Ok(ready) = sender.ready().await else { break };
        sender = ready;
        let Ok((response, mut stream)) =
            sender.send_request(request(Method::GET, &format!("/{number}")), true)
        else {
            break;
        };
        sent += 1;
        tokio::time::sleep(Duration::from_millis(4)).await; // long enough for the application to be asked
        stream.send_reset(Reason::CANCEL);
        drop(response);
    }
    assert!(sent < 1_000, "{sent} streams");
    let error =
        tokio::time::timeout(Duration::from_secs(15), connection).await.unwrap().unwrap().unwrap_err();
    assert!(error.is_go_away() && error.is_remote(), "{error:?}");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let asked = asked.load(Ordering::SeqCst);
    assert!((1..1_000).contains(&asked), "the application had {asked} requests");
    assert!(sidecar.resident() < before + (32 << 20), "{} of {before}", sidecar.resident());
    let label = ["reason=\"resets\""];
    assert_eq!(sidecar.metric("larder_refused_requests_total", &label).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_goes_on_without_its_client_counts() {
    let (origin, permits, asked) = slow().await;
    // Half of the least that a budget is, 12 MiB, at 32 KiB each.
    const MAX: usize = 192;
    let sidecar = Sidecar::launch(origin.address, &["--memory-limit", "16Mi"]).await;
    let (mut connections, mut begun) = (Vec::new(), 0);
    while begun < MAX {
        let (sender, connection) = connect(sidecar.address).await;
        let mut sender = sender.ready().await.unwrap();
        // A connection may have half of the places that nobody has.
        for _ in 0..((MAX - begun) / 3).max(1) {
            let request = request(Method::PUT, &format!("/{begun}"));
            let (response, mut stream) = sender.send_request(request, true).unwrap();
            begun += 1;
            let was_asked = async || (asked.load(Ordering::SeqCst) >= begun).then_some(());
            until("the application has the request", was_asked).await;
            // A write goes on without its client: its purges must follow.
            stream.send_reset(Reason::CANCEL);
            drop(response);
        }
        connections.push((sender, connection));
    }
    let (_other, refused) = {
        let (sender, connection) = connect(sidecar.address).await;
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(request(Method::GET, "/more"), true).unwrap();
        (connection, response.await.unwrap())
    };
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    let get = "GET /more HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let refused = String::from_utf8(exchange(sidecar.address, get).await).unwrap().to_lowercase();
    assert!(refused.starts_with("http/1.1 503 ") && refused.contains("retry-after: 1\r\n"), "{refused}");
    assert_eq!(sidecar.metric("larder_requests_in_progress", &[]).await, MAX as f64);
    assert_eq!(sidecar.metric("larder_refused_requests_total", &["reason=\"overloaded\""]).await, 2.0);
    permits.add_permits(MAX + 1);
    until("the work ends", async || {
        (sidecar.metric("larder_requests_in_progress", &[]).await == 0.0).then_some(())
    })
    .await;
    let answer = String::from_utf8(exchange(sidecar.address, get).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_now_and_then_is_served_on() {
    let (origin, permits, _) = slow().await;
    permits.add_permits(Semaphore::MAX_PERMITS / 2);
    let sidecar = Sidecar::bare(origin.address).await;
    let (mut sender, connection) = connect(sidecar.address).await;
    for number in 0..300 {
        sender = sender.ready().await.unwrap();
        let (response, mut stream) =
            sender.send_request(request(Method::GET, &format!("/{number}")), true).unwrap();
        if number % 2 == 0 {
            stream.send_reset(Reason::CANCEL);
        } else {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    }
    assert!(!connection.is_finished());
}
