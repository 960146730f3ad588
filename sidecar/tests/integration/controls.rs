//! Response directives and other response headers that control storing.

use http::Method;

use super::harness::{Answer, Origin, Policy, Sidecar};

/// Requests a response with these header fields twice. Returns the second response.
async fn twice(sidecar: &Sidecar, path: &str, say: &[&str], request: &[(&str, &str)]) -> Answer {
    let headers: Vec<_> = say.iter().map(|line| ("x-say", *line)).chain(request.iter().copied()).collect();
    sidecar.get_with(path, &headers).await;
    sidecar.get_with(path, &headers).await
}

/// Header fields of a response, those of its request, and true if the response is stored.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], bool);

/// Asserts for each case that a sidecar stores the response or not, each under a path of its own.
async fn assert_stored(sidecar: &Sidecar, cases: &[Case<'_>]) {
    for (at, (say, request, stored)) in cases.iter().enumerate() {
        let second = twice(sidecar, &format!("/{at}"), say, request).await;
        let status = second.cache_status();
        assert_eq!(second.hit(), stored.then_some("l1"), "{say:?} {request:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targeted_fields_go_before_cache_control() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let (never, long) = ("cache-control: no-store", "cache-control: max-age=60");
    assert_stored(
        &sidecar,
        &[
            (&["larder-cache-control: max-age=60", never], &[], true),
            (&["cdn-cache-control: max-age=60", never], &[], true),
            (&["larder-cache-control: max-age=60", "cdn-cache-control: no-store"], &[], true),
            (&["larder-cache-control: no-store", "cdn-cache-control: max-age=60", long], &[], false),
            (&["cdn-cache-control: no-store", long], &[], false),
            (&["cdn-cache-control: max-age=\"60\"", never], &[], false),
            (&["cdn-cache-control: max-age=60 no-store", long], &[], true),
            (&["surrogate-control: max-age=60", never], &[], false),
            (&["cdn-cache-control: max-age=0", "expires: Sat, 21 Nov 2099 10:00:00 GMT"], &[], false),
        ],
    )
    .await;
    let kept = twice(&sidecar, "/kept", &["cdn-cache-control: max-age=60", never], &[]).await;
    assert_eq!(kept.header("cdn-cache-control"), "max-age=60", "it may be meant for others, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn cdn_cache_control_counts_where_the_policy_lists_it() {
    let origin = Origin::obedient().await;
    let routes = "routes:\n- {name: page, match: {path: \"/{page}\"}}\n";
    let (plain, listed) =
        (Policy::new(routes), Policy::new(&format!("targetedCacheControl: [CDN-Cache-Control]\n{routes}")));
    let never = "cache-control: no-store";
    for (policy, cdn) in [(plain, false), (listed, true)] {
        let sidecar = Sidecar::start(&policy, origin.address).await;
        assert_stored(
            &sidecar,
            &[
                (&["larder-cache-control: max-age=60", never], &[], true),
                (&["cdn-cache-control: max-age=60", never], &[], cdn),
            ],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_to_authorization_is_shared_if_it_says_so() {
    let origin = Origin::obedient().await;
    let authorized = [("authorization", "Basic x")];
    let cases: [Case<'_>; 4] = [
        (&["cache-control: max-age=60"], &authorized, false),
        (&["cache-control: max-age=60, public"], &authorized, true),
        (&["cache-control: max-age=60, must-revalidate"], &authorized, true),
        (&["cache-control: s-maxage=60"], &authorized, true),
    ];
    assert_stored(&Sidecar::bare(origin.address).await, &cases).await;
    let policy = Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}}\n");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_stored(&sidecar, &cases).await;
    // Under a policy, a response that is not marked as public is not shared.
    sidecar.get_with("/plain", &[("x-say", "cache-control: max-age=60")]).await;
    let answer = sidecar.get_with("/plain", &authorized).await;
    assert_eq!(answer.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=credentials");
    assert_eq!(sidecar.get("/plain").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_credentials_only_under_a_policy() {
    let origin = Origin::obedient().await;
    let cookie = [("cookie", "a=b")];
    let cases = |stored| -> [Case<'_>; 1] { [(&["cache-control: max-age=60"], &cookie, stored)] };
    let bare = Sidecar::bare(origin.address).await;
    assert_stored(&bare, &cases(true)).await;
    assert_eq!(bare.get("/0").await.hit(), Some("l1"), "the response is shared");
    assert_eq!(bare.get_with("/0", &cookie).await.hit(), Some("l1"));
    let policy = Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}}\n");
    assert_stored(&Sidecar::start(&policy, origin.address).await, &cases(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn route_overrides_named_restrictions_on_storing() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- {name: plain, match: {path: "/plain/{page}"}, ttl: 60s}
- {name: no-store, match: {path: "/no-store/{page}"}, ttl: 60s, storeDespite: [NoStore]}
- {name: private, match: {path: "/private/{page}"}, ttl: 60s, storeDespite: [Private]}
- {name: set-cookie, match: {path: "/set-cookie/{page}"}, ttl: 60s, setCookie: Store}
- {name: vary-any, match: {path: "/vary-any/{page}"}, ttl: 60s, storeDespite: [VaryAny]}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let forbidding = [
        ("no-store", "cache-control: no-store"),
        ("private", "cache-control: private"),
        ("set-cookie", "set-cookie: a=b"),
        ("vary-any", "vary: *"),
    ];
    for route in ["plain", "no-store", "private", "set-cookie", "vary-any"] {
        for (name, line) in forbidding {
            let second = twice(&sidecar, &format!("/{route}/{name}"), &[line], &[]).await;
            assert_eq!(second.hit().is_some(), route == name, "{line} on {route}");
        }
        let say = ["cache-control: no-cache, must-revalidate, max-age=0", "expires: 0"];
        assert!(twice(&sidecar, &format!("/{route}/others"), &say, &[]).await.hit().is_some(), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vary_any_beside_other_names_keeps_their_variants_apart() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s, storeDespite: [VaryAny]}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let vary = ("x-say", "vary: accept-language, *");
    let ask = async |language| sidecar.get_with("/a", &[vary, ("accept-language", language)]).await.body;
    assert_eq!((ask("en").await, ask("de").await), ("1".to_owned(), "2".to_owned()));
    assert_eq!((ask("en").await, ask("de").await), ("1".to_owned(), "2".to_owned()));
    let bare = Sidecar::bare(origin.address).await;
    let say = ["cache-control: max-age=60", "vary: accept-language, *"];
    assert_eq!(twice(&bare, "/a", &say, &[]).await.hit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_stored_under_their_own_conditions() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let modified = "last-modified: Sat, 21 Nov 2020 10:00:00 GMT";
    let long = "cache-control: max-age=60";
    let understood = "cache-control: max-age=60, no-store, must-understand";
    assert_stored(
        &sidecar,
        &[
            (&[modified], &[("x-status", "200")], true),
            (&[modified], &[("x-status", "404")], true),
            (&[modified], &[("x-status", "201")], false),
            (&[modified, "cache-control: public"], &[("x-status", "201")], true),
            (&[long], &[("x-status", "404")], true),
            (&[long], &[("x-status", "302")], true),
            (&[long], &[("x-status", "503")], true),
            (&[long], &[("x-status", "299")], true),
            (&[understood], &[("x-status", "200")], true),
            (&[understood], &[("x-status", "299")], false),
            (&["cache-control: max-age=60, must-understand"], &[("x-status", "299")], false),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dates_and_age_limit_freshness() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let old = "date: Sat, 21 Nov 2020 10:00:00 GMT";
    let hit = twice(&sidecar, "/a", &["cache-control: max-age=60", "age: 10"], &[]).await;
    assert_eq!(hit.hit(), Some("l1"));
    assert!(hit.header("age").parse::<u64>().unwrap() >= 10);
    assert_eq!(hit.headers.get_all("age").iter().count(), 1);
    assert_eq!(hit.headers.get_all("date").iter().count(), 1);
    let long_ago = twice(&sidecar, "/b", &["cache-control: max-age=1000000000", old], &[]).await;
    assert_eq!((long_ago.hit(), long_ago.header("date")), (Some("l1"), &old[6..]));
    assert!(long_ago.header("age").parse::<u64>().unwrap() > 100_000_000, "apparent age");
    assert_eq!(twice(&sidecar, "/c", &["cache-control: max-age=60", old], &[]).await.hit(), None);
    assert_eq!(twice(&sidecar, "/d", &["cache-control: max-age=60", "age: 61"], &[]).await.hit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_stores_the_statuses_that_it_lists_each_for_its_time() {
    let origin = Origin::obedient().await;
    let policy = Policy::new(
        r#"
routes:
- name: page
  match: {path: "/{page}"}
  ttl: 100s
  statuses: [{code: 200}, {code: 404, ttl: 10s}, {code: 4xx, ttl: 50s}, {code: 5xx, ttl: 5s}]
- {name: capped, match: {path: "/capped/{page}"}, maxTTL: 10s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let about = |answer: &Answer, ttl: i64| answer.ttl().is_some_and(|left| (ttl - 4..=ttl).contains(&left));
    for (status, ttl) in [
        ("200", Some(100)),
        ("404", Some(10)),
        ("410", Some(50)),
        ("401", None),
        ("403", None),
        ("422", None),
        ("429", None),
        ("503", Some(5)),
        ("301", None),
    ] {
        let request = [("x-status", status)];
        let second = twice(&sidecar, &format!("/{status}"), &[], &request).await;
        let as_long = ttl.map_or(second.hit().is_none(), |ttl| about(&second, ttl));
        assert!(as_long, "{status}: {}", second.cache_status());
    }
    for (at, (control, ttl)) in
        [("max-age=60", 10), ("max-age=5", 5), ("s-maxage=60", 10)].into_iter().enumerate()
    {
        let say = format!("cache-control: {control}");
        let second = twice(&sidecar, &format!("/capped/{at}"), &[&say], &[]).await;
        assert!(about(&second, ttl), "{control}: {}", second.cache_status());
    }
    assert_eq!(twice(&sidecar, "/capped/none", &[], &[]).await.hit(), None, "a cap is no life");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_connection_are_not_stored() {
    let origin = Origin::obedient().await;
    let sidecar = Sidecar::bare(origin.address).await;
    let say = [
        "cache-control: max-age=60",
        "connection: x-hop",
        "x-hop: 1",
        "keep-alive: timeout=5",
        "proxy-authenticate: Basic",
        "x-end: 1",
    ];
    let hit = twice(&sidecar, "/", &say, &[]).await;
    assert_eq!((hit.hit(), hit.header("x-end")), (Some("l1"), "1"));
    for name in ["x-hop", "keep-alive", "proxy-authenticate"] {
        assert!(!hit.headers.contains_key(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_without_a_route_of_their_own_store_nothing() {
    let origin = Origin::numbered(&[("cache-control", "max-age=60")]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for method in [Method::POST, Method::OPTIONS, Method::from_bytes(b"FOO").unwrap()] {
        let answers = [
            sidecar.request(method.clone(), "/", &[], "").await,
            sidecar.request(method.clone(), "/", &[], "").await,
        ];
        assert!(answers.iter().all(|answer| answer.cache_status() == "larder; fwd=method; fwd-status=200"));
        assert_ne!(answers[0].body, answers[1].body, "{method}");
    }
    assert_eq!(sidecar.get("/").await.hit(), None);
}
