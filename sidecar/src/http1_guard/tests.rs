//! hyper on top of the guard, over a pipe.

use std::{convert::Infallible, future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use proptest::{collection::vec, prelude::*};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::yield_now,
};

use super::*;

/// Responds immediately to targets that begin with `/now`, and returns large bodies separately.
struct Now;

/// No exchange: those are tested against real applications.
#[derive(Debug)]
enum Never {}

impl Exchange for Never {
    fn has_room(&self) -> bool {
        match *self {}
    }

    fn add(&mut self, _: &[u8]) {
        match *self {}
    }

    fn complete(&mut self) {
        match *self {}
    }

    fn reject(&mut self, _: RequestError) {
        match *self {}
    }

    fn send(&mut self, _: &mut Context<'_>) {
        match *self {}
    }

    fn has_sent(&self) -> bool {
        match *self {}
    }

    fn poll(&mut self, _: &mut Context<'_>, _: &mut Vec<u8>) -> Poll<io::Result<Part>> {
        match *self {}
    }
}

impl ImmediateResponder for Now {
    type Exchange = Never;

    fn exchange(&mut self, _: &Head<'_>, _: BodyKind) -> Option<Never> {
        None
    }

    fn respond(&mut self, head: &Head<'_>, output: &mut Vec<u8>) -> Option<Bytes> {
        if !head.target.starts_with("/now") {
            return None;
        }
        let body = body_of(head.target);
        output.extend_from_slice(
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(),
        );
        if head.target.starts_with("/now-large") {
            return Some(body.into());
        }
        output.extend_from_slice(body.as_bytes());
        Some(Bytes::new())
    }
}

/// Returns the body of the response to `target`, which ends in the body's length.
fn body_of(target: &str) -> String {
    let length = target.rsplit('/').next().unwrap().parse().unwrap();
    target.chars().cycle().take(length).collect()
}

#[derive(Clone, Debug)]
enum Ask {
    Now(usize),
    NowLarge(usize),
    /// A response by hyper, after this many yields and interim responses.
    Later(usize, u8, u8),
    /// A request with a body, chunked or not, that is echoed.
    Body(usize, bool),
    EmptyLine,
}

impl Ask {
    fn text(&self) -> String {
        let get = |target: String| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        match self {
            Self::Now(length) => get(format!("/now/{length}")),
            Self::NowLarge(length) => get(format!("/now-large/{length}")),
            Self::Later(length, turns, interims) => get(format!("/later/{turns}/{interims}/{length}")),
            Self::Body(length, true) => {
                let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "G".repeat(*length));
                format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
            }
            Self::Body(length, false) => {
                let body = "G".repeat(*length);
                format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
            }
            Self::EmptyLine => "\r\n".into(),
        }
    }

    /// Returns the expected number of interim responses, and the expected body.
    fn expected(&self) -> Option<(u8, String)> {
        match self {
            Self::Now(length) => Some((0, body_of(&format!("/now/{length}")))),
            Self::NowLarge(length) => Some((0, body_of(&format!("/now-large/{length}")))),
            Self::Later(length, turns, interims) => {
                Some((*interims, body_of(&format!("/later/{turns}/{interims}/{length}"))))
            }
            Self::Body(length, _) => Some((0, "G".repeat(*length))),
            Self::EmptyLine => None,
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    handoff: Arc<Handoff>,
) -> Result<Response<ReleasingBody<Full<Bytes>>>, Infallible> {
    let target = request.uri().path().to_owned();
    let body = if target == "/echo" {
        request.into_body().collect().await.unwrap().to_bytes()
    } else {
        let mut numbers = target.split('/').skip(2).map(|number| number.parse::<u8>().unwrap_or(0));
        let (turns, interims) = (numbers.next().unwrap(), numbers.next().unwrap());
        for _ in 0..turns {
            yield_now().await;
        }
        for _ in 0..interims {
            handoff.send_interim(StatusCode::EARLY_HINTS, &http::HeaderMap::new(), &[]);
            yield_now().await;
        }
        body_of(&target).into()
    };
    Ok(Response::new(handoff.releasing(Full::new(body))))
}

/// Serves a connection to its end, by the guard alone and then through hyper.
async fn serve(mut guard: Http1Guard<DuplexStream, Now>, handoff: Arc<Handoff>) -> hyper::Result<()> {
    if let Ok(Alone::NeedsHyper) = poll_fn(|context| guard.poll_alone(context)).await {
        let service = service_fn(move |request| answer(request, Arc::clone(&handoff)));
        http1::Builder::new().header_read_timeout(None).serve_connection(guard, service).await?;
    }
    Ok(())
}

/// Sends `pieces` through a pipe of `room` bytes, and reads to the end of the connection.
async fn exchange(pieces: Vec<Vec<u8>>, room: usize) -> String {
    let (client, server) = tokio::io::duplex(room);
    let handoff = Arc::<Handoff>::default();
    let guard = Http1Guard::new(server, &[], Now, Arc::clone(&handoff));
    let serving = serve(guard, handoff);
    let (mut reader, mut writer) = tokio::io::split(client);
    let sending = async {
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
            yield_now().await;
        }
    };
    let reading = async {
        let mut answers = Vec::new();
        let _ = reader.read_to_end(&mut answers).await;
        String::from_utf8(answers).unwrap()
    };
    let all = async { tokio::join!(serving, sending, reading).2 };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("all answers in time")
}

/// Splits a text into responses, each with the number of interim responses before it.
fn answers(mut text: &str) -> Vec<(u8, String)> {
    let (mut answers, mut interims) = (Vec::new(), 0);
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        if head.starts_with("HTTP/1.1 103") {
            interims += 1;
            text = rest;
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let (body, rest) = rest.split_at(length.parse().unwrap());
        answers.push((interims, body.to_owned()));
        (interims, text) = (0, rest);
    }
    assert_eq!(text, "");
    answers
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn asks() -> impl Strategy<Value = Ask> {
    prop_oneof![
        3 => (0..300_usize).prop_map(Ask::Now),
        1 => (0..100_000_usize).prop_map(Ask::NowLarge),
        3 => (0..3000_usize, 0..6_u8, 0..3_u8).prop_map(|(length, turns, interims)| Ask::Later(length, turns, interims)),
        2 => (1..20_000_usize, any::<bool>()).prop_map(|(length, chunked)| Ask::Body(length, chunked)),
        1 => Just(Ask::EmptyLine),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_response_comes_whole_and_in_order(
        asks in vec(asks(), 1..25),
        cuts in vec(1..4000_usize, 0..60),
        room in prop_oneof![1..64_usize, 64..70_000_usize],
    ) {
        let mut text: Vec<u8> = asks.iter().flat_map(|ask| ask.text().into_bytes()).collect();
        text.extend_from_slice(b"GET /later/0/0/3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut pieces = Vec::new();
        for cut in cuts {
            let rest = text.split_off(cut.min(text.len()));
            pieces.push(std::mem::replace(&mut text, rest));
        }
        pieces.push(text);
        pieces.retain(|piece| !piece.is_empty());
        let expected: Vec<_> =
            asks.iter().filter_map(Ask::expected).chain([(0, body_of("/later/0/0/3"))]).collect();
        prop_assert_eq!(answers(&run(exchange(pieces, room))), expected);
    }
}

#[test]
fn few_requests_get_the_same_responses_in_any_segmentation() {
    let text = [Ask::Now(5), Ask::Later(7, 1, 1), Ask::EmptyLine, Ask::Body(3, true), Ask::Now(2)]
        .map(|ask| ask.text())
        .concat()
        + "GET /later/0/0/3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let whole = run(exchange(vec![text.clone().into_bytes()], 1 << 16));
    let whole = answers(&whole);
    assert_eq!(whole.len(), 5);
    for cut in 1..text.len() {
        let (before, after) = text.split_at(cut);
        let pieces = vec![before.into(), after.into()];
        assert_eq!(answers(&run(exchange(pieces, 1 << 16))), whole, "cut at {cut}");
    }
}

#[test]
fn refusal_follows_the_responses_before_it() {
    let asks = [Ask::Now(5), Ask::Later(7, 3, 0)].map(|ask| ask.text()).concat();
    let text = run(exchange(
        vec![
            (asks + "GET /now/3 HTTP/1.1\r\nbad\r\n\r\nGET /now/3 HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(),
        ],
        100,
    ));
    let (before, refusal) = text.split_once("HTTP/1.1 400 ").unwrap();
    assert_eq!(answers(before).len(), 2);
    assert_eq!(refusal.matches("HTTP/1.1").count(), 1, "in what it says, and nothing after: {refusal}");
}

#[test]
fn invalid_request_is_refused_even_on_the_fast_path() {
    let long = format!("GET /now{}/3 HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(32 << 10));
    for (text, status) in [
        ("GET /now/3#b/3 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /now/3 HTTP/1.1\r\n\r\n", "400"),
        ("GET /now/3 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        ("GET /now/3 HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
        (&long, "414"),
    ] {
        let answer = run(exchange(vec![text.into()], 1 << 16));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?}: {answer}");
    }
}

#[test]
fn an_idle_connection_ends() {
    let text = run(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let handoff = Arc::<Handoff>::default();
        let mut guard = Http1Guard::new(server, &[], Now, Arc::clone(&handoff));
        guard.idle_step = Duration::from_millis(1);
        let serving = serve(guard, handoff);
        let asks = [Ask::Now(3), Ask::Later(3, 3, 0)].map(|ask| ask.text()).concat();
        client.write_all(asks.as_bytes()).await.unwrap();
        let mut text = String::new();
        let both = async { tokio::join!(serving, client.read_to_string(&mut text)) };
        let (served, read) =
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("an end in time");
        served.unwrap();
        read.unwrap();
        text
    });
    assert_eq!(answers(&text).len(), 2);
}

#[test]
fn a_connection_that_is_used_is_not_idle() {
    run(async {
        let mut guard = Http1Guard::new(tokio::io::duplex(1).0, &[], Now, Arc::default());
        guard.idle_step = Duration::from_millis(1);
        let mut context = Context::from_waker(std::task::Waker::noop());
        for is_used in [true, true, false] {
            assert!(!guard.is_forgotten(&mut context));
            guard.idle.as_mut().expect("it runs").await;
            guard.used = is_used;
        }
        assert!(guard.is_forgotten(&mut context));
    });
}
