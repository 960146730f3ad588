//! PURGE and BAN requests to the application's address, as clients of Varnish send them.

use std::process::Stdio;

use http::{Method, Request, Version};
use larder_api::admin::PurgeReport;
use tokio::process::Command;

use super::{
    harness::{
        Answer, Origin, Pages, Policy, Sidecar, TOKEN, Wire, environment, exchange, reply, two, until,
    },
    http2_hits::connect,
};

const SITE: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: site, match: {path: "/{*path}"}, ttl: 60s, tagsFrom: {headers: [X-Cache-Tags, Surrogate-Key]}}
invalidation:
  requests: {allowedNetworks: [127.0.0.0/8]}
"#;

/// Pages, and the tags that their responses name.
const PAGES: [(&str, &str); 7] = [
    ("/", "node_list"),
    ("/news/1", "node:1 cat_p_1"),
    ("/news/1?page=2", "node:1"),
    ("/news/2", "node:12,cat_p_12"),
    ("/newsletter", "/books/1"),
    ("/blog/post/", "c52 l2"),
    ("/blog/post/feed/", "c520"),
];
const EVERYTHING: &[usize] = &[0, 1, 2, 3, 4, 5, 6];

/// A site whose responses name tags.
async fn site() -> Origin {
    Origin::start(|seen| async move {
        let tags = PAGES.iter().find(|(path, _)| *path == seen.path).map_or("other", |(_, tags)| tags);
        reply(&[("x-cache-tags", tags)], seen.number.to_string())
    })
    .await
}

/// A client, the lines of its request, and the pages that it purges.
type Case = (&'static str, &'static [&'static str], &'static [usize]);

/// Requests as the source code of clients makes them; decision 51 names the files.
const CLIENTS: [Case; 23] = [
    ("Varnish's own example", &["PURGE /news/1 HTTP/1.1", "Host: shop.test"], &[1]),
    ("a page of a page", &["PURGE /news/1?page=2 HTTP/1.1", "Host: shop.test"], &[2]),
    ("another host", &["PURGE /news/1 HTTP/1.1", "Host: www.shop.example"], &[1]),
    ("another spelling", &["PURGE /n%65ws/1 HTTP/1.1", "Host: shop.test"], &[1]),
    (
        "Wagtail",
        &[
            "PURGE /news/2 HTTP/1.1",
            "Accept-Encoding: identity",
            "Host: shop.test",
            "User-Agent: Wagtail-frontendcache/7.0",
            "Connection: close",
        ],
        &[3],
    ),
    (
        "W3 Total Cache, everything",
        &["PURGE /.* HTTP/1.1", "Host: shop.test", "User-Agent: W3 Total Cache/2.8.0", "Connection: close"],
        EVERYTHING,
    ),
    (
        "Proxy Cache Purge, a page",
        &[
            "PURGE /news/1 HTTP/1.1",
            "Host: shop.test",
            "User-Agent: WordPress/6.8; http://shop.test",
            "X-Purge-Method: default",
        ],
        &[1],
    ),
    (
        "Proxy Cache Purge, everything",
        &["PURGE /.* HTTP/1.1", "Host: shop.test", "X-Purge-Method: regex"],
        EVERYTHING,
    ),
    (
        "WP Rocket, a page",
        &["PURGE /blog/post/.* HTTP/1.1", "host: shop.test", "X-Purge-Method: regex"],
        &[5, 6],
    ),
    (
        "WordPress below a folder",
        &["PURGE /news/.* HTTP/1.1", "host: shop.test", "X-Purge-Method: regex"],
        &[1, 2, 3],
    ),
    (
        "FOSHttpCache, tags",
        &[
            "BAN / HTTP/1.1",
            "X-Host: .*",
            "X-Url: .*",
            "X-Content-Type: .*",
            "X-Cache-Tags: (^|,)(node\\:1|c520)(,|$)",
            "Host: shop.test",
        ],
        &[1, 2, 6],
    ),
    (
        "FOSHttpCache, a folder",
        &[
            "BAN / HTTP/1.1",
            "X-Host: ^(shop.test|www.shop.test)$",
            "X-Url: ^/news/.*",
            "X-Content-Type: .*",
            "Host: shop.test",
        ],
        &[1, 2, 3],
    ),
    ("FOSHttpCache, a URL", &["PURGE /news/1 HTTP/1.1", "Host: shop.test", "Content-Length: 0"], &[1]),
    (
        "FOSHttpCache with xkey, and Ibexa",
        &["PURGEKEYS / HTTP/1.1", "xkey-purge: c52 c1", "Host: shop.test"],
        &[5],
    ),
    (
        "FOSHttpCache with Symfony's HttpCache",
        &["PURGETAGS / HTTP/1.1", "X-Cache-Tags: node:1,c52", "Host: shop.test"],
        &[1, 2, 5],
    ),
    (
        "Magento",
        &[
            "PURGE / HTTP/1.1",
            "X-Magento-Tags-Pattern: ((^|,)cat_p_1(,|$))|((^|,)cms_b_footer(,|$))",
            "Host: shop.test",
        ],
        &[1],
    ),
    (
        "Magento, everything",
        &["PURGE / HTTP/1.1", "X-Magento-Tags-Pattern: .*", "Host: shop.test"],
        EVERYTHING,
    ),
    (
        "Drupal's Varnish purger",
        &[
            "BAN / HTTP/1.1",
            "cache-tags: node:12|node_list",
            "user-agent: varnish_purger module for Drupal 8.",
            "Host: shop.test",
        ],
        &[0, 3],
    ),
    ("Shopware, everything", &["BAN / HTTP/1.1", "Host: shop.test"], EVERYTHING),
    ("Drupal's generic purger", &["BAN / HTTP/1.1", "purge-cache-tags: node:1", "Host: shop.test"], &[1, 2]),
    (
        "API Platform",
        &["BAN / HTTP/1.1", "ApiPlatform-Ban-Regex: (/books/1|/books)($|\\,)", "Host: shop.test"],
        &[4],
    ),
    (
        "API Platform with Souin",
        &["PURGE / HTTP/1.1", "Surrogate-Key: /books/1, /books", "Host: shop.test"],
        &[4],
    ),
    (
        "TYPO3",
        &["BAN / HTTP/1.1", "Varnish-Ban-TYPO3-Sitename: s", "Varnish-Ban-All: 1", "Host: shop.test"],
        EVERYTHING,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn request_of_each_client_purges_its_pages_in_every_sidecar() {
    let (origin, policy) = (site().await, Policy::new(SITE));
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    for (client, lines, expected) in CLIENTS {
        let pages = Pages::warm(&sidecars, PAGES.map(|(path, _)| path)).await;
        let mut wire = Wire::to(a.address).await;
        wire.say(lines.join("\r\n") + "\r\n\r\n").await;
        let (head, body) = wire.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{client}: {head}{body}");
        assert!(head.contains("content-type: application/json\r\n"), "{client}: {head}");
        let report: PurgeReport = serde_json::from_str(&body).unwrap();
        assert!(report.redis && report.order.is_some(), "{client}: {body}");
        assert_eq!(pages.purged_in(b).await, expected, "{client}");
        assert_eq!(pages.purged_in(a).await, expected, "{client}");
    }
    assert!(a.metric("larder_purges_total", &["origin=\"request\""]).await >= 22.0);
    assert_eq!(origin.last().method, Method::GET, "the application hears of none");
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_purge_is_served_while_it_is_refreshed() {
    let spec = SITE.replace("l2: ", "# ").replace("ttl: 60s", "ttl: 60s, staleWhileRevalidate: 60s");
    for (method, field) in [("PURGEKEYS", ("xkey-softpurge", "c52")), ("PURGE", ("fastly-soft-purge", "1"))] {
        let (origin, policy) = (site().await, Policy::new(&spec));
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let before = sidecar.get("/blog/post/").await.body;
        let answer = ask(&sidecar, method, "/blog/post/", &[field]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(sidecar.get("/blog/post/").await.body, before, "{field:?}");
        until("it is refreshed", async || (sidecar.get("/blog/post/").await.body != before).then_some(()))
            .await;
    }
}

async fn ask(sidecar: &Sidecar, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    sidecar.request(method.parse().unwrap(), path, fields, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_or_an_allowed_network_permits_to_purge() {
    let local = SITE.replace("l2: ", "# ");
    let elsewhere = local.replace("127.0.0.0/8", "10.0.0.0/8, 127.0.0.2/32");
    let by_header = local.replace("{allowedNetworks: [127.0.0.0/8]}", "{tokenHeader: X-Purge-Key}");
    let bearer = format!("Bearer {TOKEN}");
    let origin = site().await;
    for (spec, fields, is_allowed) in [
        (&local, &[][..], true),
        (&local, &[("authorization", "Basic YTpi")], true),
        (&local, &[("x-forwarded-for", "127.0.0.1")], false),
        (&local, &[("forwarded", "for=127.0.0.1")], false),
        (&local, &[("via", "1.1 ingress")], false),
        (&local, &[("cf-connecting-ip", "192.0.2.1")], false),
        (&local, &[("x-forwarded-proto", "https")], true),
        (&local, &[("x-real-ip", "127.0.0.1"), ("connection", "x-real-ip")], false),
        (&local, &[("x-forwarded-for", "192.0.2.1"), ("authorization", &bearer)], true),
        (&elsewhere, &[], false),
        (&elsewhere, &[("x-forwarded-for", "10.0.0.1")], false),
        (&elsewhere, &[("authorization", &bearer)], true),
        (&elsewhere, &[("authorization", "Bearer wrong")], false),
        (&elsewhere, &[("authorization", TOKEN)], false),
        (&elsewhere, &[("x-purge-key", TOKEN)], false),
        (&by_header, &[("x-purge-key", TOKEN)], true),
        (&by_header, &[("x-purge-key", "wrong"), ("authorization", &bearer)], false),
        (&by_header, &[("authorization", &bearer)], true),
        (&by_header, &[], false),
    ] {
        let policy = Policy::new(spec);
        let sidecar = Sidecar::start(&policy, origin.address).await;
        let (before, calls) = (sidecar.get("/news/1").await.body, origin.calls());
        let answer = ask(&sidecar, "PURGE", "/news/1", fields).await;
        assert_eq!(answer.status, if is_allowed { 200 } else { 403 }, "{fields:?}: {}", answer.body);
        assert_eq!(origin.calls(), calls, "{fields:?}");
        assert_eq!(sidecar.get("/news/1").await.body != before, is_allowed, "{fields:?}");
        if !is_allowed {
            assert_eq!(answer.header("content-type"), "application/problem+json");
            assert!(answer.body.contains("invalidation.requests.allowedNetworks"), "{}", answer.body);
            assert_eq!(sidecar.metric("larder_refused_purges_total", &["reason=\"forbidden\""]).await, 1.0);
        }
    }
    let policy = Policy::new(&elsewhere);
    let sidecar = Sidecar::without_token(&policy, origin.address).await;
    let answer = ask(&sidecar, "PURGE", "/", &[("authorization", "Bearer ")]).await;
    assert_eq!(answer.status, 403, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn untranslatable_request_is_refused_and_purges_nothing() {
    let (origin, policy) = (site().await, Policy::new(&SITE.replace("l2: ", "# ")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let before = sidecar.get("/news/1").await.body;
    for (method, path, fields) in [
        ("PURGE", "/news.*", &[][..]),
        ("PURGE", "/news/1", &[("x-purge-method", "regex")]),
        ("BAN", "/", &[("x-url", "\\.png$")]),
        ("BAN", "/", &[("x-cache-tags", "node:[0-9]+")]),
        ("BAN", "/news/1", &[]),
        ("BAN", "/", &[("x-location-id", "(12|13)")]),
        ("BAN", "/", &[("x-url", ".*"), ("x-content-type", "text/html")]),
        ("PURGE", "/", &[("x-purge-regex", ".*")]),
        ("PURGEKEYS", "/", &[]),
    ] {
        let answer = ask(&sidecar, method, path, fields).await;
        assert_eq!(answer.status, 400, "{method} {path} {fields:?}: {}", answer.body);
        assert_eq!(sidecar.get("/news/1").await.body, before, "{method} {path} {fields:?}");
    }
    assert_eq!(sidecar.metric("larder_refused_purges_total", &["reason=\"untranslated\""]).await, 9.0);
    assert_eq!(sidecar.logged_lines("a request purged nothing").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_field_a_purge_is_a_request_like_any_other() {
    let spec = SITE.replace("l2: ", "# ").replace("  requests:", "  fromResponses: false\n  # ");
    let (origin, policy) = (site().await, Policy::new(&spec));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for method in ["PURGE", "BAN", "PURGEKEYS"] {
        let answer = ask(&sidecar, method, "/other", &[("surrogate-key", "node:1")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-cache-tags")), (200, "other"), "{method}");
        assert_eq!(origin.last().method.as_str(), method);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_comes_over_every_protocol_with_a_body_and_without_its_client() {
    let (origin, policy) = (site().await, Policy::new(&SITE.replace("l2: ", "# ")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let is_purged = async |before: &str| (sidecar.get("/news/1").await.body != before).then_some(());

    let before = sidecar.get("/news/1").await.body;
    let client = connect(sidecar.address, 1 << 20).await;
    let request = Request::builder().method("PURGE").uri("http://shop.test/news/1").version(Version::HTTP_2);
    let mut client = client.ready().await.unwrap();
    let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    assert!(is_purged(&before).await.is_some(), "HTTP/2");

    // Two on one connection, with bodies between them, and a hit behind.
    let before = sidecar.get("/news/1").await.body;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say(
        "PURGE /newsletter HTTP/1.1\r\nHost: shop.test\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}\
         PURGE /news/1 HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n\
         GET /news/2 HTTP/1.1\r\nHost: shop.test\r\n\r\n",
    )
    .await;
    for status in ["200", "200", "200"] {
        let (head, _) = wire.answer().await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
    }
    assert!(is_purged(&before).await.is_some(), "HTTP/1 with bodies");

    // WordPress does not wait: with `blocking` false the connection is closed at once.
    let before = sidecar.get("/news/1").await.body;
    let mut wire = Wire::to(sidecar.address).await;
    wire.say("PURGE /news/1 HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n").await;
    drop(wire);
    until("the purge holds", async || is_purged(&before).await).await;

    let before = sidecar.get("/news/1").await.body;
    let answer = exchange(
        sidecar.address,
        "PURGE http://shop.test/news/1 HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.await.starts_with(b"HTTP/1.1 200 "));
    assert!(is_purged(&before).await.is_some(), "absolute form");
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_says_that_a_request_purges() {
    let (origin, policy) = (site().await, Policy::new(&SITE.replace("l2: ", "# ")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let described = r#"{"method": "BAN", "url": "http://shop/"}"#;
    let answer = sidecar.with_token(Method::POST, "/explain", described).await;
    assert!(answer.body.contains(r#""ends_here":"purge""#), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_purge_a_page() {
    let (origin, policy) = (site().await, Policy::new(&SITE.replace("l2: ", "# ")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/purge.py");
    for client in ["wagtail", "plone"] {
        let (before, other) = (sidecar.get("/news/1?page=2").await.body, sidecar.get("/news/1").await.body);
        let mut command = Command::new(environment("LARDER_TEST_PYTHON"));
        command.args([
            script,
            client,
            &format!("http://{}", sidecar.address),
            "http://www.shop.example/news/1?page=2",
        ]);
        let command =
            command.env("PYTHONPATH", environment("LARDER_TEST_CLIENTS")).env("PYTHONDONTWRITEBYTECODE", "1");
        let output = command.stderr(Stdio::piped()).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{client}: {said}");
        assert_ne!(sidecar.get("/news/1?page=2").await.body, before, "{client}");
        assert_eq!(sidecar.get("/news/1").await.body, other, "{client}");
    }
}
