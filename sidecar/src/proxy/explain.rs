//! What would become of a request, and why, without asking anybody.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request};
use larder_policy::{
    NormalPath, Survey,
    policy::{Ask, Purges},
};

use super::{
    Client, bypass_of, look::Looked, mapped::path_in_admin, protocol_asked, question::Question,
    without_route, write,
};
use crate::{
    cache_status::{Bypass, Forward, Tier},
    entry::Entry,
    gate::RawTarget,
    headers,
    serving::Serving,
};

/// What would become of a request.
#[derive(Debug)]
pub struct Explanation {
    /// The place of its route.
    pub route: Option<usize>,
    /// The values of the parameters of the route's path, by name.
    pub parameters: Vec<(String, String)>,
    /// Its path, normalised.
    pub path: String,
    /// Why the sidecar responds to it by itself, whatever is stored; `None`: it does not.
    pub ends_here: Option<EndsHere>,
    /// Of a write: the tags and paths that are stale when the application has carried it out.
    pub purges: Option<Purges>,
    /// Why nothing stored answers it, whatever is stored; `None`: it is looked up.
    pub passes: Option<Forward>,
    /// The key under which its answer is stored; `None` without a route.
    pub key: Option<String>,
    /// The tags of its answer.
    pub tags: Vec<String>,
    /// Who is asked, in this order, until one answers; the last good answer if nobody can.
    pub asked: Vec<String>,
    /// What memory holds for it now; `None` if it is not looked up.
    pub memory: Option<InMemory>,
}

/// Why a request goes no further than this sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndsHere {
    /// It is to the admin API, which the policy puts under the application's address.
    Admin,
    /// `CONNECT`: this is no proxy to connect through.
    Connect,
    /// `Max-Forwards` is 0 (RFC 9110, section 7.6.2).
    MaxForwards,
}

impl EndsHere {
    /// The reason in the admin API's responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Connect => "connect",
            Self::MaxForwards => "max-forwards",
        }
    }
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
pub fn explain(serving: &Arc<Serving>, target: Option<u16>, mut request: Request<Bytes>) -> Explanation {
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
    let ends = |reason, explanation| Explanation { ends_here: Some(reason), asked: vec![], ..explanation };
    let method = request.method().clone();
    if method == Method::CONNECT {
        return ends(EndsHere::Connect, explanation);
    }
    if path_in_admin(&serving.policy, &path).is_some() {
        return ends(EndsHere::Admin, explanation);
    }
    if method.is_safe() && protocol_asked(serving, &method, &path, request.headers()).is_some() {
        return passes(Forward::Bypass(Bypass::Upgrade), explanation);
    }
    if headers::forwards_left(&method, request.headers_mut()) == Some(0) {
        return ends(EndsHere::MaxForwards, explanation);
    }
    headers::remove_hop_by_hop(request.headers_mut());
    let found = serving.policy.route(&method, &path, request.headers());
    if let Some(writing) = write::writing_of(&request)
        && (found.is_none() || writing.is_disguised())
    {
        explanation.purges = Some(write::purges_of(serving, &writing));
        return passes(Forward::Method, explanation);
    }
    if let Some(bypass) = serving.mode.bypass() {
        return passes(Forward::Bypass(bypass), explanation);
    }
    let Some(found) = found else {
        return passes(without_route(&method, &path), explanation);
    };
    let parameters = found.parameters(&path);
    let (route, survey) = (found.route, Survey::under(request.headers(), serving.policy.identity_headers()));
    let has_content = !request.body().is_empty();
    let is_raw = request.extensions().get::<RawTarget>().is_some();
    let bypass = is_raw
        .then_some(Bypass::Target)
        .or_else(|| bypass_of(serving, route, &method, uri.query(), request.headers(), &survey, has_content))
        .or_else(|| {
            let is_too_long = route.body_limit().is_some_and(|limit| request.body().len() as u64 > limit);
            is_too_long.then_some(Bypass::Content)
        });
    explanation.route = Some(found.index);
    explanation.passes = bypass.map(Forward::Bypass);
    explanation.tags = route.tag_texts(&parameters).collect();
    explanation.parameters = parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let nobody = Client { address: Ipv4Addr::LOCALHOST.into(), turnstile: None, work: None };
    let (head, content) = request.into_parts();
    let question = Question::new(serving, found.index, target, head, content, nobody, &survey);
    explanation.key = Some(question.key.as_str().to_owned());
    explanation.asked.clear();
    if bypass.is_none() {
        explanation.memory = Some(question.look_in_memory().into());
        explanation.asked.push(Tier::L1.as_str().to_owned());
        explanation.asked.extend(serving.l2.is_some().then(|| Tier::L2.as_str().to_owned()));
    }
    // What is bypassed goes to the sources where there are some: what they answer depends on path and query alone.
    if !question.asked.only_if_cached {
        explanation.asked.extend(route.sources.iter().map(|ask| match ask {
            Ask::Postgres(ask) => format!("postgres/{}", ask.source),
            Ask::Http(ask) => format!("http/{}", ask.source),
        }));
        explanation.asked.extend(route.asks_application.then(|| Tier::Application.as_str().to_owned()));
        // The application's answer to what is bypassed is passed on, whatever it is.
        let is_rescued = bypass.is_none() || !route.sources.is_empty();
        if is_rescued && route.last_known_good.is_some() {
            explanation.asked.push(Tier::LastKnownGood.as_str().to_owned());
        }
    }
    explanation
}

impl From<Looked> for InMemory {
    fn from(looked: Looked) -> Self {
        let (forward, entry) = match looked {
            Looked::Usable(entry, _) | Looked::StandsIn(entry) => (None, Some(entry)),
            Looked::Candidate(entry, forward) => (Some(forward), Some(entry)),
            Looked::Part(entry) => (Some(Forward::Partial), Some(entry)),
            Looked::Nothing(forward) => (Some(forward), None),
            Looked::Unshared => (Some(Forward::UriMiss), None),
        };
        Self { forward, entry }
    }
}
