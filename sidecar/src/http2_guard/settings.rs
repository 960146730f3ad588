//! The client's settings (RFC 9113, section 6.5), as far as the guard depends on them.

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    ErrorCode, Http2Guard, Http2Responder, Next,
    frame::{
        ACK, FrameHead, HEAD, HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_31, MAX_PAYLOAD, SETTINGS, u32_at,
    },
};

/// Length of a setting in bytes.
const SETTING: usize = 6;
/// Setting that hyper gets in place of the client's size of the table: its encoder has none.
const NO_TABLE: [u8; SETTING] = [0, HEADER_TABLE_SIZE as u8, 0, 0, 0, 0];

/// The settings of a client.
#[derive(Debug)]
pub(super) struct Settings {
    /// Window of a new stream.
    pub(super) initial_window: usize,
    are_known: bool,
    /// Number of frames that hyper has not acknowledged.
    unacknowledged: u32,
    /// True if the next header block must begin with the size of the table, because the client's settings may have
    /// changed it.
    pub(super) must_empty_table: bool,
    /// True if the client has acknowledged hyper's settings, which limit the size of header lists.
    pub(super) knows_limits: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            initial_window: (64 << 10) - 1,
            are_known: false,
            unacknowledged: 0,
            must_empty_table: false,
            knows_limits: false,
        }
    }
}

impl Settings {
    /// Returns true if the client has sent its first settings.
    pub(super) fn are_known(&self) -> bool {
        self.are_known
    }

    /// Returns true if both sides use the client's settings.
    pub(super) fn are_settled(&self) -> bool {
        self.unacknowledged == 0
    }

    /// Records that hyper acknowledged settings.
    pub(super) fn acknowledged(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        self.must_empty_table = true;
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, R: Http2Responder + Unpin> Http2Guard<IO, R> {
    /// Reads settings, and gives them to hyper without a table for header compression. hyper rejects invalid ones.
    pub(super) fn next_settings(&mut self, head: FrameHead) -> Result<Next, ErrorCode> {
        if head.has(ACK) {
            self.settings.knows_limits = true;
            return Ok(self.pass(head));
        }
        let end = HEAD + head.length;
        let Some(payload) = self.input.get(HEAD..end) else { return Ok(Next::Incomplete) };
        let settings = payload.chunks_exact(SETTING);
        let is_valid = |setting: &[u8]| match setting {
            [0, 4, value @ ..] => u32_at(value, 0).is_some_and(|window| window <= MAX_31),
            _ => true,
        };
        if head.stream != 0 || !settings.remainder().is_empty() || !settings.clone().all(is_valid) {
            self.answers = false;
            self.settings.are_known = true;
            return Ok(self.pass(head));
        }
        self.block.clear();
        for setting in settings {
            match u16::from_be_bytes([setting[0], setting[1]]) {
                HEADER_TABLE_SIZE => continue,
                INITIAL_WINDOW_SIZE => {
                    self.settings.initial_window = u32_at(setting, 2).unwrap_or_default() as usize;
                }
                _ => {}
            }
            self.block.extend_from_slice(setting);
        }
        self.block.extend_from_slice(&NO_TABLE);
        if self.block.len() > MAX_PAYLOAD {
            return Err(ErrorCode::EnhanceYourCalm);
        }
        FrameHead::append(&mut self.for_hyper, SETTINGS, 0, 0, &self.block);
        self.settings.are_known = true;
        self.settings.unacknowledged += 1;
        self.input.advance(end);
        Ok(Next::Done)
    }
}
