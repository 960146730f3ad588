use std::fs;

use serde_json::{Value, json};

use super::*;

fn secret() -> Option<SecretKey> {
    Some("redis/uri".parse().unwrap())
}

fn known(routes: Routes, redis: Option<SecretKey>) -> Known {
    Known {
        name: Some("shop".into()),
        namespace: Some("store".into()),
        labels: Some(BTreeMap::from([
            ("app".into(), "shop".into()),
            ("example.com/on".into(), "true".into()),
        ])),
        port: Some("8080".into()),
        routes: Some(routes),
        redis,
    }
}

fn paths(paths: &[&str], ttl: Option<&str>, grace: Option<&str>) -> Routes {
    Routes::Paths {
        paths: paths.iter().map(|path| str::to_owned(path)).collect(),
        ttl: ttl.map(Into::into),
        grace: grace.map(Into::into),
    }
}

/// Returns the policy as data, once the linter has found nothing in it.
fn read(known: Known) -> Value {
    let text = checked(known.complete().unwrap().text()).unwrap();
    assert!(text.lines().any(|line| line.trim_start().starts_with('#')), "no comment in {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 140), "a line is too long in {text}");
    let mut of_spec = text.lines().skip_while(|line| *line != "spec:").skip(1);
    assert!(of_spec.all(|line| line.starts_with("  ")), "a line is not indented in {text}");
    serde_yaml::from_str(&text).unwrap()
}

#[test]
fn every_combination_passes_the_linter_with_all_that_was_given() {
    let templates = Template::ALL.map(Routes::Template);
    let times = [None, Some("60s")];
    let of_paths = times.iter().flat_map(|ttl| {
        times.map(|grace| paths(&["/api/users/{id}", "/api/users", "/api-users", "/{*path}"], *ttl, grace))
    });
    for routes in templates.into_iter().chain(of_paths) {
        for redis in [None, secret()] {
            let has_redis = redis.is_some();
            let policy = read(known(routes.clone(), redis));
            assert_eq!(policy["metadata"], json!({"name": "shop", "namespace": "store"}), "{routes:?}");
            let labels = json!({"app": "shop", "example.com/on": "true"});
            assert_eq!(policy["spec"]["selector"], json!({"matchLabels": labels}), "{routes:?}");
            assert_eq!(policy["spec"]["targets"], json!([{"port": 8080}]), "{routes:?}");
            let secret = &policy["spec"]["l2"]["redis"]["urlFrom"]["secretKeyRef"];
            let expected = if has_redis { json!({"name": "redis", "key": "uri"}) } else { Value::Null };
            assert_eq!(*secret, expected, "{routes:?}");
        }
    }
}

#[test]
fn routes_are_named_by_their_paths() {
    let policy = read(known(
        paths(&["/api/users/{id}", "/api/users", "/api-users", "/{*path}"], Some("1h"), None),
        None,
    ));
    let routes = policy["spec"]["routes"].as_array().unwrap();
    let names: Vec<_> = routes.iter().map(|route| route["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["api-users-id", "api-users", "api-users-2", "all"]);
    assert_eq!((&routes[3]["match"]["path"], &routes[3]["ttl"]), (&json!("/{*path}"), &json!("1h")));
}

#[test]
fn policies_that_the_linter_refuses_are_not_written() {
    let said = |routes| checked(known(routes, None).complete().unwrap().text()).unwrap_err().to_string();
    let wrong = said(paths(&["/a"], Some("2 minutes"), None));
    assert!(wrong.contains("spec.routes[0].ttl: \"2 minutes\" is not a duration"), "{wrong}");
    let hidden = said(paths(&["/{*path}", "/a"], Some("1s"), None));
    assert!(hidden.contains("spec.routes[1]"), "{hidden}");
    assert!(said(paths(&["a"], None, None)).contains("spec.routes[0].match.path"));
}

#[test]
fn options_that_are_missing_are_named() {
    let nothing = Known::default().complete().unwrap_err().to_string();
    assert!(
        nothing.starts_with("give --workload or --selector, NAME, --port, --template or --path:"),
        "{nothing}"
    );
    let without_port = Known { port: None, ..known(paths(&["/a"], None, None), None) };
    assert!(without_port.complete().unwrap_err().to_string().starts_with("give --port:"));
}

#[test]
fn questions_are_asked_about_the_rest_alone_and_again_after_a_wrong_answer() {
    let ask = |known: Known, answers: &str| {
        let mut asked = Vec::new();
        let draft = known.completed(&mut Questions::new(answers.as_bytes(), &mut asked));
        (draft, String::from_utf8(asked).unwrap())
    };
    let (draft, asked) = ask(Known::default(), "shop\napp=shop\n\n\nnothing\n/api/{*path}\n60s\n\nredis\n");
    let draft = draft.unwrap();
    assert_eq!((draft.name.as_str(), draft.port.as_str()), ("shop", "http"));
    assert_eq!(draft.routes, paths(&["/api/{*path}"], Some("60s"), None));
    assert_eq!(draft.redis, Some("redis/url".parse().unwrap()));
    assert!(
        asked.contains("Name of the policy [shop]: ") && asked.contains("write one of these kinds"),
        "{asked}"
    );
    let answers =
        "app!=shop\napp=shop\nShop!\nshop\n99999\nhttp\n/a{\n/a\n1 hour\n1h\nlong\n1h\nA/b\nredis/url\n";
    let (draft, asked) = ask(Known::default(), answers);
    let draft = draft.unwrap_or_else(|error| panic!("{error}: {asked}"));
    assert_eq!((draft.name.as_str(), draft.port.as_str()), ("shop", "http"), "{asked}");
    assert_eq!(draft.routes, paths(&["/a"], Some("1h"), Some("1h")), "{asked}");
    assert_eq!(draft.redis, Some("redis/url".parse().unwrap()), "{asked}");
    let (draft, asked) = ask(known(Routes::Template(Template::Rest), None), "");
    assert!(draft.is_ok() && asked.is_empty(), "{asked}");
    assert!(ask(Known::default(), "").0.is_err(), "nobody answers");
}

#[test]
fn files_are_overwritten_only_on_demand() {
    let folder = std::env::temp_dir().join(format!("larder-init-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("policy.yaml");
    write(&file, "a long text", false).unwrap();
    let refused = write(&file, "b", false).unwrap_err().to_string();
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "a long text");
    write(&file, "b", true).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "b");
    fs::remove_dir_all(&folder).unwrap();
}
