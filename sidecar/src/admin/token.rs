//! The token that permits to read stored responses and to purge them.

use std::sync::Arc;

use aide::{OperationInput, transform::TransformOperation};
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::{
    Admin,
    refused::{Refused, refuses},
};
use crate::secret::{bearer_token, check_token};

/// Name of the token's scheme in the OpenAPI document.
pub(super) const SCHEME: &str = "token";

/// A request that carries the token. It is the first that a handler asks for, so that nobody learns anything without it.
#[derive(Debug)]
pub(super) struct Token;

impl FromRequestParts<Arc<Admin>> for Token {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Self, Refused> {
        let checked = check_token(admin.token_file.as_deref(), bearer_token(&parts.headers)).await;
        checked.map(|()| Self).map_err(|reason| Refused::new(StatusCode::UNAUTHORIZED, reason))
    }
}

/// Returns true if there is a token that a request could carry.
pub(super) async fn can_be_read(admin: &Admin) -> bool {
    let Some(file) = &admin.token_file else { return false };
    tokio::fs::read(file).await.is_ok_and(|token| !token.trim_ascii().is_empty())
}

/// Lets pass who has the token, or asks for health alone.
pub(super) async fn for_all_but_health(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(request.uri().path(), "/livez" | "/readyz") {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    match Token::from_request_parts(&mut parts, &admin).await {
        Ok(Token) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => refused.into_response(),
    }
}

/// [`guarded`] documents it.
impl OperationInput for Token {}

/// Documents that an operation wants the token.
pub(super) fn guarded(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    refuses::<401>(operation.security_requirement(SCHEME), "The token is missing or wrong.")
}
