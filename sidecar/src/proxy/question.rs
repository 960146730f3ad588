//! A request that may be answered from the cache.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, Version, header, request::Parts};
use http_body_util::{Either, Full};
use larder_policy::{
    Key, Lifetimes, NormalPath, PurgeName, Route, Survey, cache_control::RequestDirectives, credentials,
    key::Asked, policy::Match, range, storing::Asker, validation::Validators, vary,
};

use super::Client;
use crate::{entry::codec::Rules, l2::Limits, serving::Serving, upstream::RequestBody};

/// A request that may be answered from the cache.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) serving: Arc<Serving>,
    /// The place of its route.
    pub(super) route: usize,
    pub(super) method: Method,
    /// What is sent of the target: the query in the order that it has in the key.
    uri: Uri,
    version: Version,
    /// The client's end-to-end headers, in the spelling in which they are sent, before any of ours are added.
    pub(super) headers: HeaderMap,
    content: Bytes,
    pub(super) client: Client,
    pub(super) key: Key,
    /// Of a HEAD: where an answer to GET is stored.
    pub(super) key_of_get: Option<Key>,
    /// What the client asks of caches, where that is honoured.
    pub(super) asked: RequestDirectives,
    pub(super) range: range::Asked,
    pub(super) asker: Asker,
    /// It carries `Authorization` that the route neither keys nor ignores: only what RFC 9111, section 3.5, lets be shared
    /// answers it.
    pub(super) shares_only_what_it_may: bool,
}

impl Question {
    /// A request of a route, with the body that is in its key, if one is.
    pub(super) fn new(
        serving: &Arc<Serving>,
        route: usize,
        target: Option<u16>,
        head: Parts,
        content: Bytes,
        client: Client,
        survey: &Survey,
    ) -> Self {
        let rules = &serving.policy.routes()[route];
        let path = NormalPath::new(head.uri.path());
        let is_keyed = rules.body_limit().is_some() && head.method == Method::POST;
        let hash = is_keyed.then(|| blake3::hash(&content));
        let key = |method: &Method| {
            let asked = Asked {
                method,
                target,
                uri_host: head.uri.authority().map(|authority| authority.as_str()),
                path: &path,
                query: head.uri.query(),
                body: hash.as_ref(),
            };
            Key::new(&asked, &head.headers, survey, &rules.key)
        };
        let asked = if rules.honours_clients && survey.has_directives() {
            RequestDirectives::parse(&head.headers)
        } else {
            RequestDirectives::default()
        };
        let authorizes = survey.has_authorization() && !credentials::is_settled("authorization", &rules.key);
        let asker = Asker {
            method: head.method.clone(),
            authorization: authorizes,
            names_a_person: survey.names_a_person()
                && credentials::identity_header(&head.headers, &rules.key).is_some(),
            no_store: asked.no_store,
            asked_for_part: survey.has_range(),
        };
        let (key, key_of_get) = (key(&head.method), (head.method == Method::HEAD).then(|| key(&Method::GET)));
        let uri = head.uri.query().and_then(|query| rules.key.query_to_send(query));
        let uri = uri.and_then(|query| with_query(&head.uri, &query)).unwrap_or_else(|| head.uri.clone());
        let mut headers = head.headers;
        vary::canonicalise(&mut headers, &rules.key);
        Self {
            key,
            key_of_get,
            serving: Arc::clone(serving),
            route,
            range: if head.method == Method::GET && survey.has_range() {
                range::asked(&headers)
            } else {
                range::Asked::Whole
            },
            method: head.method,
            uri,
            version: head.version,
            headers,
            content,
            client,
            asked,
            asker,
            shares_only_what_it_may: authorizes && !serving.policy.is_bare(),
        }
    }

    pub(super) fn route(&self) -> &Route {
        &self.serving.policy.routes()[self.route]
    }

    pub(super) fn lifetimes(&self) -> &Lifetimes {
        &self.route().lifetimes
    }

    /// What a response that Redis holds must obey.
    pub(super) fn limits(&self) -> Limits<'_> {
        Limits { rules: self.rules(), max_body: self.serving.policy.l1.max_object_size.0 }
    }

    /// What the head of a stored response must obey.
    pub(super) fn rules(&self) -> Rules<'_> {
        Rules {
            targets: self.serving.policy.targets(),
            set_cookie: self.lifetimes().store_despite.set_cookie,
        }
    }

    /// Its route again, with the parameters of its path.
    pub(super) fn matched(&self) -> Option<Match<'_>> {
        self.serving.policy.route(&self.method, &self.path(), &self.headers)
    }

    pub(super) fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    pub(super) fn path(&self) -> NormalPath<'_> {
        NormalPath::new(self.uri.path())
    }

    /// The names under which its answer can be purged.
    pub(super) fn names(&self) -> Box<[PurgeName]> {
        let tags = self.matched().map(|found| {
            let parameters = found.parameters(&self.path());
            found.route.tags(&parameters).collect::<Vec<_>>()
        });
        let version = self.serving.l2.is_some().then_some(self.serving.version);
        self.key.purge_names().into_iter().chain(tags.into_iter().flatten()).chain(version).collect()
    }

    /// The key under which an answer with a body is stored: of a HEAD, that of GET.
    pub(super) fn key_of_answer(&self) -> &Key {
        self.key_of_get.as_ref().unwrap_or(&self.key)
    }

    /// The name under which an answer to GET can be purged, and no other.
    pub(super) fn name_of_get(&self) -> PurgeName {
        let [name, ..] = self.key_of_answer().purge_names();
        name
    }

    /// What is under way under a key, since the last purge: who comes after one does not wait for what was asked before it.
    pub(super) fn flight(&self, key: &str) -> String {
        format!("{} {key}", self.serving.barriers.version())
    }

    /// Whether a body of so many bytes is stored.
    pub(super) fn fits(&self, length: u64) -> bool {
        length <= self.serving.policy.l1.max_object_size.0
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// What is asked of the application: the client's request, or, to learn whether what is stored still holds, that with
    /// other preconditions.
    pub(super) fn outgoing(&self, ask: &Ask) -> Request<RequestBody> {
        let mut request = Request::new(Either::Right(Full::new(self.content.clone())));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        let headers = request.headers_mut();
        *headers = self.route().forwarded(&self.headers);
        if matches!(ask, Ask::AsTheClient) {
            return request;
        }
        for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE] {
            headers.remove(name);
        }
        match ask {
            Ask::AsTheClient | Ask::ForAll => {}
            Ask::WhetherItHolds(Validators { if_none_match, if_modified_since }) => {
                let lines =
                    [(header::IF_NONE_MATCH, if_none_match), (header::IF_MODIFIED_SINCE, if_modified_since)];
                for (name, value) in lines {
                    if let Some(value) = value {
                        headers.insert(name, value.clone());
                    }
                }
            }
            Ask::ForTheRest { range, if_range } => {
                headers.insert(header::RANGE, range.clone());
                headers.insert(header::IF_RANGE, if_range.clone());
            }
        }
        request
    }
}

/// The same target with another query.
fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// What the application is asked for.
#[derive(Debug)]
pub(super) enum Ask {
    /// What the client asks for, preconditions and all.
    AsTheClient,
    /// The whole answer, whatever the client has.
    ForAll,
    /// Whether what is stored still holds (RFC 9111, section 4.3.1).
    WhetherItHolds(Validators),
    /// What is missing of what is stored.
    ForTheRest { range: http::HeaderValue, if_range: http::HeaderValue },
}
