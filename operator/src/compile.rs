//! Compilation of a `CachePolicy` into the document that its sidecars read.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use larder_api::{annotations, config_map, labels, names};
use larder_crds::RolloutStrategy;
use larder_policy::{
    Destinations, Document, FieldError, Metadata, Policy, document,
    spec::{CacheSpec, Invalidation, SecretKeyRef},
};

use crate::bounds::Bounds;

/// Maximum size of a document in bytes. A ConfigMap holds 1 MiB, the document's hash and the coverage included.
const MAX_DOCUMENT: usize = (1 << 20) - (16 << 10);

/// A compiled policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The document.
    pub yaml: String,
    /// The hash of the document, by which a sidecar identifies its configuration.
    pub hash: String,
    /// True if sidecars run the document only while the coverage beside it permits that.
    pub follows_coverage: bool,
}

/// Identity of the policy of a document.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// The policy's name.
    pub name: &'a str,
    /// The uid, which distinguishes the policy from an earlier one of the same name.
    pub uid: &'a str,
}

/// Compiles a policy within the bounds of the cluster. `identity` are headers that identify a user under every policy.
///
/// # Errors
/// The errors in the policy, one sentence each.
pub fn compile(
    owner: Owner<'_>,
    spec: &CacheSpec,
    identity: &[String],
    bounds: &Bounds,
) -> Result<Compiled, String> {
    let mut spec = spec.clone();
    for header in identity {
        if !spec.identity_headers.contains(header) {
            spec.identity_headers.push(header.clone());
        }
    }
    for from in spec.secrets_mut() {
        if let Some(secret) = from.secret_key_ref.take() {
            from.file = Some(format!("{}/{}", secret_folder(&secret.name), secret.key));
        }
    }
    check(&spec)?;
    // Sidecars of an earlier version, which know no defaults, read complete routes as they are meant.
    spec.complete();
    bounds.cap(&mut spec);
    // Sidecars compile the document, which differs from what was checked.
    check(&spec)?;
    let compiled = write(owner, spec, &bounds.destinations);
    if compiled.yaml.len() > MAX_DOCUMENT {
        return Err(format!(
            "the policy takes {} KiB as a document, and a ConfigMap holds {} KiB: let a prefix such as /static/{{*path}} \
             stand for several routes, or shorten queries and statements",
            compiled.yaml.len() >> 10,
            MAX_DOCUMENT >> 10
        ));
    }
    Ok(compiled)
}

fn check(spec: &CacheSpec) -> Result<(), String> {
    let joined = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    Policy::compile(spec).map(drop).map_err(|errors| joined(errors).join("; "))
}

/// Returns the document with which a policy's sidecars pass everything through.
pub fn suspended(owner: Owner<'_>) -> Compiled {
    write(owner, CacheSpec { suspend: true, ..CacheSpec::default() }, &Destinations::default())
}

fn write(owner: Owner<'_>, spec: CacheSpec, destinations: &Destinations) -> Compiled {
    let metadata = Metadata {
        name: owner.name.to_owned(),
        namespace: owner.namespace.to_owned(),
        uid: owner.uid.to_owned(),
    };
    // What is cached may rely on seeing every write only where writes, their responses or requests of their own purge.
    let purges =
        |rules: &Invalidation| !rules.on_write.is_empty() || rules.from_responses || rules.requests.is_some();
    let follows_coverage = spec.invalidation.as_ref().is_some_and(purges);
    let destinations = destinations.clone();
    let yaml = Document { follows_coverage, destinations, ..Document::new(metadata, spec) }.to_yaml();
    let hash = document::hash(&yaml);
    Compiled { yaml, hash, follows_coverage }
}

/// Returns the Secret keys that a policy refers to, each once, in order.
pub fn secrets(spec: &CacheSpec) -> Vec<SecretKeyRef> {
    let mut spec = spec.clone();
    let mut secrets: Vec<_> = spec.secrets_mut().filter_map(|from| from.secret_key_ref.clone()).collect();
    secrets.sort();
    secrets.dedup();
    secrets
}

/// Returns the folder in the sidecar at which a Secret is mounted.
pub fn secret_folder(secret: &str) -> String {
    format!("/etc/larder/secrets/{secret}")
}

/// Returns the ConfigMap that delivers the document to the sidecars.
pub fn config_map(
    namespace: &str,
    policy: &str,
    compiled: &Compiled,
    strategy: RolloutStrategy,
) -> ConfigMap {
    let labels = [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, policy)];
    let annotations = [(annotations::ROLLOUT_STRATEGY, strategy_name(strategy))];
    let data = [(config_map::DOCUMENT, compiled.yaml.as_str()), (config_map::HASH, compiled.hash.as_str())];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::config_map(policy)),
            namespace: Some(namespace.to_owned()),
            labels: Some(owned(labels)),
            annotations: Some(owned(annotations)),
            ..ObjectMeta::default()
        },
        data: Some(owned(data)),
        ..ConfigMap::default()
    }
}

/// Returns a strategy's value in [`annotations::ROLLOUT_STRATEGY`].
pub const fn strategy_name(strategy: RolloutStrategy) -> &'static str {
    match strategy {
        RolloutStrategy::Restart => "Restart",
        RolloutStrategy::OnCreate => "OnCreate",
    }
}

/// Returns the hash that is recorded in a ConfigMap.
pub fn recorded_hash(config_map: &ConfigMap) -> Option<&str> {
    config_map.data.as_ref()?.get(config_map::HASH).map(String::as_str)
}

/// Returns the hash of the document in a ConfigMap. Differs from the recorded one only after a manual edit of the
/// document.
pub fn held_hash(config_map: &ConfigMap) -> String {
    let text = config_map.data.as_ref().and_then(|data| data.get(config_map::DOCUMENT));
    document::hash(text.map_or("", String::as_str))
}

/// Returns true if sidecars run the document in a ConfigMap only while the coverage permits that. An invalid document
/// is not run, and returns false.
pub fn held_follows_coverage(config_map: &ConfigMap) -> bool {
    let text = config_map.data.as_ref().and_then(|data| data.get(config_map::DOCUMENT));
    text.and_then(|text| Document::parse(text).ok()).is_some_and(|document| document.follows_coverage)
}

/// Returns the coverage in a policy's ConfigMap, as text.
pub fn held_coverage(config_map: &ConfigMap) -> Option<&str> {
    config_map.data.as_ref()?.get(config_map::COVERAGE).map(String::as_str)
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::inject::tests::spec;

    const OWNER: Owner<'_> = Owner { namespace: "shop", name: "shop", uid: "1" };

    fn with_secrets() -> CacheSpec {
        spec(json!({
            "l2": {"redis": {"urlFrom": {"secretKeyRef": {"name": "shop-redis", "key": "url"}}}},
            "sources": [{"name": "catalog", "postgres": {"urlFrom": {"secretKeyRef": {"name": "shop-db", "key": "url"}}}}],
            "routes": [{"name": "item", "match": {"path": "/data/{key}"}, "ttl": "300s",
                "from": [{"postgres": {"source": "catalog", "query": "select 1 where {key}::int = 1"}}]}],
        }))
        .cache
    }

    #[test]
    fn secrets_become_files() {
        let compiled = compile(OWNER, &with_secrets(), &[], &Bounds::default()).unwrap();
        let document = Document::parse(&compiled.yaml).unwrap();
        let redis = document.spec.l2.unwrap().redis.url_from;
        assert_eq!(redis.file.as_deref(), Some("/etc/larder/secrets/shop-redis/url"));
        assert_eq!(redis.secret_key_ref, None);
        assert!(!compiled.yaml.contains("secretKeyRef"), "{}", compiled.yaml);
        assert_eq!(secrets(&with_secrets()).len(), 2);
    }

    #[test]
    fn document_has_complete_routes_for_sidecars_that_know_no_defaults() {
        let with = |defaults: serde_json::Value| {
            let routes = ["a", "b"].map(|name| json!({"name": name, "match": {"path": "/a"}}));
            spec(json!({"defaults": defaults, "routes": routes})).cache
        };
        let bounds = Bounds::parse(r#"{"maxTTL": "1h"}"#).unwrap();
        let compiled = compile(OWNER, &with(json!({"ttl": "1m", "grace": "5m"})), &[], &bounds).unwrap();
        let document = Document::parse(&compiled.yaml).unwrap().spec;
        assert_eq!(document.defaults, None);
        for route in &document.routes {
            assert!(
                route.ttl.is_some() && route.max_ttl.is_none() && route.stale_if_error.is_some(),
                "{route:?}"
            );
        }
        let error = compile(OWNER, &with(json!({"ttl": "0s"})), &[], &bounds).unwrap_err();
        assert_eq!(error, "spec.defaults.ttl: must be longer than 0s");
    }

    #[test]
    fn document_within_bounds_is_one_that_sidecars_accept() {
        let routes = json!([
            {"name": "admin", "match": {"path": "/admin/{*path}"}, "pass": true},
            {"name": "site", "match": {"path": "/{*path}"}},
        ]);
        let policy = spec(json!({"defaults": {"grace": "5m"}, "routes": routes})).cache;
        let bounds = Bounds::parse(r#"{"maxTTL": "1h"}"#).unwrap();
        let compiled = compile(OWNER, &policy, &[], &bounds).unwrap();
        let document = Document::parse(&compiled.yaml).unwrap().spec;
        Policy::compile(&document).unwrap();
        assert_eq!(document.routes[0].max_ttl, None);
        assert_eq!(document.routes[1].max_ttl.unwrap().to_string(), "1h");
    }

    #[test]
    fn document_that_no_config_map_holds_is_refused_with_its_size() {
        let routes = |count: usize, statement: &str| {
            let route = |number| {
                json!({"name": format!("r{number}"), "match": {"path": format!("/service-{number}/{{*path}}")},
                    "ttl": "1m", "tags": [format!("s{number}:{{path}}")],
                    "from": [{"postgres": {"source": "catalog", "query": statement}}]})
            };
            let secret = json!({"secretKeyRef": {"name": "shop-db", "key": "url"}});
            let sources = json!([{"name": "catalog", "postgres": {"urlFrom": secret}}]);
            spec(json!({"sources": sources, "routes": (0..count).map(route).collect::<Vec<_>>()})).cache
        };
        let compiled = compile(OWNER, &routes(1000, "select {path}"), &[], &Bounds::default()).unwrap();
        assert!(compiled.yaml.len() < MAX_DOCUMENT / 2, "{}", compiled.yaml.len());
        let long = format!("select {{path}} -- {}", "x".repeat(2000));
        let error = compile(OWNER, &routes(1000, &long), &[], &Bounds::default()).unwrap_err();
        assert!(error.contains("KiB as a document, and a ConfigMap holds 1008 KiB"), "{error}");
    }

    #[test]
    fn certificates_are_secrets_too() {
        let from = |name: &str| json!({"secretKeyRef": {"name": name, "key": "ca.crt"}});
        let spec = spec(json!({
            "l2": {"redis": {"urlFrom": from("redis"), "caFrom": from("redis-ca")}},
            "sources": [
                {"name": "catalog", "postgres": {"urlFrom": from("db"), "caFrom": from("db-ca")}},
                {"name": "shop", "http": {"url": "https://shop.example", "caFrom": from("http-ca")}},
            ],
        }))
        .cache;
        let names: Vec<_> = secrets(&spec).into_iter().map(|secret| secret.name).collect();
        assert_eq!(names, ["db", "db-ca", "http-ca", "redis", "redis-ca"]);

        let compiled = compile(OWNER, &spec, &[], &Bounds::default()).unwrap();
        assert!(!compiled.yaml.contains("secretKeyRef"), "{}", compiled.yaml);
        let mut spec = Document::parse(&compiled.yaml).unwrap().spec;
        let files: Vec<_> = spec.secrets_mut().filter_map(|from| from.file.clone()).collect();
        let mounted = ["redis", "redis-ca", "db", "db-ca", "http-ca"];
        assert_eq!(files, mounted.map(|name| format!("/etc/larder/secrets/{name}/ca.crt")));
    }

    #[test]
    fn the_same_policy_gives_the_same_hash() {
        let first = compile(OWNER, &with_secrets(), &[], &Bounds::default()).unwrap();
        assert_eq!(first, compile(OWNER, &with_secrets(), &[], &Bounds::default()).unwrap());
        assert_eq!(first.hash, document::hash(&first.yaml));
        assert_ne!(first.hash, suspended(OWNER).hash);
    }

    #[test]
    fn only_policies_with_rules_for_writes_follow_their_coverage() {
        let write = json!({"match": {"path": "/a"}, "purge": {"paths": ["/a"]}});
        let with = spec(json!({"invalidation": {"onWrite": [write]}})).cache;
        let compiled = compile(OWNER, &with, &[], &Bounds::default()).unwrap();
        assert!(compiled.follows_coverage && compiled.yaml.contains("followsCoverage: true"), "{compiled:?}");
        let map = config_map("shop", "cache", &compiled, RolloutStrategy::Restart);
        assert!(held_follows_coverage(&map));
        assert_eq!(held_coverage(&map), None, "it is written beside it");
        let without = compile(OWNER, &with_secrets(), &[], &Bounds::default()).unwrap();
        assert!(!without.follows_coverage && !without.yaml.contains("followsCoverage"), "{without:?}");
        assert!(!suspended(OWNER).follows_coverage);
        let by_responses = spec(json!({"invalidation": {"fromResponses": true}})).cache;
        assert!(compile(OWNER, &by_responses, &[], &Bounds::default()).unwrap().follows_coverage);
        let by_requests = spec(json!({"invalidation": {"requests": {}}})).cache;
        assert!(compile(OWNER, &by_requests, &[], &Bounds::default()).unwrap().follows_coverage);
    }

    #[test]
    fn identities_of_the_whole_cluster_are_in_every_document() {
        let identity = ["x-shop-*".to_owned(), "x-badge".to_owned()];
        let spec = spec(json!({"identityHeaders": ["x-badge"]})).cache;
        let document =
            Document::parse(&compile(OWNER, &spec, &identity, &Bounds::default()).unwrap().yaml).unwrap();
        assert_eq!(document.spec.identity_headers, ["x-badge", "x-shop-*"]);
    }

    #[test]
    fn bounds_of_the_cluster_are_in_every_document() {
        let compiled = compile(OWNER, &with_secrets(), &[], &Bounds::default()).unwrap();
        assert_eq!(Document::parse(&compiled.yaml).unwrap().destinations, Destinations::of_cluster());
        let bounds =
            Bounds::parse(r#"{"sources": {"allowedHosts": ["*.example.com"], "deniedNetworks": []}}"#);
        let bounded = compile(OWNER, &with_secrets(), &[], &bounds.unwrap()).unwrap();
        assert_ne!(bounded.hash, compiled.hash);
        assert!(bounded.yaml.contains("allowedHosts"), "{}", bounded.yaml);
    }

    #[test]
    fn compile_error_is_reported() {
        let mut spec = with_secrets();
        spec.sources.clear();
        let error = compile(OWNER, &spec, &[], &Bounds::default()).unwrap_err();
        assert!(error.contains("catalog"), "{error}");
    }

    #[test]
    fn suspended_documents_say_nothing_else() {
        let document = Document::parse(&suspended(OWNER).yaml).unwrap();
        assert_eq!(document.spec, CacheSpec { suspend: true, ..CacheSpec::default() });
    }

    #[test]
    fn config_map_records_its_content() {
        let compiled = suspended(OWNER);
        let map = config_map("shop", "cache", &compiled, RolloutStrategy::OnCreate);
        assert_eq!(map.metadata.name.as_deref(), Some("larder-cache"));
        assert_eq!(recorded_hash(&map), Some(compiled.hash.as_str()));
        assert_eq!(held_hash(&map), compiled.hash);
        assert_eq!(map.metadata.annotations.unwrap()[annotations::ROLLOUT_STRATEGY], "OnCreate");
    }
}
