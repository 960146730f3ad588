//! `POST /explain`: the treatment of a request, which the sidecar then shows.

use super::*;

const PERSISTED: &str = r#"
sources: [{name: db, postgres: {urlFrom: DATABASE}}]
routes:
- name: row
  match: {path: "/rows/{id}"}
  ttl: 60s
  from: [{postgres: {source: db, query: "select {id} as id"}}]
  lastKnownGood: {source: db}
  retryInterval: 7s
  storeDespite: [NoStore, VaryAny]
  envelope: true
  tagsFrom: {headers: [xkey, Cache-Tag]}
  bypass: {query: {nocache: "*"}}
- name: page
  match: {path: "/{page}"}
  ttl: 60s
  lastKnownGood: {source: db}
  bypass: {query: {nocache: "*"}}
"#;

/// A method, a target and headers of a request that passes, and the reason.
type Passing<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn explain_predicts_the_handling_of_a_request() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let request = json!({
        "method": "GET",
        "url": "http://shop.test/api/users/a%40b?x=1",
        "headers": {"Accept-Language": "de"},
    });
    let before = explain(&sidecar, &request).await.json();
    assert_eq!(origin.calls(), 0, "no request goes to the application");
    let route = &before["route"];
    assert_eq!(
        (&route["name"], &route["index"], &route["path"]),
        (&json!("user"), &json!(0), &json!("/api/users/{id}"))
    );
    assert_eq!(route["parameters"], json!({"id": "a@b"}));
    let lifetimes = &route["lifetimes"];
    assert_eq!(
        (&lifetimes["ttl_seconds"], &lifetimes["stale_if_error_seconds"]),
        (&json!(60.0), &json!(600.0))
    );
    assert_eq!(before["key"], "GET:http://shop.test/api/users/a%40b?x=1#accept-language=de");
    assert_eq!((&before["bypass"], &before["tiers"]), (&Value::Null, &json!(["l1", "l2", "app"])));
    assert_eq!(
        before["purge"],
        json!({
            "keys": ["GET:http://shop.test/api/users/a%40b?x=1#accept-language=de", "GET:/api/users/a%40b?x=1"],
            "paths": ["/api/users/a%40b"],
            "tags": ["user:a%40b"],
        })
    );
    assert_eq!((&before["l1"]["hit"], &before["l1"]["forward"]), (&json!(false), &json!("uri-miss")));

    let ask = || sidecar.get_with("/api/users/a%40b?x=1", &[("accept-language", "de")]);
    ask().await;
    let after = explain(&sidecar, &request).await.json();
    assert_eq!((&after["l1"]["hit"], &after["l1"]["state"]), (&json!(true), &json!("fresh")), "{after}");
    // The explained names do purge.
    let purge: &'static str = after["purge"].to_string().leak();
    assert_eq!(sidecar.purge(purge).await.status, 200);
    let purged = explain(&sidecar, &request).await.json();
    assert_eq!((&purged["l1"]["hit"], &purged["l1"]["forward"]), (&json!(false), &json!("stale")));
    assert_eq!(ask().await.body, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_fallbacks_of_a_route() {
    let origin = Origin::numbered(&[]).await;
    let database = Database::new("").await;
    let policy = Policy::new(&database.serve(PERSISTED));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let explained = async |target: &str| {
        explain(&sidecar, &json!({"url": format!("http://shop.test{target}")})).await.json()
    };
    let row = explained("/rows/1").await;
    assert_eq!(row["tiers"], json!(["l1", "postgres/db", "last-known-good"]));
    let (route, lifetimes) = (&row["route"], &row["route"]["lifetimes"]);
    assert_eq!(route["envelope"], true);
    assert_eq!(route["tags_from"], json!(["cache-tag", "xkey"]));
    assert_eq!(lifetimes["store_despite"], json!(["NoStore", "VaryAny"]));
    assert_eq!(lifetimes["retry_interval_seconds"], 7.0);

    let page = explained("/page").await;
    assert_eq!(page["tiers"], json!(["l1", "app", "last-known-good"]));
    let (route, lifetimes) = (&page["route"], &page["route"]["lifetimes"]);
    assert_eq!(route["envelope"], false);
    assert_eq!(lifetimes["store_despite"], json!([]));
    assert_eq!(lifetimes["retry_interval_seconds"], 1.0, "where something can stand in");

    assert_eq!(explained("/rows/1?nocache=1").await["tiers"], json!(["postgres/db", "last-known-good"]));
    assert_eq!(explained("/page?nocache=1").await["tiers"], json!(["app"]));
    database.drop_schema().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_gives_the_bypass_reason_that_cache_status_gives() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let cases: [Passing<'_>; 8] = [
        ("GET", "/api/users/1?nocache=true", &[], "bypass-query"),
        ("GET", "/api/users/1", &[("cookie", "a=b")], "credentials"),
        ("GET", "/api/users/1", &[("x-http-method-override", "GET")], "override"),
        ("GET", "/api/users/1", &[("range", "bytes=0-1,3-4")], "range"),
        ("GET", "/api/users/1", &[("if-match", "\"a\"")], "precondition"),
        ("GET", "/none/at/all", &[], "no-route"),
        ("PUT", "/api/users/1", &[], "method"),
        ("GET", "/api/users/1", &[("x-http-method-override", "DELETE")], "method"),
    ];
    for (method, target, headers, reason) in cases {
        let described = json!({
            "method": method,
            "url": format!("http://shop.test{target}"),
            "headers": headers.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        });
        let explained = explain(&sidecar, &described).await.json();
        assert_eq!(
            (&explained["bypass"], &explained["tiers"]),
            (&json!(reason), &json!(["app"])),
            "{described}"
        );
        let said = sidecar.request(method.parse().unwrap(), target, headers, "").await;
        assert!(said.cache_status().contains(reason), "{described}: {}", said.cache_status());
    }
    policy.change(&format!("suspend: true\n{SHOP}"));
    sidecar.until_state("suspended").await;
    let explained = explain(&sidecar, &json!({"url": "http://shop.test/a"})).await.json();
    assert_eq!(explained["bypass"], "suspended");
}

const WRITTEN: &str = r#"
admin: {pathPrefix: /_larder}
routes:
- {name: user, match: {path: "/api/users/{id}"}, ttl: 60s, tags: ["user:{id}"]}
invalidation:
  onWrite:
  - {match: {path: "/api/users/{id}", methods: [PUT, DELETE]}, purge: {tags: ["user:{id}"], paths: ["/api/users"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn explain_agrees_with_the_sidecar_on_writes_and_local_responses() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(WRITTEN);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let purge = |paths: Value, tags: Value| json!({"keys": [], "paths": paths, "tags": tags});
    let users =
        |id: &str| purge(json!(["/api/users", format!("/api/users/{id}")]), json!([format!("user:{id}")]));
    let own = purge(json!(["/api/users/1"]), json!([]));
    let nothing = purge(json!([]), json!([]));
    for (method, target, header, ends_here, bypass, on_write) in [
        ("PUT", "/api/users/1", None, Value::Null, json!("method"), users("1")),
        ("DELETE", "/api/users/me@x.com", None, Value::Null, json!("method"), users("me@x.com")),
        ("PATCH", "/api/users/1", None, Value::Null, json!("method"), own),
        (
            "GET",
            "/api/users/1",
            Some(("x-http-method-override", "put")),
            Value::Null,
            json!("method"),
            users("1"),
        ),
        ("PUT", "/elsewhere", None, Value::Null, json!("method"), nothing),
        ("GET", "/api/users/1", None, Value::Null, Value::Null, Value::Null),
        ("GET", "/api/users/..%2f1", None, Value::Null, json!("ambiguous-path"), Value::Null),
        ("CONNECT", "/api/users/1", None, json!("connect"), Value::Null, Value::Null),
        (
            "OPTIONS",
            "/api/users/1",
            Some(("max-forwards", "0")),
            json!("max-forwards"),
            Value::Null,
            Value::Null,
        ),
        (
            "TRACE",
            "/api/users/1",
            Some(("max-forwards", "0")),
            json!("max-forwards"),
            Value::Null,
            Value::Null,
        ),
        ("OPTIONS", "/api/users/1", Some(("max-forwards", "1")), Value::Null, json!("method"), Value::Null),
        ("GET", "/_larder/livez", None, json!("admin"), Value::Null, Value::Null),
        ("PUT", "/_larder/stats", None, json!("admin"), Value::Null, Value::Null),
    ] {
        let described = json!({
            "method": method,
            "url": format!("http://shop.test{target}"),
            "headers": header.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        });
        let explained = explain(&sidecar, &described).await.json();
        assert_eq!((&explained["ends_here"], &explained["bypass"]), (&ends_here, &bypass), "{described}");
        // The tags are written with their values encoded.
        let said = explained["on_write"].to_string().replace("%40", "@");
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), on_write, "{described}");
        assert_eq!(explained["tiers"] == json!([]), !ends_here.is_null(), "{described}");

        let is_purged = async |id: &str| sidecar.get(&format!("/api/users/{id}")).await.hit().is_none();
        for id in ["1", "me@x.com", "2"] {
            is_purged(id).await;
            assert!(!is_purged(id).await, "{id} is stored");
        }
        let calls = origin.calls();
        let header = header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
        let mut wire = Wire::to(sidecar.address).await;
        let target = if method == "CONNECT" { "shop.test:80" } else { target };
        wire.say(format!(
            "{method} {target} HTTP/1.1\r\nHost: shop.test\r\n{header}Connection: close\r\n\r\n"
        ))
        .await;
        wire.rest().await;
        let asks =
            explained["l1"]["hit"] != true && ends_here.is_null() && !(method == "GET" && bypass.is_null());
        assert_eq!(origin.calls(), calls + usize::from(asks), "{described}");
        for id in ["1", "me@x.com", "2"] {
            let named = on_write["paths"]
                .as_array()
                .is_some_and(|paths| paths.contains(&json!(format!("/api/users/{id}"))));
            assert_eq!(is_purged(id).await, named, "{described}: {id}");
        }
    }
}
