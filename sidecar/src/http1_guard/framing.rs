//! Body framing of HTTP/1 requests (RFC 9112, section 6).

use super::request_error::RequestError;
use crate::sniff::is_token;

/// Maximum length of a line with a chunk's size and extensions, and of the trailer section.
const MAX_LINE_BYTES: usize = 4 << 10;
const MAX_TRAILER_BYTES: usize = 16 << 10;

/// Framing of a body, and the part of it that is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    None,
    /// A body with this many bytes left.
    Length(u64),
    /// A chunked body.
    Chunked(Chunks),
}

/// Kind of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// No body.
    None,
    /// A body with the length that the head states.
    Length,
    /// A chunked body.
    Chunked,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunks { expecting: Expecting::Size { digits: 0, size: 0 }, length: 0 })
    }

    /// Returns true if the body has ended.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::None | Self::Length(0) => true,
            Self::Length(_) => false,
            Self::Chunked(chunks) => chunks.expecting == Expecting::Nothing,
        }
    }

    /// Returns the kind of body.
    pub(super) fn kind(&self) -> BodyKind {
        match self {
            Self::None | Self::Length(0) => BodyKind::None,
            Self::Length(_) => BodyKind::Length,
            Self::Chunked(_) => BodyKind::Chunked,
        }
    }

    /// Returns the number of these bytes that frame the body, and of those behind them that are its data. There may be more of both.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<(usize, usize), RequestError> {
        match self {
            Self::Chunked(chunks) => {
                let framing = chunks.take_framing(bytes)?;
                Ok((framing, chunks.take_data(&bytes[framing..])))
            }
            Self::None | Self::Length(_) => Ok((0, self.take(bytes)?)),
        }
    }

    /// Returns the number of these bytes that belong to the body.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        match self {
            Self::None => Ok(0),
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes),
        }
    }
}

/// A position in a chunked body (RFC 9112, section 7.1). Follows the grammar strictly: CRLF ends a line, sizes are
/// hexadecimal digits, and only extensions follow a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    expecting: Expecting,
    /// Length of the line or of the trailer section so far.
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expecting {
    Size {
        digits: u8,
        size: u64,
    },
    /// White space after a size: an extension or the end of the line may follow.
    AfterSize {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// The name of a trailer field, or the end of the trailer section.
    TrailerName {
        is_empty: bool,
    },
    TrailerValue,
    TrailerLf {
        last: bool,
    },
    Nothing,
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        let mut at = 0;
        while at < bytes.len() && self.expecting != Expecting::Nothing {
            at += self.take_framing(&bytes[at..])?;
            at += self.take_data(&bytes[at..]);
        }
        Ok(at)
    }

    /// Takes bytes up to the next data.
    fn take_framing(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        let mut at = 0;
        while at < bytes.len() && !matches!(self.expecting, Expecting::Data { .. } | Expecting::Nothing) {
            self.expecting = self.after(bytes[at]).ok_or(RequestError::Chunking)?;
            at += 1;
        }
        Ok(at)
    }

    /// Takes data up to the end of its chunk.
    fn take_data(&mut self, bytes: &[u8]) -> usize {
        let Expecting::Data { left } = self.expecting else { return 0 };
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - taken as u64;
        self.expecting = if left == 0 { Expecting::DataCr } else { Expecting::Data { left } };
        taken
    }

    fn after(&mut self, byte: u8) -> Option<Expecting> {
        self.length += 1;
        Some(match (self.expecting, byte) {
            (Expecting::Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < 16 => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                Expecting::Size { digits: digits + 1, size: size << 4 | digit }
            }
            (Expecting::Size { digits: 1.., size }, b'\r') => Expecting::SizeLf { size },
            (Expecting::Size { digits: 1.., size } | Expecting::AfterSize { size }, b';') => {
                Expecting::Extension { size }
            }
            (Expecting::Size { digits: 1.., size } | Expecting::AfterSize { size }, b' ' | b'\t')
                if self.length <= MAX_LINE_BYTES =>
            {
                Expecting::AfterSize { size }
            }
            (Expecting::AfterSize { size }, b'\r') => Expecting::SizeLf { size },
            (Expecting::Extension { size }, b'\r') => Expecting::SizeLf { size },
            (Expecting::Extension { size }, b'\t' | b' '..=b'~' | 0x80..)
                if self.length <= MAX_LINE_BYTES =>
            {
                Expecting::Extension { size }
            }
            (Expecting::SizeLf { size: 0 }, b'\n') => self.next(Expecting::TrailerName { is_empty: true }),
            (Expecting::SizeLf { size }, b'\n') => self.next(Expecting::Data { left: size }),
            (Expecting::DataCr, b'\r') => Expecting::DataLf,
            (Expecting::DataLf, b'\n') => self.next(Expecting::Size { digits: 0, size: 0 }),
            (Expecting::TrailerName { is_empty: true }, b'\r') => Expecting::TrailerLf { last: true },
            (Expecting::TrailerName { is_empty: false }, b':') => Expecting::TrailerValue,
            (Expecting::TrailerName { .. }, _) if is_token(byte) && self.length <= MAX_TRAILER_BYTES => {
                Expecting::TrailerName { is_empty: false }
            }
            (Expecting::TrailerValue, b'\r') => Expecting::TrailerLf { last: false },
            (Expecting::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) if self.length <= MAX_TRAILER_BYTES => {
                Expecting::TrailerValue
            }
            (Expecting::TrailerLf { last: true }, b'\n') => Expecting::Nothing,
            (Expecting::TrailerLf { last: false }, b'\n') => Expecting::TrailerName { is_empty: true },
            _ => return None,
        })
    }

    fn next(&mut self, expecting: Expecting) -> Expecting {
        self.length = 0;
        expecting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn length_of(body: &[u8]) -> Result<Option<usize>, RequestError> {
        let mut framing = Framing::chunked();
        let taken = framing.take(body)?;
        Ok(framing.has_ended().then_some(taken))
    }

    #[test]
    fn chunked_body_ends_at_its_last_chunk() {
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "3;name=\"v\"\r\nabc\r\n00\r\nX-Sum: 7\r\n\r\n",
            "A \t;x\r\n0123456789\r\n0 \r\n\r\n",
        ] {
            let with_more = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(length_of(with_more.as_bytes()), Ok(Some(body.len())), "{body:?}");
            assert_eq!(length_of(&body.as_bytes()[..body.len() - 1]), Ok(None), "{body:?}");
        }
    }

    #[test]
    fn malformed_chunk_is_refused() {
        for body in [
            "\r\nabc",
            "g\r\n",
            "-1\r\n",
            "0x3\r\nabc\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3 \r\rabc",
            "11111111111111111\r\n",
            "0\r\nX: a\nb\r\n\r\n",
            "0\r\nx\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "1 a\r\nx\r\n",
        ] {
            assert_eq!(length_of(body.as_bytes()), Err(RequestError::Chunking), "{body:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = format!("1;{}", "x".repeat(MAX_LINE_BYTES + 1));
        assert_eq!(length_of(endless.as_bytes()), Err(RequestError::Chunking));
        let endless = format!("0\r\nx:{}", "x".repeat(MAX_TRAILER_BYTES + 1));
        assert_eq!(length_of(endless.as_bytes()), Err(RequestError::Chunking));
    }

    proptest! {
        #[test]
        fn chunked_body_ends_at_the_same_byte_in_any_segmentation(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5), cuts in proptest::collection::vec(1..20_usize, 0..40)) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let length = body.len();
            body.extend_from_slice(b"rest");
            let (mut framing, mut taken) = (Framing::chunked(), 0);
            for cut in cuts.into_iter().chain([body.len()]) {
                let piece = &body[taken..(taken + cut).min(body.len())];
                taken += framing.take(piece).unwrap();
            }
            prop_assert!(framing.has_ended());
            prop_assert_eq!(taken, length);
        }
    }
}
