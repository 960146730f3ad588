//! PURGE and BAN requests to the application's address (`invalidation.requests`).
//!
//! # Guarantees
//! - A request purges only with the token, or over a connection from an allowed network that no proxy made for somebody else.
//! - The purge holds before the response leaves, and goes on without its client: plugins close the connection at once.
//! - What can't be carried out as it is asked is refused, and purges nothing.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use larder_api::admin::PurgeReport;
use larder_policy::policy::PurgeAccess;

use super::{Client, Proxy, Served};
use crate::{
    body::Body,
    cache_status::Tier,
    outlive::Outliving,
    problem::refusal,
    purge::requests,
    secret::{bearer_token, check_token},
    snapshot::Snapshot,
    stats::{Outcome, PurgeOrigin, RefusedPurge},
};

impl Proxy {
    /// Responds to a request that asks for a purge; `is_of_proxy` if somebody else than its client made the connection.
    pub(super) async fn purge_as_asked(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        request: Request<Incoming>,
        client: Client,
        is_of_proxy: bool,
    ) -> Box<Served> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let access = snapshot.policy().purge_requests.as_ref();
        let is_near = !is_of_proxy && access.is_some_and(|access| access.allows(client.address));
        if !is_near && let Err(reason) = self.check_token(access, request.headers()).await {
            let detail = format!(
                "{reason}; or send from a network of invalidation.requests.allowedNetworks, past proxies"
            );
            return self.refuse(StatusCode::FORBIDDEN, RefusedPurge::Forbidden, &detail);
        }
        let purge = match requests::read(&request, access.and_then(|access| access.token_header.as_ref())) {
            Ok(purge) => purge,
            Err(detail) => return self.refuse(StatusCode::BAD_REQUEST, RefusedPurge::Untranslated, &detail),
        };
        let proxy = Arc::clone(self);
        let purged = async move {
            // Without the body, hyper may read no more from the client.
            let _until_then = (client, body);
            proxy.purging().report(purge, PurgeOrigin::Request).await
        };
        let (status, report) = Outliving::new(purged, |purged| async { drop(purged.await) }).await;
        Served::new(reported(status, &report), None, Outcome::Pass, Tier::Nowhere)
    }

    async fn check_token(
        &self,
        access: Option<&PurgeAccess>,
        headers: &HeaderMap,
    ) -> Result<(), &'static str> {
        let own = access.and_then(|access| headers.get(access.token_header.as_ref()?));
        let given = own.map(|value| value.as_bytes().trim_ascii()).or_else(|| bearer_token(headers));
        check_token(self.token_file.as_deref(), given).await
    }

    fn refuse(&self, status: StatusCode, reason: RefusedPurge, detail: &str) -> Box<Served> {
        if self.telemetry.stats.purge_refused(reason) {
            let reason = reason.as_str();
            tracing::warn!(reason, detail, "a request purged nothing; further ones are only counted");
        }
        Served::new(refusal(status, detail), None, Outcome::Error, Tier::Nowhere)
    }
}

/// Returns the report of a purge, as the admin API gives it.
fn reported(status: StatusCode, report: &PurgeReport) -> Response<Body> {
    let mut response = Response::new(Body::full(serde_json::to_vec(report).unwrap_or_default().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
