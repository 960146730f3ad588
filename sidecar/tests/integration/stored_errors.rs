//! Errors that are stored, beside responses that are of use.

use super::harness::{Origin, Policy, RedisServer, Sidecar, reply, two, until};
use http::StatusCode;

/// An application in several languages, whose errors do not vary.
async fn in_languages() -> Origin {
    Origin::start(|seen| async move {
        let language = seen.header("accept-language").to_owned();
        let status = seen.header("x-status").parse().unwrap_or(StatusCode::OK);
        let mut answer = reply(&[("vary", "accept-language")], format!("{language} {}", seen.number));
        if !status.is_success() {
            answer.headers_mut().remove("vary");
            *answer.status_mut() = status;
        }
        answer
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn error_that_does_not_vary_hides_no_variant() {
    let spec = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 10m, grace: 10m, statuses: [{code: 200}, {code: 4xx}, {code: 5xx, ttl: 1s}]}
"#;
    for status in ["404", "503"] {
        let origin = in_languages().await;
        let policy = Policy::new(spec);
        let [a, b] = &two(&policy, &origin).await;
        let (en, de) = ([("accept-language", "en")], [("accept-language", "de")]);
        let english = a.get_with("/a", &en).await.body;
        policy.until_stored(&mut RedisServer::shared().await, 2).await;
        let failing = [("accept-language", "de"), ("x-status", status)];
        // One pod knows from Redis alone that the responses vary.
        for (pod, wanted) in [(b, status), (a, status)] {
            let error = pod.get_with("/a", &failing).await;
            assert_eq!(error.status.as_str(), wanted, "{}", error.cache_status());
            let again = pod.get_with("/a", &de).await;
            assert!(again.hit().is_some() || again.status == 200, "{status}: {}", again.cache_status());
        }
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        for pod in [a, b, &Sidecar::start(&policy, origin.address).await] {
            let answer = pod.get_with("/a", &en).await;
            assert_eq!((&answer.body, answer.hit().is_some()), (&english, true), "{}", answer.cache_status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn error_that_varies_otherwise_is_not_stored() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"routes: [{name: page, match: {path: "/{page}"}, ttl: 10m, statuses: [{code: 200}, {code: 4xx}]}]"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let page = sidecar.get_with("/a", &[("x-say", "vary: x-a")]).await.body;
    let error = [("x-a", "1"), ("x-status", "404"), ("x-say", "vary: x-b")];
    assert_eq!(sidecar.get_with("/a", &error).await.status, 404);
    assert_eq!(sidecar.metric("larder_not_stored_total", &["reason=\"would-replace\""]).await, 1.0);
    let hit = sidecar.get("/a").await;
    assert_eq!((hit.hit(), &hit.body), (Some("l1"), &page));
}

#[tokio::test(flavor = "multi_thread")]
async fn error_does_not_replace_a_response_within_its_window() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 1s
  grace: 10m
  retryInterval: 100ms
  clientDirectives: Honor
  statuses: [{code: 200}, {code: 5xx, ttl: 1m}]
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for status in ["501", "503", "521"] {
        let path = format!("/{status}");
        let failing = [("x-status", status)];
        let page = sidecar.get(&path).await.body;
        // The client alone does not want what is stored.
        let error = sidecar.get_with(&path, &[failing[0], ("cache-control", "no-cache")]).await;
        assert_eq!(error.status.as_str(), status);
        assert!(!error.cache_status().contains("stored"), "{}", error.cache_status());
        let before = origin.calls();
        until("refreshes in the background fail", async || {
            let answer = sidecar.get_with(&path, &failing).await;
            assert_eq!((answer.status.as_u16(), &answer.body), (200, &page), "{status}");
            (origin.calls() >= before + 3).then_some(())
        })
        .await;
        until("the application has recovered", async || {
            let answer = sidecar.get(&path).await;
            assert_eq!(answer.status, 200);
            (answer.body != page).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn window_for_refreshes_is_not_for_errors() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 1s
  grace: 10m
  statuses: [{code: 200}, {code: 404, ttl: 1s}]
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get_with("/a", &[("x-status", "404")]).await;
    assert_eq!(sidecar.get("/a").await.status, 404);
    until("the error is expired", async || {
        let answer = sidecar.get("/a").await;
        assert!(answer.ttl().is_none_or(|ttl| ttl >= 0), "{}", answer.cache_status());
        (answer.status == 200).then_some(())
    })
    .await;
    sidecar.get_with("/b", &[("x-status", "404")]).await;
    let instead = until("the error is served while the application fails", async || {
        let answer = sidecar.get_with("/b", &[("x-status", "503")]).await;
        answer.cache_status().ends_with("detail=stale-if-error").then_some(answer)
    })
    .await;
    assert_eq!(instead.status, 404);
}
