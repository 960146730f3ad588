//! Large responses that are put together from parts, and that a 304 refreshes.

use bytes::Bytes;
use http::StatusCode;

use super::{LARGE, LIMIT, limited};
use crate::integration::harness::{Origin, Policy, Sidecar, reply};

/// Memory that is left to chance is less than a tenth of the limit.
const MOST: u64 = LIMIT / 10 * 9;
const LENGTH: usize = LARGE / 4 * 3;
const RESPONSES: usize = 12;

const SPEC: &str = r#"
l1: {maxSize: 64Mi, maxObjectSize: 16Mi}
routes:
- {name: large, match: {path: "/large/{number}"}, ttl: 1h, clientDirectives: Honor}
"#;

/// An application whose responses have parts and validators.
async fn origin() -> Origin {
    let large = Bytes::from(vec![b'x'; LENGTH]);
    Origin::start(move |seen| {
        let large = large.clone();
        async move {
            let common = [("etag", "\"a\""), ("cache-control", "max-age=600")];
            if seen.header("if-none-match") == "\"a\"" {
                let mut unchanged = reply(&common, "");
                *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
                return unchanged;
            }
            let Some(range) = seen.header("range").strip_prefix("bytes=") else {
                return reply(&common, large);
            };
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            let range = format!("bytes {first}-{last}/{LENGTH}");
            let part = large.slice(first..=last);
            let mut part = reply(&[common[0], common[1], ("content-range", range.as_str())], part);
            *part.status_mut() = StatusCode::PARTIAL_CONTENT;
            part
        }
    })
    .await
}

async fn sidecar(origin: &Origin) -> (Policy, Sidecar) {
    let policy = Policy::new(SPEC);
    let sidecar = limited(origin.address, &["--policy", policy.path().to_str().unwrap()]).await;
    (policy, sidecar)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_parts_that_become_whole_stay_within_the_limit() {
    let origin = origin().await;
    let (_policy, sidecar) = sidecar(&origin).await;
    let peak = sidecar.peak();
    let half = LENGTH / 2;
    for number in 0..RESPONSES {
        let path = format!("/large/{number}");
        for range in [format!("bytes=0-{}", half - 1), format!("bytes={half}-{}", LENGTH - 1)] {
            let part = sidecar.get_with(&path, &[("range", &range)]).await;
            assert_eq!((part.status, part.body.len()), (StatusCode::PARTIAL_CONTENT, half));
        }
        let whole = sidecar.get(&path).await;
        assert_eq!((whole.body.len(), whole.hit()), (LENGTH, Some("l1")), "{number}");
    }
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < MOST, "{} MiB", peak.bytes() >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_responses_that_are_refreshed_stay_within_the_limit() {
    let origin = origin().await;
    let (_policy, sidecar) = sidecar(&origin).await;
    let peak = sidecar.peak();
    for number in 0..RESPONSES {
        let path = format!("/large/{number}");
        assert_eq!(sidecar.get(&path).await.body.len(), LENGTH);
        for _ in 0..3 {
            let answer = sidecar.get_with(&path, &[("cache-control", "no-cache")]).await;
            assert_eq!(answer.body.len(), LENGTH);
            assert!(answer.cache_status().contains("fwd-status=304"), "{}", answer.cache_status());
        }
    }
    eprintln!("peak: {} MiB", peak.bytes() >> 20);
    assert!(peak.bytes() < MOST, "{} MiB", peak.bytes() >> 20);
}
