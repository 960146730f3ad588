use http::StatusCode;
use proptest::prelude::*;

use super::*;
use crate::{
    StatusPattern,
    cache_control::{MaxStale, ResponseDirectives},
    response_meta::Times,
    testing::headers,
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn meta(control: &str, age: u64) -> ResponseMeta {
    let lines = [("cache-control", control), ("age", &age.to_string())];
    ResponseMeta::read(StatusCode::OK, &headers(&lines), Times { requested_at: 0, received_at: 0 }, &[])
}

fn asked(control: &str) -> RequestDirectives {
    RequestDirectives::parse(&headers(&[("cache-control", control)]))
}

fn route(ttl: Option<u64>) -> Lifetimes {
    Lifetimes { ttl: ttl.map(seconds), ..Default::default() }
}

const fn fresh(ttl: u64) -> State {
    State::Fresh { ttl: seconds(ttl) }
}

const fn stale(stale_for: u64, use_: StaleUse) -> State {
    State::Stale { stale_for: seconds(stale_for), use_ }
}

use StaleUse::{AsAsked, No, OnError, WhileRevalidating};

#[test]
fn response_is_fresh_while_younger_than_its_lifetime() {
    for (control, age, resident, expected) in [
        ("max-age=60", 0, 0, fresh(60)),
        ("max-age=60", 10, 0, fresh(50)),
        ("max-age=60", 10, 49, fresh(1)),
        ("max-age=60", 10, 50, stale(0, No)),
        ("max-age=60", 70, 5, stale(15, No)),
        ("max-age=60, s-maxage=10", 0, 5, fresh(5)),
        ("max-age=60, no-cache", 0, 0, stale(0, No)),
        ("max-age=60, must-revalidate", 0, 0, fresh(60)),
        ("max-age=0", 0, 0, stale(0, No)),
        ("x", 0, 5, stale(5, No)),
    ] {
        let freshness = evaluate(&meta(control, age), &route(None), seconds(resident), &asked(""));
        assert_eq!(freshness.state, expected, "{control}, {age}, {resident}");
        assert_eq!(freshness.age, seconds(age + resident));
    }
}

#[test]
fn ttl_replaces_the_declared_lifetime_and_a_cap_does_not() {
    let (ttl, capped) = (route(Some(60)), Lifetimes { max_ttl: Some(seconds(60)), ..Default::default() });
    for control in ["max-age=5", "no-cache", "s-maxage=0, must-revalidate", "x"] {
        let state = |resident| evaluate(&meta(control, 500), &ttl, seconds(resident), &asked("")).state;
        assert_eq!(state(59), fresh(1), "{control}");
        assert_eq!(state(60), stale(0, No), "{control}");
    }
    for (control, age, resident, expected) in [
        ("max-age=5", 0, 0, fresh(5)),
        ("max-age=500", 0, 0, fresh(60)),
        ("max-age=500", 100, 10, fresh(50)),
        ("max-age=500", 480, 10, fresh(10)),
        ("max-age=500", 100, 70, stale(10, No)),
        ("max-age=500", 480, 70, stale(50, No)),
        ("no-cache", 0, 0, stale(0, No)),
    ] {
        let freshness = evaluate(&meta(control, age), &capped, seconds(resident), &asked(""));
        assert_eq!(freshness.state, expected, "{control}, {age}, {resident}");
    }
}

#[test]
fn a_status_has_a_ttl_of_its_own() {
    let statuses = vec![
        (StatusPattern::Class(4), Some(seconds(7))),
        (StatusPattern::Code(404), Some(seconds(10))),
        (StatusPattern::Code(200), None),
    ];
    let route = Lifetimes { ttl: Some(seconds(60)), statuses, ..Default::default() };
    for (status, expected) in [(200, fresh(60)), (206, fresh(60)), (404, fresh(10)), (410, fresh(7))] {
        let five = Some(seconds(5));
        let directives = ResponseDirectives { max_age: five, ..Default::default() };
        let status = StatusCode::from_u16(status).unwrap();
        let meta = ResponseMeta::of(status, &directives, five, Duration::ZERO);
        assert_eq!(evaluate(&meta, &route, Duration::ZERO, &asked("")).state, expected, "{status}");
    }
}

#[test]
fn windows_of_a_route_are_not_for_errors() {
    let minute = Some(seconds(60));
    let windows = Lifetimes { stale_while_revalidate: minute, stale_if_error: minute, ..Default::default() };
    let by_route = Lifetimes { ttl: Some(seconds(5)), ..windows };
    let unset = Lifetimes { ttl: Some(seconds(5)), ..Default::default() };
    let directives = ResponseDirectives { stale_while_revalidate: minute, ..Default::default() };
    for (status, route, expected) in [
        (200, &by_route, WhileRevalidating),
        (404, &by_route, OnError),
        (404, &unset, WhileRevalidating),
        (500, &by_route, No),
        (503, &by_route, No),
        (503, &unset, WhileRevalidating),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let meta = ResponseMeta::of(status, &directives, None, Duration::ZERO);
        assert_eq!(evaluate(&meta, route, seconds(6), &asked("")).state, stale(1, expected), "{status}");
    }
}

#[test]
fn stale_windows_follow_the_response() {
    let both = "stale-while-revalidate=10, stale-if-error=30";
    for (control, stale_for, expected) in [
        ("max-age=60", 0, WhileRevalidating),
        ("max-age=60", 9, WhileRevalidating),
        ("max-age=60", 10, OnError),
        ("max-age=60", 29, OnError),
        ("max-age=60", 30, No),
        ("s-maxage=60", 9, WhileRevalidating),
        ("max-age=60, must-revalidate", 5, No),
        ("max-age=60, proxy-revalidate", 5, No),
        ("max-age=60, no-cache", 5, No),
    ] {
        let meta = meta(&format!("{control}, {both}"), 0);
        let freshness = evaluate(&meta, &route(None), seconds(60 + stale_for), &asked(""));
        assert_eq!(freshness.state, stale(stale_for, expected), "{control}, {stale_for}");
    }
}

#[test]
fn stale_windows_follow_the_route() {
    let windows = |ttl| Lifetimes {
        ttl,
        stale_while_revalidate: Some(seconds(10)),
        stale_if_error: Some(seconds(30)),
        ..Default::default()
    };
    for (ttl, control, stale_for, expected) in [
        (None, "max-age=60, stale-while-revalidate=100", 10, OnError),
        (None, "max-age=60", 5, WhileRevalidating),
        (None, "s-maxage=60", 5, WhileRevalidating),
        (None, "max-age=60, must-revalidate", 5, No),
        (Some(seconds(60)), "no-cache, must-revalidate, s-maxage=1", 5, WhileRevalidating),
        (Some(seconds(60)), "x", 29, OnError),
        (Some(seconds(60)), "x", 30, No),
    ] {
        let freshness = evaluate(&meta(control, 0), &windows(ttl), seconds(60 + stale_for), &asked(""));
        assert_eq!(freshness.state, stale(stale_for, expected), "{control}, {stale_for}");
    }
    let unknown = evaluate(&meta("x", 0), &windows(None), Duration::ZERO, &asked(""));
    assert_eq!(unknown.state, stale(0, OnError));
}

#[test]
fn request_directives_limit_freshness() {
    // Its life is 60 s, its age at first 10 s.
    for (control, request, resident, expected) in [
        ("max-age=60", "max-age=30", 20, fresh(30)),
        ("max-age=60", "max-age=30", 21, stale(0, OnError)),
        ("max-age=60", "min-fresh=30", 20, fresh(30)),
        ("max-age=60", "min-fresh=31", 20, stale(0, OnError)),
        ("max-age=60", "no-cache", 0, stale(0, No)),
        ("max-age=60", "no-store, only-if-cached", 0, fresh(50)),
        ("max-age=60", "max-stale", 500, stale(450, AsAsked)),
        ("max-age=60", "max-stale=10", 60, stale(10, AsAsked)),
        ("max-age=60", "max-stale=10", 61, stale(11, No)),
        ("max-age=60", "max-stale, max-age=100", 60, stale(10, AsAsked)),
        ("max-age=60", "max-stale, max-age=60", 60, stale(10, No)),
        ("max-age=60", "max-stale, no-cache", 60, stale(10, No)),
        ("max-age=60", "stale-if-error=20", 60, stale(10, OnError)),
        ("max-age=60", "stale-if-error=10", 60, stale(10, No)),
        ("max-age=60, stale-while-revalidate=20", "max-age=100", 60, stale(10, OnError)),
        ("max-age=60, stale-while-revalidate=20", "max-stale=5", 60, stale(10, OnError)),
        ("max-age=60, stale-while-revalidate=20", "max-stale=15", 60, stale(10, WhileRevalidating)),
        ("s-maxage=60", "max-stale, stale-if-error=99", 60, stale(10, No)),
        ("max-age=60, must-revalidate", "max-stale, stale-if-error=99", 60, stale(10, No)),
        ("max-age=60, proxy-revalidate", "max-stale", 60, stale(10, No)),
        ("max-age=60, no-cache", "max-stale", 0, stale(0, No)),
    ] {
        let freshness = evaluate(&meta(control, 10), &route(None), seconds(resident), &asked(request));
        assert_eq!(freshness.state, expected, "{control} for {request} after {resident}");
    }
}

#[test]
fn verdict_decides_the_permitted_use() {
    for (state, now, refreshes, on_error) in [
        (fresh(1), true, false, true),
        (stale(1, No), false, false, false),
        (stale(1, WhileRevalidating), true, true, true),
        (stale(1, OnError), false, false, true),
        (stale(1, AsAsked), true, false, true),
    ] {
        assert_eq!(
            (state.serves_now(), state.refreshes(), state.serves_on_error()),
            (now, refreshes, on_error),
            "{state:?}"
        );
    }
}

#[test]
fn storage_time_covers_lifetime_stale_window_and_validator() {
    for (control, age, ttl, expected) in [
        ("max-age=60", 10, None, 50),
        ("max-age=60, stale-if-error=30", 10, None, 80),
        ("max-age=60, stale-if-error=30, must-revalidate", 10, None, 50),
        ("max-age=60, stale-if-error=30", 10, Some(5), 35),
        ("no-cache", 0, None, 0),
    ] {
        assert_eq!(keep_for(&meta(control, age), &route(ttl)), seconds(expected), "{control}");
    }
    let lines = headers(&[("cache-control", "no-cache"), ("etag", "\"a\"")]);
    let meta = ResponseMeta::read(StatusCode::OK, &lines, Times { requested_at: 0, received_at: 0 }, &[]);
    assert_eq!(keep_for(&meta, &route(None)), seconds(600));
}

prop_compose! {
    /// A time, often one of the extremes.
    fn time()(time in prop_oneof![
        3 => (0_u64..300).prop_map(seconds),
        1 => any::<u64>().prop_map(Duration::from_nanos),
        1 => Just(Duration::MAX),
        1 => Just(seconds(1 << 31)),
    ]) -> Duration { time }
}

prop_compose! {
    fn any_claims()(
        no_cache: bool, must_revalidate: bool, initial_age in time(),
        lifetime in proptest::option::of(time()), s_maxage in proptest::option::of(time()),
        stale_while_revalidate in proptest::option::of(time()), stale_if_error in proptest::option::of(time()),
    ) -> ResponseMeta {
        let directives = ResponseDirectives {
            no_cache, must_revalidate, s_maxage, stale_while_revalidate, stale_if_error, ..Default::default()
        };
        ResponseMeta::of(StatusCode::OK, &directives, s_maxage.or(lifetime), initial_age)
    }
}

prop_compose! {
    fn any_route()(
        ttl in proptest::option::of(time()), max_ttl in proptest::option::of(time()),
        stale_while_revalidate in proptest::option::of(time()), stale_if_error in proptest::option::of(time()),
    ) -> Lifetimes {
        Lifetimes { ttl, max_ttl, stale_while_revalidate, stale_if_error, ..Default::default() }
    }
}

prop_compose! {
    fn any_request()(
        no_cache: bool, max_age in proptest::option::of(time()), min_fresh in proptest::option::of(time()),
        max_stale in proptest::option::of(time()), stale_if_error in proptest::option::of(time()),
    ) -> RequestDirectives {
        let max_stale = max_stale.map(MaxStale::For);
        RequestDirectives { no_cache, max_age, min_fresh, max_stale, stale_if_error, ..Default::default() }
    }
}

/// Returns the remaining freshness lifetime.
fn ttl_left(meta: &ResponseMeta, route: &Lifetimes, resident: Duration) -> Duration {
    match evaluate(meta, route, resident, &RequestDirectives::default()).state {
        State::Fresh { ttl } => ttl,
        State::Stale { .. } => Duration::ZERO,
    }
}

proptest! {
    #[test]
    fn fresh_is_never_older_than_its_life(
        meta in any_claims(), route in any_route(), asked in any_request(), resident in time(),
    ) {
        let freshness = evaluate(&meta, &route, resident, &asked);
        keep_for(&meta, &route);
        prop_assert_eq!(freshness.age, meta.initial_age().saturating_add(resident));
        let State::Fresh { ttl } = freshness.state else { return Ok(()) };
        prop_assert!(ttl > Duration::ZERO);
        prop_assert!(!asked.no_cache && asked.max_age.is_none_or(|most| freshness.age <= most));
        match route.ttl {
            Some(most) => prop_assert!(resident < most),
            None => {
                prop_assert!(!meta.directives().no_cache);
                prop_assert!(freshness.age < meta.lifetime().unwrap_or_default());
                prop_assert!(route.max_ttl.is_none_or(|most| resident < most));
            }
        }
    }

    #[test]
    fn response_gets_no_fresher_with_age(
        meta in any_claims(), route in any_route(), resident in time(), more in time(),
    ) {
        let later = resident.saturating_add(more);
        let asked = RequestDirectives::default();
        let (now, then) = (evaluate(&meta, &route, resident, &asked), evaluate(&meta, &route, later, &asked));
        prop_assert!(now.age <= then.age);
        prop_assert!(now.state.serves_now() || !then.state.serves_now());
        prop_assert!(now.state.serves_on_error() || !then.state.serves_on_error());
        prop_assert!(ttl_left(&meta, &route, resident) >= ttl_left(&meta, &route, later));
    }

    #[test]
    fn a_lower_ttl_or_cap_never_lengthens_a_life(
        meta in any_claims(), route in any_route(), one in time(), other in time(), resident in time(),
    ) {
        let (low, high) = (one.min(other), one.max(other));
        for with in [
            |route: &Lifetimes, ttl| Lifetimes { ttl: Some(ttl), ..route.clone() },
            |route: &Lifetimes, cap| Lifetimes { ttl: None, max_ttl: Some(cap), ..route.clone() },
        ] {
            let (low, high) = (with(&route, low), with(&route, high));
            prop_assert!(ttl_left(&meta, &low, resident) <= ttl_left(&meta, &high, resident));
        }
    }

    #[test]
    fn must_revalidate_response_is_never_served_stale(
        meta in any_claims(), route in any_route(), asked in any_request(), resident in time(),
    ) {
        let directives = ResponseDirectives { must_revalidate: true, ..meta.directives() };
        let meta = ResponseMeta::of(StatusCode::OK, &directives, meta.lifetime(), meta.initial_age());
        let state = evaluate(&meta, &Lifetimes { ttl: None, ..route.clone() }, resident, &asked).state;
        if ttl_left(&meta, &Lifetimes { ttl: None, ..route }, resident).is_zero() {
            prop_assert!(!state.serves_now() && !state.serves_on_error());
        }
    }

    #[test]
    fn response_past_its_storage_time_is_never_served(meta in any_claims(), route in any_route(), more in time()) {
        let resident = keep_for(&meta, &route).saturating_add(more);
        // At the end of time there is no later.
        if resident == Duration::MAX || meta.initial_age().checked_add(resident).is_none() {
            return Ok(());
        }
        let state = evaluate(&meta, &route, resident, &RequestDirectives::default()).state;
        prop_assert!(!state.serves_now() && !state.serves_on_error());
    }
}

#[test]
fn ttl_stated_by_the_response_precedes_the_routes() {
    let given = meta("", 0).with_ttl_from_response(Some(Duration::from_secs(7)));
    let route = Lifetimes { ttl: Some(Duration::from_secs(60)), ..Lifetimes::default() };
    assert_eq!(ttl(&given, &route), Some(Duration::from_secs(60)), "no route asked for it");
    let from = Some(crate::lifetimes::TtlFrom::Json("/ttl".to_owned()));
    let route = Lifetimes { ttl_from: from, ..route };
    assert_eq!(ttl(&given, &route), Some(Duration::from_secs(7)));
    assert_eq!(ttl(&meta("", 0), &route), Some(Duration::from_secs(60)));
}

#[test]
fn jittered_ttls_end_at_different_times() {
    let route = Lifetimes { ttl: Some(Duration::from_secs(100)), jitter_percent: 10, ..Lifetimes::default() };
    let of = |spread| ttl(&meta("", 0).with_spread(spread), &route).unwrap();
    assert_eq!(of(0), Duration::from_secs(100));
    assert!(of(u16::MAX) >= Duration::from_secs(90) && of(u16::MAX) < Duration::from_millis(90_010));
    assert!(of(30_000) < of(20_000));
}

#[test]
fn early_refresh_is_likelier_near_expiry_and_for_slow_sources() {
    let share = |delay: u64, left: u64| {
        let times = Times { requested_at: 0, received_at: delay };
        let meta = ResponseMeta::read(StatusCode::OK, &headers(&[]), times, &[]);
        let (left, resident) = (Duration::from_millis(left), Duration::from_millis(10_000 - left));
        let step = u64::MAX / 1000;
        (0..1000).filter(|n| refreshes_early(&meta, left, resident, n * step)).count()
    };
    assert_eq!(share(100, 9_000), 0, "long before its end");
    // The chance is e^(-left / delay).
    assert!((350..390).contains(&share(1_000, 1_000)), "{}", share(1_000, 1_000));
    assert!((120..150).contains(&share(1_000, 2_000)), "{}", share(1_000, 2_000));
    assert!(share(0, 50) > 500, "{}: a fast one counts as a hundredth of its life", share(0, 50));
    assert!(share(500, 1) > 990);
}
