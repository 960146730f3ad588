//! Header fields that a proxy removes, adds and interprets.

use std::net::IpAddr;

use bytes::BufMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Version,
    header::{
        CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, EXPECT, EXPIRES, FORWARDED,
        HOST, MAX_FORWARDS, PRAGMA, SET_COOKIE, TRANSFER_ENCODING, UPGRADE, VARY, VIA,
    },
};
use larder_policy::{Fields, is_named};

mod lines;

pub use lines::{FieldLines, TextLines};

/// Room for the status line and the fields that are added to a response's own, in bytes.
pub(crate) const USUAL_ADDED: usize = 192;

/// End-to-end fields that `Connection` must not name (section 7.6.1), because they describe the response or restrict
/// its recipients.
static END_TO_END: [HeaderName; 9] =
    [CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, EXPIRES, HOST, PRAGMA, SET_COOKIE, VARY];

/// This proxy in `Via`, for requests over HTTP/1.1.
pub const VIA_HTTP_11: &str = "1.1 larder";

/// Field by which a response of the application purges.
pub static LARDER_PURGE: HeaderName = HeaderName::from_static("larder-purge");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The transfer codings of a message (RFC 9112, section 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransferCoding {
    /// None.
    #[default]
    None,
    /// Only `identity`, which RFC 7230 removed.
    Identity,
    /// `chunked`, once.
    Chunked,
    /// Any other, which is not decoded here.
    Unsupported,
}

impl TransferCoding {
    /// Returns the transfer codings of a message.
    pub fn of(fields: &impl Fields) -> Self {
        fields.values(TRANSFER_ENCODING.as_str()).fold(Self::None, Self::followed_by)
    }

    /// Returns these codings followed by those of a further line.
    pub fn followed_by(self, line: &[u8]) -> Self {
        let names = line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
        let before = if self == Self::None { Self::Identity } else { self };
        names.fold(before, |coding, name| match coding {
            Self::Identity if name.eq_ignore_ascii_case(b"identity") => Self::Identity,
            Self::Identity if name.eq_ignore_ascii_case(b"chunked") => Self::Chunked,
            _ => Self::Unsupported,
        })
    }
}

/// Writes a field line.
#[inline]
pub fn write_line(output: &mut impl BufMut, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        output.put_slice(part);
    }
}

/// Reads a line of `Connection` that has no other options than `close` and `keep-alive`, and returns true if it has
/// `close`; `None` if it has others.
pub fn only_closes_or_keeps_alive(line: &[u8]) -> Option<bool> {
    let mut closes = false;
    for option in line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        if option.eq_ignore_ascii_case(b"close") {
            closes = true;
        } else if !option.eq_ignore_ascii_case(b"keep-alive") {
            return None;
        }
    }
    Some(closes)
}

/// Removes hop-by-hop fields.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let Some(hop_by_hop) = HopByHop::of(headers) else { return };
    let is_removed = |name: &&HeaderName| hop_by_hop.covers(name.as_str().as_bytes());
    let removed: Vec<_> = headers.keys().filter(is_removed).cloned().collect();
    for name in removed {
        headers.remove(name);
    }
}

/// Returns the fields of a message without the hop-by-hop ones.
pub fn end_to_end(fields: &(impl Fields + ?Sized)) -> FieldLines {
    match HopByHop::of(fields) {
        None => fields.lines().collect(),
        Some(hop_by_hop) => fields.lines().filter(|(name, _)| !hop_by_hop.covers(name)).collect(),
    }
}

/// The fields of a message that are not passed on (RFC 9110, section 7.6.1).
#[derive(Default)]
struct HopByHop<'a> {
    /// The options of `Connection`.
    options: Vec<&'a [u8]>,
    has_transfer_encoding: bool,
    /// True if `TE` has more than "trailers". That is a promise of the whole chain; it may stay because trailers are passed on.
    has_codings: bool,
}

impl<'a> HopByHop<'a> {
    /// Returns the fields of a message that are not passed on. Most messages have none.
    fn of(fields: &'a (impl Fields + ?Sized)) -> Option<Self> {
        let mut found = None::<Self>;
        for (name, value) in fields.lines() {
            if is_hop_by_hop(name) {
                let found = found.get_or_insert_default();
                found.has_transfer_encoding |= is_named(name, b"transfer-encoding");
                if is_named(name, b"connection") {
                    found.options.extend(value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
                }
            } else if is_named(name, b"te") && !value.eq_ignore_ascii_case(b"trailers") {
                found.get_or_insert_default().has_codings = true;
            }
        }
        found
    }

    fn covers(&self, name: &[u8]) -> bool {
        is_hop_by_hop(name)
            || self.has_codings && is_named(name, b"te")
            // The coding delimits the body; a length might mislead the next recipient (RFC 9112, section 6.3).
            || self.has_transfer_encoding && is_named(name, b"content-length")
            || self.options.iter().any(|option| option.eq_ignore_ascii_case(name)) && !is_end_to_end(name)
    }
}

/// Returns true for hop-by-hop fields besides those that `Connection` names, and `TE`.
fn is_hop_by_hop(name: &[u8]) -> bool {
    match name.len() {
        7 => is_named(name, b"upgrade"),
        10 => is_named(name, b"connection") || is_named(name, b"keep-alive"),
        14 => is_named(name, b"http2-settings"),
        16 => is_named(name, b"proxy-connection"),
        17 => is_named(name, b"transfer-encoding"),
        18 => is_named(name, b"proxy-authenticate"),
        _ => false,
    }
}

fn is_end_to_end(name: &[u8]) -> bool {
    END_TO_END.iter().any(|known| known.as_str().as_bytes().eq_ignore_ascii_case(name))
}

/// Decrements `Max-Forwards`.
pub fn count_forward<B>(request: &mut Request<B>) {
    if let Some(left) = forwards_left(request.method(), request.headers()) {
        request.headers_mut().insert(MAX_FORWARDS, left.saturating_sub(1).into());
    }
}

/// Returns the number of times that a request may still be forwarded, this time included (RFC 9110, section 7.6.2).
/// `None` means without a limit, and 0 that the recipient must respond.
pub fn forwards_left(method: &Method, fields: &impl Fields) -> Option<u64> {
    if *method != Method::OPTIONS && *method != Method::TRACE {
        return None;
    }
    let value = fields.values(MAX_FORWARDS.as_str()).next()?;
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // A number with too many digits saturates.
    let more = |left: u64, digit: &u8| left.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(value.iter().fold(0, more))
}

/// Adds the client's address and this proxy to the request (RFC 9110, section 7.6.3), also in `Forwarded` (RFC 7239) if
/// the request already has it.
pub fn announce(headers: &mut HeaderMap, client: IpAddr, version: Version) {
    append_to_list(headers, X_FORWARDED_FOR, address(client));
    if headers.contains_key(FORWARDED) {
        append_to_list(
            headers,
            FORWARDED,
            HeaderValue::try_from(forwarded_node(client)).expect(ADDRESS_IS_ASCII),
        );
    }
    let via = match version {
        Version::HTTP_2 => const { HeaderValue::from_static("2 larder") },
        Version::HTTP_10 => const { HeaderValue::from_static("1.0 larder") },
        _ => const { HeaderValue::from_static(VIA_HTTP_11) },
    };
    append_to_list(headers, VIA, via);
}

/// Returns the client in `Forwarded` (RFC 7239).
pub fn forwarded_node(client: IpAddr) -> String {
    match client {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    }
}

const ADDRESS_IS_ASCII: &str = "an IP address is visible ASCII";

/// Returns an address as text. IPv4 addresses, which most clients have, are written without the formatter: every forwarded
/// request carries one.
fn address(client: IpAddr) -> HeaderValue {
    let IpAddr::V4(ip) = client else {
        return HeaderValue::try_from(client.to_string()).expect(ADDRESS_IS_ASCII);
    };
    let (mut text, mut length, mut digits) = ([b'.'; 15], 0, itoa::Buffer::new());
    for octet in ip.octets() {
        let digits = digits.format(octet).as_bytes();
        text[length..length + digits.len()].copy_from_slice(digits);
        length += digits.len() + 1;
    }
    HeaderValue::from_bytes(&text[..length - 1]).expect(ADDRESS_IS_ASCII)
}

/// Appends to a list field, on its last line, because not every application reads several lines.
fn append_to_list(headers: &mut HeaderMap, name: HeaderName, item: HeaderValue) {
    let lines: Vec<_> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let value = if lines.is_empty() {
        Ok(item)
    } else {
        HeaderValue::from_bytes(&[&lines.join(&b", "[..]), item.as_bytes()].join(&b", "[..]))
    };
    if let Ok(value) = value {
        headers.insert(name, value);
    }
}

/// Returns the protocol that a message wants to change to, or changes to (RFC 9110, section 7.8).
///
/// HTTP/2 is ignored, even in a list: clients offer it opportunistically (Java's does, on the first request of every
/// connection), with a field that ends here, and continue with ordinary requests. An application that accepted would
/// speak a protocol in which the sidecar reads no requests.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    let lines: Vec<_> = headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes).collect();
    let protocols = lines.join(&b", "[..]);
    let has_http2 = protocols.split(|byte| *byte == b',').any(|protocol| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"h2c")
    });
    if !asked || has_http2 || lines.is_empty() { None } else { HeaderValue::from_bytes(&protocols).ok() }
}

/// Returns true if a client waits for a 100 before it sends its body (RFC 9110, section 10.1.1).
pub fn expects_to_go_on(headers: &HeaderMap) -> bool {
    headers.get_all(EXPECT).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Asks the application to change to a protocol.
pub fn ask_for_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn connection_headers_are_removed() {
        let mut map = headers(&[
            ("connection", "close, X-Secret, Host"),
            ("host", "shop"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "shop"), ("accept", "*/*")]));
    }

    #[test]
    fn only_trailers_are_promised_to_the_application() {
        for (lines, keeps) in [
            (&["trailers"][..], true),
            (&["Trailers"], true),
            (&["gzip"], false),
            (&["trailers, gzip"], false),
            (&["trailers", "gzip"], false),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("te", *line)).collect();
            let mut map = headers(&lines);
            remove_hop_by_hop(&mut map);
            assert_eq!(map.contains_key("te"), keeps, "{lines:?}");
        }
    }

    #[test]
    fn end_to_end_fields_are_those_that_stay_in_a_map() {
        for lines in [
            &[("Etag", "a"), ("vary", "b")][..],
            &[("Connection", "close, X-Own ,Vary"), ("X-OWN", "1"), ("Vary", "b"), ("x-own", "2")],
            &[
                ("transfer-encoding", "chunked"),
                ("content-length", "1"),
                ("keep-alive", "timeout=5"),
                ("a", "b"),
            ],
            &[("te", "trailers"), ("upgrade", "h2c"), ("proxy-authenticate", "x"), ("trailer", "x-sum")],
            &[("te", "gzip"), ("http2-settings", "x"), ("proxy-connection", "close")],
        ] {
            let mut map = headers(lines);
            let raw: Vec<_> = lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            let found = end_to_end(raw.as_slice());
            remove_hop_by_hop(&mut map);
            assert_eq!(found.to_map(), map, "{lines:?}");
        }
    }

    #[test]
    fn end_to_end_headers_survive_connection_nomination() {
        let mut map = headers(&[
            ("connection", "cache-control, Set-Cookie, vary, x"),
            ("cache-control", "private"),
            ("set-cookie", "a=b"),
            ("vary", "cookie"),
            ("x", "1"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("cache-control", "private"), ("set-cookie", "a=b"), ("vary", "cookie")]));
    }

    #[test]
    fn content_length_beside_a_transfer_coding_is_removed() {
        let mut map =
            headers(&[("content-length", "1"), ("transfer-encoding", "chunked"), ("accept", "*/*")]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn only_chunked_is_a_supported_transfer_coding() {
        for (lines, coding) in [
            (&[][..], TransferCoding::None),
            (&[""], TransferCoding::Identity),
            (&["identity"], TransferCoding::Identity),
            (&["chunked"], TransferCoding::Chunked),
            (&["Chunked"], TransferCoding::Chunked),
            (&["identity", "chunked"], TransferCoding::Chunked),
            (&["gzip"], TransferCoding::Unsupported),
            (&["gzip, chunked"], TransferCoding::Unsupported),
            (&["gzip", "chunked"], TransferCoding::Unsupported),
            (&["chunked, gzip"], TransferCoding::Unsupported),
            (&["chunked, identity"], TransferCoding::Unsupported),
            (&["chunked", "chunked"], TransferCoding::Unsupported),
            (&["chunked;q=1"], TransferCoding::Unsupported),
            (&["xchunked"], TransferCoding::Unsupported),
            (&["chunkedx"], TransferCoding::Unsupported),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("transfer-encoding", *line)).collect();
            assert_eq!(TransferCoding::of(&headers(&lines)), coding, "{lines:?}");
        }
    }

    #[test]
    fn max_forwards_is_decremented() {
        for (method, said, left, says) in [
            (Method::OPTIONS, "3", Some(3), "2"),
            (Method::TRACE, "1", Some(1), "0"),
            (Method::OPTIONS, "0", Some(0), "0"),
            (Method::TRACE, "99999999999999999999", Some(u64::MAX), "18446744073709551614"),
            (Method::OPTIONS, "-1", None, "-1"),
            (Method::OPTIONS, "", None, ""),
            (Method::GET, "0", None, "0"),
        ] {
            let mut request = Request::new(());
            *request.method_mut() = method.clone();
            *request.headers_mut() = headers(&[("max-forwards", said)]);
            assert_eq!(forwards_left(&method, request.headers()), left, "{method} {said}");
            count_forward(&mut request);
            assert_eq!(request.headers()[MAX_FORWARDS], says, "{method} {said}");
        }
        assert_eq!(forwards_left(&Method::OPTIONS, &HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn address_has_the_bytes_of_its_text(v4 in any::<[u8; 4]>(), v6 in any::<[u16; 8]>()) {
            for ip in [IpAddr::from(v4), IpAddr::from(v6)] {
                let mut map = HeaderMap::new();
                announce(&mut map, ip, Version::HTTP_2);
                let text = ip.to_string();
                prop_assert_eq!(map, headers(&[("x-forwarded-for", &text), ("via", "2 larder")]));
            }
        }
    }

    #[test]
    fn shortest_and_longest_addresses_are_whole() {
        for ip in ["0.0.0.0", "255.255.255.255", "9.10.99.100", "::", "ff02::1"] {
            assert_eq!(address(ip.parse().unwrap()), ip);
        }
    }

    #[test]
    fn client_is_appended_to_x_forwarded_for() {
        let mut map = headers(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2")]);
        announce(&mut map, IpAddr::from([10, 0, 0, 3]), Version::HTTP_11);
        assert_eq!(
            map,
            headers(&[("x-forwarded-for", "10.0.0.1, 10.0.0.2, 10.0.0.3"), ("via", "1.1 larder")])
        );
    }

    #[test]
    fn client_is_appended_to_an_existing_forwarded() {
        let mut map = headers(&[("forwarded", "for=192.0.2.1;proto=https")]);
        announce(&mut map, "::1".parse().unwrap(), Version::HTTP_11);
        assert_eq!(map[FORWARDED], "for=192.0.2.1;proto=https, for=\"[::1]\"");
    }

    #[test]
    fn an_upgrade_must_be_named_by_connection() {
        assert!(
            upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some()
        );
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
    }

    #[test]
    fn an_upgrade_to_http_2_is_none() {
        for lines in
            [&["h2c"][..], &["H2C"], &["h2c, x"], &["x,h2c"], &["x", "h2c"], &["x, y", "z ,\tH2c/2 "]]
        {
            let lines = lines.iter().map(|line| ("upgrade", *line)).chain([("connection", "Upgrade")]);
            assert!(upgrade(&headers(&lines.collect::<Vec<_>>())).is_none());
        }
        let two = [("connection", "Upgrade"), ("upgrade", "x"), ("upgrade", "h2cx")];
        assert_eq!(upgrade(&headers(&two)).unwrap(), "x, h2cx");
    }
}
