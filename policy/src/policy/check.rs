//! What is wrong with a policy, collected while it is compiled.

use std::{collections::BTreeSet, time};

use http::{HeaderName, Method};

use super::{Invalid, Policy, QuerySource, Route};
use crate::{
    PathTemplate,
    key::KeyRules,
    spec::{RouteSpec, SecretKeyRef, UrlFrom},
    sql::BoundQuery,
    template::placeholders,
};

/// Collects what is wrong.
#[derive(Default)]
pub(super) struct Check {
    problems: Vec<Invalid>,
}

impl Check {
    pub(super) fn refuse(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Invalid { path: path.to_owned(), message: message.into() });
    }

    pub(super) fn done(self, policy: Policy) -> Result<Policy, Vec<Invalid>> {
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

    pub(super) fn url_from(&mut self, path: &str, from: &UrlFrom) {
        let UrlFrom { secret_key_ref, env, file } = from;
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
            self.refuse(path, format!("{text:?} uses {{{name}}}, which {template} does not have"));
        }
    }

    pub(super) fn methods(&mut self, path: &str, methods: &[String]) {
        let writes = |method: &String| {
            method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
                && Method::from_bytes(method.as_bytes()).is_ok_and(|method| !method.is_safe())
        };
        for method in methods.iter().filter(|method| !writes(method)) {
            let message = "is no method that writes: list such as PUT, PATCH, POST or DELETE, in capitals";
            self.refuse(path, format!("{method:?} {message}"));
        }
    }

    pub(super) fn headers(&mut self, path: &str, names: &[String]) {
        for name in names.iter().filter(|name| HeaderName::from_bytes(name.as_bytes()).is_err()) {
            self.refuse(path, format!("{name:?} is not the name of a header"));
        }
    }

    pub(super) fn route(&mut self, index: usize, spec: &RouteSpec, known_sources: &[&str]) -> Route {
        let at = format!("spec.routes[{index}]");
        let RouteSpec { name, matches, ttl, bypass, key, tags, from } = spec;
        if let Some(ttl) = ttl {
            self.positive(&format!("{at}.ttl"), ttl.0);
        }
        tags.iter().for_each(|tag| self.placeholders(&format!("{at}.tags"), tag, &matches.path));
        if let Some(key) = key {
            self.headers(&format!("{at}.key.headers"), &key.headers);
            self.headers(&format!("{at}.key.ignoreHeaders"), &key.ignore_headers);
        }
        let parameters: Vec<_> = matches.path.parameters().collect();
        let mut sources = Vec::new();
        for (index, from) in from.iter().enumerate() {
            let at = format!("{at}.from[{index}]");
            let Some(postgres) = &from.postgres else {
                self.refuse(&at, "say what to ask: set postgres");
                continue;
            };
            if !known_sources.contains(&postgres.source.as_str()) {
                self.refuse(
                    &format!("{at}.postgres.source"),
                    format!("spec.sources has no {:?}", postgres.source),
                );
            }
            match BoundQuery::new(&postgres.query, &parameters) {
                Ok(query) => sources.push(QuerySource { source: postgres.source.clone(), query }),
                Err(error) => self.refuse(&format!("{at}.postgres.query"), error.to_string()),
            }
        }
        if !sources.is_empty() && ttl.is_none() {
            self.refuse(
                &format!("{at}.ttl"),
                "a route with from needs a ttl: a row says nothing about how long it is fresh",
            );
        }
        let methods = match matches.methods.as_slice() {
            [] => vec![Method::GET, Method::HEAD],
            some => some.iter().map(|method| method.as_method()).collect(),
        };
        Route {
            name: name.clone(),
            path: Some(matches.path.clone()),
            methods,
            ttl: ttl.map(|ttl| ttl.0),
            key: KeyRules::new(key.as_ref()),
            bypass_query: bypass.iter().flat_map(|bypass| bypass.query.clone()).collect(),
            tags: tags.clone(),
            sources,
        }
    }
}
