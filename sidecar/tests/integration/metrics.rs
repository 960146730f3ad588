//! Metrics, their documentation and the dashboard.

use std::{collections::BTreeSet, fs};

use super::{
    documents::document_text,
    harness::{Database, Origin, Policy, Sidecar, exchange, reply, until},
};

const SPEC: &str = r#"
l2: {redis: {urlFrom: {env: LARDER_TEST_REDIS_URL}, timeout: 2s}}
sources:
- {name: catalog, postgres: {urlFrom: DATABASE}}
routes:
- {name: page, match: {path: "/{page}"}, ttl: 60s}
- {name: row, match: {path: "/row/{x}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select {x} as x"}}]}
- {name: broken, match: {path: "/broken/{x}"}, ttl: 60s, from: [{postgres: {source: catalog, query: "select nothing from nowhere"}}]}
invalidation:
  onWrite:
  - {match: {path: "/{page}"}, purge: {paths: ["/{page}"]}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_counted_documented_and_on_the_dashboard() {
    let origin = Origin::start(|seen| async move {
        let control = if seen.path == "/no-store" { "no-store" } else { "max-age=5" };
        reply(&[("cache-control", control)], seen.body)
    })
    .await;
    let database = Database::new("").await;
    let policy = Policy::new(&database.serve(SPEC));
    let sidecar = Sidecar::start(&policy, origin.address).await;
    for path in ["/a", "/a", "/no-store", "/row/x", "/broken/x", "/no/route/here"] {
        sidecar.get(path).await;
    }
    sidecar.get_with("/a", &[("cookie", "a=b")]).await;
    sidecar.put("/a").await;
    sidecar.purge(r#"{"tags": ["x"]}"#).await;
    let spliced =
        tokio::time::timeout(std::time::Duration::from_secs(1), exchange(sidecar.address, b"\0\0")).await;
    assert!(spliced.is_ok(), "an HTTP server closes on other protocols");
    let requests = async |labels: &[&str]| sidecar.metric("larder_requests_total", labels).await;
    for (outcome, tier, count) in [
        ("hit", "l1", 1.0),
        ("miss", "app", 2.0),
        ("miss", "postgres", 1.0),
        ("error", "none", 1.0),
        ("bypass", "app", 1.0),
        ("pass", "app", 2.0),
    ] {
        let labels = [format!("outcome=\"{outcome}\""), format!("tier=\"{tier}\"")];
        assert_eq!(requests(&[&labels[0], &labels[1]]).await, count, "{outcome} {tier}");
    }
    assert_eq!(sidecar.metric("larder_purges_total", &["origin=\"write\""]).await, 1.0);
    assert_eq!(sidecar.metric("larder_purges_total", &["origin=\"api\""]).await, 1.0);
    assert_eq!(sidecar.metric("larder_spliced_connections_total", &[]).await, 1.0);

    let dashboard = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/larder/dashboards/larder.json");
    let wanted = metric_names(&dashboard_queries(&fs::read_to_string(dashboard).unwrap()));
    assert!(wanted.len() > 10, "{wanted:?}");
    let documented = documented_metrics();
    assert!(documented.len() > 10, "{documented:?}");
    let is_shown =
        |name: &String| [name.clone(), format!("{name}_bucket")].iter().any(|name| wanted.contains(name));
    let not_shown: Vec<_> = documented.iter().filter(|name| !is_shown(name)).collect();
    assert!(not_shown.is_empty(), "put them onto the dashboard: {not_shown:?}");
    until("every metric of the dashboard", async || {
        let text = sidecar.admin("/metrics").await.body;
        let known: BTreeSet<_> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let missing: Vec<_> = wanted.iter().filter(|name| !known.contains(name.as_str())).collect();
        if !missing.is_empty() {
            eprintln!("missing: {missing:?}");
        }
        let reported = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let undocumented: Vec<_> =
            reported.filter(|name| name.starts_with("larder_") && !documented.contains(*name)).collect();
        assert!(undocumented.is_empty(), "list them in docs/metrics.md: {undocumented:?}");
        missing.is_empty().then_some(())
    })
    .await;
    database.drop_schema().await;
}

/// The metrics that the first column of docs/metrics.md lists.
fn documented_metrics() -> BTreeSet<String> {
    let text = document_text("metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `larder_"));
    metric_names(&rows.filter_map(|row| row.split('|').nth(1)).collect::<String>())
}

/// The queries of all panels and variables.
fn dashboard_queries(text: &str) -> String {
    fn collect(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    match (name.as_str(), value.as_str()) {
                        ("expr" | "query" | "definition", Some(query)) => found.push(query.to_owned()),
                        _ => collect(value, found),
                    }
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(text).unwrap(), &mut found);
    found.join("\n")
}

/// The names in queries that are Larder's; `larder_policy` is a label.
fn metric_names(queries: &str) -> BTreeSet<String> {
    queries
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("larder_") && *word != "larder_policy")
        .map(str::to_owned)
        .collect()
}
