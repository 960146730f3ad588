//! Requests of a client, and the trailers of their bodies.

use std::ops::Range;

use bytes::{Buf, BytesMut};
use larder_policy::digest;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    ErrorCode, Http2Guard, Http2Responder, MAX_BODY, MAX_KEPT_BYTES, Next,
    frame::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, HEAD, HEADERS, MAX_31, MAX_PAYLOAD, PADDED,
        PRIORITY, append_block, u32_at,
    },
    hpack::{self, HpackError},
    interim::STREAM_FIELD,
};

/// Maximum number of frames that continue a header block without ending it, as hyper limits it.
const MAX_CONTINUATIONS: usize = 5;
/// Length of the priority in a frame.
const PRIORITY_LENGTH: usize = 5;

/// The parts of the payload of a frame that begins a header block.
struct Parts {
    priority: Range<usize>,
    fragment: Range<usize>,
}

impl Parts {
    /// Reads the payload of a frame (RFC 9113, section 6.2).
    fn read(head: FrameHead, payload: &[u8]) -> Result<Self, ErrorCode> {
        let (mut start, mut end) = (0, payload.len());
        if head.has(PADDED) {
            let padding = usize::from(*payload.first().ok_or(ErrorCode::FrameSize)?);
            start = 1;
            end = end.checked_sub(padding).filter(|end| start <= *end).ok_or(ErrorCode::Protocol)?;
        }
        let priority = if head.has(PRIORITY) { start..start + PRIORITY_LENGTH } else { start..start };
        if priority.end > end {
            return Err(if head.has(PADDED) { ErrorCode::Protocol } else { ErrorCode::FrameSize });
        }
        Ok(Self { fragment: priority.end..end, priority })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> Http2Guard<IO, R> {
    /// Reads a header block, and responds to it from memory or gives it to hyper.
    pub(super) fn next_headers(&mut self, head: FrameHead, is_answered: bool) -> Result<Next, ErrorCode> {
        if !self.settings.are_settled() {
            return Ok(Next::Unsettled);
        }
        if self.is_full() {
            return Ok(Next::Full);
        }
        if head.stream.is_multiple_of(2) {
            return Err(ErrorCode::Protocol);
        }
        if is_answered {
            return Err(ErrorCode::StreamClosed);
        }
        let end = self.end_of_block(head)?;
        if self.input.len() < end {
            return Ok(Next::Incomplete);
        }
        let payload = &self.input[HEAD..HEAD + head.length];
        let Parts { priority, fragment } = Parts::read(head, payload)?;
        let decoded = if head.has(END_HEADERS) {
            self.decoder.decode(&payload[fragment], &mut self.list)
        } else {
            self.block.clear();
            self.block.extend_from_slice(&payload[fragment]);
            let mut rest = &self.input[HEAD + head.length..end];
            while let Some(next) = FrameHead::read(rest) {
                let (frame, after) = rest.split_at(HEAD + next.length);
                self.block.extend_from_slice(&frame[HEAD..]);
                rest = after;
            }
            self.decoder.decode(&self.block, &mut self.list)
        };
        decoded.map_err(|error| match error {
            HpackError::Malformed => ErrorCode::Compression,
            HpackError::TooLarge => ErrorCode::EnhanceYourCalm,
        })?;
        let is_new = head.stream > self.last;
        self.last = self.last.max(head.stream);
        // A stream that depends on itself is an error.
        let depends_on = u32_at(&payload[priority.clone()], 0).map(|stream| stream & MAX_31);
        let is_plain = is_new && head.has(END_STREAM) && depends_on != Some(head.stream);
        if !(is_plain && self.answers && self.respond(head.stream)) {
            self.last_of_hyper = self.last_of_hyper.max(head.stream);
            self.give_headers(head, priority, is_new);
        }
        self.input.advance(end);
        self.list.clear();
        self.block.clear();
        self.block.shrink_to(MAX_KEPT_BYTES);
        if self.heads.bytes() > 0 {
            self.heads.resize(0);
            self.input = BytesMut::from(&self.input[..]);
        }
        Ok(Next::Done)
    }

    /// Returns the end of the frames of a block, as far as they are known.
    fn end_of_block(&mut self, head: FrameHead) -> Result<usize, ErrorCode> {
        let (mut last, mut end, mut continuations) = (head, HEAD + head.length, 0);
        while !last.has(END_HEADERS) {
            let Some(next) = self.input.get(end..).and_then(FrameHead::read) else {
                end += HEAD;
                break;
            };
            if next.kind != CONTINUATION || next.stream != head.stream {
                return Err(ErrorCode::Protocol);
            }
            if next.length > MAX_PAYLOAD {
                return Err(ErrorCode::FrameSize);
            }
            continuations += usize::from(!next.has(END_HEADERS));
            if continuations > MAX_CONTINUATIONS {
                return Err(ErrorCode::EnhanceYourCalm);
            }
            (last, end) = (next, end + HEAD + next.length);
        }
        // Twice, because the block is joined.
        if end > 2 * HEAD + MAX_PAYLOAD && !self.heads.resize(2 * end as u64) {
            self.heads.refuse();
            return Err(ErrorCode::EnhanceYourCalm);
        }
        Ok(end)
    }

    /// Responds to the request in `list` from memory, if possible.
    fn respond(&mut self, stream: u32) -> bool {
        let Some(request) = self.list.plain_request() else { return false };
        let max_body = self.window.own().min(self.settings.initial_window).min(MAX_BODY);
        let start = self.output.len();
        self.output.extend_from_slice(&[0; HEAD]);
        if self.settings.must_empty_table {
            self.output.push(hpack::EMPTY_TABLE);
        }
        let Some(body) = self.responder.respond(&request, max_body, &mut self.output) else {
            self.output.truncate(start);
            return false;
        };
        self.settings.must_empty_table = false;
        let length = self.output.len() - start - HEAD;
        let flags = if body.is_empty() { END_HEADERS | END_STREAM } else { END_HEADERS };
        let head = FrameHead { length, kind: HEADERS, flags, stream };
        self.output[start..start + HEAD].copy_from_slice(&head.bytes());
        let mut pieces = body.chunks(MAX_PAYLOAD).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { END_STREAM } else { 0 };
            FrameHead::append(&mut self.output, DATA, flags, stream, piece);
        }
        self.window.send(body.len());
        self.answered(stream);
        true
    }

    /// Gives the header block in `list` to hyper, with the priority at the beginning of the client's frame, and with the stream if a
    /// request begins and there is room for it.
    fn give_headers(&mut self, head: FrameHead, priority: Range<usize>, is_new: bool) {
        self.block.clear();
        let priority = HEAD + priority.start..HEAD + priority.end;
        self.block.extend_from_slice(&self.input[priority]);
        self.list.encode(&mut self.block);
        if self.list.is_too_large() && !self.settings.knows_limits {
            // hyper does not apply its limit yet, but rejects this.
            hpack::field(&mut self.block, b"connection", b"close");
        }
        let stream = digest::hex::<4, 8>(&head.stream.to_be_bytes());
        if is_new && self.list.has_room_for(STREAM_FIELD.as_bytes(), &stream) {
            hpack::field(&mut self.block, STREAM_FIELD.as_bytes(), &stream);
        }
        append_block(&mut self.for_hyper, head.flags & (END_STREAM | PRIORITY), head.stream, &self.block);
    }
}
