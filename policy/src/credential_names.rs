//! Names of headers that identify a user: known ones, and the pattern of the others.
//!
//! The set of such headers is open: every gateway and every framework has its own. A name that is not listed is
//! therefore treated as one if it contains a telltale word. A false positive costs hits, is visible in `Cache-Status`
//! and can be settled by `key.ignoreHeaders`; a false negative costs a user's privacy.

use crate::{is_named, names::is_alike};

/// Words that indicate a user, or a user's possessions, anywhere in a name. Indexed by first letter.
const TELLING: [(u8, &[&str]); 18] = [
    (b'a', &["accesskey", "account", "admin", "apikey", "appcheck", "assertion", "auth"]),
    (b'b', &["bearer", "biscuit"]),
    (b'c', &["cert", "company", "consumer", "cookie", "credential", "csrf", "customer"]),
    (b'e', &["email", "employee", "entitlement"]),
    (b'g', &["group"]),
    (b'i', &["identi", "impersonat"]),
    (b'j', &["jwt"]),
    (b'k', &["kerberos"]),
    (b'l', &["ldap", "login", "logon"]),
    (b'm', &["macaroon", "member"]),
    (b'n', &["nameid", "nickname", "nonce"]),
    (b'o', &["oidc", "organi"]),
    (
        b'p',
        &[
            "passcode",
            "passkey",
            "passphrase",
            "passw",
            "permission",
            "person",
            "pomerium",
            "principal",
            "privilege",
        ],
    ),
    (b's', &["saml", "secret", "sessid", "session", "signature", "subscri", "sudo"]),
    (b't', &["tenant", "token"]),
    (b'u', &["uidh", "universalid", "user"]),
    (b'w', &["wallet"]),
    (b'x', &["xsrf"]),
];

/// Words that indicate a user only where they stand alone between hyphens, indexed by length.
const WORDS: [&[&str]; 12] = [
    &[],
    &[],
    &["dn"],
    &[
        "acl", "acr", "did", "idp", "jwe", "jws", "key", "mfa", "oid", "org", "otp", "pat", "pin", "pwd",
        "sid", "sig", "ssn", "sso", "sub", "uid", "upn", "vip",
    ],
    &[
        "cart", "doas", "dpop", "eppn", "gaid", "hmac", "idfa", "imsi", "mail", "nick", "pass", "role",
        "sign", "svid", "team", "udid",
    ],
    &[
        "actas", "actor", "buyer", "creds", "grant", "guest", "ident", "oauth", "orgid", "owner", "phone",
        "realm", "roles", "runas", "scope", "staff", "subno",
    ],
    &[
        "basket", "behalf", "bidder", "caller", "claims", "driver", "grants", "logged", "msisdn", "openid",
        "player", "rights", "scopes", "seller", "signed", "spiffe", "ticket",
    ],
    &[
        "contact", "learner", "partner", "patient", "profile", "project", "shopper", "student", "subject",
        "teacher", "unionid", "visitor",
    ],
    &["clientid", "delegate", "deviceid", "distinct", "fullname", "merchant", "passport"],
    &["anonymous", "clearance", "firstname", "household", "namespace", "requester", "requestor", "workspace"],
    &["delegation", "department"],
    &["affiliation", "displayname", "fingerprint"],
];

/// Names that identify a user without a telltale word; an entry that ends in a hyphen is a prefix.
const KNOWN: [&str; 32] = [
    "cf-access-",
    "client-id",
    "cn",
    "device-id",
    "givenname",
    "pairwise-id",
    "persistent-id",
    "remote-",
    "sap-client",
    "shib-",
    "sm-",
    "sn",
    "ssl-client-",
    "tailscale-",
    "targeted-id",
    "tls-client-",
    "x-amzn-lambda-context",
    "x-amzn-request-context",
    "x-apigateway-context",
    "x-apigateway-event",
    "x-client-id",
    "x-device-id",
    "x-goog-iap-",
    "x-grafana-id",
    "x-okta-",
    "x-remote-",
    "x-ssl-client-",
    "x-telegram-init-data",
    "x-tls-client-",
    "x-up-calling-line-id",
    "x-viewer-id",
    "x-vouch-",
];

/// Two words that tell of a person together, wherever they are in a name.
const PAIRS: [&str; 14] = [
    "act-as",
    "acting-as",
    "api-key",
    "apple-id",
    "application-id",
    "client-id",
    "device-id",
    "display-name",
    "do-as",
    "first-name",
    "full-name",
    "installation-id",
    "name-id",
    "run-as",
];

/// Prefixes and suffixes of names that contain a telltale word but identify nobody: the client's software, the
/// browser's own fields, CORS (the Fetch standard), keys of requests and of caches, addresses of clients, the scheme
/// that Cloudflare's visitors used, and Vercel's proof that it forwarded a request.
const HARMLESS_STARTS: [&str; 4] = ["access-control-", "sec-", "service-worker", "upgrade-insecure-"];
const HARMLESS_ENDS: [&str; 12] = [
    "authority",
    "cache-key",
    "cf-visitor",
    "idempotency-key",
    "remote-addr",
    "remote-ip",
    "remote-port",
    "surrogate-key",
    "user-agent",
    "user-ip",
    "vercel-proxy-signature",
    "vercel-proxy-signature-ts",
];

/// Returns true if a header identifies a user, by its name in any case. Common names are ruled out first.
pub fn names_credentials(name: &[u8]) -> bool {
    !is_common(name) && tells(name)
}

/// Returns true for names that most requests have, by length: those of browsers, of common clients and of tracing.
pub(crate) fn is_common(name: &[u8]) -> bool {
    match name.len() {
        _ if name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"sec-")) => true,
        3 => is_named(name, b"dnt"),
        4 => is_named(name, b"host") || is_named(name, b"date") || is_named(name, b"from"),
        5 => is_named(name, b"range"),
        6 => [b"accept", b"origin", b"pragma", b"expect"].iter().any(|known| is_named(name, known)),
        7 => is_named(name, b"referer") || is_named(name, b"upgrade"),
        8 => is_named(name, b"priority") || is_named(name, b"if-match") || is_named(name, b"if-range"),
        9 => is_named(name, b"x-real-ip"),
        10 => [b"user-agent", b"connection", b"keep-alive", b"tracestate"]
            .iter()
            .any(|known| is_named(name, known)),
        11 => is_named(name, b"traceparent"),
        12 => is_named(name, b"content-type") || is_named(name, b"x-request-id"),
        13 => is_named(name, b"cache-control") || is_named(name, b"if-none-match"),
        14 => is_named(name, b"content-length"),
        15 => {
            is_named(name, b"accept-encoding")
                || is_named(name, b"accept-language")
                || is_named(name, b"x-forwarded-for")
        }
        16 => is_named(name, b"x-forwarded-host") || is_named(name, b"x-correlation-id"),
        17 => {
            is_named(name, b"x-forwarded-proto")
                || is_named(name, b"if-modified-since")
                || is_named(name, b"transfer-encoding")
        }
        25 => is_named(name, b"upgrade-insecure-requests"),
        _ => false,
    }
}

fn tells(name: &[u8]) -> bool {
    let starts = |known: &str| name.get(..known.len()).is_some_and(|part| is_alike(part, known));
    let ends = |known: &str| {
        let from = name.len().checked_sub(known.len());
        from.is_some_and(|from| name[from..].eq_ignore_ascii_case(known.as_bytes()))
    };
    if HARMLESS_STARTS.into_iter().any(starts) || HARMLESS_ENDS.into_iter().any(ends) {
        return false;
    }
    let is_known = |known: &str| starts(known) && (known.ends_with('-') || name.len() == known.len());
    has_telling_word(name)
        || name.split(|byte| b"-_.".contains(byte)).any(is_word)
        || KNOWN.into_iter().any(is_known)
}

fn has_telling_word(name: &[u8]) -> bool {
    (0..name.len()).any(|from| {
        let rest = &name[from..];
        let first = rest[0].to_ascii_lowercase();
        let Some((_, words)) = TELLING.iter().find(|(letter, _)| *letter == first) else { return false };
        words
            .iter()
            .any(|word| rest.get(..word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word.as_bytes())))
    }) || PAIRS.into_iter().any(|pair| name.windows(pair.len()).any(|part| is_alike(part, pair)))
}

fn is_word(part: &[u8]) -> bool {
    let words = WORDS.get(part.len()).copied().unwrap_or_default();
    words.iter().any(|word| part.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_of_gateways_and_frameworks_are_recognised() {
        for name in [
            "api-key",
            "apikey",
            "authorization",
            "cf-access-authenticated-user-email",
            "cf-access-jwt-assertion",
            "client-cert",
            "client-cert-chain",
            "cookie",
            "cookie2",
            "dpop",
            "impersonate-user",
            "impersonate-group",
            "ocp-apim-subscription-key",
            "private-token",
            "proxy-authorization",
            "remote-user",
            "remote-groups",
            "signature",
            "signature-input",
            "ssl-client-cert",
            "ssl-client-s-dn",
            "ssl-client-verify",
            "tls-client-subject",
            "x-access-token",
            "x-account-id",
            "x-amz-security-token",
            "x-amzn-mtls-clientcert",
            "x-amzn-oidc-data",
            "x-amzn-oidc-identity",
            "x-anonymous-consumer",
            "x-api-key",
            "x-api-token",
            "x-app-user",
            "x-arr-clientcert",
            "x-auth",
            "x-auth-request-email",
            "x-auth-token",
            "x-authelia-user",
            "x-authenticated-groups",
            "x-authentik-username",
            "x-client-cert",
            "x-client-id",
            "x-consumer-custom-id",
            "x-consumer-username",
            "x-credential-identifier",
            "x-cart-id",
            "x-clientid",
            "x-csrf-token",
            "x-current-user",
            "x-customer-id",
            "x-device-id",
            "x-email",
            "x-end-user",
            "x-firebase-auth",
            "x-forwarded-access-token",
            "x-forwarded-client-cert",
            "x-forwarded-email",
            "x-forwarded-groups",
            "x-forwarded-preferred-username",
            "x-forwarded-tls-client-cert",
            "x-forwarded-user",
            "x-functions-key",
            "x-goog-api-key",
            "x-goog-authenticated-user-email",
            "x-goog-iap-jwt-assertion",
            "x-group",
            "x-hasura-admin-secret",
            "x-hasura-role",
            "x-id-token",
            "x-identity",
            "x-jwt",
            "x-jwt-assertion",
            "x-jwt-payload",
            "x-login",
            "x-member-id",
            "x-ms-client-principal",
            "x-ms-client-principal-id",
            "x-ms-token-aad-access-token",
            "x-okta-sub",
            "x-on-behalf-of",
            "x-org-id",
            "x-organisation",
            "x-organization-id",
            "x-pomerium-claim-email",
            "x-principal",
            "x-rapidapi-key",
            "x-remote-user",
            "x-roles",
            "x-scopes",
            "x-secret",
            "x-session",
            "x-session-id",
            "x-session-token",
            "x-sessionid",
            "x-shop-customer",
            "x-sid",
            "x-ssl-client-verify",
            "x-sso-user",
            "x-subject",
            "x-tenant",
            "x-tenant-id",
            "x-token",
            "x-uid",
            "x-user",
            "x-user-id",
            "x-userid",
            "x-username",
            "x-vault-token",
            "x-upn",
            "x-visitor",
            "x-wx-openid",
            "x-webauth-user",
            "x-workspace-id",
            "x-wp-nonce",
            "x-xsrf-token",
            "x_user_id",
            "x.api.key",
            "ap-client-id",
            "cn",
            "displayname",
            "l5d-client-id",
            "persistent-id",
            "remote_name",
            "sap-client",
            "shib-application-id",
            "sm_authdirname",
            "sm_universalid",
            "ssl_client_i_dn",
            "ssl_client_verify",
            "sudo",
            "tailscale-app-capabilities",
            "x-act-as",
            "x-amzn-request-context",
            "x-apigateway-event",
            "x-display-name",
            "x-fingerprint",
            "x-full-name",
            "x-grafana-id",
            "x-logged-in",
            "x-name-id",
            "x-nf-sign",
            "x-accesskey",
            "x-apple-id",
            "x-firebase-appcheck",
            "x-parse-application-id",
            "x-parse-installation-id",
            "x-passkey",
            "x-phone",
            "x-run-as",
            "x-saml-assertion",
            "x-sudo",
            "x-telegram-init-data",
            "x-uidh",
            "x-up-calling-line-id",
            "x-up-subno",
            "x-vault-namespace",
            "x-vf-acr",
            "x-wallet-address",
            "iv-creds",
            "eppn",
            "sub",
        ] {
            assert!(names_credentials(name.as_bytes()), "{name}");
            assert!(names_credentials(name.to_ascii_uppercase().as_bytes()), "{name}");
        }
    }

    #[test]
    fn common_request_headers_identify_nobody() {
        for name in [
            "",
            "accept",
            "accept-charset",
            "accept-datetime",
            "accept-encoding",
            "accept-language",
            "access-control-request-headers",
            "access-control-request-method",
            "access-control-request-private-network",
            "alt-used",
            "available-dictionary",
            "b3",
            "baggage",
            "cache-control",
            "cdn-loop",
            "cf-connecting-ip",
            "cf-ipcountry",
            "cf-ray",
            "cf-visitor",
            "connection",
            "content-encoding",
            "content-length",
            "content-type",
            "device-memory",
            "dnt",
            "downlink",
            "dpr",
            "early-data",
            "ect",
            "expect",
            "forwarded",
            "grpc-timeout",
            "host",
            "idempotency-key",
            "if-match",
            "if-none-match",
            "if-range",
            "keep-alive",
            "max-forwards",
            "origin",
            "pragma",
            "prefer",
            "priority",
            "range",
            "referer",
            "rtt",
            "save-data",
            "sec-ch-ua",
            "sec-fetch-user",
            "sec-gpc",
            "sec-purpose",
            "sec-websocket-key",
            "service-worker",
            "te",
            "traceparent",
            "tracestate",
            "true-client-ip",
            "upgrade-insecure-requests",
            "user-agent",
            "via",
            "viewport-width",
            "want-content-digest",
            "x-amzn-trace-id",
            "x-appengine-user-ip",
            "x-azure-ref",
            "surrogate-capability",
            "x-forwarded-for",
            "x-ms-client-request-id",
            "x-b3-sampled",
            "x-b3-spanid",
            "x-b3-traceid",
            "x-client-ip",
            "x-cloud-trace-context",
            "x-correlation-id",
            "x-datadog-trace-id",
            "x-envoy-attempt-count",
            "x-envoy-expected-rq-timeout-ms",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-forwarded-server",
            "x-http-method-override",
            "x-idempotency-key",
            "x-original-url",
            "x-queue-start",
            "x-real-ip",
            "x-request-id",
            "x-remote-addr",
            "x-remote-ip",
            "x-request-start",
            "x-requested-with",
            "x-scheme",
            "x-user-agent",
            "x-vercel-id",
            "x-vercel-proxy-signature",
            "x-vercel-proxy-signature-ts",
            "cloudfront-viewer-address",
            "remote-addr",
        ] {
            assert!(!names_credentials(name.as_bytes()), "{name}");
        }
    }
}
