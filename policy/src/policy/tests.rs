use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use super::*;
use crate::{HeaderKinds, Key, Lifetimes, NormalPath, Writing, key::KeyParts, spec::PurgeSpec};

mod errors;
mod lifetimes;
mod matching;
mod passing;
mod values;

const SHOP: &str = r#"
l2: {redis: {urlFrom: {env: REDIS_URL}}}
sources:
- {name: catalog, postgres: {urlFrom: {file: /run/db}}}
routes:
- name: user
  match: {path: "/api/users/{id}"}
  ttl: 120s
  bypass: {query: {nocache: "true"}}
  tags: ["user:{id}"]
- name: item
  match: {path: "/data/{key}", methods: [GET]}
  ttl: 300s
  from: [{postgres: {source: catalog, query: "select key, value from items where key = {key}::int"}}]
- name: late
  match: {path: "/api/users/{name}"}
invalidation:
  onWrite:
  - match: {path: "/api/users/{id}", methods: [PUT, DELETE]}
    purge: {tags: ["user:{id}"], paths: ["/api/users"]}
"#;

fn spec(text: &str) -> CacheSpec {
    serde_yaml::from_str(text).unwrap()
}

fn problems(text: &str) -> Vec<String> {
    Policy::compile(&spec(text)).unwrap_err().iter().map(ToString::to_string).collect()
}

fn line<'a>(method: &'a Method, path: &'a NormalPath<'a>) -> RequestLine<'a> {
    RequestLine { method, uri_host: None, path, query: None }
}

fn route<'a>(policy: &'a Policy, method: &Method, path: &str) -> Option<Match<'a>> {
    policy.route(&line(method, &NormalPath::new(path)), &HeaderMap::new())
}

#[test]
fn the_first_route_that_matches_decides() {
    let policy = Policy::compile(&spec(SHOP)).unwrap();
    let found = route(&policy, &Method::GET, "/api/users/7").unwrap();
    let parameters = found.parameters(&NormalPath::new("/api/users/7"));
    assert_eq!((found.route.index, parameters), (0, vec![("id", "7".to_owned())]));
    assert!(route(&policy, &Method::HEAD, "/data/7").is_none());
    assert!(route(&policy, &Method::PUT, "/api/users/7").is_none());
    assert!(route(&policy, &Method::GET, "/api/users/x/../7").is_none());
    assert!(route(&policy, &Method::GET, "/api/users/7;v=1").is_none());
    let of_sources = route(&policy, &Method::GET, "/data/7;v=1").map(|found| found.route.asks_application);
    assert_eq!(of_sources, Some(false), "nobody reads the path a second time");
}

#[test]
fn a_request_bypasses_by_name_and_value() {
    let text = SHOP.replace(
        "{query: {nocache: \"true\"}}",
        "{query: {nocache: \"true\"}, headers: {X-Preview: \"1\", x-draft: \"On\", X-Any: \"*\"}, cookies: {session: \"*\", \"cart_*\": \"*\"}}",
    );
    let policy = Policy::compile(&spec(&text)).unwrap();
    let by = |query, name: &str, value: &str| {
        policy.routes()[0].bypass(query, &[(name.as_bytes(), value.as_bytes())][..])
    };
    assert_eq!(by(Some("a=b&nocache=true"), "accept", "*/*"), Some(BypassBy::Query));
    assert_eq!(by(Some("a=b;NoCache=t%72ue"), "accept", "*/*"), Some(BypassBy::Query));
    assert_eq!(by(None, "x-preview", "1"), Some(BypassBy::Header));
    for name in ["x-preview", "X-PREVIEW", "x_preview"] {
        for value in ["0, 1", " 1 ", "\"1\"", "%31"] {
            assert_eq!(by(None, name, value), Some(BypassBy::Header), "{name}: {value}");
        }
    }
    for (value, by_it) in [("on", Some(BypassBy::Header)), ("ON", Some(BypassBy::Header)), ("only", None)] {
        assert_eq!(by(None, "X-Draft", value), by_it, "{value}");
    }
    for value in ["caf%C3%A9", "caf\u{e9}", "50%", "%u0031"] {
        assert_eq!(by(None, "x-preview", value), None, "{value} is no value that bypasses");
    }
    assert_eq!(by(None, "x_any", ""), Some(BypassBy::Header));
    assert_eq!(by(None, "Cookie", "a=b; session=x"), Some(BypassBy::Cookie));
    assert_eq!(by(None, "Cookie", "a=b; cart_7f=x"), Some(BypassBy::Cookie));
    assert_eq!(by(None, "Cookie", "car=b; my_cart_7f=x"), None);
    for query in [None, Some("nocache=false"), Some("nocache"), Some("xnocache=true")] {
        assert_eq!(by(query, "x-preview", "2"), None, "{query:?}");
    }
}

#[test]
fn posts_are_distinguished_by_body() {
    let text = SHOP.replace("/api/users/{name}\"}", "/graphql\", methods: [POST]}\n  key: {body: {}}");
    let policy = Policy::compile(&spec(&text)).unwrap();
    assert_eq!(route(&policy, &Method::POST, "/graphql").unwrap().route.body_limit(), Some(64 << 10));
    assert!(route(&policy, &Method::GET, "/graphql").is_none());
    assert!(policy.covers("/graphql") && policy.covers("/GraphQL/") && !policy.covers("/other"));
}

#[test]
fn targeted_headers_are_larders_own_and_the_listed_ones() {
    let targets = |text: &str| {
        let policy = Policy::compile(&spec(text)).unwrap();
        policy.targets().iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(targets("{}"), ["larder-cache-control"]);
    let listed = "targetedCacheControl: [CDN-Cache-Control, Larder-Cache-Control]";
    assert_eq!(targets(listed), ["larder-cache-control", "cdn-cache-control"]);
    assert_eq!(Policy::bare().targets()[1], "cdn-cache-control");
}

#[test]
fn bypass_parameters_are_keyed_beside_allowed_ones() {
    let text = SHOP.replace("  tags: [\"user:{id}\"]\n-", "  key: {query: {allow: [page]}}\n-");
    let policy = Policy::compile(&spec(&text)).unwrap();
    let path = NormalPath::new("/api/users/7");
    let parts = KeyParts {
        method: &Method::GET,
        target: None,
        uri_host: None,
        path: &path,
        query: Some("a=1&nocache=TRUE"),
        body: None,
    };
    let key = Key::new(&parts, &HeaderMap::new(), &HeaderKinds::default(), &policy.routes()[0].key);
    assert_eq!(key.as_str(), "GET:http:///api/users/7?nocache=TRUE");
}

fn purged(policy: &Policy, method: &Method, path: &str) -> Vec<PurgeName> {
    let none: &[(&[u8], &[u8])] = &[];
    Writing::of(method, path, None, none).map(|writing| policy.purged_by(&writing)).unwrap_or_default()
}

#[test]
fn write_purges_the_names_of_its_rule() {
    let policy = Policy::compile(&spec(SHOP)).unwrap();
    let expected = super::sorted(vec![PurgeName::tag("user:7"), PurgeName::path("/api/users")]);
    for path in ["/api/users/7", "/api/users/x/../7", "/API/Users/7/", "//api//users/7", "/api%2fusers/7"] {
        let purged = purged(&policy, &Method::PUT, path);
        assert!(expected.iter().all(|name| purged.contains(name)), "{path}");
    }
    assert_eq!(purged(&policy, &Method::PUT, "/api/users/7"), expected);
    assert!(purged(&policy, &Method::PATCH, "/api/users/7").is_empty());
    assert!(purged(&policy, &Method::GET, "/api/users/7").is_empty());
}

#[test]
fn soft_rule_makes_responses_stale_beside_a_hard_one() {
    let mut with_soft = spec(SHOP);
    let rules = &mut with_soft.invalidation.as_mut().unwrap().on_write;
    let mut soft = rules[0].clone();
    soft.purge = PurgeSpec { tags: vec!["list:{id}".into()], soft: true, ..PurgeSpec::default() };
    rules.push(soft);
    let policy = Policy::compile(&with_soft).unwrap();
    let writing = Writing::of(&Method::PUT, "/api/users/7", None, &HeaderMap::new()).unwrap();
    let purges = policy.purges_of(&writing);
    assert_eq!(
        (&purges.hard.tags[..], &purges.soft.tags[..]),
        (&["user:7".into()][..], &["list:7".into()][..])
    );
    let mut expected = vec![PurgeName::tag("user:7"), PurgeName::path("/api/users")];
    expected.extend(PurgeName::softly(vec![PurgeName::tag("list:7")]));
    assert_eq!(purges.names(), super::sorted(expected));
    assert_ne!(policy.fingerprint(), Policy::compile(&spec(SHOP)).unwrap().fingerprint());
}

/// Returns the purge names of the response to GET of a path, without its key.
fn names_of(policy: &Policy, path: &str) -> Vec<PurgeName> {
    let path = NormalPath::new(path);
    let found = policy.route(&line(&Method::GET, &path), &HeaderMap::new());
    let found = found.unwrap_or_else(|| panic!("{path:?} has a route"));
    found.route.tags(path.as_sent()).chain([PurgeName::path(path.as_sent())]).collect()
}

#[test]
fn write_purges_any_spelling_of_a_value() {
    let by = |purge: &str| {
        let text = format!(
            r#"
routes:
- {{name: user, match: {{path: "/users/{{id}}"}}, ttl: 60s, tags: ["user:{{id}}"]}}
invalidation:
  onWrite:
  - {{match: {{path: "/users/{{id}}"}}, purge: {purge}}}
"#
        );
        Policy::compile(&spec(&text)).unwrap()
    };
    let policies = [by(r#"{tags: ["user:{id}"]}"#), by(r#"{paths: ["/users/{id}"]}"#)];
    for (stored, written) in [
        (
            "me@x.com",
            &["me@x.com", "me%40x.com", "ME%40X.com", "me%2540x.com", "me@x.com/", "me@x.com;v=1"][..],
        ),
        ("a,b", &["a,b", "a%2Cb", "a%2cb"]),
        ("x=", &["x=", "x%3D"]),
        ("a+b", &["a+b", "a%2Bb", "a%20b"]),
        ("o'neil", &["o'neil", "o%27neil", "O'Neil"]),
        ("a(b)", &["a(b)", "a%28b%29"]),
        ("urn:a:1", &["urn:a:1", "urn%3Aa%3A1"]),
        ("a!b", &["a!b", "a%21b"]),
        ("a*b", &["a*b", "a%2Ab"]),
        ("a$b", &["a$b", "a%24b"]),
        ("a&b", &["a&b", "a%26b"]),
        ("%C3%BC", &["%C3%BC", "%c3%bc", "\u{fc}", "\u{dc}", "u%CC%88"]),
        ("a%20b", &["a%20b", "a b", "a+b"]),
        ("%25", &["%25", "%"]),
        ("100%25", &["100%25", "100%", "100%2525"]),
        ("a%3Cb", &["a<b", "a%3cb"]),
        ("1", &["1", "%31", "1/", "1//", "1;v=1", "1%3Bv=1", "./1", "1.", "x/../1", "1%00", "1%2f", "1%20"]),
        ("A", &["a", "A", "%41", "%2541"]),
    ] {
        for id in written {
            for policy in &policies {
                let names = names_of(policy, &format!("/users/{stored}"));
                for prefix in ["/users/", "/Users/", "//users/", "/users//"] {
                    let purged = purged(policy, &Method::PUT, &format!("{prefix}{id}"));
                    assert!(names.iter().any(|name| purged.contains(name)), "{prefix}{id} is {stored}");
                }
            }
        }
    }
    for policy in &policies {
        let names = names_of(policy, "/users/1");
        assert!(!purged(policy, &Method::PUT, "/users/2").iter().any(|name| names.contains(name)));
    }
}

#[test]
fn disguised_write_matches_every_reading() {
    let policy = Policy::compile(&spec(SHOP)).unwrap();
    let of = |method: Method, path: &str, query: Option<&str>, line: (&str, &str)| {
        let fields = [(line.0.as_bytes(), line.1.as_bytes())];
        let writing = Writing::of(&method, path, query, &fields[..]);
        writing.is_some_and(|writing| policy.purged_by(&writing).contains(&PurgeName::tag("user:7")))
    };
    assert!(of(Method::GET, "/api/users/7", None, ("x-http-method-override", "GET, delete")));
    assert!(of(Method::POST, "/api/users/7", Some("_method=put"), ("accept", "*/*")));
    assert!(of(Method::POST, "/api/users/7", None, ("content-type", "multipart/form-data; boundary=x")));
    assert!(of(Method::PUT, "/index", None, ("x-original-url", "/api/users/7?x=1")));
    assert!(!of(Method::POST, "/api/users/7", None, ("accept", "*/*")));
}

#[test]
fn without_a_policy_everything_is_one_route_and_every_write_purges_its_path() {
    let bare = Policy::bare();
    assert!(route(&bare, &Method::GET, "/anything").is_some());
    assert_eq!(purged(&bare, &Method::POST, "/a"), [PurgeName::path("/a")]);
    assert!(route(&Policy::absent(), &Method::GET, "/anything").is_none());
}

#[test]
fn the_shape_changes_with_keys_tags_and_writes_and_not_with_lifetimes() {
    let fingerprint = |text: &str| Policy::compile(&spec(text)).unwrap().fingerprint();
    assert_eq!(fingerprint(SHOP), fingerprint(&SHOP.replace("120s", "60s")));
    assert_ne!(fingerprint(SHOP), fingerprint(&SHOP.replace("tags: [\"user:{id}\"]", "tags: [\"u:{id}\"]")));
    assert_ne!(
        fingerprint(SHOP),
        fingerprint(&SHOP.replace("ttl: 120s", "ttl: 120s\n  key: {headers: [cookie]}"))
    );
    for more in [
        "key: {cookies: [lang]}",
        "key: {query: {allow: [page]}}",
        "key: {query: {order: Sorted}}",
        "storeDespite: [Private]",
        "setCookie: Strip",
        "statuses: [{code: 404}]",
        "statuses: [{code: 4xx}]",
    ] {
        assert_ne!(
            fingerprint(SHOP),
            fingerprint(&SHOP.replace("ttl: 120s", &format!("ttl: 120s\n  {more}"))),
            "{more}"
        );
    }
    for more in ["staleIfError: 1h", "clientDirectives: Honor"] {
        assert_eq!(
            fingerprint(SHOP),
            fingerprint(&SHOP.replace("ttl: 120s", &format!("ttl: 120s\n  {more}"))),
            "{more}"
        );
    }
    let writes = SHOP.replace("[PUT, DELETE]", "[PUT]");
    assert!(writes != SHOP && fingerprint(&writes) != fingerprint(SHOP), "other writes purge");
    assert_ne!(fingerprint(SHOP), fingerprint(&format!("{SHOP}targetedCacheControl: [CDN-Cache-Control]")));
}

const TIERS: &str = r#"
l1: {maxEntries: 1000, eviction: S3FIFO}
l2: {redis: {urlFrom: {env: REDIS}, topology: Sentinel, masterName: shop, hardTimeout: 2s, maxObjectSize: 64Ki}}
sources:
- name: db
  postgres: {urlFrom: {env: DB}, caFrom: {file: /ca.pem}}
- name: api
  http: {url: "https://api.example/v2", timeout: 100ms}
admin: {pathPrefix: /_larder}
routes:
- name: item
  match: {path: "/data/{key}"}
  ttl: 300s
  ttlFrom: {json: /ttl}
  ttlJitterPercent: 10
  l1TTL: 5s
  l2TTL: 1h
  notFoundTTL: 2s
  earlyRefresh: XFetch
  lastKnownGood: {source: db}
  retryInterval: 3s
  collapseTimeout: 750ms
  envelope: true
  key: {query: {allow: [x]}}
  from:
  - postgres: {source: db, query: "select v from items where key = {key}::int and page = {query.page}"}
  - http: {source: api, path: "/products/{key}?page={query.page}", persist: {source: db, statement: "insert into items values ({key}::int, {body}::jsonb) on conflict do nothing"}}
  - application: {}
"#;

#[test]
fn tiers_and_sources_are_compiled() {
    let policy = Policy::compile(&spec(TIERS)).unwrap();
    assert_eq!(policy.admin_prefix.as_deref(), Some("/_larder"));
    let route = &policy.routes()[0];
    let Lifetimes {
        statuses, ttl_from, jitter_percent, l1_ttl, l2_ttl, early_refresh, retry_interval, ..
    } = &route.lifetimes;
    assert_eq!(statuses[1], (StatusCode::NOT_FOUND.into(), Some(Duration::from_secs(2))));
    assert_eq!(*ttl_from, Some(crate::lifetimes::TtlFrom::Json("/ttl".to_owned())));
    assert_eq!((*jitter_percent, *early_refresh), (10, true));
    assert_eq!((*l1_ttl, *l2_ttl), (Some(Duration::from_secs(5)), Some(Duration::from_secs(3600))));
    assert_eq!(*retry_interval, Duration::from_secs(3));
    assert_eq!(route.collapse_timeout, Duration::from_millis(750));
    assert_eq!(Policy::compile(&spec(SHOP)).unwrap().routes()[0].collapse_timeout, Duration::from_secs(5));
    assert!(route.asks_application && route.envelope);
    assert_eq!(route.last_known_good.as_deref(), Some("db"));
    let [SourceRef::Postgres(query), SourceRef::Http(request)] = &route.sources[..] else {
        panic!("{:?}", route.sources)
    };
    assert_eq!(query.query.parameters, ["key", "query.page"]);
    assert_eq!(request.persist.as_ref().unwrap().query.parameters, ["key", "body"]);
}

#[test]
fn source_parameters_are_keyed() {
    let key = |query: &str| {
        let policy = Policy::compile(&spec(TIERS)).unwrap();
        let mut text = String::new();
        let path = NormalPath::new("/data/1");
        let parts = crate::key::KeyParts {
            method: &Method::GET,
            target: None,
            uri_host: None,
            path: &path,
            query: Some(query),
            body: None,
        };
        let fields = http::HeaderMap::new();
        let kinds = crate::HeaderKinds::of(&fields);
        crate::Key::write(&mut text, &parts, &fields, &kinds, &policy.routes()[0].key);
        text
    };
    assert_ne!(key("page=1"), key("page=2"));
    assert_eq!(key("other=1"), key("other=2"));
    let persisted = TIERS.replace("({key}::int, {body}::jsonb)", "({query.page}::int, {body}::jsonb)");
    let persisted = persisted.replace(" and page = {query.page}", "").replace("?page={query.page}", "");
    assert_eq!(Policy::compile(&spec(&persisted)).unwrap().routes()[0].sources.len(), 2);
    assert!(
        problems(&persisted.replace("allow: [x]", "ignore: [page]"))[0].contains("which the key leaves out")
    );
    let ignored = TIERS.replace("allow: [x]", "ignore: [page]");
    assert!(problems(&ignored)[0].contains("{query.page}, which the key leaves out"));
}

#[test]
fn rest_of_a_path_is_usable_where_parameters_are_and_written_without_its_star() {
    let text = r#"
sources:
- {name: api, http: {url: "http://store"}}
- {name: db, postgres: {urlFrom: {env: URL}}}
routes:
- name: file
  match: {path: "/files/{id}/{*path}"}
  ttl: 60s
  tags: ["file:{id}:{path}"]
  from:
  - {postgres: {source: db, query: "select {path}"}}
  - {http: {source: api, path: "/v1/{id}/{path}?of={path}", persist: {source: db, statement: "insert into t values ({path}, {body}) on conflict do nothing"}}}
invalidation:
  onWrite:
  - {match: {path: "/files/{id}/{*path}"}, purge: {tags: ["file:{id}:{path}"], paths: ["/copies/{path}", "/{id}"], prefixes: ["/dirs/{path}"]}}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    let [SourceRef::Postgres(row), SourceRef::Http(request)] = &policy.routes()[0].sources[..] else {
        panic!("two sources")
    };
    assert_eq!(row.query.parameters, ["path"]);
    assert_eq!(request.path, "/v1/{id}/{*path}?of={*path}");
    let writing = Writing::of(&Method::PUT, "/Files/7/a%20b//c", None, &HeaderMap::new()).unwrap();
    let Purges { tags, paths, prefixes, everything } = policy.purges_of(&writing).hard;
    assert_eq!(tags, ["file:7:a%20b%2Fc"]);
    assert_eq!(paths, ["/7", "/copies/a%20b/c"]);
    assert_eq!((prefixes, everything), (vec!["/dirs/a%20b/c".to_owned()], false));
    for path in ["/files/7/..", "/files/7/%2e%2E/x", "/files/7/a/%252e%252e"] {
        let writing = Writing::of(&Method::PUT, path, None, &HeaderMap::new()).unwrap();
        let prefixes = policy.purges_of(&writing).hard.prefixes;
        let is_in_place =
            |prefix: &String| ["/dirs/", "/copies/"].iter().any(|folder| prefix.starts_with(folder));
        assert!(prefixes.iter().all(is_in_place), "{path}: {prefixes:?}");
        let others = PurgeName::prefixes_of("/other");
        assert!(
            !prefixes
                .iter()
                .flat_map(|prefix| PurgeName::prefixes(prefix))
                .any(|name| others.contains(&name))
        );
    }
    for (written, starred) in [
        ("tags: [\"file:{id}:{path}\"]\n", "tags: [\"{*path}\"]\n"),
        ("select {path}", "select {*path}"),
        ("{id}/{path}?of={path}", "{id}/{*path}"),
        ("values ({path}", "values ({*path}"),
        ("purge: {tags: [\"file:{id}:{path}\"]", "purge: {tags: [\"{*path}\"]"),
        ("/copies/{path}", "/copies/{*path}"),
        ("/dirs/{path}", "/dirs/{*path}"),
    ] {
        assert!(text.contains(written), "{written}");
        let problems = problems(&text.replace(written, starred));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].ends_with("belongs into match.path: write {path} here"), "{problems:?}");
    }
}
