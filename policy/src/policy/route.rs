//! A compiled route.

use std::{sync::Arc, time::Duration};

use http::Method;

use crate::{
    Fields, Lifetimes, NormalPath, PathTemplate, PurgeName,
    key::{KeyRules, has_cookie},
    names::{certainly_has, could_be, could_have, is_alike, name_of, value_could_be, value_is_loosely},
    policy::hosts::{HostPattern, NamedHosts},
    sql::BoundQuery,
    tags::TagsFrom,
    template::{Parameters, expand},
};

/// Default of [`Route::collapse_timeout`]: that of nginx's `proxy_cache_lock_timeout` and `proxy_cache_lock_age`.
pub(super) const DEFAULT_COLLAPSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that are cached in the same way.
#[derive(Clone, Debug)]
pub struct Route {
    /// Index in [`super::Policy::routes`].
    pub index: usize,
    /// Name in metrics and logs.
    pub name: String,
    /// Paths that the route applies to; `None` in the one route of a sidecar without a policy.
    pub path: Option<PathTemplate>,
    /// True if literals of the path match in any case.
    pub(super) ignores_case: bool,
    /// The path with the slash at its end that it lacks, or without the one that it has, where it matches as well.
    pub(super) other_path: Option<PathTemplate>,
    pub(super) methods: Vec<Method>,
    pub(super) host: Option<HostPattern>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) query: Vec<(String, String)>,
    /// Rules on freshness and storing.
    pub lifetimes: Lifetimes,
    /// Rules for the cache key.
    pub key: KeyRules,
    pub(super) body_limit: Option<u64>,
    /// True if a client's request directives are honoured (RFC 9111, section 5.2.1).
    pub honor_request_directives: bool,
    /// True if no request of the route is looked up or stored.
    pub(super) passes: bool,
    pub(super) bypass: BypassRules,
    /// True if only headers in the key, and those that change no response, are forwarded to the application.
    pub(super) forwards_keyed: bool,
    pub(super) tags: Vec<String>,
    /// Header fields that name further tags.
    pub tags_from: Option<TagsFrom>,
    /// Origins to try on a miss, the application aside.
    pub sources: Vec<SourceRef>,
    /// True if the application is an origin, after the sources or because there are none.
    pub asks_application: bool,
    /// The Postgres source that persists the last good response.
    pub last_known_good: Option<String>,
    /// Time without progress after which other requests for the same response no longer wait for a request to the
    /// origin.
    pub collapse_timeout: Duration,
    /// True if responses are wrapped.
    pub envelope: bool,
}

/// One source to try on a miss, and the request to it.
#[derive(Clone, Debug)]
pub enum SourceRef {
    /// A Postgres source.
    Postgres(QuerySource),
    /// An HTTP source.
    Http(HttpSource),
}

impl SourceRef {
    /// Returns the name of the source.
    pub fn name(&self) -> &str {
        match self {
            Self::Postgres(QuerySource { source, .. }) | Self::Http(HttpSource { source, .. }) => source,
        }
    }

    /// Returns the statement that persists the source's responses, if the policy has one.
    pub fn persist(&self) -> Option<&QuerySource> {
        match self {
            Self::Postgres(_) => None,
            Self::Http(request) => request.persist.as_ref(),
        }
    }
}

/// A query to one of the policy's Postgres sources.
#[derive(Clone, Debug)]
pub struct QuerySource {
    /// Name of the source.
    pub source: String,
    /// The query or statement, ready to be bound.
    pub query: BoundQuery,
}

/// A request to one of the policy's HTTP sources.
#[derive(Clone, Debug)]
pub struct HttpSource {
    /// Name of the source.
    pub source: String,
    /// Path with an optional query and `{name}` and `{*name}` placeholders ([`crate::Values::expand_url`]).
    pub path: String,
    /// The statement that persists the source's responses.
    pub persist: Option<QuerySource>,
}

/// Names, each with the value that bypasses; `*` matches any value.
#[derive(Clone, Debug, Default)]
pub(super) struct BypassRules {
    pub(super) query: Vec<(String, String)>,
    /// Names are in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) cookies: Vec<(String, String)>,
}

/// The part of a request that makes it bypass the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BypassBy {
    /// The route itself.
    Route,
    /// A parameter of the query.
    Query,
    /// A header.
    Header,
    /// A cookie.
    Cookie,
}

impl BypassBy {
    /// Returns the name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Query => "query",
            Self::Header => "header",
            Self::Cookie => "cookie",
        }
    }
}

/// The parts of a request that select its route, besides its header fields.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    /// The method.
    pub method: &'a Method,
    /// The host of an absolute target, which takes precedence over `Host` (RFC 9112, section 3.2.2).
    pub uri_host: Option<&'a str>,
    /// The path.
    pub path: &'a NormalPath<'a>,
    /// The raw query.
    pub query: Option<&'a str>,
}

/// A request's route.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
}

impl<'a> Match<'a> {
    /// Returns the values of the path's parameters, where `path` is the one that matched.
    pub fn parameters(&self, path: &NormalPath<'_>) -> Parameters<'a> {
        self.route.parameters(path)
    }
}

impl Route {
    /// The one route of a sidecar without a policy.
    pub(super) fn bare() -> Self {
        Self {
            index: 0,
            name: "default".to_owned(),
            path: None,
            ignores_case: false,
            other_path: None,
            methods: vec![Method::GET, Method::HEAD],
            host: None,
            headers: vec![],
            query: vec![],
            lifetimes: Lifetimes::default(),
            key: KeyRules::default(),
            body_limit: None,
            honor_request_directives: true,
            passes: false,
            bypass: BypassRules::default(),
            forwards_keyed: false,
            tags: vec![],
            tags_from: None,
            sources: vec![],
            asks_application: true,
            last_known_good: None,
            collapse_timeout: DEFAULT_COLLAPSE_TIMEOUT,
            envelope: false,
        }
    }

    /// Returns the path, and the one with another slash at its end if that matches as well.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathTemplate> {
        self.path.iter().chain(&self.other_path)
    }

    /// Returns true if the paths of the route have every spelling that the main path of another has.
    fn spells_all_of(&self, other: &Self) -> bool {
        if self.passes {
            return true;
        }
        let has_cases = self.ignores_case || !self.path.as_ref().is_some_and(PathTemplate::has_literals);
        let has_slashes =
            self.other_path.is_some() || self.path.as_ref().is_some_and(PathTemplate::matches_all);
        (has_cases || !other.ignores_case) && (has_slashes || other.other_path.is_none())
    }

    /// Returns true if the parameters of a path with the segments of this route's have values.
    pub(super) fn decodes(&self, path: &str) -> bool {
        self.path.as_ref().is_none_or(|template| template.decodes(path.strip_prefix('/').unwrap_or(path)))
    }

    /// Returns true if a request belongs to this route, provided that its path does.
    pub(super) fn takes(
        &self,
        line: &RequestLine<'_>,
        hosts: Option<&NamedHosts<'_>>,
        fields: &(impl Fields + ?Sized),
    ) -> bool {
        let has = |(name, wanted): &(String, String)| {
            let mut values = fields.values(name);
            values.next() == Some(wanted.as_bytes()) && values.next().is_none()
        };
        let has_parameter = |(name, wanted): &(String, String)| {
            line.query.is_some_and(|query| certainly_has(query, name, wanted))
        };
        let is_host = |pattern| hosts.is_some_and(|hosts| hosts.all_fit(pattern, fields));
        self.methods.contains(line.method)
            && self.host.as_ref().is_none_or(is_host)
            && self.headers.iter().all(has)
            && self.query.iter().all(has_parameter)
    }

    /// Returns true if all requests of another route belong to this one, provided that their paths do.
    pub(super) fn takes_all_of(&self, other: &Self) -> bool {
        let is_wanted = |(name, value): &(String, String)| {
            other.headers.iter().any(|(known, wanted)| known.eq_ignore_ascii_case(name) && wanted == value)
        };
        let is_wanted_in_query = |(name, value): &(String, String)| {
            other.query.iter().any(|(known, wanted)| known == name && (wanted == value || value == "*"))
        };
        let has_host = |pattern: &HostPattern| other.host.as_ref().is_some_and(|other| pattern.covers(other));
        // A write passes without a route, too: one that passes reads and writes is there for the reads.
        let is_for_reads = other.passes && other.methods.contains(&Method::GET);
        let has_method =
            |method: &Method| self.methods.contains(method) || is_for_reads && *method == Method::POST;
        self.spells_all_of(other)
            && other.methods.iter().all(has_method)
            && self.host.as_ref().is_none_or(has_host)
            && self.headers.iter().all(is_wanted)
            && self.query.iter().all(is_wanted_in_query)
    }

    /// Returns true if no request of the route is looked up or stored.
    pub fn passes(&self) -> bool {
        self.passes
    }

    /// Returns true if the route takes a request for its header fields or its query, and not for its path alone.
    pub(super) fn tells_by_fields(&self) -> bool {
        !self.headers.is_empty() || !self.query.is_empty()
    }

    /// Returns the part of a request that makes it bypass the cache, if there is one. A name or a value that an
    /// application might read as the bypassing one counts as well.
    pub fn bypass(&self, query: Option<&str>, fields: &(impl Fields + ?Sized)) -> Option<BypassBy> {
        let BypassRules { query: by_query, headers, cookies } = &self.bypass;
        let in_query = |(name, wanted): &(String, String)| {
            query.into_iter().flat_map(|query| query.split(['&', ';'])).any(|pair| {
                let value = pair.split_once('=').map_or("", |(_, value)| value);
                could_be(name_of(pair).as_bytes(), name) && value_could_be(value.as_bytes(), wanted)
            })
        };
        let in_headers = |(name, wanted): &(String, String)| match wanted.as_str() {
            "*" => fields.lines().any(|(known, _)| is_alike(known, name)),
            wanted => could_have(fields, name, |value| value_is_loosely(value, wanted)),
        };
        if self.passes {
            Some(BypassBy::Route)
        } else if by_query.iter().any(in_query) {
            Some(BypassBy::Query)
        } else if headers.iter().any(in_headers) {
            Some(BypassBy::Header)
        } else {
            cookies.iter().any(|(name, wanted)| has_cookie(fields, name, wanted)).then_some(BypassBy::Cookie)
        }
    }

    /// Returns the maximum size of a request body that is part of the key; `None` if bodies are not. A POST with a
    /// larger body passes through.
    pub fn body_limit(&self) -> Option<u64> {
        self.body_limit
    }

    /// Returns the values of the path's parameters, where `path` is one that the route takes.
    fn parameters(&self, path: &NormalPath<'_>) -> Parameters<'_> {
        let Some(template) = &self.path else { return Parameters::default() };
        let values_in = |template| PathTemplate::matches_spelled(template, path.as_str(), self.ignores_case);
        let without_rest = || {
            let mut values = values_in(self.other_path.as_ref()?)?;
            values.extend(template.rest().map(|name| (name, String::new())));
            Some(values)
        };
        values_in(template).or_else(without_rest).unwrap_or_default()
    }

    /// Returns the purge names of the tags of a response, where `path` is one that the route takes, as it was sent.
    pub fn tags(&self, path: &str) -> impl Iterator<Item = PurgeName> {
        let parameters = if self.tags.is_empty() {
            Parameters::default()
        } else {
            self.parameters(&NormalPath::new(path))
        };
        self.tag_texts(parameters).map(|tag| PurgeName::tag(&tag))
    }

    /// Returns the tags of a response, with the parameters' values inserted: as they were sent, and where the rest of the path has
    /// empty segments, without those, because servers merge slashes and ignore one at the end.
    pub fn tag_texts(&self, parameters: Parameters<'_>) -> impl Iterator<Item = String> {
        let merged = self.merged(&parameters);
        self.tags.iter().flat_map(move |tag| {
            let text = expand(tag, &parameters);
            let other = merged.as_ref().map(|merged| expand(tag, merged)).filter(|other| *other != text);
            [Some(text), other].into_iter().flatten()
        })
    }

    /// Returns the values of parameters with the empty segments taken out of the rest of the path; `None` if it has none.
    fn merged<'a>(&self, parameters: &Parameters<'a>) -> Option<Parameters<'a>> {
        let name = self.path.as_ref()?.rest()?;
        let (_, rest) = parameters.iter().find(|(known, _)| *known == name)?;
        let segments: Vec<_> = rest.split('/').filter(|segment| !segment.is_empty()).collect();
        let merged = segments.join("/");
        let with_merged = || {
            let value = |(known, value): &(&'a str, String)| {
                (*known, if *known == name { merged.clone() } else { value.clone() })
            };
            parameters.iter().map(value).collect()
        };
        (merged != *rest).then(with_merged)
    }

    /// Returns everything that decides which requests share a response and how it is purged, as text.
    pub(super) fn fingerprint(&self) -> String {
        let Self {
            index: _,
            name: _,
            path,
            ignores_case,
            other_path,
            methods,
            host,
            headers,
            query,
            lifetimes,
            key,
            body_limit,
            honor_request_directives: _,
            passes,
            bypass,
            forwards_keyed,
            tags,
            tags_from,
            sources,
            asks_application,
            last_known_good,
            collapse_timeout: _,
            envelope: _,
        } = self;
        let Lifetimes {
            ttl,
            max_ttl: _,
            statuses,
            stale_while_revalidate: _,
            stale_if_error: _,
            store_despite,
            set_cookie,
            ttl_from: _,
            jitter_percent: _,
            l1_ttl: _,
            l2_ttl: _,
            early_refresh: _,
            retry_interval: _,
        } = lifetimes;
        // What a route no longer stores must not live on under the TTL of what it does.
        let codes: Vec<_> = statuses.iter().map(|(code, _)| code).collect();
        let stored = (codes.is_empty() && ttl.is_some(), codes, store_despite, set_cookie);
        let keys_body = body_limit.is_some();
        format!(
            "{path:?} {ignores_case} {other_path:?} {methods:?} {host:?} {headers:?} {query:?} {stored:?} {key:?} {keys_body} {passes} {bypass:?} {forwards_keyed} {tags:?} {tags_from:?} {sources:?} {asks_application} {last_known_good:?}\n"
        )
    }
}
