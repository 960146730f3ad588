//! The host in a key and in the request to the application.

use http::header::HOST;

use super::{
    FORWARDED_HOST, FORWARDED_PROTO, KeyRules, PLAIN,
    text::{first, push_in_url},
};
use crate::Fields;

/// Bytes of which a host is usually made: each is in lower case, and none is encoded.
const USUAL: [bool; 256] = {
    let mut usual = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let letter = byte as u8;
        usual[byte] =
            letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, b'-' | b'.' | b':');
        byte += 1;
    }
    usual
};

/// Adds a host in its normal form.
pub(super) fn push_normal(into: &mut String, host: &[u8], scheme: &[u8]) {
    let host = without_default_port(host, scheme);
    // One pass over the host of most requests, in place of one that encodes it and one that makes letters lower-case.
    if host.iter().all(|byte| USUAL[usize::from(*byte)])
        && let Ok(host) = str::from_utf8(host)
    {
        into.push_str(host);
        return;
    }
    let from = into.len();
    push_in_url(into, host);
    into[from..].make_ascii_lowercase();
}

/// Returns the host to send to the application, if it differs from the client's: that of the key, in lower case and without the
/// default port of the scheme (RFC 3986, section 6.2.3), so that requests with one key are one request. A host is sent as it came
/// where it is not in the key, or where the client names several.
pub fn host_to_send(
    uri_host: Option<&str>,
    fields: &(impl Fields + ?Sized),
    rules: &KeyRules,
) -> Option<Vec<u8>> {
    let mut lines = fields.values(HOST.as_str());
    let host = match uri_host {
        Some(host) => host.as_bytes(),
        None => lines.next().filter(|_| lines.next().is_none())?,
    };
    // Few hosts differ: only for those are the headers searched that most requests lack.
    let has_port = host.ends_with(b":80") || host.ends_with(b":443");
    let may_differ = has_port || host.iter().any(u8::is_ascii_uppercase);
    if !may_differ || rules.any_host.is_some() || host.contains(&b',') || fields.has(FORWARDED_HOST) {
        return None;
    }
    let scheme = fields.value(FORWARDED_PROTO).map_or(PLAIN, first);
    let normal = without_default_port(host, scheme).to_ascii_lowercase();
    (normal != host).then_some(normal)
}

fn without_default_port<'a>(host: &'a [u8], scheme: &[u8]) -> &'a [u8] {
    let port: &[u8] = match scheme {
        b"http" => b":80",
        b"https" => b":443",
        _ => return host,
    };
    host.strip_suffix(port).filter(|name| !name.is_empty()).unwrap_or(host)
}
