//! Plain exchanges, which the guard of their connection serves: the same bytes on both sides as on the general path.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Policy, RawOrigin, Sidecar, Steps, Wire, header, read_head, until};

/// No request matches it.
const SPEC: &str = r#"
routes: [{name: other, match: {path: "/other"}, ttl: 60s}]
application: {timeout: 1s}
"#;

/// A route takes what the requests ask for.
const ROUTED: &str = r#"
routes: [{name: all, match: {path: "/routed/{id}"}, ttl: 60s}]
application: {timeout: 1s}
"#;

/// Everything is served without the general path, as far as possible.
async fn direct(policy: &Policy, origin: std::net::SocketAddr) -> Sidecar {
    Sidecar::start(policy, origin).await
}

async fn general(policy: &Policy, origin: std::net::SocketAddr) -> Sidecar {
    Sidecar::launch(origin, &["--policy", policy.path().to_str().unwrap(), "--general-path"]).await
}

/// An application that says what it is told, and notes what it hears.
struct Parrot {
    origin: RawOrigin,
    told: Arc<Mutex<(String, bool)>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Parrot {
    async fn new() -> Self {
        let (told, heard) = (Arc::<Mutex<(String, bool)>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (says, notes) = (Arc::clone(&told), Arc::clone(&heard));
        let origin = RawOrigin::start(move |mut stream| {
            let (says, notes) = (Arc::clone(&says), Arc::clone(&notes));
            async move {
                loop {
                    let head = read_head(&mut stream).await;
                    if head.is_empty() {
                        return;
                    }
                    let lower = head.to_lowercase();
                    let mut body = Vec::new();
                    if let Ok(length) = header(&lower, "content-length").parse() {
                        body.resize(length, 0);
                        if stream.read_exact(&mut body).await.is_err() {
                            return;
                        }
                    } else if header(&lower, "transfer-encoding") == "chunked" {
                        while !body.ends_with(b"0\r\n\r\n") {
                            let Ok(byte) = stream.read_u8().await else { return };
                            body.push(byte);
                        }
                    }
                    let is_last = head.starts_with("GET /last ");
                    if is_last {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await.unwrap();
                        continue;
                    }
                    notes.lock().unwrap().push(format!("{} {}", plain(&head), decoded(&body)));
                    let (text, ends) = says.lock().unwrap().clone();
                    // The end comes in one segment with the last bytes.
                    socket2::SockRef::from(&stream).set_tcp_cork(ends).unwrap();
                    stream.write_all(text.as_bytes()).await.unwrap();
                    if ends {
                        return;
                    }
                }
            }
        })
        .await;
        Self { origin, told, heard }
    }

    /// Sends a request and a last one through a sidecar; returns what the application heard and what the client got.
    async fn exchange(
        &self,
        sidecar: &Sidecar,
        request: &str,
        said: &str,
        ends: bool,
    ) -> (Vec<String>, Vec<String>) {
        *self.told.lock().unwrap() = (said.to_owned(), ends);
        let mut wire = Wire::to(sidecar.address).await;
        wire.try_to_say(format!("{request}GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        let got = wire.rest().await;
        (std::mem::take(&mut self.heard.lock().unwrap()), responses(&got, request.starts_with("HEAD")))
    }
}

/// Returns a head without what may differ: the order and the case of names, times, and the bytes of lengths.
fn plain(head: &str) -> String {
    let mut lines = head.trim_end().lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let mut fields: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim()))
        .filter(|(name, _)| name != "date" && name != "age")
        .map(|(name, value)| {
            let members = value.split("; ").filter(|member| !member.starts_with("ttl="));
            format!("{name}: {}", members.collect::<Vec<_>>().join("; "))
        })
        .collect();
    fields.sort();
    format!("{first} {fields:?}")
}

/// Returns the data of a body, if that is chunked, and its trailers.
fn decoded(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).into_owned();
    let (mut rest, mut data) = (text.as_str(), String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        if size == 0 {
            return format!("{data} and {after:?}");
        }
        let Some(chunk) = after.get(..size) else { return format!("{data}{after} cut") };
        data.push_str(chunk);
        rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    text
}

fn responses(got: &[u8], is_to_head: bool) -> Vec<String> {
    let mut text = std::str::from_utf8(got).unwrap();
    let (mut found, mut has_body) = (Vec::new(), !is_to_head);
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        let lower = head.to_lowercase();
        let is_final = !head.starts_with("HTTP/1.1 1");
        let length = header(&lower, "content-length").parse().unwrap_or(0);
        let (body, rest) = if !is_final || !has_body {
            (String::new(), rest)
        } else if header(&lower, "transfer-encoding") == "chunked" {
            match rest.find("0\r\n\r\n") {
                Some(end) => (decoded(&rest.as_bytes()[..end + 5]), &rest[end + 5..]),
                None => (decoded(rest.as_bytes()), ""),
            }
        } else {
            (rest[..rest.len().min(length)].to_owned(), &rest[rest.len().min(length)..])
        };
        has_body |= is_final;
        found.push(format!("{} {body:?}", plain(head)));
        text = rest;
    }
    found
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread")]
async fn relayed_exchanges_are_those_of_the_general_path() {
    both_ways(SPEC, |_| "/a".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_of_a_route_are_those_of_the_general_path() {
    both_ways(ROUTED, |number| format!("/routed/{number}")).await;
}

/// Sends requests and responses of every form through a sidecar and through one with the general path alone; each case has a path of
/// its own, by its number, and is repeated, because the response may be stored.
async fn both_ways(spec: &str, path: fn(usize) -> String) {
    let policy = Policy::new(spec);
    let parrots = [Parrot::new().await, Parrot::new().await];
    let sidecars =
        [direct(&policy, parrots[0].origin.address).await, general(&policy, parrots[1].origin.address).await];
    let mut number = 0;
    let mut compare = async |request: &str, said: &str, ends| {
        number += 1;
        let request = request.replace("/a", &path(number));
        for _ in 0..2 {
            let [direct, general] =
                [0, 1].map(|way| parrots[way].exchange(&sidecars[way], &request, said, ends));
            assert_eq!(direct.await, general.await, "{request:.300} {said:.300}");
        }
    };
    let large = "x".repeat(200_000);
    let large_body = format!("Content-Length: {}\r\n\r\n{large}", large.len());
    let get = |lines: &str| format!("GET /a?b=c HTTP/1.1\r\nHost: shop\r\n{lines}\r\n");
    let head = "HEAD /a HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned();
    let post = |framed: &str| format!("POST /a HTTP/1.1\r\nHost: shop\r\n{framed}");
    let requests = [
        get(""),
        get("Accept: */*\r\nConnection: keep-alive\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.0 a\r\n"),
        get("X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\nx-forwarded-for: 192.0.2.2\r\n"),
        get("Connection: close, X-Own\r\nX-Own: 1\r\n"),
        get("TE: trailers\r\n"),
        get("If-None-Match: \"a\"\r\nAccept-Encoding: gzip,br;q=0.5\r\nAccept: text/html, */*\r\n"),
        get("Range: bytes=1-1\r\n"),
        get("Cache-Control: no-cache\r\nAuthorization: Basic YTpi\r\n"),
        get("Content-Length: 2\r\n\r\nok").trim_end().to_owned(),
        head.clone(),
        "OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned(),
        "OPTIONS /a HTTP/1.1\r\nHost: shop\r\nMax-Forwards: 3\r\n\r\n".to_owned(),
        "X-OWN /a HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned(),
        post("Content-Length: 5\r\n\r\nhello"),
        post("Content-Length: 0\r\n\r\n"),
        post("Content-Length: 05\r\n\r\nhello"),
        post("\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Secret: 1\r\n\r\n"),
        post("Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"),
        post(&large_body),
    ];
    for request in &requests {
        compare(request, OK, false).await;
    }
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n";
    for (said, ends) in [
        (OK.to_owned(), true),
        ("HTTP/1.1 404 Nothing Here\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nCache-Control: max-age=0\r\nContent-Length: 2\r\n\r\nok".to_owned(), false),
        ("HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok".to_owned(), false),
        ("HTTP/1.1 206 Part\r\nContent-Range: bytes 1-1/2\r\nContent-Length: 1\r\n\r\nk".to_owned(), false),
        ("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\noh".to_owned(), false),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n".to_owned(), false),
        (format!("HTTP/1.1 200 OK\r\n{large_body}"), false),
        (format!("{chunked}\r\n2;a=b\r\nok\r\n3\r\nabc\r\n0\r\n\r\n"), false),
        (format!("{chunked}Trailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"), false),
        (format!("{chunked}Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"), true),
        (format!("{chunked}\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len()), false),
        ("HTTP/1.0 200 Fine\r\nX-Case: Y\r\n\r\nok".to_owned(), true),
        (format!("HTTP/1.1 200 OK\r\n\r\n{large}"), true),
        ("HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\nok".to_owned(), true),
        ("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok".to_owned(), false),
        ("HTTP/1.1 200 OK\r\nX-Legacy : a\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok".to_owned(), false),
        (format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n{OK}"), false),
        (format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 2\r\n\r\nok", "y".repeat(20_000)), false),
        ("nonsense\r\n\r\n".to_owned(), true),
        ("HTTP/1.1 200 OK\r\nContent-".to_owned(), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok".to_owned(), true),
        ("HTTP/1.1 101 On\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".to_owned(), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok".to_owned(), true),
        (format!("{chunked}\r\nzz\r\nok"), true),
        (String::new(), true),
    ] {
        for request in [&get(""), &get("Range: bytes=1-1\r\n"), &head, &post("Content-Length: 5\r\n\r\nhello")] {
            // The general path ends the connection there; relayed, neither length is passed on.
            if request.starts_with("HEAD") && said.contains("Content-Length: 3") {
                continue;
            }
            compare(request, &said, ends).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_and_order_of_names_survive_a_relayed_exchange() {
    let origin =
        Steps::new(&["HTTP/1.1 200 Fine\r\nX-Odd: 1\r\nCONTENT-length: 2\r\nB: 2\r\n\r\nok"], false).await;
    let policy = Policy::new(SPEC);
    let sidecar = direct(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say("GET /a HTTP/1.1\r\nX-B: 1\r\nHOST: shop\r\na: 2\r\nConnection: close\r\n\r\n").await;
    let got = String::from_utf8(wire.rest().await).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 Fine\r\nX-Odd: 1\r\nCONTENT-length: 2\r\nB: 2\r\n"), "{got}");
    let heard = &origin.heads()[0];
    assert!(
        heard.starts_with("GET /a HTTP/1.1\r\nX-B: 1\r\nHOST: shop\r\na: 2\r\nx-forwarded-for: "),
        "{heard}"
    );
}

/// Returns what a metric counts of upstream errors.
async fn errors(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric("larder_upstream_errors_total", &[&format!("reason=\"{reason}\"")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_body_that_breaks_off_is_cut_counted_and_logged() {
    let policy = Policy::new(SPEC);
    for (framing, rest, reason) in [
        ("Content-Length: 9\r\n\r\nok", "", "closed-in-body"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "", "closed-in-body"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "zz\r\n", "malformed-body"),
    ] {
        let origin = Steps::new(&[&format!("HTTP/1.1 200 OK\r\n{framing}"), rest], true).await;
        let sidecar = direct(&policy, origin.address).await;
        let mut wire = Wire::asking(sidecar.address, "/a").await;
        assert!(wire.head().await.starts_with("http/1.1 200 "), "{framing:?}");
        origin.let_go(1);
        let body = String::from_utf8(wire.rest().await).unwrap();
        assert!(!body.ends_with("0\r\n\r\n"), "{framing:?}: {body}");
        until("the metric", async || (errors(&sidecar, reason).await == 1.0).then_some(())).await;
        assert!(sidecar.logged("a response of the application is incomplete").unwrap().contains(reason));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_breaks_off_at_once_is_cut_or_a_502() {
    let policy = Policy::new(SPEC);
    for (target, framing) in [
        ("/a", "Content-Length: 9\r\n\r\nok"),
        ("/a", "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),
        ("/other", "Content-Length: 9\r\nCache-Control: max-age=60\r\n\r\nok"),
    ] {
        let origin = Steps::new(&[&format!("HTTP/1.1 200 OK\r\n{framing}")], true).await;
        let sidecar = direct(&policy, origin.address).await;
        let mut wire = Wire::asking(sidecar.address, target).await;
        // The end may be known before anything was written.
        let head = wire.head().await;
        if !head.starts_with("http/1.1 502 ") {
            assert!(head.starts_with("http/1.1 200 "), "{framing:?}: {head}");
            let body = String::from_utf8(wire.rest().await).unwrap();
            assert!(body.contains("ok") && !body.ends_with("0\r\n\r\n"), "{framing:?}: {body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_application_that_is_silent_is_given_up() {
    let policy = Policy::new(SPEC);
    let origin = Steps::new(&["", OK], false).await;
    let sidecar = direct(&policy, origin.address).await;
    let mut wire = Wire::asking(sidecar.address, "/a").await;
    let (head, body) = wire.answer().await;
    assert!(head.starts_with("http/1.1 504 ") && body.contains("did not respond in time"), "{head}{body}");
    // A client that takes its time is none of the application's silence.
    wire.say("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nab").await;
    assert!(wire.is_silent_for(Duration::from_millis(1500)).await);
    wire.say("cd").await;
    origin.let_go(2);
    until("the write", async || (origin.asked() == 2).then_some(())).await;
    assert_eq!(errors(&sidecar, "timeout").await, 1.0);
    let origin = Steps::new(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", "cd"], false).await;
    let sidecar = direct(&policy, origin.address).await;
    let mut wire = Wire::asking(sidecar.address, "/a").await;
    wire.head().await;
    assert_eq!(wire.rest().await, b"ab");
    assert_eq!(errors(&sidecar, "timeout").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_ends_its_relayed_exchange() {
    let ended = Arc::new(Mutex::new(0));
    let count = Arc::clone(&ended);
    let origin = RawOrigin::start(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            let head = read_head(&mut stream).await;
            if head.starts_with("GET ") && stream.read_u8().await.is_err() {
                *count.lock().unwrap() += 1;
            }
        }
    })
    .await;
    let policy = Policy::new("routes: [{name: other, match: {path: \"/other\"}, ttl: 60s}]");
    let sidecar = direct(&policy, origin.address).await;
    for number in 1..=3 {
        let wire = Wire::asking(sidecar.address, "/a").await;
        until("the request", async || {
            (sidecar.metric("larder_requests_in_progress", &[]).await == 1.0).then_some(())
        })
        .await;
        drop(wire);
        until("the end of the exchange", async || (*ended.lock().unwrap() == number).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_response_is_relayed_while_the_request_goes_on() {
    let heard = Arc::new(Mutex::new(0));
    let count = Arc::clone(&heard);
    let origin = RawOrigin::start(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            read_head(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            let mut piece = vec![0; 64 << 10];
            while let Ok(read @ 1..) = stream.read(&mut piece).await {
                *count.lock().unwrap() += read;
            }
        }
    })
    .await;
    let policy = Policy::new(SPEC);
    let sidecar = direct(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    let length = 3 << 20;
    wire.say(format!("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n")).await;
    assert_eq!(wire.answer().await.1, "ok");
    wire.say(vec![b'x'; length]).await;
    until("the rest of the request", async || (*heard.lock().unwrap() == length).then_some(())).await;
    wire.ask("/b").await;
    assert_eq!(wire.answer().await.1, "ok", "the client's connection goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_body_of_a_relayed_request_is_refused() {
    let policy = Policy::new(SPEC);
    let origin = Steps::new(&["", OK], false).await;
    let sidecar = direct(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say("POST /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let got = String::from_utf8(wire.rest().await).unwrap();
    assert!(
        got.starts_with("HTTP/1.1 400 ") && got.contains("chunks of the request body are malformed"),
        "{got}"
    );
    assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{got}");
    drop(wire);
    until("the count", async || {
        let count = sidecar.metric("larder_refused_requests_total", &["reason=\"chunking\""]).await;
        (count == 1.0).then_some(())
    })
    .await;
    assert!(origin.heads().iter().all(|head| !head.starts_with("GET")));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_sidecar_finishes_relayed_exchanges_and_closes() {
    let policy = Policy::new(SPEC);
    let origin = Steps::new(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", "cd"], false).await;
    let sidecar = direct(&policy, origin.address).await;
    let mut begun = Wire::asking(sidecar.address, "/a").await;
    assert!(begun.head().await.starts_with("http/1.1 200 "));
    sidecar.terminate();
    until("the end of listening", async || {
        tokio::net::TcpStream::connect(sidecar.address).await.is_err().then_some(())
    })
    .await;
    origin.let_go(1);
    assert_eq!(begun.rest().await, b"abcd");
}
