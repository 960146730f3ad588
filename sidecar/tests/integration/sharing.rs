//! Collapsed forwarding: one response of the application for all concurrent requests of a key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::future::join_all;
use http::Method;
use tokio::sync::Semaphore;

use super::harness::{Origin, Policy, Sidecar, Steps, Wire, header, reply, until};

const FIRST: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nfi";

/// Waits until a sidecar has accepted so many connections, besides those of the test's own.
async fn until_connected(sidecar: &Sidecar, count: u32) {
    until("the clients", async || {
        (sidecar.metric("larder_connections", &[]).await >= f64::from(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_concurrent_misses_are_one_request() {
    let origin = Steps::new(&[FIRST, "ll"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut clients = join_all((0..50).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    let mut collapsed = 0;
    for client in &mut clients {
        let head = client.head().await;
        assert_eq!(header(&head, "content-length"), "4", "{head}");
        collapsed += usize::from(header(&head, "cache-status").ends_with("; collapsed"));
        assert_eq!(client.bytes(2).await, "fi", "while the application holds the rest");
    }
    assert_eq!((origin.asked(), collapsed), (1, 49));
    origin.let_go(1);
    for client in &mut clients {
        assert_eq!(client.bytes(2).await, "ll");
    }
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_the_head_get_the_same_response() {
    let origin = Steps::new(&["", FIRST, "ll"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut clients = join_all((0..10).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    until_connected(&sidecar, 10).await;
    origin.let_go(2);
    for client in &mut clients {
        assert_eq!(client.answer().await.1, "fill");
    }
    assert_eq!(origin.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_client_reads_from_the_start() {
    let chunked =
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n";
    let origin = Steps::new(&[chunked, "2\r\ncd\r\n", "0\r\n\r\n"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut first = Wire::asking(sidecar.address, "/a").await;
    first.head().await;
    assert_eq!(first.chunk().await, "ab");
    origin.let_go(1);
    assert_eq!(first.chunk().await, "cd");
    let mut late = Wire::asking(sidecar.address, "/a").await;
    assert!(late.head().await.contains("; collapsed"));
    assert_eq!(late.chunk().await + &late.chunk().await, "abcd");
    origin.let_go(1);
    assert_eq!((first.chunk().await, late.chunk().await), (String::new(), String::new()));
    assert_eq!(origin.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_range_requests_are_served_beside_a_fill() {
    let origin = Steps::answering(
        |head| match head.split(' ').next() {
            Some("HEAD") => vec![FIRST.trim_end_matches("fi").into()],
            _ => vec![FIRST.into(), "ll".into()],
        },
        false,
    )
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut first = Wire::asking(sidecar.address, "/a").await;
    first.head().await;
    let head = sidecar.request(Method::HEAD, "/a", &[], "").await;
    assert_eq!((head.status.as_u16(), head.header("content-length"), head.body.as_str()), (200, "4", ""));
    origin.let_go(1);
    assert_eq!(first.bytes(4).await, "fill");
    let part = sidecar.get_with("/a", &[("range", "bytes=1-2")]).await;
    assert_eq!((part.status.as_u16(), part.body.as_str()), (206, "il"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_slows_no_other_client() {
    const LENGTH: usize = 12 << 20;
    let policy = Policy::new(
        "l1: {maxSize: 64Mi, maxObjectSize: 16Mi}\nroutes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 60s}",
    );
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
    let half = "x".repeat(LENGTH / 2);
    let origin = Steps::new(&[&(head + &half), &half], false).await;
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut slow = Wire::narrow(sidecar.address).await;
    slow.ask("/a").await;
    slow.head().await;
    let mut fast = join_all((0..3).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    for client in &mut fast {
        assert!(client.head().await.contains("; collapsed"));
    }
    origin.let_go(1);
    for client in &mut fast {
        assert_eq!(client.bytes(LENGTH).await.len(), LENGTH, "while the slow one reads nothing");
    }
    until("the response is stored", async || (sidecar.get("/a").await.hit().is_some()).then_some(())).await;
    assert_eq!(slow.bytes(LENGTH).await.len(), LENGTH);
    assert_eq!(origin.asked(), 1);
}

/// An application whose responses may not be shared, and each of which waits for a permit.
async fn unshared() -> (Origin, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[("cache-control", "no-store")], seen.number.to_string())
        }
    })
    .await;
    (origin, permits)
}

#[tokio::test(flavor = "multi_thread")]
async fn unshareable_response_lets_all_clients_through_at_once() {
    let (origin, permits) = unshared().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let everybody = join_all((0..20).map(|_| sidecar.get("/a")));
    let watching = async {
        until("the first", async || (origin.calls() == 1).then_some(())).await;
        until_connected(&sidecar, 20).await;
        permits.add_permits(1);
        // No client has a response yet, and all are connected.
        until("the others at once", async || (origin.calls() == 20).then_some(())).await;
        let late = async {
            until("a later client", async || (origin.calls() == 21).then_some(())).await;
            permits.add_permits(100);
        };
        tokio::join!(sidecar.get("/a"), late).0
    };
    let (answers, late) = tokio::join!(everybody, watching);
    let mut bodies: Vec<_> = answers.into_iter().chain([late]).map(|answer| answer.body).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 21, "each has its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_known_to_be_unshareable_is_not_waited_for() {
    let (origin, permits) = unshared().await;
    let sidecar = Sidecar::bare(origin.address).await;
    permits.add_permits(1);
    sidecar.get("/a").await;
    let everybody = join_all((0..20).map(|_| sidecar.get("/a")));
    let watching = async {
        until("all at once", async || (origin.calls() == 21).then_some(())).await;
        permits.add_permits(20);
    };
    let (answers, ()) = tokio::join!(everybody, watching);
    assert!(answers.iter().all(|answer| answer.cache_status().starts_with("larder; fwd=")));
}

#[tokio::test(flavor = "multi_thread")]
async fn unshareable_response_removes_no_variant() {
    let origin = Origin::start(|seen| async move {
        let control = if seen.header("accept-language") == "xx" { "no-store" } else { "max-age=60" };
        reply(&[("cache-control", control), ("vary", "accept-language")], seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.get_with("/a", &[("accept-language", "en")]).await.body, "1");
    assert_eq!(sidecar.get_with("/a", &[("accept-language", "xx")]).await.body, "2");
    let again = sidecar.get_with("/a", &[("accept-language", "en")]).await;
    assert_eq!((again.body.as_str(), again.hit()), ("1", Some("l1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_before_the_head_leaves_the_response_to_the_others() {
    let origin = Steps::new(&["", FIRST, "ll"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let first = Wire::asking(sidecar.address, "/a").await;
    origin.until_asked(1).await;
    let mut others = join_all((0..3).map(|_| Wire::asking(sidecar.address, "/a"))).await;
    until_connected(&sidecar, 4).await;
    drop(first);
    until_connected(&sidecar, 3).await;
    origin.let_go(2);
    for client in &mut others {
        assert_eq!(client.answer().await.1, "fill");
    }
    assert_eq!(origin.asked(), 1, "the response to the first request is the one that the others wait for");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_leaves_in_mid_body_ends_no_other_response() {
    let origin = Steps::new(&[FIRST, "ll"], false).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let mut first = Wire::asking(sidecar.address, "/a").await;
    first.head().await;
    let mut second = Wire::asking(sidecar.address, "/a").await;
    second.head().await;
    assert_eq!(second.bytes(2).await, "fi");
    let before = sidecar.metric("larder_connections", &[]).await;
    drop(first);
    until("the first client is gone", async || {
        (sidecar.metric("larder_connections", &[]).await < before).then_some(())
    })
    .await;
    origin.let_go(1);
    assert_eq!(second.bytes(2).await, "ll");
    assert_eq!((origin.asked(), sidecar.get("/a").await.hit()), (1, Some("l1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_another_variant_gets_its_own() {
    let origin = Steps::answering(
        |head| {
            let head = head.to_lowercase();
            let language = header(&head, "accept-language");
            let first = format!(
                "{}Vary: Accept-Language\r\nContent-Length: 4\r\n\r\n{language}",
                FIRST.split("Content-Length").next().unwrap()
            );
            vec![first, language.into()]
        },
        false,
    )
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let ask = |language| {
        let request = format!("GET /a HTTP/1.1\r\nHost: shop.test\r\nAccept-Language: {language}\r\n\r\n");
        async {
            let mut wire = Wire::to(sidecar.address).await;
            wire.say(request).await;
            let head = wire.head().await;
            let language = wire.bytes(2).await;
            (wire, language, head.contains("; collapsed"))
        }
    };
    let mut clients = Vec::new();
    for (language, shares) in [("en", false), ("de", false), ("de", true), ("en", true)] {
        let (wire, first, collapsed) = ask(language).await;
        assert_eq!((first.as_str(), collapsed), (language, shares));
        clients.push((wire, language));
    }
    assert_eq!(origin.asked(), 2);
    origin.let_go(2);
    for (mut wire, language) in clients {
        assert_eq!(wire.bytes(2).await, language);
    }
    for language in ["en", "de"] {
        let answer = sidecar.get_with("/a", &[("accept-language", language)]).await;
        let hit = answer.hit().is_some();
        assert_eq!((answer.body, hit), (language.repeat(2), true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_after_a_purge_never_joins_an_earlier_fill() {
    // Before the head of the older response, and in mid-body.
    for steps in [&["", FIRST, "ll"][..], &[FIRST, "ll"]] {
        let steps: Vec<_> = steps.iter().map(|&step| step.to_owned()).collect();
        let held = steps.len() - 2;
        let first = AtomicBool::new(true);
        let origin = Steps::answering(
            move |head| {
                if head.starts_with("PUT") {
                    vec!["HTTP/1.1 204 No Content\r\n\r\n".into()]
                } else if first.swap(false, Ordering::SeqCst) {
                    steps.clone()
                } else {
                    vec![FIRST.replace("fi", "new!")]
                }
            },
            false,
        )
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut older = Wire::asking(sidecar.address, "/a").await;
        origin.until_asked(1).await;
        assert_eq!(sidecar.request(Method::PUT, "/a", &[], "").await.status, 204);
        let mut newer = Wire::asking(sidecar.address, "/a").await;
        until_connected(&sidecar, 3).await;
        // The request may wait until the older response comes, and then goes forward itself.
        origin.let_go(held);
        assert_eq!(newer.answer().await.1, "new!");
        assert_eq!(origin.asked(), 3);
        origin.let_go(1);
        assert_eq!(older.answer().await.1, "fill", "the request came before the purge");
        let label = "reason=\"purged\"";
        until("the older one is not stored", async || {
            (sidecar.metric("larder_not_stored_total", &[label]).await == 1.0).then_some(())
        })
        .await;
        for _ in 0..3 {
            assert_eq!(sidecar.get("/a").await.body, "new!");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_dies_in_mid_body_cuts_off_every_client() {
    let chunked =
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n";
    for first in [FIRST, chunked] {
        let origin = Steps::new(&[first, ""], true).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let mut clients = join_all((0..5).map(|_| Wire::asking(sidecar.address, "/a"))).await;
        for client in &mut clients {
            assert!(client.head().await.starts_with("http/1.1 200"));
        }
        assert_eq!(origin.asked(), 1);
        origin.let_go(1);
        for client in &mut clients {
            let rest = String::from_utf8(client.rest().await).unwrap();
            assert!(rest.contains("fi") && !rest.ends_with("0\r\n\r\n"), "the client can tell: {rest}");
        }
        assert_eq!(sidecar.metric("larder_l1_entries", &[]).await, 0.0);
        assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"incomplete\""]).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_share_no_fill() {
    let (public, internal) =
        (Steps::new(&[FIRST, "ll"], false).await, Steps::new(&[FIRST, "ll"], false).await);
    let upstream = format!("http://127.0.0.1:{}", internal.address.port());
    let sidecar =
        Sidecar::launch(public.address, &["--listen", "127.0.0.1:0", "--upstream", &upstream]).await;
    let mut clients = Vec::new();
    for address in sidecar.addresses(2).await {
        let mut client = Wire::asking(address, "/a").await;
        assert!(!client.head().await.contains("; collapsed"));
        clients.push(client);
    }
    assert_eq!((public.asked(), internal.asked()), (1, 1));
}
