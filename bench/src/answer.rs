//! The response of all servers: the same headers and as many bytes as the path requests.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};

/// Maximum size of a body, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Returns the number of bytes that a path such as `/1024` requests.
pub fn size_of(path: &str) -> Option<usize> {
    path.strip_prefix('/')?.parse().ok().filter(|size| *size <= MAX_BODY_BYTES)
}

/// Returns the response for this path: a cacheable body of that size, or 404.
pub fn at(path: &str) -> Response<Full<Bytes>> {
    let Some(size) = size_of(path) else {
        let mut missing = Response::new(Full::default());
        *missing.status_mut() = StatusCode::NOT_FOUND;
        return missing;
    };
    Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CACHE_CONTROL, "max-age=3600")
        .header(header::ETAG, format!("\"{size}-1\""))
        .header(header::LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT")
        .body(Full::new(Bytes::from(vec![b'x'; size])))
        .expect("each of these names and values is valid")
}

#[cfg(test)]
mod tests {
    use hyper::body::Body as _;

    use super::*;

    #[test]
    fn path_gives_the_number_of_bytes() {
        assert_eq!(at("/1024").into_body().size_hint().exact(), Some(1024));
        assert_eq!(at("/0").status(), StatusCode::OK);
        for path in ["/", "1024", "/x", "/-1", "/99999999999"] {
            assert_eq!(at(path).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
