//! Policies that break one rule of the custom resource definition each.

mod rules;

use rules::FIXTURES;

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
    FIXTURES.into_iter().flatten().map(|&(message, replaced, by, path)| Fixture {
        message,
        path,
        replaced,
        by,
    })
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

/// Returns a policy with so many routes, each with what routes of applications have.
pub fn with_routes(count: usize) -> String {
    let route = |number| {
        format!(
            "  - name: route-{number}\n    match: {{path: \"/service-{number}/{{id}}/{{*path}}\", methods: [GET]}}\n    \
             ttl: 60s\n    staleIfError: 1h\n    statuses: [{{code: 200}}, {{code: 404, ttl: 10s}}]\n    \
             tags: [\"service-{number}:{{id}}\", \"page:{{path}}\"]\n    \
             key: {{query: {{ignore: [\"utm_*\"]}}, headers: [accept-language], ignoreHeaders: [cookie]}}\n"
        )
    };
    let (head, _) = VALID.split_once(FIELD).expect("it has routes");
    let defaults = "  defaults: {grace: 5m, tagsFrom: {headers: [surrogate-key]}, bypass: {cookies: {session: \"*\"}}}\n";
    [head, defaults, FIELD].concat() + &(0..count).map(route).collect::<String>()
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
    (
        ("ttl: 120s", "statuses: [{code: _}]"),
        [
            &["200", "404", "599", "2xx", "\"5xx\""],
            &["199", "600", "-1", "1xx", "6xx", "4XX", "4x", "4xxx", "\"404\"", "\"\"", "412", "511", "20.5"],
            &[],
        ],
    ),
    (
        ("/api/users/{id}\"", "/api/users/{id}\", host: \"_\""),
        [
            &["a", "shop.example", "*.shop.example", "10.0.0.7", "a--b.c"],
            &["", "*", "*.", "A", "a.", ".a", "a..b", "a:80", "a.*", "**.a", "-a", "a-", "a_b", "a\\n"],
            &[],
        ],
    ),
    (
        (FIELD, "  invalidation: {requests: {allowedNetworks: [\"_\"]}}\n  routes:\n"),
        [
            &["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "::1/128", "fd00::/8", "2001:db8:1::/48"],
            &[
                "",
                "10.0.0.0",
                "10.0.0.0/33",
                "10.0.0/8",
                "010.0.0.0/8",
                "256.0.0.0/8",
                "a/8",
                "::/129",
                "10.0.0.0/8/8",
            ],
            &[":::/8", "1:2/8"],
        ],
    ),
    (("name: shop", "name: _"), [&["a", "a.b-c", "\"1\""], &["A", "a_b", "-a", "\"\"", "a..b"], &[]]),
    (
        ("/api/users/{id}", "_"),
        [
            &["/", "/a//b", "/{a}/{b_1}", "/a%20b", "/{*a}", "/a/{b}/{*c_1}"],
            &[
                "", "a", "/{}", "/{1}", "/a{b}", "/a b", "/a?b", "/é", "/*", "/{*}", "/a{*b}", "/{*a}/",
                "/{*a}/b", "/{a*}", "/{**a}",
            ],
            &[],
        ],
    ),
];

/// A rule's message; a part of [`VALID`] and its replacement; and the path of the one diagnostic.
type Row = (&'static str, &'static str, &'static str, &'static str);
const ROUTE: &str = "    ttl: 120s\n";
const FIELD: &str = "  routes:\n";
const SOURCES: &str = "  routes:\n  - name: user\n";
