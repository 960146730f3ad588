//! Errors in a route, collected while it is compiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    time,
};

use http::{HeaderValue, Method, StatusCode};

use super::Check;
use crate::{
    ByteSize, Duration, Lifetimes, StatusPattern,
    key::KeyRules,
    lifetimes::StoreDespite,
    names::could_be,
    policy::{
        Source,
        check::tiers::asked_query_parameters,
        hosts::HostPattern,
        route::{BypassRules, DEFAULT_COLLAPSE_TIMEOUT, Route},
    },
    spec::{
        Bypass, CacheSpec, CacheableMethod, ClientDirectives, Despite, EarlyRefresh, ForwardHeaders,
        KeyQuery, KeySpec, RouteSpec, StatusSpec, TrailingSlash, says_of_stored_responses,
    },
    statuses::is_about_one_request,
};

/// Maximum body in a key, because a body is held in memory until its hash is known.
const MAX_KEYED_BODY: ByteSize = ByteSize(1 << 20);

/// Default time that a fallback response is served before the failed origin is tried again.
const DEFAULT_RETRY_INTERVAL: time::Duration = time::Duration::from_secs(1);

impl Check {
    /// Compiles a route that is filled in with the defaults. An error that it does not have by itself, in what it takes from them, is
    /// theirs, and named once.
    pub(in crate::policy) fn written_route(
        &mut self,
        index: usize,
        route: &RouteSpec,
        known_sources: &[(String, Source)],
        spec: &CacheSpec,
    ) -> Route {
        let mut errors = Self::default();
        let compiled = errors.route(index, route, known_sources);
        let at = format!("spec.routes[{index}].");
        let mut own = Self::default();
        if let Some(route) = spec.routes.get(index).filter(|_| !errors.problems.is_empty()) {
            own.route(index, route, known_sources);
        }
        for mut error in errors.problems {
            if let Some(field) = error.path.strip_prefix(&at).filter(|_| !own.problems.contains(&error)) {
                error.path = spec.written_at(index, field);
            }
            if !self.problems.contains(&error) {
                self.problems.push(error);
            }
        }
        compiled
    }

    fn route(&mut self, index: usize, spec: &RouteSpec, known_sources: &[(String, Source)]) -> Route {
        let at = format!("spec.routes[{index}]");
        let RouteSpec { name, matches, client_directives, bypass, key, tags, from, forward_headers, .. } =
            spec;
        let mut lifetimes = self.lifetimes(&at, spec);
        for (index, tag) in tags.iter().enumerate() {
            self.placeholders(&format!("{at}.tags[{index}]"), tag, &matches.path);
        }
        self.named_values(&format!("{at}.match.headers"), &matches.headers);
        let host = self.match_host(&format!("{at}.match.host"), matches.host.as_deref());
        self.match_query(&format!("{at}.match.query"), &matches.query);
        let ignores_slash = matches.trailing_slash == TrailingSlash::Ignore;
        let other_path = matches.path.with_other_slash().filter(|_| ignores_slash);
        let methods = match matches.methods.as_slice() {
            [] if spec.pass => vec![Method::GET, Method::HEAD, Method::POST],
            [] => vec![Method::GET, Method::HEAD],
            some => some.iter().map(|method| method.as_method()).collect(),
        };
        let mut rules = KeyRules::new(key.as_ref());
        matches.headers.keys().for_each(|name| rules.add_header(name));
        if let (Some(any), Some(host)) = (&mut rules.any_host, &host) {
            host.as_str().clone_into(any);
        }
        matches.query.keys().for_each(|name| rules.add_matched_query(name));
        let stores_posts = methods.contains(&Method::POST) && !spec.pass;
        let body_limit = self.key(&at, key.as_ref(), stores_posts);
        self.pass(&at, spec);
        let bypass = self.bypass(&format!("{at}.bypass"), bypass.as_ref());
        bypass.query.iter().for_each(|(name, _)| rules.add_query(name));
        let sources = self.source_refs(&format!("{at}.from"), from, &matches.path, known_sources);
        for name in from.iter().flat_map(asked_query_parameters) {
            if rules.ignores(name) {
                let message = format!(
                    "uses {{query.{name}}}, which the key leaves out: list it in key.query.allow of this route, \
                     or take it out of ignore"
                );
                self.refuse(&format!("{at}.from"), message);
            }
            rules.add_query(name);
        }
        if !from.is_empty() {
            self.not_found_ttl(&at, spec, &mut lifetimes);
        }
        self.last_known_good(&at, spec, known_sources);
        if let Some(timeout) = spec.collapse_timeout {
            self.positive(&format!("{at}.collapseTimeout"), timeout.0);
        }
        if !from.is_empty() && lifetimes.ttl.is_none() {
            self.refuse(
                &format!("{at}.ttl"),
                "a route with from needs a ttl: a row does not declare how long it is fresh",
            );
        }
        if !from.is_empty() && stores_posts {
            self.refuse(
                &format!("{at}.from"),
                "from selects responses by path and query only: take POST out of match.methods, or from out of the route",
            );
        }
        let forwards_keyed = *forward_headers == Some(ForwardHeaders::Keyed);
        if forwards_keyed && rules.any_host.is_some() {
            self.refuse(
                &format!("{at}.forwardHeaders"),
                "Keyed sends only what is in the key, and an application needs a Host: set key.host to Include, or this to All",
            );
        }
        let asks_application = from.is_empty() || from.iter().any(|from| from.application.is_some());
        rules.bypass_headers = bypass.headers.iter().map(|(name, _)| name.clone()).collect();
        rules.hides_tailoring = forwards_keyed || !asks_application;
        Route {
            index,
            name: name.clone(),
            path: Some(matches.path.clone()),
            ignores_case: !matches.case_sensitive,
            other_path,
            methods,
            host,
            headers: matches.headers.clone().into_iter().collect(),
            query: matches.query.clone().into_iter().collect(),
            lifetimes,
            key: rules,
            body_limit,
            honor_request_directives: *client_directives == Some(ClientDirectives::Honor),
            passes: spec.pass,
            bypass,
            forwards_keyed,
            tags: tags.clone(),
            tags_from: spec.tags_from.as_ref().map(|from| self.tags_from(&format!("{at}.tagsFrom"), from)),
            sources,
            asks_application,
            last_known_good: spec.last_known_good.as_ref().map(|known| known.source.clone()),
            collapse_timeout: spec.collapse_timeout.map_or(DEFAULT_COLLAPSE_TIMEOUT, |timeout| timeout.0),
            envelope: spec.envelope == Some(true),
        }
    }

    fn match_host(&mut self, at: &str, host: Option<&str>) -> Option<HostPattern> {
        let pattern = HostPattern::parse(host?);
        if pattern.is_none() {
            self.refuse(
                at,
                "write a host name in lower case without a port, such as shop.example or *.shop.example",
            );
        }
        pattern
    }

    fn match_query(&mut self, at: &str, query: &BTreeMap<String, String>) {
        for name in query.keys().filter(|name| name.is_empty() || name.contains(['*', '&', '=', '#', ';'])) {
            self.refuse(at, format!("{name:?} is not the name of a parameter, such as page"));
        }
        let mut seen: Vec<&String> = vec![];
        for name in query.keys() {
            if let Some(other) = seen.iter().find(|other| could_be(name.as_bytes(), other)) {
                self.refuse(at, format!("an application may take {name:?} for {other:?}: name one of them"));
            }
            seen.push(name);
        }
    }

    fn lifetimes(&mut self, at: &str, spec: &RouteSpec) -> Lifetimes {
        let RouteSpec {
            ttl,
            max_ttl,
            statuses,
            stale_while_revalidate,
            stale_if_error,
            grace,
            store_despite,
            set_cookie,
            ttl_from,
            ttl_jitter_percent,
            l1_ttl,
            l2_ttl,
            early_refresh,
            last_known_good,
            retry_interval,
            ..
        } = spec;
        for (field, value) in [("ttl", ttl), ("maxTTL", max_ttl), ("l1TTL", l1_ttl), ("l2TTL", l2_ttl)] {
            if let Some(value) = value {
                self.positive(&format!("{at}.{field}"), value.0);
            }
        }
        if ttl.is_some() && max_ttl.is_some() {
            self.refuse(
                &format!("{at}.maxTTL"),
                "ttl replaces the lifetime that a response declares and maxTTL limits it: set one of them",
            );
        }
        if ttl_jitter_percent.is_some() && ttl.is_none() {
            self.refuse(
                &format!("{at}.ttlJitterPercent"),
                "ttlJitterPercent shortens the ttl of the route: set one beside it",
            );
        }
        if ttl_jitter_percent.is_some_and(|percent| !(1..=50).contains(&percent)) {
            self.refuse(&format!("{at}.ttlJitterPercent"), "must be between 1 and 50");
        }
        if grace.is_some() && stale_while_revalidate.is_some() && stale_if_error.is_some() {
            self.refuse(
                &format!("{at}.grace"),
                "grace applies where staleWhileRevalidate or staleIfError is not set, and both are: take one of the three out",
            );
        }
        let stale_if_error = stale_if_error.or(*grace);
        let time = |duration: &Option<Duration>| duration.map(|duration| duration.0);
        let has_stand_ins = stale_if_error.is_some() || last_known_good.is_some();
        let default_retry = if has_stand_ins { DEFAULT_RETRY_INTERVAL } else { time::Duration::ZERO };
        Lifetimes {
            ttl: time(ttl),
            max_ttl: time(max_ttl),
            statuses: self.statuses(&format!("{at}.statuses"), statuses.as_deref().unwrap_or_default()),
            stale_while_revalidate: time(&stale_while_revalidate.or(*grace)),
            stale_if_error: time(&stale_if_error),
            store_despite: despite(store_despite.as_deref().unwrap_or_default()),
            set_cookie: set_cookie.unwrap_or_default(),
            ttl_from: self.ttl_from(&format!("{at}.ttlFrom"), ttl_from.as_ref(), ttl.is_some()),
            jitter_percent: ttl_jitter_percent.unwrap_or(0),
            l1_ttl: time(l1_ttl),
            l2_ttl: time(l2_ttl),
            early_refresh: *early_refresh == Some(EarlyRefresh::XFetch),
            retry_interval: time(retry_interval).unwrap_or(default_retry),
        }
    }

    fn statuses(&mut self, at: &str, specs: &[StatusSpec]) -> Vec<(StatusPattern, Option<time::Duration>)> {
        let mut statuses: Vec<(StatusPattern, _)> = Vec::new();
        for (index, StatusSpec { code, ttl }) in specs.iter().enumerate() {
            let at = format!("{at}[{index}]");
            if let Some(ttl) = ttl {
                self.positive(&format!("{at}.ttl"), ttl.0);
            }
            let is_known = statuses.iter().any(|(listed, _)| listed == code);
            if let Some(message) = misfit(*code) {
                self.refuse(&format!("{at}.code"), message);
            } else if is_known {
                self.refuse(
                    &format!("{at}.code"),
                    format!("{code} is listed already: list each status once"),
                );
            } else {
                statuses.push((*code, ttl.map(|ttl| ttl.0)));
            }
        }
        statuses
    }

    /// Returns the maximum size of a body that is part of the key.
    fn key(&mut self, at: &str, key: Option<&KeySpec>, has_post: bool) -> Option<u64> {
        let default = KeySpec::default();
        let KeySpec { query, host: _, headers, ignore_headers, cookies, body } = key.unwrap_or(&default);
        self.headers(&format!("{at}.key.headers"), headers.as_deref().unwrap_or_default());
        self.headers(&format!("{at}.key.ignoreHeaders"), ignore_headers.as_deref().unwrap_or_default());
        for (index, name) in cookies.iter().flatten().enumerate() {
            self.cookie(&format!("{at}.key.cookies[{index}]"), name);
        }
        if let Some(KeyQuery { allow, ignore, order: _ }) = query {
            if allow.is_some() && ignore.is_some() {
                self.refuse(
                    &format!("{at}.key.query"),
                    "allow and ignore exclude each other: set one of them",
                );
            }
            for (field, patterns) in [("allow", allow), ("ignore", ignore)] {
                let bad = |pattern: &str| {
                    pattern.is_empty()
                        || pattern.strip_suffix('*').unwrap_or(pattern).contains(['*', '&', '=', '#'])
                };
                for (index, pattern) in
                    patterns.iter().flatten().enumerate().filter(|(_, pattern)| bad(pattern))
                {
                    self.refuse(
                        &format!("{at}.key.query.{field}[{index}]"),
                        format!("{pattern:?} is not the name of a parameter, or its start and a '*', such as utm_*"),
                    );
                }
            }
        }
        let largest = body.as_ref().map(|body| body.max_size);
        if largest.is_some_and(|size| size.0 == 0 || size > MAX_KEYED_BODY) {
            self.refuse(
                &format!("{at}.key.body.maxSize"),
                "must be between 1 and 1Mi: a body is held in memory until its hash is known",
            );
        }
        match (has_post, largest) {
            (true, None) => self.refuse(
                &format!("{at}.match.methods"),
                "responses to POST depend on the body: set key.body, such as {maxSize: 64Ki}, or take POST out",
            ),
            (false, Some(_)) => self.refuse(
                &format!("{at}.key.body"),
                "is for POST: put POST into match.methods, or take key.body out",
            ),
            _ => {}
        }
        largest.map(|size| size.0)
    }

    /// Checks that nothing is said of stored responses where none are stored.
    fn pass(&mut self, at: &str, spec: &RouteSpec) {
        if spec.pass && says_of_stored_responses(spec) {
            self.refuse(
                &format!("{at}.pass"),
                "stores nothing: take it out, or everything else but name and match",
            );
        }
    }

    fn bypass(&mut self, at: &str, spec: Option<&Bypass>) -> BypassRules {
        let Some(Bypass { query, headers, cookies }) = spec else { return BypassRules::default() };
        if query.is_none() && headers.is_none() && cookies.is_none() {
            self.refuse(
                at,
                "bypass needs a condition: set query, headers or cookies, such as query: {nocache: \"true\"}",
            );
        }
        if let Some(headers) = headers {
            self.named_values(&format!("{at}.headers"), headers);
        }
        cookies.iter().flat_map(BTreeMap::keys).for_each(|name| self.cookie(&format!("{at}.cookies"), name));
        let pairs = |map: &Option<BTreeMap<String, String>>| map.clone().into_iter().flatten().collect();
        let headers =
            headers.iter().flatten().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        BypassRules { query: pairs(query), headers: headers.collect(), cookies: pairs(cookies) }
    }

    /// Checks names of headers, and values that they can have.
    fn named_values(&mut self, at: &str, headers: &BTreeMap<String, String>) {
        headers.keys().for_each(|name| self.header(at, name));
        for value in headers.values() {
            if HeaderValue::from_str(value).is_err() || value.trim() != value {
                self.refuse(at, format!("{value:?} is not a value that a header can have"));
            }
        }
        let mut seen = BTreeSet::new();
        for name in headers.keys().map(|name| name.to_ascii_lowercase()) {
            if !seen.insert(name.clone()) {
                self.refuse(at, format!("{name:?} appears twice: header names are case-insensitive"));
            }
        }
    }

    fn cookie(&mut self, at: &str, name: &str) {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            self.refuse(at, format!("{name:?} is not the name of a cookie"));
        }
    }
}

/// Returns the reason why responses of a status cannot be stored.
fn misfit(pattern: StatusPattern) -> Option<String> {
    let StatusPattern::Code(code) = pattern else { return None };
    match StatusCode::from_u16(code).ok().filter(|_| (200..600).contains(&code)) {
        None => Some(format!("{code} is not a status such as 200 or 404")),
        Some(StatusCode::NOT_MODIFIED) => Some(
            "a 304 refers to a response that is already stored: list the status of that response, such as 200"
                .to_owned(),
        ),
        Some(status) => is_about_one_request(status).then(|| {
            format!("a {code} is about one request or one client, and is never stored: take it out of statuses")
        }),
    }
}

fn despite(listed: &[Despite]) -> StoreDespite {
    let has = |despite| listed.contains(&despite);
    StoreDespite {
        no_store: has(Despite::NoStore),
        private: has(Despite::Private),
        vary_any: has(Despite::VaryAny),
    }
}

impl CacheableMethod {
    fn as_method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Post => Method::POST,
        }
    }
}
