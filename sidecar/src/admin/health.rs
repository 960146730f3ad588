//! Endpoints that need no token: liveness, readiness, the configuration in force, and metrics.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use aide::transform::TransformOperation;
use axum::{
    Json,
    extract::{ConnectInfo, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use larder_api::admin::{CacheState, PeersReport, PolicyReport, RequestCounts, TierState};

use super::{
    Admin,
    refused::{Refused, refuses},
    token,
};
use crate::{
    cache_status::Tier,
    mode::Mode,
    stats::{Outcome, Stats},
};

pub(super) async fn livez() -> &'static str {
    "ok"
}

pub(super) fn about_livez(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation.id("livez").tag("health").summary("Liveness")
}

/// Returns the readiness, which depends on no tier, because the application can serve requests without them.
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Result<&'static str, Refused> {
    if admin.ready.load(Ordering::Acquire) {
        Ok("ok")
    } else {
        Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is starting"))
    }
}

pub(super) fn about_readyz(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation =
        operation.id("readyz").tag("health").summary("Readiness").description(
            "Independent of all tiers, because the application can serve requests without them.",
        );
    refuses::<503>(operation, "The sidecar is starting.")
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Refused> {
    match admin.telemetry.prometheus() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()),
        Err(error) => Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))),
    }
}

pub(super) fn about_metrics(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation.id("metrics").tag("health").summary("Metrics").response_with::<200, String, _>(
        |response| response.description("Metrics in Prometheus' text format, version 0.0.4."),
    );
    refuses::<500>(operation, "The metrics could not be gathered.")
}

fn state(mode: Mode) -> CacheState {
    match mode {
        Mode::Serving => CacheState::Serving,
        Mode::Suspended => CacheState::Suspended,
        Mode::Waiting => CacheState::Waiting,
        Mode::Absent => CacheState::Absent,
    }
}

fn requests(stats: &Stats) -> RequestCounts {
    let of = |outcome| Tier::ALL.into_iter().map(|tier| stats.requests(outcome, tier)).sum::<u64>();
    RequestCounts {
        total: Outcome::ALL.into_iter().map(of).sum(),
        hits: of(Outcome::Hit),
        misses: of(Outcome::Miss),
    }
}

pub(super) async fn policy(State(admin): State<Arc<Admin>>) -> Json<PolicyReport> {
    let snapshot = admin.config.snapshot();
    let tiers = snapshot.tiers().into_iter();
    let collector = admin.telemetry.collector_error().map(|error| ("otlp".to_owned(), error));
    Json(PolicyReport {
        hash: snapshot.configuration.hash.clone(),
        state: state(snapshot.mode()),
        error: admin.config.error().as_deref().map(ToString::to_string),
        tiers: tiers.map(|(name, up)| (name, if up { TierState::Up } else { TierState::Down })).collect(),
        last_errors: snapshot.last_errors().into_iter().chain(collector).collect(),
        admin_token: token::can_be_read(&admin).await,
        requests: Some(requests(&admin.telemetry.stats)),
        peers: admin.peers.as_ref().map(|peers| peers.report()),
    })
}

pub(super) fn about_policy(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation
        .id("policy")
        .tag("health")
        .summary("Policy in force")
        .response_with::<200, Json<PolicyReport>, _>(|response| {
            response.example(PolicyReport {
                hash: Some("5a1c09b7d2e4".to_owned()),
                state: CacheState::Serving,
                error: None,
                tiers: [
                    ("redis".to_owned(), TierState::Up),
                    ("postgres/catalog".to_owned(), TierState::Down),
                ]
                .into(),
                last_errors: [("postgres/catalog".to_owned(), "can't read /run/secrets/url".to_owned())]
                    .into(),
                admin_token: true,
                requests: Some(RequestCounts { total: 1200, hits: 1000, misses: 150 }),
                peers: Some(PeersReport {
                    reachable: 2,
                    unreachable: [("10.0.0.7:24890".to_owned(), "no reply in time".to_owned())].into(),
                    error: None,
                }),
            })
        })
}

/// Begins draining, for clients inside the pod only: others could take the pod out of service.
pub(super) async fn drain(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
) -> Result<StatusCode, Refused> {
    if !client.ip().to_canonical().is_loopback() {
        let detail = "draining can be requested only from inside the pod, at 127.0.0.1";
        return Err(Refused::new(StatusCode::FORBIDDEN, detail));
    }
    admin.drain.begin();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn about_drain(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("drain")
        .tag("health")
        .summary("Start draining")
        .description(
            "Called by the pod's preStop hook. The sidecar continues to serve requests and asks HTTP/1 clients to close their \
             connections. Not available under the application's address.",
        )
        .response_with::<204, (), _>(|response| response.description("The sidecar is draining."));
    refuses::<403>(operation, "The request does not come from the pod itself.")
}
