//! `POST /explain`: what would become of a request, and why.

use std::{sync::Arc, time::Duration};

use aide::transform::TransformOperation;
use axum::{Json, body::Bytes, extract::State};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header::HOST};
use larder_api::admin::{
    ExplainRequest, ExplainedLifetimes, ExplainedMemory, ExplainedRoute, ExplainedStatus, Explanation,
    MAX_HEADERS, PurgeRequest,
};
use larder_policy::{
    Lifetimes, Route, StatusPattern,
    lifetimes::{StoreDespite, TtlFrom},
    policy::{Purges, WritePurges},
};
use serde_json::Number;

use super::{
    Admin,
    json::{Sent, Strict},
    key_text::KeyText,
    purging::request_for,
    refused::{Refused, refuses},
    stored::{entry_state, seconds, stored_response},
    token::{Token, guarded},
};
use crate::{
    cache_status::Forward,
    http1_guard::RawTarget,
    proxy::explain::{Explanation as Found, InMemory, explain},
    snapshot::Snapshot,
};

impl Sent for ExplainRequest {
    const SHAPE: &'static str =
        r#"{"method": "GET", "url": "http://shop/a?b=c", "headers": {"name": "value"}}"#;
}

pub(super) async fn explained(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Strict(described): Strict<ExplainRequest>,
) -> Result<Json<Explanation>, Refused> {
    let target = target(&admin.targets, described.port.as_ref().map(port).transpose()?)?;
    let request = request(described)?;
    let snapshot = admin.config.snapshot();
    let found = explain(&snapshot, target, request);
    Ok(Json(explanation(&snapshot, found)))
}

fn port(number: &Number) -> Result<u16, Refused> {
    let port = number.as_f64().filter(|port| port.fract() == 0.0 && (1.0..=65535.0).contains(port));
    port.map(|port| port as u16).ok_or_else(|| Refused::malformed(format!("{number} is not a port")))
}

/// The port in the key: none where there is only one.
fn target(targets: &[u16], port: Option<u16>) -> Result<Option<u16>, Refused> {
    if targets.len() < 2 {
        return Ok(None);
    }
    match port {
        None => Ok(targets.first().copied()),
        Some(port) if targets.contains(&port) => Ok(Some(port)),
        Some(port) => Err(Refused::malformed(format!(
            "the sidecar serves no application port {port}: use one of {targets:?}"
        ))),
    }
}

fn request(described: ExplainRequest) -> Result<Request<Bytes>, Refused> {
    let ExplainRequest { method, url, headers, body, port: _ } = described;
    let is_method = matches!(method.len(), 1..=32)
        && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    let method = Method::from_bytes(method.as_bytes()).ok().filter(|_| is_method);
    let method = method.ok_or_else(|| Refused::malformed("write the method in capitals, such as GET"))?;
    let parts = taken_apart(&url)
        .and_then(|(scheme, authority, target)| Some((scheme, authority, RawTarget::read(&target)?)));
    let (scheme, authority, (target, raw_target)) = parts.ok_or_else(|| {
        Refused::malformed(format!("{url:?} is not a URL: write one such as http://shop/a?b=c, encoded"))
    })?;
    if headers.len() > MAX_HEADERS {
        return Err(Refused::malformed(format!("send at most {MAX_HEADERS} headers")));
    }
    let mut fields = HeaderMap::new();
    for (name, value) in &headers {
        let field = HeaderName::from_bytes(name.as_bytes()).ok().filter(|_| name.len() <= 256);
        let is_text = value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
        let field = field.zip(HeaderValue::from_str(value).ok().filter(|_| is_text));
        let (name, value) =
            field.ok_or_else(|| Refused::malformed(format!("{name:?}: {value:?} is not a valid header")))?;
        fields.append(name, value);
    }
    let host = HeaderValue::from_str(authority).ok();
    if let Some(host) = host.filter(|_| !fields.contains_key(HOST)) {
        fields.insert(HOST, host);
    }
    if scheme == "https" {
        let proto = HeaderName::from_static("x-forwarded-proto");
        fields.entry(proto).or_insert(HeaderValue::from_static("https"));
    }
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.headers_mut() = fields;
    if let Some(raw) = raw_target {
        request.extensions_mut().insert(raw);
    }
    Ok(request)
}

/// Scheme, authority and target of a URL: as its pattern in the document has them.
fn taken_apart(url: &str) -> Option<(&str, &str, String)> {
    let (scheme, rest) = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = authority.split_once(':').unwrap_or((authority, "0"));
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_authority = !host.is_empty()
        && host.bytes().all(is_host)
        && matches!(port.len(), 1..=5)
        && port.bytes().all(|byte| byte.is_ascii_digit());
    let slash = if target.starts_with('/') { "" } else { "/" };
    is_authority.then(|| (scheme, authority, format!("{slash}{target}")))
}

fn explanation(snapshot: &Snapshot, found: Found) -> Explanation {
    let Found { route, parameters, path, ends_here, purges, passes, key, tags, asked, memory } = found;
    let lifetimes = route.as_ref().map(|route| &route.lifetimes);
    let purge = key.as_deref().map(|key| {
        let short = KeyText::parse(key).map(|key| key.short());
        let keys = [key.to_owned()].into_iter().chain(short).collect();
        request_for(PurgeRequest { keys, paths: vec![path], tags, ..PurgeRequest::default() })
    });
    Explanation {
        route: route.as_ref().map(|route| shown_route(route, parameters)),
        bypass: passes.map(|reason| match reason {
            Forward::Bypass(bypass) => bypass.as_str().to_owned(),
            other => other.as_str().to_owned(),
        }),
        ends_here: ends_here.map(|end| end.as_str().to_owned()),
        on_write_soft: purges.as_ref().and_then(|WritePurges { soft, .. }| {
            (!soft.is_empty()).then(|| PurgeRequest { soft: true, ..purge_request(soft.clone()) })
        }),
        on_write_unknown: purges.as_ref().map_or_else(Vec::new, |WritePurges { unknown, .. }| {
            unknown.iter().map(ToString::to_string).collect()
        }),
        on_write: purges.map(|WritePurges { hard, .. }| purge_request(hard)),
        key,
        tiers: asked,
        purge,
        l1: memory.map(|InMemory { forward, entry }| ExplainedMemory {
            hit: forward.is_none(),
            forward: forward.map(|reason| reason.as_str().to_owned()),
            state: entry.as_ref().map(|entry| entry_state(entry, snapshot, lifetimes)),
            response: entry.as_ref().map(|entry| stored_response(entry, snapshot, lifetimes)),
        }),
    }
}

fn purge_request(Purges { tags, paths, prefixes, everything }: Purges) -> PurgeRequest {
    request_for(PurgeRequest { paths, prefixes, tags, everything, ..PurgeRequest::default() })
}

fn shown_route(route: &Route, parameters: Vec<(String, String)>) -> ExplainedRoute {
    ExplainedRoute {
        name: route.name.clone(),
        index: route.index,
        path: route.path.as_ref().map(ToString::to_string),
        parameters: parameters.into_iter().collect(),
        lifetimes: shown_lifetimes(&route.lifetimes),
        collapse_timeout_seconds: seconds(route.collapse_timeout),
        envelope: route.envelope,
        tags_from: route.tags_from.iter().flat_map(|from| from.headers()).map(ToString::to_string).collect(),
    }
}

fn shown_lifetimes(lifetimes: &Lifetimes) -> ExplainedLifetimes {
    let Lifetimes {
        ttl,
        max_ttl,
        statuses,
        stale_while_revalidate,
        stale_if_error,
        store_despite,
        set_cookie,
        ttl_from,
        jitter_percent,
        l1_ttl,
        l2_ttl,
        early_refresh,
        retry_interval,
    } = lifetimes;
    let shown = |duration: &Option<Duration>| duration.map(seconds);
    let status = |(status, ttl): &(StatusPattern, Option<Duration>)| ExplainedStatus {
        status: status.to_string(),
        ttl_seconds: shown(ttl),
    };
    ExplainedLifetimes {
        ttl_seconds: shown(ttl),
        max_ttl_seconds: shown(max_ttl),
        statuses: statuses.iter().map(status).collect(),
        ttl_from: ttl_from.as_ref().map(|from| match from {
            TtlFrom::Header(name) => format!("header {name}"),
            TtlFrom::Json(pointer) => format!("json {pointer}"),
        }),
        jitter_percent: *jitter_percent,
        l1_seconds: shown(l1_ttl),
        l2_seconds: shown(l2_ttl),
        stale_while_revalidate_seconds: shown(stale_while_revalidate),
        stale_if_error_seconds: shown(stale_if_error),
        early_refresh: *early_refresh,
        store_despite: despite(*store_despite),
        set_cookie: format!("{set_cookie:?}"),
        retry_interval_seconds: seconds(*retry_interval),
    }
}

fn despite(StoreDespite { no_store, private, vary_any }: StoreDespite) -> Vec<String> {
    let all = [(no_store, "NoStore"), (private, "Private"), (vary_any, "VaryAny")];
    all.into_iter().filter(|(is_listed, _)| *is_listed).map(|(_, name)| name.to_owned()).collect()
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation =
        operation.id("explain").tag("cache").summary("Treatment of a request, and the reasons").description(
            "Evaluated by the code that serves requests, without contacting Redis, a source or the application.",
        );
    let operation = refuses::<400>(guarded(operation), "The body does not describe a request.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}
