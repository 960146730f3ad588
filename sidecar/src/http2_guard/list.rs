//! Decoded header lists, and the requests among them that are beyond doubt.

use larder_policy::Fields;

use super::{
    hpack::{self, HpackError},
    interim::STREAM_FIELD,
};
use crate::http1_guard::{MAX_LINES, MAX_TARGET, in_host};

/// Maximum size of a header list (RFC 9113, section 6.5.2), as over HTTP/1, and the size above which it is not decoded
/// to its end.
pub const MAX_LIST: usize = 64 << 10;
const MAX_ABUSE: usize = 4 * MAX_LIST;
/// Size of a field besides its text.
const OVERHEAD: usize = 32;
/// Size of the buffers that an empty list keeps.
const KEPT_BYTES: usize = 2 << 10;
const KEPT_FIELDS: usize = 32;

/// Kind of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Method,
    Scheme,
    Authority,
    Path,
    Cookie,
    /// The guard's own field, which is taken out.
    Stream,
    Other,
}

/// Properties of a field that are determined once, when it enters the table of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trait {
    kind: Kind,
    /// True if a plain GET may have the field.
    is_plain: bool,
}

impl Trait {
    pub(super) fn of(name: &[u8], value: &[u8]) -> Self {
        let (kind, is_plain) = match name {
            b":method" => (Kind::Method, value == b"GET"),
            b":scheme" => (Kind::Scheme, value == b"http" || value == b"https"),
            b":authority" => (Kind::Authority, is_plain_host(value)),
            b":path" => (Kind::Path, is_plain_target(value)),
            b"cookie" => (Kind::Cookie, is_plain_value(value)),
            name if name == STREAM_FIELD.as_bytes() => (Kind::Stream, true),
            _ => (Kind::Other, is_plain_name(name) && is_plain_value(value)),
        };
        Self { kind, is_plain }
    }
}

/// Accepts names and addresses with an optional port, all of which `http::uri::Authority` accepts.
fn is_plain_host(host: &[u8]) -> bool {
    let (name, port) = match memchr::memchr(b':', host) {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, &b"80"[..]),
    };
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty()
        && name.iter().all(in_name)
        && (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
        && host.iter().copied().all(in_host)
}

/// Accepts paths with characters that no parser of targets treats differently.
fn is_plain_target(target: &[u8]) -> bool {
    let in_target = |byte: &u8| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(byte);
    target.starts_with(b"/") && target.len() <= MAX_TARGET && target.iter().all(in_target)
}

/// Accepts lower-case names of fields that are not of a connection and announce no content.
fn is_plain_name(name: &[u8]) -> bool {
    const DOUBTFUL: [&[u8]; 9] = [
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    ];
    let in_name = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    !name.is_empty() && name.iter().all(in_name) && !DOUBTFUL.contains(&name)
}

/// Accepts values without white space around them (RFC 9113, section 8.2.1).
fn is_plain_value(value: &[u8]) -> bool {
    let in_value = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    value.trim_ascii().len() == value.len() && value.iter().all(in_value)
}

/// A field in the text of a list.
#[derive(Clone, Copy, Debug)]
struct Field {
    start: usize,
    name: usize,
    value: usize,
    kind: Kind,
    is_sensitive: bool,
}

impl Field {
    fn text<'a>(&self, text: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        text[self.start..self.start + self.name + self.value].split_at(self.name)
    }
}

/// A decoded header list.
#[derive(Debug, Default)]
pub(super) struct HeaderList {
    text: Vec<u8>,
    fields: Vec<Field>,
    /// Size by RFC 9113, section 6.5.2, which counts fields that were not kept, too.
    size: usize,
    is_doubtful: bool,
    cookies: usize,
    /// The positions of `:path` and `:authority`, and the number of pseudo-header fields.
    path: usize,
    authority: usize,
    pseudo: usize,
}

impl HeaderList {
    /// Removes all fields.
    pub(super) fn clear(&mut self) {
        let (mut text, mut fields) = (std::mem::take(&mut self.text), std::mem::take(&mut self.fields));
        text.clear();
        text.shrink_to(KEPT_BYTES);
        fields.clear();
        fields.shrink_to(KEPT_FIELDS);
        *self = Self { text, fields, ..Self::default() };
    }

    /// Releases the buffers.
    pub(super) fn shrink(&mut self) {
        *self = Self::default();
    }

    /// Returns true if it is larger than allowed, and was therefore cut.
    pub(super) fn is_too_large(&self) -> bool {
        self.size >= MAX_LIST
    }

    /// Returns true if one more field makes it no larger than allowed.
    pub(super) fn has_room_for(&self, name: &[u8], value: &[u8]) -> bool {
        self.size + name.len() + value.len() + OVERHEAD < MAX_LIST
    }

    /// Adds a field. The one that exceeds the limit is replaced by one that just reaches it.
    pub(super) fn push(
        &mut self,
        name: &[u8],
        value: &[u8],
        Trait { kind, is_plain }: Trait,
        is_sensitive: bool,
    ) -> Result<(), HpackError> {
        if self.is_too_large() {
            self.size += name.len() + value.len() + OVERHEAD;
            return if self.size > MAX_ABUSE { Err(HpackError::TooLarge) } else { Ok(()) };
        }
        let room = MAX_LIST - self.size;
        self.size += name.len() + value.len() + OVERHEAD;
        if self.is_too_large() {
            self.is_doubtful = true;
            let filler = vec![b'x'; room.saturating_sub(OVERHEAD + 1)];
            self.keep(b"x", &filler, Kind::Other, false);
            return if self.size > MAX_ABUSE { Err(HpackError::TooLarge) } else { Ok(()) };
        }
        if kind == Kind::Stream {
            return Ok(());
        }
        let nth = self.fields.len();
        self.keep(name, value, kind, is_sensitive);
        self.is_doubtful |= !is_plain;
        match kind {
            Kind::Other => return Ok(()),
            Kind::Cookie => {
                self.cookies += 1;
                return Ok(());
            }
            Kind::Path => self.path = nth,
            Kind::Authority => self.authority = nth,
            Kind::Method | Kind::Scheme | Kind::Stream => {}
        }
        // Pseudo-header fields come first, each once (RFC 9113, section 8.3).
        self.is_doubtful |= nth != self.pseudo || self.fields[..nth].iter().any(|field| field.kind == kind);
        self.pseudo += 1;
        Ok(())
    }

    fn keep(&mut self, name: &[u8], value: &[u8], kind: Kind, is_sensitive: bool) {
        let (start, name_length, value_length) = (self.text.len(), name.len(), value.len());
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.fields.push(Field { start, name: name_length, value: value_length, kind, is_sensitive });
    }

    /// Returns the request if it is a GET that nobody could read differently.
    pub(super) fn plain_request(&self) -> Option<PlainRequest<'_>> {
        if self.is_doubtful
            || self.pseudo != 4
            || self.cookies > 1
            || self.fields.len() - self.pseudo > MAX_LINES
        {
            return None;
        }
        let text = |nth: usize| std::str::from_utf8(self.fields[nth].text(&self.text).1).ok();
        let lines = Lines { text: &self.text, fields: &self.fields[self.pseudo..] };
        Some(PlainRequest { authority: text(self.authority)?, path: text(self.path)?, lines })
    }

    /// Appends a block from which a decoder without a dynamic table reads the same list.
    pub(super) fn encode(&self, block: &mut Vec<u8>) {
        for field in &self.fields {
            let (name, value) = field.text(&self.text);
            if field.is_sensitive {
                hpack::sensitive_field(block, name, value);
            } else {
                hpack::field(block, name, value);
            }
        }
    }

    /// Returns the fields in order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| field.text(&self.text))
    }
}

/// A GET without content.
#[derive(Debug)]
pub struct PlainRequest<'a> {
    /// The host, with its port if it has one.
    pub authority: &'a str,
    /// The path and query.
    pub path: &'a str,
    /// The fields.
    pub lines: Lines<'a>,
}

/// The fields of a request without its pseudo-header fields.
#[derive(Debug)]
pub struct Lines<'a> {
    text: &'a [u8],
    fields: &'a [Field],
}

impl Fields for Lines<'_> {
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| field.text(self.text))
    }
}

/// Calls `use_it` with the request that these fields make, if it is a plain one.
#[cfg(test)]
pub(crate) fn with_plain_request<T>(
    fields: &[(&str, &str)],
    use_it: impl FnOnce(&PlainRequest<'_>) -> T,
) -> Option<T> {
    let mut list = HeaderList::default();
    for (name, value) in fields {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        list.push(name, value, Trait::of(name, value), false).ok()?;
    }
    list.plain_request().map(|request| use_it(&request))
}

#[cfg(test)]
mod tests {
    use http::{Request, uri};
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::http1_guard::check_http2;

    const NAMES: [&str; 16] = [
        ":method",
        ":method",
        ":scheme",
        ":scheme",
        ":authority",
        ":authority",
        ":path",
        ":path",
        ":status",
        "accept",
        "cookie",
        "content-length",
        "host",
        "te",
        "connection",
        "X-A",
    ];
    const VALUES: [&str; 22] = [
        "GET", "GET", "POST", "http", "http", "https", "ftp", "shop", "shop", "shop:80", "me@shop", "[::1]",
        "a:b", "/a", "/a", "/a?b", "/a#b", "/a<", "*", "", " a", "trailers",
    ];

    /// Returns the request as h2 makes it of a header list that it accepts, and checks it like one of hyper's.
    fn as_of_hyper(fields: &[(&str, &str)]) -> Option<()> {
        let pseudo = |name| {
            let mut values = fields.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value);
            values.next().filter(|_| values.next().is_none())
        };
        let last = fields.iter().rposition(|(name, _)| name.starts_with(':'))?;
        let are_first = last + 1 == fields.iter().filter(|(name, _)| name.starts_with(':')).count();
        let mut parts = uri::Parts::default();
        parts.scheme = Some(pseudo(":scheme")?.parse().ok()?);
        parts.authority = Some(pseudo(":authority")?.parse().ok()?);
        parts.path_and_query = Some(pseudo(":path")?.parse().ok()?);
        let target = parts.path_and_query.clone()?;
        let mut request =
            Request::builder().method(pseudo(":method")?).uri(uri::Uri::from_parts(parts).ok()?);
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            request = request.header(http::HeaderName::from_lowercase(name.as_bytes()).ok()?, *value);
        }
        let mut request = request.body(()).ok()?;
        let is_whole = Some(target.as_str()) == pseudo(":path");
        let is_plain = request.method() == "GET" && are_first && is_whole && pseudo(":status").is_none();
        (is_plain && check_http2(&mut request).is_ok()).then_some(())
    }

    fn usual() -> Vec<(&'static str, &'static str)> {
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "shop"),
            (":path", "/a?b"),
            ("accept", "*/*"),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]
        #[test]
        fn plain_requests_pass_every_check_of_other_ones(
            changes in prop::collection::vec((any::<prop::sample::Index>(), select(&NAMES[..]), select(&VALUES[..]), 0..3), 0..3)
        ) {
            let mut fields = usual();
            for (place, name, value, kind) in changes {
                let place = place.index(fields.len());
                match kind {
                    0 => fields[place].1 = value,
                    1 => fields.insert(place, (name, value)),
                    _ => drop((fields.len() > 1).then(|| fields.remove(place))),
                }
            }
            let is_plain = with_plain_request(&fields, |_| ()).is_some();
            prop_assert!(!is_plain || as_of_hyper(&fields).is_some(), "{:?}", fields);
        }
    }

    #[test]
    fn usual_request_is_plain_and_a_doubtful_one_is_not() {
        assert!(with_plain_request(&usual(), |_| ()).is_some());
        for (name, value) in [
            (":method", "GET"),
            ("connection", "close"),
            ("content-length", "0"),
            ("te", "trailers"),
            ("host", "shop"),
            ("Accept", "a"),
            ("", "a"),
            ("a", "b "),
            ("a", "b\0"),
            ("a", "b\r\nc: d"),
        ] {
            let fields = [&usual()[..], &[(name, value)]].concat();
            assert!(with_plain_request(&fields, |_| ()).is_none(), "{name:?}: {value:?}");
        }
        for missing in 0..4 {
            let mut fields = usual();
            fields.remove(missing);
            assert!(with_plain_request(&fields, |_| ()).is_none(), "{missing}");
        }
        let crumbs = [&usual()[..], &[("cookie", "a=b"), ("cookie", "c=d")]].concat();
        assert!(with_plain_request(&crumbs, |_| ()).is_none());
        let lines = [&usual()[..4], &vec![("a", "b"); 100]].concat();
        assert!(with_plain_request(&lines, |_| ()).is_some());
        let lines = [&usual()[..], &vec![("a", "b"); 100]].concat();
        assert!(with_plain_request(&lines, |_| ()).is_none());
    }
}
