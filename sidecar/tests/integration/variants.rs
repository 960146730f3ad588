//! Variants by `Vary` during a fill.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use tokio::{io::AsyncWriteExt, sync::Semaphore};

use super::harness::{Origin, Policy, RawOrigin, RedisServer, Sidecar, read_head, reply, until};

const HEADERS: [(&str, &str); 3] = [("vary", "accept-language"), ("etag", "\"a\""), ("age", "15")];

/// An application that responds in the requested language, and is never fresh; further requests wait for a permit, and get
/// `status`.
async fn in_languages(status: StatusCode, control: &'static str) -> (Origin, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&permits);
    let origin = Origin::start(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            let mut answer = reply(&HEADERS, seen.header("accept-language").to_owned());
            answer.headers_mut().insert("cache-control", control.parse().unwrap());
            if seen.path == "/" && seen.headers.contains_key("if-none-match") {
                gate.acquire().await.unwrap().forget();
                *answer.status_mut() = status;
                *answer.body_mut() = Default::default();
            }
            answer
        }
    })
    .await;
    (origin, permits)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_one_variant_do_not_get_another() {
    let control = "max-age=5, stale-if-error=60";
    for status in [StatusCode::NOT_MODIFIED, StatusCode::SERVICE_UNAVAILABLE] {
        let (origin, permits) = in_languages(status, control).await;
        let sidecar = Sidecar::bare(origin.address).await;
        let (en, de) = ([("accept-language", "en")], [("accept-language", "de")]);
        sidecar.get_with("/", &en).await;
        let asks_for_german = async {
            until("English is asked for", async || (origin.calls() == 2).then_some(())).await;
            let german = sidecar.get_with("/", &de);
            let lets_go = async {
                // A waiting request can't be seen from outside; other responses in the meantime give it time.
                for _ in 0..20 {
                    sidecar.get("/other").await;
                }
                permits.add_permits(10);
            };
            tokio::join!(german, lets_go).0
        };
        let (english, german) = tokio::join!(sidecar.get_with("/", &en), asks_for_german);
        assert_eq!((english.body.as_str(), german.body.as_str()), ("en", "de"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unshareable_variant_leaves_the_others() {
    let origin = Origin::start(|seen| async move {
        let control = if seen.header("accept-language") == "fr" { "no-store" } else { "max-age=60" };
        reply(&[HEADERS[0], ("cache-control", control)], seen.number.to_string())
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let ask = async |language| sidecar.get_with("/", &[("accept-language", language)]).await;
    for language in ["en", "de", "fr", "fr"] {
        assert_eq!(ask(language).await.hit(), None);
    }
    for language in ["en", "de"] {
        assert_eq!(ask(language).await.hit(), Some("l1"), "{language}");
    }
    assert_eq!(ask("fr").await.hit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_variant_is_validated_by_its_own_tag() {
    let origin = Origin::start(|seen| async move {
        let tag = format!("\"{}\"", seen.header("accept-language"));
        let headers = [HEADERS[0], ("etag", &*tag), ("cache-control", "max-age=0")];
        let mut answer = reply(&headers, seen.number.to_string());
        if seen.header("if-none-match") == tag {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            *answer.body_mut() = Default::default();
        }
        answer
    })
    .await;
    let policy = Policy::new(
        r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/{page}"}}
"#,
    );
    let a = Sidecar::start(&policy, origin.address).await;
    let b = Sidecar::start(&policy, origin.address).await;
    let ask = async |sidecar: &Sidecar, language| {
        let answer = sidecar.get_with("/a", &[("accept-language", language)]).await;
        (answer.body.clone(), answer.cache_status().to_owned())
    };
    assert_eq!(ask(&a, "en").await.0, "1");
    assert_eq!(ask(&a, "de").await.0, "2");
    policy.until_stored(&mut RedisServer::shared().await, 3).await;
    let validated = "larder; fwd=stale; fwd-status=304; stored".to_owned();
    for sidecar in [&a, &b] {
        assert_eq!(ask(sidecar, "en").await, ("1".to_owned(), validated.clone()));
        assert_eq!(ask(sidecar, "de").await, ("2".to_owned(), validated.clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_a_stale_variant_does_not_get_the_error_of_another() {
    let permits = Arc::new(Semaphore::new(0));
    let (gate, asked) = (Arc::clone(&permits), Arc::new(AtomicBool::new(false)));
    let is_asked = Arc::clone(&asked);
    let origin = RawOrigin::start(move |mut stream| {
        let (gate, is_asked) = (Arc::clone(&gate), Arc::clone(&is_asked));
        async move {
            loop {
                let head = read_head(&mut stream).await.to_lowercase();
                if head.is_empty() {
                    return;
                }
                // After a request for English, every connection is closed without a response.
                if head.contains("accept-language: en")
                    || is_asked.load(Ordering::SeqCst) && head.contains("get / ")
                {
                    is_asked.store(true, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    return;
                }
                let answer = "HTTP/1.1 200 OK\r\nVary: Accept-Language\r\nAge: 15\r\nContent-Length: 2\r\n\
                     Cache-Control: max-age=5, stale-if-error=60\r\n\r\nde";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let sidecar = Sidecar::bare(origin.address).await;
    let de = [("accept-language", "de")];
    sidecar.get_with("/", &de).await;
    let asks_for_german = async {
        until("English is asked for", async || asked.load(Ordering::SeqCst).then_some(())).await;
        let lets_go = async {
            for _ in 0..20 {
                sidecar.get("/other").await;
            }
            permits.add_permits(10);
        };
        tokio::join!(sidecar.get_with("/", &de), lets_go).0
    };
    let english = sidecar.get_with("/", &[("accept-language", "en")]);
    let (english, german) = tokio::join!(english, asks_for_german);
    assert_eq!((english.status.as_u16(), german.status.as_u16()), (502, 200));
    assert_eq!(german.cache_status(), "larder; fwd=stale; detail=stale-if-error");
}
