//! Heads with faults that have one meaning, which are rewritten.

use memchr::memchr;

use super::{HeadError, ResponseFraming, StatusLine, lines, printable};
use crate::{headers::TransferCoding, sniff};

/// Prefixes of field names whose lines must not be lost, because they frame the body, describe it or limit who may receive it.
const SIGNIFICANT: [&str; 10] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "content-encoding",
    "content-range",
    "expires",
    "pragma",
    "set-cookie",
    "surrogate-control",
    "vary",
];
const CACHE_CONTROL: &str = "cache-control";

/// Rewrites a head: one line for each field, without lines that have no name, and with a space for each control character.
pub(super) fn repair(
    head: &[u8],
    status_line: &StatusLine<'_>,
) -> Result<(Vec<u8>, ResponseFraming), HeadError> {
    let mut fields: Vec<(&[u8], Vec<u8>)> = Vec::new();
    // True while a continuation line belongs to a retained field (RFC 9112, section 5.2).
    let mut is_kept = false;
    let mut is_doubtful = false;
    for line in lines(head).skip(1) {
        if matches!(line.first(), Some(b' ' | b'\t')) && !fields.is_empty() {
            if is_kept && let Some((_, value)) = fields.last_mut() {
                value.push(b' ');
                value.extend(printable(line)?);
            }
            continue;
        }
        let named = split(line).map(|(name, value)| (name.trim_ascii_end(), value));
        is_kept = named.is_some_and(|(name, _)| is_token(name));
        match named.filter(|_| is_kept) {
            Some((name, value)) => fields.push((name, printable(value)?)),
            None if is_significant(line) => return Err(HeadError::Field),
            None => is_doubtful = true,
        }
    }
    let mut framing = ResponseFraming::default();
    fields.iter().for_each(|(name, value)| framing.see(name, value));
    let mut repaired = status_line.written()?;
    for (name, value) in fields {
        let is_coding = name.eq_ignore_ascii_case(b"transfer-encoding");
        is_doubtful |= is_coding || name.eq_ignore_ascii_case(b"content-length");
        if !is_coding || framing.coding != TransferCoding::Identity {
            repaired.extend([name, b": ", value.trim_ascii(), b"\r\n"].concat());
        }
    }
    // The application may have meant something else, so this connection is not read any further.
    if is_doubtful && status_line.status >= 200 {
        repaired.extend(b"Connection: close\r\n");
    }
    repaired.extend(b"\r\n");
    Ok((repaired, framing))
}

fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr(b':', line)?;
    Some((&line[..colon], &line[colon + 1..]))
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| sniff::is_token(byte))
}

/// Returns true if a line with an invalid name would be significant without the invalid characters.
fn is_significant(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    let name: String = name
        .iter()
        .filter(|&&byte| sniff::is_token(byte))
        .map(|byte| byte.to_ascii_lowercase() as char)
        .collect();
    name.contains(CACHE_CONTROL) || SIGNIFICANT.iter().any(|significant| name.starts_with(significant))
}
