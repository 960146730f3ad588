//! Invalidation by writes (RFC 9111, section 4.4).

use http::Method;

use super::harness::{Origin, Policy, Sidecar, reply};

const STORED: (&str, &str) = ("x-say", "cache-control: max-age=60");

async fn write(sidecar: &Sidecar, method: &str, path: &str, headers: &[(&str, &str)]) {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    sidecar.request(method, path, headers, "").await;
}

/// Returns true if the response of a path was still stored; afterwards it is.
async fn is_stored(sidecar: &Sidecar, path: &str) -> bool {
    sidecar.get_with(path, &[STORED]).await.hit().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn successful_unsafe_method_drops_the_stored_response() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (method, status, drops) in [
        ("POST", "200", true),
        ("PUT", "204", true),
        ("DELETE", "200", true),
        ("PATCH", "303", true),
        ("FOO", "200", true),
        ("foo", "201", true),
        ("put", "200", true),
        ("POST", "400", false),
        ("PUT", "412", false),
        ("DELETE", "503", false),
        ("FOO", "500", false),
        ("OPTIONS", "200", false),
        ("TRACE", "200", false),
    ] {
        is_stored(&sidecar, "/a?x=1").await;
        assert!(is_stored(&sidecar, "/a?x=1").await);
        write(&sidecar, method, "/a", &[("x-status", status)]).await;
        assert_eq!(is_stored(&sidecar, "/a?x=1").await, !drops, "{method} {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn location_on_the_same_host_is_dropped() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    for (line, drops) in [
        ("location: /a/b", true),
        ("content-location: /a/b", true),
        ("location: b?x=1#y", true),
        ("location: http://shop.test/a/b", true),
        ("content-location: http://SHOP.test/a/b", true),
        ("location: ../a/./b", true),
        ("location: /a/%62", true),
        ("location: http://other.test/a/b", false),
        ("content-location: //other.test/a/b", false),
        ("link: </a/b>", false),
    ] {
        is_stored(&sidecar, "/a/b").await;
        assert!(is_stored(&sidecar, "/a/b").await);
        write(&sidecar, "POST", "/a/c", &[("x-say", line), ("x-status", "201")]).await;
        assert_eq!(is_stored(&sidecar, "/a/b").await, !drops, "{line}");
    }
    is_stored(&sidecar, "/a/b").await;
    write(&sidecar, "POST", "/a/c", &[("x-say", "location: /a/b"), ("x-status", "400")]).await;
    assert!(is_stored(&sidecar, "/a/b").await, "a failure changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_under_a_policy_drops_the_responses_of_its_path() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (method, path, headers, drops) in [
        ("PUT", "/a", &[("x-status", "204")][..], true),
        ("FOO", "/%61", &[], true),
        ("POST", "/not/cached", &[("x-say", "location: /a")], true),
        ("POST", "/b", &[], false),
        ("PUT", "/a", &[("x-status", "403")], false),
    ] {
        is_stored(&sidecar, "/a").await;
        assert!(is_stored(&sidecar, "/a").await);
        write(&sidecar, method, path, headers).await;
        assert_eq!(is_stored(&sidecar, "/a").await, !drops, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_drops_every_variant_and_query() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let vary = ("x-say", "vary: accept-language");
    let ask = async |path, language| {
        sidecar.get_with(path, &[STORED, vary, ("accept-language", language)]).await.hit().is_some()
    };
    let all = [("/a", "en"), ("/a", "de"), ("/a?x=1", "en")];
    for (path, language) in all {
        assert!(!ask(path, language).await);
        assert!(ask(path, language).await);
    }
    sidecar.put("/a").await;
    for (path, language) in all {
        assert!(!ask(path, language).await, "{path} {language}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_with_upgrade_or_override_drops_the_stored_response() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let override_ = [("x-http-method-override", "DELETE")];
    for (method, headers) in [(Method::PUT, &upgrade[..]), (Method::GET, &override_)] {
        let before = sidecar.get("/a").await;
        assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
        sidecar.request(method.clone(), "/a", headers, "").await;
        let after = sidecar.get("/a").await;
        assert_eq!(after.hit(), None, "{method}");
        assert_ne!(after.body, before.body, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_about_the_client_drops_nothing() {
    let origin = Origin::start(|seen| async move {
        let mut answer = reply(&[("cache-control", "max-age=60")], seen.number.to_string());
        if seen.headers.contains_key("x-refuse") {
            *answer.status_mut() = http::StatusCode::TOO_MANY_REQUESTS;
            answer.headers_mut().remove("cache-control");
        }
        answer
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    sidecar.get("/a").await;
    let refused = sidecar.get_with("/a", &[("cache-control", "no-cache"), ("x-refuse", "1")]).await;
    assert_eq!(refused.status, 429);
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
}
