//! Pods that policies select, and pods that choose for themselves.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt, api::ListParams};
use larder_api::labels;
use larder_crds::{ConditionType, selector};
use larder_e2e::{
    Workload, apply, eventually::SHORT_TIMEOUT, in_a_namespace, policy::has, policy::has_sidecar,
    workload::pod_of,
};
use serde_json::{Value, json};

use super::common::IN_MEMORY;

#[tokio::test]
async fn choice_of_a_pod_counts_in_any_spelling_and_one_without_effect_is_named() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let template = Workload::deployment("app", 1).template()?;
        policy.injects(&template).await?;
        let injected = async |place: &str, value: &str| {
            let mut pod = pod_of(template.clone(), "choosing");
            pod["metadata"][place][labels::INJECT] = json!(value);
            anyhow::Ok(has_sidecar(&apply::dry_run(&sandbox.client, &sandbox.name, &pod).await?.data))
        };
        for value in ["false", "False", "FALSE", "no", "off", "disabled", "Disabled", "0", "n"] {
            for place in ["labels", "annotations"] {
                ensure!(!injected(place, value).await?, "injected in spite of {place} {value}");
            }
        }
        ensure!(!injected("annotations", " false ").await?, "spaces count");
        for value in ["true", "enabled", "perhaps", ""] {
            for place in ["labels", "annotations"] {
                ensure!(injected(place, value).await?, "not injected because of {place} {value}");
            }
        }

        let mut unknown = pod_of(template.clone(), "unknown");
        unknown["metadata"]["annotations"][labels::INJECT] = json!("perhaps");
        let mut unselected = pod_of(template.clone(), "unselected");
        unselected["metadata"]["labels"] = json!({"app": "another", labels::INJECT: "true"});
        sandbox.apply(&[unknown, unselected]).await?;
        policy
            .eventually("the status names the choices without effect", SHORT_TIMEOUT, |status| {
                let injected = has(status, ConditionType::Injected, "True")?;
                for words in ["pod unknown: ", "\"perhaps\" has no effect", "and 1 more pods"] {
                    ensure!(injected.message.contains(words), "it does not say {words:?}");
                }
                Ok(())
            })
            .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn selector_of_absent_labels_selects_pods_without_labels() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let spec = IN_MEMORY.replace(
            "selector: {matchLabels: {app: app}}",
            "selector: {matchExpressions: [{key: tier, operator: NotIn, values: [batch]}, {key: app, operator: DoesNotExist}]}",
        );
        let policy = sandbox.policy("cache", &spec).await?;
        let mut template = Workload::deployment("app", 1).template()?;
        template["metadata"] = json!({});
        policy.injects(&template).await?;
        template["metadata"]["labels"] = json!({"tier": "batch"});
        let pod = pod_of(template, "batch");
        let pod = apply::dry_run(&sandbox.client, &sandbox.name, &pod).await?;
        ensure!(!has_sidecar(&pod.data), "a pod that is not selected was injected");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn selectors_match_as_the_api_server_has_it() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let objects = [
            json!({}),
            json!({"a": ""}),
            json!({"a": "x"}),
            json!({"a": "y", "b": "x"}),
            json!({"b": "x"}),
            json!({"a": "X"}),
            json!({"example.com/a": "x", "b": ""}),
        ];
        let maps = sandbox.api::<ConfigMap>();
        for (number, labels) in objects.iter().enumerate() {
            let mut metadata = json!({"name": format!("labels-{number}"), "labels": labels});
            metadata["labels"]["set"] = json!("selectors");
            sandbox.apply(&[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})]).await?;
        }
        let all = maps.list(&ListParams::default().labels("set=selectors")).await?.items;
        ensure!(all.len() == objects.len(), "{} objects", all.len());

        let mut expressions = vec![];
        for key in ["a", "b", "example.com/a", "absent"] {
            for operator in ["Exists", "DoesNotExist"] {
                expressions.push(json!({"key": key, "operator": operator}));
            }
            for operator in ["In", "NotIn"] {
                for values in [json!(["x"]), json!([""]), json!(["x", "y"]), json!(["", "x"])] {
                    expressions.push(json!({"key": key, "operator": operator, "values": values}));
                }
            }
        }
        // Each alone, each beside a label, and each beside another that is far from it in the list.
        let alone = expressions.iter().map(|one| json!({"matchExpressions": [one]}));
        let with_label =
            expressions.iter().map(|one| json!({"matchLabels": {"b": "x"}, "matchExpressions": [one]}));
        let two = expressions.iter().enumerate().map(|(index, one)| {
            json!({"matchExpressions": [one, expressions[(index * 7 + 11) % expressions.len()]]})
        });
        for selector in alone.chain(with_label).chain(two) {
            let query = format!("set=selectors,{}", written(&selector)?);
            let listed = maps.list_metadata(&ListParams::default().labels(&query)).await?;
            let listed: BTreeSet<_> = listed.items.iter().map(ResourceExt::name_any).collect();
            let parsed = serde_json::from_value(selector.clone())?;
            let matched = all.iter().filter(|map| selector::matches(&parsed, map.labels()));
            let matched: BTreeSet<_> = matched.map(ResourceExt::name_any).collect();
            ensure!(listed == matched, "{selector}: the API server lists {listed:?}, not {matched:?}");
        }
        Ok(())
    })
    .await
}

/// Writes a selector as a query of the API server.
fn written(selector: &Value) -> anyhow::Result<String> {
    let mut parts = vec![];
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().context("no text")?));
    }
    for one in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = one["key"].as_str().context("no key")?;
        let values: Vec<_> =
            one["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match one["operator"].as_str() {
            Some("Exists") => key.to_owned(),
            Some("DoesNotExist") => format!("!{key}"),
            Some("In") => format!("{key} in ({})", values.join(",")),
            _ => format!("{key} notin ({})", values.join(",")),
        });
    }
    Ok(parts.join(","))
}
