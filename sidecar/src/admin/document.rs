//! The admin API as OpenAPI 3.1 has it.

use aide::{
    openapi::{Info, License, OpenApi, SecurityScheme, Server, Tag},
    transform::TransformOpenApi,
};

use super::{peering, token};
use crate::peers::authentication;

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
                "Served on a port of its own, and under the application's address only if the policy sets \
                 `admin.pathPrefix`. Operations that show or change stored responses require the token, as a bearer token; \
                 other pods prove that they know it. \
                 Errors are problem details (RFC 9457); the response to an unsupported method is a 405 with `Allow`."
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
            tag("cache", "Stored responses. Every operation requires the token, or the proof of knowing it."),
            tag("health", "Health and metrics, without a token."),
            tag("document", "This document, and pages that render it."),
        ],
        ..OpenApi::default()
    }
}

/// Adds the parts that all operations share.
pub(super) fn finish(document: TransformOpenApi<'_>) -> TransformOpenApi<'_> {
    let scheme = SecurityScheme::Http {
        scheme: "bearer".to_owned(),
        bearer_format: None,
        description: Some("The contents of the file that --admin-token-file names.".to_owned()),
        extensions: Default::default(),
    };
    let of_peers = SecurityScheme::Http {
        scheme: authentication::SCHEME.to_owned(),
        bearer_format: None,
        description: Some(
            "Proof by keyed BLAKE3 that a pod knows the token: `Larder-Peer nonce=…, body=…, mac=…`, of 64 hexadecimal digits each. \
             `body` is the hash of the body. The MAC is of the connection's last challenge, which is in `WWW-Authenticate` or \
             `Authentication-Info`, the address and port that were dialled, the nonce and `body`."
                .to_owned(),
        ),
        extensions: Default::default(),
    };
    let mut document =
        document.security_scheme(token::SCHEME, scheme).security_scheme(peering::DOCUMENTED_SCHEME, of_peers);
    // The router's wildcard is one parameter in OpenAPI.
    if let Some(paths) = &mut document.inner_mut().paths {
        paths.paths = std::mem::take(&mut paths.paths)
            .into_iter()
            .map(|(path, item)| (path.replace("{*", "{"), item))
            .collect();
    }
    document
}
