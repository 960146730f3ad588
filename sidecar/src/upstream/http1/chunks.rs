//! Chunked bodies (RFC 9112, section 7.1): those of responses are read, others are written.

use std::io::Write as _;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::{memchr, memmem};

use super::body::MAX_PIECE;
use crate::upstream::head::MAX_LINES;

/// Maximum length of a line with a chunk's size and extensions, and of the trailer section.
const MAX_LINE_BYTES: usize = 4 << 10;
const MAX_TRAILER_BYTES: usize = 16 << 10;

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes a piece of a body, which is not empty, as a chunk.
pub fn write_chunk(output: &mut Vec<u8>, piece: &[u8]) {
    let _ = write!(output, "{:x}\r\n", piece.len());
    output.extend_from_slice(piece);
    output.extend_from_slice(b"\r\n");
}

/// A position in a chunked body. CRLF ends a line, sizes are hexadecimal digits, and only white space and extensions follow a size.
#[derive(Debug)]
pub(super) struct Chunks {
    expecting: Expecting,
}

#[derive(Debug, PartialEq, Eq)]
enum Expecting {
    Size,
    Data { left: u64 },
    DataEnd,
    Trailers,
    Nothing,
}

/// The next part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Nothing without further bytes.
    More,
}

/// A fault in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl Chunks {
    pub(super) const fn new() -> Self {
        Self { expecting: Expecting::Size }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.expecting == Expecting::Nothing
    }

    /// Takes the next part of the body. A fault stays in `input` and is reported again.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match &mut self.expecting {
                Expecting::Data { left } if !input.is_empty() => {
                    let taken = input.len().min(MAX_PIECE).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    if *left == 0 {
                        self.expecting = Expecting::DataEnd;
                    }
                    return Ok(Decoded::Data(input.split_to(taken).freeze()));
                }
                Expecting::Data { .. } => return Ok(Decoded::More),
                Expecting::Trailers if !input.starts_with(b"\r\n") => return self.trailers(input),
                _ => {
                    if !self.skip_framing(input)? {
                        let end = self.has_ended();
                        return Ok(if end { Decoded::End } else { Decoded::More });
                    }
                }
            }
        }
    }

    /// Takes the framing between two pieces of data, as far as it is at hand. Returns true if data or trailers follow.
    pub(super) fn skip_framing(&mut self, input: &mut BytesMut) -> Result<bool, Malformed> {
        loop {
            match self.expecting {
                Expecting::Size => {
                    let Some(line) = line(input)? else { return Ok(false) };
                    let size = size_of(&input[..line])?;
                    input.advance(line + 2);
                    self.expecting =
                        if size == 0 { Expecting::Trailers } else { Expecting::Data { left: size } };
                }
                Expecting::DataEnd => {
                    let expected = input.len().min(2);
                    if input[..expected] != b"\r\n"[..expected] {
                        return Err(Malformed("a chunk is longer than its size"));
                    }
                    if expected < 2 {
                        return Ok(false);
                    }
                    input.advance(2);
                    self.expecting = Expecting::Size;
                }
                Expecting::Trailers if input.starts_with(b"\r\n") => {
                    input.advance(2);
                    self.expecting = Expecting::Nothing;
                }
                Expecting::Trailers => return Ok(input.len() >= 2),
                Expecting::Data { .. } => return Ok(true),
                Expecting::Nothing => return Ok(false),
            }
        }
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Decoded, Malformed> {
        let searched = &input[..input.len().min(MAX_TRAILER_BYTES)];
        let Some(end) = memmem::find(searched, b"\r\n\r\n") else {
            return match searched.len() < MAX_TRAILER_BYTES {
                true => Ok(Decoded::More),
                false => Err(Malformed("the trailer section is too long")),
            };
        };
        let trailers = parse_trailers(&input[..end + 4])?;
        input.advance(end + 4);
        self.expecting = Expecting::Nothing;
        Ok(Decoded::Trailers(trailers))
    }
}

/// Returns the length of the first line, without its end.
fn line(input: &[u8]) -> Result<Option<usize>, Malformed> {
    let searched = &input[..input.len().min(MAX_LINE_BYTES)];
    match memchr(b'\n', searched) {
        Some(end) if end > 0 && searched[end - 1] == b'\r' => Ok(Some(end - 1)),
        Some(_) => Err(Malformed("the line of a chunk's size does not end with CRLF")),
        None if searched.len() < MAX_LINE_BYTES => Ok(None),
        None => Err(Malformed("the line of a chunk's size is too long")),
    }
}

/// Returns the size that a line states.
fn size_of(line: &[u8]) -> Result<u64, Malformed> {
    let (mut size, mut digits) = (0_u64, 0);
    for &byte in line {
        let Some(digit) = char::from(byte).to_digit(16) else { break };
        let shifted = size.checked_mul(16).ok_or(Malformed("the size of a chunk is too large"))?;
        size = shifted | u64::from(digit);
        digits += 1;
    }
    let spaces = line[digits..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let extension = &line[digits + spaces..];
    let is_extension = extension.first().is_none_or(|&byte| byte == b';') && !extension.contains(&b'\r');
    if digits == 0 || !is_extension {
        return Err(Malformed("the size of a chunk is not a hexadecimal number"));
    }
    Ok(size)
}

fn parse_trailers(section: &[u8]) -> Result<HeaderMap, Malformed> {
    const FAULT: Malformed = Malformed("a trailer field is invalid");
    let count = section.iter().filter(|&&byte| byte == b'\n').count();
    if count > MAX_LINES {
        return Err(Malformed("there are too many trailer fields"));
    }
    let mut lines = vec![httparse::EMPTY_HEADER; count];
    let Ok(httparse::Status::Complete((length, fields))) = httparse::parse_headers(section, &mut lines)
    else {
        return Err(FAULT);
    };
    if length != section.len() {
        return Err(FAULT);
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| FAULT)?;
        trailers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| FAULT)?);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Decodes pieces as they arrive; returns the data, the trailers if the body has ended, and what follows.
    fn decode(pieces: &[&[u8]]) -> Result<Read, Malformed> {
        let (mut chunks, mut input) = (Chunks::new(), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match chunks.next(&mut input)? {
                    Decoded::Data(piece) => {
                        data.extend_from_slice(&piece);
                        // As the body does; a fault is reported afterwards.
                        let _ = chunks.skip_framing(&mut input);
                    }
                    Decoded::Trailers(found) => trailers = found,
                    Decoded::End | Decoded::More => break,
                }
            }
        }
        Ok((data, chunks.has_ended().then_some(trailers), input.to_vec()))
    }

    #[test]
    fn chunks_are_joined_up_to_the_last() {
        for (body, data) in [
            ("0\r\n\r\n", ""),
            ("3\r\nabc\r\n0\r\n\r\n", "abc"),
            ("3;name=\"v\"\r\nabc\r\n000\r\n\r\n", "abc"),
            ("A \t;x\r\n0123456789\r\n0 \r\n\r\n", "0123456789"),
            ("0000000000000000000001\r\na\r\n1\r\nb\r\n0\r\n\r\n", "ab"),
        ] {
            let (decoded, trailers, rest) = decode(&[format!("{body}rest").as_bytes()]).unwrap();
            assert_eq!((decoded.as_slice(), rest.as_slice()), (data.as_bytes(), &b"rest"[..]), "{body:?}");
            assert!(trailers.is_some_and(|trailers| trailers.is_empty()), "{body:?}");
        }
    }

    #[test]
    fn trailers_come_after_the_data() {
        let (data, trailers, rest) = decode(&[b"1\r\na\r\n0\r\nx-sum: 7\r\nX-Sum:8\r\n\r\n"]).unwrap();
        let trailers = trailers.unwrap();
        let sums: Vec<_> = trailers.get_all("x-sum").iter().map(|sum| sum.to_str().unwrap()).collect();
        assert_eq!((data.as_slice(), sums, rest.is_empty()), (&b"a"[..], vec!["7", "8"], true));
    }

    #[test]
    fn malformed_chunks_are_faults() {
        let endless_line = format!("1;{}", "x".repeat(MAX_LINE_BYTES));
        let endless_trailer = format!("0\r\nx:{}", "x".repeat(MAX_TRAILER_BYTES));
        for body in [
            "\r\nabc",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x3\r\nabc\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3 \r\rabc\r\n",
            "3\r;x\r\nabc\r\n",
            "3;a\rb\r\nabc\r\n",
            "fffffffffffffffff\r\n",
            "1 a\r\nx\r\n",
            "0\r\nx\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\nx: a\0\r\n\r\n",
            &endless_line,
            &endless_trailer,
        ] {
            assert!(decode(&[body.as_bytes()]).is_err(), "{body:?}");
        }
    }

    #[test]
    fn incomplete_body_has_not_ended() {
        let body = b"2\r\nok\r\n0\r\nx: y\r\n\r\n";
        for end in 0..body.len() {
            assert_eq!(decode(&[&body[..end]]).unwrap().1, None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_segmentation_gives_the_same_body(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            trailer in proptest::option::of("[a-z]{1,9}"),
            cuts in proptest::collection::vec(1..20_usize, 0..40),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n");
            body.extend(trailer.iter().flat_map(|value| format!("x-sum: {value}\r\n").into_bytes()));
            body.extend_from_slice(b"\r\nrest");
            let (mut pieces, mut left) = (Vec::new(), &body[..]);
            for cut in cuts {
                let (piece, more) = left.split_at(cut.min(left.len()));
                pieces.push(piece);
                left = more;
            }
            pieces.push(left);
            let (data, trailers, rest) = decode(&pieces).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(rest, b"rest");
            let trailers = trailers.unwrap();
            let sum = trailers.get("x-sum").map(|sum| sum.to_str().unwrap().to_owned());
            prop_assert_eq!(sum, trailer);
        }
    }
}
