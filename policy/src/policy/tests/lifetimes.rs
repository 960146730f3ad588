//! Lifetimes of routes.

use super::*;
use crate::{StatusPattern, lifetimes::StoreDespite, spec::SetCookie};

#[test]
fn route_decides_lifetimes_and_client_directives() {
    let text = SHOP.replace("ttl: 120s", "maxTTL: 1h\n  statuses: [{code: 200}, {code: 4xx, ttl: 10s}]\n  staleWhileRevalidate: 0s\n  staleIfError: 10m\n  storeDespite: [NoStore, VaryAny]\n  setCookie: Strip\n  clientDirectives: Honor");
    let policy = Policy::compile(&spec(&text)).unwrap();
    let route = &policy.routes()[0];
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let expected = Lifetimes {
        ttl: None,
        max_ttl: seconds(3600),
        statuses: vec![(StatusCode::OK.into(), None), (StatusPattern::Class(4), seconds(10))],
        stale_while_revalidate: seconds(0),
        stale_if_error: seconds(600),
        store_despite: StoreDespite { no_store: true, vary_any: true, ..StoreDespite::default() },
        set_cookie: SetCookie::Strip,
        retry_interval: Duration::from_secs(1),
        ..Lifetimes::default()
    };
    assert_eq!(route.lifetimes, expected);
    assert!(route.honor_request_directives && !policy.routes()[1].honor_request_directives);
}

#[test]
fn grace_is_the_window_that_is_not_set_by_itself() {
    let windows = |fields: &str| {
        let policy =
            Policy::compile(&spec(&SHOP.replace("ttl: 120s", &format!("ttl: 120s\n  {fields}")))).unwrap();
        let Lifetimes { stale_while_revalidate, stale_if_error, retry_interval, .. } =
            &policy.routes()[0].lifetimes;
        let seconds = |time: &Option<Duration>| time.map(|time| time.as_secs());
        (seconds(stale_while_revalidate), seconds(stale_if_error), retry_interval.as_secs())
    };
    assert_eq!(windows("grace: 10m"), (Some(600), Some(600), 1));
    assert_eq!(windows("grace: 1h\n  staleWhileRevalidate: 10s"), (Some(10), Some(3600), 1));
    assert_eq!(windows("grace: 1h\n  staleIfError: 0s"), (Some(3600), Some(0), 1));
    assert_eq!(windows("grace: 0s"), (Some(0), Some(0), 1));
    assert_eq!(windows("staleWhileRevalidate: 10s"), (Some(10), None, 0));
}
