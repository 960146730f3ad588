//! The fast path is bound to the classifier and to the slow path: it responds to nothing else, and with nothing else.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use larder_policy::{
    Policy,
    response_meta::{ResponseMeta, Times},
};
use proptest::{
    prelude::*,
    sample::{select, subsequence},
    test_runner::TestRunner,
};

use super::*;
use crate::{
    clock::wall_ms,
    config::ConfigWatcher,
    entry::{Content, Entry, Head as StoredHead},
    headers::{self, FieldLines},
    http1_guard::with_valid_head,
    http2_guard::{Http2Responder as _, fields_of, with_plain_request},
    proxy::{
        Client,
        classify::{Disposition, classify},
        request::CacheRequest,
    },
    snapshot::{Configuration, Snapshot},
    telemetry::Telemetry,
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

const LINES: [(&str, &str); 29] = [
    ("if-method-override", "DELETE"),
    ("sec-ch-method-override", "DELETE"),
    ("x-client-http-method", "PUT"),
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
    ("if-match", "\"1\""),
    ("if-unmodified-since", MODIFIED),
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

/// Lines of requests that have a part of a response already, or want a part of it.
const CONDITIONS: [(&str, &str); 20] = [
    ("if-none-match", "\"1\""),
    ("if-none-match", "W/\"1\""),
    ("if-none-match", "\"0, 1\", W/\"2\",\"1\""),
    ("if-none-match", "\"2\""),
    ("if-none-match", "*"),
    ("if-none-match", ""),
    ("if-modified-since", BEFORE),
    ("if-modified-since", MODIFIED),
    ("if-modified-since", DATE),
    ("if-modified-since", "Friday, 28-Nov-25 10:00:00 GMT"),
    ("if-modified-since", "yesterday"),
    ("range", "bytes=0-1"),
    ("range", "bytes=4-"),
    ("range", "bytes=-5"),
    ("range", "bytes=9000-"),
    ("range", "bytes=0-1, 3-4"),
    ("range", "lines=0-1"),
    ("if-range", "\"1\""),
    ("if-range", "W/\"1\""),
    ("if-range", MODIFIED),
];

const BEFORE: &str = "Thu, 27 Nov 2025 10:00:00 GMT";
const MODIFIED: &str = "Fri, 28 Nov 2025 10:00:00 GMT";
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// Lines of stored responses.
const STORED: [(&str, &str); 14] = [
    ("etag", "\"1\""),
    ("etag", "W/\"1\""),
    ("last-modified", MODIFIED),
    ("last-modified", "yesterday"),
    ("content-encoding", "gzip"),
    ("content-language", "de"),
    ("content-location", "/1"),
    ("content-range", "bytes 0-1/7"),
    ("repr-digest", "sha-256=:1:"),
    ("age", "7"),
    ("cache-status", "outer; hit"),
    ("cache-status", "inner; hit"),
    ("link", "</a>"),
    ("x-large", "0123456789012345678901234567890123456789012345678901234567890123456789"),
];

type Lines = Vec<(&'static str, &'static str)>;

#[derive(Clone, Debug)]
struct Case {
    method: &'static str,
    target: String,
    lines: Lines,
    /// The stored response.
    status: u16,
    stored: Lines,
    length: usize,
}

fn case() -> impl Strategy<Value = Case> {
    // Half of the requests have few lines, so that the fast path responds to a good part of them.
    let lines = prop_oneof![subsequence(LINES.to_vec(), 0..2), subsequence(LINES.to_vec(), 0..6)];
    let conditions = prop_oneof![Just(vec![]), subsequence(CONDITIONS.to_vec(), 1..4)];
    let method = prop_oneof![4 => Just("GET"), 1 => Just("HEAD")];
    let target = (select(&PATHS), select(&QUERIES)).prop_map(|(path, query)| format!("{path}{query}"));
    let status = prop_oneof![6 => Just(200), 1 => Just(404), 1 => Just(204), 1 => Just(203)];
    let length = prop_oneof![1 => Just(0), 4 => 1..40_usize, 1 => Just(MAX_COPIED), 1 => Just(10_000)];
    let stored = subsequence(STORED.to_vec(), 0..7);
    (method, target, lines, conditions, status, stored, length).prop_map(
        |(method, target, mut lines, conditions, status, stored, length)| {
            lines.extend(conditions);
            let length = if status == 204 { 0 } else { length };
            Case { method, target, lines, status, stored, length }
        },
    )
}

struct Fixture {
    proxy: Arc<Proxy>,
    snapshot: Arc<Snapshot>,
    /// Number of requests that the fast path found to pass.
    passes: Cell<u32>,
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
        Self { proxy: Proxy::alone(config, telemetry), snapshot, passes: Cell::new(0) }
    }

    /// Returns the request without the fields of its connection, as the slow path classifies it.
    fn disposition(&self, case: &Case, version: Version) -> (Request<()>, Disposition) {
        let request = Request::builder().method(case.method);
        let request = match version {
            Version::HTTP_2 => request.uri(format!("http://shop{}", case.target)),
            _ => request.uri(&case.target).header("host", "shop"),
        };
        let mut request = request.body(()).unwrap();
        for (name, value) in &case.lines {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let upgrade = headers::upgrade(request.headers());
        headers::remove_hop_by_hop(request.headers_mut());
        let disposition = classify(&self.snapshot, &request, upgrade, false);
        (request, disposition)
    }

    /// Returns the request as the slow path classifies it, if it is one of a route, and true if it is bypassed.
    fn classified(&self, case: &Case, version: Version) -> Option<(Box<CacheRequest>, bool)> {
        let (request, Disposition::Route(routed)) = self.disposition(case, version) else { return None };
        let client = Client { address: Ipv4Addr::LOCALHOST.into(), handoff: None, stream: None, work: None };
        let request = request.map(|()| Bytes::new());
        let is_bypassed = routed.bypass.is_some();
        Some((CacheRequest::new(&self.snapshot, &routed, None, request, client), is_bypassed))
    }

    /// Stores the case's response for its request, or for the same with GET, even if the request must not get it.
    fn store_for(&self, request: &CacheRequest, case: &Case) {
        let mut headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
            (header::DATE, HeaderValue::from_static(DATE)),
        ]);
        for (name, value) in &case.stored {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(case.status).unwrap();
        let times = Times { requested_at: wall_ms(), received_at: wall_ms() };
        let meta = ResponseMeta::read(status, &headers, times, &[]);
        let request = request.without_its_client();
        let (stamp, names) = (request.store().barriers.stamp(), request.names().into());
        let fields = Arc::new(FieldLines::from(&headers));
        let head = StoredHead { fields, is_to_head: false, meta, stamp, names };
        // Each key has a body of its own.
        let mut body = request.key.as_str().as_bytes().repeat(case.length);
        body.truncate(case.length);
        let body = Content::Whole(Bytes::from(body));
        let slot = request.slot(vec![]);
        let entry = Arc::new(Entry::new(slot.key().whole(), &head, body));
        slot.store(entry, None);
    }

    /// Returns the response of the fast path, if it responds and the head is valid.
    fn fast(&self, case: &Case) -> Option<Parsed> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: shop\r\n", case.method, case.target);
        for (name, value) in &case.lines {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut path = FastPath::new(Arc::clone(&self.proxy));
        let mut output = vec![];
        let rest = with_valid_head(text.as_bytes(), |head| path.find(head, &mut output))?;
        let found = path.take_found();
        assert!(found.is_none() || rest.is_none(), "{case:?}");
        if let Some(found) = found {
            self.check(case, &found);
        }
        output.extend_from_slice(&rest?);
        Some(parse(&output))
    }

    /// Expects the fast path to find of a request that it does not respond to what the classifier and the slow path do.
    fn check(&self, case: &Case, found: &Found) {
        let (routed, key) = match &found.finding {
            Finding::Route(routed, key) => (routed, key),
            Finding::Pass(reason) => {
                let (_, disposition) = self.disposition(case, Version::HTTP_11);
                let Disposition::Pass(expected) = disposition else { panic!("{case:?}: {disposition:?}") };
                assert_eq!(*reason, expected, "{case:?}");
                self.passes.set(self.passes.get() + 1);
                return;
            }
        };
        let (request, is_bypassed) = self.classified(case, Version::HTTP_11).expect("a request of a route");
        assert!(case.method == "GET" && !is_bypassed && routed.bypass.is_none(), "{case:?}");
        assert_eq!(routed.route.index, request.route.index, "{case:?}");
        assert_eq!((key.as_str(), key.hash()), (request.key.as_str(), request.key.hash()), "{case:?}");
        assert_eq!(key.purge_names(), request.key.purge_names(), "{case:?}");
        if !routed.kinds.has_connection() {
            assert_eq!(routed.kinds, request.kinds, "{case:?}");
        }
    }

    /// Returns the response of the fast path over HTTP/2, if it responds and the request is plain.
    fn fast_over_http2(&self, case: &Case) -> Option<Parsed> {
        let pseudo =
            [(":method", case.method), (":scheme", "http"), (":authority", "shop"), (":path", &*case.target)];
        let mut path = FastPath2::new(Arc::clone(&self.proxy));
        let mut block = vec![];
        let body = with_plain_request(&[&pseudo[..], &case.lines].concat(), |request| {
            let without_room = path.respond(request, 0, &mut vec![]);
            assert!(without_room.is_none_or(|body| body.is_empty()));
            path.respond(request, usize::MAX, &mut block)
        })??;
        let block = fields_of(&block);
        let mut fields = fields(block.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        let status = fields.remove(":status").unwrap().concat().parse().unwrap();
        Some((status, fields, body.to_vec()))
    }
}

/// Fields in the order of their names.
type Fields = BTreeMap<String, Vec<String>>;
/// A status, the fields and the body.
type Parsed = (u16, Fields, Vec<u8>);

fn fields<'a>(lines: impl Iterator<Item = (&'a str, &'a [u8])>) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in lines {
        let value = String::from_utf8(value.to_vec()).unwrap();
        fields.entry(name.to_owned()).or_default().push(value);
    }
    fields
}

/// Reads a response as it is written to an HTTP/1 connection.
fn parse(bytes: &[u8]) -> Parsed {
    let mut lines = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut lines);
    let httparse::Status::Complete(length) = response.parse(bytes).unwrap() else { panic!("a whole head") };
    let fields = fields(response.headers.iter().map(|line| (line.name, line.value)));
    (response.code.unwrap(), fields, bytes[length..].to_vec())
}

/// Removes what may tick between two responses.
fn without_time(mut fields: Fields) -> Fields {
    let age = fields.remove("age").expect("every hit has an age");
    assert_eq!(age.len(), 1);
    for status in fields.get_mut("cache-status").unwrap() {
        let members: Vec<_> = status.split("; ").filter(|member| !member.starts_with("ttl=")).collect();
        *status = members.join("; ");
    }
    fields
}

/// Returns the fields of the slow path's response as hyper sends them.
fn as_sent(case: &Case, head: &http::response::Parts, body: &[u8]) -> Fields {
    let mut fields = fields(head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    let has_body = !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_body && case.method == "GET" {
        let before = fields.insert("content-length".to_owned(), vec![body.len().to_string()]);
        assert_eq!(before, None);
    }
    fields
}

/// Expects the fast path to respond only to routed requests, as the slow path does, and to so many of each method and
/// status at least.
fn check(
    version: Version,
    fast: impl Fn(&Fixture, &Case) -> Option<Parsed>,
    least: &[((&'static str, u16), usize)],
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let fixture = Fixture::new();
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 8_000, failure_persistence: None, ..Default::default() });
    let responses = RefCell::new(BTreeMap::<_, usize>::new());
    runner
        .run(&case(), |case| {
            // An absolute target is one of HTTP/1.
            if version == Version::HTTP_2 && !case.target.starts_with('/') {
                return Ok(());
            }
            let classified = fixture.classified(&case, version);
            if let Some((request, _)) = &classified {
                fixture.store_for(request, &case);
            }
            let Some((status, fields, body)) = fast(&fixture, &case) else {
                *responses.borrow_mut().entry(("declined", 0)).or_default() += 1;
                return Ok(());
            };
            *responses.borrow_mut().entry((case.method, status)).or_default() += 1;
            let Some((request, false)) = classified else {
                return Err(TestCaseError::fail("the classifier passes or bypasses it"));
            };
            let (slow, slow_body) = runtime.block_on(async {
                let response = fixture.proxy.respond(request).await.response;
                let (head, body) = response.into_parts();
                (head, body.collect().await.unwrap().to_bytes())
            });
            prop_assert_eq!(status, slow.status.as_u16());
            let slow_fields = as_sent(&case, &slow, &slow_body);
            prop_assert_eq!(without_time(fields), without_time(slow_fields));
            prop_assert_eq!(&body, &slow_body);
            Ok(())
        })
        .unwrap();
    assert!(version == Version::HTTP_2 || fixture.passes.get() > 100, "{} pass", fixture.passes.get());
    let responses = responses.into_inner();
    for (kind, least) in least {
        assert!(responses.get(kind).is_some_and(|count| count >= least), "{kind:?} in {responses:?}");
    }
}

/// Least numbers of responses to GETs, by status.
const OF_GET: [((&str, u16), usize); 5] =
    [(("declined", 0), 800), (("GET", 200), 400), (("GET", 206), 20), (("GET", 304), 50), (("GET", 404), 20)];

#[test]
fn fast_path_responds_only_to_routed_requests_and_as_the_slow_path() {
    let least = [&OF_GET[..], &[(("HEAD", 200), 50), (("HEAD", 304), 10)]].concat();
    check(Version::HTTP_11, Fixture::fast, &least);
}

#[test]
fn fast_path_of_http_2_responds_only_to_routed_requests_and_as_the_slow_path() {
    check(Version::HTTP_2, Fixture::fast_over_http2, &OF_GET);
}
