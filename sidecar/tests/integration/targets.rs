//! Targets with bytes that RFC 3986 does not allow there, and that applications accept.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::harness::{Application, Policy, RawOrigin, Sidecar, Steps, exchange};

const TARGETS: [&[u8]; 14] = [
    b"/items?filter={\"a\":1}",
    b"/items?q=<b>",
    b"/items?q=<script>\"'`|^\\{}[]",
    b"/items/<b>",
    b"/a`b",
    b"/a|b",
    b"/a^b",
    b"/a\"b{c}",
    b"/caf\xe9",
    b"/caf\xc3\xa9",
    b"/caf\xe9?q=\xff\xfe",
    b"/items?q=\xe9&r=%3Cb%3E",
    b"/items?q=%zz<",
    b"/api/users/7?q=`<>",
];

const TEST_TIMEOUT: Duration = Duration::from_secs(15);

fn request(method: &str, target: &[u8]) -> Vec<u8> {
    let rest = b" HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    [method.as_bytes(), b" ", target, rest].concat()
}

/// The status and the body of a response, as bytes.
fn parts(answer: &[u8]) -> (String, Vec<u8>) {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head.split(' ').nth(1).unwrap().to_owned(), answer[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_application_responds_to_any_target_as_without_the_sidecar() {
    for application in [Application::express().await, Application::go().await, Application::nginx().await] {
        let sidecar = Sidecar::bare(application.address).await;
        for target in TARGETS {
            let alone = parts(&exchange(application.address, request("GET", target)).await);
            // Twice, because a stored response must not be served for another spelling.
            for _ in 0..2 {
                let behind = parts(&exchange(sidecar.address, request("GET", target)).await);
                let of_page = |(status, body): &(String, Vec<u8>)| {
                    // The framing of an error's body is each server's own.
                    (status.clone(), if status == "200" { body.clone() } else { vec![] })
                };
                assert_eq!(of_page(&behind), of_page(&alone), "{:?}", target.escape_ascii().to_string());
            }
        }
    }
}

/// An application whose responses may all be stored.
async fn cacheable() -> Steps {
    Steps::answering(
        |_: &str| vec!["HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok".into()],
        true,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_target_reaches_the_application_byte_for_byte_and_is_not_stored() {
    let origin = cacheable().await;
    let policy = Policy::new("routes: [{name: all, match: {path: \"/{item}\"}, ttl: 60s}]");
    for sidecar in [Sidecar::bare(origin.address).await, Sidecar::start(&policy, origin.address).await] {
        for target in ["/items?filter={\"a\":1}", "/a`b", "/a?q=<b>"] {
            for method in ["GET", "PUT", "GET"] {
                let before = origin.heads().len();
                let answer = exchange(sidecar.address, request(method, target.as_bytes())).await;
                assert_eq!(parts(&answer).0, "200", "{target}");
                let heads = origin.heads();
                assert_eq!(heads.len(), before + 1, "{method} {target}");
                let line = format!("{method} {target} HTTP/1.1\r\n");
                assert!(heads[before].starts_with(&line), "{}", heads[before]);
            }
        }
        // The spelling that may be stored is another one.
        for expected in ["stored", "hit"] {
            let answer = exchange(sidecar.address, request("GET", b"/a?q=%3Cb%3E")).await;
            assert!(String::from_utf8_lossy(&answer).contains(expected), "{expected}");
        }
        let answer = exchange(sidecar.address, request("GET", b"/a?q=<b>")).await;
        assert!(!String::from_utf8_lossy(&answer).contains("hit"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_has_the_version_of_the_clients_connection() {
    let origin = RawOrigin::start(|mut stream| async move {
        super::harness::read_head(&mut stream).await;
        let answer = "HTTP/1.0 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (method, path) in [("GET", &b"/a"[..]), ("GET", b"/a"), ("POST", b"/a"), ("GET", b"/<")] {
        let answer = exchange(sidecar.address, request(method, path)).await;
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_target_in_absolute_form_reaches_the_application_in_origin_form() {
    for application in [Application::express().await, Application::go().await, Application::nginx().await] {
        let sidecar = Sidecar::bare(application.address).await;
        for target in TARGETS {
            let alone = parts(&exchange(application.address, request("GET", target)).await);
            for start in [&b"http://shop.test"[..], b"HTTP://shop.test:80"] {
                let absolute = [start, target].concat();
                let behind = parts(&exchange(sidecar.address, request("GET", &absolute)).await);
                let name = absolute.escape_ascii().to_string();
                assert_eq!(behind.0, alone.0, "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_target_passes_in_any_form_method_and_version() {
    let origin = Steps::answering(
        |head: &str| {
            let body = if head.starts_with("HEAD ") { "" } else { "ok" };
            vec![format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\n{body}")]
        },
        true,
    )
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (target, expected) in [
        ("http://shop.test/items?q=<b>", "/items?q=<b>"),
        ("https://shop.test:8443/a`b|c^d", "/a`b|c^d"),
        ("http://shop.test?q=<b>", "/?q=<b>"),
        ("/items?q=<b>", "/items?q=<b>"),
    ] {
        for method in ["GET", "HEAD", "POST", "OPTIONS", "GET"] {
            for version in ["1.0", "1.1"] {
                let before = origin.heads().len();
                let head = format!(
                    "{method} {target} HTTP/{version}\r\nHost: other.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let answer = exchange(sidecar.address, head).await;
                assert_eq!(parts(&answer).0, "200", "{method} {target} {version}");
                let heads = origin.heads();
                assert_eq!(heads.len(), before + 1, "{method} {target} {version}");
                let line = format!("{method} {expected} HTTP/1.1\r\n");
                assert!(heads[before].starts_with(&line), "{}", heads[before]);
                let host = if target.starts_with('/') { "other.test" } else { "shop.test" };
                let has_host = heads[before].to_lowercase().contains(&format!("\r\nhost: {host}"));
                assert!(has_host, "{}", heads[before]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_and_a_host_with_odd_bytes_stay_refused() {
    let origin =
        Steps::answering(|_: &str| vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()], true).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for target in [
        &b"/a<b#c"[..],
        b"/a#b",
        b"/a?<#b",
        b"http://shop.test/a<#b",
        b"http://shop<.test/a",
        b"http://shop<.test/a<",
        b"http://sh\xe9p.test/a",
        b"http://sh\"p/\"",
        b"http://me@shop.test/<",
        b"ftp://shop.test/<",
        b"shop.test/<",
        b"<",
    ] {
        let answer = exchange(sidecar.address, request("GET", target)).await;
        assert_eq!(parts(&answer).0, "400", "{}", target.escape_ascii());
    }
    for host in [&b"shop<"[..], b"sh\xe9p", b"a\"b", b"a`b", b"{a}", b"a|b", b"a^b"] {
        let head = [b"GET /a< HTTP/1.1\r\nConnection: close\r\nHost: ", host, b"\r\n\r\n"].concat();
        assert_eq!(parts(&exchange(sidecar.address, head).await).0, "400", "{}", host.escape_ascii());
    }
    assert_eq!(origin.heads().len(), 0);
}

/// Outcome of a target over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A response of 200.
    Ok,
    /// Another response.
    Refused,
    /// The stream is reset.
    Reset,
    /// The connection ends.
    GoAway,
}

/// Sends a target over HTTP/2 byte by byte, because no library does.
async fn over_http2(sidecar: &Sidecar, target: &[u8]) -> Outcome {
    let exchange = async {
        let mut stream = TcpStream::connect(sidecar.address).await.unwrap();
        // GET, http, then :path and :authority as literals that no table takes (RFC 7541, section 6.2.2).
        let mut block = vec![0x82, 0x86];
        for (name, value) in [(4, target), (1, b"shop.test")] {
            block.extend([name, u8::try_from(value.len()).unwrap()]);
            block.extend(value);
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let head = [0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1];
        stream.write_all(&[&preface[..], &head, &block].concat()).await.unwrap();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            match (head[3], head[8]) {
                // 200 is the eighth of the static table.
                (1, 1) if payload.contains(&0x88) => return Outcome::Ok,
                (1, 1) => return Outcome::Refused,
                (3, 1) => return Outcome::Reset,
                (7, 0) => return Outcome::GoAway,
                _ => {}
            }
        }
    };
    timeout(TEST_TIMEOUT, exchange).await.expect("a frame in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_target_over_http2_passes_unless_the_library_resets_it() {
    let origin = cacheable().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for target in [
        "/items?filter={%22a%22:1}",
        "/items?q='`|^\\{}[]",
        "/a|b",
        "/a^b",
        "/a\\b",
        "/a\"b{c}",
        "/caf\u{e9}",
        "/a?q=\u{e9}",
    ] {
        assert_eq!(over_http2(&sidecar, target.as_bytes()).await, Outcome::Ok, "{target}");
        let heads = origin.heads();
        let head = heads.last().unwrap();
        assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{head}");
    }
    let before = origin.heads().len();
    for (target, outcome) in [
        (&b"/items?filter={\"a\":1}"[..], Outcome::Reset),
        (b"/items?q=<b>", Outcome::Reset),
        (b"/<", Outcome::Reset),
        (b"/>", Outcome::Reset),
        (b"/a`b", Outcome::Reset),
        (b"/caf\xe9", Outcome::GoAway),
        (b"/a?q=\xe9", Outcome::GoAway),
    ] {
        assert_eq!(over_http2(&sidecar, target).await, outcome, "{}", target.escape_ascii());
    }
    assert_eq!(origin.heads().len(), before);
    // The library drops a fragment: the application never gets one.
    assert_eq!(over_http2(&sidecar, b"/fragment#x").await, Outcome::Ok);
    assert!(origin.heads().last().unwrap().starts_with("GET /fragment HTTP/1.1\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_target_is_explained_as_it_is_served() {
    let origin =
        Steps::answering(|_: &str| vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()], true).await;
    let policy = Policy::new("routes: [{name: all, match: {path: \"/{item}\"}, ttl: 60s}]");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (target, reason) in [
        ("/items?q=<b>", Some("target")),
        ("?q=<b>", Some("no-route")),
        ("/items?filter={\"a\":1}", Some("target")),
        ("/a`b", Some("target")),
        ("/a|b^c{d}", None),
        ("/\u{e9}", None),
    ] {
        let body = json!({"url": format!("http://shop.test{target}")}).to_string().leak();
        let explained = sidecar.with_token(Method::POST, "/explain", body).await;
        assert_eq!(explained.status, 200, "{target}: {}", explained.body);
        let explained: Value = serde_json::from_str(&explained.body).unwrap();
        assert_eq!(explained["bypass"], json!(reason), "{target}");
        let absolute = format!("http://shop.test{target}");
        let served = exchange(sidecar.address, request("GET", absolute.as_bytes())).await;
        let served = String::from_utf8_lossy(&served);
        assert!(served.starts_with("HTTP/1.1 200 "), "{target}: {served}");
        assert!(
            reason.is_none_or(|reason| served.contains(&format!("detail={reason}"))),
            "{target}: {served}"
        );
    }
    for url in
        ["http://shop.test/a<#b", "http://shop.test/a b<", "http://shop.test/a\n<", "http://sh<p.test/"]
    {
        let body = json!({"url": url}).to_string().leak();
        assert_eq!(sidecar.with_token(Method::POST, "/explain", body).await.status, 400, "{url}");
    }
}
