//! A policy made ready to serve by.

mod check;

use std::{fmt, time};

use check::Check;
use http::Method;

use crate::{
    ByteSize, NormalPath, PathTemplate, PurgeName,
    key::KeyRules,
    spec::{CacheSpec, CacheableMethod, L1, Otlp, Postgres, PurgeSpec, Redis},
    sql::BoundQuery,
    template::{Parameters, expand},
};

/// A value in Redis has at most 512 MiB; some of that is for the headers.
const LARGEST_OBJECT: ByteSize = ByteSize(256 << 20);

/// A policy made ready to serve by. It holds no connection and asks for nothing.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Nothing is looked up or stored.
    pub suspended: bool,
    /// The bounds of the cache in memory.
    pub l1: L1,
    /// The shared cache.
    pub redis: Option<Redis>,
    /// Postgres servers, by name.
    pub sources: Vec<(String, Postgres)>,
    /// Where metrics are sent.
    pub otlp: Option<Otlp>,
    routes: Vec<Route>,
    writes: Vec<WriteRule>,
    bare: bool,
}

/// Requests that are answered alike.
#[derive(Clone, Debug)]
pub struct Route {
    /// What metrics and logs call it.
    pub name: String,
    /// Which paths it is for; `None` in the one route of a sidecar without a policy.
    pub path: Option<PathTemplate>,
    methods: Vec<Method>,
    /// How long answers are fresh; `None`: as their headers say.
    pub ttl: Option<time::Duration>,
    /// What tells its answers apart.
    pub key: KeyRules,
    bypass_query: Vec<(String, String)>,
    tags: Vec<String>,
    /// What is asked on a miss; empty: the application.
    pub sources: Vec<QuerySource>,
}

/// A query to one of the policy's sources.
#[derive(Clone, Debug)]
pub struct QuerySource {
    /// The name of the source.
    pub source: String,
    /// The query, ready to be bound.
    pub query: BoundQuery,
}

#[derive(Clone, Debug)]
struct WriteRule {
    path: PathTemplate,
    methods: Vec<String>,
    purge: PurgeSpec,
}

/// A request's route, and the values of its path's parameters.
#[derive(Debug)]
pub struct Match<'a> {
    /// Its place in [`Policy::routes`].
    pub index: usize,
    /// The route.
    pub route: &'a Route,
    /// The parameters.
    pub parameters: Parameters<'a>,
}

/// One thing wrong with a policy: where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field, such as `spec.routes[2].tags[0]`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Policy {
    /// What a sidecar without a policy serves by: a plain shared cache. The origin's headers decide, and a client's
    /// request directives are honoured.
    pub fn bare() -> Self {
        let route = Route {
            name: "default".to_owned(),
            path: None,
            methods: vec![Method::GET, Method::HEAD],
            ttl: None,
            key: KeyRules::default(),
            bypass_query: vec![],
            tags: vec![],
            sources: vec![],
        };
        Self {
            suspended: false,
            l1: L1::default(),
            redis: None,
            sources: vec![],
            otlp: None,
            routes: vec![route],
            writes: vec![],
            bare: true,
        }
    }

    /// What a sidecar serves by when its configuration is missing: everything passes through.
    pub fn absent() -> Self {
        Self { routes: vec![], bare: false, ..Self::bare() }
    }

    /// Makes a policy ready.
    ///
    /// # Errors
    /// Everything that is wrong with it, not only the first.
    pub fn compile(spec: &CacheSpec) -> Result<Self, Vec<Invalid>> {
        let mut check = Check::default();
        let CacheSpec { suspend, l1, l2, sources, routes, invalidation, telemetry } = spec;
        if l1.max_object_size > l1.max_size {
            check.refuse("spec.l1.maxObjectSize", "must not be larger than spec.l1.maxSize");
        }
        if l1.max_object_size > LARGEST_OBJECT {
            check.refuse(
                "spec.l1.maxObjectSize",
                format!("must not be larger than {LARGEST_OBJECT}, for Redis takes no more than twice that"),
            );
        }
        check.positive("spec.l1.busGrace", l1.bus_grace.0);
        let redis = l2.as_ref().map(|l2| l2.redis.clone());
        if let Some(redis) = &redis {
            check.url_from("spec.l2.redis.urlFrom", &redis.url_from);
            check.positive("spec.l2.redis.timeout", redis.timeout.0);
        }
        check.unique("spec.sources", sources.iter().map(|source| &source.name));
        let mut compiled_sources = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let at = format!("spec.sources[{index}]");
            match &source.postgres {
                None => check.refuse(&at, "say what the source is: set postgres"),
                Some(postgres) => {
                    check.url_from(&format!("{at}.postgres.urlFrom"), &postgres.url_from);
                    check.positive(&format!("{at}.postgres.statementTimeout"), postgres.statement_timeout.0);
                    if postgres.max_connections_per_pod == 0 {
                        check.refuse(&format!("{at}.postgres.maxConnectionsPerPod"), "must be at least 1");
                    }
                    compiled_sources.push((source.name.clone(), postgres.clone()));
                }
            }
        }
        check.unique("spec.routes", routes.iter().map(|route| &route.name));
        let names: Vec<_> = compiled_sources.iter().map(|(name, _)| name.as_str()).collect();
        let routes = routes
            .iter()
            .enumerate()
            .map(|(index, route)| check.route(index, route, &names))
            .collect::<Vec<_>>();
        let on_write = invalidation.iter().flat_map(|invalidation| &invalidation.on_write).enumerate();
        let writes = on_write
            .map(|(index, write)| {
                check.methods(
                    &format!("spec.invalidation.onWrite[{index}].match.methods"),
                    &write.matches.methods,
                );
                let at = format!("spec.invalidation.onWrite[{index}].purge");
                let PurgeSpec { tags, paths } = &write.purge;
                let texts = tags.iter().map(String::as_str).chain(paths.iter().map(PathTemplate::as_str));
                texts.for_each(|text| check.placeholders(&at, text, &write.matches.path));
                if tags.is_empty() && paths.is_empty() {
                    check.refuse(&at, "say what to purge: set tags, paths or both");
                }
                WriteRule {
                    path: write.matches.path.clone(),
                    methods: write.matches.methods.clone(),
                    purge: write.purge.clone(),
                }
            })
            .collect();
        let otlp = telemetry.as_ref().and_then(|telemetry| telemetry.otlp.clone());
        if let Some(otlp) = otlp.as_ref().filter(|otlp| !otlp.endpoint.starts_with("http://")) {
            let message =
                format!("{:?} is not a URL such as http://otel-collector.observability:4317", otlp.endpoint);
            check.refuse("spec.telemetry.otlp.endpoint", message);
        }
        check.done(Self {
            suspended: *suspend,
            l1: l1.clone(),
            redis,
            sources: compiled_sources,
            otlp,
            routes,
            writes,
            bare: false,
        })
    }

    /// The routes, in the order in which they are tried.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// A hash of all that decides which requests share an answer and how it is purged. What was stored under another shape must
    /// not be served: it may be somebody else's under the new rules, or bear other tags. Lifetimes are not in it.
    pub fn shape(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for Route { path, methods, key, bypass_query, tags, sources, name: _, ttl: _ } in &self.routes {
            hasher.update(
                format!("{path:?} {methods:?} {key:?} {bypass_query:?} {tags:?} {sources:?}\n").as_bytes(),
            );
        }
        hasher.finalize().to_hex()[..16].to_owned()
    }

    /// Whether a client's request directives are honoured, as RFC 9111 has it for a cache without a policy.
    pub fn honours_clients(&self) -> bool {
        self.bare
    }

    /// The first route that matches, if the request's path can be trusted to mean one thing.
    pub fn route(&self, method: &Method, path: &NormalPath) -> Option<Match<'_>> {
        if path.is_ambiguous() {
            return None;
        }
        self.routes.iter().enumerate().filter(|(_, route)| route.methods.contains(method)).find_map(
            |(index, route)| {
                let parameters = match &route.path {
                    Some(template) => template.matches(path.as_str())?,
                    None => Parameters::new(),
                };
                Some(Match { index, route, parameters })
            },
        )
    }

    /// What a write makes stale, if it is one that the policy names or, without a policy, any unsafe one
    /// (RFC 9111, section 4.4). Paths that could be read differently count as what they resolve to.
    pub fn purged_by(&self, method: &Method, path: &NormalPath) -> Vec<PurgeName> {
        if method.is_safe() {
            return vec![];
        }
        if self.bare {
            return vec![PurgeName::path(path.as_str())];
        }
        let mut names = Vec::new();
        for WriteRule { path: template, methods, purge } in &self.writes {
            if !methods.is_empty() && !methods.iter().any(|listed| listed == method.as_str()) {
                continue;
            }
            let Some(parameters) = template.matches(path.as_str()) else { continue };
            names.extend(purge.tags.iter().map(|tag| PurgeName::tag(&expand(tag, &parameters))));
            let paths = purge.paths.iter().map(|path| NormalPath::new(&path.expand(&parameters)));
            names.extend(paths.map(|path| PurgeName::path(path.as_str())));
        }
        names.sort();
        names.dedup();
        names
    }
}

impl Route {
    /// Whether a request with this raw query is neither looked up nor stored.
    pub fn bypasses(&self, query: Option<&str>) -> bool {
        let Some(query) = query.filter(|_| !self.bypass_query.is_empty()) else { return false };
        query.split('&').any(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.bypass_query.iter().any(|(known, wanted)| known == name && wanted == value)
        })
    }

    /// The tags of an answer, with the parameters' values put in.
    pub fn tags(&self, parameters: &Parameters<'_>) -> impl Iterator<Item = PurgeName> {
        self.tags.iter().map(|tag| PurgeName::tag(&expand(tag, parameters)))
    }
}

impl CacheableMethod {
    fn as_method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
l2: {redis: {urlFrom: {env: REDIS_URL}}}
sources:
- {name: catalog, postgres: {urlFrom: {file: /run/db}}}
routes:
- name: user
  match: {path: "/api/users/{id}"}
  ttl: 120s
  bypass: {query: {nocache: "true"}}
  tags: ["user:{id}"]
- name: item
  match: {path: "/data/{key}", methods: [GET]}
  ttl: 300s
  from: [{postgres: {source: catalog, query: "select key, value from items where key = {key}::int"}}]
- name: late
  match: {path: "/api/users/{name}"}
invalidation:
  onWrite:
  - match: {path: "/api/users/{id}", methods: [PUT, DELETE]}
    purge: {tags: ["user:{id}"], paths: ["/api/users"]}
"#;

    fn spec(text: &str) -> CacheSpec {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn the_first_route_that_matches_decides() {
        let policy = Policy::compile(&spec(SHOP)).unwrap();
        let found = policy.route(&Method::GET, &NormalPath::new("/api/users/7")).unwrap();
        assert_eq!((found.index, found.parameters), (0, vec![("id", "7".to_owned())]));
        assert!(policy.route(&Method::HEAD, &NormalPath::new("/data/7")).is_none());
        assert!(policy.route(&Method::PUT, &NormalPath::new("/api/users/7")).is_none());
        assert!(policy.route(&Method::GET, &NormalPath::new("/api/users/x/../7")).is_none());
    }

    #[test]
    fn a_query_bypasses_by_name_and_value() {
        let policy = Policy::compile(&spec(SHOP)).unwrap();
        let route = &policy.routes()[0];
        assert!(route.bypasses(Some("a=b&nocache=true")));
        for query in [None, Some("nocache=false"), Some("nocache"), Some("xnocache=true")] {
            assert!(!route.bypasses(query), "{query:?}");
        }
    }

    #[test]
    fn a_write_purges_what_the_policy_names() {
        let policy = Policy::compile(&spec(SHOP)).unwrap();
        let mut expected = vec![PurgeName::tag("user:7"), PurgeName::path("/api/users")];
        expected.sort();
        assert_eq!(policy.purged_by(&Method::PUT, &NormalPath::new("/api/users/7")), expected);
        assert_eq!(policy.purged_by(&Method::PUT, &NormalPath::new("/api/users/x/../7")), expected);
        assert!(policy.purged_by(&Method::PATCH, &NormalPath::new("/api/users/7")).is_empty());
        assert!(policy.purged_by(&Method::GET, &NormalPath::new("/api/users/7")).is_empty());
    }

    #[test]
    fn without_a_policy_everything_is_one_route_and_every_write_purges_its_path() {
        let bare = Policy::bare();
        assert!(bare.route(&Method::GET, &NormalPath::new("/anything")).is_some());
        assert_eq!(bare.purged_by(&Method::POST, &NormalPath::new("/a")), [PurgeName::path("/a")]);
        assert!(Policy::absent().route(&Method::GET, &NormalPath::new("/anything")).is_none());
    }

    #[test]
    fn the_shape_changes_with_keys_and_tags_and_not_with_lifetimes() {
        let shape = |text: &str| Policy::compile(&spec(text)).unwrap().shape();
        assert_eq!(shape(SHOP), shape(&SHOP.replace("120s", "60s")));
        assert_ne!(shape(SHOP), shape(&SHOP.replace("tags: [\"user:{id}\"]", "tags: [\"u:{id}\"]")));
        assert_ne!(shape(SHOP), shape(&SHOP.replace("ttl: 120s", "ttl: 120s\n  key: {headers: [cookie]}")));
    }

    #[test]
    fn says_everything_that_is_wrong() {
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
                "spec.l1.maxObjectSize: must not be larger than 256Mi, for Redis takes no more than twice that",
                "spec.l2.redis.urlFrom: set exactly one of secretKeyRef (in a cluster), env or file (outside one)",
                "spec.sources[0].postgres.urlFrom: name a Secret and one of its keys, such as {name: shop-redis, key: url}",
                "spec.routes[0].ttl: must be longer than 0s",
                "spec.routes[0].tags: \"user:{uid}\" uses {uid}, which /api/users/{id} does not have",
                "spec.routes[1].from[0].postgres.source: spec.sources has no \"katalog\"",
                "spec.invalidation.onWrite[0].match.methods: \"put\" is no method that writes: list such as PUT, PATCH, POST or DELETE, in capitals",
                "spec.invalidation.onWrite[0].match.methods: \"GET\" is no method that writes: list such as PUT, PATCH, POST or DELETE, in capitals",
                "spec.invalidation.onWrite[0].purge: \"user:{uid}\" uses {uid}, which /api/users/{id} does not have",
            ]
        );
    }
}
