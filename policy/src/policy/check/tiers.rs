//! Errors in tiers, and in the parts of routes that use them.

use std::time;

use http::{HeaderName, StatusCode, Uri};

use super::Check;
use crate::{
    Lifetimes,
    lifetimes::TtlFrom,
    policy::{
        Source,
        route::{HttpSource, QuerySource, SourceRef},
    },
    spec::{self, FromSpec, HttpRequest, Otlp, Persist, PostgresQuery, Redis, RouteSpec, Topology},
    sql::BoundQuery,
    template::{PathTemplate, placeholders, spread},
    values::{BODY, query_parameter, query_parameters},
};

/// Default time that a "not found" from every source is cached.
const NOT_FOUND_TTL: time::Duration = time::Duration::from_secs(5);

impl Check {
    pub(in crate::policy) fn redis(&mut self, at: &str, redis: &Redis) {
        let Redis { url_from, topology, master_name, ca_from, timeout, hard_timeout, max_object_size } =
            redis;
        self.url_from(&format!("{at}.urlFrom"), url_from);
        if let Some(ca_from) = ca_from {
            self.url_from(&format!("{at}.caFrom"), ca_from);
        }
        if master_name.is_some() != (*topology == Topology::Sentinel) {
            let message = "is the name by which Sentinels monitor the master: set it with topology: Sentinel, and only then";
            self.refuse(&format!("{at}.masterName"), message);
        }
        self.timeouts(at, timeout.0, hard_timeout.map(|hard| hard.0));
        if max_object_size.is_some_and(|size| size.0 == 0) {
            self.refuse(&format!("{at}.maxObjectSize"), "must be at least 1");
        }
    }

    fn timeouts(&mut self, at: &str, timeout: time::Duration, hard: Option<time::Duration>) {
        self.positive(&format!("{at}.timeout"), timeout);
        if hard.is_some_and(|hard| hard < timeout) {
            self.refuse(&format!("{at}.hardTimeout"), "must not be shorter than timeout");
        }
    }

    pub(in crate::policy) fn source(&mut self, at: &str, source: &spec::Source) -> Option<(String, Source)> {
        let spec::Source { name, postgres, http } = source;
        let source = match (postgres, http) {
            (Some(postgres), None) => {
                let at = format!("{at}.postgres");
                self.url_from(&format!("{at}.urlFrom"), &postgres.url_from);
                if let Some(ca_from) = &postgres.ca_from {
                    self.url_from(&format!("{at}.caFrom"), ca_from);
                }
                self.positive(&format!("{at}.statementTimeout"), postgres.statement_timeout.0);
                if postgres.max_connections_per_pod == 0 {
                    self.refuse(&format!("{at}.maxConnectionsPerPod"), "must be at least 1");
                }
                Source::Postgres(postgres.clone())
            }
            (None, Some(http)) => {
                let at = format!("{at}.http");
                if !is_base_url(&http.url) {
                    let message =
                        "write a URL such as https://catalog.example, without user, query or fragment";
                    self.refuse(&format!("{at}.url"), message);
                }
                if let Some(ca_from) = &http.ca_from {
                    self.url_from(&format!("{at}.caFrom"), ca_from);
                    if !is_https(&http.url) {
                        let message = "is for TLS: write url with https, or take caFrom out";
                        self.refuse(&format!("{at}.caFrom"), message);
                    }
                }
                self.timeouts(&at, http.timeout.0, http.hard_timeout.map(|hard| hard.0));
                Source::Http(http.clone())
            }
            _ => {
                self.refuse(at, "a source needs a kind: set one of postgres and http");
                return None;
            }
        };
        Some((name.clone(), source))
    }

    pub(in crate::policy) fn otlp(&mut self, at: &str, otlp: &Otlp) {
        let Otlp { endpoint } = otlp;
        if !is_url(endpoint, &["http"]) {
            let message =
                format!("{endpoint:?} is not a URL such as http://otel-collector.observability:4317");
            self.refuse(&format!("{at}.endpoint"), message);
        }
    }

    pub(in crate::policy) fn admin_prefix(&mut self, at: &str, prefix: &str) {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
        let is_segment = |segment: &str| {
            !segment.is_empty() && segment.chars().all(is_plain) && !matches!(segment, "." | "..")
        };
        if !prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(is_segment)) {
            self.refuse(at, "write a path without an end slash and without dots alone, such as /_larder");
        }
    }

    /// Compiles the origins of a miss, except the application.
    pub(super) fn source_refs(
        &mut self,
        at: &str,
        from: &[FromSpec],
        template: &PathTemplate,
        sources: &[(String, Source)],
    ) -> Vec<SourceRef> {
        let parameters: Vec<_> = template.parameters().collect();
        let mut refs = Vec::new();
        for (index, one) in from.iter().enumerate() {
            let at = format!("{at}[{index}]");
            // Taken apart, here and in `asked_query_parameters`, so that a new member is not forgotten.
            let FromSpec { postgres, http, application } = one;
            match (postgres, http, application) {
                (Some(PostgresQuery { source, query }), None, None) => {
                    let at = format!("{at}.postgres");
                    self.postgres_source(&at, source, sources);
                    match BoundQuery::new(query, &parameters) {
                        Ok(query) => {
                            refs.push(SourceRef::Postgres(QuerySource { source: source.clone(), query }))
                        }
                        Err(error) => self.refuse(&format!("{at}.query"), error.to_string()),
                    }
                }
                (None, Some(request), None) => {
                    refs.extend(self.http_request(&format!("{at}.http"), request, template, sources));
                }
                (None, None, Some(_)) if index + 1 == from.len() => {}
                (None, None, Some(_)) => {
                    self.refuse(
                        &at,
                        "the application is always the last origin: put application at the end of from",
                    );
                }
                _ => self.refuse(
                    &at,
                    "an entry of from needs an origin: set one of postgres, http and application",
                ),
            }
        }
        refs
    }

    fn http_request(
        &mut self,
        at: &str,
        request: &HttpRequest,
        template: &PathTemplate,
        sources: &[(String, Source)],
    ) -> Option<SourceRef> {
        let HttpRequest { source, path, persist } = request;
        let parameters: Vec<_> = template.parameters().collect();
        match sources.iter().find(|(name, _)| name == source) {
            Some((_, Source::Http(_))) => {}
            Some(_) => self.refuse(&format!("{at}.source"), format!("{source:?} is no HTTP source")),
            None => self.refuse(&format!("{at}.source"), format!("spec.sources has no {source:?}")),
        }
        if !path.starts_with('/') || path.contains('#') || path.contains(char::is_whitespace) {
            self.refuse(&format!("{at}.path"), "start path with a slash, and leave out fragments and spaces");
        }
        let is_known = |name: &&str| parameters.contains(name) || query_parameter(name).is_some();
        for name in placeholders(path).filter(|name| !is_known(name)) {
            let message = match name.strip_prefix('*') {
                Some(name) => format!("{{*{name}}} belongs into match.path: write {{{name}}} here"),
                None => format!(
                    "{{{name}}} has no value: use a parameter of match.path, or one of the query such as {{query.page}}"
                ),
            };
            self.refuse(&format!("{at}.path"), message);
        }
        let persist = persist.as_ref().and_then(|Persist { source, statement }| {
            let at = format!("{at}.persist");
            self.postgres_source(&at, source, sources);
            if parameters.contains(&BODY) {
                let message =
                    "{body} is the body of the response here: rename the parameter of match.path";
                self.refuse(&format!("{at}.statement"), message);
            }
            if !statement.to_ascii_lowercase().contains("on conflict") {
                let message =
                    "pods write the same row at the same time: end it with a clause such as on conflict do nothing";
                self.refuse(&format!("{at}.statement"), message);
            }
            let known: Vec<_> = parameters.iter().copied().chain([BODY]).collect();
            match BoundQuery::statement(statement, &known) {
                Ok(query) => Some(QuerySource { source: source.clone(), query }),
                Err(error) => {
                    self.refuse(&format!("{at}.statement"), error.to_string());
                    None
                }
            }
        });
        let path = template.rest().map_or_else(|| path.clone(), |rest| spread(path, rest));
        Some(SourceRef::Http(HttpSource { source: source.clone(), path, persist }))
    }

    pub(super) fn postgres_source(&mut self, at: &str, name: &str, sources: &[(String, Source)]) {
        match sources.iter().find(|(known, _)| known == name) {
            Some((_, Source::Postgres(_))) => {}
            Some(_) => self.refuse(&format!("{at}.source"), format!("{name:?} is no Postgres source")),
            None => self.refuse(&format!("{at}.source"), format!("spec.sources has no {name:?}")),
        }
    }

    /// Sets the lifetime of the 404 that stands for "not found" from every source.
    pub(super) fn not_found_ttl(&mut self, at: &str, spec: &RouteSpec, lifetimes: &mut Lifetimes) {
        if lifetimes.listed(StatusCode::NOT_FOUND).is_some() {
            if spec.not_found_ttl.is_some() {
                let message = "statuses already sets how long a 404 is fresh: set one of them";
                self.refuse(&format!("{at}.notFoundTTL"), message);
            }
            return;
        }
        let ttl = spec.not_found_ttl.map_or(NOT_FOUND_TTL, |ttl| ttl.0);
        if !ttl.is_zero() {
            if lifetimes.statuses.is_empty() {
                lifetimes.statuses.push((StatusCode::OK.into(), None));
            }
            lifetimes.statuses.push((StatusCode::NOT_FOUND.into(), Some(ttl)));
        }
    }

    pub(super) fn last_known_good(&mut self, at: &str, spec: &RouteSpec, sources: &[(String, Source)]) {
        if spec.not_found_ttl.is_some() && spec.from.is_empty() {
            let message = "applies when no source has a result: set from, or list 404 in statuses";
            self.refuse(&format!("{at}.notFoundTTL"), message);
        }
        if let Some(known) = &spec.last_known_good {
            self.postgres_source(&format!("{at}.lastKnownGood"), &known.source, sources);
        }
    }

    pub(super) fn ttl_from(
        &mut self,
        at: &str,
        spec: Option<&spec::TtlFrom>,
        has_ttl: bool,
    ) -> Option<TtlFrom> {
        let spec = spec?;
        if !has_ttl {
            self.refuse(at, "needs a ttl beside it, which applies to responses that state none: set one");
        }
        match (&spec.header, &spec.json) {
            (Some(header), None) => match HeaderName::from_bytes(header.as_bytes()) {
                Ok(name) => return Some(TtlFrom::Header(name)),
                Err(_) => {
                    self.refuse(&format!("{at}.header"), format!("{header:?} is not the name of a header"))
                }
            },
            (None, Some(pointer)) if pointer.starts_with('/') => return Some(TtlFrom::Json(pointer.clone())),
            (None, Some(_)) => self.refuse(&format!("{at}.json"), "write a JSON pointer, such as /meta/ttl"),
            _ => self.refuse(at, "set one of header, such as X-TTL, and json, such as /meta/ttl"),
        }
        None
    }
}

/// Returns the query parameters that an origin uses.
pub(super) fn asked_query_parameters(from: &FromSpec) -> impl Iterator<Item = &str> {
    let FromSpec { postgres, http, application: _ } = from;
    let query = postgres.iter().map(|postgres| &postgres.query);
    let path = http.iter().map(|http| &http.path);
    let statement = http.iter().filter_map(|http| http.persist.as_ref()).map(|persist| &persist.statement);
    query.chain(path).chain(statement).flat_map(|text| query_parameters(text))
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn is_base_url(url: &str) -> bool {
    is_url(url, &["http", "https"]) && !url.contains(['@', '?', '#'])
}

/// Returns true for a URL with a host and one of these schemes.
fn is_url(url: &str, schemes: &[&str]) -> bool {
    let parsed: Result<Uri, _> = url.parse();
    parsed.is_ok_and(|parsed| {
        parsed.host().is_some_and(|host| !host.is_empty())
            && parsed.scheme_str().is_some_and(|scheme| schemes.contains(&scheme))
    })
}
