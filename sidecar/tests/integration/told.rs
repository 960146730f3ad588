//! Purges that responses of the application ask for.

use std::sync::Arc;

use http::{Method, Request, Version};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Semaphore};

use super::{
    harness::{Origin, Policy, RawOrigin, Sidecar, read_head, reply, two, until},
    http2_hits::connect,
};

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"], bypass: {headers: {x-skip: "1"}}}
invalidation:
  fromResponses: true
  onWrite:
  - {match: {path: "/ruled/{id}"}, purge: {tags: [none]}}
"#;

const SAYS: (&str, &str) = ("x-say", r#"Larder-Purge: {"tags": ["page:kept"]}"#);

/// Declares the field to be for the next recipient, which the sidecar is.
const HOP: (&str, &str) = ("x-say", "connection: larder-purge");

#[tokio::test(flavor = "multi_thread")]
async fn response_on_any_path_purges_before_it_leaves_and_loses_the_header() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(SPEC);
    let [a, b] = &two(&policy, &origin).await;
    let client = connect(a.address, 1 << 20).await;
    for (method, path, fields, what) in [
        (Method::GET, "/miss", &[SAYS][..], "miss"),
        (Method::GET, "/miss-2", &[SAYS, ("cookie", "session=1")], "miss with credentials"),
        (Method::GET, "/bypass", &[SAYS, ("x-skip", "1")], "bypass"),
        (Method::GET, "/no/route", &[SAYS], "pass"),
        (Method::GET, "/no/route", &[SAYS, ("te", "trailers")], "pass on the general path"),
        (Method::GET, "/hop", &[SAYS, HOP], "miss with the field as an option of Connection"),
        (Method::GET, "/no/route", &[SAYS, HOP], "pass with the field as an option of Connection"),
        (Method::HEAD, "/no/route", &[SAYS], "HEAD"),
        (Method::GET, "/no/route", &[SAYS, ("x-status", "500")], "error"),
        (Method::GET, "/failing", &[SAYS, ("x-status", "503")], "error of a route"),
        (Method::POST, "/no/rule", &[SAYS], "write without a rule"),
        (Method::PUT, "/ruled/1", &[SAYS], "write with a rule"),
        (Method::DELETE, "/no/rule", &[SAYS, ("x-status", "403")], "refused write"),
        (Method::GET, "/two", &[("x-say", r#"larder-purge: {"tags": ["x"]}, {"paths": ["/kept"]}"#)], "list"),
        (Method::GET, "/all", &[("x-say", r#"larder-purge: {"everything": true}"#)], "everything"),
        (Method::GET, "/http2", &[], "HTTP/2"),
    ] {
        let before = a.get("/kept").await.body;
        until("both have it", async || (b.get("/kept").await.body == before).then_some(())).await;
        if what == "HTTP/2" {
            let request = Request::builder().uri("http://shop.test/http2").version(Version::HTTP_2);
            let request = request.header(SAYS.0, SAYS.1).body(()).unwrap();
            let mut client = client.clone().ready().await.unwrap();
            let response = client.send_request(request, true).unwrap().0.await.unwrap();
            assert!(response.headers().get("larder-purge").is_none());
        } else {
            let answer = a.request(method, path, fields, "").await;
            assert_eq!(answer.header("larder-purge"), "", "{what}");
        }
        for sidecar in [b, a] {
            assert_ne!(sidecar.get("/kept").await.body, before, "{what}");
        }
    }
    // What was stored says nothing any more.
    a.get_with("/again", &[SAYS]).await;
    let before = a.get("/kept").await.body;
    let hit = a.get("/again").await;
    assert_eq!((hit.hit().is_some(), hit.header("larder-purge")), (true, ""), "{hit:?}");
    assert_eq!(a.get("/kept").await.body, before);
    assert!(a.metric("larder_purges_total", &["origin=\"response\""]).await >= 13.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn softly_purged_response_is_stale() {
    let spec = SPEC.replace("l2: ", "# ").replace("bypass:", "staleWhileRevalidate: 60s, bypass:");
    let origin = Origin::obedient().await;
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let before = sidecar.get("/kept").await.body;
    sidecar
        .get_with("/no/route", &[("x-say", r#"larder-purge: {"tags": ["page:kept"], "soft": true}"#)])
        .await;
    assert_eq!(sidecar.get("/kept").await.body, before, "it is served while it is refreshed");
    until("it is refreshed", async || (sidecar.get("/kept").await.body != before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn response_purges_nothing_unless_it_is_the_applications_own_and_the_policy_obeys() {
    let origin = Origin::obedient().await;
    let relayed = |field| [SAYS, ("x-say", field)];
    for (spec, fields, refused) in [
        (SPEC.replace("fromResponses: true", "fromResponses: false"), vec![SAYS], None),
        (SPEC.to_owned(), relayed("via: 1.1 cache").to_vec(), Some("relayed")),
        (
            SPEC.to_owned(),
            [&relayed("age: 5")[..], &[("x-say", "connection: age")]].concat(),
            Some("relayed"),
        ),
        (SPEC.to_owned(), relayed("age: 0").to_vec(), Some("relayed")),
        (SPEC.to_owned(), relayed("cache-status: inner; hit").to_vec(), Some("relayed")),
        (SPEC.to_owned(), vec![("x-say", "larder-purge: page:kept")], Some("malformed")),
        (SPEC.to_owned(), vec![("x-say", "larder-purge: {\"tags\": []}")], Some("malformed")),
    ] {
        let policy = Policy::new(&spec.replace("l2: ", "# "));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let before = sidecar.get("/kept").await.body;
        for (method, path) in [
            (Method::GET, "/miss"),
            (Method::GET, "/no/route"),
            (Method::POST, "/no/rule"),
            (Method::PUT, "/ruled/1"),
        ] {
            let answer = sidecar.request(method, path, &fields, "").await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("larder-purge")),
                (200, ""),
                "{path} {fields:?}"
            );
        }
        assert_eq!(sidecar.get("/kept").await.body, before, "{fields:?}");
        let Some(reason) = refused else { continue };
        let label = format!("reason={reason:?}");
        assert_eq!(sidecar.metric("larder_refused_purges_total", &[&label]).await, 4.0, "{fields:?}");
        assert_eq!(sidecar.logged_lines("a Larder-Purge purged nothing").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_that_purges_itself_is_not_said_to_be_stored() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes: [{name: page, match: {path: "/{page}"}, ttl: 60s, tags: ["page:{page}"]}]
invalidation: {fromResponses: true}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let itself = [("x-say", r#"larder-purge: {"tags": ["page:own"]}"#)];
    for (method, more) in [(Method::GET, None), (Method::HEAD, None), (Method::GET, Some(("te", "trailers")))]
    {
        let fields: Vec<_> = itself.into_iter().chain(more).collect();
        let answer = sidecar.request(method.clone(), "/own", &fields, "").await;
        assert!(!answer.header("cache-status").contains("stored"), "{method} {more:?}: {answer:?}");
    }
    let other = sidecar.get_with("/own", &[("x-say", r#"larder-purge: {"tags": ["page:other"]}"#)]).await;
    assert!(other.header("cache-status").contains("; stored"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_source_purges_nothing() {
    let origin = Origin::numbered(&[("larder-purge", r#"{"everything": true}"#)]).await;
    let spec = format!(
        r#"
sources: [{{name: catalog, http: {{url: "http://{}"}}}}]
routes:
- {{name: item, match: {{path: "/items/{{id}}"}}, ttl: 60s, from: [{{http: {{source: catalog, path: "/{{id}}"}}}}]}}
invalidation: {{fromResponses: true}}
"#,
        origin.address
    );
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stored = sidecar.get("/items/1").await;
    assert_eq!(stored.header("larder-purge"), "");
    assert_eq!(sidecar.get("/items/2").await.header("larder-purge"), "");
    assert_eq!(sidecar.get("/items/1").await.body, stored.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn response_to_a_write_purges_although_its_client_has_left() {
    let gate = Arc::new(Semaphore::new(0));
    let let_through = Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.method == Method::PUT {
                gate.acquire().await.unwrap().forget();
                return reply(&[("larder-purge", r#"{"tags": ["page:kept"]}"#)], "");
            }
            reply(&[], seen.number.to_string())
        }
    })
    .await;
    let policy = Policy::new(&SPEC.replace("l2: ", "# "));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/no/rule", "/ruled/1"] {
        let (before, calls) = (sidecar.get("/kept").await.body, origin.calls());
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        let request = format!("PUT {path} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        until("the write", async || (origin.calls() > calls).then_some(())).await;
        drop(client);
        assert_eq!(sidecar.get("/kept").await.body, before);
        let_through.add_permits(1);
        until("the purge", async || (sidecar.get("/kept").await.body != before).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_purge_nothing_and_lose_the_fields_that_leave_heads() {
    let origin = RawOrigin::start(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\
                Larder-Purge: {\"everything\": true}\r\nX-Tags: page:a\r\nX-Sum: 1\r\n\r\n";
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    })
    .await;
    let spec =
        SPEC.replace("l2: ", "# ").replace("bypass:", "tagsFrom: {headers: [X-Tags], remove: true}, bypass:");
    let policy = Policy::new(&spec);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let client = connect(sidecar.address, 1 << 20).await;
    for (method, path) in [
        (Method::GET, "/miss"),
        (Method::GET, "/no/route"),
        (Method::POST, "/no/rule"),
        (Method::PUT, "/ruled/1"),
    ] {
        let uri = format!("http://shop.test{path}");
        let request = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        let mut client = client.clone().ready().await.unwrap();
        let response = client.send_request(request.body(()).unwrap(), true).unwrap().0.await.unwrap();
        let mut body = response.into_body();
        while let Some(piece) = body.data().await {
            piece.unwrap();
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        let names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-sum"], "{path}");
    }
    assert_eq!(sidecar.metric("larder_purges_total", &["origin=\"response\""]).await, 0.0);
}
