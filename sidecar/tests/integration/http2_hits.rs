//! Hits over HTTP/2, which are sent before hyper sees their requests.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::iter};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Version};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::harness::{Origin, Policy, Sidecar, reply};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

const ITEMS: &str = "routes: [{name: items, match: {path: \"/items/{id}\"}, ttl: 60s}]";

pub(super) async fn connect(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(window);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(super) async fn ask(
    client: &SendRequest<Bytes>,
    method: Method,
    path: &str,
) -> (u16, HeaderMap, Vec<u8>) {
    let exchange = async {
        let mut client = client.clone().ready().await.unwrap();
        let request = Request::builder().method(method).uri(format!("http://shop.test{path}"));
        let request = request.version(Version::HTTP_2).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut bytes = vec![];
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
        }
        (head.status.as_u16(), head.headers, bytes)
    };
    tokio::time::timeout(TEST_TIMEOUT, exchange).await.expect("a response in time")
}

/// An application whose responses have as many bytes as their path ends in.
async fn sized() -> Origin {
    Origin::start(|seen| async move {
        let length = seen.path.rsplit('/').next().unwrap().parse().unwrap_or(0);
        reply(
            &[("cache-control", "max-age=60"), ("x-long", &"v".repeat(300)), ("etag", "\"1\"")],
            "b".repeat(length),
        )
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn hit_has_the_head_and_body_that_it_has_over_http_1() {
    let origin = sized().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for path in ["/0", "/1", "/5000", "/60000", "/300000"] {
        ask(&client, Method::GET, path).await;
        let (status, headers, body) = ask(&client, Method::GET, path).await;
        let over_http1 = sidecar.get(path).await;
        assert_eq!((status, over_http1.status.as_u16()), (200, 200));
        assert_eq!(body.len(), over_http1.body.len(), "{path}");
        let fields = |headers: &HeaderMap| -> BTreeMap<_, _> {
            let untimed = headers.iter().filter(|(name, _)| *name != "age" && *name != "cache-status");
            untimed.map(|(name, value)| (name.to_string(), value.clone())).collect()
        };
        assert_eq!(fields(&headers), fields(&over_http1.headers), "{path}");
        let cache_status = headers["cache-status"].to_str().unwrap();
        assert!(
            cache_status.starts_with("larder; hit; ttl=") && cache_status.ends_with("; detail=l1"),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_other_requests_of_one_connection_do_not_disturb_each_other() {
    let origin = sized().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for window in [(64 << 10) - 1, 1 << 20] {
        let client = connect(sidecar.address, window).await;
        let asks = (0..600_usize).map(async |number| {
            let length = [0, 100, 20_000, 70_000][number % 4];
            // Each third is new.
            let path =
                if number % 3 == 0 { format!("/{window}/{number}/{length}") } else { format!("/{length}") };
            let method = if number % 7 == 0 { Method::PUT } else { Method::GET };
            let (status, _, body) = ask(&client, method, &path).await;
            assert_eq!((status, body.len()), (200, length), "{path}");
        });
        // Fewer than a connection may have at a time: the work for a response ends after it.
        iter(asks).buffer_unordered(50).collect::<Vec<()>>().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_are_counted() {
    let origin = sized().await;
    let policy = Policy::new(ITEMS);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for _ in 0..4 {
        ask(&client, Method::GET, "/items/7").await;
    }
    let shown: Value = serde_json::from_str(&sidecar.admin("/policy").await.body).unwrap();
    assert_eq!(shown["requests"], json!({"total": 4, "hits": 3, "misses": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn write_of_the_same_connection_ends_its_hits() {
    let origin = sized().await;
    let policy = Policy::new(ITEMS);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for round in 1..20 {
        ask(&client, Method::GET, "/items/7").await;
        let (_, headers, _) = ask(&client, Method::GET, "/items/7").await;
        assert!(headers["cache-status"].to_str().unwrap().starts_with("larder; hit"));
        ask(&client, Method::PUT, "/items/7").await;
        assert_eq!(origin.calls(), 2 * round);
    }
}
