//! Small files, good and bad.

mod cel;

use super::*;

const GOOD: &str = r#"apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: shop}
spec:
  sources:
  - name: catalog
    postgres: {urlFrom: {env: CATALOG_URL}}
  routes:
  - name: user
    match: {path: "/api/users/{id}"}
    ttl: 120s
    tags: ["user:{id}"]
  - name: item
    match:
      path: "/data/{key}"
    ttl: 5m
    from:
    - postgres:
        source: catalog
        query: select value from items where key = {key}::int
"#;

fn check(text: &str, environment: Environment) -> Report {
    Checker::new(environment).check(text)
}

/// Returns the diagnostics as the program writes them.
fn said(text: &str, environment: Environment) -> Vec<String> {
    let diagnostics = check(text, environment).diagnostics;
    let lines = diagnostics.iter().map(|Diagnostic { line, column, path, message, .. }| {
        let separator = if path.is_empty() { "" } else { ": " };
        format!("{line}:{column}: {path}{separator}{message}")
    });
    lines.collect()
}

/// Returns the diagnostics of [`GOOD`] after a replacement.
fn changed(replaced: &str, by: &str) -> Vec<String> {
    assert!(GOOD.contains(replaced), "{replaced}");
    said(&GOOD.replacen(replaced, by, 1), Environment::Alone)
}

#[test]
fn routes_that_no_request_reaches_are_named_in_warnings() {
    let site = "  routes:\n  - name: site\n    match: {path: \"/{*path}\"}\n";
    let hidden = check(&GOOD.replace("  routes:\n", site), Environment::Alone);
    assert_eq!(hidden.diagnostics, []);
    let said: Vec<_> =
        hidden.warnings.iter().map(|one| format!("{}:{}: {}", one.line, one.path, one.message)).collect();
    let by = "because \"site\" (spec.routes[0]) is tried first and takes all of them: put it above that one, or take it out";
    assert_eq!(
        said,
        [
            format!("11:spec.routes[1]: no request reaches route \"user\", {by}"),
            format!("15:spec.routes[2]: no request reaches route \"item\", {by}"),
        ]
    );
    let last = format!("{GOOD}  - name: site\n    match: {{path: \"/{{*path}}\"}}\n");
    let report = check(&last, Environment::Alone);
    assert_eq!((report.diagnostics, report.warnings), (vec![], vec![]));
}

#[test]
fn defaults_that_no_route_takes_are_named_in_warnings() {
    let defaults = "  defaults:\n    ttl: 1m\n    grace: 5m\n    key: {body: {maxSize: 1Ki}}\n  routes:\n";
    let report = check(&GOOD.replace("  routes:\n", defaults), Environment::Alone);
    assert_eq!(report.diagnostics, []);
    let said: Vec<_> =
        report.warnings.iter().map(|one| format!("{}:{}: {}", one.line, one.path, one.message)).collect();
    let message =
        "no route takes it: each has its own, passes, or has nothing that it applies to; take it out";
    let expected =
        [format!("11:spec.defaults.key.body: {message}"), format!("9:spec.defaults.ttl: {message}")];
    assert_eq!(said, expected);
}

#[test]
fn errors_of_defaults_are_at_their_place() {
    for (defaults, expected) in [
        (
            "ttl: 1d",
            "8:19: spec.defaults.ttl: \"1d\" is not a duration: write 24h (there is no unit for days)",
        ),
        ("tttl: 1m", "8:14: spec.defaults.tttl: unknown field: did you mean ttl?"),
        (
            "key: {headers: [\"a b\"]}",
            "8:30: spec.defaults.key.headers[0]: \"a b\" is not the name of a header",
        ),
        (
            "lastKnownGood: {source: none}",
            "8:38: spec.defaults.lastKnownGood.source: spec.sources has no \"none\"",
        ),
    ] {
        let by = format!("  defaults: {{{defaults}}}\n  routes:\n");
        assert_eq!(changed("  routes:\n", &by), [expected]);
    }
}

#[test]
fn a_thousand_routes_are_checked() {
    let report = check(&fixtures::with_routes(1000), Environment::Cluster);
    assert_eq!((report.diagnostics, report.warnings), (vec![], vec![]));
    assert_eq!(report.policies[0].routes, 1000);
    let more = check(&fixtures::with_routes(1001), Environment::Cluster).diagnostics;
    assert_eq!(more[0].path, "spec.routes");
}

#[test]
fn a_good_policy_is_good() {
    let report = check(GOOD, Environment::Alone);
    assert_eq!(report.diagnostics, []);
    assert_eq!(report.policies, [Found { name: "shop".into(), routes: 2, sources: 1, writes: 0 }]);
}

#[test]
fn each_fault_has_its_place_and_a_remedy() {
    for (replaced, by, expected) in [
        (
            "ttl: 5m",
            "ttl: 2 minutes",
            r#"16:10: spec.routes[1].ttl: "2 minutes" is not a duration: write one such as 500ms, 30s, 5m or 1h30m"#,
        ),
        (
            "ttl: 120s",
            "storeDespite: [SetCookie]",
            r#"11:20: spec.routes[0].storeDespite[0]: "SetCookie" is not known here: set setCookie: Store of the route"#,
        ),
        ("ttl: 120s", "tll: 120s", "11:5: spec.routes[0].tll: unknown field: did you mean ttl?"),
        ("  sources:", "  zzz: 1\n  sources:", "5:3: spec.zzz: unknown field: take it out"),
        (
            "{env: CATALOG_URL}",
            "{zzz: 1, env: A}",
            "7:26: spec.sources[0].postgres.urlFrom.zzz: unknown field: write env or file, or take it out",
        ),
        (
            "{env: CATALOG_URL}",
            "{secretKeyRef: {name: shop, key: url}}",
            "7:26: spec.sources[0].postgres.urlFrom.secretKeyRef: only a cluster has Secrets: write env: NAME or file: PATH for a sidecar that runs alone, or check with --cluster",
        ),
        (
            "{env: CATALOG_URL}",
            "{}",
            "7:25: spec.sources[0].postgres.urlFrom: set exactly one of secretKeyRef (in a cluster), env or file (outside one)",
        ),
        (
            "ttl: 120s",
            "ttl: 120",
            "11:10: spec.routes[0].ttl: 120 is not a duration: write 120s (a number needs a unit)",
        ),
        (
            "ttl: 120s",
            "ttl: 1d",
            r#"11:10: spec.routes[0].ttl: "1d" is not a duration: write 24h (there is no unit for days)"#,
        ),
        (
            "[\"user:{id}\"]",
            "user",
            "12:11: spec.routes[0].tags: \"user\" is not a list: write each item in a line of its own after a dash, or [ONE, OTHER]",
        ),
        (
            "{path: \"/api/users/{id}\"}",
            "/a",
            "10:12: spec.routes[0].match: \"/a\" is not an object: write its fields, such as path: ...",
        ),
        (
            "{id}\"]",
            "{other}\"]",
            "12:12: spec.routes[0].tags[0]: \"user:{other}\" uses {other}, which /api/users/{id} does not have",
        ),
        (
            "source: catalog",
            "source: catalogue",
            "19:17: spec.routes[1].from[0].postgres.source: spec.sources has no \"catalogue\"",
        ),
        (
            "name: item",
            "name: user",
            "13:11: spec.routes[1].name: \"user\" is taken: give each a name of its own",
        ),
        (
            "ttl: 120s",
            "ttl: 120s\n    ttl: 1s",
            "12:5: spec.routes[0].ttl: is already set in line 11: remove one of them",
        ),
        (
            "ttl: 120s",
            "ttl: 120s\n    earlyRefresh: xfetch",
            "12:19: spec.routes[0].earlyRefresh: \"xfetch\" is not known here: did you mean XFetch?",
        ),
        (
            "ttl: 120s",
            "ttl: 120s\n    ttlJitterPercent: 51",
            "12:23: spec.routes[0].ttlJitterPercent: must be between 1 and 50",
        ),
        ("name: item", "name: \"\"", "13:11: spec.routes[1].name: must not be empty"),
        (
            "larder.dev/v1alpha1",
            "larder.dev/v2",
            "1:13: apiVersion: \"larder.dev/v2\" is not known here: did you mean larder.dev/v1alpha1?",
        ),
        (
            "kind: CachePolicy",
            "kind: CachePolice",
            "2:7: kind: \"CachePolice\" is not \"CachePolicy\": did you mean that?",
        ),
        (
            "      path: \"/data/{key}\"\n",
            "      paths: x\n",
            "15:7: spec.routes[1].match.paths: unknown field: did you mean path?",
        ),
    ] {
        let said = changed(replaced, by);
        assert!(said.contains(&expected.to_owned()), "{expected}\n{said:#?}");
    }
}

#[test]
fn all_diagnostics_are_found_at_once_and_in_the_order_of_the_file() {
    let text = GOOD
        .replacen("CATALOG_URL}}", "CATALOG_URL}, maxConnectionsPerPod: many}", 1)
        .replacen("ttl: 120s", "ttl: 2 minutes", 1)
        .replacen("user:{id}", "user:{no}", 1)
        .replacen("from:", "frm: []\n    from:", 1)
        .replacen("{key}::int", "{none}::int", 1);
    let lines: Vec<_> = check(&text, Environment::Alone)
        .diagnostics
        .into_iter()
        .map(|fault| (fault.line, fault.path))
        .collect();
    let expected = [
        (7, "spec.sources[0].postgres.maxConnectionsPerPod"),
        (11, "spec.routes[0].ttl"),
        (12, "spec.routes[0].tags[0]"),
        (17, "spec.routes[1].frm"),
        (21, "spec.routes[1].from[0].postgres.query"),
    ];
    assert_eq!(lines, expected.map(|(line, path)| (line, path.to_owned())));
}

#[test]
fn item_after_an_unreadable_one_retains_its_place() {
    let text = GOOD.replacen("ttl: 120s", "statuses: no", 1).replacen("{key}::int", "{none}::int", 1);
    let paths: Vec<_> =
        check(&text, Environment::Alone).diagnostics.into_iter().map(|fault| fault.path).collect();
    assert_eq!(paths, ["spec.routes[0].statuses", "spec.routes[1].from[0].postgres.query"]);
}

#[test]
fn invalid_yaml_is_reported_with_its_position() {
    for text in ["{", "a: b: c", "a:\n- b\n c: [", "\"", "&", "*a", "%", "a: \t- b\n\t- c"] {
        let report = check(text, Environment::Alone);
        assert!(!report.diagnostics.is_empty(), "{text}");
        assert!(report.diagnostics[0].line > 0 && report.diagnostics[0].column > 0, "{text}: {report:?}");
    }
    assert_eq!(
        said("", Environment::Alone),
        ["1:1: there is no policy here: write apiVersion: larder.dev/v1alpha1 and kind: CachePolicy"]
    );
    let said = changed("metadata: {name: shop}", "metadata: {name: shop");
    assert!(said[0].contains("invalid YAML: "), "{said:?}");
}

#[test]
fn aliases_are_put_in_and_bombs_are_not() {
    let twice = GOOD.replacen("ttl: 120s", "ttl: &long 120s", 1).replacen("ttl: 5m", "ttl: *long", 1);
    assert_eq!(said(&twice, Environment::Alone), Vec::<String>::new());
    let bad = twice.replacen("120s", "1 hour", 1);
    assert_eq!(said(&bad, Environment::Alone).len(), 2, "it is wrong wherever it is used");

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let uses = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{uses}]\n"));
    }
    let said = said(&bomb, Environment::Alone);
    assert!(said[0].contains("at most 100000 values"), "{said:?}");
    for (depth, expected) in [(100, "nested more than 64 levels deep"), (10_000, "invalid YAML")] {
        let diagnostics =
            check(&["[".repeat(depth), "]".repeat(depth)].concat(), Environment::Alone).diagnostics;
        assert!(diagnostics[0].message.contains(expected), "{diagnostics:?}");
    }
}

#[test]
fn unsupported_yaml_is_reported() {
    let merged = changed("ttl: 120s", "<<: {ttl: 120s}");
    assert!(merged[0].contains("11:5: spec.routes[0].<<: merge keys are not supported"), "{merged:?}");
    let tagged = changed("ttl: 120s", "ttl: !long 120s");
    assert!(tagged[0].contains("the tag !long is not supported"), "{tagged:?}");
    let key = changed("ttl: 120s", "[a]: 120s");
    assert!(key[0].contains("a key must be a string"), "{key:?}");
    let empty = changed("  routes:\n", "  targetedCacheControl:\n  routes:\n");
    assert!(empty.iter().all(|said| said.contains("invalid type")), "{empty:?}");
}

#[test]
fn cluster_requires_selector_and_targets_and_only_its_own_secrets() {
    let alone = said(GOOD, Environment::Cluster);
    assert_eq!(
        alone,
        [
            "5:3: spec: selector is missing: Selector of the pods, by labels that the pods themselves carry",
            "5:3: spec: targets is missing: Ports of the application that are served through the sidecar",
            "7:26: spec.sources[0].postgres.urlFrom.env: is for a sidecar that runs alone: write secretKeyRef: {name: ..., key: ...}",
        ]
        .map(|line| line.replacen("5:3", "4:1", 1))
    );
    let cluster = GOOD
        .replacen(
            "  sources:",
            "  selector: {matchLabels: {app: shop}}\n  targets: [{port: http}]\n  sources:",
            1,
        )
        .replacen("{env: CATALOG_URL}", "{secretKeyRef: {name: shop-db, key: url}}", 1);
    assert_eq!(said(&cluster, Environment::Cluster), Vec::<String>::new());
    let large = cluster.replacen("  sources:", "  l1: {maxSize: 1Gi}\n  sources:", 1);
    assert!(
        said(&large, Environment::Cluster)[0].contains("do not fit into sidecar.resources.limits.memory")
    );
    assert!(!said(&large, Environment::Alone).iter().any(|said| said.contains("limits.memory")));
    let unnamed = cluster.replacen("{name: shop}", "{name: The Shop}", 1);
    assert!(said(&unnamed, Environment::Cluster)[0].contains("\"The Shop\" is not a name"));
}

#[test]
fn every_policy_of_a_file_is_checked_and_others_are_skipped() {
    let file =
        format!("apiVersion: v1\nkind: Secret\nx: [1]\n---\n{GOOD}---\n{}---\n", GOOD.replace("120s", "x"));
    let report = check(&file, Environment::Alone);
    assert_eq!(report.skipped, [Skipped { line: 1, kind: "Secret".into() }]);
    assert_eq!(report.policies.len(), 2);
    let at: Vec<_> = report.diagnostics.iter().map(|fault| fault.line).collect();
    assert_eq!(at, [4 + GOOD.lines().count() + 1 + 11]);
    let others = check("kind: Secret\n", Environment::Alone);
    assert_eq!((others.policies.len(), others.skipped.len(), others.diagnostics.len()), (0, 1, 0));
}

#[test]
fn fields_of_a_newer_operator_are_named() {
    let text = GOOD.replacen("ttl: 120s", "ttl: 120s\n    fromTheFuture: {x: 1}", 1).replacen(
        "spec:",
        "spec:\n  new: 1",
        1,
    );
    assert_eq!(unknown_fields(&text), ["spec.new", "spec.routes[0].fromTheFuture"]);
    assert_eq!(unknown_fields(GOOD), Vec::<String>::new());
    let of_cluster = GOOD.replacen("{env: CATALOG_URL}", "{secretKeyRef: {name: shop-db, key: url}}", 1);
    assert_eq!(unknown_fields(&of_cluster), Vec::<String>::new());
    assert_eq!(unknown_fields("{"), Vec::<String>::new());
}

#[test]
fn the_walk_knows_every_word_of_the_definition() {
    const KNOWN: [&str; 20] = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
    ];
    const OF_LISTS: [&str; 3] =
        ["x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type"];
    cel::each(&schema::definition(), "", &mut |schema, path| {
        for word in schema.keys() {
            assert!(KNOWN.contains(&word.as_str()) || OF_LISTS.contains(&word.as_str()), "{path}: {word}");
        }
    });
}

#[test]
fn the_policies_of_the_examples_are_good() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut policies = 0;
    for example in std::fs::read_dir(root).unwrap() {
        let Ok(files) = std::fs::read_dir(example.unwrap().path()) else { continue };
        for file in files.map(|file| file.unwrap().path()) {
            let is_yaml = file.extension().is_some_and(|extension| extension == "yaml");
            let text = if is_yaml { std::fs::read_to_string(&file).unwrap() } else { continue };
            if text.lines().any(|line| line == "kind: CachePolicy") {
                let environment = if text.contains("secretKeyRef") || text.contains("selector:") {
                    Environment::Cluster
                } else {
                    Environment::Alone
                };
                assert_eq!(said(&text, environment), Vec::<String>::new(), "{}", file.display());
                policies += 1;
            }
        }
    }
    assert!(policies > 0);
}
