//! Policies. The input is a policy's file.

use http::{HeaderMap, HeaderValue, Method};
use larder_policy::{Document, HeaderKinds, Key, NormalPath, Policy, Writing, key, policy::RequestLine};

const PATHS: [&str; 5] = ["/", "/api/users/7", "/api//", "/a%2Fb/%FF", "/a/../b"];

/// A valid policy is written as it was read and compiles to the same; its routes match the paths that they cover.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let written = document.to_yaml();
    let read = Document::parse(&written).expect("what is written can be read");
    assert_eq!(read, document, "{written}");
    assert_eq!(read.to_yaml(), written);
    let policy = match (Policy::compile(&document.spec), Policy::compile(&read.spec)) {
        (Ok(policy), Ok(same)) => {
            assert_eq!(policy.fingerprint(), same.fingerprint());
            policy
        }
        (Err(problems), Err(same)) => {
            assert!(!problems.is_empty());
            assert_eq!(problems, same);
            return;
        }
        _ => panic!("it compiles once: {written}"),
    };
    assert_eq!(policy.routes().len(), document.spec.routes.len());
    assert!(!policy.is_bare());
    for path in PATHS {
        requests(&policy, path);
    }
    for route in policy.routes() {
        let template = route.path.as_ref().expect("only the bare route has none");
        requests(&policy, template.as_str());
        requests(&policy, &template.as_str().replace(['{', '}'], ""));
    }
}

fn requests(policy: &Policy, path: &str) {
    let path = NormalPath::new(path);
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", "shop"), ("cookie", "lang=en; session=1"), ("x-api-version", "2")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT] {
        let purged = Writing::of(&method, path.as_sent(), None, &headers)
            .map(|writing| policy.purged_by(&writing))
            .unwrap_or_default();
        assert!(purged.is_sorted_by(|one, other| one < other), "each once");
        assert!(purged.is_empty() || !method.is_safe());
        let query = Some("a=1&utm_source=x;b");
        let line = RequestLine { method: &method, uri_host: None, path: &path, query };
        let Some(found) = policy.route(&line, &headers) else { continue };
        assert!(policy.covers(path.as_sent()) && !path.is_ambiguous() && method != Method::PUT);
        assert!(method != Method::POST || found.route.body_limit().is_some(), "POST has its body in the key");
        let parameters = found.parameters(&path);
        let names = found.route.path.as_ref().map(|path| path.parameters().count());
        assert_eq!(Some(parameters.len()), names);
        let rest = found.route.path.as_ref().and_then(|path| path.rest());
        assert!(parameters.iter().all(|(name, value)| !value.is_empty() || Some(*name) == rest));
        assert!(found.route.tags(path.as_sent()).count() <= 64);
        let _ = found.route.bypass(query, &headers);
        let parts =
            key::KeyParts { method: &method, target: None, uri_host: None, path: &path, query, body: None };
        let key = Key::new(&parts, &headers, &HeaderKinds::of(&headers), &found.route.key);
        let (scheme, rest) = key.as_str().split_once("://").expect("a key has a scheme");
        assert_eq!(scheme, format!("{method}:http"));
        assert!(rest[rest.find('/').expect("a key has a path")..].starts_with(path.as_sent()));
    }
}
