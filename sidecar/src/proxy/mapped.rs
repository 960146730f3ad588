//! The admin API under the application's address, where the policy puts it there.

use axum::{Router, body};
use http::{Request, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use larder_policy::NormalPath;
use tower_service::Service as _;

use super::{Answered, Client, Proxy, classify::path_in_admin};
use crate::{body::Body, cache_status::Tier, problem::Problem, serving::Serving, stats::Outcome};

impl Proxy {
    /// Has the admin API respond. Its responses are short, its pages aside, and made at once.
    pub(super) async fn ask_admin(
        &self,
        serving: &Serving,
        mut request: Request<Incoming>,
        client: &Client,
    ) -> Answered {
        client.go_on(request.headers_mut());
        let normal = NormalPath::new(request.uri().path());
        let path = path_in_admin(&serving.policy, &normal).unwrap_or("/");
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
