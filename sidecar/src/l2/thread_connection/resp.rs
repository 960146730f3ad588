//! Replies of a server (RESP2), read in the bytes that they came in.

use bytes::Bytes;
use larder_policy::PurgeName;
use redis::{RedisError, RedisResult};

use super::super::commands::{LookupReply, MAX_BEGINNING, Position, RecordStart};

/// Maximum length of a line of a reply in bytes: those of Redis are shorter.
const MAX_LINE: usize = 16 << 10;

/// A string that is not there.
const NOTHING: &[u8] = b"$-1\r\n";

/// Bytes that are no reply to what was asked: nothing that follows can be told apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The replies that a lookup waits for, one after another.
#[derive(Clone, Copy, Debug)]
pub(in crate::l2) struct Expected {
    /// The fields of the barriers, for this version of the policy.
    pub(in crate::l2) version: Option<PurgeName>,
    /// The beginning of a record.
    pub(in crate::l2) record: bool,
}

/// A part of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An array of so many replies.
    Array(usize),
    /// A string of at most the length of a record's beginning; `None`: there is none.
    Bulk(Option<&'a [u8]>),
    /// A word such as `OK`, or a number.
    Line,
    /// An error, with its line.
    Error(&'a [u8]),
}

/// Reads parts of replies one after another.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the number of bytes that were not read.
    pub(super) const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Returns the next part; `None` if it has not come whole.
    pub(super) fn next(&mut self) -> Result<Option<Token<'a>>, Malformed> {
        // Most names were never purged.
        if let Some(rest) = self.rest.strip_prefix(NOTHING) {
            self.rest = rest;
            return Ok(Some(Token::Bulk(None)));
        }
        // Nearly all lines have a few bytes: a search by vectors would take longer to begin.
        let mut start = self.rest[..self.rest.len().min(MAX_LINE)].iter();
        let Some(end) = start.position(|byte| *byte == b'\n') else {
            return if self.rest.len() < MAX_LINE { Ok(None) } else { Err(Malformed) };
        };
        let (line, rest) = self.rest.split_at(end + 1);
        let [kind, text @ .., b'\r', b'\n'] = line else { return Err(Malformed) };
        let token = match kind {
            b'$' => {
                let length = length(text)?;
                if length > MAX_BEGINNING {
                    return Err(Malformed);
                }
                let Some(end) = rest.get(length..length + 2) else { return Ok(None) };
                if end != b"\r\n" {
                    return Err(Malformed);
                }
                self.rest = &rest[length + 2..];
                return Ok(Some(Token::Bulk(Some(&rest[..length]))));
            }
            b'*' => Token::Array(length(text)?),
            b'+' | b':' => Token::Line,
            b'-' => Token::Error(line),
            _ => return Err(Malformed),
        };
        self.rest = rest;
        Ok(Some(token))
    }
}

/// Reads the length of a string or an array.
fn length(text: &[u8]) -> Result<usize, Malformed> {
    let is_short = (1..=8).contains(&text.len());
    if !is_short || !text.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(text.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

/// Reads the replies to a lookup: `None` if they have not come whole, or the number of their bytes and what they say. An error in place
/// of one is that of the lookup.
///
/// # Errors
/// If they are others than those that were expected.
pub(super) fn read(
    bytes: &[u8],
    expected: Expected,
) -> Result<Option<(usize, RedisResult<LookupReply>)>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut position = Position::default();
    let mut error = None;
    if let Some(version) = expected.version {
        match reader.next()? {
            None => return Ok(None),
            Some(Token::Array(count)) => {
                for _ in 0..count {
                    match reader.next()? {
                        None => return Ok(None),
                        Some(Token::Bulk(field)) => position.take(field, version),
                        Some(_) => return Err(Malformed),
                    }
                }
            }
            Some(Token::Error(line)) => error = Some(line),
            Some(_) => return Err(Malformed),
        }
    }
    let mut record = &[][..];
    if expected.record {
        match reader.next()? {
            None => return Ok(None),
            Some(Token::Bulk(Some(bytes))) => record = bytes,
            Some(Token::Error(line)) => error = error.or(Some(line)),
            Some(_) => return Err(Malformed),
        }
    }
    let reply = match error {
        Some(line) => Err(server_error(line)),
        // In memory of its own: what is stored must not keep the bytes beside it.
        None => Ok(position.with(RecordStart { bytes: Bytes::copy_from_slice(record) })),
    };
    Ok(Some((bytes.len() - reader.left(), reply)))
}

/// The error that a line says, as the client library has it.
pub(super) fn server_error(line: &[u8]) -> RedisError {
    match redis::parse_redis_value(line).and_then(redis::Value::extract_error) {
        Err(error) => error,
        Ok(_) => (redis::ErrorKind::Parse, "an error that is none").into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VERSION: fn() -> PurgeName = || PurgeName::version("shape");

    fn lookup() -> Expected {
        Expected { version: Some(VERSION()), record: true }
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    /// A reply as Redis gives it: the version is listed, two names were purged, and there is a record.
    fn whole() -> Vec<u8> {
        let listed = bulk(&format!("{:?}=170", VERSION()));
        let fields = ["77", "9"].map(bulk).concat();
        let names = [&bulk("5"), "$-1\r\n", &bulk("4"), "$-1\r\n", &bulk("8")].concat();
        format!("*9\r\n{listed}{fields}$-1\r\n{names}{}", bulk("rec\r\nord")).into_bytes()
    }

    #[test]
    fn reply_to_a_lookup_is_read_in_place() {
        let bytes = [&whole()[..], b"+next"].concat();
        let (length, reply) = read(&bytes, lookup()).unwrap().unwrap();
        let LookupReply { generation, order, barrier, version, indirect, is_listed, record } = reply.unwrap();
        assert_eq!((length, generation, order), (bytes.len() - 5, 77, 9));
        assert_eq!((barrier, version, indirect), (8, 4, 5));
        assert!(is_listed && record.bytes == "rec\r\nord");
        let only_record = Expected { version: None, record: true };
        assert_eq!(read(b"$1\r\nx\r\n", only_record).unwrap().unwrap().1.unwrap().record.bytes, "x");
        let without_record = Expected { record: false, ..lookup() };
        assert!(read(b"*1\r\n$-1\r\n", without_record).unwrap().unwrap().1.is_ok());
    }

    #[test]
    fn nothing_is_listed_without_a_generation() {
        let listed = bulk(&format!("{:?}=170", VERSION()));
        let bytes = format!("*4\r\n{listed}$-1\r\n$-1\r\n$-1\r\n$0\r\n\r\n");
        assert!(!read(bytes.as_bytes(), lookup()).unwrap().unwrap().1.unwrap().is_listed);
    }

    #[test]
    fn error_takes_the_place_of_one_reply_and_no_more() {
        for bytes in [
            &b"-LOADING Redis is loading\r\n-LOADING Redis is loading\r\n"[..],
            b"-NOPERM no\r\n$1\r\nx\r\n",
            b"*0\r\n-WRONGTYPE of a kind\r\n",
            b"-MOVED 1 127.0.0.1:1\r\n-MOVED 1 127.0.0.1:1\r\n",
        ] {
            let (length, reply) = read(bytes, lookup()).unwrap().unwrap();
            assert_eq!(length, bytes.len());
            let error = reply.map(drop).unwrap_err();
            assert!(!error.is_io_error() && error.code().is_some(), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_no_reply_are_noticed() {
        for bytes in [
            &b"+OK\r\n$0\r\n\r\n"[..],
            b"*1\r\n*1\r\n",
            b"*1\r\n:1\r\n",
            b"$1\r\nx\r\n",
            b"*-1\r\n",
            b"*0\r\n$-1\r\n",
            b"*0\r\n$99999999999\r\n",
            b"*0\r\n$65537\r\nx",
            b"*0\r\n$1\r\nxyz",
            b"*x\r\n",
            b"\n",
            b"?\r\n",
        ] {
            assert!(matches!(read(bytes, lookup()), Err(Malformed)), "{}", bytes.escape_ascii());
        }
        assert!(matches!(read(&[b'+'; MAX_LINE], lookup()), Err(Malformed)));
    }

    proptest! {
        #[test]
        fn part_of_a_reply_is_waited_for(cut in any::<prop::sample::Index>()) {
            let bytes = whole();
            prop_assert!(matches!(read(&bytes[..cut.index(bytes.len())], lookup()), Ok(None)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>()) {
            let _ = read(&bytes, lookup());
            let mut changed = whole();
            let at = at.index(changed.len());
            changed.splice(at..(at + bytes.len()).min(changed.len()), bytes);
            let _ = read(&changed, lookup());
        }
    }
}
