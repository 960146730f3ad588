//! Interim responses (RFC 9110, section 15.2) over HTTP/2.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Request, Response};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    harness::{Policy, Sidecar, Steps, read_head, until},
    http2_hits::{ask, connect},
};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nConnection: close, X-Own\r\nX-Own: 1\r\nLarder-Purge: {\"everything\": true}\r\n\
     Link: </a.css>; rel=preload\r\nLink: </b.css>; rel=preload\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";

fn is_request(head: &str) -> bool {
    head.starts_with("GET ") || head.starts_with("POST ")
}

/// Starts an application that responds in these steps, and not to the probe for HTTP/2.
async fn in_steps(steps: &'static [&'static str]) -> Steps {
    let answer = move |head: &str| match is_request(head) {
        true => steps.iter().map(|&step| step.to_owned()).collect(),
        false => vec![FINAL.to_owned()],
    };
    Steps::answering(answer, false).await
}

/// Sends a request, and the stream for its body unless it has none.
async fn send(
    client: &SendRequest<Bytes>,
    request: http::request::Builder,
    path: &str,
    has_body: bool,
) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let mut client = client.clone().ready().await.unwrap();
    let request = request.uri(format!("http://shop.test{path}")).body(()).unwrap();
    client.send_request(request, !has_body).unwrap()
}

async fn interim(response: &mut ResponseFuture) -> Option<Response<()>> {
    let next = poll_fn(|context| response.poll_informational(context));
    tokio::time::timeout(TEST_TIMEOUT, next).await.expect("a response in time").map(Result::unwrap)
}

/// Returns the body of the final response.
async fn body(response: ResponseFuture) -> String {
    let read = async {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let (mut body, mut bytes) = (response.into_body(), vec![]);
        while let Some(data) = body.data().await {
            bytes.extend_from_slice(&data.unwrap());
        }
        String::from_utf8(bytes).unwrap()
    };
    tokio::time::timeout(TEST_TIMEOUT, read).await.expect("a body in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_precede_the_response_and_are_not_stored() {
    for route in ["{match: {path: /a}, name: a, ttl: 60s}", "{match: {path: /a}, name: a, pass: true}"] {
        let origin = in_steps(&[HINTS, "HTTP/1.1 102 Processing\r\n\r\n", HINTS, FINAL]).await;
        let policy = Policy::new(&format!("routes: [{route}]"));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let client = connect(sidecar.address, 1 << 20).await;
        let (mut response, _) = send(&client, Request::builder(), "/a", false).await;
        for expected in [103, 102, 103] {
            let interim = interim(&mut response).await.expect("an interim response");
            assert_eq!(interim.status(), expected, "while the application holds the rest");
            let links: Vec<_> =
                interim.headers().get_all("link").iter().map(|link| link.to_str().unwrap()).collect();
            let all: &[&str] = match expected {
                103 => &["</a.css>; rel=preload", "</b.css>; rel=preload"],
                _ => &[],
            };
            assert_eq!((links, interim.headers().len()), (all.to_vec(), all.len()));
            origin.let_go(1);
        }
        assert!(interim(&mut response).await.is_none());
        assert_eq!(body(response).await, "ok");
        let heads = origin.heads();
        assert!(!heads.iter().any(|head| head.to_lowercase().contains("larder-http2-stream")), "{heads:?}");
        if route.contains("ttl") {
            let (status, headers, _) = ask(&client, Method::GET, "/a").await;
            assert_eq!(status, 200);
            assert!(headers["cache-status"].to_str().unwrap().contains("larder; hit"), "{headers:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_lose_the_headers_that_the_policy_removes() {
    const TAGGED: &str =
        "HTTP/1.1 103 Early Hints\r\nSurrogate-Key: a\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let origin = Steps::answering(
        |head: &str| vec![if is_request(head) { [TAGGED, FINAL].concat() } else { FINAL.to_owned() }],
        false,
    )
    .await;
    let policy = Policy::new(
        "routes: [{name: a, match: {path: /a}, ttl: 60s, tagsFrom: {headers: [surrogate-key], remove: true}}]",
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for (method, path) in [(Method::GET, "/a"), (Method::GET, "/other"), (Method::POST, "/a")] {
        let request = Request::builder().method(method.clone());
        let (mut response, _) = send(&client, request, path, false).await;
        let interim = interim(&mut response).await.expect("an interim response");
        assert_eq!(interim.headers().keys().collect::<Vec<_>>(), ["link"], "{method} {path}");
        assert_eq!(body(response).await, "ok");
    }
    for (path, fields) in [("/a?1", ""), ("/other", ""), ("/other", "TE: trailers\r\n")] {
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let interim =
            tokio::time::timeout(TEST_TIMEOUT, read_head(&mut client)).await.unwrap().to_lowercase();
        assert!(interim.starts_with("http/1.1 103") && interim.contains("link:"), "{interim}");
        assert!(!interim.contains("surrogate-key"), "{path} {fields}: {interim}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_are_those_of_their_request() {
    let origin = Steps::answering(
        |head: &str| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let hints = (0..3).map(|_| format!("HTTP/1.1 103 Early Hints\r\nLink: <{path}>\r\n\r\n"));
            let own = if path.starts_with("/silent") { String::new() } else { hints.collect() };
            vec![format!("{own}HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())]
        },
        false,
    )
    .await;
    let policy = Policy::new("routes: [{name: hit, match: {path: \"/silent/hit\"}, ttl: 60s}]");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    ask(&client, Method::GET, "/silent/hit").await;
    let asks = (0..200).map(async |number| {
        let path = match number % 4 {
            0 => "/silent/hit".to_owned(),
            1 => format!("/silent/{number}"),
            _ => format!("/hints/{number}"),
        };
        let request = Request::builder().header("larder-http2-stream", "00000001");
        let (mut response, _) = send(&client, request, &path, false).await;
        let mut links = vec![];
        while let Some(interim) = interim(&mut response).await {
            links.push(interim.headers()["link"].to_str().unwrap().to_owned());
        }
        let expected = if number % 4 > 1 { vec![format!("<{path}>"); 3] } else { vec![] };
        assert_eq!(links, expected, "{path}");
        assert_eq!(body(response).await, path);
    });
    join_all(asks).await;
    assert!(origin.heads().iter().all(|head| !head.to_lowercase().contains("larder-http2-stream")));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_that_expects_100_continue_gets_it() {
    for expects in [true, false] {
        let origin = in_steps(&["HTTP/1.1 100 Continue\r\n\r\n", FINAL]).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let client = connect(sidecar.address, 1 << 20).await;
        let request = match expects {
            true => Request::builder().method(Method::POST).header("expect", "100-continue"),
            false => Request::builder().method(Method::POST),
        };
        let (mut response, mut upload) = send(&client, request, "/a", true).await;
        if expects {
            assert_eq!(interim(&mut response).await.expect("a 100").status(), 100);
        } else {
            let is_asked = async || origin.heads().iter().any(|head| is_request(head)).then_some(());
            until("a request", is_asked).await;
            let next = poll_fn(|context| response.poll_informational(context));
            assert!(tokio::time::timeout(Duration::from_millis(300), next).await.is_err());
        }
        upload.send_data(Bytes::from_static(b"abc"), true).unwrap();
        origin.let_go(1);
        assert_eq!(body(response).await, "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_is_part_of_the_key_is_asked_for_with_100_continue() {
    let origin = Steps::new(&[FINAL], false).await;
    let policy =
        Policy::new("routes: [{name: a, match: {path: /a, methods: [POST]}, ttl: 60s, key: {body: {}}}]");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    let request = Request::builder().method(Method::POST).header("expect", "100-continue");
    let (mut response, mut upload) = send(&client, request, "/a", true).await;
    assert_eq!(interim(&mut response).await.expect("a 100").status(), 100);
    upload.send_data(Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(body(response).await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_to_a_request_that_was_given_up_disturb_nobody() {
    let origin = Steps::answering(
        |head: &str| match head.starts_with("GET /given-up") {
            true => [&[HINTS; 50][..], &[FINAL]].concat().into_iter().map(ToOwned::to_owned).collect(),
            false => vec![FINAL.to_owned()],
        },
        false,
    )
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for round in 0..20 {
        let (mut response, mut upload) =
            send(&client, Request::builder(), &format!("/given-up/{round}"), false).await;
        assert_eq!(interim(&mut response).await.expect("an interim response").status(), 103);
        origin.let_go(round);
        upload.send_reset(h2::Reason::CANCEL);
        drop((response, upload));
        origin.let_go(50 - round);
        assert_eq!(ask(&client, Method::GET, &format!("/next/{round}")).await.0, 200);
    }
}
