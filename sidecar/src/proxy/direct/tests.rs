//! The direct path is bound to the classifier and to the general path: it relays nothing else, and in the same words.

use std::{cell::Cell, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};

use super::*;
use crate::{
    cache_status::{Became, CacheStatus, Tier},
    headers,
    http1_guard::with_valid_head,
    proxy::{classify::classify, forward::outgoing},
    snapshot::Configuration,
    upstream::{RawHead, no_body},
};

const POLICY: &str = r#"
admin: {pathPrefix: /_larder}
routes:
- {name: plain, match: {path: "/plain/{id}"}, ttl: 60s}
- {name: wrapped, match: {path: "/wrapped/{id}"}, ttl: 60s, envelope: true}
- {name: bypass, match: {path: "/bypass/{id}"}, ttl: 60s, bypass: {headers: {X-Debug: "*"}}}
- {name: posted, match: {path: "/posted/{id}", methods: [POST]}, ttl: 60s, key: {body: {maxSize: 1Ki}}}
invalidation: {onWrite: [{match: {path: "/written/{id}"}, purge: {tags: [t]}}]}
"#;

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "QUERY", "X-OWN"];

const TARGETS: [&str; 14] = [
    "/plain/1",
    "/plain/%31?a=1",
    "//plain/1",
    "/plain/1/../2",
    "/wrapped/1",
    "/bypass/1",
    "/posted/1",
    "/written/1",
    "/written/1?x",
    "/elsewhere",
    "/elsewhere?_method=DELETE",
    "/_larder/stats",
    "/a?b?c",
    "/",
];

const REQUEST_LINES: [(&str, &str); 32] = [
    ("Accept", "*/*"),
    ("accept-language", "de"),
    ("X-Debug", "1"),
    ("Cookie", "a=1"),
    ("Authorization", "Bearer x"),
    ("If-Match", "\"1\""),
    ("Range", "bytes=0-1,3-4"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-Original-URL", "/plain/1"),
    ("Max-Forwards", "0"),
    ("Max-Forwards", "3"),
    ("Connection", "keep-alive"),
    ("Connection", "close"),
    ("Connection", "close, X-Debug"),
    ("Connection", "upgrade"),
    ("Upgrade", "websocket"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "trailers"),
    ("Trailer", "x"),
    ("Expect", "100-continue"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("x-forwarded-for", "192.0.2.2, 192.0.2.3"),
    ("X-Forwarded-For", ""),
    ("Forwarded", "for=192.0.2.1;proto=https"),
    ("Forwarded", "for=192.0.2.2"),
    ("Via", "1.0 a"),
    ("via", "1.1 b"),
    ("X-Odd", "\u{e4}\tb"),
    ("Empty", ""),
    ("HTTP2-Settings", "AAA"),
    ("Proxy-Authenticate", "Basic"),
];

fn sorted(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut lines: Vec<_> =
        fields.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    lines.sort();
    lines
}

/// Reads the lines of a head behind its first line.
fn fields_of(text: &[u8]) -> (String, HeaderMap) {
    let text = text.strip_suffix(b"\r\n\r\n").expect("an empty line");
    let mut lines = text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8(lines.next().unwrap().to_vec()).unwrap();
    let fields = lines.map(|line| {
        let colon = line.iter().position(|&byte| byte == b':').unwrap();
        let name = HeaderName::from_bytes(&line[..colon]).unwrap();
        (name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).unwrap())
    });
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(name, value);
    }
    (first, map)
}

#[test]
fn requests_are_classified_and_written_as_on_the_general_path() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let policy = larder_policy::Policy::compile(&serde_yaml::from_str(POLICY).unwrap()).unwrap();
    let configuration =
        Configuration { hash: Some("hash".to_owned()), policy: Arc::new(policy), ..Configuration::bare() };
    let telemetry = Arc::new(crate::telemetry::Telemetry::new().unwrap());
    let snapshot = crate::config::ConfigWatcher::of(configuration, None, telemetry).snapshot();
    let client: IpAddr = "2001:db8::1".parse().unwrap();
    let (relayed, served) = (Cell::new(0), Cell::new(0));
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 4_000, failure_persistence: None, ..Default::default() });
    let lines = prop_oneof![vec(select(&REQUEST_LINES[..]), 0..2), vec(select(&REQUEST_LINES[..]), 0..6)];
    let body = select(&[None, Some("0"), Some("5")][..]);
    let case = (select(&METHODS[..]), select(&TARGETS[..]), lines, body);
    runner
        .run(&case, |(method, target, lines, length)| {
            let mut text = format!("{method} {target} HTTP/1.1\r\nHost: shop\r\n");
            let mut request = Request::builder().method(method).uri(target).body(no_body()).unwrap();
            let length = length.map(|length| ("Content-Length", length));
            request.headers_mut().append("host", HeaderValue::from_static("shop"));
            for (name, value) in lines.iter().chain(&length) {
                text.push_str(&format!("{name}: {value}\r\n"));
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
            text.push_str("\r\n");
            let has_content = length.is_some_and(|(_, length)| length != "0");
            let kind = if has_content { BodyKind::Length } else { BodyKind::None };
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let direct = with_valid_head(text.as_bytes(), |head| {
                let plain = Plain::of(head)?;
                let treatment = treatment(&snapshot, head, &method, kind)?;
                let for_application = || plain.for_application(head, &Peer::new(client));
                let looked_up = request_of(method.clone(), head, for_application(), None);
                Some((treatment, for_application().text, looked_up))
            });
            let Some((treatment, written, looked_up)) = direct.flatten() else { return Ok(()) };
            let upgrade = headers::upgrade(request.headers());
            headers::remove_hop_by_hop(request.headers_mut());
            let disposition = classify(&snapshot, &request, upgrade, has_content);
            headers::count_forward(&mut request);
            let (plan, disposition) = match (treatment, disposition) {
                (Treatment::Relay(plan), disposition) => (plan, disposition),
                (Treatment::LookUp(own), Disposition::Route(general)) => {
                    served.set(served.get() + 1);
                    prop_assert!(!own.route.envelope && own.passes(has_content).is_none());
                    let plan = |routed: Routed| (routed.route.index, routed.bypass);
                    prop_assert_eq!(plan(own), plan(general));
                    let looked_up = looked_up.expect("a request");
                    prop_assert_eq!((&looked_up.method, &looked_up.uri), (request.method(), request.uri()));
                    let lines = looked_up.fields.lines().count();
                    prop_assert_eq!(sorted(&looked_up.fields), sorted(request.headers()));
                    prop_assert_eq!(lines, request.headers().len());
                    return Ok(());
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            relayed.set(relayed.get() + 1);
            match disposition {
                Disposition::Pass(reason) => {
                    prop_assert_eq!(
                        (plan.reason, plan.route.is_none(), plan.writing.is_none()),
                        (reason, true, true)
                    );
                }
                Disposition::Write { writing, protocol: None } => {
                    prop_assert!(purges_of(&snapshot, &writing).is_empty());
                    prop_assert_eq!((plan.reason, plan.writing), (Forward::Method, Some(writing)));
                }
                Disposition::Route(routed) => {
                    let bypass = routed.passes(has_content).expect("it passes");
                    prop_assert_eq!(plan.reason, Forward::Bypass(bypass));
                    prop_assert_eq!(plan.route.map(|route| route.index), Some(routed.route.index));
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            let (first, fields) = fields_of(&written);
            prop_assert_eq!(first, format!("{method} {target} HTTP/1.1"));
            prop_assert_eq!(sorted(&fields), sorted(outgoing(request, client).headers()));
            Ok(())
        })
        .unwrap();
    let (relayed, served) = (relayed.get(), served.get());
    assert!(relayed > 800 && served > 40, "{relayed} relayed, {served} served");
}

const RESPONSE_LINES: [&str; 27] = [
    "Content-Length: 5",
    "content-length:5 ",
    "Content-Length: 05",
    "Content-Length: 0",
    "Content-Length: 5, 5",
    "Transfer-Encoding: chunked",
    "transfer-encoding: Chunked",
    "Transfer-Encoding: identity",
    "Connection: close",
    "connection: Keep-Alive",
    "Connection: X-Internal",
    "X-Internal: 1",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authenticate: Basic",
    "Upgrade: h2c",
    "Trailer: x",
    "TE: trailers",
    "Date: Thu, 01 Jan 2026 00:00:00 GMT",
    "Content-Type: text/html",
    "content-type: Text/Event-Stream; charset=utf-8",
    "Set-Cookie: a=b",
    "set-cookie: c=d",
    "Cache-Status: origin; hit",
    "X-Space :  a",
    "Odd:\t\u{e4} b",
    "nonsense",
];

#[test]
fn relayed_response_heads_are_those_of_the_general_path() {
    let firsts = [
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 Fine",
        "HTTP/1.1 404 ",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 304 Not Modified",
        "HTTP/1.1 299",
    ];
    let case = (
        select(firsts.to_vec()),
        vec(select(&RESPONSE_LINES[..]), 0..6),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    let relayed = Cell::new(0);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 6_000, failure_persistence: None, ..Default::default() });
    runner
        .run(&case, |(first, lines, is_head, closes, is_bare)| {
            let end = if is_bare { "\n" } else { "\r\n" };
            let text: String = std::iter::once(first)
                .chain(lines.iter().copied())
                .map(|line| format!("{line}{end}"))
                .collect();
            let Ok(head) = RawHead::of(format!("{text}{end}").as_bytes(), is_head) else { return Ok(()) };
            let status = Some(StatusCode::from_u16(head.status()).unwrap());
            let status = CacheStatus::Forwarded {
                reason: Forward::Method,
                status,
                tier: Tier::Application,
                answer: Became::Passed,
            };
            let mut output = b"before".to_vec();
            let Some(pace) = response_head::write_lines(&mut output, &head, is_head, &[], status, closes)
            else {
                prop_assert_eq!(output, b"before");
                return Ok(());
            };
            relayed.set(relayed.get() + 1);
            let mut response = head.response().unwrap();
            prop_assert_eq!(pace, response_head::clean(&mut response, &[]));
            status.append_to(response.headers_mut());
            let mut general = vec![];
            response_head::write(&mut general, &response, head.framing(), is_head, closes);
            let ((direct, mut fields), (general, mut expected)) =
                (fields_of(&output[6..]), fields_of(&general));
            if !lines.iter().any(|line| line.starts_with("Date:")) {
                // The two may be of different seconds.
                prop_assert!(fields.remove("date").is_some() && expected.remove("date").is_some());
            }
            prop_assert_eq!(direct, general);
            prop_assert_eq!(sorted(&fields), sorted(&expected));
            Ok(())
        })
        .unwrap();
    assert!(relayed.get() > 800, "{} relayed", relayed.get());
}

#[test]
fn case_and_order_of_names_survive_being_relayed() {
    let text = b"GET /a HTTP/1.1\r\nHOST: shop\r\nx-B: 1\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.1\r\nA: 2\r\n\r\n";
    let client = "192.0.2.2".parse().unwrap();
    let written =
        with_valid_head(text, |head| Plain::of(head).unwrap().for_application(head, &Peer::new(client)))
            .unwrap()
            .text;
    let expected = "GET /a HTTP/1.1\r\nHOST: shop\r\nx-B: 1\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nA: 2\r\nvia: 1.1 larder\r\n\r\n";
    assert_eq!(String::from_utf8(written).unwrap(), expected);
    let text = "HTTP/1.1 200 Fine\r\nX-b: 1\r\nConnection: Keep-Alive\r\nDATE: today\r\nContent-Length: 0\r\nXKEY: a\r\nLarder-Purge: {}\r\nA: 2\r\n\r\n";
    let removed = [HeaderName::from_static("xkey")];
    let head = RawHead::of(text.as_bytes(), false).unwrap();
    let status = CacheStatus::Forwarded {
        reason: Forward::Method,
        status: None,
        tier: Tier::Application,
        answer: Became::Passed,
    };
    let mut output = vec![];
    response_head::write_lines(&mut output, &head, false, &removed, status, true).unwrap();
    let expected = "HTTP/1.1 200 Fine\r\nX-b: 1\r\nDATE: today\r\nContent-Length: 0\r\nA: 2\r\ncache-status: larder; fwd=method\r\nconnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}
