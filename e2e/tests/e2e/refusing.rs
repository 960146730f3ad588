//! Policies that the API server refuses, each with a sentence that says what to write instead.

use anyhow::ensure;
use larder_crds::ConditionType;
use larder_e2e::{apply, examples, in_a_namespace, policy};
use larder_lint::{Checker, Environment, fixtures};
use serde_json::{Value, json};

use super::common::IN_MEMORY;

#[tokio::test]
async fn a_malformed_policy_is_refused_with_its_message() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let duration = "write a duration such as 500ms, 30s, 5m or 1h30m";
        let size = "write a whole number of bytes with a unit, such as 512Ki, 64Mi or 1Gi";
        let path = "start the path with '/', and let each segment be literal text or one {parameter}";
        let route = |route: Value| json!({"routes": [route]});
        let checker = Checker::new(Environment::Cluster);
        let write = |write: Value| json!({"invalidation": {"onWrite": [write]}});
        for (change, message) in [
            (json!({"selector": {}}), "an empty selector would select every pod"),
            (json!({"targets": []}), "list at least one port of the application's containers"),
            (json!({"targets": [{"port": 0}]}), "write the name of a container port, such as http, or its number"),
            (json!({"capture": {"mode": "Magic"}}), "Unsupported value: \"Magic\""),
            (json!({"l1": {"maxSize": "lots"}}), size),
            (json!({"l1": {"maxSize": "1Gi"}}), "l1.maxSize and 32Mi"),
            (json!({"l1": {"maxSize": "1Mi", "maxObjectSize": "2Mi"}}), "l1.maxObjectSize"),
            (
                json!({"l2": {"redis": {"urlFrom": {"secretKeyRef": {"name": "redis", "key": "../url"}}}}}),
                "name a Secret and one of its keys",
            ),
            (json!({"l1": {"busGrace": "5 seconds"}}), duration),
            (json!({"l2": {"redis": {"urlFrom": {}}}}), "set secretKeyRef: {name: ..., key: ...}"),
            (json!({"sources": [{"name": "catalog"}]}), "a source needs a kind: set one of postgres and http"),
            (json!({"telemetry": {"otlp": {"endpoint": "collector:4317"}}}), "write a URL such as http://"),
            (json!({"sidecar": {"resources": {"requests": {"memory": "1Gi"}}}}), "requests.memory is above limits.memory"),
            (route(json!({"name": "a", "match": {"path": "/a"}, "ttl": "1d"})), duration),
            (route(json!({"name": "a", "match": {"path": "a/b"}})), path),
            (route(json!({"name": "a", "match": {"path": "/a-{id}"}})), path),
            (route(json!({"name": "a", "match": {"path": "/a", "methods": ["PUT"]}})), "Unsupported value: \"PUT\""),
            (
                route(json!({"name": "a", "match": {"path": "/a", "methods": ["POST"]}})),
                "responses to POST depend on the body: set key.body",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "key": {"body": {"maxSize": "64Ki"}}})),
                "key.body is for POST: put POST into match.methods",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "key": {"query": {"allow": ["a"], "ignore": ["b"]}}})),
                "allow and ignore exclude each other",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "ttl": "1m", "maxTTL": "1m"})),
                "ttl replaces the lifetime that a response declares and maxTTL limits it",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "pass": true, "tags": ["a"]})),
                "pass: true stores nothing",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "statuses": [{"code": 304}]})),
                "a 304 refers to a response that is already stored",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "storeDespite": ["Everything"]})),
                "Unsupported value: \"Everything\"",
            ),
            (route(json!({"name": "a", "match": {"path": "/a"}, "bypass": {}})), "bypass needs a condition"),
            (json!({"targetedCacheControl": ["Cache-Control"]}), "list names of headers besides Cache-Control"),
            (
                route(json!({"name": "a", "match": {"path": "/a/{id}"}, "tags": ["a:{key}"]})),
                "a tag may only use parameters that match.path has, such as {id}",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "from": [{"postgres": {"source": "b", "query": "select 1"}}]})),
                "a route's from.postgres names no Postgres server of spec.sources",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "lastKnownGood": {"source": "b"}})),
                "a route's lastKnownGood names no Postgres server of spec.sources",
            ),
            (
                route(json!({"name": "a", "match": {"path": "/a"}, "from": [{"postgres": {"source": "b", "query": "select '{', {query.}"}}]})),
                "name a parameter of the query, such as {query.page}",
            ),
            (json!({"admin": {"pathPrefix": "/a/.."}}), "write a path without an end slash and without dots alone"),
            (route(json!({"name": "a", "match": {"path": "/a"}, "from": [{}]})), "an entry of from needs an origin: set one of postgres"),
            (write(json!({"match": {"path": "/a", "methods": ["GET"]}, "purge": {"paths": ["/a"]}})), "list methods that write"),
            (write(json!({"match": {"path": "/a"}, "purge": {}})), "nothing to purge: set tags, tagsFrom, paths or prefixes, or everything: true"),
            (
                write(json!({"match": {"path": "/a/{id}"}, "purge": {"tags": ["a:{key}"]}})),
                "purge.tags may only use parameters that match.path has",
            ),
            (json!({"invalidation": {"requests": {"allowedNetworks": ["10.0.0.0"]}}}), "write networks as address and length"),
            (json!({"invalidation": {"requests": {"tokenHeader": "X Token"}}}), "write the name of a header, such as X-Invalidate-Token"),
            (json!({"cacheEverything": true}), "cacheEverything"),
        ] {
            let mut malformed = policy::manifest("malformed", IN_MEMORY)?;
            for (field, value) in change.as_object().into_iter().flatten() {
                malformed["spec"][field] = value.clone();
            }
            apply::rejects(&sandbox.client, &sandbox.name, &malformed, message).await?;
            let text = serde_yaml::to_string(&malformed)?;
            ensure!(!checker.check(&text).diagnostics.is_empty(), "`check` accepts it: {text}");
        }
        let long = policy::manifest(&"long".repeat(13), IN_MEMORY)?;
        apply::rejects(&sandbox.client, &sandbox.name, &long, "shorten metadata.name to at most").await?;
        for object in examples::shop("policy.yaml", &sandbox.name)? {
            apply::accepts(&sandbox.client, &sandbox.name, &object).await?;
        }
        Ok(())
    })
    .await
}

/// `larder-sidecar check` evaluates the rules of the custom resource definition without an API server.
#[tokio::test]
async fn the_api_server_and_the_check_agree_on_every_rule() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let apply = async |text: &str| {
            let policy = serde_yaml::from_str::<Value>(text)?;
            apply::dry_run(&sandbox.client, &sandbox.name, &policy).await
        };
        apply(fixtures::VALID).await?;
        for fixture in fixtures::all() {
            let refused = apply(&fixture.policy()).await.err();
            let said = refused.map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(said.contains(fixture.message), "{said:?} does not say {:?}", fixture.message);
        }
        let checker = Checker::new(Environment::Cluster);
        for edge in fixtures::edges() {
            let accepted = apply(&edge.policy()).await;
            let diagnostics = checker.check(&edge.policy()).diagnostics;
            ensure!(accepted.is_ok() == edge.accepted_by_server, "{edge:?}: {accepted:?}");
            ensure!(diagnostics.is_empty() == edge.accepted_by_check, "{edge:?}: {diagnostics:?}");
        }
        // What the rules cost for as many routes as a policy may have is within the API server's budget.
        apply(&fixtures::with_routes(1000)).await?;
        ensure!(apply(&fixtures::with_routes(1001)).await.is_err(), "a policy has too many routes");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn of_two_policies_that_select_the_same_pods_the_older_serves() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let workload = larder_e2e::Workload::deployment("app", 1);
        let (older, agent) = sandbox.with_policy("older", IN_MEMORY, &workload, 1).await?;
        // Two creations within the same second have the same age.
        tokio::time::sleep(larder_e2e::eventually::seconds(1)).await;
        let younger = sandbox.policy("younger", &IN_MEMORY.replace("300s", "60s")).await?;

        let conflict = younger.condition(ConditionType::Accepted, "False").await?;
        ensure!(conflict.reason.contains("Conflict"), "{conflict:?}");
        ensure!(conflict.message.contains("older"), "it does not name the other policy: {conflict:?}");
        older.serves(1).await?;
        agent.get("http://app/items/1").await?;
        let hit = agent.get("http://app/items/1").await?;
        ensure!(super::common::ttl(&hit)? > 60, "the younger policy serves: {hit:?}");

        older.delete().await?;
        younger.serves(1).await?;
        // The pod that the older one served may be asked for as long as endpoints lag.
        larder_e2e::eventually(
            "the younger policy serves",
            larder_e2e::eventually::SHORT_TIMEOUT,
            async || {
                let hit = agent.get("http://app/items/1").await?;
                super::common::ensure_hit(&hit)?;
                ensure!(super::common::ttl(&hit)? <= 60, "the older policy serves: {hit:?}");
                Ok(())
            },
        )
        .await
    })
    .await
}
