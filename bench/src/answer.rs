//! The response of all servers: the same headers and as many bytes as the path requests.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use larder_policy::date;

/// Maximum size of a body, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

const CONTENT_TYPE: &str = "application/octet-stream";
const CACHE_CONTROL: &str = "max-age=3600";
const LAST_MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// Returns the number of bytes that a path such as `/1024`, `/1024/7` or `/shared/1024/7` requests: the first of its
/// segments that is a number.
pub fn size_of(path: &str) -> Option<usize> {
    let mut segments = path.strip_prefix('/')?.split('/');
    segments.find_map(|segment| segment.parse().ok()).filter(|size| *size <= MAX_BODY_BYTES)
}

/// Returns the entity tag of a body of this size.
pub fn tag_of(size: usize) -> String {
    format!("\"{size}-1\"")
}

/// Returns the response for this path: a cacheable body of that size, or 404.
pub fn at(path: &str) -> Response<Full<Bytes>> {
    let Some(size) = size_of(path) else {
        let mut missing = Response::new(Full::default());
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return missing;
    };
    Response::builder()
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .header(header::CACHE_CONTROL, CACHE_CONTROL)
        .header(header::ETAG, tag_of(size))
        .header(header::LAST_MODIFIED, LAST_MODIFIED)
        .body(Full::new(Bytes::from(vec![b'x'; size])))
        .expect("each of these names and values is valid")
}

/// Returns the bytes of the same response over HTTP/1.1, at `now` in seconds since the Unix epoch.
pub fn over_http1(path: &str, now: u64) -> Bytes {
    let Some(size) = size_of(path) else {
        return Bytes::from_static(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    };
    let date = date::format(now);
    let date = str::from_utf8(&date).expect("an HTTP date is visible ASCII");
    let tag = tag_of(size);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {CONTENT_TYPE}\r\ncache-control: {CACHE_CONTROL}\r\netag: {tag}\r\n\
         last-modified: {LAST_MODIFIED}\r\ncontent-length: {size}\r\ndate: {date}\r\n\r\n"
    );
    Bytes::from([head.as_bytes(), &vec![b'x'; size]].concat())
}

#[cfg(test)]
mod tests {
    use hyper::body::Body as _;

    use super::*;

    #[test]
    fn path_gives_the_number_of_bytes() {
        assert_eq!(at("/1024").into_body().size_hint().exact(), Some(1024));
        assert_eq!(at("/shared/1024/7").into_body().size_hint().exact(), Some(1024));
        assert_eq!(at("/0").status(), StatusCode::OK);
        for path in ["/", "1024", "/x", "/-1", "/99999999999"] {
            assert_eq!(at(path).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn both_forms_have_the_same_fields() {
        let (response, text) = (at("/10"), over_http1("/10", 0));
        let text = str::from_utf8(&text).unwrap();
        for (name, value) in response.headers() {
            let line = format!("\r\n{name}: {}\r\n", value.to_str().unwrap());
            assert!(text.contains(&line), "{line:?} in {text:?}");
        }
        assert!(text.ends_with("\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nxxxxxxxxxx"), "{text}");
        assert!(over_http1("/", 0).starts_with(b"HTTP/1.1 404 "));
    }
}
