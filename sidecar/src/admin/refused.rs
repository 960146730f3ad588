//! Errors of the admin API, as problem details (RFC 9457).

use aide::{
    OperationOutput,
    generate::GenContext,
    openapi::{MediaType, Operation, Response as ResponseObject, SchemaObject},
    transform::TransformOperation,
};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use larder_api::admin::Problem;

/// A request that was refused, and why.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    detail: String,
    /// Value of `WWW-Authenticate`, if the request must prove something.
    challenge: HeaderValue,
}

impl Refused {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), challenge: HeaderValue::from_static("Bearer") }
    }

    /// A request that lacks a proof, or has a wrong one.
    pub(super) fn challenged(challenge: HeaderValue, detail: impl Into<String>) -> Self {
        Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, detail) }
    }

    /// A request that makes no sense.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self { status, detail, challenge } = self;
        let title = status.canonical_reason().unwrap_or("Error").to_owned();
        let problem = Problem { title, status: status.as_u16(), detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Each operation says itself how it refuses, by [`refuses`].
impl OperationOutput for Refused {
    type Inner = ();

    fn operation_response(context: &mut GenContext, _: &mut Operation) -> Option<ResponseObject> {
        let json_schema = context.schema.subschema_for::<Problem>();
        let schema = Some(SchemaObject { json_schema, external_docs: None, example: None });
        let content = [(Problem::MEDIA_TYPE.to_owned(), MediaType { schema, ..MediaType::default() })];
        Some(ResponseObject { content: content.into_iter().collect(), ..ResponseObject::default() })
    }
}

/// Documents that an operation may respond with a status, and when.
pub(super) fn refuses<'o, const STATUS: u16>(
    operation: TransformOperation<'o>,
    when: &'static str,
) -> TransformOperation<'o> {
    operation.response_with::<STATUS, Refused, _>(|response| response.description(when))
}
