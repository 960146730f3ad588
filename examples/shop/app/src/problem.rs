//! Errors of requests, as clients see them.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tracing::warn;

use crate::store::StoreError;

/// Why a request has no answer of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// Nobody and nothing has this id.
    #[error("there is nothing with this id")]
    NotFound,
    /// The database did not answer.
    #[error("the database does not answer, try again later")]
    Store(#[from] StoreError),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Store(error) => {
                warn!(error = %error, "no answer from the database");
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}
