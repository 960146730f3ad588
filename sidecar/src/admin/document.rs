//! The admin API as OpenAPI 3.1 has it.

use aide::{
    openapi::{Info, License, OpenApi, SecurityScheme, Server, Tag},
    transform::TransformOpenApi,
};

use super::token;

/// The document without its operations.
pub(super) fn start() -> OpenApi {
    let tag = |name: &str, description: &str| Tag {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        ..Tag::default()
    };
    OpenApi {
        info: Info {
            title: "Larder: the admin API of a sidecar".to_owned(),
            description: Some(
                "It has a port of its own, and is under the application's address only where the policy's \
                 `admin.pathPrefix` puts it. What shows or changes what is stored wants the token, a bearer token. What is \
                 wrong with a request is said in problem details (RFC 9457); a method that a path does not have is \
                 answered with 405 and `Allow`."
                    .to_owned(),
            ),
            license: Some(License {
                name: "Apache License 2.0".to_owned(),
                identifier: Some(env!("CARGO_PKG_LICENSE").to_owned()),
                ..License::default()
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Info::default()
        },
        // Wherever the document is read, under a prefix too.
        servers: vec![Server { url: ".".to_owned(), ..Server::default() }],
        tags: vec![
            tag("cache", "What is stored. All of it wants the token."),
            tag("health", "What everybody may know."),
            tag("document", "This document, and pages to read it by."),
        ],
        ..OpenApi::default()
    }
}

/// Adds the parts that all operations share.
pub(super) fn finish(document: TransformOpenApi<'_>) -> TransformOpenApi<'_> {
    let scheme = SecurityScheme::Http {
        scheme: "bearer".to_owned(),
        bearer_format: None,
        description: Some("What is in the file that --admin-token-file names.".to_owned()),
        extensions: Default::default(),
    };
    let mut document = document.security_scheme(token::SCHEME, scheme);
    // The router's wildcard is one parameter in OpenAPI.
    if let Some(paths) = &mut document.inner_mut().paths {
        paths.paths = std::mem::take(&mut paths.paths)
            .into_iter()
            .map(|(path, item)| (path.replace("{*", "{"), item))
            .collect();
    }
    document
}
