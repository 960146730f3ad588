//! The fast path is bound to the classifier and to the slow path: it responds to nothing else, and with nothing else.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use larder_policy::{
    Policy,
    response_meta::{ResponseMeta, Times},
};
use proptest::{prelude::*, sample::subsequence, test_runner::TestRunner};

use super::*;
use crate::{
    clock::wall_ms,
    config::ConfigWatcher,
    entry::{Content, Entry, Head as StoredHead},
    headers,
    http1_guard::with_valid_head,
    proxy::{
        Client,
        classify::{Disposition, classify},
        request::CacheRequest,
    },
    snapshot::{Configuration, Snapshot},
    telemetry::Telemetry,
    upstream::{Dialer, Upstream},
};

const POLICY: &str = r#"
admin: {pathPrefix: /_larder}
identityHeaders: [X-Member]
routes:
- {name: plain, match: {path: "/plain/{id}"}, ttl: 60s}
- {name: keyed, match: {path: "/keyed/{id}"}, ttl: 60s, key: {headers: [Accept-Language], query: {ignore: [utm]}}}
- {name: bypass, match: {path: "/bypass/{id}"}, ttl: 60s, bypass: {headers: {X-Debug: "*"}, cookies: {admin: "*"}, query: {preview: "*"}}}
- {name: honest, match: {path: "/honest/{id}"}, ttl: 60s, clientDirectives: Honor}
- {name: wrapped, match: {path: "/wrapped/{id}"}, ttl: 60s, envelope: true}
- {name: public, match: {path: "/public/{id}"}, ttl: 60s, key: {ignoreHeaders: [Cookie, Authorization]}}
"#;

const PATHS: [&str; 14] = [
    "/plain/1",
    "/plain/%31",
    "/plain/a%2Fb",
    "/plain/a%2fb",
    "/keyed/1",
    "/bypass/1",
    "/honest/1",
    "/wrapped/1",
    "/public/1",
    "/_larder/stats",
    "//plain/1",
    "/plain/1/../2",
    "/elsewhere",
    "http://shop/plain/1",
];

const QUERIES: [&str; 6] = ["", "?", "?a=1", "?preview=1", "?utm=2&a=1", "?_method=DELETE"];

const LINES: [(&str, &str); 28] = [
    ("accept-language", "de"),
    ("accept-encoding", "gzip, br"),
    ("accept", "*/*"),
    ("user-agent", "test"),
    ("cookie", "a=1"),
    ("cookie", "admin=1"),
    ("authorization", "Bearer x"),
    ("x-member", "7"),
    ("x-debug", "1"),
    ("cache-control", "no-cache"),
    ("cache-control", "max-age=60"),
    ("cache-control", "only-if-cached"),
    ("pragma", "no-cache"),
    ("if-none-match", "\"1\""),
    ("if-match", "\"1\""),
    ("if-modified-since", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ("range", "bytes=0-1"),
    ("x-http-method-override", "DELETE"),
    ("x-http-method-override", "GET"),
    ("max-forwards", "0"),
    ("connection", "keep-alive"),
    ("connection", "close"),
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("content-length", "0"),
    ("expect", "100-continue"),
    ("x-forwarded-proto", "https"),
    ("forwarded", "for=1.2.3.4"),
];

#[derive(Clone, Debug)]
struct Case {
    target: String,
    lines: Vec<(&'static str, &'static str)>,
}

fn case() -> impl Strategy<Value = Case> {
    // Half of the requests have few lines, so that the fast path responds to a good part of them.
    let lines = prop_oneof![subsequence(LINES.to_vec(), 0..2), subsequence(LINES.to_vec(), 0..6)];
    (0..PATHS.len(), 0..QUERIES.len(), lines)
        .prop_map(|(path, query, lines)| Case { target: format!("{}{}", PATHS[path], QUERIES[query]), lines })
}

struct Fixture {
    proxy: Arc<Proxy>,
    snapshot: Arc<Snapshot>,
}

impl Fixture {
    fn new() -> Self {
        let telemetry = Arc::new(Telemetry::new().unwrap());
        let policy = Policy::compile(&serde_yaml::from_str(POLICY).unwrap()).unwrap();
        let configuration = Configuration {
            hash: Some("hash".to_owned()),
            policy: Arc::new(policy),
            ..Configuration::bare()
        };
        let config = Arc::new(ConfigWatcher::of(configuration, None, Arc::clone(&telemetry)));
        let snapshot = config.snapshot();
        // Nothing listens there: a response can come from memory alone.
        let dialer = Arc::new(Dialer::new(&"http://127.0.0.1:9".parse().unwrap(), None));
        let upstream = Upstream::new(dialer, Arc::clone(&telemetry.stats.budget));
        let (drain, admin) = (Arc::default(), Router::new());
        let proxy = Proxy { config, upstream, target: None, telemetry, drain, admin };
        Self { proxy: Arc::new(proxy), snapshot }
    }

    /// Returns the request as the slow path classifies it, if it is one of a route, and the reason why it is bypassed.
    fn classified(&self, case: &Case) -> Option<(CacheRequest, bool)> {
        let mut request = Request::builder().uri(&case.target).header("host", "shop").body(()).unwrap();
        for (name, value) in &case.lines {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let upgrade = headers::upgrade(request.headers());
        headers::remove_hop_by_hop(request.headers_mut());
        let Disposition::Route(routed) = classify(&self.snapshot, &request, upgrade, false) else {
            return None;
        };
        let client = Client { address: Ipv4Addr::LOCALHOST.into(), handoff: None, work: None };
        let request = request.map(|()| Bytes::new());
        let is_bypassed = routed.bypass.is_some();
        Some((CacheRequest::new(&self.snapshot, &routed, None, request, client), is_bypassed))
    }

    /// Stores a response that the request would get, even if the request must not get it.
    fn store_for(&self, request: &CacheRequest) {
        let headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
            (header::DATE, HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT")),
        ]);
        let times = Times { requested_at: wall_ms(), received_at: wall_ms() };
        let meta = ResponseMeta::read(StatusCode::OK, &headers, times, &[]);
        let (stamp, names) = (request.store().barriers.stamp(), request.names().into());
        let head = StoredHead { status: StatusCode::OK, headers, times, meta, stamp, names };
        let body = Content::Whole(Bytes::from(request.key.as_str().to_owned()));
        request.slot(vec![]).store(Arc::new(Entry::new(head, body)), None);
    }

    /// Returns the response of the fast path, if it responds and the head is valid.
    fn fast(&self, case: &Case) -> Option<Vec<u8>> {
        let mut text = format!("GET {} HTTP/1.1\r\nhost: shop\r\n", case.target);
        for (name, value) in &case.lines {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut path = FastPath::new(Arc::clone(&self.proxy));
        let mut output = vec![];
        let rest = with_valid_head(text.as_bytes(), |head| path.find(head, &mut output))??;
        output.extend_from_slice(&rest);
        Some(output)
    }
}

/// Reads a response as it is written to an HTTP/1 connection; `Age` may tick between two of them.
fn parse(bytes: &[u8]) -> (u16, BTreeMap<String, String>, Vec<u8>) {
    let mut lines = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(length) = response.parse(bytes).unwrap() else { panic!("a whole head") };
    let fields = response
        .headers
        .iter()
        .map(|line| (line.name.to_owned(), String::from_utf8(line.value.to_vec()).unwrap()));
    (response.code.unwrap(), fields.collect(), bytes[length..].to_vec())
}

fn without_time(mut fields: BTreeMap<String, String>) -> BTreeMap<String, String> {
    fields.remove("age").expect("every hit has an age");
    fields.remove("content-length");
    let status = fields.get_mut("cache-status").unwrap();
    *status = status.split("; ").filter(|member| !member.starts_with("ttl=")).collect::<Vec<_>>().join("; ");
    fields
}

#[test]
fn fast_path_responds_only_to_routed_requests_and_as_the_slow_path() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let fixture = Fixture::new();
    let (mut responded, mut declined) = (0, 0);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 4_000, failure_persistence: None, ..Default::default() });
    let cases = std::cell::RefCell::new((&mut responded, &mut declined));
    runner
        .run(&case(), |case| {
            let classified = fixture.classified(&case);
            if let Some((request, _)) = &classified {
                fixture.store_for(request);
            }
            let Some(fast) = fixture.fast(&case) else {
                *cases.borrow_mut().1 += 1;
                return Ok(());
            };
            *cases.borrow_mut().0 += 1;
            let Some((request, false)) = classified else {
                return Err(TestCaseError::fail("the classifier passes or bypasses it"));
            };
            let slow = runtime.block_on(async {
                let response = fixture.proxy.respond(Box::new(request)).await.response;
                let (head, body) = response.into_parts();
                (head, body.collect().await.unwrap().to_bytes())
            });
            let (status, fields, body) = parse(&fast);
            let slow_fields = slow
                .0
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()));
            prop_assert_eq!(status, slow.0.status.as_u16());
            prop_assert_eq!(without_time(fields), without_time(slow_fields.collect()));
            prop_assert_eq!(&body, &slow.1);
            Ok(())
        })
        .unwrap();
    assert!(responded > 400 && declined > 400, "{responded} responses, {declined} declined");
}
