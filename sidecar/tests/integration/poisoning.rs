//! Two requests with one key are one request to the application.

use super::harness::{Application, Origin, Policy, Seen, Sidecar, Wire, reply};

const POLICY: &str = r#"
routes:
- name: user
  match: {path: "/api/users/{id}"}
  ttl: 60s
  key: {headers: [x-tenant], cookies: [lang, theme], query: {ignore: ["utm_*"], order: Sorted}}
  tags: [all]
- {name: any, match: {path: "/{a}/{b}"}, ttl: 60s, key: {headers: [X-Tenant], cookies: [theme, lang], query: {ignore: ["utm_*"]}}, tags: [all]}
"#;

/// Parts of a request, and spellings of each that mean the same or nearly so.
const TARGETS: [&str; 12] = [
    "/api/users/1",
    "/api/%75sers/1",
    "/api/users/%31",
    "/API/users/1",
    "/api/users/a@b",
    "/api/users/a%40b",
    "/api/users/%C3%BC",
    "/api/users/%c3%bc",
    "/users/1",
    "/users/1;v=1",
    "/users/..%2f1",
    "/users/%2531",
];
const QUERIES: [&str; 9] = [
    "",
    "?",
    "?a=1&b=2",
    "?b=2&a=1",
    "?a=%31&b=2",
    "?a=1&utm_x=1&b=2",
    "?b=2&a=1&utm_x=2",
    "?A=1&b=2",
    "?a=1;b=2",
];
const FIELDS: [(&str, &[&[&str]]); 8] = [
    ("Host", &[&["shop.test"], &["SHOP.test"], &["shop.test:80"], &["shop.test."], &[""]]),
    (
        "X-Forwarded-Proto",
        &[&[], &["http"], &["https"], &["HTTPS"], &["https, http"], &["https,http"], &["https", "http"]],
    ),
    ("X-Forwarded-Host", &[&[], &["shop.test"], &["SHOP.test"], &["shop.test, a"], &["shop.test", "a"]]),
    (
        "Forwarded",
        &[
            &[],
            &["host=a"],
            &["Host=a"],
            &["host=\"a;b\""],
            &["host=\"a;c\""],
            &["proto=https"],
            &["host=a", "host=b"],
            &["host=a, proto=https"],
            &["host=a;proto=https"],
            &["for=\";host=a\""],
            &["secret=a"],
        ],
    ),
    ("X-Tenant", &[&[], &["a"], &["A"], &["a, b"], &["a,b"], &["a", "b"], &[""]]),
    (
        "Accept-Language",
        &[&[], &["en, de"], &["de,en"], &["EN, de"], &["de", "en"], &["de;q=1.0, en"], &["en;q=0.9,de"]],
    ),
    (
        "Cookie",
        &[
            &[],
            &["lang=de; theme=x"],
            &["theme=x; lang=de"],
            &["theme=x;lang=de"],
            &["lang=de", "theme=x"],
            &["theme=x;;lang=de;"],
            &["lang=de; LANG=en"],
            &["lang=de; lang=en"],
            &["lang=\"de\"; theme=x"],
            &[";"],
        ],
    ),
    ("Accept-Encoding", &[&[], &["gzip, br"], &["br,gzip"], &["GZIP", "br;q=1"], &["br;q=0.5,gzip"]]),
];

/// The places of X-Tenant and Cookie in a request.
const TENANT: usize = 6;
const COOKIE: usize = 8;

/// A request by the place of each part's spelling.
type Request = [usize; 2 + FIELDS.len()];

fn text(request: &Request) -> String {
    let mut text = format!("GET {}{} HTTP/1.1\r\n", TARGETS[request[0]], QUERIES[request[1]]);
    for ((name, spellings), at) in FIELDS.iter().zip(&request[2..]) {
        for line in spellings[*at] {
            text.push_str(&format!("{name}: {line}\r\n"));
        }
    }
    text + "\r\n"
}

/// Everything that an application can observe of a request, except headers and parameters that the route ignores by name.
fn dump(seen: &Seen) -> String {
    let (path, query) =
        seen.path.split_once('?').map_or((seen.path.as_str(), None), |(path, query)| (path, Some(query)));
    let query = query
        .map(|query| query.split('&').filter(|pair| !pair.starts_with("utm_")).collect::<Vec<_>>().join("&"));
    let fields: Vec<_> = FIELDS
        .iter()
        .map(|(name, _)| (name, seen.headers.get_all(*name).iter().collect::<Vec<_>>()))
        .collect();
    format!("{} {path} {query:?} {fields:?}", seen.method)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_with_one_key_reach_the_application_byte_for_byte_the_same() {
    let origin = Origin::start(|seen| async move {
        reply(&[("cache-control", "max-age=60"), ("vary", "accept-language, accept-encoding")], dump(&seen))
    })
    .await;
    let policy = Policy::new(POLICY);
    let sidecars = [Sidecar::start(&policy, origin.address).await, Sidecar::bare(origin.address).await];
    for (sidecar, is_bare) in sidecars.iter().zip([false, true]) {
        let mut wire = Wire::to(sidecar.address).await;
        let (mut random, mut hits) = (0x9E37_79B9_7F4A_7C15_u64, 0);
        let mut below = move |limit: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % limit
        };
        let counts: Request = std::array::from_fn(|part| match part {
            0 => TARGETS.len(),
            1 => QUERIES.len(),
            part => FIELDS[part - 2].1.len(),
        });
        for _ in 0..150 {
            let one: Request =
                std::array::from_fn(|part| if below(4) == 0 { below(counts[part]) } else { 0 });
            // Most pairs differ only in a part or two.
            let mut other = one;
            for _ in 0..=below(4) / 3 {
                let part = below(other.len());
                other[part] = below(counts[part]);
            }
            if is_bare {
                // Without a policy no header is in the key that Vary does not name.
                other[TENANT] = one[TENANT];
                other[COOKIE] = one[COOKIE];
            }
            let mut ask = async |request: &Request| {
                wire.say(text(request)).await;
                wire.answer().await
            };
            let forget = async || {
                let body = if is_bare {
                    let paths = [one[0], other[0]].map(|target| TARGETS[target]);
                    serde_json::json!({ "paths": paths })
                } else {
                    serde_json::json!({"tags": ["all"]})
                };
                assert_eq!(sidecar.purge(body.to_string().leak()).await.status, 200);
            };
            forget().await;
            let (first, alone) = ask(&other).await;
            forget().await;
            ask(&one).await;
            let calls = origin.calls();
            let (head, after) = ask(&other).await;
            assert_eq!(after, alone, "{}\n{}\n{first}{head}", text(&one), text(&other));
            hits += usize::from(origin.calls() == calls);
        }
        assert!(hits > 15, "some pairs have one key: {hits}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_spelling_does_not_fill_the_page_of_express_under_a_users_path() {
    let application = Application::express().await;
    let policy = Policy::new(POLICY);
    let sidecar = Sidecar::start(&policy, application.address).await;
    let plain = sidecar.get("/api/users/1").await.body;
    assert_eq!(plain, r#"{"id":"1","version":0}"#);
    sidecar.purge(r#"{"tags": ["all"]}"#).await;
    for odd in ["/api/%75sers/1", "/%61pi/users/1", "/api/users%2f1", "/api/users/./1", "/api/x/..;/users/1"]
    {
        let mut wire = Wire::asking(sidecar.address, odd).await;
        let page = wire.answer().await.1;
        assert_eq!(sidecar.get("/api/users/1").await.body, plain, "{odd}: {page}");
        assert_eq!(Wire::asking(sidecar.address, odd).await.answer().await.1, page, "{odd}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_or_scheme_in_capitals_does_not_fill_that_of_express_in_small_letters() {
    let application = Application::express().await;
    let policy = Policy::new("routes: [{name: me, match: {path: /whoami}, ttl: 60s}]");
    let sidecar = Sidecar::start(&policy, application.address).await;
    let mut wire = Wire::to(sidecar.address).await;
    let mut ask = async |fields: &str| {
        wire.say(format!("GET /whoami HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        wire.answer().await.1
    };
    for (first, then, has) in [
        ("Host: SHOP", "Host: shop", r#""host":"shop""#),
        ("Host: a:80", "Host: a", r#""host":"a""#),
        ("Host: b.", "Host: b", r#""host":"b""#),
        (
            "Host: c\r\nX-Forwarded-Proto: HTTPS",
            "Host: c\r\nX-Forwarded-Proto: https",
            r#""protocol":"https""#,
        ),
        ("Host: d\r\nX-Forwarded-Host: evil", "Host: d", r#""host":"d""#),
    ] {
        ask(first).await;
        let body = ask(then).await;
        assert!(body.contains(has), "{then}: {body}");
    }
}
