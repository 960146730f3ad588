//! The policies of `examples/policies`, each before a stand-in that responds as such an application does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{Method, StatusCode};

use super::harness::{Answer, Origin, Policy, Reply, Sidecar, reply, until};

/// Starts a sidecar under one of the policies.
async fn under(name: &str, origin: &Origin) -> (Policy, Sidecar) {
    let file = format!("{}/../examples/policies/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let policy = Policy::new("routes: []");
    policy.write(&std::fs::read_to_string(file).unwrap());
    let sidecar = Sidecar::start(&policy, origin.address).await;
    (policy, sidecar)
}

fn status(code: StatusCode, mut reply: Reply) -> Reply {
    *reply.status_mut() = code;
    reply
}

/// Asserts that a second request is answered from memory, and returns the first response.
async fn is_cached(sidecar: &Sidecar, path: &str, headers: &[(&str, &str)]) -> Answer {
    let first = sidecar.get_with(path, headers).await;
    let second = sidecar.get_with(path, headers).await;
    assert_eq!((second.hit(), &second.body), (Some("l1"), &first.body), "{path} {headers:?}: {second:?}");
    first
}

/// Asserts that no request is answered from memory.
async fn is_not_cached(sidecar: &Sidecar, path: &str, headers: &[(&str, &str)]) {
    let first = sidecar.get_with(path, headers).await;
    let second = sidecar.get_with(path, headers).await;
    assert!(second.hit().is_none() && second.body != first.body, "{path} {headers:?}: {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_api_is_cached_for_strangers_and_new_after_a_write() {
    let origin = Origin::start(|seen| async move {
        let json = reply(&[("content-type", "application/json")], seen.number.to_string());
        if seen.path.starts_with("/api/products/0") { status(StatusCode::NOT_FOUND, json) } else { json }
    })
    .await;
    let (_policy, sidecar) = under("rest", &origin).await;
    let list = is_cached(&sidecar, "/api/products?page=2&sort=name", &[]).await;
    let same = sidecar.get("/api/products?sort=name&page=2&utm_source=x").await;
    assert_eq!((same.hit(), &same.body), (Some("l1"), &list.body), "order and campaigns do not count");
    let product = is_cached(&sidecar, "/api/products/7", &[]).await;
    let missing = is_cached(&sidecar, "/api/products/0", &[]).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    is_not_cached(&sidecar, "/api/products/7", &[("authorization", "Bearer x")]).await;
    is_not_cached(&sidecar, "/api/orders", &[]).await;

    assert_eq!(sidecar.put("/api/products/7").await.status, StatusCode::OK);
    assert_ne!(sidecar.get("/api/products/7").await.body, product.body);
    assert_ne!(sidecar.get("/api/products?page=2&sort=name").await.body, list.body);
    let list = sidecar.get("/api/products?page=2&sort=name").await;
    sidecar.request(Method::POST, "/api/products", &[], "{}").await;
    assert_ne!(sidecar.get("/api/products?page=2&sort=name").await.body, list.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn graphql_queries_are_cached_and_mutations_make_them_new() {
    let origin = Origin::numbered(&[("content-type", "application/json")]).await;
    let (_policy, sidecar) = under("graphql", &origin).await;
    let persisted = "/graphql?extensions=%7B%22persistedQuery%22%3A1%7D&variables=%7B%7D";
    let first = is_cached(&sidecar, persisted, &[("accept", "application/json")]).await;
    let post = async |body: &'static str, kind: &str| {
        let headers = [("content-type", "application/json"), ("x-apollo-operation-type", kind)];
        sidecar.request(Method::POST, "/graphql", &headers, body).await
    };
    let query = post(r#"{"query": "{a}"}"#, "query").await;
    let again = post(r#"{"query": "{a}"}"#, "query").await;
    assert_eq!((again.hit(), &again.body), (Some("l1"), &query.body));
    assert_ne!(post(r#"{"query": "{b}"}"#, "query").await.body, query.body, "another body");

    let mutation = post(r#"{"query": "mutation {a}"}"#, "mutation").await;
    assert!(mutation.hit().is_none(), "{mutation:?}");
    assert_ne!(post(r#"{"query": "mutation {a}"}"#, "mutation").await.body, mutation.body);
    assert_ne!(post(r#"{"query": "{a}"}"#, "query").await.body, query.body);
    assert_ne!(sidecar.get_with(persisted, &[("accept", "application/json")]).await.body, first.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn wordpress_pages_are_cached_for_visitors_alone() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let origin = Origin::start(move |seen| {
        let is_down = down.load(Ordering::Relaxed);
        async move {
            let name = if seen.header("cookie").contains("wordpress_logged_in") { "Ada" } else { "stranger" };
            let body = format!("{} {name} {}", seen.number, seen.header("cookie"));
            let never = "no-cache, must-revalidate, max-age=0, no-store, private";
            match seen.path.split('?').next().unwrap_or_default() {
                _ if is_down => status(StatusCode::INTERNAL_SERVER_ERROR, reply(&[], "no database")),
                "/wp-login.php" => {
                    reply(&[("cache-control", never), ("set-cookie", "wordpress_test_cookie=1")], body)
                }
                // Without `no-store`, as it is for visitors.
                "/wp-admin/admin-ajax.php" => {
                    reply(&[("cache-control", "no-cache, must-revalidate, max-age=0")], body)
                }
                "/wp-content/uploads/a.jpg" => reply(&[("set-cookie", "lb=1")], body),
                "/cart" => reply(&[("set-cookie", "woocommerce_cart_hash=1")], body),
                _ => reply(&[("content-type", "text/html")], body),
            }
        }
    })
    .await;
    let (_policy, sidecar) = under("wordpress", &origin).await;
    let analytics = ("cookie", "_ga=1; consent=yes");
    let page = is_cached(&sidecar, "/2026/11/hello/?utm_source=mail", &[analytics]).await;
    assert!(
        page.body.contains("stranger ") && !page.body.contains("_ga"),
        "the application can't see it: {page:?}"
    );
    assert_eq!(sidecar.get("/2026/11/hello/").await.body, page.body, "one page for all visitors");
    for cookie in [
        "wordpress_logged_in_5c016=ada",
        "_ga=1; wordpress_sec_5c016=x",
        "wp-postpass_5c016=x",
        "comment_author_5c016=Ada",
        "wp_woocommerce_session_5c016=x",
        "woocommerce_items_in_cart=1",
    ] {
        is_not_cached(&sidecar, "/2026/11/hello/", &[("cookie", cookie)]).await;
    }
    for path in [
        "/wp-login.php",
        "/wp-admin/admin-ajax.php",
        "/wp-json/wp/v2/posts",
        "//wp-json/wp/v2/posts",
        "/WP-JSON/wp/v2/posts",
        "/index.php/wp-json/wp/v2/posts",
        "/?rest_route=/wp/v2/posts",
        "/xmlrpc.php?rsd",
        "/?s=hello",
        "/cart",
        "/?preview=true",
    ] {
        is_not_cached(&sidecar, path, &[]).await;
    }
    let file = is_cached(&sidecar, "/wp-content/uploads/a.jpg?ver=1", &[analytics]).await;
    assert_eq!(file.header("set-cookie"), "lb=1", "for the client that caused the fill");
    assert_eq!(sidecar.get("/wp-content/uploads/a.jpg?ver=1").await.header("set-cookie"), "");

    let editor = [("cookie", "wordpress_logged_in_5c016=ada")];
    let other = is_cached(&sidecar, "/2026/11/other/", &[]).await;
    let mut body = other.body;
    for path in ["/?rest_route=/wp/v2/posts/1", "/index.php/wp-json/wp/v2/posts/1", "/xmlrpc.php"] {
        sidecar.request(Method::POST, path, &editor, "{}").await;
        body = until("the page is made again", async || {
            let now = sidecar.get("/2026/11/other/").await.body;
            (now != body).then_some(now)
        })
        .await;
    }

    is_down.store(true, Ordering::Relaxed);
    sidecar.request(Method::POST, "/wp-json/wp/v2/posts/1", &editor, "{}").await;
    let page = sidecar.get("/2026/11/hello/").await;
    assert!(page.body.contains("stranger "), "stale while the application is down: {page:?}");
    is_down.store(false, Ordering::Relaxed);
    until("the page is made again", async || {
        (sidecar.get("/2026/11/hello/").await.body != page.body).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nextjs_pages_are_cached_as_they_say() {
    let origin = Origin::start(|seen| async move {
        let body = seen.number.to_string();
        match seen.path.split('?').next().unwrap_or_default() {
            path if path.starts_with("/_next/static/") => {
                reply(&[("cache-control", "public, max-age=31536000, immutable")], body)
            }
            "/_next/image" => reply(&[("cache-control", "public, max-age=60"), ("vary", "Accept")], body),
            "/blog" => reply(
                &[
                    ("cache-control", "s-maxage=60, stale-while-revalidate=31535940"),
                    ("vary", "RSC, Next-Router-State-Tree, Next-Router-Prefetch"),
                ],
                body,
            ),
            _ => reply(&[("cache-control", "private, no-cache, no-store, max-age=0, must-revalidate")], body),
        }
    })
    .await;
    let (_policy, sidecar) = under("nextjs", &origin).await;
    is_cached(&sidecar, "/_next/static/chunks/main-5c01.js", &[("cookie", "session=1")]).await;
    let webp = is_cached(&sidecar, "/_next/image?url=%2Fa.png&w=640&q=75", &[("accept", "image/webp")]).await;
    let png = is_cached(&sidecar, "/_next/image?url=%2Fa.png&w=640&q=75", &[("accept", "image/png")]).await;
    assert_ne!(webp.body, png.body);
    let page = is_cached(&sidecar, "/blog", &[]).await;
    let payload = is_cached(&sidecar, "/blog?_rsc=1x2y", &[("rsc", "1")]).await;
    assert_ne!(page.body, payload.body);
    let other = is_cached(&sidecar, "/blog", &[("rsc", "1")]).await;
    assert_ne!(page.body, other.body, "the payload is not the page, with or without its parameter");
    is_not_cached(&sidecar, "/blog", &[("cookie", "session=1")]).await;
    is_not_cached(&sidecar, "/account", &[]).await;
    is_not_cached(&sidecar, "/api/time", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_site_stays_up_while_its_server_is_down() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let origin = Origin::start(move |seen| {
        let is_down = down.load(Ordering::Relaxed);
        async move {
            let body = format!("{:06}{}", seen.number, seen.header("authorization"));
            match seen.path.split('?').next().unwrap_or_default() {
                _ if is_down => status(StatusCode::BAD_GATEWAY, reply(&[], "")),
                "/none" => status(StatusCode::NOT_FOUND, reply(&[], body)),
                "/short" => reply(&[("x-cache-ttl", "30")], body),
                _ => reply(
                    &[("cache-control", "no-cache"), ("etag", "\"a\""), ("accept-ranges", "bytes")],
                    body,
                ),
            }
        }
    })
    .await;
    let (_policy, sidecar) = under("static", &origin).await;
    let page = is_cached(&sidecar, "/docs/?utm_source=x", &[("cookie", "_ga=1")]).await;
    assert_eq!(sidecar.get("/docs/").await.body, page.body, "the query and cookies do not count");
    let part = sidecar.get_with("/docs/", &[("range", "bytes=0-1")]).await;
    assert_eq!((part.status, part.body.as_str()), (StatusCode::PARTIAL_CONTENT, &page.body[..2]));
    assert_eq!(is_cached(&sidecar, "/none", &[]).await.status, StatusCode::NOT_FOUND);
    is_cached(&sidecar, "/short", &[]).await;
    assert!(sidecar.get("/short").await.ttl().is_some_and(|ttl| ttl <= 30));
    let asset = is_cached(&sidecar, "/assets/app-5c01.js", &[]).await;
    let signed_in = sidecar.get_with("/assets/secret", &[("authorization", "Bearer x")]).await;
    assert_eq!(signed_in.body.len(), 6, "the server can't see who asks: {signed_in:?}");
    let elsewhere = sidecar.get_with("/assets/app-5c01.js", &[("x-forwarded-host", "evil")]).await;
    assert_ne!(elsewhere.body, asset.body);

    is_down.store(true, Ordering::Relaxed);
    let purged = sidecar.purge(r#"{"everything": true, "soft": true}"#).await;
    assert_eq!(purged.status, StatusCode::OK);
    assert_eq!(sidecar.get("/docs/").await.body, page.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_gateway_resources_are_new_after_any_method_of_their_collection() {
    let origin = Origin::numbered(&[
        ("content-type", "application/json"),
        ("grpc-metadata-content-type", "application/grpc"),
    ])
    .await;
    let (_policy, sidecar) = under("grpc-gateway", &origin).await;
    for (method, path) in [
        (Method::PATCH, "/v1/books/7"),
        (Method::DELETE, "/v1/books/7"),
        (Method::POST, "/v1/books/7:archive"),
        (Method::POST, "/v1/books"),
        (Method::POST, "/v1/books:batchUpdate"),
    ] {
        let book = is_cached(&sidecar, "/v1/books/7", &[]).await;
        let page = is_cached(&sidecar, "/v1/books/7/pages/3?view=FULL", &[]).await;
        let list = is_cached(&sidecar, "/v1/books?page_size=10&filter=x", &[]).await;
        let author = is_cached(&sidecar, "/v1/authors/1", &[]).await;
        sidecar.request(method.clone(), path, &[], "{}").await;
        assert_ne!(sidecar.get("/v1/books/7").await.body, book.body, "{method} {path}");
        assert_ne!(sidecar.get("/v1/books/7/pages/3?view=FULL").await.body, page.body, "{method} {path}");
        assert_ne!(sidecar.get("/v1/books?filter=x&page_size=10").await.body, list.body, "{method} {path}");
        assert_eq!(sidecar.get("/v1/authors/1").await.body, author.body, "{method} {path}");
    }
    is_not_cached(&sidecar, "/v1/books/7", &[("authorization", "Bearer x")]).await;
}
