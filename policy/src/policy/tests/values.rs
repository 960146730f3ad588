//! Values of writes from query, header fields and bodies.

use super::*;

const RULES: &str = r#"
routes:
- {name: user, match: {path: "/api/users/{id}"}, ttl: 60s, tags: ["user:{id}"]}
- {name: posts, match: {path: "/api/users/{id}/posts"}, ttl: 60s, tags: ["posts", "USER:{id}"]}
- {name: team, match: {path: "/teams/{id}"}, ttl: 60s, tags: ["team:{id}"]}
- {name: home, match: {path: "/"}, ttl: 60s}
invalidation:
  onWrite:
  - match: {path: "/rpc/{method}"}
    purge: {tags: ["user:{body:/user/id}"], paths: ["/pages/{body:/user/id}/x"], prefixes: ["/docs/{query:doc}"]}
  - match: {path: "/teams", methods: [POST]}
    purge: {tags: ["team:{header:X-Team}:{method}"], soft: true}
    maxBodySize: 1Ki
"#;

fn rules() -> String {
    RULES.replace(":{method}\"], soft: true}\n    maxBodySize: 1Ki", "\"], soft: true}")
}

fn write(policy: &Policy, target: &str, lines: &[(&str, &str)], body: Option<&str>) -> Writing {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    let mut writing = Writing::of(&Method::POST, path, query, lines.as_slice()).unwrap();
    policy.read_head(&mut writing, query, lines.as_slice());
    if let Some(body) = body {
        policy.read_body(&mut writing, body.as_bytes());
    }
    writing
}

fn unknown(purges: &WritePurges) -> Vec<String> {
    purges.unknown.iter().map(ToString::to_string).collect()
}

#[test]
fn values_of_query_header_and_body_are_inserted() {
    let policy = Policy::compile(&spec(&rules())).unwrap();
    let writing = write(&policy, "/RPC/x/?doc=a%2Fb&doc=c", &[], Some(r#"{"user": {"id": [7, "{id}"]}}"#));
    let purges = policy.purges_of(&writing);
    assert_eq!(purges.hard.tags, ["user:%7Bid%7D", "user:7"]);
    assert_eq!(purges.hard.paths, ["/pages/%7Bid%7D/x", "/pages/7/x"]);
    assert_eq!(purges.hard.prefixes, ["/docs/a%2Fb", "/docs/c"]);
    assert!(unknown(&purges).is_empty() && purges.soft.is_empty());
    let purges = policy.purges_of(&write(&policy, "/teams", &[("x_team", "a, b")], None));
    assert_eq!(purges.soft.tags, ["team:a", "team:a%2C%20b", "team:b"]);
    assert!(purges.hard.is_empty() && unknown(&purges).is_empty());
}

#[test]
fn unknown_value_purges_all_that_could_be_meant() {
    let policy = Policy::compile(&spec(&rules())).unwrap();
    for body in [None, Some(""), Some("{}"), Some(r#"{"user": {"id": null}}"#), Some("user=7")] {
        let purges = policy.purges_of(&write(&policy, "/rpc/x?doc=a", &[], body));
        assert!(purges.hard.tags.is_empty() && purges.hard.paths.is_empty(), "{body:?}: {purges:?}");
        assert_eq!(purges.hard.prefixes, ["/api/users/", "/docs/a", "/pages/"], "{body:?}");
        assert_eq!(unknown(&purges), ["{body:/user/id}"], "{body:?}");
    }
    let purges = policy.purges_of(&write(&policy, "/rpc/x?doc=", &[], Some(r#"{"user": {"id": 7}}"#)));
    assert_eq!((purges.hard.tags.len(), &purges.hard.prefixes[..]), (1, &["/docs/".to_owned()][..]));
    assert_eq!(unknown(&purges), ["{query:doc}"]);
    let purges = policy.purges_of(&write(&policy, "/teams", &[], None));
    assert_eq!((&purges.soft.prefixes[..], purges.hard.is_empty()), (&["/teams/".to_owned()][..], true));
    assert_eq!(unknown(&purges), ["{header:x-team}"]);
}

#[test]
fn unknown_value_in_a_tag_reaches_routes_whose_responses_name_tags() {
    let text = rules().replace("{name: home,", "{name: shop, match: {path: \"/shop/{*path}\"}, ttl: 60s, tagsFrom: {headers: [xkey]}}\n- {name: home,");
    let policy = Policy::compile(&spec(&text)).unwrap();
    let purges = policy.purges_of(&write(&policy, "/rpc/x?doc=a", &[], None));
    assert_eq!(purges.hard.prefixes, ["/api/users/", "/docs/a", "/pages/", "/shop/"]);
}

#[test]
fn body_that_broke_off_purges_by_the_values_that_it_has_told() {
    let policy = Policy::compile(&spec(&rules())).unwrap();
    for (beginning, tags) in
        [("", &[][..]), (r#"{"user": {"id": 7"#, &[]), ("{}", &[]), (r#"{"user": {"id": 7}}"#, &["user:7"])]
    {
        let mut writing = write(&policy, "/rpc/x?doc=a", &[], None);
        policy.read_broken_off(&mut writing, beginning.as_bytes());
        let purges = policy.purges_of(&writing);
        assert_eq!(
            (&purges.hard.tags[..], &purges.hard.prefixes[..]),
            (&tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>()[..], &["/docs/a".to_owned()][..]),
            "{beginning}"
        );
        assert_eq!(purges.hard.paths.len(), tags.len(), "{beginning}");
        assert!(unknown(&purges).is_empty(), "{beginning}");
    }
}

#[test]
fn more_values_than_are_purged_one_by_one_are_unknown() {
    let text = rules().replace("\"user:{body:/user/id}\"", "\"user:{query:a}{query:b}\"");
    let policy = Policy::compile(&spec(&text)).unwrap();
    let many: String = (0..9).map(|number| format!("a={number}&b={number}&")).collect();
    let purges = policy.purges_of(&write(&policy, &format!("/rpc/x?doc=a&{many}"), &[], None));
    assert!(purges.hard.prefixes.contains(&"/api/users/".to_owned()), "{purges:?}");
    assert!(unknown(&purges).contains(&"{query:b}".to_owned()), "{purges:?}");
}

#[test]
fn value_never_leads_out_of_its_prefix() {
    let policy = Policy::compile(&spec(&rules())).unwrap();
    for doc in [
        ".",
        "..",
        "...",
        "a/..",
        "%2e%2E",
        "%252e%252e",
        "../..",
        "..%2F..",
        "..%252f..",
        "..;x",
        "..%3Bx",
        "../other/1",
        "x/../../other",
        "x%2F..%2F..%2Fother",
        "..%5C..%5Cother",
        "..%255cother",
        "..%00",
        "..?x",
        "..%E0%80%AFother",
    ] {
        let body = Some(r#"{"user": {"id": 1}}"#);
        let purges = policy.purges_of(&write(&policy, &format!("/rpc/x?doc={doc}"), &[], body));
        assert_eq!(purges.hard.prefixes, ["/docs/"], "{doc}");
    }
    for doc in ["a/../b", "a;x", "a..b", "A%2Fb"] {
        let purges = policy.purges_of(&write(&policy, &format!("/rpc/x?doc={doc}"), &[], Some("{}")));
        let of_doc = purges.hard.prefixes.iter().filter(|prefix| prefix.starts_with("/docs/"));
        assert!(of_doc.clone().all(|prefix| prefix.len() > "/docs/".len()), "{doc}: {purges:?}");
        assert!(of_doc.count() > 0, "{doc}: {purges:?}");
    }
}

#[test]
fn value_in_a_path_leads_out_neither() {
    let text = rules()
        .replace(r#"["/docs/{query:doc}"]"#, r#"["/Docs/{query:doc}/{body:/x}", "/w/{method}"]"#)
        .replace(r#"["/pages/{body:/user/id}/x"]"#, r#"["/t/{header:X-Team}", "/w/{method}/a"]"#);
    let policy = Policy::compile(&spec(&text)).unwrap();
    let purges_of = |target: &str, team: &str| {
        let body = Some(r#"{"user": {"id": 1}}"#);
        policy.purges_of(&write(&policy, target, &[("x-team", team)], body)).hard
    };
    for (target, team) in [
        ("/rpc/..%2f..?doc=..", "../other/1"),
        ("/rpc/..%252f..?doc=..%2F..", "..\\other"),
        ("/rpc/..%5c..%5cother?doc=..;x", "a/../../other"),
    ] {
        let purges = purges_of(target, team);
        assert_eq!(purges.prefixes, ["/Docs/", "/t/", "/w/"], "{target} {team}");
        assert!(purges.paths.is_empty(), "{target} {team}: {purges:?}");
    }
    let purges = purges_of("/rpc/b?doc=a", "../t/1");
    assert_eq!(purges.prefixes, ["/Docs/a/", "/w/b"]);
    assert_eq!(purges.paths, ["/t/..%2Ft%2F1", "/w/b/a"]);
}

#[test]
fn value_that_a_changed_policy_asks_for_later_is_unknown() {
    let old = Policy::compile(&spec("routes: []")).unwrap();
    let new = Policy::compile(&spec(&rules())).unwrap();
    let writing = write(&old, "/rpc/x?doc=a", &[], None);
    let purges = new.purges_of(&writing);
    assert_eq!(purges.hard.prefixes, ["/api/users/", "/docs/", "/pages/"]);
    assert_eq!(unknown(&purges), ["{body:/user/id}", "{query:doc}"]);
}

#[test]
fn routes_that_may_have_the_tag_are_told_by_beginning_and_end() {
    for (template, start, end, may) in [
        ("user:{id}", "user:", "", true),
        ("user:{id}", "USER:", "", true),
        ("{any}", "user:", "", true),
        ("user:7", "user:", "", true),
        ("{kind}:{id}", "user:", "", true),
        ("us%65r:{id}", "user:", "", true),
        ("caf\u{e9}:{id}", "cafe", "", true),
        ("user:{id}:x", "user:", ":x", true),
        ("user:{id}", "user:a%40b:", "", true),
        ("team:{id}", "user:a%40b:", "", false),
        ("team:{id}", "user:", "", false),
        ("users", "user:", "", false),
        ("user:{id}:x", "user:", ":y", false),
    ] {
        assert_eq!(super::super::writes::may_be(template, start, end), may, "{template}: {start}…{end}");
    }
}

#[test]
fn body_is_read_only_where_a_rule_for_the_write_uses_it() {
    let limits = rules().replace("prefixes: [\"/docs/{query:doc}\"]}", "}\n    maxBodySize: 1Mi");
    let policy = Policy::compile(&spec(&limits)).unwrap();
    let limit = |target| policy.body_limit_of(&write(&policy, target, &[], None));
    assert_eq!((limit("/rpc/x"), limit("/teams"), limit("/other")), (Some(1 << 20), None, None));
    let policy = Policy::compile(&spec(&rules())).unwrap();
    assert_eq!(policy.body_limit_of(&write(&policy, "/rpc/x", &[], None)), Some(64 << 10));
}

#[test]
fn values_from_elsewhere_are_refused_with_the_places_that_there_are() {
    let mut problems = problems(RULES);
    problems.sort();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0]
            .ends_with("is for values of the body: use one, such as {body:/user/id}, or take this out")
    );
    assert!(problems[1].ends_with("uses {method}, which /teams does not have"), "{problems:?}");
    let cookie = rules().replace("{header:X-Team}", "{cookie:team}");
    let found = super::problems(&cookie);
    assert!(
        found[0].contains("uses {cookie:team}, which is no value of a write: use {name} of match.path"),
        "{found:?}"
    );
    let large =
        rules().replace("    purge: {tags: [\"user", "    maxBodySize: 2Mi\n    purge: {tags: [\"user");
    assert!(super::problems(&large)[0].contains("must be between 1 and 1Mi"), "{large}");
}

const BY_RESPONSE: &str = r#"
routes:
- {name: post, match: {path: "/posts/{id}"}, ttl: 60s, tags: ["post:{id}"]}
- {name: page, match: {path: "/pages/{*path}"}, ttl: 60s, tagsFrom: {headers: [xkey]}}
- {name: home, match: {path: "/"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/posts"}, purge: {tags: [list], tagsFrom: {headers: [xkey, Surrogate-Key], remove: true}}}
  - {match: {path: "/drafts"}, purge: {tagsFrom: {headers: [xkey]}, soft: true}}
"#;

fn response(status: u16, fields: &[(&str, &str)]) -> http::Response<()> {
    let mut response = http::Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    response.body(()).unwrap()
}

#[test]
fn tags_that_the_response_to_a_write_names_are_purged() {
    let policy = Policy::compile(&spec(BY_RESPONSE)).unwrap();
    assert_eq!(policy.removed_headers(), ["surrogate-key", "xkey"]);
    for (status, fields, tags) in [
        (200, &[("xkey", "post:7 b"), ("Surrogate-Key", "c, d")][..], &["b", "c", "d", "list", "post:7"][..]),
        (201, &[("xkey", "{id}, caf\u{e9}%2F")], &["caf\u{e9}%2F", "list", "{id}"]),
        (200, &[("xkey", "")], &["list"]),
        (200, &[], &["list"]),
        (303, &[], &["list"]),
        (404, &[("xkey", "b")], &["b", "list"]),
        (500, &[("xkey", "b")], &["b", "list"]),
    ] {
        let mut writing = write(&policy, "/posts", &[], None);
        assert!(policy.reads_response_to(&writing));
        policy.read_response(&mut writing, Some(&response(status, fields)));
        let purges = policy.purges_of(&writing);
        assert_eq!(purges.hard.tags, tags, "{status} {fields:?}");
        assert!(purges.hard.prefixes.is_empty() && purges.soft.is_empty() && unknown(&purges).is_empty());
    }
    let mut draft = write(&policy, "/drafts", &[], None);
    policy.read_response(&mut draft, Some(&response(200, &[("xkey", "a"), ("surrogate-key", "b")])));
    let purges = policy.purges_of(&draft);
    assert_eq!(purges.soft.tags, ["a"]);
    assert!(purges.hard.is_empty());
    assert!(!policy.reads_response_to(&write(&policy, "/pages", &[], None)));
}

#[test]
fn tags_that_no_response_tells_purge_all_that_could_have_one() {
    let policy = Policy::compile(&spec(BY_RESPONSE)).unwrap();
    let too_many = "a ".repeat(1025);
    for (response, what) in [
        (None, "no response"),
        (Some(response(500, &[])), "an error"),
        (Some(response(404, &[])), "nothing there"),
        (Some(response(408, &[])), "a timeout"),
        (Some(response(409, &[])), "a conflict"),
        (Some(response(410, &[("xkey", "")])), "nothing there any more"),
        (Some(response(502, &[("xkey", " ")])), "an error with an empty field"),
        (Some(response(200, &[("xkey", &too_many)])), "too many tags"),
    ] {
        let mut writing = write(&policy, "/posts", &[], None);
        policy.read_response(&mut writing, response.as_ref());
        let purges = policy.purges_of(&writing);
        assert_eq!(
            (&*purges.hard.tags, &*purges.hard.prefixes),
            (&["list".to_owned()][..], &["/pages/".to_owned(), "/posts/".to_owned()][..]),
            "{what}"
        );
        assert_eq!(unknown(&purges), ["{response:surrogate-key,xkey}"], "{what}");
    }
    // Before the response nobody knows them.
    assert!(!policy.purges_of(&write(&policy, "/drafts", &[], None)).soft.prefixes.is_empty());
}
