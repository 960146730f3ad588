//! `POST /peer/purges`: purges of other pods.

use std::sync::Arc;

use aide::transform::TransformOperation;
use axum::{Json, extract::State};
use http::StatusCode;
use larder_api::admin::{PeerReply, PeerRequest};

use super::{
    Admin,
    json::{Sent, Strict},
    refused::{Refused, refuses},
    token::{Token, guarded},
};

impl Sent for PeerRequest {
    const SHAPE: &'static str = r#"{"instance": 1, "age_ms": 0, "known": {}, "purges": [...]}"#;
}

pub(super) async fn purges(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Strict(request): Strict<PeerRequest>,
) -> Result<Json<PeerReply>, Refused> {
    let Some(peers) = &admin.peers else {
        let detail = "this sidecar has no peers: start it with --peers";
        return Err(Refused::new(StatusCode::CONFLICT, detail));
    };
    let reply = peers.receive(request);
    reply.map(Json).ok_or_else(|| {
        Refused::malformed("the purges are not in order, a name has not 32 digits, or the address is none")
    })
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("peerPurges")
        .tag("cache")
        .summary("Exchange purges with another pod")
        .description(
            "Called by the policy's other pods. The purges in the request hold in this pod when the response is sent. Not available under \
             the application's address.",
        )
        .response_with::<200, Json<PeerReply>, _>(|response| {
            response.description("The purges hold in this pod, which tells in turn what it knows.")
        });
    let operation = guarded(operation);
    let operation = refuses::<400>(operation, "The body is malformed.");
    let operation = refuses::<409>(operation, "This sidecar knows no way to other pods.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}
