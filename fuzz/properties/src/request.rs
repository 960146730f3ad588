//! Requests on an HTTP/1 connection. The input is a client's bytes.

use std::{
    cell::RefCell,
    convert::Infallible,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{
    Method, Request, Response,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use larder_sidecar::http1_guard::request_length;

const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";

/// Accepted input is one request to hyper too, or none: with the same body, and followed by the next request.
pub fn check(data: &[u8]) {
    let Ok(Some(length)) = request_length(data) else { return };
    for cut in (0..length).step_by(1 + length / 16).chain([length - 1]) {
        assert_eq!(request_length(&data[..cut]), Ok(None), "no part of a request is one: {cut} of {length}");
    }
    assert_eq!(request_length(&data[..length]), Ok(Some(length)), "nothing after it matters");

    let mut input = data[..length].to_vec();
    input.extend_from_slice(NEXT);
    // hyper may be stricter, and refuse it or its body: then nothing that comes after it is read.
    let seen = read_by_hyper(&input);
    let Some((first, rest)) = seen.split_first() else { return };
    let Some(body) = &first.body else {
        assert!(rest.is_empty(), "a request after a broken body");
        return;
    };
    if !first.chunked {
        assert_eq!(first.length.unwrap_or(0), body.len(), "its body is as long as it says");
        assert!(input[..length].ends_with(body), "its body is at its end");
    }
    match rest {
        [] => {} // it closes the connection
        [next] => {
            assert_eq!((&next.method, next.target.as_str()), (&Method::GET, "/next"));
            assert_eq!(next.body.as_deref(), Some(&b""[..]));
        }
        _ => panic!("two requests in one"),
    }
}

#[derive(Debug)]
struct Seen {
    method: Method,
    target: String,
    chunked: bool,
    length: Option<usize>,
    body: Option<Bytes>,
}

/// Returns the requests that hyper reads from a connection with these bytes.
fn read_by_hyper(input: &[u8]) -> Vec<Seen> {
    let seen = RefCell::new(vec![]);
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let chunked = head.headers.contains_key(TRANSFER_ENCODING);
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let body = body.collect().await.ok().map(|body| body.to_bytes());
        let (method, target) = (head.method, head.uri.to_string());
        seen.borrow_mut().push(Seen { method, target, chunked, length, body });
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let mut connection =
        Box::pin(http1::Builder::new().header_read_timeout(None).serve_connection(Wire { input }, service));
    let mut context = Context::from_waker(Waker::noop());
    // Its bytes are there, so that hyper waits for nothing but its own turn.
    let _ = (0..1000).find(|_| connection.as_mut().poll(&mut context).is_ready());
    drop(connection);
    seen.into_inner()
}

/// A connection that sends its bytes and ends, and accepts everything.
struct Wire<'a> {
    input: &'a [u8],
}

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.input.split_at(self.input.len().min(cursor.remaining()));
        cursor.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
