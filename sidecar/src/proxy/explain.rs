//! Explanation of the treatment of a request, without sending it anywhere.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use http::Request;
use larder_policy::{
    NormalPath, Route,
    policy::{Match, WritePurges},
};

pub use super::classify::EndsHere;
use super::{
    Client,
    classify::{Disposition, classify},
    memory::Lookup,
    request::CacheRequest,
    write,
};
use crate::{
    cache_status::{Bypass, Forward, Tier},
    entry::Entry,
    headers,
    snapshot::Snapshot,
};

/// Treatment of a request.
#[derive(Debug)]
pub struct Explanation {
    /// Route of the request.
    pub route: Option<Arc<Route>>,
    /// Values of the parameters in the route's path, by name.
    pub parameters: Vec<(String, String)>,
    /// Normalised path of the request.
    pub path: String,
    /// Reason why the sidecar responds by itself, if it does.
    pub ends_here: Option<EndsHere>,
    /// Stored responses that the request invalidates, if it is a write.
    pub purges: Option<WritePurges>,
    /// Reason why the request is not looked up, if it is not.
    pub passes: Option<Forward>,
    /// Key of the response; `None` without a route.
    pub key: Option<String>,
    /// Tags of the response.
    pub tags: Vec<String>,
    /// Tiers that are asked in this order until one has a response, the last known good one after all others have failed.
    pub asked: Vec<String>,
    /// Result of the lookup in memory; `None` if the request is not looked up.
    pub memory: Option<InMemory>,
}

/// Result of the lookup of a request in memory.
#[derive(Debug)]
pub struct InMemory {
    /// Reason why the stored response does not serve the request; `None` if it does.
    pub forward: Option<Forward>,
    /// The stored response, even if it does not serve the request.
    pub entry: Option<Arc<Entry>>,
}

/// Explains the treatment of a request to the application at `target`.
pub fn explain(snapshot: &Arc<Snapshot>, target: Option<u16>, mut request: Request<Bytes>) -> Explanation {
    let uri = request.uri().clone();
    let path = NormalPath::new(uri.path());
    let mut explanation = Explanation {
        route: None,
        parameters: vec![],
        path: path.as_str().to_owned(),
        ends_here: None,
        purges: None,
        passes: None,
        key: None,
        tags: vec![],
        asked: vec![Tier::Application.as_str().to_owned()],
        memory: None,
    };
    let passes = |reason, explanation| Explanation { passes: Some(reason), ..explanation };
    let (upgrade, has_content) = (headers::upgrade(request.headers()), !request.body().is_empty());
    headers::remove_hop_by_hop(request.headers_mut());
    let routed = match classify(snapshot, &request, upgrade, has_content) {
        Disposition::End(reason) => {
            return Explanation { ends_here: Some(reason), asked: vec![], ..explanation };
        }
        Disposition::Upgrade(_) => return passes(Forward::Bypass(Bypass::Upgrade), explanation),
        Disposition::Write { mut writing, .. } => {
            let body = request.body();
            let limit = write::body_limit(snapshot.policy(), &writing, request.headers());
            if has_content && limit.is_some_and(|limit| body.len() as u64 <= limit) {
                snapshot.policy().read_body(&mut writing, body);
            }
            explanation.purges = Some(write::purges_of(snapshot, &writing));
            return passes(Forward::Method, explanation);
        }
        Disposition::Pass(reason) => return passes(reason, explanation),
        Disposition::Route(routed) => routed,
    };
    let route = &routed.route;
    let parameters = Match { route }.parameters(&path);
    let is_too_long = route.body_limit().is_some_and(|limit| request.body().len() as u64 > limit);
    let bypass = routed.bypass.or_else(|| is_too_long.then_some(Bypass::Content));
    explanation.route = Some(Arc::clone(route));
    explanation.passes = bypass.map(Forward::Bypass);
    explanation.tags = route.tag_texts(parameters.clone()).collect();
    explanation.parameters = parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let client = Client { address: Ipv4Addr::LOCALHOST.into(), handoff: None, stream: None, work: None };
    let request = CacheRequest::new(snapshot, &routed, target, request, client);
    explanation.key = Some(request.key.as_str().to_owned());
    explanation.asked.clear();
    if bypass.is_none() {
        explanation.memory = Some(request.lookup().into());
        explanation.asked.push(Tier::L1.as_str().to_owned());
        explanation.asked.extend(snapshot.store.l2.is_some().then(|| Tier::L2.as_str().to_owned()));
    }
    // A bypass goes to the sources if there are some, because their responses depend on path and query alone.
    if !request.directives.only_if_cached {
        let sources =
            request.sources().map(|(source_ref, source)| format!("{}/{}", source.label(), source_ref.name()));
        explanation.asked.extend(sources);
        explanation.asked.extend(route.asks_application.then(|| Tier::Application.as_str().to_owned()));
        // The application's response to a bypass is passed on, even an error.
        let is_rescued = bypass.is_none() || !route.sources.is_empty();
        if is_rescued && route.last_known_good.is_some() {
            explanation.asked.push(Tier::LastKnownGood.as_str().to_owned());
        }
    }
    explanation
}

impl From<Lookup> for InMemory {
    fn from(lookup: Lookup) -> Self {
        let (forward, entry) = match lookup {
            Lookup::Hit(entry, _) | Lookup::Fallback(entry) => (None, Some(entry)),
            Lookup::Revalidate(entry, forward) => (Some(forward), Some(entry)),
            Lookup::Part(entry) => (Some(Forward::Partial), Some(entry)),
            Lookup::Miss(forward) => (Some(forward), None),
            Lookup::Unshared => (Some(Forward::UriMiss), None),
        };
        Self { forward, entry }
    }
}
