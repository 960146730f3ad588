//! Errors in a policy, collected while it is compiled.

mod feeds;
mod requests;
mod route;
mod tiers;

use std::{collections::BTreeSet, time};

use http::{HeaderName, Method, header::CACHE_CONTROL};

use super::{FieldError, OWN_TARGET, Policy, Route, index::RouteIndex};
use crate::{
    IdentityHeaders, PathTemplate,
    credentials::is_pattern,
    spec::{self, SecretKeyRef, ValueFrom, WriteMatch},
    tags::TagsFrom,
    template::placeholders,
    writing::{is_safe, no_parameter},
};

/// Collects errors.
#[derive(Default)]
pub(super) struct Check {
    problems: Vec<FieldError>,
}

impl Check {
    pub(super) fn refuse(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(FieldError { path: path.to_owned(), message: message.into() });
    }

    pub(super) fn done(self, policy: Policy) -> Result<Policy, Vec<FieldError>> {
        if self.problems.is_empty() { Ok(policy) } else { Err(self.problems) }
    }

    pub(super) fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a String>) {
        let mut seen = BTreeSet::new();
        for (index, name) in names.enumerate() {
            if !seen.insert(name) {
                self.refuse(
                    &format!("{path}[{index}].name"),
                    format!("{name:?} is taken: give each a name of its own"),
                );
            }
        }
    }

    pub(super) fn positive(&mut self, path: &str, duration: time::Duration) {
        if duration.is_zero() {
            self.refuse(path, "must be longer than 0s");
        }
    }

    pub(super) fn url_from(&mut self, path: &str, from: &ValueFrom) {
        let ValueFrom { secret_key_ref, env, file } = from;
        let set =
            [secret_key_ref.is_some(), env.is_some(), file.is_some()].into_iter().filter(|set| *set).count();
        if set != 1 {
            self.refuse(path, "set exactly one of secretKeyRef (in a cluster), env or file (outside one)");
        }
        if let Some(SecretKeyRef { name, key }) = secret_key_ref {
            let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            let in_key = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if !name.chars().all(in_name)
                || name.starts_with(['.', '-'])
                || !key.chars().all(in_key)
                || key.starts_with("..")
            {
                self.refuse(path, "name a Secret and one of its keys, such as {name: shop-redis, key: url}");
            }
        }
    }

    pub(super) fn placeholders(&mut self, path: &str, text: &str, template: &PathTemplate) {
        for name in placeholders(text).filter(|name| !template.parameters().any(|known| known == *name)) {
            self.refuse(path, format!("{text:?} {}", no_parameter(name, template)));
        }
    }

    pub(super) fn methods(&mut self, path: &str, methods: &[String]) {
        let writes = |method: &String| {
            method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
                && Method::from_bytes(method.as_bytes()).is_ok_and(|method| !is_safe(&method))
        };
        for (index, method) in methods.iter().enumerate().filter(|(_, method)| !writes(method)) {
            let message =
                "is not a method that writes: list one such as PUT, PATCH, POST or DELETE, in capitals";
            self.refuse(&format!("{path}[{index}]"), format!("{method:?} {message}"));
        }
    }

    /// Rejects a rule that treats a POST under a route's path as a write, although the route distinguishes it by its
    /// body and so reads by it. A route that tells its POSTs by a header or a parameter leaves the others to the rule, and one that
    /// passes before it takes them from it.
    pub(super) fn no_reads(&mut self, path: &str, rule: &WriteMatch, routes: &[Route]) {
        let WriteMatch { path: template, methods } = rule;
        if !methods.is_empty() && !methods.iter().any(|method| method == Method::POST.as_str()) {
            return;
        }
        let reads = |route: &&Route| {
            route.methods.contains(&Method::POST)
                && !route.passes
                && !route.tells_by_fields()
                && route
                    .paths()
                    .any(|path| path.overlaps(template) || route.ignores_case && path.may_overlap(template))
        };
        let passing = RouteIndex::of_paths(
            routes.iter().filter(|route| route.passes_whatever_it_matches(&Method::POST)),
        );
        let passes_before = |route: &Route| {
            let number = u32::try_from(route.index).unwrap_or(u32::MAX);
            let mut paths = route.path.iter().chain([template]);
            paths.any(|path| passing.first_wider(path, number, |_| true).is_some())
        };
        for route in routes.iter().filter(reads).filter(|route| !passes_before(route)) {
            let message = format!(
                "a POST that route {:?} takes is a read, and this rule takes it for a write: \
                 list match.methods without POST, take POST out of the route, or tell its POSTs by match.headers or match.query",
                route.name
            );
            self.refuse(path, message);
        }
    }

    pub(super) fn headers(&mut self, path: &str, names: &[String]) {
        for (index, name) in names.iter().enumerate() {
            self.header(&format!("{path}[{index}]"), name);
        }
    }

    pub(super) fn header(&mut self, path: &str, name: &str) {
        // The crate takes a quote, which RFC 9110 does not.
        if HeaderName::from_bytes(name.as_bytes()).is_err() || name.contains('"') {
            self.refuse(path, format!("{name:?} is not the name of a header"));
        }
    }

    pub(super) fn tags_from(&mut self, path: &str, spec: &spec::TagsFrom) -> TagsFrom {
        let spec::TagsFrom { headers, remove } = spec;
        let at = format!("{path}.headers");
        self.headers(&at, headers);
        if headers.is_empty() {
            self.refuse(&at, "list names of headers, such as Surrogate-Key");
        }
        let mut names = Vec::with_capacity(headers.len());
        for (index, name) in headers.iter().enumerate() {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
            if spec::NOT_TAGS.contains(&name.as_str()) {
                let message =
                    format!("{name} has a meaning of its own: list headers for tags, such as Surrogate-Key");
                self.refuse(&format!("{at}[{index}]"), message);
            }
            names.push(name);
        }
        TagsFrom::new(names, *remove)
    }

    pub(super) fn identity_headers(&mut self, path: &str, patterns: &[String]) -> IdentityHeaders {
        for (index, pattern) in patterns.iter().enumerate().filter(|(_, pattern)| !is_pattern(pattern)) {
            self.refuse(
                &format!("{path}[{index}]"),
                format!(
                    "{pattern:?} is not the name of a header with a '*' at the start or the end at most, such as \
                     x-shop-customer or x-shop-*"
                ),
            );
        }
        IdentityHeaders::new(patterns)
    }

    pub(super) fn targets(&mut self, path: &str, names: &[String]) -> Vec<HeaderName> {
        self.headers(path, names);
        let mut targets = vec![OWN_TARGET];
        for (index, name) in names.iter().enumerate() {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
            if name == CACHE_CONTROL {
                let path = format!("{path}[{index}]");
                self.refuse(
                    &path,
                    "Cache-Control is always read: list other headers, such as CDN-Cache-Control",
                );
            } else if !targets.contains(&name) {
                targets.push(name);
            }
        }
        targets
    }
}
