//! Requests that a route passes.

use super::*;

/// A policy whose first route passes what `matches` says, and whose second stores everything.
fn policy(matches: &str) -> Policy {
    let text = format!(
        "routes:\n- {{name: admin, match: {matches}, pass: true}}\n- {{name: site, match: {{path: \"/{{*path}}\"}}, ttl: 1s}}"
    );
    Policy::compile(&spec(&text)).unwrap()
}

fn passes(policy: &Policy, line: &RequestLine<'_>, fields: &[(&str, &str)]) -> bool {
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    policy.route(line, fields.as_slice()).is_some_and(|found| found.route.passes())
}

#[test]
fn write_that_passes_before_a_route_that_reads_by_post_is_no_read() {
    let errors = |first: &str, write: &str| {
        let text = format!(
            r#"
routes:
- {{name: first, {first}}}
- {{name: search, match: {{path: "/rpc/{{*what}}", methods: [POST]}}, key: {{body: {{}}}}}}
- {{name: last, match: {{path: "/{{*path}}"}}, pass: true}}
invalidation:
  onWrite: [{{match: {{path: {write:?}}}, purge: {{everything: true}}}}]
"#
        );
        Policy::compile(&spec(&text)).err().map_or(0, |errors| errors.len())
    };
    for path in ["/rpc/login", "/rpc/{name}", "/{*path}", "/{a}/{b}"] {
        assert_eq!(errors(&format!("match: {{path: {path:?}}}, pass: true"), "/rpc/login"), 0, "{path}");
    }
    for first in [
        "match: {path: /rpc/logout}, pass: true",
        "match: {path: /rpc/login, methods: [GET]}, pass: true",
        "match: {path: /rpc/login, host: a}, pass: true",
        "match: {path: /rpc/login, query: {a: b}}, pass: true",
        "match: {path: /rpc/login, headers: {a: b}}, pass: true",
        "match: {path: /rpc/login}",
    ] {
        assert_eq!(errors(first, "/rpc/login"), 1, "{first}");
    }
    assert_eq!(errors("match: {path: /rpc/login}, pass: true", "/rpc/{name}"), 1, "others are reads");
}

#[test]
fn every_spelling_of_a_path_that_passes_passes() {
    let policy = policy("{path: \"/admin/{*path}\"}");
    for path in [
        "/admin/x",
        "/admin",
        "//admin/x",
        "/admin//x",
        "/ADMIN/x",
        "/%61dmin/x",
        "/%2561dmin/x",
        "/admin;v=1/x",
        "/a/../admin/x",
        "/admin%2Fx",
        "/admin\\x",
        "/\u{ff41}dmin/x",
        "///admin",
    ] {
        let normal = NormalPath::new(path);
        assert!(passes(&policy, &line(&Method::GET, &normal), &[]), "{path}");
    }
    for path in ["/", "/admins/x", "/x/admin/x", "/a//b", "//a"] {
        let found = route(&policy, &Method::GET, path).unwrap();
        assert!(!found.route.passes(), "{path}");
    }
}

#[test]
fn route_that_stores_and_comes_first_keeps_its_requests() {
    let text = r#"
routes:
- {name: files, match: {path: "/admin/static/{*path}"}, ttl: 1s}
- {name: admin, match: {path: "/admin/{*path}"}, pass: true}
- {name: site, match: {path: "/{*path}"}, ttl: 1s}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    let index = |path| route(&policy, &Method::GET, path).map(|found| found.route.index);
    for (path, expected) in
        [("/admin/static/a", 0), ("/admin//static/a", 1), ("/admin/a", 1), ("/Admin/static", 1), ("/a", 2)]
    {
        assert_eq!(index(path), Some(expected), "{path}");
    }
    let text =
        text.replace("{name: site, match: {path: \"/{*path}\"}, ttl: 1s}", "{name: a, match: {path: /a}}");
    let policy = Policy::compile(&spec(&text)).unwrap();
    assert!(route(&policy, &Method::GET, "/b").is_none());
}

#[test]
fn any_host_that_a_request_names_makes_it_pass() {
    let policy = policy("{path: \"/{*path}\", host: admin.example}");
    let path = NormalPath::new("/x");
    let line = line(&Method::GET, &path);
    for (fields, expected) in [
        (&[("host", "admin.example")][..], true),
        (&[("host", "Admin.Example.:8080")], true),
        (&[("host", "admin.example:evil")], true),
        (&[("host", "admin.example"), ("x-forwarded-host", "evil")], true),
        (&[("host", "shop.example"), ("x-forwarded-host", "admin.example")], true),
        (&[("host", "shop.example"), ("x-forwarded-host", "a, admin.example:80")], true),
        (&[("host", "shop.example"), ("X_Forwarded_Host", "admin.example")], true),
        (&[("host", "shop.example"), ("host", "admin.example")], true),
        (&[("host", "shop.example"), ("forwarded", "for=a;host=\"admin.example:80\"")], true),
        (&[("host", "shop.example"), ("forwarded", "for=\";host=admin.example\"")], true),
        (&[], true),
        (&[("host", "shop.example")], false),
        (&[("host", "shop.example:80"), ("x-forwarded-host", "other.example")], false),
        (&[("host", "shop.example"), ("forwarded", "for=1.2.3.4;host=shop.example;proto=https")], false),
    ] {
        assert_eq!(passes(&policy, &line, fields), expected, "{fields:?}");
    }
    let absolute = RequestLine { uri_host: Some("admin.example"), ..line };
    assert!(passes(&policy, &absolute, &[("host", "shop.example")]));
    let other = RequestLine { uri_host: Some("shop.example"), ..line };
    assert!(passes(&policy, &other, &[("host", "admin.example")]));
    assert!(!passes(&policy, &other, &[]));
}

#[test]
fn parameter_that_an_application_may_read_makes_a_request_pass() {
    let policy = policy("{path: \"/{*path}\", query: {preview: \"on\"}}");
    let path = NormalPath::new("/x");
    let line = line(&Method::GET, &path);
    for query in [
        "preview=on",
        "preview=on&preview=on",
        "preview=off&preview=on",
        "Preview=on",
        "preview[]=on",
        "preview=ON",
        "preview=%6Fn",
        "preview=%256Fn",
        "preview=+on",
        "preview=%22on%22",
        "a=1;preview=on",
        "%u0070review=on",
        "preview=%u006fn",
    ] {
        assert!(passes(&policy, &RequestLine { query: Some(query), ..line }, &[]), "{query}");
    }
    for query in ["", "preview", "preview=off", "previews=on", "a=on"] {
        assert!(!passes(&policy, &RequestLine { query: Some(query), ..line }, &[]), "{query}");
    }
}

#[test]
fn header_that_an_application_may_read_makes_a_request_pass() {
    let policy = policy("{path: \"/{*path}\", headers: {X-Preview: \"on\"}}");
    let path = NormalPath::new("/x");
    let line = line(&Method::GET, &path);
    for fields in [
        &[("x-preview", "on")][..],
        &[("x-preview", "on"), ("x-preview", "on")],
        &[("x-preview", "off"), ("x-preview", "on")],
        &[("x-preview", "on, on")],
        &[("x-preview", "off,on")],
        &[("X-Preview", "ON")],
        &[("X_Preview", "on")],
        &[("x-preview", " \"on\"")],
    ] {
        assert!(passes(&policy, &line, fields), "{fields:?}");
    }
    for fields in [&[("x-preview", "off")][..], &[("x-previews", "on")], &[]] {
        assert!(!passes(&policy, &line, fields), "{fields:?}");
    }
}

#[test]
fn route_that_passes_takes_posts_from_a_later_one() {
    let text = |matches: &str| {
        format!(
            "
routes:
- {{name: admin, match: {{path: \"/admin/{{*path}}\"{matches}}}, pass: true}}
- {{name: site, match: {{path: \"/{{*path}}\", methods: [GET, POST]}}, key: {{body: {{maxSize: 1Ki}}}}, ttl: 1s}}
"
        )
    };
    for (matches, methods) in [
        ("", &[Method::GET, Method::HEAD, Method::POST][..]),
        (", methods: [POST]", &[Method::POST]),
        (", methods: [GET]", &[Method::GET, Method::HEAD]),
    ] {
        let policy = Policy::compile(&spec(&text(matches))).unwrap();
        let path = NormalPath::new("/admin/delete");
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT] {
            let is_listed = methods.contains(&method);
            assert_eq!(passes(&policy, &line(&method, &path), &[]), is_listed, "{method} {matches}");
        }
        assert!(policy.unreachable_routes().is_empty());
    }
}

#[test]
fn writes_to_a_route_that_passes_may_have_a_rule() {
    let text = r#"
routes:
- {name: admin, match: {path: "/admin/{*path}"}, pass: true}
- {name: site, match: {path: "/{*path}"}, ttl: 1s}
invalidation:
  onWrite: [{match: {path: "/admin/{*path}"}, purge: {everything: true}}]
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    let writing = Writing::of(&Method::POST, "//Admin/x", None, &HeaderMap::new()).unwrap();
    assert!(policy.purges_of(&writing).hard.everything);
}

#[test]
fn route_that_passes_behind_one_for_every_path_is_unreachable() {
    let text = r#"
routes:
- {name: site, match: {path: "/{*path}"}, ttl: 1s}
- {name: admin, match: {path: "/admin/{*path}"}, pass: true}
- {name: posts, match: {path: "/posts", methods: [POST]}, pass: true}
"#;
    let policy = Policy::compile(&spec(text)).unwrap();
    let hidden: Vec<_> = policy.unreachable_routes().iter().map(|(route, _)| route.index).collect();
    assert_eq!(hidden, [1]);
}
