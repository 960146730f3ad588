//! Writes whose responses name the tags to purge.

use http::Method;

use super::{
    harness::{Origin, Pages, Policy, Sidecar, reply, two, until},
    http2_hits::ask,
    http2_hits::connect,
};

const SHOP: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
routes:
- {name: page, match: {path: "/pages/{*path}"}, ttl: 60s, tagsFrom: {headers: [Surrogate-Key]}}
- {name: plain, match: {path: "/plain/{id}"}, ttl: 60s}
invalidation:
  onWrite:
  - {match: {path: "/posts"}, purge: {tagsFrom: {headers: [Surrogate-Key], remove: true}}}
  - {match: {path: "/drafts"}, purge: {tagsFrom: {headers: [X-Tags]}, soft: true}}
"#;

const PATHS: [&str; 4] = ["/pages/a", "/pages/b", "/pages/c/d", "/plain/1"];
/// Pages that can have a tag.
const TAGGED: &[usize] = &[0, 1, 2];

/// An application whose pages are tagged by their last segment, and which responds to writes as `x-status` and `x-say` tell it.
async fn shop() -> Origin {
    Origin::start(|seen| async move {
        if seen.method == Method::GET {
            let last = seen.path.rsplit('/').next().unwrap_or_default();
            return reply(&[("surrogate-key", &format!("page:{last} all"))], seen.number.to_string());
        }
        seen.told("written")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_a_writes_response_are_purged_before_it_leaves() {
    let (origin, policy) = (shop().await, Policy::new(SHOP));
    let sidecars = two(&policy, &origin).await;
    let [a, b] = &sidecars;
    let too_many = format!("surrogate-key: {}", "x ".repeat(1025));
    for (status, says, expected) in [
        ("200", &["surrogate-key: page:a page:d"][..], &[0, 2][..]),
        ("201", &["surrogate-key: page:a", "surrogate-key: PAGE:B"], &[0, 1]),
        ("303", &["surrogate-key: all"], TAGGED),
        ("404", &["surrogate-key: page:b"], &[1]),
        ("422", &["surrogate-key: page:b"], &[]),
        ("200", &["surrogate-key: none"], &[]),
        ("200", &["x-tags: page:a"], &[]),
        ("200", &[], &[]),
        ("500", &["surrogate-key: page:a"], &[0]),
        ("500", &[], TAGGED),
        ("404", &[], TAGGED),
        ("422", &[], &[]),
        ("200", &[&too_many], TAGGED),
    ] {
        let pages = Pages::warm(&sidecars, PATHS).await;
        let says = says.iter().map(|line| ("x-say", *line));
        let fields: Vec<_> = [("x-status", status)].into_iter().chain(says).collect();
        let answer = a.request(Method::POST, "/posts", &fields, "new").await;
        assert_eq!((answer.status.as_str(), answer.header("surrogate-key")), (status, ""), "{fields:?}");
        assert_eq!(pages.purged_in(b).await, expected, "{fields:?}");
        assert_eq!(pages.purged_in(a).await, expected, "{fields:?}");
    }
    assert_eq!(a.metric("larder_purges_broadened_total", &["place=\"response\""]).await, 3.0);

    let pages = Pages::warm(&sidecars, PATHS).await;
    let client = connect(a.address, 1 << 20).await;
    let (status, ..) = ask(&client, Method::POST, "/posts").await;
    assert_eq!((status, pages.purged_in(b).await), (200, vec![]), "a response that names none");
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_rule_makes_pages_with_the_tags_stale() {
    let spec = SHOP
        .replace("l2: ", "# ")
        .replace("ttl: 60s, tagsFrom", "ttl: 60s, staleWhileRevalidate: 60s, tagsFrom");
    let (origin, policy) = (shop().await, Policy::new(&spec));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let before = sidecar.get("/pages/a").await.body;
    let answer = sidecar.request(Method::PUT, "/drafts", &[("x-say", "x-tags: page:a")], "new").await;
    assert_eq!(answer.header("x-tags"), "page:a", "it is for the client as well");
    assert_eq!(sidecar.get("/pages/a").await.body, before, "it is served while it is refreshed");
    until("it is refreshed", async || (sidecar.get("/pages/a").await.body != before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_has_all_that_the_response_could_name() {
    let (origin, policy) = (shop().await, Policy::new(&SHOP.replace("l2: ", "# ")));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    let described = r#"{"method": "POST", "url": "http://shop/posts"}"#;
    let answer = sidecar.with_token(Method::POST, "/explain", described).await;
    assert!(answer.body.contains(r#""on_write_unknown":["{response:surrogate-key}"]"#), "{}", answer.body);
    assert!(answer.body.contains(r#""prefixes":["/pages/"]"#), "{}", answer.body);
}
