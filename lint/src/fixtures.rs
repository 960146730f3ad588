//! Policies that break one rule of the custom resource definition each.

/// A valid policy for a cluster, which fixtures change.
pub const VALID: &str = r#"apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  targets: [{port: http}]
  routes:
  - name: user
    match: {path: "/api/users/{id}"}
    ttl: 120s
"#;

/// A policy that breaks one rule.
#[derive(Clone, Copy, Debug)]
pub struct Fixture {
    /// The rule's message.
    pub message: &'static str,
    /// The path of the one diagnostic.
    pub path: &'static str,
    replaced: &'static str,
    by: &'static str,
}

impl Fixture {
    /// Returns the policy's YAML.
    ///
    /// # Panics
    /// If the fixture changes nothing.
    pub fn policy(&self) -> String {
        assert!(VALID.contains(self.replaced), "{}", self.message);
        VALID.replacen(self.replaced, self.by, 1)
    }
}

/// Returns a fixture for each rule.
pub fn all() -> impl Iterator<Item = Fixture> {
    FIXTURES.iter().map(|&(message, replaced, by, path)| Fixture { message, path, replaced, by })
}

/// A policy with a value at the border of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// True if the API server accepts the policy.
    pub accepted_by_server: bool,
    /// True if the check does. Where the two differ, the check refuses a value that a sidecar could not use.
    pub accepted_by_check: bool,
    field: Field,
    value: &'static str,
}

/// A part of [`VALID`] and its replacement, in which `_` stands for a value.
type Field = (&'static str, &'static str);

impl Edge {
    /// Returns the policy's YAML.
    pub fn policy(&self) -> String {
        let (replaced, by) = self.field;
        VALID.replacen(replaced, &by.replace('_', self.value), 1)
    }
}

/// Returns policies with values at the border of a rule, and the verdicts on them.
pub fn edges() -> impl Iterator<Item = Edge> {
    EDGES.iter().flat_map(|&(field, [accepted, refused, unusable])| {
        let edges = move |values: &'static [&'static str], accepted_by_server, accepted_by_check| {
            values.iter().map(move |value| Edge { accepted_by_server, accepted_by_check, field, value })
        };
        edges(accepted, true, true).chain(edges(refused, false, false)).chain(edges(unusable, true, false))
    })
}

/// Values of a field that both accept, that both refuse, and that only the API server accepts.
const EDGES: &[(Field, [&[&str]; 3])] = &[
    (
        (FIELD, "  sidecar: {resources: {limits: {cpu: _}}}\n  routes:\n"),
        [
            &[
                "1",
                "\"1\"",
                "20m",
                "\"0.5\"",
                "\".5\"",
                "\"1.\"",
                "\"+1\"",
                "\"1e3\"",
                "\"1E-1\"",
                "\"1E3\"",
                "1k",
                "1Ki",
                "1.5Ki",
                "1E",
                "20000000n",
                "21000u",
            ],
            &[
                "\"\"", "m", "lots", "1.2.3", "1mi", "\"1 m\"", "--1", "\".\"", "1e", "-1", "19m", "0.5",
                "true",
            ],
            &[],
        ],
    ),
    (
        (FIELD, "  l1: {maxObjectSize: _}\n  routes:\n"),
        [
            &["0", "4096", "\"4096\"", "1Ki", "1k", "64Mi"],
            &["-1", "1.5Ki", "\"+1\"", "1KB", "\"\"", "Ki", "65Mi"],
            &[],
        ],
    ),
    (
        (FIELD, "  l2: {redis: {maxObjectSize: _, urlFrom: {secretKeyRef: {name: a, key: b}}}}\n  routes:\n"),
        [&["1", "7Ei"], &["0"], &["20Ei"]],
    ),
    (
        (FIELD, "  l1: {busGrace: _}\n  routes:\n"),
        [
            &["1s", "500ms", "1h30m", "99999h", "1s1s1s1s"],
            &["1", "1d", "-1s", "1.5s", "100000s", "1s1s1s1s1s", "\"\"", "\"1s\\n\""],
            &[],
        ],
    ),
    (
        (FIELD, "  sources: [{name: a, http: {url: \"_\"}}]\n  routes:\n"),
        [
            &["http://a", "https://a.example/b", "http://[::1]:80", "http://127.0.0.1:8080/", "http://a/%20"],
            &["a", "//a", "ftp://a", "http://me@a", "http://a?b", "http://a#b", "http://not a host", "/a"],
            &["http:/a"],
        ],
    ),
    (
        ("port: http", "port: _"),
        [
            &["8080", "1", "65535", "web-1", "a", "\"8a\"", "a23456789012345"],
            &["0", "-1", "65536", "\"8080\"", "Web", "a_b", "-a", "a-", "\"\"", "a234567890123456", "1.5"],
            &[],
        ],
    ),
    (("name: shop", "name: _"), [&["a", "a.b-c", "\"1\""], &["A", "a_b", "-a", "\"\"", "a..b"], &[]]),
    (
        ("/api/users/{id}", "_"),
        [
            &["/", "/a//b", "/{a}/{b_1}", "/a%20b"],
            &["", "a", "/{}", "/{1}", "/a{b}", "/a b", "/a?b", "/é"],
            &[],
        ],
    ),
];

/// A rule's message; a part of [`VALID`] and its replacement; and the path of the one diagnostic.
type Row = (&'static str, &'static str, &'static str, &'static str);

const ROUTE: &str = "    ttl: 120s\n";
const FIELD: &str = "  routes:\n";
const SOURCES: &str = "  routes:\n  - name: user\n";

const FIXTURES: &[Row] = &[
    (
        "shorten metadata.name to at most 50 characters",
        "name: shop",
        "name: a-shop-that-has-a-name-of-more-than-50-characters-which-is-long",
        "",
    ),
    (
        "l1.maxSize and 32Mi for requests in progress do not fit into sidecar.resources.limits.memory (128Mi where it is not set): raise limits.memory or lower l1.maxSize",
        FIELD,
        "  l1: {maxSize: 100Mi}\n  routes:\n",
        "spec",
    ),
    (
        "l1.maxObjectSize (1Mi where it is not set) is above l1.maxSize: raise l1.maxSize or lower l1.maxObjectSize",
        FIELD,
        "  l1: {maxSize: 1Ki}\n  routes:\n",
        "spec.l1.maxObjectSize",
    ),
    (
        "a route's from.postgres names no Postgres server of spec.sources: add it there, or write the name of one that is there",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}]\n  routes:\n  - name: user\n    from: [{postgres: {source: a, query: select 1}}]\n",
        "spec.routes[0].from[0].postgres.source",
    ),
    (
        "a route's from.http names no HTTP server of spec.sources: add it there, or write the name of one that is there",
        ROUTE,
        "    ttl: 1s\n    from: [{http: {source: none, path: /a}}]\n",
        "spec.routes[0].from[0].http.source",
    ),
    (
        "a route's persist names no Postgres server of spec.sources: add it there, or write the name of one that is there",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}]\n  routes:\n  - name: user\n    from: [{http: {source: a, path: /x, persist: {source: a, statement: insert on conflict}}}]\n",
        "spec.routes[0].from[0].http.persist.source",
    ),
    (
        "a route's lastKnownGood names no Postgres server of spec.sources: add it there, or write the name of one that is there",
        ROUTE,
        "    ttl: 1s\n    lastKnownGood: {source: none}\n",
        "spec.routes[0].lastKnownGood.source",
    ),
    (
        "timeout must be longer than 0s: leave it out, or write one such as 30s",
        FIELD,
        "  application: {timeout: 0s}\n  routes:\n",
        "spec.application.timeout",
    ),
    (
        "write a path without an end slash and without dots alone, such as /_larder",
        FIELD,
        "  admin: {pathPrefix: /_larder/..}\n  routes:\n",
        "spec.admin.pathPrefix",
    ),
    (
        "purge.tags may only use parameters that match.path has, such as {id}",
        FIELD,
        "  invalidation: {onWrite: [{match: {path: \"/a/{id}\"}, purge: {tags: [\"{no}\"]}}]}\n  routes:\n",
        "spec.invalidation.onWrite[0].purge.tags[0]",
    ),
    (
        "purge.paths may only use parameters that match.path has, such as {id}",
        FIELD,
        "  invalidation: {onWrite: [{match: {path: \"/a/{id}\"}, purge: {paths: [\"/{no}\"]}}]}\n  routes:\n",
        "spec.invalidation.onWrite[0].purge.paths[0]",
    ),
    (
        "list methods that write, in capitals, such as PUT, PATCH, POST or DELETE",
        FIELD,
        "  invalidation: {onWrite: [{match: {path: /a, methods: [GET]}, purge: {paths: [/a]}}]}\n  routes:\n",
        "spec.invalidation.onWrite[0].match.methods[0]",
    ),
    (
        "start the path with '/', and let each segment be literal text or one {parameter}, such as /api/users/{id}",
        "/api/users/{id}",
        "api/users",
        "spec.routes[0].match.path",
    ),
    (
        "nothing to purge: set tags, paths or both",
        FIELD,
        "  invalidation: {onWrite: [{match: {path: /a}, purge: {}}]}\n  routes:\n",
        "spec.invalidation.onWrite[0].purge",
    ),
    ("write a duration such as 500ms, 30s, 5m or 1h30m", "ttl: 120s", "ttl: 2 minutes", "spec.routes[0].ttl"),
    (
        "write a whole number of bytes with a unit, such as 512Ki, 64Mi or 1Gi",
        FIELD,
        "  l1: {maxSize: 1.5Mi}\n  routes:\n",
        "spec.l1.maxSize",
    ),
    (
        "masterName is the name by which Sentinels monitor the master: set it with topology: Sentinel, and only then",
        FIELD,
        "  l2: {redis: {topology: Sentinel, urlFrom: {secretKeyRef: {name: a, key: b}}}}\n  routes:\n",
        "spec.l2.redis.masterName",
    ),
    (
        "timeout must be longer than 0s: to do without Redis, take l2 out",
        FIELD,
        "  l2: {redis: {timeout: 0s, urlFrom: {secretKeyRef: {name: a, key: b}}}}\n  routes:\n",
        "spec.l2.redis.timeout",
    ),
    (
        "maxObjectSize must be at least 1: to do without Redis, take l2 out",
        FIELD,
        "  l2: {redis: {maxObjectSize: 0Ki, urlFrom: {secretKeyRef: {name: a, key: b}}}}\n  routes:\n",
        "spec.l2.redis.maxObjectSize",
    ),
    (
        "statementTimeout must be longer than 0s: write one such as 2s",
        FIELD,
        "  sources: [{name: a, postgres: {statementTimeout: 0s, urlFrom: {secretKeyRef: {name: a, key: b}}}}]\n  routes:\n",
        "spec.sources[0].postgres.statementTimeout",
    ),
    (
        "timeout must be longer than 0s: write one such as 1s",
        FIELD,
        "  sources: [{name: a, http: {url: http://a, timeout: 0ms}}]\n  routes:\n",
        "spec.sources[0].http.timeout",
    ),
    (
        "set secretKeyRef: {name: ..., key: ...}",
        FIELD,
        "  l2: {redis: {urlFrom: {}}}\n  routes:\n",
        "spec.l2.redis.urlFrom",
    ),
    (
        "name a Secret and one of its keys, such as {name: shop-redis, key: url}",
        FIELD,
        "  l2: {redis: {urlFrom: {secretKeyRef: {name: A, key: b}}}}\n  routes:\n",
        "spec.l2.redis.urlFrom",
    ),
    (
        "a tag may only use parameters that match.path has, such as {id}",
        ROUTE,
        "    ttl: 1s\n    tags: [\"{no}\"]\n",
        "spec.routes[0].tags[0]",
    ),
    (
        "ttl replaces the lifetime that a response declares and maxTTL limits it: set one of them",
        ROUTE,
        "    ttl: 1s\n    maxTTL: 1s\n",
        "spec.routes[0].maxTTL",
    ),
    (
        "ttl must be longer than 0s: to cache nothing, take the route out",
        "ttl: 120s",
        "ttl: 0s",
        "spec.routes[0].ttl",
    ),
    (
        "maxTTL must be longer than 0s: to cache nothing, take the route out",
        "ttl: 120s",
        "maxTTL: 0s",
        "spec.routes[0].maxTTL",
    ),
    (
        "l1TTL must be longer than 0s: leave it out, or write one such as 5s",
        ROUTE,
        "    l1TTL: 0s\n",
        "spec.routes[0].l1TTL",
    ),
    (
        "l2TTL must be longer than 0s: leave it out, or write one such as 10m",
        ROUTE,
        "    l2TTL: 0s\n",
        "spec.routes[0].l2TTL",
    ),
    (
        "collapseTimeout must be longer than 0s: leave it out, or write one such as 5s",
        ROUTE,
        "    collapseTimeout: 0s\n",
        "spec.routes[0].collapseTimeout",
    ),
    (
        "responses to POST depend on the body: set key.body, such as {maxSize: 64Ki}, or take POST out of match.methods",
        "{id}\"",
        "{id}\", methods: [POST]",
        "spec.routes[0].match.methods",
    ),
    (
        "key.body is for POST: put POST into match.methods, or take key.body out",
        ROUTE,
        "    ttl: 1s\n    key: {body: {}}\n",
        "spec.routes[0].key.body",
    ),
    (
        "ttlJitterPercent shortens the ttl of the route: set one beside it",
        ROUTE,
        "    ttlJitterPercent: 10\n",
        "spec.routes[0].ttlJitterPercent",
    ),
    (
        "ttlFrom needs a ttl beside it, which applies to responses that state none: set one",
        ROUTE,
        "    ttlFrom: {header: X-TTL}\n",
        "spec.routes[0].ttlFrom",
    ),
    (
        "notFoundTTL applies when no source has a result: set from, or list 404 in statuses",
        ROUTE,
        "    notFoundTTL: 1s\n",
        "spec.routes[0].notFoundTTL",
    ),
    (
        "the application is always the last origin: put application at the end of from, once",
        ROUTE,
        "    ttl: 1s\n    from: [{application: {}}, {application: {}}]\n",
        "spec.routes[0].from[0]",
    ),
    (
        "a route with from needs a ttl: a row does not declare how long it is fresh",
        ROUTE,
        "    from: [{application: {}}]\n",
        "spec.routes[0].ttl",
    ),
    (
        "from selects responses by path and query only: take POST out of match.methods, or from out of the route",
        "{id}\"}\n    ttl: 120s\n",
        "{id}\", methods: [POST]}\n    ttl: 1s\n    key: {body: {}}\n    from: [{application: {}}]\n",
        "spec.routes[0].from",
    ),
    (
        "bypass needs a condition: set query, headers or cookies, such as query: {nocache: \"true\"}",
        ROUTE,
        "    bypass: {}\n",
        "spec.routes[0].bypass",
    ),
    (
        "an entry of from needs an origin: set one of postgres, http and application",
        ROUTE,
        "    ttl: 1s\n    from: [{}]\n",
        "spec.routes[0].from[0]",
    ),
    (
        "start path with a slash, and leave out fragments and spaces",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}]\n  routes:\n  - name: user\n    from: [{http: {source: a, path: x}}]\n",
        "spec.routes[0].from[0].http.path",
    ),
    (
        "pods write the same row at the same time: end the statement with a clause such as on conflict do nothing",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}, {name: b, postgres: {urlFrom: {secretKeyRef: {name: a, key: b}}}}]\n  routes:\n  - name: user\n    from: [{http: {source: a, path: /x, persist: {source: b, statement: \"insert into a values ({body})\"}}}]\n",
        "spec.routes[0].from[0].http.persist.statement",
    ),
    (
        "name a parameter of the query in path, such as {query.page}",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}]\n  routes:\n  - name: user\n    from: [{http: {source: a, path: \"/x?{query.}\"}}]\n",
        "spec.routes[0].from[0].http.path",
    ),
    (
        "name a parameter of the query, such as {query.page}",
        SOURCES,
        "  sources: [{name: b, postgres: {urlFrom: {secretKeyRef: {name: a, key: b}}}}]\n  routes:\n  - name: user\n    from: [{postgres: {source: b, query: \"select '{query.}', {query.}\"}}]\n",
        "spec.routes[0].from[0].postgres.query",
    ),
    (
        "name a parameter of the query in the statement, such as {query.page}",
        SOURCES,
        "  sources: [{name: a, http: {url: http://a}}, {name: b, postgres: {urlFrom: {secretKeyRef: {name: a, key: b}}}}]\n  routes:\n  - name: user\n    from: [{http: {source: a, path: /x, persist: {source: b, statement: \"insert {query.} on conflict\"}}}]\n",
        "spec.routes[0].from[0].http.persist.statement",
    ),
    (
        "maxSize must be between 1 and 1Mi: a body is held in memory until its hash is known",
        "{id}\"}\n",
        "{id}\", methods: [POST]}\n    key: {body: {maxSize: 2Mi}}\n",
        "spec.routes[0].key.body.maxSize",
    ),
    (
        "list names of cookies, such as language",
        ROUTE,
        "    key: {cookies: [\"a b\"]}\n",
        "spec.routes[0].key.cookies[0]",
    ),
    (
        "list names of headers, such as Accept-Language",
        ROUTE,
        "    key: {headers: [\"a b\"]}\n",
        "spec.routes[0].key.headers[0]",
    ),
    (
        "list names of headers, such as Cookie",
        ROUTE,
        "    key: {ignoreHeaders: [\"a b\"]}\n",
        "spec.routes[0].key.ignoreHeaders[0]",
    ),
    (
        "allow and ignore exclude each other: set one of them",
        ROUTE,
        "    key: {query: {allow: [a], ignore: [b]}}\n",
        "spec.routes[0].key.query",
    ),
    (
        "write the name of a parameter, or its start and a '*', such as utm_*",
        ROUTE,
        "    key: {query: {ignore: [\"*a\"]}}\n",
        "spec.routes[0].key.query.ignore[0]",
    ),
    (
        "a 304 refers to a response that is already stored: list the status of that response, such as 200",
        ROUTE,
        "    statuses: [{code: 304}]\n",
        "spec.routes[0].statuses[0].code",
    ),
    (
        "ttl must be longer than 0s: to store nothing of this status, take it out of statuses",
        ROUTE,
        "    statuses: [{code: 200, ttl: 0s}]\n",
        "spec.routes[0].statuses[0].ttl",
    ),
    (
        "set one of header, such as X-TTL, and json, such as /meta/ttl",
        ROUTE,
        "    ttl: 1s\n    ttlFrom: {}\n",
        "spec.routes[0].ttlFrom",
    ),
    (
        "write a JSON pointer, such as /meta/ttl",
        ROUTE,
        "    ttl: 1s\n    ttlFrom: {json: ttl}\n",
        "spec.routes[0].ttlFrom.json",
    ),
    (
        "an empty selector would select every pod of the namespace: name labels of the pods, such as matchLabels: {app: shop}",
        "{matchLabels: {app: shop}}",
        "{matchLabels: {}}",
        "spec.selector",
    ),
    (
        "In and NotIn need values; Exists and DoesNotExist take none",
        "{matchLabels: {app: shop}}",
        "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        "spec.selector.matchExpressions[0]",
    ),
    (
        "requests.memory is above limits.memory (128Mi where it is not set): raise limits.memory or lower requests.memory",
        FIELD,
        "  sidecar: {resources: {requests: {memory: 129Mi}}}\n  routes:\n",
        "spec.sidecar.resources",
    ),
    (
        "requests.cpu is above limits.cpu: raise limits.cpu or lower requests.cpu",
        FIELD,
        "  sidecar: {resources: {requests: {cpu: 1}, limits: {cpu: 999m}}}\n  routes:\n",
        "spec.sidecar.resources",
    ),
    (
        "write a quantity such as 20m, 1 or 128Mi",
        FIELD,
        "  sidecar: {resources: {limits: {memory: lots}}}\n  routes:\n",
        "spec.sidecar.resources.limits.memory",
    ),
    (
        "a source needs a kind: set one of postgres and http",
        FIELD,
        "  sources: [{name: a}]\n  routes:\n",
        "spec.sources[0]",
    ),
    (
        "write a URL such as https://catalog.example, without user, query or fragment",
        FIELD,
        "  sources: [{name: a, http: {url: \"https://me@catalog.example\"}}]\n  routes:\n",
        "spec.sources[0].http.url",
    ),
    (
        "list names of headers, with a '*' at the start or the end at most, such as x-shop-customer or x-shop-*",
        FIELD,
        "  identityHeaders: [x-*-y]\n  routes:\n",
        "spec.identityHeaders[0]",
    ),
    (
        "list names of headers besides Cache-Control, which is always read, such as CDN-Cache-Control",
        FIELD,
        "  targetedCacheControl: [Cache-Control]\n  routes:\n",
        "spec.targetedCacheControl[0]",
    ),
    (
        "list at least one port of the application's containers, such as {port: http}",
        "[{port: http}]",
        "[]",
        "spec.targets",
    ),
    (
        "write the name of a container port, such as http, or its number, such as 8080",
        "port: http",
        "port: 80801",
        "spec.targets[0].port",
    ),
    (
        "write a URL such as http://otel-collector.observability:4317",
        FIELD,
        "  telemetry: {otlp: {endpoint: \"http://not a host\"}}\n  routes:\n",
        "spec.telemetry.otlp.endpoint",
    ),
];
