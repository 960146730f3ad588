//! Validation of stored responses, and conditional requests of clients.

use http::{Response, StatusCode};
use http_body_util::Full;

use super::harness::{Origin, Policy, Sidecar, Wire, reply, until};

const MODIFIED: &str = "Sat, 21 Nov 2020 10:00:00 GMT";

/// Returns a 304.
fn not_modified(headers: &[(&str, &str)]) -> Response<Full<bytes::Bytes>> {
    let mut reply = reply(headers, "");
    *reply.status_mut() = StatusCode::NOT_MODIFIED;
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn not_modified_freshens_the_stored_response() {
    for (validator, value, condition) in [
        ("etag", "\"a\"", "if-none-match"),
        ("etag", "W/\"a\"", "if-none-match"),
        ("last-modified", MODIFIED, "if-modified-since"),
    ] {
        let origin = Origin::start(move |seen| async move {
            if seen.header(condition) == value {
                not_modified(&[(validator, value), ("cache-control", "max-age=60"), ("x-part", "new")])
            } else {
                reply(
                    &[(validator, value), ("cache-control", "max-age=0"), ("x-part", "old"), ("x-kept", "1")],
                    seen.number.to_string(),
                )
            }
        })
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        assert_eq!(sidecar.get("/").await.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored");
        let validated = sidecar.get("/").await;
        assert_eq!(validated.cache_status(), "larder; fwd=stale; fwd-status=304; stored", "{value}");
        assert_eq!((validated.status, validated.header("x-part")), (StatusCode::OK, "new"));
        let hit = sidecar.get("/").await;
        assert_eq!((hit.hit(), hit.body.as_str(), hit.header("x-part")), (Some("l1"), "1", "new"));
        assert_eq!((hit.header("x-kept"), hit.header("cache-control")), ("1", "max-age=60"));
        assert_eq!(origin.calls(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_validators_are_sent_and_a_full_response_replaces_the_stored_one() {
    let origin = Origin::start(|seen| async move {
        let tag = format!("\"{}\"", seen.number);
        let control = if seen.number == 1 { "no-cache" } else { "max-age=60" };
        let headers = [("etag", &*tag), ("last-modified", MODIFIED), ("cache-control", control)];
        reply(&headers, seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let newer = sidecar.get("/").await;
    assert_eq!(
        (newer.body.as_str(), newer.cache_status()),
        ("2", "larder; fwd=stale; fwd-status=200; stored")
    );
    let asked = origin.last();
    assert_eq!((asked.header("if-none-match"), asked.header("if-modified-since")), ("\"1\"", MODIFIED));
    let hit = sidecar.get("/").await;
    assert_eq!((hit.hit(), hit.body.as_str(), hit.header("etag")), (Some("l1"), "2", "\"2\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_condition_is_evaluated_against_the_stored_response() {
    let headers = &[("etag", "\"a\""), ("last-modified", MODIFIED), ("cache-control", "max-age=60")];
    let origin = Origin::numbered(headers).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let (before, after) = ("Sat, 21 Nov 2020 09:59:59 GMT", "Sat, 21 Nov 2020 10:00:01 GMT");
    for (conditions, status) in [
        (&[("if-none-match", "\"a\"")][..], 304),
        (&[("if-none-match", "W/\"a\"")], 304),
        (&[("if-none-match", "\"b, c\", \"a\"")], 304),
        (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"b\"")], 200),
        (&[("if-none-match", "\"A\"")], 200),
        (&[("if-modified-since", MODIFIED)], 304),
        (&[("if-modified-since", after)], 304),
        (&[("if-modified-since", before)], 200),
        (&[("if-modified-since", "yesterday")], 200),
        (&[("if-none-match", "\"b\""), ("if-modified-since", after)], 200),
        (&[("if-none-match", "\"a\""), ("if-modified-since", before)], 304),
        (&[("if-none-match", "\"a\""), ("range", "bytes=0-0")], 304),
    ] {
        let answer = sidecar.get_with("/", conditions).await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (status, Some("l1")), "{conditions:?}");
        assert_eq!(answer.body, if status == 304 { "" } else { "1" });
        assert_eq!((answer.header("etag"), answer.header("cache-control")), ("\"a\"", "max-age=60"));
    }
    assert_eq!(origin.calls(), 1);
}

/// Returns a response without what may tick between two of them.
async fn reply_to(wire: &mut Wire, request: &str) -> (Vec<String>, String) {
    wire.say(format!("{request}\r\nHost: shop.test\r\n\r\n")).await;
    let is_head = request.starts_with("HEAD");
    let (head, body) = if is_head { (wire.head().await, String::new()) } else { wire.answer().await };
    let mut lines: Vec<_> =
        head.lines().filter(|line| !line.starts_with("age: ")).map(str::to_owned).collect();
    for line in lines.iter_mut().filter(|line| line.starts_with("cache-status: larder; hit; ttl=")) {
        let members: Vec<_> = line.split("; ").filter(|member| !member.starts_with("ttl=")).collect();
        *line = members.join("; ");
    }
    lines[1..].sort_unstable();
    (lines, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn hit_has_the_same_bytes_with_the_connection_options_that_hyper_must_see() {
    let origin = Origin::numbered(&[
        ("etag", "\"a\""),
        ("last-modified", MODIFIED),
        ("cache-control", "max-age=60"),
        ("content-type", "text/plain"),
        ("content-language", "de"),
        ("vary", "x"),
        ("cache-status", "outer; hit"),
    ])
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let mut wire = Wire::to(sidecar.address).await;
    for (request, status) in [
        ("GET / HTTP/1.1", "200"),
        ("HEAD / HTTP/1.1", "200"),
        ("GET / HTTP/1.1\r\nIf-None-Match: W/\"a\"", "304"),
        ("HEAD / HTTP/1.1\r\nIf-None-Match: W/\"a\"", "304"),
        ("GET / HTTP/1.1\r\nIf-None-Match: \"b\"", "200"),
        ("GET / HTTP/1.1\r\nIf-Modified-Since: Sat, 21 Nov 2020 10:00:00 GMT", "304"),
        ("GET / HTTP/1.1\r\nRange: bytes=0-0", "206"),
        ("GET / HTTP/1.1\r\nRange: bytes=0-0\r\nIf-Range: \"b\"", "200"),
        ("GET / HTTP/1.1\r\nRange: bytes=7-", "416"),
        ("GET / HTTP/1.1\r\nRange: bytes=0-0\r\nIf-None-Match: *", "304"),
    ] {
        let (lines, body) = reply_to(&mut wire, request).await;
        assert!(lines[0].starts_with(&format!("http/1.1 {status} ")), "{request}: {lines:?}");
        assert!(lines.contains(&"cache-status: larder; hit; detail=l1".to_owned()), "{request}: {lines:?}");
        // The guard leaves such requests to hyper.
        let slow = reply_to(&mut wire, &format!("{request}\r\nConnection: te\r\nTE: trailers")).await;
        assert_eq!((lines, body), slow, "{request}");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_condition_is_evaluated_against_the_validated_response() {
    let origin = Origin::start(|seen| async move {
        if seen.header("if-none-match") == "\"a\"" {
            not_modified(&[("etag", "\"a\"")])
        } else {
            reply(&[("etag", "\"a\""), ("cache-control", "max-age=0")], seen.number.to_string())
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for (tag, status, body) in [("\"a\"", 304, ""), ("\"b\"", 200, "1"), ("*", 304, "")] {
        let answer = sidecar.get_with("/", &[("if-none-match", tag)]).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, body), "{tag}");
        assert_eq!(answer.cache_status(), "larder; fwd=stale; fwd-status=304; stored");
        assert_eq!(
            origin.last().header("if-none-match"),
            "\"a\"",
            "the stored answer is what is asked about"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn not_modified_for_another_response_causes_an_unconditional_request() {
    let origin = Origin::start(|seen| async move {
        if seen.headers.contains_key("if-none-match") {
            not_modified(&[("etag", "\"b\"")])
        } else {
            reply(&[("etag", "\"a\""), ("cache-control", "max-age=0")], seen.number.to_string())
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.get("/").await.body, "1");
    let answer = sidecar.get("/").await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "3"));
    assert_eq!(answer.cache_status(), "larder; fwd=stale; fwd-status=200; stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn precondition_for_the_origin_passes() {
    let origin = Origin::numbered(&[("etag", "\"a\""), ("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for (name, value) in [("if-match", "\"a\""), ("if-unmodified-since", MODIFIED)] {
        let answer = sidecar.get_with("/", &[(name, value)]).await;
        assert_eq!(answer.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=precondition");
        assert_eq!(origin.last().header(name), value);
    }
    assert_eq!(sidecar.get("/").await.body, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditional_miss_fills_the_cache() {
    let origin = Origin::numbered(&[("etag", "\"a\""), ("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let miss = sidecar.get_with("/", &[("if-none-match", "\"a\"")]).await;
    assert_eq!((miss.status.as_u16(), miss.body.as_str(), miss.header("etag")), (304, "", "\"a\""));
    assert_eq!(miss.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored");
    assert!(!origin.last().headers.contains_key("if-none-match"));
    until("the fill ends", async || (sidecar.get("/").await.hit()).map(drop)).await;
    assert_eq!((sidecar.get("/").await.body.as_str(), origin.calls()), ("1", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn not_modified_restarts_the_routes_ttl() {
    let origin = Origin::start(|seen| async move {
        if seen.headers.contains_key("if-none-match") {
            not_modified(&[])
        } else {
            reply(&[("etag", "\"a\""), ("age", "1000")], seen.number.to_string())
        }
    })
    .await;
    let policy = Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 1s}\n");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    let validated = until("the response is stale", async || {
        Some(sidecar.get("/a").await).filter(|answer| answer.hit().is_none())
    })
    .await;
    assert_eq!(validated.cache_status(), "larder; fwd=stale; fwd-status=304; stored");
    assert_eq!((validated.body.as_str(), origin.calls()), ("1", 2));
    let age: u64 = validated.header("age").parse().unwrap();
    assert!(age < 1000, "validated is as good as made anew: {age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_modified_with_no_store_leaves_nothing_fresh() {
    let origin = Origin::start(|seen| async move {
        if seen.headers.contains_key("if-none-match") {
            not_modified(&[("cache-control", "no-store"), ("set-cookie", "a=b")])
        } else {
            reply(&[("etag", "\"a\""), ("cache-control", "max-age=0")], seen.number.to_string())
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for _ in 0..2 {
        let answer = sidecar.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "1"));
        assert_eq!(answer.cache_status(), "larder; fwd=stale; fwd-status=304");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_clients_get_responses_to_their_own_conditions() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let permits = std::sync::Arc::clone(&gate);
    let origin = Origin::start(move |seen| {
        let gate = std::sync::Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            reply(&[("etag", "\"a\""), ("cache-control", "max-age=60")], seen.number.to_string())
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let lets_go = async {
        until("the application has the request", async || (origin.calls() == 1).then_some(())).await;
        permits.add_permits(1);
    };
    let (has, other) = ([("if-none-match", "\"a\"")], [("if-none-match", "\"b\"")]);
    let (first, second, third, ()) =
        tokio::join!(sidecar.get_with("/", &has), sidecar.get_with("/", &other), sidecar.get("/"), lets_go);
    assert_eq!((first.status.as_u16(), second.status.as_u16(), third.status.as_u16()), (304, 200, 200));
    assert_eq!((second.body.as_str(), third.body.as_str(), origin.calls()), ("1", "1", 1));
}
