//! The CEL rules on a route and on the defaults of routes, each by itself.
//!
//! The definition has rules on what the two are together.

use serde_json::{Value, json};

use super::pass;

/// Rules on times, which hold for a route and for the defaults.
const OF_LIFETIMES: [(&str, &str); 7] = [
    (
        "!(has(self.grace) && has(self.staleWhileRevalidate) && has(self.staleIfError))",
        "grace applies where staleWhileRevalidate or staleIfError is not set, and both are: take one of the three out",
    ),
    (
        "!(has(self.ttl) && has(self.maxTTL))",
        "ttl replaces the lifetime that a response declares and maxTTL limits it: set one of them",
    ),
    (
        "!has(self.ttl) || self.ttl.matches('[1-9]')",
        "ttl must be longer than 0s: to cache nothing, take the route out",
    ),
    (
        "!has(self.maxTTL) || self.maxTTL.matches('[1-9]')",
        "maxTTL must be longer than 0s: to cache nothing, take the route out",
    ),
    (
        "!has(self.l1TTL) || self.l1TTL.matches('[1-9]')",
        "l1TTL must be longer than 0s: leave it out, or write one such as 5s",
    ),
    (
        "!has(self.l2TTL) || self.l2TTL.matches('[1-9]')",
        "l2TTL must be longer than 0s: leave it out, or write one such as 10m",
    ),
    (
        "!has(self.collapseTimeout) || self.collapseTimeout.matches('[1-9]')",
        "collapseTimeout must be longer than 0s: leave it out, or write one such as 5s",
    ),
];

/// Rules on routes alone, besides that on `pass`.
const OF_ROUTES: [(&str, &str); 5] = [
    (
        "!has(self.tags) || self.tags.all(t, t.replace('{', '\\n{').split('\\n', 9).all(p, !p.contains('}') || !p.startsWith('{*') && (self.match.path.contains(p.substring(0, p.indexOf('}') + 1)) || self.match.path.endsWith('{*' + p.substring(1, p.indexOf('}') + 1)))))",
        "a tag may only use parameters that match.path has, such as {id}, and {path} for the value of {*path}",
    ),
    (
        "!has(self.key) || !has(self.key.body) || (has(self.match.methods) && self.match.methods.exists(m, m == 'POST'))",
        "key.body is for POST: put POST into match.methods, or take key.body out",
    ),
    (
        "!has(self.notFoundTTL) || (has(self.from) && size(self.from) > 0)",
        "notFoundTTL applies when no source has a result: set from, or list 404 in statuses",
    ),
    (
        "!has(self.from) || size(self.from) < 2 || self.from.all(f, !has(f.application)) || (has(self.from[size(self.from) - 1].application) && self.from.filter(f, has(f.application)).size() == 1)",
        "the application is always the last origin: put application at the end of from, once",
    ),
    (
        "!has(self.from) || size(self.from) == 0 || !has(self.match.methods) || !self.match.methods.exists(m, m == 'POST')",
        "from selects responses by path and query only: take POST out of match.methods, or from out of the route",
    ),
];

/// Returns the rules on the defaults of routes.
pub(super) fn of_defaults() -> Value {
    listed(&OF_LIFETIMES)
}

/// Returns the rules on a route.
pub(super) fn of_routes() -> Value {
    let pass = pass::rule();
    let of_pass =
        (pass.as_str(), "pass: true stores nothing: take it out, or everything else but name and match");
    listed(&[OF_ROUTES.as_slice(), &OF_LIFETIMES, &[of_pass]].concat())
}

fn listed(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect()
}
