//! Malformed responses of the application: repairs, and the reason that a 502 gives.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::harness::{
    Answer, Origin, RawOrigin, Sidecar, Steps, Wire, exchange, header, read_head, reply, until,
};

/// A sidecar in front of an application that sends these bytes to every request and leaves its connections open, or ends them.
async fn before(said: impl Into<Vec<u8>>, ends: bool) -> (RawOrigin, Sidecar) {
    let said = said.into();
    let origin = RawOrigin::start(move |mut stream| {
        let said = said.clone();
        async move {
            // The end comes in one segment with the last bytes.
            socket2::SockRef::from(&stream).set_tcp_cork(ends).unwrap();
            while !read_head(&mut stream).await.is_empty() {
                if stream.write_all(&said).await.is_err() || ends {
                    return;
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    (origin, sidecar)
}

fn with_length(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok")
}

async fn errors(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric("larder_upstream_errors_total", &[&format!("reason=\"{reason}\"")]).await
}

/// Asserts that a response is a 502 for this reason in every place that reports it, and that nothing is stored.
async fn assert_fails(sidecar: &Sidecar, answer: &Answer, reason: &str, case: &str) {
    assert_eq!(answer.status, 502, "{case}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{case}");
    assert_eq!(answer.cache_status(), "", "{case}");
    assert!(errors(sidecar, reason).await >= 1.0, "{case}: {}", answer.body);
    let words = reason.split('-').next().unwrap();
    let detail = answer.body.to_lowercase();
    assert!(detail.contains("detail") && !detail.contains("127.0.0.1"), "{case}: {detail}");
    let words = if reason == "closed-in-body" { "ended" } else { words };
    assert!(detail.contains(words) || reason == "head-too-large", "{case}: {reason}, but {detail}");
    let logged = sidecar.logged("the application did not respond").unwrap();
    assert!(logged.contains(&format!("\"{reason}\"")), "{case}: {logged}");
    assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0, "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_502_says_why_in_its_detail_the_log_and_a_metric() {
    let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n";
    for (said, reason) in [
        (String::new(), "closed-early"),
        ("HTTP/1.1 200 OK\r\nContent-".into(), "closed-early"),
        ("HTTP/1.1 103 Early Hints\r\n\r\n".into(), "closed-early"),
        (format!("{head}{}\r\n", "A: b\r\n".repeat(1_100)), "too-many-headers"),
        (format!("{head}A: {}\r\n\r\n", "b".repeat(300 << 10)), "head-too-large"),
        ("nonsense\r\n\r\n".into(), "malformed-status-line"),
        ("HTTP/1.1 2xx OK\r\n\r\n".into(), "malformed-status-line"),
        ("HTTP/3.0 200 OK\r\n\r\n".into(), "malformed-status-line"),
        (format!("{head}A: b\0c\r\n\r\n"), "malformed-header"),
        (format!("{head}A: b\rc\r\n\r\n"), "malformed-header"),
        (format!("{head}Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"), "malformed-length"),
        (format!("{head}Content-Length: two\r\n\r\nok"), "malformed-length"),
        (format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "transfer-coding"),
        ("HTTP/1.1 101 On\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".into(), "unexpected-upgrade"),
    ] {
        let case = said.chars().take(60).collect::<String>();
        let (_origin, sidecar) = before(said, true).await;
        let answer = sidecar.get("/a").await;
        assert_fails(&sidecar, &answer, reason, &case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_invalid_where_it_begins_is_a_502() {
    let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n";
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    for (said, reason) in [
        (format!("{chunked}zz\r\nok"), "malformed-body"),
        (format!("{chunked}fffffffffffffffff\r\nok"), "malformed-body"),
        (format!("{chunked}2\r\nokay\r\n0\r\n\r\n"), "malformed-body"),
        (format!("{chunked}2\r\nok\r\nzz\r\n"), "malformed-body"),
        (chunked.clone(), "closed-in-body"),
        (format!("{chunked}2\r\n"), "closed-in-body"),
        (format!("{chunked}2\r\nok\r\n"), "closed-in-body"),
        (format!("{head}Content-Length: 9\r\n\r\n"), "closed-in-body"),
        (format!("{head}Content-Length: 9\r\n\r\nok"), "closed-in-body"),
    ] {
        let (_origin, sidecar) = before(said.clone(), true).await;
        let answer = sidecar.get("/a").await;
        assert_fails(&sidecar, &answer, reason, &said).await;
        let answer = sidecar.request(Method::POST, "/a", &[], "").await;
        assert_fails(&sidecar, &answer, reason, &said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_arrives_before_its_body_begins() {
    for (lines, first, rest) in [
        ("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked", "", "2\r\nok\r\n0\r\n\r\n"),
        ("Cache-Control: max-age=60\r\nTransfer-Encoding: chunked", "", "2\r\nok\r\n0\r\n\r\n"),
        ("Cache-Control: max-age=60\r\nTransfer-Encoding: chunked", "2", "\r\nok\r\n0\r\n\r\n"),
        ("Cache-Control: max-age=60\r\nTransfer-Encoding: chunked", "2\r\n", "ok\r\n0\r\n\r\n"),
        ("Cache-Control: max-age=60\r\nContent-Length: 2", "", "ok"),
        ("Content-Length: 2", "", "ok"),
    ] {
        let origin = Steps::new(&[&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{first}"), rest], false).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut wire = Wire::asking(sidecar.address, "/a").await;
        let head = wire.head().await;
        assert!(head.starts_with("http/1.1 200 "), "{lines} {first:?}: {head}");
        origin.let_go(1);
        let body =
            if header(&head, "content-length") == "2" { wire.bytes(2).await } else { wire.chunks().await };
        assert_eq!(body, "ok", "{lines} {first:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_says_why_in_the_log_and_a_metric() {
    let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n";
    for (framing, rest, reason) in [
        ("Content-Length: 9\r\n\r\nok", "", "closed-in-body"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "", "closed-in-body"),
        ("Transfer-Encoding: chunked\r\n\r\n9\r\nok", "", "closed-in-body"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "zz\r\n", "malformed-body"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok", "ay\r\n0\r\n\r\n", "malformed-body"),
    ] {
        let origin = Steps::new(&[&format!("{head}{framing}"), rest], true).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut wire = Wire::to(sidecar.address).await;
        wire.say("GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n").await;
        assert!(wire.head().await.starts_with("http/1.1 200 "), "{framing:?}");
        origin.let_go(1);
        let body = String::from_utf8(wire.rest().await).unwrap();
        assert!(!body.contains("okay") && !body.ends_with("0\r\n\r\n"), "{framing:?}: {body}");
        until("the metric", async || (errors(&sidecar, reason).await == 1.0).then_some(())).await;
        let logged = sidecar.logged("a response of the application is incomplete").unwrap();
        assert!(logged.contains(&format!("\"{reason}\"")), "{framing:?}: {logged}");
        assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0, "{framing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_timeout_is_reported_as_such() {
    // The listener accepts no connection, and its queue is full.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        queue.push(stream);
    }
    let sidecar = Sidecar::bare(address).await;
    let answer = sidecar.get("/a").await;
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("connecting to the application timed out"), "{}", answer.body);
    assert_eq!(errors(&sidecar, "connect-timeout").await, 1.0);
    assert!(sidecar.logged("the application did not respond").unwrap().contains("\"connect-timeout\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_reset_connections_are_distinguished() {
    let origin = RawOrigin::start(|mut stream| async move {
        read_head(&mut stream).await;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let answer = sidecar.get("/a").await;
    assert_fails(&sidecar, &answer, "reset", "a reset").await;

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidecar = Sidecar::bare(nobody).await;
    let answer = sidecar.get("/a").await;
    assert_fails(&sidecar, &answer, "refused", "a refusal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_lenient_clients_accept_is_forwarded() {
    let close_delimited = |head: &str| format!("{head}\r\n\r\nok");
    for (said, ends, has) in [
        (with_length("X-Legacy : a\r\n"), false, "x-legacy: a"),
        (with_length("X-Legacy \t : a\r\n"), false, "x-legacy: a"),
        (with_length("A: b\x01c\r\n"), false, "a: b c"),
        (with_length("A: \x1b[1mb\x7f\r\n"), false, "a: [1mb"),
        (with_length("A: b\r\n c\r\n\t d\r\n"), false, "a: b c d"),
        (with_length(": x\r\nA: b\r\n"), false, "a: b"),
        (with_length("no colon\r\nA: b\r\n"), false, "a: b"),
        (with_length("Bad Name: x\r\n folded\r\nA: b\r\n"), false, "a: b"),
        (with_length(" leading: x\r\nA: b\r\n"), false, "a: b"),
        (with_length("A: b\r\n").replace("\r\n", "\n"), false, "a: b"),
        (with_length("A: b\r\n").replace("200 OK", "200"), false, "a: b"),
        (with_length("A: b\r\n").replace("200 OK", "200 "), false, "a: b"),
        (with_length("A: b\r\n").replace(" 200 OK", "  200   O\x02K"), false, "a: b"),
        (with_length("A: b\r\n").replace("1.1", "1.0"), false, "a: b"),
        (format!("\r\n{}", with_length("A: b\r\n")), false, "a: b"),
        (with_length("A: b\r\nContent-Length : 2\r\n"), false, "a: b"),
        (with_length("A: b\r\nTransfer-Encoding: identity\r\n"), false, "a: b"),
        (close_delimited("HTTP/1.1 200 OK\r\nA: b"), true, "a: b"),
        (close_delimited("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nA: b"), true, "a: b"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nA: b\r\n\r\n2\r\nok\r\n0\r\n\r\n".into(),
            false,
            "a: b",
        ),
    ] {
        let case = said.clone();
        let (_origin, sidecar) = before(said, ends).await;
        let (name, value) = has.split_once(": ").unwrap();
        for _ in 0..2 {
            let answer = sidecar.get("/a").await;
            assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "ok"), "{case:?}");
            assert_eq!(answer.header(name), value, "{case:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_cache_headers_keep_their_restrictions() {
    for line in [
        "Cache-Control : no-store",
        "Cache-Control\t: no-store",
        "Cache-Control: max-age=60,\r\n no-store",
        "Cache-Control: \x01no-store",
        "Set-Cookie : a=\x01b\r\nCache-Control: max-age=60, private",
        " Cache-Control: no-store",
        "Cache-Control\x01: no-store",
        "Vary : *",
    ] {
        let (_origin, sidecar) =
            before(format!("HTTP/1.1 200 OK\r\n{line}\r\nExpires: Fri, 01 Jan 2100 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok"), false)
                .await;
        for _ in 0..2 {
            let answer = sidecar.get("/a").await;
            assert_eq!(answer.hit(), None, "{line:?}");
            assert!([200, 502].contains(&answer.status.as_u16()), "{line:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_hides_another_in_a_doubtful_length_poisons_nothing() {
    for said in [
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\x01\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX\x01Length: 80\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ] {
        let origin = Steps::answering(
            move |head| match head.contains("/lie") {
                true => vec![said.into()],
                false => vec!["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhonest".into()],
            },
            false,
        )
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        for _ in 0..3 {
            assert_eq!(sidecar.get("/lie").await.body, "ok", "{said:?}");
            assert_eq!(sidecar.get("/b").await.body, "honest", "{said:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_other_than_chunked_is_a_502_and_not_stored() {
    for (coding, version, status) in [
        ("chunked", "1.1", 200),
        ("Chunked", "1.1", 200),
        ("identity, chunked", "1.1", 200),
        ("gzip, chunked", "1.1", 502),
        ("GZIP,Chunked", "1.1", 502),
        ("gzip\r\nTransfer-Encoding: chunked", "1.1", 502),
        ("deflate, gzip, chunked", "1.1", 502),
        ("chunked, gzip", "1.1", 502),
        ("chunked, identity", "1.1", 502),
        ("chunked, chunked", "1.1", 502),
        ("gzip", "1.1", 502),
        ("chunked;q=1", "1.1", 502),
        ("xchunked", "1.1", 502),
        ("chunked", "1.0", 502),
        ("gzip", "1.0", 502),
        ("gzip, chunked\r\nContent-Length: 2", "1.1", 502),
        ("chunked\r\nContent-Length: 2", "1.1", 200),
    ] {
        let (_origin, sidecar) = before(
            format!(
                "HTTP/{version} 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: {coding}\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            ),
            false,
        )
        .await;
        for _ in 0..2 {
            let answer = sidecar.get("/a").await;
            assert_eq!(answer.status, status, "{coding:?} {version}: {answer:?}");
            match status {
                200 => assert_eq!(answer.body, "ok", "{coding:?}"),
                _ => assert_fails(&sidecar, &answer, "transfer-coding", coding).await,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_coding_without_a_body_is_ignored() {
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nA: b\r\n\r\n";
    let (_origin, sidecar) = before(said, false).await;
    let answer = sidecar.request(http::Method::HEAD, "/a", &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.header("a")), (200, "b"));
    for status in ["204 No Content", "304 Not Modified"] {
        let (_origin, sidecar) = before(said.replace("200 OK", status), false).await;
        let answer = sidecar.get_with("/a", &[("if-none-match", "\"x\"")]).await;
        assert_eq!(answer.status.as_str(), &status[..3]);
        assert_eq!(answer.header("transfer-encoding"), "");
    }
}

fn many(lines: usize) -> Vec<(String, String)> {
    (0..lines).map(|number| (format!("x-{number}"), format!("value {number}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_with_many_header_lines_is_passed_on_and_stored_over_both_versions() {
    let origin = Origin::start(|seen| async move {
        let lines = many(seen.path[1..].parse().unwrap());
        let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        reply(&[&[("cache-control", "max-age=60")], &lines[..]].concat(), "ok")
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for lines in [99, 101, 300, 990] {
        // The test's own client takes a hundred.
        for expected in ["stored", "hit"] {
            let request = format!("GET /{lines} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
            let said = String::from_utf8(exchange(sidecar.address, request).await).unwrap();
            assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("\r\n\r\nok"), "{lines}: {said}");
            assert!(said.contains(expected), "{lines}: {said}");
            for (name, value) in many(lines) {
                assert!(said.contains(&format!("\r\n{name}: {value}\r\n")), "{lines}: {name}");
            }
        }
        let stream = TcpStream::connect(sidecar.address).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get(format!("http://shop.test/{lines}")).body(Empty::new()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(many(lines).iter().all(|(name, value)| response.headers()[name] == *value), "{lines}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        connection.abort();
    }
    let last = sidecar.get("/1100").await;
    assert_eq!(last.status, 502);
    assert!(last.body.contains("too many header lines"), "{}", last.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_its_body_off_is_no_failure_of_the_application() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let head = "PUT /a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(format!("{head}5\r\nhello\r\nzz").as_bytes()).await.unwrap();
    drop(client);
    until("the end of the response", async || {
        (sidecar.metric("larder_connections", &[]).await == 0.0).then_some(())
    })
    .await;
    for reason in ["refused", "closed-early", "reset", "other"] {
        assert_eq!(errors(&sidecar, reason).await, 0.0, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_head_is_understood_in_any_segmentation() {
    let said = "\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink : </a>\r\n\r\n\
                HTTP/1.1 200 OK\r\nX-Legacy : a\r\nContent-Length: 2\r\n\r\nok";
    let origin = RawOrigin::start(move |mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            for byte in said.as_bytes() {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for _ in 0..3 {
        let answer = sidecar.get("/a").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-legacy"), &*answer.body), (200, "a", "ok"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_reset_is_reported_as_such() {
    let origin = RawOrigin::start(|stream| async move {
        let service = service_fn(|_: Request<Incoming>| async {
            Err::<Response<Empty<Bytes>>, _>(std::io::Error::other("no"))
        });
        let _ =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let stream = TcpStream::connect(sidecar.address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("http://shop.test/a").body(Empty::new()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 502);
    assert_eq!(errors(&sidecar, "reset").await, 1.0);
    connection.abort();
}
