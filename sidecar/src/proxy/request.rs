//! Requests that may be served from the cache.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri::Authority};
use http_body_util::{Either, Full};
use larder_flight::FlightKey;
use larder_policy::{
    HeaderKinds, Key, Lifetimes, NormalPath, PurgeName, Route, Values,
    cache_control::RequestDirectives,
    credentials,
    key::{KeyParts, host_to_send},
    policy::Match,
    range::RangeRequest,
    spec::SetCookie,
    storing::RequestFacts,
    validation::Validators,
    vary,
};

use super::{Client, client_fields::ClientFields};
use crate::{
    cache_key::{CacheKey, PrimaryKey},
    cache_status::Bypass,
    entry::{Entry, codec::Rules},
    l2::Limits,
    snapshot::Snapshot,
    store::{Store, slot::CacheSlot},
    upstream::RequestBody,
};

/// Fields by which a client asks for less than the whole response, because it has a response or a part of one.
const OF_STORED_RESPONSES: [HeaderName; 4] =
    [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE];

/// Request that a route takes.
#[derive(Debug)]
pub(super) struct Routed {
    pub(super) route: Arc<Route>,
    /// Kinds of the request's header fields.
    pub(super) kinds: HeaderKinds,
    /// Reason why the request is neither looked up nor stored.
    pub(super) bypass: Option<Bypass>,
}

impl Routed {
    /// Returns the reason why the request passes to the application, if it does.
    ///
    /// A source's response depends on path and query alone, so a bypass does not need the application, which may not have the path
    /// at all. If it has, it gets the body that came with the request.
    pub(super) fn passes(&self, has_content: bool) -> Option<Bypass> {
        let is_for_application = self.route.sources.is_empty() || self.route.asks_application && has_content;
        self.bypass.filter(|_| is_for_application)
    }
}

/// A request that the guard of its connection serves.
#[derive(Debug)]
pub(super) struct GuardedRequest {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) fields: ClientFields,
    /// The request as text for the application.
    pub(super) text: Bytes,
    /// The key, if it is known.
    pub(super) key: Option<PrimaryKey>,
}

/// A request as it arrived, without the fields of its connection.
struct Arrived {
    method: Method,
    uri: Uri,
    version: Version,
    fields: ClientFields,
    content: Bytes,
    key: Option<PrimaryKey>,
}

/// A request that may be served from the cache.
#[derive(Clone, Debug)]
pub(super) struct CacheRequest {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) route: Arc<Route>,
    pub(super) method: Method,
    /// Target as it is sent: its query is in the order of the key.
    uri: Uri,
    version: Version,
    /// The client's end-to-end headers as they are sent, before any of the sidecar's are added.
    pub(super) headers: ClientFields,
    content: Bytes,
    /// The client's own request as text for the application.
    text: Option<Bytes>,
    /// Kinds of the header fields.
    pub(super) kinds: HeaderKinds,
    /// True if the guard of its connection serves it.
    pub(super) is_of_guard: bool,
    /// True if target and headers are sent as the client sent them.
    is_sent_as_it_came: bool,
    pub(super) client: Client,
    pub(super) key: PrimaryKey,
    /// Key of the same request with GET, if this one is a HEAD.
    pub(super) key_of_get: Option<PrimaryKey>,
    /// The client's cache directives, if the route honours them.
    pub(super) directives: RequestDirectives,
    pub(super) range: RangeRequest,
    /// Facts on which storing of the response depends.
    pub(super) facts: RequestFacts,
    /// True if it carries an `Authorization` that the route neither keys nor ignores: only a response that RFC 9111, section 3.5,
    /// lets be shared may be served.
    pub(super) is_authorized: bool,
    /// Names under which the response can be purged, once they were asked for.
    names: OnceLock<Box<[PurgeName]>>,
}

impl CacheRequest {
    /// Creates a request of a route. Its body is the one that is part of the key, or empty.
    pub(super) fn new(
        snapshot: &Arc<Snapshot>,
        routed: &Routed,
        target: Option<u16>,
        request: Request<Bytes>,
        client: Client,
    ) -> Box<Self> {
        let (head, content) = request.into_parts();
        let (method, uri, version, fields) = (head.method, head.uri, head.version, head.headers.into());
        let arrived = Arrived { method, uri, version, fields, content, key: None };
        Self::of_route(snapshot, routed, target, arrived, client)
    }

    /// Creates a request of a route that the guard serves.
    pub(super) fn of_guard(
        snapshot: &Arc<Snapshot>,
        routed: &Routed,
        target: Option<u16>,
        request: GuardedRequest,
        client: Client,
    ) -> Box<Self> {
        let GuardedRequest { method, uri, fields, text, key } = request;
        let (version, content) = (Version::HTTP_11, Bytes::new());
        let arrived = Arrived { method, uri, version, fields, content, key };
        let mut request = Self::of_route(snapshot, routed, target, arrived, client);
        request.text = Some(text).filter(|_| request.is_sent_as_it_came);
        request.is_of_guard = true;
        request
    }

    fn of_route(
        snapshot: &Arc<Snapshot>,
        Routed { route, kinds, .. }: &Routed,
        target: Option<u16>,
        arrived: Arrived,
        client: Client,
    ) -> Box<Self> {
        let Arrived { method, uri, version, mut fields, content, key: known } = arrived;
        let is_keyed = route.body_limit().is_some() && method == Method::POST;
        let hash = is_keyed.then(|| blake3::hash(&content));
        let key = |method: &Method| {
            let parts = KeyParts {
                method,
                target,
                uri_host: uri.authority().map(|authority| authority.as_str()),
                path: &NormalPath::new(uri.path()),
                query: uri.query(),
                body: hash.as_ref(),
            };
            PrimaryKey::new(Key::new(&parts, &fields, kinds, &route.key))
        };
        let directives = if route.honor_request_directives && kinds.has_directives() {
            RequestDirectives::parse(&fields)
        } else {
            RequestDirectives::default()
        };
        let authorizes = kinds.has_authorization() && !credentials::is_settled("authorization", &route.key);
        let facts = RequestFacts {
            method: method.clone(),
            authorization: authorizes,
            has_credentials: kinds.has_credentials()
                && credentials::identity_header(&fields, &route.key).is_some(),
            no_store: directives.no_store,
            has_range: kinds.has_range(),
        };
        let key_of_get = (method == Method::HEAD).then(|| key(&Method::GET));
        let key = known.unwrap_or_else(|| key(&method));
        let sorted = uri.query().and_then(|query| route.key.query_to_send(query));
        let sorted = sorted.and_then(|query| with_query(&uri, &query));
        let is_respelled =
            !vary::are_canonical(&fields, &route.key) && vary::canonicalise(&mut fields, &route.key);
        let host = host_to_send(uri.authority().map(|authority| authority.as_str()), &fields, &route.key);
        let is_changed = is_respelled || sorted.is_some() || host.is_some();
        let mut uri = sorted.unwrap_or(uri);
        if let Some(host) = host.and_then(|host| HeaderValue::from_bytes(&host).ok()) {
            match with_host(&uri, &host) {
                Some(absolute) => uri = absolute,
                None => _ = fields.insert(header::HOST, host),
            }
        }
        Box::new(Self {
            key,
            key_of_get,
            snapshot: Arc::clone(snapshot),
            route: Arc::clone(route),
            range: if method == Method::GET && kinds.has_range() {
                RangeRequest::of(&fields)
            } else {
                RangeRequest::Whole
            },
            method,
            uri,
            version,
            headers: fields,
            content,
            text: None,
            kinds: *kinds,
            is_of_guard: false,
            is_sent_as_it_came: !is_changed && route.forwards_all(),
            client,
            directives,
            facts,
            is_authorized: authorizes && !snapshot.policy().is_bare(),
            names: OnceLock::new(),
        })
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.snapshot.store
    }

    pub(super) fn lifetimes(&self) -> &Lifetimes {
        &self.route.lifetimes
    }

    /// Returns the limits of a response in Redis.
    pub(super) fn limits(&self) -> Limits<'_> {
        Limits { rules: self.rules(), max_body: self.max_body() }
    }

    /// Returns the maximum length of a stored body.
    pub(super) fn max_body(&self) -> u64 {
        self.snapshot.policy().l1.max_object_size.0
    }

    /// Returns the rules for the head of a stored response.
    pub(super) fn rules(&self) -> Rules<'_> {
        Rules {
            targets: self.snapshot.policy().targets(),
            set_cookie: self.lifetimes().set_cookie == SetCookie::Store,
        }
    }

    /// Returns the values for the placeholders of a source's query or path.
    pub(super) fn values(&self) -> Values<'_> {
        let parameters = Match { route: &self.route }.parameters(&self.path());
        Values { parameters, query: self.uri.query(), body: None }
    }

    fn path(&self) -> NormalPath<'_> {
        NormalPath::new(self.uri.path())
    }

    /// Returns the names under which the response can be purged.
    pub(super) fn names(&self) -> &[PurgeName] {
        self.names.get_or_init(|| self.names_under(&self.key))
    }

    /// Returns the names under which a response to this request is purged once it is stored under this key, its own or that of GET.
    pub(super) fn names_under(&self, key: &PrimaryKey) -> Box<[PurgeName]> {
        let store = self.store();
        let version = store.l2.is_some().then_some(store.version);
        let tags = self.route.tags(self.uri.path());
        // As many as there are, so that they are not moved.
        let mut names = Vec::with_capacity(3 + tags.size_hint().0 + usize::from(version.is_some()));
        names.extend(key.purge_names());
        names.extend(tags);
        names.extend(version);
        names.into()
    }

    /// Returns the key under which a response with a body is stored: of a HEAD, that of GET.
    pub(super) fn key_with_body(&self) -> &PrimaryKey {
        self.key_of_get.as_ref().unwrap_or(&self.key)
    }

    /// Returns the place of the response to this request.
    pub(super) fn slot(&self, vary: Vec<HeaderName>) -> CacheSlot {
        let key = CacheKey::under(&self.key, vary, &self.headers);
        let create = if self.is_head() { CacheSlot::only_here } else { CacheSlot::shared };
        create(self.store(), &self.route, key)
    }

    /// Returns the place of a stored response: to HEAD itself, or to GET, with which a HEAD is answered, too.
    pub(super) fn slot_of(&self, entry: &Entry) -> CacheSlot {
        if self.is_head() {
            let own = self.slot(self.store().vary_of(self.key.as_str(), entry));
            if entry.is_under(own.key().whole()) {
                return own;
            }
        }
        self.store().slot_of(&self.route, self.key_with_body().as_str(), entry, &self.headers)
    }

    /// Returns the name under which the response to GET alone can be purged.
    pub(super) fn name_of_get(&self) -> PurgeName {
        let [name, ..] = self.key_with_body().purge_names();
        name
    }

    /// Returns the name of fetches for a key that began after the last purge: a request after a purge does not wait for a fetch
    /// that began before it.
    pub(super) fn flight_key(&self) -> FlightKey<'_> {
        let epoch = self.store().barriers.revision();
        FlightKey { text: self.key.as_str(), hash: self.key.hash(), epoch }
    }

    /// Returns true if a body of this length may be stored.
    pub(super) fn fits(&self, length: u64) -> bool {
        length <= self.max_body()
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Returns the request to the application as text, if that is its client's own.
    pub(super) fn text(&self, kind: &OriginRequest) -> Option<&Bytes> {
        let is_own = match kind {
            OriginRequest::Unchanged => true,
            OriginRequest::Whole => !self.kinds.is_conditional() && !self.kinds.has_range(),
            OriginRequest::Revalidation(_) | OriginRequest::Rest { .. } => false,
        };
        self.text.as_ref().filter(|_| is_own)
    }

    /// Returns the request to the application: the client's own, or one with the preconditions that `kind` needs.
    pub(super) fn outgoing(&self, kind: &OriginRequest) -> Request<RequestBody> {
        let mut request = Request::new(Either::Right(Full::new(self.content.clone())));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        let headers = request.headers_mut();
        *headers = self.route.forwarded(&self.headers);
        if matches!(kind, OriginRequest::Unchanged) {
            return request;
        }
        for name in OF_STORED_RESPONSES {
            headers.remove(name);
        }
        match kind {
            OriginRequest::Unchanged | OriginRequest::Whole => {}
            OriginRequest::Revalidation(Validators { if_none_match, if_modified_since }) => {
                let lines =
                    [(header::IF_NONE_MATCH, if_none_match), (header::IF_MODIFIED_SINCE, if_modified_since)];
                for (name, value) in lines {
                    if let Some(value) = value {
                        headers.insert(name, value.clone());
                    }
                }
            }
            OriginRequest::Rest { range, if_range } => {
                headers.insert(header::RANGE, range.clone());
                headers.insert(header::IF_RANGE, if_range.clone());
            }
        }
        request
    }

    /// Returns the same request without its client's preconditions, range and directives, and with GET in place of HEAD.
    pub(super) fn without_its_client(&self) -> Box<Self> {
        let mut request = Box::new(self.clone());
        // They depend on the key.
        request.names = OnceLock::new();
        for name in OF_STORED_RESPONSES {
            request.headers.remove(name);
        }
        (request.text, request.is_of_guard) = (None, false);
        request.client.forget_way();
        request.range = RangeRequest::Whole;
        request.directives = RequestDirectives::default();
        if let Some(key) = request.key_of_get.take() {
            request.key = key;
            request.method = Method::GET;
            request.facts.method = Method::GET;
        }
        request
    }
}

/// Returns a target with its host replaced, if it has one.
fn with_host(uri: &Uri, host: &HeaderValue) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.authority.as_ref()?;
    parts.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    Uri::from_parts(parts).ok()
}

/// Returns a target with its query replaced.
fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Request to the application on behalf of a client.
#[derive(Debug)]
pub(super) enum OriginRequest {
    /// The client's own, with its preconditions and range.
    Unchanged,
    /// For the whole response, whatever the client has.
    Whole,
    /// For the whole response, unless the stored one is still valid (RFC 9111, section 4.3.1).
    Revalidation(Validators),
    /// For the part that is missing from the stored response.
    Rest { range: http::HeaderValue, if_range: http::HeaderValue },
}
