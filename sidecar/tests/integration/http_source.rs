//! An HTTP source on its own: TLS, statuses, deadlines.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use larder_sidecar::sources::http::{HttpBodyError, HttpError, HttpFound, HttpSource};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::mpsc};
use tokio_rustls::TlsAcceptor;

use super::harness::{Authority, Folder, Origin, RawOrigin, read_head, reply, until};

fn source(url: &str, settings: &str) -> HttpSource {
    HttpSource::start(serde_yaml::from_str(&format!("{{url: '{url}', {settings}}}")).unwrap())
}

fn at(address: SocketAddr) -> HttpSource {
    source(&format!("http://{address}"), "hardTimeout: 10s")
}

async fn found(source: &HttpSource, path: &str) -> Response<Bytes> {
    match source.fetch(path).await.unwrap() {
        HttpFound::Found(response) => {
            let (head, body) = response.into_parts();
            Response::from_parts(head, body.collect().await.unwrap().to_bytes())
        }
        HttpFound::NotFound => panic!("the source reports not found"),
    }
}

/// A TLS server that responds with the HTTP version of the request.
async fn secure(authority: &Authority, protocols: &[&str]) -> RawOrigin {
    let acceptor = TlsAcceptor::from(authority.certify("127.0.0.1").server(protocols));
    RawOrigin::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request: Request<Incoming>| async move {
                let said = format!("{:?} {}", request.version(), request.uri().path());
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(said))))
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn source_request_has_its_headers_and_its_response_loses_those_of_its_host() {
    let origin = Origin::start(|_| async {
        let headers = [
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
            ("etag", "\"a\""),
            ("set-cookie", "person=1"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("strict-transport-security", "max-age=1"),
        ];
        reply(&headers, "{}")
    })
    .await;
    for (base, asked) in
        [("", "/items/1?a=b%20c"), ("/v2", "/v2/items/1?a=b%20c"), ("/v2/", "/v2/items/1?a=b%20c")]
    {
        let source = source(&format!("http://{}{base}", origin.address), "hardTimeout: 10s");
        let answer = found(&source, "/items/1?a=b%20c").await;
        assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, &b"{}"[..]));
        let mut names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-encoding", "content-length", "content-type", "date", "etag"]);
        let seen = origin.last();
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("GET", asked));
        assert_eq!(seen.header("host"), origin.address.to_string());
        assert_eq!(seen.header("accept"), "application/json, */*;q=0.5");
        assert_eq!(seen.header("user-agent"), "larder");
        assert_eq!(seen.headers.len(), 3);
        assert!(source.is_up() && source.last_error().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_200_from_a_source_is_a_response() {
    let origin = Origin::start(|seen| async move {
        let status = seen.path.trim_start_matches('/').parse::<u16>().unwrap();
        let mut reply = reply(&[("location", "/200")], "body");
        *reply.status_mut() = StatusCode::from_u16(status).unwrap();
        reply
    })
    .await;
    let source = at(origin.address);
    for status in [404, 410] {
        assert!(matches!(source.fetch(&format!("/{status}")).await, Ok(HttpFound::NotFound)), "{status}");
    }
    for status in [201, 204, 206, 301, 302, 307, 304, 400, 403, 429] {
        for _ in 0..6 {
            let error = source.fetch(&format!("/{status}")).await.unwrap_err();
            assert!(matches!(error, HttpError::Status(is) if is == status), "{status}: {error}");
            assert!(error.to_string().contains(&status.to_string()));
        }
    }
    assert!(source.is_up(), "the source responds, if not with the expected status");
    let before = origin.calls();
    let outcomes: Vec<_> = futures::future::join_all((0..5).map(|_| source.fetch("/503"))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(HttpError::Status(is)) if *is == 503)));
    assert_eq!(origin.calls(), before + 5);
    assert!(!source.is_up());
    until("one request goes forward again", async || source.fetch("/200").await.ok()).await;
    assert!(found(&source, "/200").await.body().as_ref() == b"body" && source.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_source_is_left_alone_for_a_while() {
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    let source = at(gone);
    until("the source gets no request", async || {
        let error = source.fetch("/").await.unwrap_err();
        assert!(matches!(error, HttpError::Failed(_) | HttpError::Down), "{error}");
        matches!(error, HttpError::Down).then_some(())
    })
    .await;
    assert!(!source.is_up());
    assert!(matches!(at(gone).fetch("/a b").await, Err(HttpError::Target(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_trusts_only_the_ca() {
    let (authority, stranger, folder) = (Authority::new(), Authority::new(), Folder::new());
    let ca = folder.join("ca");
    fs::write(&ca, authority.pem()).unwrap();
    let settings = format!("hardTimeout: 10s, caFrom: {{file: {}}}", ca.display());
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let server = secure(&authority, protocols).await;
        let source = source(&format!("https://{}/v1", server.address), &settings);
        let answer = found(&source, "/a").await;
        assert_eq!(answer.body(), &Bytes::from(format!("{version:?} /v1/a")));
    }
    let server = secure(&stranger, &["h2"]).await;
    let trusted = secure(&authority, &[]).await;
    let other_name = format!("https://localhost:{}", trusted.address.port());
    for (url, settings) in [
        (format!("https://{}", server.address), settings.as_str()),
        (format!("https://{}", server.address), "hardTimeout: 10s"),
        (other_name, &settings),
    ] {
        let error = source(&url, settings).fetch("/").await.unwrap_err();
        assert!(error.to_string().contains("caFrom"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_may_change_and_a_bad_one_is_kept_out() {
    let (first, second, folder) = (Authority::new(), Authority::new(), Folder::new());
    let ca = folder.join("ca");
    let write = |text: &str| {
        fs::write(folder.join("written"), text).unwrap();
        fs::rename(folder.join("written"), &ca).unwrap();
    };
    let settings = format!("hardTimeout: 10s, caFrom: {{file: {}}}", ca.display());
    let (one, other) = (secure(&first, &[]).await, secure(&second, &[]).await);
    let [one, other] =
        [one.address, other.address].map(|address| source(&format!("https://{address}"), &settings));
    assert!(matches!(one.fetch("/").await, Err(HttpError::Trust(_))));
    assert!(!one.is_up() && one.last_error().is_some());
    write(&first.pem());
    until("the CA is trusted", async || one.fetch("/").await.ok()).await;
    write("no certificate");
    until("an error", async || one.last_error().filter(|last_error| last_error.contains("no certificate")))
        .await;
    assert!(one.is_up());
    found(&one, "/").await;
    fs::remove_file(&ca).unwrap();
    until("an error", async || one.last_error().filter(|last_error| last_error.contains("can't read"))).await;
    found(&one, "/").await;
    write(&second.pem());
    until("the other is trusted", async || other.fetch("/").await.ok()).await;
    until("the one is not", async || one.fetch("/").await.err()).await;
    assert_eq!(one.last_error(), None);
}

/// A server that sends part of a response and then waits until the client closes.
async fn stalling(said: &'static str) -> RawOrigin {
    RawOrigin::start(move |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hard_timeout_covers_head_and_body() {
    let limit = Duration::from_millis(300);
    let silent = stalling("").await;
    let source_of = |origin: &RawOrigin| source(&format!("http://{}", origin.address), "hardTimeout: 300ms");
    let source = source_of(&silent);
    for _ in 0..5 {
        let error = source.fetch("/").await.unwrap_err();
        assert!(matches!(error, HttpError::Deadline(is) if is == limit), "{error}");
    }
    assert!(matches!(source.fetch("/").await, Err(HttpError::Down)));
    for said in ["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart", "HTTP/1.1 200 OK\r\n\r\npart"] {
        let stalling = stalling(said).await;
        let source = source_of(&stalling);
        for _ in 0..5 {
            let HttpFound::Found(response) = source.fetch("/").await.unwrap() else {
                panic!("the source reports not found")
            };
            let mut body = response.into_body();
            let part = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(part, "part");
            let error = body.frame().await.unwrap().unwrap_err();
            assert!(matches!(error, HttpBodyError::Deadline(is) if is == limit), "{error}");
        }
        assert!(!source.is_up(), "a body that does not come counts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_fails() {
    let origin = RawOrigin::start(|mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        let said = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart";
        stream.write_all(said.as_bytes()).await.unwrap();
    })
    .await;
    let source = at(origin.address);
    for _ in 0..5 {
        match source.fetch("/").await {
            Ok(HttpFound::Found(response)) => {
                let error = response.into_body().collect().await.unwrap_err();
                assert!(matches!(error, HttpBodyError::Broken(_)), "{error}");
            }
            // The end may come together with the head.
            Err(HttpError::Failed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!source.is_up());
}

/// On one thread, as a worker of the sidecar with the connections that it has opened.
#[tokio::test]
async fn a_body_that_is_invalid_where_it_begins_is_a_failure() {
    for body in ["zz\r\nok", "fffffffffffffffff\r\nok", "2\r\nokay\r\n0\r\n\r\n"] {
        let origin = saying(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        let source = at(origin.address);
        for _ in 0..5 {
            let outcome = source.fetch("/").await;
            assert!(matches!(outcome, Err(HttpError::Failed(_))), "{body:?}: {outcome:?}");
        }
        assert!(!source.is_up(), "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_dead_is_replaced() {
    let (saw, mut seen) = mpsc::unbounded_channel();
    let saw = Arc::new(saw);
    let origin = RawOrigin::start(move |mut stream: TcpStream| {
        let saw = Arc::clone(&saw);
        async move {
            // The server responds once, and closes at the second request.
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if !read_head(&mut stream).await.is_empty() {
                saw.send(()).unwrap();
            }
        }
    })
    .await;
    let source = at(origin.address);
    until("a second request on one connection", async || {
        assert_eq!(found(&source, "/").await.body(), "ok");
        seen.try_recv().ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_other_than_chunked_is_an_error() {
    for (coding, is_supported) in [
        ("chunked", true),
        ("Chunked", true),
        ("gzip, chunked", false),
        ("gzip\r\nTransfer-Encoding: chunked", false),
        ("chunked, chunked", false),
        ("gzip", false),
        ("xchunked", false),
    ] {
        let origin = RawOrigin::start(move |mut stream| async move {
            read_head(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n");
            let _ = stream.write_all(format!("{head}2\r\nok\r\n0\r\n\r\n").as_bytes()).await;
        })
        .await;
        match at(origin.address).fetch("/").await {
            Ok(HttpFound::Found(_)) => assert!(is_supported, "{coding}"),
            Err(HttpError::TransferCoding) => assert!(!is_supported, "{coding}"),
            other => panic!("{coding}: {other:?}"),
        }
    }
}

/// A source that sends these bytes to each request, over one connection.
async fn saying(said: String) -> RawOrigin {
    RawOrigin::start(move |mut stream| {
        let said = said.clone();
        async move {
            while !read_head(&mut stream).await.is_empty() {
                if stream.write_all(said.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_understood_as_the_applications_is() {
    let many: String = (0..990).map(|number| format!("x-{number}: {}\r\n", "v".repeat(100))).collect();
    for (lines, name, value) in [
        ("X-Legacy : a\r\n", "x-legacy", "a"),
        ("A: b\x01c\r\n", "a", "b c"),
        ("A: b\r\n c\r\n", "a", "b c"),
        (": x\r\nA: b\r\n", "a", "b"),
        (&format!("{many}A: b\r\n"), "a", "b"),
    ] {
        let origin = saying(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok")).await;
        let source = at(origin.address);
        for _ in 0..3 {
            let answer = found(&source, "/").await;
            let case = &lines[..lines.len().min(40)];
            assert_eq!(
                (answer.headers()[name].as_bytes(), &answer.body()[..]),
                (value.as_bytes(), &b"ok"[..]),
                "{case}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_not_understood_is_an_error_that_says_why() {
    for (head, why) in [
        (format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(1_100)), "more than 1000 header lines"),
        (format!("HTTP/1.1 200 OK\r\nA: {}\r\n", "b".repeat(300 << 10)), "a head of more than 131072 bytes"),
        ("nonsense\r\n".into(), "no HTTP/1 status line"),
        ("HTTP/1.1 200 OK\r\nA: b\0c\r\n".into(), "an invalid header line"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n".into(),
            "a Content-Length that is not one number",
        ),
    ] {
        let origin = saying(format!("{head}\r\n")).await;
        let error = at(origin.address).fetch("/").await.unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}
