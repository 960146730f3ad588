use serde_json::json;

use super::*;
use crate::Policy;

fn spec(defaults: &str, routes: &[&str]) -> CacheSpec {
    let routes = (0..).zip(routes).map(|(number, fields)| {
        let end = if fields.is_empty() { String::new() } else { format!(", {fields}") };
        let path = if fields.contains("match:") { "" } else { ", match: {path: /a}" };
        format!("- {{name: r{number}{path}{end}}}\n")
    });
    let routes: String = routes.collect();
    let sources = "- {name: db, postgres: {urlFrom: {env: DB}}}";
    serde_yaml::from_str(&format!("defaults: {defaults}\nsources:\n{sources}\nroutes:\n{routes}")).unwrap()
}

/// Returns what a route says besides its name and its match, once it is filled in.
fn filled_in(defaults: &str, route: &str) -> Value {
    let [complete] = &spec(defaults, &[route]).complete_routes()[..] else { panic!("one route") };
    let mut complete = serde_json::to_value(complete).unwrap();
    for name in ["name", "match", "pass", "from", "tags"] {
        complete.as_object_mut().unwrap().remove(name);
    }
    complete
}

fn errors(defaults: &str, routes: &[&str]) -> Vec<String> {
    Policy::compile(&spec(defaults, routes)).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_have_every_field_of_a_route_that_is_not_about_its_path() {
    let properties = |schema: schemars::Schema| schema.as_value()["properties"].as_object().unwrap().clone();
    let of_routes = properties(schemars::schema_for!(RouteSpec));
    let of_defaults = properties(schemars::schema_for!(RouteDefaults));
    let own = ["name", "match", "pass", "tags", "from"];
    let shared: Vec<_> = of_routes.keys().filter(|name| !own.contains(&name.as_str())).collect();
    assert_eq!(of_defaults.keys().collect::<Vec<_>>(), shared);
    for name in shared {
        let without_text = |properties: &Map<String, Value>| {
            let mut schema = properties[name].clone();
            schema.as_object_mut().unwrap().remove("description");
            assert!(schema.get("default").is_none_or(Value::is_null), "{name} would hide the defaults");
            schema
        };
        assert_eq!(without_text(&of_defaults), without_text(&of_routes), "{name}");
    }
}

#[test]
fn field_of_a_route_replaces_that_of_the_defaults() {
    let defaults =
        "{ttl: 1m, statuses: [{code: 200}, {code: 404}], setCookie: Strip, envelope: true, l1TTL: 5s}";
    let expected = json!({"ttl": "1m", "statuses": [{"code": 200}, {"code": 404}], "setCookie": "Strip", "envelope": true, "l1TTL": "5s"});
    assert_eq!(filled_in(defaults, ""), expected);
    let own = "ttl: 2m, statuses: [{code: 301}], setCookie: Refuse, envelope: false, l1TTL: 1s";
    let expected = json!({"ttl": "2m", "statuses": [{"code": 301}], "setCookie": "Refuse", "envelope": false, "l1TTL": "1s"});
    assert_eq!(filled_in(defaults, own), expected);
}

#[test]
fn empty_list_of_a_route_takes_none_of_the_defaults() {
    let defaults = "{storeDespite: [NoStore], key: {cookies: [lang], query: {ignore: [\"utm_*\"]}}, bypass: {cookies: {session: \"*\"}}}";
    let own = "storeDespite: [], key: {cookies: [], query: {ignore: []}}, bypass: {cookies: {}}";
    assert_eq!(filled_in(defaults, own), json!({}));
}

#[test]
fn keys_and_bypasses_are_filled_in_field_by_field() {
    let defaults = "{key: {host: Ignore, headers: [x-tenant], query: {ignore: [\"utm_*\"], order: Sorted}}, bypass: {cookies: {session: \"*\"}, query: {a: \"1\"}}}";
    let own = "key: {cookies: [lang], query: {allow: [page]}}, bypass: {query: {b: \"2\"}}";
    let expected = json!({
        "key": {"host": "Ignore", "headers": ["x-tenant"], "cookies": ["lang"], "query": {"allow": ["page"], "order": "Sorted"}},
        "bypass": {"cookies": {"session": "*"}, "query": {"a": "1", "b": "2"}},
    });
    assert_eq!(filled_in(defaults, own), expected);
    let own = "key: {host: Include, headers: [accept-language]}";
    let key = json!({"host": "Include", "headers": ["accept-language", "x-tenant"], "query": {"ignore": ["utm_*"], "order": "Sorted"}});
    assert_eq!(filled_in(defaults, own)["key"], key);
}

#[test]
fn own_headers_and_cookies_join_those_of_the_default_key() {
    let defaults = "{key: {headers: [X-Tenant, a], cookies: [lang]}, bypass: {query: {a: \"1\"}, headers: {X-Preview: \"1\"}, cookies: {s: \"*\"}}}";
    let own = "key: {headers: [b, x-tenant], cookies: [LANG]}, bypass: {query: {a: \"2\"}, headers: {x-preview: \"2\", c: \"*\"}, cookies: {t: \"*\"}}";
    let expected = json!({
        "key": {"headers": ["b", "x-tenant", "a"], "cookies": ["LANG", "lang"]},
        "bypass": {"query": {"a": "2"}, "headers": {"x-preview": "2", "c": "*"}, "cookies": {"s": "*", "t": "*"}},
    });
    assert_eq!(filled_in(defaults, own), expected);
    let none = "key: {headers: [], cookies: []}, bypass: {query: {}, headers: {}, cookies: {}}";
    assert_eq!(filled_in(defaults, none), json!({}));
}

#[test]
fn own_lifetime_replaces_that_of_successes_and_bounds_that_of_errors() {
    let defaults =
        "{ttl: 1m, ttlFrom: {header: x-ttl}, statuses: [{code: 200, ttl: 2m}, {code: 404, ttl: 10s}]}";
    let codes = json!([{"code": 200}, {"code": 404}]);
    assert_eq!(filled_in(defaults, "ttl: 5s"), json!({"ttl": "5s", "statuses": codes}));
    assert_eq!(filled_in(defaults, "maxTTL: 5s"), json!({"maxTTL": "5s", "statuses": codes}));
    let codes = json!([{"code": 200}, {"code": 404, "ttl": "10s"}]);
    assert_eq!(filled_in(defaults, "ttl: 1h"), json!({"ttl": "1h", "statuses": codes}));
    let all = json!({"ttl": "1m", "ttlFrom": {"header": "x-ttl"}, "statuses": [{"code": 200, "ttl": "2m"}, {"code": 404, "ttl": "10s"}]});
    assert_eq!(filled_in(defaults, ""), all);
}

#[test]
fn own_not_found_ttl_replaces_the_statuses_that_say_it() {
    let route = "notFoundTTL: 1s, from: [{application: {}}]";
    for code in ["404", "4xx"] {
        let listed = |codes: &str| format!("{{ttl: 1m, statuses: [{codes}{{code: {code}, ttl: 10s}}]}}");
        let expected = json!({"ttl": "1m", "notFoundTTL": "1s", "statuses": [{"code": 200}]});
        assert_eq!(filled_in(&listed("{code: 200}, "), route), expected);
        Policy::compile(&spec(&listed("{code: 200}, "), &[route])).unwrap();
        assert_eq!(filled_in(&listed(""), route), json!({"ttl": "1m", "notFoundTTL": "1s"}));
    }
    let found = errors("{ttl: 1m, statuses: [{code: 404}, {code: 304}]}", &[route]);
    assert!(found.len() == 1 && found[0].starts_with("spec.defaults.statuses[1].code: "), "{found:?}");
}

#[test]
fn own_lifetime_replaces_the_other_form_of_the_default() {
    assert_eq!(filled_in("{ttl: 1m}", "maxTTL: 1h"), json!({"maxTTL": "1h"}));
    assert_eq!(filled_in("{maxTTL: 1h}", "ttl: 1m"), json!({"ttl": "1m"}));
    let both = "{staleWhileRevalidate: 10s, staleIfError: 1h}";
    assert_eq!(filled_in(both, "grace: 5m"), json!({"grace": "5m"}));
    let mixed = json!({"staleWhileRevalidate": "10s", "staleIfError": "5m"});
    assert_eq!(filled_in("{grace: 5m}", "staleWhileRevalidate: 10s"), mixed);
    let mixed = json!({"staleWhileRevalidate": "10s", "staleIfError": "0s"});
    assert_eq!(filled_in(both, "staleIfError: 0s"), mixed);
    let mixed = json!({"staleWhileRevalidate": "10s", "staleIfError": "5m"});
    assert_eq!(filled_in("{grace: 5m, staleWhileRevalidate: 10s}", ""), mixed);
}

#[test]
fn default_that_does_not_apply_is_not_taken() {
    assert_eq!(
        filled_in("{ttl: 1m, key: {headers: [a]}, bypass: {query: {a: \"1\"}}}", "pass: true"),
        json!({})
    );
    let about_ttls = "{ttlFrom: {header: x-ttl}, ttlJitterPercent: 10}";
    assert_eq!(filled_in(about_ttls, "maxTTL: 1h"), json!({"maxTTL": "1h"}));
    assert_eq!(filled_in(about_ttls, "ttl: 1m")["ttlJitterPercent"], 10);
    let body = "{key: {body: {maxSize: 1Ki}}}";
    assert_eq!(filled_in(body, ""), json!({}));
    let post = filled_in(body, "match: {path: /a, methods: [POST]}");
    assert_eq!(post, json!({"key": {"body": {"maxSize": "1Ki"}}}));
    let from = "ttl: 1m, from: [{application: {}}]";
    assert_eq!(filled_in("{notFoundTTL: 1s}", "ttl: 1m"), json!({"ttl": "1m"}));
    assert_eq!(filled_in("{notFoundTTL: 1s}", from)["notFoundTTL"], "1s");
    let listed = filled_in("{notFoundTTL: 1s, statuses: [{code: 4xx}]}", from);
    assert_eq!(listed, json!({"ttl": "1m", "statuses": [{"code": "4xx"}]}));
}

#[test]
fn complete_routes_have_the_same_meaning_without_the_defaults() {
    let mut spec = spec(
        "{ttl: 1m, grace: 5m, key: {host: Ignore}, tagsFrom: {headers: [Surrogate-Key]}}",
        &["", "maxTTL: 1h, key: {headers: [a]}", "pass: true, match: {path: /b}"],
    );
    let policy = Policy::compile(&spec).unwrap();
    spec.complete();
    assert_eq!(spec.defaults, None);
    assert_eq!(spec.complete_routes(), spec.routes);
    let complete = Policy::compile(&spec).unwrap();
    assert_eq!(policy.fingerprint(), complete.fingerprint());
    let lifetimes =
        |policy: &Policy| policy.routes().iter().map(|route| route.lifetimes.clone()).collect::<Vec<_>>();
    assert_eq!(lifetimes(&policy), lifetimes(&complete));
}

#[test]
fn defaults_count_in_the_fingerprint_as_fields_of_routes_do() {
    let compiled = |defaults: &str| Policy::compile(&spec(defaults, &["ttl: 1m"])).unwrap();
    assert_ne!(compiled("{}").fingerprint(), compiled("{setCookie: Store}").fingerprint());
    assert_eq!(compiled("{}").fingerprint(), compiled("{grace: 1h}").fingerprint());
}

#[test]
fn error_in_the_defaults_is_named_once_and_there() {
    let found = errors("{ttl: 0s, key: {headers: [\"a b\"]}}", &["", "key: {cookies: [\"c;\"]}"]);
    let expected = [
        "spec.defaults.ttl: must be longer than 0s",
        "spec.defaults.key.headers[0]: \"a b\" is not the name of a header",
        "spec.routes[1].key.cookies[0]: \"c;\" is not the name of a cookie",
    ];
    assert_eq!(found, expected);
}

#[test]
fn error_in_a_list_that_a_route_adds_to_is_named_where_it_is_written() {
    let defaults = "{key: {headers: [a, \"b c\"]}, bypass: {headers: {\"d e\": \"1\"}}}";
    let own =
        ["key: {headers: [A, \"f g\"]}, bypass: {headers: {\"h i\": \"1\"}}", "key: {headers: [x]}", ""];
    let expected = [
        "spec.routes[0].key.headers[1]: \"f g\" is not the name of a header",
        "spec.defaults.key.headers[1]: \"b c\" is not the name of a header",
        "spec.defaults.bypass.headers: \"d e\" is not the name of a header",
        "spec.routes[0].bypass.headers: \"h i\" is not the name of a header",
    ];
    assert_eq!(errors(defaults, &own), expected);
}

#[test]
fn parameter_of_a_source_that_the_defaults_leave_out_is_named_at_the_route() {
    let from = "ttl: 1m, from: [{postgres: {source: db, query: \"select {query.q}\"}}]";
    let found = errors("{key: {query: {ignore: [\"*\"]}}}", &[from]);
    let expected = "spec.routes[0].from: uses {query.q}, which the key leaves out: list it in key.query.allow of this route, or take it out of ignore";
    assert_eq!(found, [expected]);
    Policy::compile(&spec(
        "{key: {query: {ignore: [\"*\"]}}}",
        &[&format!("{from}, key: {{query: {{allow: [q]}}}}")],
    ))
    .unwrap();
}

#[test]
fn contradiction_with_the_defaults_is_refused() {
    let keyed = "forwardHeaders: Keyed";
    assert!(
        errors("{key: {host: Ignore}}", &[keyed])[0]
            .starts_with("spec.routes[0].forwardHeaders: Keyed sends")
    );
    let own_host = format!("{keyed}, key: {{host: Include}}");
    Policy::compile(&spec("{key: {host: Ignore}}", &[&own_host])).unwrap();
    let none = errors("{lastKnownGood: {source: none}}", &["", ""]);
    assert_eq!(none, ["spec.defaults.lastKnownGood.source: spec.sources has no \"none\""]);
}

#[test]
fn own_field_may_rely_on_a_default() {
    let post = "match: {path: /a, methods: [GET, POST]}";
    let from = "from: [{application: {}}]";
    let routes = ["ttlJitterPercent: 10", "ttlFrom: {header: x-ttl}", from, post];
    Policy::compile(&spec("{ttl: 1m, key: {body: {maxSize: 1Ki}}}", &routes)).unwrap();
    assert_eq!(errors("{}", &routes).len(), 4);
    assert_eq!(errors("{ttl: 1m}", &["maxTTL: 1h, ttlJitterPercent: 10"]).len(), 1);
}

#[test]
fn defaults_that_no_route_takes_are_known() {
    let without_effect = |defaults: &str, routes: &[&str]| spec(defaults, routes).defaults_without_effect();
    let defaults = "{ttl: 1m, notFoundTTL: 1s, key: {host: Ignore, body: {maxSize: 1Ki}, query: {order: Sorted}}, bypass: {query: {a: \"1\"}}}";
    assert_eq!(without_effect(defaults, &["", "ttl: 2m"]), ["key.body", "notFoundTTL"]);
    let all = ["bypass.query", "key.body", "key.host", "key.query.order", "notFoundTTL", "ttl"];
    assert_eq!(without_effect(defaults, &["pass: true"]), all);
    assert_eq!(
        without_effect("{grace: 1h}", &["grace: 1m", "staleIfError: 0s, staleWhileRevalidate: 0s"]),
        ["grace"]
    );
    assert_eq!(without_effect("{setCookie: Refuse}", &[""]), [""; 0]);
}
