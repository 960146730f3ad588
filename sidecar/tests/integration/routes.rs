//! Matching of routes, and the parts of their keys.

use http::Method;
use serde_json::Value;

use super::harness::{Origin, Policy, RedisServer, Sidecar, Wire, reply};

/// Starts a sidecar under one route, which follows the start of a policy.
async fn under(origin: &Origin, route: &str) -> (Sidecar, Policy) {
    let policy = Policy::new(&format!("routes:\n- {route}\n"));
    (Sidecar::start(&policy, origin.address).await, policy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_matches_by_headers_and_keys_them() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: two, match: {path: "/{page}", headers: {x-api-version: "2"}}, ttl: 60s}
- {name: three, match: {path: "/{page}", headers: {X-Api-Version: "3"}}, ttl: 60s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let ask = async |version| sidecar.get_with("/a", &[("x-api-version", version)]).await;
    assert_eq!((ask("2").await.body, ask("3").await.body), ("1".to_owned(), "2".to_owned()));
    assert_eq!((ask("2").await.body, ask("3").await.body), ("1".to_owned(), "2".to_owned()));
    for version in ["4", "2, 3", "", " 22"] {
        assert!(ask(version).await.cache_status().ends_with("detail=no-route"), "{version}");
    }
    assert!(sidecar.get("/a").await.cache_status().ends_with("detail=no-route"));
    let both = sidecar.get_with("/a", &[("x-api-version", "2"), ("x-api-version", "3")]).await;
    assert!(both.cache_status().ends_with("detail=no-route"));
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_take_defaults_that_they_do_not_replace() {
    let origin = Origin::start(|seen| async move {
        reply(&[("set-cookie", "a=b"), ("cache-control", "max-age=5")], seen.number.to_string())
    })
    .await;
    let policy = Policy::new(
        r#"
defaults: {ttl: 60s, setCookie: Strip, key: {query: {ignore: ["utm_*"]}}}
routes:
- {name: refusing, match: {path: "/refusing/{page}"}, setCookie: Refuse}
- {name: passing, match: {path: "/passing/{page}"}, pass: true}
- {name: told, match: {path: "/told/{page}"}, maxTTL: 1h, key: {headers: [x-a]}}
- {name: page, match: {path: "/{page}"}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, "1");
    let hit = sidecar.get("/a?utm_source=x").await;
    assert_eq!((hit.body.as_str(), hit.hit()), ("1", Some("l1")));
    assert!(hit.ttl().is_some_and(|ttl| ttl > 5), "{}", hit.cache_status());
    assert_eq!(sidecar.get("/refusing/a").await.body, "2");
    assert_eq!(sidecar.get("/refusing/a").await.hit(), None);
    assert!(sidecar.get("/passing/a").await.cache_status().ends_with("detail=bypass-route"));
    assert_eq!(sidecar.get("/told/a?utm_source=x").await.body, "5");
    let told = sidecar.get("/told/a").await;
    assert_eq!(told.body, "5");
    assert!(told.ttl().is_some_and(|ttl| ttl <= 5), "{}", told.cache_status());
    assert_eq!(sidecar.get_with("/told/a", &[("x-a", "1")]).await.body, "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn case_and_default_port_of_a_host_share_a_response_and_the_application_sees_one_spelling() {
    let origin = Origin::numbered(&[]).await;
    let (sidecar, _policy) = under(&origin, r#"{name: page, match: {path: "/{page}"}, ttl: 60s}"#).await;
    let mut wire = Wire::to(sidecar.address).await;
    let mut ask = async |target: &str, fields: &str| {
        wire.say(format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        wire.answer().await.1
    };
    for (number, first) in ["Host: SHOP:80", "Host: Shop", "Host: shop:80", "Host: shop"].iter().enumerate() {
        let path = format!("/{number}");
        let body = ask(&path, first).await;
        assert_eq!(origin.last().headers["host"], "shop", "{first}");
        for host in ["Host: shop", "Host: sHop", "Host: SHOP:80"] {
            assert_eq!(ask(&path, host).await, body, "{first}, {host}");
        }
        assert_eq!(ask(&format!("http://SHOP:80{path}"), "Host: shop").await, body);
        for other in [
            "Host: shop:443",
            "Host: shop:80\r\nX-Forwarded-Proto: https",
            "Host: shop.",
            "Host: shop\r\nX-Forwarded-Host: evil",
        ] {
            assert_ne!(ask(&path, other).await, body, "{other}");
        }
        let key = format!(r#"{{"keys": ["GET:http://SHOP:80{path}"]}}"#);
        assert_eq!(sidecar.purge(key.leak()).await.status, 200);
        assert_ne!(ask(&path, "Host: shop").await, body);
    }
    let body = ask("http://CAFE:80/absolute", "Host: cafe").await;
    assert_eq!(origin.last().headers["host"], "cafe");
    assert_eq!(ask("/absolute", "Host: cafe").await, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn route_that_ignores_the_host_has_one_response_for_all_of_them() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: page, match: {path: "/{page}"}, ttl: 60s, key: {host: Ignore}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    let mut wire = Wire::to(sidecar.address).await;
    let mut ask = async |target: &str, fields: &str| {
        wire.say(format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        wire.answer().await.1
    };
    let hosts = [
        "Host: shop",
        "Host: shop:80",
        "Host: shop.shop.svc.cluster.local",
        "Host: 10.0.0.7:8080",
        "Host: shop\r\nX-Forwarded-Host: shop.example",
        "Host: shop\r\nForwarded: for=192.0.2.1;host=shop.example",
    ];
    let body = ask("/a", hosts[0]).await;
    for host in hosts {
        assert_eq!(ask("/a", host).await, body, "{host}");
    }
    assert_eq!(ask("http://other/a", "Host: shop").await, body);
    for other in ["Host: shop\r\nX-Forwarded-Proto: https", "Host: shop\r\nX-Original-Host: evil"] {
        assert_ne!(ask("/a", other).await, body, "{other}");
    }
    let key = r#"{"keys": ["GET:http://shop.shop.svc.cluster.local/a"]}"#;
    assert_eq!(sidecar.purge(key).await.status, 200);
    assert_ne!(ask("/a", hosts[0]).await, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_whose_forwarded_host_is_not_in_its_key_has_its_route() {
    let origin = Origin::numbered(&[]).await;
    let route =
        r#"{name: page, match: {path: "/{page}", host: shop.example}, ttl: 60s, key: {host: Ignore}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    let mut wire = Wire::to(sidecar.address).await;
    let hosts = "Host: shop.example\r\nForwarded: for=192.0.2.1;host=shop.example;proto=https";
    wire.say(format!("GET /a HTTP/1.1\r\n{hosts}\r\n\r\n")).await;
    wire.answer().await;
    let found = sidecar.with_token(Method::GET, "/entries/GET:/a", "").await.body;
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["entries"][0]["route"], "page", "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn route_of_a_host_takes_no_request_whose_hosts_disagree() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: shop, match: {path: "/{page}", host: shop.example}, ttl: 60s, tags: [shop]}
- {name: tenant, match: {path: "/{page}", host: "*.shop.example"}, ttl: 60s}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    let mut ask = async |target: &str, fields: &str| {
        wire.say(format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        wire.answer().await
    };
    let (_, shop) = ask("/a", "Host: shop.example").await;
    for same in ["Host: SHOP.example:80", "Host: shop.example"] {
        assert_eq!(ask("/a", same).await.1, shop, "{same}");
    }
    assert_eq!(ask("http://shop.example/a", "Host: evil").await.1, shop);
    let (_, tenant) = ask("/a", "Host: a.shop.example").await;
    assert_eq!(ask("/a", "Host: a.shop.example").await.1, tenant);
    assert_ne!(ask("/a", "Host: b.shop.example").await.1, tenant);
    for stored in ["Host: shop.example:8080", "Host: shop.example\r\nX-Forwarded-Host: shop.example"] {
        let (_, body) = ask("/a", stored).await;
        assert_ne!(body, shop, "{stored}");
        assert_eq!(ask("/a", stored).await.1, body, "{stored}");
    }
    for other in [
        "Host: evil",
        "Host: evil\r\nX-Forwarded-Host: shop.example",
        "Host: shop.example\r\nX-Forwarded-Host: evil",
        "Host: shop.example\r\nX-Forwarded-Host: a.shop.example",
        "Host: shop.example\r\nForwarded: host=evil",
        "Host: shop.example.evil",
    ] {
        let (head, body) = ask("/a", other).await;
        assert!(head.contains("detail=no-route"), "{other}: {head}");
        assert_ne!(body, shop, "{other}");
    }
    assert!(ask("http://evil/a", "Host: shop.example").await.0.contains("detail=no-route"));
    assert_eq!(sidecar.purge(r#"{"tags": ["shop"]}"#).await.status, 200);
    assert_ne!(ask("/a", "Host: shop.example").await.1, shop);
    assert_eq!(ask("/a", "Host: a.shop.example").await.1, tenant);
}

#[tokio::test(flavor = "multi_thread")]
async fn matched_parameters_are_keyed_even_where_the_query_is_ignored() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(
        r#"
routes:
- {name: print, match: {path: "/{page}", query: {view: print}}, ttl: 60s, key: {query: {ignore: ["*"]}}}
- {name: view, match: {path: "/{page}", query: {view: "*"}}, ttl: 60s, key: {query: {ignore: ["*"]}}}
"#,
    );
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (query, body) in [
        ("?view=print", "1"),
        ("?x=1&view=print&y=2", "1"),
        ("?view=web", "2"),
        ("?view=web&x=1", "2"),
        ("?view=", "3"),
        ("?view=print", "1"),
    ] {
        assert_eq!(sidecar.get(&format!("/a{query}")).await.body, body, "{query}");
    }
    for query in ["", "?x=1", "?view=print&view=web", "?VIEW=print", "?view=print;x=1", "?view[]=print"] {
        let response = sidecar.get(&format!("/a{query}")).await;
        assert!(response.cache_status().ends_with("detail=no-route"), "{query}");
    }
    assert_eq!(sidecar.purge(r#"{"keys": ["GET:/a?view=print&x=1"]}"#).await.status, 200);
    assert_ne!(sidecar.get("/a?view=print").await.body, "1");
    assert_eq!(sidecar.get("/a?view=web").await.body, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn spellings_of_a_path_have_one_route_and_a_response_each_and_are_purged_together() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: shop, match: {path: "/Shop/{id}", caseSensitive: false, trailingSlash: Ignore}, ttl: 60s, tags: ["shop:{id}"]}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    let spellings = ["/shop/1", "/SHOP/1", "/Shop/1/", "/%73hop/1"];
    let purges = [r#"{"paths": ["/sHOP/1"]}"#, r#"{"paths": ["/shop/1/"]}"#, r#"{"tags": ["shop:1"]}"#];
    for purge in purges {
        let mut bodies = vec![];
        for path in spellings {
            let body = sidecar.get(path).await.body;
            assert_eq!(sidecar.get(path).await.body, body, "{path} is stored");
            bodies.push(body);
        }
        assert!(bodies.windows(2).all(|pair| pair[0] != pair[1]), "{bodies:?}");
        assert_eq!(sidecar.purge(purge).await.status, 200);
        for (path, body) in spellings.iter().zip(bodies) {
            assert_ne!(sidecar.get(path).await.body, body, "{path} by {purge}");
        }
        assert_eq!(sidecar.purge(r#"{"tags": ["shop:1"]}"#).await.status, 200);
    }
    sidecar.get("/SHOP/2/").await;
    sidecar.put("/shop/2").await;
    assert_eq!(sidecar.get("/SHOP/2/").await.hit(), None, "a write purges its path in every spelling");
    for path in ["/shop//1", "/shop/1//", "/shop/"] {
        assert!(sidecar.get(path).await.cache_status().ends_with("detail=no-route"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_keyed_parameters_distinguish_requests() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: page, match: {path: "/{page}"}, ttl: 60s, key: {query: {allow: [page, "f_*"]}}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    for (query, body) in [
        ("?page=1", "1"),
        ("?page=1&utm=x", "1"),
        ("?x=1&page=1", "1"),
        ("?page=2", "2"),
        ("", "3"),
        ("?utm=x", "3"),
        ("?page=1&f_size=9", "4"),
        ("?f_size=9&page=1", "5"),
        ("?page=1&page=2", "6"),
    ] {
        assert_eq!(sidecar.get(&format!("/a{query}")).await.body, body, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_of_parameters_counts_unless_sorted() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: page, match: {path: "/{page}"}, ttl: 60s, key: {query: {order: Sorted}}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    for (query, body) in
        [("?a=1&b=2", "1"), ("?b=2&a=1", "1"), ("?a=1&a=2", "2"), ("?a=2&a=1", "3"), ("?a=1&b=3", "4")]
    {
        assert_eq!(sidecar.get(&format!("/a{query}")).await.body, body, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_keyed_cookies_distinguish_requests() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: page, match: {path: "/{page}"}, ttl: 60s, key: {cookies: [lang]}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    for (cookie, body) in [
        ("lang=de", "1"),
        ("session=x; lang=de", "1"),
        ("lang=en; session=y", "2"),
        ("session=x", "3"),
        ("", "3"),
    ] {
        let headers = if cookie.is_empty() { vec![] } else { vec![("cookie", cookie)] };
        assert_eq!(sidecar.get_with("/a", &headers).await.body, body, "{cookie}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_headers_and_cookies_bypass_the_cache() {
    let origin = Origin::numbered(&[]).await;
    let route = r#"{name: page, match: {path: "/{page}"}, ttl: 60s, key: {ignoreHeaders: [cookie]}, bypass: {headers: {x-preview: "1", x-any: "*"}, cookies: {session: "*", edit: "on"}}}"#;
    let (sidecar, _policy) = under(&origin, route).await;
    assert_eq!(sidecar.get("/a").await.body, "1");
    for (name, value, detail) in [
        ("x-preview", "1", "bypass-header"),
        ("x-any", "", "bypass-header"),
        ("x-any", "x", "bypass-header"),
        ("cookie", "a=b; session=1", "bypass-cookie"),
        ("cookie", "edit=on", "bypass-cookie"),
    ] {
        let answer = sidecar.get_with("/a", &[(name, value)]).await;
        assert_eq!(answer.cache_status(), format!("larder; fwd=bypass; fwd-status=200; detail={detail}"));
    }
    for (name, value) in [("x-preview", "0"), ("cookie", "a=b"), ("cookie", "edit=off")] {
        assert_eq!(sidecar.get_with("/a", &[(name, value)]).await.hit(), Some("l1"), "{name}: {value}");
    }
}

const GRAPHQL: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: graphql, match: {path: /graphql, methods: [POST]}, ttl: 60s, key: {body: {maxSize: 20}}}
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn post_is_keyed_by_its_body() {
    let origin = Origin::start(|seen| async move {
        reply(&[], format!("{}: {}", seen.number, String::from_utf8(seen.body.to_vec()).unwrap()))
    })
    .await;
    let policy = Policy::new(GRAPHQL);
    let a = Sidecar::start(&policy, origin.address).await;
    let post = async |sidecar: &Sidecar, body| sidecar.request(Method::POST, "/graphql", &[], body).await;
    assert_eq!(post(&a, "{ me }").await.cache_status(), "larder; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(post(&a, "{ you }").await.body, "2: { you }");
    for (body, answer) in [("{ me }", "1: { me }"), ("{ you }", "2: { you }")] {
        let hit = post(&a, body).await;
        assert_eq!((hit.hit(), hit.body.as_str()), (Some("l1"), answer));
    }
    assert_eq!(post(&a, "").await.body, "3: ");
    policy.until_stored(&mut RedisServer::shared().await, 3).await;
    let b = Sidecar::start(&policy, origin.address).await;
    assert_eq!(post(&b, "{ me }").await.hit(), Some("l2"));
    for _ in 0..2 {
        let long = post(&a, "{ all of them, really }").await;
        assert_eq!(long.cache_status(), "larder; fwd=bypass; fwd-status=200; detail=content");
        assert_eq!(origin.last().body, "{ all of them, really }");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn same_body_of_another_type_has_another_key() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(GRAPHQL);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (name, value, number) in [
        ("content-type", "application/json", "1"),
        ("content-type", "text/plain", "2"),
        ("content-encoding", "gzip", "3"),
        ("content-type", "application/json", "1"),
    ] {
        let answer = sidecar.request(Method::POST, "/graphql", &[(name, value)], "{ me }").await;
        assert_eq!(answer.body, number, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_is_cached_makes_nothing_stale_and_get_is_another_key() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(GRAPHQL);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/graphql").await.body, "1");
    for body in ["{ me }", "{ me }", "{ all of them, really }"] {
        sidecar.request(Method::POST, "/graphql", &[], body).await;
    }
    assert_eq!(sidecar.get("/graphql").await.hit(), Some("l1"));
    assert_eq!(sidecar.request(Method::POST, "/graphql", &[], "{ me }").await.hit(), Some("l1"));
    sidecar.put("/graphql").await;
    assert_eq!(sidecar.get("/graphql").await.hit(), None);
    assert_eq!(sidecar.request(Method::POST, "/graphql", &[], "{ me }").await.hit(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_made_conditional() {
    // RFC 9110, section 13.1.2: of other methods than GET and HEAD, If-None-Match that matches makes a 412.
    let origin = Origin::start(|seen| async move {
        let mut answer = reply(&[("etag", "\"a\""), ("cache-control", "max-age=0")], seen.number.to_string());
        if seen.headers.contains_key("if-none-match") {
            *answer.status_mut() = http::StatusCode::PRECONDITION_FAILED;
        }
        answer
    })
    .await;
    let policy = Policy::new(&GRAPHQL.replace("methods: [POST]}, ttl: 60s", "methods: [POST]}"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for number in ["1", "2"] {
        let answer = sidecar.request(Method::POST, "/graphql", &[], "{ me }").await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, number));
    }
    let conditional = [("if-none-match", "\"a\"")];
    let answer = sidecar.request(Method::POST, "/graphql", &conditional, "{ me }").await;
    assert_eq!(answer.status, 412, "only the origin can say");
}
