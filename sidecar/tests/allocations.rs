//! Allocations per hit in memory: a property of the code's shape, so they are counted, not timed.

// Tests state an expectation by panicking.
#![allow(clippy::unwrap_used)]

use std::{alloc::System, net::Ipv4Addr, sync::Arc};

use axum::Router;
use larder_sidecar::{
    config::ConfigWatcher,
    drain::Drain,
    listener,
    proxy::Proxy,
    telemetry::Telemetry,
    upstream::{Dialer, Upstream},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const HITS: usize = 2000;
/// Allocations that the runtime makes now and then, per thousand hits.
const MAX_IN_A_THOUSAND: usize = 1;

async fn origin() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

async fn answer_each(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut request = [0; 2048];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nVary: Accept-Encoding\r\nContent-Length: 1024\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&[b'x'; 1024]).await.unwrap();
            }
        });
    }
}

/// Reads one response into a reused buffer. Returns true if it was a hit.
async fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> bool {
    stream.write_all(request).await.unwrap();
    let mut length = 0;
    loop {
        length += stream.read(&mut buffer[length..]).await.unwrap();
        let head = buffer[..length].windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some_and(|head| length >= head + 4 + 1024) {
            return buffer[..length].windows(13).any(|window| window == b"larder; hit; ");
        }
    }
}

/// The client, the sidecar and its origin share the thread on which allocations are counted.
#[tokio::test]
async fn a_hit_allocates_next_to_nothing() {
    let origin = origin().await;
    let url = format!("http://{}", origin.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(answer_each(origin));
    let telemetry = Arc::new(Telemetry::new().unwrap());
    let config = Arc::new(ConfigWatcher::load(None, None, Arc::clone(&telemetry)).await);
    let proxy = Proxy {
        relays: true,
        config,
        peers: None,
        upstream: Upstream::new(Arc::new(Dialer::new(&url, None)), Arc::clone(&telemetry.stats.budget)),
        target: None,
        telemetry,
        drain: Arc::new(Drain::default()),
        admin: Router::new(),
        token_file: None,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listener::accept(listener, Arc::new(proxy), CancellationToken::new(), TaskTracker::new()));

    let request = b"GET /some/page?a=1 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: test\r\nAccept: */*\r\n\
                    Accept-Encoding: gzip, br\r\nX-Request-Id: 7\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut buffer = vec![0; 16 << 10];
    assert!(!ask(&mut stream, request, &mut buffer).await);
    for _ in 0..100 {
        assert!(ask(&mut stream, request, &mut buffer).await);
    }
    let region = Region::new(ALLOCATOR);
    for _ in 0..HITS {
        assert!(ask(&mut stream, request, &mut buffer).await);
    }
    let change = region.change();
    let allocations = change.allocations + change.reallocations;
    assert!(allocations * 1000 <= HITS * MAX_IN_A_THOUSAND, "{allocations} allocations in {HITS} hits");
}
