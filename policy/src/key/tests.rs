use proptest::prelude::*;

use super::*;
use crate::spec::{KeyHost, KeyQuery, KeySpec, QueryOrder};

fn key(target: &str, headers: &[(&str, &str)], rules: &KeyRules) -> Key {
    key_with(target, headers, None, rules)
}

fn key_with(target: &str, headers: &[(&str, &str)], body: Option<&blake3::Hash>, rules: &KeyRules) -> Key {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let lines: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let fields = lines.as_slice();
    let path = NormalPath::new(path);
    let parts = KeyParts { method: &Method::GET, target: None, uri_host: None, path: &path, query, body };
    Key::new(&parts, fields, &HeaderKinds::of(fields), rules)
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn rules(ignore: &[&str], headers: &[&str]) -> KeyRules {
    KeyRules::new(Some(&KeySpec {
        query: Some(KeyQuery { ignore: Some(strings(ignore)), ..KeyQuery::default() }),
        headers: Some(strings(headers)),
        ..KeySpec::default()
    }))
}

fn query_rules(allow: &[&str], order: QueryOrder) -> KeyRules {
    let query = KeyQuery { allow: Some(strings(allow)), order: Some(order), ..KeyQuery::default() };
    KeyRules::new(Some(&KeySpec { query: Some(query), ..KeySpec::default() }))
}

#[test]
fn key_has_method_scheme_host_path_and_query() {
    let plain = KeyRules::default();
    assert_eq!(key("/p/?b=2&a=1", &[("host", "Shop")], &plain).as_str(), "GET:http://shop/p/?b=2&a=1");
    assert_eq!(
        key(
            "/p",
            &[("host", "shop"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "example.com")],
            &plain
        )
        .as_str(),
        "GET:https://example.com/p#host=shop"
    );
}

#[test]
fn path_of_a_key_is_found_in_its_text() {
    let odd = [("host", "a/b?c"), ("x-forwarded-proto", "h://x"), ("x-forwarded-host", "d#e")];
    for (target, path) in
        [("/", "/"), ("/p/?b=/c", "/p/"), ("/p", "/p"), ("//p//q", "//p//q"), ("/a:://b", "/a:://b")]
    {
        for headers in [&[("host", "shop")][..], &[], &odd] {
            let key = key(target, headers, &rules(&[], &["accept"]));
            assert_eq!(path_of(key.as_str()), path, "{key:?}");
            assert_eq!(path_of(&format!("{}\naccept=/x", key.as_str())), path, "{key:?}");
        }
    }
    assert_eq!((path_of(""), path_of("GET:/a"), path_of("GET:http://a")), ("", "", ""));
}

#[test]
fn spellings_have_distinct_keys_and_shared_purge_names() {
    let plain = KeyRules::default();
    for [one, other] in [
        [("/users/1", ("host", "shop")), ("/%75sers/1", ("host", "shop"))],
        [("/caf%C3%A9", ("host", "shop")), ("/caf%c3%a9", ("host", "shop"))],
        [("/users/a@b", ("host", "shop")), ("/users/a%40b", ("host", "shop"))],
        [("/users/1", ("host", "shop")), ("/users/1", ("host", "shop."))],
        [("/users/1", ("x-forwarded-host", "shop")), ("/users/1", ("x-forwarded-host", "SHOP"))],
        [("/users/1", ("x-forwarded-host", "shop")), ("/users/1", ("x-forwarded-host", "shop:80"))],
        [("/users/1", ("x-forwarded-proto", "https")), ("/users/1", ("x-forwarded-proto", "HTTPS"))],
    ] {
        let [one, other] = [one, other].map(|(path, line)| key(path, &[line], &plain));
        assert_ne!(one, other);
        assert_eq!(one.purge_names(), other.purge_names(), "{} {}", one.as_str(), other.as_str());
    }
    let own = ("host", "shop");
    for line in [("x-forwarded-proto", "http"), ("x-forwarded-host", "shop"), ("x-forwarded-proto", "")] {
        assert_ne!(key("/p", &[own, line], &plain), key("/p", &[own], &plain), "{line:?}");
    }
    let forwarded = |value| key("/p", &[own, ("forwarded", value)], &plain);
    assert_ne!(forwarded("host=\"a;b\""), forwarded("host=\"a;c\""));
}

#[test]
fn case_and_default_port_of_a_host_make_no_difference_and_are_not_sent() {
    let plain = KeyRules::default();
    let https = ("x-forwarded-proto", "https");
    for (lines, host, sent) in [
        (&[("host", "shop")][..], "http://shop", None),
        (&[("host", "SHOP")], "http://shop", Some("shop")),
        (&[("host", "Shop:80")], "http://shop", Some("shop")),
        (&[("host", "shop:443")], "http://shop:443", None),
        (&[("host", "shop:8080")], "http://shop:8080", None),
        (&[("host", "[::A]:80")], "http://[::a]", Some("[::a]")),
        (&[("host", ":80")], "http://:80", None),
        (&[("host", "shop:443"), https], "https://shop", Some("shop")),
        (&[("host", "shop:80"), https], "https://shop:80", None),
        (&[("host", "shop:80"), ("x-forwarded-proto", "HTTP")], "HTTP://shop:80", None),
        // Several hosts stay as they are.
        (&[("host", "A"), ("host", "b")], "http://A", None),
        (&[("host", "A, b")], "http://A", None),
        (&[("host", "A:80"), ("x-forwarded-host", "A:80")], "http://A:80", None),
    ] {
        let key = key("/p", lines, &plain);
        let end = key.as_str().split('#').next().unwrap();
        assert_eq!(end, format!("GET:{host}/p"), "{lines:?}");
        let fields: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let found = host_to_send(None, fields.as_slice(), &plain);
        assert_eq!(found.as_deref(), sent.map(str::as_bytes), "{lines:?}");
    }
    let none: &[(&[u8], &[u8])] = &[];
    assert_eq!(host_to_send(Some("SHOP:80"), none, &plain).as_deref(), Some(&b"shop"[..]));
}

#[test]
fn ignored_hosts_share_a_key_that_no_host_has() {
    let any = KeyRules::new(Some(&KeySpec { host: Some(KeyHost::Ignore), ..KeySpec::default() }));
    let expected = key("/p?a=1", &[], &any);
    assert_eq!(expected.as_str(), "GET:http://*/p?a=1");
    for lines in [
        &[("host", "shop")][..],
        &[("host", "SHOP:80")],
        &[("host", "shop"), ("x-forwarded-host", "evil")],
        &[("host", "shop"), ("x-forwarded-host", "a, b")],
        &[("host", "shop"), ("forwarded", "for=a;host=evil")],
    ] {
        assert_eq!(key("/p?a=1", lines, &any), expected, "{lines:?}");
        let fields: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        assert_eq!(host_to_send(None, fields.as_slice(), &any), None, "{lines:?}");
    }
    for lines in [
        &[("host", "a"), ("host", "b")][..],
        &[("host", "a, b")],
        &[("x-forwarded-proto", "https")],
        &[("x-forwarded-port", "81")],
        &[("x-host", "evil")],
        &[("forwarded", "host=\"a;b\"")],
        &[("forwarded", "host=a;proto=https")],
    ] {
        assert_ne!(key("/p?a=1", lines, &any), expected, "{lines:?}");
    }
    assert_ne!(key("/p?a=1", &[("host", "*")], &KeyRules::default()), expected);
}

#[test]
fn ignored_parameters_are_not_keyed() {
    let rules = rules(&["utm_*", "fbclid"], &[]);
    assert_eq!(key("/p?utm_source=x&a=1&fbclid=2", &[], &rules).as_str(), "GET:http:///p?a=1");
    assert_eq!(key("/p?utm_source=x", &[], &rules), key("/p", &[], &rules));
    assert_ne!(key("/p?utm_source=x;id=9", &[], &rules), key("/p", &[], &rules));
}

#[test]
fn named_headers_are_keyed() {
    let rules = rules(&[], &["Accept-Language"]);
    assert_eq!(
        key("/p", &[("host", "h"), ("accept-language", "en, de")], &rules).as_str(),
        "GET:http://h/p#accept-language=en,%20de"
    );
    assert_ne!(key("/p", &[("accept-language", "")], &rules), key("/p", &[], &rules));
}

#[test]
fn cookies_on_several_lines_equal_those_on_one_line() {
    let rules = rules(&[], &["Cookie", "x"]);
    let one = key("/p", &[("cookie", "a=b; c=d")], &rules);
    assert_eq!(one.as_str(), "GET:http:///p#cookie=a%3Db;%20c%3Dd");
    assert_eq!(key("/p", &[("cookie", "a=b"), ("Cookie", "c=d")], &rules), one);
    assert_ne!(key("/p", &[("cookie", "a=b,c=d")], &rules), one);
    assert_eq!(key("/p", &[("x", "a"), ("x", "b")], &rules).as_str(), "GET:http:///p#x=a,%20b");
}

#[test]
fn purge_matches_by_key_with_and_without_host_and_by_path() {
    let names = key("/p/?a=1", &[("host", "h")], &KeyRules::default()).purge_names();
    assert_eq!(
        names,
        [PurgeName::key("GET:http://h/p/?a=1"), PurgeName::key("GET:/p/?a=1"), PurgeName::path("/p/"),]
    );
}

#[test]
fn forwarded_host_is_keyed_and_client_is_not() {
    let plain = KeyRules::default();
    let forwarded = |value| key("/p", &[("host", "h"), ("forwarded", value)], &plain);
    assert_eq!(
        forwarded("for=192.0.2.1;Host=evil;proto=https, for=192.0.2.2").as_str(),
        "GET:http://h/p#forwarded=for%3D;Host%3Devil;proto%3Dhttps,%20for%3D"
    );
    assert_eq!(forwarded("for=192.0.2.1"), forwarded("for=192.0.2.2"));
    assert_eq!(forwarded("for=a, for=\"[2001:db8::1]:80\";by=_b"), key("/p", &[("host", "h")], &plain));
    assert_eq!(forwarded("for=1;host=a, for=2"), forwarded("for=3;host=a, for=4"));
    for naive in [
        "for=\";host=evil\"",
        "for=\"a,host=evil\"",
        "for=\"\\\";host=evil\"",
        "for=\"x;host=evil",
        "for=1 host=evil",
        "for=host=evil",
        "for =evil",
        "secret=evil",
        "evil",
    ] {
        assert_ne!(forwarded(naive), key("/p", &[("host", "h")], &plain), "{naive}");
    }
    assert_ne!(forwarded("host=a, proto=b"), forwarded("host=a;proto=b"));
}

#[test]
fn link_building_headers_are_keyed() {
    let plain = KeyRules::default();
    assert_ne!(key("/p", &[("x-forwarded-prefix", "/evil")], &plain), key("/p", &[], &plain));
}

#[test]
fn only_allowed_parameters_are_keyed() {
    let rules = query_rules(&["page", "filter_*"], QueryOrder::AsSent);
    assert_eq!(key("/p?x=1&page=2&y=3&filter_a=4", &[], &rules).as_str(), "GET:http:///p?page=2&filter_a=4");
    assert_eq!(key("/p?x=1", &[], &rules), key("/p", &[], &rules));
    // An application might read each of these as the page.
    for query in ["%70age=2", "PAGE=2", "page[]=2", "x=1;page=2", "%u0070age=2", "pag%e=2"] {
        assert_ne!(key(&format!("/p?{query}"), &[], &rules), key("/p", &[], &rules), "{query}");
    }
}

#[test]
fn sorted_query_preserves_order_within_a_name() {
    let rules = query_rules(&[], QueryOrder::Sorted);
    let sorted =
        |query: &str| key(&format!("/?{query}"), &[], &rules).as_str()["GET:http:///?".len()..].to_owned();
    assert_eq!(sorted("b=1&a=2&b=0&a=1"), "a=2&a=1&b=1&b=0");
    assert_ne!(sorted("%61=1&a=2"), sorted("a=2&%61=1"));
    assert_ne!(sorted("A=1&a=2"), sorted("a=2&A=1"));
    assert_ne!(sorted("a[]=1&a[0]=2"), sorted("a[0]=2&a[]=1"));
    // Where ';' separates, `b` is 2 and then 1, or 1 and then 2.
    assert_ne!(sorted("a=1;b=2&b=1"), sorted("b=1&a=1;b=2"));
}

#[test]
fn sorted_query_is_forwarded_as_keyed() {
    let sorting = query_rules(&["a", "b"], QueryOrder::Sorted);
    assert_eq!(sorting.query_to_send("b=1&x=0&a=2").as_deref(), Some("a=2&b=1&x=0"));
    assert_eq!(sorting.query_to_send("a=2&b=1&x=0"), None);
    assert_eq!(sorting.query_to_send("b=1;c&a=2"), None);
    assert_eq!(query_rules(&["a", "b"], QueryOrder::AsSent).query_to_send("b=1&a=2"), None);
}

#[test]
fn body_and_cookies_are_keyed_on_request() {
    let hash = blake3::hash(b"{}");
    let rules = KeyRules::new(Some(&KeySpec { cookies: Some(strings(&["lang"])), ..KeySpec::default() }));
    let both = key_with("/p", &[("cookie", "lang=en")], Some(&hash), &rules);
    assert_eq!(both.as_str(), format!("GET:http:///p#cookie:lang=en&body:blake3={}", hash.to_hex()));
    let types = ["text/plain", "application/json"].map(|value| [("content-type", value)]);
    let [text, json] = types.map(|lines| key_with("/p", &lines, Some(&hash), &rules));
    assert_ne!(text, json, "how the body is read");
    assert_eq!(key("/p", &types[0], &rules), key("/p", &types[1], &rules), "without a body it says nothing");
}

#[test]
fn the_port_is_a_number() {
    let path = NormalPath::new("/");
    for port in [0, 80, 65535] {
        let parts = KeyParts {
            method: &Method::GET,
            target: Some(port),
            uri_host: Some("H"),
            path: &path,
            query: None,
            body: None,
        };
        let none: &[(&[u8], &[u8])] = &[];
        let key = Key::new(&parts, none, &HeaderKinds::default(), &KeyRules::default());
        assert_eq!(key.as_str(), format!("GET:http://h/#target={port}"));
    }
}

#[test]
fn several_hosts_are_all_keyed() {
    let plain = KeyRules::default();
    let key = key("/", &[("host", "A b"), ("Host", "B%")], &plain);
    assert_eq!(key.as_str(), "GET:http://A%20b/#host=A%20b,%20B%25");
}

/// All that a key is made of, with few values for each so that some meet.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    post: bool,
    host: String,
    path: String,
    query: Option<String>,
    language: Option<String>,
    cookie: Option<String>,
    body: Option<u8>,
}

fn parts() -> impl Strategy<Value = Parts> {
    let value = || prop_oneof![Just(String::new()), "[a-b&=#%;:?/ ]{1,4}", "[ -~]{0,8}"];
    // What a Cookie header can carry as one cookie's value.
    let cookie = prop_oneof!["[a-b&=#%:]{0,4}", "[!#-+./0-:<-~-]{0,8}"];
    let query = prop_oneof!["[a-b&=#%;]{0,5}", "[!-~]{0,10}"];
    (
        any::<bool>(),
        "[a-z]{0,2}(:81)?",
        "(/[a-b]{0,2}){1,2}",
        prop::option::of(query),
        prop::option::of(value()),
        prop::option::of(cookie),
        prop::option::of(0..3_u8),
    )
        .prop_map(|(post, host, path, query, language, cookie, body)| Parts {
            post,
            host,
            path,
            query: query.map(|query| query.replace('#', "%23")),
            language: language.map(|language| language.trim().to_owned()),
            cookie,
            body,
        })
}

impl Parts {
    fn rules() -> KeyRules {
        KeyRules::new(Some(&KeySpec {
            headers: Some(strings(&["accept-language"])),
            cookies: Some(strings(&["lang"])),
            ..KeySpec::default()
        }))
    }

    fn with<T>(&self, read: impl FnOnce(&KeyParts<'_>, &[(&[u8], &[u8])]) -> T) -> T {
        let Self { post, host, path, query, language, cookie, body } = self;
        let path = NormalPath::new(path);
        let hash = body.map(|body| blake3::hash(&[body]));
        let parts = KeyParts {
            method: if *post { &Method::POST } else { &Method::GET },
            target: None,
            uri_host: None,
            path: &path,
            query: query.as_deref(),
            body: hash.as_ref(),
        };
        let cookie = cookie.as_ref().map(|value| format!("x=1; lang={value}"));
        let mut fields: Vec<(&[u8], &[u8])> = vec![(b"host", host.as_bytes())];
        fields.extend(language.iter().map(|value| (&b"Accept-Language"[..], value.as_bytes())));
        fields.extend(cookie.iter().map(|value| (&b"Cookie"[..], value.as_bytes())));
        read(&parts, &fields)
    }

    fn key(&self) -> Key {
        self.with(|parts, fields| Key::new(parts, fields, &HeaderKinds::of(fields), &Self::rules()))
    }
}

proptest! {
    #[test]
    fn hosts_and_headers_forge_nobody_elses_key(host in "[ -~]{0,12}", other in "[ -~]{0,12}", value in "[ -~]{0,12}") {
        let rules = rules(&[], &["accept-language"]);
        let mine = key("/p", &[("host", &host), ("accept-language", &value)], &rules);
        let theirs = key("/p", &[("host", &other)], &rules);
        prop_assert_ne!(mine, theirs);
    }

    #[test]
    fn keys_are_equal_iff_requests_are(mine in parts(), theirs in parts()) {
        prop_assert_eq!(mine == theirs, mine.key() == theirs.key());
    }

    #[test]
    fn any_single_difference_changes_the_key(mine in parts(), other in parts(), which in 0..7) {
        let mut theirs = mine.clone();
        match which {
            0 => theirs.post = other.post,
            1 => theirs.host = other.host,
            2 => theirs.path = other.path,
            3 => theirs.query = other.query,
            4 => theirs.language = other.language,
            5 => theirs.cookie = other.cookie,
            _ => theirs.body = other.body,
        }
        prop_assert_eq!(mine == theirs, mine.key() == theirs.key());
    }

    #[test]
    fn key_written_into_a_buffer_is_the_key(parts in parts(), before in "[ -~]{0,40}") {
        let mut text = before;
        let spans = parts.with(|parts, fields| {
            Key::write(&mut text, parts, fields, &HeaderKinds::of(fields), &Parts::rules())
        });
        let key = parts.key();
        prop_assert_eq!(&text, key.as_str());
        prop_assert_eq!(spans.purge_names(&text), key.purge_names());
        prop_assert_eq!(spans.path(&text), parts.path.as_str());
        prop_assert_eq!(Key::of(&text, spans), key);
    }

    #[test]
    fn a_sorted_query_has_no_order_of_names(
        pairs in prop::collection::btree_map("[a-z]{1,3}", "[a-z&&[^;]]{0,2}", 0..6).prop_map(|map| {
            map.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        }).prop_flat_map(|pairs| (Just(pairs.clone()), Just(pairs).prop_shuffle())),
    ) {
        let rules = query_rules(&[], QueryOrder::Sorted);
        let (sorted, shuffled) = pairs;
        let of = |pairs: &[String]| key(&format!("/?{}", pairs.join("&")), &[], &rules);
        prop_assert_eq!(of(&sorted), of(&shuffled));
    }
}
