//! The index beside a search through the list.

use std::cell::Cell;

use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{NormalPath, Policy, path::Readings, policy::RequestLine, spec::CacheSpec};

use super::super::hosts::NamedHosts;

/// Field lines of a request.
type Lines<'a> = [(&'a [u8], &'a [u8])];

fn policy(routes: impl IntoIterator<Item = Value>) -> Policy {
    let named = routes.into_iter().enumerate().map(|(number, matches)| {
        let mut matches = matches;
        if matches.is_string() {
            matches = json!({ "path": matches });
        }
        json!({"name": format!("r{number}"), "match": matches})
    });
    let spec: CacheSpec = serde_json::from_value(json!({"routes": named.collect::<Vec<_>>()})).unwrap();
    Policy::compile(&spec).unwrap()
}

fn line<'a>(method: &'a Method, path: &'a NormalPath<'a>) -> RequestLine<'a> {
    RequestLine { method, uri_host: None, path, query: Some("v=1&w=2") }
}

/// Returns the number of the first route of the list that matches.
fn first_of_list(
    policy: &Policy,
    method: &Method,
    path: &NormalPath<'_>,
    lines: &Lines<'_>,
) -> Option<usize> {
    let hosts = NamedHosts::of(None, lines);
    let matches = |route: &&std::sync::Arc<crate::Route>| {
        route.paths().any(|template| template.matches_spelled(path.as_str(), route.ignores_case).is_some())
            && route.takes(&line(method, path), Some(&hosts), lines)
    };
    let found = policy.routes.iter().find(matches)?;
    (!path.is_ambiguous() || !found.asks_application).then_some(found.index)
}

fn first_of_index(
    policy: &Policy,
    method: &Method,
    path: &NormalPath<'_>,
    lines: &Lines<'_>,
) -> Option<usize> {
    policy.route(&line(method, path), lines).map(|found| found.route.index)
}

fn first(policy: &Policy, path: &str) -> Option<usize> {
    first_of_index(policy, &Method::GET, &NormalPath::new(path), &[])
}

#[test]
fn order_of_the_list_decides_and_not_the_shape_of_a_path() {
    let routes = ["/u/{id}", "/u/me", "/{*all}", "/x", "/u/{id}/a", "/{a}/me/a"].map(Value::from);
    let policy = policy(routes);
    for (path, expected) in [
        ("/u/me", Some(0)),
        ("/u/7", Some(0)),
        ("/x", Some(2)),
        ("/", Some(2)),
        ("/u/me/a", Some(2)),
        ("/u/", Some(2)),
        ("/u", Some(2)),
        ("*", None),
    ] {
        assert_eq!(first(&policy, path), expected, "{path}");
    }
    let names: Vec<_> =
        policy.unreachable_routes().iter().map(|(route, by)| (route.index, by.index)).collect();
    assert_eq!(names, [(1, 0), (3, 2), (4, 2), (5, 2)]);
}

#[test]
fn route_that_takes_only_a_part_hides_nothing() {
    let policy = policy([
        json!({"path": "/{*all}", "headers": {"x-v": "1"}}),
        json!({"path": "/{*all}", "methods": ["HEAD"]}),
        json!({"path": "/a/{*rest}", "headers": {"X-V": "1", "x-w": "2"}}),
        json!({"path": "/a"}),
        json!({"path": "/a/{id}", "methods": ["GET"]}),
        json!({"path": "/a/{*rest}"}),
        json!({"path": "/a/b", "methods": ["HEAD"]}),
        json!({"path": "/a/b", "headers": {"x-w": "2"}}),
        json!({"path": "/b", "host": "*.example"}),
        json!({"path": "/b", "host": "a.example"}),
        json!({"path": "/b", "query": {"v": "*"}}),
        json!({"path": "/b", "query": {"v": "1"}, "host": "example"}),
        json!({"path": "/b"}),
        json!({"path": "/b", "host": "b"}),
    ]);
    let names: Vec<_> =
        policy.unreachable_routes().iter().map(|(route, by)| (route.index, by.index)).collect();
    assert_eq!(names, [(2, 0), (6, 1), (7, 5), (9, 8), (11, 10), (13, 12)]);
}

#[test]
fn route_that_takes_some_spellings_hides_no_route_of_more() {
    let route = |path: &str, is_case_sensitive: bool, slash: &str| json!({"path": path, "caseSensitive": is_case_sensitive, "trailingSlash": slash});
    let policy = policy([
        route("/a", true, "Exact"),
        route("/A", false, "Exact"),
        route("/a", true, "Exact"),
        route("/a/", true, "Ignore"),
        route("/a/", false, "Exact"),
        route("/a", false, "Ignore"),
        route("/A/", true, "Ignore"),
        route("/b/{*rest}", true, "Exact"),
        route("/b/", true, "Ignore"),
        route("/b/c", true, "Ignore"),
        route("/{*all}", true, "Exact"),
        route("/c", false, "Ignore"),
    ]);
    let names: Vec<_> =
        policy.unreachable_routes().iter().map(|(route, by)| (route.index, by.index)).collect();
    assert_eq!(names, [(2, 0), (6, 5), (11, 10)]);
    for (path, expected) in [
        ("/a", 0),
        ("/%41", 1),
        ("/a/", 3),
        ("/A/", 4),
        ("/b", 8),
        ("/b/", 7),
        ("/b/c", 7),
        ("/b/c/", 7),
        ("/C/", 10),
    ] {
        assert_eq!(first(&policy, path), Some(expected), "{path}");
    }
}

#[test]
fn a_thousand_routes_offer_as_few_candidates_as_ten() {
    for count in [10, 1000] {
        let own = (0..count - 1).map(|number| Value::from(format!("/service-{number}/items/{{id}}")));
        let policy = policy(own.chain([Value::from("/{*all}")]));
        let tried = Cell::new(0);
        for number in 0..count - 1 {
            tried.set(0);
            let found = policy.index.first(&format!("/service-{number}/items/7"), false, |_| {
                tried.set(tried.get() + 1);
                true
            });
            assert_eq!((found, tried.get()), (Some(number), 1));
        }
        assert_eq!(policy.index.first("/other", false, |_| true), Some(count - 1));
    }
}

fn segment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        &["a", "b", "C", "c", "", "{x}", "{y}", "a%41", "%61", "a%2541", "@", "%40", "100%25", "%C3%BC", "+"]
            [..],
    )
}

fn template() -> impl Strategy<Value = String> {
    let last = prop_oneof![3 => segment(), 1 => Just("{*rest}")];
    (prop::collection::vec(segment(), 0..4), last).prop_map(|(segments, last)| {
        let segments: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        format!("{segments}/{last}")
    })
}

fn route() -> impl Strategy<Value = Value> {
    let methods =
        prop::sample::select(vec![json!([]), json!(["GET"]), json!(["HEAD"]), json!(["GET", "HEAD"])]);
    let headers = prop::sample::select(vec![json!({}), json!({"x-v": "1"}), json!({"X-V": "2"})]);
    let hosts = prop::sample::select(vec![json!(null), json!("shop"), json!("*.shop"), json!("other")]);
    let queries =
        prop::sample::select(vec![json!({}), json!({"v": "1"}), json!({"v": "2"}), json!({"w": "*"})]);
    let slashes = prop::sample::select(&["Exact", "Ignore"][..]);
    let spelling = (any::<bool>(), slashes);
    (template(), spelling, methods, headers, hosts, queries).prop_map(
        |(path, (is_case_sensitive, slash), methods, headers, host, query)| {
            json!({
                "path": path, "caseSensitive": is_case_sensitive, "trailingSlash": slash,
                "methods": methods, "headers": headers, "host": host, "query": query,
            })
        },
    )
}

fn path() -> impl Strategy<Value = String> {
    let sent = &[
        "a", "b", "c", "C", "", "%61", "a%41", "a%2541", "aA", "@", "%40", "100%", "100%25", "\u{fc}", "%FC",
        "%FF", "a%2Fb", ".", "..", "+", "b;x", "A", "%41", "%C3%9C", "\u{dc}",
    ][..];
    prop::collection::vec(prop::sample::select(sent), 1..6)
        .prop_map(|segments| segments.iter().map(|segment| format!("/{segment}")).collect())
}

proptest! {
    #[test]
    fn index_and_list_find_the_same_route(
        routes in prop::collection::vec(route(), 0..40),
        paths in prop::collection::vec(path(), 20),
        version in prop::sample::select(&["1", "2", "3"][..]),
        host in prop::sample::select(&["shop", "a.shop:80", "x"][..]),
    ) {
        let policy = policy(routes);
        let lines = [(&b"x-v"[..], version.as_bytes()), (b"host", host.as_bytes())];
        let hidden: Vec<_> = policy.unreachable_routes().iter().map(|(route, _)| route.index).collect();
        for path in &paths {
            let normal = NormalPath::new(path);
            for method in [Method::GET, Method::HEAD, Method::PUT] {
                let found = first_of_index(&policy, &method, &normal, &lines);
                prop_assert_eq!(found, first_of_list(&policy, &method, &normal, &lines), "{} {}", method, path);
                prop_assert!(found.is_none_or(|found| !hidden.contains(&found)), "{} {}", method, path);
            }
            let readings = Readings::of(path);
            let is_covered = policy.routes.iter().any(|route| {
                let template = route.path.as_ref().unwrap();
                readings.iter().any(|reading| template.matches_reading(reading).is_some())
            });
            prop_assert_eq!(policy.covers(path), is_covered, "{}", path);
        }
    }
}
