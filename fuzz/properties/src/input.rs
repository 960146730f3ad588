//! Handwritten inputs: blocks between empty lines, of field lines or numbers.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The blocks of an input, then empty ones.
pub(crate) fn blocks<const COUNT: usize>(data: &[u8]) -> [&[u8]; COUNT] {
    let mut rest = data;
    std::array::from_fn(|_| match rest.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => {
            let block = &rest[..at];
            rest = &rest[at + 2..];
            block
        }
        None => std::mem::take(&mut rest),
    })
}

/// Field lines in the form that a server has parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message(pub(crate) Vec<(HeaderName, HeaderValue)>);

impl Message {
    /// Returns the lines of a block that are field lines.
    pub(crate) fn read(block: &[u8]) -> Self {
        let line = |line: &[u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
        };
        Self(block.split(|byte| *byte == b'\n').filter_map(line).collect())
    }

    pub(crate) fn map(&self) -> HeaderMap {
        self.0.iter().cloned().collect()
    }

    /// Returns the lines as they arrive from the wire.
    pub(crate) fn lines(&self) -> Vec<(&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect()
    }

    /// Returns the values of a field.
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_bytes()).collect()
    }

    /// Returns the message with every value changed.
    pub(crate) fn with_values(&self, change: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let change = |value: &HeaderValue| {
            HeaderValue::from_bytes(&change(value.as_bytes())).expect("a change keeps it a value")
        };
        Self(self.0.iter().map(|(name, value)| (name.clone(), change(value))).collect())
    }

    /// Returns the message with one more line.
    pub(crate) fn and(&self, name: &'static str, value: &'static str) -> Self {
        let mut more = self.clone();
        more.0.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
        more
    }
}

/// The numbers of a block, then zeros. `None` where one is `-`.
pub(crate) fn numbers<const COUNT: usize>(block: &[u8]) -> [Option<u64>; COUNT] {
    let mut words = block.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    std::array::from_fn(|_| match words.next() {
        Some(b"-") => None,
        Some(word) => {
            let digits = word.iter().take_while(|byte| byte.is_ascii_digit());
            Some(digits.fold(0, |number: u64, digit| {
                number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
            }))
        }
        None => Some(0),
    })
}
