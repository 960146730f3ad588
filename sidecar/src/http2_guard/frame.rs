//! Frames of HTTP/2 (RFC 9113, section 4.1).

/// Length of the head of a frame in bytes.
pub(super) const HEAD: usize = 9;
/// Maximum length of a payload: the initial value of `SETTINGS_MAX_FRAME_SIZE`, which hyper leaves as it is, and the
/// lowest that a client may set.
pub(super) const MAX_PAYLOAD: usize = 16 << 10;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

/// Maximum of a window and of a stream's identifier.
pub(super) const MAX_31: u32 = (1 << 31) - 1;

/// Reason for the end of a connection (section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCode {
    /// The client broke the protocol.
    Protocol = 1,
    /// The client granted more than a window may be.
    FlowControl = 3,
    /// The client used a stream that has ended.
    StreamClosed = 5,
    /// A frame has a wrong length.
    FrameSize = 6,
    /// A header block cannot be decoded.
    Compression = 9,
    /// The client causes excessive load.
    EnhanceYourCalm = 11,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    /// Reads the head at the beginning of `bytes`; `None` if it is incomplete.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [high, middle, low, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        Some(Self { length, kind, flags, stream: u32::from_be_bytes(stream) & MAX_31 })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn bytes(&self) -> [u8; HEAD] {
        let [_, high, middle, low] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let [first, second, third, fourth] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, first, second, third, fourth]
    }

    /// Appends a whole frame.
    pub(super) fn append(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        output.extend_from_slice(&Self { length: payload.len(), kind, flags, stream }.bytes());
        output.extend_from_slice(payload);
    }
}

/// Appends the frames of a header block, of which the first has `flags` besides.
pub(super) fn append_block(output: &mut Vec<u8>, flags: u8, stream: u32, block: &[u8]) {
    let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
    let (mut kind, mut flags) = (HEADERS, flags);
    loop {
        let piece = pieces.next().unwrap_or_default();
        if pieces.peek().is_none() {
            FrameHead::append(output, kind, flags | END_HEADERS, stream, piece);
            return;
        }
        FrameHead::append(output, kind, flags, stream, piece);
        (kind, flags) = (CONTINUATION, 0);
    }
}

/// Reads an integer of 32 bits at a position of a payload.
pub(super) fn u32_at(payload: &[u8], position: usize) -> Option<u32> {
    payload.get(position..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Appends the end of a connection, after a stream that may have been processed.
pub(super) fn append_goaway(output: &mut Vec<u8>, last: u32, code: ErrorCode) {
    let payload = [last.to_be_bytes(), u32::from(code as u8).to_be_bytes()].concat();
    FrameHead::append(output, GOAWAY, 0, 0, &payload);
}
