//! Requests as they are served, for readers of `GET /requests`, and counters of their routes.

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use larder_api::admin::{ServedRequest, Stats};

use super::harness::{Origin, Policy, Sidecar, TOKEN, Wire, until};

const SHOP: &str = r#"
routes:
- {name: user, match: {path: "/users/{id}"}, ttl: 60s, bypass: {query: {nocache: "true"}}}
- {name: wrapped, match: {path: "/wrapped/{id}"}, ttl: 60s, envelope: true}
"#;

/// A reader of requests.
struct Reader {
    wire: Wire,
    read: Vec<ServedRequest>,
}

impl Reader {
    async fn of(sidecar: &Sidecar, query: &str) -> Self {
        let mut wire = Wire::to(sidecar.admin).await;
        wire.say(format!(
            "GET /requests{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        ))
        .await;
        let head = wire.head().await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("content-type: application/x-ndjson\r\n"), "{head}");
        Self { wire, read: vec![] }
    }

    /// Returns the next request.
    async fn next(&mut self) -> ServedRequest {
        while self.read.is_empty() {
            let lines = self.wire.chunk().await;
            let lines = lines.lines().filter(|line| !line.is_empty());
            self.read.extend(lines.map(|line| serde_json::from_str::<ServedRequest>(line).unwrap()));
        }
        self.read.remove(0)
    }

    /// Returns the outcome, route, tier and reasons of the next request.
    async fn next_in_short(&mut self) -> String {
        let ServedRequest { method, path, status, outcome, route, tier, forward, not_stored, .. } =
            self.next().await;
        let words = [
            Some(method),
            Some(path),
            Some(status.to_string()),
            Some(outcome),
            route,
            Some(tier),
            forward,
            not_stored,
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_every_path_is_shown_once_with_its_outcome_and_reasons() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut reader = Reader::of(&sidecar, "").await;
    let over_http2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let get_over_http2 = async |path: &str| {
        let url = format!("http://{}{path}", sidecar.address).parse().unwrap();
        over_http2.get(url).await.unwrap().into_body().collect().await.unwrap();
    };
    sidecar.get("/users/1").await;
    assert_eq!(reader.next_in_short().await, "GET /users/1 200 miss user app uri-miss");
    sidecar.get("/users/1").await;
    assert_eq!(reader.next_in_short().await, "GET /users/1 200 hit user l1");
    get_over_http2("/users/2").await;
    assert_eq!(reader.next_in_short().await, "GET /users/2 200 miss user app uri-miss");
    get_over_http2("/users/2").await;
    assert_eq!(reader.next_in_short().await, "GET /users/2 200 hit user l1");
    sidecar.get_with("/users/3", &[("x-say", "cache-control: no-store")]).await;
    assert_eq!(reader.next_in_short().await, "GET /users/3 200 miss user app uri-miss no-store");
    sidecar.get("/users/1?nocache=true").await;
    assert_eq!(reader.next_in_short().await, "GET /users/1 200 bypass user app bypass-query");
    sidecar.get("/wrapped/1").await;
    assert_eq!(reader.next_in_short().await, "GET /wrapped/1 200 miss wrapped app uri-miss");
    sidecar.get("/wrapped/1").await;
    assert_eq!(reader.next_in_short().await, "GET /wrapped/1 200 hit wrapped l1");
    sidecar.get("/other").await;
    assert_eq!(reader.next_in_short().await, "GET /other 200 pass app no-route");
    get_over_http2("/other").await;
    assert_eq!(reader.next_in_short().await, "GET /other 200 pass app no-route");
    sidecar.request(Method::POST, "/other", &[], "a").await;
    assert_eq!(reader.next_in_short().await, "POST /other 200 pass app method");
    drop(origin);
    sidecar.get("/users/4").await;
    assert_eq!(reader.next_in_short().await, "GET /users/4 502 error user none");
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_sees_requests_of_its_filters_and_no_value_of_a_query() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut plain = Reader::of(&sidecar, "?path=/users&status=4xx").await;
    let mut whole = Reader::of(&sidecar, "?outcome=pass&query=true").await;
    sidecar.get("/users/1").await;
    sidecar.get_with("/users/2?token=secret", &[("x-status", "404")]).await;
    sidecar.get("/other?token=secret").await;
    let seen = plain.next().await;
    assert_eq!((seen.path.as_str(), seen.query.as_deref()), ("/users/2", Some("token=*")));
    let seen = whole.next().await;
    assert_eq!((seen.path.as_str(), seen.query.as_deref()), ("/other", Some("token=secret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn path_is_shown_as_it_was_sent_and_commands_no_terminal() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut reader = Reader::of(&sidecar, "").await;
    for (sent, shown) in [
        (&b"/users/\xc2\x9b31m"[..], "/users/\\u009b31m"),
        (b"/a\xc2\x9b31m", "/a\\u009b31m"),
        (b"/a\xe9%E9", "/a\\ufffd%E9"),
        (b"/a<\x22>{b}", r#"/a<\">{b}"#),
    ] {
        let mut wire = Wire::to(sidecar.address).await;
        wire.say([b"GET ", sent, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat()).await;
        // The application may reject it.
        wire.head().await;
        let lines = reader.wire.chunk().await;
        assert!(lines.contains(&format!(r#""path":"{shown}""#)), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_of_routes_and_tiers_are_in_the_statistics() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/users/1", "/users/1", "/users/1?nocache=true", "/other"] {
        sidecar.get(path).await;
    }
    let stats = async |query: &str| {
        let answer = sidecar.with_token(Method::GET, &format!("/stats{query}"), "").await;
        serde_json::from_str::<Stats>(&answer.body).unwrap()
    };
    let with_routes = stats("?routes=true").await;
    let count =
        |route: &str| with_routes.routes.iter().find(|counters| counters.route == route).cloned().unwrap();
    let user = count("user");
    assert_eq!((user.requests, user.hits, user.misses, user.bypassed), (3, 1, 1, 1));
    assert_eq!((count("none").requests, with_routes.routes.len()), (1, 2));
    let application = with_routes.tiers.iter().find(|tier| tier.tier == "app").unwrap();
    assert_eq!((application.responses, application.seconds > 0.0), (3, true));
    assert!(stats("").await.routes.is_empty());
    assert_eq!(sidecar.with_token(Method::GET, "/stats?routes=1", "").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_are_few_and_make_room_when_they_leave() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut readers = vec![];
    for _ in 0..4 {
        readers.push(Reader::of(&sidecar, "").await);
    }
    let refused = sidecar.with_token(Method::GET, "/requests", "").await;
    assert_eq!(refused.status, 503);
    readers.pop();
    until("the place of the reader that left is free", async || {
        let mut wire = Wire::to(sidecar.admin).await;
        wire.say(format!("GET /requests HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")).await;
        wire.head().await.starts_with("http/1.1 200").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_filters_are_refused_with_the_reason() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (query, says) in [
        ("?outcome=maybe", "outcome must be one of hit, miss"),
        ("?status=5x", "write a status"),
        ("?sample=0", "sample"),
        ("?rout=a", "rout"),
    ] {
        let refused = sidecar.with_token(Method::GET, &format!("/requests{query}"), "").await;
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.body.contains(says), "{query}: {}", refused.body);
    }
    assert_eq!(sidecar.admin("/requests").await.status, 401);
}
