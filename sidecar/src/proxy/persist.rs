//! Keeping what an HTTP source returned.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use larder_policy::{Values, policy::QuerySource};

use super::{keep::WRITTEN_COPIES, question::Question};
use crate::{
    body::{Network, SourceError},
    budget::{Kind, Reservation},
    sources::Source,
};

/// What keeps an answer when it is whole. Nobody waits for that, and nobody learns if it fails.
#[derive(Debug)]
pub(super) struct Keeping {
    question: Arc<Question>,
    persist: QuerySource,
    read: BytesMut,
    room: Reservation,
    /// A longer one is not kept.
    limit: usize,
}

impl Question {
    pub(super) fn keeping(&self, persist: &QuerySource) -> Keeping {
        let limit = usize::try_from(self.serving.policy.l1.max_object_size.0).unwrap_or(usize::MAX);
        let room = Reservation::new(&self.serving.budget, Kind::Responses);
        Keeping {
            question: Arc::new(self.clone()),
            persist: persist.clone(),
            read: BytesMut::new(),
            room,
            limit,
        }
    }
}

impl Keeping {
    /// A body of which every byte passes on as it comes, and which is kept when it is whole.
    pub(super) fn body(
        body: impl HttpBody<Data = Bytes, Error = SourceError> + Send + Sync + Unpin + 'static,
        keeping: Option<Self>,
    ) -> Network {
        Network::Source(match keeping {
            Some(keeping) => Kept { body, keeping: Some(keeping) }.boxed(),
            None => body.boxed(),
        })
    }

    fn read(&mut self, data: &Bytes) -> bool {
        let fits = self.read.len() + data.len() <= self.limit;
        if fits && !self.room.grow(WRITTEN_COPIES * data.len() as u64) {
            self.room.refuse();
            return false;
        }
        if fits {
            self.read.extend_from_slice(data);
        } else {
            tracing::warn!(route = self.question.route().name, "an answer is too large to be kept");
        }
        fits
    }

    async fn keep(self) {
        let Self { question, persist, read, room: _held, .. } = self;
        let Some(Source::Postgres(source)) = question.serving.source(&persist.source) else { return };
        let Ok(body) = std::str::from_utf8(&read) else {
            return tracing::warn!(route = question.route().name, "an answer is no text, and is not kept");
        };
        let values = Values { body: Some(body), ..question.values() };
        if let Err(error) = source.execute(&persist.query, &values).await {
            let (source, route) = (&persist.source, &question.route().name);
            tracing::warn!(source, route, %error, "an answer was not kept");
        }
    }
}

struct Kept<B> {
    body: B,
    keeping: Option<Keeping>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Kept<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let fits = |keeping: &mut Keeping| frame.data_ref().is_none_or(|data| keeping.read(data));
                this.keeping.take_if(|keeping| !fits(keeping));
            }
            Some(Err(_)) => this.keeping = None,
            None => {}
        }
        if (frame.is_none() || this.body.is_end_stream())
            && let Some(keeping) = this.keeping.take()
        {
            tokio::spawn(keeping.keep());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Until it was told to be kept it is not over.
        self.keeping.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
