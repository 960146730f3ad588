//! What would become of a request, and why, without asking anybody.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use http::Request;
use larder_policy::{NormalPath, Route, policy::Purges};

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
    serving::Snapshot,
};

/// What would become of a request.
#[derive(Debug)]
pub struct Explanation {
    /// The route.
    pub route: Option<Arc<Route>>,
    /// The values of the parameters of the route's path, by name.
    pub parameters: Vec<(String, String)>,
    /// Its path, normalised.
    pub path: String,
    /// Why the sidecar responds to it by itself, whatever is stored; `None`: it does not.
    pub ends_here: Option<EndsHere>,
    /// Of a write: the tags and paths that are stale when the application has carried it out.
    pub purges: Option<Purges>,
    /// Why nothing stored answers it, whatever is stored; `None`: it is lookup up.
    pub passes: Option<Forward>,
    /// The key under which its answer is stored; `None` without a route.
    pub key: Option<String>,
    /// The tags of its answer.
    pub tags: Vec<String>,
    /// Who is asked, in this order, until one answers; the last good answer if nobody can.
    pub asked: Vec<String>,
    /// What memory holds for it now; `None` if it is not lookup up.
    pub memory: Option<InMemory>,
}

/// What memory holds for a request.
#[derive(Debug)]
pub struct InMemory {
    /// Why that does not answer it; `None`: it does.
    pub forward: Option<Forward>,
    /// The answer that there is, even if it does not answer the request.
    pub entry: Option<Arc<Entry>>,
}

/// Explains what would become of a request to the application at `target`, without asking anybody.
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
    let (route, kinds, bypass) = match classify(snapshot, &request, upgrade, has_content) {
        Disposition::End(reason) => {
            return Explanation { ends_here: Some(reason), asked: vec![], ..explanation };
        }
        Disposition::Upgrade(_) => return passes(Forward::Bypass(Bypass::Upgrade), explanation),
        Disposition::Write { writing, .. } => {
            explanation.purges = Some(write::purges_of(snapshot, &writing));
            return passes(Forward::Method, explanation);
        }
        Disposition::Pass(reason) => return passes(reason, explanation),
        Disposition::Route { route, kinds, bypass } => (route, kinds, bypass),
    };
    let parameters = snapshot
        .policy
        .route(request.method(), &path, request.headers())
        .map(|found| found.parameters(&path))
        .unwrap_or_default();
    let is_too_long = route.body_limit().is_some_and(|limit| request.body().len() as u64 > limit);
    let bypass = bypass.or_else(|| is_too_long.then_some(Bypass::Content));
    explanation.route = Some(Arc::clone(&route));
    explanation.passes = bypass.map(Forward::Bypass);
    explanation.tags = route.tag_texts(&parameters).collect();
    explanation.parameters = parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let nobody = Client { address: Ipv4Addr::LOCALHOST.into(), turnstile: None, work: None };
    let (head, content) = request.into_parts();
    let request = CacheRequest::new(snapshot, &route, target, head, content, nobody, &kinds);
    explanation.key = Some(request.key.as_str().to_owned());
    explanation.asked.clear();
    if bypass.is_none() {
        explanation.memory = Some(request.lookup().into());
        explanation.asked.push(Tier::L1.as_str().to_owned());
        explanation.asked.extend(snapshot.store.l2.is_some().then(|| Tier::L2.as_str().to_owned()));
    }
    // What is bypassed goes to the sources where there are some: what they answer depends on path and query alone.
    if !request.directives.only_if_cached {
        let sources = request.sources().map(|(ask, source)| format!("{}/{}", source.label(), ask.source()));
        explanation.asked.extend(sources);
        explanation.asked.extend(route.asks_application.then(|| Tier::Application.as_str().to_owned()));
        // The application's answer to what is bypassed is passed on, whatever it is.
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
            Lookup::Usable(entry, _) | Lookup::Fallback(entry) => (None, Some(entry)),
            Lookup::Stale(entry, forward) => (Some(forward), Some(entry)),
            Lookup::Part(entry) => (Some(Forward::Partial), Some(entry)),
            Lookup::Nothing(forward) => (Some(forward), None),
            Lookup::Unshared => (Some(Forward::UriMiss), None),
        };
        Self { forward, entry }
    }
}
