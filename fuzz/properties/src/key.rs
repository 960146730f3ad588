//! Keys. The input is two requests: each a line with a method, a target and, where that has one, its host; then field lines.

use http::{HeaderValue, Method};
use larder_policy::{
    HeaderKinds, Key, NormalPath,
    key::{KeyParts, KeyRules},
    spec::{KeyQuery, KeySpec, QueryOrder},
};

use crate::input::{Message, blocks};

/// A key is independent of the buffer; and two requests share a key only if everything that the route distinguishes is
/// equal: no host, query, header or cookie forges another part of it.
pub fn check(data: &[u8]) {
    let [one, other] = blocks(data);
    let (Some(one), Some(other)) = (Request::read(one), Request::read(other)) else { return };
    for spec in specs() {
        let rules = KeyRules::new(Some(&spec));
        let keys = [&one, &other].map(|request| request.key(&rules));
        if keys[0] == keys[1] {
            assert_eq!(one.told_apart_by(&spec), other.told_apart_by(&spec), "{}", keys[0].as_str());
        }
        let same_target = one.method == other.method && one.path == other.path;
        if same_target && one.query == other.query && one.host == other.host && one.fields == other.fields {
            assert_eq!(keys[0], keys[1]);
        }
    }
}

/// A route without rules, one with headers, and one that leaves out parts of the query.
fn specs() -> [KeySpec; 3] {
    let strings = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
    let headers = strings(&["Accept-Language", "X-Tenant"]);
    let cookies = strings(&["lang"]);
    let query =
        KeyQuery { ignore: strings(&["utm_*"]), order: Some(QueryOrder::Sorted), ..KeyQuery::default() };
    [
        KeySpec::default(),
        KeySpec { headers, cookies, ..KeySpec::default() },
        KeySpec { query: Some(query), ..KeySpec::default() },
    ]
}

#[derive(Debug)]
struct Request {
    method: Method,
    path: String,
    query: Option<String>,
    host: Option<String>,
    fields: Message,
}

impl Request {
    fn read(block: &[u8]) -> Option<Self> {
        let end = block.iter().position(|byte| *byte == b'\n').unwrap_or(block.len());
        let mut words = str::from_utf8(&block[..end]).ok()?.split(' ');
        let method = Method::from_bytes(words.next()?.as_bytes()).ok()?;
        let target = words.next().filter(|target| target.starts_with('/'))?;
        if target.bytes().any(|byte| byte.is_ascii_control()) {
            return None; // no server takes it for a target
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let fields = Message::read(&block[end..]);
        let host = words.next().map(str::to_owned);
        Some(Self { method, path: path.to_owned(), query, host, fields })
    }

    fn key(&self, rules: &KeyRules) -> Key {
        let path = NormalPath::new(&self.path);
        let parts = KeyParts {
            method: &self.method,
            target: None,
            uri_host: self.host.as_deref(),
            path: &path,
            query: self.query.as_deref(),
            body: None,
        };
        let (map, lines) = (self.fields.map(), self.fields.lines());
        let kinds = HeaderKinds::of(&map);
        assert_eq!(kinds, HeaderKinds::of(lines.as_slice()));
        let key = Key::new(&parts, &map, &kinds, rules);
        let mut text = "what was there before".to_owned();
        let spans = Key::write(&mut text, &parts, lines.as_slice(), &kinds, rules);
        assert_eq!(text, key.as_str(), "written is the same as made");
        assert_eq!(Key::of(&text, spans), key);
        let sent = if path.is_ambiguous() { path.as_str() } else { path.as_sent() };
        assert_eq!(spans.path(&text), sent);
        assert_eq!(spans.purge_names(&text), key.purge_names());
        assert!(!text.bytes().any(|byte| byte < b' '), "{text:?}: a key is one line");
        key
    }

    /// Returns everything that must differ where two requests could have different responses.
    fn told_apart_by(&self, spec: &KeySpec) -> ToldApartBy {
        let joined = |name: &str| {
            let values = self.fields.values(name);
            (!values.is_empty()).then(|| values.join(&b", "[..]))
        };
        let lower = |value: &[u8]| first(value).to_ascii_lowercase();
        let without_port = |host: Vec<u8>| {
            let ports: [&[u8]; 2] = [b":80", b":443"];
            ports.iter().find_map(|port| host.strip_suffix(*port)).unwrap_or(&host).to_vec()
        };
        let own = match &self.host {
            Some(host) => host.as_bytes().to_vec(),
            None => joined("host").unwrap_or_default(),
        };
        let forwarded = |name| self.fields.values(name).first().map(|value| lower(value));
        let mut query = self.query.as_ref().map(|query| query.replace('#', "%23"));
        if spec.query.is_some() {
            query = query.map(|query| sorted_without_utm(&query)).filter(|query| !query.is_empty());
        }
        ToldApartBy {
            method: self.method.clone(),
            path: NormalPath::new(&self.path).as_str().to_owned(),
            query,
            host: without_port(
                forwarded("x-forwarded-host").unwrap_or_else(|| first(&own).to_ascii_lowercase()),
            ),
            own_host: without_port(own.to_ascii_lowercase()),
            scheme: forwarded("x-forwarded-proto").unwrap_or_else(|| b"http".to_vec()),
            prefix: joined("x-forwarded-prefix"),
            headers: spec.headers.iter().flatten().map(|name| joined(&name.to_ascii_lowercase())).collect(),
            cookies: spec.cookies.iter().flatten().map(|name| self.cookies(name)).collect(),
        }
    }

    /// Returns the values of a cookie that is sent in its regular form.
    fn cookies(&self, name: &str) -> Vec<Vec<u8>> {
        let lines = self.fields.0.iter().filter(|(known, _)| known == "cookie").map(|(_, value)| value);
        let pairs = lines.flat_map(|line: &HeaderValue| line.as_bytes().split(|byte| *byte == b';'));
        let values = pairs.filter_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.to_vec())
        });
        values.collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct ToldApartBy {
    method: Method,
    path: String,
    query: Option<String>,
    host: Vec<u8>,
    own_host: Vec<u8>,
    scheme: Vec<u8>,
    prefix: Option<Vec<u8>>,
    headers: Vec<Option<Vec<u8>>>,
    cookies: Vec<Vec<Vec<u8>>>,
}

fn first(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii()
}

/// The pairs of a query by name; within a name they keep their order.
fn sorted_without_utm(query: &str) -> String {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut pairs: Vec<_> =
        query.split('&').filter(|pair| pair.contains(';') || !name(pair).starts_with("utm_")).collect();
    if !query.contains(';') {
        pairs.sort_by_key(|pair| name(pair));
    }
    pairs.iter().flat_map(|pair| ["?", pair]).collect()
}
