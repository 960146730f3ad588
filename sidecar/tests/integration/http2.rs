//! HTTP/2 without TLS, on the listener and to the application.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc, future::join_all};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::harness::{Origin, RawOrigin, Sidecar, Steps, Wire, reply};

const TEST_TIMEOUT: Duration = Duration::from_secs(15);

type Sent = BoxBody<Bytes, std::convert::Infallible>;
type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, std::convert::Infallible>>;

async fn connect(address: SocketAddr) -> SendRequest<Sent> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Sent> {
    let request = Request::builder().method(method).uri(format!("http://shop.test{path}"));
    request.body(Full::new(body.into()).boxed()).unwrap()
}

/// A body that is sent frame by frame.
fn in_frames() -> (Frames, Sent) {
    let (frames, body) = mpsc::unbounded();
    (frames, BodyExt::boxed(StreamBody::new(body)))
}

/// Returns the next frame of a response.
async fn next(answer: &mut Response<Incoming>) -> Frame<Bytes> {
    tokio::time::timeout(TEST_TIMEOUT, answer.frame()).await.expect("a frame in time").unwrap().unwrap()
}

/// A complete response.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn cache_status(&self) -> &str {
        self.headers["cache-status"].to_str().unwrap()
    }
}

async fn ask(client: &mut SendRequest<Sent>, request: Request<Sent>) -> Answer {
    let exchange = async {
        client.ready().await.unwrap();
        let (head, body) = client.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.into()).unwrap(),
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, exchange).await.expect("a response in time")
}

async fn cacheable() -> Origin {
    Origin::start(|seen| async move {
        let body = format!("{} {} {}", seen.method, seen.path, std::str::from_utf8(&seen.body).unwrap());
        reply(&[("cache-control", "max-age=60")], body)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_both_http_versions_share_the_cache() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    let miss = ask(&mut client, request(Method::GET, "/a?x=1", "")).await;
    assert_eq!((miss.status, miss.body.as_str()), (200, "GET /a?x=1 "));
    assert_eq!(miss.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored");
    let seen = origin.last();
    assert_eq!((seen.path.as_str(), seen.header("host")), ("/a?x=1", "shop.test"));
    assert!(
        ask(&mut client, request(Method::GET, "/a?x=1", "")).await.cache_status().starts_with("larder; hit")
    );
    assert_eq!(sidecar.get("/a?x=1").await.hit(), Some("l1"), "what HTTP/2 stored is for HTTP/1 too");
    sidecar.get("/b").await;
    let hit = ask(&mut client, request(Method::GET, "/b", "")).await;
    assert!(hit.cache_status().starts_with("larder; hit"), "and the other way round");
    assert!(!hit.headers.contains_key("connection") && hit.headers.contains_key("age"));
    let head = ask(&mut client, request(Method::HEAD, "/b", "")).await;
    assert_eq!(
        (head.status, head.body.as_str(), &head.headers["content-length"]),
        (200, "", &HeaderValue::from_static("7"))
    );
    assert!(head.cache_status().starts_with("larder; hit"));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_arrives_at_an_application_of_http_1() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    let answer = ask(&mut client, request(Method::POST, "/a", "words")).await;
    assert_eq!(answer.body, "POST /a words");
    let (frames, body) = in_frames();
    let asking =
        client.send_request(Request::builder().method("PUT").uri("http://shop.test/b").body(body).unwrap());
    for words in ["one ", "two"] {
        frames.unbounded_send(Ok(Frame::data(words.into()))).unwrap();
    }
    drop(frames);
    let body = asking.await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "PUT /b one two");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_crumbs_of_a_cookie_are_one_field_in_http_1() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    let mut crumbs = request(Method::GET, "/a", "");
    for crumb in ["a=1", "b=2"] {
        crumbs.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    ask(&mut client, crumbs).await;
    let seen = origin.last();
    let lines: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(lines, ["a=1; b=2"], "RFC 9113, section 8.2.3");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_streams_of_one_connection_collapse() {
    const FIRST: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nfi";
    // The preface that probes for HTTP/2 is no request.
    let answer = |head: &str| match head.starts_with("GET ") {
        true => vec![FIRST.into(), "ll".into()],
        false => vec!["HTTP/1.1 400 Bad Request\r\n\r\n".into()],
    };
    let origin = Steps::answering(answer, false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let client = connect(sidecar.address).await;
    let asking = join_all((0..20).map(|_| {
        let mut client = client.clone();
        async move { client.send_request(request(Method::GET, "/a", "")).await.unwrap() }
    }));
    let mut answers = asking.await;
    let mut other = Wire::asking(sidecar.address, "/a").await;
    assert!(other.head().await.contains("; collapsed"));
    for answer in &mut answers {
        assert_eq!(next(answer).await.into_data().unwrap(), "fi");
    }
    origin.let_go(1);
    for answer in answers {
        assert_eq!(answer.collect().await.unwrap().to_bytes(), "ll");
    }
    let asked = origin.heads().into_iter().filter(|head| head.starts_with("GET ")).count();
    assert_eq!(asked, 1);
}

/// An application that speaks only HTTP/2, and responds to each message with its words in upper case, as it comes.
async fn grpc() -> RawOrigin {
    RawOrigin::start(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            let (head, mut body) = request.into_parts();
            let (frames, answer) = in_frames();
            let authority = head.uri.authority().map_or("none", |authority| authority.as_str()).to_owned();
            let te = head.headers.get("te").cloned();
            tokio::spawn(async move {
                let mut count = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    let sent = match frame.into_data() {
                        Ok(words) if words.is_empty() => continue,
                        Ok(words) => Frame::data(words.to_ascii_uppercase().into()),
                        Err(frame) => {
                            let mut trailers = frame.into_trailers().unwrap();
                            trailers.insert("grpc-status", HeaderValue::from_static("0"));
                            count += 1;
                            Frame::trailers(trailers)
                        }
                    };
                    let _ = frames.unbounded_send(Ok(sent));
                }
                if count == 0 {
                    let trailers = [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))];
                    let _ = frames.unbounded_send(Ok(Frame::trailers(trailers.into_iter().collect())));
                }
            });
            let mut response = Response::builder()
                .header("content-type", "application/grpc")
                .header("x-authority", authority);
            if let Some(te) = te {
                response = response.header("x-te", te);
            }
            Ok::<_, std::convert::Infallible>(response.body(answer).unwrap())
        });
        let _ =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_streams_both_ways_and_ends_in_trailers() {
    let origin = grpc().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let client = Arc::new(connect(sidecar.address).await);
    // Side by side on one connection.
    join_all((0..5).map(|_| async {
        let (frames, body) = in_frames();
        let call = Request::post("http://shop.test:8080/shop.Shop/Chat")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let mut answer = SendRequest::clone(&client).send_request(call).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &HeaderValue::from_static("application/grpc"))
        );
        assert_eq!(answer.headers()["x-authority"], "shop.test:8080");
        assert_eq!(answer.headers()["x-te"], "trailers");
        for words in ["first", "second"] {
            frames.unbounded_send(Ok(Frame::data(words.into()))).unwrap();
            let came = next(&mut answer).await.into_data().unwrap();
            assert_eq!(came, words.to_ascii_uppercase(), "while the request goes on");
        }
        let checksum = [("x-sum".parse().unwrap(), HeaderValue::from_static("7"))];
        frames.unbounded_send(Ok(Frame::trailers(checksum.into_iter().collect()))).unwrap();
        drop(frames);
        let trailers = next(&mut answer).await.into_trailers().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["x-sum"]),
            (&HeaderValue::from_static("0"), &HeaderValue::from_static("7"))
        );
        assert!(answer.frame().await.is_none());
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn call_with_a_complete_request_ends_in_trailers() {
    let origin = grpc().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    for _ in 0..3 {
        let mut answer = client.send_request(request(Method::POST, "/shop.Shop/Get", "x")).await.unwrap();
        assert_eq!(next(&mut answer).await.into_data().unwrap(), "X");
        assert_eq!(next(&mut answer).await.into_trailers().unwrap()["grpc-status"], "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_ends_its_connection_is_connected_to_again() {
    // Each connection serves one request, then says goodbye.
    let origin = RawOrigin::start(|stream| async move {
        let (done, mut ended) = mpsc::unbounded::<()>();
        let service = service_fn(move |_: Request<Incoming>| {
            let _ = done.unbounded_send(());
            async { Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("here")))) }
        });
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = ended.next() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    for number in 0..20 {
        let answer = ask(&mut client, request(Method::GET, "/a", "")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "here"), "{number}");
    }
}

/// An application whose connection breaks at the second request that it sees, and at every POST.
async fn breaking() -> (RawOrigin, Arc<AtomicUsize>) {
    let seen = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&seen);
    let origin = RawOrigin::start(move |stream| {
        let count = Arc::clone(&count);
        async move {
            let (breaks, mut broken) = mpsc::unbounded::<()>();
            let service = service_fn(move |request: Request<Incoming>| {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let breaks = breaks.clone();
                async move {
                    if number == 2 || request.method() == Method::POST {
                        let _ = breaks.unbounded_send(());
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("here"))))
                }
            });
            let connection =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = broken.next() => {}
            }
        }
    })
    .await;
    (origin, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_request_is_retried_when_its_connection_breaks() {
    let (origin, seen) = breaking().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut client = connect(sidecar.address).await;
    for path in ["/a", "/b"] {
        let answer = ask(&mut client, request(Method::GET, path, "")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "here"), "{path}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    let answer = ask(&mut client, request(Method::POST, "/c", "x")).await;
    assert_eq!((answer.status, seen.load(Ordering::SeqCst)), (502, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn application_is_probed_once_for_http_2() {
    let answer = |head: &str| match head.starts_with("GET ") {
        true => vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()],
        false => vec!["HTTP/1.1 400 Bad Request\r\n\r\n".into()],
    };
    let origin = Steps::answering(answer, false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let client = connect(sidecar.address).await;
    let answers = join_all((0..20).map(|number| {
        let mut client = client.clone();
        async move { ask(&mut client, request(Method::GET, &format!("/{number}"), "")).await }
    }));
    assert!(answers.await.iter().all(|answer| answer.body == "ok"));
    let asked = origin.heads().into_iter().filter(|head| head.starts_with("PRI ")).count();
    assert_eq!(asked, 1);
}

/// A connection whose client may send frames that hyper's does not.
async fn raw(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

#[tokio::test(flavor = "multi_thread")]
async fn request_refused_over_http_1_is_refused_over_http_2() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/a").await;
    let many: Vec<_> = (0..101).map(|_| ("x", "a")).collect();
    let long: &'static str = format!("http://shop.test/{}", "a".repeat(33 << 10)).leak();
    const URI: &str = "http://shop.test/a";
    for (method, uri, lines, status, reason) in [
        ("GET", "http://user@shop.test/a", &[][..], 400, "host"),
        ("GET", URI, &[("host", "a/b")], 400, "host"),
        ("GET", URI, &[("host", "other.test")], 400, "host"),
        ("GET", URI, &[("host", "shop.test"), ("host", "other.test")], 400, "host"),
        ("GET", URI, &[("host", "shop.test"), ("host", "shop.test")], 400, "host"),
        ("PUT", "ftp://shop.test/a", &[], 400, "target"),
        ("GET", URI, &many, 431, "head-too-large"),
        ("GET", long, &[], 414, "target-too-long"),
        ("POST", URI, &[("content-length", "0"), ("content-length", "0")], 400, "content-length"),
    ] {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let label = format!("reason=\"{reason}\"");
        let before = sidecar.metric("larder_refused_requests_total", &[&label]).await;
        let mut client = raw(sidecar.address).await.ready().await.unwrap();
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        let answer = tokio::time::timeout(TEST_TIMEOUT, answer).await.expect("a response in time").unwrap();
        assert_eq!(answer.status(), status, "{method} {uri} {lines:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let after = sidecar.metric("larder_refused_requests_total", &[&label]).await;
        assert_eq!(after, before + 1.0, "{method} {uri} {lines:?}");
    }
    // A stream that h2 itself refuses ends.
    for (uri, name, value) in [
        (URI, "connection", "close"),
        (URI, "transfer-encoding", "chunked"),
        (URI, "te", "gzip"),
        (URI, "content-length", "5"),
        (URI, "content-length", "x"),
    ] {
        let request = Request::post(uri).header(name, value).body(()).unwrap();
        let mut client = raw(sidecar.address).await.ready().await.unwrap();
        let Ok((answer, _)) = client.send_request(request, true) else { continue };
        assert!(answer.await.is_err(), "{name}: {value}");
    }
    assert_eq!(origin.calls(), 1);
}
