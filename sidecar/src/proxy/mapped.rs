//! The admin API under the application's address, where the policy puts it there.

use axum::{Router, body};
use http::{Request, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use larder_policy::{NormalPath, Policy};
use tower_service::Service as _;

use super::{Answered, Proxy};
use crate::{body::Body, cache_status::Tier, problem::Problem, stats::Outcome};

/// The path that a request has to the admin API, if it is one to it: no route takes it then.
pub(super) fn path_in_admin<'p>(policy: &Policy, path: &'p NormalPath<'_>) -> Option<&'p str> {
    let rest = path.as_str().strip_prefix(policy.admin_prefix.as_deref()?)?;
    if rest.is_empty() { Some("/") } else { rest.starts_with('/').then_some(rest) }
}

impl Proxy {
    /// Has the admin API answer. Its answers are short, but for its pages, and made at once.
    pub(super) async fn ask_admin(&self, mut request: Request<Incoming>, path: &str) -> Answered {
        let target = match request.uri().query() {
            Some(query) => format!("{path}?{query}").parse::<Uri>(),
            None => path.parse(),
        };
        let Ok(target) = target else { return Answered::problem(Problem::NotFound, None) };
        *request.uri_mut() = target;
        let mut admin: Router = self.admin.clone();
        let answer = match admin.call(request.map(body::Body::new)).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let (head, body) = answer.into_parts();
        let Ok(body) = body.collect().await else { return Answered::problem(Problem::BrokenOff, None) };
        let response = http::Response::from_parts(head, Body::full(body.to_bytes()));
        Answered { response, route: None, outcome: Outcome::Pass, tier: Tier::Nowhere, life: None }
    }
}
