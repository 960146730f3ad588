//! Follows the frames that hyper writes, so that others can be put between them.

use super::frame::{ACK, CONTINUATION, DATA, END_HEADERS, FrameHead, GOAWAY, HEAD, HEADERS, SETTINGS};

/// A frame that hyper has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Flow-controlled bytes.
    Data(usize),
    /// The acknowledgement of the client's settings.
    SettingsAck,
}

/// Position in hyper's output.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    head: [u8; HEAD],
    /// Number of bytes of the head that were written.
    seen: usize,
    /// Number of bytes of the payload that are still to come.
    left: usize,
    /// True between the frames of a header block.
    in_block: bool,
}

impl Outgoing {
    /// Returns true if a frame may be written here.
    pub(super) fn is_between_frames(&self) -> bool {
        self.seen == 0 && self.left == 0 && !self.in_block
    }

    /// Returns how many of the bytes that hyper writes next may be written as they are: those before a GOAWAY, and if
    /// the guard has to write, those of the frame that has begun.
    pub(super) fn passable(&self, bytes: &[u8], must_stop: bool) -> usize {
        let mut in_block = self.in_block;
        let mut position = self.left;
        if self.seen > 0 {
            let mut head = self.head;
            let missing = HEAD - self.seen;
            let Some(rest) = bytes.get(..missing) else { return bytes.len() };
            head[self.seen..].copy_from_slice(rest);
            let Some(head) = FrameHead::read(&head) else { return bytes.len() };
            in_block = opens_block(&head, in_block);
            position = missing + head.length;
        }
        while position < bytes.len() {
            if must_stop && !in_block && position > 0 {
                return position;
            }
            let Some(head) = FrameHead::read(&bytes[position..]) else { break };
            if head.kind == GOAWAY {
                return position;
            }
            in_block = opens_block(&head, in_block);
            position += HEAD + head.length;
        }
        bytes.len()
    }

    /// Follows bytes that were written.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(Written)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = (HEAD - self.seen).min(bytes.len());
            self.head[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
            self.seen += taken;
            bytes = &bytes[taken..];
            if self.seen == HEAD
                && let Some(head) = FrameHead::read(&self.head)
            {
                (self.seen, self.left) = (0, head.length);
                match head.kind {
                    DATA => each(Written::Data(head.length)),
                    SETTINGS if head.has(ACK) => each(Written::SettingsAck),
                    _ => {}
                }
                self.in_block = opens_block(&head, self.in_block);
            }
        }
    }
}

/// Returns true if the frame is one of a header block and not its last.
fn opens_block(head: &FrameHead, in_block: bool) -> bool {
    if matches!(head.kind, HEADERS | CONTINUATION) { !head.has(END_HEADERS) } else { in_block }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![];
        FrameHead::append(&mut bytes, kind, flags, 1, &vec![0; length]);
        bytes
    }

    #[test]
    fn frames_fit_between_frames_and_not_into_header_blocks() {
        let frames = [
            frame(SETTINGS, 0, 6),
            frame(HEADERS, 0, 3),
            frame(CONTINUATION, END_HEADERS, 2),
            frame(DATA, 0, 5),
            frame(SETTINGS, ACK, 0),
        ];
        let bytes = frames.concat();
        let (mut outgoing, mut seen) = (Outgoing::default(), vec![]);
        let mut gaps = vec![];
        for (position, byte) in bytes.iter().enumerate() {
            outgoing.follow(&[*byte], |written| seen.push(written));
            if outgoing.is_between_frames() {
                gaps.push(position + 1);
            }
        }
        assert_eq!(gaps, [15, 38, 52, 61]);
        assert_eq!(seen, [Written::Data(5), Written::SettingsAck]);
    }

    #[test]
    fn output_is_cut_before_the_end_of_a_connection_and_where_the_guard_has_to_write() {
        let bytes = [frame(HEADERS, 0, 3), frame(CONTINUATION, END_HEADERS, 2), frame(DATA, 0, 5)].concat();
        let mut outgoing = Outgoing::default();
        assert_eq!(outgoing.passable(&bytes, false), bytes.len());
        outgoing.follow(&bytes[..4], |_| {});
        assert_eq!(outgoing.passable(&bytes[4..], true), 19, "the rest of the head, and the block");
        outgoing.follow(&bytes[4..9], |_| {});
        assert_eq!(outgoing.passable(&bytes[9..], true), 14, "the block");
        outgoing.follow(&bytes[9..30], |_| {});
        let rest = [frame(DATA, 0, 5)[7..].to_vec(), frame(GOAWAY, 0, 8)].concat();
        assert_eq!(outgoing.passable(&rest, false), 7, "the frame");
        let before = [frame(DATA, 0, 5), frame(GOAWAY, 0, 8), frame(DATA, 0, 5)].concat();
        assert_eq!(Outgoing::default().passable(&before, false), 14);
    }
}
