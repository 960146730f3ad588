//! PURGE and BAN requests, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TOKEN, rule};

/// A network in CIDR notation, as a pattern inside a CEL string: an IPv4 address exactly, and what may be an IPv6 address.
const NETWORK: &str = concat!(
    "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])/(3[0-2]|[12]?[0-9])$",
    "|^[0-9A-Fa-f]*:[0-9A-Fa-f:]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$",
);

/// Requests to the application's address that purge, with the methods that WordPress, Drupal, Magento, Symfony and others send to
/// Varnish: PURGE, BAN, PURGEKEYS and PURGETAGS. The sidecar responds to them, and the application gets none of them any more. Each
/// needs the policy's token, as `Authorization: Bearer TOKEN`, or comes from an allowed network. Without this field they are requests
/// like any other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeRequests {
    /// Networks from which a request needs no token, such as `127.0.0.0/8` for the application's own; for others the token is safer. The
    /// address is that of the connection. A request with a field of a proxy (`Forwarded`, `Via`, `X-Forwarded-For`, `X-Real-IP`,
    /// `CF-Connecting-IP` and the like) needs the token, wherever that proxy is. List no network from which strangers seem to come: behind
    /// a mesh's proxy every connection comes from that proxy, and behind a Service of type LoadBalancer or NodePort from a node, whose
    /// address may be in the pods' network, unless it has `externalTrafficPolicy: Local`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 64)),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = rule(
            &format!("self.all(n, n.matches('{NETWORK}'))"),
            "write networks as address and length, such as 10.0.0.0/8 or fd00::/8",
        ))
    )]
    pub allowed_networks: Vec<String>,

    /// Name of a header that may have the token as it is, for clients that can't send `Authorization`: `X-Invalidate-Token` of Ibexa,
    /// or the purge key header of W3 Total Cache. The token is the one of the admin API, in the Secret `larder-<policy>-admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = rule(
        &format!("self.matches('{TOKEN}')"),
        "write the name of a header, such as X-Invalidate-Token",
    )))]
    pub token_header: Option<String>,
}
