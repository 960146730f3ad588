//! Heads of the application's responses, as the client gets them.

use http::{
    HeaderName, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use hyper::ext::ReasonPhrase;
use larder_policy::{Fields, date, is_named};

use crate::{
    cache_status::CacheStatus,
    clock::wall_ms,
    head_room,
    headers::{self, LARDER_PURGE},
    proxy::deadline::is_stream,
    upstream::{BodyFraming, FieldLine, RawHead},
};

/// Pace of a body, as its head states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The body comes without long pauses.
    Steady,
    /// The body may be silent for any time.
    MayBeSilent,
}

impl Pace {
    fn of(content_type: &[u8]) -> Self {
        if is_stream(content_type) { Self::MayBeSilent } else { Self::Steady }
    }
}

/// Writes the head of a response, if that needs no more than to leave some of its lines out, among them those of the `removed` fields.
/// Otherwise nothing is written.
///
/// Lines that remain are copied as they are, so that the case and order of their names survive.
pub(super) fn write_lines(
    output: &mut Vec<u8>,
    head: &RawHead,
    is_head: bool,
    removed: &[HeaderName],
    status: CacheStatus,
    closes: bool,
) -> Option<Pace> {
    let start = output.len();
    let pace = copy_lines(output, head, is_head, removed);
    if pace.is_none() {
        output.truncate(start);
        return None;
    }
    status.write_to(output);
    if closes {
        output.extend_from_slice(b"connection: close\r\n");
    }
    output.extend_from_slice(b"\r\n");
    pace
}

fn copy_lines(output: &mut Vec<u8>, head: &RawHead, is_head: bool, removed: &[HeaderName]) -> Option<Pace> {
    let bytes = head.bytes();
    let (framing, status) = (head.framing(), head.status());
    let is_chunked = framing.is_chunked_for_client();
    let has_length = !matches!(status, 204 | 304);
    let (mut has_date, mut pace, mut lengths, mut codings) = (false, None, 0, 0);
    output.reserve(bytes.len() + headers::USUAL_ADDED);
    // The version is that of this connection (RFC 9110, section 2.5).
    output.extend_from_slice(b"HTTP/1.1");
    // The space before a reason stays even if that is empty.
    if bytes.len() > head_room::SMALL || bytes.get(12) != Some(&b' ') || !head.has_usual_breaks() {
        return None;
    }
    let is_removed =
        |name: &[u8]| removed.iter().any(|removed| name.eq_ignore_ascii_case(removed.as_str().as_bytes()));
    // The lines from here on are copied.
    let mut copied = 8;
    for FieldLine { name, value, start, end } in head.lines() {
        let is_dropped = match name.len() {
            2 if is_named(name, b"te") => return None,
            4 => {
                has_date |= is_named(name, b"date");
                false
            }
            7 if is_named(name, b"trailer") => return None,
            7 => is_named(name, b"upgrade"),
            10 if is_named(name, b"connection") => {
                headers::only_closes_or_keeps_alive(value)?;
                true
            }
            10 => is_named(name, b"keep-alive"),
            12 if is_named(name, b"content-type") => {
                if pace.replace(Pace::of(value)).is_some() {
                    return None;
                }
                false
            }
            12 => is_named(name, b"larder-purge"),
            14 if is_named(name, b"content-length") => {
                lengths += 1;
                let is_written_so =
                    value.iter().all(u8::is_ascii_digit) && (value == b"0" || !value.starts_with(b"0"));
                if lengths > 1 || codings > 0 || !has_length || !is_written_so {
                    return None;
                }
                false
            }
            14 => is_named(name, b"http2-settings"),
            16 => is_named(name, b"proxy-connection"),
            17 if is_named(name, b"transfer-encoding") => {
                codings += 1;
                if !is_chunked || lengths > 0 {
                    return None;
                }
                true
            }
            18 => is_named(name, b"proxy-authenticate"),
            _ => false,
        };
        if is_dropped || is_removed(name) {
            output.extend_from_slice(&bytes[copied..start]);
            copied = end;
        }
    }
    output.extend_from_slice(&bytes[copied..bytes.len() - 2]);
    if is_chunked {
        output.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if lengths == 0 && has_length && !is_head {
        return None;
    }
    if !has_date {
        headers::write_line(output, b"date", &date::format(wall_ms() / 1000));
    }
    Some(pace.unwrap_or(Pace::Steady))
}

/// Removes the fields of the application's connection, the `removed` ones and `Larder-Purge` from a response, and returns the pace of its body.
pub(super) fn clean<B>(response: &mut Response<B>, removed: &[HeaderName]) -> Pace {
    headers::remove_hop_by_hop(response.headers_mut());
    for name in removed.iter().chain([&LARDER_PURGE]) {
        response.headers_mut().remove(name);
    }
    let content_type = response.headers().get(CONTENT_TYPE);
    content_type.map_or(Pace::Steady, |content_type| Pace::of(content_type.as_bytes()))
}

/// Writes the head of any response, with the fields that frame its body.
pub(super) fn write(
    output: &mut Vec<u8>,
    response: &Response<impl Sized>,
    framing: BodyFraming,
    is_head: bool,
    closes: bool,
) {
    write_fields(output, response, response.headers(), framing, is_head, closes);
    output.extend_from_slice(b"\r\n");
}

/// Writes the head of a response with these fields and those that frame its body, without the empty line at its end.
pub(super) fn write_fields(
    output: &mut Vec<u8>,
    response: &Response<impl Sized>,
    fields: &impl Fields,
    framing: BodyFraming,
    is_head: bool,
    closes: bool,
) {
    let status = response.status();
    let reason = match response.extensions().get::<ReasonPhrase>() {
        Some(reason) => reason.as_bytes(),
        None => status.canonical_reason().unwrap_or_default().as_bytes(),
    };
    for part in [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason, b"\r\n"] {
        output.extend_from_slice(part);
    }
    let has_length = !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_chunked = framing.is_chunked_for_client();
    // The length of the response to GET, if it is known.
    let keeps_length = is_head
        && framing == BodyFraming::Length(0)
        && fields.values(CONTENT_LENGTH.as_str()).nth(1).is_none();
    let mut has_date = false;
    for (name, value) in fields.lines() {
        let is_dropped = match name.len() {
            4 => {
                has_date |= is_named(name, b"date");
                false
            }
            7 => (is_head || !has_length) && is_named(name, b"trailer"),
            10 => closes && is_named(name, b"connection"),
            14 => !keeps_length && is_named(name, b"content-length"),
            17 => is_chunked && is_named(name, b"transfer-encoding"),
            _ => false,
        };
        if !is_dropped {
            headers::write_line(output, name, value);
        }
    }
    match framing {
        BodyFraming::Length(0) if is_head => {}
        BodyFraming::Length(length) if has_length => {
            let mut digits = itoa::Buffer::new();
            headers::write_line(output, b"content-length", digits.format(length).as_bytes());
        }
        BodyFraming::Length(_) => {}
        BodyFraming::Chunked | BodyFraming::UntilClose => {
            output.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
    }
    if closes {
        output.extend_from_slice(b"connection: close\r\n");
    }
    if !has_date {
        headers::write_line(output, b"date", &date::format(wall_ms() / 1000));
    }
}
