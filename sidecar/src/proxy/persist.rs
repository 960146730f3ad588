//! Persisting of what a source returned (`persist` of a policy).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use larder_policy::{Values, policy::QuerySource};

use super::request::CacheRequest;
use crate::{
    body::{IncomingBody, SourceError},
    budget::{Kind, Reservation},
    store::slot::WRITTEN_COPIES,
};

/// Persists a response when its body is complete. Nothing waits for that, and a failure is only logged.
#[derive(Debug)]
pub(super) struct Persisting {
    request: Arc<CacheRequest>,
    statement: QuerySource,
    read: BytesMut,
    room: Reservation,
    /// Maximum length of a body that is persisted.
    limit: usize,
}

impl Persisting {
    /// Creates what persists the response to a request with this statement.
    pub(super) fn new(request: &CacheRequest, statement: &QuerySource) -> Self {
        Self {
            request: Arc::new(request.clone()),
            statement: statement.clone(),
            read: BytesMut::new(),
            room: Reservation::new(&request.store().budget, Kind::Responses),
            limit: usize::try_from(request.max_body()).unwrap_or(usize::MAX),
        }
    }

    /// Wraps a body whose frames pass on as they come, and which is persisted when it is complete.
    pub(super) fn wrap(self, body: IncomingBody) -> IncomingBody {
        IncomingBody::Source(PersistedBody { body, persisting: Some(self) }.boxed())
    }

    fn read(&mut self, data: &Bytes) -> bool {
        let fits = self.read.len() + data.len() <= self.limit;
        if fits && !self.room.grow_or_refuse(WRITTEN_COPIES * data.len() as u64) {
            return false;
        }
        if fits {
            self.read.extend_from_slice(data);
        } else {
            tracing::warn!(route = self.request.route.name, "a response is too large to be persisted");
        }
        fits
    }

    async fn persist(self) {
        let Self { request, statement, read, room: _held, .. } = self;
        let route = &request.route.name;
        let Some(source) = request.snapshot.source(&statement.source) else { return };
        let Ok(body) = std::str::from_utf8(&read) else {
            return tracing::warn!(route, "a response is not valid UTF-8 and is not persisted");
        };
        let values = Values { body: Some(body), ..request.values() };
        if let Err(error) = source.execute(&statement.query, &values).await {
            tracing::warn!(source = statement.source, route, %error, "a response was not persisted");
        }
    }
}

struct PersistedBody {
    body: IncomingBody,
    persisting: Option<Persisting>,
}

impl HttpBody for PersistedBody {
    type Data = Bytes;
    type Error = SourceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SourceError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let fits =
                    |persisting: &mut Persisting| frame.data_ref().is_none_or(|data| persisting.read(data));
                this.persisting.take_if(|persisting| !fits(persisting));
            }
            Some(Err(_)) => this.persisting = None,
            None => {}
        }
        if (frame.is_none() || this.body.is_end_stream())
            && let Some(persisting) = this.persisting.take()
        {
            tokio::spawn(persisting.persist());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Persisting begins with the end of the body, which must be polled for.
        self.persisting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
