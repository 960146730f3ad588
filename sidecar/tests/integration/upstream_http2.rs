//! Requests that an application over HTTP/2 has not processed (RFC 9113, section 8.7).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::harness::{Policy, RawOrigin, Sidecar, until};

const ROUTES: &str = r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

/// Point at which an application refuses a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refuses {
    AtOnce,
    AfterTheBody,
}

async fn read(mut body: RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    all
}

/// An application that refuses so many requests, and echoes the bodies of the others. It counts the refused ones.
async fn refusing(count: usize, refuses: Refuses) -> (RawOrigin, Arc<AtomicUsize>) {
    let refused = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&refused);
    let origin = RawOrigin::start(move |stream| {
        let refused = Arc::clone(&counts);
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let refused = Arc::clone(&refused);
                tokio::spawn(async move {
                    if refused.load(Ordering::SeqCst) >= count {
                        let body = read(request.into_body()).await;
                        let mut sending = respond.send_response(Response::new(()), false).unwrap();
                        sending.send_data(body.into(), true).unwrap();
                        return;
                    }
                    if refuses == Refuses::AfterTheBody {
                        read(request.into_body()).await;
                    }
                    refused.fetch_add(1, Ordering::SeqCst);
                    respond.send_reset(Reason::REFUSED_STREAM);
                });
            }
        }
    })
    .await;
    (origin, refused)
}

/// Sends a request over HTTP/2. Returns the status and the body of the response.
async fn ask(sidecar: &Sidecar, method: Method, body: impl Into<Bytes>) -> (u16, Bytes) {
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri("http://shop.test/a");
    let response = client.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (status, body)
}

async fn not_processed(sidecar: &Sidecar) -> f64 {
    sidecar.metric("larder_upstream_errors_total", &["reason=\"not-processed\""]).await
}

async fn purges(sidecar: &Sidecar) -> f64 {
    sidecar.metric("larder_purges_total", &["origin=\"write\""]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_stream_was_refused_is_sent_again() {
    let long = "x".repeat(40_000);
    for refuses in [Refuses::AtOnce, Refuses::AfterTheBody] {
        for (method, body) in
            [(Method::POST, ""), (Method::POST, "hello"), (Method::PATCH, &*long), (Method::GET, "")]
        {
            for count in [1, 2] {
                let (origin, refused) = refusing(count, refuses).await;
                let sidecar = Sidecar::bare(origin.address).await;
                let case = format!("{refuses:?} {count} {method} {}", body.len());
                let (status, echoed) = ask(&sidecar, method.clone(), body.to_owned()).await;
                assert_eq!((status, echoed == *body), (200, true), "{case}");
                assert_eq!(refused.load(Ordering::SeqCst), count, "{case}");
                assert_eq!(not_processed(&sidecar).await, 0.0, "{case}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_always_refused_is_a_502_that_says_so_and_purges_nothing() {
    let (origin, refused) = refusing(usize::MAX, Refuses::AfterTheBody).await;
    let policy = Policy::new(ROUTES);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    // The second is too long to be kept.
    for (body, tries) in [("hello".to_owned(), 3), ("x".repeat(1 << 20), 1)] {
        let before = refused.load(Ordering::SeqCst);
        let (status, problem) = ask(&sidecar, Method::PUT, body).await;
        let problem = String::from_utf8(problem.to_vec()).unwrap();
        assert_eq!(status, 502, "{problem}");
        assert!(problem.contains("has not processed the request"), "{problem}");
        assert_eq!(refused.load(Ordering::SeqCst) - before, tries);
    }
    assert!(sidecar.logged("the application did not respond").unwrap().contains("\"not-processed\""));
    assert_eq!((not_processed(&sidecar).await, purges(&sidecar).await), (2.0, 0.0));
    until("nothing kept", async || {
        let kept = sidecar.metric("larder_memory_reserved_bytes", &["kind=\"requests\""]).await;
        (kept == 0.0).then_some(())
    })
    .await;
}

/// The head of a frame without a stream (RFC 9113, section 4.1).
const fn frame(length: u8, kind: u8) -> [u8; 9] {
    [0, 0, length, kind, 0, 0, 0, 0, 0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_last_stream_of_a_goaway_is_sent_again_over_another_connection() {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    let leaving = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&leaving);
    let origin = RawOrigin::start(move |mut stream| {
        let leaving = Arc::clone(&counts);
        async move {
            if leaving.load(Ordering::SeqCst) == 1 {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let body = read(request.into_body()).await;
                        let mut sending = respond.send_response(Response::new(()), false).unwrap();
                        sending.send_data(body.into(), true).unwrap();
                    });
                }
                return;
            }
            let _ = stream.read_exact(&mut [0; 24]).await;
            let _ = stream.write_all(&frame(0, SETTINGS)).await;
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                if stream.read_exact(&mut vec![0; length]).await.is_err() {
                    return;
                }
                if head[3] == HEADERS {
                    leaving.fetch_add(1, Ordering::SeqCst);
                    // The last stream is none, and the reason is no error.
                    let _ = stream.write_all(&frame(8, GOAWAY)).await;
                    let _ = stream.write_all(&[0; 8]).await;
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let (status, body) = ask(&sidecar, Method::POST, "hello").await;
    assert_eq!((status, &body[..], leaving.load(Ordering::SeqCst)), (200, &b"hello"[..], 1));
}
