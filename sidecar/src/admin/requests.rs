//! `GET /requests`: requests as they are served.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aide::{
    OperationInput, OperationOutput,
    generate::GenContext,
    openapi::{MediaType, Operation, Response as ResponseObject, SchemaObject},
    transform::TransformOperation,
};
use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, Query, State},
    response::{IntoResponse, Response},
};
use futures::{Stream, stream};
use http::{StatusCode, header, request::Parts};
use larder_api::admin::{REQUESTS_MEDIA_TYPE, RequestsQuery, ServedRequest};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Admin,
    refused::{Refused, refuses},
    token::{Token, guarded},
};
use crate::{
    stats::Outcome,
    tail::{Filter, INTERVAL, MAX_READERS, Tail},
};

/// Time after which an empty line shows that the stream goes on, and that its reader does.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a stream ends, so that a token that was replaced does not serve for ever.
const MAX_DURATION: Duration = Duration::from_secs(3600);

/// The query of a request, checked.
pub(super) struct CheckedFilter(Filter);

impl<S: Send + Sync> FromRequestParts<S> for CheckedFilter {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let query = Query::<RequestsQuery>::from_request_parts(parts, state).await;
        let Query(query) = query.map_err(|error| Refused::malformed(error.body_text()))?;
        filter(query).map(Self)
    }
}

impl OperationInput for CheckedFilter {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        Query::<RequestsQuery>::operation_input(context, operation);
    }
}

fn filter(query: RequestsQuery) -> Result<Filter, Refused> {
    let RequestsQuery { route, outcome, status, path, sample, query: shows_query } = query;
    let outcome = outcome.map(|word| {
        let known = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word);
        let words = || Outcome::ALL.map(Outcome::as_str).join(", ");
        known.ok_or_else(|| Refused::malformed(format!("outcome must be one of {}", words())))
    });
    let status = status.map(|status| {
        status.parse().map_err(|error| Refused::malformed(format!("status is malformed: {error}")))
    });
    let (outcome, status) = (outcome.transpose()?, status.transpose()?);
    Ok(Filter { route, outcome, status, path, sample, shows_query })
}

/// Shows requests until the reader leaves.
pub(super) async fn requests(
    _: Token,
    State(admin): State<Arc<Admin>>,
    CheckedFilter(filter): CheckedFilter,
) -> Result<Lines, Refused> {
    let tail = admin.telemetry.tails.open(filter).ok_or_else(|| {
        let detail =
            format!("there are {MAX_READERS} readers, or no memory for another one: try again later");
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    Ok(Lines(tail))
}

/// Requests, each on a line in JSON.
pub(super) struct Lines(Tail);

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, REQUESTS_MEDIA_TYPE), (header::CACHE_CONTROL, "no-store")];
        (headers, Body::from_stream(pieces(self.0))).into_response()
    }
}

fn pieces(tail: Tail) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let began = Instant::now();
    stream::unfold((tail, ticks, began), move |(mut tail, mut ticks, last)| async move {
        loop {
            let now = ticks.tick().await;
            if now.duration_since(began) > MAX_DURATION {
                return None;
            }
            let mut lines = tail.take();
            if lines.is_empty() && now.duration_since(last) > HEARTBEAT_INTERVAL {
                lines.push(b'\n');
            }
            if !lines.is_empty() {
                return Some((Ok(lines.into()), (tail, ticks, now)));
            }
        }
    })
}

impl OperationOutput for Lines {
    type Inner = ServedRequest;

    fn operation_response(context: &mut GenContext, _: &mut Operation) -> Option<ResponseObject> {
        let json_schema = context.schema.subschema_for::<ServedRequest>();
        let schema = Some(SchemaObject { json_schema, external_docs: None, example: None });
        let content = [(REQUESTS_MEDIA_TYPE.to_owned(), MediaType { schema, ..MediaType::default() })];
        Some(ResponseObject { content: content.into_iter().collect(), ..ResponseObject::default() })
    }
}

pub(super) fn about(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = operation
        .id("requests")
        .tag("cache")
        .summary("Requests as they are served")
        .description(
            "A stream without an end: each line is a request in JSON, or empty, which shows that the stream goes on. A reader \
             who does not keep up misses requests, and is told how many (`dropped`). The stream ends after an hour, and when \
             the connection makes room for others. Not available under the application's address.",
        )
        .response_with::<200, Lines, _>(|response| response.description("Requests, each on a line."));
    let operation = refuses::<400>(guarded(operation), "A filter is malformed.");
    refuses::<503>(operation, "There are too many readers.")
}
