//! Validation of HTTP/2 request heads by the rules of HTTP/1.
//!
//! Most applications get HTTP/2 requests over HTTP/1, so that both versions are held to the same rules. h2 has already
//! rejected the requests that RFC 9113 calls malformed and that can be told without a body: repeated pseudo-header
//! fields, connection-specific fields, a wrong length.
//!
//! h2 also reads `:path` itself, before this module sees it, and is stricter than the rules of HTTP/1: `<`, `>`, a
//! backtick in the path and `"` in the query reset the stream, bytes that are not UTF-8 end the connection. It drops
//! fragments.

use http::{
    HeaderMap, HeaderValue, Request,
    header::{CONTENT_LENGTH, COOKIE, HOST},
    uri::Scheme,
};

use super::{
    RequestError,
    head::{MAX_LINES, MAX_TARGET, content_length, in_host},
};

/// Rejects requests that two HTTP parsers could interpret differently, and trims white space around values, as HTTP/1
/// does.
///
/// # Errors
/// The reason, if the request is rejected.
pub fn check_http2<B>(request: &mut Request<B>) -> Result<(), RequestError> {
    trim_values(request.headers_mut());
    let headers = request.headers();
    // A cookie's crumbs are one field in HTTP/1 (section 8.2.3).
    let crumbs = headers.get_all(COOKIE).iter().count().saturating_sub(1);
    if headers.len() - crumbs > MAX_LINES {
        return Err(RequestError::HeadTooLarge);
    }
    check_target(request)?;
    check_host(request)?;
    check_length(headers)
}

fn trim_values(headers: &mut HeaderMap) {
    for value in headers.values_mut() {
        let trimmed = value.as_bytes().trim_ascii();
        if trimmed.len() < value.len()
            && let Ok(trimmed) = HeaderValue::from_bytes(trimmed)
        {
            *value = trimmed;
        }
    }
}

/// Accepts a path or `*` of an HTTP URI (RFC 9113, section 8.3.1); CONNECT has neither.
fn check_target<B>(request: &Request<B>) -> Result<(), RequestError> {
    let target = request.uri();
    let path = target.path_and_query().map_or("", |path| path.as_str());
    let has_form = path == "*" || path.starts_with('/') || request.method() == "CONNECT" && path.is_empty();
    let is_http = target.scheme().is_none_or(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
    if path.len() > MAX_TARGET {
        Err(RequestError::TargetTooLong)
    } else if has_form && is_http {
        Ok(())
    } else {
        Err(RequestError::Target)
    }
}

/// Requires exactly one host: `:authority`, `Host`, or both if they are equal (RFC 9113, section 8.3.1).
fn check_host<B>(request: &Request<B>) -> Result<(), RequestError> {
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let mut hosts = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    let host = match (authority, hosts.next(), hosts.next()) {
        (Some(authority), Some(host), None) if authority.eq_ignore_ascii_case(host) => authority,
        (Some(host), None, None) | (None, Some(host), None) => host,
        _ => return Err(RequestError::Host),
    };
    if host.iter().copied().all(in_host) { Ok(()) } else { Err(RequestError::Host) }
}

fn check_length(headers: &HeaderMap) -> Result<(), RequestError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) => content_length(length.as_bytes()).map(drop),
        (Some(_), Some(_)) => Err(RequestError::ContentLength),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Method, Uri};

    use super::*;

    fn check(method: &str, uri: &'static str, lines: &[(&'static str, &str)]) -> Result<(), RequestError> {
        let mut request = Request::new(());
        *request.method_mut() = method.parse::<Method>().unwrap();
        *request.uri_mut() = Uri::from_static(uri);
        for (name, value) in lines {
            request
                .headers_mut()
                .append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        check_http2(&mut request)
    }

    #[test]
    fn request_refused_by_http_1_is_refused() {
        const URI: &str = "http://shop/a";
        for (method, uri, lines, error) in [
            ("GET", "http://me@shop/a", &[][..], RequestError::Host),
            ("GET", "http://me:secret@shop/a", &[], RequestError::Host),
            ("GET", "ftp://shop/a", &[], RequestError::Target),
            ("GET", URI, &[("host", "other")], RequestError::Host),
            ("GET", URI, &[("host", "shop:80")], RequestError::Host),
            ("GET", URI, &[("host", "shop"), ("host", "shop")], RequestError::Host),
            ("GET", "/a", &[], RequestError::Host),
            ("GET", "/a", &[("host", "a/b")], RequestError::Host),
            ("GET", "/a", &[("host", "a b")], RequestError::Host),
            ("GET", "/a", &[("host", "a"), ("host", "b")], RequestError::Host),
            ("POST", URI, &[("content-length", "5"), ("content-length", "5")], RequestError::ContentLength),
            ("POST", URI, &[("content-length", "+5")], RequestError::ContentLength),
            ("POST", URI, &[("content-length", "5, 5")], RequestError::ContentLength),
        ] {
            assert_eq!(check(method, uri, lines), Err(error), "{method} {uri} {lines:?}");
        }
        assert_eq!(check("GET", URI, &vec![("x", "a"); 101]), Err(RequestError::HeadTooLarge));
    }

    #[test]
    fn white_space_around_a_value_goes() {
        let mut request = Request::get("http://shop/").header("x", "\t a b ").body(()).unwrap();
        assert_eq!(check_http2(&mut request), Ok(()));
        assert_eq!(request.headers()["x"], "a b");
    }

    #[test]
    fn request_accepted_by_http_1_is_accepted() {
        for (method, uri, lines) in [
            ("GET", "http://shop/a?b", &vec![("x", "a"); 100][..]),
            ("GET", "http://shop/", &vec![("cookie", "a=b"); 200]),
            ("GET", "https://shop:8080/", &[("host", "SHOP:8080")]),
            ("GET", "/a", &[("host", "shop")]),
            ("POST", "http://[::1]:80/a", &[("content-length", "5")]),
            ("OPTIONS", "*", &[("host", "shop")]),
            ("CONNECT", "shop:80", &[]),
        ] {
            assert_eq!(check(method, uri, lines), Ok(()), "{method} {uri} {lines:?}");
        }
    }
}
