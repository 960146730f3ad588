//! Clients over HTTP/1 that close their side of the connection after the request.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, time::sleep};

use super::harness::{Origin, Policy, RawOrigin, Sidecar, Wire, header, read_head, reply};

const SPEC: &str = r#"
routes:
- {name: page, match: {path: "/page/{page}"}, ttl: 60s}
- {name: search, match: {path: "/search", methods: [POST]}, ttl: 60s, key: {body: {}}}
"#;

/// Pause of an application, after which a client that had left would have been noticed.
const PAUSE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn client_that_closes_its_side_gets_its_response() {
    let origin = RawOrigin::start(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            sleep(PAUSE).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await.unwrap();
            sleep(PAUSE).await;
            if stream.write_all(b"lf").await.is_err() {
                return;
            }
        }
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (request, status) in [
        ("GET /page/a HTTP/1.1\r\n\r\n", "fwd=uri-miss"),
        ("GET /page/a HTTP/1.1\r\n\r\n", "; hit"),
        // Served by hyper.
        ("GET /page/{} HTTP/1.1\r\n\r\n", "fwd=uri-miss"),
        ("GET /other HTTP/1.1\r\n\r\n", "fwd=bypass"),
        ("GET /other/{} HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", "fwd=bypass"),
        ("OPTIONS /page/a HTTP/1.1\r\n\r\n", "fwd=method"),
        ("POST /search HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "fwd=uri-miss"),
        ("POST /search HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "; hit"),
    ] {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(request.replacen("HTTP/1.1\r\n", "HTTP/1.1\r\nHost: shop.test\r\n", 1)).await;
        wire.close_its_side().await;
        let (head, body) = wire.answer().await;
        assert!(header(&head, "cache-status").contains(status), "{request}: {head}");
        assert_eq!(body, "half", "{request}");
        assert_eq!(wire.rest().await, b"", "the connection ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_closes_its_side_after_an_upload_gets_its_response() {
    let origin = Origin::start(|seen| async move {
        sleep(PAUSE).await;
        reply(&[], seen.body)
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for framing in
        ["Content-Length: 4\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
    {
        for path in ["/page/a", "/other", "/other/{}"] {
            let mut wire = Wire::to(sidecar.address).await;
            wire.say(format!("PUT {path} HTTP/1.1\r\nHost: shop.test\r\n{framing}")).await;
            wire.close_its_side().await;
            assert_eq!(wire.answer().await.1, "body", "{path}");
            assert_eq!(wire.rest().await, b"");
        }
    }
}
