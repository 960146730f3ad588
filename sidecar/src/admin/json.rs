//! Requests in JSON, read strictly.

use std::sync::Arc;

use aide::{OperationInput, generate::GenContext, openapi::Operation};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{FromRequest, Request},
};
use http::StatusCode;
use http_body::Body as _;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{Admin, refused::Refused};
use crate::budget::Kind;

/// The longest body that is read.
const MAX_BYTES: usize = 1 << 20;

/// The body of a request, which is a JSON object whatever its `Content-Type` says.
pub(super) struct Strict<T>(pub(super) T);

/// A document that may be sent.
pub(super) trait Sent: DeserializeOwned {
    /// Form of the document, for errors about other documents.
    const SHAPE: &'static str;
}

impl<T: Sent> FromRequest<Arc<Admin>> for Strict<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Refused> {
        Self::read(request.into_body(), admin, |_| Ok(())).await
    }
}

impl<T: Sent> Strict<T> {
    /// Reads a body that passes a check of its bytes.
    pub(super) async fn read(
        body: Body,
        admin: &Admin,
        check: impl FnOnce(&[u8]) -> Result<(), Refused>,
    ) -> Result<Self, Refused> {
        // Twice: what is read of it is as long.
        let length = body.size_hint().upper().unwrap_or(MAX_BYTES as u64).min(MAX_BYTES as u64);
        let Some(_room) = admin.telemetry.stats.budget.reserve(Kind::Requests, 2 * length) else {
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests are in progress: try again later",
            ));
        };
        let body = read(body).await?;
        check(&body)?;
        let malformed = |why: &dyn std::fmt::Display| Refused::malformed(format!("send {}: {why}", T::SHAPE));
        // A list would be taken for the values of the fields in their order.
        if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
            return Err(malformed(&"the body is not a JSON object"));
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| malformed(&error))
    }
}

async fn read(body: Body) -> Result<axum::body::Bytes, Refused> {
    let too_long = || {
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body may have at most {MAX_BYTES} bytes"))
    };
    if body.size_hint().lower() > MAX_BYTES as u64 {
        return Err(too_long());
    }
    to_bytes(body, MAX_BYTES).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            too_long()
        } else {
            Refused::malformed("the body is incomplete")
        }
    })
}

impl<T: JsonSchema> OperationInput for Strict<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Json::<T>::operation_input(context, operation);
    }
}
