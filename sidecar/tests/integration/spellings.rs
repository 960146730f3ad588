//! Alternative spellings of paths and methods: their purges, and the storing of their responses.

use http::Method;

use super::harness::{Application, Origin, Policy, Sidecar, reply};

const BY_TAG: &str = r#"
routes:
- {name: user, match: {path: "/users/{id}"}, ttl: 60s, tags: ["user:{id}"]}
- {name: users, match: {path: "/users"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/users/{id}", methods: [PUT, DELETE]}, purge: {tags: ["user:{id}"]}}
"#;

/// Spellings of some ids that are sent in a path, and other spellings of the same.
const IDS: [(&str, &[&str]); 19] = [
    (
        "1",
        &[
            "1/", "1;v=1", "%31", "1//", "1%2f", "./1", "x/../1", "x/..%2f1", "x/..;/1", "1%00", "1%3Fx",
            "1.", "%2531",
        ],
    ),
    ("me@x.com", &["me%40x.com", "ME@x.com", "me%2540x.com"]),
    ("a,b", &["a%2Cb", "a%2cb"]),
    ("x=", &["x%3D"]),
    ("a+b", &["a%2Bb", "a%20b"]),
    ("o'neil", &["o%27neil", "O'Neil"]),
    ("a(b)", &["a%28b%29"]),
    ("urn:a:1", &["urn%3Aa%3A1", "URN:a:1"]),
    ("a;b", &["a%3Bb"]),
    ("a!b", &["a%21b"]),
    ("a*b", &["a%2Ab"]),
    ("a$b", &["a%24b"]),
    ("a&b", &["a%26b"]),
    ("%C3%BC", &["%c3%bc", "%C3%9C", "u%CC%88"]),
    ("a%20b", &["a+b", "A%20b"]),
    ("%25", &["%2525"]),
    ("100%25", &["100%2525"]),
    ("a%2Fb", &["a%2fb"]),
    ("a%252Fb", &["a%2Fb"]),
];

/// Returns true if nothing is stored for an id, because servers may read different ones in it.
fn is_ambiguous(id: &str) -> bool {
    ["a;b", "a%2Fb", "a%252Fb"].contains(&id)
}

/// Returns true if the response to GET of a path differs from `before`.
async fn is_renewed(sidecar: &Sidecar, path: &str, before: &str) -> bool {
    sidecar.get(path).await.body != before
}

#[tokio::test(flavor = "multi_thread")]
async fn write_purges_an_id_of_any_characters_in_any_spelling() {
    let by_path = BY_TAG.replace(r#"purge: {tags: ["user:{id}"]}"#, r#"purge: {paths: ["/users/{id}"]}"#);
    for policy in [BY_TAG, &by_path] {
        let origin = Origin::numbered(&[]).await;
        let policy = Policy::new(policy);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        for (id, spellings) in IDS {
            let path = format!("/users/{id}");
            let other = sidecar.get("/users/other").await.body;
            for spelling in [id].iter().chain(spellings) {
                for prefix in ["/users/", "/Users/", "//users/", "/users//", "/%75sers/"] {
                    let written = format!("{prefix}{spelling}");
                    let before = sidecar.get(&path).await.body;
                    assert_eq!(
                        is_renewed(&sidecar, &path, &before).await,
                        is_ambiguous(id),
                        "GET {path} is stored"
                    );
                    sidecar.put(&written).await;
                    assert_eq!(origin.last().path, written, "the target is forwarded unchanged");
                    assert!(is_renewed(&sidecar, &path, &before).await, "PUT {written}, GET {path}");
                }
            }
            assert!(!is_renewed(&sidecar, "/users/other", &other).await, "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_api_purges_an_id_by_handwritten_tag_path_and_key() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(BY_TAG);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (id, spellings) in IDS {
        let path = format!("/users/{id}");
        let plain = percent_encoding::percent_decode_str(id).decode_utf8().unwrap();
        let names = [id, &plain].into_iter().chain(spellings.iter().copied().take(1));
        for name in names {
            let mut bodies = vec![
                serde_json::json!({"paths": [format!("/users/{name}")]}),
                serde_json::json!({"paths": [format!("/Users//{name}/")]}),
                serde_json::json!({"tags": [format!("user:{name}")]}),
                serde_json::json!({"keys": [format!("GET:http://SHOP.test:80/users/{name}")]}),
                serde_json::json!({"keys": [format!("GET:/users/{name}")]}),
            ];
            // A trailing slash and a parameter make another key, and another tag.
            bodies.truncate(if name == id || *name == plain { 5 } else { 1 });
            for body in bodies {
                let before = sidecar.get(&path).await.body;
                assert_eq!(
                    is_renewed(&sidecar, &path, &before).await,
                    is_ambiguous(id),
                    "GET {path} is stored"
                );
                let body: &'static str = body.to_string().leak();
                assert_eq!(sidecar.purge(body).await.status, 200, "{body}");
                assert!(is_renewed(&sidecar, &path, &before).await, "{body} for {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_query_is_purged_with_none_and_none_with_an_empty_one() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(r#"routes: [{name: page, match: {path: "/{page}"}, ttl: 60s}]"#);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let all = ["/x", "/x?", "/x?&"];
    for key in ["/x", "/x?", "/x?&&", "http://shop.test/x", "http://shop.test/x?"] {
        for path in all {
            sidecar.get(path).await;
            assert!(sidecar.get(path).await.hit().is_some(), "{path}");
        }
        let body: &'static str = format!(r#"{{"keys": ["GET:{key}"]}}"#).leak();
        assert_eq!(sidecar.purge(body).await.status, 200, "{body}");
        for path in all {
            assert_eq!(sidecar.get(path).await.hit(), None, "{path} by {key}");
        }
    }
    for written in all {
        sidecar.put(written).await;
        for path in all {
            assert_eq!(sidecar.get(path).await.hit(), None, "{path} by PUT {written}");
            assert!(sidecar.get(path).await.hit().is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_purges_its_own_path_and_its_location_in_any_spelling() {
    let origin = Origin::obedient().await;
    let with_policy = Policy::new(r#"routes: [{name: user, match: {path: "/users/{id}"}, ttl: 60s}]"#);
    let sidecars = [Sidecar::bare(origin.address).await, Sidecar::start(&with_policy, origin.address).await];
    let stored = [("x-say", "cache-control: max-age=60")];
    for sidecar in &sidecars {
        for id in ["1", "me@x.com"] {
            let path = format!("/users/{id}");
            for written in
                ["/users/me%40x.com/", "//users/ME@x.com;v=1", "/Users/1", "/users/x/..%2f1", "/users\\1"]
            {
                if written.to_lowercase().contains("me") != id.contains("me") {
                    continue;
                }
                for (target, location) in [(written, ""), ("/other", written)] {
                    if location.starts_with("//") {
                        continue; // another host (RFC 3986, section 4.2)
                    }
                    let before = sidecar.get_with(&path, &stored).await.body;
                    assert!(sidecar.get_with(&path, &stored).await.hit().is_some(), "{path}");
                    let line = format!("location: {location}");
                    let say = [("x-say", line.as_str())];
                    let target = if target.contains('\\') { "/users%5C1" } else { target };
                    sidecar
                        .request(Method::PUT, target, if location.is_empty() { &[] } else { &say }, "")
                        .await;
                    let after = sidecar.get_with(&path, &stored).await.body;
                    assert_ne!(before, after, "PUT {target}, Location {location:?}, GET {path}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disguised_write_purges_as_the_method_it_names() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(BY_TAG);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let form = ("content-type", "application/x-www-form-urlencoded");
    for (method, target, lines) in [
        (Method::GET, "/users/1", &[("x-http-method", "GET"), ("x-http-method-override", "DELETE")][..]),
        (Method::GET, "/users/1", &[("x-http-method-override", "GET"), ("x-http-method-override", "delete")]),
        (Method::GET, "/users/1", &[("x-method-override", " HEAD ,\tpUt ")]),
        (Method::GET, "/users/1", &[("x-http-method", "PUT;x")]),
        (Method::HEAD, "/users/1", &[("x_http_method_override", "PUT")]),
        (Method::OPTIONS, "/users/1", &[("x-method", "PUT")]),
        (Method::GET, "/users/1?_method=delete", &[]),
        (Method::GET, "/users/1?_method[]=DELETE", &[]),
        (Method::GET, "/users/1?_HttpMethod=PATCH", &[]),
        (Method::GET, "/users/1?x-tunneled-method=PUT", &[]),
        (Method::GET, "/users/1?method=delete", &[]),
        (Method::GET, "/users/1", &[("X-Requested-Method", "put")]),
        (Method::HEAD, "/users/1?_method=PUT", &[]),
        (Method::POST, "/users/1", &[("content-type", "application/json")]),
        (Method::POST, "/users/1?_method=PUT", &[]),
        (Method::POST, "/users/1", &[("x-http-method-override", "PUT")]),
        (Method::POST, "/users/1", &[form]),
        (Method::PUT, "/index.php", &[("x-original-url", "/users/1")]),
        (Method::PUT, "/index.php", &[("x-rewrite-url", "/Users/1/?x")]),
    ] {
        let before = sidecar.get("/users/1").await.body;
        assert!(!is_renewed(&sidecar, "/users/1", &before).await);
        sidecar.request(method.clone(), target, lines, "").await;
        assert!(is_renewed(&sidecar, "/users/1", &before).await, "{method} {target} {lines:?}");
    }
    for (method, lines) in [
        (Method::GET, &[("x-http-method-override", "GET")][..]),
        (Method::OPTIONS, &[("access-control-request-method", "DELETE")]),
        (Method::from_bytes(b"QUERY").unwrap(), &[]),
        (Method::from_bytes(b"QUERY").unwrap(), &[("x-http-method-override", "GET")]),
        (Method::GET, &[("x-http-method-override", "QUERY")]),
    ] {
        let before = sidecar.get("/users/1").await.body;
        sidecar.request(method.clone(), "/users/1", lines, "").await;
        assert!(!is_renewed(&sidecar, "/users/1", &before).await, "{method} {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_by_a_parameter_that_is_not_in_the_key_reaches_the_application() {
    let origin = Origin::numbered(&[]).await;
    for key in ["query: {allow: [page]}", "query: {ignore: [\"*\"]}", "query: {ignore: [_method, method]}"] {
        let policy = Policy::new(&format!(
            "routes: [{{name: user, match: {{path: \"/users/{{id}}\"}}, ttl: 60s, key: {{{key}}}}}]"
        ));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        for query in ["?_method=DELETE", "?method=delete", "?_method[]=put", "?_HttpMethod=PATCH"] {
            let path = format!("/users/1{query}");
            let before = sidecar.get("/users/1").await.body;
            assert!(!is_renewed(&sidecar, "/users/1", &before).await);
            let calls = origin.calls();
            let answer = sidecar.get(&path).await;
            assert_eq!((answer.hit(), origin.calls()), (None, calls + 1), "{path} {key}");
            assert!(is_renewed(&sidecar, "/users/1", &before).await, "{path} {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn query_passes_with_its_content_and_is_not_stored() {
    let origin = Origin::start(async |seen| reply(&[("cache-control", "max-age=60")], seen.body)).await;
    let policy = Policy::new(BY_TAG);
    let query = Method::from_bytes(b"QUERY").unwrap();
    for sidecar in [Sidecar::bare(origin.address).await, Sidecar::start(&policy, origin.address).await] {
        for content in ["a", "b"] {
            let answer = sidecar.request(query.clone(), "/users/1", &[], content).await;
            assert_eq!((answer.body.as_str(), origin.last().method.as_str()), (content, "QUERY"));
            assert!(answer.cache_status().contains("fwd=method"), "{}", answer.cache_status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn literal_matches_in_any_escaping() {
    let origin = Origin::numbered(&[]).await;
    let policy = r#"routes: [{name: package, match: {path: "/@scope/{pkg}"}, ttl: 60s, tags: ["{pkg}"]}]"#;
    let policy = Policy::new(policy);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/@scope/x", "/%40scope/x"] {
        let before = sidecar.get(path).await.body;
        assert!(!is_renewed(&sidecar, path, &before).await, "{path} is stored");
        assert_eq!(sidecar.purge(r#"{"tags": ["x"]}"#).await.status, 200);
        assert!(is_renewed(&sidecar, path, &before).await, "{path}");
    }
}

/// Paths that two servers may read differently.
const AMBIGUOUS: [&str; 25] = [
    "/static/..%2faccount",
    "/static/..%2Faccount",
    "/static/a%2fb",
    "/static/..%5caccount",
    "/static/a%5Cb",
    "/static/a%00",
    "/static/a%00.css",
    "/static/..;",
    "/static/.;x",
    "/static/a;x",
    "/static/a;v=1.css",
    "/static/a%3bx",
    "/static/a%3Fb",
    "/static/a%23b",
    "/static/%252e%252e",
    "/static/.%252e",
    "/static/..%252faccount",
    "/static/..%25252faccount",
    "/static/%2e%2e",
    "/static/%c0%ae%c0%ae%c0%afaccount",
    "/static/..%ef%bc%8faccount",
    "/static/%ff",
    "/static/a.",
    "/static/a%20",
    "/static/a%0d%0ax",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_two_servers_may_read_differently_is_never_stored() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let policy = Policy::new(
        r#"routes: [{name: static, match: {path: "/static/{file}"}, ttl: 60s, key: {ignoreHeaders: [cookie]}}]"#,
    );
    let sidecars = [Sidecar::start(&policy, origin.address).await, Sidecar::bare(origin.address).await];
    for sidecar in &sidecars {
        for path in AMBIGUOUS {
            for _ in 0..2 {
                let calls = origin.calls();
                let answer = sidecar.get(path).await;
                assert_eq!(origin.calls(), calls + 1, "{path}");
                assert_eq!(
                    answer.cache_status(),
                    "larder; fwd=bypass; fwd-status=200; detail=ambiguous-path",
                    "{path}"
                );
                assert_eq!(origin.last().path, path, "the target is forwarded unchanged");
            }
        }
        for path in ["/static/a", "/static/a%40b", "/static/caf%C3%A9", "/static/.a", "/static/a..b"] {
            sidecar.get(path).await;
            assert_eq!(sidecar.get(path).await.hit(), Some("l1"), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_page_of_nginx_is_not_stored_as_a_static_file() {
    let application = Application::nginx().await;
    let policy = r#"routes: [{name: static, match: {path: "/static/{file}"}, ttl: 60s, key: {ignoreHeaders: [cookie]}}]"#;
    let policy = Policy::new(policy);
    let sidecar = Sidecar::start(&policy, application.address).await;
    let mut reached = 0;
    // nginx refuses %00, and its body for the two others is no text.
    for path in AMBIGUOUS.iter().filter(|path| !["%00", "%ff", "%c0"].iter().any(|odd| path.contains(odd))) {
        let victim = sidecar.get_with(path, &[("cookie", "session=victim")]).await;
        let attacker = sidecar.get_with(path, &[("cookie", "session=attacker")]).await;
        assert!(!attacker.body.contains("victim"), "{path}");
        reached += usize::from(victim.body == "account of session=victim");
    }
    assert!(reached > 0, "nginx reads the account page in some of them");
}
