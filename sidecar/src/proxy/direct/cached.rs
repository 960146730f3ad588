//! A request of a route that the guard serves: from memory, Redis, a source or the application, through the stages of the general
//! path.

use std::{
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header::CONNECTION};
use http_body::Body as _;
use larder_policy::Fields as _;

use super::{MAX_BATCH, request_head::ForApplication, response_head};
use crate::{
    body::Body,
    cache_key::PrimaryKey,
    head_room::{self, HeadRoom},
    headers,
    http1_guard::{Exchange, Handoff, Head, Part},
    proxy::{
        GuardReply, Proxy, Served, client_fields::ClientFields, received::ReceivedReply,
        request::GuardedRequest,
    },
    snapshot::Snapshot,
    tail::Arrival,
    upstream::{BodyFraming, LAST_CHUNK, MAX_COPIED, write_chunk},
    work::Work,
};

/// An exchange whose response comes from the stages of a route.
pub struct CachedExchange {
    proxy: Arc<Proxy>,
    snapshot: Arc<Snapshot>,
    handoff: Arc<Handoff>,
    stage: Stage,
    is_head: bool,
    /// True if the client's connection ends after the response.
    ends: bool,
    arrival: Arrival,
    _work: Work,
    /// Memory of a large head.
    _room: Option<HeadRoom>,
}

enum Stage {
    /// The response is awaited.
    Serving(BoxFuture<'static, Box<Served>>),
    /// The response is there, and nothing of it was written.
    Served(Box<Served>),
    /// The body, and the number of bytes that are left of it; chunked if that is not known.
    Body(Body, Option<u64>),
    Ended,
}

impl fmt::Debug for CachedExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Serving(_) => "Serving",
            Stage::Served(_) => "Served",
            Stage::Body(..) => "Body",
            Stage::Ended => "Ended",
        };
        f.debug_struct("CachedExchange").field("stage", &stage).finish_non_exhaustive()
    }
}

/// A request that is served.
pub(super) struct Asked {
    pub(super) served: BoxFuture<'static, Box<Served>>,
    pub(super) is_head: bool,
    /// True if the client's connection ends after the response.
    pub(super) ends: bool,
    pub(super) arrival: Arrival,
    pub(super) work: Work,
}

impl CachedExchange {
    pub(super) fn new(
        proxy: &Arc<Proxy>,
        snapshot: Arc<Snapshot>,
        handoff: &Arc<Handoff>,
        asked: Asked,
    ) -> Self {
        let Asked { served, is_head, ends, arrival, work } = asked;
        let (proxy, handoff) = (Arc::clone(proxy), Arc::clone(handoff));
        let stage = Stage::Serving(served);
        Self { proxy, snapshot, handoff, stage, is_head, ends, arrival, _work: work, _room: None }
    }

    /// Waits for the response.
    fn poll_served(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Stage::Serving(serving) = &mut self.stage {
            self.stage = Stage::Served(ready!(serving.as_mut().poll(context)));
        }
        Poll::Ready(())
    }

    /// Writes the head of the response.
    fn begin_response(&mut self, output: &mut Vec<u8>, mut served: Box<Served>) {
        self.ends |= self.proxy.finish(&self.snapshot, &mut served, &self.arrival);
        let Served { response, reply, .. } = &mut *served;
        let reply = reply.take();
        if let Some(GuardReply::Stored(stored)) = reply {
            let rest = stored.write(output, self.ends);
            let length = rest.len() as u64;
            self.stage = Stage::Body(Body::full(rest), Some(length));
            return;
        }
        self._room = head_room::take(response);
        // The rest of the response stays where it is.
        let body = mem::replace(response.body_mut(), Body::empty());
        let length = body.size_hint().exact();
        let has_no_body =
            self.is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let framing = match length {
            Some(length) => BodyFraming::Length(length),
            None if has_no_body => BodyFraming::Length(0),
            None => BodyFraming::Chunked,
        };
        match reply {
            Some(GuardReply::Received(ReceivedReply { fields, cache_status })) => {
                output.reserve(fields.as_bytes().len() + headers::USUAL_ADDED);
                response_head::write_fields(output, response, &*fields, framing, self.is_head, self.ends);
                cache_status.write_to(output);
                output.extend_from_slice(b"\r\n");
            }
            _ => response_head::write(output, response, framing, self.is_head, self.ends),
        }
        self.stage = Stage::Body(body, if has_no_body { Some(0) } else { length });
    }

    /// Appends the pieces of the body that are at hand.
    fn poll_pieces(&mut self, context: &mut Context<'_>, output: &mut Vec<u8>) -> Poll<io::Result<Part>> {
        let Stage::Body(body, left) = &mut self.stage else { return Poll::Pending };
        let start = output.len();
        loop {
            if *left == Some(0) || body.is_end_stream() {
                return Poll::Ready(self.end(output));
            }
            let frame = match Pin::new(&mut *body).poll_frame(context) {
                Poll::Ready(Some(frame)) => frame.map_err(broken_off)?,
                Poll::Ready(None) => return Poll::Ready(self.end(output)),
                Poll::Pending if output.len() > start => return Poll::Ready(Ok(Part::More(Bytes::new()))),
                Poll::Pending => return Poll::Pending,
            };
            // The client did not ask for trailers.
            let Some(piece) = frame.into_data().ok().filter(|piece| !piece.is_empty()) else { continue };
            let Some(left) = left else {
                write_chunk(output, &piece);
                if output.len() - start >= MAX_BATCH {
                    return Poll::Ready(Ok(Part::More(Bytes::new())));
                }
                continue;
            };
            *left = left.checked_sub(piece.len() as u64).ok_or_else(|| broken_off("it is too long"))?;
            if piece.len() > MAX_COPIED {
                let is_last = *left == 0;
                return Poll::Ready(Ok(if is_last { self.last(piece) } else { Part::More(piece) }));
            }
            output.extend_from_slice(&piece);
            if output.len() - start >= MAX_BATCH && *left > 0 {
                return Poll::Ready(Ok(Part::More(Bytes::new())));
            }
        }
    }

    fn end(&mut self, output: &mut Vec<u8>) -> io::Result<Part> {
        match self.stage {
            Stage::Body(_, Some(1..)) => return Err(broken_off("it is too short")),
            Stage::Body(_, None) => output.extend_from_slice(LAST_CHUNK),
            _ => {}
        }
        Ok(self.last(Bytes::new()))
    }

    fn last(&mut self, piece: Bytes) -> Part {
        self.stage = Stage::Ended;
        Part::Last(piece, self.ends)
    }
}

fn broken_off(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string())
}

impl Exchange for Box<CachedExchange> {
    fn prepare(&mut self, context: &mut Context<'_>) {
        let _ = self.poll_served(context);
    }

    fn poll(&mut self, context: &mut Context<'_>, output: &mut Vec<u8>) -> Poll<io::Result<Part>> {
        if matches!(self.stage, Stage::Body(..) | Stage::Ended) {
            return self.poll_pieces(context, output);
        }
        let is_served = self.poll_served(context).is_ready();
        if !is_served {
            self.handoff.wake_for_interim(context.waker());
        }
        self.handoff.take_interim(output);
        if !is_served {
            return Poll::Pending;
        }
        if let Stage::Served(served) = mem::replace(&mut self.stage, Stage::Ended) {
            self.begin_response(output, served);
        }
        match self.poll_pieces(context, output)? {
            Poll::Ready(part) => Poll::Ready(Ok(part)),
            Poll::Pending => Poll::Ready(Ok(Part::More(Bytes::new()))),
        }
    }
}

/// Returns a request as the stages read it, without the fields of its connection; `None` if it has a value or a target that they can't.
pub(super) fn request_of(
    method: Method,
    head: &Head<'_>,
    for_application: ForApplication,
    key: Option<PrimaryKey>,
) -> Option<GuardedRequest> {
    let ForApplication { text, target, lines } = for_application;
    let text = Bytes::from(text);
    let uri = Uri::from_maybe_shared(text.slice(target)).ok()?;
    let fields = match lines {
        Some(lines) => ClientFields::of_lines(text.slice(lines)),
        None => map_of(head)?.into(),
    };
    Some(GuardedRequest { method, uri, fields, text, key })
}

/// Returns the lines of a head without `Connection`.
fn map_of(head: &Head<'_>) -> Option<HeaderMap> {
    let mut fields = HeaderMap::with_capacity(head.lines.lines().count());
    for (name, value) in head.lines.lines() {
        let name = HeaderName::from_bytes(name).ok()?;
        if name != CONNECTION {
            fields.append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    Some(fields)
}
