//! Requests that a route matches, and what of them is in the key.

use super::*;

#[test]
fn merged_slashes_make_no_other_tag() {
    let text = r#"
routes:
- {name: a, match: {path: "/a/{id}/{*rest}"}, ttl: 1s, tags: ["a:{id}:{rest}", fixed]}
- {name: site, match: {path: "/{*path}"}, ttl: 1s, tags: ["page:{path}"]}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    for (path, tags) in [
        ("/x/y", &["page:x%2Fy"][..]),
        ("/", &["page:"]),
        ("//x//y", &["page:%2Fx%2F%2Fy", "page:x%2Fy"]),
        ("/x/y/", &["page:x%2Fy%2F", "page:x%2Fy"]),
        ("//", &["page:%2F", "page:"]),
        ("/a/1/x//y", &["a:1:x%2F%2Fy", "a:1:x%2Fy", "fixed"]),
    ] {
        let path = NormalPath::new(path);
        let found = policy.route(&line(&Method::GET, &path), &HeaderMap::new()).unwrap();
        let texts: Vec<_> = found.route.tag_texts(found.parameters(&path)).collect();
        assert_eq!(texts, tags, "{path:?}");
        let names: Vec<_> = found.route.tags(path.as_sent()).collect();
        let expected: Vec<_> = tags.iter().map(|tag| PurgeName::tag(tag)).collect();
        assert_eq!(names, expected, "{path:?}");
    }
}

#[test]
fn headers_that_a_route_matches_are_keyed() {
    let text = SHOP.replace("id}\"}\n  ttl", "id}\", headers: {X-Api-Version: \"2\"}}\n  ttl");
    let policy = Policy::compile(&spec(&text)).unwrap();
    let found = |values: &[&str]| {
        let fields: Vec<_> = values.iter().map(|value| (&b"x-api-version"[..], value.as_bytes())).collect();
        let path = NormalPath::new("/api/users/7");
        policy.route(&line(&Method::GET, &path), fields.as_slice()).unwrap().route.index
    };
    assert_eq!((found(&["2"]), found(&["1"]), found(&[]), found(&["2", "1"])), (0, 2, 2, 2));
    assert_eq!(policy.routes()[0].key.headers, ["x-api-version"]);
}

#[test]
fn host_that_a_route_matches_is_in_the_key_even_if_hosts_are_ignored() {
    let text = "
routes:
- {name: one, match: {path: /a, host: shop.example}, ttl: 1s, key: {host: Ignore}}
- {name: many, match: {path: /a, host: \"*.shop.example\"}, ttl: 1s, key: {host: Ignore}}
- {name: any, match: {path: /a}, ttl: 1s, key: {host: Ignore}}
";
    let policy = Policy::compile(&spec(text)).unwrap();
    let path = NormalPath::new("/a");
    for (host, forwarded, expected) in [
        ("shop.example", None, "GET:http://shop.example/a"),
        ("Shop.example.:8080", None, "GET:http://shop.example/a"),
        ("x.shop.example", None, "GET:http://*.shop.example/a"),
        ("y.shop.example", Some("z.shop.example"), "GET:http://*.shop.example/a"),
        ("evil", None, "GET:http://*/a"),
        ("shop.example", Some("evil"), "GET:http://*/a"),
    ] {
        let mut fields = HeaderMap::new();
        fields.insert("host", host.parse().unwrap());
        forwarded.map(|host: &str| fields.insert("x-forwarded-host", host.parse().unwrap()));
        let found = policy.route(&line(&Method::GET, &path), &fields).unwrap();
        let parts = KeyParts {
            method: &Method::GET,
            target: None,
            uri_host: None,
            path: &path,
            query: None,
            body: None,
        };
        let key = Key::new(&parts, &fields, &HeaderKinds::of(&fields), &found.route.key);
        assert_eq!(key.as_str(), expected, "{host} {forwarded:?}");
    }
}

#[test]
fn parameters_that_a_route_matches_are_in_the_key_of_each_route_of_its_paths() {
    let text = r#"
routes:
- {name: print, match: {path: "/a/{id}", query: {view: print}}, ttl: 1s, key: {query: {ignore: ["*"]}}}
- {name: other, match: {path: "/A/{*rest}"}, ttl: 1s, key: {query: {allow: [page]}}}
- {name: rest, match: {path: "/{*rest}"}, ttl: 1s, key: {query: {ignore: ["*"]}}}
- {name: far, match: {path: "/b"}, ttl: 1s, key: {query: {ignore: ["*"]}}}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    let found = |query| {
        let path = NormalPath::new("/a/1");
        let line = RequestLine { query: Some(query), ..line(&Method::GET, &path) };
        let route = policy.route(&line, &HeaderMap::new()).unwrap().route;
        let parts = KeyParts {
            method: &Method::GET,
            target: None,
            uri_host: None,
            path: &path,
            query: Some(query),
            body: None,
        };
        let key = Key::new(&parts, &HeaderMap::new(), &HeaderKinds::default(), &route.key);
        (route.name.clone(), key.as_str()["GET:http:///a/1".len()..].to_owned())
    };
    for (query, route, keyed) in [
        ("view=print&x=1", "print", "?view=print"),
        ("x=1&view=pr%69nt", "print", "?view=pr%69nt"),
        ("view=web&x=1", "rest", "?view=web"),
        ("view=print&VIEW=web", "rest", "?view=print&VIEW=web"),
        ("view=print&%u0076iew=web", "rest", "?view=print&%u0076iew=web"),
        ("view=print;view=web", "rest", "?view=print;view=web"),
        ("x=1", "rest", ""),
    ] {
        assert_eq!(found(query), (route.to_owned(), keyed.to_owned()), "{query}");
    }
    let keyed = policy.routes().iter().map(|route| !route.key.ignores("view"));
    assert_eq!(keyed.collect::<Vec<_>>(), [true, true, true, false]);
}

#[test]
fn values_are_found_in_every_spelling_of_a_path() {
    let text = r#"
routes:
- {name: a, match: {path: "/Users/{id}", caseSensitive: false, trailingSlash: Ignore}, ttl: 1s, tags: ["user:{id}"]}
- {name: b, match: {path: "/static/{*path}", caseSensitive: false, trailingSlash: Ignore}, ttl: 1s, tags: ["file:{path}"]}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    for (path, tag) in [
        ("/Users/7", "user:7"),
        ("/users/7/", "user:7"),
        ("/%55SERS/X", "user:X"),
        ("/static/a/", "file:a%2F"),
        ("/STATIC/", "file:"),
        ("/Static", "file:"),
    ] {
        let path = NormalPath::new(path);
        let found = policy.route(&line(&Method::GET, &path), &HeaderMap::new()).unwrap();
        let tags: Vec<_> = found.route.tag_texts(found.parameters(&path)).collect();
        assert_eq!(tags[0], tag, "{path:?}");
    }
    for path in ["/users/", "/users//7", "/users/7//", "/staticx"] {
        assert!(
            policy.route(&line(&Method::GET, &NormalPath::new(path)), &HeaderMap::new()).is_none(),
            "{path}"
        );
    }
    assert_ne!(
        policy.fingerprint(),
        Policy::compile(&spec(&text.replace("false", "true"))).unwrap().fingerprint()
    );
}

#[test]
fn write_rule_for_another_case_of_a_route_that_reads_by_post_is_refused() {
    let text = r#"
routes:
- {name: a, match: {path: /graphql, methods: [POST], caseSensitive: false}, ttl: 1s, key: {body: {}}}
invalidation: {onWrite: [{match: {path: /GraphQL}, purge: {tags: [a]}}]}
"#;
    assert_eq!(problems(text).len(), 1);
    assert!(Policy::compile(&spec(&text.replace("false", "true"))).is_ok());
}
