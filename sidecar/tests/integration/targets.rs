//! Targets with bytes that RFC 3986 does not allow there, and that applications take.

use tokio::io::AsyncWriteExt;

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
            // Twice: what is stored must not stand in for another spelling.
            for _ in 0..2 {
                let behind = parts(&exchange(sidecar.address, request("GET", target)).await);
                let of_page = |(status, body): &(String, Vec<u8>)| {
                    // How an error's body is framed is each server's own.
                    (status.clone(), if status == "200" { body.clone() } else { vec![] })
                };
                assert_eq!(of_page(&behind), of_page(&alone), "{:?}", target.escape_ascii().to_string());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_target_reaches_the_application_byte_for_byte_and_is_not_stored() {
    let origin = Steps::answering(
        |_: &str| vec!["HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok".into()],
        true,
    )
    .await;
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
