//! Exchanges with an application that says exactly what a test wants.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::{
    body::Begun,
    budget::MemoryLimit,
    upstream::{Abandoned, UpstreamReason, no_body},
};

/// An application that responds to each request on a connection with the next of these texts, and then closes it.
struct Server {
    client: Arc<Http1>,
    connections: Arc<AtomicUsize>,
    seen: mpsc::UnboundedReceiver<String>,
}

impl Server {
    async fn saying(texts: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sees, seen) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(respond(stream, texts, sees.clone()));
            }
        });
        Self { client: client_of(&url), connections, seen }
    }

    async fn send(&self, request: Request<RequestBody>) -> Result<Response<ApplicationBody>, UpstreamError> {
        self.client.send(request, WhenRefused::Fail).await
    }

    /// Sends a request and reads the response; returns the status and the body.
    async fn get(&self) -> (StatusCode, Result<Bytes, ExchangeError>) {
        let (head, body) = self.send(request(Method::GET, "/a")).await.unwrap().into_parts();
        (head.status, body.collect().await.map(http_body_util::Collected::to_bytes))
    }

    fn idle(&self) -> usize {
        self.client.idle.lock().connections.len()
    }
}

fn client_of(url: &str) -> Arc<Http1> {
    let budget = Budget::new(MemoryLimit { bytes: Some(128 << 20), ..MemoryLimit::default() });
    let dialer = Dialer::new(&url.parse().unwrap(), None);
    Arc::new(Http1::new(Arc::new(dialer), Arc::new(budget)))
}

async fn respond(mut stream: TcpStream, texts: &[&str], sees: mpsc::UnboundedSender<String>) {
    for text in texts {
        let mut seen = Vec::new();
        while !is_whole(&seen) {
            match stream.read_u8().await {
                Ok(byte) => seen.push(byte),
                Err(_) => return,
            }
        }
        let _ = sees.send(String::from_utf8(seen).unwrap());
        stream.write_all(text.as_bytes()).await.unwrap();
    }
}

/// Returns true for a head without a length, and for a head with a body that ends in "end".
fn is_whole(seen: &[u8]) -> bool {
    let is_head = || !String::from_utf8_lossy(seen).contains("content-length");
    seen.ends_with(b"end") || seen.ends_with(b"\r\n\r\n") && is_head()
}

fn request(method: Method, target: &str) -> Request<RequestBody> {
    Request::builder().method(method).uri(target).header("host", "shop.test").body(no_body()).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A response that another recipient would delimit otherwise (RFC 9112, section 6.3).
const BOTH_FRAMINGS: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";

#[tokio::test]
async fn request_is_written_in_origin_form_with_its_fields_in_order() {
    let mut server = Server::saying(&[OK; 4]).await;
    for (target, written) in
        [("/a?b", "/a?b"), ("http://shop.test", "/"), ("http://shop.test?q", "/?q"), ("*", "*")]
    {
        let mut request = request(Method::GET, target);
        request.headers_mut().insert("x-b", "1".parse().unwrap());
        request.headers_mut().append("x-a", "2".parse().unwrap());
        let response = server.send(request).await.unwrap();
        response.into_body().collect().await.unwrap();
        let expected = format!("GET {written} HTTP/1.1\r\nhost: shop.test\r\nx-b: 1\r\nx-a: 2\r\n\r\n");
        assert_eq!(server.seen.recv().await.unwrap(), expected);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn body_in_memory_follows_its_head_with_a_length() {
    let mut server = Server::saying(&[OK; 2]).await;
    for length in [3, 20_000] {
        let body = "x".repeat(length - 3) + "end";
        let at_hand = Full::new(Bytes::from(body.clone()));
        let request = request(Method::POST, "/a").map(|_| Either::Right(at_hand));
        server.send(request).await.unwrap().into_body().collect().await.unwrap();
        let expected = format!("host: shop.test\r\ncontent-length: {length}\r\n\r\n{body}");
        assert!(server.seen.recv().await.unwrap().ends_with(&expected));
    }
}

#[tokio::test]
async fn end_of_an_upload_does_not_end_the_connection_of_its_response() {
    const LENGTH: usize = 8 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client_of(&format!("http://{}", listener.local_addr().unwrap()));
    let application = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await.unwrap();
        let head = format!("POST /a HTTP/1.1\r\nhost: shop.test\r\ncontent-length: {LENGTH}\r\n\r\n");
        reader.read_exact(&mut vec![0; head.len() + LENGTH]).await.unwrap();
        // Servers cancel a request whose client has gone.
        let end = tokio::time::timeout(Duration::from_millis(100), reader.read_u8()).await;
        writer.write_all(b"k").await.unwrap();
        end.is_ok()
    });
    let body = Full::new(Bytes::from(vec![b'x'; LENGTH]));
    let request = request(Method::POST, "/a").map(|_| Either::Right(body));
    let response = client.send(request, WhenRefused::Fail).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert!(!application.await.unwrap(), "the application hears of no end");
}

#[tokio::test]
async fn body_of_each_framing_is_read_to_its_end() {
    for (text, body, idle) in [
        (OK, "ok", 1),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", "ok", 1),
        ("HTTP/1.1 200 OK\r\n\r\nok", "ok", 0),
        (BOTH_FRAMINGS, "ok", 0),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", 0),
        ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok", "ok", 0),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", "", 1),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", "ok", 0),
    ] {
        let server = Server::saying(Box::leak(Box::new([text]))).await;
        let (_, got) = server.get().await;
        assert_eq!((got.unwrap(), server.idle()), (Bytes::from(body), idle), "{text:?}");
    }
}

#[tokio::test]
async fn head_response_has_no_body() {
    let server = Server::saying(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]).await;
    let response = server.send(request(Method::HEAD, "/a")).await.unwrap();
    assert_eq!(response.headers()["content-length"], "9");
    assert!(http_body::Body::is_end_stream(response.body()));
    assert_eq!(server.idle(), 1);
}

#[tokio::test]
async fn incomplete_and_malformed_bodies_are_told_apart() {
    for (text, reason) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", UpstreamReason::ClosedInBody),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", UpstreamReason::ClosedInBody),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n", UpstreamReason::MalformedBody),
    ] {
        let server = Server::saying(Box::leak(Box::new([text]))).await;
        let error = server.get().await.1.unwrap_err();
        assert_eq!((UpstreamReason::of_body(&error), server.idle()), (reason, 0), "{text:?}");
    }
}

#[tokio::test]
async fn unread_body_closes_its_connection() {
    let server = Server::saying(&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"]).await;
    drop(server.send(request(Method::GET, "/a")).await.unwrap());
    assert_eq!(server.idle(), 0);
}

#[tokio::test]
async fn interim_responses_precede_the_response() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let text = [HINTS, HINTS, OK].concat();
    let server = Server::saying(Box::leak(Box::new([&*text.leak()]))).await;
    let (tells, mut heard) = mpsc::unbounded_channel();
    let mut request = request(Method::GET, "/a");
    request.extensions_mut().insert(OnInterim::new(move |status, headers| {
        tells.send((status, headers["link"].clone())).unwrap();
    }));
    assert_eq!(server.send(request).await.unwrap().status(), 200);
    for _ in 0..2 {
        assert_eq!(heard.try_recv().unwrap(), (StatusCode::EARLY_HINTS, "</a>".parse().unwrap()));
    }
}

#[tokio::test]
async fn switched_connection_comes_with_the_bytes_behind_the_head() {
    let server =
        Server::saying(&["HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nfirst", "second"]).await;
    let response = server.send(request(Method::GET, "/a")).await.unwrap();
    assert_eq!(response.status(), 101);
    let (mut stream, mut received) =
        response.extensions().get::<SwitchedConnection>().unwrap().take().unwrap();
    stream.write_all(b"end").await.unwrap();
    while !received.ends_with(b"second") {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
    }
    assert_eq!(received, "firstsecond");
}

#[tokio::test]
async fn only_idempotent_requests_are_sent_again_over_a_closed_connection() {
    let server = Server::saying(&[OK, ""]).await;
    for _ in 0..3 {
        // The application closes the connection after the second request, without a response.
        assert_eq!(server.get().await.0, 200);
    }
    for (method, connections) in [(Method::POST, 1), (Method::PUT, 2)] {
        let server = Server::saying(&[""]).await;
        let failed = server.send(request(method.clone(), "/a")).await.unwrap_err();
        assert_eq!((failed.reason(), failed.may_have_been_sent()), (UpstreamReason::ClosedEarly, true));
        assert_eq!(server.connections.load(Ordering::SeqCst), connections, "{method}");
    }
}

#[tokio::test]
async fn request_that_is_sent_once_takes_no_idle_connection_of_a_silent_application() {
    let server = Server::saying(&[OK; 2]).await;
    let ago = |millis| Instant::now() - Duration::from_millis(millis);
    for (idle_for, silent_for, is_taken) in [(5, 5, true), (200, 5, true), (200, 200, false), (900, 5, false)]
    {
        server.get().await.1.unwrap();
        let (since, heard) = (ago(idle_for), ago(silent_for));
        {
            let mut idle = server.client.idle.lock();
            idle.connections[0].since = since;
            idle.heard = heard;
        }
        assert_eq!(server.client.take_idle(false).is_some(), is_taken, "{idle_for} ms, {silent_for} ms");
        assert_eq!(server.idle(), 0);
    }
}

/// Returns a client with an idle connection that the application has closed, of which the runtime has not heard.
async fn with_a_closed_connection(rests: usize) -> Arc<Http1> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client_of(&format!("http://{}", listener.local_addr().unwrap()));
    let mut connection = client.connect(WhenRefused::Fail).await.unwrap();
    drop(listener.accept().unwrap());
    (0..rests).for_each(|_| connection.rest());
    client.idle.lock().connections.push(connection);
    client
}

#[tokio::test]
async fn request_that_is_sent_once_takes_no_closed_connection_unless_it_was_used_again_and_just_now() {
    let ago = |time| Instant::now() - time;
    let seconds = Duration::from_secs;
    // This machine may be too busy for a moment that has passed to be just now.
    let just_now = Instant::now() + seconds(60);
    for (rests, since, ended, is_found) in [
        (2, ago(IDLE_UNASKED_FOR_ONCE * 2), None, true),
        (1, just_now, None, true),
        (2, just_now, None, false),
        (2, just_now, Some(ago(CLOSING_INTERVAL + seconds(1))), false),
        (2, just_now, Some(ago(CLOSING_INTERVAL - seconds(8))), true),
    ] {
        let client = with_a_closed_connection(rests).await;
        {
            let mut idle = client.idle.lock();
            (idle.connections[0].since, idle.ended) = (since, ended);
        }
        assert_eq!(client.take_idle(false).is_none(), is_found, "{rests} {since:?} {ended:?}");
        assert_eq!(client.idle.lock().ended != ended, is_found, "{rests} {since:?} {ended:?}");
    }
}

#[tokio::test]
async fn connection_that_failed_after_a_request_casts_doubt_on_the_others() {
    let server = Server::saying(&[OK, ""]).await;
    server.get().await.1.unwrap();
    assert_eq!(server.client.idle.lock().ended, None);
    // The application closes the connection after the second request, without a response.
    server.send(request(Method::POST, "/a")).await.unwrap_err();
    assert!(server.client.idle.lock().ended.is_some());
}

#[tokio::test]
async fn request_is_sent_again_over_a_new_connection() {
    // Each connection ends with its second request.
    let server = Server::saying(&[OK, ""]).await;
    let (first, second) = tokio::join!(server.get(), server.get());
    assert_eq!((first.0, second.0, server.idle()), (StatusCode::OK, StatusCode::OK, 2));
    assert_eq!(server.get().await.0, 200);
}

#[tokio::test]
async fn abandoned_request_is_not_sent() {
    let mut server = Server::saying(&[OK]).await;
    let abandoned = Abandoned::default();
    abandoned.set();
    let mut request = request(Method::GET, "/a");
    request.extensions_mut().insert(abandoned);
    assert!(matches!(server.send(request).await, Err(UpstreamError::Abandoned)));
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test]
async fn whole_body_that_came_with_its_head_is_at_hand() {
    let server = Server::saying(&[OK]).await;
    let response = server.send(request(Method::GET, "/a")).await.unwrap();
    let body = Begun::read(response.into_body()).await.unwrap();
    assert_eq!(server.idle(), 1, "nothing keeps the connection from its next request");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
}

#[test]
fn name_that_no_map_takes_is_refused_in_lines_too() {
    for (length, is_read) in [(65_535, true), (65_536, false)] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}: b\r\n\r\n", "a".repeat(length));
        let head = RawHead::of(head.as_bytes(), false).unwrap();
        assert_eq!(head.response().is_ok(), is_read, "{length}");
        assert_eq!(head.response_and_lines().is_ok(), is_read, "{length}");
    }
}
