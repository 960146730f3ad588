//! The admin API: its reports of stored responses, and the token.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::harness::{
    Answer, Database, Origin, Policy, RedisServer, Sidecar, TOKEN, Wire, exchange, header, until,
};

mod explain;

const SHOP: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s, hardTimeout: 2s}}
routes:
- name: user
  match: {path: "/api/users/{id}"}
  ttl: 60s
  staleIfError: 10m
  bypass: {query: {nocache: "true"}}
  key: {headers: [accept-language]}
  tags: ["user:{id}"]
- {name: page, match: {path: "/{page}"}, ttl: 60s}
"#;

const IN_MEMORY: &str = "routes: [{name: page, match: {path: \"/{page}\"}, ttl: 60s}]";

/// Paths that require the token, with their methods.
const GUARDED: [(&str, &str); 6] = [
    ("GET", "/stats"),
    ("GET", "/entries/GET:/a"),
    ("DELETE", "/entries/GET:/a"),
    ("POST", "/purge"),
    ("POST", "/explain"),
    ("HEAD", "/stats"),
];

/// A request that requires the token, of a path that the port of the admin API alone has; malformed, because it is a stream otherwise.
const STREAM: (&str, &str) = ("GET", "/requests?sample=0");

/// Requests that need no token on the port of the admin API.
const OPEN_ON_ITS_OWN_PORT: [(&str, &str); 5] =
    [("GET", "/metrics"), ("GET", "/policy"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc")];

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// Asserts that a refusal states its reason in JSON.
fn assert_refused(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem["detail"].as_str().unwrap().contains(says), "{problem} does not say {says:?}");
}

async fn explain(sidecar: &Sidecar, request: &Value) -> Answer {
    let body: &'static str = request.to_string().leak();
    sidecar.with_token(Method::POST, "/explain", body).await
}

async fn entries(sidecar: &Sidecar, key: &str) -> Answer {
    sidecar.with_token(Method::GET, &format!("/entries/{key}"), "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_count_and_list_the_keys_that_are_hit_most() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/a", "/b", "/b", "/b", "/a?x=1", "/b", "/a", "/none/at/all"] {
        sidecar.get(path).await;
    }
    policy.until_stored(&mut RedisServer::shared().await, 3).await;
    let stats = sidecar.with_token(Method::GET, "/stats", "").await.json();
    for (field, expected) in
        [("hits", 4), ("l1_hits", 4), ("l2_hits", 0), ("misses", 3), ("cache_misses", 3), ("passed", 1)]
    {
        assert_eq!(stats[field], expected, "{field}: {stats}");
    }
    assert_eq!((&stats["total_cached_keys"], &stats["l1_evictions"]), (&json!(3), &json!(0)));
    assert!((stats["hit_rate"].as_f64().unwrap() - 4.0 / 7.0).abs() < 1e-9, "{stats}");
    assert_eq!(stats["bytes"], stats["l1_bytes"]);
    let top = json!([
        {"key": "GET:http://shop.test/b", "hits": 3},
        {"key": "GET:http://shop.test/a", "hits": 1},
    ]);
    let two = sidecar.with_token(Method::GET, "/stats?top=2", "").await.json();
    assert_eq!(two["top_keys"], top);
    assert_eq!(stats["top_keys"].as_array().unwrap().len(), 3);
    let none = sidecar.with_token(Method::GET, "/stats?top=0", "").await.json();
    assert_eq!((&none["total_cached_keys"], &none["top_keys"]), (&Value::Null, &json!([])));
    assert_eq!((&none["hits"], &none["l1_entries"]), (&stats["hits"], &stats["l1_entries"]));
    for top in ["101", "x", "-1", ""] {
        let refused = sidecar.with_token(Method::GET, &format!("/stats?top={top}"), "").await;
        assert_refused(&refused, 400, "0 to 100");
    }
    // One that takes its place goes on counting; one that is purged is none.
    sidecar.with_token(Method::DELETE, "/entries/GET:/b", "").await;
    let purged = sidecar.with_token(Method::GET, "/stats", "").await.json();
    assert_eq!((&purged["total_cached_keys"], &purged["top_keys"][0]["hits"]), (&json!(2), &json!(1)));
    for _ in 0..2 {
        sidecar.get("/b").await;
    }
    let again = sidecar.with_token(Method::GET, "/stats?top=1", "").await.json();
    let top = &again["top_keys"][0];
    // A response that was looked up and not served counts as well.
    assert!(top["key"] == "GET:http://shop.test/b" && top["hits"].as_u64() >= Some(4), "{again}");
    // Another pod's hit in Redis.
    let other = Sidecar::start(&policy, origin.address).await;
    assert_eq!((other.get("/a").await.hit(), other.get("/a").await.hit()), (Some("l2"), Some("l1")));
    let stats = other.with_token(Method::GET, "/stats", "").await.json();
    assert_eq!(
        (&stats["l1_hits"], &stats["l2_hits"], &stats["cache_misses"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_path_hits_and_other_hits_are_counted_alike() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(IN_MEMORY);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    // A plain request is answered before hyper; one with a condition is not.
    sidecar.get("/a").await;
    sidecar.get_with("/a", &[("if-none-match", "\"x\"")]).await;
    let stats = sidecar.with_token(Method::GET, "/stats", "").await.json();
    assert_eq!(stats["top_keys"], json!([{"key": "GET:http://shop.test/a", "hits": 2}]));
    sidecar.get_with("/a", &[("cookie", "id=7")]).await;
    let requests = sidecar.admin("/policy").await.json()["requests"].clone();
    assert_eq!(requests, json!({"total": 4, "hits": 2, "misses": 1}));
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_shows_its_tiers_and_the_reason_it_is_served() {
    let origin = Origin::numbered(&[("x-a", "1"), ("x-a", "2")]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get_with("/api/users/1?x=%2F", &[("accept-language", "de")]).await;
    sidecar.get_with("/api/users/1?x=%2F", &[("accept-language", "de")]).await;
    policy.until_stored(&mut RedisServer::shared().await, 1).await;
    let whole = "GET%3Ahttp%3A%2F%2Fshop.test%2Fapi%2Fusers%2F1%3Fx%3D%252F%23accept-language%3Dde";
    let shown = entries(&sidecar, whole).await.json();
    let [l1, l2] = shown["entries"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    for (kept, tier) in [(l1, "l1"), (l2, "l2")] {
        assert_eq!(kept["tier"], tier);
        assert_eq!(kept["key"], "GET:http://shop.test/api/users/1?x=%2F#accept-language=de");
        assert_eq!(
            (&kept["route"], &kept["state"], &kept["served"]),
            (&json!("user"), &json!("fresh"), &json!(true))
        );
        let answer = &kept["response"];
        assert_eq!(
            (&answer["status"], &answer["body_bytes"], &answer["complete"]),
            (&json!(200), &json!(1), &json!(true))
        );
        assert_eq!(answer["headers"]["x-a"], json!(["1", "2"]));
        let names = "the key with and without its host, the path, the tag and the version of the policy";
        assert_eq!(answer["purge_names"], 5, "{names}");
        let (ttl, useful) =
            (answer["ttl_seconds"].as_f64().unwrap(), answer["useful_for_seconds"].as_f64().unwrap());
        assert!((0.0..=60.0).contains(&ttl) && (60.0..=660.0).contains(&useful), "{answer}");
        assert!(answer["stored_at"].as_str().unwrap().ends_with('Z'), "{answer}");
    }
    assert_eq!((&l1["response"]["hits"], &shown["redis"]["responded"]), (&json!(1), &json!(true)));
    // The short key finds the entry in memory, encoded or not.
    for short in ["GET:/api/users/1?x=%2F", "GET%3A%2Fapi%2Fusers%2F1%3Fx%3D%252F"] {
        let shown = entries(&sidecar, short).await.json();
        assert_eq!(shown["entries"].as_array().unwrap().len(), 1, "{short}: {shown}");
    }
    // A pod without the entry in memory finds it in Redis.
    let other = Sidecar::start(&policy, origin.address).await;
    assert_eq!(entries(&other, whole).await.json()["entries"][0]["tier"], "l2");
    assert_refused(&entries(&other, "GET:/api/users/1?x=%2F").await, 404, "no response under");
    assert_refused(&entries(&other, "GET:http://shop.test/b").await, 404, "neither does Redis");
    // A purge shows, in memory and in Redis.
    let purged = sidecar.purge(r#"{"tags": ["user:1"]}"#).await;
    assert_eq!(purged.status, 200);
    assert_eq!(purged.json()["redis"], true, "{}", purged.body);
    let shown = entries(&sidecar, whole).await.json();
    for kept in shown["entries"].as_array().unwrap() {
        assert_eq!((&kept["state"], &kept["served"]), (&json!("purged"), &json!(false)), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_are_shown_by_their_shared_key_and_by_their_own() {
    let origin = Origin::numbered(&[("vary", "accept-language")]).await;
    let policy = Policy::new(&SHOP.replace("  key: {headers: [accept-language]}\n", ""));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for language in ["de", "en"] {
        sidecar.get_with("/a", &[("accept-language", language)]).await;
    }
    policy.until_stored(&mut RedisServer::shared().await, 3).await;
    let shown = entries(&sidecar, "GET:http://shop.test/a").await.json();
    let shown = shown["entries"].as_array().unwrap();
    let states: Vec<_> = shown.iter().map(|kept| kept["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["variants", "fresh", "fresh", "variants"], "three keys in memory, one in Redis");
    let own = shown[1]["key"].as_str().unwrap();
    assert!(own.contains("accept-language:de"), "{own}");
    let own = entries(&sidecar, &utf8_percent_encode(own, NON_ALPHANUMERIC).to_string()).await.json();
    let tiers: Vec<_> = own["entries"].as_array().unwrap().iter().map(|kept| &kept["tier"]).collect();
    assert_eq!(tiers, ["l1", "l2"], "{own}");
    assert_eq!(own["entries"][1]["vary"], json!(["accept-language"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_keys_match_no_entry() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(SHOP);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let long = "x".repeat(20_000);
    for key in [
        "%00",
        "%FF%FE",
        "%",
        "GET",
        ":",
        "GET:http://",
        "GET:http:///",
        "%2e%2e%2f",
        "a//b/../c",
        "%3F%23%0A",
        &long,
    ] {
        let none = entries(&sidecar, key).await;
        assert_refused(&none, 404, "");
        let deleted = sidecar.with_token(Method::DELETE, &format!("/entries/{key}"), "").await;
        // A client of HTTP/1.0 may name no host.
        let expected = if key == "GET:http:///" { 200 } else { 400 };
        assert_eq!(deleted.status, expected, "{key}: {}", deleted.body);
    }
    assert_refused(&sidecar.with_token(Method::GET, "/entries/", "").await, 404, "/openapi.json");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_admin_request_is_refused_with_a_remedy() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(IN_MEMORY);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for (path, body, says) in [
        ("/explain", "", "send {"),
        ("/explain", "[]", "JSON object"),
        ("/explain", "{\"url\": \"http://a/\"", "EOF"),
        ("/explain", "{\"url\": \"http://a/\", \"path\": \"/\"}", "unknown field `path`"),
        ("/explain", "{\"url\": \"/a\"}", "not a URL"),
        ("/explain", "{\"url\": \"http://a b/\"}", "not a URL"),
        ("/explain", "{\"url\": \"http://a/\", \"method\": \"get\"}", "in capitals"),
        ("/explain", "{\"url\": \"http://a/\", \"headers\": {\"a b\": \"\"}}", "not a valid header"),
        ("/explain", "{\"url\": \"http://a/\", \"headers\": {\"a\": \"\\n\"}}", "not a valid header"),
        ("/explain", "{\"url\": \"http://a/\", \"headers\": {\"a\": \"\u{84}\"}}", "not a valid header"),
        ("/explain", "{\"url\": \"http://a/\", \"port\": 0}", "not a port"),
        ("/explain", "{\"url\": \"http://a/\", \"port\": 65536}", "not a port"),
        ("/explain", "{\"url\": \"http://a/\", \"port\": 1.5}", "not a port"),
        ("/purge", "", "send {"),
        ("/purge", "[[\"a\"], [], []]", "JSON object"),
        ("/purge", "{\"key\": []}", "unknown field `key`"),
        ("/purge", "{}", "nothing to purge"),
        ("/purge", "{\"paths\": [\"a\"]}", "not a path"),
        ("/purge", "\u{0}", "send {"),
    ] {
        assert_refused(&sidecar.with_token(Method::POST, path, body).await, 400, says);
    }
    let many: serde_json::Map<_, _> = (0..101).map(|number| (format!("a{number}"), json!(""))).collect();
    assert_refused(
        &explain(&sidecar, &json!({"url": "http://a/", "headers": many})).await,
        400,
        "at most 100",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_admin_body_is_not_read() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(IN_MEMORY);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/purge", "/explain"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n");
        let mut wire = Wire::to(sidecar.admin).await;
        wire.say(format!("{head}Content-Length: 1048577\r\n\r\n")).await;
        assert!(wire.head().await.starts_with("http/1.1 413 "), "{path}");
        let mut wire = Wire::to(sidecar.admin).await;
        wire.say(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
        wire.try_to_say(format!("100001\r\n{}", "x".repeat(0x10_0001))).await;
        assert!(wire.head().await.starts_with("http/1.1 413 "), "{path}, in chunks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_api_requires_the_token() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(&format!("admin: {{pathPrefix: /_larder}}\n{IN_MEMORY}"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    sidecar.get("/a").await;
    for (to, prefix) in [(sidecar.admin, ""), (sidecar.address, "/_larder")] {
        let others: &[_] = if prefix.is_empty() { &[STREAM] } else { &OPEN_ON_ITS_OWN_PORT };
        for (method, path) in GUARDED.iter().chain(others) {
            for authorization in [
                "",
                "Authorization: Bearer\r\n",
                "Authorization: Bearer x\r\n",
                "Authorization: Basic dGhlLXRva2Vu\r\n",
            ] {
                // Reading the body or not makes no difference.
                let said = exchange(
                    to,
                    format!(
                        "{method} {prefix}{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{authorization}Content-Length: 2\r\n\r\n[]"
                    ),
                )
                .await;
                let said = String::from_utf8(said).unwrap().to_lowercase();
                assert!(said.starts_with("http/1.1 401 "), "{method} {prefix}{path}: {said}");
                assert_eq!(header(&said, "www-authenticate"), "bearer");
                assert_eq!(header(&said, "content-type"), "application/problem+json");
            }
        }
    }
    assert_eq!(sidecar.get("/a").await.hit(), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_refused_in_json() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(IN_MEMORY);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/", "/entries", "/Stats", "/stats/", "/docs/x", "//stats"] {
        assert_refused(&sidecar.admin(path).await, 404, "/openapi.json");
    }
    for (method, path, allow) in [
        (Method::POST, "/stats", "GET,HEAD"),
        (Method::GET, "/purge", "POST"),
        (Method::PUT, "/entries/a", "GET,HEAD,DELETE"),
        (Method::DELETE, "/livez", "GET,HEAD"),
    ] {
        let refused = sidecar.with_token(method, path, "").await;
        assert_refused(&refused, 405, "Allow");
        assert_eq!(refused.header("allow"), allow, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_document_is_the_committed_one_and_lists_every_route() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(IN_MEMORY);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let served = sidecar.admin("/openapi.json").await;
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    assert_eq!(served.body, std::fs::read_to_string(committed).unwrap(), "run ./dev generate");
    let document = served.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let guarded = GUARDED.iter().chain([&STREAM]);
    let guarded: Vec<_> = guarded.map(|(method, path)| (method.to_lowercase(), *path)).collect();
    for (path, item) in document["paths"].as_object().unwrap() {
        let asked = path.replace("{key}", "GET:/a").replace("/requests", "/requests?sample=0");
        for method in ["get", "put", "post", "delete", "patch"] {
            let answer = sidecar.with_token(method.to_uppercase().parse().unwrap(), &asked, "").await;
            let documented = &item[method];
            assert_eq!(documented.is_null(), answer.status == 405, "{method} {path}: {}", answer.status);
            if documented.is_null() {
                continue;
            }
            let status = answer.status.as_u16().to_string();
            assert!(!documented["responses"][&status].is_null(), "{method} {path}: {status}");
            let is_guarded = guarded.contains(&(method.to_owned(), asked.as_str()));
            assert_eq!(documented["security"] == json!([{"token": []}]), is_guarded, "{method} {path}");
            assert_eq!(documented["security"] == json!([{"peer": []}]), path == "/peer/purges");
        }
    }
    for page in ["/docs", "/redoc"] {
        let page = sidecar.admin(page).await;
        assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html; charset=utf-8"));
        assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn path_prefix_puts_the_admin_api_on_the_application_port() {
    let origin = Origin::numbered(&[]).await;
    let two = "routes: [{name: two, match: {path: \"/{a}/{b}\"}, ttl: 60s}]";
    let policy = Policy::new(two);
    let sidecar = Sidecar::start(&policy, origin.address).await;
    // A route matches these paths, and memory has a response.
    for path in ["/_larder/stats", "/_larder/livez"] {
        sidecar.get(path).await;
        assert_eq!(sidecar.get(path).await.hit(), Some("l1"), "{path}");
    }
    policy.change(&format!("admin: {{pathPrefix: /_larder}}\n{two}"));
    sidecar.until_it_serves(&policy).await;
    let calls = origin.calls();
    let authorization = format!("Bearer {TOKEN}");
    let token = [("authorization", authorization.as_str())];
    assert_eq!(sidecar.get("/_larder/livez").await.body, "ok");
    assert_refused(&sidecar.get("/_larder/stats").await, 401, "send the token");
    let stats = sidecar.get_with("/_larder/stats?top=1", &token).await.json();
    assert_eq!(stats["top_keys"].as_array().unwrap().len(), 1);
    for spelling in ["/x/../_larder/stats", "/%5Flarder/stats", "/./_larder/stats"] {
        assert_eq!(sidecar.get_with(spelling, &token).await.json()["hits"], stats["hits"], "{spelling}");
    }
    let explain = r#"{"url": "http://shop.test/a/b"}"#;
    let explained = sidecar.request(Method::POST, "/_larder/explain", &token, explain).await.json();
    assert_eq!(explained["route"]["name"], "two");
    let found = sidecar.get_with("/_larder/entries/GET:http://shop.test/_larder/livez", &token).await.json();
    assert_eq!(found["entries"][0]["tier"], "l1");
    assert_refused(&sidecar.request(Method::POST, "/_larder/drain", &token, "").await, 404, "/drain");
    for path in ["/_larder", "/_larder/", "/_larder/nothing"] {
        assert_refused(&sidecar.get(path).await, 404, "/openapi.json");
    }
    assert_refused(&sidecar.request(Method::PUT, "/_larder/stats", &token, "").await, 405, "Allow");
    let plain =
        exchange(sidecar.address, "GET /_larder/livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
    assert!(plain.ends_with(b"\r\n\r\nok"), "{}", String::from_utf8_lossy(&plain));
    assert_eq!(origin.calls(), calls, "the application sees no such request");
    // A path that only begins alike is the application's.
    assert_eq!(sidecar.get("/_larderx/stats").await.status, 200);
    assert_eq!(origin.calls(), calls + 1);
    policy.change(two);
    sidecar.until_it_serves(&policy).await;
    until("the application again", async || {
        (sidecar.get("/_larder/policy").await.header("content-type").is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_api_is_served_over_http2() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new(&format!("admin: {{pathPrefix: /_larder}}\n{IN_MEMORY}"));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let stream = tokio::net::TcpStream::connect(sidecar.address).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (method, path, token, body, status, says) in [
        ("GET", "/_larder/livez", "", "", 200, "ok"),
        ("GET", "/_larder/stats", "", "", 401, "the token is wrong"),
        ("GET", "/_larder/stats?top=1", TOKEN, "", 200, "\"hits\":0"),
        ("POST", "/_larder/explain", TOKEN, "{\"url\": \"http://shop/a\"}", 200, "GET:http://shop/a"),
        ("POST", "/_larder/drain", TOKEN, "", 404, "/openapi.json"),
        ("GET", "/a", "", "", 200, "1"),
    ] {
        let request = Request::builder().method(method).uri(format!("http://shop.test{path}"));
        let request = request.header("authorization", format!("Bearer {token}"));
        let answer = client.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(says), "{path}: {body}");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_prefix_the_admin_api_is_on_its_own_port_only() {
    let origin = Origin::numbered(&[]).await;
    let sidecar = Sidecar::bare(origin.address).await;
    for path in ["/stats", "/policy", "/livez"] {
        assert_eq!(sidecar.get(path).await.body, origin.calls().to_string(), "{path} is the application's");
    }
    let stats = sidecar.with_token(Method::GET, "/stats", "").await.json();
    assert_eq!(stats["misses"], 3);
}
