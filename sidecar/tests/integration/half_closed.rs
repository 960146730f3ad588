//! Clients over HTTP/1 that close their side of the connection after the request.

use std::time::Duration;

use futures::future::join_all;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};

use super::harness::{Origin, Policy, RawOrigin, Sidecar, Wire, header, read_head, reply};

const SPEC: &str = r#"
routes:
- {name: page, match: {path: "/page/{page}"}, ttl: 60s}
- {name: search, match: {path: "/search", methods: [POST]}, ttl: 60s, key: {body: {}}}
invalidation: {onWrite: [{match: {path: "/ruled/{kind}"}, purge: {tags: [none]}}]}
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

/// Responds to requests more slowly than a client that has closed its side is waited for without a sign of its response, in the way
/// that the end of the path names.
async fn respond_slowly(stream: &mut TcpStream) -> std::io::Result<()> {
    const SLOW: Duration = Duration::from_secs(5);
    const STEP: Duration = Duration::from_secs(1);
    const LENGTH: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
    loop {
        let head = read_head(stream).await;
        let target = head.split(' ').nth(1).unwrap_or_default();
        match target.rsplit('/').next().unwrap() {
            "" => return Ok(()),
            "pieces" => {
                stream.write_all(LENGTH).await?;
                for piece in [b"p", b"i", b"e", b"c", b"e", b"s"] {
                    sleep(STEP).await;
                    stream.write_all(piece).await?;
                }
            }
            "interims" => {
                for _ in 0..6 {
                    sleep(STEP).await;
                    stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await?;
                }
                stream.write_all(&[LENGTH, b"result"].concat()).await?;
            }
            "pause" => {
                stream.write_all(&[LENGTH, b"pau"].concat()).await?;
                sleep(SLOW).await;
                stream.write_all(b"sed").await?;
            }
            _ => {
                sleep(SLOW).await;
                stream.write_all(&[LENGTH, b"result"].concat()).await?;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_closes_its_side_waits_as_long_as_its_response_goes_on_or_a_write_may_take() {
    let origin = RawOrigin::start(|mut stream| async move {
        let _ = respond_slowly(&mut stream).await;
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let requests = [
        ("GET /other/pieces", "", "pieces"),
        ("GET /other/pieces", "TE: trailers\r\n", "pieces"),
        ("GET /page/pieces", "", "pieces"),
        ("POST /ruled/pieces", "Content-Length: 0\r\n", "pieces"),
        ("GET /other/interims", "", "result"),
        ("GET /other/interims", "TE: trailers\r\n", "result"),
        ("GET /other/pause", "", "paused"),
        ("GET /other/pause", "TE: trailers\r\n", "paused"),
        ("PUT /other/slow", "Content-Length: 0\r\n", "result"),
        ("PUT /other/slow", "Content-Length: 0\r\nTE: trailers\r\n", "result"),
        ("PUT /ruled/slow", "Content-Length: 0\r\n", "result"),
        // Nobody may wait for it any more.
        ("GET /other/slow", "", ""),
        ("GET /other/slow", "TE: trailers\r\n", ""),
        ("GET /page/slow", "", ""),
    ];
    let outcomes = join_all(requests.map(async |(request, fields, expected)| {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say(format!("{request} HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n")).await;
        wire.close_its_side().await;
        let rest = String::from_utf8(wire.rest().await).unwrap();
        let is_right = if expected.is_empty() { rest.is_empty() } else { rest.ends_with(expected) };
        (!is_right).then(|| format!("{request} {fields:?}: {rest:?}"))
    }))
    .await;
    assert_eq!(outcomes.into_iter().flatten().collect::<Vec<_>>(), Vec::<String>::new());
}
