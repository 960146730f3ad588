//! A compiled policy.

mod access;
mod check;
mod forwarded;
mod hosts;
mod index;
mod passing;
mod route;
#[cfg(test)]
mod tests;
mod writes;

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderName;

pub use self::access::{PURGE_METHODS, PurgeAccess};
pub use self::route::{BypassBy, HttpSource, Match, QuerySource, RequestLine, Route, SourceRef};
pub(crate) use self::writes::leads_out;
pub use self::writes::{Purges, WritePurges};
use self::{check::Check, hosts::NamedHosts, index::RouteIndex, writes::WriteRule};
use crate::{
    ByteSize, Fields, IdentityHeaders, PurgeName,
    spec::{
        CacheSpec, Changes, Http, L1, Notifications, OnPurgeFailure, OtherProtocols, Otlp, Postgres, Redis,
    },
    tags::TagsFrom,
};

/// Maximum size of a stored body. A value in Redis has at most 512 MiB; a part of that is for the headers.
const MAX_OBJECT_SIZE: ByteSize = ByteSize(256 << 20);

/// Identifies the derivation of purge names: responses with names of another derivation are found by no purge.
const PURGE_NAMES: &[u8] = b"folded keys, prefixes, merged slashes\n";

/// Larder's own targeted header (RFC 9213).
const OWN_TARGET: HeaderName = HeaderName::from_static("larder-cache-control");

/// A compiled policy. Holds no connection and does no I/O.
#[derive(Clone, Debug)]
pub struct Policy {
    /// True if nothing is looked up or stored.
    pub suspended: bool,
    /// Limits of the cache in memory.
    pub l1: L1,
    /// The shared cache.
    pub redis: Option<Redis>,
    /// Maximum time that the application may be silent.
    pub application_timeout: Option<Duration>,
    /// Origins besides the application that can serve a miss, by name.
    pub sources: Vec<(String, Source)>,
    /// Prefix of the admin API's paths under the application's address.
    pub admin_prefix: Option<String>,
    /// Destination of traces and metrics.
    pub otlp: Option<Otlp>,
    /// Treatment of connections that do not speak HTTP.
    pub other_protocols: OtherProtocols,
    /// Changes of tables in Postgres that purge.
    pub changes: Option<Changes>,
    /// Treatment of writes whose purge could not be made to hold in every pod.
    pub on_purge_failure: OnPurgeFailure,
    /// Notifications of Postgres that purge.
    pub notifications: Option<Notifications>,
    /// True if responses of the application may purge (`Larder-Purge`).
    pub obeys_responses: bool,
    /// Permission of PURGE and BAN requests; `None` if they are requests like any other.
    pub purge_requests: Option<PurgeAccess>,
    routes: Vec<Arc<Route>>,
    /// Routes that store.
    index: RouteIndex,
    /// Routes that pass, by readings of paths; `None` if there are none.
    passing: Option<RouteIndex>,
    readings: RouteIndex,
    matches_hosts: bool,
    writes: Vec<WriteRule>,
    targets: Vec<HeaderName>,
    removed_headers: Vec<HeaderName>,
    identity: IdentityHeaders,
    bare: bool,
}

/// An origin besides the application that can serve a miss.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A Postgres server.
    Postgres(Postgres),
    /// An HTTP server.
    Http(Http),
}

/// One error in a policy: the field, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, such as `spec.routes[2].tags[0]`.
    pub path: String,
    /// The error and its remedy.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Policy {
    /// The policy of a sidecar that has none: a plain shared cache. The origin's headers decide, and a client's request
    /// directives are honoured.
    pub fn bare() -> Self {
        let routes = [Route::bare()];
        Self {
            suspended: false,
            l1: L1::default(),
            redis: None,
            application_timeout: None,
            sources: vec![],
            admin_prefix: None,
            otlp: None,
            other_protocols: OtherProtocols::Pass,
            changes: None,
            on_purge_failure: OnPurgeFailure::Ignore,
            notifications: None,
            obeys_responses: false,
            purge_requests: None,
            index: RouteIndex::of_paths(routes.iter()),
            passing: None,
            readings: RouteIndex::of_readings(routes.iter()),
            matches_hosts: false,
            routes: routes.into_iter().map(Arc::new).collect(),
            writes: vec![],
            targets: vec![OWN_TARGET, HeaderName::from_static("cdn-cache-control")],
            removed_headers: vec![],
            identity: IdentityHeaders::default(),
            bare: true,
        }
    }

    /// The policy of a sidecar whose configuration is missing: everything passes through.
    pub fn absent() -> Self {
        let none = RouteIndex::of_paths([].iter());
        Self { routes: vec![], index: none.clone(), readings: none, bare: false, ..Self::bare() }
    }

    /// Compiles a policy.
    ///
    /// # Errors
    /// All errors in the policy, not only the first.
    pub fn compile(spec: &CacheSpec) -> Result<Self, Vec<FieldError>> {
        let mut check = Check::default();
        let CacheSpec {
            suspend,
            l1,
            l2,
            application,
            sources,
            defaults: _,
            routes,
            targeted_cache_control,
            identity_headers,
            other_protocols,
            invalidation,
            telemetry,
            admin,
        } = spec;
        if l1.max_object_size > l1.max_size {
            check.refuse("spec.l1.maxObjectSize", "must not be larger than spec.l1.maxSize");
        }
        if l1.max_object_size > MAX_OBJECT_SIZE {
            check.refuse(
                "spec.l1.maxObjectSize",
                format!(
                    "must not be larger than {MAX_OBJECT_SIZE}, because Redis accepts at most twice that"
                ),
            );
        }
        check.positive("spec.l1.busGrace", l1.bus_grace.0);
        if l1.max_entries == Some(0) {
            check.refuse("spec.l1.maxEntries", "must be at least 1");
        }
        let redis = l2.as_ref().map(|l2| l2.redis.clone());
        if let Some(redis) = &redis {
            check.redis("spec.l2.redis", redis);
        }
        let application_timeout = application.as_ref().and_then(|application| application.timeout);
        if let Some(timeout) = application_timeout {
            check.positive("spec.application.timeout", timeout.0);
        }
        check.unique("spec.sources", sources.iter().map(|source| &source.name));
        let sources: Vec<_> = sources
            .iter()
            .enumerate()
            .filter_map(|(index, source)| check.source(&format!("spec.sources[{index}]"), source))
            .collect();
        if let Some(admin) = admin {
            check.admin_prefix("spec.admin.pathPrefix", &admin.path_prefix);
        }
        check.unique("spec.routes", routes.iter().map(|route| &route.name));
        let mut routes: Vec<_> = (0..)
            .zip(spec.complete_routes())
            .map(|(index, route)| check.written_route(index, &route, &sources, spec))
            .collect();
        key_matched_queries(&mut routes);
        let identity = check.identity_headers("spec.identityHeaders", identity_headers);
        for route in &mut routes {
            route.key.identity = identity.clone();
        }
        let targets = check.targets("spec.targetedCacheControl", targeted_cache_control);
        let on_write = invalidation.iter().flat_map(|invalidation| &invalidation.on_write).enumerate();
        let writes: Vec<_> = on_write
            .map(|(index, write)| check.write(&format!("spec.invalidation.onWrite[{index}]"), write, &routes))
            .collect();
        let changes = invalidation.as_ref().and_then(|invalidation| invalidation.changes.clone());
        if let Some(changes) = &changes {
            check.changes("spec.invalidation.changes", changes, &sources);
        }
        let notifications = invalidation.as_ref().and_then(|invalidation| invalidation.notifications.clone());
        if let Some(notifications) = &notifications {
            check.notifications("spec.invalidation.notifications", notifications, &sources);
        }
        let purge_requests = invalidation
            .as_ref()
            .and_then(|invalidation| check.purge_requests("spec.invalidation", invalidation));
        let otlp = telemetry.as_ref().and_then(|telemetry| telemetry.otlp.clone());
        if let Some(otlp) = &otlp {
            check.otlp("spec.telemetry.otlp", otlp);
        }
        check.done(Self {
            suspended: *suspend,
            l1: l1.clone(),
            redis,
            application_timeout: application_timeout.map(|timeout| timeout.0),
            sources,
            admin_prefix: admin.as_ref().map(|admin| admin.path_prefix.clone()),
            otlp,
            other_protocols: *other_protocols,
            changes,
            on_purge_failure: invalidation
                .as_ref()
                .map(|invalidation| invalidation.on_purge_failure)
                .unwrap_or_default(),
            notifications,
            obeys_responses: invalidation.as_ref().is_some_and(|invalidation| invalidation.from_responses),
            purge_requests,
            index: RouteIndex::of_paths(routes.iter().filter(|route| !route.passes)),
            passing: passing::index(&routes),
            readings: RouteIndex::of_readings(routes.iter()),
            matches_hosts: routes.iter().any(|route| route.host.is_some()),
            removed_headers: removed_headers(&routes, &writes),
            routes: routes.into_iter().map(Arc::new).collect(),
            writes,
            targets,
            identity,
            bare: false,
        })
    }

    /// Returns the routes, in the order in which they are tried.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Returns the headers that routes and rules for writes take out of responses: they are taken out of those to any request.
    pub fn removed_headers(&self) -> &[HeaderName] {
        &self.removed_headers
    }

    /// Returns the routes that no request reaches, each with an earlier route that takes all of its requests.
    pub fn unreachable_routes(&self) -> Vec<(&Arc<Route>, &Arc<Route>)> {
        let numbered = (0..).zip(&self.routes);
        let index = RouteIndex::of_paths(self.routes.iter().map(AsRef::as_ref));
        let hidden = numbered.filter_map(|(number, route)| {
            let takes_all = |earlier: u32| self.routes[earlier as usize].takes_all_of(route);
            let earlier = index.first_wider(route.path.as_ref()?, number, takes_all)?;
            Some((route, &self.routes[earlier as usize]))
        });
        hidden.collect()
    }

    /// Returns a hash of everything that decides which responses are stored, which requests share one, how it is purged
    /// and by which writes. A response that was stored under another hash must not be served: under the new rules it
    /// may belong to another user, have other tags, or have been changed by writes that purged nothing. Lifetimes are
    /// not part of it.
    pub fn fingerprint(&self) -> String {
        let Self {
            suspended: _,
            l1: _,
            redis: _,
            application_timeout: _,
            sources: _,
            admin_prefix: _,
            otlp: _,
            other_protocols: _,
            on_purge_failure: _,
            // What was stored without them is purged when they are followed.
            changes: _,
            notifications: _,
            purge_requests: _,
            obeys_responses,
            routes,
            index: _,
            passing: _,
            readings: _,
            matches_hosts: _,
            writes,
            targets,
            removed_headers: _,
            identity,
            bare,
        } = self;
        let mut hasher = blake3::Hasher::new();
        hasher.update(PURGE_NAMES);
        for route in routes {
            hasher.update(route.fingerprint().as_bytes());
        }
        hasher.update(format!("{writes:?} {targets:?} {identity:?} {bare} {obeys_responses}").as_bytes());
        crate::digest::short(&hasher.finalize())
    }

    /// Returns true if there is no policy: a plain shared cache (RFC 9111), in which only `Authorization` identifies a
    /// user.
    pub fn is_bare(&self) -> bool {
        self.bare
    }

    /// Returns the headers that identify a user, besides those that are known.
    pub fn identity_headers(&self) -> &IdentityHeaders {
        &self.identity
    }

    /// Returns the response headers that take precedence over `Cache-Control` (RFC 9213), in lower case; the first that
    /// a response has counts.
    pub fn targets(&self) -> &[HeaderName] {
        &self.targets
    }

    /// Returns the first route that matches, if the request's path is unambiguous. A route that never involves the
    /// application accepts an ambiguous path too: its sources receive the values of parameters, which are unambiguous. A
    /// route that passes takes a request if any application may read it as one of its own.
    pub fn route(&self, line: &RequestLine<'_>, fields: &(impl Fields + ?Sized)) -> Option<Match<'_>> {
        let path = line.path;
        let hosts = self.matches_hosts.then(|| NamedHosts::of(line.uri_host, fields));
        let text = path.as_str();
        let has_escapes = text.as_bytes().contains(&b'%');
        let number = self.index.first(text, has_escapes, |number| {
            let route = &self.routes[number as usize];
            route.takes(line, hosts.as_ref(), fields) && (!has_escapes || route.decodes(text))
        });
        if let Some(passing) = &self.passing {
            let may_take = |number: u32| self.routes[number as usize].may_take(line, fields);
            let earlier = passing.first_of_readings(path.as_sent(), number.unwrap_or(u32::MAX), may_take);
            if let Some(number) = earlier {
                return Some(Match { route: &self.routes[number as usize] });
            }
        }
        let route = &self.routes[number? as usize];
        (!path.is_ambiguous() || !route.asks_application).then_some(Match { route })
    }

    /// Returns true if responses may be stored under a path, as it was sent: a route matches some server's reading of
    /// it, with any method.
    pub fn covers(&self, path: &str) -> bool {
        self.readings.covers(path)
    }

    /// Returns the purge names of those of these paths under which responses may be stored, by every reading of them.
    pub fn names_of_stored<'a>(
        &self,
        paths: impl Iterator<Item = &'a String>,
    ) -> impl Iterator<Item = PurgeName> {
        paths.filter(|path| self.covers(path)).flat_map(|path| PurgeName::paths(path))
    }
}

fn removed_headers(routes: &[Route], writes: &[WriteRule]) -> Vec<HeaderName> {
    let mut removed = vec![];
    let of_routes = routes.iter().filter_map(|route| route.tags_from.as_ref());
    let of_writes = writes.iter().filter_map(|rule| rule.tags_from.as_ref());
    for name in of_routes.chain(of_writes).flat_map(TagsFrom::removed) {
        if !removed.contains(name) {
            removed.push(name.clone());
        }
    }
    removed
}

/// Puts the parameters that a route is matched by into the key of every route that requests for its paths may have.
fn key_matched_queries(routes: &mut [Route]) {
    let by_query = routes.iter().filter(|route| !route.query.is_empty());
    let matched: Vec<_> = by_query.map(|route| (route.path.clone(), route.query.clone())).collect();
    for (path, query) in &matched {
        let is_near = |route: &&mut Route| match (path, &route.path) {
            (Some(path), Some(other)) => path.may_overlap(other),
            _ => true,
        };
        for route in routes.iter_mut().filter(is_near) {
            query.iter().for_each(|(name, _)| route.key.add_matched_query(name));
        }
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list.dedup();
    list
}
