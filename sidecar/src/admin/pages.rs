//! The document of the admin API, and pages to read it by.

use aide::{redoc::Redoc, swagger::Swagger, transform::TransformOperation};
use axum::{
    Json,
    response::{Html, IntoResponse, Response},
};
use http::header;
use serde_json::Value;

/// Where the document is, seen from the pages: they may be under a prefix.
const DOCUMENT: &str = "openapi.json";

/// The document, which `./dev generate` makes of the routes.
const OPENAPI: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"));

/// The pages bring all that they need and load nothing from elsewhere, which browsers are told to enforce. They are made of
/// inline scripts, which may compile what they read, and Redoc searches in a worker.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; \
                                       img-src data:; font-src data:; worker-src blob:; connect-src 'self'; \
                                       base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Redoc's own logo, on another host, and an image without anything in its place.
const REDOC_LOGO: &str = "https://cdn.redoc.ly/redoc/logo-mini.svg";
const NO_IMAGE: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E";

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(super) fn about_openapi(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation
        .id("openapi")
        .tag("document")
        .summary("This document")
        .response_with::<200, Json<Value>, _>(|response| response.description("OpenAPI 3.1."))
}

pub(super) async fn docs() -> Response {
    page(Swagger::new(DOCUMENT).with_title("Larder: admin API").html())
}

pub(super) fn about_docs(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    about_page(operation.id("docs").summary("This document in Swagger UI"))
}

pub(super) async fn redoc() -> Response {
    page(Redoc::new(DOCUMENT).with_title("Larder: admin API").html().replace(REDOC_LOGO, NO_IMAGE))
}

pub(super) fn about_redoc(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    about_page(operation.id("redoc").summary("This document in ReDoc"))
}

fn page(html: String) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)], Html(html)).into_response()
}

fn about_page(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation
        .tag("document")
        .response_with::<200, Html<()>, _>(|response| response.description("A self-contained HTML page."))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn pages_load_nothing_from_other_hosts() {
        for page in [docs().await, redoc().await] {
            let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
            assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
            let html = to_bytes(page.into_body(), 8 << 20).await.unwrap();
            let html = String::from_utf8(html.to_vec()).unwrap();
            for external in ["src=\"http", "href=\"http", "cdn.redoc.ly"] {
                assert!(!html.contains(external), "{external}");
            }
            assert!(html.contains(DOCUMENT));
        }
    }
}
