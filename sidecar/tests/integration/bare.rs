//! A sidecar without a policy: a plain shared cache.

use std::sync::Arc;

use http::Method;
use tokio::sync::Semaphore;

use super::harness::{Origin, Sidecar, reply, until};

#[tokio::test(flavor = "multi_thread")]
async fn cache_control_decides_on_storing() {
    let origin = Origin::start(|seen| async move {
        let control = seen.path.trim_start_matches('/').replace('_', "=");
        reply(&[("cache-control", &control)], seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (path, stored) in [
        ("/max-age_60", true),
        ("/s-maxage_60", true),
        ("/no-store", false),
        ("/max-age_0", false),
        ("/", false),
    ] {
        let first = sidecar.get(path).await;
        let second = sidecar.get(path).await;
        assert_eq!(first.body == second.body, stored, "{path}");
        assert_eq!(second.hit(), stored.then_some("l1"), "{path}");
        assert_eq!(first.cache_status().ends_with("; stored"), stored, "{path}: {}", first.cache_status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_may_force_a_request_to_the_origin() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.get("/").await.body, "1");
    let fresh = sidecar.get_with("/", &[("cache-control", "no-cache")]).await;
    assert_eq!(
        (fresh.body.as_str(), fresh.cache_status()),
        ("2", "larder; fwd=request; fwd-status=200; stored")
    );
    assert_eq!(sidecar.get("/").await.body, "2", "the new response replaced the stored one");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_passes_and_drops_the_responses_of_its_path() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/a?x=1").await;
    sidecar.get("/b").await;
    let written = sidecar.request(Method::POST, "/a", &[], "words").await;
    assert_eq!(written.cache_status(), "larder; fwd=method; fwd-status=200");
    assert_eq!(origin.last().body, "words");
    assert_eq!(sidecar.get("/a?x=1").await.hit(), None);
    assert_eq!(sidecar.get("/b").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_without_a_policy_is_ready_and_reports_none() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    assert_eq!(sidecar.admin("/livez").await.status, 200);
    until("readiness", async || (sidecar.admin("/readyz").await.status == 200).then_some(())).await;
    assert!(sidecar.policy().await["hash"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_application_is_a_502() {
    let origin = Origin::numbered(&[]).await;
    let address = origin.address;
    drop(origin);
    let sidecar = Sidecar::bare(address).await;
    let answer = sidecar.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (502, "application/problem+json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn post_response_with_its_own_content_location_is_stored_for_get() {
    let origin = Origin::start(|seen| async move {
        let location = seen.header("x-location").to_owned();
        reply(&[("cache-control", "max-age=60"), ("content-location", &location)], seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.request(Method::POST, "/a?x=1", &[("x-location", "/a?x=1")], "words").await;
    let hit = sidecar.get("/a?x=1").await;
    assert_eq!((hit.hit(), hit.body.as_str()), (Some("l1"), "1"));
    sidecar.request(Method::POST, "/b", &[("x-location", "/c")], "words").await;
    assert_eq!(sidecar.get("/b").await.hit(), None);
    assert_eq!(sidecar.get("/c").await.hit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_post_that_a_later_write_overtook_is_not_stored() {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            if seen.method == Method::POST {
                gate.acquire().await.unwrap().forget();
            }
            let location = seen.path.clone();
            reply(
                &[("cache-control", "max-age=60"), ("content-location", &location)],
                seen.number.to_string(),
            )
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (overtaken_by, stored) in [("/a", false), ("/b", true)] {
        let seen = origin.calls();
        let posting = sidecar.request(Method::POST, "/a", &[], "words");
        let overtaking = async {
            until("the POST to arrive", async || (origin.calls() > seen).then_some(())).await;
            sidecar.put(overtaken_by).await;
            permits.add_permits(1);
        };
        let (posted, ()) = tokio::join!(posting, overtaking);
        assert_eq!(posted.cache_status().ends_with("; stored"), stored, "PUT {overtaken_by}");
        let read = sidecar.get("/a").await;
        assert_eq!(read.hit(), stored.then_some("l1"), "PUT {overtaken_by}");
        assert_eq!(read.body == posted.body, stored, "PUT {overtaken_by}");
    }
}
