//! The admin API under the application's address (`admin.pathPrefix` of a policy).

use axum::{Router, body};
use http::{Request, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use larder_policy::NormalPath;
use tower_service::Service as _;

use super::{Client, Proxy, Served, classify::path_in_admin};
use crate::{body::Body, cache_status::Tier, problem::Problem, snapshot::Snapshot, stats::Outcome};

impl Proxy {
    /// Responds with the admin API, whose responses are short and complete.
    pub(super) async fn ask_admin(
        &self,
        snapshot: &Snapshot,
        mut request: Request<Incoming>,
        client: Client,
    ) -> Box<Served> {
        client.go_on(request.headers_mut());
        let normal = NormalPath::new(request.uri().path());
        let path = path_in_admin(snapshot.policy(), &normal).unwrap_or("/");
        let target = match request.uri().query() {
            Some(query) => format!("{path}?{query}").parse::<Uri>(),
            None => path.parse(),
        };
        let Ok(target) = target else { return Served::problem(Problem::NotFound, None) };
        *request.uri_mut() = target;
        let mut admin: Router = self.admin.clone();
        let response = match admin.call(request.map(body::Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (head, body) = response.into_parts();
        let Ok(body) = body.collect().await else { return Served::problem(Problem::BrokenOff, None) };
        let response = http::Response::from_parts(head, Body::full(body.to_bytes()));
        Served::new(response, None, Outcome::Pass, Tier::Nowhere)
    }
}
