//! Range requests.

use http::Method;
use tokio::io::AsyncWriteExt;

use super::harness::{Origin, RawOrigin, Sidecar, exchange, read_head, reply, until};

const BODY: &str = "0123456789";
const MODIFIED: &str = "Sat, 21 Nov 2020 10:00:00 GMT";

/// An application that responds with [`BODY`], or a part of it, under the tag that `x-tag` names or `"a"`.
async fn in_parts() -> Origin {
    Origin::start(|seen| async move {
        let tag = if seen.header("x-tag").is_empty() { "\"a\"" } else { seen.header("x-tag") };
        let headers = [("etag", tag), ("cache-control", "max-age=60"), ("last-modified", MODIFIED)];
        let range = seen.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let holds = ["", tag].contains(&seen.header("if-range"));
        let Some((first, last)) = range.filter(|_| holds) else { return reply(&headers, BODY) };
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let mut part = reply(&headers, &BODY[first..=last]);
        *part.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {first}-{last}/{}", BODY.len());
        part.headers_mut().insert("content-range", range.parse().unwrap());
        part
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn range_is_served_from_a_stored_whole_response() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for (range, status, body, content_range) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-2", 206, "89", "bytes 8-9/10"),
        ("bytes=-99", 206, BODY, "bytes 0-9/10"),
        ("bytes=5-99", 206, "56789", "bytes 5-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("bytes=-0", 416, "", "bytes */10"),
        ("bytes=4-2", 200, BODY, ""),
        ("items=0-1", 200, BODY, ""),
        ("bytes=0-1x", 200, BODY, ""),
    ] {
        let answer = sidecar.get_with("/", &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, body), "{range}");
        assert_eq!((answer.header("content-range"), answer.hit()), (content_range, Some("l1")), "{range}");
        assert_eq!(answer.header("content-length"), body.len().to_string(), "{range}");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn range_is_served_only_if_if_range_matches() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    for (if_range, status) in [
        ("\"a\"", 206),
        ("\"b\"", 200),
        ("W/\"a\"", 200),
        (MODIFIED, 206),
        ("Sat, 21 Nov 2020 10:00:01 GMT", 200),
    ] {
        let answer = sidecar.get_with("/", &[("range", "bytes=2-4"), ("if-range", if_range)]).await;
        assert_eq!((answer.status.as_u16(), answer.hit()), (status, Some("l1")), "{if_range}");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn multiple_ranges_are_left_to_the_application() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let answer = sidecar.get_with("/", &[("range", "bytes=0-0, 2-3")]).await;
    assert_eq!(answer.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=range");
    assert_eq!(origin.last().header("range"), "bytes=0-0, 2-3");
}

#[tokio::test(flavor = "multi_thread")]
async fn part_is_stored_and_served_again() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let first = sidecar.get_with("/", &[("range", "bytes=2-6")]).await;
    assert_eq!((first.status.as_u16(), first.body.as_str()), (206, "23456"));
    assert_eq!(first.cache_status(), "larder; fwd=uri-miss; fwd-status=206; stored");
    for (range, body, content_range) in
        [("bytes=2-6", "23456", "bytes 2-6/10"), ("bytes=3-4", "34", "bytes 3-4/10")]
    {
        let hit = sidecar.get_with("/", &[("range", range)]).await;
        assert_eq!((hit.status.as_u16(), hit.hit(), hit.body.as_str()), (206, Some("l1"), body));
        assert_eq!(hit.header("content-range"), content_range);
    }
    let other = sidecar.get_with("/", &[("range", "bytes=6-7")]).await;
    assert_eq!(other.cache_status(), "larder; fwd=partial; fwd-status=206; stored");
    let with_condition = [("range", "bytes=2-6"), ("if-range", "\"b\"")];
    let whole = sidecar.get_with("/", &with_condition).await;
    assert_eq!((whole.status.as_u16(), whole.body.as_str()), (200, BODY), "the client has another response");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_the_same_response_are_combined() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (path, tag, hit) in [("/same", "\"a\"", Some("l1")), ("/other", "\"b\"", None)] {
        sidecar.get_with(path, &[("range", "bytes=0-4")]).await;
        sidecar.get_with(path, &[("range", "bytes=5-8"), ("x-tag", tag)]).await;
        let middle = sidecar.get_with(path, &[("range", "bytes=3-6")]).await;
        assert_eq!((middle.body.as_str(), middle.hit()), ("3456", hit), "{path}");
    }
    let weak = [("x-tag", "W/\"a\"")];
    sidecar.get_with("/weak", &[("range", "bytes=0-4"), weak[0]]).await;
    sidecar.get_with("/weak", &[("range", "bytes=5-8"), weak[0]]).await;
    let middle = sidecar.get_with("/weak", &[("range", "bytes=3-6"), weak[0]]).await;
    assert_eq!(middle.hit(), None, "a weak tag does not say that the bytes are the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_cover_the_body_become_a_whole_response() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get_with("/", &[("range", "bytes=0-4")]).await;
    sidecar.get_with("/", &[("range", "bytes=5-9")]).await;
    let whole = sidecar.get("/").await;
    assert_eq!((whole.status.as_u16(), whole.hit(), whole.body.as_str()), (200, Some("l1"), BODY));
    assert_eq!((whole.header("content-range"), whole.header("content-length")), ("", "10"));
    assert_eq!(sidecar.request(Method::HEAD, "/", &[], "").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_missing_part_is_requested() {
    for (stored, missing, fwd_status) in
        [("bytes=0-4", "bytes=5-9", 206), ("bytes=3-9", "bytes=0-2", 206), ("bytes=3-5", "", 200)]
    {
        let origin = in_parts().await;
        let sidecar = Sidecar::bare(origin.address).await;
        sidecar.get_with("/", &[("range", stored)]).await;
        let whole = sidecar.get("/").await;
        assert_eq!((whole.status.as_u16(), whole.body.as_str()), (200, BODY), "{stored}");
        assert_eq!((whole.header("content-range"), whole.header("content-length")), ("", "10"));
        assert_eq!(whole.cache_status(), format!("larder; fwd=partial; fwd-status={fwd_status}; stored"));
        let asked = origin.last();
        let if_range = if missing.is_empty() { "" } else { "\"a\"" };
        assert_eq!((asked.header("range"), asked.header("if-range")), (missing, if_range));
        let hit = sidecar.get("/").await;
        assert_eq!((hit.hit(), hit.body.as_str(), origin.calls()), (Some("l1"), BODY, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_another_response_is_not_combined() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get_with("/", &[("range", "bytes=0-4")]).await;
    let whole = sidecar.get_with("/", &[("x-tag", "\"b\"")]).await;
    assert_eq!((whole.body.as_str(), whole.header("etag")), (BODY, "\"b\""));
    assert_eq!(whole.cache_status(), "larder; fwd=partial; fwd-status=200; stored");
    assert_eq!(sidecar.get("/").await.header("etag"), "\"b\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_lies_about_its_length_is_not_stored() {
    for framed in [
        "Content-Length: 5\r\n\r\n01234",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nb\r\n0123456789a\r\n0\r\n\r\n",
    ] {
        let origin = RawOrigin::start(move |mut stream| async move {
            while !read_head(&mut stream).await.is_empty() {
                let head = "HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nEtag: \"a\"\r\n\
                     Content-Range: bytes 0-9/20\r\n";
                stream.write_all(format!("{head}{framed}").as_bytes()).await.unwrap();
            }
        })
        .await;
        let sidecar = Sidecar::bare(origin.address).await;
        for _ in 0..2 {
            let answer = sidecar.get_with("/", &[("range", "bytes=0-9")]).await;
            assert_eq!((answer.status.as_u16(), answer.hit()), (206, None), "{framed:?}");
        }
        let label = "reason=\"content-range\"";
        until("both are counted", async || {
            (sidecar.metric("larder_not_stored_total", &[label]).await == 2.0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_request_ignores_range() {
    let origin = in_parts().await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/").await;
    let head = sidecar.request(Method::HEAD, "/", &[("range", "bytes=2-4")], "").await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "10"));
    assert_eq!((head.header("content-range"), head.hit()), ("", Some("l1")));
}

/// An application that responds to a request for the second half with `rest` in a chunk, of another length than stated.
async fn with_a_wrong_rest(rest: &'static str) -> RawOrigin {
    RawOrigin::start(move |mut stream| async move {
        loop {
            let asked = read_head(&mut stream).await.to_lowercase();
            let (first, body) = match asked.contains("range: bytes=0-4") {
                true => (0, "01234"),
                false if asked.is_empty() => return,
                false => (5, rest),
            };
            let answer = format!(
                "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nCache-Control: max-age=60\r\nContent-Range: bytes {first}-{}/10\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                first + 4,
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_the_wrong_length_completes_no_response() {
    for rest in ["56", "56789+"] {
        let origin = with_a_wrong_rest(rest).await;
        let sidecar = Sidecar::bare(origin.address).await;
        assert_eq!(sidecar.get_with("/", &[("range", "bytes=0-4")]).await.body, "01234");
        let request = "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
        let answer = String::from_utf8(exchange(sidecar.address, request).await).unwrap();
        let received = answer.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
        assert!(received < BODY.len(), "the response is visibly cut: {answer}");
        assert_eq!(
            sidecar.metric("larder_not_stored_total", &["reason=\"incomplete\""]).await,
            1.0,
            "{rest}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn combined_parts_keep_the_headers_of_the_first() {
    let origin = Origin::start(|seen| async move {
        let first = [("etag", "\"a\""), ("cache-control", "max-age=60"), ("content-type", "text/first")];
        let (range, body, said) = match seen.header("range") {
            "bytes=0-4" => ("bytes 0-4/10", "01234", &first[..]),
            _ => ("bytes 5-9/10", "56789", &first[..2]),
        };
        let mut part = reply(said, body);
        *part.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        part.headers_mut().insert("content-range", range.parse().unwrap());
        part
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get_with("/", &[("range", "bytes=0-4")]).await;
    sidecar.get_with("/", &[("range", "bytes=5-9"), ("if-range", "\"a\"")]).await;
    let whole = sidecar.get("/").await;
    assert_eq!((whole.hit(), whole.body.as_str()), (Some("l1"), BODY));
    assert_eq!(whole.header("content-type"), "text/first");
}

#[tokio::test(flavor = "multi_thread")]
async fn unsatisfiable_range_affects_no_other_client() {
    let origin = Origin::start(|seen| async move {
        let mut answer = reply(&[("cache-control", "max-age=60")], seen.number.to_string());
        if seen.headers.contains_key("range") {
            *answer.status_mut() = http::StatusCode::RANGE_NOT_SATISFIABLE;
        }
        answer
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.get_with("/", &[("range", "bytes=99-")]).await.status, 416);
    assert_eq!(sidecar.get("/").await.status, 200);
}
