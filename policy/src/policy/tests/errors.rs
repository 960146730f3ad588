//! Errors of policies that do not compile.

use super::*;

#[test]
fn every_policy_error_is_reported() {
    let broken = SHOP
        .replace("120s", "0s")
        .replace("l2:", "l1: {maxSize: 1Gi, maxObjectSize: 512Mi}\nl2:")
        .replace("source: catalog", "source: katalog")
        .replace("user:{id}", "user:{uid}")
        .replace("env: REDIS_URL", "env: REDIS_URL, file: /x")
        .replace("[PUT, DELETE]", "[put, GET]")
        .replace("{file: /run/db}", "{secretKeyRef: {name: db, key: ../url}}");
    let problems = Policy::compile(&spec(&broken)).unwrap_err();
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "spec.l1.maxObjectSize: must not be larger than 256Mi, because Redis accepts at most twice that",
            "spec.l2.redis.urlFrom: set exactly one of secretKeyRef (in a cluster), env or file (outside one)",
            "spec.sources[0].postgres.urlFrom: name a Secret and one of its keys, such as {name: shop-redis, key: url}",
            "spec.routes[0].ttl: must be longer than 0s",
            "spec.routes[0].tags[0]: \"user:{uid}\" uses {uid}, which /api/users/{id} does not have",
            "spec.routes[1].from[0].postgres.source: spec.sources has no \"katalog\"",
            "spec.invalidation.onWrite[0].match.methods[0]: \"put\" is not a method that writes: list one such as PUT, PATCH, POST or DELETE, in capitals",
            "spec.invalidation.onWrite[0].match.methods[1]: \"GET\" is not a method that writes: list one such as PUT, PATCH, POST or DELETE, in capitals",
            "spec.invalidation.onWrite[0].purge.tags[0]: \"user:{uid}\" uses {uid}, which /api/users/{id} does not have",
        ]
    );
}

#[test]
fn every_route_error_is_reported() {
    let broken = r#"
targetedCacheControl: [Cache-Control, "a b"]
routes:
- name: a
  match: {path: /a, methods: [POST], host: "Shop:80", query: {"a*": "1", page: "1", PAGE: "2"}, headers: {Z: "2", "x y": "1", z: " 2"}}
  ttl: 1s
  maxTTL: 0s
  grace: 1h
  staleWhileRevalidate: 1s
  staleIfError: 1h
  statuses: [{code: 99}, {code: 304}, {code: 404, ttl: 0s}, {code: 404}, {code: 5xx}, {code: 5xx}, {code: 429}]
  bypass: {}
  key: {query: {allow: ["a*b"], ignore: ["c=d"]}, cookies: ["e f"]}
- name: b
  match: {path: /b}
  key: {body: {maxSize: 2Mi}}
  bypass: {cookies: {"g;": "*"}}
"#;
    let problems = Policy::compile(&spec(broken)).unwrap_err();
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "spec.routes[0].maxTTL: must be longer than 0s",
            "spec.routes[0].maxTTL: ttl replaces the lifetime that a response declares and maxTTL limits it: set one of them",
            "spec.routes[0].grace: grace applies where staleWhileRevalidate or staleIfError is not set, and both are: take one of the three out",
            "spec.routes[0].statuses[0].code: 99 is not a status such as 200 or 404",
            "spec.routes[0].statuses[1].code: a 304 refers to a response that is already stored: list the status of that response, such as 200",
            "spec.routes[0].statuses[2].ttl: must be longer than 0s",
            "spec.routes[0].statuses[3].code: 404 is listed already: list each status once",
            "spec.routes[0].statuses[5].code: 5xx is listed already: list each status once",
            "spec.routes[0].statuses[6].code: a 429 is about one request or one client, and is never stored: take it out of statuses",
            "spec.routes[0].match.headers: \"x y\" is not the name of a header",
            "spec.routes[0].match.headers: \" 2\" is not a value that a header can have",
            "spec.routes[0].match.headers: \"z\" appears twice: header names are case-insensitive",
            "spec.routes[0].match.host: write a host name in lower case without a port, such as shop.example or *.shop.example",
            "spec.routes[0].match.query: \"a*\" is not the name of a parameter, such as page",
            "spec.routes[0].match.query: an application may take \"page\" for \"PAGE\": name one of them",
            "spec.routes[0].key.cookies[0]: \"e f\" is not the name of a cookie",
            "spec.routes[0].key.query: allow and ignore exclude each other: set one of them",
            "spec.routes[0].key.query.allow[0]: \"a*b\" is not the name of a parameter, or its start and a '*', such as utm_*",
            "spec.routes[0].key.query.ignore[0]: \"c=d\" is not the name of a parameter, or its start and a '*', such as utm_*",
            "spec.routes[0].match.methods: responses to POST depend on the body: set key.body, such as {maxSize: 64Ki}, or take POST out",
            "spec.routes[0].bypass: bypass needs a condition: set query, headers or cookies, such as query: {nocache: \"true\"}",
            "spec.routes[1].key.body.maxSize: must be between 1 and 1Mi: a body is held in memory until its hash is known",
            "spec.routes[1].key.body: is for POST: put POST into match.methods, or take key.body out",
            "spec.routes[1].bypass.cookies: \"g;\" is not the name of a cookie",
            "spec.targetedCacheControl[1]: \"a b\" is not the name of a header",
            "spec.targetedCacheControl[0]: Cache-Control is always read: list other headers, such as CDN-Cache-Control",
        ]
    );
}

/// Returns the errors in a policy with this spec.

#[test]
fn every_tier_and_source_error_is_reported() {
    for (from, to, expected) in [
        ("masterName: shop, ", "", "spec.l2.redis.masterName"),
        ("topology: Sentinel, ", "", "spec.l2.redis.masterName"),
        ("hardTimeout: 2s", "hardTimeout: 1ms", "spec.l2.redis.hardTimeout: must not be shorter"),
        ("maxObjectSize: 64Ki", "maxObjectSize: 0", "spec.l2.redis.maxObjectSize"),
        ("maxEntries: 1000", "maxEntries: 0", "spec.l1.maxEntries"),
        ("https://api.example/v2", "ftp://api.example", "spec.sources[1].http.url"),
        ("https://api.example/v2", "https://me@api.example", "spec.sources[1].http.url"),
        ("pathPrefix: /_larder", "pathPrefix: /_larder/", "spec.admin.pathPrefix"),
        ("pathPrefix: /_larder", "pathPrefix: /_larder/..", "spec.admin.pathPrefix"),
        (
            "admin: ",
            "telemetry: {otlp: {endpoint: 'http://not a host'}}\nadmin: ",
            "spec.telemetry.otlp.endpoint",
        ),
        ("json: /ttl", "json: ttl", "spec.routes[0].ttlFrom.json"),
        ("json: /ttl", "header: 'a b'", "spec.routes[0].ttlFrom.header"),
        ("ttlJitterPercent: 10", "ttlJitterPercent: 51", "spec.routes[0].ttlJitterPercent"),
        (
            "lastKnownGood: {source: db}",
            "lastKnownGood: {source: api}",
            "spec.routes[0].lastKnownGood.source",
        ),
        ("postgres: {source: db,", "postgres: {source: api,", "is no Postgres source"),
        ("http: {source: api,", "http: {source: db,", "is no HTTP source"),
        ("http: {source: api,", "http: {source: nowhere,", "spec.sources has no \"nowhere\""),
        ("/products/{key}", "/products/{id}", "{id} has no value"),
        ("/products/{key}", "/products/{query.}", "{query.} has no value"),
        (" on conflict do nothing", "", "on conflict do nothing"),
        ("{body}::jsonb", "{answer}::jsonb", "{answer} has no value"),
        ("/products/{key}", "/products/{query.}", "{query.} has no value"),
        (
            "\"https://api.example/v2\"",
            "\"http://api.example\", caFrom: {file: /ca.pem}",
            "http.caFrom: is for TLS",
        ),
        ("/data/{key}", "/data/{key}/{body}", "{body} is the body of the response"),
        ("  - application: {}", "  - {}", "spec.routes[0].from[2]: an entry of from needs an origin"),
    ] {
        let text = TIERS.replace(from, to);
        assert_ne!(text, TIERS, "{from}");
        let problems = problems(&text);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{to}: {problems:?}");
    }
}

#[test]
fn notifications_need_a_postgres_source_and_a_channel() {
    let problems = |source: &str, channel: &str| {
        let text = format!(
            "sources: [{{name: web, http: {{url: http://a}}}}, {{name: db, postgres: {{urlFrom: {{env: DB}}}}}}]\n\
             invalidation: {{notifications: {{source: {source}{channel}}}}}"
        );
        let problems = Policy::compile(&spec(&text)).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(problems("db", ""), [""; 0]);
    assert_eq!(
        problems("none", ""),
        ["spec.invalidation.notifications.source: spec.sources has no \"none\""]
    );
    assert_eq!(
        problems("web", ""),
        ["spec.invalidation.notifications.source: \"web\" is no Postgres source"]
    );
    assert_eq!(
        problems("db", ", channel: 'a\"b'"),
        [
            "spec.invalidation.notifications.channel: write the name of a channel in letters, digits and _, . or -, such as larder"
        ]
    );
}

#[test]
fn a_post_is_a_read_or_a_write() {
    let problems = |path: &str, read: &str, write: &str| {
        let text = format!(
            r#"
routes:
- {{name: other, match: {{path: "/{{any}}"}}}}
- {{name: search, match: {{path: {path:?}, methods: {read}}}, key: {{body: {{}}}}}}
invalidation:
  onWrite:
  - {{match: {{path: /where/no/route/is}}, purge: {{tags: [a]}}}}
  - {{match: {write}, purge: {{tags: [a]}}}}
"#
        );
        let problems = Policy::compile(&spec(&text)).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let refused = "spec.invalidation.onWrite[1].match: a POST that route \"search\" takes is a read, and this rule takes \
                   it for a write: list match.methods without POST, take POST out of the route, or tell its POSTs by match.headers or \
                   match.query";
    for (path, write) in [
        ("/search", "{path: /search}"),
        ("/search", "{path: /search, methods: [PUT, POST]}"),
        ("/search", "{path: \"/{what}\"}"),
        ("/{what}", "{path: /search}"),
        ("/{a}/by/{b}", "{path: \"/posts/{c}/x\", methods: [POST]}"),
        ("/caf%C3%A9", "{path: /caf%c3%a9}"),
    ] {
        assert_eq!(problems(path, "[GET, POST]", write), [refused], "{path} {write}");
    }
    for (path, write) in [
        ("/search", "{path: /search, methods: [PUT, DELETE]}"),
        ("/search", "{path: /search/}"),
        ("/search/{id}", "{path: \"/search/\"}"),
        ("/search", "{path: /find}"),
        ("/{a}/by/{b}", "{path: \"/posts/on/{c}\"}"),
        ("/{a}/{b}", "{path: \"/{a}\"}"),
    ] {
        assert!(problems(path, "[GET, POST]", write).is_empty(), "{path} {write}");
    }
    let told = "[POST], headers: {x-operation: query}";
    assert!(problems("/search", told, "{path: /search}").is_empty(), "the other POSTs are writes");
}

#[test]
fn headers_that_have_another_meaning_name_no_tags() {
    let route = |headers: &str| {
        format!("routes: [{{name: a, match: {{path: /a}}, tagsFrom: {{headers: {headers}}}}}]")
    };
    for (headers, says) in [
        ("[]", "spec.routes[0].tagsFrom.headers: list names of headers"),
        ("[\"a b\"]", "spec.routes[0].tagsFrom.headers[0]: \"a b\" is not the name of a header"),
        ("[xkey, ETag]", "spec.routes[0].tagsFrom.headers[1]: etag has a meaning of its own"),
        (
            "[Strict-Transport-Security]",
            "spec.routes[0].tagsFrom.headers[0]: strict-transport-security has a meaning of its own",
        ),
        (
            "[WWW-Authenticate]",
            "spec.routes[0].tagsFrom.headers[0]: www-authenticate has a meaning of its own",
        ),
        (
            "[Larder-Cache-Control]",
            "spec.routes[0].tagsFrom.headers[0]: larder-cache-control has a meaning of its own",
        ),
        ("[Set-Cookie]", "spec.routes[0].tagsFrom.headers[0]: set-cookie has a meaning of its own"),
    ] {
        let problems = Policy::compile(&spec(&route(headers))).unwrap_err();
        assert!(problems[0].to_string().starts_with(says), "{problems:?}");
    }
    let compiled = |text: &str| Policy::compile(&spec(text)).unwrap();
    let (kept, removed) = (compiled(&route("[xkey]")), compiled(&route("[xkey], remove: true")));
    assert!(kept.removed_headers().is_empty() && removed.removed_headers() == ["xkey"]);
    let plain = compiled("routes: [{name: a, match: {path: /a}}]");
    let prints = [&kept, &removed, &plain].map(Policy::fingerprint);
    assert!(prints[0] != prints[1] && prints[0] != prints[2] && prints[1] != prints[2]);
}

#[test]
fn route_that_passes_says_nothing_of_stored_responses() {
    let problems = |more: &str| {
        let text = format!("routes: [{{name: admin, match: {{path: /admin}}, pass: true{more}}}]");
        let problems = Policy::compile(&spec(&text)).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(problems("").is_empty());
    for more in [
        ", ttl: 1s",
        ", forwardHeaders: Keyed",
        ", tags: [a]",
        ", grace: 1h",
        ", setCookie: Strip",
        ", tagsFrom: {headers: [xkey]}",
        ", envelope: true",
        ", collapseTimeout: 1s",
        ", key: {ignoreHeaders: [cookie]}",
    ] {
        assert_eq!(
            problems(more),
            ["spec.routes[0].pass: stores nothing: take it out, or everything else but name and match"],
            "{more}"
        );
    }
}

#[test]
fn changes_need_a_postgres_source_tables_and_columns() {
    let problems = |changes: &str| {
        let text = format!(
            "sources: [{{name: db, postgres: {{urlFrom: {{env: DB}}}}}}]\ninvalidation: {{changes: {changes}}}"
        );
        let problems = Policy::compile(&spec(&text)).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let at = "spec.invalidation.changes";
    let table =
        |purge: &str| format!("{{source: db, publication: p, tables: [{{table: t, purge: {purge}}}]}}");
    assert_eq!(problems(&table(r#"{tags: ["a:{id}"], paths: ["/a/{id}"], soft: true}"#)), [""; 0]);
    assert_eq!(
        problems("{source: none, publication: p, tables: []}"),
        [
            format!("{at}.source: spec.sources has no \"none\""),
            format!("{at}.tables: list the tables whose changes purge")
        ]
    );
    let column = "write a column of the row in letters, digits and _, such as {id}";
    assert_eq!(
        problems(&table(r#"{tags: ["a:{i d}"], prefixes: ["/a/{*id}"]}"#)),
        [
            format!("{at}.tables[0].purge.tags[0]: \"a:{{i d}}\" uses {{i d}}: {column}"),
            format!("{at}.tables[0].purge.prefixes[0]: \"/a/{{*id}}\" uses {{*id}}: {column}")
        ]
    );
    assert_eq!(
        problems(&table("{soft: true}")),
        [format!(
            "{at}.tables[0].purge: nothing to purge when a row changes: set tags, paths or prefixes, or everything: true"
        )]
    );
}

#[test]
fn rule_for_a_method_that_purges_by_itself_is_refused() {
    let problems = |requests: &str, methods: &str| {
        let rule = format!("{{match: {{path: /a, methods: [{methods}]}}, purge: {{everything: true}}}}");
        let text = format!("invalidation: {{{requests}onWrite: [{rule}]}}");
        let problems = Policy::compile(&spec(&text)).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let requests = "requests: {}, ";
    assert_eq!(
        problems(requests, "PUT, BAN"),
        [
            "spec.invalidation.onWrite[0].match.methods[1]: no rule gets a BAN, because spec.invalidation.requests responds to it: \
          take one of them out"
        ]
    );
    for method in ["PURGE", "PURGEKEYS", "PURGETAGS"] {
        assert_eq!(problems(requests, method).len(), 1, "{method}");
        assert_eq!(problems("", method), [""; 0], "{method}");
    }
    for methods in ["", "PUT, REFRESH"] {
        assert_eq!(problems(requests, methods), [""; 0], "{methods}");
    }
}
