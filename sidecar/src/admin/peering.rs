//! `POST /peer/purges`: purges of other pods.

use std::sync::Arc;

use aide::{OperationInput, generate::GenContext, openapi::Operation, transform::TransformOperation};
use axum::{
    Json,
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use larder_api::admin::{PeerReply, PeerRequest};

use super::{
    Admin,
    json::{Sent, Strict},
    refused::{Refused, refuses},
};
use crate::peers::{
    Peers,
    authentication::{Accepted, Credentials, Keys, SCHEME},
};

/// Name of the scheme in the OpenAPI document.
pub(super) const DOCUMENTED_SCHEME: &str = "peer";

impl Sent for PeerRequest {
    const SHAPE: &'static str = r#"{"instance": 1, "age_ms": 0, "known": {}, "purges": [...]}"#;
}

/// A request of another pod, which has proven that it knows the token.
pub(super) struct FromPeer {
    peers: Arc<Peers>,
    request: PeerRequest,
    keys: Arc<Keys>,
    credentials: Credentials,
    connection: Arc<Accepted>,
}

impl FromRequest<Arc<Admin>> for FromPeer {
    type Rejection = Refused;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Refused> {
        let (mut head, body) = request.into_parts();
        let Some(connection) = head.extensions.remove::<Arc<Accepted>>() else {
            return Err(Refused::challenged(HeaderValue::from_static(SCHEME), "not over this connection"));
        };
        let refused = |detail: &str| Refused::challenged(connection.challenge(), detail);
        if admin.token_file.is_none() {
            return Err(refused("no token is configured: start the sidecar with --admin-token-file"));
        }
        let credentials = Credentials::read(&head.headers).ok_or_else(|| {
            refused(
                "prove that you know the token, by the challenge in WWW-Authenticate: it is not sent here",
            )
        })?;
        let Some(peers) = &admin.peers else {
            let detail = "this sidecar has no peers: start it with --peers";
            return Err(Refused::new(StatusCode::CONFLICT, detail));
        };
        let keys = peers.keys().await.ok_or_else(|| refused("the token file can't be read, or is empty"))?;
        if !connection.believes(&keys, &credentials, peers.address()) {
            return Err(refused(
                "the token is wrong, or this is not the pod, the connection or the time for the request",
            ));
        }
        let Strict(request) = Strict::read(body, admin, |body| {
            let is_signed = credentials.are_for(body);
            is_signed.then_some(()).ok_or_else(|| refused("the body is not the one that was authenticated"))
        })
        .await?;
        Ok(Self { peers: Arc::clone(peers), request, keys, credentials, connection })
    }
}

impl OperationInput for FromPeer {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Json::<PeerRequest>::operation_input(context, operation);
    }
}

pub(super) async fn purges(
    FromPeer { peers, request, keys, credentials, connection }: FromPeer,
) -> Result<Response, Refused> {
    let reply = peers.receive(request).ok_or_else(|| {
        Refused::malformed(
            "purges are not in order or not all there, a name has not 32 digits, or the address is none",
        )
    })?;
    let body = serde_json::to_vec(&reply).expect("a reply has only string keys, which JSON can represent");
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(([connection.proof(&keys, &credentials, &body), json], body).into_response())
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("peerPurges")
        .tag("cache")
        .summary("Exchange purges with another pod")
        .description(
            "Called by the policy's other pods. The purges in the request hold in this pod when the response is sent. Not available under \
             the application's address. The token is not sent: both sides prove that they know it, to this address and over this \
             connection alone, the response by `Authentication-Info`.",
        )
        .security_requirement(DOCUMENTED_SCHEME)
        .response_with::<200, Json<PeerReply>, _>(|response| {
            response.description("The purges hold in this pod, which tells in turn what it knows.")
        });
    let operation = refuses::<400>(operation, "The body is malformed.");
    let operation = refuses::<401>(
        operation,
        "The proof is missing or wrong. `WWW-Authenticate` has the challenge of the connection.",
    );
    let operation = refuses::<409>(operation, "This sidecar knows no way to other pods.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}
