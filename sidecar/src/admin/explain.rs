//! `POST /explain`: what would become of a request, and why.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc, time::Duration};

use aide::transform::TransformOperation;
use axum::{Json, body::Bytes, extract::State};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header::HOST};
use larder_policy::{
    Lifetimes, Route,
    lifetimes::{StoreDespite, TtlFrom},
    policy::Purges,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Number, json};

use super::{
    Admin,
    answer::{Answer, Standing, seconds},
    json::{Sent, Strict},
    key_text::KeyText,
    purging::Names,
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::{
    cache_status::Forward,
    gate::RawTarget,
    proxy::explain::{EndsHere, Explanation, InMemory, explain},
    serving::Serving,
};

/// How many headers a request may have.
const MOST_HEADERS: usize = 100;

/// A request as a client would send it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({
    "method": "GET",
    "url": "http://shop/api/users/1?x=1",
    "headers": {"accept-language": "de"},
}))]
pub(super) struct Described {
    /// Its method, in capitals.
    #[serde(default = "get")]
    #[schemars(regex(pattern = r"^[A-Z-]{1,32}$"))]
    method: String,
    /// Its URL as the client has it.
    #[schemars(regex(
        pattern = r"^https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/[^?#\x00-\x20\x7F]*)?([?][^#\x00-\x20\x7F]*)?$"
    ))]
    url: String,
    /// Its headers. `host` and `x-forwarded-proto` are the URL's where they are not given.
    #[serde(default)]
    #[schemars(
        extend(
            "maxProperties" = MOST_HEADERS,
            "propertyNames" = {"pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$"},
            "additionalProperties" = {"type": "string", "pattern": r"^[\t -~]*$"},
        )
    )]
    headers: BTreeMap<String, String>,
    /// Its body.
    #[serde(default)]
    body: String,
    /// The application's port that it is for, where the sidecar stands before several; the first where it is not said.
    // A number such as 80.0 is an integer in JSON Schema.
    #[serde(default)]
    #[schemars(with = "Option<NonZeroU16>")]
    port: Option<Number>,
}

fn get() -> String {
    "GET".to_owned()
}

impl Sent for Described {
    const SHAPE: &'static str =
        r#"{"method": "GET", "url": "http://shop/a?b=c", "headers": {"name": "value"}}"#;
}

/// What would become of a request.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Explained {
    /// The route; null if none takes it.
    route: Option<ShownRoute>,
    /// Why nothing stored answers it, whatever is stored, and nothing of its answer is stored: a reason as `Cache-Status` has
    /// it. Null if it is looked up.
    bypass: Option<String>,
    /// Why the sidecar responds to it by itself and nobody is asked: `admin` (it is under `admin.pathPrefix`), `connect` or
    /// `max-forwards`. Null if it does not.
    ends_here: Option<&'static str>,
    /// Of a write: what is stale when the application has carried it out, by the rules of `onWrite` and RFC 9111, section 4.4, as
    /// `/purge` takes it. Null of other requests.
    on_write: Option<Names>,
    /// The key of its answer; null without a route.
    key: Option<String>,
    /// Who is asked, in this order, until one answers: `l1`, `l2`, a source such as `postgres/catalog`, or `app`; and
    /// `last-known-good` if nobody else can.
    tiers: Vec<String>,
    /// What to purge its answer by: as `/purge` takes it. Each of the names does.
    purge: Option<Names>,
    /// What memory holds for it now; null if it is not looked up.
    l1: Option<ShownMemory>,
}

/// A route, as far as it decides what becomes of an answer.
#[derive(Debug, Serialize, JsonSchema)]
struct ShownRoute {
    /// Its name.
    name: String,
    /// Its place among the routes, from 0.
    index: usize,
    /// Its path; null in a sidecar without a policy, whose one route takes all.
    path: Option<String>,
    /// The values of the path's parameters, by name.
    parameters: BTreeMap<String, String>,
    /// How long answers live.
    lifetimes: ShownLifetimes,
    /// Time without a sign of life after which a request to the origin is no longer waited for by others for the same.
    collapse_timeout_seconds: f64,
    /// Whether answers are wrapped, and say where they come from.
    envelope: bool,
}

/// How long answers live. What is null is left to the answer's own header fields.
#[derive(Debug, Serialize, JsonSchema)]
struct ShownLifetimes {
    /// How long they are fresh.
    ttl_seconds: Option<f64>,
    /// How long they are fresh at most, where they say so themselves.
    max_ttl_seconds: Option<f64>,
    /// Which statuses are stored, and how long these are fresh where that differs. None: 200 alone where the route has a TTL,
    /// else those that say so themselves.
    statuses: Vec<ShownStatus>,
    /// Where in an answer its own TTL is: `header NAME` or `json POINTER`.
    ttl_from: Option<String>,
    /// By how many hundredths TTLs are shortened at most, so that they end at different times.
    jitter_percent: u8,
    /// How long they stay in memory, where that is shorter.
    l1_seconds: Option<f64>,
    /// How long they stay in Redis, where that is shorter.
    l2_seconds: Option<f64>,
    /// How long past their life they are served while they are renewed.
    stale_while_revalidate_seconds: Option<f64>,
    /// How long past their life they are served where nobody can give a better one.
    stale_if_error_seconds: Option<f64>,
    /// Whether hot ones are renewed before their life ends.
    early_refresh: bool,
    /// What is stored although its header fields forbid it: `NoStore`, `Private`, `SetCookie` or `VaryAny`, as in the policy.
    store_despite: Vec<&'static str>,
    /// How long what stands in for a failed answer is served before the failed place is asked again.
    retry_interval_seconds: f64,
}

/// A status, and how long its answers are fresh.
#[derive(Debug, Serialize, JsonSchema)]
struct ShownStatus {
    /// The status.
    status: u16,
    /// Null: as those of every status.
    ttl_seconds: Option<f64>,
}

/// What memory holds for a request.
#[derive(Debug, Serialize, JsonSchema)]
struct ShownMemory {
    /// Whether that answers it.
    hit: bool,
    /// Why it does not, as `fwd` of `Cache-Status` has it.
    forward: Option<String>,
    /// Whether the answer that there is would be served to a client that asks for nothing special, and why.
    standing: Option<Standing>,
    /// The answer that there is.
    answer: Option<Answer>,
}

pub(super) async fn explained(
    _: Token,
    State(admin): State<Arc<Admin>>,
    Strict(described): Strict<Described>,
) -> Result<Json<Explained>, Refused> {
    let target = target(&admin.targets, described.port.as_ref().map(port).transpose()?)?;
    let request = described.request()?;
    let serving = Arc::clone(&admin.config.serving());
    let explanation = explain(&serving, target, request);
    Ok(Json(Explained::new(&serving, explanation)))
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
            "the application has no port {port} here: take one of {targets:?}"
        ))),
    }
}

impl Described {
    fn request(self) -> Result<Request<Bytes>, Refused> {
        let Self { method, url, headers, body, port: _ } = self;
        let is_method = matches!(method.len(), 1..=32)
            && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        let method = Method::from_bytes(method.as_bytes()).ok().filter(|_| is_method);
        let method = method.ok_or_else(|| Refused::malformed("write the method in capitals, such as GET"))?;
        let parts = taken_apart(&url)
            .and_then(|(scheme, authority, target)| Some((scheme, authority, RawTarget::read(&target)?)));
        let (scheme, authority, (target, raw_target)) = parts.ok_or_else(|| {
            Refused::malformed(format!("{url:?} is not a URL: write one such as http://shop/a?b=c, encoded"))
        })?;
        if headers.len() > MOST_HEADERS {
            return Err(Refused::malformed(format!("send at most {MOST_HEADERS} headers")));
        }
        let mut fields = HeaderMap::new();
        for (name, value) in &headers {
            let field = HeaderName::from_bytes(name.as_bytes()).ok().filter(|_| name.len() <= 256);
            let is_text = value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
            let field = field.zip(HeaderValue::from_str(value).ok().filter(|_| is_text));
            let (name, value) =
                field.ok_or_else(|| Refused::malformed(format!("{name:?}: {value:?} is not a header")))?;
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

impl Explained {
    fn new(serving: &Serving, explanation: Explanation) -> Self {
        let Explanation { route, parameters, path, ends_here, purges, passes, key, tags, asked, memory } =
            explanation;
        let route = route.map(|index| (index, &serving.policy.routes()[index]));
        let lifetimes = route.map(|(_, route)| &route.lifetimes);
        let purge = key.as_deref().map(|key| {
            let short = KeyText::parse(key).map(|key| key.short());
            Names::new([key.to_owned()].into_iter().chain(short).collect(), vec![path], tags)
        });
        Self {
            route: route.map(|(index, route)| ShownRoute::new(index, route, parameters)),
            bypass: passes.map(|reason| match reason {
                Forward::Bypass(bypass) => bypass.as_str().to_owned(),
                other => other.as_str().to_owned(),
            }),
            ends_here: ends_here.map(EndsHere::as_str),
            on_write: purges.map(|Purges { tags, paths }| Names::new(vec![], paths, tags)),
            key,
            tiers: asked,
            purge,
            l1: memory.map(|InMemory { forward, entry }| ShownMemory {
                hit: forward.is_none(),
                forward: forward.map(|reason| reason.as_str().to_owned()),
                standing: entry.as_ref().map(|entry| Standing::of(entry, serving, lifetimes)),
                answer: entry.as_ref().map(|entry| Answer::of(entry, lifetimes)),
            }),
        }
    }
}

impl ShownRoute {
    fn new(index: usize, route: &Route, parameters: Vec<(String, String)>) -> Self {
        Self {
            name: route.name.clone(),
            index,
            path: route.path.as_ref().map(ToString::to_string),
            parameters: parameters.into_iter().collect(),
            lifetimes: (&route.lifetimes).into(),
            collapse_timeout_seconds: seconds(route.collapse_timeout),
            envelope: route.envelope,
        }
    }
}

impl From<&Lifetimes> for ShownLifetimes {
    fn from(lifetimes: &Lifetimes) -> Self {
        let Lifetimes {
            ttl,
            max_ttl,
            statuses,
            stale_while_revalidate,
            stale_if_error,
            store_despite,
            ttl_from,
            jitter_percent,
            in_l1,
            in_l2,
            early_refresh,
            retry_interval,
        } = lifetimes;
        let shown = |duration: &Option<Duration>| duration.map(seconds);
        let status = |(status, ttl): &(http::StatusCode, Option<Duration>)| ShownStatus {
            status: status.as_u16(),
            ttl_seconds: shown(ttl),
        };
        Self {
            ttl_seconds: shown(ttl),
            max_ttl_seconds: shown(max_ttl),
            statuses: statuses.iter().map(status).collect(),
            ttl_from: ttl_from.as_ref().map(|from| match from {
                TtlFrom::Header(name) => format!("header {name}"),
                TtlFrom::Json(pointer) => format!("json {pointer}"),
            }),
            jitter_percent: *jitter_percent,
            l1_seconds: shown(in_l1),
            l2_seconds: shown(in_l2),
            stale_while_revalidate_seconds: shown(stale_while_revalidate),
            stale_if_error_seconds: shown(stale_if_error),
            early_refresh: *early_refresh,
            store_despite: despite(*store_despite),
            retry_interval_seconds: seconds(*retry_interval),
        }
    }
}

fn despite(StoreDespite { no_store, private, set_cookie, vary_any }: StoreDespite) -> Vec<&'static str> {
    let all = [(no_store, "NoStore"), (private, "Private"), (set_cookie, "SetCookie"), (vary_any, "VaryAny")];
    all.into_iter().filter_map(|(is_listed, name)| is_listed.then_some(name)).collect()
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation =
        operation.id("explain").tag("cache").summary("What would become of a request, and why").description(
            "By the same code that answers requests. Nobody is asked for anything, Redis included.",
        );
    let operation = refuses::<400>(guarded(operation), "The body does not describe a request.");
    refuses::<413>(operation, "The body is longer than 1 MiB.")
}
