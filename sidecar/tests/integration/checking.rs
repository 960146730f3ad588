//! `larder-sidecar check`.

use std::{io::Write, process::Stdio};

use super::{
    documents::document_text,
    harness::{Origin, Policy, Sidecar, until},
};

const GOOD: &str = "apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: shop}
spec:
  routes:
  - name: page
    match: {path: \"/{page}\"}
    ttl: 60s
";

/// Returns the program's output, its errors and its exit code.
fn check(arguments: &[&str], input: &str) -> (String, String, i32) {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_larder-sidecar"))
        .arg("check")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that reads only files may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn valid_policy_is_reported_in_a_line() {
    let (out, _, code) = check(&["-"], GOOD);
    let expected = "standard input: CachePolicy shop is valid: 1 route, 0 sources, 0 rules for writes\n";
    assert_eq!((out.as_str(), code), (expected, 0));
    assert_eq!(check(&["-", "--cluster"], GOOD).2, 1, "a cluster needs a selector");
}

#[test]
fn each_fault_of_each_file_is_a_line() {
    let (first, second) = (Policy::new(""), Policy::new(""));
    first.write(GOOD);
    second.write(&GOOD.replace("ttl: 60s", "ttl: 2 minutes\n    tgas: [x]"));
    let [good, bad] = [&first, &second].map(|policy| policy.path().to_str().unwrap().to_owned());
    let (out, _, code) = check(&[&good, &bad], "");
    let expected = [
        format!("{good}: CachePolicy shop is valid: 1 route, 0 sources, 0 rules for writes"),
        format!(
            "{bad}:8:10: spec.routes[0].ttl: \"2 minutes\" is not a duration: write one such as 500ms, 30s, 5m or 1h30m"
        ),
        format!("{bad}:9:5: spec.routes[0].tgas: unknown field: did you mean tags?"),
    ];
    assert_eq!((out.lines().collect::<Vec<_>>(), code), (expected.iter().map(String::as_str).collect(), 1));

    let (out, _, code) = check(&[&good, &bad, "--output", "json"], "");
    let faults: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((faults.as_array().unwrap().len(), code), (2, 1));
    assert_eq!(
        faults[1],
        serde_json::json!({
            "file": bad, "severity": "error", "line": 9, "column": 5, "path": "spec.routes[0].tgas",
            "message": "unknown field: did you mean tags?",
        })
    );

    second
        .write(&GOOD.replace("  routes:\n", "  routes:\n  - name: site\n    match: {path: \"/{*path}\"}\n"));
    let (out, _, code) = check(&[&bad], "");
    let warning = format!("{bad}:8:5: warning: spec.routes[1]: no request reaches route ");
    assert_eq!((out.starts_with(&warning), code), (true, 0), "{out}");
    let (out, _, code) = check(&[&bad, "--output", "json"], "");
    assert!(out.contains("\"severity\": \"warning\"") && code == 0, "{out}");
    second.write(&GOOD.replace("ttl: 60s", "ttl: 2 minutes\n    tgas: [x]"));

    let (out, error, code) = check(&[&good, "/nowhere/shop.yaml", &bad], "");
    assert_eq!((out.lines().count(), code), (3, 2), "the others are checked all the same");
    assert!(error.starts_with("/nowhere/shop.yaml: can't read it: "), "{error}");
}

/// Returns the content of the first fenced block of a language after a text of a page.
fn block<'a>(page: &'a str, after: &str, language: &str) -> &'a str {
    let (_, rest) = page.split_once(after).unwrap();
    let (_, rest) = rest.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn page_about_policy_files_shows_the_output_of_the_program() {
    let page = &document_text("policy-file.md");
    let policy = Policy::new("");
    let path = policy.path().to_str().unwrap().to_owned();
    let good = block(page, "# A policy in a file", "yaml");
    policy.write(good);
    let (out, _, code) = check(&[&path], "");
    assert_eq!(code, 0, "{out}");

    let bad = good.replace("ttl: 120s\n", "ttl: 2 minutes\n    tgas: [\"user:{id}\"]\n");
    policy.write(&bad);
    let (out, _, code) = check(&[&path], "");
    let said = format!("$ larder-sidecar check shop.yaml\n{}", out.replace(&path, "shop.yaml"));
    assert_eq!((block(page, "## Check it", ""), code), (said.as_str(), 1));
}

#[test]
fn document_of_another_kind_is_skipped_and_reported() {
    let several = format!("kind: Secret\n---\n{GOOD}");
    let (out, _, code) = check(&["-"], &several);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("standard input:1: skipped Secret, which is not a CachePolicy\n"), "{out}");
    assert!(out.contains("standard input: CachePolicy shop is valid"), "{out}");
    let (_, error, code) = check(&["-"], "kind: Secret");
    assert_eq!((error.as_str(), code), ("found no CachePolicy\n", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecar_logs_unknown_fields() {
    let origin = Origin::numbered(&[]).await;
    let policy = Policy::new("routes:\n- {name: page, match: {path: \"/{page}\"}, ttl: 60s, tgas: [x]}");
    let sidecar = Sidecar::start(&policy, origin.address).await;
    assert_eq!(sidecar.get("/a").await.body, sidecar.get("/a").await.body, "the sidecar serves by the rest");
    let warned = until("the warning", async || sidecar.logged("does not know")).await;
    assert!(warned.contains("\"fields\":\"spec.routes[0].tgas\""), "{warned}");
}
