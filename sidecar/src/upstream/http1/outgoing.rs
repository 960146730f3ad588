//! Requests on their way to the application.

use std::{
    io::{self, IoSlice, Write},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST,
        MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
};
use http_body::Body;
use http_body_util::Either;
use tokio::io::AsyncWrite;

use crate::{
    headers::write_line,
    http1_guard::{RawTarget, write_fields},
    upstream::{Abandoned, ExchangeError, MAX_COPIED, RequestBody, UpstreamError},
};

/// Trailer fields that are not sent, because they frame, route or describe the message (RFC 9110, section 6.5.1).
const NO_TRAILERS: [HeaderName; 12] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Request extension: receiver of the interim responses (RFC 9110, section 15.2) to the request, except for 101.
#[derive(Clone)]
pub struct OnInterim(Arc<Receive>);

type Receive = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

impl OnInterim {
    /// Calls `receive` for each interim response.
    pub fn new(receive: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }
}

/// A request as far as it has not been written.
pub(super) struct Outgoing {
    /// Bytes that are written first: the head, the line before a chunk, short pieces, trailers.
    text: Vec<u8>,
    /// A piece of the body that follows the text, and the end of its chunk.
    piece: Bytes,
    tail: &'static [u8],
    /// Number of bytes of these three that are written.
    written: usize,
    /// True if a piece of the body, or its end, is among them.
    has_piece: bool,
    /// The rest of the body, until it has ended.
    body: Option<RequestBody>,
    framing: RequestFraming,
    /// True once any byte was written.
    has_begun: bool,
    /// Failure of the connection, after which nothing more is written.
    failure: Option<io::Error>,
    pub(super) is_head: bool,
    pub(super) may_be_repeated: bool,
    abandoned: Option<Abandoned>,
    on_interim: Option<OnInterim>,
}

enum RequestFraming {
    /// Number of bytes left.
    Length(u64),
    /// Chunks, and the trailer fields that may follow them.
    Chunked(Vec<HeaderName>),
}

impl Outgoing {
    pub(super) fn new(request: Request<RequestBody>) -> Self {
        let (mut head, body) = request.into_parts();
        let framing = frame(&mut head.headers, &body);
        let at_hand = matches!(body, Either::Right(_));
        let text = match head.extensions.get::<RawTarget>() {
            Some(RawTarget(target)) => text_of(&head.method, target, &head.headers),
            None => text_of(&head.method, origin_form(&head.uri).as_bytes(), &head.headers),
        };
        Self {
            text,
            piece: Bytes::new(),
            tail: b"",
            written: 0,
            has_piece: false,
            body: (!body.is_end_stream()).then_some(body),
            framing,
            has_begun: false,
            failure: None,
            is_head: head.method == Method::HEAD,
            may_be_repeated: at_hand && head.method.is_idempotent(),
            abandoned: head.extensions.remove(),
            on_interim: head.extensions.remove(),
        }
    }

    /// Checks that the request was not cancelled.
    pub(super) fn check(&self) -> Result<(), UpstreamError> {
        Abandoned::check(self.abandoned.as_ref())
    }

    /// Passes an interim response on.
    pub(super) fn on_interim(&self, status: StatusCode, headers: &HeaderMap) {
        if let Some(OnInterim(receive)) = &self.on_interim {
            receive(status, headers);
        }
    }

    /// Returns true if the application may have seen a part of the request.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Returns true if nothing more will be written.
    pub(super) fn has_ended(&self) -> bool {
        self.failure.is_some() || self.body.is_none() && self.left() == 0
    }

    /// Takes the error of the connection that kept the request from being written completely.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Returns true if the request was written completely.
    pub(super) fn was_written(&self) -> bool {
        self.has_ended() && self.failure.is_none()
    }

    /// Goes back to the beginning of a request that may be repeated.
    pub(super) fn rewind(&mut self) {
        // A body in memory is one piece at most, which is still there.
        (self.written, self.has_begun, self.failure) = (0, false, None);
    }

    /// Takes what is left of the request.
    pub(super) fn take_rest(&mut self) -> Self {
        let framing = mem::replace(&mut self.framing, RequestFraming::Length(0));
        Self {
            text: mem::take(&mut self.text),
            piece: mem::take(&mut self.piece),
            tail: mem::take(&mut self.tail),
            written: mem::take(&mut self.written),
            body: self.body.take(),
            framing,
            failure: None,
            abandoned: None,
            on_interim: None,
            ..*self
        }
    }

    /// Writes as much as there is. After a failure of the connection, the application may still have responded.
    ///
    /// # Errors
    /// If the client's body broke off, or if nothing could be written.
    pub(super) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), ExchangeError>> {
        while !self.has_ended() {
            let waits_for_body = self.poll_piece(context)?.is_pending();
            if self.left() == 0 {
                if waits_for_body {
                    return Poll::Pending;
                }
                continue;
            }
            match ready!(self.poll_write(context, writer)) {
                Ok(count) => {
                    self.has_begun = true;
                    self.written += count;
                    if self.left() == 0 && self.body.is_some() {
                        self.text.clear();
                        (self.piece, self.tail, self.written) = (Bytes::new(), b"", 0);
                        self.has_piece = false;
                    }
                }
                Err(error) if !self.has_begun => return Poll::Ready(Err(error.into())),
                Err(error) => {
                    self.failure = Some(error);
                    self.body = None;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn left(&self) -> usize {
        self.text.len() + self.piece.len() + self.tail.len() - self.written
    }

    fn poll_write(
        &self,
        context: &mut Context<'_>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<usize>> {
        let mut skipped = self.written;
        let [text, piece, tail] = [&self.text[..], &self.piece[..], self.tail].map(|part| {
            let skips = skipped.min(part.len());
            skipped -= skips;
            &part[skips..]
        });
        let written = if piece.is_empty() && tail.is_empty() {
            ready!(Pin::new(writer).poll_write(context, text))
        } else {
            let parts = [text, piece, tail].map(IoSlice::new);
            let from = usize::from(text.is_empty());
            ready!(Pin::new(writer).poll_write_vectored(context, &parts[from..]))
        };
        Poll::Ready(match written {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        })
    }

    /// Takes the next piece of the body, unless one is there or the body has ended.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        while let Some(body) = self.body.as_mut().filter(|_| !self.has_piece) {
            let frame = ready!(Pin::new(&mut *body).poll_frame(context));
            let is_last = body.is_end_stream();
            match frame.transpose().map_err(ExchangeError::Upload)? {
                None => self.end_body(None)?,
                Some(frame) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {
                        if is_last {
                            self.end_body(None)?;
                        }
                    }
                    Ok(data) => self.add(data, is_last)?,
                    Err(frame) => self.end_body(frame.into_trailers().ok())?,
                },
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Adds a piece of the body.
    fn add(&mut self, mut data: Bytes, is_last: bool) -> Result<(), ExchangeError> {
        let has_ended = match &mut self.framing {
            RequestFraming::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                if is_last && *left > 0 {
                    return Err(ExchangeError::ShortUpload);
                }
                *left == 0
            }
            RequestFraming::Chunked(_) => {
                let _ = write!(self.text, "{:x}\r\n", data.len());
                self.tail = if is_last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                is_last
            }
        };
        self.piece = data;
        if self.piece.len() <= MAX_COPIED {
            self.text.extend_from_slice(&mem::take(&mut self.piece));
            self.text.extend_from_slice(mem::take(&mut self.tail));
        }
        self.has_piece = true;
        if has_ended {
            self.body = None;
        }
        Ok(())
    }

    /// Adds the end of the body.
    fn end_body(&mut self, trailers: Option<HeaderMap>) -> Result<(), ExchangeError> {
        match &self.framing {
            RequestFraming::Length(0) => {}
            RequestFraming::Length(_) => return Err(ExchangeError::ShortUpload),
            RequestFraming::Chunked(announced) => {
                self.text.extend_from_slice(b"0\r\n");
                let may_follow = |name: &HeaderName| announced.contains(name) && !NO_TRAILERS.contains(name);
                let trailers = trailers.unwrap_or_default();
                let fields = trailers.iter().filter(|(name, _)| may_follow(name));
                fields.for_each(|(name, value)| {
                    write_line(&mut self.text, name.as_str().as_bytes(), value.as_bytes())
                });
                self.text.extend_from_slice(b"\r\n");
            }
        }
        self.has_piece = true;
        self.body = None;
        Ok(())
    }
}

/// Completes the fields that frame the body, and returns its framing (RFC 9112, section 6).
fn frame(headers: &mut HeaderMap, body: &RequestBody) -> RequestFraming {
    if body.is_end_stream() {
        headers.remove(TRANSFER_ENCODING);
        if !states_only(headers, b"0") {
            headers.remove(CONTENT_LENGTH);
        }
        return RequestFraming::Length(0);
    }
    let Some(length) = body.size_hint().exact() else {
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let announced = headers.get_all(TRAILER).iter().filter_map(|line| line.to_str().ok());
        let names = announced.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok());
        return RequestFraming::Chunked(names.collect());
    };
    headers.remove(TRANSFER_ENCODING);
    let stated = HeaderValue::from(length);
    if !states_only(headers, stated.as_bytes()) {
        headers.insert(CONTENT_LENGTH, stated);
    }
    RequestFraming::Length(length)
}

/// Returns true if one line states the length, and this one.
fn states_only(headers: &HeaderMap, length: &[u8]) -> bool {
    let mut stated = headers.get_all(CONTENT_LENGTH).iter();
    stated.next().is_some_and(|stated| stated.as_bytes() == length) && stated.next().is_none()
}

/// Returns the target in origin form, or `*` (RFC 9112, section 3.2): the path and query as the client sent them.
fn origin_form(uri: &Uri) -> std::borrow::Cow<'_, str> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    if target.starts_with(['/', '*']) { target.into() } else { format!("/{target}").into() }
}

fn text_of(method: &Method, target: &[u8], headers: &HeaderMap) -> Vec<u8> {
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let mut text = Vec::with_capacity(method.as_str().len() + target.len() + fields + 14);
    text.extend_from_slice(method.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(target);
    text.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(&mut text, headers);
    text.extend_from_slice(b"\r\n");
    text
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[test]
    fn stated_length_is_that_of_the_body() {
        for (stated, body, written) in [
            (&["5"][..], "", ""),
            (&["0"], "", "content-length: 0\r\n"),
            (&[], "", ""),
            (&["3"], "abc", "content-length: 3\r\n"),
            (&["2"], "abc", "content-length: 3\r\n"),
            (&["3", "3"], "abc", "content-length: 3\r\n"),
            (&["+3"], "abc", "content-length: 3\r\n"),
        ] {
            let mut request = Request::new(Either::Right(Full::new(Bytes::from(body))));
            for &length in stated {
                request.headers_mut().append(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            let text = String::from_utf8(Outgoing::new(request).text).unwrap();
            assert_eq!(text, format!("GET / HTTP/1.1\r\n{written}\r\n"), "{stated:?} {body:?}");
        }
    }
}
